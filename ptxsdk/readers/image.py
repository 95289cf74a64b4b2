"""Image: reads PNG, JPEG and TIFF files that hold one gray film.

What counts as gray: gray samples; RGB with three equal channels (PNG, TIFF); a colour JPEG whose channels differ
by at most `JPEG_CHROMA` anywhere, of which the luminance is taken.  Eight-bit films show 0 as black and 255 as white;
of 16-bit films nothing states the used range, so it is estimated, with a warning.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from typing import cast

import numpy as np
import numpy.typing as npt

from ptxsdk.errors import InputError
from ptxsdk.radiograph import Display, Radiograph, Window, estimate_window
from ptxsdk.readers import codestream, jpeg
from ptxsdk.readers.limits import Limits
from ptxsdk.readers.reading import DEFAULT_READING, Reading

JPEG_CHROMA = 4
"""Largest difference of R, G and B, of 255, in a gray film saved as a colour JPEG: rounding of YCbCr, no more."""

_PNG_CRITICAL = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_TIFF_ORDERS = {b"II*\x00": "<", b"MM\x00*": ">"}
_TIFF_MAGICS = (*_TIFF_ORDERS, b"II+\x00", b"MM\x00+")
_APP1, _EXIF = 0xE1, b"Exif\x00\x00"
_ORIENTATION = 274
_TIFF_COMPRESSIONS = {1: "none", 5: "LZW", 8: "deflate", 32773: "PackBits", 32946: "deflate"}
_TIFF_TYPES = {1: "B", 3: "H", 4: "L"}
_MAX_STRIPS = 1 << 18  # tiles of 16 x 16 in 8192 x 8192
# How many values a tag that is looked at may have.
_TIFF_TAGS = {
    **dict.fromkeys((256, 257, 259, 262, _ORIENTATION, 277, 284, 322, 323), 1),  # size, coding, tiles
    **dict.fromkeys((258, 339), 8),  # bits and format of each sample
    **dict.fromkeys((273, 279, 324, 325), _MAX_STRIPS),  # where the strips or tiles are
}
_MAX_CHUNKS = 100_000

Array = npt.NDArray[np.generic]


def reader_for(content: bytes) -> Callable[[bytes, Reading], Radiograph] | None:
    """Return the reader of the format that `content` starts like, None for none of them."""
    if content[:8] == _PNG_MAGIC:
        return read_png
    if content[:3] == b"\xff\xd8\xff":
        return read_jpeg
    if content[:4] in _TIFF_MAGICS:
        return read_tiff
    return None


def read_png(content: bytes, reading: Reading = DEFAULT_READING) -> Radiograph:
    """Read a PNG: 8 or 16 bits, gray or equal RGB, with or without an opaque alpha channel.

    Every chunk's length and checksum is verified up to the end chunk, and only what carries pixels is decoded.

    Raises
    ------
    InputError
        ``input.truncated``, ``input.corrupt``, ``input.too_large``, ``input.unsupported``, ``input.multi_frame``
        or ``input.colour``.
    """
    rows, columns, channels, depth, essential = _scan_png(content, reading.limits)
    pixels = reading.decoded("png", essential, most=rows * columns * channels * depth // 8)
    expected = (rows, columns, channels) if channels > 1 else (rows, columns)
    if pixels.shape != expected or pixels.dtype != (np.uint8 if depth == 8 else np.uint16):
        raise InputError("input.corrupt", f"the PNG decoded to {pixels.dtype} {pixels.shape}, not {expected}")
    if channels in (2, 4):
        if int(pixels[..., -1].min()) < (1 << depth) - 1:
            raise InputError("input.unsupported", "the PNG is not opaque")
        pixels = pixels[..., :-1]
    return _film(_equal_channels(pixels))


def _scan_png(content: bytes, limits: Limits) -> tuple[int, int, int, int, bytes]:
    """Return rows, columns, channels, bit depth, and the PNG without ancillary chunks."""
    kept = [_PNG_MAGIC]
    size: tuple[int, int, int, int] | None = None
    position = 8
    for _ in range(_MAX_CHUNKS):
        if position + 12 > len(content):
            raise InputError("input.truncated", "the PNG has no end chunk")
        length, kind = struct.unpack_from(">L4s", content, position)
        end = position + 12 + length
        if size is None:
            if kind != b"IHDR" or length != 13:
                raise InputError("input.corrupt", "the PNG does not start with its header")
            size = _png_header(content, position + 8, limits)
        if end > len(content):
            raise InputError("input.truncated", f"the PNG ends inside a chunk of {length} bytes")
        if zlib.crc32(memoryview(content)[position + 4 : end - 4]) != struct.unpack_from(">L", content, end - 4)[0]:
            raise InputError("input.corrupt", "a PNG chunk has a wrong checksum")
        if kind == b"tRNS":
            raise InputError("input.unsupported", "the PNG declares a transparent value")
        if kind == b"eXIf":
            _check_exif(content[position + 8 : end - 4])
        if kind[0] & 0x20 == 0 and (kind not in _PNG_CRITICAL or (kind == b"IHDR" and position > 8)):
            raise InputError("input.corrupt", "the PNG has a second header, or a critical chunk that is not known")
        if kind == b"acTL" and length >= 4 and struct.unpack_from(">L", content, position + 8)[0] > 1:
            raise InputError("input.multi_frame", "the PNG is animated")
        if kind in (b"IHDR", b"IEND") or (kind == b"IDAT" and length):
            kept.append(content[position:end])
        position = end
        if kind == b"IEND":
            return *size, b"".join(kept)
    raise InputError("input.too_large", "the PNG has more chunks than any film needs")


def _png_header(content: bytes, position: int, limits: Limits) -> tuple[int, int, int, int]:
    try:
        columns, rows, depth, kind = struct.unpack_from(">LLBB", content, position)
    except struct.error:
        raise InputError("input.truncated", "the PNG ends inside its header") from None
    channels = {0: 1, 2: 3, 4: 2, 6: 4}.get(kind)
    limits.check_size(rows, columns, (channels or 1) * (2 if depth == 16 else 1))
    if channels is None or depth not in (8, 16):
        raise InputError(
            "input.unsupported", f"PNG colour type {kind} with {depth} bits; 8 or 16 bits without a palette are read"
        )
    return rows, columns, channels, depth


def read_jpeg(content: bytes, reading: Reading = DEFAULT_READING) -> Radiograph:
    """Read a JPEG: 8 or 12 bits (16 for the lossless process), gray or colour without colour.

    Raises
    ------
    InputError
        ``input.truncated``, ``input.corrupt``, ``input.too_large``, ``input.unsupported`` or ``input.colour``.
    """
    found = codestream.measure(content, "jpeg", reading.limits)
    for code, segment in jpeg.segments(content):
        if code == _APP1 and segment.startswith(_EXIF):
            _check_exif(segment[len(_EXIF) :])
    if found.components == 4:
        raise InputError("input.unsupported", "the JPEG has four components")
    pixels = codestream.decode(content, "jpeg", found, reading)
    if pixels.ndim == 3:
        channels = cast("npt.NDArray[np.uint8]", pixels)
        if int((channels.max(axis=2) - channels.min(axis=2)).max()) > JPEG_CHROMA:
            raise InputError("input.colour", "the JPEG has colour")
        pixels = codestream.decode(content, "jpeg", found, reading, gray=True)
    return _film(pixels)


def _check_exif(content: bytes) -> None:
    """Refuse Exif that states another orientation than upright; where it ends early it says nothing of the film."""
    if content[:4] not in _TIFF_ORDERS:
        return
    try:
        tags, _ = _tiff_tags(content, {_ORIENTATION: 1})
    except InputError as error:
        if error.code != "input.truncated":
            raise
        return
    _check_orientation(tags.get(_ORIENTATION, [1])[0])


def _check_orientation(value: int) -> None:
    if value not in (0, 1):
        raise InputError("input.unsupported", f"the film is stored turned or mirrored (orientation {value})")


def read_tiff(content: bytes, reading: Reading = DEFAULT_READING) -> Radiograph:
    """Read a TIFF of one page: 8 or 16 bits (16 also signed), gray or equal RGB; plain, LZW, deflate or PackBits.

    MINISWHITE becomes ``Display.invert``; the stored values stay.

    Raises
    ------
    InputError
        ``input.truncated``, ``input.corrupt``, ``input.too_large``, ``input.unsupported``, ``input.multi_frame``
        or ``input.colour``.
    """
    tags, more = _tiff_tags(content, _TIFF_TAGS)

    def first(tag: int, default: int) -> int:
        return tags.get(tag, [default])[0]

    rows, columns, samples, bits = first(257, 0), first(256, 0), first(277, 1), first(258, 1)
    reading.limits.check_size(rows, columns, max(1, samples) * max(1, bits // 8))
    if more:
        raise InputError("input.multi_frame", "the TIFF has more than one page")
    form, compression, photometric = first(339, 1), first(259, 1), first(262, -1)
    kind = {(8, 1): "u1", (16, 1): "u2", (16, 2): "i2"}.get((bits, form))
    if kind is None or samples not in (1, 3) or set(tags.get(258, [bits])) != {bits}:
        raise InputError("input.unsupported", f"TIFF with {samples} samples of {bits} bits, format {form}")
    if compression not in _TIFF_COMPRESSIONS or (photometric != 2 and photometric not in (0, 1)):
        raise InputError("input.unsupported", f"TIFF compression {compression}, photometric {photometric}")
    if (samples == 3) != (photometric == 2):
        raise InputError("input.corrupt", f"TIFF photometric {photometric} with {samples} samples")
    _check_orientation(first(_ORIENTATION, 1))
    size = rows * columns * samples * bits // 8
    _check_tiff_extent(content, tags, size, reading.limits.side, plain=compression == 1)
    pixels = reading.decoded("tiff", content, most=size)
    if samples == 3 and pixels.ndim == 3 and pixels.shape[0] == 3 and first(284, 1) == 2:
        pixels = np.moveaxis(pixels, 0, -1)
    expected = (rows, columns, samples) if samples > 1 else (rows, columns)
    if pixels.shape != expected or pixels.dtype != np.dtype(kind):
        raise InputError("input.corrupt", f"the TIFF decoded to {pixels.dtype} {pixels.shape}, not {expected}")
    return _film(_equal_channels(pixels), invert=photometric == 0)


def _tiff_tags(content: bytes, wanted: Mapping[int, int]) -> tuple[dict[int, list[int]], bool]:
    """Return the wanted tags, each with so many values at most, of the first directory, and whether another follows.

    A tag of them in another form than TIFF 6.0 has for it, or twice, is refused: decoders differ in what they do.
    """
    order = _TIFF_ORDERS.get(content[:4])
    if order is None:
        raise InputError("input.unsupported", "BigTIFF is not read")
    try:
        (directory,) = struct.unpack_from(order + "L", content, 4)
        (count,) = struct.unpack_from(order + "H", content, directory)
        tags: dict[int, list[int]] = {}
        for entry in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, kind, number = struct.unpack_from(order + "HHL", content, entry)
            if tag not in wanted:
                continue
            code = _TIFF_TYPES.get(kind)
            if code is None or tag in tags or not 0 < number <= wanted[tag]:
                # libtiff takes such tags for what they say, or not; another viewer may do otherwise.
                raise InputError("input.unsupported", f"TIFF tag {tag} comes twice, or in an unusual form")
            values = struct.Struct(f"{order}{number}{code}")
            where = entry + 8
            if values.size > 4:
                (where,) = struct.unpack_from(order + "L", content, where)
            tags[tag] = list(values.unpack_from(content, where))
        (following,) = struct.unpack_from(order + "L", content, directory + 2 + 12 * count)
    except struct.error:
        raise InputError("input.truncated", "the TIFF ends before its directory does") from None
    return tags, following != 0


def _check_tiff_extent(content: bytes, tags: dict[int, list[int]], size: int, longest: int, *, plain: bool) -> None:
    tiled = 324 in tags
    if any(side > longest for tag in (322, 323) for side in tags.get(tag, [])):
        raise InputError("input.too_large", f"the TIFF has tiles of more than {longest} a side")
    offsets, counts = (tags.get(tag, []) for tag in ((324, 325) if tiled else (273, 279)))
    if not offsets or len(offsets) != len(counts):
        raise InputError("input.corrupt", "the TIFF does not say where its pixels are")
    if any(offset + count > len(content) for offset, count in zip(offsets, counts, strict=True)):
        raise InputError("input.truncated", "the TIFF ends before its pixels do")
    if plain and sum(counts) < size:
        raise InputError("input.truncated", f"the TIFF holds {sum(counts)} of {size} bytes of pixels")


def _equal_channels(pixels: Array) -> Array:
    if pixels.ndim == 2:
        return pixels
    gray = pixels[..., 0]
    if any(not np.array_equal(gray, pixels[..., channel]) for channel in range(1, pixels.shape[2])):
        raise InputError("input.colour", "the film has colour: its channels differ")
    return np.ascontiguousarray(gray)


def _film(pixels: Array, *, invert: bool = False) -> Radiograph:
    warnings: tuple[str, ...] = ()
    if pixels.dtype == np.uint8:
        low, high = 0.0, 255.0
    else:
        low, high = estimate_window(pixels)
        warnings = ("window.estimated: the file states no window, percentiles 0.1 and 99.9 used",)
    return Radiograph(
        pixels=pixels,
        display=Display(voi=Window.from_range(low, high), invert=invert),
        origin="image",
        warnings=warnings,
    )
