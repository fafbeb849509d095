"""How a run is judged, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cxr_fast import metrics

AfpImages = Literal["class", "boxed", "all"]
MapMetric = Literal["pointing_game", "map_iou", "pixel_auc"]
IntArray = npt.NDArray[np.int64]

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


@dataclass(frozen=True)
class EvaluationOptions:
    """How a run is judged.

    ``overlap_thresholds`` are T(IoU), or T(IoBB) with ``overlap="iobb"``. ``afp_images`` are the images
    that false positives are counted on and divided by: those with a box of the class, those with any
    box, or all; ``afp_denominator`` divides by another number in the last two cases (Wang et al.: 984).
    ``afp_bounds`` is ``"none"``, ``"paper"`` or a CSV file. ``image_order`` orders the list B: by the
    first appearance of each image in the box table and then as in the run, or as in the run. It matters
    with bounds only. ``resample`` says what the bootstrap draws. ``findings``: None for all that the
    table names. ValueError for a value out of range.
    """

    overlap_thresholds: tuple[float, ...] = THRESHOLDS
    overlap: metrics.Overlap = "iou"
    afp_images: AfpImages = "class"
    afp_denominator: int | None = None
    afp_bounds: str | Path = "none"
    image_order: Literal["truth", "run"] = "truth"
    heatmap_threshold: float = 0.5
    resample: Literal["images", "patients"] = "images"
    resamples: int = 1000
    seed: int = 0
    findings: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for value in self.overlap_thresholds:
            if not 0.0 <= value < 1.0:
                raise ValueError(f"T(IoU) must be at least 0 and below 1, but is {value}")
        if not 0.0 <= self.heatmap_threshold <= 1.0:
            raise ValueError(f"heatmap_threshold must be from 0 to 1, but is {self.heatmap_threshold}")
        if self.afp_denominator is not None and self.afp_images == "class":
            raise ValueError(
                f"an AFP denominator of {self.afp_denominator} goes with the images that it stands "
                "for; choose AFP images 'boxed' or 'all', not 'class'"
            )


class AurocScores(NamedTuple):
    """AUROC of each class of the run over ``images`` images, ``positives`` [C] of them positive."""

    findings: tuple[str, ...]
    interval: metrics.AurocInterval
    positives: IntArray
    images: int


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate_run`` found. ``missing`` says of each metric that is left out why;
    ``bounds`` [C, K] where AFP stops, for each finding and threshold; infinity for nowhere.
    ``model`` is the SHA-256 of the model that mined, empty where the run does not say.
    """

    options: EvaluationOptions
    findings: tuple[str, ...]
    localization: list[metrics.LocalizationRow]
    intervals: metrics.LocalizationIntervals
    bounds: npt.NDArray[np.float64]  # [C, K] of AFP, infinity without
    auroc: AurocScores | None
    maps: dict[MapMetric, metrics.MapScores]
    missing: dict[str, str]
    notes: list[str]
    model: str
