"""Aggregation, calibration, operating points and regions."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("cv2")

from training import scoring
from training.scoring import Aggregation, RegionRules


def logit(p):
    return math.log(p / (1 - p))


def test_aggregations_against_plain_loops():
    logits = np.random.default_rng(0).normal(-2, 2, (3, 5, 7))
    for film, row in zip(range(3), logits.reshape(3, -1), strict=True):
        p = [1 / (1 + math.exp(-z)) for z in row]
        wanted = {
            Aggregation(method="noisy_or"): logit(1 - math.prod(1 - q for q in p)),
            Aggregation(method="paper_098"): logit(1 - math.prod(0.98 + 0.02 * (1 - q) for q in p)),
            Aggregation(method="top_k", k=4): sum(sorted(row)[-4:]) / 4,
            Aggregation(method="max"): max(row),
        }
        for aggregation, value in wanted.items():
            assert scoring.image_logits(logits, aggregation)[film] == pytest.approx(value, rel=1e-6)


def test_extreme_logits_stay_finite_and_keep_their_order():
    for method in ("noisy_or", "paper_098", "max"):
        scores = scoring.image_logits(np.array([[-100.0], [0.0], [100.0]]), Aggregation(method=method))
        assert np.isfinite(scores).all()
        assert (np.diff(scores) > 0).all()


@pytest.mark.parametrize("aggregation", scoring.candidates(32), ids=lambda each: each.name)
def test_the_sdk_aggregates_alike(aggregation):
    pytest.importorskip("ptxsdk._core")
    from ptxsdk.geometry import Geometry
    from ptxsdk.ops import aggregate

    rng = np.random.default_rng(0)
    patch = rng.normal(-3, 2, (6, 6)).astype(np.float32)
    mask = rng.normal(-3, 2, (32, 32)).astype(np.float32)
    result = aggregate(
        patch,
        mask,
        geometry=Geometry.fit((64, 64), (32, 32)),
        method=aggregation.method,
        source=aggregation.source,
        k=aggregation.k or 1,
        high=0.5,
        low=0.5,
        min_area=1,
    )
    read = patch if aggregation.source == "patch" else mask
    assert result.logit == pytest.approx(scoring.image_logits(read[None], aggregation)[0], rel=1e-5)


def test_the_mask_is_read_only_where_it_clearly_helps():
    labels = np.array([True, True, False, False])
    patch, mask = Aggregation(method="max"), Aggregation(method="max", source="mask")
    worse, better = np.array([0.2, 0.9, 0.3, 0.1]), np.array([0.8, 0.9, 0.3, 0.1])
    assert scoring.choose_aggregation({patch: worse, mask: better}, labels) == mask
    assert scoring.choose_aggregation({patch: better, mask: better}, labels) == patch


def test_within_noise_the_fewest_logits_are_pooled():
    labels = np.array([True, True, False, False])
    scores = np.array([0.8, 0.9, 0.3, 0.1])
    few, many = Aggregation(method="top_k", k=2), Aggregation(method="top_k", k=16)
    noisy = Aggregation(method="noisy_or")
    assert scoring.choose_aggregation({noisy: scores, many: scores, few: scores}, labels) == few
    assert scoring.choose_aggregation({many: scores, few: -scores}, labels) == many


def test_films_without_masks_are_read_with_fixed_rules():
    assert scoring.choose_region_rules(np.zeros((2, 8, 8)), {}, np.array([0])) == scoring.RULES_WITHOUT_MASKS


def test_a_system_keeps_to_its_own_score():
    assert scoring.prescribed("clasegnet", 8) is None
    assert scoring.prescribed("classifier", 8) == [Aggregation(method="top_k", k=64)]
    assert {each.method for each in scoring.prescribed("li2018", 8)} == {"noisy_or", "paper_098"}


def test_platt_recovers_a_known_calibration():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 20_000)
    labels = rng.random(20_000) < scoring.sigmoid(0.7 * logits - 0.4)
    fitted = scoring.fit_platt(logits, labels)
    assert (fitted.scale, fitted.bias) == pytest.approx((0.7, -0.4), abs=0.05)


def test_operating_points_keep_their_promise():
    rng = np.random.default_rng(1)
    labels = rng.random(200) < 0.3
    probabilities = scoring.sigmoid(rng.normal(labels * 1.5 - 1))
    balanced, sensitive = scoring.choose_operating_points(probabilities, labels)
    youden = [(probabilities[labels] >= cut).mean() + (probabilities[~labels] < cut).mean() for cut in probabilities]
    flagged = probabilities >= balanced.threshold
    assert flagged[labels].mean() + (~flagged)[~labels].mean() == pytest.approx(max(youden))
    assert (probabilities[labels] >= sensitive.threshold).mean() >= 0.95
    higher = probabilities[probabilities > sensitive.threshold].min() + 1e-9
    assert (probabilities[labels] >= higher).mean() < 0.95 or (probabilities[labels] < higher).sum() == 0
    assert not (np.abs(probabilities - balanced.threshold) < 1e-12).any()


def test_regions_need_a_peak_and_an_area():
    mask = np.full((20, 20), -9.0)
    mask[1:5, 1:5] = logit(0.4)
    mask[2, 2] = logit(0.8)  # a region
    mask[10:14, 10:14] = logit(0.4)  # no peak
    mask[18, 18] = logit(0.9)  # too small
    found = RegionRules(high=0.7, low=0.3, min_area=4)(mask)
    assert np.array_equal(found, np.pad(np.ones((4, 4), bool), ((1, 15), (1, 15))))
    assert not RegionRules(high=0.95, low=0.3, min_area=1)(mask).any()


def test_the_sdk_finds_the_same_regions():
    pytest.importorskip("ptxsdk._core")
    from ptxsdk.geometry import Geometry
    from ptxsdk.ops import aggregate

    mask = np.random.default_rng(5).normal(-1, 1.5, (64, 64)).astype(np.float32)
    rules = RegionRules(high=0.8, low=0.4, min_area=3)
    regions = aggregate(
        np.zeros((2, 2), np.float32),
        mask,
        geometry=Geometry.fit((64, 64), (64, 64)),
        method="max",
        high=rules.high,
        low=rules.low,
        min_area=rules.min_area,
    ).regions
    assert sum(region.area_px for region in regions) == rules(mask).sum()


def test_region_rules_chosen_on_films_with_one_clean_threshold():
    truth = np.zeros((64, 64), bool)
    truth[20:40, 20:40] = True
    positive = np.where(truth, logit(0.55), logit(0.35))
    positive[25, 25] = logit(0.9)
    negative = np.full((64, 64), -9.0)
    negative[3:8, 3:30] = logit(0.6)
    rules = scoring.choose_region_rules(np.stack([positive, negative]), {0: truth}, np.array([1]))
    assert np.array_equal(rules(positive), truth)
    assert not rules(negative).any()
