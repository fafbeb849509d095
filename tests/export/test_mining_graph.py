"""The mining steps and boxes as a graph, run by onnxruntime, against the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from graphs import mining_file, outputs, session
from maps import adversarial, smooth

from cxr_fast import reference
from cxr_fast.config import MiningSettings
from cxr_fast.export.boxes import most_shared
from cxr_fast.export.graph import FLOAT, Graph
from cxr_fast.mining import mine_regions

COMPONENTS = MiningSettings()
# What `cxr-fast export` may use: all of it was parsed and built by TensorRT-RTX 1.7.
BUILT_BY_TENSORRT = {
    "Abs", "Add", "And", "Cast", "Concat", "Conv", "ConvTranspose", "CumSum", "Div", "Equal", "Exp",
    "Floor", "Gather", "GatherElements", "Greater", "GreaterOrEqual", "Identity", "Less",
    "LessOrEqual", "Log", "Loop", "MatMul", "Max", "MaxPool", "Min", "Mul", "Not", "Pad", "Range",
    "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Resize", "Shape",
    "Slice", "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip


def expected(cam: torch.Tensor, settings: MiningSettings, sizes: np.ndarray) -> dict[str, np.ndarray]:
    if settings.select == "regions":
        result = mine_regions(cam, settings, torch.from_numpy(sizes))
    else:
        s = settings
        result = reference.mine_cam(
            cam, None, s.steps, s.cam_threshold, s.connectivity, s.mode,
            image_size=torch.from_numpy(sizes), thresholds=s.thresholds, select=s.select,
            max_boxes=s.max_boxes, max_overlap=s.max_overlap, upsample=s.upsample,
        )  # fmt: skip
    return {
        "boxes": result.found.boxes.numpy(),
        "scores": result.found.scores.numpy(),
        "counts": result.found.counts.numpy(),
        "heatmap": result.heatmap.numpy(),
        "erased_at": result.mined.erased_at.numpy().astype(np.int32),
    }


def check(cams: torch.Tensor, settings: MiningSettings, dynamic: bool = False) -> None:
    """Every output equals the reference's: integers, boxes and maps in every bit."""
    count, classes, *size = cams.shape
    sizes = np.array([[1024 - 37 * i, 700 + 90 * i] for i in range(count)])
    content = mining_file(settings, classes, None if dynamic else (size[0], size[1]))
    got = outputs(content, cam=cams.numpy(), image_size=sizes)
    wanted = expected(cams, settings, sizes)
    for name in ("erased_at", "counts", "heatmap", "boxes"):
        np.testing.assert_array_equal(got[name], wanted[name], err_msg=name)
    # Means of exact sums; the reference's own sum, in float64, may round the last bit.
    np.testing.assert_array_max_ulp(got["scores"], wanted["scores"], 1)


def ugly(height: int, width: int) -> torch.Tensor:
    """Snakes, spirals, combs, checkerboards, ties, constants, NaN, infinities: [1, C, H, W]."""
    return torch.stack([m for _, m in adversarial(height, width)])[None]


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
@pytest.mark.parametrize("size", [(32, 32), (17, 23), (1, 1), (1, 9), (50, 61)], ids=str)
def test_ugly_maps_are_mined_as_the_reference_does(size: tuple[int, int], dynamic: bool) -> None:
    check(ugly(*size), replace(COMPONENTS, thresholds=(60 / 255, 180 / 255)), dynamic)


@pytest.mark.parametrize(
    "settings",
    [
        MiningSettings(steps=1),
        MiningSettings(steps=5, cam_threshold=0.31, max_boxes=7, max_overlap=0.3),
        MiningSettings(connectivity=4, mode="raw", max_boxes=1),
        MiningSettings(upsample=3, thresholds=(0.4, 1.0)),
        MiningSettings(select="peak", upsample=2),
        MiningSettings(select="peak", connectivity=4, thresholds=(0.2,), steps=2),
        MiningSettings(select="regions", cam_threshold=0.65),
        MiningSettings(select="regions", connectivity=4, mode="raw"),
        MiningSettings(max_overlap=1.0, max_boxes=12),
        MiningSettings(max_overlap=0.0, max_boxes=20, thresholds=(0.5,)),
    ],
    ids=str,
)
@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
def test_every_setting(settings: MiningSettings, dynamic: bool, rng: np.random.Generator) -> None:
    noise = torch.from_numpy(rng.standard_normal((1, 3, 14, 18)).astype(np.float32))
    levels = torch.from_numpy(rng.integers(0, 4, (1, 3, 14, 18)).astype(np.float32))
    check(torch.cat([smooth((2, 3, 14, 18), rng), noise, levels]), settings, dynamic)
    check(ugly(14, 18), settings, dynamic)


def test_large_maps_grow_by_blocks_to_the_same_components(rng: np.random.Generator) -> None:
    for connectivity in (4, 8):
        settings = MiningSettings(steps=2, connectivity=connectivity, thresholds=(0.5,))
        cams = torch.cat([smooth((2, 2, 50, 67), rng), ugly(50, 67)[:, :2]])
        check(cams, settings)


def test_ties_fall_as_in_the_reference(rng: np.random.Generator) -> None:
    # Few levels on small maps: equal scores of unequal boxes, equal areas, several peaks.
    for _ in range(5):
        levels = rng.integers(0, 3, (4, 8, 6, 7)).astype(np.float32) / np.float32(7)
        check(torch.from_numpy(levels), MiningSettings(mode="raw", max_boxes=4, thresholds=(0.5, 0.9)))


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_batches_of_any_size(batch: int, rng: np.random.Generator) -> None:
    check(smooth((batch, 2, 9, 9), rng), COMPONENTS)


def test_one_graph_takes_maps_of_any_size(rng: np.random.Generator) -> None:
    settings = replace(COMPONENTS, upsample=2)
    run = session(mining_file(settings, 2, None))
    for size in ((1, 1), (7, 5), (33, 20), (64, 64)):
        cams = smooth((2, 2, *size), rng)
        sizes = np.array([[size[0] * 32, size[1] * 32]] * 2)
        got = outputs(run, cam=cams.numpy(), image_size=sizes)
        for name, wanted in expected(cams, settings, sizes).items():
            np.testing.assert_allclose(got[name], wanted, rtol=2e-7, atol=0, err_msg=name)


def test_enlarged_regions_agree_but_for_ties(rng: np.random.Generator) -> None:
    settings = MiningSettings(select="regions", upsample=4, cam_threshold=0.65)
    cams = smooth((20, 5, 8, 9), rng)
    sizes = np.full((20, 2), 512)
    got = outputs(mining_file(settings, 5, (8, 9)), cam=cams.numpy(), image_size=sizes)
    wanted = expected(cams, settings, sizes)
    same = (got["erased_at"] == wanted["erased_at"]).all((2, 3))
    assert same.mean() >= 0.99  # runtimes round the enlarging differently; a cut between falls anyhow
    np.testing.assert_allclose(got["boxes"][same], wanted["boxes"][same], atol=1e-3)
    np.testing.assert_allclose(got["scores"][same], wanted["scores"][same], atol=1e-5)
    np.testing.assert_array_equal(got["counts"][same], wanted["counts"][same])


def loops(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type == "Loop"]


def operators(graph: onnx.GraphProto) -> set[tuple[str, str]]:
    found = {(node.domain, node.op_type) for node in graph.node}
    for node in loops(graph):
        found |= operators(node.attribute[0].g)
    return found


@pytest.mark.parametrize("select", ["components", "peak", "regions"])
def test_loops_end_when_nothing_changes_and_not_before(select: str) -> None:
    settings = replace(COMPONENTS, select=select, upsample=2)
    graph = onnx.load_from_string(mining_file(settings, 2, (30, 30))).graph
    found = loops(graph)
    assert len(found) == settings.steps + {"components": 2, "peak": 1, "regions": 0}[select]
    for loop in found:
        assert loop.input[0] == "", "a limit of rounds"
    assert operators(graph) <= {("", name) for name in BUILT_BY_TENSORRT}


@pytest.mark.parametrize("overlap", [0.1, 0.3, 1 / 3, 0.5, 0.7, 0.999])
def test_how_much_boxes_may_share_is_exact(overlap: float) -> None:
    g = Graph(18)
    joint = g.input("joint", FLOAT, ["n"])
    g.output("most", most_shared(g, overlap, joint, (32, 32)), FLOAT, ["n"])
    unions = np.arange(32 * 32 + 1)
    got = outputs(g.serialise({}, "0"), joint=unions.astype(np.float32))["most"]
    # 0.7 * 90 is 62.99999999999999 in float64, so 63 of 90 pixels are too many; in float32 it is 63.
    np.testing.assert_array_equal(np.floor(got), np.floor(overlap * unions.astype(np.float64)))


def shapes(content: bytes) -> dict[str, Sequence[int | str]]:
    graph = onnx.load_from_string(content).graph
    return {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }


def test_shapes_are_declared() -> None:
    declared = shapes(mining_file(replace(COMPONENTS, upsample=4), 5, (8, 9)))
    assert declared["boxes"] == ["batch", 5, 3, 4]
    assert declared["counts"] == ["batch", 5]
    assert declared["heatmap"] == declared["erased_at"] == ["batch", 5, 8, 9]
    enlarged = shapes(mining_file(MiningSettings(select="regions", upsample=4), 5, (8, 9)))
    assert enlarged["erased_at"] == ["batch", 5, 32, 36]
