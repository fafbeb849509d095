"""aggregate_heatmap: Eq. 8 in one pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cxr_fast import ops, reference
from cxr_fast.benchmarks import inputs
from cxr_fast.benchmarks.place import Place
from cxr_fast.benchmarks.racing import Case, Peer
from cxr_fast.benchmarks.roofline import Work
from cxr_fast.reference import MinedAttention


def aggregate_heatmap_cases(place: Place) -> list[str]:
    if place.quick:
        return ["2x3x16x16"]
    n = inputs.GPU_BATCH if place.cuda else inputs.CPU_BATCH
    return [f"{n}x14x32x32", f"{n}x14x100x75", "1x14x1024x1024"]


def ours(cam: Tensor, erased_at: Tensor, extent: Tensor) -> Tensor:
    return ops.aggregate_heatmap(cam, MinedAttention(erased_at, extent))


def by_reference(cam: Tensor, erased_at: Tensor, extent: Tensor) -> Tensor:
    return reference.aggregate_heatmap(cam, MinedAttention(erased_at, extent))


def looked_up(cam: Tensor, erased_at: Tensor, extent: Tensor) -> Tensor:
    """``scale * cam + offset``, both looked up by the step that erased the pixel."""
    lo, hi = extent.unbind(-1)
    steps = lo.shape[-1]
    slope = torch.where(hi > lo, 1 / (hi - lo), 0.0)
    # Erased at step s: the first s - 1 steps count once each and step s stays for the rest.
    stays = torch.arange(steps, 0, -1, device=cam.device)
    tables = []
    for term in (slope, -lo * slope):
        before = term.cumsum(-1) - term
        tables.append(torch.cat((term.sum(-1, keepdim=True), before + stays * term), -1) / steps)
    index = erased_at.flatten(2).to(torch.int64)
    scale, offset = (table.gather(-1, index).view_as(cam) for table in tables)
    return torch.addcmul(offset, scale, cam)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)


def test_aggregate_heatmap(case: str, race: Callable[[Case], None], place: Place) -> None:
    cam = inputs.maps(*map(int, case.split("x"))).to(place.device)
    mined = ops.mine_attention(cam)
    peers = [
        Peer("reference", by_reference, close, graph=True),
        Peer("torch, looked up", looked_up, close, graph=True),
    ]
    if place.cuda and cam.shape[-1] <= 32:  # compiling takes seconds
        compiled = torch.compile(by_reference, dynamic=False)
        peers.append(Peer("torch.compile of the reference", compiled, close, graph=True))
    work = Work(cam.numel() * (4 + 1 + 4))  # reads the CAM and erased_at, writes the heatmap
    race(Case(f"aggregate_heatmap {case}", (cam, *mined), ours, peers, work=work))
