"""DICOM: values against pydicom, highdicom and the encoded arrays, and every refusal with its code."""

from __future__ import annotations

import fnmatch
import io
import re
import struct
import subprocess
import sys
import threading
import traceback
import tracemalloc
import zlib
from pathlib import Path

import data_store
import imagecodecs
import numpy as np
import pydicom
import pytest
from dicom_files import ALL_ENCODERS, NATIVE, code, content, dataset, encapsulated, film, indexed_jpeg2000
from pydicom import uid
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence

from ptxsdk.errors import InputError
from ptxsdk.gate import GatePolicy, check_header
from ptxsdk.radiograph import LookupTable, Window
from ptxsdk.readers import read

PYDICOM_FILES = Path(pydicom.__file__).parent / "data"
MORE_FILES = Path(data_store.__file__).parent / "data"

# The decoders read them; what is missing before 2026 is the tests' encoder.
needs_htj2k_encoder = pytest.mark.skipif(not ALL_ENCODERS, reason="imagecodecs has no HTJ2K encoder for this test")


def test_importing_ptxsdk_readers_loads_neither_codecs_nor_pydicom(tmp_path):
    script = (
        "import sys, ptxsdk.readers; print(sorted({'pydicom', 'imagecodecs', 'cv2', 'highdicom'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- pixels ---


def test_eight_bit_big_endian_words():
    pixels = film(33, 47, bits=8)
    ds = dataset(pixels, 8)
    ds["PixelData"].VR = "OW"
    padded = pixels.tobytes() + b"\0"
    ds.PixelData = np.frombuffer(padded, "<u2").astype(">u2").tobytes()
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    np.testing.assert_array_equal(read(buffer.getvalue()).pixels, pixels)


def test_bits_outside_the_stored_ones():
    pixels = film(bits=12)
    overlay = pixels | np.uint16(0x8000)
    found = read(content(dataset(overlay, 12)))
    np.testing.assert_array_equal(found.pixels, pixels)
    assert [warning.split(":")[0] for warning in found.warnings] == ["bits.masked"]
    left = dataset((pixels << 4) | np.uint16(3), 12, HighBit=15)
    np.testing.assert_array_equal(read(content(left)).pixels, pixels)
    signed = film(bits=12, signed=True)
    unextended = dataset((signed & 0xFFF).astype(np.uint16), 12, PixelRepresentation=1)
    np.testing.assert_array_equal(read(content(unextended)).pixels, signed)


def _rle(pixels):
    size = pixels.dtype.itemsize
    planes = [pixels.view(np.uint8).reshape(*pixels.shape, size)[..., plane] for plane in range(size)][::-1]
    segments = [imagecodecs.packbits_encode(np.ascontiguousarray(plane).tobytes()) for plane in planes]
    segments = [segment + b"\0" * (len(segment) % 2) for segment in segments]
    offsets = [64 + sum(map(len, segments[:index])) for index in range(size)]
    header = np.array([size, *offsets] + [0] * (15 - size), "<u4").tobytes()
    return header + b"".join(segments)


def _openjpeg(pixels, bits, **options):
    from openjpeg.utils import encode_array

    return bytes(encode_array(pixels, bits_stored=bits, photometric_interpretation=2, **options))


def _pydicom_jpegls(pixels, bits):
    ds = dataset(pixels, bits)
    ds.compress(uid.JPEGLSLossless, encoding_plugin="pyjpegls")
    return next(pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1))


def _lossless(predictor):
    return lambda p, bits: imagecodecs.jpeg8_encode(p, lossless=True, predictor=predictor, bitspersample=bits)


def _jpeg2000(codecformat):
    return lambda p, bits: imagecodecs.jpeg2k_encode(p, level=0, bitspersample=bits, codecformat=codecformat)


LOSSLESS = [
    (uid.RLELossless, "packbits", lambda p, bits: _rle(p)),
    (uid.JPEGLossless, "turbo", _lossless(predictor=4)),
    (uid.JPEGLosslessSV1, "turbo", _lossless(predictor=1)),
    (uid.JPEGLosslessSV1, "lj92", lambda p, bits: imagecodecs.ljpeg_encode(p, bitspersample=bits)),
    (uid.JPEGLSLossless, "pyjpegls", _pydicom_jpegls),
    (uid.JPEG2000Lossless, "pylibjpeg", _openjpeg),
    (uid.JPEG2000Lossless, "imagecodecs", _jpeg2000("j2k")),
    (uid.JPEG2000Lossless, "jp2", _jpeg2000("jp2")),
]


@needs_htj2k_encoder
@pytest.mark.parametrize("syntax", [uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K], ids=lambda s: s.name)
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_htj2k_is_exact_and_equals_a_second_decoder(syntax, signed):
    pixels = film(133, 247, bits=16, signed=signed)
    stream = bytes(imagecodecs.htj2k_encode(pixels))
    found = read(encapsulated(dataset(pixels, 16), stream, syntax))
    np.testing.assert_array_equal(found.pixels, pixels)
    np.testing.assert_array_equal(found.pixels, imagecodecs.htj2k_decode(stream))
    from openjpeg.utils import decode

    np.testing.assert_array_equal(found.pixels, decode(stream))


@needs_htj2k_encoder
def test_tiles_are_joined_and_a_missing_one_is_noticed():
    pixels = film(133, 247, bits=16)
    stream = bytes(imagecodecs.htj2k_encode(pixels, tile=(64, 64)))
    np.testing.assert_array_equal(read(encapsulated(dataset(pixels, 16), stream, uid.HTJ2K)).pixels, pixels)
    last = stream.rindex(b"\xff\x90\x00\x0a\x00\x0b")
    cut = stream[:last] + b"\xff\xd9"
    assert code(read, encapsulated(dataset(pixels, 16), cut + b"\0" * (len(cut) % 2), uid.HTJ2K)) == "input.truncated"


def test_lossy_codestreams_equal_a_second_decoder():
    from openjpeg.utils import decode

    pixels = film(133, 247, bits=12)
    stream = _openjpeg(pixels, 12, compression_ratios=[10])
    found = read(encapsulated(dataset(pixels), stream, uid.JPEG2000))
    np.testing.assert_array_equal(found.pixels, decode(stream))
    near = imagecodecs.jpegls_encode(film(bits=8), level=3)
    found = read(encapsulated(dataset(bits=8), near, uid.JPEGLSNearLossless))
    assert np.abs(found.pixels.astype(int) - film(bits=8)).max() <= 3
    baseline = imagecodecs.jpeg8_encode(film(bits=8), level=95)
    found = read(encapsulated(dataset(bits=8), baseline, uid.JPEGBaseline8Bit))
    assert np.abs(found.pixels.astype(int) - film(bits=8)).max() <= 12
    for bits in (8, 12):
        extended = imagecodecs.jpeg8_encode(film(bits=bits), level=98, bitspersample=bits)
        found = read(encapsulated(dataset(bits=bits), extended, uid.JPEGExtended12Bit))
        error = np.abs(found.pixels.astype(int) - film(bits=bits)).max()
        assert error <= (1 << bits) * 0.03


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.requirement("R-INPUT-1")
def test_signed_codestreams_are_exact(bits):
    pixels = film(bits=bits, signed=True)
    unsigned = (pixels.astype(int) & (1 << bits) - 1).astype(np.uint16)
    streams = [
        (uid.JPEG2000Lossless, _openjpeg(pixels, bits)),
        (uid.JPEG2000Lossless, _openjpeg(unsigned, bits)),  # sign lost, as in J2K_pixelrep_mismatch
        (uid.JPEGLosslessSV1, imagecodecs.ljpeg_encode(unsigned, bitspersample=bits)),
        (uid.JPEGLSLossless, imagecodecs.jpegls_encode(unsigned)),  # 16-bit codestream of 12-bit values
        (uid.JPEGLSLossless, imagecodecs.jpegls_encode(pixels.view(np.uint16))),
        (uid.RLELossless, _rle(pixels)),
    ]
    for syntax, stream in streams:
        found = read(encapsulated(dataset(pixels, bits), stream, syntax)).pixels
        np.testing.assert_array_equal(found, pixels)
        assert found.dtype == np.int16
    plain = film(bits=12)
    shifted = _openjpeg(((plain << 4).view(np.int16) >> 4), 12)  # signed codestream, unsigned header
    np.testing.assert_array_equal(read(encapsulated(dataset(plain), shifted, uid.JPEG2000Lossless)).pixels, plain)


def test_fragments_of_one_frame_are_joined():
    pixels = film(bits=12)
    stream = _openjpeg(pixels, 12)
    ds = dataset(pixels)
    ds.PixelData = encapsulate([stream], fragments_per_frame=3)
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = uid.JPEG2000Lossless
    np.testing.assert_array_equal(read(ds).pixels, pixels)


@pytest.mark.requirement("R-INPUT-3")
def test_a_jpeg_2000_film_without_all_of_its_tile_parts_is_never_a_film():
    pixels = film(bits=12)
    stream = indexed_jpeg2000(pixels, parts=3)
    parts = [at for at in range(len(stream)) if stream.startswith(b"\xff\x90\0\x0a", at)]

    def outcome(stream):
        return code(read, encapsulated(dataset(pixels), stream + b"\0" * (len(stream) % 2), uid.JPEG2000Lossless))

    assert outcome(stream) == "no error"
    assert outcome(stream[: parts[1]] + stream[parts[2] :]) == "input.truncated"  # the second of three
    stated = stream[: parts[0] + 11] + b"\4" + stream[parts[0] + 12 :]  # four, it says
    assert outcome(stated) == "input.truncated"
    empty = stream[: parts[0]] + struct.pack(">HHHLBBH", 0xFF90, 10, 0, 14, 0, 1, 0xFF93) + b"\xff\xd9"
    assert outcome(empty) in ("input.truncated", "input.corrupt")


@pytest.mark.parametrize("parts", [1, 3])
def test_the_index_of_a_jpeg_2000_codestream_is_left_out(parts):
    pixels = film(bits=12)
    stream = indexed_jpeg2000(pixels, parts=parts)
    np.testing.assert_array_equal(read(encapsulated(dataset(pixels), stream, uid.JPEG2000Lossless)).pixels, pixels)
    extension = stream[:-2].replace(b"\xff\x55", b"\xff\x74\0\4\0\0\xff\x55", 1)  # a multiple component transform
    file = encapsulated(dataset(pixels), extension + b"\xff\xd9", uid.JPEG2000Lossless)
    assert code(read, file) == "input.unsupported"


def test_relabelled_codestream_keeps_its_own_bits():
    pixels = film(bits=10)
    ds = dataset(pixels, 16, WindowCenter=32768, WindowWidth=65536)
    found = read(encapsulated(ds, _openjpeg(pixels, 10), uid.JPEG2000Lossless))
    np.testing.assert_array_equal(found.pixels, pixels)
    assert {warning.split(":")[0] for warning in found.warnings} == {
        "bits.codestream",
        "voi.ignored",
        "window.estimated",
    }
    assert found.display(pixels).max() == 1
    ds = dataset(pixels, 16, WindowCenter=512, WindowWidth=1024)
    found = read(encapsulated(ds, _openjpeg(pixels, 10), uid.JPEG2000Lossless))
    assert found.display.voi == Window(512, 1024)


# --- display ---


@pytest.mark.parametrize("value", [["Secret^Name", "x"], "Secret^Name", [0.5, None], [2**80, 1]])
@pytest.mark.parametrize("sequence", ["ModalityLUTSequence", "VOILUTSequence"])
def test_lut_data_that_are_no_numbers(sequence, value):
    item = Dataset()
    item.LUTDescriptor = [2, 0, 12]
    item[0x00283006] = DataElement(0x00283006, "UN", b"")
    item[0x00283006]._value = value
    ds = dataset(**{sequence: [item]})
    if sequence == "VOILUTSequence":
        assert read(ds).warnings[0].startswith("voi.ignored")
        return
    with pytest.raises(InputError) as caught:
        read(ds)
    assert caught.value.code == "input.corrupt"
    assert "Secret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(("tag", "digits"), [("Rows", 4000), ("NumberOfFrames", 20), ("BitsAllocated", 40)])
def test_integers_of_any_length_stay_out_of_messages(tag, digits):
    ds = dataset()
    ds[tag] = DataElement(tag, "IS", "1")
    ds[tag]._value = "9" * digits
    with pytest.raises(InputError) as caught:
        read(ds)
    assert len(str(caught.value)) < 200


def _lut(name, descriptor, data, vr="US", data_vr="US"):
    item = Dataset()
    item.add_new(0x00283002, vr, descriptor)
    item.add_new(0x00283006, data_vr, data)
    if name == "ModalityLUTSequence":
        item.ModalityLUTType = "US"
    return {name: Sequence([item])}


def _highdicom(ds, **options):
    import highdicom

    image = highdicom.Image.from_dataset(ds, copy=True)
    return image.get_frame(1, apply_voi_transform=True, apply_presentation_lut=True, dtype=np.float64, **options)


CURVE = (np.sqrt(np.linspace(0, 1, 4096)) * 65535).astype(int).tolist()


@pytest.mark.requirement("R-INPUT-2")
def test_window_is_in_modality_units():
    # highdicom moves the half unit of LINEAR into stored values where there is a slope; PS3.3 C.11.2.1.2.1 does not.
    pixels = film(bits=12)
    ds = dataset(WindowCenter=900, WindowWidth=800, RescaleSlope="0.5", RescaleIntercept="-20")
    found = read(content(ds))
    expected = np.empty(pixels.shape)
    for place, stored in np.ndenumerate(pixels):
        x = stored * 0.5 - 20
        if x <= 900 - 0.5 - 799 / 2:
            expected[place] = 0
        elif x > 900 - 0.5 + 799 / 2:
            expected[place] = 1
        else:
            expected[place] = (x - (900 - 0.5)) / 799 + 0.5
    np.testing.assert_allclose(found.display(pixels), expected, atol=1e-12)


def test_lut_encodings_give_the_same_table():
    entries = (np.arange(256) * 257).astype("<u2")
    as_words = _lut("VOILUTSequence", [256, 0, 16], entries.tobytes(), data_vr="OW")
    as_list = _lut("VOILUTSequence", [256, 0, 16], entries.tolist())
    packed = _lut("VOILUTSequence", [256, 0, 8], np.arange(256, dtype=np.uint8).tobytes(), data_vr="OW")
    for attributes in (as_words, as_list, packed):
        for syntax in (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian):
            table = read(content(dataset(bits=8, **attributes), syntax)).display.voi
            assert isinstance(table, LookupTable)
            np.testing.assert_allclose(table.entries, np.arange(256) / 255, atol=1e-12)
    full = np.arange(65536, dtype="<u2")
    big = _lut("VOILUTSequence", [0, 0, 16], full.tobytes(), data_vr="OW")
    found = read(content(dataset(bits=16, **big)))
    np.testing.assert_allclose(found.display.voi.entries, full / 65535, atol=1e-12)


def test_first_mapped_value_is_signed_where_the_input_is():
    table = np.arange(4096, dtype="<u2") * 16
    pixels = film(bits=12, signed=True)
    for vr, first in (("SS", -2048), ("US", 65536 - 2048)):
        attributes = _lut("VOILUTSequence", [4096, first, 16], table.tobytes(), vr=vr, data_vr="OW")
        found = read(content(dataset(pixels, **attributes)))
        assert found.display.voi.first == -2048
        np.testing.assert_allclose(found.display(pixels), (pixels + 2048.0) * 16 / 65535, atol=1e-9)
    attributes = _lut("ModalityLUTSequence", [4096, 65536 - 2048, 16], table.tobytes(), data_vr="OW")
    assert read(content(dataset(pixels, **attributes))).display.modality_lut.first == -2048


@pytest.mark.parametrize(
    ("declared", "highest", "bits"), [(16, 4095, 12), (12, 65535, 16), (16, 30000, 16), (16, 65535, 16), (10, 1000, 10)]
)
def test_voi_lut_with_wrong_bits(declared, highest, bits):
    entries = np.linspace(0, highest, 4096).astype("<u2")
    found = read(content(dataset(**_lut("VOILUTSequence", [4096, 0, declared], entries.tobytes(), data_vr="OW"))))
    np.testing.assert_allclose(found.display.voi.entries, entries / (2**bits - 1), atol=1e-12)
    assert bool(found.warnings) == (bits != declared)


def test_unusable_voi_falls_through_with_a_warning():
    def warned(**attributes):
        found = read(content(dataset(**attributes)))
        return found.display.voi, [warning.split(":")[0] for warning in found.warnings]

    low, high = np.percentile(film(bits=12), (0.1, 99.9))
    estimate = Window.from_range(low, high)
    assert warned(WindowWidth=0) == (estimate, ["voi.ignored", "window.estimated"])
    assert warned(WindowWidth=None) == (estimate, ["window.estimated"])
    assert warned(WindowCenter=[700, 800], WindowWidth=[0, 900])[0] == Window(800, 900)
    assert warned(WindowCenter=[700, 800], WindowWidth=[900, 900]) == (Window(700, 900), ["voi.alternatives"])
    assert warned(VOILUTFunction="WAVY") == (Window(2048, 4096), ["voi.function"])
    many = {"WindowCenter": [700] * 2000, "WindowWidth": [0] * 2000}
    assert warned(**many) == (estimate, ["voi.ignored", "window.estimated"])
    short = _lut("VOILUTSequence", [4096, 0, 16], CURVE[:100])
    assert warned(**short) == (Window(2048, 4096), ["voi.ignored"])
    broken_number = content(dataset()).replace(b"2048", b"NaN ")
    assert read(broken_number).display.voi == estimate
    broken_number = content(dataset(RescaleSlope="1", RescaleIntercept="3")).replace(b"1 \x28\x00", b"0 \x28\x00")
    read(broken_number)


def test_eight_bits_without_a_window_are_shown_whole_as_an_image_would_be():
    pixels = film(bits=8) // 2 + 30
    found = read(content(dataset(pixels, 8, WindowWidth=None, WindowCenter=None)))
    np.testing.assert_allclose(found.display(pixels), pixels / 255)
    assert [warning.split(":")[0] for warning in found.warnings] == ["window.full_range"]


def test_estimated_window_is_in_modality_units_without_padding():
    pixels = film(133, 147, bits=12) // 2 + 1000
    pixels[:40] = 4095
    ds = dataset(pixels, WindowWidth=None, WindowCenter=None, RescaleSlope="-2", RescaleIntercept="100")
    ds.PixelPaddingValue = 4095
    found = read(content(ds))
    low, high = np.percentile(pixels[40:], (0.1, 99.9))
    np.testing.assert_allclose(found.display.voi.bounds, (-2 * high + 100, -2 * low + 100))
    assert found.display.padding == (4095, 4095)
    assert (found.display(pixels)[:40] == 0).all()
    lut = _lut("ModalityLUTSequence", [4096, 0, 16], CURVE[::-1])
    ds = dataset(pixels, WindowWidth=None, WindowCenter=None, PixelPaddingValue=4095, **lut)
    expected = np.percentile(np.array(CURVE[::-1])[pixels[40:]], (0.1, 99.9))
    np.testing.assert_allclose(read(content(ds)).display.voi.bounds, expected)


@pytest.mark.requirement("R-INPUT-2")
def test_padding_is_read_with_the_sign_of_the_pixels():
    pixels = film(bits=16, signed=True)
    for vr, value in (("SS", -2000), ("US", 65536 - 2000)):
        ds = dataset(pixels, 16)
        ds.add_new(0x00280120, vr, value)
        ds.add_new(0x00280121, vr, value + 5)
        assert read(content(ds)).display.padding == (-2000, -1995)
    ds = dataset(bits=12)
    ds.add_new(0x00280120, "US", 63536)
    found = read(content(ds))
    assert found.display.padding is None
    assert found.warnings[0].startswith("pixel_padding.outside")


# --- acquisition ---


def test_fields():
    ds = dataset(ViewPosition="AP", PatientOrientation=["L", "F"], ImageLaterality="U", PatientAge="036Y")
    ds.PixelSpacing = [0.2, 0.3]
    ds.BodyPartExamined, ds.PresentationIntentType = "CHEST", "FOR PRESENTATION"
    found = read(content(ds))
    assert (found.view, found.patient_orientation, found.laterality) == ("AP", ("L", "F"), "U")
    assert (found.body_part, found.presentation_intent) == ("CHEST", "FOR PRESENTATION")
    assert (found.age, found.pixel_spacing, found.spacing_source) == (36, (0.2, 0.3), "PixelSpacing")
    assert (found.modality, found.sop_class_uid) == ("DX", uid.DigitalXRayImageStorageForPresentation)
    assert (found.photometric, found.origin) == ("MONOCHROME2", "dicom")
    bare = read(content(dataset()))
    assert (bare.view, bare.patient_orientation, bare.laterality, bare.age) == (None,) * 4
    assert (bare.pixel_spacing, bare.spacing_source, bare.body_part) == (None,) * 3


@pytest.mark.parametrize(
    ("age", "born", "years"),
    [
        ("007D", "", 7 / 365.25),
        ("004W", "", 28 / 365.25),
        ("018M", "", 1.5),
        ("101Y", "19900101", 101),
        ("", "19900101", 12418 / 365.25),
        ("000Y", "20060102", 17.9959),
        ("", "20250101", None),
        ("", "1990", None),
        ("", "", None),
    ],
)
def test_age(age, born, years):
    found = read(content(dataset(PatientAge=age, PatientBirthDate=born)) if born != "1990" else dataset()).age
    assert found == (None if years is None else pytest.approx(years, abs=1e-3))


def test_spacing_falls_back_to_the_detector():
    ds = dataset(ImagerPixelSpacing=[0.15, 0.15], PixelSpacing=[0, 0])
    found = read(content(ds))
    assert (found.pixel_spacing, found.spacing_source) == ((0.15, 0.15), "ImagerPixelSpacing")
    assert found.warnings[0].startswith("spacing.ignored")
    assert read(content(dataset(PixelSpacing=[-1, 1]))).pixel_spacing is None


def test_view_code_stands_in_for_view_position():
    from pydicom.sr.codedict import codes

    for concept, view in (
        (codes.cid4010.AnteroPosterior, "AP"),
        (codes.cid4010.PosteroAnterior, "PA"),
        (codes.cid4010.LeftLateral, "LL"),
        (codes.cid4010.RightLateral, "RL"),
    ):
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator = concept.value, "SCT"
        for syntax in NATIVE:
            assert read(content(dataset(ViewCodeSequence=[item]), syntax)).view == view
    assert read(content(dataset(ViewPosition="LL", ViewCodeSequence=[item]))).view == "LL"


@pytest.mark.parametrize("syntax", NATIVE, ids=lambda syntax: syntax.name)
def test_the_dataset_is_the_header_without_pixels(syntax):
    ds = dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.InstitutionName = "Zürich"
    ds.ReferencedStudySequence = [Dataset()]
    ds.ReferencedStudySequence[0].ReferencedSOPInstanceUID = "1.2.3"
    header = read(content(ds, syntax)).dataset
    assert header.InstitutionName == "Zürich"
    assert header.ReferencedStudySequence[0].ReferencedSOPInstanceUID == "1.2.3"
    assert "PixelData" not in header
    assert header.file_meta.TransferSyntaxUID == syntax
    if syntax != uid.ExplicitVRBigEndian:
        header.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        buffer = io.BytesIO()
        header.save_as(buffer, enforce_file_format=True)
        assert pydicom.dcmread(io.BytesIO(buffer.getvalue())).InstitutionName == "Zürich"


def test_a_dataset_is_not_changed():
    ds = pydicom.dcmread(io.BytesIO(content(dataset())))
    before = dict(ds._dict)
    header = read(ds).dataset
    assert ds._dict == before
    assert all(ds._dict[tag] is before[tag] for tag in before)
    assert "PixelData" in ds
    assert "PixelData" not in header


# --- real files ---


def _real_files():
    for root in (PYDICOM_FILES, MORE_FILES):
        for path in sorted(root.rglob("*")):
            if path.is_file() and path.suffix not in (".py", ".pyc", ".json", ".txt", ".md"):
                yield path


# What must come of every file of the SOP classes CR, DX and Secondary Capture, and of every other that says it is a
# radiograph: the reader's code, or the codes of the gate's header checks, none where the film is taken.
EXPECTED = {
    "charset_files/chrJapMulti*.dcm": "input.no_pixels",
    "charset_files/chrKoreanMulti.dcm": "input.no_pixels",
    "charset_files/chr*.dcm": ("gate.not_radiograph", "gate.size"),
    "test_files/dicomdirtests/77654033/CR1/6154": ("gate.body_part", "gate.view", "gate.size", "gate.spacing"),
    "test_files/dicomdirtests/77654033/CR[23]/*": ("gate.body_part", "gate.size", "gate.spacing"),
    "RG1_*.dcm": (),
    "RG3_*.dcm": ("gate.body_part",),
    "mlut_18.dcm": ("gate.not_radiograph",),
    "vlut_04.dcm": ("gate.not_radiograph",),
    "test_files/image_dfl.dcm": ("gate.not_radiograph",),
    # A codestream whose width was overwritten: 3.7 thousand million columns.
    "test_files/JPEG2000-embedded-sequence-delimiter.dcm": "input.too_large",
    "test_files/JPGExtended.dcm": ("gate.not_radiograph", "gate.body_part", "gate.size", "gate.spacing"),
    "test_files/JPEG2000.dcm": ("gate.not_radiograph", "gate.body_part", "gate.size", "gate.spacing"),
    "test_files/JPEG-lossy.dcm": ("gate.not_radiograph", "gate.body_part", "gate.size", "gate.spacing"),
    "JPEG*.dcm": ("gate.not_radiograph", "gate.body_part", "gate.size", "gate.spacing"),
    "test_files/JPEGLSNearLossless_*.dcm": ("gate.not_radiograph", "gate.size"),
    "test_files/GDCMJ2K_TextGBR.dcm": "input.colour",
    "test_files/SC_*.dcm": "input.colour",
    "SC_*.dcm": "input.colour",
    "OT-PAL-8-face.dcm": "input.colour",
}


def _radiograph_like():
    import warnings

    for root in (PYDICOM_FILES, MORE_FILES):
        for path in _real_files():
            if path.is_relative_to(root):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    try:
                        ds = pydicom.dcmread(path, stop_before_pixels=True, force=True)
                    except NotImplementedError:
                        continue
                    sop_class, modality = str(ds.get("SOPClassUID", "")), ds.get("Modality")
                projection = re.fullmatch(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.(1(\..*)?|7)", sop_class)
                if projection or modality in ("CR", "DX", "RG", "MG", "RF", "XA"):
                    yield path.relative_to(root), path


def test_every_radiograph_of_pydicom_is_taken_or_refused_with_the_right_code():
    met = set()
    for name, path in _radiograph_like():
        pattern = next(pattern for pattern in EXPECTED if fnmatch.fnmatchcase(str(name), pattern))
        met.add(pattern)
        try:
            checks = check_header(read(path), GatePolicy())
            found = tuple(check.code for check in checks if check.status == "fail")
        except InputError as error:
            found = error.code
        assert found == EXPECTED[pattern], name
    assert met == set(EXPECTED)


@pytest.mark.requirement("R-INPUT-3")
def test_every_pydicom_file_reads_or_is_refused(capfd):
    read_files, compared = 0, 0
    for path in _real_files():
        try:
            found = read(path)
        except InputError:
            continue
        read_files += 1
        compared += _compare_with_pydicom(path, found)
    assert capfd.readouterr() == ("", "")
    assert read_files >= 80
    assert compared >= 60


def _compare_with_pydicom(path, found):
    """Stored pixels as pydicom decodes them: JPEG 2000 by pylibjpeg-openjpeg, JPEG-LS by pyjpegls, RLE by itself."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = pydicom.dcmread(path)
        try:
            expected = pydicom.pixels.pixel_array(ds)
        except (RuntimeError, AttributeError, NotImplementedError):
            return 0
    if ds.file_meta.TransferSyntaxUID in (uid.JPEGExtended12Bit, uid.JPEGBaseline8Bit):
        return 0  # lossy: two decoders differ by rounding
    np.testing.assert_array_equal(found.pixels, expected, err_msg=path.name)
    return 1


@pytest.mark.requirement("R-INPUT-1")
def test_four_encodings_of_a_real_chest_film():
    first = read(MORE_FILES / "RG1_UNCR.dcm")
    assert first.shape == (1955, 1841)
    assert first.photometric == "MONOCHROME1"
    assert first.display.invert
    assert first.pixel_spacing is None
    lossless = read(MORE_FILES / "RG1_J2KR.dcm")
    np.testing.assert_array_equal(lossless.pixels, first.pixels)
    for name in ("RG1_UNCI.dcm", "RG1_J2KI.dcm"):
        other = read(MORE_FILES / name)
        assert other.display.voi == first.display.voi == Window(15000, 30000)
        difference = np.abs(other.pixels.astype(int) - first.pixels)
        assert difference.max() < 600
    np.testing.assert_allclose(
        first.display(first.pixels), _highdicom(pydicom.dcmread(MORE_FILES / "RG1_UNCR.dcm")), atol=2e-5
    )
    assert read(MORE_FILES / "RG3_J2KR.dcm").pixels.max() < 1024


def test_real_luts():
    voi = read(MORE_FILES / "vlut_04.dcm")
    assert isinstance(voi.display.voi, LookupTable)
    np.testing.assert_array_less(-1e-9, voi.display.voi.entries)
    modality = read(MORE_FILES / "mlut_18.dcm")
    assert isinstance(modality.display.modality_lut, LookupTable)
    ds = pydicom.dcmread(MORE_FILES / "mlut_18.dcm")
    expected = pydicom.pixels.apply_modality_lut(ds.pixel_array, ds)
    np.testing.assert_array_equal(modality.display.modality_lut(modality.pixels.astype(float)), expected)


# --- refusals ---


def test_objects_that_are_no_gray_film():
    colour = dataset(SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    assert code(read, content(colour)) == "input.colour"
    assert code(read, content(dataset(PhotometricInterpretation="PALETTE COLOR"))) == "input.colour"
    assert code(read, content(dataset(NumberOfFrames=2))) == "input.multi_frame"
    assert code(read, content(dataset(PixelData=None))) == "input.no_pixels"
    assert code(read, dataset(PixelData=None)) == "input.no_pixels"
    assert code(read, content(dataset(PhotometricInterpretation=None))) == "input.corrupt"
    assert code(read, content(dataset(NumberOfFrames=1))) == "no error"
    floating = dataset(PixelData=None, FloatPixelData=bytes(33 * 47 * 4))
    assert code(read, content(floating)) == "input.unsupported"
    for allocated in (1, 12, 32, 64):
        assert code(read, dataset(BitsAllocated=allocated)) == "input.unsupported"
    assert code(read, dataset(BitsStored=17)) == "input.corrupt"
    assert code(read, dataset(Rows=None)) == "input.corrupt"
    rgb = imagecodecs.jpeg8_encode(np.dstack([film(bits=8)] * 3))
    assert code(read, encapsulated(dataset(bits=8), rgb, uid.JPEGBaseline8Bit)) == "input.colour"
    two = dataset(bits=8)
    two.PixelData = encapsulate([imagecodecs.jpeg8_encode(film(bits=8))] * 2)
    two.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    assert code(read, two) == "input.multi_frame"


def test_unknown_transfer_syntax_is_named():
    ds = dataset()
    ds.file_meta.TransferSyntaxUID = uid.MPEG2MPML
    with pytest.raises(InputError, match=r"1\.2\.840\.10008\.1\.2\.4\.100") as caught:
        read(ds)
    assert caught.value.code == "input.unsupported"


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        (30000, 30000, "input.too_large"),
        (65535, 1, "input.too_large"),
        (0, 47, "input.corrupt"),
        (34, 47, "input.truncated"),
        (8192, 8192, "input.truncated"),
    ],
)
def test_sizes(rows, columns, expected):
    assert code(read, content(dataset(Rows=rows, Columns=columns))) == expected


@pytest.mark.requirement("R-INPUT-4")
def test_negative_sizes_and_excess_pixels():
    ds = dataset()
    ds.add_new(0x00280010, "SS", -33)
    assert code(read, content(ds)) == "input.corrupt"
    assert code(read, content(dataset(film(133, 147), Rows=20))) == "input.corrupt"


@pytest.mark.parametrize("syntax", NATIVE, ids=lambda syntax: syntax.name)
@pytest.mark.requirement("R-INPUT-3")
def test_dicom_that_ends_early_is_never_a_film(syntax):
    ds = dataset()
    ds.ReferencedStudySequence = [Dataset()]
    ds.ReferencedStudySequence[0].ReferencedSOPInstanceUID = "1.2.3"
    file = content(ds, syntax)
    for end in (*range(133, 800, 7), *range(800, len(file), 301), len(file) - 1):
        found = code(read, file[:end])
        if end < len(file) - 1:
            assert found in ("input.truncated", "input.no_pixels"), end
    assert code(read, file[: len(file) - 6]) == "input.truncated"


@pytest.mark.parametrize(("syntax", "encoder", "encode"), LOSSLESS, ids=lambda value: str(value)[-22:])
@pytest.mark.requirement("R-INPUT-3")
def test_cut_codestreams_are_never_films(syntax, encoder, encode):
    pixels = film(133, 147, bits=12)
    stream = bytes(encode(pixels, 12))
    file = encapsulated(dataset(pixels), stream, syntax)
    for end in range(len(file) - len(stream), len(file), 1999):
        assert code(read, file[:end]) in ("input.truncated", "input.no_pixels")
    # Cut inside an intact file.
    for end in range(16, len(stream) - 16, max(1, len(stream) // 9)):
        cut = stream[:end] + b"\0" * (end % 2)
        assert code(read, encapsulated(dataset(pixels), cut, syntax)) in ("input.truncated", "input.corrupt"), end


def test_fill_bytes_before_the_end_of_a_jpeg_are_no_fault():
    pixels = film(bits=12)
    pixels[:, -6:] = 0  # what could have been filled in by the decoder
    stream = imagecodecs.jpeg8_encode(pixels, lossless=True, bitspersample=12)
    assert stream.endswith(b"\xff\xd9")
    filled = stream[:-2] + b"\xff\xff\xff\xd9"
    file = encapsulated(dataset(pixels), filled + b"\0" * (len(filled) % 2), uid.JPEGLosslessSV1)
    np.testing.assert_array_equal(read(file).pixels, pixels)


@pytest.mark.requirement("R-INPUT-3")
def test_codestream_that_contradicts_the_header():
    stream = _openjpeg(film(bits=12), 12)
    for attributes in ({"Rows": 32}, {"Columns": 48}, {"Rows": 47, "Columns": 33}):
        ds = dataset(**attributes)
        assert code(read, encapsulated(ds, stream, uid.JPEG2000Lossless)) == "input.corrupt"
    assert code(read, encapsulated(dataset(bits=8), stream, uid.JPEG2000Lossless)) == "input.corrupt"
    assert code(read, encapsulated(dataset(), b"not a codestream", uid.JPEG2000Lossless)) == "input.corrupt"
    assert code(read, encapsulated(dataset(), _rle(film(bits=8)), uid.RLELossless)) == "input.corrupt"
    assert code(read, encapsulated(dataset(), _rle(film(20, 47)), uid.RLELossless)) == "input.truncated"


def _deflated(plain):
    file = content(dataset(), uid.DeflatedExplicitVRLittleEndian)
    start = 144 + int.from_bytes(file[140:144], "little")
    machine = zlib.compressobj(9, zlib.DEFLATED, -15)
    return file[:start] + machine.compress(plain) + machine.flush()


@pytest.mark.requirement("R-INPUT-4")
def test_deflate_bomb_is_refused_in_bounded_memory():
    bomb = _deflated(bytes(300 << 20))
    assert len(bomb) < 400_000
    tracemalloc.start()
    try:
        assert code(read, bomb) == "input.too_large"
        assert tracemalloc.get_traced_memory()[1] < 120 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.requirement("R-INPUT-4")
def test_nested_sequences_are_refused():
    def explicit(depth):
        start = b"\x40\x00\x60\xa7SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
        end = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
        return start * depth + end * depth

    def implicit(depth):
        body = b""
        for _ in range(depth):
            item = b"\xfe\xff\x00\xe0" + len(body).to_bytes(4, "little") + body
            body = b"\x08\x00\x40\x11" + len(item).to_bytes(4, "little") + item
        return body

    file = content(dataset())
    place = file.index(b"\x28\x00\x02\x00US")
    for depth, expected in ((3, "no error"), (14, "no error"), (40, "input.corrupt"), (50_000, "input.corrupt")):
        assert code(read, file[:place] + explicit(depth) + file[place:]) == expected
    file = content(dataset(), uid.ImplicitVRLittleEndian)
    place = file.index(b"\x28\x00\x02\x00\x02\0\0\0")
    for depth, expected in ((3, "no error"), (2000, "input.corrupt")):
        assert code(read, file[:place] + implicit(depth) + file[place:]) == expected


def test_element_bombs_and_broken_sequences():
    file = content(dataset())
    place = file.index(b"\x28\x00\x02\x00US")
    many = b"\x21\x00\x10\x00LO\0\0" * 150_000
    assert code(read, file[:place] + many + file[place:]) == "input.too_large"
    junk = b"\x21\x00\x10\x00SQ\0\0\x0c\0\0\0" + b"not an item!"
    found = read(file[:place] + junk + file[place:])
    np.testing.assert_array_equal(found.pixels, film(bits=12))
    assert found.warnings[0].startswith("dicom.sequence: (0021,0010)")


def test_a_data_set_without_preamble_reads():
    for syntax in (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian):
        file = content(dataset(), syntax)
        meta_end = 144 + int.from_bytes(file[140:144], "little")
        np.testing.assert_array_equal(read(file[132:]).pixels, film(bits=12))
        np.testing.assert_array_equal(read(file[meta_end:]).pixels, film(bits=12))


def test_a_preamble_that_looks_like_tiff_is_still_dicom():
    file = b"II*\0" + content(dataset())[4:]
    assert read(file).origin == "dicom"


@pytest.mark.requirement("R-INPUT-3")
def test_damaged_files_raise_nothing_else(capfd):
    random = np.random.default_rng(2)
    pixels = film(bits=12)
    ds = dataset(pixels, **_lut("VOILUTSequence", [4096, 0, 16], CURVE))
    ds.ViewCodeSequence = [Dataset()]
    files = [content(dataset(pixels), syntax) for syntax in NATIVE]
    files += [content(ds), *(encapsulated(dataset(pixels), bytes(e(pixels, 12)), s) for s, _, e in LOSSLESS)]
    for file in files:
        for _ in range(80):
            damaged = bytearray(file)
            for position in random.integers(132, min(len(file), 1400), 3):
                damaged[position] = random.integers(256)
            assert code(read, bytes(damaged)).startswith(("input.", "no error"))
    for _ in range(50):
        noise = b"\0" * 128 + b"DICM" + random.integers(0, 256, 400, np.uint8).tobytes()
        assert code(read, noise).startswith("input.")
    assert capfd.readouterr() == ("", "")


def test_damaged_datasets_raise_nothing_else():
    for attribute, value in (
        ("Rows", "abc"), ("Rows", None), ("BitsAllocated", "x"), ("WindowCenter", "?"), ("PatientAge", "old"),
        ("PixelSpacing", "a\\b"), ("PatientOrientation", "SECRET"), ("PixelPaddingValue", "q"),
    ):  # fmt: skip
        ds = dataset()
        element = pydicom.DataElement(pydicom.tag.Tag(attribute), "UN", b"")
        element._value = value
        ds[attribute] = element
        if code(read, ds) == "no error":
            assert not any("SECRET" in warning for warning in read(ds).warnings)
        else:
            assert attribute in ("Rows", "BitsAllocated")


def test_threads_read_without_warnings_or_mixing():
    films = [film(bits=12, seed=seed) for seed in range(4)]
    files = [content(dataset(pixels, SpecificCharacterSet="ISO_IR 100")) for pixels in films]
    files = [file.replace(b"ISO_IR 100", b"NONSENSE  ") for file in files]
    assert read(files[0]).dataset.Modality == "DX"
    wrong: list[int] = []

    def work(index):
        for _ in range(20):
            if not np.array_equal(read(files[index]).pixels, films[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_encapsulated_pixels_under_a_native_syntax_are_corrupt():
    pixels = film(bits=12)
    file = encapsulated(dataset(pixels), pixels.tobytes(), uid.JPEGLSLossless)
    renamed = file.replace(b"1.2.840.10008.1.2.4.80", b"1.2.840.10008.1.2.1\0\0\0")
    assert renamed != file
    assert code(read, renamed) == "input.corrupt"


def test_a_rescale_that_leaves_nothing_is_corrupt():
    ds = dataset(WindowCenter=None, WindowWidth=None, RescaleSlope="1e-11", RescaleIntercept="1e11")
    assert code(read, content(ds)) == "input.corrupt"


def test_a_dataset_with_values_of_a_wrong_type_is_corrupt():
    ds = dataset()
    ds.add_new(0x00283010, "US", 5)  # VOI LUT Sequence
    assert code(read, ds) == "input.corrupt"
