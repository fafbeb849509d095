"""Where the suite runs, how large its cases are, and which peers are there to race."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

import torch

# Modules that a case asked for and that are not installed; the report names them.
MISSING: set[str] = set()


@dataclass(frozen=True)
class Place:
    """``quick``: tiny cases, to see that everything runs and agrees; no figures to publish."""

    device: torch.device
    quick: bool = False
    seconds: float = 2.0

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"


def peer_module(name: str) -> ModuleType | None:
    """The module, or None where it is not installed or does not import here."""
    try:
        return importlib.import_module(name)
    except ImportError:
        MISSING.add(name.partition(".")[0])
        return None
