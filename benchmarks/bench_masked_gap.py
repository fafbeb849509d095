"""masked_gap: the logits of all steps from one read of the CAM."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cxr_fast import ops, reference
from cxr_fast.benchmarks import inputs
from cxr_fast.benchmarks.place import Place
from cxr_fast.benchmarks.racing import Case, Peer
from cxr_fast.benchmarks.roofline import Work


def masked_gap_cases(place: Place) -> list[str]:
    if place.quick:
        return ["2x3x16x16"]
    n = inputs.GPU_BATCH if place.cuda else inputs.CPU_BATCH
    return [f"{n}x14x32x32", f"{n}x14x100x75", "1x14x1024x1024"]


def binned(cam: Tensor, erased_at: Tensor, steps: int = 3) -> Tensor:
    """Sums by the step that erased, then sums of those from step t on."""
    sums = cam.new_zeros(*cam.shape[:2], steps + 1)
    sums.scatter_add_(-1, erased_at.flatten(2).to(torch.int64), cam.flatten(2))
    never, erased = sums[..., :1], sums[..., 1:]
    return (erased.flip(-1).cumsum(-1).flip(-1) + never) / cam[0, 0].numel()


def multiplied(cam: Tensor, erased_at: Tensor, steps: int = 3) -> Tensor:
    """Eq. 2 as written: a mask for each step, in one broadcast product."""
    step = torch.arange(1, steps + 1, device=cam.device)[:, None]
    flat = erased_at.flatten(2)[:, :, None]
    alive = (flat == 0) | (flat >= step)
    return torch.einsum("ncp,nctp->nct", cam.flatten(2), alive.float()) / cam[0, 0].numel()


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


def test_masked_gap(case: str, race: Callable[[Case], None], place: Place) -> None:
    cam = inputs.maps(*map(int, case.split("x"))).to(place.device)
    erased_at = ops.mine_attention(cam).erased_at
    peers = [
        Peer("reference", reference.masked_gap, close, graph=True),
        Peer("torch, binned", binned, close, graph=True),
        Peer("torch, multiplied", multiplied, close, graph=True),
    ]
    if place.cuda and cam.shape[-1] <= 32:  # compiling takes seconds
        compiled = torch.compile(reference.masked_gap, dynamic=False)
        peers.append(Peer("torch.compile of the reference", compiled, close, graph=True))
    work = Work(cam.numel() * (4 + 1))
    race(Case(f"masked_gap {case}", (cam, erased_at), ops.masked_gap, peers, work=work))
