"""The steps of named images of a run: mined again, by the run's model and in its precision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cxr_fast.archive.batches import Batch, RunOptions, read_batch
from cxr_fast.archive.chestxray14 import read_boxes
from cxr_fast.archive.command import batch_miners
from cxr_fast.archive.findings import read_images, run_class_names, run_settings
from cxr_fast.archive.images import ImageList, list_images, read_image
from cxr_fast.archive.overlays import MinedClass, Truth, mined_class, truths_by_name
from cxr_fast.archive.run_columns import box_columns
from cxr_fast.archive.stages import Stages
from cxr_fast.config import CHESTXRAY14_FINDINGS
from cxr_fast.evaluate.matching import file_name
from cxr_fast.figures.steps import StepsRow
from cxr_fast.model_files import model_digest, model_path
from cxr_fast.rows import BatchMiner, MinedBatch

# Pixels that an edge may lie beside the run's own before a reader is told.
_TOLERANCE = 0.5
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def mined_rows(
    run: str | Path,
    images: str,
    model: str,
    named: Sequence[tuple[str, str]],
    truth: str | Path | None = None,
    other_model: bool = False,
    precision: str | None = None,
    device: str = "auto",
) -> tuple[list[StepsRow], list[str]]:
    """A row for each of ``named``, pairs of an image and a class, and sentences on what to know.

    Images are named by their ids in the run, or by file name where it has one of that name only.
    ``images`` is where the run found them, ``truth`` a box table in the layout of BBox_List_2017.
    ``precision`` is the run's unless given.

    Raises RunFolderError without a run; FileNotFoundError without the model's file; ValueError for an
    image or a class that the run has not, for a model that is not the run's (unless ``other_model``),
    and for an image that cannot be read; and what loading a model, listing images and reading a table
    raise.
    """
    settings, class_names = run_settings(run), run_class_names(run)
    ids = _ids_of([image for image, _ in named], read_images(run), run)
    for _, finding in named:
        if finding not in class_names:
            raise ValueError(
                f"the run in {run} has no class {finding!r}; name one of {', '.join(class_names)}"
            )
    own = _is_the_runs(model, settings.get("model", {}).get("sha256", ""), run)
    if not own and not other_model:
        raise ValueError(
            f"--model {model} is not the model of the run in {run} (their SHA-256 differ); give the "
            "run's own, or --other-model to draw what this one sees"
        )
    listed = list_images(images)
    places = {image_id: place for place, image_id in enumerate(listed.image_ids)}
    if missing := [image_id for image_id in ids if image_id not in places]:
        raise ValueError(f"{images} has no image {missing[0]}; give what the run was mined from")
    truths = _truths(truth, class_names)
    miner = batch_miners(model, precision or settings.get("precision", "auto"), device)[0]
    known = miner.network.class_names
    if absent := [finding for _, finding in named if finding not in known]:
        raise ValueError(f"{model} knows no class {absent[0]!r}; name one of {', '.join(known)}")
    options = RunOptions(batch_size=settings.get("batch_size", RunOptions.batch_size))
    rows: list[StepsRow] = []
    notes: list[str] = []
    mined: dict[str, MinedBatch] = {}
    for image_id, (_, finding) in zip(ids, named, strict=True):
        if image_id not in mined:
            mined[image_id] = _mined(miner, listed, places[image_id], options)
        index, batch = known.index(finding), mined[image_id]
        drawn = mined_class(finding, float(batch.probability[0, index]), batch.details(), 0, index)
        true = [box for box in truths.get(file_name(image_id), ()) if box.finding == finding]
        letter = f"({_LETTERS[len(rows)]}) " if 1 < len(named) <= len(_LETTERS) else ""
        caption = f"{letter}{finding}, probability {drawn.probability:.2f}"
        rows.append(StepsRow(caption, read_image(listed.read(places[image_id])), drawn, true))
        if own:
            notes += _differing(run, image_id, drawn)
    if not own:
        notes.append("Drawn is what another model than the run's sees.")
    return rows, notes


def _ids_of(named: Sequence[str], image_ids: Sequence[str], run: str | Path) -> list[str]:
    by_name: dict[str, list[str]] = {}
    for image_id in image_ids:
        by_name.setdefault(file_name(image_id), []).append(image_id)
    whole, ids = set(image_ids), []
    for name in named:
        found = [name] if name in whole else by_name.get(name, [])
        if len(found) != 1:
            what = "no image" if not found else f"{len(found)} images of the name"
            raise ValueError(
                f"the run in {run} has {what} {name!r}; name an image_id of its images.parquet"
            )
        ids += found
    return ids


def _is_the_runs(model: str, recorded: str, run: str | Path) -> bool:
    if not model_path(model).is_file():
        raise FileNotFoundError(
            f"--model must be a model's file or 'demo', but {model_path(model)} is not a file; give "
            f"the one that {run} was mined by"
        )
    return model_digest(model) == recorded


def _truths(table: str | Path | None, class_names: Sequence[str]) -> dict[str, list[Truth]]:
    if table is None:
        return {}
    boxes = read_boxes(table, findings=tuple(dict.fromkeys((*class_names, *CHESTXRAY14_FINDINGS))))
    return dict(truths_by_name(boxes.images, boxes.findings, boxes.boxes))


def _mined(miner: BatchMiner, images: ImageList, place: int, options: RunOptions) -> MinedBatch:
    """One image, in a batch as large as the run's."""
    empty = miner.empty(options.batch_size)
    readings = read_batch(images, Batch(0, place, place + 1), empty, options, Stages())
    if readings.errors:
        name, reason = readings.errors[0]
        raise ValueError(f"{name} cannot be read: {reason}; draw another image")
    mined = miner.mine_batch(readings.images, readings.sizes, False)
    if not mined.finite[0]:
        raise ValueError(
            f"the network's output is not finite for {images.image_ids[place]}; try --precision float32"
        )
    return mined


def _differing(run: str | Path, image_id: str, drawn: MinedClass) -> list[str]:
    """A sentence where the boxes are not those that the run keeps of the image and class."""
    kept = box_columns(run, {image_id: 0}, (drawn.name,))
    boxes: NDArray[np.float32] = kept.boxes[np.argsort(kept.rank)]
    if not len(boxes):  # the run left the class out, or found nothing
        return []
    if boxes.shape == drawn.boxes.shape and (abs(boxes - drawn.boxes) <= _TOLERANCE).all():
        return []
    return [
        f"The boxes of {drawn.name} in {image_id} are not those of the run: another device or library "
        "computed them, or the image is another."
    ]
