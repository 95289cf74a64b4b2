"""The films a variant is calibrated and measured with: found in a folder or a table, read as the device reads them."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ptxsdk import gate, readers
from ptxsdk.errors import BuildError, InputError, PtxsdkError
from ptxsdk.gate import GatePolicy
from ptxsdk.geometry import Geometry
from ptxsdk.manifest import InputSpec
from ptxsdk.radiograph import Display, Window

TABLES = ("films.csv", "manifest.csv")
FEWEST = 32
MOST_ROWS = 200_000
MOST_REFUSED = 0.1

Plane = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class BuildFilm:
    """One film to build with, and what is known of it.

    Attributes
    ----------
    path : Path
        The film.
    label : bool or None
        Whether it shows a pneumothorax; None: not known.
    mask : Path or None
        A picture of the film's size, bright where the finding is.
    boxes : tuple of tuple of float
        ``(x, y, width, height)`` of the finding in pixels of the film.
    group : str
        Films of one group (a patient) are never split between calibration and measurement.
    part : {"calibration", "validation", ""}
        What the film is for; empty: decided by its group.
    """

    path: Path
    label: bool | None = None
    mask: Path | None = None
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    group: str
    part: str = ""


def find_build_films(source: Path) -> list[BuildFilm]:
    """Return the films of a folder, or of a table.

    Parameters
    ----------
    source : Path
        A CSV table; a folder with ``films.csv`` or ``manifest.csv``; or a folder of films, of which then nothing is
        known.  A table has the column ``image`` (path from the table's folder) and may have ``label`` (0, 1 or
        empty), ``mask`` (path), ``boxes_xywh`` (``x y w h;...``), ``patient`` and ``part`` ("calibration",
        "validation" or empty).  Other columns are not read.

    Raises
    ------
    BuildError
        ``build.films``: there is none, or a row is malformed; with its line.
    """
    try:
        if source.is_file():
            return _read_table(source)
        if not source.is_dir():
            raise BuildError("build.films", f"there is no folder or table {str(source)!r}")
        for name in TABLES:
            if (source / name).is_file():
                return _read_table(source / name)
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in readers.FILM_SUFFIXES)
    except OSError as error:
        raise BuildError("build.films", f"{str(source)!r} cannot be looked at: {error.strerror}") from error
    if not paths:
        raise BuildError("build.films", f"the folder {str(source)!r} holds no film")
    return [BuildFilm(path=path, group=str(path.relative_to(source))) for path in paths]


def _read_table(table: Path) -> list[BuildFilm]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(itertools.islice(csv.DictReader(stream), MOST_ROWS + 1))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BuildError("build.films", f"the table {str(table)!r} cannot be read: {error}") from error
    if not rows or "image" not in rows[0]:
        raise BuildError("build.films", f"the table {str(table)!r} has no rows, or no column 'image'")
    if len(rows) > MOST_ROWS:
        raise BuildError("build.films", f"the table {str(table)!r} has more than {MOST_ROWS} rows")
    films = []
    for line, row in enumerate(rows, 2):
        try:
            films.append(_film(table.parent, row))
        except ValueError as error:
            raise BuildError("build.films", f"{table.name}, line {line}: {error}") from None
    return films


def _film(folder: Path, row: dict[str, str | None]) -> BuildFilm:
    """Return the film of a row; a ValueError says what is malformed."""
    image, label, part = (row.get(key) or "" for key in ("image", "label", "part"))
    if not image or label not in ("", "0", "1") or part not in ("", "calibration", "validation"):
        raise ValueError("image is empty, label not 0 or 1, or part not calibration or validation")
    boxes = []
    for text in filter(str.strip, (row.get("boxes_xywh") or "").split(";")):
        sides = [float(side) for side in text.split()]
        if len(sides) != 4 or not all(map(math.isfinite, sides)) or min(sides[2:]) <= 0:
            raise ValueError(f"{text!r} is not a box: x y width height")
        boxes.append((sides[0], sides[1], sides[2], sides[3]))
    return BuildFilm(
        path=folder / image,
        label=None if label == "" else label == "1",
        mask=folder / str(row["mask"]) if row.get("mask") else None,
        boxes=tuple(boxes),
        group=row.get("patient") or image,
        part=part,
    )


def split_films(films: Sequence[BuildFilm]) -> tuple[list[BuildFilm], list[BuildFilm]]:
    """Return calibration and validation films, disjoint by group; one group in three calibrates where nothing is said.

    A film's place depends on its group's name alone, so more films never move it.

    Raises
    ------
    BuildError
        ``build.films``: the table sends films of one group to both.
    """
    said: dict[str, set[str]] = {}
    for film in films:
        said.setdefault(film.group, set()).add(film.part)
    torn = next((group for group, parts in said.items() if len(parts) > 1), None)
    if torn is not None:
        raise BuildError("build.films", "the table sends films of one patient to different parts")
    parts: dict[str, list[BuildFilm]] = {"calibration": [], "validation": []}
    for film in films:
        calibrates = hashlib.sha256(os.fsencode(film.group)).digest()[0] < 256 // 3
        parts[film.part or ("calibration" if calibrates else "validation")].append(film)
    return parts["calibration"], parts["validation"]


@dataclass(frozen=True, kw_only=True)
class ReadFilm:
    """A film as the network sees it.

    Attributes
    ----------
    film : BuildFilm
        Which.
    tensor : ndarray, shape of the network's input, float16
        Preprocessed; half precision resolves 8 bits and saves memory.
    geometry : Geometry
        Between the film and the tensor.
    truth : ndarray, shape of the network's input, bool, or None
        Where the finding is; None where no mask is known.
    """

    film: BuildFilm
    tensor: npt.NDArray[np.float16]
    geometry: Geometry
    truth: npt.NDArray[np.bool_] | None = None

    def holds(self, y: int, x: int) -> bool | None:
        """Tell whether a pixel of the map lies in the finding, by mask or box; None where neither is known."""
        if self.truth is not None:
            return bool(self.truth[y, x])
        if not self.film.label or not self.film.boxes:
            return None
        source_x, source_y = self.geometry.to_source(x + 0.5, y + 0.5)
        return any(
            left <= source_x < left + width and top <= source_y < top + height
            for left, top, width, height in self.film.boxes
        )


def read_films(
    films: Sequence[BuildFilm], contract: InputSpec, *, policy: GatePolicy | None = None
) -> Iterator[ReadFilm | PtxsdkError]:
    """Read films through the readers, the input gate and the preprocessing of the device, one at a time.

    Yields
    ------
    ReadFilm, or PtxsdkError
        The error where a film cannot be read or the gate refuses it.

    Raises
    ------
    BuildError
        ``build.films``: a mask cannot be read, or is not of its film's size.
    """
    from ptxsdk.ops import preprocess

    policy = policy or GatePolicy()
    for film in films:
        try:
            radiograph = readers.read(film.path)
            gate.enforce(gate.check_header(radiograph, policy))
            tensor, geometry = preprocess(
                radiograph.pixels, size=contract.size, display=radiograph.display, mean=contract.mean, std=contract.std
            )
            gate.enforce(gate.check_content(gate.sample(tensor, geometry, contract.mean, contract.std), policy))
            ready = ReadFilm(
                film=film, tensor=tensor.astype(np.float16), geometry=geometry, truth=_truth(film, geometry)
            )
        except BuildError:
            raise
        except MemoryError:
            yield InputError("input.too_large", "there is not enough memory for this film")
        except PtxsdkError as error:
            yield error
        else:
            yield ready


def _truth(film: BuildFilm, geometry: Geometry) -> npt.NDArray[np.bool_] | None:
    """Return where the finding is, in the network's pixels; None where no mask is known."""
    import cv2

    from ptxsdk.ops import preprocess

    if film.mask is None or not film.label:
        return None
    pixels = None
    with contextlib.suppress(OSError, cv2.error):
        if film.mask.is_file():  # bilevel pictures are no films: the readers refuse them
            pixels = cv2.imread(str(film.mask), cv2.IMREAD_GRAYSCALE)
    if pixels is None or pixels.shape != geometry.source:
        what = "cannot be read" if pixels is None else f"is {pixels.shape}, its film {geometry.source}"
        raise BuildError("build.films", f"the mask {film.mask.name!r} {what}")
    bright = np.where(pixels > 127, np.uint8(255), np.uint8(0))
    shown, _ = preprocess(
        bright, size=geometry.target, display=Display(voi=Window.from_range(0, 255)), mean=0.0, std=1.0
    )
    found: npt.NDArray[np.bool_] = shown >= 0.5
    return found


def usable(found: Sequence[ReadFilm | PtxsdkError], what: str, *, fewest: int = FEWEST) -> list[ReadFilm]:
    """Return the films that were read; refuse to build on what is not a folder of chest films.

    Raises
    ------
    BuildError
        ``build.films``: fewer than `fewest`, or more than one in ten refused; with the reasons.
    """
    read = [film for film in found if isinstance(film, ReadFilm)]
    refused = [error for error in found if isinstance(error, PtxsdkError)]
    if len(read) >= fewest and len(refused) <= MOST_REFUSED * len(found):
        return read
    reasons: dict[str, int] = {}
    for error in refused:
        reasons[error.code] = reasons.get(error.code, 0) + 1
    why = ", ".join(f"{code} {count}" for code, count in sorted(reasons.items(), key=lambda item: -item[1]))
    raise BuildError(
        "build.films",
        f"{len(read)} of {len(found)} films serve for {what}; at least {fewest} must, and at most one in ten may be "
        f"refused{f' (refused: {why})' if why else ''}",
    )
