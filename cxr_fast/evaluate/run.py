"""Judging a run: its boxes and heatmaps by ground-truth boxes, its probabilities by labels.

Acc and AFP are the paper's (Sec. 3); what stands beside them is in ``cxr_fast.metrics``. Every figure
comes with a 95% interval. Nothing here judges a run that lacks what a metric needs: the metric is left
out, and a sentence says how to get it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cxr_fast import metrics
from cxr_fast.archive.chestxray14 import Labels
from cxr_fast.archive.findings import run_settings
from cxr_fast.archive.run_columns import MapColumns, heatmap_column
from cxr_fast.evaluate.matching import Truth
from cxr_fast.evaluate.settings import (
    AurocScores,
    Evaluation,
    EvaluationOptions,
    IntArray,
    MapMetric,
)
from cxr_fast.evaluate.walks import JudgedWalks, judge_walks
from cxr_fast.metrics.bootstrap import walk_intervals
from cxr_fast.metrics.localization import measured_table


def evaluate_run(
    run: str | Path,
    boxes: str | Path,
    labels: str | Path | None = None,
    options: EvaluationOptions | None = None,
) -> Evaluation:
    """Judge every class of a run against a box table in the layout of BBox_List_2017.

    Images are matched by file name. Truth in images that the run is not about is left out; images
    of the run without any finding, unreadable ones too, count as missed. ``labels``, a table in the
    layout of Data_Entry_2017, is for AUROC and for drawing whole patients.

    Raises RunFolderError if ``run`` holds none or is not finished, FileNotFoundError without a table,
    ValueError for a table that cannot be read or shares no image with the run, and for options that
    do not fit it.
    """
    chosen = options or EvaluationOptions()
    return evaluate_walks(run, judge_walks(run, boxes, labels, chosen), chosen)


def evaluate_walks(run: str | Path, judged: JudgedWalks, options: EvaluationOptions) -> Evaluation:
    """``evaluate_run`` from what ``judge_walks`` made of the same run and options."""
    thresholds = np.asarray(options.overlap_thresholds)
    rows = measured_table(judged.walks, judged.findings, thresholds, judged.bounds)
    intervals = walk_intervals(
        judged.walks, thresholds, judged.bounds, judged.images, judged.drawn_again,
        options.resamples, options.seed,
    )  # fmt: skip
    findings, class_names, numbers = judged.findings, judged.class_names, judged.numbers
    maps, clusters, notes = judged.maps, judged.patients, list(judged.notes)
    missing: dict[str, str] = {}
    auroc = _auroc(
        run, maps, findings, class_names, judged.by_name, len(numbers), judged.labels, clusters, notes,
        missing,
    )  # fmt: skip
    scores = _judge_maps(
        run, maps, judged.truth, findings, class_names, numbers, clusters, options, missing
    )
    return Evaluation(
        options, findings, rows, intervals, judged.bounds, auroc, scores, missing, notes, judged.model
    )


def _auroc(
    run: str | Path,
    maps: MapColumns | None,
    findings: Sequence[str],
    class_names: Sequence[str],
    by_name: dict[str, int],
    images: int,
    table: Labels | None,
    clusters: IntArray | None,
    notes: list[str],
    missing: dict[str, str],
) -> AurocScores | None:
    settings = run_settings(run)
    if table is None:
        missing["auroc"] = "AUROC needs image labels: give --labels Data_Entry_2017.csv."
    elif maps is None:
        missing["auroc"] = (
            "AUROC needs the probability of every class and image, which this run did not keep: mine "
            "again, into a new folder."
        )
    elif settings.get("classes", "all") != "all":
        missing["auroc"] = (
            "AUROC needs the probability of every class of every image, but the run mined those of its "
            "label table only: mine with --classes all, into a new folder."
        )
    if table is None or maps is None or "auroc" in missing:
        return None
    columns = tuple(dict.fromkeys((*findings, *class_names)))
    number = {name: i for i, name in enumerate(columns)}
    scores = np.full((images, len(columns)), np.nan)
    scores[maps.image, maps.class_index] = maps.probability
    own = [number[name] for name in class_names]
    listed = np.array([by_name.get(name, -1) for name in table.images], dtype=np.int64)
    row = np.flatnonzero(listed >= 0)
    scores = scores[listed[row]][:, own]
    scored = ~np.isnan(scores).any(axis=1)
    if not scored.any():
        missing["auroc"] = "AUROC: the label table names no image that the run has mined."
        return None
    if (rest := images - int(scored.sum())) > 0:
        notes.append(f"AUROC leaves out {rest} images of the run that have no labels or no maps.")
    matrix = table.matrix[row[scored]][:, [table.findings.index(name) for name in class_names]]
    drawn = None if clusters is None else clusters[listed[row[scored]]]
    interval = metrics.auroc_interval(scores[scored], matrix, drawn)
    positives = matrix.sum(axis=0, dtype=np.int64)
    return AurocScores(tuple(class_names), interval, positives, int(scored.sum()))


def _judge_maps(
    run: str | Path,
    maps: MapColumns | None,
    drawn: Truth,
    findings: tuple[str, ...],
    class_names: Sequence[str],
    numbers: dict[str, int],
    clusters: IntArray | None,
    options: EvaluationOptions,
    missing: dict[str, str],
) -> dict[MapMetric, metrics.MapScores]:
    """Pointing game, mean IoU and pixel AUC, as far as the run has what they need."""
    if maps is None:
        missing["pointing_game"] = (
            "The pointing game, mean IoU and pixel AUC need heatmaps, of which this run kept nothing: "
            "mine again, into a new folder (with --heatmaps for the latter two)."
        )
        return {}
    count = max(len(findings), 1)
    judged = np.unique(drawn.image * count + drawn.group)
    own = np.flatnonzero(
        (maps.class_index < len(findings)) & np.isin(maps.image * count + maps.class_index, judged)
    )
    image, group = maps.image[own], maps.class_index[own]
    truth = (drawn.image, drawn.group, drawn.boxes)
    common = {"resamples": options.resamples, "seed": options.seed}
    scores: dict[MapMetric, metrics.MapScores] = {
        "pointing_game": metrics.pointing_game(
            maps.peak[own], image, group, *truth, findings=findings, clusters=clusters, **common
        )
    }
    columns = tuple(dict.fromkeys((*findings, *class_names)))
    heatmaps = heatmap_column(run, numbers, columns, own)
    if heatmaps is None:
        missing["map_iou"] = (
            "Mean IoU and pixel AUC need the heatmaps themselves: mine with --heatmaps, into a new "
            "folder."
        )
        return scores
    arguments = (heatmaps, image, group, maps.image_size[own], *truth)
    scores["map_iou"] = metrics.map_iou(
        *arguments,
        findings=findings,
        heatmap_threshold=options.heatmap_threshold * 255,
        clusters=clusters,
        **common,
    )
    scores["pixel_auc"] = metrics.pixel_auc(*arguments, findings=findings, clusters=clusters, **common)
    return scores
