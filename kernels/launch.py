"""What every Triton launch needs: the tensor's device, and whether the interpreter runs it."""

from __future__ import annotations

import contextlib

import torch
import triton
from torch import Tensor


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Makes the tensor's GPU the current one; nothing for CPU tensors (the interpreter's)."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def interpreted() -> bool:
    """Whether ``TRITON_INTERPRET=1`` runs the kernels in numpy."""
    return bool(triton.knobs.runtime.interpret)
