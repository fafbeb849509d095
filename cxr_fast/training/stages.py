"""The stages of the paper: what each begins with, what of it learns, and by which objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from lightning_fabric import Fabric

from cxr_fast.model_files import model_digest
from cxr_fast.models import Classifier, ModelCard, build, load_checkpoint
from cxr_fast.models.card import Aggregation
from cxr_fast.training.loop import Data, Report, Trained, open_fabric, train
from cxr_fast.training.objectives import ClassificationObjective, MiningObjective
from cxr_fast.training.settings import TrainingSettings
from cxr_fast.training.step import MiningStepSettings

# Makes a reporter for the part of a stage that is named.
Reporter = Callable[[str], Report]


class StageResult(NamedTuple):
    """The model files that a stage left.

    ``best`` by the monitored value and ``last`` (those of the last step, where there are several);
    ``networks`` has the one that makes the CAMs, or one for each step t = 1..T (schedule ``staged``).
    ``histories``: rows of measurements, an epoch each, of every training that the stage took.
    """

    best: Path
    last: Path
    networks: tuple[Path, ...]
    histories: tuple[list[dict[str, float]], ...]


def train_base(
    data: Data,
    card: ModelCard,
    settings: TrainingSettings,
    out: Path,
    *,
    imagenet: Path | None = None,
    fabric: Fabric | None = None,
    reporter: Reporter | None = None,
) -> StageResult:
    """Stage ``base``: train the network of ``card``, new or from ``imagenet`` weights.

    Shapes, files and errors: ``loop.train``. ``card`` may have an aggregation, which is then trained
    with the rest from the beginning; ValueError for settings of another stage.
    """
    _require_stage(settings, "base")
    torch.manual_seed(settings.seed)
    model = build(card, imagenet=imagenet)
    origin = f"weights of {model_digest(imagenet)}" if imagenet else "drawn"
    objective = ClassificationObjective(model, settings.balance)
    return _one(data, objective, card, settings, out, origin, fabric, reporter)


def train_from(
    start: Path,
    data: Data,
    settings: TrainingSettings,
    out: Path,
    *,
    aggregation: Aggregation = "bilinear",
    fabric: Fabric | None = None,
    reporter: Reporter | None = None,
) -> StageResult:
    """Stages ``msa-init``, ``msa`` and ``mining``: go on from the model file ``start``.

    ``msa-init`` adds an ``aggregation`` to a network without one. The schedule ``staged`` of the stage
    ``mining`` trains T - 1 networks in ``out/step-2`` and so on, each from the last and all anchored at
    ``start``, which makes the CAMs of step 1. Errors: ``loop.train``, and ValueError where ``start``
    does not suit the stage.
    """
    model, card = load_checkpoint(start)
    origin = model_digest(start)
    if settings.stage == "base":
        raise ValueError("the stage base starts from nothing; call train_base, or name another stage")
    if settings.stage == "msa-init":
        model, card = _with_aggregation(model, card, aggregation, settings.seed, start)
    elif settings.stage == "msa":
        if model.msa is None:
            raise ValueError(
                f"the stage msa needs a network with aggregation, but {start} has none; give what the "
                "stage msa-init left"
            )
    else:
        return _mine(start, data, settings, out, fabric, reporter)
    objective = ClassificationObjective(model, settings.balance)
    return _one(data, objective, card, settings, out, origin, fabric, reporter)


def _mine(
    start: Path,
    data: Data,
    settings: TrainingSettings,
    out: Path,
    fabric: Fabric | None,
    reporter: Reporter | None,
) -> StageResult:
    """The stage ``mining``, in one training or in one a step."""
    anchor, card = load_checkpoint(start)
    origin = model_digest(start)
    mining = _fitted(settings.mining, anchor)
    if settings.schedule == "joint":
        model, _ = load_checkpoint(start)
        objective = MiningObjective(model, anchor, mining)
        return _one(data, objective, card, settings, out, origin, fabric, reporter)
    if mining.steps < 2:
        raise ValueError(
            "the schedule staged needs 2 steps or more; the first is the starting network's"
        )
    fabric = fabric or open_fabric(settings.precision)
    networks, histories = [start], []
    for step in range(2, mining.steps + 1):
        model, _ = load_checkpoint(networks[-1])
        earlier = [load_checkpoint(path)[0] for path in networks]
        objective = MiningObjective(model, anchor, replace(mining, steps=step), earlier)
        report = reporter(f"step {step}") if reporter else None
        chain = " ".join(model_digest(path) for path in networks)
        trained = train(
            data,
            objective,
            card,
            settings,
            out / f"step-{step}",
            start=chain,
            fabric=fabric,
            report=report,
        )
        networks.append(trained.last)
        histories.append(trained.history)
    return StageResult(trained.best, trained.last, tuple(networks), tuple(histories))


def _fitted(mining: MiningStepSettings, model: Classifier) -> MiningStepSettings:
    """The settings for a network that is not the published one: its layers' names, its pooling."""
    architecture = model.architecture
    # The last two bottlenecks, wherever the network ends; no aggregation where it has none.
    names = {"bottleneck3": f"bottleneck{architecture.depth - 1}"}
    names["bottleneck4"] = last = f"bottleneck{architecture.depth}"
    preserved = (names.get(n, n) for n in mining.preserved if n != "msa" or model.msa is not None)
    return replace(
        mining,
        preserved=tuple(preserved),
        features=mining.features if model.msa is not None else last,
        pooling=architecture.pooling,
        sharpness=architecture.sharpness,
    )


def _one(
    data: Data,
    objective: ClassificationObjective | MiningObjective,
    card: ModelCard,
    settings: TrainingSettings,
    out: Path,
    origin: str,
    fabric: Fabric | None,
    reporter: Reporter | None,
) -> StageResult:
    report = reporter(settings.stage) if reporter else None
    trained: Trained = train(
        data, objective, card, settings, out, start=origin, fabric=fabric, report=report
    )
    return StageResult(trained.best, trained.last, (trained.last,), (trained.history,))


def _with_aggregation(
    model: Classifier, card: ModelCard, aggregation: Aggregation, seed: int, start: Path
) -> tuple[Classifier, ModelCard]:
    """A network with that aggregation over the trunk of ``model``, which is frozen."""
    if model.msa is not None or aggregation == "none":
        raise ValueError(
            f"the stage msa-init adds an aggregation to a network without one, but {start} has "
            f"{model.architecture.msa!r} and {aggregation!r} was asked for; give what the stage base "
            "left, and 'bilinear' or 'deconv'"
        )
    card = replace(card, architecture=replace(card.architecture, msa=aggregation))
    torch.manual_seed(seed)
    grown = build(card)
    trunk = {n: v for n, v in model.state_dict().items() if not n.startswith("fc.")}
    grown.load_state_dict(trunk, strict=False)
    grown.requires_grad_(False)
    assert grown.msa is not None
    grown.msa.requires_grad_(True)
    grown.fc.requires_grad_(True)
    return grown, card


def _require_stage(settings: TrainingSettings, stage: str) -> None:
    if settings.stage != stage:
        raise ValueError(f"settings.stage must be {stage!r} here, but is {settings.stage!r}")
