"""CUDA kernels without a GPU: the real bindings and launcher, on a driver that runs kernels on the CPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cxr_fast import ops
from cxr_fast.ops import cuda, library

TESTS = Path(__file__).parents[1]
KERNELS = TESTS.parent / "kernels"
ON_CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
SERVED = {*cuda.BY_CUDA, "masked_gap_backward"}


class _Redispatch(TorchDispatchMode):
    """Operators of CPU tensors go to the kernels that are registered for CUDA tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "cxr_fast" and func._opname in SERVED:
            return func.redispatch(ON_CUDA, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class Emulator:
    """The stand-in for libcuda, and what it was asked to do."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        library.emulator_launched.restype = ctypes.c_char_p

    def set(self, **device: int) -> None:
        """``capability`` (90 is 9.0), ``multiprocessors``, ``shared_bytes``, ``refuse_images``."""
        for name, value in device.items():
            self.library.emulator_set(name.encode(), value)

    @contextmanager
    def gpu(self, seed: int = 0) -> Iterator[None]:
        """Within, ``ops`` run the CUDA kernels, their threads in an order drawn from the seed."""
        self.library.emulator_seed(seed)
        self.launched()
        with _Redispatch():
            yield

    def launched(self) -> list[str]:
        """Names of the kernels since the last question."""
        return self.library.emulator_launched().decode().split()


@pytest.fixture(scope="session")
def emulator_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The emulator with all kernels, compiled by g++."""
    if torch.version.cuda is not None:
        pytest.skip("this torch has a CUDA of its own; the tests of tests/ops run on its device")
    if ops.CPU_KERNELS.startswith("reference"):
        pytest.skip("the bindings are part of the compiled operators, which are not in use")
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the emulator with")
    path = tmp_path_factory.mktemp("emulator") / "libemulator.so"
    command = [compiler, "-std=c++20", "-O2", "-ffp-contract=off", "-U_FORTIFY_SOURCE",
               "-fno-strict-aliasing", "-fPIC", "-shared", "-Wall", "-Wno-unknown-pragmas",
               "-Wno-dangling-pointer", f"-I{TESTS / 'emulator'}", f"-I{KERNELS}",
               str(TESTS / "emulator" / "driver.cpp"), "-o", str(path)]  # fmt: skip
    subprocess.run(command, check=True, timeout=300)
    return path


@pytest.fixture(scope="session")
def _served(emulator_library: Path) -> Emulator:
    # Global, since torch's own function for the current stream is looked up by name.
    loaded = ctypes.CDLL(str(emulator_library), mode=ctypes.RTLD_GLOBAL)
    extension = library.find_extension()
    assert extension is not None
    images = emulator_library.parent / "kernels"
    images.mkdir()
    for source in KERNELS.glob("*.cu"):
        (images / f"{source.stem}.fatbin").write_bytes(b"the emulator has its own")
    places = (emulator_library, "", images, KERNELS, emulator_library.parent / "cache")
    ctypes.CDLL(extension).cxr_fast_serve_cuda(*(str(place).encode() for place in places))
    return Emulator(loaded)


@pytest.fixture
def emulator(_served: Emulator) -> Emulator:
    _served.set(refuse_images=0)
    return _served
