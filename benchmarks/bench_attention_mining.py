"""attention_mining: features in, boxes out, beside the paper taken literally."""

from __future__ import annotations

import erasing
import inputs
import pytest
import torch
from conftest import Race
from literal import einsum_cam, literal
from products import matmul_cam
from racing import Peer, Work
from torch import Tensor

from cxr_fast import ops, reference
from cxr_fast.reference import MiningResult

N, D, SIDE, C, STEPS = 8, 768, 32, 14, 3


def smooth() -> tuple[Tensor, Tensor]:
    return inputs.features(N, D, SIDE), inputs.weight(C, D)


def winding(shape: str) -> tuple[Tensor, Tensor]:
    """Features whose first C channels are the maps, and a classifier that takes one each."""
    x = inputs.features(N, D, SIDE)
    x[:, :C] = inputs.winding(shape, N, C, SIDE)
    return x, torch.eye(C, D)


CASES = {
    "float32": smooth,
    "float32 channels_last": smooth,
    "bfloat16": smooth,
    "bfloat16 channels_last": smooth,
    "float32 snakes": lambda: winding("snake"),
    "float32 spirals": lambda: winding("spiral"),
}


def one_product(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """What this library does, without this library: one product, then numpy and cv2."""
    n, _, height, width = x.shape
    cam = matmul_cam(x.to(torch.float32), w).contiguous()
    erased_at, _ = erasing.mine_batch(cam.flatten(0, 1).numpy(), "cv2", STEPS)
    erased = torch.from_numpy(erased_at).view(n, -1, height, width)
    return erased, reference.masked_gap(cam, erased, STEPS)


def equal_maps(ours: MiningResult, theirs: tuple[Tensor, Tensor]) -> Tensor:
    return (ours.mined.erased_at == theirs[0]).flatten(2).all(-1)


def same(ours: MiningResult, theirs: tuple[Tensor, Tensor]) -> None:
    """A CAM that differs in its last bits may cut one pixel more or less: 1 map in 100 may."""
    equal = equal_maps(ours, theirs)
    assert equal.float().mean() >= 0.99, f"only {int(equal.sum())} of {equal.numel()} maps agree"
    torch.testing.assert_close(ours.logits[equal], theirs[1][equal], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_attention_mining(name: str, race: Race) -> None:
    x, w = CASES[name]()
    if "bfloat16" in name:
        x = x.to(torch.bfloat16)
    if "channels_last" in name:
        x = x.contiguous(memory_format=torch.channels_last)
    equal = equal_maps(ops.attention_mining(x, w), literal(x, w, STEPS))
    peers = [
        Peer("literal by matmul (no heatmap, no boxes)", lambda: literal(x, w, STEPS), same),
        Peer("matmul + numpy + cv2 (likewise)", lambda: one_product(x, w), same),
    ]
    if name == "float32":
        by_einsum = "literal by einsum (no heatmap, no boxes)"
        peers.append(Peer(by_einsum, lambda: literal(x, w, STEPS, einsum_cam), same))
    pixels = N * SIDE**2
    # Reads the features; writes cam and heatmap (float32) and erased_at (a byte).
    work = Work(x.numel() * x.element_size() + pixels * C * (4 + 4 + 1), 2 * pixels * C * D)
    case = f"attention_mining N{N} D{D} {SIDE}x{SIDE} C{C} T{STEPS} {name}"
    note = f"{int(equal.sum())} of {equal.numel()} maps equal to literal"
    race(case, lambda: ops.attention_mining(x, w), peers, work, note)
