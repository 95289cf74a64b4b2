"""The Secondary Capture: the overlay as every PACS shows it; in triage a page without the film."""

from __future__ import annotations

import cv2
import numpy as np
import pydicom
import pytest
from dicom_results import chest_film, program, run, violations

from ptxsdk.writers import dicom_objects, write_dicom
from ptxsdk.writers.overlay import render_overlay
from ptxsdk.writers.secondary_capture import render_page


def capture(detection, film):
    return dicom_objects(detection, film, ["sc"])["sc"]


@pytest.mark.parametrize("name", ["full_dx", "rg1", "odd_size"])
def test_it_is_the_overlay(results_of, name, tmp_path):
    results = results_of(name)
    expected = render_overlay(results.film, results.detection)[..., ::-1]
    read = pydicom.dcmread(results.files["sc"])
    assert (read.Modality, read.ConversionType, read.PhotometricInterpretation) == ("OT", "DI", "RGB")
    assert read.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    np.testing.assert_array_equal(read.pixel_array, expected)
    run(program("dcm2img", "dcmj2pnm"), results.files["sc"], tmp_path / "shown.ppm")
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "shown.ppm"))[..., ::-1], expected)


@pytest.mark.parametrize("flagged", [True, False])
def test_triage_has_a_page_with_the_result_and_no_film(triage, tmp_path, flagged):
    film = chest_film(blob=(250, 150, 60) if flagged else None, PatientOrientation=["L", "F"])
    detection = triage.predict(film)
    made = capture(detection, film)
    write_dicom(tmp_path / "sc.dcm", made)
    assert violations(tmp_path / "sc.dcm") == []
    np.testing.assert_array_equal(made.pixel_array[..., ::-1], render_page(detection))
    assert made.BurnedInAnnotation == "NO"
    assert not made.PatientOrientation
    page = render_page(detection).astype(int)
    amber = (page[..., 2] - page[..., 0] > 100) & (page[..., 1] > 150)
    assert amber.any() == flagged
    red = (page[..., 2] > 200) & (page[..., 1] < 120)
    assert red.sum() > 1000  # not for diagnostic use
    rows, columns = np.nonzero(red | amber | (page.min(2) > 100))
    assert 20 < rows.min() < rows.max() < 580  # nothing runs out of the page
    assert 20 < columns.min() < columns.max() < 880


@pytest.mark.parametrize(("said", "expected"), [("YES", "YES"), ("NO", "NO"), (None, None)])
def test_identifying_marks_burned_into_the_film_are_declared(detector, said, expected):
    film = chest_film(BurnedInAnnotation=said)
    assert capture(detector.predict(film), film).get("BurnedInAnnotation") == expected


def test_the_orientation_is_the_films_where_it_is_known(detector):
    for orientation in (["R", "F"], None):
        film = chest_film(PatientOrientation=orientation)
        made = capture(detector.predict(film), film)
        assert list(made.PatientOrientation or ()) == (orientation or [])


@pytest.mark.parametrize("ratio", ["10.5", None, "ten"])
def test_a_film_compressed_with_loss_makes_a_lossy_picture(detector, tmp_path, ratio):
    from dicom_files import content
    from dicom_results import chest_dataset

    from ptxsdk import readers

    ds = chest_dataset(LossyImageCompression="01", LossyImageCompressionMethod=ratio and "ISO_10918_1")
    if ratio is not None:
        from pydicom import config
        from pydicom.dataelem import DataElement

        ds["LossyImageCompressionRatio"] = DataElement(
            "LossyImageCompressionRatio", "SH" if ratio == "ten" else "DS", ratio, validation_mode=config.IGNORE
        )
        ds["LossyImageCompressionRatio"].VR = "DS"
    film = readers.read(content(ds))
    for kind, made in dicom_objects(detector.predict(film), film, ["sc", "seg"]).items():
        assert made.LossyImageCompression == "01"
        assert made.get("LossyImageCompressionRatio") == (10.5 if ratio == "10.5" else None)
        write_dicom(tmp_path / f"{kind}.dcm", made)
        if ratio == "10.5":
            assert violations(tmp_path / f"{kind}.dcm") == []
