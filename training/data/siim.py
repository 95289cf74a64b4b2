"""Read SIIM-ACR Pneumothorax Segmentation 2019 as published: DICOM films and run-length masks."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError

from training.data.films import Film
from training.data.rows import TableError, parse_age, read_rows

TABLES = ("train-rle.csv", "stage_2_train.csv", "train-rle-*.csv")

_TAGS = ["Rows", "Columns", "PatientID", "PatientSex", "PatientAge", "ViewPosition"]


def find_table(folder: Path) -> Path | None:
    """Return the table of masks in a folder: the first of `TABLES` that is there, by name; None without one."""
    return next((path for pattern in TABLES for path in sorted(folder.glob(pattern))), None)


def read_siim(folder: Path) -> list[Film]:
    """Read the challenge's films and masks, in the order of the table.

    The PatientID in these files differs from film to film, so it does not say which films are of one patient: a
    split by it is a split by film, and may hold other films of a held-out patient in training. See
    `training.data.duplicates`.

    Parameters
    ----------
    folder : Path
        Holds ``train-rle.csv``, ``stage_2_train.csv`` or ``train-rle-*.csv`` (the first there is), with the columns
        ImageId and EncodedPixels, and anywhere beneath ``<ImageId>.dcm``. An image may have several rows, one a
        region; ``-1`` says that there is none. Equal rows count once. Films without a row are left out.

    Raises
    ------
    FileNotFoundError
        There is no table.
    TableError
        A column or a film is missing, a mask is malformed or larger than its film, an image has both a mask and
        ``-1``, or a film's header cannot be read; with the line.
    """
    table = find_table(folder)
    if table is None:
        raise FileNotFoundError(f"no {', '.join(TABLES)} in {folder.name}")
    places = {path.stem: path for path in sorted(folder.rglob("*.dcm"), reverse=True)}
    runs: dict[str, tuple[str, ...]] = {}
    films: dict[str, Film] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for line, row in read_rows(table, ("ImageId", "EncodedPixels")):
        name, text = row["ImageId"], row["EncodedPixels"]
        known = runs.get(name)
        if name not in places:
            raise TableError(table, line, f"there is no film {name}.dcm beneath the folder")
        if known is not None and bool(known) == (text == "-1"):
            raise TableError(table, line, f"{name} has both a mask and -1")
        try:
            if known is None:
                films[name], sizes[name] = _film(places[name], folder)
            if text != "-1":
                _parse_rle(text, *sizes[name])
        except ValueError as error:
            raise TableError(table, line, str(error)) from None
        runs[name] = tuple(dict.fromkeys((*(known or ()), *((text,) if text != "-1" else ()))))
    return [replace(film, label=int(bool(runs[name])), rle=runs[name]) for name, film in films.items()]


def _film(path: Path, folder: Path) -> tuple[Film, tuple[int, int]]:
    """Return the film of a DICOM header, yet without a label, and its (rows, columns)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ages without a unit and odd identifiers are the rule in this set
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
            rows, columns = int(header.Rows), int(header.Columns)
            patient, sex, age, view = (str(header.get(tag) or "").strip() for tag in _TAGS[2:])
        except (InvalidDicomError, AttributeError, TypeError, ValueError, OSError) as error:
            raise ValueError(f"the header of {path.name} cannot be read ({type(error).__name__})") from None
    film = Film(
        image=path.relative_to(folder).as_posix(),
        origin="siim",
        patient=patient or path.stem,
        label=0,
        labelled_by="siim",
        view=view.upper(),
        sex=sex,
        age=parse_age(age),
    )
    return film, (rows, columns)


def decode_rle(runs: tuple[str, ...], rows: int, columns: int) -> NDArray[np.uint8]:
    """Draw run-length masks of one film into a plane.

    A mask is pairs ``gap length``: the pixels between the end of the last run and this one, and the pixels of this
    one, down the columns from the left.

    Parameters
    ----------
    runs : tuple of str
        Masks, which may overlap.
    rows, columns : int
        Size of the film.

    Returns
    -------
    ndarray
        (rows, columns) uint8, 1 inside.

    Raises
    ------
    ValueError
        A mask is not pairs of numbers, has an empty run, or leaves the film.
    """
    plane = np.zeros(columns * rows, np.uint8)
    for text in runs:
        for start, stop in _parse_rle(text, rows, columns):
            plane[start:stop] = 1
    return np.ascontiguousarray(plane.reshape(columns, rows).T)


def _parse_rle(text: str, rows: int, columns: int) -> NDArray[np.int64]:
    """Return the (n, 2) ``start, stop`` of every run in the order of the code."""
    fields = text.split()
    if not fields or len(fields) % 2 or not all(field.isascii() and field.isdigit() for field in fields):
        raise ValueError("the mask is not pairs of a gap and a length")
    steps = [int(field) for field in fields]
    if not all(steps[1::2]):
        raise ValueError("the mask has a run of length 0")
    if sum(steps) > rows * columns:
        raise ValueError(f"the mask ends at pixel {sum(steps)} of a film of {rows} x {columns}")
    return np.cumsum(np.array(steps, np.int64)).reshape(-1, 2)
