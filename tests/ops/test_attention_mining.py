"""attention_mining against the paper's equations, written out literally, and against its own parts."""

from __future__ import annotations

import maps
import numpy as np
import pytest
import torch
from torch import Tensor

from cxr_fast import ops


def literal_logits(
    features: Tensor, weight: Tensor, bias: Tensor, erased_at: Tensor, steps: int
) -> Tensor:
    """Eq. 1 and 2 as printed: class-wise erased copies of the features, pooled, one linear each.

    Every class has its own copy [N, D, H, W] of the features; what earlier steps found for it is
    set to 0 in all channels; the copy is pooled over all pixels; the class's row of the linear
    layer makes one logit of it.
    """
    logits = []
    for t in range(1, steps + 1):
        of_step = []
        for c in range(weight.shape[0]):
            mask = torch.ones_like(features[:, :1])
            gone = (erased_at[:, c : c + 1] > 0) & (erased_at[:, c : c + 1] < t)
            mask[gone] = 0
            erased = features * mask
            pooled = torch.nn.functional.adaptive_avg_pool2d(erased, 1).flatten(1)
            of_step.append(torch.nn.functional.linear(pooled, weight[c : c + 1], bias[c : c + 1]))
        logits.append(torch.cat(of_step, 1))
    return torch.stack(logits, -1)


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of every step, summed over the steps."""
    return torch.stack(
        [
            torch.nn.functional.binary_cross_entropy_with_logits(logits[..., t], labels)
            for t in range(logits.shape[-1])
        ]
    ).sum()


def problem(
    seed: int, shape: tuple[int, ...] = (3, 6, 12, 9), classes: int = 4
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    features = maps.smooth(shape, rng).double()
    features /= features.std((-2, -1), keepdim=True)
    weight = torch.from_numpy(rng.standard_normal((classes, shape[1])))
    bias = torch.from_numpy(rng.standard_normal(classes))
    labels = torch.from_numpy(rng.integers(0, 2, (shape[0], classes))).double()
    return features, weight, bias, labels


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("steps", [1, 3, 6])
def test_logits_and_gradients_of_the_literal_code(steps: int, layout: torch.memory_format) -> None:
    features, weight, bias, labels = problem(steps)
    features = features.contiguous(memory_format=layout)
    inputs = [t.requires_grad_() for t in (features, weight, bias)]
    result = ops.attention_mining(*inputs, steps=steps)
    erased_at = result.mined.erased_at
    assert erased_at.max() == steps, "the problem must erase something at every step"

    expected = literal_logits(*inputs, erased_at, steps)
    torch.testing.assert_close(result.logits, expected, rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad(classification_loss(result.logits, labels), inputs)
    theirs = torch.autograd.grad(classification_loss(expected, labels), inputs)
    for a, b in zip(ours, theirs, strict=True):
        assert b.abs().max() > 1e-4
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


def test_float32_gradients_of_the_literal_code() -> None:
    """The fused float32 pass, with the masks that it made."""
    features, weight, bias, labels = problem(11, (2, 40, 16, 16), 14)
    single = [t.float().requires_grad_() for t in (features, weight, bias)]
    double = [t.requires_grad_() for t in (features, weight, bias)]
    result = ops.attention_mining(*single)
    expected = literal_logits(*double, result.mined.erased_at, 3)
    torch.testing.assert_close(result.logits, expected.float(), rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad(classification_loss(result.logits, labels.float()), single)
    theirs = torch.autograd.grad(classification_loss(expected, labels), double)
    for a, b in zip(ours, theirs, strict=True):
        scale = float(b.abs().max())
        torch.testing.assert_close(a, b.float(), rtol=1e-4, atol=1e-5 * scale)


def test_literal_cam_of_every_step() -> None:
    """Eq. 7 on erased copies is the mask times one CAM, which is why no copy is ever made."""
    features, weight, bias, _ = problem(5)
    result = ops.attention_mining(features, weight, bias)
    for t in (1, 2, 3):
        alive = (result.mined.erased_at == 0) | (result.mined.erased_at >= t)
        for c in range(weight.shape[0]):
            copies = features * alive[:, c : c + 1]
            cam = torch.einsum("ndhw,d->nhw", copies, weight[c])
            expected = result.cam[:, c] * alive[:, c]
            torch.testing.assert_close(cam, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("per_image", [False, True])
def test_it_is_its_parts(dtype: torch.dtype, per_image: bool, rng: np.random.Generator) -> None:
    features = maps.smooth((3, 7, 20, 14), rng)
    features = (features / features.std()).to(dtype)
    weight = torch.from_numpy(rng.standard_normal((5, 7)).astype(np.float32))
    bias = torch.from_numpy(rng.standard_normal(5).astype(np.float32))
    sizes = torch.tensor([[300, 200], [512, 512], [1024, 1]]) if per_image else (640, 480)
    result = ops.attention_mining(
        features,
        weight,
        bias,
        steps=4,
        threshold=0.4,
        connectivity=4,
        mode="raw",
        image_size=sizes,
        thresholds=(0.25, 0.5, 0.75),
        select="peak",
        max_boxes=2,
        max_overlap=0.3,
        upsample=2,
    )
    cam = ops.cam(features, weight)
    mined = ops.mine_attention(cam, 4, 0.4, 4)
    heatmap = ops.aggregate_heatmap(cam, mined, "raw")
    found = ops.heatmap_boxes(heatmap, sizes, (0.25, 0.5, 0.75), "peak", 2, 0.3, 2, 4)
    logits = ops.masked_gap(cam, mined.erased_at, 4) + bias[:, None]
    assert torch.equal(result.cam, cam)
    torch.testing.assert_close(result.logits, logits, rtol=1e-6, atol=1e-6)
    assert result.logits.dtype == cam.dtype
    for ours, expected in zip(
        (*result.mined, result.heatmap, *result.found), (*mined, heatmap, *found), strict=True
    ):
        assert torch.equal(ours, expected)
    again = ops.mine_cam(cam, bias, 4, 0.4, 4, "raw", sizes, (0.25, 0.5, 0.75), "peak", 2, 0.3, 2)
    assert torch.equal(again.heatmap, result.heatmap)
    assert torch.equal(again.found.boxes, result.found.boxes)
    assert torch.equal(again.logits, result.logits)


def test_no_bias_is_a_bias_of_zero() -> None:
    features, weight, bias, _ = problem(9)
    for dtype in (torch.float32, torch.float64):
        x, w = features.to(dtype), weight.to(dtype)
        without = ops.attention_mining(x, w).logits
        assert torch.equal(without, ops.attention_mining(x, w, torch.zeros(4)).logits)
        shift = ops.attention_mining(x, w, bias.to(dtype)).logits - without
        expected = bias.to(dtype)[:, None].expand_as(shift)
        torch.testing.assert_close(shift, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("images", "channels", "classes"), [(0, 4, 3), (2, 4, 0), (2, 0, 3)])
def test_empty(images: int, channels: int, classes: int) -> None:
    features = torch.randn(images, channels, 5, 6, requires_grad=True)
    weight = torch.randn(classes, channels, requires_grad=True)
    bias = torch.full((classes,), 2.0)
    result = ops.attention_mining(features, weight, bias)
    assert torch.equal(result.logits, torch.full((images, classes, 3), 2.0))
    assert torch.equal(result.heatmap, torch.zeros(images, classes, 5, 6))
    assert result.found.boxes.shape == (images, classes, 3, 4)
    assert not result.found.counts.any()
    result.logits.sum().backward()
    assert features.grad.shape == features.shape
    assert not weight.grad.any()


def test_empty_views() -> None:
    """An empty selection has whatever strides its origin had; numpy's empty arrays have 0."""
    features = torch.randn(4, 6, 5, 5)
    for view in (
        torch.from_numpy(np.zeros((0, 6, 5, 5), np.float32)),
        features[:0, :, ::2, ::2],
        features[:0].transpose(2, 3),
    ):
        assert ops.attention_mining(view, torch.zeros(3, 6)).cam.shape == (0, 3, *view.shape[2:])
    nothing = ops.cam(features[:, :0].transpose(2, 3), torch.zeros(3, 0))
    assert torch.equal(nothing, torch.zeros(4, 3, 5, 5))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"bias": np.zeros(3, np.float32)}, TypeError, "bias must be a torch.Tensor"),
        ({"bias": torch.zeros(3, dtype=torch.int64)}, TypeError, "bias must be float16"),
        ({"bias": torch.zeros(4)}, ValueError, r"bias must have shape \(3,\).*\(4,\)"),
        ({"bias": torch.zeros(3, device="meta")}, ValueError, "bias must be on the device of cam"),
        ({"steps": 0}, ValueError, "steps must be from 1 to 255, but is 0"),
        ({"steps": 2.0}, TypeError, "steps must be an int"),
        ({"threshold": 1.0}, ValueError, "threshold must be above 0 and below 1"),
        ({"connectivity": 6}, ValueError, "connectivity must be 4"),
        ({"mode": "mean"}, ValueError, "mode must be 'normalized' or 'raw', but is 'mean'"),
        ({"image_size": (1024,)}, ValueError, r"image_size must be \(height, width\)"),
        ({"image_size": torch.ones(3, 2)}, ValueError, r"\[2, 2\].*shape \(3, 2\)"),
        ({"thresholds": ()}, ValueError, "at least one number"),
        ({"select": "best"}, ValueError, "select must be 'components' or 'peak'"),
        ({"max_boxes": 0}, ValueError, "max_boxes must be from 1 to 255"),
        ({"max_overlap": 1.5}, ValueError, "max_overlap is an IoU"),
        ({"upsample": 65}, ValueError, "upsample must be from 1 to 64"),
    ],
)
def test_refusals(settings: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.attention_mining(torch.zeros(2, 4, 5, 5), torch.zeros(3, 4), **settings)
    with pytest.raises(error, match=message):
        ops.mine_cam(torch.zeros(2, 3, 5, 5), **settings)


@pytest.mark.parametrize(
    ("cam", "error", "message"),
    [
        (np.zeros((1, 1, 2, 2)), TypeError, "cxr_fast.runtime"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.int64), TypeError, "cam must be float16"),
        (torch.zeros(1, 2, 2), ValueError, r"cam must have the 4 dimensions.*\(1, 2, 2\)"),
        (torch.zeros(1, 1, 2, 0), ValueError, "cam must have a width of 1 to 32768"),
    ],
)
def test_refusals_of_a_cam(cam: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.mine_cam(cam)
