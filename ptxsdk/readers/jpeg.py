"""JPEG: the markers of a JPEG or JPEG-LS codestream, followed to its end before a decoder sees it.

libjpeg-turbo fills what is missing with gray and says so only on its own error stream, which imagecodecs drops.  So
everything is counted here that can be without decoding: scans, the components and coefficients that they carry, restart
intervals.  What may still be missing is the end of a scan or an interval; `padded` is what shows that.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from ptxsdk.errors import InputError

_PROGRESSIVE, _LOSSLESS, _JPEGLS = 0xC2, 0xC3, 0xF7
_SOF = frozenset({0xC0, 0xC1, _PROGRESSIVE, _LOSSLESS, _JPEGLS})
_SOF_UNREAD = frozenset({0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_SOI, _EOI, _SOS, _DRI = 0xD8, 0xD9, 0xDA, 0xDD
_RESTARTS = range(0xD0, 0xD8)
# Inside a scan JPEG stuffs FF with 00 and JPEG-LS with a zero bit; before a marker FF may be repeated.
_MARKER = re.compile(rb"\xff\xff*[\x01-\xfe]")
_MARKER_JPEGLS = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")
_FILL = re.compile(rb"\xff*")
# What walks over headers here is Python: a file of nothing but headers must not keep it long.
_MAX_SEGMENTS = 10_000
_MAX_INTERVALS = 1 << 18
_MAX_SCANS = 64  # every scan of a progressive JPEG goes over the whole image
_PADDING = b"\x55\xaa\x13\x77" * 8
_COEFFICIENTS = 64


@dataclass
class Jpeg:
    """A codestream that was followed to its end.

    Attributes
    ----------
    rows, columns, precision : int
        Size of the image; bits a sample.
    process : int
        Marker of the frame header.
    sampling : dict
        Horizontal and vertical sampling factor of each component, by its identifier.
    ends : list of int
        Where the data of each scan, or of each of its restart intervals, end; empty for JPEG-LS.
    """

    rows: int
    columns: int
    precision: int
    process: int
    sampling: dict[int, tuple[int, int]]
    ends: list[int] = field(default_factory=list)
    # By component: of each coefficient the bits that are still to come, None where nothing of it came yet.
    _missing: dict[int, list[int | None]] = field(default_factory=dict)

    @classmethod
    def of(cls, process: int, segment: bytes) -> Jpeg:
        """Return the frame that a frame header begins."""
        precision, rows, columns, count = struct.unpack_from(">BHHB", segment)
        components = struct.iter_unpack(">BBB", segment[6 : 6 + 3 * count])
        sampling = {identifier: (factors >> 4, factors & 15) for identifier, factors, _ in components}
        if len(sampling) != count or any(not 0 < factor <= 4 for pair in sampling.values() for factor in pair):
            raise InputError("input.corrupt", "the JPEG's frame header names impossible components")
        return cls(rows, columns, precision, process, sampling)

    def add_scan(self, segment: bytes, interval: int) -> int:
        """Take note of what a scan carries, by its header; return how many restart intervals it has to have."""
        count = segment[0]
        chosen = [segment[1 + 2 * number] for number in range(count)]
        first, last, bits = struct.unpack_from("BBB", segment, 1 + 2 * count)
        if not chosen or len(set(chosen)) < count or not self.sampling.keys() >= set(chosen):
            raise InputError("input.corrupt", "a JPEG scan of components that there are not")
        progressive = self.process == _PROGRESSIVE
        if not progressive:
            first, last, bits = 0, 0, 0
        elif not first <= last < _COEFFICIENTS:
            raise InputError("input.corrupt", "a JPEG scan of coefficients that there are not")
        size = _COEFFICIENTS if progressive else 1
        for component in chosen:
            missing = self._missing.setdefault(component, [None] * size)
            for coefficient in range(first, last + 1):
                before = missing[coefficient]
                if before != ((bits >> 4) or None):
                    raise InputError("input.corrupt", "a JPEG scan refines what did not come before, or comes twice")
                missing[coefficient] = bits & 15
        if not interval:
            return 1
        return -(-self._units(chosen) // interval)

    def _units(self, chosen: list[int]) -> int:
        """Return the number of minimum coded units of a scan (ITU-T T.81, A.2)."""
        side = 1 if self.process == _LOSSLESS else 8
        most_x, most_y = (max(pair[axis] for pair in self.sampling.values()) for axis in (0, 1))
        step_x, step_y = side * most_x, side * most_y
        if len(chosen) == 1:
            own_x, own_y = self.sampling[chosen[0]]
            columns, rows = -(-self.columns * own_x // most_x), -(-self.rows * own_y // most_y)
            return -(-columns // side) * -(-rows // side)
        return -(-self.columns // step_x) * -(-self.rows // step_y)

    def check_complete(self) -> None:
        """Refuse a frame of which a component, or bits of a coefficient, came in no scan."""
        came = self.process == _JPEGLS or self._missing.keys() == self.sampling.keys()
        if not came or any(bits != 0 for missing in self._missing.values() for bits in missing):
            raise InputError("input.truncated", "the JPEG lacks scans")


def segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield ``(marker code, content)`` of the segments before the first scan of a codestream that `walk` followed."""
    position, code = 2, 0
    while code != _SOS:
        position, code, segment = _next_segment(data, position)
        yield code, segment


def walk(data: bytes) -> Jpeg:
    """Follow the markers of a JPEG or JPEG-LS codestream to the End Of Image marker.

    Raises
    ------
    InputError
        ``input.truncated``, ``input.corrupt``, ``input.unsupported`` or ``input.too_large``.
    """
    if data[:2] != b"\xff\xd8":
        raise InputError("input.corrupt", "the codestream does not start like a JPEG")
    try:
        return _walk(data)
    except (IndexError, struct.error):
        raise InputError("input.truncated", "the JPEG has no end marker") from None


def _walk(data: bytes) -> Jpeg:
    position, interval, scans = 2, 0, 0
    found: Jpeg | None = None
    for _ in range(_MAX_SEGMENTS):
        position, code, segment = _next_segment(data, position)
        if code in _SOF:
            if found is not None:
                raise InputError("input.corrupt", "the JPEG has two frame headers")
            found = Jpeg.of(code, segment)
        elif code in _SOF_UNREAD:
            raise InputError("input.unsupported", f"JPEG process SOF{code & 15} is not read")
        elif code == _DRI:
            interval = int.from_bytes(segment, "big")
        elif code == _SOS:
            if found is None:
                raise InputError("input.corrupt", "the JPEG has no frame header")
            scans += 1
            if scans > _MAX_SCANS:
                raise InputError("input.too_large", f"the JPEG has more than {_MAX_SCANS} scans")
            if found.process == _JPEGLS:
                position = _marker(_MARKER_JPEGLS, data, position).start()
            else:
                position = _end_of_scan(data, position, found.add_scan(segment, interval), found.ends)
        elif code == _EOI:
            if found is None or not scans:
                raise InputError("input.corrupt", "the JPEG holds no image")
            found.check_complete()
            return found
    raise InputError("input.too_large", "the JPEG has more segments than any film needs")


def _next_segment(data: bytes, position: int) -> tuple[int, int, bytes]:
    """Return ``(position after it, marker code, content)`` of the marker segment at `position`."""
    marker = _FILL.match(data, position)
    if marker is None or marker.end() == position:
        raise InputError("input.corrupt", "no JPEG marker where one must be")
    position = marker.end() - 1
    code = data[position + 1]
    if code == _EOI:
        return position + 2, code, b""
    if code < 0xC0 or code in _RESTARTS or code == _SOI:
        raise InputError("input.corrupt", f"a JPEG marker FF{code:02X} where none may be")
    (length,) = struct.unpack_from(">H", data, position + 2)
    end = position + 2 + length
    if length < 2 or end > len(data):
        raise InputError("input.truncated" if length >= 2 else "input.corrupt", "a JPEG segment has no end")
    return end, code, data[position + 4 : end]


def _end_of_scan(data: bytes, position: int, intervals: int, ends: list[int]) -> int:
    """Return where the marker after a scan is; every restart marker before it must be there, and in its order."""
    if intervals > _MAX_INTERVALS:
        raise InputError("input.too_large", "the JPEG has more restart intervals than any film needs")
    for number in range(intervals):
        marker = _marker(_MARKER, data, position)
        ends.append(marker.start())
        code, position = data[marker.end() - 1], marker.end()
        restarts = number + 1 < intervals
        if (code in _RESTARTS) != restarts or (restarts and code != _RESTARTS[number % 8]):
            raise InputError("input.truncated", "a JPEG scan lacks restart intervals, or has too many")
    return ends[-1]


def _marker(pattern: re.Pattern[bytes], data: bytes, position: int) -> re.Match[bytes]:
    marker = pattern.search(data, position)
    if marker is None:
        raise InputError("input.truncated", "the JPEG has no end marker")
    return marker


def padded(data: bytes, found: Jpeg) -> bytes:
    """Return a codestream that decodes like `data` only if no scan and no interval of it ended early.

    What follows a complete one is ignored; where one ended early the decoder uses it.
    """
    view, at = memoryview(data), 0
    parts: list[bytes | memoryview] = []
    for end in found.ends:
        parts += (view[at:end], _PADDING)
        at = end
    return b"".join((*parts, view[at:]))
