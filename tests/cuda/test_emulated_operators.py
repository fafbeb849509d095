"""The tests of the operators, on the CUDA kernels: ``pytest tests/ops --device emulated``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from emulation import Emulator

OPERATORS = Path(__file__).parents[1] / "ops"
# The rest (equality on thousands of maps, properties) takes minutes: `make test-slow`.
QUICK = ["heatmap_boxes", "mine_attention", "masked_gap", "aggregate_heatmap", "label_components",
         "attention_mining"]  # fmt: skip


def run(*files: str) -> str:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--device", "emulated"]
    result = subprocess.run([*command, *files], capture_output=True, text=True, timeout=1500)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    return result.stdout


def test_the_operators_one_by_one(emulator: Emulator) -> None:
    run(*(str(OPERATORS / f"test_{name}.py") for name in QUICK))


@pytest.mark.slow
def test_all_of_them(emulator: Emulator) -> None:
    run(str(OPERATORS))
