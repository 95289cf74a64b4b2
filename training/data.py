"""Films for training: the manifest, how far each label is trusted, patient-disjoint folds and a cache of tensors."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from training.augment import Augmentation
from training.losses import Targets
from training.model import INPUT_MEAN, INPUT_STD

logger = logging.getLogger(__name__)

Box = tuple[float, float, float, float]
Preprocess = Callable[[NDArray[np.uint8], int], tuple[NDArray[np.float32], tuple[int, int, int, int]]]

CACHE_FORMAT = 2
_POSITIVE_SHARE = (0.6, 0.45)


@dataclass(frozen=True, kw_only=True)
class Trust:
    """How far a label is trusted.

    Attributes
    ----------
    draw : float
        Relative rate at which a film of this kind is drawn within its class.
    label : float
        Weight of its label in the loss.
    mask : float
        Weight of its mask as a pixel mask in the loss.
    """

    draw: float
    label: float
    mask: float


TRUSTED = frozenset({"siim", "box", "adjudicated"})
"""Who labelled the films that may validate: radiologists and expert panels."""

TRUST = {
    ("siim", 1): Trust(draw=2.0, label=1.0, mask=1.0),
    ("siim", 0): Trust(draw=2.0, label=1.0, mask=1.0),
    ("box", 1): Trust(draw=2.0, label=1.0, mask=0.0),
    ("adjudicated", 1): Trust(draw=2.0, label=1.0, mask=0.0),
    ("adjudicated", 0): Trust(draw=2.0, label=1.0, mask=1.0),
    ("predicted", 1): Trust(draw=1.0, label=0.9, mask=0.7),
    ("predicted", 0): Trust(draw=0.7, label=0.9, mask=0.9),
    ("predicted-doubtful", 1): Trust(draw=0.4, label=0.5, mask=0.4),
    ("nih", 1): Trust(draw=0.3, label=0.5, mask=0.0),
    ("nih", 0): Trust(draw=1.0, label=0.8, mask=0.8),
    ("report", 1): Trust(draw=0.3, label=0.5, mask=0.0),
    ("report", 0): Trust(draw=0.4, label=0.8, mask=0.8),
}
"""Trust by (labelled_by, label). Text-mined positives are wrong a third of the time, hence their low rate."""


@dataclass(frozen=True, kw_only=True)
class Film:
    """One row of the manifest.

    Attributes
    ----------
    image, mask : str
        Paths from the data folder; an empty mask: there is none.
    origin : str
        The set the film came from.
    patient : str
        Patient id; empty where it is not known.
    label : int
        1 pneumothorax, 0 not.
    labelled_by : str
        Source of the label, a key of `TRUST`.
    boxes : tuple of tuple of float
        Radiologists' boxes ``(x, y, width, height)`` in pixels of the image.
    view, sex : str
        Projection and sex, empty where not known.
    age : float or None
        Years.
    """

    image: str
    mask: str
    origin: str
    patient: str
    label: int
    labelled_by: str
    boxes: tuple[Box, ...] = ()
    view: str = ""
    sex: str = ""
    age: float | None = None

    @property
    def trusted(self) -> bool:
        """Whether the label is good enough to validate with."""
        return self.labelled_by in TRUSTED

    @property
    def trust(self) -> Trust:
        """How far the label is trusted in training."""
        return TRUST[self.labelled_by, self.label]


class Split(NamedTuple):
    """Patient-disjoint lists of films.

    `validation` decides early stopping, calibration and operating points; `test` is only ever reported.
    """

    train: list[Film]
    validation: list[Film]
    test: list[Film]


def read_manifest(folder: Path) -> list[Film]:
    """Read ``manifest.csv`` of a data folder, in its order."""
    with (folder / "manifest.csv").open(newline="") as stream:
        return [
            Film(
                image=row["image"],
                mask=row["mask"],
                origin=row["set"],
                patient=row["patient"],
                label=int(row["label"]),
                labelled_by=row["labelled_by"],
                boxes=_parse_boxes(row["boxes_xywh"]),
                view=row.get("view", ""),
                sex=row.get("sex", ""),
                age=float(row["age"]) if row.get("age") else None,
            )
            for row in csv.DictReader(stream)
        ]


def patient_folds(films: Iterable[Film], count: int) -> dict[str, int]:
    """Deal the patients of trusted films to folds, with positives spread evenly.

    Patients go in the order of a hash of their id, those with a positive film first, each to the fold that has the
    fewest films of that stratum so far: deterministic, whatever the order of the films.

    Returns
    -------
    dict of str to int
        Fold of each patient with a trusted film.

    Raises
    ------
    ValueError
        A trusted film has no patient id.
    """
    owned: dict[str, list[Film]] = defaultdict(list)
    for film in films:
        if film.trusted:
            if not film.patient:
                raise ValueError(f"{film.image} is trusted but has no patient id: it could not be split by patient")
            owned[film.patient].append(film)
    folds: dict[str, int] = {}
    for positive in (True, False):
        filled = [0] * count
        patients = [patient for patient, own in owned.items() if any(film.label for film in own) == positive]
        for patient in sorted(patients, key=_hash):
            fold = filled.index(min(filled))
            folds[patient] = fold
            filled[fold] += len(owned[patient])
    return folds


def split_films(films: Sequence[Film], *, folds: int = 4) -> Split:
    """Split films by patient: fold 0 of the trusted ones validates, fold 1 tests, all else trains.

    Every film of a held-out patient leaves training, whoever labelled it. Films without a patient id stay in
    training; see `training.duplicates`.
    """
    fold_of = patient_folds(films, folds)
    validation = [film for film in films if film.trusted and fold_of[film.patient] == 0]
    test = [film for film in films if film.trusted and fold_of[film.patient] == 1]
    held_out = {patient for patient, fold in fold_of.items() if fold in (0, 1)}
    return Split([film for film in films if film.patient not in held_out], validation, test)


def sdk_preprocess(
    pixels: NDArray[np.uint8], size: int, *, mean: float = 0.0, std: float = 1.0
) -> tuple[NDArray[np.float32], tuple[int, int, int, int]]:
    """Run the SDK's own preprocessing on an 8-bit film that is already display-ready.

    Parameters
    ----------
    pixels : ndarray
        (rows, columns) uint8.
    size : int
        Side S of the tensor.
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

    display = Display(voi=Window.from_range(0, 255))
    tensor, geometry = preprocess(pixels, display=display, size=(size, size), mean=mean, std=std)
    return np.asarray(tensor).reshape(size, size), geometry.content


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
            Film and size to tensor and content rectangle; the SDK's own unless a test says otherwise.
        threads : int
            Films decoded at a time.
        """
        key = hashlib.sha256(f"{CACHE_FORMAT} {films!r}".encode()).hexdigest()[:12]
        place = folder / f"{size}-{key}"
        if not place.exists():
            cls._write(data, films, size, place, preprocess, threads)
        return cls(place)

    @staticmethod
    def _write(data: Path, films: Sequence[Film], size: int, place: Path, preprocess: Preprocess, threads: int) -> None:
        """Preprocess every film into a new folder and move it into place when it is complete."""
        draft = place.with_name(f"{place.name}.{os.getpid()}.part")
        draft.mkdir(parents=True, exist_ok=True)
        located = [film for film in films if film.label and (film.mask or film.boxes)]
        shape = (size, size)
        images = np.lib.format.open_memmap(draft / "images.npy", "w+", np.uint8, (len(films), *shape))
        regions = np.lib.format.open_memmap(draft / "regions.npy", "w+", np.uint8, (len(located), *shape))
        contents = np.empty((len(films), 4), np.int32)
        row_of = {film.image: row for row, film in enumerate(films)}
        region_of = {film.image: row for row, film in enumerate(located)}

        def fill(film: Film) -> None:
            row = row_of[film.image]
            pixels = read_gray(data / film.image)
            tensor, contents[row] = preprocess(pixels, size)
            images[row] = np.rint(tensor * 255)
            if film.image in region_of:
                region = read_gray(data / film.mask) if film.mask else _draw_boxes(film.boxes, pixels.shape)
                regions[region_of[film.image]] = preprocess(region, size)[0] >= 0.5

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
        except OSError:  # another run finished the same cache first
            shutil.rmtree(draft)


class Batch(NamedTuple):
    """Images (N, 1, S, S) float32 as the network wants them, and their targets."""

    image: Tensor
    targets: Targets


class TrainingStream(Dataset[Batch]):
    """An endless supply of balanced, augmented batches, indexed by step.

    Batch number `step` is a function of the seed and the step alone: a resumed run sees what the unbroken run would
    have seen, and loader processes need no state.

    Parameters
    ----------
    cache : FilmCache
        Where the films lie.
    films : sequence of Film
        Films to draw from, of both classes.
    batch, steps, seed : int
        Films in a batch, steps of the whole run, and the seed.
    augmentation : Augmentation or None
        How films are changed; None leaves them as they are.
    """

    def __init__(
        self,
        cache: FilmCache,
        films: Sequence[Film],
        *,
        batch: int,
        steps: int,
        seed: int = 0,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.cache = cache
        self.batch = batch
        self.steps = steps
        self.seed = seed
        self.augmentation = augmentation
        self._pools = [[film for film in films if film.label == label] for label in (0, 1)]
        if not all(self._pools):
            raise ValueError("training needs films of both classes")
        rates = [np.array([film.trust.draw for film in pool]) for pool in self._pools]
        self._rates = [rate / rate.sum() for rate in rates]

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng((self.seed, step))
        first, last = _POSITIVE_SHARE
        share = first + (last - first) * step / max(1, self.steps)
        positives = int(np.clip(np.floor(share * self.batch + rng.random()), 1, self.batch - 1))
        chosen = [
            pool[index]
            for pool, rate, count in zip(self._pools, self._rates, (self.batch - positives, positives), strict=True)
            for index in rng.choice(len(pool), count, p=rate, replace=bool(count > np.count_nonzero(rate)))
        ]
        images, regions = zip(*(self._film(film, rng) for film in chosen), strict=True)
        return Batch(to_input(np.stack(images)), collate_targets(chosen, regions, self.cache.size))

    def _film(self, film: Film, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Return a film and its region, augmented."""
        image, region = self.cache.image(film), self.cache.region(film)
        return (image, region) if self.augmentation is None else self.augmentation(image, region, rng)


def to_input(images: NDArray[np.uint8]) -> Tensor:
    """Turn cached films (N, S, S) uint8 into the network's input (N, 1, S, S) float32."""
    scaled = torch.from_numpy(images.astype(np.float32)).div_(255)
    return scaled.sub_(INPUT_MEAN).div_(INPUT_STD).unsqueeze(1)


def collate_targets(films: Sequence[Film], regions: Sequence[NDArray[np.uint8] | None], size: int) -> Targets:
    """Return the targets of films of side `size`; a region is (S, S), or None where there is none or none known."""
    empty = np.zeros((size, size), np.uint8)
    known = [not film.label or region is not None for film, region in zip(films, regions, strict=True)]
    exact = [place and (not film.label or bool(film.mask)) for film, place in zip(films, known, strict=True)]
    return Targets(
        label=torch.tensor([float(film.label) for film in films]),
        region=torch.from_numpy(np.stack([empty if region is None else region for region in regions])),
        has_region=torch.tensor(known),
        label_weight=torch.tensor([film.trust.label for film in films]),
        mask_weight=torch.tensor([film.trust.mask * place for film, place in zip(films, exact, strict=True)]),
    )


def describe(films: Sequence[Film]) -> dict[str, int]:
    """Count films by ``labelled_by`` and class, with totals."""
    counts = Counter(f"{film.labelled_by} {'positive' if film.label else 'negative'}" for film in films)
    totals = {"films": len(films), "positive": sum(film.label for film in films)}
    patients = len({film.patient for film in films if film.patient})
    return totals | {"known patients": patients} | dict(sorted(counts.items()))


def _hash(text: str) -> str:
    """Return a stable hash to order patients by."""
    return hashlib.sha256(text.encode()).hexdigest()


def _parse_boxes(text: str) -> tuple[Box, ...]:
    """Parse ``x y w h;x y w h``."""
    boxes = []
    for part in filter(None, text.split(";")):
        x, y, width, height = map(float, part.split())
        boxes.append((x, y, width, height))
    return tuple(boxes)


def read_gray(path: Path) -> NDArray[np.uint8]:
    """Read an image as (rows, columns) uint8; a bilevel mask comes back as 0 and 255."""
    pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if pixels is None:
        raise FileNotFoundError(f"cannot read {path.name} as an image")
    return np.asarray(pixels, np.uint8)


def _draw_boxes(boxes: Sequence[Box], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Draw boxes into a plane of a film's shape, 255 inside."""
    plane = np.zeros(shape, np.uint8)
    for x, y, width, height in boxes:
        plane[round(y) : round(y + height), round(x) : round(x + width)] = 255
    return plane
