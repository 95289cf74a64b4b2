"""Read NIH ChestX-ray14 as published, with its list of boxes and the expert labels of Majkowska et al."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from training.data.cache import read_gray
from training.data.films import Box, Film
from training.data.rows import TableError, parse_age, parse_box, read_rows

FINDING = "Pneumothorax"
ENTRIES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
BOXES = "BBox_List_2017.csv"
EXPERT_TABLES = ("*validation_labels.csv", "*test_labels.csv")

_PUBLISHED_SIDE = 1024


def read_nih(folder: Path) -> list[Film]:
    """Read ChestX-ray14 (Wang et al., CVPR 2017), in the order of its table.

    Parameters
    ----------
    folder : Path
        Holds ``Data_Entry_2017_v2020.csv`` or else ``Data_Entry_2017.csv``; where there is one,
        ``BBox_List_2017.csv``; the images anywhere beneath; and, anywhere beneath, ``validation_labels.csv`` and
        ``test_labels.csv`` of Google's ``four_findings_expert_labels``, with any prefix to their names.

    Returns
    -------
    list of Film
        An adjudicated label goes before a radiologist's box, a box before the text-mined label. An expert's hedge
        or empty cell decides nothing. Boxes are in pixels of the image found. Ages over 110 are not known.

    Raises
    ------
    FileNotFoundError
        There is no table.
    TableError
        A column or an image is missing, a field is malformed, or an image comes twice; with the line.
    """
    table = next((folder / name for name in ENTRIES if (folder / name).is_file()), None)
    if table is None:
        raise FileNotFoundError(f"no {' or '.join(ENTRIES)} in {folder.name}")
    places = {path.name: path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png"), reverse=True)}
    boxes = _read_boxes(folder / BOXES) if (folder / BOXES).is_file() else {}
    verdicts = _read_verdicts(folder)
    films: dict[str, Film] = {}
    for line, row in read_rows(table, ("Image Index", "Finding Labels", "Patient ID", "Patient Age", "View Position")):
        name = row["Image Index"]
        if name in films:
            raise TableError(table, line, f"{name} comes a second time")
        if name not in places:
            raise TableError(table, line, f"there is no image {name} beneath the folder")
        try:
            films[name] = _film(row, places[name])
        except ValueError as error:
            raise TableError(table, line, str(error)) from None
        if name in verdicts:
            films[name] = replace(films[name], label=int(verdicts[name]), labelled_by="adjudicated")
        elif name in boxes:
            films[name] = replace(films[name], label=1, labelled_by="box")
        if name in boxes and films[name].label:
            films[name] = replace(films[name], boxes=_scale(boxes[name], folder / places[name]))
    return list(films.values())


def _film(row: dict[str, str], place: str) -> Film:
    """Return the film of a row with its text-mined label; a ValueError says what is malformed."""
    if not row["Patient ID"].isdigit():
        raise ValueError(f"patient id {row['Patient ID']!r} is not a number")
    findings = tuple(finding for finding in row["Finding Labels"].split("|") if finding)
    return Film(
        image=place,
        origin="nih",
        patient=row["Patient ID"].zfill(8),  # as the images' names have it
        label=int(FINDING in findings),
        labelled_by="nih",
        findings=findings,
        view=row["View Position"],
        sex=row.get("Patient Sex") or row.get("Patient Gender", ""),
        age=parse_age(row["Patient Age"]),
    )


def _read_boxes(table: Path) -> dict[str, tuple[Box, ...]]:
    """Return the boxes of pneumothorax by image name, in pixels of the published image."""
    boxes: dict[str, tuple[Box, ...]] = {}
    # The header's one name "Bbox [x,y,w,h]" is not quoted, so its commas make four columns of it.
    corners = ("Bbox [x", "y", "w", "h]")
    for line, row in read_rows(table, ("Image Index", "Finding Label", *corners)):
        if row["Finding Label"] != FINDING:
            continue
        name = row["Image Index"]
        try:
            box = parse_box([row[corner] for corner in corners])
        except ValueError as error:
            raise TableError(table, line, str(error)) from None
        if box[0] + box[2] > _PUBLISHED_SIDE or box[1] + box[3] > _PUBLISHED_SIDE:
            raise TableError(table, line, f"the box leaves the {_PUBLISHED_SIDE} pixels of the published image")
        if box in boxes.get(name, ()):
            raise TableError(table, line, f"this box of {name} comes a second time")
        boxes[name] = (*boxes.get(name, ()), box)
    return boxes


def _read_verdicts(folder: Path) -> dict[str, bool]:
    """Return what the experts say of pneumothorax, by image name, where they decided.

    The tables are ChestX-ray14's rows with a column for each of four findings: YES, NO, HEDGE (uncertain), or
    empty where the image was not read for it.
    """
    verdicts: dict[str, bool] = {}
    tables = sorted(path for pattern in EXPERT_TABLES for path in folder.rglob(pattern))
    for table in tables:
        if "all_findings" in table.relative_to(folder).as_posix():
            continue  # a majority of three readers, not adjudicated, and of images the other tables hold
        for line, row in read_rows(table, ("Image Index", FINDING)):
            name, verdict = row["Image Index"], row[FINDING].upper()
            if verdict not in ("YES", "NO", "HEDGE", ""):
                raise TableError(table, line, f"{verdict!r} is none of YES, NO, HEDGE and empty")
            if name in verdicts:
                raise TableError(table, line, f"{name} comes a second time")
            if verdict in ("YES", "NO"):
                verdicts[name] = verdict == "YES"
    return verdicts


def _scale(boxes: tuple[Box, ...], image: Path) -> tuple[Box, ...]:
    """Bring boxes from the published size to that of the image at hand, which may be a reduced copy."""
    rows, columns = read_gray(image).shape
    x, y = columns / _PUBLISHED_SIDE, rows / _PUBLISHED_SIDE
    return tuple((left * x, top * y, width * x, height * y) for left, top, width, height in boxes)
