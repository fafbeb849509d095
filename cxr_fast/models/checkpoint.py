"""One file, one model: weights and model card in a safetensors file. No code runs on loading.

The header's metadata has one entry of ours, ``cxr_fast``, a JSON object:

    {"format": "cxr_fast.classifier", "version": 1, "card": {"architecture": {...},
     "class_names": [...], "input_size": 512, "mean": [...], "std": [...], "mining": {...},
     "provenance": "..."}}

The tensors are the classifier's state_dict. Whoever adds to the card something that changes what a
model computes raises the version; anything else may be added without, as readers ignore what they
do not know.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cxr_fast.files import write_whole
from cxr_fast.models.card import ModelCard, card_from_json, card_to_json
from cxr_fast.models.msa import Classifier, build

FORMAT = "cxr_fast.classifier"
VERSION = 2  # 2: architectures beyond the paper's
_KEY = "cxr_fast"
_STORAGE = (torch.float32, torch.float16, torch.bfloat16)


class CheckpointError(ValueError):
    """A file that is no readable checkpoint of ours: what was expected, what came, what to do."""


def save_checkpoint(
    path: str | os.PathLike[str],
    model: Classifier,
    card: ModelCard,
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write model and card to ``path``, whole or not at all; equal input gives equal bytes.

    ``dtype`` (float32, float16, bfloat16) is how weights are stored; half precision halves the
    file. Biases and normalisation statistics, one in five hundred numbers, stay float32: a running
    variance can leave the range of float16. TypeError where the model is no ``Classifier``,
    ValueError where card and model disagree or weights overflow ``dtype``.
    """
    path = Path(path)
    if not isinstance(model, Classifier):
        raise TypeError(
            f"save_checkpoint takes a cxr_fast Classifier, but got {type(model).__name__}. Pass "
            "the model itself, not a compiled, parallel or folded one."
        )
    if model.architecture != card.architecture:
        raise ValueError(
            f"the card must describe the model, {model.architecture}, but describes "
            f"{card.architecture}."
        )
    if model.fc.out_features != len(card.class_names):
        raise ValueError(
            f"the card must name the model's {model.fc.out_features} classes, but names "
            f"{len(card.class_names)}."
        )
    if dtype not in _STORAGE:
        raise ValueError(f"dtype must be one of {_STORAGE}, but is {dtype}.")
    tensors = {name: _stored(name, value, dtype) for name, value in model.state_dict().items()}
    header = {"format": FORMAT, "version": VERSION, "card": card_to_json(card)}
    # A single entry: safetensors does not keep several in a fixed order.
    metadata = {_KEY: json.dumps(header, allow_nan=False)}
    write_whole(path, safetensors.torch.save(tensors, metadata))


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[Classifier, ModelCard]:
    """Read a model, float32, on the CPU and in eval mode, and its card.

    FileNotFoundError where there is no such file, CheckpointError where it is not a checkpoint
    that this version can read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} must be a model file, but there is no such file. Check the path."
        )
    try:
        with safe_open(path, framework="pt") as file:
            card = _read_card(path, file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} must be a safetensors file, but cannot be read as one: {error}. It is "
            "damaged, or of another kind; of weights saved by torch.save, "
            "cxr-fast adopt makes a model."
        ) from error
    # Without memory behind its weights, so that they are neither drawn nor held twice.
    with torch.device("meta"):
        model = build(card)
    expected = model.state_dict()
    _check_tensors(path, expected, tensors)
    # Copied, as these tensors are windows on the file: a model must outlive a change of it.
    weights = {name: tensors[name].to(value.dtype, copy=True) for name, value in expected.items()}
    model.load_state_dict(weights, assign=True)
    return model.eval(), card


def _stored(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    value = value.detach().cpu()
    if not value.is_floating_point():
        return value.contiguous()
    stored = value.to(dtype if value.dim() > 1 else torch.float32).contiguous()
    if not torch.equal(stored.isfinite(), value.isfinite()):
        raise ValueError(
            f"the weights must fit {stored.dtype}, but {name} reaches "
            f"{float(value.abs().max()):g}. Store them as float32."
        )
    return stored


def _read_card(path: Path, metadata: dict[str, str] | None) -> ModelCard:
    if metadata is None or _KEY not in metadata:
        raise CheckpointError(
            f"{path} must carry its model card in the metadata entry {_KEY!r}, but has "
            f"{sorted(metadata) if metadata else 'no metadata'}. It was not written by cxr_fast: "
            "make a model of its weights with cxr-fast adopt."
        )
    try:
        header: Any = json.loads(metadata[_KEY])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} must hold its model card as JSON, but that is damaged: {error}. Fetch or "
            "save the file anew."
        ) from error
    form, version = (
        (header.get("format"), header.get("version")) if isinstance(header, dict) else (None, None)
    )
    if form != FORMAT or not isinstance(version, int) or version < 1:
        raise CheckpointError(
            f"{path} must be of the format {FORMAT!r}, version 1 to {VERSION}, but says "
            f"{form!r}, version {version!r}. Give a file written by save_checkpoint."
        )
    if version > VERSION:
        raise CheckpointError(
            f"{path} must be of version {VERSION} of the format or below, but is of version "
            f"{version}: a newer cxr_fast wrote it. Upgrade cxr_fast to read it."
        )
    try:
        return card_from_json(header.get("card"))
    except ValueError as error:
        raise CheckpointError(
            f"{path} has a model card that does not hold: {error} Correct the card and save the "
            "model again."
        ) from error


def _check_tensors(path: Path, expected: dict[str, Tensor], came: dict[str, Tensor]) -> None:
    missing, unexpected = sorted(expected.keys() - came), sorted(came.keys() - expected)
    if missing or unexpected:
        raise CheckpointError(
            f"{path} must hold the {len(expected)} tensors of the architecture on its card, but "
            f"lacks {_some(missing)} and has beyond them {_some(unexpected)}. Save the model again "
            "with the card of its own architecture."
        )
    for name, value in expected.items():
        got = came[name]
        if got.shape != value.shape or got.is_floating_point() != value.is_floating_point():
            raise CheckpointError(
                f"{name} in {path} must be {value.dtype} {list(value.shape)} by the card, but is "
                f"{got.dtype} {list(got.shape)}. Save the model again with the card of its own "
                "architecture and classes."
            )


def _some(names: list[str]) -> str:
    if not names:
        return "none"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
