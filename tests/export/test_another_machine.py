"""What a machine needs to mine by an exported file: the file and the wheel, and no torch."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from cxr_fast.export.command import export_model
from cxr_fast.phantom import PhantomSettings, write_archive

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

ROOT = Path(__file__).parents[2]

# Python's own modules, numpy, and these five: nothing else may come with the runtime.
WHAT_THE_RUNTIME_LOADS = """
import sys
before = set(sys.modules)
import cxr_fast.runtime
loaded = set(sys.modules) - before
ours = {name for name in loaded if name.split(".")[0] == "cxr_fast"}
assert ours == {
    "cxr_fast", "cxr_fast._numpy_ops", "cxr_fast.checks", "cxr_fast.config", "cxr_fast.runtime"
}, sorted(ours)
others = {name.split(".")[0] for name in loaded - ours} - set(sys.stdlib_module_names)
assert others == {"numpy"}, sorted(others)
"""


def call(*arguments: object, cwd: Path) -> str:
    done = subprocess.run(
        [str(a) for a in arguments], cwd=cwd, timeout=900, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def mine(python: Path | str, images: Path, model: Path, out: Path) -> None:
    call(python, "-m", "cxr_fast.cli", "mine", images, "--model", model, "--out", out,
         "--heatmaps", "--threads", "2", cwd=out.parent)  # fmt: skip


def test_the_runtime_brings_numpy_and_nothing_else(tmp_path: Path) -> None:
    call(sys.executable, "-c", WHAT_THE_RUNTIME_LOADS, cwd=tmp_path)


@pytest.mark.slow
def test_the_file_and_the_wheel_are_enough(tmp_path: Path) -> None:
    """In a new environment without torch, elsewhere, the Parquet has the same bytes."""
    call(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q",
         "-w", tmp_path, ROOT, cwd=tmp_path)  # fmt: skip
    (wheel,) = tmp_path.glob("cxr_fast-*.whl")
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        write_archive(folder / "archive", PhantomSettings(images=20, size=512), workers=2)
    export_model("demo", here / "model.onnx", form="cam")
    (there / "model.onnx").write_bytes((here / "model.onnx").read_bytes())

    venv.create(there / "venv", with_pip=True)
    python = there / "venv" / "bin" / "python"
    call(python, "-m", "pip", "install", "-q", wheel,
         f"onnxruntime=={onnxruntime.__version__}", cwd=there)  # fmt: skip
    call(python, "-c", "import importlib.util as u; assert u.find_spec('torch') is None", cwd=there)
    call(python, "-c", WHAT_THE_RUNTIME_LOADS, cwd=there)

    mine(sys.executable, here / "archive" / "images", here / "model.onnx", here / "run")
    mine(python, there / "archive" / "images", there / "model.onnx", there / "run")
    tables = sorted(path.relative_to(here) for path in (here / "run").rglob("*.parquet"))
    assert len(tables) >= 4  # findings, maps, errors, images
    for table in tables:
        assert (there / table).read_bytes() == (here / table).read_bytes(), table
