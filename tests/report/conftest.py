"""The run that both files of tests report on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mined_run import write_run


@pytest.fixture
def run(tmp_path: Path, rng: np.random.Generator) -> Path:
    return write_run(tmp_path / "run", rng)
