"""Archives of noise to run over, and what a run left, as bytes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cxr_fast.models import Architecture, ModelCard, build, save_checkpoint


def write_noisy_archive(folder: Path, count: int, every: int) -> None:
    """``folder``/images with so many pictures, one in ``every`` broken, and a model of A, B and C."""
    (folder / "images").mkdir()
    rng = np.random.default_rng(3)
    for i in range(count):
        noise = Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).resize((96, 80))
        noise.save(folder / "images" / f"{i:04d}.png")
        if i % every == 7:
            os.truncate(folder / "images" / f"{i:04d}.png", 60)
    torch.manual_seed(0)
    card = ModelCard(Architecture("resnet18", "bilinear", 0.125, 1), ("A", "B", "C"), 64)
    save_checkpoint(folder / "model.safetensors", build(card), card)


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a run but its lock."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(out)): path.read_bytes() for path in files}
