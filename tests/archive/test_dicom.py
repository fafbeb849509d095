"""How stored values of DICOM become grey. Oracles: pydicom's functions, and PS3.3 in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from pictures import reason

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("imagecodecs")

from dicom_files import SHAPE, dataset, lut, set_raw, shown_by_pydicom, stored, written  # noqa: E402
from pydicom.dataset import Dataset  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402

from cxr_fast.archive.images import read_image, read_picture  # noqa: E402

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
DEFLATED, BIG_ENDIAN = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
NATIVE = [IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN]
RANDOM = np.random.default_rng(17)


def assert_shown(data: bytes, expected: np.ndarray) -> None:
    """The file's pixels are ``expected`` [0, 1] on 16 bits, to a rounding."""
    image = read_image(data)
    assert image.dtype == np.uint16
    np.testing.assert_allclose(image, expected * 65535, atol=0.501)


# --- stored values --------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 15, 16])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_windowed_native_pixels_equal_pydicoms(syntax, signed, bits, photometric) -> None:
    ds = dataset(
        stored(bits, signed=signed),
        bits,
        PhotometricInterpretation=photometric,
        WindowCenter=0.1 * 2**bits,
        WindowWidth=0.6 * 2**bits,
    )
    data = written(ds, syntax)
    assert_shown(data, shown_by_pydicom(data))


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_eight_bits_without_any_table_are_as_stored(syntax, photometric) -> None:
    pixels = stored(8)
    image = read_image(written(dataset(pixels, PhotometricInterpretation=photometric), syntax))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, 255 - pixels if photometric == "MONOCHROME1" else pixels)
    wide = read_image(written(dataset(pixels.astype(np.uint16), 8), EXPLICIT))  # in 16 bits allocated
    np.testing.assert_array_equal(wide, pixels)
    image[0, 0] = 0  # the caller's own: it can be written to
    assert image.flags.c_contiguous
    turned = dataset(pixels, RescaleSlope=-1, RescaleIntercept=300)
    np.testing.assert_array_equal(read_image(written(turned)), 255 - pixels)


@pytest.mark.parametrize("signed", [False, True])
def test_without_a_window_the_values_in_use_fill_the_range(signed) -> None:
    pixels = (stored(10, signed=signed) // 2 + 100).astype(np.int16 if signed else np.uint16)
    low, high = float(pixels.min()), float(pixels.max())
    for tags in ({}, {"RescaleSlope": 2.5, "RescaleIntercept": -7}):
        assert_shown(written(dataset(pixels, **tags)), (pixels - low) / (high - low))
    turned = dataset(pixels, RescaleSlope=-2, RescaleIntercept=5)
    assert_shown(written(turned), 1 - (pixels - low) / (high - low))
    flat = np.full(SHAPE, 77, np.uint16)
    assert_shown(written(dataset(flat)), np.zeros(SHAPE))


@pytest.mark.parametrize("high", [11, 13, 15])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", [EXPLICIT, BIG_ENDIAN])
def test_stored_bits_are_cut_out_of_those_allocated(high, signed, syntax) -> None:
    values = stored(12, signed=signed)
    shift = high - 11
    pattern = (values.astype(np.int64) & 0xFFF) << shift
    overlay = RANDOM.integers(0, 2**16, SHAPE) & ~(0xFFF << shift)  # bits that are not the pixels'
    ds = dataset((pattern | overlay).astype(np.uint16), 12, HighBit=high)
    ds.PixelRepresentation = int(signed)
    low = -(2**11) if signed else 0
    assert_shown(written(ds, syntax), (values - float(low)) / (2**12 - 1))


@pytest.mark.parametrize("bits", [1, 4, 7])
def test_few_bits_fill_the_range(bits) -> None:
    assert_shown(written(dataset(stored(bits), bits)), stored(bits) / (2**bits - 1))


def test_swapped_words_of_eight_bits() -> None:
    pixels = stored(8)
    ds = dataset(np.ascontiguousarray(pixels).view("<u2").byteswap().view(np.uint8).reshape(SHAPE))
    data = written(ds, BIG_ENDIAN)
    data = data.replace(b"\x7f\xe0\0\x10OB", b"\x7f\xe0\0\x10OW")
    np.testing.assert_array_equal(read_image(data), pixels)


# --- padding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("signed", [False, True])
def test_padding_is_black_and_does_not_stretch_the_range(photometric, signed) -> None:
    kind = np.int16 if signed else np.uint16
    content = (stored(10) + 1000).astype(kind)
    padding = -2000 if signed else 0
    pixels = content.copy()
    pixels[:9], pixels[40:] = padding, padding + 3
    ds = dataset(pixels, PhotometricInterpretation=photometric)
    ds.add_new("PixelPaddingValue", "SS" if signed else "US", padding)
    ds.add_new("PixelPaddingRangeLimit", "SS" if signed else "US", padding + 3)
    seen = content[9:40].astype(float)
    expected = np.zeros(SHAPE)
    expected[9:40] = (seen - seen.min()) / (seen.max() - seen.min())
    if photometric == "MONOCHROME1":
        expected[9:40] = 1 - expected[9:40]
    assert_shown(written(ds), expected)


def test_padding_alone_is_black() -> None:
    ds = dataset(np.full(SHAPE, 5, np.uint16))
    ds.add_new("PixelPaddingValue", "US", 5)
    assert not read_image(written(ds)).any()


# --- modality and VOI -----------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", "", None])
@pytest.mark.parametrize("window", [(700, 900), (-20.5, 300.25), (500, 2), (512, 1), (3000, 50)])
@pytest.mark.parametrize("slope", [None, (1, -1024), (0.37, 12.5)])
def test_windows_equal_pydicoms(function, window, slope) -> None:
    if window[1] == 1 and function in (None, "", "LINEAR"):
        pytest.skip("a step; below")
    ds = dataset(stored(10), 10, WindowCenter=window[0], WindowWidth=window[1])
    if function is not None:
        ds.VOILUTFunction = function or "LINEAR"
    if slope is not None:
        ds.RescaleSlope, ds.RescaleIntercept = slope
    data = written(ds)
    assert_shown(data, shown_by_pydicom(data))


def test_a_window_of_width_one_is_a_step() -> None:
    pixels = stored(10)
    data = written(dataset(pixels, 10, WindowCenter=512, WindowWidth=1))
    assert_shown(data, (pixels > 511.5).astype(float))


def test_the_first_of_several_windows() -> None:
    several = dataset(stored(12), 12, WindowCenter=[2000, 100], WindowWidth=[900, 10])
    one = dataset(stored(12), 12, WindowCenter=2000, WindowWidth=900)
    np.testing.assert_array_equal(read_image(written(several)), read_image(written(one)))


@pytest.mark.parametrize("width", ["NaN", "0", "-5", "inf", "abc", "", "1e999", "0.5"])
@pytest.mark.parametrize("center", ["100", "NaN", "", "-inf"])
def test_an_unusable_window_is_full_range(width, center) -> None:
    plain = read_image(written(dataset(stored(12), 12)))
    ds = dataset(stored(12), 12)
    set_raw(ds, "WindowCenter", "DS", center.encode())
    set_raw(ds, "WindowWidth", "DS", width.encode())
    picture = read_picture(written(ds))
    np.testing.assert_array_equal(picture.pixels, plain)
    assert picture.note == ("no usable window, shown in full range" if center or width else "")


def test_the_next_window_where_the_first_cannot_be_used() -> None:
    several = dataset(stored(12), 12, WindowCenter=[2000, 1000], WindowWidth=[0, 400])
    one = dataset(stored(12), 12, WindowCenter=1000, WindowWidth=400)
    np.testing.assert_array_equal(read_image(written(several)), read_image(written(one)))


@pytest.mark.parametrize("rescale", [("0", "5"), ("nan", "1"), ("1", "inf"), ("x", "2")])
def test_an_unusable_rescale_is_left_out(rescale) -> None:
    ds = dataset(stored(12), 12, WindowCenter=1000, WindowWidth=400)
    plain = read_image(written(ds))
    set_raw(ds, "RescaleSlope", "DS", rescale[0].encode())
    set_raw(ds, "RescaleIntercept", "DS", rescale[1].encode())
    np.testing.assert_array_equal(read_image(written(ds)), plain)


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("first", [0, 200, 900])
def test_a_voi_table_equals_pydicoms(syntax, bits, first) -> None:
    entries = np.sort(RANDOM.integers(0, 2**bits, 512))
    ds = dataset(stored(10), 10, VOILUTSequence=lut(entries, first, bits))
    ds.WindowCenter, ds.WindowWidth = 3, 4  # the table is preferred
    data = written(ds, syntax)
    if syntax == BIG_ENDIAN:  # the words of OW are in the order of the file
        data = written(
            dataset(
                stored(10), 10, VOILUTSequence=lut(entries.astype(np.uint16).byteswap(), first, bits)
            ),
            syntax,
        )
    expected = entries[np.clip(stored(10).astype(int) - first, 0, 511)] / (2**bits - 1)
    assert_shown(data, expected)
    if syntax != BIG_ENDIAN and bits > 8:  # of 8 bits pydicom takes packed entries only
        np.testing.assert_allclose(shown_by_pydicom(data), expected)


def test_tables_of_signed_values() -> None:
    entries = np.arange(0, 4096, 16)
    ds = dataset(stored(10, signed=True), 10, VOILUTSequence=lut(entries, -100, 12, vr="SS"))
    expected = entries[np.clip(stored(10, signed=True).astype(int) + 100, 0, 255)] / 4095
    assert_shown(written(ds, EXPLICIT), expected)
    assert_shown(written(ds, IMPLICIT), expected)


@pytest.mark.parametrize("window", [False, True])
def test_a_modality_table(window) -> None:
    entries = RANDOM.integers(0, 4096, 1024)
    ds = dataset(stored(10), 10, ModalityLUTSequence=lut(entries, 0, 12))
    values = entries[stored(10)].astype(float)
    if window:
        ds.WindowCenter, ds.WindowWidth = 2000, 1500
        data = written(ds)
        assert_shown(data, np.clip((values - 1999.5) / 1499 + 0.5, 0, 1))
    else:
        assert_shown(written(ds), (values - values.min()) / (values.max() - values.min()))


def test_tables_of_bytes_and_of_more_bits_than_they_claim() -> None:
    entries = np.arange(256)[::-1]
    ds = dataset(stored(8), VOILUTSequence=lut(entries, 0, 8))
    ds.VOILUTSequence[0].LUTData = entries.astype(np.uint8).tobytes()
    assert_shown(written(ds), (255 - stored(8)) / 255)
    claimed = dataset(stored(8), VOILUTSequence=lut(entries * 16 + 15, 0, 10))
    assert_shown(written(claimed), (entries * 16 + 15)[stored(8)] / 4095)


def test_a_table_that_does_not_fit_is_refused() -> None:
    ds = dataset(stored(8), VOILUTSequence=lut(np.arange(256), 0, 8))
    ds.VOILUTSequence[0].LUTData = bytes(100)
    fits = "corrupt DICOM (a lookup table that its descriptor does not fit)"
    assert reason(written(ds)) == fits
    assert reason(written(dataset(stored(8), VOILUTSequence=lut(np.arange(256), 0, 32)))) == fits


def test_an_empty_table_sequence_is_none() -> None:
    ds = dataset(stored(8), VOILUTSequence=Sequence([]), ModalityLUTSequence=Sequence([Dataset()]))
    np.testing.assert_array_equal(read_image(written(ds)), stored(8))


@pytest.mark.parametrize(
    "place", ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]
)
@pytest.mark.parametrize("undefined", [False, True])
def test_windows_of_enhanced_objects(place, undefined) -> None:
    voi, values, groups = Dataset(), Dataset(), Dataset()
    voi.WindowCenter, voi.WindowWidth, voi.VOILUTFunction = 100, 800, "LINEAR_EXACT"
    values.RescaleSlope, values.RescaleIntercept = 2, -500
    groups.FrameVOILUTSequence = Sequence([voi])
    groups.PixelValueTransformationSequence = Sequence([values])
    ds = dataset(stored(10), 10)
    setattr(ds, place, Sequence([groups]))
    for element in (ds[place], groups["FrameVOILUTSequence"]):
        element.is_undefined_length = element.value.is_undefined_length = undefined
    groups.is_undefined_length_sequence_item = undefined
    expected = np.clip((stored(10) * 2.0 - 500 - 100) / 800 + 0.5, 0, 1)
    for syntax in NATIVE:
        assert_shown(written(ds, syntax), expected)
        ds.PixelData = stored(10).tobytes()


# --- colour ---------------------------------------------------------------------------------------

COLOUR = np.stack([stored(8), stored(8, seed=1)[::-1], stored(8, seed=2)[:, ::-1]], -1)
LUMA = np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("syntax", NATIVE)
def test_colour_is_luma(planar, syntax) -> None:
    ds = dataset(COLOUR, PlanarConfiguration=planar)
    if planar:
        ds.PixelData = COLOUR.transpose(2, 0, 1).tobytes()
    image = read_image(written(ds, syntax))
    assert image.dtype == np.uint8
    assert np.abs(image - COLOUR @ LUMA).max() <= 0.51


def test_colour_of_twelve_bits_fills_sixteen() -> None:
    samples = RANDOM.integers(0, 4096, (*SHAPE, 3), np.uint16)
    image = read_image(written(dataset(samples, 12)))
    assert np.abs(image / 65535 - samples @ LUMA / 4095).max() < 1 / 4095


def test_ybr_is_its_first_sample() -> None:
    image = read_image(written(dataset(COLOUR, PhotometricInterpretation="YBR_FULL")))
    np.testing.assert_array_equal(image, COLOUR[..., 0])
    luma = stored(8)
    pairs = luma.reshape(-1, 2)
    chroma = RANDOM.integers(0, 256, (len(pairs), 2), np.uint8)
    ds = dataset(COLOUR, PhotometricInterpretation="YBR_FULL_422")
    ds.PixelData = np.concatenate([pairs, chroma], 1).astype(np.uint8).tobytes()
    np.testing.assert_array_equal(read_image(written(ds)), luma)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("first", [0, 20])
def test_palette_is_luma(bits, first) -> None:
    tables = RANDOM.integers(0, 2**bits, (3, 200))
    ds = dataset(stored(8), PhotometricInterpretation="PALETTE COLOR")
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        ds.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [200, first, bits])
        ds.add_new(f"{name}PaletteColorLookupTableData", "OW", table.astype(f"<u{bits // 8}").tobytes())
    image = read_image(written(ds))
    assert image.dtype == (np.uint8 if bits == 8 else np.uint16)
    colours = pydicom.pixels.apply_color_lut(stored(8), ds)
    assert np.abs(image - colours @ LUMA).max() <= (0.51 if bits == 8 else 1.01)
    del ds.BluePaletteColorLookupTableData
    said = "corrupt DICOM (a lookup table without its descriptor or data)"
    assert reason(written(ds)) == said
