"""A mining run's folder, written from what a test wants to find in it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cxr_fast.archive.findings import open_run

# x1, y1, x2, y2, score; best first.
Box = tuple[float, float, float, float, float]


@dataclass(frozen=True)
class MinedImage:
    """``mined`` gives for each class its probability and boxes; none where ``error`` says why."""

    image_id: str
    height: int = 1024
    width: int = 1024
    mined: Mapping[str, tuple[float, Sequence[Box]]] = field(default_factory=dict)
    error: str | None = None


def write_run(
    path: Path,
    images: Sequence[MinedImage],
    class_names: Sequence[str],
    shard_size: int = 2,
    left_out: Collection[int] = (),
    with_maps: bool = True,
    with_heatmaps: bool = False,
) -> Path:
    """Write a run; the shards in ``left_out`` are not finished, and then the run is not either."""
    settings = {
        "images": {"count": len(images)},
        "model": {"sha256": "0123abcd", "class_names": list(class_names)},
        "mining": {"steps": 2},
        "precision": "float32",
        "shard_size": shard_size,
        "cxr_fast": "0.1.0",
        "torch": "2.13.0",
    }
    shards = -(-len(images) // shard_size)
    with open_run(path, settings) as run:
        run.write_images([image.image_id for image in images])
        for shard in sorted(set(range(shards)) - set(left_out)):
            part = images[shard * shard_size : (shard + 1) * shard_size]
            errors = [(image.image_id, image.error) for image in part if image.error]
            maps = _maps(part, with_heatmaps) if with_maps else None
            run.write_shard(shard, _findings(part), errors, maps)
        if not left_out:
            run.finish(shards)
    return path


def _findings(images: Sequence[MinedImage]) -> dict[str, Any]:
    rows = [
        (image.image_id, name, rank, *box, probability)
        for image in images
        for name, (probability, boxes) in image.mined.items()
        for rank, box in enumerate(boxes, 1)
    ]
    names = ("image_id", "class", "rank", "x1", "y1", "x2", "y2", "score", "probability")
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def _maps(images: Sequence[MinedImage], with_heatmaps: bool) -> dict[str, Any]:
    rows = [
        (image.image_id, name, probability, 4.5, 4.5, image.height, image.width)
        for image in images
        for name, (probability, _) in image.mined.items()
    ]
    names = ("image_id", "class", "probability", "peak_x", "peak_y", "image_height", "image_width")
    columns: dict[str, Any] = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    if with_heatmaps:
        columns |= {"height": [3] * len(rows), "width": [2] * len(rows)}
        columns["heatmap"] = [heatmap(*row[:2]).tobytes() for row in rows]
        columns |= dict.fromkeys(("cam", "erased_at"), columns["heatmap"])
    return columns


def heatmap(image_id: str, name: str) -> np.ndarray:
    """The heatmap uint8 [3, 2] that is written for an image and class."""
    first = (len(image_id) * 7 + len(name)) % 250
    return np.arange(first, first + 6, dtype=np.uint8).reshape(3, 2)
