"""Rows from what was mined of a batch: boxes and maps as columns. No network and no files here.

Whatever runs the network gives a ``MinedBatch`` of numpy arrays, and everything behind it is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cxr_fast.config import MiningSettings
from cxr_fast.runtime import MiningResult


class Network(NamedTuple):
    """What decides the rows of an image, besides its pixels and the weights.

    ``input_size`` is the side of the square that images are stretched to; ``libraries`` are what
    computes, and of which version.
    """

    class_names: tuple[str, ...]
    input_size: int
    settings: MiningSettings
    precision: str
    device: str
    libraries: Mapping[str, str]


class MinedBatch(NamedTuple):
    """What is kept of a batch of N images and C classes, in host memory.

    ``probability`` [N, C] float32 of step 1; ``boxes`` [N, C, K, 4], ``scores`` [N, C, K] and
    ``counts`` [N, C] as ``ops.heatmap_boxes`` gives them, boxes in pixels of each image; ``peak``
    [N, C] int64, the place (row-major) of the first largest cell of a heatmap of ``map_size`` = (H, W)
    cells, -1 where it is constant; if asked for, ``heatmap`` and ``cam`` [N, C, H, W] uint8 from the
    least (0) to the largest (255) value of each, and ``erased_at`` [N, C, H, W] uint8; ``finite`` [N],
    False where a CAM overflowed. ``details`` gives all that the operators made.
    """

    probability: NDArray[np.float32]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    counts: NDArray[np.int32]
    peak: NDArray[np.int64]
    map_size: tuple[int, int]
    heatmap: NDArray[np.uint8] | None
    cam: NDArray[np.uint8] | None
    erased_at: NDArray[np.uint8] | None
    finite: NDArray[np.bool_]
    details: Callable[[], MiningResult]


class BatchMiner(Protocol):
    """A network on a device, which mines batches: the same batch gives the same on every call."""

    @property
    def network(self) -> Network:
        """What of it decides rows."""

    @property
    def where(self) -> str:
        """The device, for the person who waits."""

    @property
    def reads_inline(self) -> bool:
        """Whether threads that read also mine; else it is called by one thread, which reads nothing."""

    def in_threads(self) -> AbstractContextManager[Callable[[], None]]:
        """Give what each thread calls that is about to mine, when several do."""

    def empty(self, batch_size: int) -> NDArray[np.float32]:
        """Return zeros [B, S, S] for the images of a batch, in memory that suits the device."""

    def mine_batch(
        self, images: NDArray[np.float32], image_sizes: NDArray[np.float64], heatmaps: bool
    ) -> MinedBatch:
        """Mine images [B, S, S] in [0, 1]; ``image_sizes`` [B, 2] height and width in pixels."""


class Findings(NamedTuple):
    """Boxes of a batch, one entry a box, in order of image, class and rank.

    ``image`` and ``class_index`` int64 [M], ``rank`` int8 [M] from 1, ``boxes`` float32 [M, 4]
    (x1, y1, x2, y2 in original pixels), ``score`` and ``probability`` float32 [M].
    """

    image: NDArray[np.int64]
    class_index: NDArray[np.int64]
    rank: NDArray[np.int8]
    boxes: NDArray[np.float32]
    score: NDArray[np.float32]
    probability: NDArray[np.float32]


class Maps(NamedTuple):
    """Heatmaps of a batch, one entry an image and class, in that order: what a run keeps of them.

    ``image`` and ``class_index`` int64 [M], ``probability`` float32 [M], ``peak`` float32 [M, 2] (x, y
    of the centre of the first largest cell, in original pixels; NaN where the map is constant),
    ``image_size`` int32 [M, 2] (height, width), ``heatmap``, ``cam`` and ``erased_at`` uint8 [M, H, W],
    if they were asked for.
    """

    image: NDArray[np.int64]
    class_index: NDArray[np.int64]
    probability: NDArray[np.float32]
    peak: NDArray[np.float32]
    image_size: NDArray[np.int32]
    heatmap: NDArray[np.uint8] | None
    cam: NDArray[np.uint8] | None
    erased_at: NDArray[np.uint8] | None


def peaks_of(heatmap: NDArray[np.float32]) -> tuple[NDArray[np.int64], tuple[int, int]]:
    """``peak`` and ``map_size`` of a ``MinedBatch`` from its heatmaps [N, C, H, W]."""
    flat = heatmap.reshape(*heatmap.shape[:2], -1)
    varies = flat.max(2) > flat.min(2)
    return np.where(varies, flat.argmax(2), -1), (heatmap.shape[2], heatmap.shape[3])


def levels_of(maps: NDArray[np.float32]) -> NDArray[np.uint8]:
    """``heatmap`` or ``cam`` of a ``MinedBatch`` from the maps [N, C, H, W] themselves."""
    lo, hi = maps.min((2, 3), keepdims=True), maps.max((2, 3), keepdims=True)
    span = np.where(hi > lo, hi - lo, np.float32(1))
    levels: NDArray[np.uint8] = np.nan_to_num(np.rint((maps - lo) / span * 255)).astype(np.uint8)
    return levels


def findings_of(
    mined: MinedBatch,
    images: int,
    wanted: Sequence[Sequence[int]] | None = None,
    min_probability: float = 0.0,
) -> Findings:
    """Rows of the first ``images`` of a batch: every box of every wanted class that is probable enough.

    ``wanted`` has the class indices of each image (None: all); what is not finite has no rows.
    """
    keep = _kept(mined, images, wanted) & (mined.probability >= min_probability)
    counts = np.where(keep, mined.counts, 0)
    n, c, k = np.nonzero(np.arange(mined.boxes.shape[2]) < counts[..., None])
    return Findings(
        n,
        c,
        (k + 1).astype(np.int8),
        mined.boxes[n, c, k],
        mined.scores[n, c, k],
        mined.probability[n, c],
    )


def maps_of(
    mined: MinedBatch,
    image_sizes: NDArray[np.float64],
    images: int,
    wanted: Sequence[Sequence[int]] | None = None,
) -> Maps:
    """What is kept of the heatmap of every wanted class, however improbable it is.

    ``image_sizes`` [N, 2] height and width; the rest as for ``findings_of``.
    """
    n, c = np.nonzero(_kept(mined, images, wanted))
    height, width = mined.map_size
    place, size = mined.peak[n, c], image_sizes[n]
    x = (place % width + 0.5) / width * size[:, 1]
    y = (place // width + 0.5) / height * size[:, 0]
    peak = np.stack([x, y], 1).astype(np.float32)
    peak[place < 0] = np.nan
    kept = (mined.heatmap, mined.cam, mined.erased_at)
    maps = (None if one is None else one[n, c] for one in kept)
    return Maps(n, c, mined.probability[n, c], peak, size.astype(np.int32), *maps)


def _kept(mined: MinedBatch, images: int, wanted: Sequence[Sequence[int]] | None) -> NDArray[np.bool_]:
    """Which maps [N, C] count: those of real images (padding is no image) and wanted classes."""
    chosen = np.zeros(mined.probability.shape, np.bool_)
    if wanted is None:
        chosen[:images] = True
    else:
        for row, classes in enumerate(wanted[:images]):
            chosen[row, list(classes)] = True
    chosen[~mined.finite] = False
    return chosen
