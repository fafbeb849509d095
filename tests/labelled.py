"""Small labelled images for the tests of training: bright squares over noise."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cxr_fast.models import Architecture, ModelCard


class Squares(NamedTuple):
    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]


def card(msa: str = "bilinear") -> ModelCard:
    return ModelCard(Architecture("resnet18", msa, 0.125, 1), ("left", "right"), 64)  # type: ignore[arg-type]


def squares(count: int = 160, seed: int = 5) -> Squares:
    """A bright square on the left, on the right, on both, or nowhere, over noise: 64x64."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 90, (count, 64, 64)).astype(np.uint8)
    labels = rng.integers(0, 2, (count, 2)).astype(np.float32)
    labels[:2] = np.eye(2)  # both classes, both ways, in the smallest of sets
    for image, (left, right) in zip(images, labels, strict=True):
        y = rng.integers(8, 40)
        if left:
            image[y : y + 14, 6:20] = 220
        if right:
            image[y : y + 14, 42:56] = 220
    return Squares(images, labels, tuple(f"{seed}_{i}.png" for i in range(count)))
