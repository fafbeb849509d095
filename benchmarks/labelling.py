"""Other libraries' connected components on a CPU, called as well as we know how."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from cxr_fast.benchmarks.place import peer_module

EIGHT = np.ones((3, 3), bool)
Labeller = Callable[[np.ndarray], np.ndarray]


def _cc3d(cc3d: ModuleType, mask: np.ndarray) -> np.ndarray:
    # Its faster path for binary images labels background, too, where the width is odd (4.1.1).
    binary = mask.shape[1] % 2 == 0
    return cc3d.connected_components(mask.view(np.uint8), connectivity=8, binary_image=binary)


# Module -> its call on one mask [H, W] bool: integer labels, 0 = background, 8-connected.
_CALLS: dict[str, tuple[str, Callable[[ModuleType, np.ndarray], np.ndarray]]] = {
    "cv2": ("cv2", lambda cv2, m: cv2.connectedComponents(m.view(np.uint8), connectivity=8)[1]),
    "cc3d": ("cc3d", _cc3d),
    "scipy": ("scipy.ndimage", lambda ndimage, m: ndimage.label(m, EIGHT)[0]),
    "skimage": ("skimage.measure", lambda measure, m: measure.label(m, connectivity=2)),
}


def labellers() -> dict[str, Labeller]:
    """Those that are installed, by name."""

    def call(module: ModuleType, run: Callable[[ModuleType, np.ndarray], np.ndarray]) -> Labeller:
        return lambda mask: run(module, mask)

    loaded = ((name, peer_module(module), run) for name, (module, run) in _CALLS.items())
    return {name: call(module, run) for name, module, run in loaded if module}


def label_batch(label: Labeller, masks: np.ndarray) -> np.ndarray:
    """Labels [N, H, W] by one call: the masks on top of each other, an empty row after each.

    Numbers run on from mask to mask. Much faster than a call for each of many small masks.
    """
    n, height, width = masks.shape
    if n == 1:
        return label(masks[0])[None]
    tall = np.zeros((n, height + 1, width), bool)
    tall[:, :height] = masks
    return label(tall.reshape(-1, width)).reshape(tall.shape)[:, :height]


def label_each(label: Labeller, masks: np.ndarray) -> list[np.ndarray]:
    """Labels of every mask by a call each."""
    return [label(mask) for mask in masks]


def assert_same_components(ours: Tensor | np.ndarray, theirs: Tensor | np.ndarray) -> None:
    """[N, H, W], equal up to renumbering: a label of one is one label of the other, and back.

    Labels are at most H*W and start again in every image, or run on from image to image.
    """
    # Some libraries count in unsigned integers, with which torch does not calculate.
    ours, theirs = (
        torch.from_numpy(v.astype(np.int64)) if isinstance(v, np.ndarray) else v.to(torch.int64)
        for v in (ours, theirs)
    )
    assert ours.shape == theirs.shape
    foreground = ours > 0
    assert torch.equal(foreground, theirs > 0), "the masks of the labels differ"
    # Numbers may start again in every image; these do not.
    image = torch.arange(len(ours), device=ours.device)[:, None, None] * ours[0].numel()
    a, b = ((image + labels)[foreground] for labels in (ours, theirs))
    for labels, others in ((a, b), (b, a)):
        partner = others.new_zeros(int(labels.max()) + 1 if len(labels) else 1)
        partner[labels] = others
        assert torch.equal(partner[labels], others), "a component of one is several of the other"
