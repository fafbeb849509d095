"""The data elements of a DICOM file (PS3.5): those asked for, and of the others not one byte.

pydicom reads far more than this, but it warns and logs through the whole process, and quotes values
when it does (an unknown character set, a date that is none): on a patient's file those are a
patient's data, and neither can be silenced for one thread alone. Here a value that was not asked
for is stepped over by its length.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from cxr_fast.archive.decode.common import UnreadableImage

PIXEL_DATA = 0x7FE00010
_OTHER_PIXELS = (0x7FE00008, 0x7FE00009)  # of floats and doubles
_TRANSFER_SYNTAX = 0x00020010
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())  # length in four bytes
_MOST_ELEMENTS = 200_000  # the ones in front of the pixels; real files have hundreds
_DEEPEST = 32

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
DEFLATED, BIG_ENDIAN = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"


class Element(NamedTuple):
    """One data element: its VR ("" where the file names none) and where its value lies."""

    vr: str
    start: int
    length: int  # -1: undefined, up to a delimiter


class DicomFile(NamedTuple):
    """The elements found in front of the pixels and the pixels themselves, by tag, in ``reader``."""

    reader: Reader
    elements: dict[int, Element]
    transfer_syntax: str  # "" where the file names none


def begins_without_preamble(head: bytes) -> bool:
    """Tell whether a file begins with a first element that DICOM files have, at byte 0."""
    if len(head) < 8 or head[:2] not in (b"\x02\0", b"\x08\0") or head[3] != 0 or head[2] > 0x18:
        return False
    explicit = head[4:6] in (b"UL", b"CS", b"UI", b"SH", b"OB", b"DA", b"LO")
    return explicit or struct.unpack_from("<I", head, 4)[0] <= 64


class Reader:
    """Steps through data elements of one encoding. Raises UnreadableImage where they end early."""

    def __init__(self, data: bytes, *, implicit: bool = False, big: bool = False) -> None:
        self.data = data
        self.order = ">" if big else "<"
        self.implicit = implicit
        self._left = _MOST_ELEMENTS

    def elements(
        self, start: int, end: int, wanted: frozenset[int], *, group: int | None = None
    ) -> tuple[dict[int, Element], int]:
        """Find the ``wanted`` in front of ``end``, and where the walk ended.

        It ends behind the pixels, at the end of an item, or in front of another group than ``group``.
        """
        found: dict[int, Element] = {}
        while start < end:
            # What is not of this group may be in another encoding.
            if group is not None and self.data[start : start + 2] != struct.pack("<H", group):
                break
            tag, element = self._header(start)
            if tag == _ITEM_END:
                start = element.start
                break
            start = self._behind(element)
            if tag in wanted and tag not in found:
                found[tag] = element
            if tag == PIXEL_DATA or tag in _OTHER_PIXELS:
                break
        return found, start

    def value(self, element: Element) -> bytes:
        """The bytes of a value of defined length, and nothing of a value of undefined length."""
        return self.data[element.start : element.start + max(element.length, 0)]

    def first_item(self, element: Element, wanted: frozenset[int]) -> dict[int, Element]:
        """Find ``wanted`` in the first item of a sequence; nothing in a sequence without items."""
        if element.length == 0:
            return {}
        tag, item = self._header(element.start)
        if tag != _ITEM:
            return {}
        end = len(self.data) if item.length < 0 else item.start + item.length
        found, _ = self.elements(item.start, end, wanted)
        return found

    def fragments(self, element: Element) -> list[Element]:
        """The items of encapsulated pixels, the offset table first."""
        items: list[Element] = []
        start = element.start
        while True:
            tag, item = self._header(start)
            if tag == _SEQUENCE_END:
                return items
            if tag != _ITEM or item.length < 0:
                raise UnreadableImage("corrupt DICOM (its frames are not in items)")
            items.append(item)
            start = item.start + item.length

    def _header(self, start: int) -> tuple[int, Element]:
        """Read tag, VR and length at ``start``; a value of defined length lies in the file."""
        self._left -= 1
        if self._left < 0:
            raise UnreadableImage(f"corrupt DICOM (more than {_MOST_ELEMENTS} elements)")
        if start + 8 > len(self.data):
            raise UnreadableImage("truncated DICOM")
        group, number = struct.unpack_from(self.order + "HH", self.data, start)
        tag, vr = group << 16 | number, self.data[start + 4 : start + 6]
        # Some writers leave the VR out in the midst of a file that names them.
        named = not self.implicit and vr.isalpha() and vr.isupper() and group != 0xFFFE
        behind = start + 8
        if not named:
            (length,) = struct.unpack_from(self.order + "I", self.data, start + 4)
        elif vr in _LONG:
            if start + 12 > len(self.data):
                raise UnreadableImage("truncated DICOM")
            (length,) = struct.unpack_from(self.order + "I", self.data, start + 8)
            behind = start + 12
        else:
            (length,) = struct.unpack_from(self.order + "H", self.data, start + 6)
        if length == _UNDEFINED:
            length = -1
        elif behind + length > len(self.data):
            raise UnreadableImage("truncated DICOM")
        return tag, Element(vr.decode("ascii") if named else "", behind, length)

    def _behind(self, element: Element, depth: int = 0) -> int:
        """Find where an element ends; one of undefined length is walked down to its delimiter."""
        if element.length >= 0:
            return element.start + element.length
        if depth > _DEEPEST:
            raise UnreadableImage("corrupt DICOM (sequences nested too deep)")
        if element.vr == "UN" and not self.implicit:  # its items have no VRs (PS3.5, 6.2.2)
            inner = Reader(self.data, implicit=True)
            inner._left = self._left
            start = inner._behind(element._replace(vr="SQ"), depth)
            self._left = inner._left
            return start
        start = element.start
        while True:
            tag, item = self._header(start)
            if tag == _SEQUENCE_END:
                return item.start
            if tag != _ITEM:
                raise UnreadableImage("corrupt DICOM (a sequence without items)")
            start = item.start + max(item.length, 0)
            while item.length < 0:
                tag, element = self._header(start)
                start = self._behind(element, depth + 1)
                if tag == _ITEM_END:
                    break


def read_dicom(data: bytes, wanted: frozenset[int], most_bytes: int) -> DicomFile:
    """Find the ``wanted`` elements of a file. A deflated one may inflate to ``most_bytes`` bytes.

    A file without preamble, or without a transfer syntax, is taken as little endian; whether it
    names VRs is seen at its first element, whatever the transfer syntax says.
    """
    start = 132 if data[128:132] == b"DICM" else 0
    meta_reader = Reader(data)
    meta, start = meta_reader.elements(start, len(data), wanted | {_TRANSFER_SYNTAX}, group=2)
    syntax = ""
    if _TRANSFER_SYNTAX in meta:
        raw = meta_reader.value(meta[_TRANSFER_SYNTAX])
        syntax = raw.decode("ascii", "replace").strip(" \0")
    if syntax == DEFLATED:
        return _inflated(memoryview(data)[start:], wanted, most_bytes)
    vr = data[start + 4 : start + 6]
    named = vr.isalpha() and vr.isupper()
    reader = Reader(data, implicit=not named, big=syntax == BIG_ENDIAN)
    found, _ = reader.elements(start, len(data), wanted)
    return DicomFile(reader, found, syntax)


def _inflated(packed: memoryview, wanted: frozenset[int], most_bytes: int) -> DicomFile:
    """Inflate no further than to the end of the pixels, and no more than ``most_bytes``."""
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    parts, size, step = [], 0, 2**20
    waiting: bytes | memoryview = packed
    while True:
        try:
            parts.append(inflate.decompress(waiting, step))
        except zlib.error:
            parts = []
        if not parts:
            raise UnreadableImage("corrupt DICOM (it does not inflate)")
        waiting = inflate.unconsumed_tail
        size += len(parts[-1])
        ended = inflate.eof or not parts[-1]
        parts = [b"".join(parts)]
        reader = Reader(parts[0])
        try:
            found, _ = reader.elements(0, size, wanted)
            if ended or PIXEL_DATA in found:
                return DicomFile(reader, found, DEFLATED)
        except UnreadableImage as error:
            if ended or not error.reason.startswith("truncated"):
                raise
        if size >= most_bytes:
            raise UnreadableImage(f"a deflated DICOM of more than {most_bytes} bytes")
        step = min(max(8 * size, step), most_bytes - size)
