"""Connected components of a batch of masks, on a GPU where there is one.

    python components.py

``label_components`` numbers the components of every mask of a batch in one call, as scipy does: 0 is
background, 1..n in row-major order of each component's first pixel, each mask on its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cxr_fast import ops


def component_sizes(labels: Tensor) -> Tensor:
    """Labels [N, H, W] -> pixels of each component [N, most + 1]; entry 0 is the background."""
    most = int(labels.max()) if labels.numel() else 0
    sizes = torch.zeros(len(labels), most + 1, dtype=torch.int64, device=labels.device)
    flat = labels.flatten(1).long()
    return sizes.scatter_add_(1, flat, torch.ones_like(flat))


def without_specks(mask: Tensor, least: int, connectivity: int = 8) -> Tensor:
    """Mask [N, H, W] bool, without its components of fewer than ``least`` pixels."""
    labels = ops.label_components(mask, connectivity)
    sizes = component_sizes(labels)
    return mask & (sizes.gather(1, labels.flatten(1).long()).view_as(labels) >= least)


def same_components(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether two labelings [N, H, W] part each mask alike, whatever the numbers."""
    for one, other in zip(ours, theirs, strict=True):
        for labels, renamed in ((one, other), (other, one)):
            name_of = np.zeros(labels.max() + 1, renamed.dtype)
            name_of[labels] = renamed
            if not np.array_equal(name_of[labels], renamed):
                return False
    return bool(((ours == 0) == (theirs == 0)).all())


def blobs(count: int, side: int, seed: int = 0) -> Tensor:
    """Random masks [N, side, side] with rounded components of many sizes."""
    noise = torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(seed))
    for _ in range(3):
        noise = torch.nn.functional.avg_pool2d(noise, 5, 1, 2)
    return noise[:, 0] > 0


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a second call gives, and its milliseconds."""
    call()
    began = time.perf_counter()
    result = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, (time.perf_counter() - began) * 1000


def main(arguments: Sequence[str] = ()) -> None:
    """Label 256 masks with everything that is installed, and compare."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mask = blobs(256, 256).to(device)
    labels, milliseconds = timed(lambda: ops.label_components(mask))
    ours = labels.cpu().numpy()
    print(f"{'cxr_fast, ' + device:16}{milliseconds:8.1f} ms  {ours.max(axis=(1, 2)).sum()} components")

    masks = mask.cpu().numpy()
    peers: dict[str, Callable[[], np.ndarray]] = {}
    try:
        from scipy import ndimage

        peers["scipy"] = lambda: np.stack([ndimage.label(one, np.ones((3, 3)))[0] for one in masks])
    except ImportError:
        pass
    try:
        import cc3d

        peers["cc3d"] = lambda: np.stack(
            [cc3d.connected_components(one, connectivity=8) for one in masks]
        )
    except ImportError:
        pass
    for name, call in peers.items():
        theirs, milliseconds = timed(call)
        verdict = "the same components" if same_components(ours, theirs) else "OTHER COMPONENTS"
        print(f"{name:16}{milliseconds:8.1f} ms  {verdict}")

    kept = without_specks(mask, least=30)
    left = int((mask & ~kept).sum())
    print(f"components of fewer than 30 pixels hold {left} of {int(mask.sum())} pixels")


if __name__ == "__main__":
    main()
