"""An endless supply of balanced, augmented batches, each a function of the seed and the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from training.data.augment import Augmentation
from training.data.cache import FilmCache
from training.data.films import Film
from training.losses import Targets
from training.made_positives import make_positive
from training.models.output import INPUT_MEAN, INPUT_STD

Plane = NDArray[np.uint8]
Supervision = Literal["image", "boxes", "masks"]

_POSITIVE_SHARE = (0.6, 0.45)
_LEAST_LABEL = 0.8
_TRIES = 1000


class Batch(NamedTuple):
    """Images (N, 1, S, S) float32 as the network wants them, and their targets."""

    image: Tensor
    targets: Targets


class TrainingStream(Dataset[Batch]):
    """An endless supply of balanced, augmented batches, indexed by step.

    Batch number `step` is a function of the seed and the step alone: a resumed run sees what the unbroken run would
    have seen, and loader processes need no state. The share of positives slides down over the run.

    Parameters
    ----------
    cache : FilmCache
        Where the films lie.
    films : sequence of Film
        Films to draw from, of both classes.
    batch, steps, seed, rank : int
        Films in a batch, steps of the whole run, the seed, and which of the processes that train together this is:
        each sees batches of its own.
    augmentation : Augmentation or None
        How films are changed; None leaves them as they are.
    supervision : {"image", "boxes", "masks"}
        How much of the truth is shown: labels alone, the boxes about the masks, or the masks.
    warm_size, warm_steps : int
        Side of the films in the first so many steps; they are averaged down from the cache.
    made : float
        Share of the positives that are made from negatives; see `training.made_positives`.
    lungs : dict of str to ndarray
        Lung outlines (S, S) of negatives by image path, to make positives from.
    """

    def __init__(
        self,
        cache: FilmCache,
        films: Sequence[Film],
        *,
        batch: int,
        steps: int,
        seed: int = 0,
        rank: int = 0,
        augmentation: Augmentation | None = None,
        supervision: Supervision = "masks",
        warm_size: int = 0,
        warm_steps: int = 0,
        made: float = 0.0,
        lungs: dict[str, Plane] | None = None,
    ) -> None:
        self.cache = cache
        self.batch = batch
        self.steps = steps
        self.seed = seed
        self.rank = rank
        self.augmentation = augmentation
        self.supervision: Supervision = supervision
        self.warm_size = warm_size
        self.warm_steps = warm_steps
        self.made = made
        self.lungs = lungs or {}
        self._pools = [[film for film in films if film.label == label] for label in (0, 1)]
        if not all(self._pools):
            raise ValueError("training needs films of both classes")
        rates = [np.array([film.trust.draw for film in pool]) for pool in self._pools]
        self._rates = [rate / rate.sum() for rate in rates]
        sure = [film for film in self._pools[0] if film.image in self.lungs and film.trust.label >= _LEAST_LABEL]
        if made and not sure:
            raise ValueError("positives are made from negatives with lung outlines, and there is none")
        self._canvases = sure

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng((self.seed, self.rank, step))
        first, last = _POSITIVE_SHARE
        share = first + (last - first) * step / max(1, self.steps)
        positives = int(np.clip(np.floor(share * self.batch + rng.random()), 1, self.batch - 1))
        made = rng.binomial(positives, self.made) if self.made else 0
        chosen = [
            pool[index]
            for pool, rate, count in zip(
                self._pools, self._rates, (self.batch - positives, positives - made), strict=True
            )
            for index in rng.choice(len(pool), count, p=rate, replace=bool(count > np.count_nonzero(rate)))
        ]
        size = self.warm_size if step < self.warm_steps and self.warm_size else self.cache.size
        drawn = [self._film(film, size, rng) for film in chosen]
        for _ in range(made):
            film, image, region = self._make(rng)
            chosen.append(film)
            drawn.append(self._augmented(image, region, size, rng))
        images, regions = zip(*drawn, strict=True)
        return Batch(to_input(np.stack(images)), collate_targets(chosen, regions, size, self.supervision))

    def _film(self, film: Film, size: int, rng: np.random.Generator) -> tuple[Plane, Plane | None]:
        """Return a film and its region at a size, augmented."""
        return self._augmented(self.cache.image(film), self.cache.region(film), size, rng)

    def _augmented(
        self, image: Plane, region: Plane | None, size: int, rng: np.random.Generator
    ) -> tuple[Plane, Plane | None]:
        """Return a film and its region reduced to a size, then augmented."""
        if image.shape[0] != size:
            image = np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA))
            region = None if region is None else _reduced(region, size)
        return (image, region) if self.augmentation is None else self.augmentation(image, region, rng)

    def _make(self, rng: np.random.Generator) -> tuple[Film, Plane, Plane]:
        """Make a positive of a random negative that lends itself to it."""
        for _ in range(_TRIES):
            film = self._canvases[rng.integers(len(self._canvases))]
            made = make_positive(self.cache.image(film), self.lungs[film.image], rng)
            if made is not None:
                return film.as_made(), *made
        raise ValueError(f"none of {_TRIES} negatives lent itself to a made positive")


class StepSampler(Sampler[int]):
    """Deals an epoch's steps, from wherever the run stands.

    Parameters
    ----------
    steps : int
        Steps in an epoch.
    done : callable
        Returns the steps the run has taken.
    """

    def __init__(self, steps: int, done: Callable[[], int]) -> None:
        self.steps = steps
        self.done = done

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.done(), self.done() + self.steps))


def to_input(images: Plane) -> Tensor:
    """Turn cached films (N, S, S) uint8 into the network's input (N, 1, S, S) float32."""
    scaled = torch.from_numpy(images.astype(np.float32)).div_(255)
    return scaled.sub_(INPUT_MEAN).div_(INPUT_STD).unsqueeze(1)


def collate_targets(
    films: Sequence[Film], regions: Sequence[Plane | None], size: int, supervision: Supervision = "masks"
) -> Targets:
    """Return the targets of films of side `size`; a region is (S, S), or None where there is none or none known.

    With supervision by boxes a mask becomes the boxes about its parts; with image labels alone no place is known,
    not even that of a negative's healthy patches.
    """
    empty = np.zeros((size, size), np.uint8)
    shown = [empty if region is None or supervision == "image" else region for region in regions]
    if supervision == "boxes":
        shown = [boxes_about(region) for region in shown]
    located = supervision != "image"
    known = [located and (not film.label or region is not None) for film, region in zip(films, regions, strict=True)]
    exact = [
        supervision == "masks" and place and (not film.label or film.has_mask)
        for film, place in zip(films, known, strict=True)
    ]
    return Targets(
        label=torch.tensor([float(film.label) for film in films]),
        region=torch.from_numpy(np.stack(shown)),
        has_region=torch.tensor(known),
        label_weight=torch.tensor([film.trust.label for film in films]),
        mask_weight=torch.tensor([film.trust.mask * place for film, place in zip(films, exact, strict=True)]),
    )


def boxes_about(region: Plane) -> Plane:
    """Return the bounding boxes of the connected parts of a region, filled: (S, S) uint8."""
    boxes = np.zeros_like(region)
    count, _, stats, _ = cv2.connectedComponentsWithStats((region != 0).astype(np.uint8), connectivity=8)
    for x, y, width, height, _ in stats[1:count]:
        boxes[y : y + height, x : x + width] = 1
    return boxes


def _reduced(region: Plane, size: int) -> Plane:
    """Reduce a region (0 or 1) to a side; a part thinner than a pixel is kept where it covers most."""
    covered = cv2.resize(region.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    return np.asarray(covered >= min(0.5, float(covered.max()) or 0.5)).astype(np.uint8)
