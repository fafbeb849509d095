"""The tables of a run's folder: their columns, and what may stand in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

FINDINGS_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("class", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("rank", pa.int8(), nullable=False),
        *(pa.field(edge, pa.float32(), nullable=False) for edge in ("x1", "y1", "x2", "y2")),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("probability", pa.float32(), nullable=False),
    ]
)
# One row for each image and class that was mined, whatever its probability. The peak is the centre of
# the heatmap's first largest cell, in original pixels; null where the map is constant.
MAPS_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("class", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("probability", pa.float32(), nullable=False),
        pa.field("peak_x", pa.float32()),
        pa.field("peak_y", pa.float32()),
        pa.field("image_height", pa.int32(), nullable=False),
        pa.field("image_width", pa.int32(), nullable=False),
    ]
)
# With --heatmaps also the heatmap and the CAM, 0 to 255 from the least to the largest value, and the
# step that erased each cell (0: none): height * width bytes in row-major order. From these comes the
# attention of each step, to a level: the CAM on the cells that are left, from least to largest.
KEPT_MAPS = ("heatmap", "cam", "erased_at")
HEATMAPS_SCHEMA = pa.schema(
    [
        *MAPS_SCHEMA,
        pa.field("height", pa.int16(), nullable=False),
        pa.field("width", pa.int16(), nullable=False),
        *(pa.field(name, pa.large_binary(), nullable=False) for name in KEPT_MAPS),
    ]
)
NOTES_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("note", pa.string(), nullable=False),
    ]
)
IMAGES_SCHEMA = pa.schema([pa.field("image_id", pa.string(), nullable=False)])
ERRORS_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)


def tags_schema(names: Sequence[str]) -> pa.Schema:
    """One row an image that has any of the DICOM values ``names``, null where it lacks one."""
    columns = [pa.field(name, pa.string()) for name in names]
    return pa.schema([pa.field("image_id", pa.string(), nullable=False), *columns])


def findings_table(columns: pa.Table | Mapping[str, Any]) -> pa.Table:
    """Columns of ``FINDINGS_SCHEMA`` as a table; ValueError if they do not fit it."""
    return _table(columns, FINDINGS_SCHEMA, "a finding")


def maps_table(columns: pa.Table | Mapping[str, Any]) -> pa.Table:
    """Columns of ``MAPS_SCHEMA`` or ``HEATMAPS_SCHEMA`` as a table; ValueError if they fit neither."""
    names = columns.column_names if isinstance(columns, pa.Table) else columns
    return _table(columns, HEATMAPS_SCHEMA if "heatmap" in names else MAPS_SCHEMA, "a map")


def _table(columns: pa.Table | Mapping[str, Any], schema: pa.Schema, row: str) -> pa.Table:
    names = list(columns.column_names if isinstance(columns, pa.Table) else columns)
    if sorted(names) != sorted(schema.names):
        raise ValueError(f"expected the columns {schema.names}, got {names}")
    if isinstance(columns, pa.Table):
        table = columns.select(schema.names).cast(schema)
    else:
        table = pa.table(dict(columns), schema=schema)
    if any(table[field.name].null_count for field in schema if not field.nullable):
        raise ValueError(f"{row} has no missing values, but a column holds some")
    return table
