"""The SR: read back with highdicom, it says what the Detection says, and of the same pixels."""

from __future__ import annotations

from dataclasses import replace

import highdicom as hd
import numpy as np
import pytest
from dicom_results import EVERY, chest_film, program, run, violations
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from ptxsdk import Region
from ptxsdk.writers import dicom_objects, notices, write_dicom

FLAG = Code("PTX-FLAG", "99PTXSDK", "Flag for pneumothorax")


def report(detection, film, folder, formats=("sr",)):
    """The report, written and read again."""
    write_dicom(folder / "sr.dcm", dicom_objects(detection, film, formats)["sr"])
    assert violations(folder / "sr.dcm") == []
    return hd.sr.srread(folder / "sr.dcm")


def film_group(read):
    (group,) = read.content.get_image_measurement_groups()
    return group


def number(group, name):
    (measurement,) = group.get_measurements(name)
    return measurement.value, measurement.unit


def comments(group):
    return [item.value for item in group[0].ContentSequence if item.name == codes.DCM.Comment]


def test_a_report_is_comprehensive_3d_complete_and_not_verified(results_of):
    read = hd.sr.srread(results_of("full_dx").files["sr"])
    assert isinstance(read, hd.sr.Comprehensive3DSR)
    assert (read.CompletionFlag, read.VerificationFlag, read.PreliminaryFlag) == (
        "COMPLETE",
        "UNVERIFIED",
        "PRELIMINARY",
    )
    assert read.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert "VerifyingObserverSequence" not in read
    (observer,) = read.content.get_observer_contexts()
    assert observer.observer_type == codes.DCM.Device
    assert observer.observer_identifying_attributes.manufacturer_name == "ptxsdk"


@pytest.mark.parametrize("flagged", [True, False])
def test_the_group_of_the_film(detector, tmp_path, flagged):
    film = chest_film(blob=(250, 150, 60) if flagged else None)
    detection = detector.predict(film)
    group = film_group(report(detection, film, tmp_path))
    assert group.finding_type == (codes.SCT.Pneumothorax if flagged else None)
    value, unit = number(group, codes.DCM.Probability)
    assert value == pytest.approx(detection.probability, abs=1e-6)
    assert unit == codes.UCUM.NoUnits
    threshold = Code("PTX-THRESHOLD", "99PTXSDK", "")
    assert number(group, threshold)[0] == pytest.approx(detection.operating_point.threshold, abs=1e-6)
    (evaluation,) = group.get_qualitative_evaluations(FLAG)
    assert evaluation.value.value == ("PTX-FLAGGED" if flagged else "PTX-NOT-FLAGGED")
    assert comments(group) == list(notices(detection))
    (source,) = group.source_images
    assert source.referenced_sop_instance_uid == film.dataset.SOPInstanceUID
    said = [item.value for item in group[0].ContentSequence if item.name == codes.DCM.AlgorithmParameters]
    assert f"operating point: {detection.operating_point.name}" in said
    assert f"engine SHA-256: {detection.engine.sha256}" in said


def test_a_film_that_is_not_flagged_has_no_finding_anywhere(detector, tmp_path):
    film = chest_film(blob=None)
    read = report(detector.predict(film), film, tmp_path)
    assert read.content.get_planar_roi_measurement_groups() == []
    assert codes.SCT.Pneumothorax.value not in {e.value for e in read.iterall() if e.keyword == "CodeValue"}


@pytest.mark.parametrize("name", ["full_dx", "rg1", "odd_size"])
def test_a_group_a_region_refers_to_its_segment(results_of, name):
    results = results_of(name)
    read, seg = hd.sr.srread(results.files["sr"]), hd.seg.segread(results.files["seg"])
    groups = read.content.get_planar_roi_measurement_groups()
    assert len(groups) == len(results.detection.regions) > 0
    for count, (group, region) in enumerate(zip(groups, results.detection.regions, strict=True), 1):
        frame = group.referenced_segmentation_frame
        reference = frame[0].ReferencedSOPSequence[0]
        assert reference.ReferencedSOPInstanceUID == seg.SOPInstanceUID
        assert reference.ReferencedSegmentNumber == count
        assert group.tracking_uid == seg.get_segment_description(count).tracking_uid
        assert group.finding_type == codes.SCT.Pneumothorax
        (site,) = group.finding_sites
        assert site.value == codes.SCT.Lung
        assert site.laterality == (codes.SCT.Left if region.side == "left" else codes.SCT.Right)
        area, unit = number(group, codes.SCT.Area)
        if region.area_mm2 is None:
            assert (area, unit.value) == (pytest.approx(region.area_px, abs=0.001), "{pixels}")
        else:
            assert (area, unit) == (pytest.approx(region.area_mm2, abs=0.001), codes.UCUM.SquareMillimeter)
        assert number(group, Code("PTX-MAP-PEAK", "99PTXSDK", ""))[0] == pytest.approx(region.probability, abs=1e-6)
        assert number(group, Code("PTX-MAP-MEAN", "99PTXSDK", ""))[0] == pytest.approx(
            region.mean_probability, abs=1e-6
        )
    assert {uid for *_, uid, _ in read.get_evidence()} == {seg.SOPInstanceUID, results.film.dataset.SOPInstanceUID}


@pytest.mark.parametrize("shape", [(640, 560), (333, 257), (1001, 777)])
def test_without_a_segmentation_the_outlines_are_written(detector, tmp_path, shape):
    film = chest_film(shape=shape, blob=(shape[0] // 3, shape[1] // 4, shape[1] // 9))
    detection = detector.predict(film)
    read = report(detection, film, tmp_path)
    groups = read.content.get_planar_roi_measurement_groups()
    for group, region in zip(groups, detection.regions, strict=True):
        assert group.roi.graphic_type == hd.sr.GraphicTypeValues.POLYLINE
        np.testing.assert_allclose(group.roi.value[:-1], region.outline, atol=1e-4)
        np.testing.assert_array_equal(group.roi.value[0], group.roi.value[-1])
        assert group.referenced_segmentation_frame is None
    assert {uid for *_, uid, _ in read.get_evidence()} == {film.dataset.SOPInstanceUID}


def test_a_region_on_the_midline_has_a_lung_and_no_side(detector, tmp_path):
    film = chest_film()
    detection = detector.predict(film)
    detection = replace(detection, regions=(replace(detection.regions[0], side=None),))
    (group,) = report(detection, film, tmp_path, EVERY).content.get_planar_roi_measurement_groups()
    assert group.finding_sites[0].laterality is None


def test_areas_measured_at_the_detector_are_said_to_be(detector, tmp_path):
    film = chest_film(ImagerPixelSpacing=[0.4, 0.4])
    detection = detector.predict(film)
    (group,) = report(detection, film, tmp_path).content.get_planar_roi_measurement_groups()
    assert comments(group) == ["area at the detector, magnified"]
    film = chest_film(PixelSpacing=[0.4, 0.4])
    (group,) = report(detector.predict(film), film, tmp_path).content.get_planar_roi_measurement_groups()
    assert comments(group) == []


def test_an_outline_too_long_for_dicom_is_thinned(detector, tmp_path):
    angle = np.linspace(0, 2 * np.pi, 20001)[:-1]
    radius = 50 + 0.4 * np.cos(10000 * angle)
    outline = tuple(
        (float(250 + r * np.cos(a)), float(150 + r * np.sin(a))) for r, a in zip(radius, angle, strict=True)
    )
    film = chest_film()
    detection = detector.predict(film)
    region = replace(detection.regions[0], outline=outline)
    assert isinstance(region, Region)
    read = report(replace(detection, regions=(region,)), film, tmp_path)
    (group,) = read.content.get_planar_roi_measurement_groups()
    points = group.roi.value
    assert 12 < len(points) <= 8191
    distance = np.hypot(points[:, 0] - 250, points[:, 1] - 150)
    assert np.abs(distance - 50).max() < 0.5


def test_dcmtk_renders_the_report(results_of):
    text = run(program("dsrdump"), results_of("full_dx").files["sr"])
    assert '"Flag for pneumothorax"' in text
    assert "Pneumothorax" in text
