"""CUDA kernels without a GPU: real bindings and launcher, on a driver that runs kernels on the CPU."""

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
from cxr_fast.ops import cuda
from cxr_fast.ops.library import find_extension

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "kernels"
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

    def __init__(self, path: Path) -> None:
        self.path, self.images = path, path.parent / "kernels"
        # Global, since torch's own function for the current stream is looked up by name.
        self.library = library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        library.emulator_launched.restype = ctypes.c_char_p

    def reset(self) -> None:
        """A small GPU that takes everything: two multiprocessors, so that blocks take turns."""
        extension = find_extension()
        assert extension is not None
        places = (self.path, "", self.images, KERNELS, self.path.parent / "cache")
        ctypes.CDLL(extension).cxr_fast_serve_cuda(*(str(place).encode() for place in places))
        self.set(capability=90, multiprocessors=2, shared_bytes=100 << 10, refuse_images=0)

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


def build(folder: Path) -> Path:
    """Compiles the emulator with all kernels; skips the test where that cannot be."""
    if torch.version.cuda is not None:
        pytest.skip("this torch has a CUDA of its own: pytest --device cuda")
    if ops.CPU_KERNELS.startswith("reference"):
        pytest.skip("the bindings are part of the compiled operators, which are not in use")
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the emulator with")
    path = folder / "libemulator.so"
    command = [compiler, "-std=c++20", "-O2", "-ffp-contract=off", "-U_FORTIFY_SOURCE",
               "-fno-strict-aliasing", "-fPIC", "-shared", "-Wall", "-Wno-unknown-pragmas",
               "-Wno-dangling-pointer", f"-I{HERE}", f"-I{KERNELS}", "-include", "cuda_on_cpu.hpp",
               str(HERE / "driver.cpp"), "-o", str(path)]  # fmt: skip
    subprocess.run(command, check=True, timeout=300)
    return path


def serve(path: Path) -> Emulator:
    """Lets the emulator serve CUDA kernels in this process; there is no way back."""
    emulator = Emulator(path)
    emulator.images.mkdir()
    for source in KERNELS.glob("*.cu"):
        (emulator.images / f"{source.stem}.fatbin").write_bytes(b"the emulator has its own")
    emulator.reset()
    return emulator
