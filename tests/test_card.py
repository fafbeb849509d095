"""What a model card and an architecture refuse, and in which words."""

from __future__ import annotations

from typing import Any

import pytest

from cxr_fast.config import MiningSettings
from cxr_fast.models import Architecture, ModelCard


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backbone", "resnet101"),
        ("backbone", ["resnet18"]),
        ("msa", "Bilinear"),
        ("msa", None),
        ("width", 0),
        ("width", -1.0),
        ("width", float("nan")),
        ("width", 1e9),
        ("width", True),
        ("width", "1"),
        ("in_channels", 2),
        ("in_channels", 3.0),
        ("in_channels", True),
    ],
)
def test_architecture_refuses(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} of an architecture must be .*, but is "):
        Architecture(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architecture", {}),
        ("class_names", ()),
        ("class_names", "Mass"),
        ("class_names", ("Mass", "Mass")),
        ("class_names", ("Mass", " ")),
        ("class_names", ("Mass", 1)),
        ("input_size", 31),
        ("input_size", 512.0),
        ("mean", (0.5, 0.5)),
        ("mean", (float("inf"),)),
        ("mean", 0.5),
        ("std", (0.0,)),
        ("mining", None),
        ("provenance", None),
    ],
)
def test_card_refuses(field: str, value: Any) -> None:
    fields = {"architecture": Architecture(), "class_names": ("Mass", "Nodule"), field: value}
    with pytest.raises(ValueError, match=f"{field} of a model card must be .*, but is "):
        ModelCard(**fields)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("steps", 256),
        ("cam_threshold", 1.0),
        ("connectivity", 6),
        ("mode", "literal"),
        ("thresholds", ()),
        ("thresholds", (0.5, 1.5)),
        ("select", "all"),
        ("max_boxes", 0),
        ("max_overlap", float("nan")),
        ("upsample", 0.5),
    ],
)
def test_card_refuses_mining_settings(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field}"):
        ModelCard(Architecture(), ("Mass",), mining=MiningSettings(**{field: value}))


def test_card_normalisation_must_agree() -> None:
    with pytest.raises(ValueError, match="equally many entries, but have 3 and 1"):
        ModelCard(Architecture(), ("Mass",), mean=(0.4, 0.4, 0.4))
    with pytest.raises(ValueError, match="in_channels=1 must have one entry"):
        ModelCard(Architecture(in_channels=1), ("Mass",), mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2))
