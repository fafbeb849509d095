"""cam and its backward: one skinny product over the channels, read or written once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from cxr_fast import ops, reference
from cxr_fast.benchmarks import inputs
from cxr_fast.benchmarks.place import Place
from cxr_fast.benchmarks.products import (
    einsum_cam,
    einsum_cam_backward,
    literal_cam,
    matmul_cam,
    matmul_cam_backward,
)
from cxr_fast.benchmarks.racing import Case, Check, Peer
from cxr_fast.benchmarks.roofline import Work


@dataclass(frozen=True)
class Sizes:
    n: int = inputs.CPU_BATCH
    d: int = inputs.CHANNELS
    side: int = inputs.SIDE
    c: int = inputs.CLASSES
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        layout = " channels_last" if self.channels_last else ""
        return f"N{self.n} D{self.d} {self.side}x{self.side} C{self.c} {dtype}{layout}"

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        x = inputs.features(self.n, self.d, self.side).to(device, self.dtype)
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        return x, inputs.weight(self.c, self.d).to(device)


def cam_cases(place: Place) -> list[Sizes]:
    if place.quick:
        return backward_cases(place)
    n = inputs.GPU_BATCH if place.cuda else inputs.CPU_BATCH
    hot = Sizes(n=n, dtype=torch.bfloat16)
    wide = [Sizes(n=n), Sizes(n=n, channels_last=True)]
    narrow = [hot, replace(hot, channels_last=True)]
    base = hot if place.cuda else wide[0]
    others = [{"d": 2048, "side": 16}, {"c": 1}, {"c": 64}, {"n": 1}]
    return [*wide, *narrow, *(replace(base, **sizes) for sizes in others)]


def backward_cases(place: Place) -> list[Sizes]:
    if place.quick:
        tiny = Sizes(2, 24, 8, 3)
        return [tiny, replace(tiny, dtype=torch.bfloat16, channels_last=True)]
    n = inputs.GPU_BATCH if place.cuda else inputs.CPU_BATCH
    hot = Sizes(n=n, dtype=torch.bfloat16)
    return [Sizes(n=n), hot, replace(hot, channels_last=True)]


def close(tolerance: float) -> Check:
    """Equal within a fraction of the greatest value, each result if there are several."""

    def check(ours: Tensor | tuple[Tensor, ...], theirs: Tensor | tuple[Tensor, ...]) -> None:
        pairs = [(ours, theirs)] if isinstance(ours, Tensor) else zip(ours, theirs, strict=True)
        for a, b in pairs:
            greatest = float(a.abs().max())
            torch.testing.assert_close(b.float(), a.float(), rtol=0, atol=tolerance * greatest)

    return check


def compiled(function: Callable[..., object]) -> Callable[..., object]:
    return torch.compile(function, dynamic=False)


def test_cam(case: Sizes, race: Callable[[Case], None], place: Place) -> None:
    x, w = case.tensors(place.device)
    exact, rounded = close(1e-5), close(2e-2)
    if case.dtype == torch.float32:
        peers = [
            Peer("torch.matmul", matmul_cam, exact, graph=True),
            Peer("torch.einsum", einsum_cam, exact, graph=True),
        ]
    else:
        # Ours sums in float32 and returns it. The product in the narrow dtype rounds its result.
        def narrow(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
            return x, w.to(x.dtype)

        peers = [
            Peer("matmul of .float()", lambda x, w: matmul_cam(x.float(), w), exact, graph=True),
            Peer("matmul, rounded", matmul_cam, rounded, narrow, graph=True),
            Peer("einsum, rounded", einsum_cam, rounded, narrow, graph=True),
        ]
    if place.cuda:
        if case.d == inputs.CHANNELS or place.quick:  # compiling takes seconds
            by_compiler = compiled(reference.cam)
            peers.append(Peer("torch.compile of the reference", by_compiler, exact, graph=True))
        peers.append(Peer("literal, a class at a time", literal_cam, exact))
    pixels = case.n * case.side**2
    moved = x.numel() * x.element_size() + w.numel() * 4 + pixels * case.c * 4
    work = Work(moved, 2 * pixels * case.c * case.d, case.dtype)
    race(Case(f"cam {case}", (x, w), ops.cam, peers, work=work))


def test_backward(case: Sizes, race: Callable[[Case], None], place: Place) -> None:
    """The operator's own backward, without autograd around it: dX and dW from the CAM's gradient."""
    x, w = case.tensors(place.device)
    grad = inputs.maps(case.n, case.c, case.side, case.side).to(place.device)

    def ours(grad: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.cxr_fast.cam_backward(grad, x, w, True, True)

    def wide(grad: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        of_x, of_w = matmul_cam_backward(grad, x.float(), w)
        return of_x.to(x.dtype), of_w

    # dX is rounded to the dtype of X by everybody.
    narrow_x = close(1e-5 if case.dtype == torch.float32 else 1e-2)
    peers = [Peer("matmul", wide, narrow_x, graph=True)]
    if case.dtype == torch.float32:
        peers.append(Peer("einsum", einsum_cam_backward, narrow_x, graph=True))
    else:

        def narrow(grad: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
            return grad.to(x.dtype), x, w.to(x.dtype)

        peers.append(Peer("matmul, all rounded", matmul_cam_backward, close(3e-2), narrow, graph=True))
    if place.cuda:
        reference_backward = partial(_autograd, reference.cam)
        peers.append(Peer("autograd of the reference, with its forward", reference_backward, narrow_x))
        peers.append(Peer("torch.compile of matmul", compiled(wide), narrow_x, graph=True))
    pixels = case.n * case.side**2
    # Reads the gradient and X, writes dX and dW.
    moved = pixels * case.c * 4 + 2 * x.numel() * x.element_size() + w.numel() * 4
    work = Work(moved, 4 * pixels * case.c * case.d, case.dtype)
    race(Case(f"cam backward {case}", (grad, x, w), ours, peers, work=work))


def _autograd(
    forward: Callable[[Tensor, Tensor], Tensor], grad: Tensor, x: Tensor, w: Tensor
) -> tuple[Tensor, ...]:
    """Forward and backward: autograd keeps no backward by itself."""
    leaves = x.detach().requires_grad_(), w.detach().requires_grad_()
    return torch.autograd.grad(forward(*leaves), leaves, grad)
