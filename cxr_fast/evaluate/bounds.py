"""Where the list B is cut: AFP bounds from the paper's Table 2, or from a file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cxr_fast.paper import TABLE2

_COLUMNS = ("finding", "iou_threshold", "afp")


def afp_bounds(
    source: str | Path, findings: Sequence[str], thresholds: Sequence[float], notes: list[str]
) -> npt.NDArray[np.float64]:
    """AFP bounds ``[C, K]`` of the findings and T(IoU); infinity where there is none.

    ``source``: ``"none"``; ``"paper"``, what Table 2 gives for Wang et al.; or a CSV file with the
    columns ``finding, iou_threshold, afp``. ``notes`` takes a sentence about findings without bound.

    Raises ValueError for a T(IoU) that the source does not have, or a file that cannot be read so.
    """
    bounds = np.full((len(findings), len(thresholds)), np.inf)
    if str(source) == "none":
        return bounds
    if str(source) == "paper":
        values = {
            (finding, threshold): cell.afp
            for threshold, methods in TABLE2.items()
            for finding, cell in methods["ref."].items()
        }
    else:
        values = _read(Path(source))
    given = sorted({threshold for _, threshold in values})
    for k, threshold in enumerate(thresholds):
        near = [t for t in given if abs(t - threshold) < 1e-9]
        if not near:
            raise ValueError(
                f"AFP bounds: expected one for T(IoU) {threshold:g}, but {source} gives those of "
                f"{', '.join(f'{t:g}' for t in given)}; judge at these, or add the bound"
            )
        for c, finding in enumerate(findings):
            bounds[c, k] = values.get((finding, near[0]), np.inf)
    if unbounded := [f for f, row in zip(findings, bounds, strict=True) if np.isinf(row).any()]:
        notes.append(f"Without AFP bound, so over all boxes: {', '.join(unbounded)}.")
    return bounds


def _read(path: Path) -> dict[tuple[str, float], float]:
    values: dict[tuple[str, float], float] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not set(_COLUMNS) <= set(reader.fieldnames or ()):
            raise ValueError(
                f"{path}: expected the columns {', '.join(_COLUMNS)}, got {reader.fieldnames}; write "
                "one row for each finding and T(IoU)"
            )
        for row in reader:
            try:
                threshold, afp = float(row["iou_threshold"]), float(row["afp"])
            except (TypeError, ValueError):
                threshold = afp = -1.0
            if not (0 <= threshold < 1 and afp >= 0):
                raise ValueError(
                    f"{path}, line {reader.line_num}: expected T(IoU) in [0, 1) and an AFP of 0 or "
                    f"more, got {row['iou_threshold']!r} and {row['afp']!r}; mend the row"
                )
            values[row["finding"], threshold] = afp
    return values
