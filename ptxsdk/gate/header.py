"""What the file says of the film: checked before any pixel is touched."""

from __future__ import annotations

import re

from ptxsdk.detection import Check
from ptxsdk.gate.policy import GatePolicy, verdict
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


def check_header(film: Radiograph, policy: GatePolicy) -> tuple[Check, ...]:
    """Check what the file says of the film.

    Returns
    -------
    tuple of Check
        gate.not_radiograph, gate.for_processing, gate.body_part, gate.view, gate.age, gate.size, gate.spacing.
    """
    return (
        _check_modality(film, policy),
        _check_intent(film),
        _check_body_part(film),
        _check_view(film, policy),
        _check_age(film, policy),
        _check_size(film, policy),
        _check_spacing(film, policy),
    )


def _check_modality(film: Radiograph, policy: GatePolicy) -> Check:
    code = "gate.not_radiograph"
    if film.origin != "dicom":
        return Check(code, "unknown", f"no modality in an {film.origin}")
    uid, modality = film.sop_class_uid, film.modality
    detail = f"modality {_known(modality, _MODALITY)}, SOP class {_known(uid, _UID)}"
    if uid in (COMPUTED_RADIOGRAPHY, DIGITAL_X_RAY, DIGITAL_X_RAY_FOR_PROCESSING):
        return verdict(code, modality in (None, "CR", "DX", "RG"), detail)
    if uid == SECONDARY_CAPTURE and policy.secondary_capture == "radiographs":
        return verdict(code, modality in ("CR", "DX"), detail)
    return Check(code, "fail", detail)


def _check_intent(film: Radiograph) -> Check:
    code = "gate.for_processing"
    if film.presentation_intent is None and film.sop_class_uid != DIGITAL_X_RAY_FOR_PROCESSING:
        return Check(code, "unknown", "no presentation intent type")
    raw = film.presentation_intent == "FOR PROCESSING" or film.sop_class_uid == DIGITAL_X_RAY_FOR_PROCESSING
    return verdict(code, not raw, "FOR PROCESSING" if raw else "not FOR PROCESSING")


def is_chest(body_part: str) -> bool:
    """Say whether Body Part Examined names the chest, in one of the words that units use."""
    return any(word in body_part for word in ("CHEST", "THORAX", "LUNG", "PULMON"))


def _check_body_part(film: Radiograph) -> Check:
    if not film.body_part:
        return Check("gate.body_part", "unknown", "no body part")
    return verdict("gate.body_part", is_chest(film.body_part), f"body part {_known(film.body_part, _BODY_PART)}")


def _check_view(film: Radiograph, policy: GatePolicy) -> Check:
    if film.patient_orientation is not None and not _is_frontal(film.patient_orientation):
        return Check("gate.view", "fail", "patient orientation is not that of an upright frontal film")
    if not film.view:
        if policy.blank_view == "refuse":
            return Check("gate.view", "fail", "no view position")
        return Check("gate.view", "unknown", "no view position")
    return verdict("gate.view", film.view in ("AP", "PA"), f"view {_known(film.view, _VIEW)}")


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
    return verdict("gate.age", passed, f"age {'at least' if passed else 'below'} {policy.minimum_age:g} years")


def _check_size(film: Radiograph, policy: GatePolicy) -> Check:
    short, long = sorted(film.shape)
    fits = short >= policy.minimum_side and long <= policy.maximum_aspect * short
    return verdict(
        "gate.size",
        fits,
        f"{film.shape[0]} x {film.shape[1]} pixels; at least {policy.minimum_side} a side, "
        f"aspect ratio at most {policy.maximum_aspect:g}",
    )


def _check_spacing(film: Radiograph, policy: GatePolicy) -> Check:
    if film.pixel_spacing is None:
        return Check("gate.spacing", "unknown", "no usable pixel spacing")
    sides = tuple(pixels * mm for pixels, mm in zip(film.shape, film.pixel_spacing, strict=True))
    fits = min(sides) >= policy.minimum_film and max(sides) <= policy.maximum_film
    return verdict(
        "gate.spacing",
        fits,
        f"the film would be {sides[0]:.0f} x {sides[1]:.0f} mm; "
        f"plausible are {policy.minimum_film:g} to {policy.maximum_film:g} mm a side",
    )
