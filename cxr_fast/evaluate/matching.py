"""Which images, findings and boxes a run and a table have in common, and what to say of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cxr_fast.archive.chestxray14 import Boxes, Labels
from cxr_fast.archive.findings import read_errors, run_settings
from cxr_fast.archive.run_columns import MapColumns
from cxr_fast.config import CHESTXRAY14_FINDINGS
from cxr_fast.evaluate.settings import EvaluationOptions, IntArray

_SIDE = 1024  # of the images that BBox_List_2017 was drawn on


class Truth(NamedTuple):
    """Ground truth that is judged by: numbers of images and findings, boxes."""

    image: IntArray
    group: IntArray
    boxes: npt.NDArray[np.float32]


def image_numbers(
    image_ids: Sequence[str],
    truth: Boxes,
    options: EvaluationOptions,
    boxes: str | Path,
    run: str | Path,
) -> dict[str, int]:
    """The number of each image_id in the order of the list B."""
    by_name: dict[str, str] = {}
    twice: set[str] = set()
    for image_id in image_ids:
        name = file_name(image_id)
        if by_name.setdefault(name, image_id) != image_id:
            twice.add(name)
    named = dict.fromkeys(truth.images)
    if ambiguous := [name for name in named if name in twice]:
        raise ValueError(
            f"{boxes} names the image {ambiguous[0]}, and the run in {run} has several files of that "
            "name; mine them as separate runs"
        )
    first = [by_name[name] for name in named if name in by_name]
    if not first:
        raise ValueError(
            f"no image of {boxes} was mined in {run}; give the box table of the same archive"
        )
    order = [*first, *image_ids] if options.image_order == "truth" else image_ids
    return {image_id: i for i, image_id in enumerate(dict.fromkeys(order))}


def judged_findings(
    truth: Boxes,
    by_name: dict[str, int],
    class_names: Sequence[str],
    options: EvaluationOptions,
    boxes: str | Path,
    notes: list[str],
) -> tuple[str, ...]:
    """The findings asked for, or those that the table names and the model knows, in its order."""
    pairs = zip(truth.images, truth.findings, strict=True)
    boxed = {finding for image, finding in pairs if image in by_name}
    named = tuple(name for name in (*class_names, *CHESTXRAY14_FINDINGS) if name in boxed)
    named = tuple(dict.fromkeys(named))
    if options.findings is not None:
        return options.findings
    unknown = [name for name in named if class_names and name not in class_names]
    if unknown:
        notes.append(f"Not judged, since the model does not know them: {', '.join(unknown)}.")
    known = tuple(name for name in named if name not in unknown)
    if not known:
        raise ValueError(
            f"{boxes} has boxes of {', '.join(named)}, but the model knows {', '.join(class_names)}; "
            "give a table of the model's findings"
        )
    return known


def known_truth(
    truth: Boxes, by_name: dict[str, int], findings: Sequence[str], notes: list[str]
) -> Truth:
    """The boxes that are judged by; ``notes`` takes a sentence about those on other images."""
    index = {name: i for i, name in enumerate(findings)}
    image = np.array([by_name.get(name, -1) for name in truth.images], dtype=np.int64)
    group = np.array([index.get(name, -1) for name in truth.findings], dtype=np.int64)
    if (elsewhere := int((image < 0).sum())) > 0:
        names = {name for name in truth.images if name not in by_name}
        notes.append(
            f"{elsewhere} of {len(image)} boxes are drawn on {len(names)} images that the run is not "
            "about; they were left out."
        )
    own = (image >= 0) & (group >= 0)
    return Truth(image[own], group[own], truth.boxes[own])


def patients(by_name: dict[str, int], images: int, table: Labels | None) -> IntArray:
    """The patient of each image number; an image that the table does not name is a patient alone."""
    if table is None:
        raise ValueError(
            "drawing whole patients needs the patient of each image: give a label table, or draw images"
        )
    patient = -1 - np.arange(images, dtype=np.int64)
    largest = abs(table.patients).max(initial=0)
    for name, number in zip(table.images, table.patients.tolist(), strict=True):
        if name in by_name:
            patient[by_name[name]] = number + largest  # never below 0
    if images and (patient < 0).all():
        raise ValueError(
            f"{table.path} names none of the run's images, so their patients are not known; give the "
            "label table of this archive, or draw images"
        )
    return patient


def notes_on_the_run(run: str | Path, numbers: dict[str, int], drawn: Truth) -> list[str]:
    """What a reader of the figures must know of how the run was made."""
    notes = []
    settings = run_settings(run)
    failed = [numbers[name] for name in read_errors(run)["image_id"].to_pylist() if name in numbers]
    if missed := int(np.isin(np.unique(drawn.image), failed).sum()):
        notes.append(f"{missed} images with boxes could not be read; their boxes count as missed.")
    if settings.get("classes", "all") != "all":
        notes.append("The run mined the classes of its label table only; other boxes count as missed.")
    if (least := settings.get("min_probability", 0)) > 0:
        notes.append(f"The run left out boxes of classes less probable than {least:g}.")
    return notes


def boxes_outside(drawn: Truth, maps: MapColumns | None, name_of: dict[int, str]) -> list[str]:
    """A table in other pixels than the images' is told by boxes that reach beyond them."""
    sizes = np.full((len(name_of), 2), float(_SIDE))
    if maps is not None:
        sizes[maps.image] = maps.image_size
    height, width = sizes[drawn.image].T
    x1, y1, x2, y2 = drawn.boxes.T
    outside = (x1 < -1) | (y1 < -1) | (x2 > width + 1) | (y2 > height + 1)  # a pixel for rounding
    if not outside.any():
        return []
    first = int(np.flatnonzero(outside)[0])
    corners = ", ".join(f"{value:.0f}" for value in drawn.boxes[first])
    known = "has" if maps is not None else "is taken to have"
    return [
        f"{int(outside.sum())} of {len(outside)} boxes reach beyond their image; the first is "
        f"({corners}) on {name_of[int(drawn.image[first])]}, which {known} {width[first]:.0f} x "
        f"{height[first]:.0f} pixels. Was the table drawn at another size?"
    ]


def file_name(image_id: str) -> str:
    """The last part of an image_id, which is what tables name."""
    return image_id.rpartition("/")[2]
