"""mine_attention: erasing the peak's component, three times."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cxr_fast import ops
from cxr_fast.benchmarks import erasing, gpu_labelling, inputs
from cxr_fast.benchmarks.labelling import labellers
from cxr_fast.benchmarks.place import Place, peer_module
from cxr_fast.benchmarks.racing import Case, Peer
from cxr_fast.benchmarks.roofline import Work

SHAPES = {
    "maps": inputs.maps,
    "snakes": lambda n, c, height, width: inputs.winding("snake", n, c, min(height, width)),
    "spirals": lambda n, c, height, width: inputs.winding("spiral", n, c, min(height, width)),
}


def mine_attention_cases(place: Place) -> list[str]:
    if place.quick:
        return ["2x3 maps 16x16", "1x2 snakes 16x16", "1x2 spirals 16x16"]
    many = f"{inputs.GPU_BATCH if place.cuda else inputs.CPU_BATCH}x14"
    return [
        *(f"{many} maps {size}" for size in ("32x32", "64x64", "100x75")),
        "1x2 maps 1024x1024",
        f"{many} snakes 32x32",
        f"{many} spirals 32x32",
        "1x2 spirals 1024x1024",
    ]


def made(case: str) -> Tensor:
    """``8x14 maps 32x32``: [8, 14, 32, 32]."""
    count, shape, size = case.split()
    return SHAPES[shape](*map(int, (*count.split("x"), *size.split("x"))))


def equal(ours: tuple[Tensor, Tensor], theirs: tuple[np.ndarray, np.ndarray]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine.flatten(0, 1).numpy(), other)


def equal_tensors(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(other, mine, rtol=0, atol=0)


def cpu_peers() -> list[Peer]:
    def flat(cam: Tensor) -> tuple[np.ndarray]:
        return (cam.flatten(0, 1).numpy(),)

    installed = labellers()
    each = {name: erasing.labelled(label) for name, label in installed.items()}
    if cv2 := peer_module("cv2"):
        each["cv2.floodFill"] = erasing.flooded(cv2)
    peers = [
        Peer(f"{name}, each map", partial(erasing.mine_each, component), equal, flat)
        for name, component in each.items()
    ]
    return peers + [
        Peer(f"{name}, all maps at once", partial(erasing.mine_batch, label), equal, flat)
        for name, label in installed.items()
        if name in ("cv2", "cc3d")
    ]


def passes_needed(cam: Tensor) -> int | None:
    """Of max-pooling, for the foregrounds of all steps; None where it is too many to race."""
    erased_at, extent = ops.mine_attention(cam)
    needed = []
    for t, (lo, hi) in enumerate(extent[..., None, None].permute(2, 3, 0, 1, 4, 5), 1):
        alive = (erased_at == 0) | (erased_at >= t)
        foreground = alive & (cam >= lo + 0.5 * (hi - lo)) & (hi > lo)
        needed.append(gpu_labelling.pooling_passes(foreground.flatten(0, 1)))
    return None if None in needed else max(needed)


def gpu_peers(cam: Tensor) -> list[Peer]:
    """The loop over steps around every way to label a batch, and around cupyx map by map."""
    labelled = gpu_labelling.batched_labellers(passes_needed(cam))
    labelled["ops.label_components"] = ops.label_components
    peers = [
        Peer(f"loop around {name}", partial(erasing.mine_on_gpu, label), equal_tensors)
        for name, label in labelled.items()
    ]
    if peer_module("triton"):
        from cxr_fast.kernels import mine_attention as rival

        if max(cam.shape[2:]) <= rival.LARGEST_SIDE:
            settings = {"steps": 3, "threshold": 0.5, "connectivity": 8}
            in_one = partial(rival.mine_attention, **settings, erased_at=None, first_step=1)
            peers.append(Peer("Triton, all steps in one launch", in_one, equal_tensors, graph=True))
    if peer_module("cupyx.scipy.ndimage"):
        peers.append(Peer("loop around cupyx, each map", erasing.mine_by_cupyx, equal_tensors))
    return peers


def test_mine_attention(case: str, race: Callable[[Case], None], place: Place) -> None:
    cam = made(case).to(place.device)
    peers = gpu_peers(cam) if place.cuda else cpu_peers()
    work = Work(cam.numel() * (4 + 1))  # reads the CAM, writes erased_at
    race(Case(f"mine_attention {case}", (cam,), ops.mine_attention, peers, work=work))
