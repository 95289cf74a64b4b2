"""Rows of a CSV table and the fields in them, with errors that name the file, the line and the reason."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from pathlib import Path

from training.data.films import Box

_OLDEST = 110
_YEARS = {"": 1.0, "Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}


class TableError(ValueError):
    """A table, or a file that it names, is not as its layout says.

    Parameters
    ----------
    path : Path
        The table.
    line : int or None
        Line of the file, the header being 1; None where the whole table is meant.
    reason : str
        What is wrong.
    """

    def __init__(self, path: Path, line: int | None, reason: str) -> None:
        super().__init__(f"{path.name}{'' if line is None else f', line {line}'}: {reason}")


def read_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line number and the fields of every row, stripped of blanks as column names are.

    Parameters
    ----------
    path : Path
        A CSV file with a header, UTF-8 with or without a byte order mark.
    columns : tuple of str
        Columns that have to be there; others come along.

    Raises
    ------
    TableError
        A column is missing, or a row has fewer fields than those columns need.
    """
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.reader(stream)
        names = [name.strip() for name in next(reader, [])]
        missing = [name for name in columns if name not in names]
        if missing:
            raise TableError(path, None, f"no column {', '.join(map(repr, missing))}; it has {', '.join(names)}")
        least = max(map(names.index, columns)) + 1
        for fields in reader:
            if not fields:
                continue
            if len(fields) < least:
                raise TableError(path, reader.line_num, f"{len(fields)} fields, not the {len(names)} of the header")
            row = {name: field.strip() for name, field in zip(names, fields, strict=False)}
            yield reader.line_num, dict.fromkeys(names, "") | row


def parse_age(text: str) -> float | None:
    """Parse an age as ``58``, ``058Y``, ``006M``, ``002W`` or ``013D``.

    Returns
    -------
    float or None
        Years; None for an empty text or an age nobody reaches, over 110 (the set has some of 411 years).

    Raises
    ------
    ValueError
        Anything else.
    """
    if not text:
        return None
    found = re.fullmatch(r"(\d+)([YMWD]?)", text)
    if found is None:
        raise ValueError(f"age {text!r} is not like 58, 058Y, 006M, 002W or 013D")
    age = int(found[1]) * _YEARS[found[2]]
    return age if age <= _OLDEST else None


def parse_box(fields: list[str]) -> Box:
    """Parse ``[x, y, width, height]``, all finite, no corner negative, no side 0; a ValueError says what is wrong."""
    try:
        x, y, width, height = map(float, fields)
    except ValueError:
        raise ValueError(f"box {' '.join(fields)!r} is not four numbers x, y, width, height") from None
    if not (0 <= x < math.inf and 0 <= y < math.inf and 0 < width < math.inf and 0 < height < math.inf):
        raise ValueError(f"box {' '.join(fields)!r} is outside any image or empty")
    return x, y, width, height
