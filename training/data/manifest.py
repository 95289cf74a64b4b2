"""Read our own layout: a folder with ``manifest.csv``."""

from __future__ import annotations

import math
from pathlib import Path

from training.data.films import TRUST, Film
from training.data.rows import TableError, parse_box, read_rows

COLUMNS = ("image", "set", "patient", "label", "labelled_by", "mask", "boxes_xywh")


def read_manifest(folder: Path) -> list[Film]:
    """Read ``manifest.csv`` of a data folder, in its order.

    Parameters
    ----------
    folder : Path
        Holds ``manifest.csv`` with the columns image, mask (paths from the folder), set, patient, label (0 or 1),
        labelled_by (see `TRUST`) and boxes_xywh (``x y w h;...`` in pixels of the image), and optionally findings
        (``A|B``), view, sex and age (years).

    Raises
    ------
    TableError
        A column or a file is missing, a field is malformed, or an image comes twice; with the line.
    """
    table = folder / "manifest.csv"
    films: dict[str, Film] = {}
    for line, row in read_rows(table, COLUMNS):
        try:
            film = _film(row)
        except ValueError as error:
            raise TableError(table, line, str(error)) from None
        if film.image in films:
            raise TableError(table, line, f"{film.image} comes a second time")
        for name in filter(None, (film.image, film.mask)):
            if not (folder / name).is_file():
                raise TableError(table, line, f"there is no file {name}")
        films[film.image] = film
    return list(films.values())


def _film(row: dict[str, str]) -> Film:
    """Return the film of a row; a ValueError says what is malformed."""
    if not row["image"]:
        raise ValueError("no image is named")
    if row["label"] not in ("0", "1"):
        raise ValueError(f"label {row['label']!r} is neither 0 nor 1")
    label = int(row["label"])
    if (row["labelled_by"], label) not in TRUST:
        raise ValueError(f"no trust is known for label {label} by {row['labelled_by']!r}")
    age = float(row["age"]) if row.get("age") else None
    if age is not None and not 0 <= age < math.inf:
        raise ValueError(f"age {row['age']} is not a number of years")
    return Film(
        image=row["image"],
        mask=row["mask"],
        origin=row["set"],
        patient=row["patient"],
        label=label,
        labelled_by=row["labelled_by"],
        boxes=tuple(parse_box(part.split()) for part in row["boxes_xywh"].split(";") if part.strip()),
        findings=tuple(filter(None, row.get("findings", "").split("|"))),
        view=row.get("view", ""),
        sex=row.get("sex", ""),
        age=age,
    )
