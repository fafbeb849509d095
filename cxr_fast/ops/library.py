"""How an operator joins ``torch.ops.cxr_fast``: schema, kernels, fake, autograd.

The schema is declared here in Python, with the reference as its kernel on every device, so that an
operator exists even where nothing was compiled. Compiled kernels register for their device and win.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch

from cxr_fast import checks

LIBRARY = torch.library.Library("cxr_fast", "DEF")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def define(name: str, schema: str, reference: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Declares ``cxr_fast::name`` with the reference as the kernel of every device."""
    LIBRARY.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"cxr_fast::{name}", fake, lib=LIBRARY)


def differentiate(name: str, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
    """Registers the closed-form gradient of ``cxr_fast::name``."""
    torch.library.register_autograd(
        f"cxr_fast::{name}", backward, setup_context=setup_context, lib=LIBRARY
    )


def not_differentiable(name: str, inputs: int) -> None:
    """No output of ``cxr_fast::name`` carries a gradient."""

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        ctx.mark_non_differentiable(*outputs)

    differentiate(name, lambda ctx, *grads: (None,) * inputs, setup_context)


def find_extension() -> str | None:
    """The path of the compiled operators, or None: not built, or CXR_FAST_KERNELS=reference."""
    if os.environ.get("CXR_FAST_KERNELS") == "reference":
        return None
    # Found, not imported: it is a library of operators, not a Python module. An editable install
    # keeps it away from the source, so the path has to be asked for.
    spec = importlib.util.find_spec("cxr_fast._torch_ops")
    return spec.origin if spec else None


def load_kernels(extension: str | None) -> str:
    """Loads the compiled CPU kernels; says which are in use, or why there are none."""
    if os.environ.get("CXR_FAST_KERNELS") == "reference":
        return "reference (asked for by CXR_FAST_KERNELS)"
    if extension is None:
        return "reference (no compiled kernels: cxr_fast was installed without its extension)"
    torch.ops.load_library(extension)
    isa = ctypes.CDLL(extension).cxr_fast_isa
    isa.restype, isa.argtypes = ctypes.c_bool, (ctypes.c_char_p, ctypes.c_size_t)
    text = ctypes.create_string_buffer(512)
    if not isa(text, len(text)):
        raise RuntimeError(text.value.decode())
    return f"C++ ({text.value.decode()})"


def require_tensor(name: str, value: object) -> None:
    """TypeError unless ``value`` is a tensor."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, but is {type(value).__name__}; "
            "cxr_fast.runtime has the same functions for numpy arrays"
        )


def require_float(name: str, value: torch.Tensor) -> None:
    """TypeError unless ``value`` is a tensor of a float dtype that the operators take."""
    require_tensor(name, value)
    checks.require_dtype(name, value.dtype, FLOATS)


def require_same_device(name: str, value: torch.Tensor, partner: str, other: torch.Tensor) -> None:
    """ValueError unless both lie on one device."""
    if value.device != other.device:
        raise ValueError(
            f"{name} must be on the device of {partner}, {other.device}, but is on "
            f"{value.device}; move it with .to({str(other.device)!r})"
        )
