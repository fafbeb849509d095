"""A run's tables as columns of numbers, for judging: image and class numbers, boxes, peaks, heatmaps.

An archive has millions of rows but only as many names as images, so names are looked up once each and
rows stay in Arrow's and NumPy's hands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cxr_fast.archive.findings import findings_parts, map_parts
from cxr_fast.archive.schemas import MAPS_SCHEMA

IntArray = npt.NDArray[np.int64]


class BoxColumns(NamedTuple):
    """Mined boxes: ``image``, ``class_index`` and ``rank`` int64 [M], ``boxes`` float32 [M, 4]."""

    image: IntArray
    class_index: IntArray
    rank: IntArray
    boxes: npt.NDArray[np.float32]


class MapColumns(NamedTuple):
    """Mined maps: numbers [M], ``probability`` [M], ``peak`` [M, 2] x and y (NaN without one), and
    ``image_size`` [M, 2] height and width, float64.
    """

    image: IntArray
    class_index: IntArray
    probability: npt.NDArray[np.float64]
    peak: npt.NDArray[np.float64]
    image_size: npt.NDArray[np.float64]


def box_columns(
    run: str | Path,
    image_numbers: Mapping[str, int],
    classes: Sequence[str],
    wanted: npt.NDArray[np.bool_] | None = None,
) -> BoxColumns:
    """Boxes of the given classes in the given images (by image_id), in the run's order.

    ``wanted`` ``[images, classes]`` leaves out the other pairs of an image and a class.

    Raises RunFolderError if ``run`` holds no run.
    """
    found = [_boxes_of(part, image_numbers, classes, wanted) for part in findings_parts(run)]
    none = np.zeros(0, dtype=np.int64)
    empty = BoxColumns(none, none, none, np.zeros((0, 4), dtype=np.float32))
    return BoxColumns(*(np.concatenate(parts) for parts in zip(empty, *found, strict=True)))


def _boxes_of(
    part: Path,
    image_numbers: Mapping[str, int],
    classes: Sequence[str],
    wanted: npt.NDArray[np.bool_] | None,
) -> BoxColumns:
    edges = ("x1", "y1", "x2", "y2")
    table = _read(part, ["image_id", "class", "rank", *edges])
    image, class_index = _numbers(table, image_numbers, classes)
    keep = (image >= 0) & (class_index >= 0)
    if wanted is not None:
        keep &= wanted[image, class_index]  # -1 is the last one, and out already
    boxes = np.empty((int(keep.sum()), 4), dtype=np.float32)
    for i, edge in enumerate(edges):
        boxes[:, i] = table[edge].to_numpy()[keep]
    rank = table["rank"].to_numpy()[keep].astype(np.int64)
    return BoxColumns(image[keep], class_index[keep], rank, boxes)


def map_columns(
    run: str | Path, image_numbers: Mapping[str, int], classes: Sequence[str]
) -> MapColumns | None:
    """Maps of the given classes in the given images, or None where the run kept none."""
    found = [_maps_of(part, image_numbers, classes) for part in map_parts(run)]
    if not found:
        return None
    return MapColumns(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _maps_of(part: Path, image_numbers: Mapping[str, int], classes: Sequence[str]) -> MapColumns:
    table = _read(part, MAPS_SCHEMA.names)
    image, class_index = _numbers(table, image_numbers, classes)
    keep = (image >= 0) & (class_index >= 0)

    def numbers(*names: str) -> npt.NDArray[np.float64]:
        return np.stack([table[name].to_numpy().astype(np.float64)[keep] for name in names], axis=1)

    return MapColumns(
        image[keep],
        class_index[keep],
        numbers("probability")[:, 0],
        numbers("peak_x", "peak_y"),
        numbers("image_height", "image_width"),
    )


def heatmap_column(
    run: str | Path,
    image_numbers: Mapping[str, int],
    classes: Sequence[str],
    wanted: IntArray,
) -> npt.NDArray[np.uint8] | None:
    """Heatmaps uint8 [M, H, W] of the rows of ``map_columns`` that ``wanted`` numbers, ascending.

    None where the run kept no heatmaps. One part is read at a time, and of it only what is wanted.

    Raises ValueError if the run's heatmaps differ in size.
    """
    maps: list[npt.NDArray[np.uint8]] = []
    start = 0
    for part in map_parts(run):
        if "heatmap" not in pq.read_schema(part).names:
            return None
        names = _read(part, ["image_id", "class"])
        image, class_index = _numbers(names, image_numbers, classes)
        rows = np.flatnonzero((image >= 0) & (class_index >= 0))
        first, last = np.searchsorted(wanted, (start, start + len(rows)))
        chosen = rows[wanted[first:last] - start]
        start += len(rows)
        if not len(chosen):
            continue
        table = pq.read_table(part, columns=["heatmap", "height", "width"], partitioning=None)
        table = table.take(pa.array(chosen))
        shapes = set(zip(*(table[side].to_pylist() for side in ("height", "width")), strict=True))
        shapes |= {m.shape[1:] for m in maps[:1]}
        if len(shapes) > 1:
            raise ValueError(
                f"expected heatmaps of one size in {run}, got {sorted(shapes)}; was the run's folder "
                "put together from several?"
            )
        joined = b"".join(table["heatmap"].to_pylist())
        maps.append(np.frombuffer(joined, np.uint8).reshape(len(chosen), *shapes.pop()))
    return np.concatenate(maps) if maps else np.zeros((0, 1, 1), np.uint8)


def _read(part: Path, columns: Sequence[str]) -> pa.Table:
    """Some columns of a part; names stay numbers into a dictionary, as Parquet stores them."""
    return pq.ParquetFile(part, read_dictionary=["image_id"]).read(columns)


def _numbers(
    table: pa.Table, image_numbers: Mapping[str, int], classes: Sequence[str]
) -> tuple[IntArray, IntArray]:
    """The columns image_id and class as numbers; -1 for names that are not asked for."""
    index = {name: i for i, name in enumerate(classes)}
    return coded(table["image_id"], image_numbers), coded(table["class"], index)


def coded(column: pa.ChunkedArray, numbers: Mapping[str, int]) -> IntArray:
    """A column of names as their numbers int64 [M]; -1 for names that ``numbers`` lacks."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    codes = []
    names: pa.Array | None = None
    for chunk in column.chunks:
        if names is None or not chunk.dictionary.equals(names):  # most often all chunks share one
            names = chunk.dictionary
            lookup = np.array([*(numbers.get(n, -1) for n in names.to_pylist()), -1], dtype=np.int64)
        codes.append(lookup[chunk.indices.to_numpy()])
    return np.concatenate([np.zeros(0, dtype=np.int64), *codes])
