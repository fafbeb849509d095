"""What only a GPU can show: registration for CUDA tensors, streams, graphs, devices, sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import maps
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from cxr_fast import ops

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
FIVE_GIB = 5 << 30


def features_and_weight(
    n: int = 4, d: int = 64, side: int = 32, c: int = 14, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor]:
    features = maps.smooth((n, d, side, side), np.random.default_rng(0)).to("cuda", dtype)
    return features, torch.randn(c, d, device="cuda") / d**0.5


def flat(result: Any) -> list[Tensor]:
    return [result.logits, result.cam, *result.mined, result.heatmap, *result.found]


def assert_equal(first: Any, second: Any) -> None:
    for a, b in zip(flat(first), flat(second), strict=True):
        assert torch.equal(a, b)


def assert_near(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """Sums taken in another order: equal to a fraction of the largest value."""
    difference = (ours.cpu().double() - theirs.cpu().double()).abs().max()
    assert difference <= tolerance * theirs.abs().max(), f"{difference} of {theirs.abs().max()}"


def test_no_operator_is_served_slowly() -> None:
    for name, served in ops.CUDA_KERNELS.items():
        assert not served.startswith("reference"), name


def operators() -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    namespace = torch.ops.cxr_fast
    cam = torch.rand(2, 3, 9, 11, device="cuda")
    features, weight = torch.randn(2, 5, 9, 11, device="cuda"), torch.randn(3, 5, device="cuda")
    erased_at, extent = namespace.mine_attention(cam, 3, 0.5, 8, None, 1)
    boxes = (None, 64, 48, [0.5, 0.8], "components", 3, 0.5, 1)
    return {
        "cam": (namespace.cam, (features, weight)),
        "cam_backward": (namespace.cam_backward, (cam, features, weight, True, True)),
        "mine_attention": (namespace.mine_attention, (cam, 3, 0.5, 8, None, 1)),
        "masked_gap": (namespace.masked_gap, (cam, erased_at, 3)),
        "masked_gap_backward": (
            namespace.masked_gap_backward,
            (torch.rand(2, 3, 3, device="cuda"), erased_at),
        ),
        "aggregate_heatmap": (namespace.aggregate_heatmap, (cam, erased_at, extent, "normalized")),
        "heatmap_boxes": (namespace.heatmap_boxes, (cam, *boxes, 8)),
        "mine_cam": (
            namespace.mine_cam,
            (cam, torch.rand(3, device="cuda"), 3, 0.5, 8, "normalized", *boxes),
        ),
        "label_components": (namespace.label_components, (cam > 0.5, 8)),
    }


DIFFERENTIABLE = ("cam", "masked_gap", "mine_cam")


@pytest.mark.parametrize("name", ["cam", "cam_backward", "mine_attention", "masked_gap",
                                  "masked_gap_backward", "aggregate_heatmap", "heatmap_boxes",
                                  "mine_cam", "label_components"])  # fmt: skip
def test_opcheck(name: str) -> None:
    operator, arguments = operators()[name]
    torch.library.opcheck(operator, arguments)
    if name in DIFFERENTIABLE:
        wanted = [
            a.clone().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a
            for a in arguments
        ]
        torch.library.opcheck(operator, tuple(wanted))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gpu_and_cpu_agree(dtype: torch.dtype, layout: torch.memory_format) -> None:
    features, weight = features_and_weight(dtype=dtype)
    features = features.contiguous(memory_format=layout)
    on_gpu, on_cpu = features.requires_grad_(), features.detach().cpu().requires_grad_()
    cams = ops.cam(on_gpu, weight), ops.cam(on_cpu, weight.cpu())
    assert_near(cams[0], cams[1], 2e-5)
    grad = torch.randn(cams[1].shape)
    (ours,) = torch.autograd.grad(cams[0], on_gpu, grad.cuda())
    (theirs,) = torch.autograd.grad(cams[1], on_cpu, grad)
    assert ours.is_contiguous(memory_format=layout)
    assert_near(ours, theirs, 1e-5 if dtype == torch.float32 else 1e-2)
    # The same bits in, the same bits out.
    mined = [ops.mine_cam(cam) for cam in (cams[1].detach().cuda(), cams[1].detach())]
    for name in ("cam", "heatmap"):
        assert torch.equal(getattr(mined[0], name).cpu(), getattr(mined[1], name))
    for a, b in zip(
        (*mined[0].mined, *mined[0].found), (*mined[1].mined, *mined[1].found), strict=True
    ):
        assert torch.equal(a.cpu(), b)
    assert_near(mined[0].logits, mined[1].logits, 1e-5)


def test_two_calls_give_the_same_bits() -> None:
    features, weight = features_and_weight()
    assert_equal(ops.attention_mining(features, weight), ops.attention_mining(features, weight))
    cam = ops.cam(features, weight)
    first, second = (
        torch.ops.cxr_fast.cam_backward(cam, features, weight, True, True) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_at_most_four_launches_and_no_synchronisation() -> None:
    features, weight = features_and_weight()
    ops.attention_mining(features, weight)  # compiles and loads
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as trace:
            ops.attention_mining(features, weight)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    names = [event.name for event in trace.events() if event.device_type.name == "CUDA"]
    if not names:
        pytest.skip("the profiler saw no kernels")
    assert len(names) <= 4, names
    waits = [event.name for event in trace.events() if "ynchronize" in event.name]
    assert all("Device" in name for name in waits), waits  # the profiler's own, at its end


@pytest.mark.parametrize("side", [16, 32, 64, 100])
def test_a_captured_graph_replays_on_new_features(side: int) -> None:
    features, weight = features_and_weight(side=side)
    bias = torch.randn(14, device="cuda")
    # The first call loads the kernels, which no capture may do.
    ops.label_components(ops.attention_mining(features, weight, bias).heatmap > 0.5)
    graph = torch.cuda.CUDAGraph()
    static = features.clone()
    with torch.cuda.graph(graph):
        captured = ops.attention_mining(static, weight, bias)
        labels = ops.label_components(captured.heatmap > 0.5)
    for seed in range(3):
        torch.manual_seed(seed)
        fresh = features[torch.randperm(len(features), device="cuda")] * (seed + 1)
        static.copy_(fresh)
        graph.replay()
        expected = ops.attention_mining(fresh, weight, bias)
        assert_equal(captured, expected)
        assert torch.equal(labels, ops.label_components(expected.heatmap > 0.5))


def test_streams_side_by_side() -> None:
    inputs = [features_and_weight(n=3 + i) for i in range(6)]
    expected = [ops.attention_mining(*pair) for pair in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    for _ in range(20):
        results = []
        for stream, pair in zip(streams, inputs, strict=True):
            with torch.cuda.stream(stream):
                results.append(ops.attention_mining(*pair))
        torch.cuda.synchronize()
        for ours, right in zip(results, expected, strict=True):
            assert_equal(ours, right)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_another_device_than_the_current_one() -> None:
    features, weight = features_and_weight()
    expected = ops.attention_mining(features, weight)
    other = ops.attention_mining(features.to("cuda:1"), weight.to("cuda:1"))
    assert torch.cuda.current_device() == 0
    for a, b in zip(flat(expected), flat(other), strict=True):
        assert b.device.index == 1
        assert torch.equal(a, b.to("cuda:0"))
    with pytest.raises(ValueError, match="must be on the device of features, cuda:0, but is on cuda:1"):
        ops.cam(features, weight.to("cuda:1"))


def test_cpu_and_cuda_tensors_do_not_mix() -> None:
    features, weight = features_and_weight()
    with pytest.raises(ValueError, match="weight must be on the device of features, cuda:0"):
        ops.attention_mining(features, weight.cpu())
    cam = ops.cam(features, weight)
    with pytest.raises(ValueError, match="erased_at must be on the device of cam, cuda:0"):
        ops.masked_gap(cam, torch.zeros(cam.shape, dtype=torch.uint8))
    # Past the checks of Python, the operators themselves refuse.
    with pytest.raises(RuntimeError, match="another device"):
        torch.ops.cxr_fast.masked_gap(cam, torch.zeros(cam.shape, dtype=torch.uint8), 3)


def test_gradients_in_the_threads_of_autograd() -> None:
    features, weight = features_and_weight(dtype=torch.float32)
    features.requires_grad_()
    weight.requires_grad_()
    result = ops.attention_mining(features, weight)
    result.logits.square().sum().backward()
    on_cpu = [t.detach().cpu().requires_grad_() for t in (features, weight)]
    mined = result.mined.erased_at.cpu()
    logits = ops.masked_gap(ops.cam(*on_cpu), mined, 3)
    logits.square().sum().backward()
    for ours, theirs in zip((features, weight), on_cpu, strict=True):
        assert_near(ours.grad, theirs.grad, 1e-4)


def test_compiled_whole() -> None:
    features, weight = features_and_weight()
    compiled = torch.compile(lambda x, w: ops.attention_mining(x.relu(), w), fullgraph=True)
    assert_equal(compiled(features, weight), ops.attention_mining(features.relu(), weight))


def test_autocast_changes_nothing() -> None:
    features, weight = features_and_weight(dtype=torch.float32)
    expected = ops.attention_mining(features, weight)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert_equal(ops.attention_mining(features, weight), expected)


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.mem_get_info()[1] < 12 * FIVE_GIB,
    reason="needs a GPU of 60 GiB",
)
def test_tensors_beyond_two_to_the_31_elements() -> None:
    # cam and heatmap: 2.2e9 values each. The last maps are those of a small batch.
    count = (1 << 31) // 1024 + 56
    small = maps.smooth((1, 8, 32, 32), np.random.default_rng(1)).cuda()
    cam = torch.zeros(count // 8 + 1, 8, 32, 32, device="cuda")
    cam[-1] = small[0]
    assert cam.numel() > 1 << 31
    large, right = ops.mine_cam(cam), ops.mine_cam(small)
    assert torch.equal(large.mined.erased_at[-1], right.mined.erased_at[0])
    assert torch.equal(large.heatmap[-1], right.heatmap[0])
    assert torch.equal(large.found.boxes[-1], right.found.boxes[0])
    assert not large.found.counts[:-1].any()
    del large
    labels = ops.label_components(cam > 0.5)
    assert torch.equal(labels[-1], ops.label_components(small > 0.5)[0])


def test_features_beyond_two_to_the_31_elements() -> None:
    if torch.cuda.mem_get_info()[0] < 4 * FIVE_GIB:
        pytest.skip("needs 20 GiB of free memory")
    images, d = (1 << 31) // (768 * 1024) + 2, 768
    features = torch.zeros(images, d, 32, 32, device="cuda", dtype=torch.bfloat16)
    small, weight = features_and_weight(n=1, d=d)
    features[-1] = small[0]
    assert features.numel() > 1 << 31
    assert torch.equal(ops.cam(features, weight)[-1], ops.cam(small, weight)[0])
