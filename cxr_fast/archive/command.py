"""What the command ``mine`` does, apart from talking: everything is checked before any
work begins.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cxr_fast.archive.chestxray14 import read_boxes, read_labels
from cxr_fast.archive.findings import open_run
from cxr_fast.archive.images import (
    ImageList,
    UnreadableImage,
    check_keep_tags,
    list_images,
    read_image,
)
from cxr_fast.archive.overlays import (
    MinedClass,
    Truth,
    draw_overlay,
    step_maps,
    truths_by_name,
    write_overlay,
)
from cxr_fast.archive.pipeline import (
    Progress,
    Readings,
    RunOptions,
    RunReport,
    mine_archive,
    run_settings,
)
from cxr_fast.config import CHESTXRAY14_FINDINGS
from cxr_fast.files import require_writable
from cxr_fast.mining import (
    Mined,
    Miner,
    Precision,
    load_miners,
    model_digest,
    model_path,
    resolve_devices,
)

# Classes drawn on one overlay.
_DRAWN = 3


@dataclass(frozen=True)
class MiningJob:
    """A run that may begin: model loaded, images listed, arguments checked."""

    images: ImageList
    miners: tuple[Miner, ...]
    out: Path
    settings: dict[str, Any]
    options: RunOptions
    truth: Mapping[str, Sequence[Truth]]
    overlays: int
    threads: int
    max_errors: int | None = None
    # Overlays that could not be drawn, and why; a picture less is no reason to end a run.
    troubles: list[str] = field(default_factory=list)

    @property
    def miner(self) -> Miner:
        """One of the miners, which differ in their device alone."""
        return self.miners[0]

    @property
    def summary(self) -> str:
        """One line for the person who waits."""
        dtype = str(self.miner.dtype).removeprefix("torch.")
        size = self.miner.card.input_size
        return (
            f"{len(self.images)} images, {len(self.miner.card.class_names)} classes, {size}x{size} "
            f"{dtype} on {', '.join(str(m.device) for m in self.miners)}, {self.threads} threads -> "
            f"{self.out}"
        )

    def run(self, progress: Progress | None = None, stop: threading.Event | None = None) -> RunReport:
        """Mine what the folder lacks, until ``stop`` is set.

        Raises RunFolderError, before any work, if it may not, and what ``mine_archive`` does.
        """
        with open_run(self.out, self.settings) as folder:
            return mine_archive(
                self.images,
                self.miners,
                folder,
                self.options,
                self.threads,
                progress,
                self._draw if self.overlays else None,
                stop=stop,
                max_errors=self.max_errors,
            )

    def _draw(self, readings: Readings, mined: Mined) -> None:
        for row, position in enumerate(readings.readable):
            if position >= self.overlays:
                return
            image_id = self.images.image_ids[position]
            truth = self.truth.get(PurePosixPath(image_id).name, ())
            allowed: Sequence[int] = range(len(self.miner.card.class_names))
            if self.options.classes_of is not None:
                allowed = self.options.classes_of.get(image_id, ())
            try:
                classes = _classes_to_draw(self.miner, mined, row, truth, allowed)
                if not classes:  # an image without findings, mined for its labels
                    continue
                image = read_image(self.images.read(position))
                picture = draw_overlay(image, image_id, classes, truth)
                write_overlay(self.out / "overlays", image_id, picture)
            except (OSError, UnreadableImage) as error:
                self.troubles.append(f"{image_id}: {error}")


def prepare(
    images: str,
    model: str,
    out: Path,
    classes: str,
    labels: Path | None,
    truth: Path | None,
    overlays: int,
    min_probability: float,
    heatmaps: bool,
    keep_tags: tuple[str, ...],
    precision: Precision,
    batch_size: int,
    shard_size: int,
    device: str,
    threads: int,
    max_errors: int | None = None,
) -> MiningJob:
    """Checks the arguments of ``cxr-fast mine`` and loads what they name; writes nothing.

    Raises FileNotFoundError or ValueError, in a sentence, for anything that is missing or wrong.
    """
    if (classes == "labels") != (labels is not None):
        raise ValueError(
            "--classes labels and --labels CSV go together: the table says which classes each image "
            "is mined for; give both, or neither for all classes"
        )
    if not model_path(model).is_file():
        raise FileNotFoundError(
            f"--model must be a checkpoint file or 'demo', but {model_path(model)} is not a file; "
            "train one with `cxr-fast train`, or try --model demo"
        )
    check_keep_tags(keep_tags)
    require_writable(out)
    miners = load_miners(model, None, precision, resolve_devices(device))
    miner = miners[0]
    listed = list_images(images)
    root = Path(listed.root).resolve()
    if Path(images).is_dir() and root in (out.resolve(), *out.resolve().parents):
        raise ValueError(
            f"--out {out} lies inside the images' folder {images}, so that the run's pictures would be "
            "mined next time; choose a folder outside"
        )
    wanted = _classes_by_image(listed, labels, miner.card.class_names) if labels else None
    options = RunOptions(
        batch_size=batch_size,
        shard_size=shard_size,
        min_probability=min_probability,
        classes_of=wanted,
        heatmaps=heatmaps,
        keep_tags=keep_tags,
    )
    truths = truths_by_name(*_box_columns(truth, miner.card.class_names)) if truth else {}
    settings = run_settings(listed, miner, model_digest(model), options)
    return MiningJob(listed, miners, out, settings, options, truths, overlays, threads, max_errors)


def _names(class_names: Sequence[str]) -> tuple[str, ...]:
    """What a table may name: the model's classes, and ChestX-ray14's."""
    return tuple(dict.fromkeys((*class_names, *CHESTXRAY14_FINDINGS)))


def _box_columns(
    table: Path, class_names: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...], np.ndarray]:
    boxes = read_boxes(table, findings=_names(class_names))
    return boxes.images, boxes.findings, boxes.boxes


def _classes_by_image(
    images: ImageList, labels: Path, class_names: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    table = read_labels(labels, findings=_names(class_names))
    columns = [
        (class_index, table.findings.index(name))
        for class_index, name in enumerate(class_names)
        if name in table.findings
    ]
    row_of = {name: row for row, name in enumerate(table.images)}
    wanted = {}
    seen: dict[bytes, tuple[int, ...]] = {}  # one tuple for all images of the same labels
    for image_id in images.image_ids:
        row = row_of.get(PurePosixPath(image_id).name)
        if row is not None:
            labels_of = table.matrix[row]
            if (key := labels_of.tobytes()) not in seen:
                seen[key] = tuple(c for c, column in columns if labels_of[column])
            wanted[image_id] = seen[key]
    if not columns:
        raise ValueError(
            f"{labels} names none of the model's classes ({', '.join(class_names)}); "
            "use a table with these names, or --classes all"
        )
    if not wanted:
        raise ValueError(
            f"{labels} names none of the {len(images)} images; give the label table of this archive"
        )
    return wanted


def _classes_to_draw(
    miner: Miner, mined: Mined, row: int, truth: Sequence[Truth], allowed: Sequence[int]
) -> list[MinedClass]:
    """Of the classes that are mined, those with true boxes, then the probable ones; at least one."""
    names = miner.card.class_names
    probability = mined.probability[row].float().cpu().numpy()
    true = list(dict.fromkeys(names.index(t.finding) for t in truth if t.finding in names))
    true = [c for c in true if c in allowed]
    ranked = [int(c) for c in np.argsort(-probability) if int(c) not in true and int(c) in allowed]
    ranked = [c for c in ranked if probability[c] >= 0.5] or ([] if true else ranked[:1])
    cam, attention, heatmap, found = mined.result[1:]
    drawn = []
    for c in (true + ranked)[:_DRAWN]:
        count = int(found.counts[row, c])
        steps = step_maps(
            cam[row, c].float().cpu().numpy(),
            attention.erased_at[row, c].cpu().numpy(),
            attention.extent[row, c].cpu().numpy(),
        )
        drawn.append(
            MinedClass(
                names[c],
                float(probability[c]),
                steps,
                _zero_to_one(heatmap[row, c].cpu().numpy()),
                found.boxes[row, c, :count].cpu().numpy(),
                found.scores[row, c, :count].cpu().numpy(),
            )
        )
    return drawn


def _zero_to_one(heatmap: np.ndarray) -> np.ndarray:
    """What boxes are cut from: the identity on a normalised heatmap, min-max on a raw one."""
    lo, hi = heatmap.min(), heatmap.max()
    return (heatmap - lo) / (hi - lo) if hi > lo else np.zeros_like(heatmap)
