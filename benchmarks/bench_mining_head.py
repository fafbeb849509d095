"""The mining head as people write it: hooks and gradients, one image and one class at a time.

In the manner of pytorch-grad-cam: for every class the gradient of its logit with respect to the
features, averaged over the pixels, weighs the channels (behind global average pooling that is Eq. 7,
times H*W); the CAM goes to numpy, where it is cut, labelled, erased, averaged and boxed. Its results
are those of ``ops.attention_mining``, boxes included.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cxr_fast import ops
from cxr_fast.benchmarks import inputs
from cxr_fast.benchmarks.boxes import boxes_each, component_finders
from cxr_fast.benchmarks.labelling import Labeller, labellers
from cxr_fast.benchmarks.literal import peak_component
from cxr_fast.benchmarks.place import Place
from cxr_fast.benchmarks.racing import Case, Peer
from cxr_fast.benchmarks.roofline import Work
from cxr_fast.config import MiningSettings
from cxr_fast.reference import MiningResult

SIZE = 1024


class Head(NamedTuple):
    """erased_at [N, C, H, W], logits [N, C, T], boxes [N, C, 3, 4], counts [N, C]."""

    erased_at: np.ndarray
    logits: np.ndarray
    boxes: np.ndarray
    counts: np.ndarray


def grad_cam(features: Tensor, weight: Tensor, class_index: int) -> tuple[np.ndarray, float]:
    """features [1, D, H, W]: the CAM [H, W] of a class by its logit's gradient, and the logit."""
    features = features.detach().requires_grad_()
    logit = (features.mean((2, 3)) @ weight.t())[0, class_index]
    (gradient,) = torch.autograd.grad(logit, features)
    importance = gradient.mean((2, 3), keepdim=True) * features[0, 0].numel()
    cam = (importance * features).sum(1)[0]
    return cam.detach().cpu().numpy(), float(logit.detach())


def head_by_class(
    label: Labeller, components: Callable[..., object], features: Tensor, weight: Tensor
) -> Head:
    settings = MiningSettings()
    n, _, height, width = features.shape
    c, steps = len(weight), settings.steps
    erased_at = np.zeros((n, c, height, width), np.uint8)
    logits = np.zeros((n, c, steps), np.float32)
    heatmaps = np.zeros((n, c, height, width), np.float32)
    for i in range(n):
        for k in range(c):
            alive, held = np.ones((height, width), bool), np.zeros((height, width), np.float32)
            for t in range(steps):
                mask = torch.from_numpy(alive).to(features.device)
                cam, logits[i, k, t] = grad_cam(features[i : i + 1].float() * mask, weight, k)
                lo, hi = cam[alive].min(), cam[alive].max()
                held = np.where(alive, (cam - lo) / (hi - lo), held)  # Eq. 8: erased pixels stay
                heatmaps[i, k] += held / steps
                component = peak_component(label, cam, alive)
                erased_at[i, k][component] = t + 1
                alive &= ~component
    flat = heatmaps.reshape(n * c, height, width)
    boxes, _, counts = boxes_each(components, flat, settings.thresholds, settings.upsample, SIZE)
    return Head(erased_at, logits, boxes.reshape(n, c, -1, 4), counts.reshape(n, c))


def same(ours: MiningResult, theirs: Head) -> None:
    """Another order of summing moves the last bits, which may move a pixel or a cut: 1 map in 50 may.

    A cut through the heatmap is as sharp as one through the CAM, and there are three of them.
    """
    erased = ours.mined.erased_at.cpu().numpy() == theirs.erased_at
    equal = erased.all((2, 3))
    assert equal.mean() >= 0.98, f"only {equal.sum()} of {equal.size} maps agree"
    logits = ours.logits.cpu().numpy()
    np.testing.assert_allclose(theirs.logits[equal], logits[equal], rtol=1e-3, atol=1e-4)
    boxes, counts = (v.cpu().numpy() for v in (ours.found.boxes, ours.found.counts))
    agree = (counts == theirs.counts)[equal] & (boxes == theirs.boxes).all((2, 3))[equal]
    assert agree.mean() >= 0.98, f"boxes of only {agree.sum()} of {agree.size} maps agree"


def mining_head_cases(place: Place) -> list[str]:
    if place.quick:
        return ["float32"]
    return ["bfloat16 channels_last"] if place.cuda else ["float32", "bfloat16 channels_last"]


def test_mining_head(case: str, race: Callable[[Case], None], place: Place) -> None:
    n = inputs.GPU_BATCH if place.cuda else inputs.CPU_BATCH
    n, d, side, c = (2, 24, 16, 3) if place.quick else (n, inputs.CHANNELS, inputs.SIDE, inputs.CLASSES)
    x, w = inputs.features(n, d, side).to(place.device), inputs.weight(c, d).to(place.device)
    if "bfloat16" in case:
        x = x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    peers = []
    if (label := labellers().get("cv2")) and (find := component_finders().get("cv2")):
        run = partial(head_by_class, label, find)
        peers.append(Peer("by gradients, class by class, cv2", run, same))
    pixels = n * side**2
    moved = x.numel() * x.element_size() + pixels * c * (4 + 4 + 1)
    work = Work(moved, 2 * pixels * c * d, x.dtype)
    ours = partial(ops.attention_mining, image_size=(SIZE, SIZE))
    race(Case(f"mining_head N{n} D{d} {side}x{side} C{c} {case}", (x, w), ours, peers, work=work))
