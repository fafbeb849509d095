"""Nothing of a DICOM header gets out but the tags that the caller names."""

from __future__ import annotations

import logging
import struct
import traceback

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
imagecodecs = pytest.importorskip("imagecodecs")

from dicom_files import dataset, set_raw, stored, written  # noqa: E402
from pydicom.datadict import DicomDictionary  # noqa: E402
from pydicom.dataset import Dataset  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402

from cxr_fast.archive.images import UnreadableImage, check_keep_tags, read_picture  # noqa: E402

MARKER = "Zaphod^Beeblebrox"
TEXT_VRS = (
    "AE",
    "AS",
    "CS",
    "DA",
    "DS",
    "DT",
    "IS",
    "LO",
    "LT",
    "PN",
    "SH",
    "ST",
    "TM",
    "UC",
    "UI",
    "UR",
    "UT",
)
SYNTAXES = ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"]


def planted(*, deciding: bool) -> Dataset:
    """A file with the marker in every text there is; with ``deciding``, also where numbers belong."""
    ds = dataset(stored(8))
    kept = {0x00280004, 0x00280008} if not deciding else set()
    texts = [tag for tag, entry in DicomDictionary.items() if entry[0] in TEXT_VRS and tag not in kept]
    for tag in texts:
        if 8 <= tag >> 16 < 0x7FE0:
            set_raw(ds, tag, DicomDictionary[tag][0], MARKER.encode())
    block = ds.private_block(0x0009, MARKER, create=True)
    block.add_new(1, "LO", MARKER)
    block.add_new(2, "UN", MARKER.encode())
    item = Dataset()
    for tag in (0x00100010, 0x00104000, 0x00080005, 0x00280010):
        set_raw(item, tag, "LO", MARKER.encode())
    ds.add_new(0x00081140, "SQ", Sequence([item]))
    ds.add_new(0x60000010, "US", 2)
    set_raw(ds, 0x60003000, "OW", MARKER.encode())
    set_raw(ds, 0x60000022, "LO", MARKER.encode())
    set_raw(ds, 0x00280034, "IS", MARKER.encode())
    for tag in (0x00020013, 0x00020016, 0x00020102):
        set_raw(ds.file_meta, tag, "SH", MARKER.encode())
    return ds


def everything_said(error: BaseException) -> str:
    """An error as any log would show it, with all that it was raised from."""
    said = "".join(traceback.format_exception(error))
    while error is not None:
        said += repr(error) + repr(error.args) + str(vars(error))
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return said


@pytest.fixture(autouse=True)
def all_logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "pydicom")


def outcome(data: bytes, **options: object) -> str:
    try:
        picture = read_picture(data, **options)
    except UnreadableImage as error:
        return everything_said(error)
    return repr((picture.note, dict(picture.tags), picture.pixels.shape))


def assert_silent(recwarn, caplog, capfd) -> None:
    assert not recwarn.list
    assert not [record for record in caplog.records if MARKER in record.getMessage()]
    assert not caplog.records
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("deciding", [False, True])
def test_no_planted_value_gets_out(syntax, deciding, recwarn, caplog, capfd) -> None:
    data = written(planted(deciding=deciding), syntax)
    recwarn.clear()  # pydicom's, of writing it
    caplog.clear()
    assert data.count(MARKER.encode()) > 1000 or syntax == SYNTAXES[3]
    said = outcome(data)
    assert MARKER not in said
    if not deciding:
        np.testing.assert_array_equal(read_picture(data).pixels, stored(8))
    for part in range(1, 40):  # and whatever is wrong with the file
        said = outcome(data[: 132 + (len(data) - 132) * part // 40])
        assert MARKER not in said
        assert "truncated" in said or "inflate" in said or "without pixels" in said
    assert_silent(recwarn, caplog, capfd)


def test_no_deciding_value_gets_out(recwarn, caplog, capfd) -> None:
    """The marker where one of the values belongs that decide pixels, each in turn."""
    keywords = (
        *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel"),
        *("PixelRepresentation", "PlanarConfiguration", "NumberOfFrames", "WindowCenter"),
        *("PhotometricInterpretation", "WindowWidth", "VOILUTFunction", "RescaleSlope"),
        *("RescaleIntercept", "PixelPaddingValue", "PixelPaddingRangeLimit", "VOILUTSequence"),
        *("ModalityLUTSequence", "SharedFunctionalGroupsSequence", "SpecificCharacterSet"),
    )
    for keyword in keywords:
        for vr in ("LO", "DS", "US", "UN", "SQ", "PN", "OB"):
            ds = dataset(stored(8))
            ds.add_new(0x00281050, "DS", 5)
            set_raw(ds, keyword, vr, MARKER.encode())
            if keyword == "SpecificCharacterSet" and vr in ("US", "UN", "SQ", "OB", "PN"):
                continue  # pydicom cannot write it
            for syntax in SYNTAXES:
                data = written(ds, syntax)
                recwarn.clear()  # pydicom's, of writing it
                caplog.clear()
                assert MARKER not in outcome(data, keep_tags=("PatientSex",)), keyword
    ds = dataset(stored(8))
    data = written(ds)
    place = data.index(b"1.2.840.10008.1.2.1")
    forged = data[:place] + MARKER.encode() + data[place + len(MARKER) :]
    assert MARKER not in outcome(forged)
    assert_silent(recwarn, caplog, capfd)


def test_no_text_of_a_codestream_gets_out(recwarn, caplog, capfd) -> None:
    frame = imagecodecs.jpeg8_encode(stored(8))
    comment = b"\xff\xfe" + struct.pack(">H", len(MARKER) + 2) + MARKER.encode()
    frame = frame[:2] + comment * 3 + frame[2:]
    ds = dataset(stored(8))
    whole = written(ds, "1.2.840.10008.1.2.4.50", frames=[frame])
    assert MARKER not in outcome(whole)
    for at in range(len(comment), len(frame), 97):
        broken = frame[:at] + MARKER.encode() + frame[at:]
        assert MARKER not in outcome(written(ds, "1.2.840.10008.1.2.4.50", frames=[broken]))
    assert_silent(recwarn, caplog, capfd)


# --- the tags that are kept -----------------------------------------------------------------------


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_named_tags_are_kept_and_no_other(syntax) -> None:
    ds = dataset(stored(8), PatientSex="F", PatientAge="061Y", PatientName=MARKER, ViewPosition="PA")
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.StudyDescription = ""
    ds.RedPaletteColorLookupTableDescriptor = [1, 2, 3]
    ds.add_new("ExposureInuAs", "IS", 250)
    ds.add_new("RecommendedDisplayFrameRateInFloat", "FL", 1.5)
    names = (
        "PatientSex",
        "0010,1010",
        "(0018,5101)",
        "ImageType",
        "Rows",
        "StudyDescription",
        "StationName",
    )
    check_keep_tags(names)
    assert read_picture(written(ds, syntax), keep_tags=names).tags == {
        "PatientSex": "F",
        "0010,1010": "061Y",
        "(0018,5101)": "PA",
        "ImageType": "ORIGINAL\\PRIMARY",
        "Rows": "46",
        "StudyDescription": "",
    }
    assert read_picture(written(ds, syntax)).tags == {}


@pytest.mark.parametrize(
    ("characters", "encoding", "text"),
    [
        ("ISO_IR 100", "latin-1", "Müller"),
        ("ISO_IR 192", "utf-8", "Мюллер"),
        ("ISO_IR 144", "iso8859-5", "Мюллер"),
        (None, "latin-1", "Müller"),
        (MARKER, "latin-1", "Müller"),
    ],
)
def test_text_of_other_character_sets(characters, encoding, text, recwarn) -> None:
    ds = dataset(stored(8))
    if characters is not None:
        set_raw(ds, "SpecificCharacterSet", "CS", characters.encode())
    set_raw(ds, "PatientName", "PN", text.encode(encoding))
    data = written(ds)
    recwarn.clear()  # pydicom's, of writing it
    assert read_picture(data, keep_tags=["PatientName"]).tags == {"PatientName": text}
    assert not recwarn.list


@pytest.mark.parametrize(
    "name",
    [
        "PatientSexx",
        "patientsex",
        "",
        "0009,1001",
        "0010",
        "0010,",
        "0010,00zz",
        "10,40,50",
        "0011,0010",
    ],
)
def test_unknown_names_are_refused(name) -> None:
    with pytest.raises(ValueError, match=f"^{name!r} names no DICOM tag: expected".replace("'", ".")):
        check_keep_tags(["PatientSex", name])


@pytest.mark.parametrize(
    "name", ["PixelData", "VOILUTSequence", "7fe0,0010", "TransferSyntaxUID", "LUTData"]
)
def test_names_of_no_text_are_refused(name) -> None:
    with pytest.raises(ValueError, match="cannot be kept: it holds no text and no number"):
        check_keep_tags([name])
