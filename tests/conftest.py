"""What every test shares: where real data may lie, and maps that look like real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

SHARED_DATA = Path(__file__).parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real X-rays and tables; the test is skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data of ../shared/data is not here")
    return SHARED_DATA


def pytest_configure(config: pytest.Config) -> None:
    """One thread unless a test asks for more: tests are small, and machines that run them busy."""
    try:
        import torch
    except ImportError:  # the tests of the numpy module run without torch, too
        return
    torch.set_num_threads(1)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260)
