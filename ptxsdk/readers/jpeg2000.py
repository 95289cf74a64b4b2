"""JPEG 2000: the markers of a codestream of Part 1 or HTJ2K, followed to its end before OpenJPEG sees it.

Of the main header OpenJPEG is given only the segments that decoding needs.  The index of tile-part lengths (TLM) is not
among them: where it lies, OpenJPEG 2.5.3 and 2.5.4, the newest, write outside their memory (OSV-2025-219).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ptxsdk.errors import InputError
from ptxsdk.readers.limits import Limits

# ISO/IEC 15444-1, A.2: size, capabilities, coding and quantization (for a component, too), region of interest,
# progression, packet headers; what is profile, index, registration or comment is not decoded with.
_COD, _COC, _SOT, _SOD, _EOC = 0xFF52, 0xFF53, 0xFF90, 0xFF93, b"\xff\xd9"
_NEEDED = frozenset({0xFF51, 0xFF50, _COD, _COC, 0xFF59, 0xFF5C, 0xFF5D, 0xFF5E, 0xFF5F, 0xFF60})
_EXTENSIONS = range(0xFF70, 0xFF80)
# What walks over headers here is Python: a file of nothing but headers must not keep it long.
_MAX_SEGMENTS = 10_000
_MAX_TILE_PARTS = 1 << 18
_BLOCK_BYTES = 400
"""What OpenJPEG 2.5.4 takes of memory for a precinct or a code-block: 280 to 370, measured with up to two million."""
_PADDING = b"\xd5\xaa\x93\x77" * 8


@dataclass(frozen=True)
class Jpeg2000:
    """A codestream that was followed to its end.

    Attributes
    ----------
    rows, columns, components, precision : int
        Size of the image; bits a sample of the first component.
    signed : bool
        Its samples are signed.
    start, first : int
        Where the codestream, after the boxes of a JP2 file, and its first tile-part start in the data.
    last_parts : tuple of (int, int)
        Of each tile, where its last tile-part starts and ends, in the order of the data.
    """

    rows: int
    columns: int
    components: int
    precision: int
    signed: bool
    start: int
    first: int
    last_parts: tuple[tuple[int, int], ...]


def walk(data: bytes, limits: Limits) -> Jpeg2000:
    """Follow a codestream, in a JP2 file or bare, to its end.

    Raises
    ------
    InputError
        ``input.truncated``, ``input.corrupt``, ``input.unsupported`` or ``input.too_large``.
    """
    try:
        return _walk(data, limits)
    except (IndexError, struct.error):
        raise InputError("input.truncated", "the JPEG 2000 codestream ends inside its header") from None


def _walk(data: bytes, limits: Limits) -> Jpeg2000:
    start = _in_jp2(data) if data[:4] == b"\x00\x00\x00\x0c" else 0
    if data[start : start + 4] != b"\xff\x4f\xff\x51":
        raise InputError("input.corrupt", "the codestream does not start like JPEG 2000")
    x1, y1, x0, y0, tile_x, tile_y, tile_x0, tile_y0, components = struct.unpack_from(">8LH", data, start + 8)
    depth, step_x, step_y = struct.unpack_from(">BBB", data, start + 42)
    if step_x != 1 or step_y != 1 or not tile_x or not tile_y:
        raise InputError("input.corrupt", "the JPEG 2000 image is subsampled or has empty tiles")
    limits.check_size(y1 - y0, x1 - x0, 1)
    tiles = -(-(x1 - tile_x0) // tile_x) * -(-(y1 - tile_y0) // tile_y)
    grid = _Grid(min(tile_x, x1 - x0), min(tile_y, y1 - y0), tiles * components, wide=components > 256)
    first = start
    for marker, first, end in _main_header(data, start + 2):
        grid.check(marker, data[first + 4 : end], limits)
    last_parts = _follow_parts(data, first, tiles, grid, limits)
    return Jpeg2000(y1 - y0, x1 - x0, components, (depth & 0x7F) + 1, bool(depth & 0x80), start, first, last_parts)


def _in_jp2(data: bytes) -> int:
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


@dataclass(frozen=True)
class _Grid:
    """Size of a tile, and how many times there is one, for each component."""

    columns: int
    rows: int
    count: int
    wide: bool

    def check(self, marker: int, segment: bytes, limits: Limits) -> None:
        """Refuse a coding style (COD, COC) of more precincts and code-blocks than there is memory for."""
        if marker == _COD:
            layers, style = int.from_bytes(segment[2:4], "big"), segment[5:]
        elif marker == _COC:
            layers, style = 0, segment[3 if self.wide else 2 :]
        else:
            return
        explicit = segment[0 if marker == _COD else 2 if self.wide else 1] & 1
        levels, block_x, block_y = style[0], style[1] + 2, style[2] + 2
        if levels > 32 or block_x > 10 or block_y > 10:
            raise InputError("input.corrupt", "the JPEG 2000 coding style is none")
        precincts = blocks = 0
        for resolution in range(levels + 1):
            size = style[5 + resolution] if explicit else 0xFF
            (precinct_x, precinct_y), halved = (size & 15, size >> 4), int(resolution > 0)
            columns, rows = (-(-side >> levels - resolution) for side in (self.columns, self.rows))
            precincts += _tiled(columns, rows, precinct_x, precinct_y)
            inner_x, inner_y = (
                min(of, max(0, by - halved)) for of, by in ((block_x, precinct_x), (block_y, precinct_y))
            )
            blocks += (3 if halved else 1) * _tiled(-(-columns >> halved), -(-rows >> halved), inner_x, inner_y)
        limits.check_memory(self.count * (_BLOCK_BYTES * (precincts + blocks) + 2 * layers * precincts))


def _tiled(columns: int, rows: int, log_x: int, log_y: int) -> int:
    return -(-columns >> log_x) * -(-rows >> log_y)


def _main_header(data: bytes, position: int) -> Iterator[tuple[int, int, int]]:
    """Yield ``(marker, start, end)`` of the segments before the first tile-part, and last that of its own marker."""
    for _ in range(_MAX_SEGMENTS):
        marker, length = struct.unpack_from(">HH", data, position)
        if marker < 0xFF00 or length < 2:
            raise InputError("input.corrupt", "no JPEG 2000 marker where one must be")
        if marker in _EXTENSIONS:
            raise InputError("input.unsupported", "the JPEG 2000 codestream uses extensions of Part 2")
        yield marker, position, position + 2 + length
        if marker == _SOT:
            return
        position += 2 + length
    raise _too_many()


def _follow_parts(data: bytes, position: int, tiles: int, grid: _Grid, limits: Limits) -> tuple[tuple[int, int], ...]:
    """Follow the lengths of all tile-parts, from the first to the end marker; return the last of each tile."""
    parts: dict[int, int] = {}
    stated: dict[int, int] = {}
    last: dict[int, tuple[int, int]] = {}
    for _ in range(_MAX_TILE_PARTS):
        marker, _, tile, length, part, count = struct.unpack_from(">HHHLBB", data, position)
        if marker != _SOT:
            raise InputError("input.corrupt", "no JPEG 2000 tile-part where one must be")
        if part != parts.get(tile, 0):
            raise InputError("input.truncated", "a JPEG 2000 tile-part is missing, or out of order")
        parts[tile] = part + 1
        stated[tile] = max(count, stated.get(tile, 0))
        if length == 0:  # the last tile-part, up to the end marker
            found = data.rfind(_EOC)
            end = found if found > position else len(data)
        elif length < 14:
            raise InputError("input.corrupt", "a JPEG 2000 tile-part is too short")
        else:
            end = position + length
        if end + 2 > len(data):
            raise InputError("input.truncated", "the JPEG 2000 codestream ends before its last tile")
        _check_part(data, position + 12, end, grid, limits)
        last[tile] = (position, end)
        position = end
        if data[end : end + 2] == _EOC:
            break
    else:
        raise _too_many()
    if len(parts) != tiles:
        raise InputError("input.truncated", f"the JPEG 2000 codestream holds {len(parts)} of {tiles} tiles")
    if any(parts[tile] < count for tile, count in stated.items()):
        raise InputError("input.truncated", "the JPEG 2000 codestream lacks tile-parts")
    return tuple(sorted(last.values()))


def _check_part(data: bytes, position: int, end: int, grid: _Grid, limits: Limits) -> None:
    """Look at the coding styles in the header of a tile-part."""
    for _ in range(_MAX_SEGMENTS):
        marker, length = struct.unpack_from(">HH", data, position)
        if marker == _SOD:
            return
        if marker < 0xFF00 or length < 2 or position + 2 + length > end:
            raise InputError("input.corrupt", "no JPEG 2000 marker where one must be")
        grid.check(marker, data[position + 4 : position + 2 + length], limits)
        position += 2 + length
    raise _too_many()


def _too_many() -> InputError:
    return InputError("input.too_large", "the codestream has more segments than any film needs")


def essence(data: bytes, found: Jpeg2000) -> bytes:
    """Return the codestream without the segments of its main header that decoding does not need."""
    return b"".join((*_needed(data, found), memoryview(data)[found.first :]))


def padded(data: bytes, found: Jpeg2000) -> bytes:
    """Return `essence` with something after the last tile-part of each tile: it decodes alike if no packet is missing.

    OpenJPEG itself refuses tile-parts that end within a packet, not those that end between two.
    """
    view, at = memoryview(data), found.first
    pieces: list[bytes | memoryview] = [*_needed(data, found)]
    for start, end in found.last_parts:
        length = struct.pack(">L", end - start + len(_PADDING))
        pieces += (view[at : start + 6], length, view[start + 10 : end], _PADDING)
        at = end
    return b"".join((*pieces, view[at:]))


def _needed(data: bytes, found: Jpeg2000) -> Iterator[bytes]:
    yield data[found.start : found.start + 2]
    for marker, start, end in _main_header(data, found.start + 2):
        if marker in _NEEDED:
            yield data[start:end]
