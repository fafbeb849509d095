"""The rows of a shard, as columns, from what its batches gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from cxr_fast.archive.schemas import (
    KEPT_MAPS,
    NOTES_SCHEMA,
    findings_table,
    maps_table,
    tags_schema,
)
from cxr_fast.rows import Findings, Maps


class Outcome(NamedTuple):
    """What is kept of a batch: rows, the ids of its readable images in order, what failed and why.

    ``notes`` are pairs of image_id and sentence, ``tags`` of image_id and the DICOM values kept.
    """

    findings: Findings
    maps: Maps
    image_ids: tuple[str, ...]
    errors: tuple[tuple[str, str], ...]
    notes: tuple[tuple[str, str], ...]
    tags: tuple[tuple[str, Mapping[str, str]], ...]


class ShardRows(NamedTuple):
    """All that is written of a shard: tables, and pairs of image_id and reason."""

    findings: pa.Table
    maps: pa.Table
    errors: tuple[tuple[str, str], ...]
    beside: dict[str, pa.Table]


def shard_rows(
    outcomes: Sequence[Outcome], class_names: Sequence[str], keep_tags: Sequence[str] = ()
) -> ShardRows:
    """Join a shard's batches, in order."""
    findings = _joined([o.findings for o in outcomes])
    maps = _joined([o.maps for o in outcomes])
    edges = {edge: findings["boxes"][:, i] for i, edge in enumerate(("x1", "y1", "x2", "y2"))}
    of_boxes = _names(outcomes, [o.findings for o in outcomes], class_names)
    rows = {**of_boxes, **edges, **{n: findings[n] for n in ("rank", "score", "probability")}}
    peak_x, peak_y = (pa.array(axis, from_pandas=True) for axis in maps["peak"].T)  # NaN is null
    height, width = maps["image_size"].T
    mapped = {
        **_names(outcomes, [o.maps for o in outcomes], class_names),
        "probability": maps["probability"],
        "peak_x": peak_x,
        "peak_y": peak_y,
        "image_height": height,
        "image_width": width,
    }
    if "heatmap" in maps:
        mapped |= _map_columns({name: maps[name] for name in KEPT_MAPS})
    errors = tuple(error for o in outcomes for error in o.errors)
    notes = [{"image_id": name, "note": note} for o in outcomes for name, note in o.notes]
    tags = [{"image_id": name, **kept} for o in outcomes for name, kept in o.tags]
    beside = {
        "notes": pa.Table.from_pylist(notes, NOTES_SCHEMA),
        "tags": pa.Table.from_pylist(tags, tags_schema(keep_tags)),
    }
    return ShardRows(findings_table(rows), maps_table(mapped), errors, beside)


def _joined(batches: Sequence[Findings] | Sequence[Maps]) -> dict[str, np.ndarray]:
    """The columns of several batches, one behind the other; without those that were not asked for."""
    columns = zip(batches[0]._fields, zip(*batches, strict=True), strict=True)
    return {name: np.concatenate(parts) for name, parts in columns if parts[0] is not None}


def _names(
    outcomes: Sequence[Outcome], batches: Sequence[Findings | Maps], class_names: Sequence[str]
) -> Mapping[str, pa.Array]:
    """The columns image_id and class, from the rows and indices within each batch."""
    first = np.cumsum([0, *(len(o.image_ids) for o in outcomes)])
    ids = pa.array([name for o in outcomes for name in o.image_ids], pa.string())
    row = np.concatenate([b.image + start for b, start in zip(batches, first, strict=False)])
    index = np.concatenate([b.class_index for b in batches]).astype(np.int32)
    classes = pa.DictionaryArray.from_arrays(index, pa.array(class_names, pa.string()))
    return {"image_id": ids.take(pa.array(row)), "class": classes}


def _map_columns(maps: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Maps uint8 [M, H, W] as bytes, without copying each."""
    count, height, width = next(iter(maps.values())).shape
    ends = pa.py_buffer(np.arange(count + 1, dtype=np.int64) * (height * width))
    columns: dict[str, Any] = {
        "height": np.full(count, height, np.int16),
        "width": np.full(count, width, np.int16),
    }
    for name, each in maps.items():
        buffers = [None, ends, pa.py_buffer(np.ascontiguousarray(each))]
        columns[name] = pa.Array.from_buffers(pa.large_binary(), count, buffers)
    return columns
