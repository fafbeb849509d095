"""From judged cells to a table's figures: Acc and AFP with intervals, answers, floors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from cxr_fast import metrics
from cxr_fast.paper import TABLE2
from cxr_fast.reproduce.cells import Judged
from cxr_fast.reproduce.judging import Detections, Truth, random_boxes, scattered
from cxr_fast.reproduce.tables import Question, Table

# Draws of random boxes that a floor is averaged over.
_DRAWS = 50
_RESAMPLES = 2000


def summarise(
    tables: Mapping[int, Table],
    cells: Mapping[int, Mapping[str, Judged]],
    truth: Truth,
    labels: np.ndarray,
    patients: np.ndarray,
    findings: Sequence[str],
    published_bounds: bool,
) -> dict[str, Any]:
    """All figures of a table, as JSON values.

    ``tables`` and ``cells`` by seed, the cells by name of their row; ``labels`` [N, C] and ``patients``
    [N] of the judged images; patients are resampled whole. With ``published_bounds`` AFP is bounded by
    Wang's published values, else by what the first row reaches here.
    """
    table = next(iter(tables.values()))
    iou = table.iou_thresholds
    bounds = {seed: _bounds(table, cells[seed], truth, findings, published_bounds) for seed in tables}
    rows = []
    for row in table.rows:
        runs = [cells[seed][row.name] for seed in tables]
        measured = [
            localised(run.detections, truth, findings, iou, bounds[seed])
            for seed, run in zip(tables, runs, strict=True)
        ]
        entry: dict[str, Any] = {"name": row.name, "published": row.published}
        for name in ("acc", "afp"):
            values = np.array([[getattr(r.result, name) for r in m] for m in measured])
            entry[name] = values.reshape(len(runs), len(findings), len(iou)).tolist()
        entry["interval"] = intervals(runs, truth, findings, iou, list(bounds.values()), patients)
        for name in ("auroc", "pointing", "pixel_auc"):
            entry[name] = [getattr(run, name).tolist() for run in runs]
        rows.append(entry)
    answers = [_answer(q, cells, truth, findings, iou, bounds, patients) for q in table.questions]
    first = min(cells)
    return {
        "seeds": list(tables),
        "findings": list(findings),
        "iou_thresholds": list(iou),
        "boxes": np.bincount(truth.classes, minlength=len(findings)).tolist(),
        "afp_bounds": None if bounds[first] is None else np.array(list(bounds.values())).tolist(),
        "rows": rows,
        "floors": {
            row.name: scattered_floor(
                [run[row.name].detections for run in cells.values()],
                truth,
                findings,
                iou,
                [bounds[seed] for seed in cells],
            )
            for row in table.rows
        },
        "best_box": {
            row.name: _best_box([run[row.name] for run in cells.values()], truth, findings, iou)
            for row in table.rows
        },
        "random_floor": floor(partial(random_boxes, truth, labels), truth, findings, iou),
        "answers": answers,
    }


def localised(
    found: Detections,
    truth: Truth,
    findings: Sequence[str],
    iou: Sequence[float],
    bounds: np.ndarray | None = None,
) -> list[metrics.LocalizationRow]:
    """Acc and AFP of each finding and T(IoU), AFP below ``bounds`` [C, K] where there are any."""
    return metrics.localization_table(
        found.images, found.ranks, found.classes, found.boxes,
        truth.images, truth.classes, truth.boxes,
        findings=findings, overlap_thresholds=iou, afp_bounds=bounds,
    )  # fmt: skip


def _bounds(
    table: Table,
    cells: Mapping[str, Judged],
    truth: Truth,
    findings: Sequence[str],
    published: bool,
) -> np.ndarray | None:
    """AFP [C, K] that no method of a seed may exceed: the reference's of that seed, just reached."""
    if not table.bounded:
        return None
    if published:
        published_afp = [
            [TABLE2[t]["ref."][name].afp for t in table.iou_thresholds] for name in findings
        ]
        return np.array(published_afp)
    reference = cells[table.rows[0].name].detections
    rows = localised(reference, truth, findings, table.iou_thresholds)
    afp = np.array([row.result.afp for row in rows])
    # A prefix stays strictly below its bound, and the reference is to fit under its own.
    bounds: np.ndarray = np.nextafter(afp, np.inf).reshape(len(findings), -1)
    return bounds


def intervals(
    runs: Sequence[Judged],
    truth: Truth,
    findings: Sequence[str],
    iou: Sequence[float],
    bounds: Sequence[np.ndarray | None],
    patients: np.ndarray,
) -> dict[str, Any]:
    """Intervals of Acc over patients: the mean of each run's, which is wider than that of the mean.

    ``bounds`` of AFP [C, K], one a run or None, stay where they are in all resamples.
    """
    ends = [
        metrics.localization_intervals(
            run.detections.images, run.detections.ranks, run.detections.classes, run.detections.boxes,
            truth.images, truth.classes, truth.boxes,
            findings=findings, overlap_thresholds=iou, afp_bounds=bound, clusters=patients,
            resamples=_RESAMPLES,
        )
        for run, bound in zip(runs, bounds, strict=True)
    ]  # fmt: skip
    return {
        "acc": np.mean([e.acc for e in ends], 0).tolist(),
        "mean_acc": np.mean([e.mean_acc for e in ends], 0).tolist(),
    }


def _answer(
    question: Question,
    cells: Mapping[int, Mapping[str, Judged]],
    truth: Truth,
    findings: Sequence[str],
    iou: Sequence[float],
    bounds: Mapping[int, np.ndarray | None],
    patients: np.ndarray,
) -> dict[str, Any]:
    """Acc of one row minus Acc of another, by finding and over all boxes, with paired intervals.

    Under a bound of AFP the lists are cut where the whole sample reaches it, in all resamples.
    """
    sides = [[run[name] for run in cells.values()] for name in (question.first, question.second)]
    found = [
        [
            [
                _within_bound(run[name].detections, truth, findings, iou, bounds[seed], k)
                for seed, run in cells.items()
            ]
            for name in (question.first, question.second)
        ]
        for k in range(len(iou))
    ]
    entry: dict[str, Any] = {"text": question.text, "differences": {}}
    for name, chosen in [
        *((f, [i]) for i, f in enumerate(findings)),
        ("all boxes", range(len(findings))),
    ]:
        entry["differences"][name] = [
            list(difference(found[k], truth, list(chosen), threshold, patients))
            for k, threshold in enumerate(iou)
        ]
    ranking = [np.nanmean([run.auroc for run in side]) for side in sides]
    entry["auroc"] = ranking[0] - ranking[1]
    return entry


def _within_bound(
    found: Detections,
    truth: Truth,
    findings: Sequence[str],
    iou: Sequence[float],
    bounds: np.ndarray | None,
    k: int,
) -> Detections:
    """The boxes taken at T(IoU) ``iou[k]``: of each finding the longest list below its bound."""
    if bounds is None:
        return found
    rows = localised(found, truth, findings, iou[k : k + 1], bounds[:, k : k + 1])
    kept = []
    for c, row in enumerate(rows):
        own = (found.classes == c) & np.isin(found.images, truth.images[truth.classes == c])
        places = np.flatnonzero(own)
        order = np.lexsort((found.images[places], found.ranks[places]))
        kept.append(places[order][: row.result.taken])
    taken = np.concatenate(kept)
    return Detections(found.images[taken], found.ranks[taken], found.classes[taken], found.boxes[taken])


def difference(
    sides: Sequence[Sequence[Detections]],
    truth: Truth,
    classes: list[int],
    iou_threshold: float,
    patients: np.ndarray,
) -> metrics.AccDifference:
    """Acc of the first side's runs minus that of the second's, over the boxes of ``classes``."""
    first, second = ([_counts(run, truth, classes, iou_threshold) for run in side] for side in sides)
    images = np.unique(truth.images[np.isin(truth.classes, classes)])
    return metrics.acc_difference(first, second, clusters=patients[images], resamples=_RESAMPLES)


def _counts(
    found: Detections, truth: Truth, classes: list[int], iou_threshold: float
) -> metrics.ImageCounts:
    """Counts of each image that has a true box of the classes, summed over them."""
    images = np.unique(truth.images[np.isin(truth.classes, classes)])
    total = np.zeros((3, len(images)), np.int64)
    for index in classes:
        own, drawn = found.classes == index, truth.classes == index
        total += metrics.image_counts(
            found.images[own], found.ranks[own], found.boxes[own],
            truth.images[drawn], truth.boxes[drawn],
            overlap_threshold=iou_threshold, considered=images,
        )  # fmt: skip
    return metrics.ImageCounts(*total)


def floor(
    draw: Callable[[np.random.Generator], Detections],
    truth: Truth,
    findings: Sequence[str],
    iou: Sequence[float],
    bounds: np.ndarray | None = None,
) -> list[list[float]]:
    """Mean Acc [C][K] of boxes that ``draw`` puts at random places."""
    rng = np.random.default_rng(0)
    drawn = [
        [row.result.acc for row in localised(draw(rng), truth, findings, iou, bounds)]
        for _ in range(_DRAWS)
    ]
    return np.mean(drawn, 0).reshape(len(findings), len(iou)).tolist()  # type: ignore[no-any-return]


def scattered_floor(
    runs: Sequence[Detections],
    truth: Truth,
    findings: Sequence[str],
    iou: Sequence[float],
    bounds: Sequence[np.ndarray | None],
) -> list[list[float]]:
    """Acc [C][K] of each run's boxes at random places of their images, the mean over the runs."""
    floors = [
        floor(partial(scattered, found, truth.sizes), truth, findings, iou, bound)
        for found, bound in zip(runs, bounds, strict=True)
    ]
    return np.mean(floors, 0).tolist()  # type: ignore[no-any-return]


def _best_box(
    runs: Sequence[Judged], truth: Truth, findings: Sequence[str], iou: Sequence[float]
) -> dict[str, list[list[float]]]:
    """Acc [C][K] of each image's first box alone, and of the same boxes at random places."""
    best = [
        Detections(*(column[run.detections.ranks == 1] for column in run.detections)) for run in runs
    ]
    acc = [[row.result.acc for row in localised(found, truth, findings, iou)] for found in best]
    return {
        "acc": np.mean(acc, 0).reshape(len(findings), len(iou)).tolist(),
        "floor": scattered_floor(best, truth, findings, iou, [None] * len(best)),
    }
