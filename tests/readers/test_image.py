"""PNG, JPEG and TIFF: values against the arrays they were encoded from, and every refusal with its code."""

from __future__ import annotations

import io
import os
import re
import struct
import threading
import zlib

import imagecodecs
import numpy as np
import pytest
from dicom_files import ALL_ENCODERS, code, film, png, png_chunk
from PIL import Image

from ptxsdk.errors import InputError
from ptxsdk.readers import read
from ptxsdk.readers.image import JPEG_CHROMA

GRAY8, GRAY16 = film(bits=8), film(bits=16)

# The decoders read them; what is missing before 2026 is the tests' encoder.
needs_tiff_encoder = pytest.mark.skipif(not ALL_ENCODERS, reason="imagecodecs has no TIFF encoder for this test")


@pytest.mark.parametrize("pixels", [GRAY8, GRAY16, GRAY8[:1, :5], np.asfortranarray(GRAY16)])
@pytest.mark.requirement("R-INPUT-1")
def test_gray_png_is_exact(pixels):
    read_back = read(imagecodecs.png_encode(np.ascontiguousarray(pixels)))
    np.testing.assert_array_equal(read_back.pixels, pixels)
    assert read_back.pixels.dtype == pixels.dtype
    assert read_back.origin == "image"
    assert read_back.age is None


def test_eight_bits_show_their_full_range_and_sixteen_are_estimated():
    narrow = read(imagecodecs.png_encode(GRAY8))
    np.testing.assert_allclose(narrow.display(narrow.pixels), GRAY8 / 255, atol=1e-12)
    assert narrow.warnings == ()
    wide = read(imagecodecs.png_encode(GRAY16))
    assert wide.warnings[0].startswith("window.estimated: ")
    low, high = np.percentile(GRAY16, (0.1, 99.9))
    np.testing.assert_allclose(wide.display(GRAY16), np.clip((GRAY16 - low) / (high - low), 0, 1), atol=1e-9)


@pytest.mark.parametrize("pixels", [GRAY8, GRAY16])
def test_equal_channels_and_opaque_alpha_are_gray(pixels):
    opaque = np.full_like(pixels, np.iinfo(pixels.dtype).max)
    for channels in ([pixels, opaque], [pixels] * 3, [pixels] * 3 + [opaque]):
        np.testing.assert_array_equal(read(imagecodecs.png_encode(np.dstack(channels))).pixels, pixels)


def test_other_pngs_are_refused_by_name():
    other = np.roll(GRAY8, 1)
    glass = GRAY8.copy()
    assert code(read, imagecodecs.png_encode(np.dstack([GRAY8, GRAY8, other]))) == "input.colour"
    assert code(read, imagecodecs.png_encode(np.dstack([GRAY8, glass]))) == "input.unsupported"
    assert code(read, png(8, 8, depth=1)) == "input.unsupported"
    assert code(read, png(8, 8, kind=3)) == "input.unsupported"
    assert code(read, png(8, 8, extra=png_chunk(b"tRNS", b"\0\0"))) == "input.unsupported"
    header = struct.pack(">LLBBBBB", 4, 4, 8, 0, 0, 0, 0)
    assert code(read, png(8, 8, extra=png_chunk(b"IHDR", header))) == "input.corrupt"
    assert code(read, png(8, 8, extra=png_chunk(b"NEWS", b""))) == "input.corrupt"
    assert code(read, png(8, 8, extra=png_chunk(b"acTL", b"\0\0\0\2\0\0\0\0"))) == "input.multi_frame"


def test_interlaced_png_is_exact():
    # Adam7 passes of an 8 x 8 image, written by hand.
    pixels = film(8, 8, bits=8)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    body = b"".join(b"".join(b"\0" + row.tobytes() for row in pixels[y::dy, x::dx]) for y, x, dy, dx in passes)
    header = struct.pack(">LLBBBBB", 8, 8, 8, 0, 0, 0, 1)
    file = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(body))
    np.testing.assert_array_equal(read(file + png_chunk(b"IEND", b"")).pixels, pixels)


@pytest.mark.requirement("R-INPUT-3")
def test_png_that_ends_early_is_never_a_film():
    file = imagecodecs.png_encode(GRAY16)
    for end in (*range(8, len(file), 97), len(file) - 12, len(file) - 1):
        assert code(read, file[:end]) == "input.truncated", end
    short = png(*GRAY8.shape, body=zlib.compress(b"\0" * 500))
    assert code(read, short) in ("input.corrupt", "input.truncated")


@pytest.mark.requirement("R-INPUT-3")
def test_png_with_a_flipped_bit_is_corrupt():
    file = bytearray(imagecodecs.png_encode(GRAY16))
    file[len(file) // 2] ^= 4
    assert code(read, bytes(file)) == "input.corrupt"


@pytest.mark.requirement("R-INPUT-4")
def test_sizes_are_refused_before_decoding(monkeypatch):
    def never(*_, **__):
        raise AssertionError("decoded")

    for name in ("png_decode", "jpeg8_decode", "tiff_decode"):
        monkeypatch.setattr(imagecodecs, name, never)
    here = {"decode": "in_process"}
    assert code(read, png(30000, 30000), **here) == "input.too_large"
    assert code(read, png(8000, 8000, depth=16, kind=6), **here) == "input.too_large"
    assert code(read, png(0, 100), **here) == "input.corrupt"
    jpeg = bytearray(imagecodecs.jpeg8_encode(GRAY8))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 30000, 30000)
    assert code(read, bytes(jpeg), **here) == "input.too_large"
    assert code(read, tiff({256: 30000, 257: 30000, 258: 8, 262: 1, 273: 8, 279: 10}), **here) == "input.too_large"


@pytest.mark.parametrize("level", [100, 90, 50])
def test_jpeg_equals_a_second_decoder(level):
    import cv2

    file = imagecodecs.jpeg8_encode(GRAY8, level=level)
    found = read(file)
    expected = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.abs(found.pixels.astype(int) - expected).max() <= 1
    assert found.display.voi.bounds == (0, 255)


def test_gray_saved_as_colour_jpeg_is_gray_and_a_photo_is_not():
    gray = imagecodecs.jpeg8_encode(np.dstack([GRAY8] * 3), level=95)
    assert np.abs(read(gray).pixels.astype(int) - GRAY8).max() < 25
    assert read(gray).pixels.ndim == 2
    tinted = np.dstack([GRAY8 // 2 + 20, GRAY8 // 2, GRAY8 // 2])
    assert code(read, imagecodecs.jpeg8_encode(tinted, level=95)) == "input.colour"
    assert JPEG_CHROMA < 20
    for subsampling in ("444", "422", "420"):
        read(imagecodecs.jpeg8_encode(np.dstack([GRAY8] * 3), level=30, subsampling=subsampling))


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.requirement("R-INPUT-1")
def test_lossless_jpeg_is_exact(bits):
    pixels = film(bits=bits)
    file = imagecodecs.jpeg8_encode(pixels, lossless=True, bitspersample=bits)
    np.testing.assert_array_equal(read(file).pixels, pixels)


@pytest.mark.parametrize("options", [{"level": 90}, {"lossless": True}])
@pytest.mark.requirement("R-INPUT-3")
def test_jpeg_that_ends_early_is_never_a_film(options):
    pixels = film(133, 147, bits=8)
    file = imagecodecs.jpeg8_encode(pixels, **options)
    for end in range(3, len(file), 211):
        assert code(read, file[:end]) == "input.truncated", end
    # A mended end marker does not hide it.
    start = file.index(b"\xff\xda") + 20
    for end in range(start, len(file) - 400, 307):
        cut = file[:end].rstrip(b"\xff") + b"\xff\xd9"
        assert code(read, cut) == "input.truncated", end


def by_pillow(pixels, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def scan_data(file):
    """Where the data of each scan of a JPEG start and end."""
    starts = [at.end() for at in re.finditer(rb"\xff\xda\x00(\x08|\x0c)", file, re.DOTALL)]
    starts = [start - 2 + struct.unpack_from(">H", file, start - 2)[0] for start in starts]
    return [(start, re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]").search(file, start).start()) for start in starts]


WAVE = film(133, 147, bits=8)
GRAINY = np.random.default_rng(5).integers(0, 256, (133, 147), np.uint8)


@pytest.mark.parametrize("pixels", [WAVE, GRAINY, np.dstack([GRAINY] * 3)], ids=["smooth", "grainy", "colour"])
@pytest.mark.requirement("R-INPUT-3")
def test_a_progressive_jpeg_that_lacks_something_is_never_a_film(pixels):
    file = by_pillow(pixels, progressive=True)
    whole = read(file).pixels
    scans = scan_data(file)
    assert len(scans) > 5
    for start, end in scans:
        for cut in (start, (start + end) // 2):
            cut -= file[cut - 1] == 0xFF
            assert code(read, file[:cut] + b"\xff\xd9") == "input.truncated"  # and all that follows
            alone = file[:cut] + file[end:]  # and nothing else; of a gray film the scans of colour say nothing
            assert code(read, alone) == "input.truncated" or np.array_equal(read(alone).pixels, whole)
    header = file.rindex(b"\xff\xda", 0, scans[2][0])
    assert code(read, file[:header] + file[scans[2][1] :]) in ("input.truncated", "input.corrupt")


@pytest.mark.parametrize("pixels", [WAVE, GRAINY, np.dstack([GRAINY] * 3)], ids=["smooth", "grainy", "colour"])
@pytest.mark.parametrize("options", [{"restart_marker_rows": 1}, {"restart_marker_blocks": 7}], ids=["rows", "blocks"])
@pytest.mark.requirement("R-INPUT-3")
def test_a_jpeg_that_lacks_a_restart_interval_is_never_a_film(pixels, options):
    file = by_pillow(pixels, **options)
    start, end = scan_data(file)[0]
    assert read(file).shape == (133, 147)
    marks = [start, *(at.start() for at in re.finditer(rb"\xff[\xd0-\xd7]", file)), end]
    for number in (0, len(marks) // 2, len(marks) - 2):
        first, last = marks[number] + 2 * (number > 0), marks[number + 1]
        assert code(read, file[:first] + file[last:]) == "input.truncated", number  # emptied
        half = (first + last) // 2
        half -= file[half - 1] == 0xFF
        assert code(read, file[:half] + file[last:]) == "input.truncated", number
        assert code(read, file[:last] + b"\xff\xd9") == ("input.truncated" if last < end else "no error"), number
        assert code(read, file[: marks[number]] + file[last:]) == "input.truncated", number  # with its mark
    assert code(read, file[:end] + b"\xff\xd0" + file[end:]) == "input.truncated"
    swapped = file[: marks[1] + 1] + file[marks[2] + 1 : marks[2] + 2] + file[marks[1] + 2 :]
    assert code(read, swapped) == "input.truncated"


@pytest.mark.parametrize("options", [{"level": 90}, {"lossless": True}])
@pytest.mark.requirement("R-INPUT-3")
def test_what_a_jpeg_decoder_stops_at_is_refused(options):
    file = bytes(imagecodecs.jpeg8_encode(GRAINY, **options))
    start, end = scan_data(file)[0]
    half = (start + end) // 2
    half -= file[half - 1] == 0xFF
    for mark in (b"\xff\x01", b"\xff\x02", b"\xff\xbf", b"\xff\xd0", b"\xff\xd8"):
        assert code(read, file[:half] + mark + file[half:]) in ("input.corrupt", "input.truncated")
        assert code(read, file[:half] + mark + b"\xff\xd9") in ("input.corrupt", "input.truncated")
    stuffed = file.index(b"\xff\0", half)
    assert code(read, file[: stuffed + 1] + b"\1" + file[stuffed + 2 :]) == "input.corrupt"  # one bit
    hidden = file[2:half] + b"\xff\xd9"  # in what is no segment, for a decoder
    assert code(read, b"\xff\xd8\xff\0" + struct.pack(">H", len(hidden) + 2) + hidden + file[2:]) == "input.corrupt"
    frame = file[file.index(b"\xff\xc3" if "lossless" in options else b"\xff\xc0") :][:13]
    assert code(read, file[:2] + frame + file[2:]) == "input.corrupt"


def test_bytes_after_the_jpeg_do_not_matter():
    file = imagecodecs.jpeg8_encode(GRAY8, level=90)
    np.testing.assert_array_equal(read(file + b"trailer" * 9).pixels, read(file).pixels)


def test_a_film_with_a_flat_corner_is_whole():
    pixels = film(133, 147, bits=8)
    pixels[-40:] = 0
    for options in ({"level": 100}, {"lossless": True}):
        read(imagecodecs.jpeg8_encode(pixels, **options))


def test_turned_films_are_refused():
    file = imagecodecs.jpeg8_encode(GRAY8)
    for orientation, expected in ((1, "no error"), (2, "input.unsupported"), (6, "input.unsupported")):
        exif = b"Exif\0\0" + struct.pack("<2sHLHHHLLL", b"II", 42, 8, 1, 274, 3, 1, orientation, 0)
        segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
        assert code(read, file[:2] + segment + file[2:]) == expected
        late = b"\xff\xfe\0\x08Exif\0\0" + 3 * (b"\xff\xe2" + struct.pack(">H", 40_002) + bytes(40_000)) + segment
        assert code(read, file[:2] + late + file[2:]) == expected
        assert code(read, png(8, 8, extra=png_chunk(b"eXIf", exif[6:]))) == expected
    assert code(read, tiff({**TIFF, 274: 4})) == "input.unsupported"


TIFF = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: 64}


def tiff(tags, *, following=0, order="<", body=bytes(64)):
    """An uncompressed TIFF with any tags, true or not."""
    magic = b"II*\0" if order == "<" else b"MM\0*"
    entries = b"".join(struct.pack(order + "HHLL", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    directory = struct.pack(order + "H", len(tags)) + entries + struct.pack(order + "L", following)
    return magic + struct.pack(order + "L", 8 + len(body)) + body + directory


@needs_tiff_encoder
@pytest.mark.parametrize("compression", [1, 5, 8, 32773])
@pytest.mark.parametrize("pixels", [GRAY8, GRAY16, film(bits=16, signed=True)], ids=["u1", "u2", "i2"])
@pytest.mark.requirement("R-INPUT-1")
def test_tiff_is_exact(pixels, compression):
    for byteorder in ("<", ">"):
        # The encoder swaps the bytes of its argument.
        file = imagecodecs.tiff_encode(pixels.copy(), compression=compression, byteorder=byteorder)
        found = read(file).pixels
        np.testing.assert_array_equal(found, pixels)
        assert found.dtype == pixels.dtype


@needs_tiff_encoder
def test_tiff_polarity_tiles_and_channels():
    white = read(imagecodecs.tiff_encode(GRAY8, photometric="miniswhite"))
    np.testing.assert_array_equal(white.pixels, GRAY8)
    np.testing.assert_allclose(white.display(GRAY8), 1 - GRAY8 / 255, atol=1e-12)
    tiled = imagecodecs.tiff_encode(GRAY16, tile=(16, 16), compression="lzw")
    np.testing.assert_array_equal(read(tiled).pixels, GRAY16)
    gray = imagecodecs.tiff_encode(np.dstack([GRAY8] * 3), photometric="rgb")
    np.testing.assert_array_equal(read(gray).pixels, GRAY8)
    colour = np.dstack([GRAY8, GRAY8, np.roll(GRAY8, 1)])
    assert code(read, imagecodecs.tiff_encode(colour, photometric="rgb")) == "input.colour"


@needs_tiff_encoder
def test_other_tiffs_are_refused_by_name():
    assert read(tiff(TIFF)).shape == (8, 8)
    assert code(read, tiff(TIFF, following=8)) == "input.multi_frame"
    assert code(read, tiff({**TIFF, 262: 3})) == "input.unsupported"
    assert code(read, tiff({**TIFF, 259: 7})) == "input.unsupported"
    assert code(read, tiff({**TIFF, 258: 12})) == "input.unsupported"
    assert code(read, tiff({**TIFF, 339: 3})) == "input.unsupported"
    assert code(read, tiff({**TIFF, 279: 63})) == "input.truncated"
    assert code(read, tiff({**TIFF, 273: 4000})) == "input.truncated"
    assert code(read, tiff({256: 8, 257: 8, 258: 8, 262: 1})) == "input.corrupt"
    assert code(read, imagecodecs.tiff_encode(GRAY8, bigtiff=True)) == "input.unsupported"


@pytest.mark.requirement("R-INPUT-3")
def test_tiff_tags_that_decoders_differ_over_are_refused():
    for tag, value in ((274, 3), (262, 0), (259, 7), (258, 8), (277, 1)):
        plain = tiff({**TIFF, tag: value})
        entry = plain.rindex(struct.pack("<HHL", tag, 4, 1))
        for kind, count in ((8, 1), (9, 1), (16, 1), (4, 0), (4, 1 << 20)):  # SSHORT, SLONG, LONG8
            changed = plain[:entry] + struct.pack("<HHL", tag, kind, count) + plain[entry + 8 :]
            assert code(read, changed) == "input.unsupported", (tag, kind, count)
    twice = bytearray(tiff({**TIFF, 263: 0}))  # the Photometric Interpretation once more
    struct.pack_into("<H", twice, twice.rindex(struct.pack("<HHL", 263, 4, 1)), 262)
    assert code(read, bytes(twice)) == "input.unsupported"


@needs_tiff_encoder
@pytest.mark.parametrize("compression", [1, 5, 8, 32773])
@pytest.mark.requirement("R-INPUT-3")
def test_tiff_that_ends_early_is_never_a_film(compression):
    file = imagecodecs.tiff_encode(GRAY16, compression=compression)
    for end in range(8, len(file), 61):
        found = code(read, file[:end])
        assert found in ("input.truncated", "input.corrupt", "no error"), end
        if found == "no error":  # only bytes without meaning were cut
            np.testing.assert_array_equal(read(file[:end]).pixels, GRAY16)


@needs_tiff_encoder
@pytest.mark.requirement("R-INPUT-3")
def test_damaged_images_raise_nothing_else(capfd):
    random = np.random.default_rng(1)
    files = [
        imagecodecs.png_encode(GRAY16),
        imagecodecs.jpeg8_encode(GRAY8, level=80),
        imagecodecs.jpeg8_encode(GRAY16, lossless=True),
        imagecodecs.tiff_encode(GRAY16, compression="lzw"),
        imagecodecs.tiff_encode(GRAY8),
    ]
    for file in files:
        for _ in range(60):
            damaged = bytearray(file)
            for position in random.integers(0, min(len(file), 700), 3):
                damaged[position] = random.integers(256)
            assert code(read, bytes(damaged)).startswith(("input.", "no error"))
    assert capfd.readouterr() == ("", "")


# --- sources ---


def test_every_source_gives_the_same_film(tmp_path):
    file = imagecodecs.png_encode(GRAY8)
    path = tmp_path / "film.dcm"  # the name does not decide
    path.write_bytes(file)
    for source in (path, str(path), file, bytearray(file), memoryview(file)):
        np.testing.assert_array_equal(read(source).pixels, GRAY8)
    film_read = read(path)
    assert read(film_read) is film_read
    array = read(GRAY8)
    assert array.origin == "array"
    np.testing.assert_array_equal(array.pixels, GRAY8)


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(tmp_path, monkeypatch):
    """Nothing that was looked at before the file was opened counts."""
    (tmp_path / "file").write_bytes(b"\0" * 200)
    as_a_file = (tmp_path / "file").stat()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(type(tmp_path), "stat", lambda *_, **__: as_a_file)
    monkeypatch.setattr(os, "stat", lambda *_, **__: as_a_file)
    found = []
    reading = threading.Thread(target=lambda: found.append(code(read, tmp_path / "pipe")), daemon=True)
    reading.start()
    reading.join(20)
    assert found == ["input.unreadable"]


def test_sources_that_are_no_film(tmp_path):
    assert code(read, tmp_path / "secret.dcm") == "input.not_found"
    assert code(read, tmp_path / "a" / "\0") == "input.not_found"
    assert code(read, tmp_path) == "input.is_directory"
    os.mkfifo(tmp_path / "pipe")
    assert code(read, tmp_path / "pipe") == "input.unreadable"
    (tmp_path / "empty").write_bytes(b"")
    assert code(read, tmp_path / "empty") == "input.empty"
    assert code(read, tmp_path / "empty" / "below") == "input.not_found"
    assert code(read, b"") == "input.empty"
    (tmp_path / "text.txt").write_text("A report on a film, long enough. " * 20)
    assert code(read, tmp_path / "text.txt") == "input.unknown_format"
    assert code(read, b"\x89P") == "input.unknown_format"
    for source in (None, 5, [GRAY8], {"pixels": GRAY8}, object()):
        assert code(read, source) == "input.type"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path):
    path = tmp_path / "film.png"
    path.write_bytes(imagecodecs.png_encode(GRAY8))
    path.chmod(0)
    assert code(read, path) == "input.unreadable"


@pytest.mark.requirement("R-INPUT-5")
def test_arrays_that_are_no_film():
    assert code(read, GRAY8.astype(np.int32)) == "input.dtype"
    assert code(read, GRAY8.astype(">u2")) == "input.dtype"
    assert code(read, GRAY8.astype(np.float64)) == "input.dtype"
    assert code(read, GRAY8[np.newaxis]) == "input.shape"
    assert code(read, np.empty((0, 4), np.uint8)) == "input.shape"
    assert code(read, np.full((4, 4), np.nan, np.float32)) == "input.not_finite"
    assert code(read, np.full((4, 4), 7, np.float32)) == "input.range"


def test_gpu_arrays_are_named():
    class OnTheGpu:
        __cuda_array_interface__ = None

    with pytest.raises(InputError, match=r"device array cannot be used|cuda-core is not installed") as caught:
        read(OnTheGpu())
    assert caught.value.code == "input.type"


@pytest.mark.requirement("R-INPUT-4")
def test_files_over_the_limit_are_not_read(tmp_path):
    from ptxsdk import Limits

    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate((1 << 30) + 1)  # sparse
    assert code(read, path) == "input.too_large"
    small = Limits(file_bytes=100)
    assert code(read, bytes(101), limits=small) == "input.too_large"
    assert code(read, memoryview(np.zeros(60, np.uint16)), limits=small) == "input.too_large"


def test_messages_use_the_given_name_and_no_path(tmp_path):
    with pytest.raises(InputError, match=r"^film 7: ") as caught:
        read(tmp_path / "Doe^Jane.dcm", name="film 7")
    assert "Doe" not in str(caught.value)


@pytest.mark.requirement("R-INPUT-4")
def test_a_jpeg_of_endless_scans_is_refused_before_decoding():
    file = bytes(imagecodecs.jpeg8_encode(GRAY8))
    scan = file.index(b"\xff\xda")
    assert code(read, file[:-2] + file[scan:-2] * 2 + file[-2:]) == "input.corrupt"
    refinements = [(k, k, bits) for k in range(64) for bits in (0x01, 0x10)]  # as many as there may be, of one bit
    scans = [b"\xff\xda\0\x08\1\1\0" + bytes(refinement) + b"\0" for refinement in refinements]
    progressive = file[:scan].replace(b"\xff\xc0", b"\xff\xc2", 1) + b"".join(scans) + file[-2:]
    assert code(read, progressive) == "input.too_large"


@needs_tiff_encoder
@pytest.mark.parametrize("tag", [322, 323])
@pytest.mark.requirement("R-INPUT-4")
def test_a_tiff_of_huge_tiles_is_refused_before_decoding(tag):
    file = bytearray(imagecodecs.tiff_encode(GRAY16, tile=(16, 16)))
    entry = next(at for kind in (3, 4) if (at := file.find(struct.pack("<HHL", tag, kind, 1))) >= 0)
    struct.pack_into("<H", file, entry + 8, 32768)
    assert code(read, bytes(file)) == "input.too_large"
