"""What a training run is told, in one frozen value; a YAML file or the command's flags give it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from cxr_fast import checks
from cxr_fast.training.augment import Augmentation
from cxr_fast.training.step import MiningStepSettings

Stage = Literal["base", "msa-init", "msa", "mining"]
Schedule = Literal["joint", "staged"]

# Epochs of each stage, as published where the paper says; `msa` ends when its loss plateaus.
_EPOCHS: Mapping[Stage, int] = {"base": 50, "msa-init": 10, "msa": 100, "mining": 10}


@dataclass(frozen=True)
class TrainingSettings:
    """How a stage trains. ValueError for a value out of range; the defaults are the paper's.

    ``stage``: ``"base"`` trains the backbone, ``"msa-init"`` a new aggregation and classifier over
    the frozen backbone, ``"msa"`` the whole until the validation loss plateaus, ``"mining"`` goes on
    with attention mining. ``epochs`` of 0 means the stage's own: 50, 10, at most 100, and 10 (the last
    is ours: the paper does not say). An epoch of the stage ``mining`` is one pass over the images to
    mine.

    ``batch_size`` counts the images of one update, over all processes and over the ``accumulate``
    parts that it is computed in. ``decay`` of the learning rate after the share ``warmup`` of the
    updates: ``"cosine"`` to 0, or ``"constant"``. ``balance="wang"`` weights positives and negatives
    of each batch by (P+N)/P and (P+N)/N, as Wang et al. 2017 did. ``frozen_norms`` keeps batch
    normalisation in eval mode.

    Not in the paper, and off unless said: ``gradient_clip`` is the largest l2 norm of a gradient, and
    ``averaging`` the decay of an exponential moving average of the weights over the updates; what is
    judged and written is the average then.

    ``validation`` is the share of patients held back, whose loss (``monitor="loss"``) or mean AUROC
    picks the best epoch. ``patience``: epochs without a better one that end the training, 0 for
    never; None is 5 for the stage ``msa`` and 0 for the others.

    ``schedule``: ``"joint"`` takes all mining steps on one forward pass; ``"staged"`` trains one
    network a step, each from the last, on what the networks before it erased.

    ``checkpoint_every``: updates between two states on disk, beside one after every epoch.
    """

    stage: Stage = "base"
    epochs: int = 0
    batch_size: int = 64
    accumulate: int = 1
    learning_rate: float = 0.1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    weight_decay: float = 1e-4
    warmup: float = 0.05
    decay: Literal["cosine", "constant"] = "cosine"
    balance: Literal["none", "wang"] = "none"
    frozen_norms: bool = False
    gradient_clip: float = 0.0
    averaging: float = 0.0
    validation: float = 0.1
    monitor: Literal["loss", "auroc"] = "loss"
    patience: int | None = None
    schedule: Schedule = "joint"
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    checkpoint_every: int = 500
    augmentation: Augmentation = field(default_factory=Augmentation)
    mining: MiningStepSettings = field(default_factory=MiningStepSettings)

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            checks.require_choice(name, getattr(self, name), choices)
        positive = {"accumulate": self.accumulate, "checkpoint_every": self.checkpoint_every}
        for name, value in positive.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}")
        if self.stage == "mining" and self.balance != "none":
            raise ValueError(
                "the stage mining weighs all labels alike (Eq. 3), but balance is "
                f"{self.balance!r}; leave it out"
            )
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, but is {self.seed}")
        if self.epochs < 0 or self.batch_size < 2:
            raise ValueError(
                f"epochs must be at least 1 (or 0 for the stage's own) and batch_size at least 2, but "
                f"are {self.epochs} and {self.batch_size}; batch normalisation needs two images"
            )
        if not 0 < self.learning_rate < math.inf or not 0 <= self.validation < 1:
            raise ValueError(
                f"learning_rate must be above 0 and validation in [0, 1), but are "
                f"{self.learning_rate} and {self.validation}"
            )
        if not 0 <= self.warmup < 1 or not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"warmup must be in [0, 1) and weight_decay at least 0, but are {self.warmup} and "
                f"{self.weight_decay}"
            )
        if not 0 <= self.gradient_clip < math.inf or not 0 <= self.averaging < 1:
            raise ValueError(
                f"gradient_clip must be at least 0 (0: none) and averaging in [0, 1), but are "
                f"{self.gradient_clip} and {self.averaging}"
            )
        if self.patience is not None and self.patience < 0:
            raise ValueError(f"patience must be at least 0, but is {self.patience}; 0 never stops")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size must be a multiple of accumulate, but they are {self.batch_size} and "
                f"{self.accumulate}"
            )

    @property
    def epochs_to_train(self) -> int:
        """``epochs``, or the stage's own number."""
        return self.epochs or _EPOCHS[self.stage]

    @property
    def epochs_of_patience(self) -> int:
        """``patience``, or the stage's own number."""
        return (5 if self.stage == "msa" else 0) if self.patience is None else self.patience


_CHOICES = {
    "stage": get_args(Stage),
    "optimizer": ("sgd", "adamw"),
    "decay": ("cosine", "constant"),
    "balance": ("none", "wang"),
    "monitor": ("loss", "auroc"),
    "schedule": get_args(Schedule),
    "precision": ("auto", "float32", "bfloat16"),
}

# Settings that are values of their own.
PARTS = {"augmentation": Augmentation, "mining": MiningStepSettings}


def to_json(settings: TrainingSettings) -> dict[str, Any]:
    """The settings as nested JSON values."""
    values = asdict(settings)
    values["mining"]["preserved"] = list(settings.mining.preserved)
    return values


def from_values(values: Mapping[str, Any]) -> TrainingSettings:
    """Settings from nested values, as YAML gives them; what is absent takes its default.

    ValueError for a name that is no setting, or a value of another type or out of range.
    """
    flat = _known(TrainingSettings, values, "settings")
    for name, kind in PARTS.items():
        given = flat.pop(name, None)  # an entry without a value, in YAML, is None
        if isinstance(given, kind):
            flat[name] = given
        elif isinstance(given, Mapping):
            flat[name] = kind(**_known(kind, given, name))
        elif given is not None:
            raise ValueError(
                f"{name} must hold names and values, such as '{fields(kind)[0].name}: ...', but is "
                f"{given!r}"
            )
    return TrainingSettings(**flat)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings, nested as ``TrainingSettings`` is.

    FileNotFoundError without the file, ValueError for what is no mapping.
    """
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"--config must be a YAML file, but {path} is not a file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be YAML, but cannot be read as such: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(
            f"{path} must hold names and values, such as 'stage: base', but holds {values!r}"
        )
    return values


def _known(kind: type[Any], values: Mapping[str, Any], owner: str) -> dict[str, Any]:
    names = {entry.name: entry for entry in fields(kind)}
    known: dict[str, Any] = {}
    for name, value in values.items():
        if name not in names:
            raise ValueError(f"{name!r} is none of the {owner}; there are {', '.join(names)}")
        known[name] = _typed(f"{owner}.{name}", str(names[name].type), value)
    return known


def _typed(name: str, kind: str, value: Any) -> Any:
    """Convert where YAML's idea of a number differs (1e-3 is text there); refuse other types."""
    if kind == "float" and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    elif kind.startswith("int"):
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if value is None and kind.endswith("None"):
            return None
    elif kind == "bool":
        if isinstance(value, bool):
            return value
    elif kind.startswith("tuple"):
        if isinstance(value, list | tuple):
            return tuple(value)
    else:
        return value
    raise ValueError(f"{name} must be of the type {kind}, but is {value!r}")
