"""From the network's logits to what an integrator reads: image score, calibration, thresholds, regions.

The choices made here on validation films are written to the engine's manifest; the arithmetic is that of
``ptxsdk.ops.aggregate``, over many films at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from ptxsdk.manifest import Manifest
from training.metrics import Flags, Floats, auc, dice

Method = Literal["noisy_or", "paper_098", "top_k", "max"]
Source = Literal["patch", "mask"]

PATCH_KS = (2, 3, 4, 6, 8, 12, 16)
MASK_SHARES = (0.0005, 0.002, 0.008)
LOWS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6)
HIGHS = (*LOWS, 0.7, 0.75, 0.8, 0.85, 0.9)
AREAS = (0, 50, 100, 200, 300, 400)


@dataclass(frozen=True, kw_only=True)
class Aggregation:
    """How many logits become one image logit.

    Attributes
    ----------
    method : {"noisy_or", "paper_098", "top_k", "max"}
        See `image_logits`.
    source : {"patch", "mask"}
        The logits it reads.
    k : int or None
        How many logits ``top_k`` pools.
    """

    method: Method
    source: Source = "patch"
    k: int | None = None

    @property
    def name(self) -> str:
        """A short name, for example ``patch top_k 4``."""
        return " ".join(str(part) for part in (self.source, self.method, self.k) if part is not None)


def candidates(size: int) -> list[Aggregation]:
    """Return the aggregations worth comparing for a mask of side `size`."""
    patch: list[Method] = ["noisy_or", "paper_098", "max"]
    return [
        *(Aggregation(method=method) for method in patch),
        *(Aggregation(method="top_k", k=k) for k in PATCH_KS),
        Aggregation(method="max", source="mask"),
        *(Aggregation(method="top_k", source="mask", k=round(share * size * size)) for share in MASK_SHARES),
    ]


def prescribed(system: str, grid: int) -> list[Aggregation] | None:
    """Return the image scores a system may use on a grid of side `grid`; None: any.

    A classifier's is the mean over all places, on which it was trained; that of Li et al. is the noisy-OR, under the
    map of factors to [0.98, 1] or without.
    """
    if system == "classifier":
        return [Aggregation(method="top_k", k=grid * grid)]
    if system == "li2018":
        return [Aggregation(method="paper_098"), Aggregation(method="noisy_or")]
    return None


def image_logits(logits: Floats, aggregation: Aggregation) -> Floats:
    """Aggregate the logits of each film.

    With ``s = sum_j log(1 - p_j)`` the noisy-OR is the logit of ``1 - exp(s)``; ``paper_098`` is the same of factors
    mapped to [0.98, 1]; ``top_k`` is the mean of the k largest logits and ``max`` the largest.

    Parameters
    ----------
    logits : ndarray
        (n, ...) logits of patches or pixels.
    aggregation : Aggregation
        The method and its k.

    Returns
    -------
    ndarray
        (n,) float64.
    """
    flat = logits.reshape(len(logits), -1).astype(np.float64)
    if aggregation.method == "max":
        return flat.max(1)
    if aggregation.method == "top_k":
        k = min(aggregation.k or 1, flat.shape[1])
        return np.partition(flat, -k, axis=1)[:, -k:].mean(1)
    log_negative = np.log1p(-0.02 * sigmoid(flat)) if aggregation.method == "paper_098" else -np.logaddexp(0.0, flat)
    none = log_negative.sum(1)
    return np.log(-np.expm1(none)) - none


def choose_aggregation(scores: dict[Aggregation, Floats], labels: Flags, *, margin: float = 0.003) -> Aggregation:
    """Choose an aggregation by validation AUC, differences below `margin` counting as noise.

    The patches are read unless the mask gains `margin` over them. Of those within `margin` of the best, the one that
    pools the fewest logits is taken: an average over many is blind to a small finding.
    """
    areas = {aggregation: auc(labels, score) for aggregation, score in scores.items()}
    best = {
        source: max((area for each, area in areas.items() if each.source == source), default=-math.inf)
        for source in ("patch", "mask")
    }
    source = "mask" if best["mask"] >= best["patch"] + margin else "patch"
    near = [each for each, area in areas.items() if each.source == source and area >= best[source] - margin]
    pooled = {"max": 1, "noisy_or": math.inf, "paper_098": math.inf}
    return min(near, key=lambda each: (pooled.get(each.method, each.k), -areas[each]))


def sigmoid(logits: Floats) -> Floats:
    """Return the logistic function, in float64."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(logits, np.float64)))


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Platt's calibration: ``sigmoid(scale * logit + bias)``."""

    scale: float
    bias: float

    def __call__(self, logits: Floats) -> Floats:
        """Return calibrated probabilities."""
        return sigmoid(self.scale * np.asarray(logits, np.float64) + self.bias)


def fit_platt(logits: Floats, labels: Flags) -> Calibration:
    """Fit Platt's calibration by maximum likelihood, with his smoothed targets against overconfidence.

    Source: Platt, "Probabilistic outputs for support vector machines", 1999.
    """
    positives, negatives = int(labels.sum()), int((~labels).sum())
    target = np.where(labels, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss(parameters: Floats) -> tuple[float, Floats]:
        z = parameters[0] * logits + parameters[1]
        error = sigmoid(z) - target
        return float(np.mean(np.logaddexp(0.0, z) - target * z)), np.array([np.mean(error * logits), np.mean(error)])

    scale, bias = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS", options={"gtol": 1e-8}).x
    return Calibration(scale=float(scale), bias=float(bias))


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """A named threshold on the calibrated probability; a film is flagged at or above it."""

    name: str
    threshold: float


def choose_operating_points(
    probabilities: Floats, labels: Flags, *, wanted_sensitivity: float = 0.95
) -> list[OperatingPoint]:
    """Choose ``balanced`` (largest Youden index) and ``high_sensitivity`` (at least the wanted sensitivity).

    A threshold lies half-way between neighbouring scores, so that rounding on another backend moves no film across.
    """
    values = np.unique(probabilities)
    cuts = np.concatenate([[values[0] / 2], (values[1:] + values[:-1]) / 2])
    sensitivity = np.array([(probabilities[labels] >= cut).mean() for cut in cuts])
    specificity = np.array([(probabilities[~labels] < cut).mean() for cut in cuts])
    return [
        OperatingPoint(name="balanced", threshold=float(cuts[np.argmax(sensitivity + specificity)])),
        OperatingPoint(
            name="high_sensitivity", threshold=float(cuts[np.flatnonzero(sensitivity >= wanted_sensitivity)[-1]])
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class RegionRules:
    """How a mask becomes regions: 8-connected pixels at `low` that hold one at `high`, of `min_area` pixels."""

    high: float
    low: float
    min_area: int

    @classmethod
    def of(cls, manifest: Manifest) -> RegionRules:
        """Return the rules of an engine."""
        rules = manifest.regions
        return cls(high=rules.high, low=rules.low, min_area=rules.min_area)

    def __call__(self, mask_logits: Floats) -> Flags:
        """Return the pixels of all regions, (S, S) boolean, for mask logits (S, S)."""
        components = Components.of(mask_logits, self.low)
        return np.asarray(components.kept(self)[components.marks])


RULES_WITHOUT_MASKS = RegionRules(high=0.5, low=0.3, min_area=100)
"""What films without masks are read with: nothing could be chosen on them."""


class Components(NamedTuple):
    """The connected components of a mask at one low threshold; component 0 is the background.

    Attributes
    ----------
    marks : ndarray
        (S, S) component of each pixel.
    peaks, areas : ndarray
        (count,) largest logit and number of pixels of each component; the background has no peak.
    """

    marks: NDArray[np.int32]
    peaks: Floats
    areas: NDArray[np.int32]

    @classmethod
    def of(cls, mask_logits: Floats, low: float) -> Components:
        """Find the 8-connected components of mask logits (S, S) at probability `low`."""
        inside = (mask_logits >= _logit(low)).astype(np.uint8)
        count, marks, stats, _ = cv2.connectedComponentsWithStats(inside, connectivity=8)
        peaks = np.full(count, -np.inf)
        np.maximum.at(peaks, marks[inside > 0], mask_logits[inside > 0])
        return cls(marks, peaks, stats[:, cv2.CC_STAT_AREA])

    def kept(self, rules: RegionRules) -> Flags:
        """Return which components the rules make regions of, (count,) boolean."""
        return np.asarray((self.peaks >= _logit(rules.high)) & (self.areas >= rules.min_area))


def choose_region_rules(
    mask_logits: Floats, truths: dict[int, Flags], negatives: NDArray[np.intp], *, slack: float = 0.02
) -> RegionRules:
    """Choose the rules on validation films.

    First the plain threshold with the best mean Dice on positives becomes `low`; then, of the stricter `high` and
    `min_area` that cost no more than `slack` of that Dice, those that leave most negatives without a region.

    Parameters
    ----------
    mask_logits : ndarray
        (n, S, S).
    truths : dict of int to ndarray
        The mask (S, S) of each positive by its index; where there is none, `RULES_WITHOUT_MASKS` it is.
    negatives : ndarray
        Indices of negatives.
    slack : float
        Mean Dice that may be given up.
    """
    if not truths:
        return RULES_WITHOUT_MASKS

    def plain_dice(low: float) -> float:
        return float(np.mean([dice(mask_logits[index] >= _logit(low), truth) for index, truth in truths.items()]))

    plain = {low: plain_dice(low) for low in LOWS}
    low = max(plain, key=plain.__getitem__)
    found = {index: Components.of(mask_logits[index], low) for index in (*truths, *negatives)}
    covered = {
        index: np.bincount(found[index].marks[truth], minlength=found[index].areas.size)
        for index, truth in truths.items()
    }

    def rate(rules: RegionRules) -> tuple[float, float]:
        """Return the mean Dice on positives and the share of negatives without a region."""
        scores = []
        for index, truth in truths.items():
            kept = found[index].kept(rules)
            total = int(found[index].areas[kept].sum()) + int(truth.sum())
            scores.append(2.0 * int(covered[index][kept].sum()) / total)
        return float(np.mean(scores)), float(np.mean([not found[index].kept(rules).any() for index in negatives]))

    scale = (mask_logits.shape[-1] / 384) ** 2
    rated = {
        rules: rate(rules)
        for high in HIGHS
        for area in AREAS
        for rules in [RegionRules(high=high, low=low, min_area=max(1, round(area * scale)))]
        if high >= low
    }
    near = {rules: rated[rules] for rules in rated if rated[rules][0] >= plain[low] - slack}
    return max(near, key=lambda rules: (near[rules][1], near[rules][0]))


def _logit(probability: float) -> float:
    """Return the logit of a probability."""
    return math.log(probability / (1 - probability))
