"""Networks of the protocol, each trained once: a training is a value, and its folder is named by it.

What a training depends on (its settings, data, and what it starts from, down to the first) decides its
name, so tables share networks, and a table that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from cxr_fast.model_files import model_digest
from cxr_fast.models import Architecture, ModelCard
from cxr_fast.models.card import Aggregation
from cxr_fast.training import Data, StageResult, TrainingSettings, train_base, train_from
from cxr_fast.training.stages import Reporter
from cxr_fast.training.state import digest

# Raised when the same settings begin to mean another training.
_VERSION = 1


def essentials(value: Any) -> Any:
    """The fields of a settings value that are not at their defaults, as JSON values, nested.

    So that a setting that is added later, and left at its default, changes no name. A default that is
    changed must change names: raise ``_VERSION`` then.
    """
    if not is_dataclass(value):
        return list(value) if isinstance(value, tuple) else value
    told = {}
    for entry in fields(value):
        own = getattr(value, entry.name)
        default = entry.default if entry.default_factory is MISSING else entry.default_factory()
        if own != default:
            told[entry.name] = essentials(own)
    return told


@dataclass(frozen=True)
class Training:
    """A training to be done: its settings, and the training that it starts from (None: nothing).

    ``weights`` is a file that the backbone of a first training begins with, and ``origin`` what it is
    known by: the key of another training, which is the same on every machine, as its bytes are not.
    """

    settings: TrainingSettings
    input_size: int
    start: Training | None = None
    aggregation: Aggregation = "none"
    weights: Path | None = None
    origin: str = ""

    def identity(self) -> dict[str, Any]:
        """Everything that it depends on but the data, as JSON values."""
        told: dict[str, Any] = {
            "settings": essentials(self.settings),
            "input_size": self.input_size,
            "aggregation": self.aggregation,
            "start": self.start and self.start.identity(),
        }
        if self.weights is None and not self.origin:
            return told
        return told | {"weights": self.origin or model_digest(str(self.weights))}


def outcome(result: StageResult, settings: TrainingSettings) -> Path:
    """The network that a training is for.

    The best epoch classifies best, but mining, and a running average of the weights, end where they
    were told to end.
    """
    ends = settings.stage == "mining" or settings.averaging
    return result.last if ends else result.best


@dataclass
class Laboratory:
    """Trains what is asked for, in ``folder``, from ``data`` by input size.

    ``mined`` is in the data at every size: the stage base ignores it. ``standardise`` as in
    ``ModelCard``.
    """

    folder: Path
    architecture: Architecture
    class_names: tuple[str, ...]
    data: Callable[[int], Data]
    fabric: Fabric
    reporter: Callable[[str], Reporter] | None = None
    standardise: bool = False
    _done: dict[str, StageResult] = field(default_factory=dict)

    def networks(self, training: Training) -> StageResult:
        """The networks of a training, trained now unless they are there."""
        key = self.key(training)
        if key not in self._done:
            self._done[key] = self._train(
                training, self.folder / f"{training.settings.stage}-{key[:12]}"
            )
        return self._done[key]

    def key(self, training: Training) -> str:
        """SHA-256 of all that decides the networks."""
        data = self.data(training.input_size)
        told = {
            "training": training.identity(),
            "version": _VERSION,
            "card": essentials(self._card(training)),
            "data": {name: digest(part) for name, part in data._asdict().items()},
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def _card(self, training: Training) -> ModelCard:
        return ModelCard(
            self.architecture,
            self.class_names,
            training.input_size,
            standardise=self.standardise,
        )

    def _train(self, training: Training, out: Path) -> StageResult:
        data, settings = self.data(training.input_size), training.settings
        named = f"{settings.stage} {training.input_size} seed {settings.seed}"
        reporter = self.reporter(named) if self.reporter else None
        if settings.stage != "mining":
            data = data._replace(mined=None)
        if training.start is None:
            architecture = replace(self.architecture, msa=training.aggregation)
            card = replace(self._card(training), architecture=architecture)
            return train_base(
                data,
                card,
                settings,
                out,
                imagenet=training.weights,
                fabric=self.fabric,
                reporter=reporter,
            )
        start = outcome(self.networks(training.start), training.start.settings)
        return train_from(
            start,
            data,
            settings,
            out,
            aggregation=training.aggregation if training.aggregation != "none" else "bilinear",
            fabric=self.fabric,
            reporter=reporter,
        )
