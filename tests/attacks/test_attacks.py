"""Known ways to bring a reader down: each is refused with its code, quickly, and without growing.

Each attack is built here and read in a process of its own, whose memory is measured by the kernel.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import imagecodecs
import pytest
from dicom_files import content, dataset, encapsulated, film, indexed_jpeg2000, png, png_chunk

GROWTH = 50 << 20

DEFLATED = "1.2.840.10008.1.2.1.99"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
EXPLICIT = "1.2.840.10008.1.2.1"


def deflate_bomb():
    """204 KB that inflate to 210 MB: an element of zeros, as pydicom would inflate without a bound."""
    head = content(dataset(), DEFLATED)
    start = 144 + struct.unpack_from("<L", head, 140)[0]  # behind the meta information, whose length stands there
    header = zlib.decompress(head[start:], -zlib.MAX_WBITS)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = packer.compress(header + b"\x09\x00\x10\x00OB\0\0" + struct.pack("<L", 200 << 20))
    body += b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.flush()
    bomb = head[:start] + body
    assert 190_000 < len(bomb) < 220_000, len(bomb)
    return bomb


def huge_header():
    """Rows and Columns 65535 over a small film."""
    made = dataset()
    made.Rows = made.Columns = 65535
    return content(made)


def nested_sequences():
    """10^5 sequences, one inside the other."""
    head = content(dataset(), EXPLICIT)
    at = head.index(b"\x28\x00\x02\x00US")
    return head[:at] + (b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff") * 100_000


def endless_elements():
    """A million empty elements."""
    head = content(dataset(), EXPLICIT)
    return head[: head.index(b"\x28\x00\x02\x00US")] + b"\x09\x00\x10\x00LO\0\0" * 1_000_000


def lying_length():
    """An element that declares 4 GB."""
    head = content(dataset(), EXPLICIT)
    at = head.index(b"\x28\x00\x02\x00US")
    return head[:at] + b"\x09\x00\x10\x00OB\0\0" + struct.pack("<L", 0xFFFFFFF0) + bytes(100)


def jpeg_with_geometry(rows, columns):
    jpeg = bytearray(imagecodecs.jpeg8_encode(film(bits=8)))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", rows, columns)
    return bytes(jpeg)


def lying_jpeg():
    """A codestream of 8000 x 8000 in a film of 33 x 47."""
    return encapsulated(dataset(film(bits=8), bits=8), jpeg_with_geometry(8000, 8000), JPEG_BASELINE)


def huge_jpeg():
    return jpeg_with_geometry(65500, 65500)


def many_scans():
    """A progressive JPEG with thousands of scans, each a pass over the whole image."""
    jpeg = jpeg_with_geometry(8000, 8000).replace(b"\xff\xc0", b"\xff\xc2", 1)
    scan = jpeg.index(b"\xff\xda")
    return jpeg[:-2] + jpeg[scan:-2] * 5000 + b"\xff\xd9"


def png_bomb():
    """A PNG of 65535 x 65535, all of one colour."""
    return png(65535, 65535, body=zlib.compress(bytes(1 << 24)))


def png_text_bomb():
    """A compressed text of 200 MB beside the pixels, which are cut short."""
    text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200 << 20)))
    return png(33, 47, extra=text)


def png_pixel_bomb():
    """Pixels that inflate to 200 MB where 1584 bytes belong; libpng stops behind the last row."""
    return png(33, 47, body=zlib.compress(bytes(200 << 20)))


def tiff_tiles():
    """A TIFF whose tiles are 2^31 a side."""
    entries = {256: 47, 257: 33, 258: 8, 259: 5, 262: 1, 277: 1, 322: 1 << 31, 323: 1 << 31, 324: 8, 325: 8}
    directory = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in entries.items())
    return b"II*\0" + struct.pack("<LQ", 16, 0) + struct.pack("<H", len(entries)) + directory + bytes(4)


def tiff_strips():
    """A TIFF that lists 2^32 - 1 strips."""
    entries = (
        (256, 4, 1, 47),
        (257, 4, 1, 33),
        (258, 4, 1, 8),
        (262, 4, 1, 1),
        (273, 4, 0xFFFFFFFF, 8),
        (279, 4, 1, 8),
    )
    directory = b"".join(struct.pack("<HHLL", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<L", 8) + struct.pack("<H", len(entries)) + directory + bytes(4)


def bomb_of_tags(count):
    """TIFF tags, each with a million values, all of them the same bytes."""
    size = 8 + 2 + 12 * count + 4 + (1 << 20)
    tags = b"".join(struct.pack("<HHLL", 1000 + tag, 1, min(size, 1 << 20), 0) for tag in range(count))
    return b"II*\0" + struct.pack("<L", 8) + struct.pack("<H", count) + tags + bytes(4)


def tiff_tags():
    """Tags that nobody looks at, 8 GB if each were unpacked."""
    return bomb_of_tags(1000) + bytes(1 << 20)


def exif_tags():
    """The same beside the pixels of a JPEG."""
    exif = b"Exif\0\0" + bomb_of_tags(1000)
    tagged = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    return b"\xff\xd8" + tagged + bytes(imagecodecs.jpeg8_encode(film(bits=8)))[2:]


def png_empty_chunks():
    """Millions of chunks of pixels without a pixel."""
    return png(33, 47, extra=png_chunk(b"IDAT", b"") * 2_000_000)


def jpeg_fill_bytes():
    """32 MB of fill bytes before a marker."""
    return b"\xff\xd8" + b"\xff" * (32 << 20) + b"\xd9"


def jpeg_restarts():
    """Millions of restart markers where no scan is."""
    return b"\xff\xd8" + b"\xff\xd0" * (16 << 20) + b"\xff\xd9"


def jpeg_segments():
    """Millions of empty comments."""
    return b"\xff\xd8" + b"\xff\xfe\0\2" * (8 << 20) + b"\xff\xd9"


def jpeg2000_segments():
    """The same in JPEG 2000."""
    stream = bytes(imagecodecs.jpeg2k_encode(film(), codecformat="j2k", reversible=True, bitspersample=12))
    at = stream.index(b"\xff\x90")
    hostile = stream[:at] + b"\xff\x64\0\2" * (4 << 20) + stream[at:]
    return encapsulated(dataset(), hostile, "1.2.840.10008.1.2.4.90")


def jp2_boxes():
    """Millions of empty boxes before the codestream of a JP2 file."""
    boxes = b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x08free" * (4 << 20)
    return encapsulated(dataset(), boxes, "1.2.840.10008.1.2.4.90")


def jpeg2000_with_size(side, tile):
    stream = bytearray(imagecodecs.jpeg2k_encode(film(), codecformat="j2k", reversible=True, bitspersample=12))
    struct.pack_into(">8L", stream, 8, side, side, 0, 0, tile, tile, 0, 0)
    return bytes(stream)


def jpeg2000_tiles():
    """64 million tiles of one pixel."""
    return encapsulated(dataset(), jpeg2000_with_size(8000, 1), "1.2.840.10008.1.2.4.90")


def jpeg2000_size():
    return encapsulated(dataset(), jpeg2000_with_size(0xFFFFFFFF, 0xFFFFFFFF), "1.2.840.10008.1.2.4.90")


def jpeg2000_precincts():
    """Sixteen million precincts of one pixel, and no data: 8 GB of OpenJPEG's records of them."""
    side = 4096
    size = struct.pack(">HHH8LHBBB", 0xFF51, 41, 0, side, side, 0, 0, side, side, 0, 0, 1, 7, 1, 1)
    coding = struct.pack(">HHBBHBBBBBBB", 0xFF52, 13, 1, 0, 1, 0, 0, 4, 4, 0, 1, 0)
    part = struct.pack(">HHHLBBH", 0xFF90, 10, 0, 14, 0, 1, 0xFF93)
    stream = b"\xff\x4f" + size + coding + struct.pack(">HHBB", 0xFF5C, 4, 0x40, 0x40) + part + b"\xff\xd9"
    return encapsulated(dataset(film(bits=8), bits=8, Rows=side, Columns=side), stream, "1.2.840.10008.1.2.4.90")


def jpeg2000_lengths():
    """An index of one tile-part, and 255 tile-parts: OpenJPEG 2.5.4 writes 6 KB behind its memory (OSV-2025-219)."""
    return encapsulated(dataset(), indexed_jpeg2000(film(), parts=255), "1.2.840.10008.1.2.4.90")


def jpeg2000_hidden_lengths():
    """The same index inside of a segment that OpenJPEG does not know, and looks for the next marker in."""
    stream = indexed_jpeg2000(film(), parts=255)
    unknown = b"\xff\x30" + struct.pack(">HBB", 4 + 11, 0, 0)
    return encapsulated(dataset(), stream.replace(b"\xff\x55", unknown + b"\xff\x55", 1), "1.2.840.10008.1.2.4.90")


def empty_fragments():
    """Millions of fragments without a byte of a codestream."""
    made = encapsulated(dataset(film(bits=8), bits=8), b"\xff\xd8\xff\xd9", JPEG_BASELINE)
    end = made.rindex(b"\xfe\xff\xdd\xe0")
    return made[:end] + b"\xfe\xff\x00\xe0\0\0\0\0" * (4 << 20) + made[end:]


def icon_fragments():
    """The same in an icon before the film."""
    head = content(dataset(), EXPLICIT)
    at = head.index(b"\x28\x00\x02\x00US")
    icon = b"\x09\x00\x10\x00OB\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\0\0\0\0" * (4 << 20)
    return head[:at] + icon + b"\xfe\xff\xdd\xe0\0\0\0\0" + head[at:]


def with_value(tag, value, vr=b"UT", **attributes):
    """A film with one long value before its pixels, or in its order among the elements before Rows."""
    head = content(dataset(**attributes), EXPLICIT)
    at = head.index(b"\x28\x00\x02\x00US" if tag < 0x00280002 else b"\xe0\x7f\x10\x00")
    value += b" " * (len(value) % 2)
    return head[:at] + struct.pack("<HH2sHL", tag >> 16, tag & 0xFFFF, vr, 0, len(value)) + value + head[at:]


def text_of_parts():
    """Laterality of 8 million texts."""
    return with_value(0x00200060, b"ab\\" * (8 << 20))


def text_of_windows():
    """Window Center of 16 million numbers."""
    return with_value(0x00281050, b"1\\" * (16 << 20), WindowCenter=None)


def numbers():
    """Rows again and again, as numbers of two bytes."""
    return with_value(0x00280008, b"\1\0" * (16 << 20), b"UN")


def character_sets():
    """Specific Character Set of 16 million terms, in an item."""
    terms = b"\\" * (16 << 20)
    charset = struct.pack("<HH2sHL", 0x0008, 0x0005, b"UT", 0, len(terms)) + terms
    return with_value(0x00081140, struct.pack("<HHL", 0xFFFE, 0xE000, len(charset)) + charset, b"SQ")


def transfer_syntax():
    """A Transfer Syntax UID of 32 MB."""
    made = dataset()
    made.file_meta.TransferSyntaxUID = EXPLICIT
    head = content(made, EXPLICIT)
    at = head.index(b"\x02\x00\x10\x00UI")
    return head[:at] + struct.pack("<HH2sHL", 2, 0x10, b"UT", 0, 32 << 20) + b"1" * (32 << 20) + head[at:][28:]


def polyglot():
    """An executable in the preamble: what is DICOM behind it is read as DICOM and nothing else."""
    return b"MZ" + content(dataset(PixelData=b"\0\0"))[2:]


FILMS = {
    deflate_bomb: "input.too_large",
    huge_header: "input.too_large",
    nested_sequences: "input.corrupt",
    endless_elements: "input.too_large",
    lying_length: "input.truncated",
    lying_jpeg: "input.corrupt",
    huge_jpeg: "input.too_large",
    many_scans: "input.corrupt",
    png_bomb: "input.too_large",
    png_text_bomb: "input.corrupt",
    png_pixel_bomb: "none",
    tiff_tiles: "input.too_large",
    tiff_strips: "input.unsupported",
    tiff_tags: "input.corrupt",
    exif_tags: "none",
    png_empty_chunks: "input.too_large",
    jpeg_fill_bytes: "input.corrupt",
    jpeg_restarts: "input.corrupt",
    jpeg_segments: "input.too_large",
    jpeg2000_segments: "input.too_large",
    jp2_boxes: "input.corrupt",
    jpeg2000_tiles: "input.too_large",
    jpeg2000_size: "input.too_large",
    jpeg2000_precincts: "input.too_large",
    jpeg2000_lengths: "none",
    jpeg2000_hidden_lengths: "none",
    empty_fragments: "input.too_large",
    icon_fragments: "input.too_large",
    text_of_parts: "none",
    text_of_windows: "none",
    numbers: "none",
    character_sets: "none",
    transfer_syntax: "input.unsupported",
    polyglot: "input.truncated",
}

READ = """
import json, sys, time
from pathlib import Path
import imagecodecs, pydicom, pydicom.datadict, numpy
from ptxsdk import Engine, PtxsdkError, read
from ptxsdk.readers import dicom, helper, image
options = {"decode": sys.argv[3]} if sys.argv[1] == "film" else {}
what = read if sys.argv[1] == "film" else Engine.open
content = open(sys.argv[2], "rb").read()
def most():  # not getrusage: that counts what the parent had as well
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
Path("/proc/self/clear_refs").write_text("5")  # from here on
before, started = most(), time.monotonic()
code = "none"
try:
    what(content, **options)
except PtxsdkError as error:
    code = error.code
print(json.dumps([code, most() - before, time.monotonic() - started]))
"""


def outcome(kind, attack, tmp_path, *arguments):
    path = tmp_path / "attack"
    path.write_bytes(attack)
    ended = subprocess.run(
        [sys.executable, "-c", READ, kind, str(path), *arguments], capture_output=True, timeout=100, check=True
    )
    return json.loads(ended.stdout)


@pytest.mark.parametrize("attack", FILMS, ids=lambda attack: attack.__name__)
def test_a_hostile_film_is_refused_without_growth(attack, tmp_path):
    hostile = attack()
    code, grown, seconds = outcome("film", hostile, tmp_path, "in_process")
    assert code == FILMS[attack]
    assert grown < GROWTH + len(hostile)
    assert seconds < 10


def test_the_helper_makes_no_difference(tmp_path):
    for attack in (png_pixel_bomb, png_text_bomb):
        code, grown, _ = outcome("film", attack(), tmp_path, "helper")
        assert (code, grown < GROWTH) == (FILMS[attack], True)


def test_the_bomb_is_a_bomb():
    """pydicom alone follows it: the test of the test."""
    import io

    import pydicom

    assert len(pydicom.dcmread(io.BytesIO(deflate_bomb()))[0x00090010].value) == 200 << 20


# --- engines ----------------------------------------------------------------------------------------------------------


def archive(entries, method=0):
    """A zip as Python writes it."""
    import io
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as made:
        for name, data in entries.items():
            made.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def zip_bomb(_engine):
    return archive({"manifest.json": bytes(300 << 20)}, method=8)


def overlapping(_engine):
    """Directory entries that share one content, as in the 42.zip of the second kind."""
    one = archive({"manifest.json": b"{}" * 1000})
    end = one.index(b"PK\5\6")
    start = one.index(b"PK\1\2")
    count = 200
    directory = one[start:end] * count
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(directory), start, 0)
    return one[:start] + directory + tail


def path_traversal(engine):
    from ptxsdk.engine import MANIFEST, Engine, _archive

    opened = Engine.open(engine)
    return _archive({MANIFEST: opened.manifest_bytes(), **opened.entries(), "../../etc/cron.d/x": b"* * * * *"})


def absolute_path(engine):
    from ptxsdk.engine import MANIFEST, Engine, _archive

    opened = Engine.open(engine)
    return _archive({MANIFEST: opened.manifest_bytes(), **opened.entries(), "/etc/passwd": b"root"})


def deep_manifest(_engine):
    return archive({"manifest.json": b'{"a":' * 100_000 + b"1" + b"}" * 100_000})


def huge_number(_engine):
    return archive({"manifest.json": b'{"format_version": ' + b"9" * 1_000_000 + b"}"})


def lying_array(engine):
    """A golden film whose header says 99999 x 99999."""
    from ptxsdk.engine import MANIFEST, Engine, _archive, _entry

    opened = Engine.open(engine)
    entries = dict(opened.entries())
    name = opened.manifest.golden[0].pixels
    entries[name] = entries[name].replace(b"(160, 140)", b"(99999, 99999)")[: len(entries[name])]
    manifest = replace(opened.manifest, entries={key: _entry(value) for key, value in entries.items()})
    return _archive({MANIFEST: manifest.to_json(), **entries})


ENGINES = {
    zip_bomb: "engine.corrupt",
    overlapping: "engine.corrupt",
    path_traversal: "engine.corrupt",
    absolute_path: "engine.corrupt",
    deep_manifest: "engine.corrupt",
    huge_number: "engine.corrupt",
    lying_array: "engine.corrupt",
}


@pytest.mark.parametrize("attack", ENGINES, ids=lambda attack: attack.__name__)
def test_a_hostile_engine_is_refused_without_growth(attack, tiny_engine, tmp_path):
    hostile = attack(tiny_engine)
    code, grown, seconds = outcome("engine", hostile, tmp_path)
    assert code == ENGINES[attack]
    assert grown < GROWTH
    assert seconds < 10


def test_nothing_was_written_where_the_names_point(tiny_engine, tmp_path):
    outcome("engine", path_traversal(tiny_engine), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attack"]
    assert not Path("/etc/cron.d/x").exists()
