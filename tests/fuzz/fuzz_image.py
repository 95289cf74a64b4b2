"""Fuzz target: the image readers: PNG, JPEG and TIFF, as any bytes, or valid and changed, checksums made right again.

They raise an InputError, or return a whole film.
"""

from __future__ import annotations

import functools
import struct
import zlib

import imagecodecs
import numpy as np
from dicom_files import ALL_ENCODERS, film, png_chunk
from fuzz_dicom import MODULES, READING, check
from harness import main
from script import INTERESTING, Script, script_seed

from ptxsdk import readers
from ptxsdk.errors import InputError


@functools.cache
def images() -> tuple[bytes, ...]:
    eight, sixteen = film(bits=8), film(bits=16)
    colour = np.dstack([eight] * 3)
    found = [imagecodecs.png_encode(pixels) for pixels in (eight, sixteen, colour)]
    found += [imagecodecs.jpeg8_encode(pixels) for pixels in (eight, colour)]
    found.append(imagecodecs.jpeg8_encode(film(bits=12), bitspersample=12))
    for compression in (None, "lzw", "deflate", "packbits") if ALL_ENCODERS else ():
        options = {} if compression is None else {"compression": compression}
        found.append(imagecodecs.tiff_encode(sixteen, **options))
    return tuple(bytes(image) for image in found)


def png(script: Script, raw: bytes) -> bytes:
    """A PNG whose chunks are changed and whose checksums are right."""
    parts, position = [raw[:8]], 8
    while position + 12 <= len(raw):
        (length,) = struct.unpack_from(">L", raw, position)
        kind, body = raw[position + 4 : position + 8], raw[position + 8 : position + 8 + length]
        change = script.integer(0, 5)
        if change == 0:
            body = script.edits(body) if body else body
        elif change == 1 and kind == b"IDAT":
            body = zlib.compress(script.edits(zlib.decompress(body)))
        elif change == 2:
            kind = script.choice((b"IDAT", b"PLTE", b"tRNS", b"IEND", b"acTL", b"zTXt", b"IHDR"))
        parts.append(png_chunk(kind, body))
        position += 12 + length
    return b"".join(parts)


def tiff(script: Script, raw: bytes) -> bytes:
    """A TIFF with entries of its directory changed."""
    changed = bytearray(raw)
    (directory,) = struct.unpack_from("<L", raw, 4)
    (count,) = struct.unpack_from("<H", raw, directory)
    for _ in range(script.integer(1, 3)):
        entry = directory + 2 + 12 * script.integer(0, count - 1)
        new = script.choice(INTERESTING)
        at = entry + script.choice((0, 2, 4, 8))
        changed[at : at + len(new)] = new
    return bytes(changed)


def one_input(data: bytes) -> None:
    script = Script(data)
    raw = script.choice(images())
    kind = script.integer(0, 4)
    if kind == 0:
        raw = script.rest()
    elif kind == 1 and raw[:4] == b"\x89PNG":
        raw = png(script, raw)
    elif kind == 1 and raw[:2] == b"II":
        raw = tiff(script, raw)
    else:
        raw = script.edits(raw)
    try:
        found = readers.read_as(raw, READING)
    except InputError as error:
        assert "contradicts itself" not in error.message, error.message
        return
    check(found)


def seeds() -> list[bytes]:
    return [b"\0\0" + raw for raw in images()] + [
        bytes([index, kind]) + script_seed(index) for kind in (1, 2) for index in range(10)
    ]


if __name__ == "__main__":
    main(one_input, seeds, MODULES)
