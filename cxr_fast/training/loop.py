"""The training loop of every stage: updates, validation, checkpoints, logs, and going on after a kill.

Devices, precision and processes are Lightning Fabric's; what is here is what it leaves to its users.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cxr_fast import metrics
from cxr_fast.files import held
from cxr_fast.losses import classification_loss
from cxr_fast.mining import Precision, resolve_device, resolve_precision
from cxr_fast.models import Classifier, ModelCard, normalise, save_checkpoint
from cxr_fast.models.card import card_to_json
from cxr_fast.training.batches import Labelled, Plan
from cxr_fast.training.logs import Board, write_csv
from cxr_fast.training.norms import freeze, synchronise
from cxr_fast.training.objectives import ClassificationObjective, MiningObjective
from cxr_fast.training.preconditions import require_both_labels, require_monitored, require_precision
from cxr_fast.training.settings import TrainingSettings, to_json
from cxr_fast.training.state import Progress, digest, load_state, save_state

BEST, LAST = "best.safetensors", "last.safetensors"

# Called by the first process after every update with (updates done, of how many at most, a note).
Report = Callable[[int, int, str], None]


class Data(NamedTuple):
    """What a stage learns from: ``train``, the ``validation`` it is judged by (or None), and the images
    to be ``mined`` (stage ``mining`` only). Labels, never boxes.
    """

    train: Labelled
    validation: Labelled | None = None
    mined: Labelled | None = None


class Trained(NamedTuple):
    """The files of the best and the last epoch's model, and what was measured after every epoch."""

    best: Path
    last: Path
    history: list[dict[str, float]]


def open_fabric(precision: Precision = "auto", device: str = "auto") -> Fabric:
    """Set up this process's device and precision, and meet the others that torchrun started."""
    where = resolve_device(device)
    narrow = resolve_precision(precision, where) is torch.bfloat16
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    nodes = int(os.environ.get("WORLD_SIZE", here)) // here
    devices: list[int] | int = here if where.type == "cpu" or here > 1 else [where.index or 0]
    fabric = Fabric(
        accelerator=where.type,
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if here * nodes > 1 else "auto",
        precision="bf16-mixed" if narrow else "32-true",
    )
    fabric.launch()
    return fabric


def train(
    data: Data,
    objective: ClassificationObjective | MiningObjective,
    card: ModelCard,
    settings: TrainingSettings,
    out: Path,
    *,
    start: str = "",
    fabric: Fabric | None = None,
    report: Report | None = None,
) -> Trained:
    """Minimise an objective, and leave the best and the last model in ``out``.

    Args:
        data: images and labels.
        objective: it holds the network; what its parameters require gradients of is trained.
        card: describes that network; its provenance is completed.
        settings: how.
        out: ``best.safetensors``, ``last.safetensors``, ``metrics.csv``, ``tensorboard/`` and the
            state of an unfinished training. A training that it holds already goes on, and ends with
            the weights that it would have had without the interruption (bit for bit in one
            process on a CPU, with as many threads).
        start: what the network's first weights are, in words or as a digest; a part of what a resumed
            training must have in common with the first.
        fabric: device and processes; ``open_fabric`` by default.
        report: called after every update.

    Raises:
        ValueError: a class without positive or without negative images, validation images that the
            monitored value cannot be had of, a batch that the processes cannot share, another
            precision than the fabric's, a loss that is not finite, a folder with another training.
        RuntimeError: a folder that another process trains in.
    """
    fabric = fabric or open_fabric(settings.precision)
    require_both_labels(data.train, card.class_names)
    require_monitored(data.validation, settings)
    plan = _plan(data, settings, fabric.world_size)
    require_precision(settings, fabric)
    network = card_to_json(card)
    told = {
        "settings": to_json(settings),
        "network": {k: v for k, v in network.items() if k not in ("provenance", "mining")},
        "precision": fabric.strategy.precision.precision,
        "data": {name: digest(part) for name, part in zip(Data._fields, data, strict=True)},
        "start": start,
        "processes": fabric.world_size,
    }
    out.mkdir(parents=True, exist_ok=True)
    loop = _Loop(plan, data.validation, objective, card, told, out, fabric)
    if not fabric.is_global_zero:
        loop.run(None)
    else:
        with held(out):
            loop.run(report)
    return Trained(out / BEST, out / LAST, loop.progress.history)


def _plan(data: Data, settings: TrainingSettings, processes: int) -> Plan:
    parts = processes * settings.accumulate
    batch = settings.batch_size
    if batch % parts:
        raise ValueError(
            f"batch_size must be a multiple of processes x accumulate, but is {batch} for "
            f"{processes} x {settings.accumulate}; change one of them"
        )
    erased = 0
    if settings.stage == "mining":
        if data.mined is None or not len(data.mined.labels):
            raise ValueError("the stage mining needs images to mine; name them")
        erased = settings.mining.erased_images(batch)
        if settings.mining.erased_images(batch // parts) * parts != erased:
            raise ValueError(
                f"of a batch of {batch}, {erased} images are erased, which {parts} parts (processes x "
                "accumulate) cannot share equally; take fewer parts, or a larger batch"
            )
    plan = Plan(data.train, data.mined if erased else None, settings, erased)
    if len(data.train.labels) < batch - erased:
        raise ValueError(
            f"batch_size is {batch}, but there are {len(data.train.labels)} training images; lower it"
        )
    return plan


class _Loop:
    """One training, in one process."""

    def __init__(
        self,
        plan: Plan,
        validation: Labelled | None,
        objective: ClassificationObjective | MiningObjective,
        card: ModelCard,
        told: dict[str, Any],
        out: Path,
        fabric: Fabric,
    ) -> None:
        self.plan, self.settings = plan, plan.settings
        self.validation, self.card, self.told, self.out = validation, card, told, out
        self.fabric = fabric
        self.progress = Progress()
        self.model = objective.model
        if fabric.world_size > 1:
            synchronise(self.model, fabric.device)
        for network in (self.model, *objective.frozen):
            network.to(fabric.device)
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in stubs
        optimizer = _optimizer(self.model, self.settings)
        module: Any = torch.compile(objective) if self.settings.compile else objective
        self.objective, self.optimizer = fabric.setup(module, optimizer)
        self.average: AveragedModel | None = None
        if self.settings.averaging:
            mean = get_ema_multi_avg_fn(self.settings.averaging)
            self.average = AveragedModel(self.model, multi_avg_fn=mean, use_buffers=True)
        self.epochs = self.settings.epochs_to_train
        self.updates = self.epochs * plan.updates

    def run(self, report: Report | None) -> None:
        self._resume()
        progress = self.progress
        with Board(self.out, self.fabric.is_global_zero, self._done()) as board:
            while not progress.finished:
                self._train_epoch(report, board)
                self._end_epoch(board)
        self.fabric.barrier()

    def _done(self) -> int:
        return self.progress.epoch * self.plan.updates + self.progress.update

    def _resume(self) -> None:
        found = load_state(self.out, self.told)
        if found is not None:
            self.progress, tensors = found
            for name, part in self._parts().items():
                part.load_state_dict(tensors[name])
        else:  # before any model: a folder with models and no state is somebody else's
            self._save()

    def _save(self) -> None:
        if self.fabric.is_global_zero:
            tensors = {name: part.state_dict() for name, part in self._parts().items()}
            save_state(self.out, self.told, self.progress, tensors)
        self.fabric.barrier()

    def _parts(self) -> dict[str, Any]:
        """What the next update depends on."""
        parts = {"model": self.model, "optimizer": self.optimizer, "average": self.average}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def _result(self) -> Classifier:
        """The network that is judged and written."""
        return self.model if self.average is None else cast(Classifier, self.average.module)

    def _train_epoch(self, report: Report | None, board: Board) -> None:
        progress, fabric = self.progress, self.fabric
        self.objective.train()
        for part in self.model.modules():
            own = list(part.parameters(recurse=False))
            if own and not any(p.requires_grad for p in own):
                freeze(part)
        if self.settings.frozen_norms:
            freeze(self.model)
        while progress.update < self.plan.updates:
            rate = self._rate()
            losses = self._update()
            if not math.isfinite(losses["total"]):
                raise ValueError(
                    f"the loss became {losses['total']} in epoch {progress.epoch + 1}; lower "
                    "the learning rate"
                )
            for name, value in losses.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value
            progress.update += 1
            board.write("update", {**losses, "learning_rate": rate}, self._done())
            if report:
                report(
                    self._done(),
                    self.updates,
                    f"epoch {progress.epoch + 1}, loss {losses['total']:.4f}",
                )
            if (
                self._done() % self.settings.checkpoint_every == 0
                and progress.update < self.plan.updates
            ):
                self._save()
        fabric.barrier()

    def _update(self) -> dict[str, float]:
        """One step of the optimizer; its losses, averaged over the parts of the batch."""
        fabric, accumulate = self.fabric, self.settings.accumulate
        parts = fabric.world_size * accumulate
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros(3, device=fabric.device)
        for index in range(accumulate):
            part = fabric.global_rank * accumulate + index
            batch = self.plan.part(self.progress.epoch, self.progress.update, part, parts)
            images, labels = (tensor.to(fabric.device, non_blocking=True) for tensor in batch)
            with fabric.no_backward_sync(self.objective, enabled=index < accumulate - 1):
                losses = self.objective(normalise(images, self.card), labels)
                fabric.backward(losses.total / accumulate)
            total += torch.stack([value.detach().float() for value in losses]) / accumulate
        if self.settings.gradient_clip:
            # A loss that is not finite is told by name, after the update.
            fabric.clip_gradients(
                self.objective,
                self.optimizer,
                max_norm=self.settings.gradient_clip,
                error_if_nonfinite=False,
            )
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        if fabric.world_size > 1:
            total = fabric.all_reduce(total)  # type: ignore[assignment]
        names = ("total", "classification", "preservation")
        return dict(zip(names, total.tolist(), strict=True))

    def _rate(self) -> float:
        """The learning rate of the next update."""
        done, settings = self._done(), self.settings
        warmup = max(1, round(self.updates * settings.warmup))
        rate = settings.learning_rate * min((done + 1) / warmup, 1.0)
        if settings.decay == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * min(done, self.updates) / self.updates))
        return rate

    def _end_epoch(self, board: Board) -> None:
        progress, settings = self.progress, self.settings
        row = {"epoch": float(progress.epoch + 1)}
        row |= {f"train_{name}": value / progress.update for name, value in progress.sums.items()}
        judged = self.validation if self.validation is not None else self.plan.kept
        row |= self._judge(judged)
        monitored = row["loss"] if settings.monitor == "loss" else -row["auroc"]
        if math.isnan(monitored):  # of training images: their AUROC can be had of all or of none
            monitored = math.inf
        progress.history.append(row)
        progress.epoch, progress.update, progress.sums = progress.epoch + 1, 0, {}
        improved = monitored < progress.best or not progress.best_epoch
        if improved:
            progress.best, progress.best_epoch = monitored, progress.epoch
        waited = progress.epoch - progress.best_epoch
        patience = settings.epochs_of_patience
        progress.finished = progress.epoch >= self.epochs or bool(patience and waited >= patience)
        if self.fabric.is_global_zero:
            board.write("epoch", row, self._done())
            names = (BEST, LAST) if improved else (LAST,)
            for name in names:
                self._write_model(self.out / name)
            write_csv(self.out / "metrics.csv", progress.history)
        self._save()

    def _write_model(self, path: Path) -> None:
        progress = self.progress
        row = progress.history[-1]
        judged = "validation" if self.validation is not None else "training"
        told = (
            f"stage {self.settings.stage}, {progress.epoch} epochs, {judged} loss {row['loss']:.4f}, "
            f"mean AUROC {row['auroc']:.3f}"
        )
        before = f"{self.card.provenance}; " if self.card.provenance else ""
        save_checkpoint(path, self._result, replace(self.card, provenance=before + told))

    def _judge(self, judged: Labelled) -> dict[str, float]:
        """Loss and AUROC of the network in eval mode, each process on its share of the images."""
        logits = predict(self._result, judged, self.card, self.fabric)
        if not logits.isfinite().all():
            raise ValueError(
                "the network's output is not finite after this epoch; lower the learning rate, or clip "
                "the gradients. The last good epoch is kept"
            )
        labels = np.asarray(judged.labels)
        loss = classification_loss(logits, torch.as_tensor(labels).float(), self.settings.balance)
        auroc = metrics.auroc(logits.numpy(), labels)
        row = {
            "loss": float(loss),
            "auroc": float(np.nanmean(auroc)) if not np.isnan(auroc).all() else math.nan,
        }
        named = zip(self.card.class_names, auroc, strict=True)
        return row | {f"auroc_{name}": float(value) for name, value in named}


@torch.no_grad()
def predict(
    model: Classifier, images: Labelled, card: ModelCard, fabric: Fabric, batch_size: int = 64
) -> Tensor:
    """Logits [N, C] float32 on the CPU, in every process."""
    was_training = model.training
    model.eval()
    count, world = len(images.labels), fabric.world_size
    own = -(-count // world)
    rows = np.arange(fabric.global_rank * own, (fabric.global_rank + 1) * own).clip(max=count - 1)
    logits = []
    for first in range(0, own, batch_size):
        pixels = torch.as_tensor(images.images[rows[first : first + batch_size]])
        scaled = pixels.to(fabric.device)[:, None].float() / 255
        with fabric.autocast():
            logits.append(model(normalise(scaled, card)).float())
    gathered = torch.cat(logits)
    if world > 1:
        gathered = fabric.all_gather(gathered).flatten(0, 1)  # type: ignore[union-attr]
    model.train(was_training)
    return gathered[:count].cpu()


def _optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    # Norms and biases are not decayed.
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate)
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=0.9, nesterov=True)
