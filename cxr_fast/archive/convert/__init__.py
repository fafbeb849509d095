"""Writing a run's boxes in the layouts that other programs read, one file a layout."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from cxr_fast.archive.convert.bbox_list import write_bbox_list
from cxr_fast.archive.convert.boxes import BoxFilter, FinishedShards, finished_shards
from cxr_fast.archive.convert.coco import CocoCounts, write_coco
from cxr_fast.archive.findings import RunFolderError
from cxr_fast.files import replacing, require_writable, saying_when_full

__all__ = ["BoxFilter", "Conversion", "Layout", "convert_run"]

Layout = Literal["coco", "bbox-list"]
# Called after every shard: shards written, and how many there are.
Progress = Callable[[int, int], None]


class Conversion(NamedTuple):
    """What was written, and what was not.

    ``images`` and ``boxes`` are in the file; a bbox-list has no images without boxes. ``unreadable``:
    images in the run's errors. ``sizeless``: images that COCO left out, because they were mined for no
    class. ``renamed``: images that COCO names by image_id, because their file's name is not UTF-8;
    ``outside``: images whose path leaves the folder that was mined, which CVAT refuses.
    ``missing_shards``: shards that are not mined yet.
    """

    images: int
    boxes: int
    unreadable: int
    sizeless: int
    renamed: int
    outside: int
    missing_shards: int


def convert_run(
    run: str | Path,
    out: str | Path,
    layout: Layout,
    wanted: BoxFilter | None = None,
    *,
    paths: bool = False,
    partial: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Write the boxes of a run to the new file ``out``, whole or not at all.

    Memory holds one shard, whatever the archive. ``paths`` names the images of a bbox-list with their
    folders; ``partial`` takes a run that is not finished.

    Raises RunFolderError if ``run`` holds no run, or an unfinished one without ``partial``;
    FileExistsError if ``out`` exists; ValueError for a class that the model does not know, for file
    names that a bbox-list cannot tell apart, and for ``paths`` with another layout; OSError if the disk
    does not take it.
    """
    chosen, target = wanted or BoxFilter(), Path(out)
    if paths and layout != "bbox-list":
        raise ValueError("--paths is for bbox-list; COCO names images with their folders as it is")
    shards = finished_shards(run)
    if unknown := [name for name in chosen.classes if name not in shards.class_names]:
        raise ValueError(
            f"the model of {run} knows no class {unknown[0]!r}; choose of"
            f" {', '.join(shards.class_names)}"
        )
    if shards.missing and not partial:
        total = len(shards.parts) + shards.missing
        raise RunFolderError(
            f"{run} is not finished: {shards.missing} of {total} shards are missing. Give its"
            " `cxr-fast mine` command again, or convert what there is with --partial"
        )
    _refuse_existing(target)
    require_writable(target.parent)
    target.parent.mkdir(parents=True, exist_ok=True)
    parts = _told(shards, progress)
    sentence = (
        f"the disk is full and {target} was not written; make room, or write fewer boxes (--top,"
        " --min-probability)"
    )
    with saying_when_full(sentence), replacing(target) as file:
        if layout == "coco":
            counts = write_coco(file, target.parent, shards, chosen, parts)
        else:
            counts = CocoCounts(*write_bbox_list(file, shards, chosen, paths, parts), 0, 0)
        _refuse_existing(target)  # it may have come while this one was written
    unreadable = shards.unreadable
    sizeless = shards.images - unreadable - counts.images if layout == "coco" else 0
    return Conversion(*counts[:2], unreadable, sizeless, *counts[2:], shards.missing)


def _told(shards: FinishedShards, progress: Progress | None) -> Iterator[Path]:
    """The parts one by one, with ``progress`` told of each that is done."""
    for done, part in enumerate(shards.parts, 1):
        yield part
        if progress:
            progress(done, len(shards.parts))


def _refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise FileExistsError(f"{target} exists and is not written over; name another file")
