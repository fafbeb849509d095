"""A cell of a table: what a network and a rule find on the judged images, made once and kept.

A cell is one small Parquet file, the boxes, with its identity and what is no box (AUROC, pointing game,
pixel AUC) in the metadata. Any measure of localisation follows from it without the network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lightning_fabric import Fabric
from torch import Tensor

from cxr_fast import metrics
from cxr_fast.config import MiningSettings
from cxr_fast.files import replacing
from cxr_fast.reproduce.judging import (
    Detections,
    Truth,
    class_activation_maps,
    judged_digest,
    localise,
    ranking,
)
from cxr_fast.reproduce.laboratory import Laboratory, Training, essentials
from cxr_fast.training.batches import Labelled

_KEY = b"cxr_fast"
_COLUMNS = ("image", "rank", "class", "x1", "y1", "x2", "y2")


@dataclass(frozen=True)
class Cell:
    """A network, by its training, and a rule from its CAMs to boxes.

    ``networks``: how many of a staged training's networks are used, the first ones; 0 for all.
    """

    training: Training
    rule: MiningSettings
    networks: int = 0


class Judged(NamedTuple):
    """What a cell found: boxes, and by class [C] AUROC on the test images, pointing game, pixel AUC."""

    detections: Detections
    auroc: np.ndarray
    pointing: np.ndarray
    pixel_auc: np.ndarray


def judged_maps(
    heatmap: np.ndarray,
    detections: Detections,
    labels: np.ndarray,
    truth: Truth,
    findings: Sequence[str],
    auroc: np.ndarray,
) -> Judged:
    """What is found, with the measures of the heatmaps [N, C, H, W] that ``labels`` [N, C] name."""
    image, cls = np.nonzero(labels > 0)
    maps, sizes = heatmap[image, cls], truth.sizes[image]
    pointing = metrics.pointing_game(
        metrics.heatmap_peaks(maps, sizes), image, cls, truth.images, truth.classes, truth.boxes,
        findings=findings, resamples=1,
    )  # fmt: skip
    pixels = metrics.pixel_auc(
        maps, image, cls, sizes, truth.images, truth.classes, truth.boxes,
        findings=findings, resamples=1,
    )  # fmt: skip
    return Judged(detections, auroc, pointing.value, pixels.value)


@dataclass
class Judge:
    """Judges cells and keeps them in ``folder``.

    ``judged`` and ``tested`` give the images to localise in and those to classify, by input size.
    """

    folder: Path
    laboratory: Laboratory
    judged: Callable[[int], Labelled]
    tested: Callable[[int], Labelled]
    truth: Truth
    fabric: Fabric

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._cams: tuple[str, Tensor] | None = None  # the last network's; rules differ in what follows
        self._auroc: dict[str, np.ndarray] = {}

    def __call__(self, name: str, cell: Cell) -> Judged:
        """The cell, from its file or made now; ``name`` is for people."""
        told = self.told(cell)
        key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
        path = self.folder / f"{name}-{key}.parquet"
        if not path.exists():
            judged = self._judge(cell)
            if self.fabric.is_global_zero:
                write_cell(path, judged, told | {"training": cell.training.identity()})
            self.fabric.barrier()
        return read_cell(path)

    def told(self, cell: Cell) -> dict[str, Any]:
        """All that decides what a cell holds."""
        size = cell.training.input_size
        return {
            "networks": self.laboratory.key(cell.training),
            "used": cell.networks,
            "rule": essentials(cell.rule),
            "judged": judged_digest(self.truth, self.judged(size), self.tested(size)),
        }

    def cams(self, cell: Cell) -> Tensor:
        """CAMs [T, N, C, H, W] of the judged images."""
        key = f"{self.laboratory.key(cell.training)}/{cell.networks}"
        if self._cams is None or self._cams[0] != key:
            files = self.laboratory.networks(cell.training).networks
            images = self.judged(cell.training.input_size)
            used = files[: cell.networks or len(files)]
            self._cams = key, class_activation_maps(used, images, self.fabric)
        return self._cams[1]

    def _judge(self, cell: Cell) -> Judged:
        images, truth = self.judged(cell.training.input_size), self.truth
        labels = np.asarray(images.labels)
        heatmap, detections = localise(self.cams(cell), labels, truth.sizes, cell.rule)
        findings = self.laboratory.class_names
        auroc = self._ranking(cell.training)
        return judged_maps(heatmap.numpy(), detections, labels, truth, findings, auroc)

    def _ranking(self, training: Training) -> np.ndarray:
        """AUROC [C] of the training's last network on the test images."""
        key = self.laboratory.key(training)
        if key not in self._auroc:
            last = self.laboratory.networks(training).networks[-1]
            self._auroc[key] = ranking(last, self.tested(training.input_size), self.fabric)
        return self._auroc[key]


def write_cell(path: Path, judged: Judged, told: dict[str, Any]) -> None:
    """Write the file of a cell, whole or not at all; ``told`` is what decided it."""
    found = judged.detections
    columns = [found.images, found.ranks, found.classes, *found.boxes.T]
    table = pa.table(
        {
            name: column.astype(np.float32 if name[0] in "xy" else np.int32)
            for name, column in zip(_COLUMNS, columns, strict=True)
        }
    )
    told = told | {name: getattr(judged, name).tolist() for name in ("auroc", "pointing", "pixel_auc")}
    with replacing(path) as file:
        pq.write_table(
            table.replace_schema_metadata({_KEY: json.dumps(told)}), file, compression="zstd"
        )


def read_cell(path: Path) -> Judged:
    """Read the file of a cell. ValueError where it is none."""
    try:
        table = pq.read_table(path)
        told = json.loads((table.schema.metadata or {})[_KEY])
        image, rank, cls, *corners = (table[name].to_numpy() for name in _COLUMNS)
        values = [np.array(told[name], float) for name in ("auroc", "pointing", "pixel_auc")]
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} must be a judged cell, but cannot be read as one: {error}; remove it, and it is "
            "made again"
        ) from error
    image, rank, cls = (index.astype(np.int64) for index in (image, rank, cls))
    return Judged(Detections(image, rank, cls, np.stack(corners, 1)), *values)
