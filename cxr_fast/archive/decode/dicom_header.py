"""What a DICOM header says of the pixels, from the values of the elements found in the file.

Values come in whatever VR a writer chose; what cannot be understood is either left out (a window, a
rescale: docs/archives.md) or the file is refused. No reason quotes a text.
"""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

import numpy as np

from cxr_fast.archive.decode.common import UnreadableImage, check_size
from cxr_fast.archive.decode.dicom_elements import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    PIXEL_DATA,
    Element,
    Reader,
)
from cxr_fast.archive.decode.dicom_frames import Shape
from cxr_fast.archive.decode.dicom_grey import Brightness, Lut, Window, make_lut

_SAMPLES, _PHOTOMETRIC, _PLANAR, _FRAMES = 0x00280002, 0x00280004, 0x00280006, 0x00280008
_ROWS, _COLUMNS, _ALLOCATED, _STORED = 0x00280010, 0x00280011, 0x00280100, 0x00280101
_HIGH, _SIGNED, _PADDING, _PADDING_LIMIT = 0x00280102, 0x00280103, 0x00280120, 0x00280121
_CENTER, _WIDTH, _FUNCTION = 0x00281050, 0x00281051, 0x00281056
_INTERCEPT, _SLOPE = 0x00281052, 0x00281053
_RED, _RED_DATA, _RED_SEGMENTS = 0x00281101, 0x00281201, 0x00281221
_MODALITY_LUTS, _VOI_LUTS, _DESCRIPTOR, _LUT_DATA = 0x00283000, 0x00283010, 0x00283002, 0x00283006
_SHARED, _PER_FRAME, _FRAME_VOI, _FRAME_VALUES = 0x52009229, 0x52009230, 0x00289132, 0x00289145
_FLOATS, _DOUBLES = 0x7FE00008, 0x7FE00009

OFFSETS = 0x7FE00001  # the extended offset table
TEXT_VRS = frozenset(("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM"))
NATIVE = ("", IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED)

_NAMES = {
    _ROWS: "Rows",
    _COLUMNS: "Columns",
    _ALLOCATED: "BitsAllocated",
    _STORED: "BitsStored",
    _HIGH: "HighBit",
    _SAMPLES: "SamplesPerPixel",
    _FRAMES: "NumberOfFrames",
    _PLANAR: "PlanarConfiguration",
    _SIGNED: "PixelRepresentation",
}
_WINDOW_TAGS, _RESCALE_TAGS = frozenset((_CENTER, _WIDTH, _FUNCTION)), frozenset((_INTERCEPT, _SLOPE))
_LUT_TAGS, _GROUP_TAGS = frozenset((_DESCRIPTOR, _LUT_DATA)), frozenset((_FRAME_VOI, _FRAME_VALUES))
_PALETTE_TAGS = frozenset((*range(_RED, _RED + 3), *range(_RED_DATA, _RED_DATA + 3), _RED_SEGMENTS))
_SEQUENCES = frozenset((_MODALITY_LUTS, _VOI_LUTS, _SHARED, _PER_FRAME))
_PIXEL_TAGS = frozenset((PIXEL_DATA, OFFSETS, _FLOATS, _DOUBLES))
PIXEL_DECIDING = (
    frozenset((_PHOTOMETRIC, _PADDING, _PADDING_LIMIT, *_NAMES))
    | (_WINDOW_TAGS | _RESCALE_TAGS)
    | (_PALETTE_TAGS | _SEQUENCES | _PIXEL_TAGS)
)

# The PhotometricInterpretations of three samples, and whether the first one is luma. What a
# codestream of JPEG 2000 transforms (ICT, RCT), its decoder turns back.
_LUMA_FIRST = dict.fromkeys(("RGB", "YBR_ICT", "YBR_RCT"), False) | dict.fromkeys(
    ("YBR_FULL", "YBR_FULL_422"), True
)
_GREY = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")


class Header(NamedTuple):
    """Elements, and the reader that has their values."""

    reader: Reader
    elements: dict[int, Element]

    def raw(self, tag: int) -> bytes:
        """The bytes of a value; none where it is missing."""
        return self.reader.value(self.elements[tag]) if tag in self.elements else b""

    def text(self, tag: int) -> str:
        """The first of a value's code strings; "" where it is missing."""
        return self.raw(tag).decode("ascii", "replace").split("\\")[0].strip(" \0")

    def decimals(self, tag: int) -> list[float]:
        """The numbers of a decimal string; NaN for what is no number."""
        text = self.raw(tag).decode("ascii", "replace").strip(" \0")
        return [_decimal(part) for part in text.split("\\")] if text else []

    def integer(self, tag: int, default: int | None = None) -> int:
        """A number not below 0, in whatever VR; ``default`` where it is missing or empty."""
        raw = self.raw(tag)
        if not raw and default is not None:
            return default
        value = math.nan
        if tag == _FRAMES or (raw and self.elements[tag].vr in TEXT_VRS):
            value = _decimal(raw.decode("ascii", "replace").strip(" \0"))
        elif len(raw) in (2, 4):
            value = struct.unpack(self.reader.order + ("H" if len(raw) == 2 else "I"), raw)[0]
        if not 0 <= value < 2**32 or value != int(value):
            state = "no number" if raw else "missing"
            raise UnreadableImage(f"corrupt DICOM ({_NAMES[tag]} is {state})")
        return int(value)

    def stored_value(self, tag: int, bits: int, signed: bool) -> int | None:
        """A stored value, of the sign that the pixels have whatever VR it is written in."""
        raw = self.raw(tag)
        if len(raw) != 2:
            return None
        value: int = struct.unpack(self.reader.order + ("h" if signed else "H"), raw)[0]
        if signed and value >= 2 ** (bits - 1):  # written as the pattern of fewer bits
            value -= 2**bits
        return value

    def first_item(self, tag: int, wanted: frozenset[int]) -> Header | None:
        """The ``wanted`` elements of a sequence's first item, if it has one."""
        if tag not in self.elements:
            return None
        found = self.reader.first_item(self.elements[tag], wanted)
        return Header(self.reader, found) if found else None


def _decimal(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def pixel_shape(header: Header, transfer_syntax: str, max_pixels: int) -> tuple[Shape, str]:
    """Read how pixels are stored, and the PhotometricInterpretation; refuse what is not read here."""
    if _FLOATS in header.elements or _DOUBLES in header.elements:
        raise UnreadableImage("DICOM of floating-point pixels is not supported")
    if PIXEL_DATA not in header.elements:
        raise UnreadableImage("DICOM without pixels")
    rows, columns = header.integer(_ROWS), header.integer(_COLUMNS)
    check_size(columns, rows, max_pixels)
    samples = header.integer(_SAMPLES, 1)
    photometric = header.text(_PHOTOMETRIC)
    if photometric not in _GREY and photometric not in _LUMA_FIRST:
        raise UnreadableImage("DICOM of this PhotometricInterpretation is not supported")
    if samples != (1 if photometric in _GREY else 3):
        raise UnreadableImage("corrupt DICOM (SamplesPerPixel and PhotometricInterpretation disagree)")
    allocated = header.integer(_ALLOCATED)
    stored = header.integer(_STORED, allocated)
    high = header.integer(_HIGH, max(stored - 1, 0))
    if allocated not in (8, 16):
        raise UnreadableImage(f"DICOM of {allocated} bits allocated is not supported")
    if not 1 <= stored <= allocated or not 0 <= high < allocated:
        raise UnreadableImage("corrupt DICOM (BitsStored, HighBit and BitsAllocated disagree)")
    if samples == 3 and stored < 8:
        raise UnreadableImage(f"colour DICOM of {stored} bits is not supported")
    frames = max(header.integer(_FRAMES, 1), 1)
    planar = header.integer(_PLANAR, 0) == 1
    halved = photometric == "YBR_FULL_422" and transfer_syntax in NATIVE
    if halved and (allocated != 8 or rows * columns % 2):
        raise UnreadableImage("corrupt DICOM (YBR_FULL_422 of this size or depth)")
    shape = Shape(rows, columns, samples, allocated, stored, high, planar, frames, halved)
    return shape, photometric


def luma_first(photometric: str) -> bool:
    """Tell whether the first of three samples is luma, before a codestream says otherwise."""
    return _LUMA_FIRST.get(photometric, False)


def is_signed(header: Header) -> bool:
    """Tell whether stored values are in two's complement."""
    return header.integer(_SIGNED, 0) == 1


def brightness(header: Header, bits: int, photometric: str) -> tuple[Brightness, str]:
    """Read what decides brightness, and a note where a window is there but cannot be used."""
    signed = is_signed(header)
    modality: Lut | tuple[float, float] | None = None
    voi: Lut | Window | None = None
    note = ""
    if (item := header.first_item(_MODALITY_LUTS, _LUT_TAGS)) is not None:
        modality = _lut(item, _DESCRIPTOR, _LUT_DATA, signed)
    else:
        of_frame = _of_frame(header, _FRAME_VALUES, _RESCALE_TAGS)
        slope, intercept = of_frame.decimals(_SLOPE), of_frame.decimals(_INTERCEPT)
        if slope and intercept and math.isfinite(slope[0] + intercept[0]) and slope[0] != 0:
            modality = (slope[0], intercept[0])
    if (item := header.first_item(_VOI_LUTS, _LUT_TAGS)) is not None:
        voi = _lut(item, _DESCRIPTOR, _LUT_DATA, signed)
    else:
        of_frame = _of_frame(header, _FRAME_VOI, _WINDOW_TAGS)
        centers, widths = of_frame.decimals(_CENTER), of_frame.decimals(_WIDTH)
        function = of_frame.text(_FUNCTION)
        function = function if function in ("LINEAR_EXACT", "SIGMOID") else "LINEAR"
        windows = (Window(c, w, function) for c, w in zip(centers, widths, strict=False))
        voi = next((window for window in windows if window.usable()), None)
        if voi is None and (centers or widths):
            note = "no usable window, shown in full range"
    first = header.stored_value(_PADDING, bits, signed)
    last = header.stored_value(_PADDING_LIMIT, bits, signed)
    padding = None
    if first is not None:
        last = first if last is None else last
        padding = (min(first, last), max(first, last))
    inverted = photometric == "MONOCHROME1"
    return Brightness(bits, signed, inverted, modality, voi, padding), note


def _of_frame(header: Header, sequence: int, wanted: frozenset[int]) -> Header:
    """Where values of the first frame are: in an enhanced object's groups, or in the header itself."""
    for place in (_PER_FRAME, _SHARED):
        groups = header.first_item(place, _GROUP_TAGS)
        item = groups.first_item(sequence, wanted) if groups is not None else None
        if item is not None:
            return item
    return header


def palette(header: Header) -> list[Lut]:
    """The red, the green and the blue table."""
    if _RED_SEGMENTS in header.elements:
        raise UnreadableImage("DICOM with a segmented palette is not supported")
    signed = is_signed(header)
    return [_lut(header, _RED + i, _RED_DATA + i, signed) for i in range(3)]


def _lut(header: Header, descriptor: int, data: int, signed: bool) -> Lut:
    described, values = header.raw(descriptor), header.raw(data)
    if len(described) != 6 or not values:
        raise UnreadableImage("corrupt DICOM (a lookup table without its descriptor or data)")
    number, first, bits = struct.unpack(header.reader.order + "HHH", described)
    # Its first input has the sign that the VR says; where no VR is named, that of the pixels.
    vr = header.elements[descriptor].vr
    if first >= 2**15 and (vr == "SS" or (vr != "US" and signed)):
        first -= 2**16
    packed = bits <= 8 and len(values) < 2 * (number or 2**16)
    kind = np.dtype("u1" if packed else header.reader.order + "u2")
    entries = np.frombuffer(values, kind, len(values) // kind.itemsize)
    return make_lut((number, first, bits), entries.astype(np.uint16))
