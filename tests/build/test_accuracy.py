"""The accuracy gate: measures against references and by hand, and what is over budget."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made import GRID, SIZE, tiny_manifest
from scipy.stats import mannwhitneyu

from ptxsdk.build.accuracy import Accuracy, Budget, Outputs, auc, compare, dice, intervals, probabilities, regions
from ptxsdk.build.films import BuildFilm, ReadFilm
from ptxsdk.geometry import Geometry
from ptxsdk.manifest import RegionRules
from ptxsdk.ops import aggregate

GEOMETRY = Geometry.fit((128, 128), (SIZE, SIZE))


def logit(probability):
    return math.log(probability / (1 - probability))


def film(label, *, truth=None, boxes=(), group="a"):
    known = BuildFilm(path=Path("film"), label=label, boxes=boxes, group=group)
    return ReadFilm(film=known, tensor=np.zeros((SIZE, SIZE), np.float16), geometry=GEOMETRY, truth=truth)


def outputs(probabilities_wanted, masks=None):
    """Outputs of the tiny engine (calibration sigmoid(x + 0.5)) with these probabilities."""
    patch = np.full((len(probabilities_wanted), GRID, GRID), -30, np.float32)
    patch[:, 3, 3] = [logit(p) - 0.5 for p in probabilities_wanted]
    mask = np.full((len(probabilities_wanted), SIZE, SIZE), -9, np.float16) if masks is None else masks
    return Outputs(patch=patch, mask=mask)


def blob(rows, columns):
    mask = np.full((SIZE, SIZE), -9, np.float16)
    mask[rows, columns] = 9
    return mask


@pytest.mark.parametrize("ties", [False, True])
def test_auc_is_that_of_the_rank_test(ties):
    generator = np.random.default_rng(2)
    labels = generator.random(70) < 0.4
    scores = generator.normal(size=70) + labels
    scores = np.round(scores) if ties else scores
    wanted = mannwhitneyu(scores[labels], scores[~labels]).statistic / (labels.sum() * (~labels).sum())
    assert auc(labels, scores) == pytest.approx(wanted, abs=1e-12)


def test_auc_needs_both_classes():
    assert auc(np.array([True, True]), np.array([0.1, 0.2])) is None


def test_dice_by_hand():
    one, other = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert dice(one, other) == 1
    one[0], other[0, :2] = True, True
    assert dice(one, other) == pytest.approx(2 * 2 / 6)


@pytest.mark.parametrize("min_area", [0, 1, 9])
def test_regions_are_those_of_the_device(min_area):
    generator = np.random.default_rng(4)
    rules = RegionRules(high=0.8, low=0.3, min_area=min_area)
    mask = generator.normal(-1.5, 1.5, (SIZE, SIZE)).astype(np.float16)
    found = aggregate(
        np.zeros((GRID, GRID), np.float32),
        mask.astype(np.float32),
        geometry=Geometry.fit((SIZE, SIZE), (SIZE, SIZE)),
        method="max",
        high=rules.high,
        low=rules.low,
        min_area=rules.min_area,
        want_outlines=False,
    )
    assert regions(mask, rules).sum() == sum(region.area_px for region in found.regions)
    assert found.regions


def test_probabilities_are_calibrated():
    assert probabilities(tiny_manifest(), outputs([0.2, 0.5, 0.93])) == pytest.approx([0.2, 0.5, 0.93], abs=1e-6)


def test_nothing_changes_nothing():
    films = [film(label=index % 2 == 0) for index in range(6)]
    same = outputs([0.9, 0.1, 0.8, 0.2, 0.7, 0.3])
    found = compare(tiny_manifest(), films, same, same)
    assert (found.auc, found.auc_change, found.flips, found.farthest_flip, found.largest_change) == (1, 0, 0, 0, 0)
    assert found.broken(Budget()) == []


def test_flips_are_counted_with_their_distance():
    films = [film(label=None) for _ in range(4)]
    found = compare(tiny_manifest(), films, outputs([0.51, 0.47, 0.9, 0.1]), outputs([0.49, 0.53, 0.9, 0.1]))
    assert found.flips == 2
    assert found.farthest_flip == pytest.approx(0.03, abs=1e-6)
    assert found.largest_change == pytest.approx(0.06, abs=1e-6)
    assert "flips 0.030 from its threshold" in found.broken(Budget())[0]
    assert found.broken(Budget(flip=0.031)) == []
    assert found.auc_change is None


def test_every_point_is_watched():
    films = [film(label=None)]
    found = compare(tiny_manifest(), films, outputs([0.03]), outputs([0.0005]))  # the point at 0.001
    assert found.flips == 1
    assert found.farthest_flip == pytest.approx(0.029, abs=1e-6)


def test_a_loss_of_auc_is_over_budget():
    films = [film(label=index < 5) for index in range(10)]
    good = [0.9, 0.8, 0.7, 0.6, 0.45, 0.4, 0.3, 0.2, 0.1, 0.05]
    worse = [*good[:4], 0.39, *good[5:]]
    found = compare(tiny_manifest(), films, outputs(good), outputs(worse))
    assert found.auc_change == pytest.approx(-1 / 25)
    assert any("AUC changes by -0.0400" in why for why in found.broken(Budget(flip=1)))


def test_a_map_that_wanders_is_over_budget():
    truth = blob(slice(10, 20), slice(10, 20)) > 0
    films = [film(True, truth=truth), film(True, truth=truth)]
    here, there = blob(slice(10, 20), slice(10, 20)), blob(slice(40, 50), slice(40, 50))
    found = compare(
        tiny_manifest(),
        films,
        outputs([0.9, 0.9], np.stack([here, here])),
        outputs([0.9, 0.9], np.stack([here, there])),
    )
    assert (found.dice, found.dice_change) == (0.5, -0.5)
    assert (found.peak_in_region, found.peak_change) == (0.5, -0.5)
    assert (found.map_agreement, found.peak_agreement) == (0.5, 0.5)
    assert [why.split()[0] for why in found.broken(Budget(agreement=0))] == ["Dice", "peak"]
    assert [why.split()[1] for why in found.broken(Budget(dice=1, peak=1))] == ["maps", "peaks"]


def test_what_is_not_a_number_passes_nothing():
    films = [film(label=index % 2 == 0) for index in range(6)]
    same = outputs([0.9, 0.1, 0.8, 0.2, 0.7, 0.3])
    found = compare(tiny_manifest(), films, same, same)
    for name in ("auc_change", "dice_change", "peak_change", "map_agreement", "peak_agreement", "farthest_flip"):
        assert len(replace(found, **{name: math.nan}).broken(Budget())) == 1


def test_without_masks_the_two_maps_are_held_against_each_other():
    films = [film(None), film(None)]
    here, there = blob(slice(10, 20), slice(10, 20)), blob(slice(40, 50), slice(40, 50))
    found = compare(
        tiny_manifest(),
        films,
        outputs([0.9, 0.1], np.stack([here, here])),
        outputs([0.9, 0.1], np.stack([there, here])),
    )
    assert found.dice_change is None
    assert found.map_agreement == 0  # of the one film that fp32 flags
    assert [why.split()[1] for why in found.broken(Budget())] == ["maps", "peaks"]


def test_a_box_tells_whether_the_peak_is_inside():
    inside = blob(slice(10, 12), slice(30, 32))  # film pixels are half a map pixel: x 60..64, y 20..24
    boxed = film(True, boxes=((58.0, 18.0, 10.0, 10.0),))
    missed = film(True, boxes=((0.0, 0.0, 10.0, 10.0),))
    found = compare(
        tiny_manifest(),
        [boxed, missed],
        outputs([0.9] * 2, np.stack([inside] * 2)),
        outputs([0.9] * 2, np.stack([inside] * 2)),
    )
    assert found.peak_in_region == 0.5
    assert found.outlined == 2
    assert found.dice is None


def test_intervals_hold_the_value_and_draw_patients_whole():
    generator = np.random.default_rng(0)
    films = [film(label=index % 3 == 0, group=str(index // 4)) for index in range(60)]
    before = generator.uniform(0.05, 0.95, 60)
    after = np.clip(before + generator.normal(0, 0.05, 60), 0.01, 0.99)
    found = intervals(tiny_manifest(), films, outputs(before), outputs(after))
    value, low, high, n = found["auc_change"]
    assert low < high
    assert low <= value <= high
    assert n == 60
    assert "dice_change" not in found
    alone = [replace(each, film=replace(each.film, group=str(index))) for index, each in enumerate(films)]
    assert intervals(tiny_manifest(), alone, outputs(before), outputs(after))["auc_change"][1:3] != (low, high)


def test_the_manifest_keeps_what_was_measured_and_no_more():
    films = [film(label=None)]
    numbers = compare(tiny_manifest(), films, outputs([0.4]), outputs([0.4])).numbers()
    assert "auc" not in numbers
    assert numbers["films"] == 1
    assert all(isinstance(value, float) for value in numbers.values())
    assert isinstance(compare(tiny_manifest(), films, outputs([0.4]), outputs([0.4])), Accuracy)
