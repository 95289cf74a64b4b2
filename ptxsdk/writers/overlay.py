"""Overlay: the film as a viewer shows it, with outlines, boxes, sides and a banner, as a PNG."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from ptxsdk.detection import Detection, Region
from ptxsdk.errors import WriterError
from ptxsdk.files import write_file
from ptxsdk.radiograph import Radiograph
from ptxsdk.writers import require_location

Canvas = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

_OUTLINE: Colour = (0, 200, 255)  # BGR amber: far from every gray, and told apart by colour-blind readers
_TEXT: Colour = (235, 235, 235)
_FAINT: Colour = (160, 160, 160)
_DARK: Colour = (0, 0, 0)
_BAR: Colour = (28, 28, 28)
_SUBPIXEL_BITS = 4


def render_overlay(film: Radiograph, detection: Detection, *, longest_side: int = 1400) -> Canvas:
    """Draw the film with what was found.

    Text stands in bars above and below the film and beside the boxes, never on top of the anatomy inside a region.

    Parameters
    ----------
    film : Radiograph
        The film that was scored.
    detection : Detection
        Its result.
    longest_side : int
        Of the film in the picture, in pixels; smaller films are enlarged to at most twice their size.

    Returns
    -------
    ndarray, shape (rows, columns, 3), uint8
        BGR.

    Raises
    ------
    WriterError
        ``writer.profile``: the triage profile shows no location.
    """
    import cv2

    require_location(detection, "overlay")
    shown = _display(film, longest_side)
    picture: Canvas = cv2.cvtColor(shown, cv2.COLOR_GRAY2BGR)
    scale = (picture.shape[1] / film.shape[1], picture.shape[0] / film.shape[0])
    unit = max(picture.shape) / 1000  # strokes and letters keep their proportion to the picture
    for region in detection.regions:
        _draw_region(picture, region, scale, unit)
    return np.vstack(
        [
            _head(picture.shape[1], film, detection, unit),
            picture,
            _foot(picture.shape[1], film, detection, unit),
        ]
    )


def write_overlay(path: str | os.PathLike[str], film: Radiograph, detection: Detection) -> None:
    """Write the overlay as a PNG, atomically.

    Raises
    ------
    WriterError
        ``writer.profile``, or ``writer.failed``; nothing is left behind.
    """
    import cv2

    encoded, content = cv2.imencode(".png", render_overlay(film, detection))
    if not encoded:
        raise WriterError("writer.failed", "the overlay could not be encoded")
    write_file(path, content.tobytes())


def _display(film: Radiograph, longest_side: int) -> Canvas:
    from ptxsdk.ops import preprocess

    factor = min(longest_side / max(film.shape), 2.0)
    size = (max(1, round(film.shape[0] * factor)), max(1, round(film.shape[1] * factor)))
    values, geometry = preprocess(film.pixels, display=film.display, size=size)
    x0, y0, x1, y1 = geometry.content
    shown: Canvas = np.rint(values[y0:y1, x0:x1] * 255).astype(np.uint8)
    return shown


def _draw_region(picture: Canvas, region: Region, scale: tuple[float, float], unit: float) -> None:
    import cv2

    one = 1 << _SUBPIXEL_BITS
    # cv2 puts pixel centres on integers, outlines have them on halves.
    points = np.rint((np.array(region.outline) * scale - 0.5) * one).astype(np.int32)
    x0, y0, x1, y1 = (round(value * factor) for value, factor in zip(region.box, (*scale, *scale), strict=True))
    for colour, width in ((_DARK, 3.0 * unit), (_OUTLINE, 1.6 * unit)):
        cv2.polylines(picture, [points], True, colour, _stroke(width), cv2.LINE_AA, _SUBPIXEL_BITS)
    for colour, width in ((_DARK, 2.0 * unit), (_OUTLINE, 0.8 * unit)):
        cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), colour, _stroke(width))
    area = "" if region.area_mm2 is None else f"  {region.area_mm2 / 100:.0f} cm2"
    label = f"{region.side or 'side unknown'}{area}"
    size = 0.6 * unit
    (width, height), _ = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, size, _stroke(unit))
    gap = round(6 * unit)
    x = min(max(gap, x0), picture.shape[1] - width - gap)
    y = y0 - gap if y0 - gap - height > 0 else min(y1 + gap + height, picture.shape[0] - gap)
    _write(picture, label, (x, y), size, _OUTLINE, _stroke(unit), halo=True)


def _head(width: int, film: Radiograph, detection: Detection, unit: float) -> Canvas:
    """Return the bar above: the sides of the patient at the edges, the result between them."""
    bar = np.full((max(1, round(58 * unit)), width, 3), _BAR, np.uint8)
    sides = {"left": ("R", "L"), "right": ("L", "R"), None: ("?", "?")}[film.columns_toward]
    if film.patient_orientation is None:
        sides = (f"({sides[0]})", f"({sides[1]})")
    if detection.flagged:
        text, colour = f"PNEUMOTHORAX FLAGGED   {_percent(detection.probability)}", _OUTLINE
    else:
        text, colour = f"not flagged   {_percent(detection.probability)}", _TEXT
    point = detection.operating_point
    _line(bar, sides[0], 0.42, 1.1 * unit, _TEXT, "left")
    _line(bar, sides[1], 0.42, 1.1 * unit, _TEXT, "right")
    _line(bar, text, 0.32, 0.75 * unit, colour, "centre")
    _line(bar, f"operating point {point.name}: {_percent(point.threshold)}", 0.75, 0.5 * unit, _FAINT, "centre")
    return bar


def _foot(width: int, film: Radiograph, detection: Detection, unit: float) -> Canvas:
    """Return the bar below: what this picture is not."""
    bar = np.full((max(1, round(58 * unit)), width, 3), _BAR, np.uint8)
    warning = "NOT FOR DIAGNOSTIC USE" + ("   GATE OVERRIDDEN" if detection.forced else "")
    _line(bar, warning, 0.32, 0.75 * unit, (80, 80, 255), "centre")
    engine = detection.engine
    text = f"research and integration only, not a medical device   {engine.name} {engine.version}"
    if film.patient_orientation is None:
        text += "   (R) (L): sides assumed"
    _line(bar, text, 0.75, 0.5 * unit, _FAINT, "centre")
    return bar


def _line(bar: Canvas, text: str, at: float, size: float, colour: Colour, side: str) -> None:
    """Write one line into a bar, centred on the height `at`, shrunk to its width."""
    import cv2

    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, _stroke(1.6 * size))
    room = bar.shape[1] - 2 * round(10 * size)
    if width > room:
        size *= room / width
        (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, _stroke(1.6 * size))
    margin = (bar.shape[1] - width) // 2 if side == "centre" else round(12 * size)
    x = bar.shape[1] - width - margin if side == "right" else margin
    _write(bar, text, (x, round(at * bar.shape[0]) + height // 2), size, colour, _stroke(1.6 * size))


def _write(
    canvas: Canvas, text: str, origin: tuple[int, int], size: float, colour: Colour, stroke: int, *, halo: bool = False
) -> None:
    import cv2

    font: Any = cv2.FONT_HERSHEY_SIMPLEX
    if halo:
        for x, y in ((-1, -1), (-1, 1), (1, -1), (1, 1), (-2, 0), (2, 0), (0, -2), (0, 2)):
            cv2.putText(canvas, text, (origin[0] + x, origin[1] + y), font, size, _DARK, stroke, cv2.LINE_AA)
    cv2.putText(canvas, text, origin, font, size, colour, stroke, cv2.LINE_AA)


def _stroke(width: float) -> int:
    return max(1, round(width))


def _percent(value: float) -> str:
    """Whole percents, never rounded to certainty."""
    return "<1 %" if value < 0.01 else ">99 %" if value > 0.99 else f"{100 * value:.0f} %"
