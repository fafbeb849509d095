"""How images are cut into shards and batches, and read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cxr_fast.archive.images import ImageList, UnreadableImage, read_picture, to_input
from cxr_fast.archive.stages import Stages


class Batch(NamedTuple):
    """Positions [first, last) of the image list, all of one shard."""

    shard: int
    first: int
    last: int


class Readings(NamedTuple):
    """A batch as the network takes it: ``images`` [B, S, S] (padding is 0), ``sizes`` [B, 2]."""

    images: NDArray[np.float32]
    sizes: NDArray[np.float64]
    readable: tuple[int, ...]  # positions in the image list, in order
    errors: tuple[tuple[str, str], ...]
    notes: tuple[tuple[str, str], ...]
    tags: tuple[tuple[str, Mapping[str, str]], ...]


@dataclass(frozen=True)
class RunOptions:
    """What decides a run's rows besides the images and the model."""

    batch_size: int = 8
    shard_size: int = 1024
    min_probability: float = 0.0
    # Class indices of each image_id, or None for all classes of all images.
    classes_of: Mapping[str, Sequence[int]] | None = None
    # Whether the heatmaps themselves are kept beside their peaks.
    heatmaps: bool = False
    # DICOM values that are kept beside the findings; no other leaves its file.
    keep_tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.shard_size < 1:
            raise ValueError(
                f"batch_size and shard_size must be at least 1, but are {self.batch_size} and "
                f"{self.shard_size}"
            )
        if not 0.0 <= self.min_probability <= 1.0:
            raise ValueError(f"min_probability must be from 0 to 1, but is {self.min_probability}")


def positions_of(shard: int, images: ImageList, options: RunOptions) -> range:
    """Return where the images of a shard lie in the list."""
    first = shard * options.shard_size
    return range(first, min(first + options.shard_size, len(images)))


def batches_of(shard: int, images: ImageList, options: RunOptions) -> Iterator[Batch]:
    """Cut a shard into batches."""
    positions = positions_of(shard, images, options)
    for first in positions[:: options.batch_size]:
        yield Batch(shard, first, min(first + options.batch_size, positions.stop))


def read_batch(
    images: ImageList,
    batch: Batch,
    pixels: NDArray[np.float32],
    options: RunOptions,
    stages: Stages,
) -> Readings:
    """Read and resize a batch into ``pixels`` [B, S, S], which is all zeros.

    What cannot be read is listed with its reason and left out.
    """
    sizes = np.ones((len(pixels), 2))
    readable: list[int] = []
    errors: list[tuple[str, str]] = []
    notes: list[tuple[str, str]] = []
    tags: list[tuple[str, Mapping[str, str]]] = []
    for position in range(batch.first, batch.last):
        try:
            with stages.timed("read"):
                data = images.read(position)
            with stages.timed("decode"):
                picture = read_picture(data, keep_tags=options.keep_tags)
        except UnreadableImage as error:
            errors.append((images.image_ids[position], error.reason))
            continue
        row = len(readable)
        with stages.timed("resize"):
            pixels[row] = to_input(picture.pixels, pixels.shape[2])
        sizes[row] = picture.pixels.shape
        readable.append(position)
        if picture.note:
            notes.append((images.image_ids[position], picture.note))
        if picture.tags:
            tags.append((images.image_ids[position], picture.tags))
    return Readings(pixels, sizes, tuple(readable), tuple(errors), tuple(notes), tuple(tags))
