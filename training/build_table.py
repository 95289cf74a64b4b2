"""Write the table that ``ptxsdk build`` takes: ``python -m training.build_table --data DIR --out films.csv``.

Films with trusted labels measure the variants, those of other patients calibrate them. The patients of `--leave-out`
are in neither.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from ptxsdk.files import write_file
from training.data.films import Film
from training.data.folders import read_films

COLUMNS = ("image", "label", "mask", "boxes_xywh", "patient", "part")


def table(films: Sequence[Film], data: Path, folder: Path) -> str:
    """Return the table as CSV, with paths from the folder it will lie in.

    Parameters
    ----------
    films : sequence of Film
        All films.
    data : Path
        The folder their paths start from.
    folder : Path
        The folder of the table.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)

    def path(name: str) -> str:
        return os.path.relpath(data / name, folder) if name else ""

    measured = {film.patient for film in films if film.trusted} - {""}
    for film in films:
        if film.patient in measured and not film.trusted:
            continue  # a patient measures or calibrates, never both
        boxes = ";".join(" ".join(f"{side:g}" for side in box) for box in film.boxes)
        part = "validation" if film.trusted else "calibration"
        writer.writerow((path(film.image), film.label, path(film.mask), boxes, film.patient, part))
    return text.getvalue()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the table from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.build_table",
        description="Write the table of films that `ptxsdk build` takes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of films in a layout training.data reads")
    parser.add_argument("--out", type=Path, required=True, help="table to write")
    parser.add_argument("--leave-out", default="", help="patients to leave out, separated by commas")
    options = parser.parse_args(arguments)
    left_out = set(filter(None, options.leave_out.split(",")))
    films = [film for film in read_films(options.data) if film.patient not in left_out]
    write_file(options.out, table(films, options.data.resolve(), options.out.resolve().parent).encode())


if __name__ == "__main__":
    main()
