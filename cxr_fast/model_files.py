"""The files of models, whatever reads them."""

from __future__ import annotations

import hashlib
from pathlib import Path

DEMO_MODEL = Path(__file__).parent / "models" / "demo.safetensors"


def model_path(model: str | Path) -> Path:
    """The file of a model; ``"demo"`` is the one that comes with the package."""
    return DEMO_MODEL if str(model) == "demo" else Path(model)


def model_digest(model: str | Path) -> str:
    """SHA-256 of the model's file."""
    return hashlib.sha256(model_path(model).read_bytes()).hexdigest()
