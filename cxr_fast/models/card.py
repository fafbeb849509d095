"""What a model is, apart from its weights: architecture, classes, input and mining settings.

Plain data, checked when it is made, and its form in JSON. Imports neither torch nor safetensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from cxr_fast import checks
from cxr_fast.config import MiningSettings

Backbone = Literal["resnet18", "resnet34", "resnet50"]
Aggregation = Literal["none", "bilinear", "deconv"]
Pooling = Literal["gap", "lse"]

# Not a property of the method: a bound that keeps a damaged file from asking for terabytes.
_WIDEST = 4.0
_LARGEST_INPUT = 16384


def _is_integer(value: object, low: int, high: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(values: object, accept: Callable[[float], bool] = lambda _: True) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) > 0
        and all(_is_number(value) and accept(value) for value in values)
    )


def _one_of(choices: tuple[str, ...]) -> tuple[str, Callable[[Any], bool]]:
    quoted = [repr(choice) for choice in choices]
    return f"{', '.join(quoted[:-1])} or {quoted[-1]}", lambda value: value in choices


# Field -> what it must be, in words, and the test of it. A field without a rule is not checked.
_Rules = Mapping[str, tuple[str, Callable[[Any], bool]]]

_ARCHITECTURE_RULES: _Rules = {
    "backbone": _one_of(get_args(Backbone)),
    "msa": _one_of(get_args(Aggregation)),
    "width": (
        f"a number above 0 and at most {_WIDEST:g} (1 is the published network)",
        lambda v: _is_number(v) and 0 < v <= _WIDEST,
    ),
    "in_channels": ("1 or 3", lambda v: _is_integer(v, 1, 3) and v != 2),
    "depth": ("3 or 4 (stages of the backbone)", lambda v: _is_integer(v, 3, 4)),
    "last_stride": ("1 or 2", lambda v: _is_integer(v, 1, 2)),
    "neck": ("an integer from 0 (none) to 4096", lambda v: _is_integer(v, 0, 4096)),
    "bilateral": ("true or false", lambda v: isinstance(v, bool)),
    "pooling": _one_of(get_args(Pooling)),
    "sharpness": ("a number above 0 and at most 100", lambda v: _is_number(v) and 0 < v <= 100),
}

_CARD_RULES: _Rules = {
    "architecture": ("an Architecture", lambda v: isinstance(v, Architecture)),
    "class_names": (
        "a tuple of one or more different names, none of them empty",
        lambda v: (
            isinstance(v, tuple)
            and len(v) > 0
            and all(isinstance(name, str) and name.strip() for name in v)
            and len(set(v)) == len(v)
        ),
    ),
    "input_size": (
        f"an integer from 32 to {_LARGEST_INPUT} (pixels, the side of a square)",
        lambda v: _is_integer(v, 32, _LARGEST_INPUT),
    ),
    "mean": ("a tuple of one or three numbers", lambda v: _are_numbers(v) and len(v) in (1, 3)),
    "std": (
        "a tuple of one or three numbers above 0",
        lambda v: _are_numbers(v, lambda s: s > 0) and len(v) in (1, 3),
    ),
    "standardise": ("true or false", lambda v: isinstance(v, bool)),
    "mining": ("a MiningSettings", lambda v: isinstance(v, MiningSettings)),
    "provenance": ("a text", lambda v: isinstance(v, str)),
}


def _check(owner: str, value: object, rules: _Rules) -> None:
    for name, (expected, accepts) in rules.items():
        got = getattr(value, name)
        if not accepts(got):
            raise ValueError(f"{name} of {owner} must be {expected}, but is {got!r}.")


@dataclass(frozen=True)
class Architecture:
    """The network of a model. ValueError for a value outside its range.

    ``msa``: multi-scale aggregation (Sec. 2.3 of the paper), its x2 upsampling bilinear or by a
    3x3 deconvolution (which begins as interpolation). ``width`` multiplies every channel count,
    rounded to a multiple of 8, at least 8. ``in_channels`` is 1 or 3; a network of 3 also takes grey
    images, and repeats them.

    What follows is not in the paper (docs/evidence.md says what it is good for). ``depth`` 3 leaves the
    last stage of the backbone out, and ``last_stride`` 1 lets the last one keep its resolution: small
    receptive fields on a fine map. ``neck`` channels, where above 0, come out of a 1x1 convolution,
    normalisation and ReLU between backbone and classifier. A ``bilateral`` network sees each half of
    the image on its own, the right one mirrored, so that neither lung is explained by the other.
    ``pooling`` makes a logit of a CAM: its mean (``"gap"``, Eq. 2), or ``"lse"``, log-sum-exp with a
    ``sharpness`` r (Pinheiro and Collobert, CVPR 2015, as Wang et al. 2017 use it):
    log(mean(exp(r * cam))) / r.
    """

    backbone: Backbone = "resnet50"
    msa: Aggregation = "bilinear"
    width: float = 1.0
    in_channels: int = 3
    depth: int = 4
    last_stride: int = 2
    neck: int = 0
    bilateral: bool = False
    pooling: Pooling = "gap"
    sharpness: float = 4.0

    def __post_init__(self) -> None:
        _check("an architecture", self, _ARCHITECTURE_RULES)
        if self.neck and self.msa != "none":
            raise ValueError(
                f"neck of an architecture must be 0 with multi-scale aggregation, but is {self.neck}; "
                "the aggregation is linear, and the neck is not."
            )

    def channels(self, published: int) -> int:
        """Scale a channel count of the published network (width 1) to this one's width."""
        return max(8, 8 * math.floor(published * self.width / 8 + 0.5))


@dataclass(frozen=True)
class ModelCard:
    """All that a model needs besides its weights. TypeError, ValueError for a value that cannot be.

    ``class_names`` name the C logits in order. Images are squares of ``input_size`` pixels, scaled
    to [0, 1], then ``(pixel - mean) / std``, both with one entry, or three for a network of three
    channels; with ``standardise`` (not in the paper) an image's own mean and standard deviation take
    their place, so that exposure says nothing. ``mining`` is what ``cxr-fast mine`` does by default
    with this model; ``provenance`` tells in free text how the model was trained.
    """

    architecture: Architecture
    class_names: tuple[str, ...]
    input_size: int = 512
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.25,)
    standardise: bool = False
    mining: MiningSettings = field(default_factory=MiningSettings)
    provenance: str = ""

    def __post_init__(self) -> None:
        _check("a model card", self, _CARD_RULES)
        try:
            checks.require_mining_settings(self.mining)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the mining settings of a model card: {error}.") from error
        if len(self.mean) != len(self.std):
            raise ValueError(
                "mean and std of a model card must have equally many entries, "
                f"but have {len(self.mean)} and {len(self.std)}."
            )
        if len(self.mean) == 3 and self.architecture.in_channels == 1:
            raise ValueError(
                "mean and std of a model with in_channels=1 must have one entry, but have 3."
            )


def recommended_mining(architecture: Architecture) -> MiningSettings:
    """What ``cxr-fast mine`` does by default with a newly trained network; chosen in docs/evidence.md.

    Where each half of the image is looked at alone, and pooled by log-sum-exp: a box around what each
    of three steps erases. Else the boxes of one step: more find no more of what is there, and more of
    what is not.
    """
    if architecture.bilateral and architecture.pooling == "lse":
        return MiningSettings(steps=3, cam_threshold=0.65, select="regions", upsample=4)
    return MiningSettings(steps=1)


def card_to_json(card: ModelCard) -> dict[str, Any]:
    """Give the card as values that JSON knows; tuples become lists there."""
    return asdict(card)


def card_from_json(values: object) -> ModelCard:
    """Undo ``card_to_json``, after a way through JSON.

    Keys that this version does not know are ignored, and absent ones take their defaults, where
    they have one. ValueError, in a sentence, for anything else that is no card.
    """
    known = checks.known_fields("the model card", ModelCard, values)
    known["architecture"] = Architecture(
        **checks.known_fields("the architecture", Architecture, known["architecture"])
    )
    if "mining" in known:
        settings = checks.known_fields("the mining settings", MiningSettings, known["mining"])
        known["mining"] = MiningSettings(**settings)
    return ModelCard(**known)
