"""Find films that look like a held-out patient's among films that come without a patient id."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from training.data.cache import FilmCache
from training.data.films import Film
from training.data.stream import to_input
from training.models.backbones import DEFAULT_BACKBONE, create_backbone

logger = logging.getLogger(__name__)

COMPONENTS = 256
GRID = 6
STRIDE_16 = 3
YEARS = 3.0


def embed(cache: FilmCache, *, batch: int = 16) -> NDArray[np.float32]:
    """Describe every cached film by its anatomy, devices and framing.

    Features at stride 16 of an ImageNet network, pooled to a coarse grid and whitened over the collection. With
    age and sex, the film most alike is one of the same patient for 6 of 10 films of a patient who has others.

    Returns
    -------
    ndarray
        (n, 256) float32 in the order of the cache, every row of unit length, so that a product is a similarity.
    """
    network = create_backbone(DEFAULT_BACKBONE).eval().to(memory_format=torch.channels_last)
    rows = []
    with torch.inference_mode():
        for start in range(0, len(cache.images), batch):
            images = F.avg_pool2d(to_input(cache.images[start : start + batch]), 3, 2, 1)
            maps = network(images.contiguous(memory_format=torch.channels_last))[STRIDE_16]
            rows.append(F.adaptive_avg_pool2d(maps.float(), GRID).flatten(1))
    features = torch.cat(rows)
    torch.manual_seed(0)
    white, _, _ = torch.pca_lowrank(features, q=min(COMPONENTS, *features.shape), niter=3)
    return np.asarray(F.normalize(white, dim=1).numpy(), np.float32)


def drop_look_alikes(
    candidates: Sequence[Film],
    held_out: Sequence[Film],
    vectors: NDArray[np.float32],
    row_of: dict[str, int],
    *,
    threshold: float,
) -> list[Film]:
    """Drop films of unknown patients that look like a held-out film.

    A film is compared with the held-out films of the same sex and of about the same age, where both are known. Many
    a look-alike is another patient's; losing it costs little, while a film of a held-out patient in training would
    flatter every measure.

    Parameters
    ----------
    candidates, held_out : sequence of Film
        Films to keep or drop, and films to compare with.
    vectors : ndarray
        (n, d) float32, rows of unit length, as `embed` returns.
    row_of : dict of str to int
        Row of `vectors` by image path.
    threshold : float
        Similarity at which a film is dropped.

    Returns
    -------
    list of Film
        The candidates kept, in order. Those with a patient id are always kept.
    """
    similarity = vectors[[row_of[film.image] for film in candidates]] @ (
        vectors[[row_of[film.image] for film in held_out]].T
    )
    kept = [
        film
        for film, row in zip(candidates, similarity, strict=True)
        if film.patient
        or not any(_may_be_same(film, other) for other, alike in zip(held_out, row, strict=True) if alike >= threshold)
    ]
    logger.info("dropped %d look-alikes of held-out films", len(candidates) - len(kept))
    return kept


def _may_be_same(one: Film, other: Film) -> bool:
    """Tell whether sex and age leave it open that two films are of one patient, within a few years."""
    if one.sex and other.sex and one.sex != other.sex:
        return False
    return one.age is None or other.age is None or abs(one.age - other.age) <= YEARS
