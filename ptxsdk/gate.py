"""The input gate: may this film be scored?  Checks of what the file says, then of what the picture shows."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ptxsdk.detection import Check, Status
from ptxsdk.errors import DetectorError, OutOfScope
from ptxsdk.geometry import Geometry
from ptxsdk.radiograph import Radiograph

COMPUTED_RADIOGRAPHY = "1.2.840.10008.5.1.4.1.1.1"
DIGITAL_X_RAY = "1.2.840.10008.5.1.4.1.1.1.1"
DIGITAL_X_RAY_FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

_MODALITY = re.compile("[A-Z]{2}")
_UID = re.compile("[0-9.]{1,64}")
_VIEW = re.compile("AP|PA|LL|RL|RLD|LLD|RLO|LLO|LATERAL|OBLIQUE")
_BODY_PART = re.compile(
    "(PORT |PORTABLE )?(CHEST|THORAX|LUNG)S?|ABDOMEN|ANKLE|ARM|BREAST|[CLT]?SPINE|CLAVICLE|ELBOW|EXTREMITY|FEMUR|FOOT|"
    "HAND|HEAD|HIP|HUMERUS|JAW|KNEE|LEG|NECK|PELVIS|RIB|SHOULDER|SKULL|TIBIA|WHOLE ?BODY|WRIST"
)

# The left half of the mean frontal chest on a 16 x 16 grid, mirrored to be symmetric, in tenths of its standard
# deviation: lungs and outside air dark, mediastinum and abdomen bright.  Averaged over 2,303 frontal films, nearly all
# of ChestX-ray14 (NIH Clinical Center).
_MEAN_CHEST_LEFT_HALF = (
    (-23, -23, -22, -21, -18, -11, -2, 4),
    (-19, -15, -14, -13, -11, -8, -2, 3),
    (-10, -5, -4, -4, -5, -6, -4, 1),
    (-3, 1, 2, -1, -6, -8, -5, 1),
    (0, 3, 3, -2, -9, -11, -6, 2),
    (1, 3, 3, -3, -10, -12, -6, 4),
    (-1, 2, 3, -3, -10, -10, -3, 6),
    (-3, 1, 2, -3, -8, -7, 1, 9),
    (-6, 0, 2, -3, -6, -3, 4, 11),
    (-8, -1, 1, -1, -2, 1, 7, 13),
    (-9, -2, 1, 1, 2, 6, 10, 15),
    (-11, -4, 2, 4, 7, 10, 13, 16),
    (-13, -5, 3, 8, 11, 13, 16, 18),
    (-15, -6, 4, 10, 14, 16, 18, 19),
    (-16, -6, 4, 11, 15, 17, 19, 20),
    (-15, -6, 5, 12, 15, 18, 19, 20),
)


@dataclass(frozen=True, kw_only=True)
class GatePolicy:
    """What the gate lets through; the defaults are the intended use: frontal chest films of adults.

    Attributes
    ----------
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
    minimum_contrast : float
        Standard deviation of the display values over a 16 x 16 grid.
    minimum_polarity : float
        Correlation with the mean frontal chest, -1..1; an inverted film lies far below 0.
    """

    minimum_age: float = 18.0
    blank_view: Literal["accept", "refuse"] = "accept"
    secondary_capture: Literal["radiographs", "refuse"] = "radiographs"
    minimum_side: int = 256
    maximum_aspect: float = 2.5
    minimum_contrast: float = 0.04
    minimum_polarity: float = -0.1

    def __post_init__(self) -> None:
        if self.blank_view not in ("accept", "refuse") or self.secondary_capture not in ("radiographs", "refuse"):
            raise DetectorError("detector.option", f"the gate policy has an unknown word: {self}")
        limits = ("minimum_age", "minimum_side", "maximum_aspect", "minimum_contrast", "minimum_polarity")
        if not all(_is_number(getattr(self, name)) for name in limits):
            raise DetectorError("detector.option", f"the gate policy has a limit that is no finite number: {self}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


def check_header(film: Radiograph, policy: GatePolicy) -> tuple[Check, ...]:
    """Check what the file says of the film, before any pixel is touched.

    Returns
    -------
    tuple of Check
        gate.not_radiograph, gate.for_processing, gate.body_part, gate.view, gate.age, gate.size.
    """
    return (
        _check_modality(film, policy),
        _check_intent(film),
        _check_body_part(film),
        _check_view(film, policy),
        _check_age(film, policy),
        _check_size(film, policy),
    )


def check_content(shown: npt.NDArray[np.float32], policy: GatePolicy) -> tuple[Check, ...]:
    """Check what the film shows.

    Parameters
    ----------
    shown : ndarray, shape (rows, columns), float32
        Display values of the film in [0, 1], without padding, at any resolution.
    policy : GatePolicy
        The limits.

    Returns
    -------
    tuple of Check
        gate.constant, gate.contrast, gate.polarity.
    """
    spread = float(shown.max() - shown.min())
    if not spread >= 0.01:
        return (Check("gate.constant", "fail", f"display values span {spread:.3f}"),)
    grid = _grid_means(shown, 16)
    contrast = float(grid.std())
    checks = [
        Check("gate.constant", "pass", f"display values span {spread:.3f}"),
        _verdict("gate.contrast", contrast >= policy.minimum_contrast, f"contrast {contrast:.3f}"),
    ]
    if contrast > 1e-4:
        polarity = float(((grid - grid.mean()) * _mean_chest()).mean()) / contrast
        checks.append(
            _verdict(
                "gate.polarity",
                polarity >= policy.minimum_polarity,
                f"correlation with the mean frontal chest {polarity:.2f}",
            )
        )
    return tuple(checks)


def sample(tensor: npt.NDArray[np.float32], geometry: Geometry, mean: float, std: float) -> npt.NDArray[np.float32]:
    """Return display values of a preprocessed film, some 70 pixels a side: `check_content` judges coarse features.

    Parameters
    ----------
    tensor : ndarray, shape ``geometry.target``, float32
        ``(display value - mean) / std``.
    geometry : Geometry
        Where the film lies in it.
    mean, std : float
        Normalisation of the network's input.
    """
    x0, y0, x1, y1 = geometry.content
    step = sample_step(geometry)
    shown: npt.NDArray[np.float32] = tensor[y0:y1:step, x0:x1:step] * std + mean
    return shown


def sample_step(geometry: Geometry) -> int:
    """Return the distance, in pixels of the network's input, of the pixels that `sample` takes."""
    x0, y0, x1, y1 = geometry.content
    return max(1, min(y1 - y0, x1 - x0) // 64)


def enforce(checks: tuple[Check, ...]) -> None:
    """Raise for failed checks.

    Raises
    ------
    OutOfScope
        Naming every failed check.
    """
    failed = tuple((check.code, check.detail) for check in checks if check.status == "fail")
    if failed:
        raise OutOfScope(failed)


def _verdict(code: str, passed: bool, detail: str) -> Check:
    status: Status = "pass" if passed else "fail"
    return Check(code, status, detail)


def _check_modality(film: Radiograph, policy: GatePolicy) -> Check:
    code = "gate.not_radiograph"
    if film.origin != "dicom":
        return Check(code, "unknown", f"no modality in an {film.origin}")
    uid, modality = film.sop_class_uid, film.modality
    detail = f"modality {_known(modality, _MODALITY)}, SOP class {_known(uid, _UID)}"
    if uid in (COMPUTED_RADIOGRAPHY, DIGITAL_X_RAY, DIGITAL_X_RAY_FOR_PROCESSING):
        return _verdict(code, modality in (None, "CR", "DX", "RG"), detail)
    if uid == SECONDARY_CAPTURE and policy.secondary_capture == "radiographs":
        return _verdict(code, modality in ("CR", "DX"), detail)
    return Check(code, "fail", detail)


def _check_intent(film: Radiograph) -> Check:
    code = "gate.for_processing"
    if film.presentation_intent is None and film.sop_class_uid != DIGITAL_X_RAY_FOR_PROCESSING:
        return Check(code, "unknown", "no presentation intent type")
    raw = film.presentation_intent == "FOR PROCESSING" or film.sop_class_uid == DIGITAL_X_RAY_FOR_PROCESSING
    return _verdict(code, not raw, "FOR PROCESSING" if raw else "not FOR PROCESSING")


def _check_body_part(film: Radiograph) -> Check:
    if not film.body_part:
        return Check("gate.body_part", "unknown", "no body part")
    chest = any(word in film.body_part for word in ("CHEST", "THORAX", "LUNG", "PULMON"))
    return _verdict("gate.body_part", chest, f"body part {_known(film.body_part, _BODY_PART)}")


def _check_view(film: Radiograph, policy: GatePolicy) -> Check:
    if film.patient_orientation is not None and not _is_frontal(film.patient_orientation):
        return Check("gate.view", "fail", "patient orientation is not that of an upright frontal film")
    if not film.view:
        if policy.blank_view == "refuse":
            return Check("gate.view", "fail", "no view position")
        return Check("gate.view", "unknown", "no view position")
    return _verdict("gate.view", film.view in ("AP", "PA"), f"view {_known(film.view, _VIEW)}")


def _is_frontal(orientation: tuple[str, str]) -> bool:
    """Say whether rows run to the patient's left or right and columns to the feet, obliquity aside."""
    return orientation[0][:1] in ("L", "R") and orientation[1][:1] == "F"


def _known(value: str | None, pattern: re.Pattern[str]) -> str:
    """Quote only what a header may rightly hold here: free text in it can name the patient."""
    if not value:
        return "absent"
    return value if pattern.fullmatch(value) else "not a known value"


def _check_age(film: Radiograph, policy: GatePolicy) -> Check:
    if film.age is None:
        return Check("gate.age", "unknown", "no age")
    passed = film.age >= policy.minimum_age
    return _verdict("gate.age", passed, f"age {'at least' if passed else 'below'} {policy.minimum_age:g} years")


def _check_size(film: Radiograph, policy: GatePolicy) -> Check:
    short, long = sorted(film.shape)
    fits = short >= policy.minimum_side and long <= policy.maximum_aspect * short
    return _verdict(
        "gate.size",
        fits,
        f"{film.shape[0]} x {film.shape[1]} pixels; at least {policy.minimum_side} a side, "
        f"aspect ratio at most {policy.maximum_aspect:g}",
    )


@functools.cache
def _mean_chest() -> npt.NDArray[np.float64]:
    """Return the mean chest, 16 x 16, with mean 0 and standard deviation 1."""
    left = np.array(_MEAN_CHEST_LEFT_HALF, np.float64)
    chest = np.hstack([left, left[:, ::-1]])
    normalised: npt.NDArray[np.float64] = (chest - chest.mean()) / chest.std()
    return normalised


def _grid_means(values: npt.NDArray[np.float32], cells: int) -> npt.NDArray[np.float64]:
    """Mean of `values` in each cell of a `cells` x `cells` grid; an axis shorter than the grid repeats its pixels."""
    means = values.astype(np.float64)
    for axis in (0, 1):
        length = means.shape[axis]
        starts = np.arange(cells) * length // cells
        counts = np.maximum(np.append(starts[1:], length) - starts, 1)
        shape = (-1, 1) if axis == 0 else (1, -1)
        means = np.add.reduceat(means, starts, axis=axis) / counts.reshape(shape)
    return means
