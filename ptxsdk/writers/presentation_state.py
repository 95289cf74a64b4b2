"""Presentation state: the outlines as a Grayscale Softcopy Presentation State (PS3.3 A.33.1) upon the film itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from ptxsdk.radiograph import Display, LookupTable
from ptxsdk.writers import notices
from ptxsdk.writers.instance import Origin
from ptxsdk.writers.segmentation import AMBER, label


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
    layer = pr.GraphicLayer("PNEUMOTHORAX", 1, notices(detection)[0], CIELabColor(*AMBER))
    graphics = [
        pr.GraphicObject(
            pr.GraphicTypeValues.POLYLINE,
            np.array([*region.outline, region.outline[0]]),
            pr.AnnotationUnitsValues.PIXEL,
            tracking_id=f"pneumothorax {number}",
            tracking_uid=origin.uid("region", str(number)),
        )
        for number, region in enumerate(detection.regions, 1)
    ]
    texts = [
        pr.TextObject(label(region, number), pr.AnnotationUnitsValues.PIXEL, anchor_point=region.box[:2])
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
    from highdicom import ModalityLUT, ModalityLUTTransformation

    if display.modality_lut is not None:
        table = display.modality_lut
        return ModalityLUTTransformation(
            modality_lut=ModalityLUT("US", table.first, np.clip(table.entries, 0, 65535).astype(np.uint16))
        )
    if (display.slope, display.intercept) == (1, 0):
        return None
    return ModalityLUTTransformation(display.intercept, display.slope, "US")


def _voi(display: Display) -> Any:
    from highdicom import VOILUT
    from highdicom.pr import SoftcopyVOILUTTransformation

    if isinstance(display.voi, LookupTable):
        entries = np.rint(display.voi.entries * 65535).astype(np.uint16)
        return SoftcopyVOILUTTransformation(voi_luts=[VOILUT(display.voi.first, entries)])
    window = display.voi
    return SoftcopyVOILUTTransformation(window.center, window.width, voi_lut_function=window.function)
