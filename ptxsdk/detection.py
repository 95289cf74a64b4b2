"""Detection: what the SDK found on one film, with everything needed to judge it; frozen and JSON-able."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ptxsdk.geometry import Geometry

Profile = Literal["triage", "cade"]
Status = Literal["pass", "fail", "unknown"]

DISCLAIMER = "Research and integration use only. Not a medical device. Not for diagnostic use."


@dataclass(frozen=True)
class Region:
    """One connected region of the map.  Source pixels: origin at the outer corner of the first pixel, x right, y down.

    Attributes
    ----------
    box : tuple of int
        ``(x0, y0, x1, y1)``, half-open.
    outline : tuple of tuple of float
        Closed polygon ``((x, y), ...)`` around the region, first point not repeated.
    side : {"left", "right"} or None
        Side of the PATIENT on which the centroid lies.
    area_px : float
        Area in source pixels.
    area_mm2 : float or None
        Area in mm2; None where the pixel spacing is not known.
    centroid, peak : tuple of float
        ``(x, y)`` of the centroid and of the centre of the most probable map pixel.
    probability : float
        Highest mask probability in the region (not calibrated).
    mean_probability : float
        Mean mask probability over the region (not calibrated).
    """

    box: tuple[int, int, int, int]
    outline: tuple[tuple[float, float], ...]
    side: Literal["left", "right"] | None
    area_px: float
    area_mm2: float | None
    centroid: tuple[float, float]
    peak: tuple[float, float]
    probability: float
    mean_probability: float

    def __post_init__(self) -> None:
        x0, y0, x1, y1 = self.box
        if not (0 <= x0 < x1 and 0 <= y0 < y1):
            raise ValueError(f"box {self.box} is empty or negative")
        if not 0 <= self.mean_probability <= self.probability <= 1:
            raise ValueError("region probabilities must be ordered and in [0, 1]")


@dataclass(frozen=True)
class Check:
    """One check of the input gate.

    Attributes
    ----------
    code : str
        ``gate.*`` code, as in ``ptxsdk.errors.CODES``.
    status : {"pass", "fail", "unknown"}
        "unknown" where the film does not say.
    detail : str
        The value found and the rule it was held against.
    """

    code: str
    status: Status
    detail: str


@dataclass(frozen=True)
class Quality:
    """What the input gate found.

    Attributes
    ----------
    checks : tuple of Check
        Every check made, in order.
    warnings : tuple of str
        ``code: text`` of what the reader or the gate had to assume.
    """

    checks: tuple[Check, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class OperatingPoint:
    """A named threshold on the calibrated probability.

    Attributes
    ----------
    name : str
        e.g. "balanced".
    threshold : float
        A film is flagged at ``probability >= threshold``.
    sensitivity, specificity : float
        As measured when the threshold was frozen; the engine's manifest holds data, n and intervals.
    """

    name: str
    threshold: float
    sensitivity: float
    specificity: float


@dataclass(frozen=True)
class EngineId:
    """Which engine scored the film: name, version and the SHA-256 of the engine file."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Timings:
    """Wall-clock time of each stage in milliseconds."""

    read: float
    gate: float
    preprocess: float
    network: float
    aggregate: float
    total: float


@dataclass(frozen=True, kw_only=True)
class Detection:
    """The result for one film.

    Attributes
    ----------
    probability : float
        Calibrated probability of pneumothorax, 0..1.
    flagged : bool
        ``probability >= operating_point.threshold``.  False means "not flagged", never "normal".
    operating_point : OperatingPoint
        The threshold used.
    regions : tuple of Region
        Where, largest first.  Empty when not flagged, and always in the triage profile.
    quality : Quality
        What the input gate found.
    backend, device, precision : str
        What ran the network, e.g. "openvino", "cpu", "fp32".
    engine : EngineId
        The engine file.
    profile : {"triage", "cade"}
        The output profile the integrator fixed.
    timings : Timings
        Wall-clock per stage, milliseconds.
    geometry : Geometry
        Between the film and the map.
    mask_logits : ndarray, shape (rows, columns) of ``geometry.target``, float32, or None
        The map as logits; read-only; None in the triage profile.
    region_threshold : float or None
        Mask probability at and above which a pixel of the map belongs to a region; None in the triage profile.
    """

    probability: float
    flagged: bool
    operating_point: OperatingPoint
    regions: tuple[Region, ...]
    quality: Quality
    backend: str
    device: str
    precision: str
    engine: EngineId
    profile: Profile
    timings: Timings = field(compare=False)
    geometry: Geometry
    mask_logits: npt.NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
    region_threshold: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability {self.probability} is not in [0, 1]")
        if self.flagged != (self.probability >= self.operating_point.threshold):
            raise ValueError("flagged contradicts the operating point")
        if self.profile == "triage" and (self.regions or self.mask_logits is not None):
            raise ValueError("the triage profile shows no location")
        if self.regions and not self.flagged:
            raise ValueError("regions on a film that is not flagged")

    @property
    def forced(self) -> bool:
        """Whether a check of the input gate failed and was overridden: for research, never to be acted on."""
        return any(check.status == "fail" for check in self.quality.checks)

    @property
    def map(self) -> npt.NDArray[np.float32] | None:
        """Probability per pixel of the network's input (not calibrated), made when asked for.

        Shape ``geometry.target``, float32; None in the triage profile.  ``geometry`` maps it to the film.
        """
        from ptxsdk.ops import mask_probability

        return None if self.mask_logits is None else mask_probability(self.mask_logits)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: plain types, the documented keys, without the map."""
        return {
            "probability": self.probability,
            "flagged": self.flagged,
            "forced": self.forced,
            "operating_point": {
                "name": self.operating_point.name,
                "threshold": self.operating_point.threshold,
                "sensitivity": self.operating_point.sensitivity,
                "specificity": self.operating_point.specificity,
            },
            "regions": [
                {
                    "box": list(region.box),
                    "side": region.side,
                    "area_px": region.area_px,
                    "area_mm2": region.area_mm2,
                    "probability": region.probability,
                    "mean_probability": region.mean_probability,
                    "centroid": list(region.centroid),
                    "peak": list(region.peak),
                    "outline": [list(point) for point in region.outline],
                }
                for region in self.regions
            ],
            "quality": {
                "checks": [
                    {"code": check.code, "status": check.status, "detail": check.detail}
                    for check in self.quality.checks
                ],
                "warnings": list(self.quality.warnings),
            },
            "backend": self.backend,
            "device": self.device,
            "precision": self.precision,
            "profile": self.profile,
            "engine": {
                "name": self.engine.name,
                "version": self.engine.version,
                "sha256": self.engine.sha256,
            },
            "timings_ms": {
                name: round(getattr(self.timings, name), 3)
                for name in ("read", "gate", "preprocess", "network", "aggregate", "total")
            },
            "disclaimer": DISCLAIMER,
        }
