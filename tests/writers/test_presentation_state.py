"""The GSPS: upon the film DCMTK shows with it what the engine saw, and the outlines are the regions'."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import cv2
import numpy as np
import pydicom
import pytest
from dicom_files import content
from dicom_results import UIDS, chest_dataset, program, run, violations
from made import make_chest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from ptxsdk import Window, readers
from ptxsdk.writers import dicom_objects, notices, write_dicom

BLOB = (250, 150, 60)


def table(first, count, curve, bits=16):
    """A LUT of 16-bit entries."""
    item = Dataset()
    entries = np.rint(curve(np.linspace(0, 1, count)) * ((1 << bits) - 1)).astype(np.uint16)
    item.add_new(0x00283002, "SS" if first < 0 else "US", [count, first, bits])
    item.add_new(0x00283006, "OW", entries.tobytes())
    return item


def inverted(**attributes):
    pixels = 4080 - make_chest(blob=BLOB).astype(np.uint16) * 16
    return chest_dataset(pixels=pixels, PhotometricInterpretation="MONOCHROME1", **attributes)


def signed(**attributes):
    pixels = make_chest(blob=BLOB).astype(np.int16) * 16 - 2048
    return chest_dataset(pixels=pixels, HighBit=11, **attributes)


WAYS = {
    "window": chest_dataset,
    "monochrome1": inverted,
    "monochrome1 and inverse": lambda: inverted(PresentationLUTShape="INVERSE"),
    "monochrome1 against identity": lambda: inverted(PresentationLUTShape="IDENTITY"),
    "window of fractions": lambda: chest_dataset(WindowCenter="2040.333333", WindowWidth="4001.25"),
    "no window": lambda: chest_dataset(WindowCenter=None, WindowWidth=None),
    "rescaled": lambda: chest_dataset(
        RescaleIntercept="-1023.7", RescaleSlope="0.33333333333", WindowCenter=-340, WindowWidth=1361
    ),
    "VOI LUT": lambda: chest_dataset(
        WindowCenter=None, WindowWidth=None, VOILUTSequence=Sequence([table(0, 4096, np.sqrt)])
    ),
    "VOI LUT of 8 bits": lambda: chest_dataset(
        WindowCenter=None, WindowWidth=None, VOILUTSequence=Sequence([table(100, 3800, np.square, 8)])
    ),
    "signed, VOI LUT": lambda: signed(
        WindowCenter=None, WindowWidth=None, VOILUTSequence=Sequence([table(-2048, 4096, np.sqrt)])
    ),
    "signed, window": lambda: signed(WindowCenter=-8, WindowWidth=4081),
    "Modality LUT": lambda: chest_dataset(
        ModalityLUTSequence=Sequence([modality_lut()]), WindowCenter=32768, WindowWidth=65536
    ),
}


def modality_lut():
    item = table(0, 4096, np.sqrt)
    item.ModalityLUTType = "US"
    return item


@pytest.mark.parametrize("way", WAYS)
def test_dcmtk_shows_the_film_as_the_engine_saw_it(detector, tmp_path, way):
    file = content(WAYS[way]())
    (tmp_path / "film.dcm").write_bytes(file)
    film = readers.read(file)
    detection = detector.predict(film)
    write_dicom(tmp_path / "gsps.dcm", dicom_objects(detection, film, ["gsps"])["gsps"])
    assert violations(tmp_path / "gsps.dcm") == []
    run(program("dcmp2pgm"), "-p", tmp_path / "gsps.dcm", tmp_path / "film.dcm", tmp_path / "shown.pgm")
    shown = cv2.imread(str(tmp_path / "shown.pgm"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_allclose(shown, 255 * film.display(film.pixels), atol=1.01)


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
def test_the_window_keeps_its_function(detector, function):
    film = readers.read(content(chest_dataset(VOILUTFunction=function)))
    assert film.display.voi == Window(2040, 4081, function)
    made = dicom_objects(detector.predict(film), film, ["gsps"])["gsps"]
    (voi,) = made.SoftcopyVOILUTSequence
    assert (voi.WindowCenter, voi.WindowWidth, voi.VOILUTFunction) == (2040, 4081, function)


@pytest.mark.parametrize("name", ["full_dx", "rg1", "odd_size"])
def test_the_outlines_are_the_regions(results_of, name):
    results = results_of(name)
    made = pydicom.dcmread(results.files["gsps"])
    (annotation,) = made.GraphicAnnotationSequence
    assert annotation.ReferencedImageSequence[0].ReferencedSOPInstanceUID == results.film.dataset.SOPInstanceUID
    assert annotation.GraphicLayer == made.GraphicLayerSequence[0].GraphicLayer
    for graphic, region in zip(annotation.GraphicObjectSequence, results.detection.regions, strict=True):
        points = np.reshape(graphic.GraphicData, (-1, 2))
        assert (graphic.GraphicType, graphic.GraphicAnnotationUnits) == ("POLYLINE", "PIXEL")
        assert graphic.NumberOfGraphicPoints == len(points)
        np.testing.assert_allclose(points[:-1], region.outline, atol=1e-3)
        np.testing.assert_array_equal(points[0], points[-1])
    *labels, banner = annotation.TextObjectSequence
    assert [label.UnformattedTextValue for label in labels] == [
        f"Suspected pneumothorax {number}, {region.side}" for number, region in enumerate(results.detection.regions, 1)
    ]
    assert banner.UnformattedTextValue.split("\r\n") == list(notices(results.detection))
    (area,) = made.DisplayedAreaSelectionSequence
    assert list(area.DisplayedAreaTopLeftHandCorner) == [1, 1]
    assert list(area.DisplayedAreaBottomRightHandCorner) == list(results.film.shape[::-1])


def test_dcmtk_finds_the_outlines(results_of, tmp_path):
    results = results_of("full_dx")
    (tmp_path / "film.dcm").write_bytes(content(chest_dataset(**UIDS)))
    done = subprocess.run(
        [program("dcmp2pgm"), "-v", "-p", results.files["gsps"], tmp_path / "film.dcm"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert "POLYLINE" in said.upper()
    x, y = results.detection.regions[0].outline[0]
    assert f"{x:g}"[:5] in said
    assert f"{y:g}"[:5] in said


def test_a_label_stays_on_the_film(detector, tmp_path):
    film = readers.read(content(chest_dataset()))
    detection = detector.predict(film)
    region = replace(detection.regions[0], box=(0, 0, 560, 640))
    made = dicom_objects(replace(detection, regions=(region,)), film, ["gsps"])["gsps"]
    write_dicom(tmp_path / "gsps.dcm", made)
    assert violations(tmp_path / "gsps.dcm") == []
