"""Structured report: Comprehensive 3D SR (PS3.3 A.35.13) by TID 1500, not verified.

The first measurement group (TID 1501) is about the whole film: the flag, the calibrated probability, the threshold.  In
the profile "cade" a group for each region follows (TID 1410): lung and side, area, the map's values, and where it is,
by reference to the SEG or as an outline.  "Finding: Pneumothorax" is written of flagged films and regions only.
"""

from __future__ import annotations

from typing import Any

from ptxsdk.detection import Region
from ptxsdk.writers import codes as concepts
from ptxsdk.writers import notices
from ptxsdk.writers.instance import MANUFACTURER, Origin
from ptxsdk.writers.outline import closed_outline


def structured_report(origin: Origin, segmentation: Any | None = None) -> Any:
    """Make the report.

    Parameters
    ----------
    origin : Origin
        The result and its film.
    segmentation : highdicom.seg.Segmentation, optional
        The SEG of the same result, to refer to; without it outlines are written.

    Returns
    -------
    highdicom.sr.Comprehensive3DSR
        Explicit VR Little Endian.
    """
    from highdicom import sr
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from pydicom.sr.codedict import codes

    device = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            origin.device_uid,
            name=MANUFACTURER,
            manufacturer_name=MANUFACTURER,
            model_name=origin.detection.engine.name,
            serial_number=origin.detection.engine.sha256,
        ),
    )
    groups = [_film(origin)]
    groups += [
        _region(origin, region, number, segmentation) for number, region in enumerate(origin.detection.regions, 1)
    ]
    content = sr.MeasurementReport(
        sr.ObservationContext(observer_device_context=device),
        procedure_reported=codes.SCT.PlainRadiography,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    report = sr.Comprehensive3DSR(
        [origin.source] if segmentation is None else [origin.source, segmentation],
        content[0],
        is_complete=True,
        is_final=False,
        is_verified=False,
        coding_schemes=[
            CodingSchemeIdentificationItem(
                concepts.SCHEME, name="Codes of ptxsdk", responsible_organization=MANUFACTURER
            )
        ],
        **origin.identifiers("sr", "outlines" if segmentation is None else "segments"),
    )
    return origin.finish(report)


def _film(origin: Origin) -> Any:
    """Return the group about the whole film."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    detection = origin.detection
    algorithm = sr.AlgorithmIdentification(
        detection.engine.name,
        detection.engine.version,
        [f"{name}: {value}" for name, value in origin.parameters.items()],
        manufacturer=MANUFACTURER,
    )
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(origin.uid("film"), "film"),
        finding_type=concepts.PNEUMOTHORAX if detection.flagged else None,
        algorithm_id=algorithm,
        measurements=[
            sr.Measurement(concepts.PROBABILITY, round(detection.probability, 6), codes.UCUM.NoUnits),
            sr.Measurement(concepts.THRESHOLD, round(detection.operating_point.threshold, 6), codes.UCUM.NoUnits),
        ],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(concepts.FLAG, concepts.FLAGGED if detection.flagged else concepts.NOT_FLAGGED)
        ],
        source_images=[
            sr.SourceImageForMeasurementGroup(origin.source.SOPClassUID, origin.source.SOPInstanceUID),
        ],
    )
    _comment(group, *notices(detection))
    return group


def _region(origin: Origin, region: Region, number: int, segmentation: Any | None) -> Any:
    """Return the group about one region."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    if region.area_mm2 is None:
        area = sr.Measurement(concepts.AREA, round(region.area_px, 3), concepts.PIXELS)
    else:
        area = sr.Measurement(concepts.AREA, round(region.area_mm2, 3), codes.UCUM.SquareMillimeter)
    side = None if region.side is None else concepts.SIDES[region.side]
    source = (origin.source.SOPClassUID, origin.source.SOPInstanceUID)
    where: dict[str, Any]
    if segmentation is None:
        outline = sr.ImageRegion(
            sr.GraphicTypeValues.POLYLINE, closed_outline(region), sr.SourceImageForRegion(*source)
        )
        where = {"referenced_region": outline}
    else:
        segment = sr.ReferencedSegmentationFrame(
            segmentation.SOPClassUID,
            segmentation.SOPInstanceUID,
            number,
            number,
            sr.SourceImageForSegmentation(*source),
        )
        # Either the frame or the segment may be named, not both (PS3.3 table 10-3); highdicom writes both.
        del segment[0].ReferencedSOPSequence[0].ReferencedFrameNumber
        where = {"referenced_segment": segment}
    group = sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(origin.uid("region", str(number)), f"pneumothorax {number}"),
        finding_type=concepts.PNEUMOTHORAX,
        finding_sites=[sr.FindingSite(concepts.LUNG, laterality=side)],
        measurements=[
            area,
            sr.Measurement(concepts.MAP_PEAK, round(region.probability, 6), codes.UCUM.NoUnits),
            sr.Measurement(concepts.MAP_MEAN, round(region.mean_probability, 6), codes.UCUM.NoUnits),
        ],
        **where,
    )
    if region.area_mm2 is not None and origin.film.spacing_source == "ImagerPixelSpacing":
        _comment(group, "area at the detector, magnified")
    return group


def _comment(group: Any, *texts: str) -> None:
    """Add remarks to a group."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    for text in texts:
        group[0].ContentSequence.append(sr.TextContentItem(codes.DCM.Comment, text, sr.RelationshipTypeValues.CONTAINS))
