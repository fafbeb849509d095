"""A run and a box table brought together: the list B of every finding, and all that judging needs."""

from __future__ import annotations

from dataclasses import dataclass
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
from cxr_fast.archive.run_columns import MapColumns, box_columns, map_columns
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
from cxr_fast.evaluate.settings import EvaluationOptions, IntArray
from cxr_fast.metrics.localization import Walk, table_walks


@dataclass(frozen=True)
class JudgedWalks:
    """The walk of each finding, and what was matched on the way to it.

    ``walks`` number images from 0; ``names`` has the file name of each number, ``drawn_again`` [N] what
    the bootstrap draws for it (None: each image by itself), and ``images`` says what AFP is divided by.
    ``bounds`` [C, K] of AFP are infinite where there is none. ``numbers``, ``by_name``, ``truth``,
    ``maps`` and ``patients`` [N] number all images of the run.
    ``model`` is the SHA-256 of the model that mined, empty where the run does not say.
    """

    findings: tuple[str, ...]
    walks: list[Walk]
    bounds: npt.NDArray[np.float64]  # [C, K] of AFP, infinity without
    images: metrics.Images
    names: tuple[str, ...]
    drawn_again: IntArray | None
    model: str
    notes: tuple[str, ...]
    class_names: tuple[str, ...]
    numbers: dict[str, int]
    by_name: dict[str, int]
    truth: Truth
    labels: Labels | None
    maps: MapColumns | None
    patients: IntArray | None


def judge_walks(
    run: str | Path, boxes: str | Path, labels: str | Path | None, options: EvaluationOptions
) -> JudgedWalks:
    """Read a run and its tables, and walk its boxes; arguments and errors of ``evaluate_run``."""
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
    numbers = image_numbers(images, truth, options, boxes, run)
    by_name = {file_name(image_id): number for image_id, number in numbers.items()}
    findings = judged_findings(truth, by_name, class_names, options, boxes, notes)
    drawn = known_truth(truth, by_name, findings, notes)
    of_patients = patients(by_name, len(numbers), table) if options.resample == "patients" else None
    wanted = np.ones((len(numbers), len(findings)), dtype=np.bool_)
    if options.afp_images != "all":  # the boxes of most images of an archive are nobody's business
        wanted[:] = False
        wanted[drawn.image, drawn.group if options.afp_images == "class" else slice(None)] = True
    mined = box_columns(run, numbers, findings, wanted)
    maps = map_columns(run, numbers, tuple(dict.fromkeys((*findings, *class_names))))
    notes += notes_on_the_run(run, numbers, drawn)
    notes += boxes_outside(drawn, maps, {number: name for name, number in numbers.items()})
    bounds = afp_bounds(options.afp_bounds, findings, options.overlap_thresholds, notes)

    kind: metrics.Images = "class" if options.afp_images == "class" else "all"
    denominator, drawn_again = None, of_patients
    image, drawn_image = mined.image, drawn.image
    names = [file_name(image_id) for image_id in numbers]
    if kind == "all":
        count = len(numbers)
        scope = np.unique(drawn.image) if options.afp_images == "boxed" else np.arange(count)
        denominator = options.afp_denominator or len(scope)
        if denominator < len(scope):
            raise ValueError(
                f"expected an AFP denominator of at least the {len(scope)} images that boxes are "
                f"counted on, got {denominator}; count on fewer images (AFP images 'boxed'), or "
                "evaluate a run over those images"
            )
        # Numbered within the scope, in the same order; each on its own where no patients are drawn.
        image, drawn_image = np.searchsorted(scope, image), np.searchsorted(scope, drawn_image)
        drawn_again = np.arange(len(scope)) if of_patients is None else of_patients[scope]
        names = [names[number] for number in scope.tolist()]
    walks = table_walks(
        image, mined.rank, mined.class_index, mined.boxes,
        drawn_image, drawn.group, drawn.boxes,
        findings=findings, overlap=options.overlap, images=kind, all_images=denominator,
    )  # fmt: skip
    model = str(run_settings(run).get("model", {}).get("sha256", ""))
    return JudgedWalks(
        findings, walks, bounds, kind, tuple(names), drawn_again, model, tuple(notes),
        class_names, numbers, by_name, drawn, table, maps, of_patients,
    )  # fmt: skip
