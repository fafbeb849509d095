"""The peers that a GPU races, as far as they compute on a CPU: a wrong peer would make a wrong race."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch

from cxr_fast import ops
from cxr_fast.benchmarks import (
    bench_aggregate_heatmap,
    bench_attention_mining,
    bench_backbone,
    bench_cam,
    bench_heatmap_boxes,
    bench_label_components,
    bench_masked_gap,
    bench_mine_attention,
    bench_mining_head,
    bench_training_step,
    erasing,
    gpu_labelling,
    inputs,
)
from cxr_fast.benchmarks.boxes import boxes_at_once
from cxr_fast.benchmarks.labelling import assert_same_components
from cxr_fast.benchmarks.networks import Sizes
from cxr_fast.benchmarks.place import Place, peer_module
from cxr_fast.benchmarks.products import (
    einsum_cam_backward,
    literal_cam,
    matmul_cam,
    matmul_cam_backward,
)
from cxr_fast.benchmarks.racing import check_equality

RACED = [
    (bench_aggregate_heatmap, "aggregate_heatmap"),
    (bench_attention_mining, "attention_mining"),
    (bench_backbone, "backbone"),
    (bench_cam, "cam"),
    (bench_cam, "backward"),
    (bench_heatmap_boxes, "heatmap_boxes"),
    (bench_heatmap_boxes, "mining_after_the_cam"),
    (bench_label_components, "label_components"),
    (bench_masked_gap, "masked_gap"),
    (bench_mine_attention, "mine_attention"),
    (bench_mining_head, "mining_head"),
    (bench_training_step, "training_step"),
]


@pytest.mark.parametrize(("module", "name"), RACED, ids=[name for _, name in RACED])
def test_what_a_gpu_runs_agrees(module: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's branch of every case, on CPU tensors: without compiling, and without Triton."""
    monkeypatch.setattr(Place, "cuda", True)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    for at in (gpu_labelling, bench_mine_attention):
        monkeypatch.setattr(
            at, "peer_module", lambda name: None if name == "triton" else peer_module(name)
        )
    place = Place(torch.device("cpu"), quick=True)
    for case in getattr(module, f"{name}_cases")(place):
        getattr(module, f"test_{name}")(case, check_equality, place)
    full = Place(torch.device("cpu"))
    assert getattr(module, f"{name}_cases")(full), "no case of full size"


@pytest.mark.parametrize("case", ["2x3 maps 32x32", "1x2 snakes 16x16", "1x2 spirals 16x16"])
def test_the_loop_on_a_gpu(case: str) -> None:
    cam = bench_mine_attention.made(case)
    mined = erasing.mine_on_gpu(ops.label_components, cam)
    bench_mine_attention.equal_tensors(ops.mine_attention(cam), mined)


def test_passes_of_pooling() -> None:
    straight = torch.zeros(1, 3, 9, dtype=torch.bool)
    straight[0, 1] = True
    assert gpu_labelling.pooling_passes(straight) == 8
    assert gpu_labelling.pooling_passes(straight, most=7) is None
    assert gpu_labelling.pooling_passes(torch.zeros(1, 3, 3, dtype=torch.bool)) == 1
    spirals = inputs.winding("spiral", 1, 1, 32)
    needed = bench_mine_attention.passes_needed(spirals)
    assert needed is not None
    assert needed > 100, "the default of kornia would do"


def test_boxes_on_all_maps_at_once() -> None:
    cam = inputs.maps(2, 5, 32, 32)
    heatmap = ops.aggregate_heatmap(cam, ops.mine_attention(cam))
    cuts, size = bench_heatmap_boxes.THRESHOLDS, bench_heatmap_boxes.SIZE
    for upsample in (1, 3):
        ours = ops.heatmap_boxes(heatmap, (size, size), cuts, "components", upsample=upsample)
        found = boxes_at_once(ops.label_components, heatmap.flatten(0, 1), cuts, upsample, size)
        bench_heatmap_boxes.same(ours, found)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_products(layout: torch.memory_format) -> None:
    x, w = inputs.features(2, 6, 5).contiguous(memory_format=layout), inputs.weight(3, 6)
    cam = ops.cam(x, w)
    grad = torch.randn(cam.shape)
    torch.testing.assert_close(matmul_cam(x, w), cam)
    torch.testing.assert_close(literal_cam(x, w), cam)
    expected = torch.ops.cxr_fast.cam_backward(grad, x, w, True, True)
    for theirs in (matmul_cam_backward(grad, x, w), einsum_cam_backward(grad, x, w)):
        torch.testing.assert_close(theirs, tuple(expected))


@pytest.mark.parametrize("side", [4, 5, 16, 31])
def test_winding_masks_are_one_component(side: int) -> None:
    for mask in (inputs.snake(side), inputs.spiral(side)):
        assert int(ops.label_components(torch.from_numpy(mask), 4).max()) == 1
        assert 0.4 * side**2 <= mask.sum() <= 0.8 * side**2


def test_components_are_compared_up_to_renumbering() -> None:
    ours = np.array([[[1, 0, 2]], [[1, 1, 0]]])
    assert_same_components(ours, np.array([[[3, 0, 1]], [[2, 2, 0]]]))
    for wrong in ([[[1, 0, 1]], [[1, 1, 0]]], [[[1, 0, 2]], [[1, 2, 0]]], [[[1, 1, 2]], [[1, 1, 0]]]):
        with pytest.raises(AssertionError):
            assert_same_components(ours, np.array(wrong))


def test_the_gradients_of_a_mining_step_are_those_of_erased_copies() -> None:
    """The peer of the training step's race: Eq. 1-6 with a copy of the features a class and step."""
    place = Place(torch.device("cpu"), quick=True)
    step, images = bench_training_step.made(Sizes(16, 96, 0.125), place)
    # In float32 fifty layers amplify how sums were rounded.
    step = replace(step, labels=step.labels.double())
    step.model.double()
    step.anchor.double()
    gradients = []
    for loss in (step.mined, step.literal):
        step.model.zero_grad(set_to_none=True)
        loss(images.double()).backward()
        gradients.append({name: p.grad.clone() for name, p in step.model.named_parameters()})
    for name, ours in gradients[0].items():
        largest = float(gradients[1][name].abs().max())
        assert float((ours - gradients[1][name]).abs().max()) <= 1e-5 * largest + 1e-12, name
