"""Every operator keeps torch's rules: schema, fake, autograd, compile, export, autocast."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import maps
import numpy as np
import pytest
import torch
from torch import Tensor

from cxr_fast import ops

pytestmark = pytest.mark.cpu_only

OPERATORS = torch.ops.cxr_fast
SIZES = [(None, 64, 48), (torch.tensor([[64.0, 48.0], [32.0, 99.0]], dtype=torch.float64), 0, 0)]
CHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def smooth(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return maps.smooth(shape, np.random.default_rng(seed)).to(dtype)


def features_and_weight(
    layout: torch.memory_format = torch.contiguous_format, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    features = torch.randn(2, 5, 7, 6, dtype=dtype).contiguous(memory_format=layout)
    weight = torch.randn(3, 5, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    return features, weight


def arguments(name: str, requires_grad: bool) -> list[tuple[Any, ...]]:
    """Some calls of ``torch.ops.cxr_fast.<name>``."""
    cam = smooth(2, 3, 9, 8)
    mined = ops.mine_attention(cam)
    heatmap = ops.aggregate_heatmap(cam, mined)
    grad_logits = torch.rand(2, 3, 3)
    cuts = [60 / 255, 0.5]
    if requires_grad:
        for tensor in (cam, heatmap):
            tensor.requires_grad_()
    bias = torch.rand(3, requires_grad=requires_grad)
    features, weight = features_and_weight()
    grad = torch.rand(2, 3, 7, 6)
    if name == "cam":
        layouts = (torch.contiguous_format, torch.channels_last)
        calls: list[tuple[Any, ...]] = []
        for layout in layouts:
            for dtype in (torch.float32, torch.bfloat16, torch.float64):
                pair = features_and_weight(layout, dtype)
                calls.append(tuple(t.requires_grad_(requires_grad) for t in pair))
        return calls
    if name == "cam_backward":
        wanted = [(True, True), (True, False), (False, True)]
        last = features.contiguous(memory_format=torch.channels_last)
        sliced = torch.rand(2, 5, 7, 12)[..., ::2]
        return [(grad, f, weight, *both) for f in (features, last, sliced) for both in wanted]
    if name == "mine_attention":
        return [(cam, 3, 0.5, 8, None, 1), (cam, 2, 0.3, 4, mined.erased_at, 4)]
    if name == "masked_gap":
        double = cam.detach().double().requires_grad_(requires_grad)
        return [(cam, mined.erased_at, 3), (double, mined.erased_at, 2)]
    if name == "masked_gap_backward":
        return [(grad_logits, mined.erased_at), (grad_logits.double(), mined.erased_at)]
    if name == "aggregate_heatmap":
        per_step = torch.stack([cam.detach()] * 3).requires_grad_(requires_grad)
        return [(c, *mined, mode) for c in (cam, per_step) for mode in ("normalized", "raw")]
    if name == "heatmap_boxes":
        return [(heatmap, *size, cuts, "components", 3, 0.5, 2, 8) for size in SIZES]
    if name == "mine_cam":
        return [
            (cam, b, 3, 0.5, 8, "normalized", *size, cuts, "peak", 3, 0.5, 1)
            for b, size in zip((bias, None), SIZES, strict=True)
        ]
    assert name == "label_components"
    return [(cam.detach() > 0, 8), (cam.detach()[0, 0] > 0, 4)]


WITH_GRADIENT = ("cam", "mine_attention", "masked_gap", "aggregate_heatmap", "heatmap_boxes")
CASES = [(name, True) for name in (*WITH_GRADIENT, "mine_cam")] + [
    (name, False)
    for name in (
        *WITH_GRADIENT,
        "mine_cam",
        "cam_backward",
        "masked_gap_backward",
        "label_components",
    )
]


@pytest.mark.parametrize(("name", "requires_grad"), CASES)
def test_opcheck(name: str, requires_grad: bool) -> None:
    for call in arguments(name, requires_grad):
        results = torch.library.opcheck(getattr(OPERATORS, name).default, call)
        assert results == dict.fromkeys(CHECKS, "SUCCESS")


def test_every_operator_is_checked() -> None:
    registered = {
        name.removeprefix("cxr_fast::").split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("cxr_fast::")
    }
    assert registered == {name for name, _ in CASES}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradcheck_cam(layout: torch.memory_format) -> None:
    features, weight = features_and_weight(layout, torch.float64)
    inputs = (features[:, :, :4, :3].contiguous(memory_format=layout), weight)
    assert torch.autograd.gradcheck(ops.cam, [t.requires_grad_() for t in inputs])


def test_gradcheck_masked_gap() -> None:
    cam = smooth(2, 2, 5, 4, dtype=torch.float64).requires_grad_()
    erased_at = ops.mine_attention(cam).erased_at
    assert torch.autograd.gradcheck(lambda h: ops.masked_gap(h, erased_at, 4), [cam])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradcheck_attention_mining(layout: torch.memory_format) -> None:
    features = smooth(2, 3, 5, 4, seed=3, dtype=torch.float64).contiguous(memory_format=layout)
    weight = torch.tensor([[1.0, -0.5, 0.3], [0.2, 0.7, -1.0]], dtype=torch.float64)
    bias = torch.tensor([0.1, -0.2], dtype=torch.float64)

    def run(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        result = ops.attention_mining(x, w, b)
        return result.logits, result.cam

    assert torch.autograd.gradcheck(run, [t.requires_grad_() for t in (features, weight, bias)])


def test_only_logits_and_cam_carry_gradients() -> None:
    features, weight = features_and_weight()
    result = ops.attention_mining(features.requires_grad_(), weight)
    assert result.logits.requires_grad
    assert result.cam.requires_grad
    for tensor in (*result.mined, result.heatmap, *result.found):
        assert not tensor.requires_grad
    cam = result.cam
    separate = (*ops.mine_attention(cam), ops.aggregate_heatmap(cam, result.mined))
    for tensor in (*separate, *ops.heatmap_boxes(cam), ops.label_components(cam > 0)):
        assert not tensor.requires_grad


def test_slices_of_channels_last_features() -> None:
    whole = torch.randn(2, 12, 6, 7).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(3, 8)
    for features in (whole[:, 2:10], whole[:, 2:10, :, 1:5], whole[:, 2:10, ::2]):
        features = features.detach().requires_grad_()
        grad = torch.randn(2, 3, *features.shape[2:])
        torch.library.opcheck(torch.ops.cxr_fast.cam, (features, weight))
        torch.library.opcheck(
            torch.ops.cxr_fast.cam_backward, (grad, features.detach(), weight, True, True)
        )


def test_empty_maps_are_refused_by_the_operators_themselves() -> None:
    empty = torch.zeros(1, 1, 0, 5)
    with pytest.raises(RuntimeError, match="height and width of at least 1"):
        torch.ops.cxr_fast.mine_attention(empty, 3, 0.5, 8, None, 1)
    with pytest.raises(RuntimeError, match="height and width of at least 1"):
        torch.ops.cxr_fast.masked_gap(empty, empty.byte(), 3)


def test_second_derivatives() -> None:
    features, weight = features_and_weight(dtype=torch.float64)
    features.requires_grad_()
    first = torch.autograd.grad(ops.cam(features, weight).square().sum(), features, None, True, True)
    expected = (2 * weight.sum(1) @ weight).view(1, -1, 1, 1).expand_as(features)
    (second,) = torch.autograd.grad(first[0].sum(), features)
    torch.testing.assert_close(second, expected)
    weight.requires_grad_()
    assert torch.autograd.gradgradcheck(ops.cam, (features, weight))
    erased_at = torch.randint(0, 4, (2, 3, 4, 4), dtype=torch.uint8)
    cam = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda h: ops.masked_gap(h, erased_at).square(), (cam,))


# ---- compile ----

Flat = tuple[Tensor, ...]


def flatten(value: Any) -> Flat:
    if isinstance(value, Tensor):
        return (value,)
    return tuple(tensor for entry in value for tensor in flatten(entry))


def assert_same(ours: Any, expected: Any) -> None:
    for a, b in zip(flatten(ours), flatten(expected), strict=True):
        assert a.dtype == b.dtype
        assert a.stride() == b.stride()
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def staged(cams: Tensor) -> Any:
    """The staged protocol: every step's CAM from another network."""
    mined = ops.mine_attention(cams[0], steps=1)
    extents = [mined.extent]
    for t in range(1, len(cams)):
        mined = ops.mine_attention(cams[t], steps=1, erased_at=mined.erased_at, first_step=t + 1)
        extents.append(mined.extent)
    mined = ops.MinedAttention(mined.erased_at, torch.cat(extents, 2))
    heatmap = ops.aggregate_heatmap(cams, mined)
    return mined, heatmap, ops.masked_gap(cams[-1], mined.erased_at, len(cams))


def everything(features: Tensor, weight: Tensor, sizes: Tensor) -> Any:
    """All public operators in one graph, with a little torch between them."""
    cam = ops.cam(features.relu(), weight) * 2
    mined = ops.mine_attention(cam, steps=2)
    logits = ops.masked_gap(cam, mined.erased_at, 2) + 1
    heatmap = ops.aggregate_heatmap(cam, mined)
    found = ops.heatmap_boxes(heatmap.square(), sizes, (0.3, 0.6), "peak", upsample=2)
    labels = ops.label_components(heatmap > 0.5)
    after = ops.mine_cam(cam, weight[:, 0], image_size=sizes)
    whole = ops.attention_mining(features, weight, mode="raw")
    return logits, mined, heatmap, found, labels, after, whole, staged(torch.stack([cam, -cam]))


FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "cam": lambda x: ops.cam(x, x[0, :, :3, 0].t()),
    "mine_attention": lambda x: ops.mine_attention(x, 2, 0.4, 4),
    "masked_gap": lambda x: ops.masked_gap(x, (x > 0).to(torch.uint8), 2),
    "aggregate_heatmap": lambda x: ops.aggregate_heatmap(x, ops.mine_attention(x)),
    "heatmap_boxes": lambda x: ops.heatmap_boxes(x, (77, 99), (0.2, 0.7), upsample=3),
    "label_components": lambda x: ops.label_components(x > 0),
    "mine_cam": lambda x: ops.mine_cam(x, x[0, :, 0, 0]),
    "attention_mining": lambda x: ops.attention_mining(x, x[0, :, :3, 0].t()),
    "staged": lambda x: staged(torch.stack([x, -x, x.flip(-1)])),
}


def test_every_public_function_is_compiled() -> None:
    public = {name for name in ops.__all__ if callable(getattr(ops, name)) and name[0].islower()}
    assert public == FUNCTIONS.keys() - {"staged"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_fullgraph(name: str) -> None:
    function = FUNCTIONS[name]
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    x = smooth(2, 4, 8, 9)
    assert_same(compiled(x), function(x))


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_with_dynamic_shapes() -> None:
    torch.manual_seed(1)
    weight = torch.randn(3, 6)
    compiled = torch.compile(everything, fullgraph=True, dynamic=True)
    # Not 2 images: torch takes equal sizes for one symbol, and sizes [2, 2] must have 2 columns.
    for images, stance in ((4, "default"), (7, "fail_on_recompile")):
        features = smooth(images, 6, 11, 8, seed=images)
        sizes = torch.full((images, 2), 256)
        with torch.compiler.set_stance(stance):
            ours = compiled(features, weight, sizes)
        assert_same(ours, everything(features, weight, sizes))


def test_compiled_gradient() -> None:
    features, weight = features_and_weight(torch.channels_last)
    target = torch.tensor([1.0, 0.0, 1.0])[:, None]

    def loss(x: Tensor, w: Tensor) -> Tensor:
        return (ops.attention_mining(x, w).logits - target).square().sum()

    def gradients(function: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        x, w = features.clone().requires_grad_(), weight.clone().requires_grad_()
        return torch.autograd.grad(function(x, w), (x, w))

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    assert_same(gradients(compiled), gradients(loss))


# ---- export, autocast ----


class Miner(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 15).view(3, 5))
        self.bias = torch.nn.Parameter(torch.tensor([0.5, 0.0, -0.5]))

    def forward(self, features: Tensor) -> Any:
        return ops.attention_mining(features, self.weight, self.bias)


def test_export_with_a_dynamic_batch() -> None:
    miner = Miner().eval()
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(miner, (smooth(2, 5, 8, 9),), dynamic_shapes=shapes)
    calls = [n.target for n in program.graph.nodes if n.op == "call_function"]
    assert OPERATORS.mine_cam.default in calls
    for images in (1, 2, 7):
        features = smooth(images, 5, 8, 9, seed=images)
        result = program.module()(features)
        assert isinstance(result, ops.MiningResult)
        assert_same(result, miner(features))


def test_autocast_changes_nothing() -> None:
    features, weight = features_and_weight()
    plain = ops.cam(features, weight), ops.attention_mining(features, weight, weight[:, 0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = ops.cam(features, weight), ops.attention_mining(features, weight, weight[:, 0])
        product = torch.nn.functional.linear(weight, weight)
    assert product.dtype == torch.bfloat16, "autocast was not on"
    assert_same(cast, plain)


def test_autocast_around_a_network() -> None:
    """bfloat16 features from a convolution, float32 weight, gradients back through both."""
    torch.manual_seed(2)
    convolution, weight = torch.nn.Conv2d(3, 5, 3), torch.randn(3, 5, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = convolution(torch.randn(2, 3, 9, 9))
        result = ops.attention_mining(features, weight)
    assert features.dtype == torch.bfloat16
    assert result.logits.dtype == result.cam.dtype == torch.float32
    result.logits.sum().backward()
    assert torch.isfinite(convolution.weight.grad).all()
    assert weight.grad.dtype == torch.float32
