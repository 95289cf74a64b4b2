"""Measures over the readings of many films, with 95 % intervals that draw patients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training import metrics
from training.choices import labels_of
from training.data.films import describe
from training.data.nih import FINDING
from training.metrics import Flags, Floats
from training.readings import Reading

IOU_STEPS = (0.1, 0.25, 0.5)
SIZES = {"below 1 % of the film": (0.0, 0.01), "1 to 5 %": (0.01, 0.05), "above 5 %": (0.05, 1.01)}
"""Sizes of a finding as shares of the film."""

AGES = {"below 40 years": (0, 40), "40 to 64": (40, 65), "65 and more": (65, 200)}

Plain = dict[str, Any]

_NOTHING = {"value": None, "low": None, "high": None, "n": 0}


def measure(readings: Sequence[Reading], points: Sequence[str], *, replicates: int = 2000) -> Plain:
    """Measure classification, operating points, localization and strata.

    Parameters
    ----------
    readings : sequence of Reading
        The films.
    points : sequence of str
        Names of the operating points; the first decides what is shown.
    replicates : int
        Draws of the bootstrap.

    Returns
    -------
    dict
        ``films``, ``classification``, ``operating_points``, ``localization`` and ``strata``; a measure is a dict of
        value, low, high (95 %, percentile bootstrap over patients) and n.
    """
    labels = labels_of([reading.film for reading in readings])
    probabilities = probabilities_of(readings)

    def over(function: Callable[[Flags, Floats], float]) -> Plain:
        return _over_patients(readings, lambda draw: function(labels[draw], probabilities[draw]), replicates)

    return {
        "films": describe([reading.film for reading in readings]),
        "classification": {
            "auc": over(metrics.auc),
            "average_precision": over(metrics.average_precision),
            "brier": over(metrics.brier),
            "ece": over(metrics.expected_calibration_error),
        },
        "operating_points": {point: operating_point(readings, point, replicates=replicates) for point in points},
        "localization": localization(readings, points[0], replicates=replicates),
        "strata": strata(readings, points[0], replicates=replicates),
    }


def operating_point(readings: Sequence[Reading], point: str, *, replicates: int) -> Plain:
    """Measure sensitivity, specificity, precision, accuracy and the confusion matrix at an operating point."""
    labels = labels_of([reading.film for reading in readings])
    flagged = np.array([point in reading.flagged for reading in readings])

    def share(hits: Flags, of: Flags) -> Plain:
        chosen = np.flatnonzero(of)
        return _share([readings[index] for index in chosen], hits[chosen], replicates)

    return {
        "sensitivity": share(flagged, labels),
        "specificity": share(~flagged, ~labels),
        "precision": share(labels, flagged),
        "accuracy": share(flagged == labels, np.ones_like(labels)),
        "confusion": {
            "true_negative": int((~flagged & ~labels).sum()),
            "false_positive": int((flagged & ~labels).sum()),
            "false_negative": int((~flagged & labels).sum()),
            "true_positive": int((flagged & labels).sum()),
        },
    }


def localization(readings: Sequence[Reading], point: str, *, replicates: int) -> Plain:
    """Measure masks and regions.

    Dice of positives is of the regions alone; "shown" counts a region only where the film is flagged at `point`. The
    Dice of all films is SIIM-ACR's: a negative that shows nothing counts 1.
    """
    outlined = [reading for reading in readings if reading.dice is not None]
    located = [reading for reading in readings if reading.peak_hits is not None]
    boxed = [reading for reading in located if reading.film.boxes]
    negatives = [reading for reading in readings if not reading.film.label]
    overlap = np.array([reading.dice for reading in outlined], float)
    shown = np.array([(reading.dice or 0.0) * (point in reading.flagged) for reading in outlined])
    quiet = np.array([not (reading.regions and point in reading.flagged) for reading in negatives], bool)
    result: Plain = {
        "dice_mean_positives": _mean(outlined, overlap, replicates),
        "dice_median_positives": _over_patients(outlined, lambda draw: float(np.median(overlap[draw])), replicates),
        "dice_quartiles_positives": np.percentile(overlap, [25, 75]).round(4).tolist() if len(overlap) else [],
        "dice_mean_positives_shown": _mean(outlined, shown, replicates),
        "dice_mean_all_films_shown": _mean([*outlined, *negatives], np.concatenate([shown, quiet]), replicates),
        "peak_in_region": _share(located, np.array([bool(each.peak_hits) for each in located], bool), replicates),
        "peak_in_box": _share(boxed, np.array([bool(each.peak_hits) for each in boxed], bool), replicates),
    }
    for least in IOU_STEPS:
        hits = np.array([(each.box_iou or 0.0) > least for each in located], bool)
        result[f"box_iou_above_{least}"] = _share(located, hits, replicates)
    result["negatives_without_region_shown"] = _share(negatives, quiet, replicates)
    covered = np.array([reading.found * (point in reading.flagged) for reading in negatives])
    result["false_share_of_film_shown"] = _mean(negatives, covered, replicates)
    return result


def strata(readings: Sequence[Reading], point: str, *, replicates: int) -> dict[str, dict[str, Plain]]:
    """Measure by projection, size of the finding, other findings, sex, age and source of the label.

    The stratum that matters most, chest tube or none, cannot be measured: none of the data sets names tubes.

    Returns
    -------
    dict of str to dict
        By kind of stratum, then by stratum: ``auc``, ``sensitivity`` and ``specificity`` where they are defined.
    """
    views = sorted({reading.film.view for reading in readings} - {""})
    others = sorted({name for reading in readings for name in reading.film.findings} - {FINDING, "No Finding"})
    sexes = sorted({reading.film.sex for reading in readings} - {""})
    sources = sorted({reading.film.labelled_by for reading in readings})

    def part(chosen: Callable[[Reading], bool]) -> Plain:
        films = [reading for reading in readings if chosen(reading)]
        return _stratum(films, point, replicates)

    return {
        "view": {view: part(lambda each, view=view: each.film.view == view) for view in views},
        "size of the finding": {
            name: part(lambda each, low=low, high=high: each.truth is not None and low <= each.truth < high)
            for name, (low, high) in SIZES.items()
        },
        "other finding": {name: part(lambda each, name=name: name in each.film.findings) for name in others},
        "sex": {sex: part(lambda each, sex=sex: each.film.sex == sex) for sex in sexes},
        "age": {
            name: part(lambda each, low=low, high=high: each.film.age is not None and low <= each.film.age < high)
            for name, (low, high) in AGES.items()
        },
        "label by": {name: part(lambda each, name=name: each.film.labelled_by == name) for name in sources},
    }


def compare(one: Sequence[Reading], other: Sequence[Reading], *, replicates: int = 2000) -> Plain:
    """Compare two systems on the same films: the differences, `one` less `other`, with paired intervals.

    Returns
    -------
    dict
        ``auc`` with a bootstrap over patients, ``auc_delong`` with DeLong's p, and ``dice_mean_positives``,
        ``peak_in_region``.

    Raises
    ------
    ValueError
        They did not read the same films.
    """
    if [reading.film.image for reading in one] != [reading.film.image for reading in other]:
        raise ValueError("the two systems read different films")
    labels = labels_of([reading.film for reading in one])
    scores = probabilities_of(one), probabilities_of(other)

    def gap(draw: NDArray[np.intp]) -> float:
        return metrics.auc(labels[draw], scores[0][draw]) - metrics.auc(labels[draw], scores[1][draw])

    exact, p = metrics.delong(labels, *scores)
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a.dice is not None]
    located = [(a, b) for a, b in zip(one, other, strict=True) if a.peak_hits is not None]
    overlap = np.array([(a.dice or 0.0) - (b.dice or 0.0) for a, b in pairs])
    hits = np.array([float(bool(a.peak_hits)) - float(bool(b.peak_hits)) for a, b in located])
    return {
        "auc": _over_patients(one, gap, replicates),
        "auc_delong": exact.to_dict() | {"p": p},
        "dice_mean_positives": _mean([a for a, _ in pairs], overlap, replicates),
        "peak_in_region": _mean([a for a, _ in located], hits, replicates),
    }


def probabilities_of(readings: Sequence[Reading]) -> Floats:
    """Return the probabilities, (n,)."""
    return np.array([reading.probability for reading in readings])


def _stratum(readings: Sequence[Reading], point: str, replicates: int) -> Plain:
    """Measure one stratum: AUC where both classes are there, sensitivity and specificity where theirs is."""
    labels = labels_of([reading.film for reading in readings])
    measured: Plain = {"n": len(readings), "positive": int(labels.sum())}
    if 0 < labels.sum() < labels.size:
        scores = probabilities_of(readings)
        measured["auc"] = _over_patients(readings, lambda draw: metrics.auc(labels[draw], scores[draw]), replicates)
    for name, truth in (("sensitivity", True), ("specificity", False)):
        chosen = [reading for reading in readings if bool(reading.film.label) == truth]
        if chosen:
            hits = np.array([(point in reading.flagged) == truth for reading in chosen])
            measured[name] = _share(chosen, hits, replicates)
    return measured


def _mean(readings: Sequence[Reading], values: Floats, replicates: int) -> Plain:
    """Return the mean of a value a film."""
    return _over_patients(readings, lambda draw: float(values[draw].mean()), replicates)


def _share(readings: Sequence[Reading], hits: Flags, replicates: int) -> Plain:
    """Return the share of films that hit."""
    if not readings:
        return dict(_NOTHING)
    return metrics.proportion(hits, _owners(readings), replicates=replicates).to_dict()


def _over_patients(
    readings: Sequence[Reading], function: Callable[[NDArray[np.intp]], float], replicates: int
) -> Plain:
    """Return a measure with its bootstrap interval over patients; what is not defined is None."""
    if not readings:
        return dict(_NOTHING)
    measured = metrics.bootstrap(function, _owners(readings), replicates=replicates).to_dict()
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in measured.items()}


def _owners(readings: Sequence[Reading]) -> list[str]:
    """Return whose film each is; a film without a patient id stands alone."""
    return [reading.film.patient or reading.film.image for reading in readings]
