"""The maps behind the findings that are shown, a file for each so many images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cxr_fast.archive.run_columns import IntArray, coded
from cxr_fast.archive.schemas import KEPT_MAPS
from cxr_fast.report.scripts import column

Layers = Literal["steps", "heatmap", "none"]
IMAGES_A_CHUNK = 64


def layers_of(parts: Iterable[Path]) -> Layers:
    """What the run kept of its maps: its parts are alike, and the first one is read."""
    names: Sequence[str] = next((pq.read_schema(part).names for part in parts), ())
    if "heatmap" not in names:
        return "none"
    return "steps" if set(KEPT_MAPS) <= set(names) else "heatmap"


def layer_chunks(
    parts: Sequence[Path],
    numbers: Mapping[str, int],
    class_names: Sequence[str],
    shown: set[tuple[int, int]],
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Number and maps of each chunk: those of the pairs ``shown`` of image and class.

    ``numbers`` has the images in the run's order, so that a part's follow those of the part before.
    """
    kept = ["heatmap"] if layers_of(parts) == "heatmap" else KEPT_MAPS
    chunk, maps = -1, list[dict[str, Any]]()
    for part in parts:
        table = pq.ParquetFile(part, read_dictionary=["image_id"]).read(["image_id", "class"])
        image = coded(table["image_id"], numbers)
        class_index = coded(table["class"], {name: i for i, name in enumerate(class_names)})
        pairs = zip(image.tolist(), class_index.tolist(), strict=True)
        rows = np.array([row for row, pair in enumerate(pairs) if pair in shown], np.int64)
        for row, values in zip(rows, _rows(part, [*kept, "height", "width"], rows), strict=True):
            if image[row] // IMAGES_A_CHUNK != chunk:
                if maps:
                    yield chunk, maps
                chunk, maps = int(image[row]) // IMAGES_A_CHUNK, []
            of = {"image": int(image[row]), "class": int(class_index[row])}
            levels = {name: column(np.frombuffer(values[name], np.uint8), "uint8") for name in kept}
            maps.append(of | {"height": values["height"], "width": values["width"]} | levels)
    if maps:
        yield chunk, maps


def _rows(part: Path, columns: Sequence[str], rows: IntArray) -> Iterator[dict[str, Any]]:
    """The rows of a part, a row group at a time."""
    file = pq.ParquetFile(part)
    start = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        first, last = np.searchsorted(rows, (start, start + count))
        if first < last:
            table = file.read_row_group(group, columns=list(columns))
            yield from table.take(pa.array(rows[first:last] - start)).to_pylist()
        start += count
