"""Fuzz target: the DICOM reader, structure-aware: valid films of every transfer syntax, changed at tag and pixel level.

It raises an InputError, or returns a whole film: pixels of the shape that the header says, a display that maps them
into [0, 1], and metadata of the types promised.  Either way it takes little memory and time, however often a value, an
item or a fragment is repeated.
"""

from __future__ import annotations

import functools
import struct

import imagecodecs
import numpy as np
from dicom_files import content, dataset, encapsulated, film
from harness import bounded, main
from pydicom.uid import RLELossless
from script import INTERESTING, Script, script_seed

from ptxsdk import radiograph, readers
from ptxsdk.errors import CODES, InputError
from ptxsdk.readers import codestream, dicom, elements, image, jpeg, jpeg2000
from ptxsdk.readers.limits import Limits
from ptxsdk.readers.reading import Reading

NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
# In process: a crash of a codec, too, is found here.  Small, so that a millionth of a film is not a second.
READING = Reading(Limits(pixels=1 << 20, memory_bytes=64 << 20, file_bytes=1 << 20, elements=10_000), "in_process")
MEMORY, SECONDS = 24 << 20, 3.0
TAGS = (
    *(0x00020010, 0x00080005, 0x00080016, 0x00080060, 0x00080068, 0x00101010, 0x00180015, 0x00181164, 0x00185101),
    *(0x00200020, 0x00280002, 0x00280004, 0x00280008, 0x00280010, 0x00280011, 0x00280030, 0x00280100, 0x00280101),
    *(0x00280102, 0x00280103, 0x00280120, 0x00280121, 0x00281050, 0x00281051, 0x00281052, 0x00281053, 0x00281056),
    *(0x00283000, 0x00283002, 0x00283006, 0x00283010, 0x20500020, 0x00540220, 0x60000102, 0x7FE00008, 0x7FE00010),
)
VRS = (b"US", b"SS", b"DS", b"IS", b"CS", b"OW", b"OB", b"SQ", b"UN", b"UI", b"LO", b"AS", b"FD", b"  ", b"AT")
TEXTS = (
    b"",
    b"0",
    b"-1",
    b"1e308",
    b"nan",
    b"MONOCHROME1 ",
    b"2048\\4096",
    b"65536",
    b"1\\2\\3",
    b"\xff\xfe",
    b"A" * 80,
)


MODULES = (codestream, dicom, elements, image, jpeg, jpeg2000, radiograph, readers)


def _rle(pixels: np.ndarray) -> bytes:
    planes = [np.ascontiguousarray(pixels.view(np.uint8).reshape(*pixels.shape, -1)[..., i]) for i in (1, 0)]
    coded = [imagecodecs.packbits_encode(plane.tobytes()) for plane in planes]
    coded = [plane + b"\0" * (len(plane) % 2) for plane in coded]
    return struct.pack("<16L", 2, 64, 64 + len(coded[0]), *[0] * 13) + b"".join(coded)


@functools.cache
def films() -> tuple[bytes, ...]:
    """A film in every transfer syntax, and some with lookup tables and sequences."""
    from pydicom.dataset import Dataset

    pixels, eight = film(), film(bits=8)
    found = [content(dataset(), syntax) for syntax in NATIVE]
    found.append(encapsulated(dataset(), _rle(pixels), RLELossless))
    jpeg = imagecodecs.jpeg8_encode
    for coded, syntax, of in (
        (jpeg(eight), "50", eight),
        (jpeg(pixels, bitspersample=12), "51", pixels),
        (jpeg(pixels, lossless=True, bitspersample=12), "70", pixels),
        (imagecodecs.jpegls_encode(pixels), "80", pixels),
        (imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True, bitspersample=12), "90", pixels),
    ):
        bits = 8 if of is eight else 12
        found.append(encapsulated(dataset(of, bits=bits), bytes(coded), f"1.2.840.10008.1.2.4.{syntax}"))
    table = Dataset()
    table.add_new(0x00283002, "US", [4096, 0, 12])
    table.add_new(0x00283006, "US", list(range(4096)))
    view = Dataset()
    view.CodeValue, view.CodingSchemeDesignator = "399348003", "SCT"
    found.append(content(dataset(WindowCenter=None, WindowWidth=None, VOILUTSequence=[table], ViewCodeSequence=[view])))
    found.append(content(dataset(ModalityLUTSequence=[table], PixelPaddingValue=0, PatientAge="043Y")))
    return tuple(found)


def element(script: Script, *, implicit: bool) -> bytes:
    """One data element, right or wrong, with a tag the reader looks at."""
    tag = script.choice(TAGS)
    kind = script.integer(0, 3)
    if kind == 0:
        value = script.choice(TEXTS)
    elif kind == 1:
        value = script.choice(INTERESTING)
    elif kind == 2:
        value = b"\xfe\xff\x00\xe0" + struct.pack("<L", script.integer(0, 9)) + script.bytes(4)
    else:
        value = script.bytes(script.integer(0, 12))
    length = len(value) if script.integer(0, 9) else script.choice((0xFFFFFFFF, 0, 2, 1 << 20, 0xFFFFFFFE))
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if implicit:
        return head + struct.pack("<L", length) + value
    vr = script.choice(VRS)
    if vr in (b"OW", b"OB", b"SQ", b"UN"):
        return head + vr + b"\0\0" + struct.pack("<L", length) + value
    return head + vr + struct.pack("<H", length & 0xFFFF) + value


def size_at(raw: bytearray, at: int, *, implicit: bool) -> int:
    """Size of the data element at a place, with its header."""
    if implicit:
        return 8 + int(struct.unpack_from("<L", raw, at + 4)[0])
    if raw[at + 4 : at + 6] in (b"OW", b"OB", b"SQ", b"UN"):
        return 12 + int(struct.unpack_from("<L", raw, at + 8)[0])
    return 8 + int(struct.unpack_from("<H", raw, at + 6)[0])


def changed(script: Script) -> bytes:
    index = script.integer(0, len(films()) - 1)
    raw = bytearray(films()[index])
    for _ in range(script.integer(1, 4)):
        kind = script.integer(0, 7)
        room = max(0, READING.limits.file_bytes - len(raw) - 64)
        if kind <= 1:  # an element exchanged or put in
            tag = script.choice(TAGS)
            at = raw.find(struct.pack("<HH", tag >> 16, tag & 0xFFFF), 132)
            if at < 0:
                continue
            new = element(script, implicit=index == 0)
            raw[at : at + (len(new) if script.integer(0, 1) else 0)] = new
        elif kind == 2:  # a value written over
            tag = script.choice(TAGS)
            at = raw.find(struct.pack("<HH", tag >> 16, tag & 0xFFFF), 132)
            if at >= 0:
                new = script.bytes(script.integer(1, 8))
                raw[at + 8 : at + 8 + len(new)] = new
        elif kind == 3:  # the pixels or their codestream
            at = max(raw.rfind(b"\xe0\x7f\x10\x00"), 0)
            raw[at:] = script.edits(bytes(raw[at:]))
        elif kind == 4:
            raw[:] = script.edits(bytes(raw))
        elif kind == 5:  # a value of many parts
            tag = script.choice(TAGS)
            at = raw.find(struct.pack("<HH", tag >> 16, tag & 0xFFFF), 132)
            if 0 <= at <= len(raw) - 12:
                part = script.choice(TEXTS[:8]) + script.choice((b"\\", b" ", b"\0"))
                value = part * (script.integer(0, room) // len(part))
                vr = b"" if index == 0 else script.choice((b"UT", b"UN", b"OW", b"SQ")) + b"\0\0"
                head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr + struct.pack("<L", len(value))
                raw[at : at + size_at(raw, at, implicit=index == 0)] = head + value
        elif kind == 6:  # many fragments, or many elements
            at = max(raw.rfind(script.choice((b"\xfe\xff\xdd\xe0", b"\x28\x00\x02\x00"))), 0)
            part = script.choice((b"\xfe\xff\x00\xe0\0\0\0\0", b"\x09\x00\x10\x00LO\0\0"))
            raw[at:at] = part * (script.integer(0, room) // len(part))
        else:  # sequences
            at = script.integer(132, len(raw))
            depth = script.integer(1, 60)
            raw[at:at] = (b"\x28\x00\x10\x30SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff") * depth
    return bytes(raw)


def check(film: readers.Radiograph) -> None:
    pixels = film.pixels
    assert pixels.ndim == 2
    assert pixels.size
    assert pixels.dtype in (np.uint8, np.uint16, np.int16), pixels.dtype
    shown = film.display(pixels[:4, :4])
    assert np.isfinite(shown).all()
    assert shown.min() >= 0
    assert shown.max() <= 1
    assert all(isinstance(warning, str) for warning in film.warnings)


def one_input(data: bytes) -> None:
    script = Script(data)
    raw = script.rest() if script.integer(0, 7) == 0 else changed(script)
    try:
        with bounded(MEMORY + 4 * len(raw), SECONDS):
            film = readers.read_as(raw, READING)
    except InputError as error:
        # The net under the reader turns surprises into input.corrupt: here they are findings.
        assert "contradicts itself" not in error.message, error.message
        assert error.code in CODES
        return
    check(film)


def seeds() -> list[bytes]:
    return [b"\0" + raw for raw in films()] + [bytes([1, index]) + script_seed(index) for index in range(len(films()))]


if __name__ == "__main__":
    main(one_input, seeds, MODULES)
