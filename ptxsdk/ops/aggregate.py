"""aggregate: from the network's logits to one image logit and to regions in the pixels of the film."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ptxsdk import _core
from ptxsdk.detection import Region
from ptxsdk.errors import BackendError
from ptxsdk.geometry import Geometry

Method = Literal["noisy_or", "paper_098", "top_k", "max"]
Source = Literal["patch", "mask"]
Side = Literal["left", "right"]


@dataclass(frozen=True)
class Aggregate:
    """What the network's output says about one film.

    Attributes
    ----------
    logit : float
        Image logit, not calibrated; finite.
    regions : tuple of Region
        Largest first, regions of the same size in raster order of their first pixel.
    """

    logit: float
    regions: tuple[Region, ...]


def aggregate(
    patch_logits: npt.NDArray[np.float32],
    mask_logits: npt.NDArray[np.float32],
    *,
    geometry: Geometry,
    method: Method,
    k: int = 1,
    source: Source = "patch",
    high: float,
    low: float,
    min_area: int,
    columns_toward: Side | None = None,
    pixel_spacing: tuple[float, float] | None = None,
    want_outlines: bool = True,
) -> Aggregate:
    """Score the film and find the regions of its map.

    With ``sigma(z) = 1 / (1 + exp(-z))`` the image logit is

    ========= ==========================================================================================
    method    logit
    ========= ==========================================================================================
    noisy_or  of ``1 - exp(s)``, ``s = sum log(1 - sigma(z))`` (Li et al. 2018, arXiv 1711.06373)
    paper_098 of ``1 - exp(s)``, ``s = sum log(1 - 0.02 sigma(z))``: p and 1 - p mapped to [0.98, 1]
    top_k     mean of the `k` largest ``z``
    max       largest ``z``
    ========= ==========================================================================================

    computed in float64 and finite for all finite logits.  A region is an 8-connected component of
    ``sigma(z) >= low`` inside ``geometry.content`` that holds a pixel of ``sigma(z) >= high`` and at least
    `min_area` pixels of the map; the comparisons are made on the logits.

    Parameters
    ----------
    patch_logits : ndarray, shape (P, Q), float32, C-contiguous
        Logits of the patches.
    mask_logits : ndarray, shape ``geometry.target``, float32, C-contiguous
        Logits of the map.
    geometry : Geometry
        Where the film lies in the map, as returned by `ptxsdk.ops.preprocess`.
    method : {"noisy_or", "paper_098", "top_k", "max"}
        How the image logit is made.
    k : int
        For "top_k", at least 1; more than there are logits means all.
    source : {"patch", "mask"}
        The logits scored: all patches, or the pixels of the map inside ``geometry.content``.
    high, low : float
        Probabilities, ``0 < low <= high < 1``.
    min_area : int
        Pixels of the map, not negative.
    columns_toward : {"left", "right"}, optional
        Side of the patient to which ``x`` grows: "left" in the usual display (first value of DICOM Patient
        Orientation ``L``).  Unknown by default; the regions then have no side.
    pixel_spacing : tuple of float, optional
        ``(row, column)`` in mm; without it the regions have no area in mm2.
    want_outlines : bool
        Trace the outlines; otherwise they are empty.

    Returns
    -------
    Aggregate
        Regions in pixels of the film.  An outline runs along the edges of the map's pixels, clockwise as seen;
        it is the outer boundary, so holes are not outlined though ``area_px`` leaves them out.  Where two pixels
        of a region touch at a corner only, the outline passes that corner twice: it may touch itself, never
        cross itself.  The midline is the middle of the content; a centroid exactly on it has no side.

    Raises
    ------
    BackendError
        ``backend.not_finite``: a logit, in the padding too, is NaN or infinite.
    TypeError, ValueError
        An argument breaks its contract; a programming error.
    """
    _check_logits("patch_logits", patch_logits)
    _check_logits("mask_logits", mask_logits)
    if mask_logits.shape != tuple(geometry.target):
        raise ValueError(f"mask_logits have shape {mask_logits.shape}, the geometry's target is {geometry.target}")
    if columns_toward is not None and columns_toward not in get_args(Side):
        raise ValueError(f"columns_toward is {columns_toward!r}, not 'left', 'right' or None")
    if pixel_spacing is not None and not all(np.isfinite(step) and step > 0 for step in pixel_spacing):
        raise ValueError(f"pixel_spacing {pixel_spacing} is not positive")
    try:
        logit, found = _core.aggregate(
            patch_logits,
            mask_logits,
            source_shape=geometry.source,
            content=geometry.content,
            method=method,
            source=source,
            k=k,
            high=high,
            low=low,
            min_area=min_area,
            want_outlines=want_outlines,
        )
    except _core.NotFiniteError as error:
        raise BackendError("backend.not_finite", str(error)) from None
    return Aggregate(logit, _in_film(found, geometry, columns_toward, pixel_spacing))


def regions_of(
    result: npt.NDArray[np.uint8],
    logits: Callable[[], tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]],
    *,
    geometry: Geometry,
    columns_toward: Side | None = None,
    pixel_spacing: tuple[float, float] | None = None,
    want_outlines: bool = True,
    **scoring: Any,
) -> Aggregate:
    """Read what the CUDA twin wrote for one film; a result with too few records is made anew by the CPU twin.

    Parameters
    ----------
    result : ndarray, shape (n,), uint8
        An AggregateResult, whose last records may be missing.
    logits : callable
        Returns patch and mask logits as in `aggregate`; asked only where they are needed.
    geometry, columns_toward, pixel_spacing, want_outlines, scoring
        As in `aggregate`.

    Raises
    ------
    BackendError
        ``backend.not_finite``; ``backend.failed``: the result makes no sense.
    """
    try:
        found = _core.aggregate_of_result(
            result,
            source_shape=geometry.source,
            content=geometry.content,
            method=scoring["method"],
            low=scoring["low"],
            map_shape=geometry.target,
            mask_logits=logits()[1] if want_outlines else None,
        )
    except _core.NotFiniteError as error:
        raise BackendError("backend.not_finite", str(error)) from None
    except ValueError as error:
        raise BackendError("backend.failed", f"the device's result makes no sense: {error}") from None
    if found is None:
        return aggregate(
            *logits(),
            geometry=geometry,
            columns_toward=columns_toward,
            pixel_spacing=pixel_spacing,
            want_outlines=want_outlines,
            **scoring,
        )
    return Aggregate(found[0], _in_film(found[1], geometry, columns_toward, pixel_spacing))


def _in_film(
    found: list[_core.MapRegion],
    geometry: Geometry,
    columns_toward: Side | None,
    pixel_spacing: tuple[float, float] | None,
) -> tuple[Region, ...]:
    """Give regions their side and their area in mm2."""
    mm2 = None if pixel_spacing is None else float(pixel_spacing[0]) * float(pixel_spacing[1])
    return tuple(
        Region(
            box=region.box,
            outline=region.outline,
            side=_side(region.centroid[0], geometry.source[1], columns_toward),
            area_px=region.area_px,
            area_mm2=None if mm2 is None else region.area_px * mm2,
            centroid=region.centroid,
            peak=region.peak,
            probability=region.probability,
            mean_probability=region.mean_probability,
        )
        for region in found
    )


def mask_probability(mask_logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the probability of each pixel of the map, ``1 / (1 + exp(-z))``.

    Parameters
    ----------
    mask_logits : ndarray, shape (H, W), float32, C-contiguous
        Logits of the map.

    Returns
    -------
    ndarray, shape (H, W), float32
        A new array.  Within 5e-7 of the exact value, relatively, for ``z >= -87``; below that the value at -87,
        1.6e-38.  NaN stays NaN.

    Raises
    ------
    TypeError, ValueError
        `mask_logits` is not such an array.
    """
    _check_logits("mask_logits", mask_logits)
    return _core.mask_probability(mask_logits)


def _check_logits(name: str, logits: npt.NDArray[np.float32]) -> None:
    if not isinstance(logits, np.ndarray):
        raise TypeError(f"{name} must be a numpy array, not {type(logits).__name__}")
    if logits.dtype != np.float32:
        raise TypeError(f"{name} must be native float32, not {logits.dtype}")
    if logits.ndim != 2 or logits.size == 0:
        raise ValueError(f"{name} must have two dimensions and no empty one, not shape {logits.shape}")
    if not logits.flags.c_contiguous:
        raise ValueError(f"{name} must be C-contiguous; use numpy.ascontiguousarray")
    if not logits.flags.aligned:
        raise ValueError(f"{name} must be aligned; use numpy.require")


def _side(x: float, columns: int, columns_toward: Side | None) -> Side | None:
    if columns_toward is None or 2 * x == columns:
        return None
    if 2 * x > columns:
        return columns_toward
    return "right" if columns_toward == "left" else "left"
