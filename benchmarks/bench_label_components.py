"""label_components: batches of small masks and single large ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cxr_fast import ops
from cxr_fast.benchmarks import gpu_labelling, inputs
from cxr_fast.benchmarks.labelling import assert_same_components, label_batch, label_each, labellers
from cxr_fast.benchmarks.place import Place, peer_module
from cxr_fast.benchmarks.racing import Case, Peer
from cxr_fast.benchmarks.roofline import Work

KINDS = {
    "blobs": inputs.blobs,
    "noise": inputs.noise,
    "snakes": inputs.snakes,
    "spirals": inputs.spirals,
}


@dataclass(frozen=True)
class Masks:
    kind: str
    shape: tuple[int, int, int]

    def __str__(self) -> str:
        return f"{self.kind} {inputs.sides(self.shape)}"


def label_components_cases(place: Place) -> list[Masks]:
    if place.quick:
        shapes = [(3, 16, 16), (1, 40, 40)]
    elif place.cuda:
        shapes = [(896, 32, 32), (64, 512, 512), (1, 4096, 4096)]
    else:
        shapes = [(1000, 32, 32), (1, 512, 512), (1, 4096, 4096)]
    return [Masks(kind, shape) for kind in KINDS for shape in shapes]


def same(ours: Tensor, theirs: Tensor | np.ndarray | list[Tensor | np.ndarray]) -> None:
    if isinstance(theirs, list):
        stack = torch.stack if isinstance(theirs[0], Tensor) else np.stack
        theirs = stack(theirs)
    assert_same_components(ours, theirs)


def cpu_peers(many: bool) -> list[Peer]:
    def array(mask: Tensor) -> tuple[np.ndarray]:
        return (mask.numpy(),)

    at_once = ", all masks at once" if many else ""
    found = labellers().items()
    peers = [Peer(f"{name}{at_once}", partial(label_batch, f), same, array) for name, f in found]
    if many:
        peers += [Peer(f"{name}, each mask", partial(label_each, f), same, array) for name, f in found]
    return peers


def gpu_peers(mask: Tensor) -> list[Peer]:
    labelled = gpu_labelling.batched_labellers(gpu_labelling.pooling_passes(mask))
    peers = [Peer(name, label, same) for name, label in labelled.items()]
    if len(mask) > 1 and peer_module("cupyx.scipy.ndimage"):
        peers.append(Peer("cupyx, each mask", gpu_labelling.cupyx_each, same))
    return peers


def test_label_components(case: Masks, race: Callable[[Case], None], place: Place) -> None:
    mask: Tensor = KINDS[case.kind](*case.shape).to(place.device)
    assert mask.dtype == torch.bool
    peers = gpu_peers(mask) if place.cuda else cpu_peers(len(mask) > 1)
    work = Work(mask.numel() * (1 + 4))  # reads the mask, writes the labels
    race(Case(f"label_components {case}", (mask,), ops.label_components, peers, work=work))
