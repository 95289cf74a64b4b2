"""Presentation state: the outlines as a Grayscale Softcopy Presentation State (PS3.3 A.33.1) upon the film itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from ptxsdk.radiograph import Display, LookupTable
from ptxsdk.writers import notices
from ptxsdk.writers.instance import Origin
from ptxsdk.writers.outline import closed_outline
from ptxsdk.writers.segmentation import AMBER_LAB, label


def presentation_state(origin: Origin) -> Any:
    """Make the presentation state.

    Parameters
    ----------
    origin : Origin
        The result, with at least one region, and its film.

    Returns
    -------
    highdicom.pr.GrayscaleSoftcopyPresentationState
        Explicit VR Little Endian.
    """
    from highdicom import PresentationLUTTransformation, pr
    from highdicom.color import CIELabColor

    detection = origin.detection
    layer = pr.GraphicLayer("PNEUMOTHORAX", 1, notices(detection)[0], CIELabColor(*AMBER_LAB))
    graphics = [
        pr.GraphicObject(
            pr.GraphicTypeValues.POLYLINE,
            closed_outline(region),
            pr.AnnotationUnitsValues.PIXEL,
            tracking_id=f"pneumothorax {number}",
            tracking_uid=origin.uid("region", str(number)),
        )
        for number, region in enumerate(detection.regions, 1)
    ]
    texts = [
        pr.TextObject(
            label(region, number),
            pr.AnnotationUnitsValues.PIXEL,
            anchor_point=region.box[:2],
            anchor_point_visible=False,
        )
        for number, region in enumerate(detection.regions, 1)
    ]
    texts.append(
        pr.TextObject(
            "\r\n".join(notices(detection)), pr.AnnotationUnitsValues.DISPLAY, bounding_box=(0.0, 0.9, 1.0, 1.0)
        )
    )
    made = pr.GrayscaleSoftcopyPresentationState(
        [origin.source],
        content_label="PNEUMOTHORAX",
        content_description=notices(detection)[0],
        graphic_layers=[layer],
        graphic_annotations=[
            pr.GraphicAnnotation([origin.source], layer, graphic_objects=graphics, text_objects=texts)
        ],
        modality_lut_transformation=_modality(origin.film.display),
        voi_lut_transformations=[_voi(origin.film.display)],
        # The state replaces the film's whole pipeline, Photometric Interpretation included (PS3.3 C.11.6).
        presentation_lut_transformation=PresentationLUTTransformation(
            presentation_lut_shape="INVERSE" if origin.film.display.invert else "IDENTITY"
        ),
        **origin.identifiers("gsps"),
    )
    return origin.finish(made)


def _modality(display: Display) -> Any | None:
    """Return the film's modality transform; None for the identity."""
    from highdicom import ModalityLUT, ModalityLUTTransformation
    from pydicom.valuerep import format_number_as_ds

    if display.modality_lut is not None:
        entries = np.clip(np.rint(display.modality_lut.entries), 0, 65535).astype(np.uint16)
        lut = _starting_at(ModalityLUT("US", 0, entries), display.modality_lut.first)
        return ModalityLUTTransformation(modality_lut=lut)
    if (display.slope, display.intercept) == (1, 0):
        return None
    made = ModalityLUTTransformation(display.intercept, display.slope, "US")
    made.RescaleIntercept = format_number_as_ds(display.intercept)
    made.RescaleSlope = format_number_as_ds(display.slope)
    return made


def _voi(display: Display) -> Any:
    """Return the VOI transform that the film was scored with, be it the film's own or estimated."""
    from highdicom import VOILUT
    from highdicom.pr import SoftcopyVOILUTTransformation

    if isinstance(display.voi, LookupTable):
        entries = np.rint(np.clip(display.voi.entries, 0, 1) * 65535).astype(np.uint16)
        return SoftcopyVOILUTTransformation(voi_luts=[_starting_at(VOILUT(0, entries), display.voi.first)])
    window = display.voi
    return SoftcopyVOILUTTransformation(window.center, window.width, voi_lut_function=window.function)


def _starting_at(lut: Any, first: int) -> Any:
    """Set the first value mapped, which highdicom takes from 0 on only; a negative one makes the descriptor signed."""
    from pydicom.dataelem import DataElement

    count, _, bits = lut.LUTDescriptor
    if first < 0:
        count = count - 65536 if count > 32767 else count  # the same 16 bits: the count is read unsigned (C.11.1.1)
    lut["LUTDescriptor"] = DataElement("LUTDescriptor", "SS" if first < 0 else "US", [count, first, bits])
    return lut
