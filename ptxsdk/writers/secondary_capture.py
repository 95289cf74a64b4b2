"""Secondary Capture: a picture of the result that every PACS shows (PS3.3 A.8.1), 8-bit colour.

In the profile "cade" it is the overlay.  In "triage" it is a page with flag and probability and without the film: a
second copy of the film beside the first would invite reading it, and adds nothing to a flag.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ptxsdk.detection import Detection
from ptxsdk.writers import notices
from ptxsdk.writers.drawing import AMBER, BAR, FAINT, RED, TEXT, Canvas, line, percent
from ptxsdk.writers.instance import Origin

_PAGE = (600, 900)


def secondary_capture(origin: Origin) -> Any:
    """Make the Secondary Capture.

    Parameters
    ----------
    origin : Origin
        The result and its film.

    Returns
    -------
    highdicom.sc.SCImage
        RGB, Explicit VR Little Endian, not compressed.
    """
    from highdicom.sc import SCImage

    detection, film = origin.detection, origin.film
    if detection.profile == "triage":
        picture, shows_film = render_page(detection), False
    else:
        from ptxsdk.writers.overlay import render_overlay

        picture, shows_film = render_overlay(film, detection), True
    image = SCImage(
        np.ascontiguousarray(picture[..., ::-1]),
        "RGB",
        8,
        "PATIENT",
        study_instance_uid=origin.source.StudyInstanceUID,
        patient_orientation=("L", "F"),  # highdicom wants one; what is known of it follows
        **origin.identifiers("sc"),
    )
    oriented = shows_film and film.patient_orientation is not None
    image.PatientOrientation = list(film.patient_orientation or ()) if oriented else None
    image.DerivationDescription = (
        "Result of an algorithm, drawn over the film" if shows_film else "Result of an algorithm"
    )
    image.ImageComments = ". ".join(notices(detection))
    image.SourceImageSequence = [_reference(origin)]
    _burned_in(image, origin, shows_film=shows_film)
    return origin.finish(image)


def render_page(detection: Detection) -> Canvas:
    """Write flag and probability on an empty page.

    Returns
    -------
    ndarray, shape (600, 900, 3), uint8
        BGR.
    """
    page = np.full((*_PAGE, 3), BAR, np.uint8)
    point = detection.operating_point
    first, *others = notices(detection)
    result = "PNEUMOTHORAX FLAGGED" if detection.flagged else "not flagged"
    line(page, result, 0.25, 1.9, AMBER if detection.flagged else TEXT, "centre")
    line(page, f"probability {percent(detection.probability)}", 0.40, 1.3, TEXT, "centre")
    line(page, f"operating point {point.name}: {percent(point.threshold)}", 0.50, 0.8, FAINT, "centre")
    line(page, first, 0.70, 1.2, RED, "centre")
    for number, text in enumerate((*others, f"{detection.engine.name} {detection.engine.version}")):
        line(page, text, 0.79 + 0.06 * number, 0.7, FAINT, "centre")
    return page


def _reference(origin: Origin) -> Any:
    """Return the reference to the film as the source of the picture."""
    from highdicom.sr import CodedConcept
    from pydicom.dataset import Dataset
    from pydicom.sr.codedict import codes

    item = Dataset()
    item.ReferencedSOPClassUID = origin.source.SOPClassUID
    item.ReferencedSOPInstanceUID = origin.source.SOPInstanceUID
    item.PurposeOfReferenceCodeSequence = [
        CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation),
    ]
    return item


def _burned_in(image: Any, origin: Origin, *, shows_film: bool) -> None:
    """Say of identifying marks and of lossy compression what is true of the film's copy in the picture."""
    if not shows_film:
        image.BurnedInAnnotation = "NO"
        return
    said = origin.header.text("BurnedInAnnotation")
    if said in ("YES", "NO"):
        image.BurnedInAnnotation = said
    for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if keyword in origin.source:
            image[keyword] = origin.source[keyword]
