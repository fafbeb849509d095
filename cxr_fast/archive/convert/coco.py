"""COCO JSON (Lin et al., ECCV 2014; cocodataset.org/#format-data), with a score for each box.

Categories are the model's classes in its order, from 1. An image's id is its row in the run's
images.parquet, from 1, and its ``file_name`` the path below the folder that was mined. One image or
box a line. ``segmentation`` is an empty list, as CVAT's reader needs the key.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from cxr_fast.archive.convert.boxes import (
    DECIMALS,
    BoxFilter,
    FinishedShards,
    ImageNumbers,
    ImageSize,
    beside,
    image_sizes,
)
from cxr_fast.archive.findings import RunFolderError, run_settings
from cxr_fast.archive.run_columns import coded
from cxr_fast.archive.sources import file_name


class CocoCounts(NamedTuple):
    """``renamed``: images that are named by their image_id, since no JSON holds their file's name.
    ``outside``: images whose path begins with ``..``.
    """

    images: int
    boxes: int
    renamed: int
    outside: int


def write_coco(
    file: BinaryIO, folder: Path, shards: FinishedShards, wanted: BoxFilter, parts: Iterable[Path]
) -> CocoCounts:
    """Write ``parts`` of a run as one JSON document; memory holds one part.

    ``folder`` takes a temporary file of the images' size. Raises RunFolderError for a part without
    maps, which tell the sizes of images, and for a box of an image that has none.
    """
    images = boxes = renamed = outside = 0
    numbers = ImageNumbers(shards.run)
    # One of the two lists has to wait until the other is written: the shorter one.
    with tempfile.TemporaryFile(dir=folder) as waiting:
        file.write(_head(shards, wanted))
        for part in parts:
            sizes = _image_sizes(part)
            number_of = numbers.of(list(sizes), part)
            for image_id, size in sizes.items():
                name = _name(image_id)
                renamed += name is None
                outside += image_id.startswith("../")
                document = {"id": number_of[image_id], "file_name": name or image_id}
                _write_item(waiting, {**document, **size._asdict()}, images == 0)
                images += 1
            for document in _annotations(shards, part, wanted, number_of):
                _write_item(file, {"id": boxes + 1, **document}, boxes == 0)
                boxes += 1
        file.write(b'\n],\n"images": [')
        waiting.seek(0)
        shutil.copyfileobj(waiting, file)
        file.write(b"\n]\n}\n")
    return CocoCounts(images, boxes, renamed, outside)


def _head(shards: FinishedShards, wanted: BoxFilter) -> bytes:
    """The document up to the first box."""
    settings = run_settings(shards.run)
    info = {
        "description": "Boxes that cxr_fast mined from chest X-rays; no person drew them.",
        "version": str(settings.get("cxr_fast", "")),
        "settings": settings,
        "filter": asdict(wanted),
        "missing_shards": shards.missing,
    }
    categories = [
        {"id": number, "name": name, "supercategory": "finding"}
        for number, name in enumerate(shards.class_names, 1)
    ]
    lines = (f'"{key}": {json.dumps(value, sort_keys=key == "info")},\n' for key, value in
             (("info", info), ("licenses", []), ("categories", categories)))  # fmt: skip
    return ("{\n" + "".join(lines) + '"annotations": [').encode("ascii")


def _annotations(
    shards: FinishedShards, part: Path, wanted: BoxFilter, number_of: Mapping[str, int]
) -> Iterator[dict[str, Any]]:
    boxes = shards.boxes(part, wanted)
    numbers = coded(boxes.image_ids, number_of)
    if len(numbers) and numbers.min() < 0:
        raise RunFolderError(
            f"{part} has boxes of an image that {beside(part, 'maps')} does not have; was the run's"
            " folder put together from several?"
        )
    areas = np.round(boxes.xywh[:, 2] * boxes.xywh[:, 3], DECIMALS)
    columns = (numbers.tolist(), boxes.class_index.tolist(), boxes.xywh.tolist(), areas.tolist())
    rows = zip(*columns, boxes.score, boxes.rank, boxes.probability, strict=True)
    for number, class_index, xywh, area, score, rank, probability in rows:
        yield {
            "image_id": number,
            "category_id": class_index + 1,
            "bbox": xywh,
            "area": area,
            "segmentation": [],
            "iscrowd": 0,
            "score": score,
            "attributes": {"rank": rank, "probability": probability},
        }


def _image_sizes(part: Path) -> dict[str, ImageSize]:
    """Size of each image of a shard, in order, from the maps that were mined beside its boxes."""
    maps = beside(part, "maps")
    if not maps.exists():
        raise RunFolderError(
            f"{maps} is missing, and with it the sizes of its images, which COCO needs; mine the"
            " archive again, or convert to bbox-list"
        )
    return image_sizes(maps)


def _name(image_id: str) -> str | None:
    """The file's own name, or None where it is not UTF-8."""
    try:
        return os.fsencode(file_name(image_id)).decode("utf-8")
    except UnicodeDecodeError:
        return None


def _write_item(file: BinaryIO, item: Mapping[str, Any], is_first: bool) -> None:
    # ASCII, because readers open it in whatever encoding their system prefers.
    text = json.dumps(item, allow_nan=False)
    file.write(("\n" if is_first else ",\n").encode() + text.encode("ascii"))
