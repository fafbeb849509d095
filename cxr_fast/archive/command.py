"""What the command ``mine`` does, apart from talking: everything is checked before any
work begins.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from cxr_fast.archive.batches import Readings, RunOptions
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
    mined_class,
    truths_by_name,
    write_overlay,
)
from cxr_fast.archive.pipeline import LocalEngine
from cxr_fast.archive.run import Engine, Progress, RunReport, mine_archive, run_settings
from cxr_fast.archive.sources import FileList
from cxr_fast.config import CHESTXRAY14_FINDINGS
from cxr_fast.files import require_writable
from cxr_fast.machine import cores
from cxr_fast.model_files import model_digest, model_path
from cxr_fast.rows import BatchMiner, MinedBatch
from cxr_fast.runtime import MiningResult

# Classes drawn on one overlay.
_DRAWN = 3


@dataclass(frozen=True)
class MiningJob:
    """A run that may begin: model loaded, images listed, arguments checked."""

    images: ImageList
    engine: Engine
    out: Path
    settings: dict[str, Any]
    options: RunOptions
    max_errors: int | None
    # Overlays that could not be drawn, and why; a picture less is no reason to end a run.
    troubles: list[str]

    @property
    def summary(self) -> str:
        """One line for the person who waits."""
        network = self.engine.network
        size = network.input_size
        return (
            f"{len(self.images)} images, {len(network.class_names)} classes, {size}x{size} "
            f"{network.precision} on {self.engine.where} -> {self.out}"
        )

    def run(self, progress: Progress | None = None, stop: threading.Event | None = None) -> RunReport:
        """Mine what the folder lacks, until ``stop`` is set.

        Raises RunFolderError, before any work, if it may not, and what ``mine_archive`` does.
        """
        with open_run(self.out, self.settings) as folder:
            return mine_archive(
                self.images,
                self.engine,
                folder,
                self.options,
                progress,
                stop=stop,
                max_errors=self.max_errors,
            )


@dataclass(frozen=True)
class _Overlays:
    """Draws the first ``count`` images of a run, as its batches go by."""

    count: int
    out: Path
    images: ImageList
    class_names: Sequence[str]
    truth: Mapping[str, Sequence[Truth]]
    classes_of: Mapping[str, Sequence[int]] | None
    troubles: list[str]

    def __call__(self, readings: Readings, mined: MinedBatch) -> None:
        details = None
        for row, position in enumerate(readings.readable):
            if position >= self.count:
                return
            details = details or mined.details()
            image_id = self.images.image_ids[position]
            truth = self.truth.get(PurePosixPath(image_id).name, ())
            allowed: Sequence[int] = range(len(self.class_names))
            if self.classes_of is not None:
                allowed = self.classes_of.get(image_id, ())
            try:
                classes = _classes_to_draw(
                    self.class_names, mined.probability[row], details, row, truth, allowed
                )
                if not classes:  # an image without findings, mined for its labels
                    continue
                image = read_image(self.images.read(position))
                picture = draw_overlay(image, image_id, classes, truth)
                write_overlay(self.out, image_id, picture)
            except (OSError, UnreadableImage) as error:
                self.troubles.append(f"{image_id}: {error}")


@contextmanager
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
    precision: str,
    batch_size: int,
    shard_size: int,
    device: str,
    threads: int | None,
    max_errors: int | None = None,
    engine: Literal["local", "ray"] = "local",
) -> Iterator[MiningJob]:
    """Checks the arguments of ``cxr-fast mine`` and loads what they name; writes nothing.

    Inside the block the job may run; behind it a Ray cluster that it began is gone.

    Raises FileNotFoundError or ValueError, in a sentence, for anything that is missing or wrong.
    """
    if (classes == "labels") != (labels is not None):
        raise ValueError(
            "--classes labels and --labels CSV go together: the table says which classes each image "
            "is mined for; give both, or neither for all classes"
        )
    if not model_path(model).is_file():
        raise FileNotFoundError(
            f"--model must be a checkpoint, an .onnx file or 'demo', but {model_path(model)} is not a "
            "file; train one with `cxr-fast train`, or try --model demo"
        )
    check_keep_tags(keep_tags)
    require_writable(out)
    if engine == "ray" and overlays:
        raise ValueError(
            "--overlays are drawn by the local engine alone; mine a few images with it into another "
            "folder"
        )
    with _engine(engine, model, precision, device, threads) as workers:
        class_names = workers.network.class_names
        listed = list_images(images)
        root = Path(listed.root).resolve()
        beside = Path(images).is_file() or not isinstance(listed, FileList)  # a list, or tars
        if not beside and root in (out.resolve(), *out.resolve().parents):
            raise ValueError(
                f"--out {out} lies inside the images' folder {images}, so that the run's pictures "
                "would be mined next time; choose a folder outside"
            )
        wanted = _classes_by_image(listed, labels, class_names) if labels else None
        options = RunOptions(
            batch_size=batch_size,
            shard_size=shard_size,
            min_probability=min_probability,
            classes_of=wanted,
            heatmaps=heatmaps,
            keep_tags=keep_tags,
        )
        truths = truths_by_name(*_box_columns(truth, class_names)) if truth else {}
        settings = run_settings(listed, workers.network, model_digest(model), options)
        troubles: list[str] = []
        if overlays and isinstance(workers, LocalEngine):
            folder = out / "overlays"
            draw = _Overlays(overlays, folder, listed, class_names, truths, wanted, troubles)
            workers = replace(workers, inspect=draw)
        yield MiningJob(listed, workers, out, settings, options, max_errors, troubles)


def _engine(
    name: Literal["local", "ray"], model: str, precision: str, device: str, threads: int | None
) -> AbstractContextManager[Engine]:
    if name == "local":
        miners = batch_miners(model, precision, device)
        return nullcontext(LocalEngine(miners, threads or cores()))
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(
            f"with --engine ray the device is auto, cpu or cuda, but is {device!r}: each worker takes "
            "one GPU, and Ray says which"
        )
    if _is_onnx(model):
        raise ValueError(
            f"--engine ray takes a checkpoint, but --model is {model}; mine by an ONNX file on one "
            "machine, or give each a part of the archive"
        )
    from cxr_fast.archive.ray_engine import ray_engine

    return ray_engine(model, cast(Any, precision), cast(Any, device), threads)


def batch_miners(model: str, precision: str, device: str) -> Sequence[BatchMiner]:
    """Load a checkpoint or an ONNX file, once for each device; errors of whichever loads it."""
    # Only what runs the model is imported: each serves without the other.
    if _is_onnx(model):
        from cxr_fast.onnx_miner import load_onnx_miner

        return (load_onnx_miner(model, precision, device),)
    from cxr_fast.mining import load_miners, resolve_devices

    return load_miners(model, None, cast(Any, precision), resolve_devices(device))


def _is_onnx(model: str) -> bool:
    return Path(model).suffix.lower() == ".onnx"


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
        row = row_of.get(image_id.rpartition("/")[2])
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
    names: Sequence[str],
    probability: NDArray[np.float32],
    mined: MiningResult,
    row: int,
    truth: Sequence[Truth],
    allowed: Sequence[int],
) -> list[MinedClass]:
    """Of the classes that are mined, those with true boxes, then the probable ones; at least one."""
    true = list(dict.fromkeys(names.index(t.finding) for t in truth if t.finding in names))
    true = [c for c in true if c in allowed]
    ranked = [int(c) for c in np.argsort(-probability) if int(c) not in true and int(c) in allowed]
    ranked = [c for c in ranked if probability[c] >= 0.5] or ([] if true else ranked[:1])
    return [
        mined_class(names[c], float(probability[c]), mined, row, c) for c in (true + ranked)[:_DRAWN]
    ]
