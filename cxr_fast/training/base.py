"""Training a classifier on an archive's image-level labels: the stage ``base`` of the paper.

Multi-label binary cross-entropy (Eq. 2-3) on images in the layout of ChestX-ray14. Boxes are never
read here. The images are decoded and resized once, bilinear from the original, and kept in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cxr_fast import metrics
from cxr_fast.archive.chestxray14 import read_labels, read_split
from cxr_fast.archive.images import UnreadableImage, read_image, to_input
from cxr_fast.config import BOXED_FINDINGS
from cxr_fast.losses import classification_loss
from cxr_fast.models import Classifier, ModelCard, build

# Called after every epoch with (epoch, epochs, training loss, AUROC of each class).
Progress = Callable[[int, int, float, np.ndarray], None]


@dataclass(frozen=True)
class TrainingSettings:
    """How the base stage trains. ValueError for a value out of range.

    ``validation`` is the share of patients held back. ``balance="wang"`` weights positives and
    negatives of each batch by (P+N)/P and (P+N)/N, as Wang et al. 2017 did.
    """

    epochs: int = 50
    batch_size: int = 64
    learning_rate: float = 0.1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    weight_decay: float = 1e-4
    warmup: float = 0.05
    balance: Literal["none", "wang"] = "none"
    augment: bool = True
    validation: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2:
            raise ValueError(
                f"epochs must be at least 1 and batch_size at least 2, but are {self.epochs} and "
                f"{self.batch_size}; batch normalisation needs two images"
            )
        if not 0 < self.learning_rate < math.inf or not 0 <= self.validation < 1:
            raise ValueError(
                f"learning_rate must be above 0 and validation in [0, 1), but are "
                f"{self.learning_rate} and {self.validation}"
            )


class LabelledImages(NamedTuple):
    """``images`` uint8 [N, S, S], ``labels`` float32 [N, C], ``patients`` int64 [N]."""

    images: Tensor
    labels: Tensor
    patients: np.ndarray


class TrainedModel(NamedTuple):
    """The network of the best epoch by mean validation AUROC, with that AUROC of each class."""

    model: Classifier
    auroc: np.ndarray
    epoch: int


def load_archive(
    archive: str | Path,
    input_size: int,
    findings: tuple[str, ...] = BOXED_FINDINGS,
    split: str = "train_val_list.txt",
    threads: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> LabelledImages:
    """Read a split of an archive in the layout of ChestX-ray14, resized to squares.

    FileNotFoundError if a table is missing; ValueError if an image of the split is not readable or
    has no row in the label table.
    """
    folder = Path(archive)
    table = read_labels(_one_of(folder, "Data_Entry*.csv"))
    wanted = read_split(_one_of(folder, split))
    rows = {name: row for row, name in enumerate(table.images)}
    missing = [name for name in wanted if name not in rows]
    if missing:
        raise ValueError(
            f"{len(missing)} images of {split} have no row in the label table, the first is "
            f"{missing[0]}; the two files belong to different archives"
        )
    files = {path.name: path for path in folder.glob("images*/**/*.png")}
    columns = [table.findings.index(name) for name in findings]
    images = torch.empty(len(wanted), input_size, input_size, dtype=torch.uint8)

    def load(index: int) -> None:
        name = wanted[index]
        if name not in files:
            raise ValueError(f"{name} of {split} is not in {folder}/images*; complete the archive")
        try:
            pixels = to_input(read_image(files[name]), input_size)
        except UnreadableImage as error:
            raise ValueError(f"{files[name]} cannot be read: {error}") from error
        images[index] = torch.from_numpy(np.rint(pixels * 255).astype(np.uint8))

    with ThreadPoolExecutor(threads) as pool:
        for done, _ in enumerate(pool.map(load, range(len(wanted))), 1):
            if progress:
                progress(done, len(wanted))
    picked = [rows[name] for name in wanted]
    labels = torch.from_numpy(table.matrix[picked][:, columns].astype(np.float32))
    return LabelledImages(images, labels, table.patients[picked])


def _one_of(folder: Path, pattern: str) -> Path:
    found = sorted([*folder.glob(pattern), *folder.glob(pattern + ".gz")])
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise FileNotFoundError(
            f"{folder} must hold one {pattern} (or .gz) as ChestX-ray14 does, but has {names}; give "
            "the folder that holds the tables and the images folder"
        )
    return found[0]


def train_base(
    data: LabelledImages,
    card: ModelCard,
    settings: TrainingSettings,
    progress: Progress | None = None,
) -> TrainedModel:
    """Train the network of ``card`` on image-level labels; deterministic in ``settings.seed``.

    ValueError if a class has no positive or no negative image to train on.
    """
    torch.manual_seed(settings.seed)
    generator = np.random.default_rng(settings.seed)
    patients = np.unique(data.patients)
    held = generator.permutation(patients)[: round(len(patients) * settings.validation)]
    is_held = np.isin(data.patients, held)
    train, validation = np.flatnonzero(~is_held), np.flatnonzero(is_held)
    _require_both_labels(data.labels[train], card.class_names)

    model = build(card)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in the stubs
    optimizer = _optimizer(model, settings)
    steps = settings.epochs * max(1, len(train) // settings.batch_size)
    warmup = max(1, round(steps * settings.warmup))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))),
    )
    best: tuple[float, int, dict[str, Tensor], np.ndarray] | None = None
    for epoch in range(1, settings.epochs + 1):
        model.train()
        losses = []
        for batch in _batches(generator.permutation(train), settings.batch_size):
            pixels = data.images[batch]
            images = _augment(pixels, generator) if settings.augment else _scaled(pixels)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(_normalised(images, card))
            loss = classification_loss(logits.float(), data.labels[batch], settings.balance)
            if not torch.isfinite(loss):
                raise ValueError(
                    f"the loss became {float(loss.detach())} in epoch {epoch}; lower the learning rate"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        judged = validation if len(validation) else train
        auroc = metrics.auroc(predict(model, data.images[judged], card), data.labels[judged].numpy())
        mean = float(np.nan_to_num(np.nanmean(auroc), nan=-1.0))
        if best is None or mean > best[0]:
            state = {name: value.clone() for name, value in model.state_dict().items()}
            best = (mean, epoch, state, auroc)
        if progress:
            progress(epoch, settings.epochs, float(np.mean(losses)), auroc)
    assert best is not None  # at least one epoch
    model.load_state_dict(best[2])
    return TrainedModel(model.eval(), best[3], best[1])


@torch.no_grad()
def predict(model: Classifier, images: Tensor, card: ModelCard, batch_size: int = 64) -> np.ndarray:
    """Probabilities [N, C] for uint8 images [N, S, S]."""
    model.eval()
    rows = []
    for batch in images.split(batch_size):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(_normalised(_scaled(batch), card))
        rows.append(logits.float().sigmoid())
    return torch.cat(rows).numpy()


def provenance(archive: str | Path, settings: TrainingSettings, trained: TrainedModel) -> str:
    """One line for the model card: what made the model, and how well it ranks images."""
    values = ", ".join(f"{key}={value}" for key, value in asdict(settings).items())
    return (
        f"stage base on {Path(archive).name}; {values}; best epoch {trained.epoch}, "
        f"mean validation AUROC {np.nanmean(trained.auroc):.3f}"
    )


def _require_both_labels(labels: Tensor, names: tuple[str, ...]) -> None:
    for name, share in zip(names, labels.mean(0).tolist(), strict=True):
        if not 0 < share < 1:
            raise ValueError(
                f"{name} is {'in every' if share else 'in no'} training image; a classifier needs "
                "both: leave the finding out, or give more images"
            )


def _optimizer(model: Classifier, settings: TrainingSettings) -> torch.optim.Optimizer:
    # Norms and biases are not decayed.
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate)
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=0.9, nesterov=True)


def _batches(order: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Whole batches; a short last one would upset batch normalisation."""
    for start in range(0, max(len(order) - size, 0) + 1, size):
        yield order[start : start + size]


def _scaled(pixels: Tensor) -> Tensor:
    return pixels[:, None].float() / 255


def _normalised(images: Tensor, card: ModelCard) -> Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in (card.mean, card.std))
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def _augment(pixels: Tensor, generator: np.random.Generator) -> Tensor:
    """Small rotations, shifts, zooms and exposures; no flips, the heart has a side."""
    n = len(pixels)
    angle, zoom = generator.normal(0, 0.06, n), np.exp(generator.normal(0, 0.06, n))
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    shift = generator.normal(0, 0.04, (n, 2))
    affine = np.stack(
        [np.stack([cos, -sin, shift[:, 0]], -1), np.stack([sin, cos, shift[:, 1]], -1)], 1
    )
    grid = nn.functional.affine_grid(
        torch.from_numpy(affine).float(), [n, 1, *pixels.shape[1:]], align_corners=False
    )
    images = nn.functional.grid_sample(
        _scaled(pixels), grid, padding_mode="border", align_corners=False
    )
    gain = torch.from_numpy(np.exp(generator.normal(0, 0.15, (n, 1, 1, 1)))).float()
    offset = torch.from_numpy(generator.normal(0, 0.05, (n, 1, 1, 1))).float()
    return ((images - 0.5) * gain + 0.5 + offset).clamp(0, 1)
