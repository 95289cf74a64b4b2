"""The accuracy gate: what a variant loses against the fp32 network on films, and how much it may."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from ptxsdk.build.films import ReadFilm
from ptxsdk.manifest import Manifest, RegionRules

Doubles = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much a variant may lose.

    Attributes
    ----------
    auc : float
        Greatest difference of the AUC, either way.
    dice : float
        Greatest difference of the mean Dice on positives with masks, either way.
    peak : float
        Greatest difference of the share of positives whose map peaks in the finding, either way.
    agreement : float
        Least mean Dice between the two maps, and least share of films whose two maps peak within a patch of each other,
        on the films that fp32 flags.
    flip : float
        A film may change sides of an operating point only if its fp32 probability is this close to it.
    """

    auc: float = 0.005
    dice: float = 0.01
    peak: float = 0.01
    agreement: float = 0.95
    flip: float = 0.02


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a network makes of films: patch logits (n, P, Q) float32 and mask logits (n, rows, columns) float16."""

    patch: npt.NDArray[np.float32]
    mask: npt.NDArray[np.float16]


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """A variant held against fp32; differences are variant less fp32, None where the films cannot tell.

    Attributes
    ----------
    films, positives, outlined : int
        Films measured, those with a positive label, those with a mask or box.
    auc, dice, peak_in_region : float or None
        Of the variant.
    auc_change, dice_change, peak_change : float or None
        Against fp32.
    map_agreement : float or None
        Mean Dice between the regions of both networks on the films that fp32 flags at the default operating point.
    peak_agreement : float or None
        Share of them whose two maps peak within a patch of each other.
    largest_change : float
        Of a probability.
    flips : int
        Films that change sides of an operating point, counted for each point.
    farthest_flip : float
        Greatest distance of such a film's fp32 probability from the threshold; 0 without any.
    """

    films: int
    positives: int
    outlined: int
    auc: float | None
    auc_change: float | None
    dice: float | None
    dice_change: float | None
    peak_in_region: float | None
    peak_change: float | None
    map_agreement: float | None
    peak_agreement: float | None
    largest_change: float
    flips: int
    farthest_flip: float

    def broken(self, budget: Budget) -> list[str]:
        """Return what exceeds the budget, in words; empty: the variant passes."""
        changes = (
            ("AUC", self.auc_change, budget.auc),
            ("Dice", self.dice_change, budget.dice),
            ("peak in region", self.peak_change, budget.peak),
        )
        # "not within" rather than "beyond": what is not a number passes nothing
        found = [
            f"{name} changes by {change:+.4f}, {allowed} is allowed"
            for name, change, allowed in changes
            if change is not None and not abs(change) <= allowed
        ]
        agreements = (("the maps agree to", self.map_agreement), ("the peaks agree on", self.peak_agreement))
        found += [
            f"{name} {value:.3f}, {budget.agreement} is asked"
            for name, value in agreements
            if value is not None and not value >= budget.agreement
        ]
        if not self.farthest_flip <= budget.flip:
            found.append(f"a decision flips {self.farthest_flip:.3f} from its threshold, {budget.flip} is allowed")
        return found

    def numbers(self) -> dict[str, float]:
        """Return what the manifest keeps: every number that compares the two networks.

        AUC, Dice and peak of the variant alone are left out: its films may be those it was trained on, and a number
        without that word would be read as a measure of accuracy.
        """
        alone = ("auc", "dice", "peak_in_region")
        return {name: float(value) for name, value in asdict(self).items() if value is not None and name not in alone}


def compare(manifest: Manifest, films: Sequence[ReadFilm], whole: Outputs, variant: Outputs) -> Accuracy:
    """Hold a variant against the fp32 network.

    Parameters
    ----------
    manifest : Manifest
        Aggregation, calibration, thresholds and region rules.
    films : sequence of ReadFilm
        What is known of them decides what can be measured.
    whole, variant : Outputs
        Of the fp32 network and of the variant, for these films.
    """
    before, after = probabilities(manifest, whole), probabilities(manifest, variant)
    flips, farthest = 0, 0.0
    for point in manifest.operating_points:
        changed = (before >= point.threshold) != (after >= point.threshold)
        flips += int(changed.sum())
        farthest = max(farthest, float(np.abs(before - point.threshold)[changed].max(initial=0)))
    labelled = np.array([film.film.label is not None for film in films])
    labels = np.array([bool(film.film.label) for film in films])
    located_before, located_after = _located(manifest, films, whole), _located(manifest, films, variant)
    maps, near = _agreement(manifest, whole, variant, before)
    aucs = [auc(labels[labelled], scores[labelled]) for scores in (before, after)]
    return Accuracy(
        films=len(films),
        positives=int(labels.sum()),
        outlined=sum(not math.isnan(hit) for _, hit in located_after),
        auc=aucs[1],
        auc_change=None if aucs[0] is None or aucs[1] is None else aucs[1] - aucs[0],
        dice=_mean(value for value, _ in located_after),
        dice_change=_difference([value for value, _ in located_after], [value for value, _ in located_before]),
        peak_in_region=_mean(value for _, value in located_after),
        peak_change=_difference([value for _, value in located_after], [value for _, value in located_before]),
        map_agreement=_mean(maps),
        peak_agreement=_mean(near),
        largest_change=float(np.abs(after - before).max(initial=0)),
        flips=flips,
        farthest_flip=farthest,
    )


def intervals(
    manifest: Manifest, films: Sequence[ReadFilm], whole: Outputs, variant: Outputs, *, draws: int = 500
) -> dict[str, tuple[float, float, float, int]]:
    """Return the changes that films can tell, as ``(value, low, high, films)`` with a 95 % bootstrap interval.

    Films of one group are drawn together.
    """
    before, after = probabilities(manifest, whole), probabilities(manifest, variant)
    labelled = np.array([film.film.label is not None for film in films])
    labels = np.array([bool(film.film.label) for film in films])
    located = np.array(_located(manifest, films, variant)) - np.array(_located(manifest, films, whole))
    groups: dict[str, list[int]] = {}
    for index, film in enumerate(films):
        groups.setdefault(film.film.group, []).append(index)
    members = [np.array(indices) for indices in groups.values()]

    def changes(drawn: npt.NDArray[np.intp]) -> tuple[float, float, float]:
        own = drawn[labelled[drawn]]
        areas = [auc(labels[own], scores[own]) for scores in (before, after)]
        area = math.nan if areas[0] is None or areas[1] is None else areas[1] - areas[0]
        means = [told.mean() if (told := part[~np.isnan(part)]).size else math.nan for part in located[drawn].T]
        return area, float(means[0]), float(means[1])

    generator = np.random.default_rng(0)
    values = changes(np.arange(len(films)))
    replicates = np.array(
        [
            changes(np.concatenate([members[pick] for pick in generator.integers(0, len(members), len(members))]))
            for _ in range(draws)
        ]
    )
    told = (int(labelled.sum()), *(int((~np.isnan(part)).sum()) for part in located.T))
    found = {}
    for name, value, own, n in zip(
        ("auc_change", "dice_change", "peak_change"), values, replicates.T, told, strict=True
    ):
        if not math.isnan(value):
            low, high = np.nanquantile(own, (0.025, 0.975))
            found[name] = value, float(low), float(high), n
    return found


def probabilities(manifest: Manifest, outputs: Outputs) -> Doubles:
    """Return the calibrated probability of each film, by the op that the device runs."""
    from ptxsdk.geometry import Geometry
    from ptxsdk.ops import aggregate

    geometry = Geometry.fit(manifest.input.size, manifest.input.size)
    scores = [
        aggregate(
            patch,
            mask.astype(np.float32),
            geometry=geometry,
            **manifest.scoring,
            want_outlines=False,
        ).logit
        for patch, mask in zip(outputs.patch, outputs.mask, strict=True)
    ]
    return np.array([manifest.calibration.probability(score) for score in scores])


def auc(labels: Flags, scores: Doubles) -> float | None:
    """Return the area under the ROC curve, ties counting half; None without both classes."""
    positive, negative = scores[labels], np.sort(scores[~labels])
    if not len(positive) or not len(negative):
        return None
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return float(below.mean() / (2 * len(negative)))


def regions(mask_logits: npt.NDArray[np.float16], rules: RegionRules) -> Flags:
    """Return the pixels of the map's regions: connected at ``low``, holding one at ``high``, of ``min_area``."""
    import cv2

    logits = mask_logits.astype(np.float32)
    count, parts = cv2.connectedComponents((logits >= _logit(rules.low)).astype(np.uint8), connectivity=8)
    keep = np.zeros(count, np.bool_)
    keep[np.unique(parts[logits >= _logit(rules.high)])] = True
    keep &= np.bincount(parts.ravel(), minlength=count) >= max(rules.min_area, 1)
    keep[0] = False
    found: Flags = keep[parts]
    return found


def dice(one: Flags, other: Flags) -> float:
    """Return the Dice coefficient; 1 for two empty masks."""
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else 1.0


def _located(manifest: Manifest, films: Sequence[ReadFilm], outputs: Outputs) -> list[tuple[float, float]]:
    """Return Dice, and 1 where the peak lies in the finding, of each film; NaN where it cannot be told."""
    found = []
    for film, mask in zip(films, outputs.mask, strict=True):
        y, x = np.unravel_index(int(mask.argmax()), mask.shape)
        hit = film.holds(int(y), int(x))
        overlap = math.nan if film.truth is None else dice(regions(mask, manifest.regions), film.truth)
        found.append((overlap, math.nan if hit is None else float(hit)))
    return found


def _agreement(
    manifest: Manifest, whole: Outputs, variant: Outputs, before: Doubles
) -> tuple[list[float], list[float]]:
    """Return the Dice between the two maps, and 1 where they peak within a patch, of the films that fp32 flags."""
    point = next(each for each in manifest.operating_points if each.name == manifest.default_operating_point)
    patch = manifest.input.size[0] / manifest.outputs.patch_logits.grid[0]
    maps, near = [], []
    for index in np.flatnonzero(before >= point.threshold):
        pair = whole.mask[index], variant.mask[index]
        maps.append(dice(*(regions(mask, manifest.regions) for mask in pair)))
        peaks = [np.array(np.unravel_index(int(mask.argmax()), mask.shape)) for mask in pair]
        near.append(float(np.abs(peaks[0] - peaks[1]).max() <= patch))
    return maps, near


def _mean(values: Iterable[float]) -> float | None:
    told = [value for value in values if not math.isnan(value)]
    return float(np.mean(told)) if told else None


def _difference(after: Sequence[float], before: Sequence[float]) -> float | None:
    one, other = _mean(after), _mean(before)
    return None if one is None or other is None else one - other


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))
