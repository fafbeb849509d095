"""Runs every Triton kernel in numpy, in a process of its own, so that the others see no interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_under_the_interpreter() -> None:
    pytest.importorskip("triton", reason="triton is not installed (Linux on x86-64 has it)")
    files = sorted(map(str, Path(__file__).parent.glob("test_triton_*.py")))
    assert files
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--disable-warnings", *files],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
