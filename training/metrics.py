"""Measures of classification and localization, with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]

_Z95 = float(norm.ppf(0.975))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A value with its 95 % interval and the number of films it rests on."""

    value: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, float]:
        """Return plain types."""
        return asdict(self)


def wilson(hits: int, n: int) -> Measured:
    """Return a proportion of independent things with its Wilson 95 % interval.

    Raises
    ------
    ValueError
        `n` is 0.
    """
    if n == 0:
        raise ValueError("a proportion of nothing")
    share = hits / n
    centre = (share + _Z95**2 / (2 * n)) / (1 + _Z95**2 / n)
    half = _Z95 / (1 + _Z95**2 / n) * math.sqrt(share * (1 - share) / n + _Z95**2 / (4 * n * n))
    low, high = max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
    return Measured(value=share, low=low, high=high, n=n)


def proportion(hits: Flags, groups: Sequence[Hashable], *, replicates: int = 2000) -> Measured:
    """Return the share of films that hit, with an interval that draws patients.

    Where all films hit or none does a bootstrap has no width; there Wilson's interval for as many independent films
    as there are patients takes its place.

    Parameters
    ----------
    hits : ndarray
        (n,) boolean.
    groups : sequence of hashable
        Whose film each is.
    replicates : int
        Draws of the bootstrap.
    """
    if hits.all() or not hits.any():
        patients = len(set(groups))
        measured = wilson(patients * int(hits.any()), patients)
        return Measured(value=measured.value, low=measured.low, high=measured.high, n=hits.size)
    measured = bootstrap(lambda draw: float(hits[draw].mean()), groups, replicates=replicates)
    low, high = min(measured.low, measured.value), max(measured.high, measured.value)
    return Measured(value=measured.value, low=low, high=high, n=hits.size)


def auc(labels: Flags, scores: Floats) -> float:
    """Return the area under the ROC curve: the chance that a positive scores above a negative, ties half."""
    positives = int(labels.sum())
    negatives = labels.size - positives
    if not positives or not negatives:
        return math.nan
    return float((rankdata(scores)[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def delong(labels: Flags, one: Floats, other: Floats) -> tuple[Measured, float]:
    """Compare the AUC of two systems on the same films.

    Source: DeLong et al., Biometrics 1988, by the ranks of Sun and Xu, IEEE Signal Processing Letters 2014. Films
    count as independent; where patients have several, hold it against `bootstrap`.

    Returns
    -------
    Measured
        AUC of `one` less that of `other`, with its 95 % interval.
    float
        Two-sided p.
    """
    positives, negatives = int(labels.sum()), int((~labels).sum())
    areas, of_positives, of_negatives = [], [], []
    for scores in (one, other):
        ranks = rankdata(scores)
        areas.append(auc(labels, scores))
        of_positives.append((ranks[labels] - rankdata(scores[labels])) / negatives)
        of_negatives.append(1 - (ranks[~labels] - rankdata(scores[~labels])) / positives)
    gap = areas[0] - areas[1]
    variance = np.var(of_positives[0] - of_positives[1], ddof=1) / positives
    variance += np.var(of_negatives[0] - of_negatives[1], ddof=1) / negatives
    error = float(np.sqrt(variance))
    p = float(2 * norm.sf(abs(gap) / error)) if error else float(gap == 0)
    return Measured(value=gap, low=gap - _Z95 * error, high=gap + _Z95 * error, n=labels.size), p


def cut_counts(labels: Flags, scores: Floats) -> tuple[Floats, Floats]:
    """Return positives and films at or above each distinct score, from the highest down."""
    thresholds, inverse = np.unique(-np.asarray(scores, float), return_inverse=True)
    hits = np.cumsum(np.bincount(inverse, labels, thresholds.size))
    return hits, np.cumsum(np.bincount(inverse, minlength=thresholds.size)).astype(float)


def average_precision(labels: Flags, scores: Floats) -> float:
    """Return the mean precision over the positives, in order of falling score; ties are cut together."""
    hits, called = cut_counts(labels, scores)
    if hits[-1] == 0:
        return math.nan
    return float((np.diff(hits, prepend=0) * hits / called).sum() / hits[-1])


def brier(labels: Flags, probabilities: Floats) -> float:
    """Return the mean squared difference of probability and outcome."""
    return float(np.mean((probabilities - labels) ** 2))


class Bins(NamedTuple):
    """Bins of equal mass, (bins,) each: mean probability, frequency of the finding, number of films."""

    probability: Floats
    frequency: Floats
    count: NDArray[np.intp]


def calibration_bins(labels: Flags, probabilities: Floats, bins: int = 15) -> Bins:
    """Return films in bins of equal mass, by rising probability; those without a film are left out."""
    order = np.argsort(probabilities, kind="stable")
    parts = [part for part in np.array_split(order, bins) if part.size]
    return Bins(
        np.array([probabilities[part].mean() for part in parts]),
        np.array([labels[part].mean() for part in parts]),
        np.array([part.size for part in parts]),
    )


def expected_calibration_error(labels: Flags, probabilities: Floats, bins: int = 15) -> float:
    """Return the mean gap of probability and frequency over bins of equal mass, weighed by their films."""
    found = calibration_bins(labels, probabilities, bins)
    return float((found.count * np.abs(found.probability - found.frequency)).sum() / labels.size)


def dice(found: Flags, truth: Flags) -> float:
    """Return twice the overlap over the sum of two masks of one shape; 1 where both are empty."""
    total = int(found.sum()) + int(truth.sum())
    return 2.0 * int((found & truth).sum()) / total if total else 1.0


def bootstrap(
    measure: Callable[[NDArray[np.intp]], float],
    groups: Sequence[Hashable],
    *,
    replicates: int = 2000,
    seed: int = 0,
) -> Measured:
    """Measure something on all films, with a percentile bootstrap that draws patients, not films.

    Parameters
    ----------
    measure : callable
        Indices of films to a number; NaN where it is not defined on a draw.
    groups : sequence of hashable
        Whose film each is; the films of one patient are drawn together.
    replicates, seed : int
        Draws, and the seed of them.
    """
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    owned = [np.array(indices, np.intp) for indices in members.values()]
    rng = np.random.default_rng(seed)
    draws = [
        measure(np.concatenate([owned[index] for index in rng.integers(0, len(owned), len(owned))]))
        for _ in range(replicates)
    ]
    value = measure(np.arange(len(groups)))
    if math.isnan(value) or all(map(math.isnan, draws)):
        return Measured(value=math.nan, low=math.nan, high=math.nan, n=len(groups))
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Measured(value=value, low=float(low), high=float(high), n=len(groups))
