"""One pass over a run's tables: totals of everything, and the findings that are shown.

A run may have a thousand times as many findings as anybody looks at. Totals count them all; shown are
the most probable of each class, or those of images drawn at random. Memory holds what is shown, and one
part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cxr_fast.archive.convert.boxes import FinishedShards, beside, image_sizes
from cxr_fast.archive.findings import RunFolderError
from cxr_fast.archive.run_columns import IntArray, coded
from cxr_fast.archive.schemas import FINDINGS_SCHEMA

Choice = Literal["probable", "random"]
FloatArray = npt.NDArray[np.float64]

SCORE_BINS = 20
# Percent of the image's area; a nodule is about 0.5, a heart 17.
SIZE_EDGES = tuple(float(edge) for edge in np.geomspace(0.05, 100, 21).round(4))
POSITION_CELLS = 32
_EDGES = ("x1", "y1", "x2", "y2")


@dataclass
class Totals:
    """Of all findings of C classes: counts, sums, histograms, and how often a cell lies in a box.

    ``position`` [C, 32, 32] over images stretched to a square; ``images`` counts pairs of an image and
    the class, each once, and so does ``probability``, their sum.
    """

    classes: int
    findings: IntArray = field(init=False)
    images: IntArray = field(init=False)
    score: FloatArray = field(init=False)
    probability: FloatArray = field(init=False)
    scores: IntArray = field(init=False)
    sizes: IntArray = field(init=False)
    position: IntArray = field(init=False)

    def __post_init__(self) -> None:
        c = self.classes
        self.findings, self.images = np.zeros(c, np.int64), np.zeros(c, np.int64)
        self.score, self.probability = np.zeros(c), np.zeros(c)
        self.scores = np.zeros((c, SCORE_BINS), np.int64)
        self.sizes = np.zeros((c, len(SIZE_EDGES) - 1), np.int64)
        self.position = np.zeros((c, POSITION_CELLS, POSITION_CELLS), np.int64)

    def add(self, rows: Rows) -> None:
        """Count one part."""
        c = self.classes
        first = rows.rank == 1
        self.findings += np.bincount(rows.class_index, minlength=c)
        self.images += np.bincount(rows.class_index[first], minlength=c)
        self.score += np.bincount(rows.class_index, rows.score, minlength=c)
        self.probability += np.bincount(rows.class_index[first], rows.probability[first], minlength=c)
        score_bin = np.clip((rows.score * SCORE_BINS).astype(np.int64), 0, SCORE_BINS - 1)
        np.add.at(self.scores, (rows.class_index, score_bin), 1)
        size_bin = np.searchsorted(SIZE_EDGES, rows.percent, "right") - 1
        np.add.at(self.sizes, (rows.class_index, np.clip(size_bin, 0, len(SIZE_EDGES) - 2)), 1)
        self._add_positions(rows)

    def _add_positions(self, rows: Rows) -> None:
        """Count cells by the corners of boxes: a summed-area table turned around."""
        cells = POSITION_CELLS
        side = rows.image_size[:, ::-1] / cells  # of a cell, x and y
        # A cell lies in a box where its centre does.
        low, high = (
            np.ceil(corner / side - 0.5).astype(np.int64).clip(0, cells)
            for corner in (rows.boxes[:, :2], rows.boxes[:, 2:])
        )
        corners = np.zeros((self.classes, cells + 1, cells + 1), np.int64)
        for x, x_sign in ((low[:, 0], 1), (high[:, 0], -1)):
            for y, y_sign in ((low[:, 1], 1), (high[:, 1], -1)):
                np.add.at(corners, (rows.class_index, y, x), x_sign * y_sign)
        self.position += corners.cumsum(1).cumsum(2)[:, :cells, :cells]


class Rows(NamedTuple):
    """Findings: ``image_ids``; ``class_index`` and ``rank`` int64 [M]; ``boxes`` float32 [M, 4] in
    original pixels; ``score`` and ``probability`` float32 [M]; ``image_size`` float64 [M, 2], height
    and width; ``place`` int64 [M], their number in the run; ``part`` int64 [M], that of their part.
    """

    image_ids: pa.Array
    class_index: IntArray
    rank: IntArray
    boxes: npt.NDArray[np.float32]
    score: npt.NDArray[np.float32]
    probability: npt.NDArray[np.float32]
    image_size: FloatArray
    place: IntArray
    part: IntArray

    @property
    def percent(self) -> FloatArray:
        """The box's area in percent of the image's."""
        area = np.prod(self.boxes[:, 2:].astype(np.float64) - self.boxes[:, :2], axis=1)
        percent: FloatArray = 100 * area / np.maximum(self.image_size.prod(1), 1)
        return percent

    def take(self, rows: npt.NDArray[Any]) -> Rows:
        """Some of them, in that order."""
        return Rows(self.image_ids.take(pa.array(rows)), *(part[rows] for part in self[1:]))


def survey(
    shards: FinishedShards,
    most: int,
    choose: Choice,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Totals, Rows]:
    """Totals of a run, and at most ``most`` of its findings, in the run's order.

    ``probable``: the most probable of each class, as many of each; what a class with few leaves free
    goes to the others. ``random``: all those of images, in an order that hangs on nothing but the
    image_id. ``progress`` is told parts done and all.
    Raises RunFolderError where findings and maps of the run do not belong together.
    """
    totals = Totals(len(shards.class_names))
    chosen: list[tuple[FloatArray, Rows]] = []
    held = place = 0
    for done, part in enumerate(shards.parts, start=1):
        rows = _rows_of(part, shards.class_names, place, done - 1)
        place += len(rows.class_index)
        totals.add(rows)
        key = rows.probability.astype(np.float64) if choose == "probable" else _lot(rows.image_ids)
        chosen.append((key, rows))
        held += len(key)
        if held > 2 * most or done == len(shards.parts):
            chosen = [_best(chosen, most, by_class=choose == "probable")]
            held = len(chosen[0][0])
        if progress is not None:
            progress(done, len(shards.parts))
    if not chosen:
        return totals, _joined([])
    rows = chosen[0][1]
    return totals, rows.take(np.argsort(rows.place, kind="stable"))


def _best(chosen: list[tuple[FloatArray, Rows]], most: int, by_class: bool) -> tuple[FloatArray, Rows]:
    """Those with the largest keys, equal ones in the run's order; ``by_class``: in turn of each class.

    What is dropped here would be dropped at the end, too: rows to come only make its turn later.
    """
    key, rows = np.concatenate([key for key, _ in chosen]), _joined([rows for _, rows in chosen])
    order = np.lexsort((rows.place, -key))
    if by_class:
        classes = rows.class_index[order]
        grouped = np.argsort(classes, kind="stable")
        starts = np.searchsorted(classes[grouped], classes)
        turn = np.empty(len(order), np.int64)
        turn[grouped] = np.arange(len(order)) - starts[grouped]
        order = order[np.argsort(turn, kind="stable")]
    order = order[:most]
    return key[order], rows.take(order)


def _joined(parts: list[Rows]) -> Rows:
    none = np.zeros(0, np.int64)
    empty = Rows(
        pa.array([], pa.string()), none, none, np.zeros((0, 4), np.float32), none.astype(np.float32),
        none.astype(np.float32), np.zeros((0, 2)), none, none,
    )  # fmt: skip
    ids = pa.chunked_array([part.image_ids for part in (empty, *parts)]).combine_chunks()
    columns = zip(*(part[1:] for part in (empty, *parts)), strict=True)
    return Rows(ids, *(np.concatenate(column) for column in columns))


def _lot(image_ids: pa.Array) -> FloatArray:
    """The same number for the same id on every machine, spread evenly over [0, 1)."""
    encoded = image_ids.dictionary_encode()
    lots = [
        int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:6], "big")
        for name in encoded.dictionary.to_pylist()
    ]
    drawn: FloatArray = np.array(lots, np.float64)[encoded.indices.to_numpy()] / 2.0**48
    return drawn


def _rows_of(part: Path, class_names: tuple[str, ...], first: int, number: int) -> Rows:
    table = pq.ParquetFile(part, read_dictionary=["image_id"]).read(FINDINGS_SCHEMA.names)
    sizes = image_sizes(beside(part, "maps"))
    numbers = {name: number for number, name in enumerate(sizes)}
    size_of = np.array(list(sizes.values()), np.float64).reshape(-1, 2)
    image = coded(table["image_id"], numbers)
    class_index = coded(table["class"], {name: i for i, name in enumerate(class_names)})
    if len(image) and min(image.min(), class_index.min()) < 0:
        raise RunFolderError(
            f"{part} has findings of images or classes that the run's maps do not have; was the run's "
            "folder put together from several?"
        )
    boxes = np.stack([table[edge].to_numpy() for edge in _EDGES], axis=1).reshape(-1, 4)
    return Rows(
        table["image_id"].cast(pa.string()).combine_chunks(),
        class_index,
        table["rank"].to_numpy().astype(np.int64),
        boxes,
        table["score"].to_numpy(),
        table["probability"].to_numpy(),
        size_of[image],
        np.arange(first, first + len(image)),
        np.full(len(image), number, np.int64),
    )
