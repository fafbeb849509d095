"""Compressed, many-framed and damaged DICOM files. Oracles: the arrays that went in, GDCM, pydicom."""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from pictures import read_damaged, reason, saved
from PIL import Image

pydicom = pytest.importorskip("pydicom")
imagecodecs = pytest.importorskip("imagecodecs")

from dicom_files import SHAPE, dataset, set_raw, shown_by_pydicom, stored, written  # noqa: E402
from pydicom.encaps import encapsulate, encapsulate_extended  # noqa: E402
from pydicom.pixels.encoders import RLELosslessEncoder  # noqa: E402

from cxr_fast.archive.images import read_image, read_picture  # noqa: E402

EXPLICIT, DEFLATED = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"
RLE = "1.2.840.10008.1.2.5"
BASELINE, EXTENDED, LOSSLESS, LOSSLESS_SV1 = (f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70))
LS, LS_NEAR, J2K_LOSSLESS, J2K = (f"1.2.840.10008.1.2.4.{n}" for n in (80, 81, 90, 91))
HT = [f"1.2.840.10008.1.2.4.{n}" for n in (201, 202, 203)]
RANDOM = np.random.default_rng(19)
LUMA = np.array([0.299, 0.587, 0.114])
COLOUR = np.stack([stored(8), stored(8, seed=1)[::-1], stored(8, seed=2)[:, ::-1]], -1)


def rle(pixels: np.ndarray) -> bytes:
    planes = pixels.tobytes()
    return RLELosslessEncoder.encode(
        planes,
        rows=pixels.shape[0],
        columns=pixels.shape[1],
        samples_per_pixel=3 if pixels.ndim == 3 else 1,
        planar_configuration=0,
        bits_allocated=8 * pixels.itemsize,
        bits_stored=8 * pixels.itemsize,
        pixel_representation=0,
        photometric_interpretation="RGB" if pixels.ndim == 3 else "MONOCHROME2",
        number_of_frames=1,
    )


def lossless(syntax: str, pixels: np.ndarray, bits: int) -> bytes:
    if syntax == RLE:
        return rle(pixels)
    if syntax in (LOSSLESS, LOSSLESS_SV1):
        return imagecodecs.jpeg8_encode(pixels, lossless=True, bitspersample=bits, predictor=1)
    if syntax in (LS, LS_NEAR):
        return imagecodecs.jpegls_encode(pixels)
    if syntax in HT:
        return imagecodecs.htj2k_encode(pixels)
    return imagecodecs.jpeg2k_encode(pixels, bitspersample=bits, codecformat="j2k")


LOSSLESS_ALL = [RLE, LOSSLESS, LOSSLESS_SV1, LS, LS_NEAR, J2K_LOSSLESS, J2K, *HT]


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("syntax", LOSSLESS_ALL)
def test_what_is_compressed_without_loss_equals_what_is_not(syntax, bits, photometric) -> None:
    tags = {"PhotometricInterpretation": photometric, "WindowCenter": 100, "WindowWidth": 150}
    pixels = stored(bits)
    plain = read_image(written(dataset(pixels, bits, **tags)))
    data = written(dataset(pixels, bits, **tags), syntax, frames=[lossless(syntax, pixels, bits)])
    np.testing.assert_array_equal(read_image(data), plain)


@pytest.mark.parametrize("syntax", [RLE, LOSSLESS_SV1, LS, J2K_LOSSLESS])
def test_signed_values_are_in_twos_complement(syntax) -> None:
    signed = stored(12, signed=True)
    patterns = (signed.astype(np.int64) & 0xFFF).astype(np.uint16)
    tags = {"WindowCenter": 100, "WindowWidth": 900}
    expected = read_image(written(dataset(signed, 12, **tags)))
    ds = dataset(patterns, 12, PixelRepresentation=1, **tags)
    data = written(ds, syntax, frames=[lossless(syntax, patterns, 12)])
    np.testing.assert_array_equal(read_image(data), expected)


def test_signed_values_of_fewer_bits_than_their_codestream() -> None:
    signed = stored(12, signed=True)
    expected = read_image(written(dataset(signed, 12, WindowCenter=100, WindowWidth=900)))
    ds = dataset(signed, 12, WindowCenter=100, WindowWidth=900)
    data = written(ds, LS, frames=[imagecodecs.jpegls_encode(signed.view(np.uint16))])
    np.testing.assert_array_equal(read_image(data), expected)


def test_signed_jpeg2000() -> None:
    signed = stored(16, signed=True)
    expected = read_image(written(dataset(signed)))
    frame = imagecodecs.jpeg2k_encode(signed, codecformat="j2k")
    np.testing.assert_array_equal(read_image(written(dataset(signed), J2K, frames=[frame])), expected)


@pytest.mark.parametrize("syntax", [LOSSLESS_SV1, LOSSLESS, LS, J2K_LOSSLESS])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_second_decoder_agrees(syntax, bits) -> None:
    pytest.importorskip("gdcm")
    pixels = stored(bits)
    ds = dataset(pixels, bits, WindowCenter=100, WindowWidth=150)
    data = written(ds, syntax, frames=[lossless(syntax, pixels, bits)])
    expected = shown_by_pydicom(data, "gdcm") * 65535
    np.testing.assert_allclose(read_image(data), expected, atol=0.501)


@pytest.mark.parametrize("predictor", range(1, 8))
def test_every_predictor_of_lossless_jpeg(predictor) -> None:
    pixels = stored(14)
    frame = imagecodecs.jpeg8_encode(pixels, lossless=True, bitspersample=14, predictor=predictor)
    plain = read_image(written(dataset(pixels, 14)))
    np.testing.assert_array_equal(
        read_image(written(dataset(pixels, 14), LOSSLESS, frames=[frame])), plain
    )


@pytest.mark.parametrize("syntax", [BASELINE, EXTENDED])
def test_jpeg_of_eight_bits(syntax) -> None:
    frame = saved(Image.fromarray(stored(8)), "JPEG", quality=90)
    image = read_image(written(dataset(stored(8)), syntax, frames=[frame]))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, read_image(frame))


def test_jpeg_of_twelve_bits() -> None:
    frame = imagecodecs.jpeg8_encode(stored(12), bitspersample=12, level=98)
    ds = dataset(stored(12), 12, WindowCenter=2048, WindowWidth=4096, VOILUTFunction="LINEAR_EXACT")
    image = read_image(written(ds, EXTENDED, frames=[frame]))
    assert np.abs(image / 65535 * 4096 - stored(12)).mean() < 20


def test_near_lossless_and_lossy_agree_with_pydicom(real_images) -> None:
    pytest.importorskip("gdcm")
    seen = set()
    for path in real_images("dicom", 99):
        ds = pydicom.dcmread(path)
        syntax = ds.file_meta.TransferSyntaxUID
        image = read_image(path)
        plugin = "gdcm" if syntax in (J2K, J2K_LOSSLESS, LS, LS_NEAR, BASELINE) else ""
        if "WindowWidth" in ds:
            expected = shown_by_pydicom(path.read_bytes(), plugin) * 65535
            np.testing.assert_allclose(image, expected, atol=0.501)
        else:
            np.testing.assert_array_equal(image, ds.pixel_array)
        seen.add(syntax)
    assert len(seen) == 4


@pytest.mark.parametrize("syntax", [RLE, LS, J2K_LOSSLESS, LOSSLESS_SV1])
def test_compressed_colour_is_luma(syntax) -> None:
    if syntax == J2K_LOSSLESS:
        frame = imagecodecs.jpeg2k_encode(COLOUR, codecformat="j2k", mct=True)
    else:
        frame = lossless(syntax, COLOUR, 8)
    ds = dataset(COLOUR, PhotometricInterpretation="YBR_RCT" if syntax == J2K_LOSSLESS else "RGB")
    image = read_image(written(ds, syntax, frames=[frame]))
    assert np.abs(image - COLOUR @ LUMA).max() <= 0.51


@pytest.mark.parametrize(
    ("stated", "options"),
    [
        ("YBR_FULL_422", {}),
        ("RGB", {}),  # many files say so of a JFIF
        ("YBR_FULL", {"subsampling": 0}),
        ("RGB", {"keep_rgb": True}),
    ],
)
def test_colour_jpeg_is_luma(stated, options) -> None:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    smooth = np.stack([x * 4, y * 5, x + y], -1).astype(np.uint8)
    frame = saved(Image.fromarray(smooth), "JPEG", quality=98, **options)
    ds = dataset(smooth, PhotometricInterpretation=stated)
    image = read_image(written(ds, BASELINE, frames=[frame]))
    assert np.abs(image - smooth @ LUMA).max() < 6


# --- many frames ----------------------------------------------------------------------------------


def frames_of(syntax: str, number: int) -> list[bytes]:
    return [lossless(syntax, stored(12, seed=i), 12) for i in range(number)]


@pytest.mark.parametrize("syntax", [RLE, LS, J2K_LOSSLESS, LOSSLESS_SV1])
@pytest.mark.parametrize("table", ["basic", "none", "extended", "none, fragments", "basic, fragments"])
def test_the_first_of_many_compressed_frames(syntax, table) -> None:
    if "fragments" in table and syntax == RLE:
        pytest.skip("an RLE frame is one fragment")
    frames = frames_of(syntax, 5)
    ds = dataset(stored(12), 12, NumberOfFrames=5)
    written(ds, syntax, frames=frames)  # sets what encapsulated pixels need
    pieces = 3 if "fragments" in table else 1
    if table == "extended":
        ds.PixelData, offsets, lengths = encapsulate_extended(frames)
        ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = offsets, lengths
    else:
        ds.PixelData = encapsulate(frames, fragments_per_frame=pieces, has_bot="basic" in table)
    picture = read_picture(written(ds, syntax))
    np.testing.assert_array_equal(picture.pixels, read_image(written(dataset(stored(12), 12))))
    assert picture.note == "first of 5 frames"


def test_the_first_of_many_native_frames() -> None:
    ds = dataset(stored(12), 12, NumberOfFrames=1000)
    ds.PixelData = stored(12).tobytes() + bytes(999 * 2 * SHAPE[0] * SHAPE[1])
    for syntax in (EXPLICIT, DEFLATED):
        picture = read_picture(written(ds, syntax))
        np.testing.assert_array_equal(picture.pixels, read_image(written(dataset(stored(12), 12))))
        assert picture.note == "first of 1000 frames"


def test_no_frame_but_the_first_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    decode = imagecodecs.jpegls_decode
    monkeypatch.setattr(imagecodecs, "jpegls_decode", lambda data: calls.append(1) or decode(data))
    ds = dataset(stored(12), 12, NumberOfFrames=300)
    read_image(written(ds, LS, frames=frames_of(LS, 3) * 100))
    assert len(calls) == 1


def test_one_frame_in_many_fragments() -> None:
    frame = lossless(J2K_LOSSLESS, stored(12), 12)
    ds = dataset(stored(12), 12)
    written(ds, J2K_LOSSLESS, frames=[frame])
    for has_table in (False, True):
        ds.PixelData = encapsulate([frame], fragments_per_frame=7, has_bot=has_table)
        image = read_image(written(ds, J2K_LOSSLESS))
        np.testing.assert_array_equal(image, read_image(written(dataset(stored(12), 12))))


# --- files of other writers -----------------------------------------------------------------------


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", EXPLICIT])
def test_without_preamble_or_meta_information(syntax) -> None:
    ds = dataset(stored(12), 12)
    whole = written(ds, syntax)
    expected = read_image(whole)
    np.testing.assert_array_equal(read_image(whole[132:]), expected)
    length = 12 + struct.unpack_from("<I", whole, 140)[0]
    np.testing.assert_array_equal(read_image(whole[132 + length :]), expected)
    np.testing.assert_array_equal(read_image(whole[:132] + whole[132 + length :]), expected)


def test_sequences_in_front_of_the_pixels_are_stepped_over() -> None:
    icon, outer = dataset(stored(8)[:4, :6]), pydicom.Dataset()
    del icon.file_meta
    outer.add_new("IconImageSequence", "SQ", [icon])
    for undefined in (False, True):
        ds = dataset(stored(12), 12)
        ds.add_new("ReferencedImageSequence", "SQ", [outer, outer])
        ds["ReferencedImageSequence"].is_undefined_length = undefined
        outer["IconImageSequence"].is_undefined_length = undefined
        for syntax in ("1.2.840.10008.1.2", EXPLICIT, "1.2.840.10008.1.2.2"):
            ds.PixelData = stored(12).tobytes()
            image = read_image(written(ds, syntax))
            np.testing.assert_array_equal(image, read_image(written(dataset(stored(12), 12))))


def test_a_sequence_that_became_unknown_is_stepped_over() -> None:
    """A UN of undefined length: items without VRs (PS3.5, 6.2.2), in a file that names them."""
    inner = struct.pack("<HHI", 0x0008, 0x1155, 4) + b"1.2\0"  # its length would read as a VR
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + inner + b"\xfe\xff\x0d\xe0" + bytes(4)
    unknown = b"\x08\0\x40\x11UN\0\0\xff\xff\xff\xff" + item + b"\xfe\xff\xdd\xe0" + bytes(4)
    long = struct.pack("<HHI", 0x0008, 0x0055, 0x4141) + b"x" * 0x4141  # a length that is letters
    data = written(dataset(stored(12), 12))
    place = data.index(b"\x08\0\x60\0CS")
    for more in (unknown, unknown.replace(inner, long)):
        whole = data[:place] + more + data[place:]
        np.testing.assert_array_equal(read_image(whole), read_image(data))


def test_numbers_in_another_vr() -> None:
    ds = dataset(stored(12), 12)
    set_raw(ds, "Rows", "IS", str(SHAPE[0]).encode())
    set_raw(ds, "Columns", "UL", struct.pack("<I", SHAPE[1]))
    np.testing.assert_array_equal(read_image(written(ds)), read_image(written(dataset(stored(12), 12))))


# --- what is refused ------------------------------------------------------------------------------


def without(keyword: str, **tags: object) -> bytes:
    ds = dataset(stored(12), 12, **tags)
    del ds[keyword]
    return written(ds)


def test_reasons() -> None:
    assert reason(without("PixelData")) == "DICOM without pixels"
    assert reason(without("Rows")) == "corrupt DICOM (Rows is missing)"
    assert reason(without("BitsAllocated")) == "corrupt DICOM (BitsAllocated is missing)"
    unknown = "DICOM of this PhotometricInterpretation is not supported"
    assert reason(without("PhotometricInterpretation")) == unknown
    assert reason(written(dataset(stored(8), PhotometricInterpretation="HSV"))) == unknown
    assert reason(written(dataset(stored(12), BitsAllocated=32))) == (
        "DICOM of 32 bits allocated is not supported"
    )
    disagree = "corrupt DICOM (BitsStored, HighBit and BitsAllocated disagree)"
    assert reason(written(dataset(stored(12), 17))) == disagree
    assert reason(written(dataset(stored(12), 12, BitsStored=0))) == disagree
    assert reason(written(dataset(stored(12), HighBit=16))) == disagree
    said = "corrupt DICOM (SamplesPerPixel and PhotometricInterpretation disagree)"
    assert reason(written(dataset(stored(8), SamplesPerPixel=3))) == said
    assert reason(written(dataset(stored(8), Rows=0))) == "width or height is 0 (58 x 0)"
    short = "truncated DICOM (fewer pixels than its header claims)"
    assert reason(written(dataset(stored(8), Rows=60))) == short
    assert reason(written(dataset(stored(8), NumberOfFrames=2))) == short
    assert reason(written(dataset(stored(8)), "1.2.840.10008.1.2.4.100")) == (
        "DICOM of this transfer syntax is not supported"
    )
    assert reason(written(dataset(stored(8)), LS)) == (
        "corrupt DICOM (compressed pixels are not in items)"
    )
    frame = lossless(LS, stored(8), 8)
    assert reason(written(dataset(stored(8)), EXPLICIT, frames=[frame])) == (
        "corrupt DICOM (uncompressed pixels in items)"
    )
    assert reason(written(dataset(stored(8), NumberOfFrames=2), LS, frames=[frame])) == (
        "truncated DICOM (fewer frames than its header claims)"
    )
    for keyword in ("FloatPixelData", "DoubleFloatPixelData"):
        ds = dataset(stored(8))
        del ds.PixelData
        setattr(ds, keyword, bytes(8))
        assert reason(written(ds)) == "DICOM of floating-point pixels is not supported"
    assert reason(bytes(128) + b"DICM") == "DICOM without pixels"
    assert reason(bytes(128) + b"DICM" + bytes(40)) == "DICOM without pixels"


@pytest.mark.parametrize("vr", ["DS", "SH", "US", "OB", "UN"])
def test_a_number_that_is_none(vr) -> None:
    ds = dataset(stored(8))
    set_raw(ds, "Rows", vr, b"HANS MUSTER")
    assert reason(written(ds)) == "corrupt DICOM (Rows is no number)"
    frames = dataset(stored(8))
    set_raw(frames, "NumberOfFrames", "IS", b"HANS")
    assert reason(written(frames)) == "corrupt DICOM (NumberOfFrames is no number)"


def test_the_header_decides_about_size() -> None:
    data = written(dataset(stored(8)))
    assert reason(data, max_pixels=2667) == "58 x 46 is more than 2667 pixels"
    assert read_image(data, max_pixels=2668).shape == SHAPE
    huge = written(dataset(stored(8), Rows=60000, Columns=60000))
    assert reason(huge) == "60000 x 60000 is more than 268435456 pixels"


@pytest.mark.parametrize(
    ("syntax", "marker", "offset", "name"),
    [
        (J2K_LOSSLESS, b"\xff\x51", 6, "JPEG 2000"),
        (LS, b"\xff\xf7", 5, "JPEG-LS"),
        (LOSSLESS_SV1, b"\xff\xc3", 5, "JPEG"),
    ],
)
def test_a_codestream_that_claims_another_size(syntax, marker, offset, name) -> None:
    frame = bytearray(lossless(syntax, stored(12), 12))
    place = frame.index(marker) + offset
    frame[place : place + (8 if offset == 6 else 4)] = struct.pack(
        ">II" if offset == 6 else ">HH", 60000, 60000
    )
    data = written(dataset(stored(12), 12), syntax, frames=[bytes(frame)])
    assert reason(data) in (
        f"corrupt DICOM (a {name} of 60000 x 60000 in a DICOM of 58 x 46)",
        "60000 x 60000 is more than 2668 pixels",
    )
    other = lossless(syntax, stored(12)[:40], 12)
    assert reason(written(dataset(stored(12), 12), syntax, frames=[other])) == (
        f"corrupt DICOM (a {name} of 58 x 40 in a DICOM of 58 x 46)"
    )


def test_a_jpeg_ls_without_its_end_never_meets_its_decoder() -> None:
    """Which may take seconds to see it."""
    frame = lossless(LS, stored(12), 12)
    for part in range(5, 40):
        data = written(dataset(stored(12), 12), LS, frames=[frame[: len(frame) * part // 40]])
        assert reason(data) == "truncated JPEG-LS"


def test_rle_that_does_not_fit() -> None:
    frame = rle(stored(12))
    for other in (
        rle(stored(12)[:40]),
        rle(stored(8)),
        frame[:40],
        frame[:64],
        frame[: len(frame) // 2],
    ):
        assert "RLE" in reason(written(dataset(stored(12), 12), RLE, frames=[other]))
    bomb = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * 10**6
    # Stopped once the frame is full, not when 128 MB are.
    said = "corrupt DICOM (its RLE cannot be decoded)"
    assert reason(written(dataset(stored(8)), RLE, frames=[bomb])) == said


def test_deflate_bombs() -> None:
    plain = written(dataset(stored(8)), EXPLICIT)
    ds = dataset(stored(8))
    meta = written(ds, DEFLATED)
    head = meta[: 132 + 12 + struct.unpack_from("<I", meta, 140)[0]]

    def deflated(body: bytes) -> bytes:
        deflate = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
        return head + deflate.compress(body) + deflate.flush()

    body = plain[132 + 12 + struct.unpack_from("<I", plain, 140)[0] :]
    np.testing.assert_array_equal(read_image(deflated(body)), stored(8))
    assert reason(deflated(bytes(2**26))) == "corrupt DICOM (more than 200000 elements)"
    curve = b"\x08\0\x05\x42OB\0\0" + struct.pack("<I", 2**27)
    said = f"a deflated DICOM of more than {2 * 10**6 + 2**24} bytes"
    assert reason(deflated(curve + bytes(2**27) + body), max_pixels=10**6) == said
    assert reason(deflated(curve + bytes(2**20))) == "truncated DICOM"
    assert reason(head + b"\xff" * 50) == "corrupt DICOM (it does not inflate)"
    # Behind the pixels nothing is inflated.
    long = dataset(stored(8))
    long.add_new(0xFFFCFFFC, "OB", bytes(2**25))
    image = read_image(written(long, DEFLATED), max_pixels=10**4)
    np.testing.assert_array_equal(image, stored(8))


def test_sequences_nested_without_end() -> None:
    item = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    head = written(dataset(stored(8)))[:132]
    assert reason(head + item * 5000) == "corrupt DICOM (sequences nested too deep)"


def samples() -> dict[str, bytes]:
    found = {
        syntax: written(dataset(stored(12), 12), syntax, frames=[lossless(syntax, stored(12), 12)])
        for syntax in LOSSLESS_ALL
    }
    for syntax in ("1.2.840.10008.1.2", EXPLICIT, DEFLATED, "1.2.840.10008.1.2.2"):
        found[syntax] = written(dataset(stored(12), 12), syntax)
    jpeg = saved(Image.fromarray(stored(8)), "JPEG")
    found[BASELINE] = written(dataset(stored(8)), BASELINE, frames=[jpeg])
    return found


@pytest.mark.parametrize("syntax", list(samples()))
def test_truncation_is_always_found(syntax: str) -> None:
    data = samples()[syntax]
    assert read_image(data).shape == SHAPE
    lengths = [132 + (len(data) - 132) * part // 60 for part in range(60)]
    # The last bytes of a deflated file are behind its pixels.
    ends = range(len(data) - 16, len(data) - (6 if syntax == DEFLATED else 0))
    for length in [*lengths, *ends]:
        assert "DICOM" in (why := reason(data[:length])) or "JPEG" in why, length


@pytest.mark.parametrize("syntax", list(samples()))
def test_a_frame_that_ends_early_is_found(syntax: str) -> None:
    """The file is whole around it."""
    if syntax not in (*LOSSLESS_ALL, BASELINE):
        pytest.skip("uncompressed")
    frame = (
        lossless(syntax, stored(12), 12)
        if syntax != BASELINE
        else saved(Image.fromarray(stored(8)), "JPEG")
    )
    ds = dataset(stored(8)) if syntax == BASELINE else dataset(stored(12), 12)
    for part in range(1, 40):
        assert reason(written(ds, syntax, frames=[frame[: len(frame) * part // 40]])), part


@pytest.mark.parametrize("syntax", list(samples()))
def test_flipped_bytes_never_crash(syntax: str, recwarn, capfd, caplog) -> None:
    read_damaged(samples()[syntax], 132, 900, 200, 4)
    assert not recwarn.list
    assert not caplog.records
    assert "".join(capfd.readouterr()) == ""


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "x.dcm"
    path.write_bytes(written(dataset(stored(8))))
    for module in ("imagecodecs", "pydicom.datadict"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            assert reason(path) == "DICOM needs an extra: pip install 'cxr_fast[dicom]'"
    np.testing.assert_array_equal(read_image(path), stored(8))
