"""Pictures small enough to page through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cxr_fast.archive.images import ImageList, UnreadableImage, read_image

MISSING, THERE, OTHER = 0, 1, 2
_QUALITY = 85
_AVERAGED, _MEAN_SIDE = 200, 128
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
    *,
    sizes: NDArray[np.float64],
) -> NDArray[np.uint8]:
    """Write the images that ``numbers`` names, as JPEG of at most ``longest`` pixels a side.

    ``sizes`` [N, 2] are heights and widths as they were mined. Returns for each THERE, or MISSING where
    ``images`` lacks it or it cannot be read, or OTHER where it has another size: not what was mined.
    """
    there = np.full(len(numbers), MISSING, np.uint8)
    places = [(row, numbers[name]) for row, name in enumerate(images.image_ids) if name in numbers]
    for parent in {(folder / preview_file(number)).parent for _, number in places}:
        parent.mkdir(parents=True, exist_ok=True)

    def write(place: tuple[int, int]) -> None:
        row, number = place
        try:
            pixels = read_image(images.read(row))
        except UnreadableImage:
            return
        if pixels.shape != tuple(sizes[number]):
            there[number] = OTHER
            return
        _small(pixels, longest).save(folder / preview_file(number), quality=_QUALITY)
        there[number] = THERE

    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(places), _AHEAD):
            list(pool.map(write, places[first : first + _AHEAD]))
            if progress is not None:
                progress(min(first + _AHEAD, len(places)), len(places))
    return there


def write_mean(folder: Path, there: NDArray[np.uint8]) -> bool:
    """Write ``mean.jpg``, the mean of up to 200 previews stretched to a square, to lay maps over.

    False, and no file, without any preview.
    """
    numbers = np.flatnonzero(there == THERE)
    chosen = numbers[:: -(-len(numbers) // _AVERAGED) or 1]
    if not len(chosen):
        return False
    total = np.zeros((_MEAN_SIDE, _MEAN_SIDE))
    for number in chosen.tolist():
        with Image.open(folder / preview_file(number)) as picture:
            total += np.asarray(picture.resize(total.shape, Image.Resampling.BOX))
    Image.fromarray(np.rint(total / len(chosen)).astype(np.uint8)).save(folder / "mean.jpg")
    return True


def _small(pixels: NDArray[np.uint8] | NDArray[np.uint16], longest: int) -> Image.Image:
    picture = Image.fromarray(pixels if pixels.dtype == np.uint8 else _eight_bits(pixels))
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return picture


def _eight_bits(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """The highest 8 of the bits that are used: 10, 12 or 14 bits stored in 16 would be near black."""
    used = max(int(pixels.max()).bit_length(), 10)
    return (pixels >> (used + used % 2 - 8)).astype(np.uint8)
