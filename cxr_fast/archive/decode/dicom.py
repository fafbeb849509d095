"""DICOM to grey pixels, and of its header nothing else but the tags that a caller names.

Needs the extra ``dicom``: imagecodecs turns compressed frames into samples (it alone of the
decoders that were measured releases the GIL for each of them), pydicom names the tags.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_fast.archive.decode.common import Picture, Pixels, UnreadableImage, most_bytes
from cxr_fast.archive.decode.dicom_elements import PIXEL_DATA, DicomFile, read_dicom
from cxr_fast.archive.decode.dicom_frames import (
    Shape,
    arranged,
    encapsulated_frame,
    native_frame,
    of_stored_bits,
)
from cxr_fast.archive.decode.dicom_grey import grey, grey_of_colour, grey_of_palette
from cxr_fast.archive.decode.dicom_header import (
    NATIVE,
    OFFSETS,
    PIXEL_DECIDING,
    TEXT_VRS,
    Header,
    brightness,
    is_signed,
    luma_first,
    palette,
    pixel_shape,
)
from cxr_fast.archive.decode.jpeg import LOSSLESS, walk_jpeg
from cxr_fast.archive.decode.jpeg2000 import walk_codestream

_NEEDS = "DICOM needs an extra: pip install 'cxr_fast[dicom]'"

_CHARACTERS = 0x00080005

_RLE = "1.2.840.10008.1.2.5"
_JPEG = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70))
_JPEG_LS = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (80, 81))
_JPEG_2000 = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (90, 91, 201, 202, 203))

_NUMBERS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}
_KEPT_VRS = TEXT_VRS | {"UC", "UI", "UR", "UT", *_NUMBERS}


def check_keep_tags(names: Iterable[str]) -> None:
    """Raise ValueError unless each name is a keyword or number of a DICOM tag that holds a value.

    "PatientSex" and "0010,0040" name the same one. Private tags, sequences and binary values cannot
    be kept.
    """
    for name in names:
        _tag_named(name)


def decode_dicom(data: bytes, max_pixels: int, keep_tags: Sequence[str] = ()) -> Picture:
    """Decode the first frame of a DICOM file; see ``decode``.

    Stored values go through the modality LUT or rescale, then the VOI LUT or the first usable
    window; MONOCHROME1 is inverted, colour becomes luma. docs/archives.md has the rules. Raises
    UnreadableImage; its reason quotes no value of the header but sizes and counts of bits.
    """
    codecs = _codecs()
    kept = {name: _tag_named(name) for name in keep_tags}
    wanted = PIXEL_DECIDING | {tag for tag, _ in kept.values()} | ({_CHARACTERS} if kept else set())
    file = read_dicom(data, wanted, most_bytes(max_pixels))
    header = Header(file.reader, file.elements)
    shape, photometric = pixel_shape(header, file.transfer_syntax, max_pixels)
    signed = is_signed(header)
    notes = [f"first of {shape.frames} frames"] if shape.frames > 1 else []
    samples, bits, first = _frame(file, shape, photometric, codecs)
    if signed and bits > shape.stored:
        bits = shape.stored
        samples = samples & (2**bits - 1)
    pixels: Pixels
    if shape.samples == 3:
        pixels = grey_of_colour(samples, bits, luma_first=first)
    elif photometric == "PALETTE COLOR":
        pixels = grey_of_palette(samples, bits, signed, palette(header))
    else:
        how, note = brightness(header, bits, photometric)
        pixels = grey(samples, how)
        notes += [note] if note else []
    tags = {name: _kept(header, *tag) for name, tag in kept.items() if tag[0] in header.elements}
    return Picture(pixels, "; ".join(notes), tags)


def _codecs() -> Any:
    """Import the extra, once it is needed."""
    try:
        import imagecodecs
        import pydicom.datadict  # noqa: F401 (whoever asks for no tag is told so too)
    except ImportError:
        imagecodecs = None  # type: ignore[assignment]
    if imagecodecs is None:
        raise UnreadableImage(_NEEDS)
    return imagecodecs


def _frame(
    file: DicomFile, shape: Shape, photometric: str, codecs: Any
) -> tuple[NDArray[Any], int, bool]:
    """Decode the first frame: unsigned patterns, their bits, and whether the first sample is luma."""
    reader, pixels = file.reader, file.elements[PIXEL_DATA]
    first = luma_first(photometric)
    syntax = file.transfer_syntax
    if syntax in NATIVE:
        return native_frame(reader, pixels, shape), shape.stored, first
    if syntax not in (_RLE, *_JPEG, *_JPEG_LS, *_JPEG_2000):
        raise UnreadableImage("DICOM of this transfer syntax is not supported")
    frame = encapsulated_frame(
        reader, pixels, shape, offsets=OFFSETS in file.elements, one_a_frame=syntax == _RLE
    )
    if syntax == _RLE:
        return _rle(frame, shape, codecs), shape.stored, first
    if syntax in _JPEG:
        frame, jpeg, _ = walk_jpeg(frame)
        if jpeg.coding not in (0xC0, 0xC1, 0xC2, LOSSLESS):
            raise UnreadableImage("DICOM of hierarchical or arithmetic JPEG is not supported")
        _check_claim("JPEG", shape, jpeg.width, jpeg.height, len(jpeg.components))
        first = _jpeg_luma_first(frame, jpeg.components, first)
        # Colour spaces of the same name in and out: the samples as they are.
        space = {"colorspace": "RGB", "outcolorspace": "RGB"} if shape.samples == 3 else {}
        samples, bits = _decoded(codecs.jpeg8_decode, frame, "JPEG", **space), jpeg.bits
    elif syntax in _JPEG_LS:
        bits, height, width, components = _jpeg_ls_frame(frame)
        _check_claim("JPEG-LS", shape, width, height, components)
        samples = _decoded(codecs.jpegls_decode, frame, "JPEG-LS")
    else:
        stream = walk_codestream(frame, shape.rows * shape.columns)
        _check_claim("JPEG 2000", shape, stream.width, stream.height, stream.components)
        bits = stream.bits
        samples = _decoded(codecs.jpeg2k_decode, frame, "JPEG 2000", numthreads=1)
    expected = (shape.rows, shape.columns) + ((3,) if shape.samples == 3 else ())
    if samples.shape != expected or samples.itemsize > 2 or not 1 <= bits <= 16:
        raise UnreadableImage("corrupt DICOM (its frame has another shape)")
    patterns = samples.view(np.uint8 if samples.itemsize == 1 else np.uint16)
    if samples.dtype.kind == "i":
        patterns = patterns & (2**bits - 1)
    if patterns.max() >= 2**bits:  # damage that a lossless JPEG's decoder does not see
        raise UnreadableImage("corrupt DICOM (samples of more bits than their codestream has)")
    return patterns, bits, first


def _check_claim(name: str, shape: Shape, width: int, height: int, components: int) -> None:
    """See that a codestream claims what the header does, before memory is taken for it."""
    if (width, height) != (shape.columns, shape.rows):
        claim = f"{width} x {height} in a DICOM of {shape.columns} x {shape.rows}"
        raise UnreadableImage(f"corrupt DICOM (a {name} of {claim})")
    if components != shape.samples:
        raise UnreadableImage(f"corrupt DICOM (a {name} of {components} samples a pixel)")


def _decoded(decoder: Any, frame: bytes, name: str, **options: Any) -> NDArray[Any]:
    samples: NDArray[Any] | None
    try:
        samples = decoder(frame, **options)
    except MemoryError:
        raise
    except Exception:  # each codec has an error of its own
        samples = None
    if samples is None:
        raise UnreadableImage(f"corrupt DICOM (its {name} cannot be decoded)")
    return samples


def _rle(frame: bytes, shape: Shape, codecs: Any) -> NDArray[Any]:
    segments = shape.samples * shape.allocated // 8
    if len(frame) < 64 or struct.unpack_from("<I", frame)[0] != segments:
        raise UnreadableImage("corrupt DICOM (RLE with another number of segments)")
    # ``out`` bounds what a frame may grow to.
    kind = np.dtype("<u2" if shape.allocated == 16 else "u1")
    size = shape.frame_bytes
    planes = _decoded(functools.partial(codecs.dicomrle_decode, dtype=kind, out=size), frame, "RLE")
    if len(planes) != size:
        raise UnreadableImage("corrupt DICOM (RLE of another length)")
    flat = np.frombuffer(planes, kind)
    return of_stored_bits(arranged(flat, shape._replace(planar=True)), shape)


def _jpeg_luma_first(frame: bytes, components: bytes, stated: bool) -> bool:
    """Tell whether a colour JPEG's first component is luma: by its own marks, then as stated."""
    if components in (b"RGB", b"rgb"):
        return False
    head = frame[: frame.index(b"\xff\xda")]
    if b"JFIF\0" in head[:32]:
        return True
    adobe = head.find(b"\xff\xee\0\x0eAdobe")
    return head[adobe + 15] == 1 if 0 <= adobe < len(head) - 15 else stated


def _jpeg_ls_frame(data: bytes) -> tuple[int, int, int, int]:
    """Find the frame header of a whole JPEG-LS: bits, height, width, components."""
    if not data.rstrip(b"\0").endswith(b"\xff\xd9"):  # its decoder can take seconds to see it
        raise UnreadableImage("truncated JPEG-LS")
    start = 2
    while start + 10 <= len(data) and data[start] == 0xFF:
        (length,) = struct.unpack_from(">H", data, start + 2)
        if data[start + 1] == 0xF7:
            bits, height, width, components = struct.unpack_from(">BHHB", data, start + 4)
            return bits, height, width, components
        start += 2 + length
    raise UnreadableImage("corrupt DICOM (its JPEG-LS cannot be decoded)")


@functools.lru_cache(maxsize=256)
def _tag_named(name: str) -> tuple[int, str]:
    """Find the tag and VR of a name; ValueError says what is wrong with it."""
    try:
        from pydicom.datadict import dictionary_VR, tag_for_keyword
    except ImportError:
        raise ValueError(_NEEDS) from None
    group, comma, number = name.strip("()").partition(",")
    try:
        tag = int(group, 16) << 16 | int(number, 16) if comma else tag_for_keyword(name)
        vr = dictionary_VR(tag) if tag is not None else ""
    except (ValueError, KeyError):
        tag, vr = None, ""
    if tag is None or not name:
        raise ValueError(
            f"{name!r} names no DICOM tag: expected a keyword such as PatientSex, or a number such as"
            " 0010,0040 (private tags cannot be kept)"
        )
    if vr not in _KEPT_VRS or tag >> 16 <= 2:
        raise ValueError(f"the DICOM tag {name!r} cannot be kept: it holds no text and no number")
    return tag, vr


def _kept(header: Header, tag: int, vr: str) -> str:
    """Give a value as text; several are parted by a backslash, as in the file."""
    from pydicom.charset import python_encoding

    raw, order = header.raw(tag), header.reader.order
    if vr in _NUMBERS:
        unit = _NUMBERS[vr]
        count = len(raw) // struct.calcsize("=" + unit)
        return "\\".join(str(n) for n in struct.unpack_from(f"{order}{count}{unit}", raw))
    encoding = python_encoding.get(header.text(_CHARACTERS), "latin-1")
    encoding = "latin-1" if encoding == "iso8859" else encoding
    return raw.decode(encoding, "replace").strip(" \0")
