"""attention_mining: features in, boxes out, beside the paper taken literally."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from cxr_fast import ops, reference
from cxr_fast.benchmarks import erasing, inputs, networks
from cxr_fast.benchmarks.labelling import labellers
from cxr_fast.benchmarks.literal import literal
from cxr_fast.benchmarks.place import Place
from cxr_fast.benchmarks.products import einsum_cam, matmul_cam
from cxr_fast.benchmarks.racing import Case, Peer, Yardstick
from cxr_fast.benchmarks.roofline import Work
from cxr_fast.reference import MiningResult

KINDS = (
    "float32", "float32 channels_last", "bfloat16", "bfloat16 channels_last", "float32 snakes",
    "float32 spirals",
)  # fmt: skip


def attention_mining_cases(place: Place) -> list[str]:
    return ["float32", "bfloat16 channels_last", "float32 snakes"] if place.quick else list(KINDS)


def made(kind: str, place: Place) -> tuple[Tensor, Tensor]:
    """Features and a classifier: smooth, or such that the first C channels are winding maps."""
    n = inputs.GPU_BATCH if place.cuda else inputs.CPU_BATCH
    n, d, side, c = (2, 24, 16, 3) if place.quick else (n, inputs.CHANNELS, inputs.SIDE, inputs.CLASSES)
    x, w = inputs.features(n, d, side), inputs.weight(c, d)
    for shape in ("snake", "spiral"):
        if shape in kind:
            x[:, :c] = inputs.winding(shape, n, c, side)
            w = torch.eye(c, d)
    x = x.to(place.device, torch.bfloat16 if "bfloat16" in kind else torch.float32)
    if "channels_last" in kind:
        x = x.contiguous(memory_format=torch.channels_last)
    return x, w.to(place.device)


def one_product(label: Callable[..., object], x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """What this library does, without this library: one product, then numpy and a labeller."""
    n, _, height, width = x.shape
    cam = matmul_cam(x.to(torch.float32), w).contiguous()
    erased_at, _ = erasing.mine_batch(label, cam.flatten(0, 1).cpu().numpy(), inputs.STEPS)
    erased = torch.from_numpy(erased_at).view(n, -1, height, width).to(x.device)
    return erased, reference.masked_gap(cam, erased, inputs.STEPS)


def one_product_on_gpu(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """The same, on the GPU throughout."""
    cam = matmul_cam(x.to(torch.float32), w).contiguous()
    erased, _ = erasing.mine_on_gpu(ops.label_components, cam, inputs.STEPS)
    return erased, reference.masked_gap(cam, erased, inputs.STEPS)


def equal_maps(ours: MiningResult, theirs: tuple[Tensor, Tensor]) -> Tensor:
    return (ours.mined.erased_at == theirs[0]).flatten(2).all(-1)


def same(ours: MiningResult, theirs: tuple[Tensor, Tensor]) -> None:
    """A CAM that differs in its last bits may cut one pixel more or less: 1 map in 100 may."""
    equal = equal_maps(ours, theirs)
    assert equal.float().mean() >= 0.99, f"only {int(equal.sum())} of {equal.numel()} maps agree"
    torch.testing.assert_close(ours.logits[equal], theirs[1][equal], rtol=1e-3, atol=1e-4)


def yardsticks(x: Tensor, place: Place) -> list[Yardstick]:
    """One copy of the features; on a GPU also the network that made them, compiled."""
    target = torch.empty_like(x)
    sticks = [Yardstick("one copy of the features", lambda x, w: target.copy_(x))]
    if place.cuda and not place.quick and x.dtype == torch.bfloat16:
        of, forward = networks.sizes(place), _resnet50_forward(place)
        sticks.append(Yardstick(f"ResNet-50 forward {of}, compiled", lambda x, w: forward()))
    return sticks


@cache
def _resnet50_forward(place: Place) -> Callable[[], Tensor]:
    of = networks.sizes(place)
    model = networks.resnet50(place, of, "none")
    images = networks.pictures(place, of, model.fc.weight.dtype)
    compiled = torch.compile(model)

    def forward() -> Tensor:
        with torch.inference_mode():
            return compiled(images)

    return forward


def test_attention_mining(case: str, race: Callable[[Case], None], place: Place) -> None:
    x, w = made(case, place)
    installed, peers, note = labellers(), [], ""
    without = "(no heatmap, no boxes)"
    # Seconds a call on a GPU's batch: once for each kind of features is enough there.
    slow = place.cuda and not place.quick and "channels_last" in case
    if (label := installed.get("skimage")) and not slow:
        equal = equal_maps(ops.attention_mining(x, w), literal(label, x, w, inputs.STEPS))
        note = f"{int(equal.sum())} of {equal.numel()} maps equal to literal"
        peers.append(Peer(f"literal by matmul {without}", partial(literal, label), same))
        if case == "float32":
            by_einsum = partial(literal, label, product=einsum_cam)
            peers.append(Peer(f"literal by einsum {without}", by_einsum, same))
    if label := installed.get("cv2"):
        peers.append(Peer("matmul + numpy + cv2 (likewise)", partial(one_product, label), same))
    if place.cuda:
        name = "matmul + torch around ops.label_components (likewise)"
        peers.append(Peer(name, one_product_on_gpu, same))
    n, d, side, _ = x.shape
    pixels, c = n * side**2, len(w)
    # Reads the features; writes cam and heatmap (float32) and erased_at (a byte).
    moved = x.numel() * x.element_size() + pixels * c * (4 + 4 + 1)
    work = Work(moved, 2 * pixels * c * d, x.dtype)
    name = f"attention_mining N{n} D{d} {side}x{side} C{c} T{inputs.STEPS} {case}"
    sticks = yardsticks(x, place)
    race(Case(name, (x, w), ops.attention_mining, peers, sticks, work, note))
