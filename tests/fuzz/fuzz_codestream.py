"""Fuzz target: codestreams of JPEG, JPEG-LS, JPEG 2000 and HTJ2K, changed at their segments, tile-parts and data.

They are refused with an InputError, or decode to the pixels that their header promises.  The codecs are foreign, and
damage that they do to memory may go unnoticed; not so with Electric Fence, which puts each block before a page that
faults: ``LD_PRELOAD=libefence.so EF_ALLOW_MALLOC_0=1``, and ``--runs`` of a few thousand, as it gives no memory back.
"""

from __future__ import annotations

import functools
import os
import pickle
import struct
import subprocess
import sys

import imagecodecs
import numpy as np
from dicom_files import ALL_ENCODERS, film, indexed_jpeg2000
from fuzz_dicom import READING
from harness import main
from script import INTERESTING, Script, script_seed

from ptxsdk.errors import CODES, InputError
from ptxsdk.readers import codestream, jpeg, jpeg2000

JPEG2000_SEGMENTS = (0xFF50, 0xFF51, 0xFF52, 0xFF53, 0xFF55, 0xFF57, 0xFF58, 0xFF59, 0xFF5C, 0xFF5D, 0xFF5E, 0xFF5F)
JPEG2000_SEGMENTS += (0xFF60, 0xFF61, 0xFF63, 0xFF64, 0xFF74, 0xFF75, 0xFF77, 0xFF78, 0xFF30, 0xFF91, 0xFF92)
JPEG_SEGMENTS = (0xFFC0, 0xFFC1, 0xFFC2, 0xFFC3, 0xFFC4, 0xFFDA, 0xFFDB, 0xFFDD, 0xFFE0, 0xFFE1, 0xFFEE, 0xFFF7, 0xFFF8)


Stream = tuple[codestream.Family, bytes]


@functools.cache
def streams() -> tuple[Stream, ...]:
    """A codestream of every kind that is read; made in another process, as OpenJPH does not bear Electric Fence."""
    program = "import pickle, sys; sys.path[:] = sys.argv[1:]; import fuzz_codestream as made; "
    program += "sys.stdout.buffer.write(pickle.dumps(made.encoded()))"
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = [sys.executable, "-c", program, *sys.path]
    found: tuple[Stream, ...] = pickle.loads(
        subprocess.run(command, env=environment, capture_output=True, check=True).stdout
    )
    return found


def encoded() -> tuple[Stream, ...]:
    """Encode them."""
    eight, twelve = film(bits=8), film(bits=12)
    colour = np.dstack([eight, eight, film(bits=8, seed=1)])
    plain, jpegls, wavelet = imagecodecs.jpeg8_encode, imagecodecs.jpegls_encode, imagecodecs.jpeg2k_encode
    found: list[Stream] = [("jpeg", plain(pixels)) for pixels in (eight, colour)]
    found += [("jpeg", plain(colour, subsampling="420")), ("jpeg", plain(eight, predictor=4, lossless=True))]
    found += [("jpeg", plain(twelve, bitspersample=12, lossless=lossless)) for lossless in (False, True)]
    found += [("jpegls", jpegls(pixels, level=level)) for pixels in (eight, twelve, colour) for level in (0, 2)]
    found += [("jpeg2000", wavelet(pixels, codecformat="j2k", reversible=True)) for pixels in (twelve, colour)]
    found.append(("jpeg2000", wavelet(eight, codecformat="j2k", level=30)))
    found.append(("jpeg2000", wavelet(twelve, codecformat="jp2", reversible=True)))
    found += [("jpeg2000", indexed_jpeg2000(twelve, parts=parts)) for parts in (1, 4)]
    layouts = ({}, {"tile": (16, 16), "tlm": True}, {"resolutions": 3, "tilepart": 1, "tlm": True})
    for options in layouts if ALL_ENCODERS else ():
        found += [("jpeg2000", imagecodecs.htj2k_encode(pixels, **options)) for pixels in (twelve, colour)]
    return tuple((family, bytes(stream)) for family, stream in found)


def segments(script: Script, head: bytes, kinds: tuple[int, ...]) -> bytes:
    """Marker segments, changed, left out, repeated, moved; now and then one states a wrong length."""
    found, position = [], 0
    while position + 4 <= len(head):
        marker, length = struct.unpack_from(">HH", head, position)
        found.append((marker, head[position + 4 : position + 2 + length]))
        position += 2 + length
    for _ in range(script.integer(0, 3)):
        at = script.integer(0, len(found))
        kind = script.integer(0, 7)
        if kind == 0:
            body = script.choice((*INTERESTING, script.bytes(script.integer(0, 24))))
            found.insert(at, (script.choice(kinds), body))
        elif at == len(found):
            continue
        elif kind == 1:
            del found[at]
        elif kind == 2:
            found.insert(script.integer(0, len(found)), found[at])
        elif kind == 3:
            found.append(found.pop(at))
        else:
            found[at] = (found[at][0], script.edits(found[at][1], 2))
    wrong = script.integer(0, 255) - 1
    lengths = [len(body) + 2 for _, body in found]
    if 0 <= wrong < len(found):
        lengths[wrong] = script.choice((0, 1, 2, lengths[wrong] - 1, lengths[wrong] + 9, 0xFFFF))
    return b"".join(
        struct.pack(">HH", marker, size) + body for (marker, body), size in zip(found, lengths, strict=True)
    )


def changed_jpeg(script: Script, raw: bytes) -> bytes:
    """A JPEG or JPEG-LS with changed segments and data."""
    scan = raw.index(b"\xff\xda")
    data = scan + 2 + int(struct.unpack_from(">H", raw, scan + 2)[0])
    head = segments(script, raw[2:data], JPEG_SEGMENTS)
    body = script.edits(raw[data:-2]) if script.integer(0, 1) else raw[data:-2]
    for _ in range(script.integer(0, 2)):
        again = segments(script, raw[scan:data], JPEG_SEGMENTS)
        body += again + body[: script.integer(0, 400)]
    return raw[:2] + head + body + raw[-2:]


def changed_jpeg2000(script: Script, raw: bytes) -> bytes:
    """A JPEG 2000 with a changed main header, and tile-parts that are changed, split, repeated, numbered anew."""
    start = raw.find(b"\xff\x4f\xff\x51")
    first = raw.index(b"\xff\x90", start)
    parts, position = [], first
    while raw[position : position + 2] == b"\xff\x90":
        tile, size, part, count = struct.unpack_from(">HLBB", raw, position + 4)
        end = position + size if size else len(raw) - 2
        data = raw.index(b"\xff\x93", position)
        parts.append([tile, part, count, raw[position + 12 : data], raw[data + 2 : end]])
        position = end
    for _ in range(script.integer(0, 3)):
        at = script.integer(0, len(parts) - 1)
        tile, part, count, head, body = parts[at]
        kind = script.integer(0, 6)
        if kind == 0:
            parts[at] = [script.integer(0, 9), part, count, head, body]
        elif kind == 1:
            parts[at] = [tile, script.integer(0, 255), script.integer(0, 255), head, body]
        elif kind == 2:  # as many tile-parts as there may be, all but one of them empty
            more = script.integer(1, 254)
            parts[at + 1 : at + 1] = [[tile, part + 1 + number, count, b"", b""] for number in range(more)]
        elif kind == 3:
            cut = script.integer(0, min(len(body), 4096))
            parts[at : at + 1] = [[tile, part, 0, head, body[:cut]], [tile, part + 1, 0, b"", body[cut:]]]
        elif kind == 4:
            parts.insert(at, parts[at])
        elif kind == 5:
            parts[at] = [tile, part, count, segments(script, head, JPEG2000_SEGMENTS), body]
        else:
            parts[at] = [tile, part, count, head, script.edits(body)]
    tiles = []
    for tile, part, count, head, body in parts:
        size = 14 + len(head) + len(body) if script.integer(0, 19) else script.choice((0, 12, 14, 0xFFFFFFFF))
        tiles.append(struct.pack(">HHHLBB", 0xFF90, 10, tile, size, part & 255, count) + head + b"\xff\x93" + body)
    main = segments(script, raw[start + 2 : first], JPEG2000_SEGMENTS)
    return raw[: start + 2] + main + b"".join(tiles) + b"\xff\xd9"


def one_input(data: bytes) -> None:
    script = Script(data)
    family, raw = script.choice(streams())
    raw = changed_jpeg2000(script, raw) if family == "jpeg2000" else changed_jpeg(script, raw)
    try:
        found = codestream.measure(raw, family, READING.limits)
        pixels = codestream.decode(raw, family, found, READING)
    except InputError as error:
        assert error.code in CODES
        return
    assert pixels.shape[:2] == (found.rows, found.columns)
    assert pixels.nbytes == found.rows * found.columns * found.bytes_per_pixel


def seeds() -> list[bytes]:
    """A codestream of each kind as it is, and each with changes."""
    count = len(streams())
    return [bytes([index]) for index in range(count)] + [bytes([index]) + script_seed(index) for index in range(count)]


if __name__ == "__main__":
    main(one_input, seeds, (codestream, jpeg, jpeg2000))
