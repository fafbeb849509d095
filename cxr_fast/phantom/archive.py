"""A folder of phantoms with the layout of ChestX-ray14, written so that it can be interrupted."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from PIL import Image

from cxr_fast.phantom.picture import read_background, render
from cxr_fast.phantom.settings import PhantomSettings

_SETTINGS = "phantom.json"
_JOURNAL = "phantom.rows.jsonl"
_LABELS = "Data_Entry_2017.csv"
_BOXES = "BBox_List_2017.csv"
_LISTS = ("train_val_list.txt", "test_list.txt")
# The labels come last: an archive that has them is whole.
_TABLES = (*_LISTS, _BOXES, _LABELS)

# Changes whenever the same settings begin to give other pictures, so that no archive mixes two.
_VERSION = 1

# The headers as released: the brackets' commas split their names into columns.
_LABELS_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
_BOXES_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
# The released box table has its own word for one finding.
_BOX_NAMES = {"Infiltration": "Infiltrate"}

# Zlib level 1: level 6 takes four times as long and saves a tenth.
_PNG_LEVEL = 1
# Images a worker draws before it reports, which an end waits for, and reports that may wait for each.
_CHUNK = 2
_AHEAD = 3

Row = dict[str, Any]


def write_archive(
    out: Path,
    settings: PhantomSettings,
    *,
    progress: Callable[[int, int], None] | None = None,
    workers: int = 0,
) -> None:
    """Write the archive that ``settings`` describe into the folder ``out``.

    ``images/*.png`` (8-bit grey), ``Data_Entry_2017.csv``, ``BBox_List_2017.csv`` (x, y, w, h in
    pixels of the images as written), ``train_val_list.txt``, ``test_list.txt`` (disjoint by
    patient) and ``phantom.json`` with the settings. ``progress`` is called with the images done and
    their number. ``workers`` processes draw; with 0 this one does. The bytes do not depend on it.
    The processes are spawned, so a script that asks for them needs the ``__main__`` guard.

    An interrupted call is taken up by the next with the same settings, and ends the same. Raises
    FileExistsError where ``out`` holds anything else, ValueError or FileNotFoundError for settings
    that cannot be drawn.
    """
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, got {workers}; use 0 to draw in this process")
    out = Path(out)
    if settings.backgrounds is not None:
        # Before anything is written: a folder without one readable image is refused here.
        read_background(Path(settings.backgrounds), 0.0, settings.size)
    _claim(out, settings)
    rows = _rows_done(out)
    missing = [index for index in range(settings.images) if index not in rows]
    complete = all((out / name).exists() for name in _TABLES)
    if complete and len(list((out / "images").glob("*.png"))) == settings.images:
        if progress:
            progress(settings.images, settings.images)
        return
    with open(out / _JOURNAL, "a", encoding="utf-8") as journal:
        for row in _draw(out, settings, missing, workers):
            journal.write(json.dumps(row) + "\n")
            journal.flush()
            rows[row["index"]] = row
            if progress:
                progress(len(rows), settings.images)
    _write_tables(out, [rows[index] for index in range(settings.images)])
    (out / _JOURNAL).unlink()


def _claim(out: Path, settings: PhantomSettings) -> None:
    """Make ``out`` the folder of these settings, or refuse it."""
    described = asdict(settings) | {"version": _VERSION}
    described["backgrounds"] = settings.backgrounds and str(settings.backgrounds)
    text = json.dumps(described, indent=2) + "\n"
    try:
        found = (out / _SETTINGS).read_text(encoding="utf-8")
    except FileNotFoundError:
        if out.exists() and any(path.name != _SETTINGS + ".tmp" for path in out.iterdir()):
            raise FileExistsError(
                f"expected a new or empty folder, or a phantom archive made with the same "
                f"settings, but {out} holds other files; choose another folder or empty this one"
            ) from None
        (out / "images").mkdir(parents=True, exist_ok=True)
        _replace(out / _SETTINGS, text.encode())
        return
    if found != text:
        raise FileExistsError(
            f"expected a phantom archive made with the same settings, but {out / _SETTINGS} says "
            f"{_differences(found, described)}; choose another folder, remove this one, or use "
            "its settings"
        )
    (out / "images").mkdir(exist_ok=True)


def _differences(found: str, wanted: Row) -> str:
    try:
        had = json.loads(found)
        # Through JSON, so that tuples compare equal to the lists they became.
        asked = json.loads(json.dumps(wanted))
        words = [
            f"{key} = {had.get(key)} where {asked.get(key)} is asked for"
            for key in {**asked, **had}
            if had.get(key) != asked.get(key)
        ]
    except (ValueError, AttributeError):
        words = []
    return ", ".join(words) or "nothing that can be read"


def _rows_done(out: Path) -> dict[int, Row]:
    """What an interrupted call has finished: rows of the journal whose image is there."""
    rows: dict[int, Row] = {}
    try:
        lines = (out / _JOURNAL).read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return rows
    whole = [line for line in lines if line.endswith("\n")]
    for line in whole:
        row = json.loads(line)
        if (out / "images" / row["name"]).exists():
            rows[row["index"]] = row
    if len(whole) < len(lines):
        # The last line was cut off: without it, or the next row would be joined to it.
        _replace(out / _JOURNAL, "".join(whole).encode())
    return rows


def _draw(out: Path, settings: PhantomSettings, missing: list[int], workers: int) -> Iterator[Row]:
    """Draw the missing images, and yield each one's row as soon as its file is there."""
    if workers == 0:
        for index in missing:
            yield _draw_one(out, settings, index)
        return
    chunks = [missing[first : first + _CHUNK] for first in range(0, len(missing), _CHUNK)]
    # Spawned, not forked: the caller may run threads (torch does), and a fork may inherit a lock.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        running: set[Future[list[Row]]] = set()
        try:
            for chunk in chunks:
                with _deaf_to_ctrl_c():
                    running.add(pool.submit(_draw_chunk, out, settings, chunk))
                if len(running) >= workers * _AHEAD:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield from future.result()
            for future in running:
                yield from future.result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes that begin in the block never see Ctrl-C, which a terminal sends them, too.

    This one does, behind the block, and ends them in order.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _draw_chunk(out: Path, settings: PhantomSettings, indices: list[int]) -> list[Row]:
    return [_draw_one(out, settings, index) for index in indices]


def _draw_one(out: Path, settings: PhantomSettings, index: int) -> Row:
    phantom = render(index, settings)
    encoded = io.BytesIO()
    Image.fromarray(phantom.image).save(encoded, "PNG", compress_level=_PNG_LEVEL)
    _replace(out / "images" / phantom.name, encoded.getvalue())
    study = phantom.study
    return {
        "index": index,
        "name": phantom.name,
        "labels": phantom.labels,
        "boxes": phantom.boxes,
        "follow_up": study.follow_up,
        "patient_id": study.patient_id,
        "age": study.age,
        "gender": study.gender,
        "view": phantom.view,
        "detector": phantom.detector,
        "test": study.test,
    }


def _write_tables(out: Path, rows: list[Row]) -> None:
    for name, test in zip(_LISTS, (False, True), strict=True):
        _replace(
            out / name, "".join(f"{row['name']}\n" for row in rows if row["test"] is test).encode()
        )
    boxes = (
        (row["name"], _BOX_NAMES.get(finding, finding), *box)
        for row in rows
        for finding, *box in row["boxes"]
    )
    _replace(out / _BOXES, _table(_BOXES_HEADER, boxes))
    labels = (
        (
            row["name"],
            "|".join(row["labels"]) or "No Finding",
            row["follow_up"],
            row["patient_id"],
            row["age"],
            row["gender"],
            row["view"],
            *row["detector"],
            row["detector"][2],
        )
        for row in rows
    )
    _replace(out / _LABELS, _table(_LABELS_HEADER, labels))


def _table(header: str, rows: Iterable[tuple[object, ...]]) -> bytes:
    text = io.StringIO()
    text.write(header + "\n")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _replace(path: Path, data: bytes) -> None:
    """Write a file that is either whole or not there."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
