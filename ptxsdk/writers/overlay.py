"""Overlay: the film as a viewer shows it, with outlines, boxes, sides and a banner, as a PNG."""

from __future__ import annotations

import numpy as np

from ptxsdk.detection import Detection, Region
from ptxsdk.errors import WriterError
from ptxsdk.radiograph import Radiograph
from ptxsdk.writers import notices, require_location
from ptxsdk.writers.drawing import AMBER, BAR, DARK, FAINT, RED, TEXT, Canvas, line, percent, stroke, write

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


def overlay_content(film: Radiograph, detection: Detection) -> bytes:
    """Return the overlay as a PNG.

    Raises
    ------
    WriterError
        ``writer.profile``, or ``writer.failed``.
    """
    import cv2

    encoded, content = cv2.imencode(".png", render_overlay(film, detection))
    if not encoded:
        raise WriterError("writer.failed", "the overlay could not be encoded")
    return content.tobytes()


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
    for colour, width in ((DARK, 3.0 * unit), (AMBER, 1.6 * unit)):
        cv2.polylines(picture, [points], True, colour, stroke(width), cv2.LINE_AA, _SUBPIXEL_BITS)
    for colour, width in ((DARK, 2.0 * unit), (AMBER, 0.8 * unit)):
        cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), colour, stroke(width))
    area = "" if region.area_mm2 is None else f"  {region.area_mm2 / 100:.0f} cm2"
    label = f"{region.side or 'side unknown'}{area}"
    size = 0.6 * unit
    (width, height), _ = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, size, stroke(unit))
    gap = round(6 * unit)
    x = min(max(gap, x0), picture.shape[1] - width - gap)
    y = y0 - gap if y0 - gap - height > 0 else min(y1 + gap + height, picture.shape[0] - gap)
    write(picture, label, (x, y), size, AMBER, stroke(unit), halo=True)


def _head(width: int, film: Radiograph, detection: Detection, unit: float) -> Canvas:
    """Return the bar above: the sides of the patient at the edges, the result between them."""
    bar = np.full((max(1, round(58 * unit)), width, 3), BAR, np.uint8)
    sides = {"left": ("R", "L"), "right": ("L", "R"), None: ("?", "?")}[film.columns_toward]
    if film.patient_orientation is None:
        sides = (f"({sides[0]})", f"({sides[1]})")
    if detection.flagged:
        text, colour = f"PNEUMOTHORAX FLAGGED   {percent(detection.probability)}", AMBER
    else:
        text, colour = f"not flagged   {percent(detection.probability)}", TEXT
    point = detection.operating_point
    line(bar, sides[0], 0.42, 1.1 * unit, TEXT, "left")
    line(bar, sides[1], 0.42, 1.1 * unit, TEXT, "right")
    line(bar, text, 0.32, 0.75 * unit, colour, "centre")
    line(bar, f"operating point {point.name}: {percent(point.threshold)}", 0.75, 0.5 * unit, FAINT, "centre")
    return bar


def _foot(width: int, film: Radiograph, detection: Detection, unit: float) -> Canvas:
    """Return the bar below: what this picture is not."""
    bar = np.full((max(1, round(58 * unit)), width, 3), BAR, np.uint8)
    first, *others = notices(detection)
    line(bar, first, 0.32, 0.75 * unit, RED, "centre")
    text = "   ".join((*others, f"{detection.engine.name} {detection.engine.version}"))
    if film.patient_orientation is None:
        text += "   (R) (L): sides assumed"
    line(bar, text, 0.75, 0.5 * unit, FAINT, "centre")
    return bar
