"""Compiles, without a GPU, exactly what the launching functions would launch.

Launches are recorded on tensors of the device "meta", so shapes may be those of real use; each is
then compiled for a given GPU as Triton's own launch would specialise it.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}


class Launch(NamedTuple):
    kernel: JITFunction
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]


class Compiled(NamedTuple):
    """What one launch needs: registers a thread, bytes of shared memory and of spills, its PTX."""

    name: str
    registers: int
    shared: int
    spilled: int
    ptx: str


def record(monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]) -> list[Launch]:
    """The launches that ``call`` makes; none is carried out."""
    launches = []

    def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **keywords: Any) -> None:
        names = kernel.arg_names
        arguments = dict(zip(names, args, strict=False))
        arguments |= {name: value for name, value in keywords.items() if name in names}
        options = {name: value for name, value in keywords.items() if name not in names}
        assert set(arguments) == set(names), "an argument is missing"
        launches.append(Launch(kernel, tuple(grid), arguments, options))

    with monkeypatch.context() as patch:
        patch.setattr(JITFunction, "run", run)
        call()
    return launches


def compile_for(capability: int, launch: Launch) -> Compiled:
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        divisible = False
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[parameter.name] = "constexpr"
            constants[parameter.name,] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            divisible = True
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            divisible = value % 16 == 0
        if divisible:
            attributes[index,] = [["tt.divisibility", 16]]
    constants = {name: value for (name,), value in constants.items()}
    source = ASTSource(launch.kernel, signature, constants, attributes)
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options=launch.options)
    registers, spilled = _usage(compiled.asm["cubin"])
    return Compiled(
        launch.kernel.fn.__name__, registers, compiled.metadata.shared, spilled, compiled.asm["ptx"]
    )


def _usage(cubin: bytes) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kernel.cubin")
        Path(path).write_bytes(cubin)
        text = subprocess.run(
            [tool, "-res-usage", path], check=True, capture_output=True, text=True, timeout=60
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    assert found is not None, text
    registers, stack, local = map(int, found.groups())
    return registers, stack + local
