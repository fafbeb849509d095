"""The state of an unfinished training on disk: all that the next update depends on.

One file, ``state.pt``, written whole or not at all, and read without running code. The order of the
images and their changes are functions of the seed and the update (``batches``), so they need no state.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cxr_fast.files import differences, write_whole
from cxr_fast.training.batches import Labelled
from cxr_fast.training.settings import PARTS, TrainingSettings, to_json

STATE = "state.pt"


@dataclass
class Progress:
    """How far a training has come. ``update`` counts those of the epoch that are done.

    ``sums`` of the losses over them; ``history`` has a row an epoch; ``best`` is the monitored value
    of the epoch ``best_epoch`` (0 before the first), lower is better.
    """

    epoch: int = 0
    update: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best: float = float("inf")
    best_epoch: int = 0
    finished: bool = False


def save_state(folder: Path, told: dict[str, Any], progress: Progress, tensors: dict[str, Any]) -> None:
    """Write ``folder/state.pt``. OSError, with the old state in place, where the disk is full."""
    buffer = io.BytesIO()
    torch.save({"told": told, "progress": asdict(progress), "tensors": tensors}, buffer)
    write_whole(folder / STATE, buffer.getvalue())


def load_state(folder: Path, told: dict[str, Any]) -> tuple[Progress, dict[str, Any]] | None:
    """The state in a folder, or None where there is none.

    Raises ValueError for a file that is no state, and for the state of a training that was ``told``
    otherwise; the message lists what differs.
    """
    path = folder / STATE
    if not path.exists():
        return None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        before, progress, tensors = loaded["told"], Progress(**loaded["progress"]), loaded["tensors"]
        # A setting that is newer than the state had its default's meaning.
        before["settings"] = _completed(before["settings"])
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, OSError) as error:
        raise ValueError(
            f"{path} must be the state of a training, but cannot be read as one "
            f"({type(error).__name__}); name another folder"
        ) from error
    changed = differences(before, told)
    if changed:
        raise ValueError(
            f"{folder} holds a training with other settings: {'; '.join(changed)}. Give the old "
            "settings to go on with it, or name another folder"
        )
    return progress, tensors


def _completed(settings: dict[str, Any]) -> dict[str, Any]:
    defaults = to_json(TrainingSettings())
    for name in PARTS:
        settings = settings | {name: defaults[name] | settings[name]}
    return defaults | settings


def digest(source: Labelled | None) -> str:
    """SHA-256 over names and labels of the images, in order: which data a training is about.

    Not over pixels: they are not the same to the bit on every machine.
    """
    if source is None:
        return "none"
    hashed = hashlib.sha256("\n".join(source.names).encode())
    hashed.update(np.ascontiguousarray(source.labels, np.float32).tobytes())
    hashed.update(repr(tuple(source.images.shape)).encode())
    return hashed.hexdigest()
