"""How well mined boxes agree with drawn ones, and scores with labels. NumPy only.

``localization``: Acc and AFP, the paper's measures. ``curves``: one over the other. ``bootstrap``:
their intervals. ``ranking``: AUROC.
``maps``: how well heatmaps agree with boxes.
"""

from __future__ import annotations

from cxr_fast.metrics.bootstrap import (
    AccDifference,
    LocalizationIntervals,
    acc_difference,
    localization_intervals,
)
from cxr_fast.metrics.curves import AccCurve, acc_curves
from cxr_fast.metrics.localization import (
    ImageCounts,
    Images,
    Localization,
    LocalizationRow,
    image_counts,
    localization,
    localization_table,
)
from cxr_fast.metrics.maps import MapScores, heatmap_peaks, map_iou, pixel_auc, pointing_game
from cxr_fast.metrics.overlap import Overlap, iobb, iou
from cxr_fast.metrics.ranking import AurocInterval, auroc, auroc_interval

__all__ = [
    "AccCurve",
    "AccDifference",
    "AurocInterval",
    "ImageCounts",
    "Images",
    "Localization",
    "LocalizationIntervals",
    "LocalizationRow",
    "MapScores",
    "Overlap",
    "acc_curves",
    "acc_difference",
    "auroc",
    "auroc_interval",
    "heatmap_peaks",
    "image_counts",
    "iobb",
    "iou",
    "localization",
    "localization_intervals",
    "localization_table",
    "map_iou",
    "pixel_auc",
    "pointing_game",
]
