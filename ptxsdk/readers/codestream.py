"""Codestream: measures and decodes one JPEG, JPEG-LS or JPEG 2000 codestream, whole or not at all.

The headers are read here before a decoder allocates anything.  The decoders are libjpeg-turbo (baseline, extended,
progressive and lossless JPEG), CharLS (JPEG-LS) and OpenJPEG (JPEG 2000 Part 1 and HTJ2K), all from imagecodecs.
libjpeg-turbo fills what is missing with gray and says so only on its own error stream, which imagecodecs drops;
`decode` therefore checks itself that the codestream ends where its data ends.

Of a JPEG 2000 main header OpenJPEG is given only the segments that decoding needs.  The index of tile-part lengths
(TLM) is not among them: where it lies, OpenJPEG 2.5.3 and 2.5.4, the newest, write outside their memory (OSV-2025-219).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ptxsdk.errors import InputError
from ptxsdk.readers.limits import DEFAULT_LIMITS, Limits
from ptxsdk.readers.reading import DEFAULT_READING, Reading

Family = Literal["jpeg", "jpegls", "jpeg2000"]
Array = npt.NDArray[np.generic]

_CODECS: dict[Family, str] = {"jpeg": "jpeg8", "jpegls": "jpegls", "jpeg2000": "jpeg2k"}
_SOF_LOSSLESS = 0xC3
_SOF = frozenset({0xC0, 0xC1, 0xC2, _SOF_LOSSLESS})
_SOF_UNREAD = frozenset({0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_SOF_JPEGLS = 0xF7
# Inside a scan JPEG stuffs FF with 00 and JPEG-LS with a zero bit; restart markers belong to the scan.
_MARKER = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")
_FILL = re.compile(rb"\xff*")
# What walks over headers here is Python: a file of nothing but headers must not keep it long.
_MAX_SEGMENTS = 10_000
_MAX_TILE_SEGMENTS = 1 << 18
# ISO/IEC 15444-1, A.2: size, capabilities, coding and quantization (for a component, too), region of interest,
# progression, packet headers; what is profile, index, registration or comment is not decoded with.
_SOT = 0xFF90
_JPEG2000_NEEDED = frozenset({0xFF51, 0xFF50, 0xFF52, 0xFF53, 0xFF59, 0xFF5C, 0xFF5D, 0xFF5E, 0xFF5F, 0xFF60})
_JPEG2000_EXTENSIONS = range(0xFF70, 0xFF80)


@dataclass(frozen=True)
class Measure:
    """What a codestream's header says of its image.

    Attributes
    ----------
    rows, columns, components : int
        Size of the image.
    precision : int
        Bits a sample.
    signed : bool
        Samples are signed (JPEG 2000 only).
    lossless : bool
        The JPEG process is the lossless one (SOF3).
    start : int
        Where the codestream starts in the data (after the boxes of a JP2 file).
    """

    rows: int
    columns: int
    components: int
    precision: int
    signed: bool = False
    lossless: bool = False
    start: int = 0

    @property
    def bytes_per_pixel(self) -> int:
        """Bytes that a pixel takes, decoded."""
        return self.components * (1 if self.precision <= 8 else 2)


def measure(data: bytes, family: Family, limits: Limits = DEFAULT_LIMITS) -> Measure:
    """Read size and precision from the header, and check that the codestream is complete.

    Raises
    ------
    InputError
        ``input.truncated``, ``input.corrupt``, ``input.unsupported`` or ``input.too_large``.
    """
    try:
        found = _measure_jpeg2000(data, limits) if family == "jpeg2000" else _measure_jpeg(data)
    except (struct.error, IndexError):
        raise InputError("input.truncated", "the codestream ends inside its header") from None
    if found.components not in (1, 3, 4) or not 2 <= found.precision <= 16:
        raise InputError(
            "input.unsupported",
            f"the codestream has {found.components} components of {found.precision} bits",
        )
    limits.check_size(found.rows, found.columns, found.bytes_per_pixel)
    return found


def decode(
    data: bytes, family: Family, found: Measure, reading: Reading = DEFAULT_READING, *, gray: bool = False
) -> Array:
    """Decode a measured codestream.

    Parameters
    ----------
    data : bytes
        The codestream.
    family : {"jpeg", "jpegls", "jpeg2000"}
        Its kind.
    found : Measure
        What `measure` said of it.
    reading : Reading
        Where the codec runs, and for how long.
    gray : bool
        Return only the luminance of a colour JPEG.

    Returns
    -------
    ndarray, shape (rows, columns) or (rows, columns, components)
        uint8 or uint16 samples; int8 or int16 where the codestream is signed.

    Raises
    ------
    InputError
        ``input.truncated`` or ``input.corrupt``; ``input.timeout``, ``input.too_large`` or ``input.decoder``.
    DetectorError
        ``detector.timeout``.
    """
    options = {"outcolorspace": "grayscale"} if gray and family == "jpeg" else {}
    most = found.rows * found.columns * found.bytes_per_pixel

    def run(codestream: bytes) -> Array:
        return reading.decoded(_CODECS[family], codestream, most=most, **options)

    pixels = run(_jpeg2000_essence(data, found.start) if family == "jpeg2000" else data)
    expected = (found.rows, found.columns) + ((found.components,) if found.components > 1 and not gray else ())
    if pixels.shape != expected:
        raise InputError("input.corrupt", f"decoded to {pixels.shape}, the codestream's header says {expected}")
    if pixels.dtype.kind not in "iu" or pixels.dtype.itemsize != (1 if found.precision <= 8 else 2):
        raise InputError("input.corrupt", f"decoded to {pixels.dtype}, the header says {found.precision} bits")
    if family == "jpeg" and _may_be_filled(pixels):
        # Data after a complete scan is ignored; where the scan ended early the decoder would use it.  Fill bytes FF
        # before the end marker, as DCMTK writes, would make a marker of what follows (ITU-T T.81, B.1.1.2).
        longer = data[: _end_of_jpeg(data)].rstrip(b"\xff") + b"\x55\xaa\x13\x77" * 8 + b"\xff\xd9"
        if not np.array_equal(pixels, run(longer)):
            raise InputError("input.truncated", "the JPEG data end before the image does")
    return pixels


def _may_be_filled(pixels: Array) -> bool:
    tail = pixels[-1, -4:]
    return bool((tail == tail[0]).all())


def _measure_jpeg(data: bytes) -> Measure:
    """Walk the markers of a JPEG or JPEG-LS stream to its frame header, then to its end."""
    position = 2
    if data[:2] != b"\xff\xd8":
        raise InputError("input.corrupt", "the codestream does not start like a JPEG")
    found: Measure | None = None
    for _ in range(_MAX_SEGMENTS):
        position, code, segment = _next_segment(data, position)
        if code in _SOF or code == _SOF_JPEGLS:
            precision, rows, columns, components = struct.unpack_from(">BHHB", segment)
            found = Measure(rows, columns, components, precision, lossless=code == _SOF_LOSSLESS)
        elif code in _SOF_UNREAD:
            raise InputError("input.unsupported", f"JPEG process SOF{code & 15} is not read")
        elif code == 0xDA:
            break
        elif code == 0xD9:
            raise InputError("input.corrupt", "the JPEG holds no image")
    else:
        raise _too_many_segments()
    if found is None:
        raise InputError("input.corrupt", "the JPEG has no frame header")
    _end_of_jpeg(data)
    return found


def _next_segment(data: bytes, position: int) -> tuple[int, int, bytes]:
    """Return ``(position after it, marker code, content)`` of the marker segment at `position`."""
    marker = _FILL.match(data, position)
    if marker is None or marker.end() == position:
        raise InputError("input.corrupt", "no JPEG marker where one must be")
    position = marker.end() - 1
    code = data[position + 1]
    if 0xD0 <= code <= 0xD7:
        raise InputError("input.corrupt", "a JPEG restart marker outside of a scan")
    if code in (0x01, 0xD9):
        return position + 2, code, b""
    (length,) = struct.unpack_from(">H", data, position + 2)
    end = position + 2 + length
    if length < 2 or end > len(data):
        raise InputError("input.truncated" if length >= 2 else "input.corrupt", "a JPEG segment has no end")
    return end, code, data[position + 4 : end]


_MAX_SCANS = 64  # every scan of a progressive JPEG goes over the whole image


def _end_of_jpeg(data: bytes) -> int:
    """Return the position of the End Of Image marker; scans and the tables between them are walked through."""
    position, code, scans = 2, 0, 0
    for _ in range(_MAX_SEGMENTS):
        try:
            if code == 0xDA:
                scans += 1
                if scans > _MAX_SCANS:
                    raise InputError("input.too_large", f"the JPEG has more than {_MAX_SCANS} scans")
                match = _MARKER.search(data, position)
                if match is None:
                    raise InputError("input.truncated", "the JPEG has no end marker")
                position = match.start()
            start = position
            position, code, _ = _next_segment(data, position)
        except (IndexError, struct.error):
            raise InputError("input.truncated", "the JPEG has no end marker") from None
        if code == 0xD9:
            return start
    raise _too_many_segments()


def _too_many_segments() -> InputError:
    return InputError("input.too_large", "the codestream has more segments than any film needs")


def _measure_jpeg2000(data: bytes, limits: Limits) -> Measure:
    start = _jp2_codestream(data) if data[:4] == b"\x00\x00\x00\x0c" else 0
    if data[start : start + 4] != b"\xff\x4f\xff\x51":
        raise InputError("input.corrupt", "the codestream does not start like JPEG 2000")
    x1, y1, x0, y0, tile_x, tile_y, tile_x0, tile_y0, components = struct.unpack_from(">8LH", data, start + 8)
    depth, step_x, step_y = struct.unpack_from(">BBB", data, start + 42)
    if step_x != 1 or step_y != 1 or not tile_x or not tile_y:
        raise InputError("input.corrupt", "the JPEG 2000 image is subsampled or has empty tiles")
    measured = Measure(y1 - y0, x1 - x0, components, (depth & 0x7F) + 1, signed=bool(depth & 0x80), start=start)
    limits.check_size(measured.rows, measured.columns, 1)
    tiles = -(-(x1 - tile_x0) // tile_x) * -(-(y1 - tile_y0) // tile_y)
    *_, (_, first, _) = _main_header(data, start + 2)
    _walk_tiles(data, first, tiles)
    return measured


def _jp2_codestream(data: bytes) -> int:
    """Return where the contiguous codestream starts in a JP2 file."""
    position = 0
    for _ in range(_MAX_SEGMENTS):
        if position + 8 > len(data):
            break
        length, kind = struct.unpack_from(">L4s", data, position)
        header = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, position + 8)
            header = 16
        if kind == b"jp2c":
            return position + header
        if length < header:
            break
        position += length
    raise InputError("input.corrupt", "the JP2 file holds no codestream")


def _main_header(data: bytes, position: int) -> Iterator[tuple[int, int, int]]:
    """Yield ``(marker, start, end)`` of the segments before the first tile-part, and last that of its own marker."""
    for _ in range(_MAX_SEGMENTS):
        marker, length = struct.unpack_from(">HH", data, position)
        if marker < 0xFF00 or length < 2:
            raise InputError("input.corrupt", "no JPEG 2000 marker where one must be")
        if marker in _JPEG2000_EXTENSIONS:
            raise InputError("input.unsupported", "the JPEG 2000 codestream uses extensions of Part 2")
        yield marker, position, position + 2 + length
        if marker == _SOT:
            return
        position += 2 + length
    raise _too_many_segments()


def _jpeg2000_essence(data: bytes, start: int) -> bytes:
    """Return the measured codestream that starts at `start` without the segments that decoding does not need."""
    segments = list(_main_header(data, start + 2))
    kept = (data[at:end] for marker, at, end in segments if marker in _JPEG2000_NEEDED)
    return b"".join((data[start : start + 2], *kept, memoryview(data)[segments[-1][1] :]))


def _walk_tiles(data: bytes, position: int, tiles: int) -> None:
    """Follow the lengths of all tile-parts, from the marker of the first to the end marker."""
    seen: set[int] = set()
    for _ in range(_MAX_TILE_SEGMENTS):
        marker, _, tile, part_length = struct.unpack_from(">HHHL", data, position)
        if marker != _SOT:
            raise InputError("input.corrupt", "no JPEG 2000 tile-part where one must be")
        seen.add(tile)
        if part_length == 0:  # the last tile-part, up to the end marker
            end = data.rfind(b"\xff\xd9")
            position = end if end > position else len(data)
        elif part_length < 14:
            raise InputError("input.corrupt", "a JPEG 2000 tile-part is too short")
        else:
            position += part_length
        if position + 2 > len(data):
            raise InputError("input.truncated", "the JPEG 2000 codestream ends before its last tile")
        if data[position : position + 2] == b"\xff\xd9":
            break
    else:
        raise _too_many_segments()
    if len(seen) != tiles:
        raise InputError("input.truncated", f"the JPEG 2000 codestream holds {len(seen)} of {tiles} tiles")
