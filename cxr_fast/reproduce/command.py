"""What ``cxr-fast reproduce table1|table2|table3`` does, apart from talking."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cxr_fast.archive.dataset import (
    Archive,
    LabelledImages,
    load_images,
    open_archive,
    split_by_patient,
)
from cxr_fast.archive.images import read_image
from cxr_fast.archive.truth import read_truth
from cxr_fast.config import BOXED_FINDINGS
from cxr_fast.files import write_whole
from cxr_fast.reproduce import rendering, rules, summary
from cxr_fast.reproduce.cells import Judge
from cxr_fast.reproduce.judging import Truth
from cxr_fast.reproduce.laboratory import Laboratory
from cxr_fast.reproduce.presets import PRESETS, Preset
from cxr_fast.reproduce.tables import TABLES
from cxr_fast.training import Data, open_fabric
from cxr_fast.training.stages import Reporter

_TABLES = "BBox_List_2017.csv"


@dataclass
class Protocol:
    """The paper's protocol on one archive: what is trained on, mined, judged and tested.

    The base networks learn from the official training list. The images with boxes, of the test list,
    are mined: with their labels in training, with their boxes in judging alone.
    """

    archive: Archive
    truth: Truth
    judged_names: tuple[str, ...]
    preset: Preset
    cache: Path
    threads: int
    images_read: Callable[[str], Callable[[int, int], None]]
    _loaded: dict[tuple[str, int], LabelledImages] = field(default_factory=dict)

    @property
    def patients(self) -> np.ndarray:
        """Of the judged images."""
        return self.archive.patients(self.judged_names)

    def images(self, what: str, size: int) -> LabelledImages:
        """``train``, ``validation``, ``mined`` or ``tested`` images at an input size."""
        if (what, size) not in self._loaded:
            self._loaded[what, size] = load_images(
                self.archive,
                self._names(what),
                size,
                cache=self.cache,
                threads=self.threads,
                progress=self.images_read(f"{what} images, {size}x{size}"),
            )
        return self._loaded[what, size]

    def data(self, size: int) -> Data:
        """What the networks of an input size learn from."""
        return Data(*(self.images(what, size) for what in ("train", "validation", "mined")))

    def _names(self, what: str) -> tuple[str, ...]:
        if what == "mined":
            return self.judged_names
        if what == "tested":
            return self.archive.split("test")
        names = self.archive.split("train_val")
        share = self.preset.stages["base"].validation
        sides = split_by_patient(self.archive.patients(names), share, seed=0)
        return tuple(names[i] for i in sides[what == "validation"])


def open_protocol(
    folder: Path,
    preset: str,
    cache_folder: Path,
    threads: int,
    images_read: Callable[[str], Callable[[int, int], None]],
    imagenet: Path | None = None,
) -> Protocol:
    """Read an archive in the layout of ChestX-ray14, with its boxes; ``imagenet`` as in ``Preset``.

    Errors: ``open_archive`` and ``read_truth``; ValueError where no image of the test list has a box.
    """
    archive = open_archive(folder, BOXED_FINDINGS)
    tables = sorted([*folder.glob("BBox_List*.csv"), *folder.glob("BBox_List*.csv.gz")])
    if len(tables) != 1:
        raise FileNotFoundError(
            f"{folder} must hold one {_TABLES}, to judge by, but holds {len(tables)}"
        )
    test = set(archive.split("test"))
    side = _side(archive)
    boxes = read_truth(tables[0], BOXED_FINDINGS, image_size=side)
    names = tuple(dict.fromkeys(name for name in boxes.images if name in test))
    if not names:
        raise ValueError(f"no image of the test list has a box in {tables[0]}; check the two files")
    order = {name: row for row, name in enumerate(names)}
    known = np.array([name in order for name in boxes.images])
    sizes = np.array([_size(archive.files[name]) for name in names], float)
    truth = Truth(
        np.array([order[n] for n in boxes.images if n in order], np.int64),
        np.array([BOXED_FINDINGS.index(f) for f in boxes.findings], np.int64)[known],
        boxes.boxes[known],
        sizes,
    )
    scale = replace(PRESETS[preset], imagenet=imagenet)
    return Protocol(archive, truth, names, scale, cache_folder, threads, images_read)


def _side(archive: Archive) -> int:
    """The side of the archive's images, on which its boxes were drawn: 1024 as released."""
    return max(_size(next(iter(archive.files.values()))))


@cache
def _size(path: Path) -> tuple[int, int]:
    """Height and width; only the header is read."""
    with Image.open(path) as image:
        return image.height, image.width


def reproduce(
    name: str,
    protocol: Protocol,
    seeds: Sequence[int],
    out: Path,
    runs: Path,
    reporter: Callable[[str], Reporter] | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train and judge a table, and write ``out/NAME.json`` and ``out/NAME.md``.

    Networks lie in ``runs``, judged cells in ``out/cells``: what is there already is not made again.
    """
    preset, judge = protocol.preset, _judge(protocol, out, runs, reporter)
    tables = {seed: TABLES[name](preset, seed) for seed in seeds}
    cells: dict[int, dict[str, Any]] = {}
    for seed, table in tables.items():
        cells[seed] = {}
        for row in table.rows:
            say(f"{name}, seed {seed}: {row.name}")
            cells[seed][row.name] = judge(f"{name}-{_plain(row.name)}-seed{seed}", row.cell)
    made = summary.summarise(
        tables,
        cells,
        protocol.truth,
        np.asarray(protocol.images("mined", preset.mined_size).labels),
        protocol.patients,
        BOXED_FINDINGS,
        published_bounds=preset.published_bounds,
    )
    write_whole(out / f"{name}.json", (json.dumps(made, indent=1) + "\n").encode())
    text = rendering.markdown(name, made, len(protocol.judged_names))
    write_whole(out / f"{name}.md", text.encode())
    return made


def reproduce_rules(
    protocol: Protocol,
    seeds: Sequence[int],
    out: Path,
    runs: Path,
    reporter: Callable[[str], Reporter] | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Compare rules from CAMs to boxes; see ``rules.reproduce_rules``."""
    judge = _judge(protocol, out, runs, reporter)
    return rules.reproduce_rules(judge, protocol.preset, protocol.patients, seeds, out, say)


def _judge(
    protocol: Protocol, out: Path, runs: Path, reporter: Callable[[str], Reporter] | None
) -> Judge:
    for folder in (out, runs):
        folder.mkdir(parents=True, exist_ok=True)
    preset = protocol.preset
    fabric = open_fabric(preset.stages["base"].precision)
    laboratory = Laboratory(runs, preset.architecture, BOXED_FINDINGS, protocol.data, fabric, reporter)
    return Judge(
        out / "cells",
        laboratory,
        lambda size: protocol.images("mined", size),
        lambda size: protocol.images("tested", size),
        protocol.truth,
        fabric,
    )


def reproduce_fig2(
    protocol: Protocol,
    seed: int,
    out: Path,
    runs: Path,
    reporter: Callable[[str], Reporter] | None,
) -> Path | None:
    """Draw ``out/fig2.png`` with the network of Table 3; None where no image shows any of its cases."""
    # Other tables need no extra figures; here it is missed before networks are trained.
    from cxr_fast.figures import canvas
    from cxr_fast.figures.steps import draw_steps
    from cxr_fast.reproduce.figure import figure_rows

    judge = _judge(protocol, out, runs, reporter)
    table = TABLES["table3"](protocol.preset, seed)
    cell = next(row.cell for row in table.rows if row.published == "t=3")
    images = protocol.images("mined", cell.training.input_size)
    rows = figure_rows(
        judge.cams(cell),
        np.asarray(images.labels),
        protocol.truth,
        cell.rule,
        BOXED_FINDINGS,
        protocol.judged_names,
        lambda name: read_image(protocol.archive.files[name]),
    )
    if not rows:
        return None
    canvas.save(draw_steps(rows), out / "fig2.png")
    return out / "fig2.png"


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name).strip("-")
