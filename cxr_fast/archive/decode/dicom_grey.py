"""From the stored values of a DICOM frame to grey pixels (PS3.3, C.7.6.3, C.11.1, C.11.2).

A frame is ``codes``: unsigned patterns of ``bits`` bits. All that its header says about brightness
(sign, modality LUT or rescale, window or VOI LUT, inversion) is put into one table with an entry a
code, in float64, and the frame is looked up in it once.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cxr_fast.archive.decode.common import Pixels, UnreadableImage, luma

_BAND = 2**20  # pixels looked up at once: their 64-bit indices stay in the cache


class Lut(NamedTuple):
    """A lookup table: entry 0 is for values up to ``first``; entries have ``bits`` bits."""

    first: int
    entries: NDArray[np.uint16]
    bits: int

    def __call__(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Look values up; those beyond the ends get the first or the last entry."""
        places = np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1)
        found: NDArray[np.float64] = self.entries[places.astype(np.int64)].astype(np.float64)
        return found


class Window(NamedTuple):
    """A VOI window, as the header has it: NaN where it has no number."""

    center: float
    width: float
    function: str = "LINEAR"

    def usable(self) -> bool:
        """Tell whether PS3.3 C.11.2.1.2 allows it."""
        if not (math.isfinite(self.center) and math.isfinite(self.width)):
            return False
        return self.width >= 1 if self.function == "LINEAR" else self.width > 0

    def __call__(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Grey in [0, 1] of values behind the modality stage."""
        if self.function == "SIGMOID":
            exponent = np.clip(-4 * (values - self.center) / self.width, -700, 700)
            return 1 / (1 + np.exp(exponent))
        if self.function == "LINEAR_EXACT":
            return np.clip((values - self.center) / self.width + 0.5, 0, 1)
        if self.width == 1:  # a step
            return (values > self.center - 0.5).astype(np.float64)
        return np.clip((values - (self.center - 0.5)) / (self.width - 1) + 0.5, 0, 1)


class Brightness(NamedTuple):
    """What the header says about how stored values become grey."""

    bits: int
    signed: bool
    inverted: bool  # MONOCHROME1
    modality: Lut | tuple[float, float] | None  # a table, or slope and intercept
    voi: Lut | Window | None
    padding: tuple[int, int] | None  # the first and last stored value that is no content


def grey(codes: NDArray[Any], brightness: Brightness) -> Pixels:
    """Grey pixels of a frame: uint8 where 8 bits are shown as stored, else uint16 of full range."""
    bits, padding = brightness.bits, brightness.padding
    values = np.arange(2**bits, dtype=np.float64)
    if brightness.signed:
        values[2 ** (bits - 1) :] -= 2**bits
    blank = np.zeros(2**bits, bool)
    if padding is not None:
        blank = (values >= padding[0]) & (values <= padding[1])
    if isinstance(brightness.modality, Lut):
        values = brightness.modality(values)
    elif brightness.modality is not None:
        slope, intercept = brightness.modality
        values = values * slope + intercept

    voi = brightness.voi
    linear = not isinstance(brightness.modality, Lut) and voi is None
    as_stored = linear and bits == 8 and not brightness.signed and not blank.any()
    if isinstance(voi, Lut):
        shown = voi(values) / (2**voi.bits - 1)
    elif voi is not None:
        shown = voi(values)
    elif as_stored and values[0] < values[-1] and not brightness.inverted:
        return np.array(codes)
    elif as_stored:
        lowest, highest = min(values[0], values[-1]), max(values[0], values[-1])
        shown = (values - lowest) / (highest - lowest)
    else:
        shown = _stretched(values, _used(codes, bits) & ~blank)
    if brightness.inverted:
        shown = 1 - shown
    shown[blank] = 0
    kind = np.uint8 if as_stored else np.uint16
    pixels: Pixels = look_up(codes, np.rint(shown * np.iinfo(kind).max).astype(kind))
    return pixels


def _used(codes: NDArray[Any], bits: int) -> NDArray[np.bool_]:
    """Tell which codes a frame has."""
    used = np.zeros(2**bits, bool)
    used[codes] = True
    return used


def _stretched(values: NDArray[np.float64], used: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The values that a frame has to [0, 1], the lowest to 0; 0 where it has but one."""
    if not used.any():
        return np.zeros_like(values)
    lowest, highest = values[used].min(), values[used].max()
    if lowest == highest:
        return np.zeros_like(values)
    stretched: NDArray[np.float64] = np.clip((values - lowest) / (highest - lowest), 0, 1)
    return stretched


def look_up(codes: NDArray[Any], table: NDArray[Any]) -> Any:
    """``table[codes]``, in bands of rows."""
    out = np.empty(codes.shape, table.dtype)
    rows = max(_BAND // max(codes.shape[1], 1), 1)
    for start in range(0, len(codes), rows):
        band = slice(start, start + rows)
        np.take(table, codes[band], out=out[band], mode="clip")
    return out


def grey_of_colour(samples: NDArray[Any], bits: int, *, luma_first: bool) -> Pixels:
    """Luma of [H, W, 3]; the first sample itself where it is luma (YBR). 9 to 16 bits fill uint16."""
    pixels = np.ascontiguousarray(samples[..., 0]) if luma_first else luma(samples)
    if bits == 8:
        return pixels.astype(np.uint8)
    highest = 2**bits - 1
    table = np.rint(np.arange(2**bits) / highest * 65535).astype(np.uint16)
    result: NDArray[np.uint16] = look_up(np.minimum(pixels, highest), table)
    return result


def grey_of_palette(codes: NDArray[Any], bits: int, signed: bool, luts: list[Lut]) -> Pixels:
    """Luma of a palette: a red, a green and a blue table."""
    values = np.arange(2**bits, dtype=np.float64)
    if signed:
        values[2 ** (bits - 1) :] -= 2**bits
    planes = [lut(values) / (2**lut.bits - 1) for lut in luts]
    kind = np.uint8 if max(lut.bits for lut in luts) <= 8 else np.uint16
    samples = np.rint(np.stack(planes, -1) * np.iinfo(kind).max).astype(kind)
    result: Pixels = look_up(codes, luma(samples))
    return result


def make_lut(descriptor: tuple[int, int, int], data: NDArray[np.uint16]) -> Lut:
    """A table of a descriptor (entries, first value, bits) and entries, perhaps too many of them.

    Some writers claim fewer bits than their entries have: then the bits are those of the highest.
    """
    number, first, bits = descriptor
    number = number or 2**16
    if len(data) < number or not 1 <= bits <= 16:
        raise UnreadableImage("corrupt DICOM (a lookup table that its descriptor does not fit)")
    entries = data[:number]
    return Lut(first, entries, max(bits, int(entries.max()).bit_length()))
