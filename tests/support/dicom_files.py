"""Films and files made for the reader tests."""

from __future__ import annotations

import io
import struct
import zlib

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

# Encoders of TIFF and HTJ2K; the newest imagecodecs for CPython 3.10 has none.
ALL_ENCODERS = int(imagecodecs.__version__.split(".")[0]) >= 2026
NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)


def film(rows=33, columns=47, bits=12, *, signed=False, seed=0):
    """A smooth film with noise that uses the whole range of `bits`."""
    y, x = np.mgrid[:rows, :columns]
    wave = 0.5 + 0.3 * np.sin(x / 9) + 0.2 * np.cos(y / 7)
    noise = np.random.default_rng(seed).normal(0, 0.02, wave.shape)
    values = np.clip((wave + noise) * ((1 << bits) - 1), 0, (1 << bits) - 1).astype(np.int64)
    values[0, 0], values[0, 1] = 0, (1 << bits) - 1
    if signed:
        return (values - (1 << (bits - 1))).astype(np.int16)
    return values.astype(np.uint8 if bits <= 8 else np.uint16)


def dataset(pixels=None, bits=12, **attributes):
    """A small DX data set, ExplicitVRLittleEndian, with a window unless told otherwise."""
    pixels = film(bits=bits) if pixels is None else pixels
    allocated = 8 if pixels.dtype.itemsize == 1 else 16
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.SOPInstanceUID = "1.2.3.4"
    ds.StudyDate = "20240101"
    ds.Modality = "DX"
    ds.PatientName = "Secret^Name"
    ds.PatientID = "SECRET-ID"
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = allocated, bits, bits - 1
    ds.PixelRepresentation = 1 if pixels.dtype.kind == "i" else 0
    ds.WindowCenter, ds.WindowWidth = 2048, 4096
    ds.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    ds["PixelData"].VR = "OW" if allocated == 16 else "OB"
    for name, value in attributes.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    return ds


def content(ds, syntax=ExplicitVRLittleEndian):
    """The file of a data set with native pixels in a native transfer syntax."""
    ds.file_meta.TransferSyntaxUID = syntax
    little = syntax != ExplicitVRBigEndian
    if not little and ds.BitsAllocated == 16:
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def encapsulated(ds, codestream, syntax):
    """The file of a data set with one codestream."""
    ds.PixelData = encapsulate([codestream])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def indexed_jpeg2000(pixels, *, parts=1):
    """Return a JPEG 2000 codestream whose index (TLM) lists its first tile-part; empty ones make `parts` of them."""
    stream = bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True, bitspersample=12))
    at, end = stream.index(b"\xff\x90"), len(stream) - 2
    index = b"\xff\x55" + struct.pack(">HBBBL", 9, 0, 0x50, 0, end - at)
    header = b"\xff\x90" + struct.pack(">HHLBB", 10, 0, end - at, 0, 0)
    empty = [b"\xff\x90" + struct.pack(">HHLBB", 10, 0, 14, part, 0) + b"\xff\x93" for part in range(1, parts)]
    return b"".join((stream[:at], index, header, stream[at + 12 : end], *empty, b"\xff\xd9"))


def png_chunk(kind, body):
    return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))


def png(rows, columns, depth=8, kind=0, body=b"", extra=b""):
    """A PNG with any header, true or not."""
    header = struct.pack(">LLBBBBB", columns, rows, depth, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + extra
        + png_chunk(b"IDAT", body or zlib.compress(b"\0" * 100))
        + png_chunk(b"IEND", b"")
    )


def code(read, source, **options):
    """The code of the InputError that reading `source` raises."""
    from ptxsdk.errors import InputError

    try:
        read(source, **options)
    except InputError as error:
        return error.code if "ecret" not in str(error) else "patient data in the message"
    return "no error"
