"""label_components: batches of small masks and single large ones."""

from __future__ import annotations

from functools import partial
from typing import Any

import inputs
import numpy as np
import pytest
import torch
from conftest import Race
from labelling import LABELLERS, assert_same_components, label_batch, label_each
from racing import Peer, Work
from torch import Tensor

from cxr_fast import ops

SHAPES = [(1000, 32, 32), (1, 512, 512), (1, 4096, 4096)]
KINDS = {"blobs": inputs.blobs, "noise": inputs.noise}


def same(ours: Tensor, theirs: Any) -> None:
    assert_same_components(ours.numpy(), np.asarray(theirs))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=inputs.sides)
def test_label_components(shape: tuple[int, int, int], kind: str, race: Race) -> None:
    mask: Tensor = KINDS[kind](*shape)
    assert mask.dtype == torch.bool
    masks = mask.numpy()
    peers = [Peer(name, partial(label_batch, name, masks), same) for name in LABELLERS]
    if len(masks) > 1:
        peers = [Peer(f"{peer.name}, all masks at once", peer.run, same) for peer in peers]
        peers += [
            Peer(f"{name}, each mask", partial(label_each, name, masks), same) for name in LABELLERS
        ]
    work = Work(mask.numel() * (1 + 4))  # reads the mask, writes the labels
    case = f"label_components {kind} {inputs.sides(shape)}"
    race(case, lambda: ops.label_components(mask), peers, work)
