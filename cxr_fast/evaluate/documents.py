"""An evaluation as rows and as a JSON document, for files and for other programs."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cxr_fast.evaluate.settings import Evaluation
from cxr_fast.metrics.resampling import mean_over_classes

MEAN = "mean"
_COLUMNS = ("measure", "finding", "threshold", "value", "low", "high", "part", "whole")


def mean_localization(evaluation: Evaluation) -> list[dict[str, float]]:
    """Acc and AFP at each threshold, averaged over the findings that have ground truth."""
    thresholds = evaluation.options.overlap_thresholds
    results = [row.result for row in evaluation.localization]
    shape = (len(evaluation.findings), len(thresholds))
    there = np.array([r.truths > 0 for r in results], dtype=np.bool_).reshape(shape)
    means = {}
    for name in ("acc", "afp"):
        values = np.array([getattr(r, name) for r in results]).reshape(shape)
        means[name] = mean_over_classes(np.where(there, values, np.nan).T)
    intervals = evaluation.intervals
    return [
        {
            f"{evaluation.options.overlap}_threshold": threshold,
            **_ends("acc", float(means["acc"][k]), intervals.mean_acc[k]),
            **_ends("afp", float(means["afp"][k]), intervals.mean_afp[k]),
        }
        for k, threshold in enumerate(thresholds)
    ]


def document(evaluation: Evaluation) -> dict[str, Any]:
    """Everything as JSON values; numbers that do not exist are None."""
    options, intervals = evaluation.options, evaluation.intervals
    cells = np.ndindex(len(evaluation.findings), len(options.overlap_thresholds))
    localization = [
        {
            "finding": row.finding,
            f"{options.overlap}_threshold": row.overlap_threshold,
            **_ends("acc", row.result.acc, intervals.acc[c, k]),
            **_ends("afp", row.result.afp, intervals.afp[c, k]),
            "afp_bound": float(evaluation.bounds[c, k]),
            **{n: getattr(row.result, n) for n in
               ("found", "truths", "false_positives", "images", "taken")},
        }
        for row, (c, k) in zip(evaluation.localization, cells, strict=True)
    ]  # fmt: skip
    result: dict[str, Any] = {
        "model": evaluation.model or None,
        "options": {**asdict(options), "afp_bounds": str(options.afp_bounds)},
        "localization": localization,
        "mean": mean_localization(evaluation),
    }
    if evaluation.auroc is not None:
        scores = evaluation.auroc
        areas = zip(scores.findings, *scores.interval, scores.positives, strict=True)
        result["auroc"] = [
            {"finding": finding, "value": float(area), "low": float(low), "high": float(high),
             "positives": int(positives), "images": scores.images}
            for finding, area, _, low, high, positives in areas
        ]  # fmt: skip
    for name, of_maps in evaluation.maps.items():
        rows = zip(evaluation.findings, *of_maps[:4], strict=True)
        result[name] = [
            {"finding": finding, "value": float(value), "low": float(low), "high": float(high),
             "images": int(images)}
            for finding, value, low, high, images in rows
        ]  # fmt: skip
        mean = {"value": of_maps.mean, "low": of_maps.mean_low, "high": of_maps.mean_high}
        result[name].append({"finding": MEAN, **mean, "images": int(of_maps.images.sum())})
    finite = _finite({**result, "missing": evaluation.missing, "notes": evaluation.notes})
    return dict(finite)


def records(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One row a figure: measure, finding, threshold, value, low, high, and the counts behind it."""
    whole = document(evaluation)
    threshold = f"{evaluation.options.overlap}_threshold"
    rows = []
    for cell in [*whole["localization"], *whole["mean"]]:
        for measure, parts in (("acc", ("found", "truths")), ("afp", ("false_positives", "images"))):
            rows.append(
                {
                    "measure": measure,
                    "finding": cell.get("finding", MEAN),
                    "threshold": cell[threshold],
                    "value": cell[measure],
                    "low": cell[f"{measure}_low"],
                    "high": cell[f"{measure}_high"],
                    "part": cell.get(parts[0]),
                    "whole": cell.get(parts[1]),
                }
            )
    for measure in ("auroc", "pointing_game", "map_iou", "pixel_auc"):
        for cell in whole.get(measure, ()):
            cut = evaluation.options.heatmap_threshold if measure == "map_iou" else None
            rows.append(
                {
                    "measure": measure,
                    "threshold": cut,
                    **{name: cell[name] for name in ("finding", "value", "low", "high")},
                    "part": cell.get("positives"),
                    "whole": cell["images"],
                }
            )
    return rows


def write_evaluation(evaluation: Evaluation, path: str | Path) -> None:
    """Write ``records`` as CSV or ``document`` as JSON, as the name ends; ValueError for another."""
    target = Path(path)
    if target.suffix == ".json":
        text = json.dumps(document(evaluation), indent=1, allow_nan=False)
        target.write_text(text + "\n", encoding="utf-8")
    elif target.suffix == ".csv":
        with target.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(records(evaluation))
    else:
        raise ValueError(f"expected a file ending in .json or .csv, got {target.name}; rename it")


def _ends(name: str, value: float, ends: Any) -> dict[str, float]:
    return {name: value, f"{name}_low": float(ends[0]), f"{name}_high": float(ends[1])}


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value
