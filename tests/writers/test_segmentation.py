"""The SEG: its pixels are the film's pixels inside the outlines, without the holes."""

from __future__ import annotations

import highdicom as hd
import numpy as np
import pydicom
import pytest
from dicom_results import chest_film, encoded, violations, with_map
from pydicom.filebase import DicomBytesIO
from scipy import ndimage

from ptxsdk.writers import dicom_objects, write_dicom
from ptxsdk.writers.segmentation import region_masks

SHAPES = [(640, 560), (1001, 777), (333, 257), (300, 641), (64, 64), (33, 32), (32, 33)]


def blobs(seed, size=64):
    """A map of blobs with holes and islands in the holes."""
    noise = np.random.default_rng(seed).normal(size=(size, size))
    return np.ascontiguousarray(3 * ndimage.gaussian_filter(noise, 2) / 0.14, np.float32)


@pytest.fixture(scope="module")
def make(detector):
    """Return a function that gives a film of a shape, with regions from a map."""
    detection = detector.predict(chest_film())

    def of(shape, logits, **rules):
        film = chest_film(pixels=np.zeros(shape, np.uint16))
        return film, with_map(detection, film, logits, **rules)

    return of


def whole(detection):
    """The masks on the whole film."""
    planes = []
    for box, mask in region_masks(detection):
        plane = np.zeros(detection.geometry.source, bool)
        plane[box] = mask
        planes.append(plane)
    return planes


def inside_outline(outline, shape):
    """Even-odd rule at the centre of every pixel, edge by edge."""
    points = np.array(outline)
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    inside = np.zeros(shape, bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y0 != y1:
            crossed = (y0 > y) != (y1 > y)
            inside ^= crossed & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside


def map_pixel_of(geometry, shape):
    """The row and column of the map under the centre of every pixel of the film, one at a time."""
    rows, columns = np.empty(shape, int), np.empty(shape, int)
    for row in range(shape[0]):
        rows[row] = int(geometry.to_target(0.5, row + 0.5)[1])
    for column in range(shape[1]):
        columns[:, column] = int(geometry.to_target(column + 0.5, 0.5)[0])
    return rows, columns


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_segment_is_the_outline_filled_without_its_holes(make, shape, seed):
    _, detection = make(shape, blobs(seed), low=0.6, high=0.7, min_area=8)
    assert len(detection.regions) >= 2
    rows, columns = map_pixel_of(detection.geometry, shape)
    x0, y0, x1, y1 = detection.geometry.content
    above = 1 / (1 + np.exp(-detection.mask_logits[y0:y1, x0:x1].astype(float))) >= 0.6
    components = ndimage.label(above, np.ones((3, 3)))[0]
    under = components[rows - y0, columns - x0]
    for region, mask in zip(detection.regions, whole(detection), strict=True):
        x, y = detection.geometry.to_target(*region.peak)
        filled = inside_outline(region.outline, shape)
        # What the outline encloses and the segment leaves out: holes, and islands in them.
        np.testing.assert_array_equal(mask, filled & (under == components[int(y) - y0, int(x) - x0]))
        assert mask.any()


def test_holes_are_left_out(make):
    logits = np.full((64, 64), -5, np.float32)
    logits[10:40, 10:40] = 5
    logits[20:30, 20:30] = -5
    logits[24:26, 24:26] = 5  # an island in the hole, too small for a region
    _, detection = make((640, 640), logits, min_area=20)
    (mask,) = whole(detection)
    expected = np.zeros((640, 640), bool)
    expected[100:400, 100:400] = True
    expected[200:300, 200:300] = False
    np.testing.assert_array_equal(mask, expected)
    assert detection.regions[0].area_px == mask.sum()


def test_the_threshold_belongs_to_the_region_as_it_does_in_the_aggregation(make):
    for low in (0.1, 0.3, 0.4, 0.55):
        exact = np.float32(np.log(low / (1 - low)))
        values = [np.nextafter(exact, np.float32(s)) for s in (-9, 9)] + [exact]
        for value in values:
            logits = np.full((64, 64), -9, np.float32)
            logits[10:20, 10:20] = 5
            logits[12, 20] = value
            _, detection = make((64, 64), logits, low=low)
            assert whole(detection)[0].sum() == detection.regions[0].area_px


@pytest.mark.parametrize("seed", range(4))
def test_a_region_smaller_than_a_pixel_has_the_pixel_under_its_peak(make, seed, tmp_path):
    logits = np.full((64, 64), -5, np.float32)
    points = np.random.default_rng(seed).integers(0, 32, (40, 2)) * 2
    logits[points[:, 0], points[:, 1]] = 5
    film, detection = make((17, 19), logits, min_area=1)
    for region, mask in zip(detection.regions, whole(detection), strict=True):
        assert mask.any()
        if mask.sum() == 1:
            assert mask[int(region.peak[1]), int(region.peak[0])]
    seg = dicom_objects(detection, film, ["seg"])["seg"]
    write_dicom(tmp_path / "seg.dcm", seg)
    read = hd.seg.segread(tmp_path / "seg.dcm")
    assert read.number_of_segments == len(detection.regions)
    assert violations(tmp_path / "seg.dcm") == []


@pytest.mark.parametrize("name", ["rg1", "odd_size", "monochrome1", "full_dx"])
def test_the_file_holds_the_masks(results_of, name):
    results = results_of(name)
    detection = results.detection
    seg = hd.seg.segread(results.files["seg"])
    assert (seg.SegmentationType, seg.Rows, seg.Columns) == ("BINARY", *results.film.shape)
    source = results.film.dataset
    pixels = seg.get_pixels_by_source_instance([source.SOPInstanceUID], assert_missing_frames_are_empty=True)
    for number, (region, mask) in enumerate(zip(detection.regions, whole(detection), strict=True)):
        np.testing.assert_array_equal(pixels[0, ..., number], mask)
        description = seg.get_segment_description(number + 1)
        assert description.algorithm_type == hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC
        assert description.segmented_property_type == hd.sr.CodedConcept("36118008", "SCT", "Pneumothorax")
        algorithm = description.SegmentationAlgorithmIdentificationSequence[0]
        assert algorithm.AlgorithmName == detection.engine.name
        assert algorithm.AlgorithmVersion == detection.engine.version
        site = description.AnatomicRegionSequence[0]
        side = {"left": "7771000", "right": "24028007"}[region.side]
        assert site.AnatomicRegionModifierSequence[0].CodeValue == side
    # pydicom's own reading of the frames, in order: frame n is segment n
    frames = pydicom.dcmread(results.files["seg"]).pixel_array.reshape(-1, *results.film.shape)
    np.testing.assert_array_equal(frames, np.moveaxis(pixels[0], -1, 0))


def test_the_segment_covers_what_was_bright(results_of):
    results = results_of("full_dx")
    y, x = np.mgrid[:640, :560]
    disc = (y - 250) ** 2 + (x - 150) ** 2 <= 60**2
    mask = whole(results.detection)[0]
    assert (mask & disc).sum() / (mask | disc).sum() > 0.9


def test_sides_follow_the_patient(detector):
    for orientation, side in ((["L", "F"], "right"), (["R", "F"], "left"), (None, "right")):
        film = chest_film(PatientOrientation=orientation)
        seg = dicom_objects(detector.predict(film), film, ["seg"])["seg"]
        assert seg.SegmentSequence[0].SegmentLabel == f"Suspected pneumothorax 1, {side}"
        read = pydicom.dcmread(DicomBytesIO(encoded(seg)))
        assert list(read.PatientOrientation or ()) == (orientation or [])
