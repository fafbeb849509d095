"""Pixels as a network takes them."""

from __future__ import annotations

import torch
from torch import Tensor

from cxr_fast.config import LEAST_DEVIATION
from cxr_fast.models.card import ModelCard


def normalise(images: Tensor, card: ModelCard) -> Tensor:
    """Images [N, 1, S, S] in [0, 1] -> [N, 1 or 3, S, S], channels_last, as ``card`` describes."""
    if card.standardise:
        deviation, mean = torch.std_mean(images, (1, 2, 3), correction=0, keepdim=True)
        deviation = deviation.clamp(min=LEAST_DEVIATION)
    else:
        mean, deviation = (
            torch.tensor(values, device=images.device)[:, None, None]
            for values in (card.mean, card.std)
        )
    return ((images - mean) / deviation).contiguous(memory_format=torch.channels_last)
