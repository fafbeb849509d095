"""masked_gap: the logits of all steps from one read of the CAM."""

from __future__ import annotations

import inputs
import pytest
import torch
from conftest import Race
from racing import Peer, Work
from torch import Tensor

from cxr_fast import ops, reference


def binned(cam: Tensor, erased_at: Tensor, steps: int = 3) -> Tensor:
    """Sums by the step that erased, then sums of those from step t on."""
    sums = cam.new_zeros(*cam.shape[:2], steps + 1)
    sums.scatter_add_(-1, erased_at.flatten(2).to(torch.int64), cam.flatten(2))
    never, erased = sums[..., :1], sums[..., 1:]
    return (erased.flip(-1).cumsum(-1).flip(-1) + never) / cam[0, 0].numel()


def multiplied(cam: Tensor, erased_at: Tensor, steps: int = 3) -> Tensor:
    """Eq. 2 as written: a mask for each step, in one broadcast product."""
    step = torch.arange(1, steps + 1)[:, None]
    flat = erased_at.flatten(2)[:, :, None]
    alive = (flat == 0) | (flat >= step)
    return torch.einsum("ncp,nctp->nct", cam.flatten(2), alive.float()) / cam[0, 0].numel()


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "shape", [(8, 14, 32, 32), (8, 14, 100, 75), (1, 14, 1024, 1024)], ids=inputs.sides
)
def test_masked_gap(shape: tuple[int, int, int, int], race: Race) -> None:
    cam = inputs.maps(*shape)
    erased_at = ops.mine_attention(cam).erased_at
    peers = [
        Peer("reference", lambda: reference.masked_gap(cam, erased_at), close),
        Peer("torch, binned", lambda: binned(cam, erased_at), close),
        Peer("torch, multiplied", lambda: multiplied(cam, erased_at), close),
    ]
    case = f"masked_gap {inputs.sides(shape)}"
    race(case, lambda: ops.masked_gap(cam, erased_at), peers, Work(cam.numel() * (4 + 1)))
