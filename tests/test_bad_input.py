"""Bad input, end to end: each a typed error with its own code, and a detector that works on."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from made import make_chest
from pydicom.data import get_testdata_file

from ptxsdk import Engine, EngineError, InputError, OutOfScope, PtxsdkError, Radiograph


def png(pixels):
    return cv2.imencode(".png", pixels)[1].tobytes()


def dicom(name):
    return Path(get_testdata_file(name, download=False)).read_bytes()


def multi_frame():
    import pydicom

    film = pydicom.dcmread(io.BytesIO(dicom("RG1_UNCR.dcm")))
    film.NumberOfFrames = 2
    film.PixelData = film.PixelData * 2
    buffer = io.BytesIO()
    film.save_as(buffer)
    return buffer.getvalue()


def huge_png():
    header = struct.pack(">IIBBBBB", 30000, 30000, 16, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0" * 64


def huge_dicom():
    import pydicom

    film = pydicom.dcmread(io.BytesIO(dicom("RG1_UNCR.dcm")))
    film.Rows = film.Columns = 30000
    buffer = io.BytesIO()
    film.save_as(buffer)
    return buffer.getvalue()


def colour_photo():
    photo = np.random.default_rng(0).integers(0, 255, (400, 400, 3)).astype(np.uint8)
    return cv2.imencode(".jpg", photo)[1].tobytes()


CASES = {
    "missing file": (lambda: "no/such/film.dcm", InputError, "input.not_found"),
    "directory": (lambda: ".", InputError, "input.is_directory"),
    "empty": (lambda: b"", InputError, "input.empty"),
    "text": (lambda: b"Dear doctor, " * 100, InputError, "input.unknown_format"),
    "truncated DICOM": (lambda: dicom("RG1_UNCR.dcm")[:-1000], InputError, "input.truncated"),
    "truncated DICOM header": (lambda: dicom("RG1_UNCR.dcm")[:600], InputError, "input.truncated"),
    "truncated PNG": (lambda: png(make_chest())[:-500], InputError, "input.truncated"),
    "CT": (lambda: dicom("CT_small.dcm"), OutOfScope, "gate.not_radiograph"),
    "leg": (lambda: dicom("RG3_UNCR.dcm"), OutOfScope, "gate.body_part"),
    "multi-frame": (multi_frame, InputError, "input.multi_frame"),
    "colour photo": (colour_photo, InputError, "input.colour"),
    "constant image": (lambda: png(np.full((500, 500), 80, np.uint8)), OutOfScope, "gate.constant"),
    "NaN pixels": (lambda: np.full((500, 500), np.nan, np.float32), InputError, "input.not_finite"),
    "10x10 image": (lambda: png(make_chest((10, 10))), OutOfScope, "gate.size"),
    "30000x30000 PNG header": (huge_png, InputError, "input.too_large"),
    "30000x30000 DICOM header": (huge_dicom, InputError, "input.too_large"),
    "wrong dtype": (lambda: np.zeros((500, 500), np.complex64), InputError, "input.dtype"),
    "no film at all": (object, InputError, "input.type"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.requirement("R-INPUT-3")
def test_each_has_its_error(detector, name):
    make, error, code = CASES[name]
    with pytest.raises(error) as raised:
        detector.predict(make())
    assert raised.value.code == code
    assert detector.predict(make_chest(blob=(250, 150, 60))).flagged


def test_a_batch_of_all_of_them(detector):
    outcomes = detector.predict_batch([make() for make, _, _ in CASES.values()], errors="return")
    assert [outcome.code for outcome in outcomes] == [code for _, _, code in CASES.values()]


@pytest.mark.parametrize("step", [997])
def test_a_flipped_byte_anywhere_in_an_engine(tiny_engine, step):
    """A sample over header and body; tests/test_engine.py goes through every byte."""
    for position in [
        *range(64),
        *range(64, len(tiny_engine), step),
        *range(len(tiny_engine) - 64, len(tiny_engine)),
    ]:
        damaged = bytearray(tiny_engine)
        damaged[position] ^= 0x10
        with pytest.raises(EngineError):
            Engine.open(bytes(damaged))


@pytest.mark.requirement("R-ERROR-2")
def test_errors_carry_no_patient_data(detector):
    import pydicom

    film = pydicom.dcmread(io.BytesIO(dicom("CT_small.dcm")))
    private = [str(film.PatientName), str(film.PatientID)]
    with pytest.raises(PtxsdkError) as raised:
        detector.predict(film)
    assert not any(word and word in str(raised.value) for word in private)


@pytest.mark.requirement("R-INPUT-1")
def test_a_16_bit_film_is_not_read_as_8_bit(detector):
    """The same film as 8 bits, and as 16 bits that differ in the high byte only."""
    chest = make_chest(blob=(250, 150, 60))
    wide = Radiograph.from_array(chest.astype(np.uint16) * 256, window=(0, 255 * 256))
    assert detector.predict(wide).probability == pytest.approx(detector.predict(chest).probability, abs=1e-4)
