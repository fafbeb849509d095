"""The first frame of a DICOM file's pixels: where its bytes lie, and what uncompressed ones hold."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cxr_fast.archive.decode.common import UnreadableImage
from cxr_fast.archive.decode.dicom_elements import Element, Reader


class Shape(NamedTuple):
    """What the header says of the pixels."""

    rows: int
    columns: int
    samples: int
    allocated: int  # bits
    stored: int
    high: int  # the highest of the stored bits
    planar: bool  # all of one sample, then all of the next
    frames: int
    halved: bool = False  # colour at every other column: Y Y Cb Cr

    @property
    def frame_bytes(self) -> int:
        """How long an uncompressed frame is."""
        samples = 2 if self.halved else self.samples
        return self.rows * self.columns * samples * self.allocated // 8


def native_frame(reader: Reader, pixels: Element, shape: Shape) -> NDArray[Any]:
    """Stored values [H, W] or [H, W, samples] of the first uncompressed frame, unused bits cleared."""
    if pixels.length < 0:
        raise UnreadableImage("corrupt DICOM (uncompressed pixels in items)")
    if pixels.length < shape.frame_bytes * shape.frames:
        raise UnreadableImage("truncated DICOM (fewer pixels than its header claims)")
    big = reader.order == ">"
    kind = np.dtype(np.uint8) if shape.allocated == 8 else np.dtype(reader.order + "u2")
    if big and shape.allocated == 8 and pixels.vr == "OW":  # bytes of swapped words
        words = np.frombuffer(reader.data, ">u2", pixels.length // 2, pixels.start)
        flat = words.astype("<u2").view(np.uint8)[: shape.frame_bytes]
    else:
        count = shape.frame_bytes // kind.itemsize
        flat = np.frombuffer(reader.data, kind, count, pixels.start)
    if shape.halved:  # the first of the four is the luma of the first pixel, the second the next's
        return flat.reshape(-1, 4)[:, :2].reshape(shape.rows, shape.columns, 1)
    return of_stored_bits(arranged(flat, shape), shape)


def arranged(flat: NDArray[Any], shape: Shape) -> NDArray[Any]:
    """Samples in a row to [H, W] or [H, W, samples]."""
    if shape.samples == 1:
        return flat.reshape(shape.rows, shape.columns)
    if shape.planar:
        return flat.reshape(shape.samples, shape.rows, shape.columns).transpose(1, 2, 0)
    return flat.reshape(shape.rows, shape.columns, shape.samples)


def of_stored_bits(values: NDArray[Any], shape: Shape) -> NDArray[Any]:
    """Keep the stored bits alone, at the bottom: old files have overlays in the others."""
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    shift = max(shape.high + 1 - shape.stored, 0)
    if shift:
        values = values >> shift
    if shape.stored + shift < shape.allocated or shift:
        values = values & (2**shape.stored - 1)
    return values if shape.stored > 8 else values.astype(np.uint8, copy=False)


def encapsulated_frame(
    reader: Reader, pixels: Element, shape: Shape, *, offsets: bool, one_a_frame: bool
) -> bytes:
    """The bytes of the first compressed frame (PS3.5, A.4).

    ``offsets``: the file has an extended offset table, so that each frame is one fragment; so is it
    where ``one_a_frame`` (RLE). Else the basic offset table tells, or, where it is empty, the number
    of fragments, or the end marker of the codestream.
    """
    if pixels.length >= 0:
        raise UnreadableImage("corrupt DICOM (compressed pixels are not in items)")
    table, *fragments = reader.fragments(pixels) or [Element("", 0, 0)]
    if not fragments:
        raise UnreadableImage("corrupt DICOM (no frame in its pixels)")
    if shape.frames > len(fragments):
        raise UnreadableImage("truncated DICOM (fewer frames than its header claims)")
    number = len(fragments)
    if offsets or one_a_frame or number == shape.frames:
        number = 1
    elif shape.frames > 1 and table.length >= 8:
        (second,) = struct.unpack_from(reader.order + "I", reader.data, table.start + 4)
        base = table.start + table.length + 8  # offsets count from the header of the first
        number = max(sum(part.start - base < second for part in fragments), 1)
    elif shape.frames > 1:
        ends = (reader.value(part).rstrip(b"\0").endswith(b"\xff\xd9") for part in fragments)
        number = 1 + next((i for i, ended in enumerate(ends) if ended), number - 1)
    return b"".join(reader.value(part) for part in fragments[:number])
