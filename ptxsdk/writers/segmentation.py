"""Segmentation: the regions as a DICOM SEG (PS3.3 A.51), BINARY, one segment a region, on the film's own pixels.

A pixel of the film belongs to a region when its centre lies in one of the map's pixels that make up the region.  So a
segment is the region's outline filled, without its holes; areas differ from ``Region.area_px``, which is exact, by what
the film's pixels cut off or add at the edge.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ptxsdk.detection import Detection, Region
from ptxsdk.errors import WriterError
from ptxsdk.writers import notices
from ptxsdk.writers.codes import LUNG, PNEUMOTHORAX, SIDES
from ptxsdk.writers.instance import MANUFACTURER, Origin

Mask = npt.NDArray[np.bool_]

AMBER_LAB = (83.0, 15.0, 84.0)  # CIELab of the overlay's amber


def segmentation(origin: Origin) -> Any:
    """Make the Segmentation.

    Parameters
    ----------
    origin : Origin
        The result, with at least one region, and its film.

    Returns
    -------
    highdicom.seg.Segmentation
        Frame n is segment n, in the order of ``detection.regions``; Explicit VR Little Endian, not compressed.
    """
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes

    detection = origin.detection
    algorithm = AlgorithmIdentificationSequence(
        name=detection.engine.name[:64],
        family=codes.DCM.ArtificialIntelligence,
        version=detection.engine.version[:64],
        source=MANUFACTURER,
        parameters=origin.parameters,
    )
    descriptions = [
        SegmentDescription(
            number,
            label(region, number),
            codes.SCT.MorphologicallyAbnormalStructure,
            PNEUMOTHORAX,
            SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm,
            tracking_uid=origin.uid("region", str(number)),
            tracking_id=f"pneumothorax {number}",
            display_color=CIELabColor(*AMBER_LAB),
        )
        for number, region in enumerate(detection.regions, 1)
    ]
    for description, region in zip(descriptions, detection.regions, strict=True):
        description.SegmentDescription = ". ".join(notices(detection))
        _add_site(description, region)
    made = Segmentation(
        [origin.source],
        _pixels(detection),
        SegmentationTypeValues.BINARY,
        descriptions,
        content_label="PNEUMOTHORAX",
        content_description=notices(detection)[0],
        **origin.identifiers("seg"),
    )
    made.PatientOrientation = list(origin.film.patient_orientation or ()) or None
    dimensions = origin.uid("seg", "dimensions")
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
    return origin.finish(made)


def label(region: Region, number: int) -> str:
    """Return the name of a region for people."""
    return f"Suspected pneumothorax {number}" + ("" if region.side is None else f", {region.side}")


def region_masks(detection: Detection) -> list[tuple[tuple[slice, slice], Mask]]:
    """Return the pixels of the film that each region covers.

    Parameters
    ----------
    detection : Detection
        A result with its map.

    Returns
    -------
    list of (tuple of slice, ndarray)
        For each region the rows and columns of its box, and which pixels of the box belong to it.  A region that holds
        no pixel's centre has the pixel under its peak.

    Raises
    ------
    WriterError
        ``writer.source``: the result does not carry its map.
    """
    import cv2

    if detection.mask_logits is None or detection.region_threshold is None:
        raise WriterError("writer.source", "the result does not carry the map that its regions are of")
    geometry = detection.geometry
    left, top, right, bottom = geometry.content
    content = detection.mask_logits[top:bottom, left:right]
    above = (content >= _logit(detection.region_threshold)).astype(np.uint8)
    _, labels = cv2.connectedComponents(above, connectivity=8)
    rows = _nearest(geometry.source[0], bottom - top)
    columns = _nearest(geometry.source[1], right - left)
    masks = []
    for region in detection.regions:
        x0, y0, x1, y1 = region.box
        x, y = geometry.to_target(*region.peak)
        component = labels[int(y) - top, int(x) - left]
        mask: Mask = labels[np.ix_(rows[y0:y1], columns[x0:x1])] == component
        if not mask.any():
            mask[int(region.peak[1]) - y0, int(region.peak[0]) - x0] = True
        masks.append(((slice(y0, y1), slice(x0, x1)), mask))
    return masks


def _pixels(detection: Detection) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Return the segments in one plane of numbers, or in a plane each where two of them share a pixel."""
    masks = region_masks(detection)
    plane = np.zeros((1, *detection.geometry.source), np.uint16 if len(masks) > 255 else np.uint8)
    for number, (box, mask) in enumerate(masks, 1):
        plane[0][box][mask] = number
    if np.count_nonzero(plane) == sum(np.count_nonzero(mask) for _, mask in masks):
        return plane
    planes = np.zeros((1, *detection.geometry.source, len(masks)), np.uint8)
    for number, (box, mask) in enumerate(masks):
        planes[0, ..., number][box][mask] = 1
    return planes


def _nearest(source: int, target: int) -> npt.NDArray[np.intp]:
    """Return for each pixel of the film's side the pixel of the map's that its centre lies in, in integers."""
    return (2 * np.arange(source, dtype=np.intp) + 1) * target // (2 * source)


def _logit(probability: float) -> np.float32:
    """Return the smallest float32 whose sigmoid reaches the probability, as ``csrc/ops/aggregate.hpp`` has it."""
    exact = float(np.log(probability / (1 - probability)))
    logit: np.float32 = np.float32(exact)
    return logit if float(logit) >= exact else np.float32(np.nextafter(logit, np.float32(np.inf)))


def _add_site(description: Any, region: Region) -> None:
    """Say in which lung a segment lies, as far as it is known."""
    from highdicom.sr import CodedConcept

    site = CodedConcept.from_code(LUNG)
    if region.side is not None:
        site.AnatomicRegionModifierSequence = [CodedConcept.from_code(SIDES[region.side])]
    description.AnatomicRegionSequence = [site]
