"""Attention mining in plain PyTorch, readable beside the paper.

Cai et al., "Iterative Attention Mining for Weakly Supervised Thoracic Disease Pattern Localization
in Chest X-Rays", MICCAI 2018. Every operator of ``cxr_fast.ops`` stands here under the same name,
on any device, one equation at a time. It is the specification, the oracle of the tests, and the
kernel wherever no compiled one exists.

Symbols: features X [N, D, H, W], classifier weight W [C, D], T steps, N images, C findings.

The erased feature map of Eq. 1 is never built. The mask of class c multiplies every channel of X
alike, so it commutes with the inner product of Eq. 7, and one product ``cam = W . X`` serves all
steps: H_t = M_{t-1} * cam. Masks are nested, so one byte a pixel holds all of them:
``erased_at`` = 0 where a pixel is never erased, t where step t erases it, and

    M_t = (erased_at == 0) | (erased_at > t).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class MinedAttention(NamedTuple):
    """What the mining steps erased.

    ``erased_at`` [N, C, H, W] uint8: 0 = never, t = at step t. ``extent`` [N, C, T, 2] float32:
    the least and greatest CAM value among the pixels alive before each step.
    """

    erased_at: Tensor
    extent: Tensor


class HeatmapBoxes(NamedTuple):
    """Boxes in order of score, padded with zeros to K = max_boxes.

    ``boxes`` [N, C, K, 4] float32 (x1, y1, x2, y2; half-open; pixels of the image), ``scores``
    [N, C, K] float32, ``counts`` [N, C] int32.
    """

    boxes: Tensor
    scores: Tensor
    counts: Tensor


class MiningResult(NamedTuple):
    """All that ``attention_mining`` computes: logits [N, C, T], cam and heatmap [N, C, H, W]."""

    logits: Tensor
    cam: Tensor
    mined: MinedAttention
    heatmap: Tensor
    found: HeatmapBoxes


def cam(features: Tensor, weight: Tensor) -> Tensor:
    """Class activation maps before erasure: ``cam[n,c,h,w] = sum over d of W[c,d] X[n,d,h,w]``.

    features [N, D, H, W], weight [C, D]; returns [N, C, H, W] float32 (float64 where either input
    is float64). Eq. 7 with M_0 = 1.
    """
    accumulate = torch.float64 if torch.float64 in (features.dtype, weight.dtype) else torch.float32
    with torch.autocast(features.device.type, enabled=False):  # it would sum in two bytes
        product = torch.einsum("ndhw,cd->nchw", features.to(accumulate), weight.to(accumulate))
    return product.contiguous()


def label_components(mask: Tensor, connectivity: int = 8) -> Tensor:
    """Connected components of a mask [..., H, W] (bool): int32 labels of the same shape.

    0 is background; components count 1..n in row-major order of their first pixel, each image on
    its own. ``connectivity`` is 4 or 8.

    Source: the least index spreads to neighbours until nothing changes, with pointer jumping
    (Shiloach and Vishkin 1982).
    """
    height, width = mask.shape[-2:]
    area = height * width
    foreground = mask.reshape(-1, height, width)
    if foreground.shape[0] == 0:
        return torch.zeros(mask.shape, dtype=torch.int32, device=mask.device)
    # Every foreground pixel starts with its own row-major index and takes the least index among
    # its neighbours; jumping to the label of one's label makes that fast along snakes too.
    index = torch.arange(area, device=mask.device).view(1, height, width)
    background = area
    labels = torch.where(foreground, index, background)
    while True:
        padded = torch.nn.functional.pad(labels, (1, 1, 1, 1), value=background)
        shifts = [(dy, dx) for dy in (0, 1, 2) for dx in (0, 1, 2)]
        if connectivity == 4:
            shifts = [(dy, dx) for dy, dx in shifts if 1 in (dy, dx)]
        neighbours = [padded[:, dy : dy + height, dx : dx + width] for dy, dx in shifts]
        least = torch.stack(neighbours).amin(0).where(foreground, background)
        # The extra last entry lets background point at itself.
        lookup = torch.nn.functional.pad(least.flatten(1), (0, 1), value=background)
        jumped = lookup.gather(1, least.flatten(1)).view_as(least)
        if torch.equal(jumped, labels):
            break
        labels = jumped
    is_first = (labels == index) & foreground
    rank = torch.nn.functional.pad(is_first.flatten(1).cumsum(1), (0, 1))
    numbered = rank.gather(1, labels.flatten(1)).view_as(labels).where(foreground, 0)
    return numbered.to(torch.int32).view(mask.shape)


def mine_attention(
    cam: Tensor,
    steps: int = 3,
    threshold: float = 0.5,
    connectivity: int = 8,
    erased_at: Tensor | None = None,
    first_step: int = 1,
) -> MinedAttention:
    """Erase the component that holds the peak, ``steps`` times (Sec. 3.2), for every (image, class).

    cam [N, C, H, W]. Steps count from ``first_step``; ``erased_at`` [N, C, H, W] uint8 holds what
    earlier steps erased. The cut is taken over alive pixels only, in float32, each operation
    rounded. A constant map erases nothing. A map with a NaN or an infinity, or whose hi - lo
    overflows, erases nothing and has NaN extents.
    """
    h = cam.detach().to(torch.float32)
    erased = torch.zeros_like(h, dtype=torch.uint8) if erased_at is None else erased_at.clone()
    # amin and amax propagate NaN; infinities and overflow make the difference infinite.
    minable = torch.isfinite(h.amax((-2, -1)) - h.amin((-2, -1)))
    extents = []
    for t in range(first_step, first_step + steps):
        alive = (erased == 0) & minable[..., None, None]
        lo = h.where(alive, torch.inf).amin((-2, -1))
        hi = h.where(alive, -torch.inf).amax((-2, -1))
        varies = hi > lo
        any_alive = hi >= lo
        lo, hi = lo.where(any_alive, 0.0), hi.where(any_alive, 0.0)
        cut = lo + threshold * (hi - lo)
        foreground = alive & (h >= cut[..., None, None]) & varies[..., None, None]
        labels = label_components(foreground, connectivity).flatten(-2)
        is_peak = (alive & (h == hi[..., None, None])).flatten(-2)
        peak = is_peak.to(torch.uint8).argmax(-1, keepdim=True)  # the first, in row-major order
        component = ((labels == labels.gather(-1, peak)) & (labels > 0)).view_as(foreground)
        erased = erased.masked_fill(component, t)
        extents.append(torch.stack((lo, hi), -1))
    extent = torch.stack(extents, -2).where(minable[..., None, None], torch.nan)
    return MinedAttention(erased, extent)


def masked_gap(cam: Tensor, erased_at: Tensor, steps: int = 3) -> Tensor:
    """Logits without bias of Eq. 2: ``z_t = sum over pixels of M_{t-1} * cam / (H * W)``, [N, C, T].

    cam [N, C, H, W], erased_at [N, C, H, W] uint8. Differentiable in cam. Erased pixels count as 0
    in the mean. float64 for a float64 cam, float32 otherwise.
    """
    h = cam if cam.dtype == torch.float64 else cam.to(torch.float32)
    logits = []
    for t in range(1, steps + 1):
        alive = (erased_at == 0) | (erased_at >= t)  # M_{t-1}
        logits.append(h.where(alive, 0.0).mean((-2, -1)))
    return torch.stack(logits, -1)


def aggregate_heatmap(cam: Tensor, mined: MinedAttention, mode: str = "normalized") -> Tensor:
    """The aggregated heatmap of Eq. 8, [N, C, H, W] float32.

    A pixel erased at step s keeps step s's value in all later steps, so with the step values v_t

        heatmap(p) = 1/T * sum over t of v_min(t, s(p))(p),     s = infinity where never erased.

    v_t is the CAM itself (``mode="raw"``) or ``(cam - lo_t) / (hi_t - lo_t)`` (``"normalized"``; 0
    where hi_t == lo_t). ``cam`` may be [T, N, C, H, W], one map a step. NaN extents give NaN.
    """
    steps = mined.extent.shape[-2]
    maps = cam.detach().to(torch.float32)
    per_step = maps if cam.dim() == 5 else maps[None]
    total = torch.zeros_like(per_step[0])
    held = torch.zeros_like(per_step[0])
    for t in range(1, steps + 1):
        h = per_step[t - 1 if cam.dim() == 5 else 0]
        alive = (mined.erased_at == 0) | (mined.erased_at >= t)
        if mode == "normalized":
            lo = mined.extent[..., t - 1, 0, None, None]
            spread = mined.extent[..., t - 1, 1, None, None] - lo
            h = ((h - lo) / spread).where(spread > 0, 0.0)
        held = h.where(alive, held)
        total = total + held
    finite = ~mined.extent.isnan().any(-1).any(-1)
    # A tensor, since torch divides CUDA tensors by a number by multiplying with its reciprocal.
    mean = total / torch.full((), float(steps), device=total.device)
    return mean.where(finite[..., None, None], torch.nan)


def upsample_bilinear(heatmap: Tensor, factor: int) -> Tensor:
    """Bilinear upsampling of heatmap [..., H, W] to [..., H * r, W * r], r = ``factor``, float32.

    Pixel centres lie at halves (align_corners=False): enlarges heatmaps before they are cut (Sec. 3.2).

    Along x, then along y, each as ``a + w * (b - a)`` with every operation rounded: one stated
    order, so that a threshold on the result cuts the same pixels everywhere.
    """
    for axis in (-1, -2):
        size = heatmap.shape[axis]
        centre = (torch.arange(size * factor, dtype=torch.float64) + 0.5) / factor - 0.5
        centre = centre.clamp(0, size - 1)
        first = centre.floor().to(torch.int64)
        second = (first + 1).clamp(max=size - 1)
        w = (centre - first).to(torch.float32).to(heatmap.device)
        w = w if axis == -1 else w[:, None]
        a = heatmap.index_select(axis, first.to(heatmap.device))
        b = heatmap.index_select(axis, second.to(heatmap.device))
        heatmap = a + w * (b - a)
    return heatmap


def heatmap_boxes(
    heatmap: Tensor,
    image_size: tuple[int, int] | Tensor,
    thresholds: Sequence[float],
    select: str,
    max_boxes: int = 3,
    max_overlap: float = 0.5,
    upsample: int = 1,
    connectivity: int = 8,
) -> HeatmapBoxes:
    """Boxes from heatmap [N, C, H, W] by cutting at several intensities (Sec. 3.2).

    Each map is min-max normalised first (an identity on ``mode="normalized"`` heatmaps), then
    upsampled ``upsample`` times. ``select="components"``: a tight box around each component of
    ``heatmap >= threshold``, for each threshold. ``select="peak"``: one box a threshold, around the
    component that holds the first maximum. Score = mean of the heatmap over the box. Ranked by
    (score, area, y1, x1, y2, x2), the larger score and area first; a box whose IoU with a better
    one that is kept exceeds ``max_overlap`` is dropped. A map that is constant or not finite has
    none. ``image_size``: (height, width) in pixels, or [N, 2], one row an image.
    """
    count_n, count_c, rows, columns = heatmap.shape
    device = heatmap.device
    sizes = torch.as_tensor(image_size, dtype=torch.float64).cpu().expand(count_n, 2)
    boxes = torch.zeros(count_n, count_c, max_boxes, 4, dtype=torch.float64)
    scores = torch.zeros(count_n, count_c, max_boxes, dtype=torch.float32)
    counts = torch.zeros(count_n, count_c, dtype=torch.int32)
    h = heatmap.detach().to(torch.float32)
    lo, hi = h.amin((-2, -1), keepdim=True), h.amax((-2, -1), keepdim=True)
    usable = torch.isfinite(hi - lo) & (hi > lo)
    h = ((h - lo) / (hi - lo)).where(usable, 0.0)
    h = upsample_bilinear(h, upsample)
    cuts = torch.tensor(thresholds, dtype=torch.float32, device=device)
    labels = [label_components(h >= cut, connectivity) for cut in cuts]
    scale = torch.tensor([rows * upsample, columns * upsample], dtype=torch.float64)
    for n in range(count_n):
        for c in range(count_c):
            candidates = []
            for at_threshold in labels:
                candidates += _component_boxes(at_threshold[n, c], h[n, c], select)
            kept = _non_maximum_suppression(candidates, max_boxes, max_overlap)
            counts[n, c] = len(kept)
            for k, (score, (x1, y1, x2, y2)) in enumerate(kept):
                scores[n, c, k] = score
                corners = torch.tensor([x1, y1, x2, y2], dtype=torch.float64)
                boxes[n, c, k] = corners * sizes[n].flip(0).repeat(2) / scale.flip(0).repeat(2)
    return HeatmapBoxes(boxes.to(torch.float32).to(device), scores.to(device), counts.to(device))


_Box = tuple[int, int, int, int]


def _component_boxes(labels: Tensor, heatmap: Tensor, select: str) -> list[tuple[float, _Box]]:
    """Tight boxes around the components of one label map, with their scores rounded to float32."""
    if select == "peak":
        peak = int(heatmap.flatten().argmax())
        wanted = {int(labels.flatten()[peak])} - {0}
    else:
        wanted = set(range(1, int(labels.max()) + 1))
    # The least and greatest row and column of every label, in one scatter each.
    flat, count = labels.flatten().to(torch.int64), int(labels.max()) + 1
    rows, columns = torch.meshgrid(
        *(torch.arange(size, device=labels.device) for size in labels.shape), indexing="ij"
    )
    limits = torch.zeros(4, count, dtype=torch.int64, device=labels.device)
    for into, index, reduce in (
        (limits[0], columns, "amin"),
        (limits[1], rows, "amin"),
        (limits[2], columns + 1, "amax"),
        (limits[3], rows + 1, "amax"),
    ):
        into.scatter_reduce_(0, flat, index.flatten(), reduce, include_self=False)
    corners = limits.t().tolist()
    found = []
    for label in sorted(wanted):
        x1, y1, x2, y2 = corners[label]
        score = heatmap[y1:y2, x1:x2].to(torch.float64).mean().to(torch.float32)
        found.append((float(score), (x1, y1, x2, y2)))
    return found


def _non_maximum_suppression(
    candidates: list[tuple[float, _Box]], max_boxes: int, max_overlap: float
) -> list[tuple[float, _Box]]:
    """Greedy: the best first, without those that overlap a better one that is kept too much."""

    def area(box: _Box) -> int:
        return (box[2] - box[0]) * (box[3] - box[1])

    def rank(candidate: tuple[float, _Box]) -> tuple[float, int, int, int, int, int]:
        score, box = candidate
        return -score, -area(box), box[1], box[0], box[3], box[2]

    kept: list[tuple[float, _Box]] = []
    for score, box in sorted(candidates, key=rank):
        if len(kept) == max_boxes:
            break
        for _, other in kept:
            width = min(box[2], other[2]) - max(box[0], other[0])
            height = min(box[3], other[3]) - max(box[1], other[1])
            shared = max(width, 0) * max(height, 0)
            if shared > max_overlap * (area(box) + area(other) - shared):
                break
        else:
            kept.append((score, box))
    return kept


def mine_cam(
    cam: Tensor,
    bias: Tensor | None = None,
    steps: int = 3,
    threshold: float = 0.5,
    connectivity: int = 8,
    mode: str = "normalized",
    *,
    image_size: tuple[int, int] | Tensor,
    thresholds: Sequence[float],
    select: str,
    max_boxes: int = 3,
    max_overlap: float = 0.5,
    upsample: int = 1,
) -> MiningResult:
    """Everything after the CAM; ``bias`` [C] is added to the logits of every step.

    cam [N, C, H, W]; the settings are those of ``cxr_fast.ops.mine_cam``.
    """
    mined = mine_attention(cam, steps, threshold, connectivity)
    logits = masked_gap(cam, mined.erased_at, steps)
    if bias is not None:
        logits = logits + bias.to(logits.dtype)[:, None]
    heatmap = aggregate_heatmap(cam, mined, mode)
    found = heatmap_boxes(
        heatmap, image_size, thresholds, select, max_boxes, max_overlap, upsample, connectivity
    )
    return MiningResult(logits, cam, mined, heatmap, found)


def attention_mining(
    features: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **settings: Any
) -> MiningResult:
    """``mine_cam`` on ``cam(features, weight)``, with the same settings.

    Arguments and results as of ``cxr_fast.ops.attention_mining``.
    """
    return mine_cam(cam(features, weight), bias, *args, **settings)
