"""A report's folder, whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from cxr_fast.archive.chestxray14 import read_boxes
from cxr_fast.archive.convert.boxes import FinishedShards, beside, finished_shards
from cxr_fast.archive.images import list_images
from cxr_fast.archive.schemas import NOTES_SCHEMA
from cxr_fast.config import CHESTXRAY14_FINDINGS
from cxr_fast.files import held, saying_when_full
from cxr_fast.machine import cores
from cxr_fast.metrics import iou
from cxr_fast.report import summary
from cxr_fast.report.layers import IMAGES_A_CHUNK, layer_chunks, layers_of
from cxr_fast.report.previews import MISSING, OTHER, THERE, write_mean, write_previews
from cxr_fast.report.scripts import column, script
from cxr_fast.report.survey import Choice, Rows, survey

Progress = Callable[[str, int, int], None]


class Report(NamedTuple):
    """What was written: ``page`` to open, how many ``findings`` the run has, how many are ``shown``, in
    how many ``images``, with how many ``previews``; the folder's size in ``bytes``; and sentences on
    what the pages lack.
    """

    page: Path
    findings: int
    shown: int
    images: int
    previews: int
    bytes: int
    left_out: tuple[str, ...]


class _Truth(NamedTuple):
    """True boxes of shown images: ``image`` and ``class_index`` int64 [G], ``boxes`` float32 [G, 4]."""

    image: npt.NDArray[np.int64]
    class_index: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float32]


def write_report(
    run: str | Path,
    images: str | None = None,
    truth: str | Path | None = None,
    *,
    findings: int = 100_000,
    choose: Choice = "probable",
    preview_size: int = 768,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Write ``run``/report, instead of the one that is there; marks that readers set stay theirs.

    ``images`` is what was mined, where it is now: without it there are boxes and maps, but no
    pictures. ``truth`` is a table in the layout of BBox_List_2017.csv. At most ``findings`` are shown,
    chosen as ``survey`` says; totals are of all. ``preview_size``: the longer side of pictures, in
    pixels. ``progress`` is told what is done, how much of it, and of how much.

    Raises RunFolderError where there is no such run, FileExistsError where ``report`` is something
    else, ValueError for numbers out of range and what ``read_boxes`` and ``list_images`` refuse, and
    OSError for a full disk; the report that was there is then as it was.
    """
    if findings < 1 or not 64 <= preview_size <= 4096:
        raise ValueError(
            f"findings must be at least 1 and preview_size from 64 to 4096 pixels, but they are "
            f"{findings} and {preview_size}"
        )
    folder = Path(run)
    shards = finished_shards(folder)
    target = folder / "report"
    _clear_interrupted(target)
    if os.path.lexists(target) and not (target / "data" / "summary.js").is_file():
        raise FileExistsError(
            f"{target} is no report of this command, and is not written over; move it away first"
        )
    boxes = None
    if truth is not None:
        known = tuple(dict.fromkeys((*shards.class_names, *CHESTXRAY14_FINDINGS)))
        boxes = read_boxes(truth, findings=known)
    source = None if images is None else list_images(images)
    tell = progress or (lambda *_: None)

    totals, rows = survey(shards, findings, choose, lambda a, b: tell("reading tables", a, b))
    ids = list(dict.fromkeys(rows.image_ids.to_pylist()))
    numbers = {name: number for number, name in enumerate(ids)}
    image = np.array([numbers[name] for name in rows.image_ids.to_pylist()], np.int64)
    sizes = np.zeros((len(ids), 2))
    sizes[image] = rows.image_size
    true = None if boxes is None else _true_boxes(boxes, ids, shards.class_names)
    # Of a large run most parts have nothing that is shown, and are not read again.
    parts = [shards.parts[number] for number in np.unique(rows.part)]
    maps = [beside(part, "maps") for part in parts]
    kept = layers_of(beside(part, "maps") for part in shards.parts)
    full = f"the disk is full: a report in {target} needs more room; what was there is unchanged"
    with saying_when_full(full), _replacing_folder(target) as new:
        _copy_page(new)
        there = np.zeros(len(ids), np.uint8)
        if source is not None:
            there = write_previews(
                source,
                numbers,
                new,
                preview_size,
                threads or cores(),
                lambda a, b: tell("pictures", a, b),
                sizes=sizes,
            )
        if kept != "none":
            shown = set(zip(image.tolist(), rows.class_index.tolist(), strict=True))
            chunks = -(-len(ids) // IMAGES_A_CHUNK)
            for chunk, entries in layer_chunks(maps, numbers, shards.class_names, shown):
                name = f"layers-{chunk:06d}"
                (new / "data" / f"{name}.js").write_bytes(script(name, {"maps": entries}))
                tell("maps", chunk + 1, chunks)
        left_out = tuple(_left_out(shards, totals.findings.sum(), rows, kept, images, there, choose))
        counts = {
            "images": shards.images,
            "findings": int(totals.findings.sum()),
            "shown_images": len(ids),
            "shown": len(image),
            "errors": shards.unreadable,
            "previews": int((there == THERE).sum()),
        }
        said = {
            "layers": kept,
            "layers_per_chunk": IMAGES_A_CHUNK,
            "truth": true is not None,
            "mean": write_mean(new, there),
        }
        values = {
            "images": {
                "id": ids,
                "width": column(sizes[:, 1], "uint32"),
                "height": column(sizes[:, 0], "uint32"),
                "preview": column(there == THERE, "uint8"),
                "note": _notes(parts, numbers),
            },
            "findings": _findings(rows, image, true),
            "truth": _truth_columns(true),
            "summary": summary.document(folder, totals, counts, list(left_out)) | said,
        }
        for name, value in values.items():
            (new / "data" / f"{name}.js").write_bytes(script(name, value))
        written = sum(path.stat().st_size for path in new.rglob("*") if path.is_file())
    return Report(
        target / "index.html",
        counts["findings"],
        counts["shown"],
        counts["shown_images"],
        counts["previews"],
        written,
        left_out,
    )


def _findings(rows: Rows, image: npt.NDArray[np.int64], true: _Truth | None) -> dict[str, Any]:
    edges = {
        name: column(rows.boxes[:, i], "float32") for i, name in enumerate(("x1", "y1", "x2", "y2"))
    }
    return {
        "image": column(image, "uint32"),
        "class": column(rows.class_index, "uint16"),
        "rank": column(rows.rank, "uint8"),
        **edges,
        "score": column(rows.score, "float32"),
        "probability": column(rows.probability, "float32"),
        "iou": column(_best_iou(rows, image, true), "float32"),
    }


def _notes(parts: Sequence[Path], numbers: Mapping[str, int]) -> dict[int, str]:
    """What a reader must know of shown images, by their number: of those that have a note."""
    notes: dict[int, str] = {}
    for part in (beside(part, "notes") for part in parts):
        if not part.exists():
            continue
        for row in pq.read_table(part, schema=NOTES_SCHEMA, partitioning=None).to_pylist():
            if (number := numbers.get(row["image_id"])) is not None:
                notes[number] = "; ".join(filter(None, (notes.get(number), row["note"])))
    return notes


def _true_boxes(boxes: Any, ids: Sequence[str], class_names: Sequence[str]) -> _Truth:
    """Tables name images by file name, as ``mine`` and ``evaluate`` read them."""
    numbers: dict[str, list[int]] = {}
    for number, name in enumerate(ids):
        numbers.setdefault(name.rpartition("/")[2], []).append(number)
    classes = {name: number for number, name in enumerate(class_names)}
    kept = [
        (image, classes[finding], row)
        for row, (name, finding) in enumerate(zip(boxes.images, boxes.findings, strict=True))
        if finding in classes
        for image in numbers.get(name, ())
    ]
    image, class_index, row = np.array(kept, np.int64).reshape(-1, 3).T
    return _Truth(image, class_index, boxes.boxes[row])


def _truth_columns(true: _Truth | None) -> dict[str, Any]:
    none = np.zeros(0, np.int64)
    image, class_index, boxes = true or (none, none, np.zeros((0, 4)))
    edges = {name: column(boxes[:, i], "float32") for i, name in enumerate(("x1", "y1", "x2", "y2"))}
    return {"image": column(image, "uint32"), "class": column(class_index, "uint16"), **edges}


def _best_iou(rows: Rows, image: npt.NDArray[np.int64], true: _Truth | None) -> npt.NDArray[np.float64]:
    """Of each finding with the true boxes of its image and class; NaN where there is none."""
    best = np.full(len(image), np.nan)
    if true is None:
        return best
    of_pair: dict[tuple[int, int], list[int]] = {}
    for g, pair in enumerate(zip(true.image.tolist(), true.class_index.tolist(), strict=True)):
        of_pair.setdefault(pair, []).append(g)
    for m, pair in enumerate(zip(image.tolist(), rows.class_index.tolist(), strict=True)):
        if pair in of_pair:
            best[m] = iou(rows.boxes[m], true.boxes[of_pair[pair]]).max()
    return best


def _left_out(
    shards: FinishedShards,
    findings: int,
    rows: Rows,
    kept: str,
    images: str | None,
    there: npt.NDArray[np.uint8],
    choose: Choice,
) -> Iterator[str]:
    if shards.missing:
        yield f"{shards.missing} shards of the run are not mined yet, and not in the report"
    if len(rows.place) < findings:
        which = (
            "the most probable of each class"
            if choose == "probable"
            else "those of images drawn at random"
        )
        yield (
            f"{len(rows.place)} of {findings} findings can be looked at, {which}; --findings N shows "
            "more (totals are of all)"
        )
    if images is None:
        yield "no pictures: give the folder that was mined with --images"
    elif missing := int((there == MISSING).sum()):
        yield (
            f"{missing} of {len(there)} pictures are not in {images} or cannot be read; name the "
            "folder that was mined with --images"
        )
    if other := int((there == OTHER).sum()):
        yield (
            f"{other} pictures in {images} have another size than those that were mined, and are not "
            "shown; name the folder that was mined with --images"
        )
    if kept == "none":
        yield "no heatmaps: mine with --heatmaps, into a new folder"
    elif kept == "heatmap":
        yield "no attention of each step: the run is of an older version; mine again, into a new folder"


def _copy_page(folder: Path) -> None:
    (folder / "data").mkdir()
    for file in resources.files("cxr_fast.report").joinpath("page").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())


@contextmanager
def _replacing_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which takes the name ``target`` when the block ends well.

    Folders cannot be exchanged in one step everywhere: a kill between two renames leaves the old one
    beside it, under a name that begins with .report-old; see ``_clear_interrupted``.
    """
    new = target.with_name(f".{target.name}-new-{secrets.token_hex(4)}")
    old = target.with_name(f".{target.name}-old-{secrets.token_hex(4)}")
    new.mkdir()
    try:
        with held(new):
            yield new
            (new / ".lock").unlink()
        if target.exists():
            target.rename(old)
        new.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _clear_interrupted(target: Path) -> None:
    """Put back a report that a kill left without its name, and remove what a killed one left half done.

    A folder that another process is filling now is held by it, and left alone.
    """
    for old in target.parent.glob(f".{target.name}-old-*"):
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(target)
    for new in target.parent.glob(f".{target.name}-new-*"):
        try:
            with held(new):
                shutil.rmtree(new, ignore_errors=True)
        except RuntimeError:
            continue
