"""Runs every Triton kernel in numpy, in a process of its own, so that the others see no interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = ["test_triton_cam.py", "test_triton_mining.py"]


@pytest.mark.parametrize("name", FILES)
def test_under_the_interpreter(name: str) -> None:
    pytest.importorskip("triton", reason="triton is not installed (Linux on x86-64 has it)")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--disable-warnings"]
    run = subprocess.run(
        [*command, str(Path(__file__).with_name(name))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
