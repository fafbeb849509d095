"""Other libraries' connected components, called as well as we know how."""

from __future__ import annotations

from collections.abc import Callable

import cc3d
import cv2
import numpy as np
from scipy import ndimage
from skimage import measure

EIGHT = np.ones((3, 3), bool)


def _cc3d(mask: np.ndarray) -> np.ndarray:
    # Its faster path for binary images labels background, too, where the width is odd (4.1.1).
    binary = mask.shape[1] % 2 == 0
    return cc3d.connected_components(mask.view(np.uint8), connectivity=8, binary_image=binary)


# One mask [H, W] bool in, integer labels out, 0 = background, 8-connected.
LABELLERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "cv2": lambda mask: cv2.connectedComponents(mask.view(np.uint8), connectivity=8)[1],
    "cc3d": _cc3d,
    "scipy": lambda mask: ndimage.label(mask, EIGHT)[0],
    "skimage": lambda mask: measure.label(mask, connectivity=2),
}


def label_batch(labeller: str, masks: np.ndarray) -> np.ndarray:
    """Labels [N, H, W] by one call: the masks on top of each other, an empty row after each.

    Numbers run on from mask to mask. Much faster than a call for each of many small masks.
    """
    n, height, width = masks.shape
    if n == 1:
        return LABELLERS[labeller](masks[0])[None]
    tall = np.zeros((n, height + 1, width), bool)
    tall[:, :height] = masks
    labels = LABELLERS[labeller](tall.reshape(-1, width))
    return labels.reshape(tall.shape)[:, :height]


def label_each(labeller: str, masks: np.ndarray) -> list[np.ndarray]:
    """Labels of every mask by a call each."""
    label = LABELLERS[labeller]
    return [label(mask) for mask in masks]


def assert_same_components(ours: np.ndarray, theirs: np.ndarray) -> None:
    """[N, H, W], equal up to renumbering: a label of one is one label of the other, and back."""
    assert ours.shape == theirs.shape
    foreground = ours > 0
    np.testing.assert_array_equal(foreground, theirs > 0)
    # Numbers may start again in every image; these do not.
    image = np.arange(len(ours))[:, None, None] * ours[0].size
    a, b = (image + ours)[foreground], (image + theirs)[foreground]
    for labels, others in ((a, b), (b, a)):
        partner = np.zeros(labels.max(initial=0) + 1, np.int64)
        partner[labels] = others
        np.testing.assert_array_equal(partner[labels], others)
