"""Small changes of the training images, drawn per image from a numbered stream.

The parameters of a batch depend on the seed and the number of the update alone, so that a run that
was interrupted, or is shared by several processes, sees the same images.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


@dataclass(frozen=True)
class Augmentation:
    """Standard deviations of what is drawn for an image; all 0 leaves images as they are.

    ``rotation`` in radians; ``zoom`` and ``gain`` (contrast about the middle grey) of the logarithm
    of the factor; ``shift`` in halves of the image's side; ``offset`` of the brightness, in [0, 1].
    ``flip`` is the chance of a mirror image: 0 unless said, as the heart has a side.
    ValueError for a value outside [0, 1].
    """

    rotation: float = 0.06
    zoom: float = 0.06
    shift: float = 0.04
    gain: float = 0.15
    offset: float = 0.05
    flip: float = 0.0

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if not 0 <= value <= 1:
                raise ValueError(f"{entry.name} of the augmentation must be in [0, 1], but is {value}")


def draw(
    augmentation: Augmentation, images: int, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Draw the parameters of a batch, [images, 8]: an affine map (six numbers), gain and offset."""
    angle = generator.normal(0, augmentation.rotation, images)
    zoom = np.exp(generator.normal(0, augmentation.zoom, images))
    shift = generator.normal(0, augmentation.shift, (images, 2))
    gain = np.exp(generator.normal(0, augmentation.gain, images))
    offset = generator.normal(0, augmentation.offset, images)
    mirror = np.where(generator.random(images) < augmentation.flip, -1.0, 1.0)
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    affine = [mirror * cos, -sin, shift[:, 0], mirror * sin, cos, shift[:, 1]]
    return np.stack([*affine, gain, offset], 1).astype(np.float32)


def apply(images: Tensor, parameters: NDArray[np.float32]) -> Tensor:
    """Change images [N, 1, S, S] in [0, 1] by the rows of ``draw``; the result is in [0, 1], too."""
    values = torch.from_numpy(parameters).to(images.device)
    grid = nn.functional.affine_grid(
        values[:, :6].reshape(-1, 2, 3), list(images.shape), align_corners=False
    )
    moved = nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    gain, offset = (values[:, i, None, None, None] for i in (6, 7))
    return ((moved - 0.5) * gain + 0.5 + offset).clamp(0, 1)
