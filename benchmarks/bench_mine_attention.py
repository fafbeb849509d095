"""mine_attention: erasing the peak's component, three times."""

from __future__ import annotations

from functools import partial

import erasing
import inputs
import numpy as np
import pytest
from conftest import Race
from labelling import LABELLERS
from racing import Peer, Work
from torch import Tensor

from cxr_fast import ops

CASES = {
    "8x14 maps 32x32": lambda: inputs.maps(8, 14, 32, 32),
    "8x14 maps 64x64": lambda: inputs.maps(8, 14, 64, 64),
    "8x14 maps 100x75": lambda: inputs.maps(8, 14, 100, 75),
    "1x2 maps 1024x1024": lambda: inputs.maps(1, 2, 1024, 1024),
    "8x14 snakes 32x32": lambda: inputs.winding("snake", 8, 14, 32),
    "8x14 spirals 32x32": lambda: inputs.winding("spiral", 8, 14, 32),
    "1x2 spirals 1024x1024": lambda: inputs.winding("spiral", 1, 2, 1024),
}


def equal(ours: tuple[Tensor, Tensor], theirs: tuple[np.ndarray, np.ndarray]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine.flatten(0, 1).numpy(), other)


@pytest.mark.parametrize("name", CASES)
def test_mine_attention(name: str, race: Race) -> None:
    cam = CASES[name]()
    h = cam.flatten(0, 1).numpy()
    each = {labeller: erasing.labelled(labeller) for labeller in LABELLERS}
    each["cv2.floodFill"] = erasing.flooded
    peers = [
        Peer(f"{label}, each map", partial(erasing.mine_each, h, component), equal)
        for label, component in each.items()
    ]
    peers += [
        Peer(f"{labeller}, all maps at once", partial(erasing.mine_batch, h, labeller), equal)
        for labeller in ("cv2", "cc3d")
    ]
    work = Work(cam.numel() * (4 + 1))  # reads the CAM, writes erased_at
    race(f"mine_attention {name}", lambda: ops.mine_attention(cam), peers, work)
