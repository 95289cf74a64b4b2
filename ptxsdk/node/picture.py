"""Picture: a film for the page, small enough to travel, deep enough to be windowed there."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np

from ptxsdk.radiograph import Display, Radiograph, Window

LONGEST_SIDE = 1024
HEADER = struct.Struct("<6I")


def encode(film: Radiograph, *, longest_side: int = LONGEST_SIDE) -> bytes:
    """Return a film as the page's script reads it.

    Parameters
    ----------
    film : Radiograph
        The film.
    longest_side : int
        Of the picture; smaller films stay as they are.

    Returns
    -------
    bytes
        Six little-endian uint32: rows and columns of the picture, rows and columns of the film, and the pixel values
        first shown black and white; then the pixels, little-endian uint16, row by row.  Where the film has a linear
        window, the values cover all of the film, so that the page can widen the window; otherwise they are display
        values.
    """
    from ptxsdk.ops import preprocess

    display, low, high = _whole_range(film)
    factor = min(1.0, longest_side / max(film.shape))
    size = (max(1, round(film.shape[0] * factor)), max(1, round(film.shape[1] * factor)))
    values, geometry = preprocess(film.pixels, display=display, size=size)
    x0, y0, x1, y1 = geometry.content
    shown = np.rint(values[y0:y1, x0:x1] * 65535).astype("<u2")
    pixels: bytes = shown.tobytes()
    return HEADER.pack(*shown.shape, *film.shape, low, high) + pixels


def _whole_range(film: Radiograph) -> tuple[Display, int, int]:
    """Return a display over all values of the film, and where its own window lies in it, 0..65535."""
    display = film.display
    if (
        not isinstance(film.pixels, np.ndarray)
        or not isinstance(display.voi, Window)
        or display.voi.function == "SIGMOID"
        or display.modality_lut is not None
    ):
        return display, 0, 65535
    ends = sorted(float(end) * display.slope + display.intercept for end in (film.pixels.min(), film.pixels.max()))
    low, high = display.voi.bounds
    bottom, top = min(ends[0], low), max(ends[1], high)
    if not top > bottom:
        return display, 0, 65535
    first, last = (round(65535 * (value - bottom) / (top - bottom)) for value in (low, high))
    if display.invert:
        first, last = 65535 - last, 65535 - first
    return replace(display, voi=Window.from_range(bottom, top)), first, max(last, first + 1)
