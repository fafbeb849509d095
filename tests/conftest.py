"""What every test shares: where real data may lie, and maps that look like real ones."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from emulation import Emulator

SHARED_DATA = Path(__file__).parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def heeded_ctrl_c() -> None:
    """In a shell's background Ctrl-C is ignored, which every child would inherit."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real X-rays and tables; the test is skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data of ../shared/data is not here")
    return SHARED_DATA


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        default="cpu",
        help="where the tests of tests/ops run the operators: cpu, cuda, cuda:1, or emulated, which is "
        "the CUDA C++ kernels on the CPU",
    )


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


@pytest.fixture(scope="session")
def _emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    import emulation

    return emulation.serve(emulation.build(tmp_path_factory.mktemp("emulator")))


@pytest.fixture
def emulator(_emulator: Emulator) -> Emulator:
    """A stand-in for a GPU: CUDA C++ kernels, run by the CPU."""
    _emulator.reset()
    return _emulator
