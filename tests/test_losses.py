from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cxr_fast.losses import PRESERVED_LAYERS, knowledge_preservation


def layers(seed: int, images: int = 6, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"bottleneck3": (16, 4, 4), "bottleneck4": (32, 2, 2), "msa": (12, 4, 4), "logits": (5,)}
    return {
        name: torch.randn(images, *shape, generator=generator, dtype=dtype)
        for name, shape in shapes.items()
    }


def test_it_is_the_mean_distance_of_pooled_layers() -> None:
    current, anchor = layers(1), layers(2)
    literal = 0.0
    for name in PRESERVED_LAYERS:
        for b, a in zip(current[name], anchor[name], strict=True):
            g_b, g_a = (v.flatten(1).mean(1) if v.dim() == 3 else v for v in (b, a))
            literal += math.sqrt(sum(float(d) ** 2 for d in g_b - g_a))
    literal /= len(PRESERVED_LAYERS) * 6
    assert float(knowledge_preservation(current, anchor)) == pytest.approx(literal, rel=1e-12)
    one = knowledge_preservation(current, anchor, ("logits",))
    assert float(one) == pytest.approx(float((current["logits"] - anchor["logits"]).norm(dim=1).mean()))


def test_its_gradient_is_the_closed_form_and_leaves_the_anchor_alone() -> None:
    current, anchor = ({"logits": layers(s)["logits"].requires_grad_()} for s in (1, 2))
    loss = knowledge_preservation(current, anchor, ("logits",))
    loss.backward()
    difference = (current["logits"] - anchor["logits"]).detach()
    expected = difference / difference.norm(dim=1, keepdim=True) / len(difference)
    torch.testing.assert_close(current["logits"].grad, expected)
    assert anchor["logits"].grad is None
    maps = layers(3, 2)["msa"].requires_grad_()
    other = layers(4, 2)
    assert torch.autograd.gradcheck(
        lambda x: knowledge_preservation({"msa": x}, other, ("msa",)), (maps,)
    )


def test_its_gradient_at_distance_0_is_0() -> None:
    anchor = layers(1)
    current = {name: value.clone().requires_grad_() for name, value in anchor.items()}
    loss = knowledge_preservation(current, anchor)
    loss.backward()
    assert float(loss.detach()) == 0
    for value in current.values():
        assert value.grad is not None
        assert torch.equal(value.grad, torch.zeros_like(value))
    # Some images at distance 0, others not: only the others pull.
    moved = anchor["logits"].clone()
    moved[0] += 1
    moved.requires_grad_()
    knowledge_preservation({"logits": moved}, anchor, ("logits",)).backward()
    assert moved.grad is not None
    assert moved.grad[0].abs().min() > 0
    assert torch.equal(moved.grad[1:], torch.zeros_like(moved[1:]))


def test_half_precision_is_pooled_in_float32() -> None:
    current, anchor = (layers(s, dtype=torch.bfloat16) for s in (1, 2))
    loss = knowledge_preservation(current, anchor)
    assert loss.dtype == torch.float32
    wide = ({name: v.double() for name, v in side.items()} for side in (current, anchor))
    assert float(loss) == pytest.approx(float(knowledge_preservation(*wide)), rel=1e-5)
    empty = {name: value[:0] for name, value in current.items()}
    assert float(knowledge_preservation(empty, empty)) == 0


def test_refusals() -> None:
    current, anchor = layers(1), layers(2)
    with pytest.raises(ValueError, match="at least one layer"):
        knowledge_preservation(current, anchor, ())
    with pytest.raises(ValueError, match="anchor must hold the layer 'msa'"):
        knowledge_preservation(current, {"logits": anchor["logits"]}, ("logits", "msa"))
    with pytest.raises(ValueError, match=r"\[6, 5\] in current and \[5, 5\] in anchor"):
        knowledge_preservation(current, {"logits": anchor["logits"][1:]}, ("logits",))
