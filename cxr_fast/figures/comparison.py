"""Several runs side by side: their Acc and AFP with intervals, the best of them, paired differences."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cxr_fast import metrics
from cxr_fast.evaluate import EvaluationOptions, JudgedWalks, document, evaluate_walks, judge_walks
from cxr_fast.figures.text import number
from cxr_fast.metrics.localization import first_hits, measured

MEAN, POOLED = "mean", "all boxes"
# What two documents must agree in, or their figures cannot stand side by side.
_ALIKE = ("overlap", "afp_images", "afp_denominator", "afp_bounds")
_OPTIONS = (*_ALIKE, "overlap_thresholds", "resample", "resamples", "seed")


class Judgement(NamedTuple):
    """A run's name, what ``evaluate.document`` says of it, and its walks where its folder is here."""

    name: str
    document: dict[str, Any]
    walks: JudgedWalks | None


class Cell(NamedTuple):
    """Acc and AFP of a run, a threshold and a finding, with ends of intervals; NaN for what is not."""

    acc: float
    acc_low: float
    acc_high: float
    afp: float
    afp_low: float
    afp_high: float


class Difference(NamedTuple):
    """Acc of a run minus that of the reference, for each finding of the table and all boxes pooled."""

    name: str
    overlap_threshold: float
    of: tuple[metrics.AccDifference, ...]


@dataclass(frozen=True)
class Comparison:
    """A table: ``cells`` of [run][threshold][finding], the last finding being the mean of the others.

    ``best`` has the same shape and marks the runs whose Acc, as printed, is the largest of several.
    ``reference`` is the run that ``differences`` are against, None where there are none.
    """

    names: tuple[str, ...]
    findings: tuple[str, ...]
    thresholds: tuple[float, ...]
    options: dict[str, Any]
    cells: tuple[tuple[tuple[Cell, ...], ...], ...]
    best: tuple[tuple[tuple[bool, ...], ...], ...]
    reference: str | None
    differences: tuple[Difference, ...]
    models: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def overlap_name(self) -> str:
        """What the thresholds are of."""
        return {"iou": "T(IoU)", "iobb": "T(IoBB)"}[self.options["overlap"]]


def judgement(
    source: Path,
    name: str | None,
    boxes: Path | None,
    labels: Path | None,
    options: EvaluationOptions,
) -> Judgement:
    """Read a JSON document of ``cxr-fast evaluate``, or judge a run's folder by ``boxes``.

    ValueError for a file that is no such document and for a folder without ``boxes``; the errors of
    ``evaluate_run``.
    """
    called = name or (source.stem if source.is_file() else source.resolve().name)
    if source.is_file():
        return Judgement(called, _document(source), None)
    if boxes is None:
        raise ValueError(
            f"{source} is judged here, which needs --truth, unless it is a JSON file of `cxr-fast "
            "evaluate --out`; give one of the two"
        )
    walks = judge_walks(source, boxes, labels, options)
    return Judgement(called, document(evaluate_walks(source, walks, options)), walks)


def _document(source: Path) -> dict[str, Any]:
    try:
        read = json.loads(source.read_bytes())
    except ValueError:
        read = None
    options = read.get("options") if isinstance(read, dict) else None
    if not (
        isinstance(options, dict)
        and {"localization", "mean"} <= read.keys()
        and options.keys() >= {*_OPTIONS}
    ):
        raise ValueError(
            f"{source} must be a JSON document of `cxr-fast evaluate RUN --out FILE.json`, but is not; "
            "write it again"
        )
    whole: dict[str, Any] = read
    return whole


def compare(
    judged: Sequence[Judgement], thresholds: Sequence[float], reference: str | None = None
) -> Comparison:
    """Put judgements side by side; differences are against ``reference``, by default the first.

    Differences need the folders of both runs, and are on the same images in every resample; with AFP
    bounds each list is cut where the whole sample reaches its bound.

    ValueError for no judgement, two of one name, a reference that is none of them, a threshold that
    one was not judged at, options that differ, and differences of runs whose ground truth differs.
    """
    names = tuple(j.name for j in judged)
    if not judged:
        raise ValueError("expected one or more runs to put into a table, got none; name some")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two of the runs are named {twice!r}; give each a --name of its own")
    if reference is not None and reference not in names:
        raise ValueError(f"--reference must be one of {', '.join(names)}, but is {reference!r}")
    options = judged[0].document["options"]
    for other in judged[1:]:
        for key in _ALIKE:
            if other.document["options"][key] != options[key]:
                raise ValueError(
                    f"{names[0]} was judged with {key} {options[key]}, {other.name} with "
                    f"{other.document['options'][key]}; judge them alike"
                )
    for j in judged:
        known = j.document["options"]["overlap_thresholds"]
        if absent := [t for t in thresholds if t not in known]:
            raise ValueError(
                f"{j.name} was not judged at {absent[0]:g}, but at "
                f"{', '.join(f'{t:g}' for t in known)}; choose of these by --iou-threshold, or judge "
                "it again"
            )
    rows = [row for j in judged for row in j.document["localization"]]
    findings = tuple(dict.fromkeys(row["finding"] for row in rows))
    cells = tuple(_cells(j, findings, thresholds) for j in judged)
    against = reference or names[0]
    return Comparison(
        names, findings, tuple(thresholds), options, cells, _best(cells),
        *_all_differences(judged, against, findings, thresholds),
        tuple(str(j.document.get("model") or "") for j in judged),
        tuple(_notes(judged, findings)),
    )  # fmt: skip


def _cells(
    judged: Judgement, findings: Sequence[str], thresholds: Sequence[float]
) -> tuple[tuple[Cell, ...], ...]:
    key = f"{judged.document['options']['overlap']}_threshold"
    rows = [*judged.document["localization"], *judged.document["mean"]]
    known = {(row.get("finding", MEAN), row[key]): row for row in rows}

    def cell(finding: str, threshold: float) -> Cell:
        row = known.get((finding, threshold), {})
        values = (row.get(field) for field in Cell._fields)
        return Cell(*(float("nan") if value is None else float(value) for value in values))

    return tuple(tuple(cell(f, t) for f in (*findings, MEAN)) for t in thresholds)


def _best(cells: tuple[tuple[tuple[Cell, ...], ...], ...]) -> tuple[tuple[tuple[bool, ...], ...], ...]:
    acc = np.array([[[cell.acc for cell in row] for row in of_run] for of_run in cells])
    shown = np.vectorize(lambda value: float(number(value)) if value == value else -1.0)(acc)
    marked = (shown == shown.max(axis=0)) & (shown >= 0) & (len(cells) > 1)
    marked &= ~(shown == shown[0]).all(axis=0)  # where all are equal, none is best
    return tuple(tuple(tuple(row) for row in of_run) for of_run in marked.tolist())


def _notes(judged: Sequence[Judgement], findings: Sequence[str]) -> list[str]:
    notes = []
    for finding in findings:
        truths = [
            next((row["truths"] for row in j.document["localization"] if row["finding"] == finding), 0)
            for j in judged
        ]
        if len(set(truths)) > 1:
            told = ", ".join(f"{t} in {j.name}" for t, j in zip(truths, judged, strict=True))
            notes.append(f"The runs were not judged by the same boxes of {finding}: {told}.")
    without = [j.name for j in judged if j.walks is None]
    if len(judged) > 1 and without:
        notes.append(
            f"No paired differences with {', '.join(without)}: they need the run's folder, not its "
            "document."
        )
    return notes


def _all_differences(
    judged: Sequence[Judgement],
    reference: str,
    findings: Sequence[str],
    thresholds: Sequence[float],
) -> tuple[str | None, tuple[Difference, ...]]:
    first = next(j for j in judged if j.name == reference)
    others = [j for j in judged if j.walks is not None and j is not first]
    if first.walks is None or not others:
        return None, ()
    return reference, tuple(
        Difference(other.name, t, _differences(other, first, findings, t))
        for t in thresholds
        for other in others
    )


def _differences(
    other: Judgement, reference: Judgement, findings: Sequence[str], threshold: float
) -> tuple[metrics.AccDifference, ...]:
    options = reference.document["options"]
    sides = [_counts(side, findings, threshold) for side in (other, reference)]
    (names, counts), (own_names, own_counts) = sides
    if names != own_names or not np.array_equal(counts[0], own_counts[0]):
        raise ValueError(
            f"{other.name} and {reference.name} were not judged by the same boxes of the same images, "
            "so their differences cannot be paired; give documents of `cxr-fast evaluate --out` for a "
            "table without differences"
        )
    patients = None
    if options["resample"] == "patients":
        assert reference.walks is not None
        assert reference.walks.drawn_again is not None
        number = {name: i for i, name in enumerate(reference.walks.names)}
        patients = reference.walks.drawn_again[[number[name] for name in names]]
    found = []
    for chosen in (*([c] for c in range(len(findings))), range(len(findings))):
        images = counts[0, list(chosen)].any(axis=0)
        first, second = (
            metrics.ImageCounts(truths, hits, np.zeros_like(hits))  # false positives play no part
            for truths, hits in (
                side[:, list(chosen)].sum(axis=1)[:, images] for side in (counts, own_counts)
            )
        )
        found.append(
            metrics.acc_difference(
                first,
                second,
                clusters=None if patients is None else patients[images],
                resamples=options["resamples"],
                seed=options["seed"],
            )
        )
    return tuple(found)


def _counts(side: Judgement, findings: Sequence[str], threshold: float) -> tuple[list[str], np.ndarray]:
    """File names of the images with ground truth, sorted; truths and boxes found of them [2, C, I]."""
    judged, k = side.walks, side.document["options"]["overlap_thresholds"].index(threshold)
    assert judged is not None
    images = np.unique(np.concatenate([walk.truth_image for walk in judged.walks]))
    order = sorted(range(len(images)), key=lambda i: judged.names[images[i]])
    counts = np.zeros((2, len(findings), len(images)), dtype=np.int64)
    for c, finding in enumerate(findings):
        if finding not in judged.findings:
            continue
        own = judged.findings.index(finding)
        walk, bound = judged.walks[own], float(judged.bounds[own, k])
        found = first_hits(walk, threshold) < measured(walk, threshold, bound).taken
        row = np.searchsorted(images, walk.truth_image)
        counts[0, c] = np.bincount(row, minlength=len(images))
        counts[1, c] = np.bincount(row[found], minlength=len(images))
    return [judged.names[images[i]] for i in order], counts[..., order]
