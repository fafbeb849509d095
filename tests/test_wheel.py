"""The wheel in other people's environments: one with torch, one without."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

WITH_TORCH = """
import torch
from cxr_fast import ops
assert ops.CPU_KERNELS.startswith("C++"), ops.CPU_KERNELS
result = ops.attention_mining(torch.rand(2, 8, 16, 16), torch.randn(3, 8))
assert result.found.boxes.shape == (2, 3, 3, 4)
"""
WITHOUT_TORCH = """
import importlib.util, sys
assert importlib.util.find_spec("torch") is None
import numpy as np
from cxr_fast import runtime
rng = np.random.default_rng(0)
result = runtime.attention_mining(rng.random((2, 8, 16, 16)), rng.standard_normal((3, 8)), threads=2)
assert result.found.counts.min() >= 1
assert "torch" not in sys.modules
"""


def python_of(folder: Path) -> Path:
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


def call(*arguments: object, cwd: Path) -> None:
    subprocess.run([str(a) for a in arguments], check=True, cwd=cwd, timeout=900)


@pytest.mark.slow
def test_wheel_in_two_fresh_environments(tmp_path: Path) -> None:
    call(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q",
         "-w", tmp_path, ROOT, cwd=tmp_path)  # fmt: skip
    (wheel,) = tmp_path.glob("cxr_fast-*.whl")

    without = python_of(tmp_path / "without")
    call(without, "-m", "pip", "install", "-q", wheel, cwd=tmp_path)
    call(without, "-c", WITHOUT_TORCH, cwd=tmp_path)
    call(without, "-m", "cxr_fast.cli", "env", cwd=tmp_path)

    with_torch = python_of(tmp_path / "with")
    call(with_torch, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt",
         f"{wheel}[bench]", cwd=tmp_path)  # fmt: skip
    call(with_torch, "-c", WITH_TORCH, cwd=tmp_path)
    call(with_torch, "-m", "cxr_fast.cli", "bench", "--quick", "--only", "masked_gap", cwd=tmp_path)
