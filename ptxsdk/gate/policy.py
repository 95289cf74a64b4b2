"""GatePolicy: what the gate lets through."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from ptxsdk.detection import Check, Status
from ptxsdk.errors import DetectorError


@dataclass(frozen=True, kw_only=True)
class GatePolicy:
    """What the gate lets through; the defaults are the intended use: frontal chest films of adults.

    Attributes
    ----------
    enforce : bool
        False is for research: a `Detector` makes and reports every check and scores films that failed one, marked in
        their result (``Detection.forced``).
    minimum_age : float
        Years; a film without an age passes as "unknown".
    blank_view : {"accept", "refuse"}
        View Position is often blank on portable AP films.
    secondary_capture : {"radiographs", "refuse"}
        Secondary Capture objects: only with modality CR or DX, or not at all.
    minimum_side : int
        Pixels on the shorter side.
    maximum_aspect : float
        Longer over shorter side.
    minimum_film, maximum_film : float
        Millimetres a side that pixel spacing may make of the film.  Copies made smaller often keep the spacing of
        their source and state half the size, so only the absurd fails.
    minimum_contrast : float
        Standard deviation of the display values over a 16 x 16 grid.
    maximum_saturation : float
        Share of the picture, padding aside, that is wholly black or white.
    maximum_padding : float
        Share of the picture that is black from the edge inwards: padding, collimation, air.
    minimum_scope : float
        Probability that the picture shows a frontal chest.
    minimum_upright, minimum_positive : float
        Given that it does: probability that it is upright, not turned by 90 or 180 degrees, and shown as a positive,
        bone white.
    """

    enforce: bool = True
    minimum_age: float = 18.0
    blank_view: Literal["accept", "refuse"] = "accept"
    secondary_capture: Literal["radiographs", "refuse"] = "radiographs"
    minimum_side: int = 256
    maximum_aspect: float = 2.5
    minimum_film: float = 100.0
    maximum_film: float = 700.0
    minimum_contrast: float = 0.04
    maximum_saturation: float = 0.4
    maximum_padding: float = 0.7
    minimum_scope: float = 0.5
    minimum_upright: float = 0.5
    minimum_positive: float = 0.5

    def __post_init__(self) -> None:
        if self.blank_view not in ("accept", "refuse") or self.secondary_capture not in ("radiographs", "refuse"):
            raise DetectorError("detector.option", f"the gate policy has an unknown word: {self}")
        if not isinstance(self.enforce, bool):
            raise DetectorError("detector.option", "enforce of the gate policy is not True or False")
        limits = (field.name for field in fields(self) if field.name.startswith(("minimum", "maximum")))
        if not all(_is_number(getattr(self, name)) for name in limits):
            raise DetectorError("detector.option", f"the gate policy has a limit that is no finite number: {self}")


def verdict(code: str, passed: bool, detail: str) -> Check:
    """Return the check that passed or failed."""
    status: Status = "pass" if passed else "fail"
    return Check(code, status, detail)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))
