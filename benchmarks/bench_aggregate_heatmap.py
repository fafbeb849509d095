"""aggregate_heatmap: Eq. 8 in one pass."""

from __future__ import annotations

import inputs
import pytest
import torch
from conftest import Race
from racing import Peer, Work
from torch import Tensor

from cxr_fast import ops, reference
from cxr_fast.reference import MinedAttention


def looked_up(cam: Tensor, mined: MinedAttention) -> Tensor:
    """``scale * cam + offset``, both looked up by the step that erased the pixel."""
    lo, hi = mined.extent.unbind(-1)
    steps = lo.shape[-1]
    slope = torch.where(hi > lo, 1 / (hi - lo), 0.0)
    # Erased at step s: the first s - 1 steps count once each and step s stays for the rest.
    stays = torch.arange(steps, 0, -1)
    tables = []
    for term in (slope, -lo * slope):
        before = term.cumsum(-1) - term
        tables.append(torch.cat((term.sum(-1, keepdim=True), before + stays * term), -1) / steps)
    index = mined.erased_at.flatten(2).to(torch.int64)
    scale, offset = (table.gather(-1, index).view_as(cam) for table in tables)
    return torch.addcmul(offset, scale, cam)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "shape", [(8, 14, 32, 32), (8, 14, 100, 75), (1, 14, 1024, 1024)], ids=inputs.sides
)
def test_aggregate_heatmap(shape: tuple[int, int, int, int], race: Race) -> None:
    cam = inputs.maps(*shape)
    mined = ops.mine_attention(cam)
    peers = [
        Peer("reference", lambda: reference.aggregate_heatmap(cam, mined), close),
        Peer("torch, looked up", lambda: looked_up(cam, mined), close),
    ]
    work = Work(cam.numel() * (4 + 1 + 4))  # reads the CAM and erased_at, writes the heatmap
    case = f"aggregate_heatmap {inputs.sides(shape)}"
    race(case, lambda: ops.aggregate_heatmap(cam, mined), peers, work)
