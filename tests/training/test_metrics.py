"""Measures against scikit-learn, plain loops and published values."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("scipy")
pytest.importorskip("torch")

from training import metrics


@pytest.fixture
def films():
    rng = np.random.default_rng(2)
    labels = rng.random(83) < 0.4
    return labels, np.round(rng.normal(labels * 1.0), 1)  # rounded: with ties


def test_auc_is_the_share_of_ordered_pairs(films):
    labels, scores = films
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels] for n in scores[~labels]]
    assert metrics.auc(labels, scores) == pytest.approx(np.mean(pairs))
    assert np.isnan(metrics.auc(np.ones(3, bool), np.arange(3.0)))


def test_average_precision_cuts_ties_together(films):
    labels, scores = films
    total, before = 0.0, 0
    for cut in sorted(set(scores), reverse=True):
        called = scores >= cut
        hits = (labels & called).sum()
        total += (hits - before) * hits / called.sum()
        before = hits
    assert metrics.average_precision(labels, scores) == pytest.approx(total / labels.sum())


def test_wilson_intervals_of_the_paper():
    # 168 and 163 of 182 films are the accuracies of the ClaSegNet deck
    best = metrics.wilson(168, 182)
    assert (best.low, best.high) == pytest.approx((0.875, 0.954), abs=6e-4)
    assert metrics.wilson(0, 10).low == 0
    assert metrics.wilson(10, 10).high == 1
    with pytest.raises(ValueError, match="nothing"):
        metrics.wilson(0, 0)


def test_calibration_error_of_a_calibrated_and_of_a_biased_score():
    rng = np.random.default_rng(0)
    probabilities = rng.random(30_000)
    labels = rng.random(30_000) < probabilities
    assert metrics.expected_calibration_error(labels, probabilities) < 0.02
    assert metrics.expected_calibration_error(labels, np.full(30_000, 0.9)) == pytest.approx(0.4, abs=0.02)
    coin = rng.random(30_000) < 0.5  # right on average, wrong where it is sure; one bin of 15 holds both values
    sure = np.where(probabilities > 0.5, 0.9, 0.1)
    assert metrics.expected_calibration_error(coin, sure) == pytest.approx(0.4 * 14 / 15, abs=0.02)
    assert metrics.brier(labels, labels.astype(float)) == 0


def test_dice_by_counting():
    a, b = np.zeros((4, 5), bool), np.zeros((4, 5), bool)
    assert metrics.dice(a, b) == 1
    a[0, :3] = b[0, 1:5] = True
    assert metrics.dice(a, b) == pytest.approx(2 * 2 / 7)


def test_the_bootstrap_draws_patients():
    values = np.repeat(np.random.default_rng(0).normal(size=30), 8)
    patients = np.repeat(np.arange(30), 8).tolist()
    by_patient = metrics.bootstrap(lambda draw: float(values[draw].mean()), patients, replicates=400)
    by_film = metrics.bootstrap(lambda draw: float(values[draw].mean()), list(range(240)), replicates=400)
    assert by_patient.value == by_film.value == pytest.approx(values.mean())
    assert by_patient.low < by_patient.value < by_patient.high
    assert by_patient.high - by_patient.low > 2 * (by_film.high - by_film.low)


def test_a_share_of_everything_still_has_an_interval():
    groups = ["a", "a", "b", "c"]
    every = metrics.proportion(np.ones(4, bool), groups)
    assert (every.value, every.high, every.n) == (1, 1, 4)
    assert every.low == pytest.approx(metrics.wilson(3, 3).low)
    assert metrics.proportion(np.zeros(4, bool), groups).high == pytest.approx(metrics.wilson(0, 3).high)
    some = metrics.proportion(np.array([True, True, False, False]), groups)
    assert some.value == 0.5
    assert some.low == 0


def test_delong_by_its_definition(films):
    labels, one = films
    other = one + np.random.default_rng(3).normal(size=one.size)
    placements = []
    for scores in (one, other):
        pairs = (scores[labels][:, None] > scores[~labels]) + 0.5 * (scores[labels][:, None] == scores[~labels])
        placements.append(pairs)
    gap = placements[0] - placements[1]
    variance = gap.mean(1).var(ddof=1) / labels.sum() + gap.mean(0).var(ddof=1) / (~labels).sum()
    found, p = metrics.delong(labels, one, other)
    assert found.value == pytest.approx(gap.mean())
    assert found.high - found.low == pytest.approx(2 * 1.959964 * variance**0.5, rel=1e-5)
    assert 0 < p < 1
    assert metrics.delong(labels, one, one)[1] == 1
    perfect = labels.astype(float)
    assert metrics.delong(labels, perfect, -perfect)[1] == 0


def test_a_measure_that_is_not_defined_is_nan():
    assert np.isnan(metrics.bootstrap(lambda draw: np.nan, ["a", "b"], replicates=3).value)
