"""The engine that ships: real radiographs in, believable detections out."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydicom.data import get_testdata_file

from ptxsdk import Detector, Engine, Radiograph, readers

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def shipped():
    with Detector(precision="fp32") as detector:
        yield detector


@pytest.fixture(scope="module", params=["fp16", "int8"])
def variant(request):
    with Detector(precision=request.param) as detector:
        yield detector


def example_rows():
    with (EXAMPLES / "films.csv").open(encoding="utf-8") as table:
        return list(csv.DictReader(table))


def test_it_says_what_it_is():
    manifest = Engine.open(Engine.default_path()).manifest
    assert manifest.not_a_medical_device
    assert {"balanced", "high_sensitivity"} <= {point.name for point in manifest.operating_points}
    assert all(metric.n > 0 for metric in manifest.metrics)
    # The calibration error is biased upwards under the bootstrap: its interval may lie above it.
    assert all(metric.low <= metric.value <= metric.high for metric in manifest.metrics if metric.name != "ece")
    assert all("ChestX-ray14" in vector.credit for vector in manifest.golden)


def test_it_is_small_enough():
    engine = Engine.open(Engine.default_path())
    assert all(len(engine.network(precision)) <= 20e6 for precision in engine.precisions)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("precision", ["auto", "fp32", "fp16", "int8"])
@pytest.mark.requirement("R-ENGINE-2")
def test_every_golden_film_is_reproduced(backend, precision):
    with Detector(backend=backend, precision=precision) as detector:
        assert detector.self_test() >= 3


@pytest.mark.parametrize("row", example_rows(), ids=lambda row: row["file"])
def test_examples_give_what_the_table_says(shipped, row):
    detection = shipped.predict(EXAMPLES / row["file"])
    assert detection.flagged == (row["flagged"] == "yes")
    assert detection.probability == pytest.approx(float(row["probability"]), abs=0.03)


@pytest.mark.parametrize("row", [r for r in example_rows() if r["box"]], ids=lambda row: row["file"])
def test_the_largest_region_of_a_positive_meets_the_radiologists_mask(shipped, row):
    detection = shipped.predict(EXAMPLES / row["file"])
    x0, y0, x1, y1 = (int(value) for value in row["box"].split())
    if row["located"] == "yes":
        x, y = detection.regions[0].peak
        assert x0 <= x < x1
        assert y0 <= y < y1


@pytest.mark.requirement("R-ENGINE-3")
def test_every_precision_passed_its_gate():
    manifest = Engine.open(Engine.default_path()).manifest
    for precision in ("fp16", "int8"):
        accuracy = manifest.networks[precision].accuracy
        assert accuracy["films"] >= 1000
        assert accuracy["outlined"] >= 100
        assert abs(accuracy["auc_change"]) <= 0.005
        assert abs(accuracy["dice_change"]) <= 0.01
        assert abs(accuracy["peak_change"]) <= 0.01
        assert accuracy["farthest_flip"] <= 0.02


@pytest.mark.parametrize("row", example_rows(), ids=lambda row: row["file"])
def test_a_variant_decides_as_fp32_does(shipped, variant, row):
    whole, found = (detector.predict(EXAMPLES / row["file"]) for detector in (shipped, variant))
    assert found.precision == variant.precision != "fp32"
    assert found.probability == pytest.approx(whole.probability, abs=0.05)
    assert found.flagged == whole.flagged
    assert np.corrcoef(found.map.ravel(), whole.map.ravel())[0, 1] > 0.9


def test_four_encodings_of_one_film_give_one_detection(shipped):
    detections = [
        shipped.predict(get_testdata_file(f"RG1_{name}.dcm", download=False))
        for name in ("UNCR", "UNCI", "J2KR", "J2KI")
    ]
    probabilities = [detection.probability for detection in detections]
    assert max(probabilities) - min(probabilities) < 0.01
    assert len({detection.flagged for detection in detections}) == 1


def test_a_film_and_its_dicom_copy_give_one_detection(shipped):
    image, copy = (shipped.predict(EXAMPLES / f"00008841_025.{suffix}") for suffix in ("jpg", "dcm"))
    assert image.probability == pytest.approx(copy.probability, abs=0.005)
    np.testing.assert_allclose(image.regions[0].box, copy.regions[0].box, atol=5)
    assert image.regions[0].side == copy.regions[0].side == "left"
    assert copy.quality.warnings == ()


def test_a_monochrome1_film_is_shown_the_right_way_round():
    film = readers.read(get_testdata_file("RG1_UNCR.dcm", download=False))
    assert film.photometric == "MONOCHROME1"
    middle = film.pixels[800:1200, 850:950].mean()  # mediastinum
    lung = film.pixels[600:900, 350:550].mean()
    assert film.display(middle) > film.display(lung) + 0.1


def test_a_film_at_another_size_or_depth_gives_the_same_answer(shipped):
    for row in example_rows():
        pixels = cv2.imread(str(EXAMPLES / row["file"]), cv2.IMREAD_GRAYSCALE)
        if pixels is None:
            continue  # the DICOM copy
        expected = shipped.predict(pixels).probability
        wide = Radiograph.from_array(pixels.astype(np.uint16) * 257, window=(0, 65535))
        assert shipped.predict(wide).probability == pytest.approx(expected, abs=0.005)
        negative = Radiograph.from_array(255 - pixels, invert=True)
        assert shipped.predict(negative).probability == pytest.approx(expected, abs=0.005)
        twice = cv2.resize(pixels, None, fx=3, fy=3, interpolation=cv2.INTER_NEAREST)
        assert shipped.predict(twice).probability == pytest.approx(expected, abs=0.005)


@pytest.mark.requirement("R-DET-1")
def test_threads_give_bitwise_the_same(shipped):
    from concurrent.futures import ThreadPoolExecutor

    films = [EXAMPLES / row["file"] for row in example_rows()]
    serial = [shipped.predict(film).probability for film in films]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda film: shipped.predict(film).probability, films)) == serial
