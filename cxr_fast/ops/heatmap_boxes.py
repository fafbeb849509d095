"""Boxes from heatmaps, by cutting at several intensities (Sec. 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cxr_fast import checks, reference
from cxr_fast.config import MiningSettings
from cxr_fast.ops import library
from cxr_fast.reference import HeatmapBoxes

DEFAULTS = MiningSettings()

# What image_size becomes in the schema: a float64 [N, 2] tensor, or one height and width for all.
SIZE_SCHEMA = "Tensor? image_sizes, int image_height, int image_width"
SizeArguments = tuple[Tensor | None, int, int]


def heatmap_boxes(
    heatmap: Tensor,
    image_size: tuple[int, int] | Tensor = (1024, 1024),
    thresholds: Sequence[float] = DEFAULTS.thresholds,
    select: str = DEFAULTS.select,
    max_boxes: int = 3,
    max_overlap: float = 0.5,
    upsample: int = 1,
    connectivity: int = 8,
) -> HeatmapBoxes:
    """The best boxes of every (image, class) heatmap, in order of score.

    Each map is min-max normalised (an identity on ``mode="normalized"`` heatmaps), upsampled, and
    cut at every threshold. Score is the mean heatmap over the box (summed in float64, rounded to
    float32). Ranked by (score, area, y1, x1, y2, x2), the larger score and area first; a box whose
    IoU with a better one that is kept exceeds ``max_overlap`` is dropped.

    Args:
        heatmap: [N, C, H, W], any float dtype.
        image_size: (height, width) in pixels, or [N, 2] with one row an image.
        thresholds: fractions of the range, each in (0, 1].
        select: ``"components"``: a tight box around each component above each threshold;
            ``"peak"``: one box a threshold, around the component that holds the first maximum.
        max_boxes: K, 1 to 255.
        max_overlap: IoU, 0 to 1.
        upsample: bilinear factor (align_corners=False) before the cut, for edges between cells.
        connectivity: 4 or 8.

    Returns:
        ``boxes`` [N, C, K, 4] float32 (x1, y1, x2, y2; half-open; pixels of the image), ``scores``
        [N, C, K] float32, ``counts`` [N, C] int32; padding is 0. A map that is constant or not
        finite has no box. Not differentiable.

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape or range, in a sentence.

    Source: Cai et al. 2018, Sec. 3.2, "Bbox Generation"; thresholds after Wang et al. 2017.
    """
    library.require_float("heatmap", heatmap)
    checks.require_maps("heatmap", heatmap.shape)
    checks.require_box_arguments(thresholds, select, max_boxes, max_overlap, upsample, connectivity)
    return HeatmapBoxes(
        *torch.ops.cxr_fast.heatmap_boxes(
            heatmap.detach().to(torch.float32),
            *size_arguments(image_size, heatmap),
            [float(t) for t in thresholds],
            select,
            max_boxes,
            float(max_overlap),
            upsample,
            connectivity,
        )
    )


def size_arguments(image_size: tuple[int, int] | Tensor, maps: Tensor) -> SizeArguments:
    """``image_size`` as the schema takes it, checked."""
    checks.require_image_size(image_size, maps.shape[0])
    if isinstance(image_size, Tensor):
        return image_size.to(device=maps.device, dtype=torch.float64), 0, 0
    height, width = image_size
    return None, height, width


def image_size_of(sizes: Tensor | None, height: int, width: int) -> tuple[int, int] | Tensor:
    """The inverse of ``size_arguments``, for the reference."""
    return (height, width) if sizes is None else sizes


def _reference(
    heatmap: Tensor,
    image_sizes: Tensor | None,
    image_height: int,
    image_width: int,
    thresholds: Sequence[float],
    select: str,
    max_boxes: int,
    max_overlap: float,
    upsample: int,
    connectivity: int,
) -> tuple[Tensor, Tensor, Tensor]:
    size = image_size_of(image_sizes, image_height, image_width)
    return reference.heatmap_boxes(
        heatmap, size, thresholds, select, max_boxes, max_overlap, upsample, connectivity
    )


def empty_boxes(maps: Tensor, max_boxes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of the right shapes for a fake kernel."""
    n, c = maps.shape[:2]
    counts = torch.empty((n, c), dtype=torch.int32, device=maps.device)
    return maps.new_empty((n, c, max_boxes, 4)), maps.new_empty((n, c, max_boxes)), counts


def _fake(
    heatmap: Tensor,
    image_sizes: Tensor | None,
    image_height: int,
    image_width: int,
    thresholds: Sequence[float],
    select: str,
    max_boxes: int,
    max_overlap: float,
    upsample: int,
    connectivity: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_boxes(heatmap, max_boxes)


library.define(
    "heatmap_boxes",
    f"(Tensor heatmap, {SIZE_SCHEMA}, float[] thresholds, str select, int max_boxes,"
    " float max_overlap, int upsample, int connectivity) -> (Tensor, Tensor, Tensor)",
    _reference,
    _fake,
)
library.not_differentiable("heatmap_boxes", inputs=10)
