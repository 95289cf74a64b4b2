"""What validation films decide: aggregation, calibration, operating points, region rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training import scoring
from training.data.cache import FilmCache
from training.data.films import Film
from training.metrics import Flags, Floats, auc
from training.predictions import Predictions


@dataclass(frozen=True, kw_only=True)
class Choices:
    """All an engine needs besides the network."""

    aggregation: scoring.Aggregation
    calibration: scoring.Calibration
    operating_points: tuple[scoring.OperatingPoint, ...]
    regions: scoring.RegionRules

    def probabilities(self, predictions: Predictions) -> Floats:
        """Return the calibrated probability of each film."""
        return self.calibration(image_scores(predictions, self.aggregation))

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Choices:
        """Read back what `asdict` of a Choices wrote to JSON."""
        return cls(
            aggregation=scoring.Aggregation(**plain["aggregation"]),
            calibration=scoring.Calibration(**plain["calibration"]),
            operating_points=tuple(scoring.OperatingPoint(**point) for point in plain["operating_points"]),
            regions=scoring.RegionRules(**plain["regions"]),
        )


def choose(
    predictions: Predictions,
    cache: FilmCache,
    films: Sequence[Film],
    *,
    aggregations: Sequence[scoring.Aggregation] | None = None,
) -> tuple[Choices, dict[str, float]]:
    """Make every choice on validation films; return them and the AUC of each aggregation compared.

    Parameters
    ----------
    predictions : Predictions
        Logits of the films.
    cache : FilmCache
        Where their masks lie.
    films : sequence of Film
        Films with trusted labels.
    aggregations : sequence of Aggregation or None
        What to choose from where a system prescribes it; None compares all.
    """
    labels = labels_of(films)
    compared = scoring.candidates(cache.size) if aggregations is None else aggregations
    scores = {each: image_scores(predictions, each) for each in compared}
    aggregation = scoring.choose_aggregation(scores, labels)
    calibration = scoring.fit_platt(scores[aggregation], labels)
    points = scoring.choose_operating_points(calibration(scores[aggregation]), labels)
    rules = scoring.choose_region_rules(predictions.mask_logits, truths_of(cache, films), np.flatnonzero(~labels))
    choices = Choices(aggregation=aggregation, calibration=calibration, operating_points=tuple(points), regions=rules)
    return choices, {each.name: round(auc(labels, score), 4) for each, score in scores.items()}


def image_scores(predictions: Predictions, aggregation: scoring.Aggregation) -> Floats:
    """Return the image logit of each film from the output an aggregation reads."""
    source = predictions.patch_logits if aggregation.source == "patch" else predictions.mask_logits
    return scoring.image_logits(source, aggregation)


def labels_of(films: Sequence[Film]) -> Flags:
    """Return the labels, (n,) boolean."""
    return np.array([bool(film.label) for film in films])


def truths_of(cache: FilmCache, films: Sequence[Film]) -> dict[int, Flags]:
    """Return the mask (S, S) of every film that has one, by index; boxes are no masks."""
    return {
        index: region > 0
        for index, film in enumerate(films)
        if film.has_mask and (region := cache.region(film)) is not None
    }
