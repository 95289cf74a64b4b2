"""Limits: how large a film, its file and its parts may be; held before anything of that size is allocated."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ptxsdk.errors import DetectorError, InputError

_MOST = 1 << 40
_MOST_SECONDS = 1e6
_DECODING_COPIES = 4
"""What decoding takes of memory, in sizes of the decoded film: codecs work in 32 bits, and hand over a copy."""


@dataclass(frozen=True)
class Limits:
    """What the reading of one film may take.

    Every limit is held before the memory or the time is spent: against the size of a file before it is read, against
    declared sizes before anything of that size is allocated.  Beyond a limit stands ``input.too_large``, beyond
    `decode_seconds` ``input.timeout``.

    Attributes
    ----------
    file_bytes : int
        Size of a file or byte string.
    pixels : int
        Rows times columns; of an array or a Radiograph, too.
    side : int
        Rows, and columns; the same.
    frames : int
        Class attribute, always 1: a film is one frame, and objects of several are not read (``input.multi_frame``).
    header_bytes : int
        DICOM: everything before the pixels.
    elements : int
        DICOM: data elements, items of sequences included; of encapsulated pixels the fragments.
    sequence_depth : int
        DICOM: sequences within sequences (``input.corrupt``).
    inflate_ratio : int
        DICOM, deflated: size of the data set over its compressed size; small files may inflate to 1 MiB.
    decode_seconds : float
        Time of one codestream in its codec, with ``decode="helper"``; in process nothing can stop a codec.
    memory_bytes : int
        Memory for one film while it is read: its content, what that inflates to, and what its codec takes.
        The helper process cannot allocate more than this beyond its own start; in process it is reckoned beforehand.

    Raises
    ------
    DetectorError
        ``detector.option``: a limit is not a number above 0, or beyond 2^40 and 10^6 seconds.
    """

    file_bytes: int = 320 << 20
    pixels: int = 8192 * 8192
    side: int = 8192
    header_bytes: int = 64 << 20
    elements: int = 20_000
    sequence_depth: int = 16
    inflate_ratio: int = 100
    decode_seconds: float = 20.0
    memory_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            number = isinstance(value, (int, float)) if field.type == "float" else isinstance(value, int)
            most = _MOST_SECONDS if field.type == "float" else _MOST
            if not number or isinstance(value, bool) or not 0 < value <= most:
                raise DetectorError("detector.option", f"limit {field.name} is {value!r}, not in 0 to {most:g}")

    def check_size(self, rows: int, columns: int, bytes_per_pixel: int) -> None:
        """Refuse a film of these dimensions when a side is not positive or anything is beyond the limits.

        Raises
        ------
        InputError
            ``input.corrupt`` for a side below 1, ``input.too_large`` beyond the limits.
        """
        if rows < 1 or columns < 1:
            raise InputError("input.corrupt", f"the header declares {rows} x {columns} pixels")
        self.check_extent(rows, columns)
        self.check_memory(_DECODING_COPIES * rows * columns * bytes_per_pixel)

    def check_extent(self, rows: int, columns: int) -> None:
        """Refuse a film of more pixels, or a longer side, than the limits allow, wherever it comes from."""
        if rows > self.side or columns > self.side:
            raise InputError("input.too_large", f"{rows} x {columns} pixels; the limit is {self.side} a side")
        if rows * columns > self.pixels:
            raise InputError("input.too_large", f"{rows} x {columns} pixels exceed the limit of {self.pixels}")

    def check_file(self, size: int) -> None:
        """Refuse content of `size` bytes when it is beyond the limits."""
        if size > self.file_bytes:
            raise InputError("input.too_large", f"{size} bytes are over the limit of {self.file_bytes}")
        self.check_memory(size)

    def check_memory(self, size: int) -> None:
        """Refuse to take `size` bytes of memory when that is beyond the limits."""
        if size > self.memory_bytes:
            raise InputError(
                "input.too_large", f"the film takes {size} bytes of memory, the limit is {self.memory_bytes}"
            )


DEFAULT_LIMITS = Limits()
