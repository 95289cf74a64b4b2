"""Limits: how large a file, a film and its parts may be; held before anything of that size is allocated."""

from __future__ import annotations

from ptxsdk.errors import InputError

MAX_FILE_BYTES = 1 << 30
MAX_PIXEL_BYTES = 256 << 20
MAX_SIDE = 8192


def check_size(rows: int, columns: int, bytes_per_pixel: int) -> None:
    """Refuse a film of these dimensions when a side is not positive or anything is beyond the limits.

    Raises
    ------
    InputError
        ``input.corrupt`` for a side below 1, ``input.too_large`` beyond the limits.
    """
    if rows < 1 or columns < 1:
        raise InputError("input.corrupt", f"the header declares {rows} x {columns} pixels")
    if rows > MAX_SIDE or columns > MAX_SIDE:
        raise InputError(
            "input.too_large", f"the header declares {rows} x {columns} pixels; the limit is {MAX_SIDE} a side"
        )
    if rows * columns * bytes_per_pixel > MAX_PIXEL_BYTES:
        raise InputError(
            "input.too_large",
            f"{rows} x {columns} pixels of {bytes_per_pixel} bytes exceed {MAX_PIXEL_BYTES >> 20} MiB",
        )
