"""Weights in files that others wrote: read without running code, and copied by name."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by ``torch.save`` or safetensors, told by content, under their names.

    A state_dict, or one under the key ``state_dict`` of a training program's file. ValueError where it
    is none; what a pickle would run is never run.
    """
    loaded: Any
    try:
        with open(path, "rb") as file:
            if file.read(9)[8:] == b"{":  # after 8 bytes of length, a JSON header: safetensors
                loaded = safetensors.torch.load_file(path)
            else:
                file.seek(0)
                # Not the path: torch.load would go by its ending.
                loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # whose message advises to run the code
        raise ValueError(
            f"{path} must be a state_dict saved by torch.save or safetensors, but cannot be read as "
            "one: it is damaged, or holds a whole model, which is code. In the program that made it, "
            "save the tensors alone: torch.save(model.state_dict(), FILE)."
        ) from error
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} must be a state_dict saved by torch.save or safetensors, but cannot be read "
            f"as one: {error}"
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ValueError(f"{path} must hold a state_dict (names and tensors), but holds another.")
    return dict(loaded)


@torch.no_grad()
def copy_weights(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: Path, advice: str
) -> None:
    """Copy into each tensor of a network, ``own``, the one of ``weights`` that has its name.

    ValueError where it is absent or of another shape; ``path`` and ``advice`` are said.
    """
    for name, value in own.items():
        came = weights.get(name)
        # Files from before torch 0.4.1 lack the counters, which nothing here reads.
        if came is None and name.endswith("num_batches_tracked"):
            continue
        if came is None or came.shape != value.shape:
            raise ValueError(
                f"{name} in {path} must have the shape {list(value.shape)}, but "
                f"{'is absent' if came is None else f'has {list(came.shape)}'}. {advice}"
            )
        value.copy_(came)
