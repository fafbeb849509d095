"""What the first page says of a run."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cxr_fast.archive.findings import read_errors, run_settings
from cxr_fast.archive.overlays import ramp
from cxr_fast.model_files import model_digest
from cxr_fast.report.scripts import column
from cxr_fast.report.survey import SIZE_EDGES, Totals

# Of errors; errors.parquet has them all.
_LISTED = 1000


def document(
    run: Path, totals: Totals, counts: Mapping[str, int], left_out: Sequence[str]
) -> dict[str, Any]:
    """All of it; ``counts`` and ``left_out`` are of what the pages show."""
    settings = run_settings(run)
    return {
        "version": 1,
        "key": run_key(settings),
        "title": run.resolve().name,
        "classes": list(settings["model"]["class_names"]),
        "steps": settings["mining"]["steps"],
        "counts": dict(counts),
        "per_class": per_class(totals),
        "size_edges": list(SIZE_EDGES),
        "errors": errors_of(run),
        "run": facts(settings, counts["images"]),
        "throughput": throughput_of(run),
        "left_out": list(left_out),
        "synthetic": is_synthetic(settings),
        "ramp": column(np.rint(ramp(np.linspace(0, 1, 256))), "uint8"),
    }


def run_key(settings: Mapping[str, Any]) -> str:
    """The name under which a reader's marks are kept: the same while the run is the same."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def is_synthetic(settings: Mapping[str, Any]) -> bool:
    """Whether the bundled model mined, which has seen drawn pictures only."""
    return bool(settings["model"]["sha256"] == model_digest("demo"))


def per_class(totals: Totals) -> list[dict[str, Any]]:
    """Counts, means (None of nothing), histograms and the map of positions of each class."""
    classes = []
    for c in range(totals.classes):
        findings, images = int(totals.findings[c]), int(totals.images[c])
        position = totals.position[c]
        most = int(position.max(initial=0))
        classes.append(
            {
                "findings": findings,
                "images": images,
                "mean_score": float(totals.score[c] / findings) if findings else None,
                "mean_probability": float(totals.probability[c] / images) if images else None,
                "score_histogram": totals.scores[c].tolist(),
                "size_histogram": totals.sizes[c].tolist(),
                "position": column(np.rint(position * (255 / max(most, 1))), "uint8"),
                "position_most": most,
            }
        )
    return classes


def errors_of(run: Path) -> dict[str, Any]:
    """How many images could not be read, why, and the first of them."""
    table = read_errors(run)
    reasons = Counter(table["reason"].to_pylist())
    return {
        "total": table.num_rows,
        "reasons": [{"reason": reason, "count": count} for reason, count in reasons.most_common(100)],
        "first": table.slice(0, _LISTED).to_pylist(),
    }


def throughput_of(run: Path) -> dict[str, Any] | None:
    """What ``mine --profile`` wrote; None without it, or where it is no such file."""
    try:
        profile = json.loads((run / "profile.json").read_text())
        seconds = float(profile["wall_seconds"])
        stages = [
            {"name": name, "seconds": float(stage["seconds"])}
            for name, stage in profile["stages"].items()
        ]
        return {
            "images_per_second": profile["images"] / seconds,
            "seconds": seconds,
            "limit": str(profile["limited_by"]),
            "stages": stages,
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        return None


def facts(settings: Mapping[str, Any], images: int) -> list[dict[str, str]]:
    """The settings as lines of a table."""
    flat = [("images", str(images)), *_flat({k: v for k, v in settings.items() if k != "images"})]
    return [{"name": name, "value": value} for name, value in flat]


def _flat(value: Mapping[str, Any], inside: str = "") -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for name, part in value.items():
        label = f"{inside}{name}"
        if isinstance(part, Mapping):
            lines += _flat(part, f"{label}.")
        elif isinstance(part, Sequence) and not isinstance(part, str):
            lines.append((label, ", ".join(map(str, part)) or "none"))
        else:
            lines.append((label, str(part)))
    return lines
