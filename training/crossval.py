"""Cross-validation: one run a fold, and a reading of every film by a network and with choices that never saw it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.choices import choose
from training.data.cache import FilmCache
from training.data.films import Film
from training.data.splits import Split
from training.learner import TrainConfig
from training.predictions import Predictions, predict
from training.readings import Reading, read_predictions
from training.scoring import Aggregation
from training.train import CONFIG, LAST, fit, load_network, read_config

logger = logging.getLogger(__name__)

HELD_OUT = "held_out.npz"


def run_fold(
    config: TrainConfig,
    fold: int,
    cache: FilmCache,
    parts: Split,
    out: Path,
    **options: Any,
) -> Path:
    """Train on all folds but one, to the last step, and store the logits of the one; what is done is not done again.

    Parameters
    ----------
    config : TrainConfig
        What to train; its folds are replaced: one tests, none validates.
    fold : int
        The fold held out.
    cache : FilmCache
        Where the films lie.
    parts : Split
        The films of this fold.
    out : Path
        Folder of the run.
    **options
        Passed to `training.train.fit`.

    Returns
    -------
    Path
        The stored logits; see `load_held_out`.

    Raises
    ------
    ValueError
        The folder holds a run of another configuration.
    """
    stored = out / HELD_OUT
    config = fold_config(config, fold)
    if (out / CONFIG).exists() and (found := read_config(out)) != config:
        raise ValueError(f"{out.name} was begun with another configuration: {differences(found, config)}")
    if stored.exists():
        return stored
    logger.info("%s: %d films to train, %d held out", out.name, len(parts.train), len(parts.test))
    fit(config, cache, parts, out, resume=True, **options)
    network, _ = load_network(out, checkpoint=LAST)
    predictions = predict(network, cache, parts.test)
    draft = stored.with_suffix(".part.npz")
    np.savez(
        draft,
        images=np.array([film.image for film in parts.test]),
        patch_logits=predictions.patch_logits.astype(np.float32),
        mask_logits=predictions.mask_logits.astype(np.float16),
    )
    draft.replace(stored)
    return stored


def fold_config(config: TrainConfig, fold: int) -> TrainConfig:
    """Return a configuration that holds out one fold and validates on none."""
    return dataclasses.replace(config, test_fold=fold, validation_fold=-1)


def common_config(runs: Sequence[Path]) -> TrainConfig:
    """Return the configuration that the runs of several folds share.

    Raises
    ------
    ValueError
        They differ in more than the fold, or hold out other folds than 0, 1, 2, ... in order.
    """
    found = [read_config(run) for run in runs]
    for fold, config in enumerate(found):
        if config != fold_config(found[0], fold):
            raise ValueError(f"{runs[fold].name}: {differences(config, fold_config(found[0], fold))}")
    return found[0]


def differences(one: TrainConfig, other: TrainConfig) -> str:
    """Say in which fields two configurations differ."""
    pairs = [(key, value, getattr(other, key)) for key, value in asdict(one).items()]
    return ", ".join(f"{key} is {value}, not {wanted}" for key, value, wanted in pairs if value != wanted)


def load_held_out(paths: Sequence[Path], films: Sequence[Film]) -> tuple[list[Film], Predictions, NDArray[np.intp]]:
    """Read the stored logits of several folds.

    Parameters
    ----------
    paths : sequence of Path
        One file a fold, as `run_fold` stored it.
    films : sequence of Film
        All films, to find those stored.

    Returns
    -------
    films : list of Film
        The n films of all folds.
    predictions : Predictions
        Their logits.
    folds : ndarray
        (n,) fold of each.
    """
    by_image = {film.image: film for film in films}
    found: list[Film] = []
    patches, masks, folds = [], [], []
    for fold, path in enumerate(paths):
        with np.load(path) as stored:
            found += [by_image[str(image)] for image in stored["images"]]
            patches.append(stored["patch_logits"])
            masks.append(stored["mask_logits"])
        folds.append(np.full(len(patches[-1]), fold))
    return found, Predictions(np.concatenate(patches), np.concatenate(masks)), np.concatenate(folds)


def cross_fit(
    films: Sequence[Film],
    predictions: Predictions,
    folds: NDArray[np.intp],
    cache: FilmCache,
    *,
    aggregations: Sequence[Aggregation] | None = None,
) -> list[Reading]:
    """Read the films of each fold with choices made on the other folds.

    Parameters
    ----------
    films, predictions, folds
        As `load_held_out` returns them.
    cache : FilmCache
        Where the masks lie.
    aggregations : sequence of Aggregation or None
        What to choose the aggregation from; None compares all.

    Returns
    -------
    list of Reading
        One a film, in order.
    """
    readings: dict[int, Reading] = {}
    for fold in np.unique(folds):
        inside, outside = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        choices, _ = choose(
            part(predictions, outside), cache, [films[index] for index in outside], aggregations=aggregations
        )
        logger.info("fold %d: %s", fold, choices)
        own = read_predictions(part(predictions, inside), choices, cache, [films[index] for index in inside])
        readings |= dict(zip(inside.tolist(), own, strict=True))
    return [readings[index] for index in range(len(films))]


def part(predictions: Predictions, indices: NDArray[np.intp]) -> Predictions:
    """Return the logits of some films."""
    return Predictions(predictions.patch_logits[indices], predictions.mask_logits[indices])
