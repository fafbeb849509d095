"""The networks that the operators stand behind, with random weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cxr_fast.benchmarks import inputs
from cxr_fast.benchmarks.place import Place
from cxr_fast.mining import resolve_precision
from cxr_fast.models import Architecture, Classifier, build


@dataclass(frozen=True)
class Sizes:
    """Of a network and its batch; ``images`` are squares of ``side`` pixels."""

    images: int
    side: int
    width: float = 1.0

    def __str__(self) -> str:
        narrow = "" if self.width == 1 else f" width {self.width:g}"
        return f"N{self.images} {self.side}x{self.side}{narrow}"


def sizes(place: Place) -> Sizes:
    """The paper's on a GPU, a small batch on a CPU."""
    if place.quick:
        return Sizes(2, 64, 0.125)
    return Sizes(inputs.GPU_BATCH if place.cuda else 2, 512)


def resnet50(place: Place, of: Sizes, msa: str = "bilinear") -> Classifier:
    """In eval mode, channels_last, in the precision that mining takes here."""
    torch.manual_seed(0)
    model = build(Architecture("resnet50", msa, of.width, 1), inputs.CLASSES)
    dtype = resolve_precision("auto", place.device)
    return model.to(place.device, dtype, memory_format=torch.channels_last).eval()


def pictures(place: Place, of: Sizes, dtype: torch.dtype) -> Tensor:
    """[N, 1, S, S] on the device."""
    made = torch.randn(of.images, 1, of.side, of.side, generator=torch.Generator().manual_seed(5))
    return made.to(place.device, dtype).contiguous(memory_format=torch.channels_last)
