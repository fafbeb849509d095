"""Judging a run: its boxes and heatmaps by ground-truth boxes, its probabilities by labels.

Acc and AFP are the paper's (Sec. 3); what stands beside them is in ``cxr_fast.metrics``. Every figure
comes with a 95% interval. Nothing here judges a run that lacks what a metric needs: the metric is left
out, and a sentence says how to get it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cxr_fast import metrics
from cxr_fast.archive.chestxray14 import Labels, read_boxes, read_labels
from cxr_fast.archive.findings import (
    RunFolderError,
    missing_shards,
    read_images,
    run_class_names,
    run_settings,
)
from cxr_fast.archive.run_columns import (
    BoxColumns,
    MapColumns,
    box_columns,
    heatmap_column,
    map_columns,
)
from cxr_fast.config import CHESTXRAY14_FINDINGS
from cxr_fast.evaluate.bounds import afp_bounds
from cxr_fast.evaluate.matching import (
    Truth,
    boxes_outside,
    file_name,
    image_numbers,
    judged_findings,
    known_truth,
    notes_on_the_run,
    patients,
)
from cxr_fast.evaluate.settings import (
    AurocScores,
    Evaluation,
    EvaluationOptions,
    IntArray,
    MapMetric,
)
from cxr_fast.metrics.bootstrap import walk_intervals
from cxr_fast.metrics.localization import measured_table, table_walks


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
    images = read_images(run)
    if unmined := missing_shards(run):
        raise RunFolderError(
            f"{run} is not finished, {unmined} of its shards are still to be mined; give the same mine "
            "command again, then judge it"
        )
    class_names = run_class_names(run)
    known_names = tuple(dict.fromkeys((*class_names, *CHESTXRAY14_FINDINGS)))
    truth = read_boxes(boxes, findings=known_names)
    table = read_labels(labels, findings=known_names) if labels else None
    notes: list[str] = []
    numbers = image_numbers(images, truth, chosen, boxes, run)
    by_name = {file_name(image_id): number for image_id, number in numbers.items()}
    findings = judged_findings(truth, by_name, class_names, chosen, boxes, notes)
    drawn = known_truth(truth, by_name, findings, notes)
    clusters = patients(by_name, len(numbers), table) if chosen.resample == "patients" else None
    wanted = np.ones((len(numbers), len(findings)), dtype=np.bool_)
    if chosen.afp_images != "all":  # the boxes of most images of an archive are nobody's business
        wanted[:] = False
        wanted[drawn.image, drawn.group if chosen.afp_images == "class" else slice(None)] = True
    mined = box_columns(run, numbers, findings, wanted)
    maps = map_columns(run, numbers, tuple(dict.fromkeys((*findings, *class_names))))
    notes += notes_on_the_run(run, numbers, drawn)
    notes += boxes_outside(drawn, maps, {number: name for name, number in numbers.items()})

    bounds = afp_bounds(chosen.afp_bounds, findings, chosen.overlap_thresholds, notes)
    rows, intervals = _localize(mined, drawn, findings, bounds, len(numbers), clusters, chosen)
    missing: dict[str, str] = {}
    auroc = _auroc(
        run, maps, findings, class_names, by_name, len(numbers), table, clusters, notes, missing
    )
    scores = _judge_maps(run, maps, drawn, findings, class_names, numbers, clusters, chosen, missing)
    return Evaluation(chosen, findings, rows, intervals, bounds, auroc, scores, missing, notes)


def _localize(
    mined: BoxColumns,
    drawn: Truth,
    findings: Sequence[str],
    bounds: npt.NDArray[np.float64],
    images: int,
    clusters: IntArray | None,
    options: EvaluationOptions,
) -> tuple[list[metrics.LocalizationRow], metrics.LocalizationIntervals]:
    kind: metrics.Images = "class" if options.afp_images == "class" else "all"
    denominator = None
    image, drawn_image = mined.image, drawn.image
    if kind == "all":
        scope = np.unique(drawn.image) if options.afp_images == "boxed" else np.arange(images)
        denominator = options.afp_denominator or len(scope)
        if denominator < len(scope):
            raise ValueError(
                f"expected an AFP denominator of at least the {len(scope)} images that boxes are "
                f"counted on, got {denominator}; count on fewer images (AFP images 'boxed'), or "
                "evaluate a run over those images"
            )
        # Numbered within the scope, in the same order; each on its own where no patients are drawn.
        image, drawn_image = np.searchsorted(scope, image), np.searchsorted(scope, drawn_image)
        clusters = np.arange(len(scope)) if clusters is None else clusters[scope]
    walks = table_walks(
        image, mined.rank, mined.class_index, mined.boxes,
        drawn_image, drawn.group, drawn.boxes,
        findings=findings, overlap=options.overlap, images=kind, all_images=denominator,
    )  # fmt: skip
    thresholds = np.asarray(options.overlap_thresholds)
    intervals = walk_intervals(
        walks, thresholds, bounds, kind, clusters, options.resamples, options.seed
    )
    return measured_table(walks, findings, thresholds, bounds), intervals


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
