"""Preprocessed films and regions in memory-mapped arrays; the preprocessing is the SDK's own op."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from training.data.films import Box, Film
from training.data.siim import decode_rle

if TYPE_CHECKING:
    from ptxsdk.radiograph import Display

logger = logging.getLogger(__name__)

CACHE_FORMAT = 3

_DISPLAY_READY = frozenset({".png", ".jpg", ".jpeg"})


class Preprocess(Protocol):
    """From a film's pixels to the tensor of a side and the film's place in it; see `sdk_preprocess`."""

    def __call__(
        self, pixels: NDArray[Any], size: int, *, display: Display | None = None
    ) -> tuple[NDArray[np.float32], tuple[int, int, int, int]]:
        """Return the (S, S) tensor and ``(x0, y0, x1, y1)`` of the film in it."""
        ...


def sdk_preprocess(
    pixels: NDArray[Any], size: int, *, display: Display | None = None, mean: float = 0.0, std: float = 1.0
) -> tuple[NDArray[np.float32], tuple[int, int, int, int]]:
    """Run the SDK's own preprocessing on a film.

    Parameters
    ----------
    pixels : ndarray
        (rows, columns), stored values.
    size : int
        Side S of the tensor.
    display : Display or None
        The film's window and polarity; None for 8-bit pixels that are ready to be shown.
    mean, std : float
        The result is ``(value - mean) / std`` of display values in [0, 1].

    Returns
    -------
    tensor : ndarray
        (S, S) float32, the film with its aspect kept, centred, on black.
    content : tuple of int
        ``(x0, y0, x1, y1)`` of the film in the tensor, half-open.
    """
    from ptxsdk.ops import preprocess
    from ptxsdk.radiograph import Display, Window

    shown = Display(voi=Window.from_range(0, 255)) if display is None else display
    tensor, geometry = preprocess(pixels, display=shown, size=(size, size), mean=mean, std=std)
    return tensor, geometry.content


class FilmCache:
    """Preprocessed films and regions in memory-mapped arrays, so that no epoch decodes an image.

    Attributes
    ----------
    folder : Path
        Where it lies.
    images : ndarray
        (n, S, S) uint8, memory-mapped; 255 times the preprocessed film.
    regions : ndarray
        (m, S, S) uint8, memory-mapped; 1 inside the mask, or inside the boxes where there is no mask.
    contents : ndarray
        (n, 4) int32; ``(x0, y0, x1, y1)`` of the film in its tensor.
    row_of, region_of : dict of str to int
        Row in `images` and in `regions` by image path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images: NDArray[np.uint8] = np.load(folder / "images.npy", mmap_mode="r")
        self.regions: NDArray[np.uint8] = np.load(folder / "regions.npy", mmap_mode="r")
        self.contents: NDArray[np.int32] = np.load(folder / "contents.npy")
        index = json.loads((folder / "index.json").read_text())
        self.row_of: dict[str, int] = index["rows"]
        self.region_of: dict[str, int] = index["regions"]

    @property
    def size(self) -> int:
        """Side S of the cached films."""
        return int(self.images.shape[-1])

    def image(self, film: Film) -> NDArray[np.uint8]:
        """Return the (S, S) tensor of a film, uint8."""
        return np.asarray(self.images[self.row_of[film.image]])

    def region(self, film: Film) -> NDArray[np.uint8] | None:
        """Return the (S, S) region of a positive film, 1 inside; None where its place is not known."""
        row = self.region_of.get(film.image)
        return None if row is None else self.regions[row]

    def content(self, film: Film) -> tuple[int, int, int, int]:
        """Return ``(x0, y0, x1, y1)`` of a film in its tensor, half-open."""
        x0, y0, x1, y1 = self.contents[self.row_of[film.image]].tolist()
        return x0, y0, x1, y1

    @classmethod
    def open(
        cls,
        data: Path,
        films: Sequence[Film],
        size: int,
        folder: Path,
        *,
        preprocess: Preprocess = sdk_preprocess,
        threads: int = 2,
    ) -> FilmCache:
        """Open the cache of a data folder at a size, making it first where it is missing.

        Parameters
        ----------
        data : Path
            Folder the films' paths start from.
        films : sequence of Film
            All films of the manifest.
        size : int
            Side of the tensors.
        folder : Path
            Where caches live; each has a subfolder named by size and a hash of the films.
        preprocess : callable
            Pixels, size and display to tensor and content rectangle; the SDK's own unless a test says otherwise.
        threads : int
            Films decoded at a time.
        """
        named = [(film.image, film.mask, film.rle, film.boxes) for film in films]
        key = hashlib.sha256(f"{CACHE_FORMAT} {named!r}".encode()).hexdigest()[:12]
        place = folder / f"{size}-{key}"
        if not place.exists():
            cls._write(data, films, size, place, preprocess, threads)
        return cls(place)

    @staticmethod
    def _write(data: Path, films: Sequence[Film], size: int, place: Path, preprocess: Preprocess, threads: int) -> None:
        """Preprocess every film into a new folder and move it into place when it is complete."""
        draft = place.with_name(f"{place.name}.{os.getpid()}.part")
        draft.mkdir(parents=True, exist_ok=True)
        located = [film for film in films if film.label and (film.has_mask or film.boxes)]
        shape = (size, size)
        images = np.lib.format.open_memmap(draft / "images.npy", "w+", np.uint8, (len(films), *shape))
        regions = np.lib.format.open_memmap(draft / "regions.npy", "w+", np.uint8, (len(located), *shape))
        contents = np.empty((len(films), 4), np.int32)
        row_of = {film.image: row for row, film in enumerate(films)}
        region_of = {film.image: row for row, film in enumerate(located)}

        def fill(film: Film) -> None:
            row = row_of[film.image]
            pixels, display = read_film(data / film.image)
            tensor, contents[row] = preprocess(pixels, size, display=display)
            images[row] = np.rint(tensor * 255)
            if film.image in region_of:
                region = _draw_region(data, film, pixels.shape)
                covered = preprocess(region, size)[0]
                # A finding thinner than a pixel is kept where it covers most.
                regions[region_of[film.image]] = covered >= min(0.5, float(covered.max()) or 0.5)

        with ThreadPoolExecutor(threads) as pool:
            for done, _ in enumerate(pool.map(fill, films), 1):
                if done % 1000 == 0:
                    logger.info("cached %d of %d films", done, len(films))
        images.flush()
        regions.flush()
        np.save(draft / "contents.npy", contents)
        (draft / "index.json").write_text(json.dumps({"rows": row_of, "regions": region_of}))
        try:
            draft.rename(place)
        except OSError:
            shutil.rmtree(draft)
            if not place.exists():
                raise  # not because another run finished the same cache first


def read_gray(path: Path) -> NDArray[np.uint8]:
    """Read an image as (rows, columns) uint8; a bilevel mask comes back as 0 and 255."""
    pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if pixels is None:
        raise FileNotFoundError(f"cannot read {path.name} as an image")
    return np.asarray(pixels, np.uint8)


def is_display_ready(name: str) -> bool:
    """Tell whether a file's pixels are 8-bit display values: PNG or JPEG."""
    return Path(name).suffix.lower() in _DISPLAY_READY


def read_film(path: Path) -> tuple[NDArray[Any], Display | None]:
    """Read a film: a PNG or JPEG as `read_gray` does, anything else through the SDK's readers.

    Returns
    -------
    pixels : ndarray
        (rows, columns), stored values.
    display : Display or None
        The film's window and polarity; None for a PNG or JPEG, whose pixels are ready to be shown.

    Raises
    ------
    FileNotFoundError
        A PNG or JPEG cannot be read.
    ptxsdk.errors.InputError
        Another file cannot be read.
    """
    if is_display_ready(path.name):
        return read_gray(path), None
    from ptxsdk.readers import read

    film = read(path, name=path.name)
    return film.pixels, film.display


def _draw_region(data: Path, film: Film, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the mask of a film, or else its boxes, as a plane of the film's shape, 255 inside."""
    if film.mask:
        return read_gray(data / film.mask)
    if film.rle:
        return np.asarray(decode_rle(film.rle, shape[0], shape[1]) * 255, np.uint8)
    return _draw_boxes(film.boxes, shape)


def _draw_boxes(boxes: Sequence[Box], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Draw boxes into a plane of a film's shape, 255 inside."""
    plane = np.zeros(shape, np.uint8)
    for x, y, width, height in boxes:
        plane[round(y) : round(y + height), round(x) : round(x + width)] = 255
    return plane
