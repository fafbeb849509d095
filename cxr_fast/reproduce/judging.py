"""From networks and images to boxes of the findings that the labels name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from cxr_fast import metrics, ops
from cxr_fast.config import MiningSettings
from cxr_fast.mining import mine_regions
from cxr_fast.models import fold, load_checkpoint, normalise
from cxr_fast.training import predict
from cxr_fast.training.batches import Labelled
from cxr_fast.training.state import digest


class Detections(NamedTuple):
    """Boxes [M, 4] in original pixels; image, rank from 1 and class of each, int64 [M]."""

    images: NDArray[np.int64]
    ranks: NDArray[np.int64]
    classes: NDArray[np.int64]
    boxes: NDArray[np.float32]


class Truth(NamedTuple):
    """True boxes [G, 4] in original pixels; image and class of each, int64 [G]. Sizes [N, 2] of the
    images, height and width.
    """

    images: NDArray[np.int64]
    classes: NDArray[np.int64]
    boxes: NDArray[np.float32]
    sizes: NDArray[np.float64]


def restricted(truth: Truth, rows: np.ndarray) -> Truth:
    """The boxes of those images, numbered by their place in ``rows``."""
    place = np.full(len(truth.sizes), -1)
    place[rows] = np.arange(len(rows))
    kept = place[truth.images] >= 0
    return Truth(place[truth.images[kept]], truth.classes[kept], truth.boxes[kept], truth.sizes[rows])


def judged_digest(truth: Truth, *images: Labelled) -> str:
    """SHA-256 of what boxes and rankings are judged by: true boxes, image sizes, names and labels."""
    hashed = hashlib.sha256(" ".join(digest(part) for part in images).encode())
    for column, kind in zip(truth, (np.int64, np.int64, np.float32, np.float64), strict=True):
        hashed.update(np.ascontiguousarray(column, kind).tobytes())
    return hashed.hexdigest()


class Heatmaps(NamedTuple):
    """``heatmap`` [N, C, H, W], and the attention that made it."""

    heatmap: Tensor
    mined: ops.MinedAttention


@torch.inference_mode()
def class_activation_maps(
    networks: Sequence[Path], images: Labelled, fabric: Fabric, batch_size: int = 32
) -> Tensor:
    """CAMs [T, N, C, H, W] of T networks, float32 on the CPU."""
    maps = []
    for path in networks:
        model, card = load_checkpoint(path)
        folded = fold(model).to(fabric.device)
        folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in the stubs
        rows = []
        for first in range(0, len(images.labels), batch_size):
            positions = np.arange(first, min(first + batch_size, len(images.labels)))
            pixels = torch.as_tensor(images.images[positions]).to(fabric.device)
            rows.append(folded(normalise(pixels[:, None].float() / 255, card)).float().cpu())
        maps.append(torch.cat(rows).contiguous())
    return torch.stack(maps)


def ranking(network: Path, images: Labelled, fabric: Fabric) -> NDArray[np.float64]:
    """AUROC [C] of a network, nothing erased."""
    model, card = load_checkpoint(network)
    logits = predict(model.to(fabric.device), images, card, fabric)
    return metrics.auroc(logits.numpy(), np.asarray(images.labels))


def mine_heatmaps(cams: Tensor, settings: MiningSettings) -> Heatmaps:
    """Mine CAMs [1, N, C, H, W], or [T, N, C, H, W] of one network a step (the staged schedule)."""
    s = settings
    if len(cams) == 1:
        mined = ops.mine_attention(cams[0], s.steps, s.cam_threshold, s.connectivity)
        return Heatmaps(ops.aggregate_heatmap(cams[0], mined, s.mode), mined)
    cams, erased_at, extents = cams[: s.steps], None, []
    for step, cam in enumerate(cams, 1):
        mined = ops.mine_attention(cam, 1, s.cam_threshold, s.connectivity, erased_at, step)
        erased_at = mined.erased_at
        extents.append(mined.extent)
    mined = ops.MinedAttention(mined.erased_at, torch.cat(extents, 2))
    return Heatmaps(ops.aggregate_heatmap(cams, mined, s.mode), mined)


def localise(
    cams: Tensor, labels: NDArray[np.float32], sizes: NDArray[np.float64], rule: MiningSettings
) -> tuple[Tensor, Detections]:
    """Heatmaps [N, C, H, W] and boxes of CAMs [1 or T, N, C, H, W], by any rule."""
    if rule.select != "regions":
        heatmap = mine_heatmaps(cams, rule).heatmap
        return heatmap, detect(heatmap, labels, sizes, rule)
    if len(cams) > 1:
        raise ValueError("select='regions' takes the CAMs of one network, but got one for each step")
    result = mine_regions(cams[0], rule, torch.from_numpy(sizes))
    return result.heatmap, _detections(result.found, labels)


def detect(
    heatmap: Tensor, labels: NDArray[np.float32], sizes: NDArray[np.float64], settings: MiningSettings
) -> Detections:
    """Boxes of heatmaps [N, C, H, W] for the classes of each image that ``labels`` [N, C] name."""
    found = ops.heatmap_boxes(
        heatmap,
        torch.from_numpy(sizes),
        settings.thresholds,
        settings.select,
        settings.max_boxes,
        settings.max_overlap,
        settings.upsample,
        settings.connectivity,
    )
    return _detections(found, labels)


def _detections(found: ops.HeatmapBoxes, labels: NDArray[np.float32]) -> Detections:
    counts = found.counts.numpy() * (labels > 0)
    n, c, k = np.nonzero(np.arange(found.boxes.shape[2]) < counts[..., None])
    return Detections(n, k + 1, c, found.boxes.numpy()[n, c, k])


def scattered(
    detections: Detections, sizes: NDArray[np.float64], rng: np.random.Generator
) -> Detections:
    """The same boxes, each at a random place of its image: what their sizes alone are worth."""
    extent = detections.boxes[:, 2:] - detections.boxes[:, :2]
    return detections._replace(boxes=_placed(extent, sizes[detections.images], rng))


def random_boxes(
    truth: Truth, labels: NDArray[np.float32], rng: np.random.Generator, boxes: int = 3
) -> Detections:
    """Boxes of the class's true sizes at random places: ``boxes`` for each image and labelled class."""
    n, c = (np.repeat(index, boxes) for index in np.nonzero(labels > 0))
    extent = np.zeros((len(n), 2))
    for index in np.unique(c):
        own = truth.boxes[truth.classes == index]
        if len(own):
            mine = np.flatnonzero(c == index)
            picked = own[rng.integers(0, len(own), len(mine))]
            extent[mine] = picked[:, 2:] - picked[:, :2]
    drawn = _placed(extent, truth.sizes[n], rng)
    return Detections(n, np.tile(np.arange(1, boxes + 1), len(n) // boxes), c, drawn)


def _placed(
    extent: NDArray[np.floating[Any]], sizes: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Boxes [M, 4] of width and height ``extent`` [M, 2], anywhere in images of ``sizes`` [M, 2]."""
    corner = rng.random((len(extent), 2)) * (sizes[:, ::-1] - extent).clip(0)
    return np.hstack([corner, corner + extent]).astype(np.float32)
