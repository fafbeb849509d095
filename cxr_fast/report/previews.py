"""Pictures small enough to page through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cxr_fast.archive.images import ImageList, UnreadableImage, read_image

_QUALITY = 85
_AHEAD = 64  # pictures that are asked for before the first is done


def preview_file(number: int) -> Path:
    """Where the picture of an image lies, in the report's folder."""
    return Path("previews", f"{number // 1000:03d}", f"{number:06d}.jpg")


def write_previews(
    images: ImageList,
    numbers: Mapping[str, int],
    folder: Path,
    longest: int,
    threads: int,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.uint8]:
    """Write the images that ``numbers`` names, as JPEG of at most ``longest`` pixels a side.

    Returns 1 for each that is there, 0 for those that ``images`` lacks or that cannot be read.
    """
    there = np.zeros(len(numbers), np.uint8)
    places = [(row, numbers[name]) for row, name in enumerate(images.image_ids) if name in numbers]
    for _, number in places:
        (folder / preview_file(number)).parent.mkdir(parents=True, exist_ok=True)

    def write(place: tuple[int, int]) -> None:
        row, number = place
        try:
            pixels = read_image(images.read(row))
        except UnreadableImage:
            return
        _small(pixels, longest).save(folder / preview_file(number), quality=_QUALITY)
        there[number] = 1

    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(places), _AHEAD):
            list(pool.map(write, places[first : first + _AHEAD]))
            if progress is not None:
                progress(min(first + _AHEAD, len(places)), len(places))
    return there


def _small(pixels: NDArray[np.uint8] | NDArray[np.uint16], longest: int) -> Image.Image:
    eight = pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
    picture = Image.fromarray(eight)
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return picture
