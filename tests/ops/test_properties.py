"""What must hold for any map: identities, ranges, symmetries."""

from __future__ import annotations

import maps
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from cxr_fast import ops
from cxr_fast.ops import MinedAttention

SIDES = st.integers(1, 24)
SEEDS = st.integers(0, 2**32 - 1)
STEPS = st.integers(1, 6)
CONNECTIVITY = st.sampled_from([4, 8])
THRESHOLD = st.floats(0.01, 0.99)
MANY = settings(max_examples=200, deadline=None)


def any_maps() -> st.SearchStrategy[Tensor]:
    """[N, C, H, W] of whatever floats hypothesis finds worth trying."""
    shapes = st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 12), st.integers(1, 12))
    values = st.floats(-(2.0**120), 2.0**120, width=32)
    return hnp.arrays(np.float32, shapes, elements=values, fill=values).map(torch.from_numpy)


@st.composite
def smooth_maps(draw: st.DrawFn) -> Tensor:
    """[N, C, H, W] as networks make them."""
    rng = np.random.default_rng(draw(SEEDS))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(SIDES), draw(SIDES))
    return maps.smooth(shape, rng)


@st.composite
def distinct_maps(draw: st.DrawFn) -> Tensor:
    """[N, C, H, W] of whole numbers, no two alike in a map: the ranks of smooth maps' pixels."""
    smooth = draw(smooth_maps())
    flat = smooth.flatten(2)
    ranks = flat.argsort(-1).argsort(-1)
    return ranks.view(smooth.shape).float()


ANY_MAPS = st.one_of(any_maps(), smooth_maps(), distinct_maps())


def assert_equal(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=0, equal_nan=True)


def tuple_of(result: object) -> tuple[Tensor, ...]:
    if isinstance(result, Tensor):
        return (result,)
    return tuple(tensor for entry in result for tensor in tuple_of(entry))


# ---- identities and ranges ----


@MANY
@given(cam=ANY_MAPS, steps=STEPS, threshold=THRESHOLD, connectivity=CONNECTIVITY)
def test_the_raw_heatmap_is_the_cam(
    cam: Tensor, steps: int, threshold: float, connectivity: int
) -> None:
    """With one network the fill-in of Eq. 8 telescopes."""
    mined = ops.mine_attention(cam, steps, threshold, connectivity)
    heatmap = ops.aggregate_heatmap(cam, mined, "raw")
    torch.testing.assert_close(heatmap, cam, rtol=steps * 2**-23, atol=steps * 2e-45)


@MANY
@given(cam=ANY_MAPS, steps=STEPS, threshold=THRESHOLD, connectivity=CONNECTIVITY)
def test_a_normalized_heatmap_is_within_0_and_1(
    cam: Tensor, steps: int, threshold: float, connectivity: int
) -> None:
    heatmap = ops.aggregate_heatmap(cam, ops.mine_attention(cam, steps, threshold, connectivity))
    assert heatmap.min() >= 0
    varies = cam.amax((-2, -1)) > cam.amin((-2, -1))
    assert_equal(heatmap.amax((-2, -1)), varies.float())


@MANY
@example(
    cam=torch.tensor([[[[0.9405, 0.9405]], [[4.354, 4.354]]]]).nextafter(torch.tensor([9.0, -9.0])),
    steps=2,
    threshold=0.015625,
    connectivity=4,
)
@given(cam=ANY_MAPS, steps=STEPS, threshold=THRESHOLD, connectivity=CONNECTIVITY)
def test_erasure(cam: Tensor, steps: int, threshold: float, connectivity: int) -> None:
    erased_at, extent = ops.mine_attention(cam, steps, threshold, connectivity)
    assert erased_at.max() <= steps
    lo, hi = extent.unbind(-1)
    assert_equal(lo[..., 0], cam.amin((-2, -1)))
    assert_equal(hi[..., 0], cam.amax((-2, -1)))
    alive = torch.ones_like(cam, dtype=torch.bool)
    for t in range(1, steps + 1):
        taken = erased_at == t
        now = (erased_at == 0) | (erased_at > t)
        assert not (now & ~alive).any(), "masks are nested"
        varies = hi[..., t - 1] > lo[..., t - 1]
        assert torch.equal(taken.any(-1).any(-1), varies), "one component, where the map varies"
        pieces = ops.label_components(taken, connectivity).amax((-2, -1))
        assert torch.equal(pieces, varies.int())
        # Values an ulp apart can all be foreground, and then nothing is left: (0, 0).
        some = alive.any(-1).any(-1)
        greatest = cam.where(alive, -torch.inf).amax((-2, -1)).where(some, 0.0)
        least = cam.where(alive, torch.inf).amin((-2, -1)).where(some, 0.0)
        assert_equal(greatest, hi[..., t - 1])
        assert_equal(least, lo[..., t - 1])
        if t > 1:
            falls = hi[..., t - 1] <= hi[..., t - 2]
            assert (falls | ~some).all(), "the greatest value alive can only fall"
        alive = now
    whole = ops.mine_cam(cam, None, steps, threshold, connectivity)
    assert torch.equal(whole.mined.erased_at, erased_at)


@MANY
@given(cam=ANY_MAPS, steps=STEPS)
def test_logits_fall_by_what_was_erased(cam: Tensor, steps: int) -> None:
    cam = cam.double()
    erased_at = ops.mine_attention(cam, steps).erased_at
    logits = ops.masked_gap(cam, erased_at, steps)
    pixels, scale = cam[0, 0].numel(), float(cam.abs().max()) + 1e-30
    for t in range(1, steps):
        taken = cam.where(erased_at == t, 0).sum((-2, -1)) / pixels
        difference = logits[..., t - 1] - logits[..., t]
        torch.testing.assert_close(difference / scale, taken / scale, rtol=0, atol=1e-13)


@MANY
@given(cam=ANY_MAPS, steps=STEPS, connectivity=CONNECTIVITY, data=st.data())
def test_staged_calls_are_one_call(
    cam: Tensor, steps: int, connectivity: int, data: st.DataObject
) -> None:
    whole = ops.mine_attention(cam, steps, 0.4, connectivity)
    erased_at, extents, done = None, [], 0
    while done < steps:
        more = data.draw(st.integers(1, steps - done), label="steps of this call")
        part = ops.mine_attention(cam, more, 0.4, connectivity, erased_at, done + 1)
        erased_at, done = part.erased_at, done + more
        extents.append(part.extent)
    assert torch.equal(erased_at, whole.erased_at)
    assert_equal(torch.cat(extents, 2), whole.extent)
    same = torch.stack([cam] * steps)
    staged = MinedAttention(erased_at, torch.cat(extents, 2))
    assert_equal(ops.aggregate_heatmap(same, staged), ops.aggregate_heatmap(cam, whole))


# ---- symmetries ----

TURNS = [
    lambda x: x.flip(-1),
    lambda x: x.flip(-2),
    lambda x: x.transpose(-2, -1),
    lambda x: x.rot90(1, (-2, -1)),
]


@pytest.mark.parametrize("turn", TURNS, ids=["left-right", "up-down", "transpose", "quarter turn"])
@settings(max_examples=100, deadline=None)
@given(cam=distinct_maps(), steps=STEPS, connectivity=CONNECTIVITY)
def test_flips_and_turns(turn: object, cam: Tensor, steps: int, connectivity: int) -> None:
    plain = ops.mine_attention(cam, steps, 0.45, connectivity)
    turned = ops.mine_attention(turn(cam), steps, 0.45, connectivity)
    assert torch.equal(turned.erased_at, turn(plain.erased_at))
    assert_equal(turned.extent, plain.extent)
    heatmap = ops.aggregate_heatmap(cam, plain)
    assert_equal(ops.aggregate_heatmap(turn(cam), turned), turn(heatmap))
    logits = ops.masked_gap(cam, plain.erased_at, steps)
    assert_equal(ops.masked_gap(turn(cam), turned.erased_at, steps), logits)  # whole numbers

    # The boxes of all components at once; how many cover each cell turns with the map.
    def covered(h: Tensor) -> Tensor:
        size = (h.shape[2], h.shape[3])
        settings = {"max_boxes": 255, "max_overlap": 1.0, "connectivity": connectivity}
        return _covered(ops.heatmap_boxes(h, size, (0.5,), "components", **settings).boxes, size)

    assert torch.equal(covered(turn(heatmap)), turn(covered(heatmap)))


def _covered(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """How many boxes cover each cell."""
    y, x = torch.arange(size[0])[:, None], torch.arange(size[1])
    x1, y1, x2, y2 = boxes[..., None, None, :].unbind(-1)
    return ((x >= x1) & (x < x2) & (y >= y1) & (y < y2)).sum(2)


@MANY
@given(cam=ANY_MAPS, seed=SEEDS)
def test_images_and_classes_do_not_meet(cam: Tensor, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, classes = (torch.from_numpy(rng.permutation(size)) for size in cam.shape[:2])
    bias = torch.from_numpy(rng.standard_normal(cam.shape[1]).astype(np.float32))
    plain = ops.mine_cam(cam, bias, upsample=2)
    mixed = ops.mine_cam(cam[images][:, classes], bias[classes], upsample=2)
    for a, b in zip(tuple_of(mixed), tuple_of(plain), strict=True):
        assert_equal(a, b[images][:, classes])
    alone = ops.mine_cam(cam[:1, :1], bias[:1], upsample=2)
    for a, b in zip(tuple_of(alone), tuple_of(plain), strict=True):
        assert_equal(a, b[:1, :1])


@MANY
@given(
    cam=distinct_maps(),
    exponent=st.integers(-40, 40),
    shift=st.integers(-5000, 5000),
    threshold=st.sampled_from([0.25, 0.5, 0.75]),
)
def test_scale_and_shift_change_nothing(
    cam: Tensor, exponent: int, shift: int, threshold: float
) -> None:
    """Exactly, as long as every operation is exact."""
    scale = 2.0**exponent
    plain = ops.mine_cam(cam, threshold=threshold)
    moved = ops.mine_cam((cam + shift) * scale, threshold=threshold)
    assert torch.equal(moved.mined.erased_at, plain.mined.erased_at)
    assert_equal(moved.mined.extent, (plain.mined.extent + shift) * scale)
    assert_equal(moved.heatmap, plain.heatmap)
    for a, b in zip(moved.found, plain.found, strict=True):
        assert_equal(a, b)


# ---- boxes ----

BOX_SETTINGS = {
    "thresholds": st.lists(st.floats(0.01, 1.0), min_size=1, max_size=4),
    "select": st.sampled_from(["components", "peak"]),
    "max_boxes": st.integers(1, 6),
    "max_overlap": st.floats(0, 1),
    "upsample": st.integers(1, 4),
    "connectivity": CONNECTIVITY,
}


@settings(max_examples=400, deadline=None)
@given(heatmap=ANY_MAPS, **BOX_SETTINGS)
def test_boxes(heatmap: Tensor, upsample: int, **chosen: object) -> None:
    height, width = (side * upsample for side in heatmap.shape[2:])
    boxes, scores, counts = ops.heatmap_boxes(heatmap, (height, width), upsample=upsample, **chosen)
    assert counts.dtype == torch.int32
    assert counts.min() >= 0
    assert counts.max() <= chosen["max_boxes"]
    taken = torch.arange(chosen["max_boxes"]) < counts[..., None]
    assert not boxes[~taken].any()
    assert not scores[~taken].any()
    x1, y1, x2, y2 = boxes[taken].unbind(-1)
    assert torch.equal(boxes, boxes.round()), "corners are those of the upsampled grid's cells"
    assert ((x1 >= 0) & (x1 < x2) & (x2 <= width)).all()
    assert ((y1 >= 0) & (y1 < y2) & (y2 <= height)).all()
    assert ((scores[taken] > 0) & (scores[taken] <= 1)).all()
    assert (scores[..., 1:] <= scores[..., :-1]).all()
    shared = torch.minimum(boxes[..., :, None, 2:], boxes[..., None, :, 2:]) - torch.maximum(
        boxes[..., :, None, :2], boxes[..., None, :, :2]
    )
    shared = shared.double().clamp(min=0).prod(-1)
    area = (boxes[..., 2:] - boxes[..., :2]).double().prod(-1)
    iou = shared / (area[..., :, None] + area[..., None, :] - shared).clamp(min=1)
    pairs = (taken[..., :, None] & taken[..., None, :]).triu(1)
    assert (iou[pairs] <= chosen["max_overlap"] + 1e-12).all()


@MANY
@given(heatmap=smooth_maps(), exponents=st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_boxes_scale_with_the_image(heatmap: Tensor, exponents: tuple[int, int]) -> None:
    height, width = (2**e for e in exponents)
    unit = ops.heatmap_boxes(heatmap, (1, 1), upsample=3)
    found = ops.heatmap_boxes(heatmap, (height, width), upsample=3)
    assert torch.equal(found.boxes, unit.boxes * torch.tensor([width, height, width, height]))
    assert torch.equal(found.scores, unit.scores)
    assert torch.equal(found.counts, unit.counts)


@MANY
@given(heatmap=ANY_MAPS, seed=SEEDS)
def test_sizes_of_each_image(heatmap: Tensor, seed: int) -> None:
    sizes = torch.from_numpy(np.random.default_rng(seed).integers(1, 5000, (len(heatmap), 2)))
    together = ops.heatmap_boxes(heatmap, sizes)
    for n, (height, width) in enumerate(sizes.tolist()):
        alone = ops.heatmap_boxes(heatmap[n : n + 1], (height, width))
        for a, b in zip(together, alone, strict=True):
            assert torch.equal(a[n : n + 1], b)
    whole = ops.mine_cam(heatmap, image_size=sizes)
    for n, (height, width) in enumerate(sizes.tolist()):
        alone = ops.mine_cam(heatmap[n : n + 1], image_size=(height, width))
        assert torch.equal(whole.found.boxes[n : n + 1], alone.found.boxes)
