"""nvcc compiles every CUDA file for every generation, within budgets of registers and shared memory
and without spills: what a kernel needs decides how many of its blocks a multiprocessor holds."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
# Registers of a thread and static shared memory of a block, at most.
BUDGETS = {
    "mine_attention": {
        "mine_attention_32": (200, 0),  # 8 warps a multiprocessor: 132 of them hold a batch of 900
        "mine_attention_64": (112, 0),
        "mine_attention_any": (96, 1024),
    },
    "masked_gap": {
        "masked_gap_float": (64, 512),
        "masked_gap_double": (64, 512),
        "masked_gap_backward_float": (64, 1024),
        "masked_gap_backward_double": (64, 2048),
    },
    "aggregate_heatmap": {"aggregate_heatmap": (64, 0)},
    "heatmap_boxes": {
        "heatmap_boxes_shared": (72, 1024),  # 7 blocks of 128 threads
        "heatmap_boxes_global": (72, 1024),
    },
    "label_components": {
        "label_small": (64, 17408),
        "label_runs": (64, 0),
        "label_unite": (64, 0),
        "label_count": (64, 128),
        "label_offsets": (64, 128),
        "label_number": (64, 1024),
        "label_write": (64, 0),
    },
}
REPORT = re.compile(
    r"Compiling entry function '(\w+)'.*?"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
    r"Used (\d+) registers(.*?)$",
    re.DOTALL | re.MULTILINE,
)


def test_every_cuda_file_has_a_budget() -> None:
    assert {path.stem for path in KERNELS.glob("*.cu")} == BUDGETS.keys()


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("architecture", [75, 80, 90, 100])  # 75 is what NVRTC may be asked for
@pytest.mark.parametrize("unit", BUDGETS)
def test_registers_shared_memory_and_spills(unit: str, architecture: int, tmp_path: Path) -> None:
    # The flags of CMakeLists.txt, with the assembler's report.
    command = [NVCC, "-std=c++17", "-fmad=false", "-O3", f"-arch=sm_{architecture}", "-cubin",
               "-Xptxas", "-v", "-Werror", "all-warnings", str(KERNELS / f"{unit}.cu"),
               "-o", str(tmp_path / "image")]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    kernels = {}
    for name, stack, stores, loads, registers, rest in REPORT.findall(result.stderr):
        shared = re.search(r"(\d+) bytes smem", rest)
        assert (int(stack), int(stores), int(loads)) == (0, 0, 0), f"{name} spills"
        kernels[name] = (int(registers), int(shared[1]) if shared else 0)
    assert kernels.keys() == BUDGETS[unit].keys()
    for name, (registers, shared_bytes) in BUDGETS[unit].items():
        assert kernels[name][0] <= registers, name
        assert kernels[name][1] <= shared_bytes, name
