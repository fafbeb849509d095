"""``cxr-fast reproduce siim``: networks, rules and what they find on real X-rays. Data: ``siim``.

Each cell is a network, a seed and a family of rules. The rule of the family that does best on the
tuning half (Acc at T(IoU) 0.3) is the one that is reported, on the other half.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from cxr_fast import metrics
from cxr_fast.config import MiningSettings
from cxr_fast.models import Architecture
from cxr_fast.reproduce import siim
from cxr_fast.reproduce.cells import Judged, judged_maps, read_cell, write_cell
from cxr_fast.reproduce.judging import (
    Detections,
    Truth,
    class_activation_maps,
    judged_digest,
    localise,
    random_boxes,
    ranking,
    restricted,
)
from cxr_fast.reproduce.laboratory import Laboratory, Training, essentials, outcome
from cxr_fast.training import Augmentation, Data, MiningStepSettings, TrainingSettings
from cxr_fast.training.stages import Reporter

IOU = (0.1, 0.3, 0.5)
_TUNED_AT = 0.3
FINDING = (siim.SIIM_CLASSES[0],)

_FINE = Architecture("resnet18", "none", 0.25, 1, depth=3, last_stride=1, neck=64)
_BEST = replace(_FINE, pooling="lse", bilateral=True)


class Network(NamedTuple):
    """What is trained, on images of which side."""

    architecture: Architecture
    size: int = 128


# By name: the paper's form first, then what is not in the paper, one thing at a time.
NETWORKS: Mapping[str, Network] = {
    "GAP, aggregation": Network(Architecture("resnet18", "bilinear", 0.25, 1)),
    "LSE, aggregation": Network(Architecture("resnet18", "bilinear", 0.25, 1, pooling="lse")),
    "GAP, fine, halves": Network(replace(_FINE, bilateral=True)),
    "LSE, fine": Network(replace(_FINE, pooling="lse")),
    "LSE, fine, halves": Network(_BEST),
    "LSE, fine, halves, 160 pixels": Network(_BEST, 160),
}
# Attention mining in training, from the network of that name.
MINED = {"LSE, fine, halves, mined": "LSE, fine, halves"}

# What decided each of these is in docs/evidence.md.
TRAINING = TrainingSettings(
    epochs=28,
    batch_size=48,
    learning_rate=2e-3,
    optimizer="adamw",
    weight_decay=0.05,
    gradient_clip=3.0,
    averaging=0.98,
    monitor="auroc",
    precision="bfloat16",
    augmentation=Augmentation(rotation=0.12, zoom=0.12, shift=0.07, gain=0.2, offset=0.1, flip=0.5),
)
# On whole images, larger: half of one is a strange picture of a child's chest.
_PRETRAINING, _PRETRAINING_SIZE = replace(TRAINING, epochs=3), 192
_MINING = replace(
    TRAINING,
    stage="mining",
    epochs=1,
    learning_rate=2e-4,
    mining=MiningStepSettings(cam_threshold=0.7),
)

_CUTS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
_SINGLES = tuple((cut,) for cut in (60 / 255, *_CUTS))
_OVERLAPS = (0.5, 0.3)
_LISTS = (
    (60 / 255, 180 / 255), (0.3, 0.5, 0.7), (0.4, 0.6, 0.8), (0.5, 0.65, 0.8), (0.6, 0.75, 0.9),
    (0.5, 0.7), (0.4, 0.8), (0.3, 0.4, 0.6),
)  # fmt: skip


def families() -> dict[str, list[MiningSettings]]:
    """The rules that are tried, by what they have in common."""
    plain = [
        MiningSettings(
            steps=1, thresholds=thresholds, select=select, upsample=upsample, max_overlap=overlap
        )
        for thresholds in (*_SINGLES, *_LISTS)
        for select in ("components", "peak")
        for upsample in (1, 4)
        for overlap in _OVERLAPS
    ]
    made = {"t = 1": plain}
    for steps in (2, 3):
        made[f"normalized, T = {steps}"] = [
            MiningSettings(
                steps=steps, cam_threshold=cut, thresholds=thresholds, upsample=4, max_overlap=overlap
            )
            for cut in _CUTS
            for thresholds in _LISTS
            for overlap in _OVERLAPS
        ]
    for steps in (1, 2, 3):
        made[f"regions, T = {steps}"] = [
            MiningSettings(steps=steps, cam_threshold=cut, select="regions", upsample=upsample)
            for cut in (*_CUTS, 0.65, 0.75)
            for upsample in (1, 4)
        ]
    return made


@dataclass
class Study:
    """The data, and where networks and cells are kept."""

    archive: siim.Archive
    kermany: siim.Archive
    parts: siim.Parts
    truth: Truth
    out: Path
    runs: Path
    threads: int
    fabric: Fabric
    reporter: Callable[[str], Reporter] | None = None

    def networks(self, name: str, seed: int) -> tuple[Path, ...]:
        """Model files of a network, trained now unless they are there."""
        source = MINED.get(name, name)
        laboratory, training = self.training(name, seed)
        first = training.start or training
        pretrained = self._pretraining(source)
        weights = outcome(pretrained[0].networks(pretrained[1]), pretrained[1].settings)
        first = replace(first, weights=weights)
        if training.start is None:
            return (outcome(laboratory.networks(first), first.settings),)
        return laboratory.networks(replace(training, start=first)).networks

    def training(self, name: str, seed: int) -> tuple[Laboratory, Training]:
        """The training of a network, to be done or to be known by its key."""
        source = MINED.get(name, name)
        architecture, size = NETWORKS[source]
        laboratory = self._laboratory(architecture, self.archive, siim.SIIM_CLASSES)
        pretraining = self._pretraining(source)
        # The aggregation, if any, is trained with the rest from the beginning.
        start = Training(
            replace(TRAINING, seed=seed),
            size,
            aggregation=architecture.msa,
            origin=pretraining[0].key(pretraining[1]),
        )
        mined = Training(replace(_MINING, seed=seed), size, start)
        return laboratory, start if source == name else mined

    def _pretraining(self, source: str) -> tuple[Laboratory, Training]:
        """The same network on Kermany's X-rays, seen whole; one for all seeds."""
        architecture = replace(NETWORKS[source].architecture, bilateral=False)
        laboratory = self._laboratory(architecture, self.kermany, siim.KERMANY_CLASSES)
        return laboratory, Training(_PRETRAINING, _PRETRAINING_SIZE, aggregation=architecture.msa)

    def _laboratory(
        self, architecture: Architecture, archive: siim.Archive, class_names: tuple[str, ...]
    ) -> Laboratory:
        def data(size: int) -> Data:
            everything = np.arange(len(archive.names))
            parts = (
                self.parts
                if archive is self.archive
                else siim.Parts(everything, *([everything[:0]] * 2))
            )
            made = siim.training_data(archive, parts, lambda a, rows: self.labelled(a, rows, size))
            return made if archive is self.archive else made._replace(mined=None)

        return Laboratory(
            self.runs, architecture, class_names, data, self.fabric, self.reporter, standardise=True
        )

    def labelled(self, archive: siim.Archive, rows: np.ndarray, size: int) -> Any:
        """Images of an archive, through the cache."""
        return siim.labelled(archive, rows, size, self.runs / "images", self.threads)

    def judged_digest(self, size: int) -> str:
        """What rules are tuned on, and what is reported on."""
        parts = (
            self.labelled(self.archive, rows, size) for rows in (self.parts.tune, self.parts.report)
        )
        return judged_digest(self.truth, *parts)

    def half(self, rows: np.ndarray) -> tuple[np.ndarray, Truth]:
        """Of those rows the images with the finding, and their boxes."""
        shown = rows[self.archive.labels[rows, 0] > 0]
        return shown, restricted(self.truth, shown)


def judge(study: Study, name: str, seed: int) -> dict[str, Judged]:
    """The cells of a network and a seed, by family; made now unless they are there."""
    laboratory, training = study.training(name, seed)
    folder = study.out / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    told: dict[str, dict[str, Any]] = {}
    paths = {}
    made, judged_on = laboratory.key(training), study.judged_digest(training.input_size)
    for family, rules in families().items():
        told[family] = {"networks": made, "rules": [essentials(rule) for rule in rules]}
        told[family] |= {"tuned at": _TUNED_AT, "judged": judged_on}
        key = hashlib.sha256(json.dumps(told[family]).encode()).hexdigest()[:12]
        paths[family] = folder / f"{_plain(name)}-{_plain(family)}-seed{seed}-{key}.parquet"
    if not all(path.exists() for path in paths.values()):
        files = study.networks(name, seed)
        size = training.input_size
        auroc = _ranking(study, files, size)
        halves = {
            half: _cams(study, files, getattr(study.parts, half), size) for half in ("tune", "report")
        }
        for family, rules in families().items():
            rule, tuned = _best(rules, *halves["tune"])
            judged = _judged(*halves["report"], rule, auroc)
            chosen = {"rule": asdict(rule), "acc on the tuning half": tuned}
            write_cell(paths[family], judged, told[family] | chosen)
    return {family: read_cell(path) for family, path in paths.items()}


def _cams(
    study: Study, files: Sequence[Path], rows: np.ndarray, size: int
) -> tuple[Tensor, NDArray[np.float32], Truth]:
    """CAMs [1, N, 1, H, W], labels [N, 1] and boxes of the images with the finding."""
    shown, truth = study.half(rows)
    maps = class_activation_maps(files, study.labelled(study.archive, shown, size), study.fabric)
    return maps[:, :, :1].contiguous(), np.ones((len(shown), 1), np.float32), truth


def _ranking(study: Study, files: Sequence[Path], size: int) -> np.ndarray:
    """AUROC [1] on all held-back images."""
    rows = np.concatenate([study.parts.tune, study.parts.report])
    images = study.labelled(study.archive, rows, size)
    return ranking(files[-1], images, study.fabric)[:1]


def _acc(found: Detections, truth: Truth, threshold: float) -> float:
    return metrics.localization(
        found.images, found.ranks, found.boxes, truth.images, truth.boxes, overlap_threshold=threshold
    ).acc


def _best(
    rules: Sequence[MiningSettings], cams: Tensor, labels: NDArray[np.float32], truth: Truth
) -> tuple[MiningSettings, float]:
    """The rule with the highest Acc at T(IoU) 0.3; the first of equals."""
    accs = [_acc(localise(cams, labels, truth.sizes, rule)[1], truth, _TUNED_AT) for rule in rules]
    best = int(np.argmax(accs))
    return rules[best], accs[best]


def _judged(
    cams: Tensor,
    labels: NDArray[np.float32],
    truth: Truth,
    rule: MiningSettings,
    auroc: np.ndarray,
) -> Judged:
    heatmap, detections = localise(cams, labels, truth.sizes, rule)
    return judged_maps(heatmap.numpy(), detections, labels, truth, FINDING, auroc)


def yardsticks(study: Study) -> dict[str, list[float]]:
    """Acc at each T(IoU) without any network: random boxes of true sizes, and the best fixed ones.

    The sizes and the fixed boxes are those of the tuning half; the latter tell how much is a matter of
    place alone, and use boxes that no method sees.
    """
    _, tune = study.half(study.parts.tune)
    shown, report = study.half(study.parts.report)
    labels, rng = np.ones((len(shown), 1), np.float32), np.random.default_rng(0)
    sizes_of = tune._replace(sizes=report.sizes)
    drawn = [[_acc(random_boxes(sizes_of, labels, rng), report, t) for t in IOU] for _ in range(50)]
    fixed = _fixed_boxes(tune)
    count = len(fixed)
    everywhere = Detections(
        np.repeat(np.arange(len(shown)), count),
        np.tile(np.arange(1, count + 1), len(shown)),
        np.zeros(count * len(shown), np.int64),
        np.tile(fixed, (len(shown), 1)),
    )
    return {
        "three random boxes of true sizes": np.mean(drawn, 0).tolist(),
        "three fixed boxes, the best of the tuning half": [_acc(everywhere, report, t) for t in IOU],
    }


def _fixed_boxes(truth: Truth, boxes: int = 3) -> NDArray[np.float32]:
    """True boxes that, put into every image, hit the most: one after the other."""
    hits = metrics.iou(truth.boxes[:, None], truth.boxes[None]) > _TUNED_AT
    chosen: list[int] = []
    for _ in range(boxes):
        missed = ~hits[chosen].any(0) if chosen else np.ones(len(hits), bool)
        chosen.append(int((hits & missed).sum(1).argmax()))
    return truth.boxes[chosen]


def _plain(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name).split())
