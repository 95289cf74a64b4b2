"""Drawing: colours, and lines of text in pictures."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Canvas = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

AMBER: Colour = (0, 200, 255)  # BGR: far from every gray, and told apart by colour-blind readers
RED: Colour = (80, 80, 255)
TEXT: Colour = (235, 235, 235)
FAINT: Colour = (160, 160, 160)
DARK: Colour = (0, 0, 0)
BAR: Colour = (28, 28, 28)


def line(
    bar: Canvas, text: str, at: float, size: float, colour: Colour, side: Literal["left", "centre", "right"]
) -> None:
    """Write one line into a bar, centred on the height `at`, shrunk to its width."""
    import cv2

    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, stroke(1.6 * size))
    room = bar.shape[1] - 2 * round(10 * size)
    if width > room:
        size *= room / width
        (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, stroke(1.6 * size))
    margin = (bar.shape[1] - width) // 2 if side == "centre" else round(12 * size)
    x = bar.shape[1] - width - margin if side == "right" else margin
    write(bar, text, (x, round(at * bar.shape[0]) + height // 2), size, colour, stroke(1.6 * size))


def write(
    canvas: Canvas, text: str, origin: tuple[int, int], size: float, colour: Colour, width: int, *, halo: bool = False
) -> None:
    """Write text whose baseline begins at the origin; with a dark halo where it stands on the film."""
    import cv2

    font: Any = cv2.FONT_HERSHEY_SIMPLEX
    if halo:
        for x, y in ((-1, -1), (-1, 1), (1, -1), (1, 1), (-2, 0), (2, 0), (0, -2), (0, 2)):
            cv2.putText(canvas, text, (origin[0] + x, origin[1] + y), font, size, DARK, width, cv2.LINE_AA)
    cv2.putText(canvas, text, origin, font, size, colour, width, cv2.LINE_AA)


def stroke(width: float) -> int:
    """Return a width of at least one pixel."""
    return max(1, round(width))


def percent(value: float) -> str:
    """Whole percents, never rounded to certainty."""
    return "<1 %" if value < 0.01 else ">99 %" if value > 0.99 else f"{100 * value:.0f} %"
