"""Evaluation chooses on validation films, measures both sets and writes plain JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("torch")

from training.evaluate import Choices, choose, evaluate, measure, predict
from training.train import load_average


def oracle(cache, films, *, noise=0.0):
    """A network that knows the answer but for some noise."""
    rng = np.random.default_rng(0)
    truth = {cache.image(film).tobytes(): film for film in films}

    def run(images):
        masks, patches = [], []
        for image in images:
            pixels = np.rint((image[0] * 0.5 + 0.5) * 255).astype(np.uint8)
            region = cache.region(truth[pixels.tobytes()])
            mask = np.full(pixels.shape, -4.0) if region is None else np.where(region > 0, 4.0, -4.0)
            masks.append(mask)
            patches.append(mask.reshape(4, 16, 4, 16).max((1, 3)) + noise * rng.normal(size=(4, 4)))
        return np.stack(patches), np.stack(masks)

    return run


def test_a_network_that_knows_the_answer_scores_full_marks(prepared):
    cache, split = prepared
    run = oracle(cache, [*split.validation, *split.test])
    report = evaluate(run, cache, split.validation, split.test, replicates=50)
    for name in ("validation", "test"):
        assert report[name]["classification"]["auc"]["value"] == 1
        assert report[name]["localization"]["dice_mean_positives"]["value"] == pytest.approx(1)
        assert report[name]["localization"]["peak_in_region"]["value"] == 1
        assert report[name]["operating_points"]["balanced"]["sensitivity"]["value"] == 1
    assert json.loads(json.dumps(report))["test"] == report["test"]


def test_choices_survive_json_and_decide_the_test_measures(prepared):
    cache, split = prepared
    run = oracle(cache, [*split.validation, *split.test], noise=4.0)
    report = evaluate(run, cache, split.validation, split.test, replicates=20)
    predictions = predict(run, cache, split.validation)
    again = Choices.from_dict(json.loads(json.dumps(report))["choices"])
    measured = measure(predict(oracle(cache, split.test), cache, split.test), again, cache, split.test, replicates=20)
    for point in again.operating_points:
        assert report["test"]["operating_points"][point.name]["threshold"] == point.threshold
        assert measured["operating_points"][point.name]["threshold"] == point.threshold
    chosen, areas = choose(predictions, cache, split.validation)
    assert max(areas.values()) == pytest.approx(areas[chosen.aggregation.name], abs=0.0101)


def test_padding_holds_nothing(prepared):
    cache, split = prepared
    film = split.test[0]
    row = cache.row_of[film.image]
    before = cache.contents[row].copy()
    cache.contents[row] = (8, 0, 56, 64)
    mask = predict(load_always(9.0), cache, [film]).mask_logits[0]
    cache.contents[row] = before
    assert (mask[:, 8:56] == 9).all()
    assert (mask[:, :8] == -100).all()
    assert (mask[:, 56:] == -100).all()


def load_always(value):
    return lambda images: (np.zeros((len(images), 4, 4)), np.full((len(images), 64, 64), value))


def test_a_trained_run_can_be_measured(trained, prepared):
    cache, split = prepared
    network, _ = load_average(trained)
    report = evaluate(network, cache, split.validation, split.test, replicates=20)
    auc = report["test"]["classification"]["auc"]
    assert auc["low"] <= auc["value"] <= auc["high"]
    assert auc["n"] == len(split.test)
