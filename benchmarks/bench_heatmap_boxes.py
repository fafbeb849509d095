"""heatmap_boxes: thresholds, components, scores and non-maximum suppression."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cxr_fast import ops, reference
from cxr_fast.benchmarks import inputs
from cxr_fast.benchmarks.boxes import boxes_at_once, boxes_each, component_finders
from cxr_fast.benchmarks.place import Place
from cxr_fast.benchmarks.racing import Case, Peer
from cxr_fast.benchmarks.roofline import Work
from cxr_fast.reference import HeatmapBoxes

THRESHOLDS = (60 / 255, 180 / 255)
SIZE = 1024  # pixels of the square image


@dataclass(frozen=True)
class Maps:
    shape: tuple[int, int, int, int]
    upsample: int = 1

    def __str__(self) -> str:
        return f"{inputs.sides(self.shape)} upsample {self.upsample}"


def heatmap_boxes_cases(place: Place) -> list[Maps]:
    if place.quick:
        return [Maps((2, 3, 16, 16)), Maps((1, 3, 16, 16), 2)]
    many = (inputs.GPU_BATCH if place.cuda else inputs.CPU_BATCH, 14, 32, 32)
    return [Maps(many), Maps(many, 4), Maps((1, 14, 512, 512))]


def same(ours: HeatmapBoxes, theirs: tuple[np.ndarray | Tensor, ...]) -> None:
    boxes, scores, counts = (values.flatten(0, 1).cpu().numpy() for values in ours)
    arrays = [v.cpu().numpy() if isinstance(v, Tensor) else v for v in theirs]
    np.testing.assert_array_equal(counts, arrays[2].reshape(counts.shape))
    np.testing.assert_array_equal(boxes, arrays[0].reshape(boxes.shape))
    np.testing.assert_allclose(scores, arrays[1].reshape(scores.shape), rtol=1e-6)


def test_heatmap_boxes(case: Maps, race: Callable[[Case], None], place: Place) -> None:
    cam = inputs.maps(*case.shape).to(place.device)
    heatmap: Tensor = ops.aggregate_heatmap(cam, ops.mine_attention(cam))
    arguments = {
        "image_size": (SIZE, SIZE),
        "thresholds": THRESHOLDS,
        "select": "components",
        "upsample": case.upsample,
    }

    def each(components: Callable[..., object]) -> Callable[[Tensor], object]:
        # From a GPU the maps are fetched: that is what such code does.
        return lambda heatmap: boxes_each(
            components, heatmap.flatten(0, 1).cpu().numpy(), THRESHOLDS, case.upsample, SIZE
        )

    def at_once(heatmap: Tensor) -> tuple[Tensor, ...]:
        maps = heatmap.flatten(0, 1)
        return boxes_at_once(ops.label_components, maps, THRESHOLDS, case.upsample, SIZE)

    peers = [Peer(f"{name}, each map", each(find), same) for name, find in component_finders().items()]
    peers.append(Peer("torch around ops.label_components", at_once, same))
    if (
        case.shape[-1] <= 32 and case.upsample == 1 and not place.cuda
    ):  # a readable loop; minutes on more
        peers.append(Peer("reference", partial(reference.heatmap_boxes, **arguments), same))
    ours = partial(ops.heatmap_boxes, **arguments)
    work = Work(heatmap.numel() * 4)
    race(Case(f"heatmap_boxes {case}", (heatmap,), ours, peers, work=work))


def test_mining_after_the_cam(case: str, race: Callable[[Case], None], place: Place) -> None:
    """Everything behind the CAM in one call, beside our own operators one by one."""
    cam = inputs.maps(*map(int, case.split("x"))).to(place.device)

    def one_by_one(cam: Tensor) -> HeatmapBoxes:
        mined = ops.mine_attention(cam)
        ops.masked_gap(cam, mined.erased_at)
        return ops.heatmap_boxes(ops.aggregate_heatmap(cam, mined))

    def equal(ours: HeatmapBoxes, theirs: HeatmapBoxes) -> None:
        torch.testing.assert_close(tuple(theirs), tuple(ours), rtol=0, atol=0)

    peers = [Peer("operators one by one", one_by_one, equal)]
    # Reads the CAM; writes erased_at and the heatmap.
    work = Work(cam.numel() * (4 + 1 + 4))
    race(Case(f"mine_cam {case}", (cam,), lambda cam: ops.mine_cam(cam).found, peers, work=work))


def mining_after_the_cam_cases(place: Place) -> list[str]:
    if place.quick:
        return ["2x3x16x16"]
    return [f"{inputs.GPU_BATCH if place.cuda else inputs.CPU_BATCH}x14x32x32"]
