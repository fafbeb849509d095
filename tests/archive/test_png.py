"""The fast way through a PNG: inflated, unfiltered, refused.

Oracles: the filters of the PNG specification in plain numpy, Pillow and OpenCV on the same bytes.
"""

from __future__ import annotations

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from pictures import PNG_SIGNATURE, chunk, reason, smooth_picture
from PIL import Image

from cxr_fast import _numpy_ops
from cxr_fast.archive.images import UnreadableImage, read_image

CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}


def predictions(kind: int, left: np.ndarray, above: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Section 9 of the specification; int arrays of one shape."""
    if kind == 4:
        estimate = left + above - corner
        distances = np.abs(np.stack([left - estimate, above - estimate, corner - estimate]))
        return np.choose(distances.argmin(0), [left, above, corner])  # the first of equals
    return [0 * left, left, above, (left + above) // 2][kind]


def filtered(rows: np.ndarray, kinds: np.ndarray, pixel_bytes: int) -> bytes:
    """Rows uint8 [H, bytes], each with its filter type in front."""
    padded = np.pad(rows.astype(int), ((1, 0), (pixel_bytes, 0)))
    out = b""
    for y, kind in enumerate(kinds):
        left, above = padded[y + 1, :-pixel_bytes], padded[y, pixel_bytes:]
        predicted = predictions(kind, left, above, padded[y, :-pixel_bytes])
        out += bytes([kind]) + (rows[y] - predicted).astype(np.uint8).tobytes()
    return out


def unfiltered(data: bytes, height: int, pixel_bytes: int) -> np.ndarray:
    """Byte by byte: uint8 [H, bytes] of rows with filter types."""
    lines = np.frombuffer(data, np.uint8).reshape(height, -1).astype(int)
    out = np.zeros((height + 1, pixel_bytes + lines.shape[1] - 1), int)
    for y, (kind, *values) in enumerate(lines):
        for x, value in enumerate(values):
            neighbours = out[y + 1, x], out[y, x + pixel_bytes], out[y, x]
            predicted = predictions(kind, *map(np.asarray, neighbours))
            out[y + 1, x + pixel_bytes] = (value + predicted) % 256
    return out[1:, pixel_bytes:].astype(np.uint8)


def png(
    compressed: bytes, size: tuple[int, int], bits: int = 8, colour: int = 0, cuts: tuple = ()
) -> bytes:
    """A PNG of a (width, height), its compressed data cut into IDAT chunks at ``cuts``."""
    header = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0)
    edges = [0, *sorted(cuts), len(compressed)]
    pieces = [compressed[a:b] for a, b in itertools.pairwise(edges)]
    body = b"".join(chunk(b"IDAT", piece) for piece in pieces)
    return PNG_SIGNATURE + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


# --- every filter ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", range(5))
def test_every_filter_at_every_width(kind: int, bits: int) -> None:
    cv2 = pytest.importorskip("cv2")
    random = np.random.default_rng(kind)
    for width in range(1, 71):
        samples = random.integers(0, 2**bits, (37, width))
        rows = samples.astype(">u2" if bits == 16 else "u1").view(np.uint8)
        data = png(zlib.compress(filtered(rows, np.full(37, kind), bits // 8)), (width, 37), bits)
        image = read_image(data)
        assert image.dtype == (np.uint16 if bits == 16 else np.uint8)
        np.testing.assert_array_equal(image, samples)
        np.testing.assert_array_equal(by_pillow(data), samples)
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(decoded, samples)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_unfiltering_is_what_the_specification_says(channels: int) -> None:
    # Rows of any bytes are valid; extreme ones stress the ties and the overflows of Paeth.
    random = np.random.default_rng(channels)
    for height in (1, 2, 15, 16, 17, 31, 32, 33, 64, 70):
        width = int(random.integers(1, 20))
        lines = random.choice([0, 1, 2, 127, 128, 254, 255], (height, 1 + width * channels))
        lines[:, 0] = random.integers(0, 5, height)
        data = lines.astype(np.uint8).tobytes()
        ours = _numpy_ops.png_unfilter(data, height, width, channels, 1)
        np.testing.assert_array_equal(ours.reshape(height, -1), unfiltered(data, height, channels))


def test_every_paeth_prediction() -> None:
    # All 2^24 neighbourhoods: for each corner, rows that hold it, every `above`, and every `left`.
    values = np.arange(256)
    left, above = (a.ravel() for a in np.meshgrid(values, values, indexing="ij"))
    for corner in (0, 1, 2, 3, 63, 64, 100, 127, 128, 129, 200, 253, 254, 255):
        lines = np.zeros((2, 1 + 3 * left.size), int)
        lines[1, 0] = 4
        top, bottom = lines[0, 1:].reshape(-1, 3), lines[1, 1:].reshape(-1, 3)
        top[:, 0], top[:, 1] = corner, above  # the third column keeps neighbourhoods apart
        # `left` is predicted from 0, corner and 0, so it takes what is missing to its value.
        apart = np.zeros_like(left)
        bottom[:, 0] = left - predictions(4, apart, np.full_like(left, corner), apart)
        predicted = predictions(4, left, above, np.full_like(left, corner))
        bottom[:, 2] = -predictions(4, predicted, apart, above)  # the third column stays 0
        ours = _numpy_ops.png_unfilter(lines.astype(np.uint8).tobytes(), 2, 3 * left.size, 1, 1)
        np.testing.assert_array_equal(ours[1].reshape(-1, 3)[:, 1], predicted)
        np.testing.assert_array_equal(ours[1].reshape(-1, 3)[:, 0], left)


@pytest.mark.parametrize("bits", [8, 16])
def test_any_filter_in_any_row(bits: int) -> None:
    random = np.random.default_rng(bits)
    for _ in range(60):
        height, width = random.integers(1, 140, 2)
        samples = (smooth_picture(height, width).astype(int) * 257) >> (16 - bits)
        rows = samples.astype(">u2" if bits == 16 else "u1").view(np.uint8)
        data = filtered(rows, random.integers(0, 5, height), bits // 8)
        image = read_image(png(zlib.compress(data), (width, height), bits))
        np.testing.assert_array_equal(image, samples)


@pytest.mark.parametrize("colour", [2, 4, 6])
def test_colour_goes_the_same_way_as_by_pillow(colour: int) -> None:
    random = np.random.default_rng(colour)
    channels = CHANNELS[colour]
    for _ in range(20):
        height, width = random.integers(1, 80, 2)
        samples = random.integers(0, 256, (height, width, channels), np.uint8)
        if channels % 2 == 0:
            samples[..., -1] = 255
        rows = samples.reshape(height, -1)
        data = filtered(rows, random.integers(0, 5, height), channels)
        whole = png(zlib.compress(data), (width, height), 8, colour)
        np.testing.assert_array_equal(by_pillow(whole), samples)
        picture = Image.fromarray(samples[..., :3] if channels > 2 else samples[..., 0])
        np.testing.assert_array_equal(read_image(whole), np.asarray(picture.convert("L")))


# --- the compressed data --------------------------------------------------------------------------

PICTURE = smooth_picture(90, 70)
ROWS = filtered(PICTURE, np.random.default_rng(3).integers(0, 5, 90), 1)
DATA = zlib.compress(ROWS)


def test_idat_chunks_may_be_cut_anywhere() -> None:
    random = np.random.default_rng(4)
    places = [(1,), (2,), (len(DATA) - 1,), (len(DATA) - 4,), (0, 0, 0), (5, 5), (len(DATA),) * 2]
    places += [tuple(random.integers(0, len(DATA) + 1, n)) for n in (2, 3, 5, 50, 500)]
    for cuts in [*places, range(len(DATA))]:
        np.testing.assert_array_equal(read_image(png(DATA, (70, 90), cuts=tuple(cuts))), PICTURE)


@pytest.mark.parametrize("level", [0, 1, 6, 9])
@pytest.mark.parametrize("strategy", [zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY])
def test_every_kind_of_block(level: int, strategy: int) -> None:
    deflate = zlib.compressobj(level, strategy=strategy)
    parts = [deflate.compress(ROWS[:1000]), deflate.flush(zlib.Z_FULL_FLUSH)]
    parts += [deflate.compress(ROWS[1000:]), deflate.flush(zlib.Z_SYNC_FLUSH), deflate.flush()]
    np.testing.assert_array_equal(read_image(png(b"".join(parts), (70, 90))), PICTURE)


def test_more_than_the_rows_is_ignored() -> None:
    for more in (b"\0", ROWS, bytes(2**24)):
        np.testing.assert_array_equal(read_image(png(zlib.compress(ROWS + more), (70, 90))), PICTURE)
    np.testing.assert_array_equal(read_image(png(DATA + b"behind the end", (70, 90))), PICTURE)


def test_less_than_the_rows_is_damage() -> None:
    for missing in (1, 2, 70, 71, 72, 3000, len(ROWS)):
        data = zlib.compress(ROWS[: len(ROWS) - missing])
        assert reason(png(data, (70, 90))) == "corrupt PNG"
    for length in range(0, len(DATA) - 4, 97):
        assert reason(png(DATA[:length], (70, 90))) == "corrupt PNG"
    assert reason(png(DATA, (70, 91))) == "corrupt PNG"
    assert reason(png(DATA, (71, 90))) == "corrupt PNG"
    assert reason(png(DATA, (70, 90), 16)) == "corrupt PNG"
    assert reason(png(DATA, (70, 90), colour=2)) == "corrupt PNG"
    assert reason(png(b"", (70, 90))) == "corrupt PNG"
    without = png(DATA, (70, 90))
    assert reason(without[:33] + chunk(b"IEND", b"")) == "corrupt PNG"


def test_the_checksum_behind_the_rows() -> None:
    for place in range(1, 5):
        wrong = bytearray(DATA)
        wrong[-place] ^= 1
        assert reason(png(bytes(wrong), (70, 90))) == "corrupt PNG"
        # Cut off it is no reason to lose an image whose rows are all there.
        np.testing.assert_array_equal(read_image(png(DATA[:-place], (70, 90))), PICTURE)


@pytest.mark.parametrize("kind", [5, 6, 128, 255])
def test_an_unknown_filter_is_damage(kind: int) -> None:
    for row in (0, 1, 31, 32, 89):
        rows = bytearray(ROWS)
        rows[71 * row] = kind
        assert reason(png(zlib.compress(bytes(rows)), (70, 90))) == "corrupt PNG"


def test_what_else_is_between_header_and_end() -> None:
    whole = png(DATA, (70, 90), cuts=(100,))
    second = whole.index(b"IDAT", 45) - 4
    for between in (chunk(b"tEXt", b"a\0b"), chunk(b"tIME", bytes(7))):
        for place in (33, second, len(whole) - 12):
            data = whole[:place] + between + whole[place:]
            np.testing.assert_array_equal(read_image(data), PICTURE)
    # A palette is allowed nowhere in a grey picture; it does no harm in front of the rows.
    palette = chunk(b"PLTE", bytes(3))
    np.testing.assert_array_equal(read_image(whole[:33] + palette + whole[33:]), PICTURE)
    assert reason(whole[:second] + palette + whole[second:]) == "corrupt PNG"


@pytest.mark.parametrize("extra", [0, 400])
def test_flipped_bits_of_the_compressed_data(extra: int) -> None:
    # With right CRCs: what is accepted gives the same pixels by Pillow. Where there is more than the
    # rows, no Adler-32 stands between a flip and the pixels.
    random = np.random.default_rng(extra)
    data = zlib.compress(ROWS + bytes(random.integers(0, 256, extra, np.uint8)))
    accepted = changed = 0
    for _ in range(1500):
        damaged = bytearray(data)
        for _ in range(random.integers(1, 3)):
            damaged[random.integers(len(data))] ^= 1 << random.integers(8)
        whole = png(bytes(damaged), (70, 90))
        try:
            image = read_image(whole)
        except UnreadableImage:
            continue
        accepted += 1
        changed += not np.array_equal(image, PICTURE)
        np.testing.assert_array_equal(image, by_pillow(whole))
    assert (accepted > 50 and changed > 20) if extra else changed == 0


# --- Pillow's part --------------------------------------------------------------------------------


def test_a_whole_picture_of_few_bytes_is_complete() -> None:
    # Palettes are counted: megabytes of zeros come out of the last few bytes that went in.
    palette = chunk(b"PLTE", bytes([90] * 6))
    for side in (300, 1448, 2500):
        whole = png(zlib.compress(bytes(side * (side + 1)), 9), (side, side), 8, 3)
        assert (read_image(whole[:33] + palette + whole[33:]) == 90).all()
        short = png(zlib.compress(bytes(side * (side + 1) - 1), 9), (side, side), 8, 3)
        assert reason(short[:33] + palette + short[33:]) == "corrupt PNG"
