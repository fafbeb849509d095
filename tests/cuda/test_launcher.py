"""Where the code of CUDA kernels comes from, and what is said where there is none."""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cxr_fast.ops import cuda, library

if TYPE_CHECKING:
    from emulation import Emulator

KERNELS = Path(cuda.__file__).parents[2] / "kernels"
# The launcher remembers devices, so that every test needs a fresh one.
fresh_device = itertools.count(100).__next__


@pytest.fixture
def extension(emulator: Emulator) -> str:
    path = library.find_extension()
    assert path is not None
    return path


def describe(extension: str, device: int | None = None) -> str:
    return cuda.describe(fresh_device() if device is None else device, extension)


def places(emulator: Emulator, extension: str, nvrtc: Path | None, images: Path, cache: Path) -> None:
    values = (emulator.path, nvrtc or "", images, KERNELS, cache)
    ctypes.CDLL(extension).cxr_fast_serve_cuda(*(str(value).encode() for value in values))


def test_what_nvcc_compiled_is_taken(emulator: Emulator, extension: str) -> None:
    assert describe(extension) == "from nvcc, when the package was built"


def test_an_old_device_is_refused_in_a_sentence(emulator: Emulator, extension: str) -> None:
    emulator.set(capability=70)
    text = describe(extension)
    assert "need compute capability 7.5 or later, but device" in text
    assert "has 7.0; set CXR_FAST_CUDA=reference" in text


def test_no_code_for_this_device_and_no_nvrtc(
    emulator: Emulator, extension: str, tmp_path: Path
) -> None:
    emulator.set(refuse_images=209)
    places(emulator, extension, None, emulator.images, tmp_path)
    text = describe(extension)
    assert "what nvcc built does not fit this device and driver" in text
    assert "NVRTC, which CUDA builds of torch bring, was not found; set CXR_FAST_CUDA=triton" in text
    places(emulator, extension, None, tmp_path, tmp_path)
    assert "the package was built without nvcc" in describe(extension)


@pytest.mark.skipif(cuda.find_nvrtc() is None, reason="no NVRTC here")
def test_nvrtc_compiles_where_nvcc_did_not(emulator: Emulator, extension: str, tmp_path: Path) -> None:
    places(emulator, extension, cuda.find_nvrtc(), tmp_path / "nothing", tmp_path / "cache")
    text = describe(extension)
    assert text.startswith("from NVRTC ")
    assert text.endswith(", sm_90 (the package was built without nvcc)")
    images = sorted((tmp_path / "cache").iterdir())
    assert [path.name.split("-")[0] for path in images] == sorted(
        path.stem for path in KERNELS.glob("*.cu")
    )
    assert all(path.read_bytes().startswith(b"\x7fELF") for path in images)
    # Another process finds them, and one that was damaged is made again.
    assert ", cached" in describe(extension)
    emulator.set(refuse_images=200)
    images[0].write_bytes(b"damaged")
    text = describe(extension)
    assert ", cached" in text
    assert ", sm_90 (the" in text
    assert images[0].read_bytes().startswith(b"\x7fELF")
    # A device between two that NVRTC knows gets code for the lesser, and one beyond all gets PTX.
    emulator.set(capability=129)
    assert "compute_" in describe(extension)


@pytest.mark.skipif(cuda.find_nvrtc() is None, reason="no NVRTC here")
def test_a_cache_that_cannot_be_written_costs_only_time(
    emulator: Emulator, extension: str, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    places(emulator, extension, cuda.find_nvrtc(), tmp_path / "nothing", tmp_path / "cache")
    assert "sm_90" in describe(extension)


def test_loading_in_the_middle_of_a_capture_says_what_to_do(emulator: Emulator, extension: str) -> None:
    emulator.set(refuse_images=900)
    assert "cannot be loaded while a graph is captured; call the operator once" in describe(extension)


# ---- which kernels serve: asked of fresh interpreters that believe to have a CUDA torch ----


def served(tmp_path: Path, hide: str = "", **environment: str) -> str:
    code = (
        f"import sys\nfor name in {hide!r}.split(): sys.modules[name] = None\n"
        "import torch; torch.version.cuda = '13.0'\n"
        "from cxr_fast import ops\n"
        "for name, by in ops.CUDA_KERNELS.items(): print(f'{name}: {by}')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in result.stderr or result.returncode != 0
    return result.stdout + result.stderr


@pytest.mark.skipif(library.find_extension() is None, reason="compiled operators are not in use")
def test_the_fastest_kernels_serve_by_default(tmp_path: Path) -> None:
    text = served(tmp_path)
    for name in cuda.BY_CUDA:
        assert f"{name}: CUDA C++, compiled " in text


def test_triton_can_be_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    text = served(tmp_path, CXR_FAST_CUDA="triton")
    assert "cam: Triton" in text
    assert "mine_attention: Triton, compiled at the first call, since CXR_FAST_CUDA is triton" in text
    assert "masked_gap: reference (plain PyTorch, slow), since CXR_FAST_CUDA is triton" in text


@pytest.mark.skipif(cuda.find_nvrtc() is None, reason="no NVRTC here")
def test_nvrtc_can_be_asked_for(tmp_path: Path) -> None:
    assert "mine_cam: CUDA C++, compiled at the first call by NVRTC" in served(
        tmp_path, CXR_FAST_CUDA="nvrtc"
    )


def test_the_reference_can_be_asked_for(tmp_path: Path) -> None:
    text = served(tmp_path, CXR_FAST_CUDA="reference")
    assert text.count("reference (plain PyTorch, slow), as asked for") == 7


def test_an_unknown_way_is_refused(tmp_path: Path) -> None:
    text = served(tmp_path, CXR_FAST_CUDA="fast")
    assert "CXR_FAST_CUDA must be auto, nvrtc, triton or reference, but is 'fast'" in text


def test_no_triton(tmp_path: Path) -> None:
    text = served(tmp_path, hide="triton")
    assert "cam: reference (plain PyTorch, slow): Triton is not installed" in text


def test_a_triton_that_does_not_import(tmp_path: Path) -> None:
    broken = tmp_path / "triton"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise OSError('libdevice is gone')")
    text = served(tmp_path, PYTHONPATH=str(tmp_path))
    assert "Triton does not import (OSError: libdevice is gone)" in text


def test_no_extension(tmp_path: Path) -> None:
    text = served(tmp_path, hide="cxr_fast._torch_ops")
    assert "since cxr_fast was installed without its extension" in text
