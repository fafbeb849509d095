"""DICOM files made in memory, and grey pixels as pydicom's own functions give them."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pydicom
from pictures import smooth_picture
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

SHAPE = (46, 58)


def stored(bits: int, *, signed: bool = False, seed: int = 0) -> np.ndarray:
    """A smooth picture [46, 58] over the whole range of ``bits`` bits."""
    waves = smooth_picture(*SHAPE).astype(np.float64)
    noise = np.random.default_rng(seed).random(SHAPE)
    levels = np.clip((waves + noise) / 256 * 2**bits, 0, 2**bits - 1).astype(np.int64)
    levels[0, :2] = 0, 2**bits - 1
    if signed:
        levels -= 2 ** (bits - 1)
    return levels.astype(
        (np.int8 if signed else np.uint8) if bits <= 8 else np.int16 if signed else np.uint16
    )


def dataset(pixels: np.ndarray, bits: int | None = None, **tags: object) -> Dataset:
    """A data set around stored pixels [H, W] or [H, W, 3]; ``tags`` are set on it as they are."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID
    ds.Modality = "CR"
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    ds.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = 8 * pixels.itemsize
    ds.BitsStored = bits or ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(ds, name, value)
    return ds


def written(ds: Dataset, syntax: str = ExplicitVRLittleEndian, *, frames: list | None = None) -> bytes:
    """The file of a data set; with ``frames``, encapsulated codestreams are its pixels."""
    ds.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    if frames is not None:
        ds.PixelData = encapsulate(frames)
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
    elif "PixelData" in ds:
        ds["PixelData"].VR = "OB" if ds.get("BitsAllocated") == 8 else "OW"
        if syntax == ExplicitVRBigEndian and ds.BitsAllocated == 16:
            ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
    if len(ds.get("PixelData", b"")) % 2:
        ds.PixelData += b"\0"
    meta, body = DicomBytesIO(), DicomBytesIO()
    meta.is_implicit_VR, meta.is_little_endian = False, True
    body.is_implicit_VR = syntax == ImplicitVRLittleEndian
    body.is_little_endian = syntax != ExplicitVRBigEndian
    write_file_meta_info(meta, ds.file_meta, enforce_standard=True)
    write_dataset(body, ds)
    whole = body.getvalue()
    if syntax == DeflatedExplicitVRLittleEndian:
        deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        whole = deflate.compress(whole) + deflate.flush()
    return bytes(128) + b"DICM" + meta.getvalue() + whole


def set_raw(ds: Dataset, keyword: str, vr: str, value: bytes) -> None:
    """Set an element to bytes that pydicom would refuse or complain about."""
    tag = Tag(keyword)
    value += b" " * (len(value) % 2)
    ds._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)


def lut(entries: np.ndarray, first: int, bits: int, *, vr: str = "US") -> Sequence:
    """A sequence of one lookup table, as ModalityLUTSequence and VOILUTSequence have it."""
    item = Dataset()
    item.add_new("LUTDescriptor", vr, [len(entries) % 2**16, first, bits])
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return Sequence([item])


def shown_by_pydicom(data: bytes, plugin: str = "") -> np.ndarray:
    """Grey in [0, 1] of a file whose window or VOI LUT decides, by pydicom's own functions."""
    ds = pydicom.dcmread(io.BytesIO(data))
    if plugin:
        ds.pixel_array_options(decoding_plugin=plugin)
    values = apply_modality_lut(ds.pixel_array, ds)
    shown = apply_voi_lut(values, ds).astype(np.float64)
    if "VOILUTSequence" in ds:
        low, high = 0.0, 2.0 ** ds.VOILUTSequence[0].LUTDescriptor[2] - 1
    else:  # the range that apply_windowing maps to
        bits = ds.BitsStored
        low, high = (
            (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1)
            if ds.PixelRepresentation
            else (0, 2.0**bits - 1)
        )
        if "ModalityLUTSequence" in ds:
            low, high = 0.0, 2.0 ** ds.ModalityLUTSequence[0].LUTDescriptor[2] - 1
        elif "RescaleSlope" in ds:
            low, high = (
                end * float(ds.RescaleSlope) + float(ds.RescaleIntercept) for end in (low, high)
            )
    shown = (shown - low) / (high - low)
    return 1 - shown if ds.PhotometricInterpretation == "MONOCHROME1" else shown
