"""The layout of ChestX-ray14's BBox_List_2017.csv: a header of nine fields, rows of six.

Classes have the model's names: ``Infiltration`` where the published table says ``Infiltrate``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cxr_fast.archive.convert.boxes import BoxFilter, FinishedShards, image_id_blocks

_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"


def write_bbox_list(
    file: BinaryIO, shards: FinishedShards, wanted: BoxFilter, paths: bool, parts: Iterable[Path]
) -> tuple[int, int]:
    """Write ``parts`` of a run, one row a box, and return how many images and boxes there are.

    Images are named as in every table of this layout, by the file's name without folders, or with
    ``paths`` by their image_id. Raises ValueError if two images of the run share the former.
    """
    if not paths:
        _refuse_shared_names(shards.run)
    images = count = 0
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    text.write(_HEADER)
    writer = csv.writer(text, lineterminator="\n")
    for part in parts:
        boxes = shards.boxes(part, wanted)
        ids = boxes.image_ids.to_pylist()
        classes = (shards.class_names[index] for index in boxes.class_index.tolist())
        for image_id, name, xywh in zip(ids, classes, boxes.xywh.tolist(), strict=True):
            writer.writerow([image_id if paths else _file(image_id), name, *xywh])
        images += len(set(ids))
        count += len(ids)
    text.detach()  # flushes; the file itself stays open for its owner
    return images, count


def _refuse_shared_names(run: Path) -> None:
    """Raise ValueError if two images have one file name. Ten million names are kept as hashes."""
    blocks = [np.array([hash(_file(i)) for i in ids], np.int64) for ids in image_id_blocks(run)]
    hashes = np.sort(np.concatenate([np.zeros(0, np.int64), *blocks]))
    twice = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    found: dict[str, str] = {}
    for image_id in (image_id for ids in image_id_blocks(run) if twice for image_id in ids):
        name = _file(image_id)
        if hash(name) in twice and found.setdefault(name, image_id) != image_id:
            raise ValueError(
                f"the images {found[name]} and {image_id} are both called {name}, and a table in this"
                " layout cannot tell them apart; give --paths to name images with their folders"
            )


def _file(image_id: str) -> str:
    return image_id.rpartition("/")[2]
