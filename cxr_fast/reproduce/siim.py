"""Real X-rays: two public data sets, and who of their patients trains, tunes and reports.

SIIM-FISABIO-RSNA COVID-19: ``images/``, ``labels.csv`` (image, patient, study_class, opacity,
ambiguous) and ``boxes.csv`` (image, x, y, w, h in pixels of the images). Kermany's X-rays of children,
to pre-train on: ``images/`` and ``labels.csv`` (image, patient, pneumonia, type).
Boxes are read for tuning and judging, never for training.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cxr_fast.archive.dataset import LabelledImages, split_by_patient
from cxr_fast.archive.resized import resize_images
from cxr_fast.reproduce.judging import Truth
from cxr_fast.training import Data

# What the networks learn to tell; the first is localised.
SIIM_CLASSES = ("opacity", "typical", "indeterminate", "atypical")
KERMANY_CLASSES = ("pneumonia", "bacteria", "virus")
_HELD_BACK = 0.25


class Archive(NamedTuple):
    """Names, labels [N, C] and patients [N] of the images of a folder."""

    folder: Path
    names: tuple[str, ...]
    labels: np.ndarray
    patients: np.ndarray


class Parts(NamedTuple):
    """Positions of the images to train on, to tune rules on, and to report on; patients do not mix."""

    train: np.ndarray
    tune: np.ndarray
    report: np.ndarray


def read_siim(folder: Path) -> Archive:
    """Images whose label is not ambiguous. Errors name file and line."""
    rows = [
        (line, row)
        for line, row in _rows(folder / "labels.csv", ("image", "patient", "study_class", "opacity"))
        if row.get("ambiguous", "0") != "1"
    ]
    labels = np.zeros((len(rows), len(SIIM_CLASSES)), np.float32)
    for position, (line, row) in enumerate(rows):
        if row["opacity"] not in ("0", "1") or row["study_class"] not in (
            "negative",
            *SIIM_CLASSES[1:],
        ):
            raise ValueError(
                f"{folder / 'labels.csv'}, line {line}: expected opacity 0 or 1 and a study_class out "
                f"of negative, {', '.join(SIIM_CLASSES[1:])}, got {row['opacity']!r} and "
                f"{row['study_class']!r}; mend the row"
            )
        labels[position, 0] = row["opacity"] == "1"
        labels[position, 1:] = [row["study_class"] == name for name in SIIM_CLASSES[1:]]
    return _archive(folder, rows, labels)


def read_kermany(folder: Path) -> Archive:
    """All images; errors name file and line."""
    rows = list(_rows(folder / "labels.csv", ("image", "patient", "pneumonia", "type")))
    for line, row in rows:
        if row["pneumonia"] not in ("0", "1") or row["type"] not in ("normal", "bacteria", "virus"):
            raise ValueError(
                f"{folder / 'labels.csv'}, line {line}: expected pneumonia 0 or 1 and a type out of "
                f"normal, bacteria, virus, got {row['pneumonia']!r} and {row['type']!r}; mend the row"
            )
    labels = np.array(
        [
            [row["pneumonia"] == "1", row["type"] == "bacteria", row["type"] == "virus"]
            for _, row in rows
        ],
        np.float32,
    )
    return _archive(folder, rows, labels)


def read_siim_boxes(folder: Path, archive: Archive, sizes: np.ndarray) -> Truth:
    """True boxes of the archive's images; those of images that were left out are left out, too.

    ValueError, with file and line, for a box without area, or outside its image.
    """
    order = {name: position for position, name in enumerate(archive.names)}
    images, boxes = [], []
    for line, row in _rows(folder / "boxes.csv", ("image", "x", "y", "w", "h")):
        if row["image"] not in order:
            continue
        position = order[row["image"]]
        try:
            x, y, w, h = (float(row[key]) for key in ("x", "y", "w", "h"))
        except ValueError:
            x = y = w = h = float("nan")
        height, width = sizes[position]
        if not (w > 0 and h > 0 and x > -1 and y > -1 and x + w < width + 1 and y + h < height + 1):
            raise ValueError(
                f"{folder / 'boxes.csv'}, line {line}: expected a box inside the image of {width:.0f} "
                f"x {height:.0f}, got {row}; mend or remove the row"
            )
        images.append(position)
        boxes.append((max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)))
    return Truth(
        np.array(images, np.int64),
        np.zeros(len(images), np.int64),
        np.array(boxes, np.float32).reshape(-1, 4),
        sizes,
    )


def divide(archive: Archive) -> Parts:
    """Three quarters of the patients to train on, an eighth each to tune and to report on."""
    train, held = split_by_patient(archive.patients, _HELD_BACK, seed=0)
    tune, report = split_by_patient(archive.patients[held], 0.5, seed=1)
    return Parts(train, held[tune], held[report])


def labelled(
    archive: Archive,
    rows: np.ndarray,
    size: int,
    cache: Path,
    threads: int,
    progress: Callable[[int, int], None] | None = None,
) -> LabelledImages:
    """Images of an archive, resized, with their labels."""
    names = tuple(archive.names[row] for row in rows)
    files = [archive.folder / "images" / name for name in names]
    images = resize_images(files, size, cache=cache, threads=threads, progress=progress)
    return LabelledImages(images, archive.labels[rows], archive.patients[rows], names)


def training_data(archive: Archive, parts: Parts, load: Callable[[Archive, np.ndarray], Any]) -> Data:
    """The training part, a tenth of its patients held back for validation; all of it may be mined."""
    ours, theirs = split_by_patient(archive.patients[parts.train], 0.1, seed=2)
    train, validation = load(archive, parts.train[ours]), load(archive, parts.train[theirs])
    return Data(train, validation, train)


def _archive(folder: Path, rows: list[tuple[int, dict[str, str]]], labels: np.ndarray) -> Archive:
    names: dict[str, int] = {}
    for line, row in rows:
        if row["image"] in names:
            raise ValueError(
                f"{folder / 'labels.csv'}, line {line}: expected one row an image, but "
                f"{row['image']!r} is on line {names[row['image']]} too; remove one of them"
            )
        names[row["image"]] = line
    patients = np.unique([row["patient"] for _, row in rows], return_inverse=True)[1]
    return Archive(folder, tuple(names), labels, patients.astype(np.int64))


def _rows(path: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; give the folder that holds it and images/")
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(
                f"{path}, line 1: expected a column {missing[0]!r}, got {reader.fieldnames}"
            )
        return [(reader.line_num, {k: v or "" for k, v in row.items() if k}) for row in reader]
