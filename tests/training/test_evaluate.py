"""Choices are made on validation films alone, and what is measured can be checked by hand."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("lightning")

from training import crossval, evaluate
from training.choices import Choices, choose
from training.crossval import cross_fit, load_held_out, run_fold
from training.data.films import Film
from training.evaluate import evaluate_run, select
from training.measure import compare, measure
from training.predictions import PADDING_LOGIT, Predictions, predict
from training.readings import Reading, read_predictions
from training.train import load_network, split

POINTS = ["balanced", "high_sensitivity"]


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


def make_reading(name="a", label=1, probability=0.9, *, flagged=("balanced",), patient="", **more):
    film = Film(image=name, origin="nih", patient=patient, label=label, labelled_by="siim", view="AP")
    return Reading(
        film=dataclasses.replace(film, **more.pop("film", {})),
        probability=probability,
        flagged=flagged,
        found=more.pop("found", 0.0),
        regions=more.pop("regions", 0),
        **more,
    )


def test_a_network_that_knows_the_answer_scores_full_marks(prepared):
    cache, parts = prepared
    run = oracle(cache, [*parts.validation, *parts.test])
    results, readings = evaluate_run(run, cache, parts, replicates=50)
    for name in ("validation", "test"):
        assert results[name]["classification"]["auc"]["value"] == 1
        assert results[name]["localization"]["dice_mean_positives"]["value"] == pytest.approx(1)
        assert results[name]["localization"]["peak_in_region"]["value"] == 1
        assert results[name]["localization"]["box_iou_above_0.5"]["value"] == 1
        assert results[name]["operating_points"]["balanced"]["sensitivity"]["value"] == 1
    assert [each.film for each in readings["test"]] == parts.test
    assert json.loads(json.dumps(results))["test"] == results["test"]


def test_nothing_is_chosen_on_the_test_films(prepared):
    cache, parts = prepared
    run = oracle(cache, [*parts.validation, *parts.test], noise=4.0)
    results, _ = evaluate_run(run, cache, parts, replicates=5)
    alone, _ = choose(
        predict(oracle(cache, parts.validation, noise=4.0), cache, parts.validation), cache, parts.validation
    )
    assert Choices.from_dict(json.loads(json.dumps(results))["choices"]) == alone


def test_padding_holds_nothing(prepared):
    cache, parts = prepared
    film = parts.test[0]
    row = cache.row_of[film.image]
    before = cache.contents[row].copy()
    cache.contents[row] = (8, 0, 56, 64)

    def always(images):
        return np.zeros((len(images), 4, 4)), np.full((len(images), 64, 64), 9.0)

    mask = predict(always, cache, [film]).mask_logits[0]
    cache.contents[row] = before
    assert (mask[:, 8:56] == 9).all()
    assert (mask[:, :8] == PADDING_LOGIT).all()
    assert (mask[:, 56:] == PADDING_LOGIT).all()


def test_a_reading_is_what_counting_gives(prepared):
    cache, parts = prepared
    film = next(each for each in parts.test if each.label)
    truth = cache.region(film) > 0
    mask = np.where(truth, 4.0, -4.0)
    mask[:8, :8] = 5.0  # a second region, and the peak with it
    choices, _ = choose(predict(oracle(cache, parts.validation), cache, parts.validation), cache, parts.validation)
    choices = dataclasses.replace(choices, regions=dataclasses.replace(choices.regions, min_area=1))
    reading = read_predictions(Predictions(np.full((1, 4, 4), 9.0), mask[None]), choices, cache, [film])[0]
    found = mask > 0
    assert reading.dice == pytest.approx(2 * (found & truth).sum() / (found.sum() + truth.sum()))
    assert reading.found == pytest.approx(found.sum() / 64**2)
    assert reading.truth == pytest.approx(truth.sum() / 64**2)
    assert reading.peak_hits is bool(truth[0, 0])
    assert reading.regions == 2
    assert reading.box_iou == 1
    assert reading.flagged == ("balanced", "high_sensitivity")


def test_measures_of_four_films_by_hand():
    readings = [
        make_reading("a", 1, 0.9, truth=0.02, dice=0.8, peak_hits=True, box_iou=0.6, regions=1),
        make_reading("b", 1, 0.2, truth=0.005, dice=0.4, peak_hits=False, box_iou=0.2, regions=1, flagged=()),
        make_reading("c", 0, 0.8, found=0.1, regions=2),
        make_reading("d", 0, 0.1, found=0.3, regions=1, flagged=()),
    ]
    found = measure(readings, ["balanced"], replicates=20)
    point, where = found["operating_points"]["balanced"], found["localization"]
    assert found["classification"]["auc"]["value"] == 0.75
    assert [point[key]["value"] for key in ("sensitivity", "specificity", "precision", "accuracy")] == [0.5] * 4
    assert list(point["confusion"].values()) == [1, 1, 1, 1]
    assert where["dice_mean_positives"]["value"] == pytest.approx(0.6)
    assert where["dice_mean_positives_shown"]["value"] == pytest.approx(0.4)
    assert where["dice_mean_all_films_shown"]["value"] == pytest.approx((0.8 + 0 + 0 + 1) / 4)
    assert where["peak_in_region"]["value"] == 0.5
    assert where["box_iou_above_0.1"]["value"] == 1
    assert where["box_iou_above_0.25"]["value"] == 0.5
    assert where["peak_in_box"]["n"] == 0
    assert where["negatives_without_region_shown"]["value"] == 0.5
    assert where["false_share_of_film_shown"]["value"] == pytest.approx(0.05)
    sizes = found["strata"]["size of the finding"]
    assert sizes["below 1 % of the film"]["sensitivity"]["value"] == 0
    assert sizes["1 to 5 %"]["sensitivity"]["value"] == 1
    assert found["strata"]["view"]["AP"]["n"] == 4
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_systems_are_compared_film_by_film():
    one = [make_reading(str(index), index % 2, 0.5 + 0.4 * (index % 2)) for index in range(8)]
    other = [dataclasses.replace(each, probability=0.5) for each in one]
    found = compare(one, other, replicates=20)
    assert found["auc"]["value"] == found["auc_delong"]["value"] == 0.5
    assert found["auc"]["low"] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="different films"):
        compare(one, other[::-1])


def test_a_fold_is_trained_once_and_read_with_the_choices_of_the_others(
    tiny_config, prepared, quiet, tmp_path, monkeypatch
):
    cache, _ = prepared
    films = [*prepared[1].train, *prepared[1].validation, *prepared[1].test]
    config = dataclasses.replace(tiny_config, folds=2, steps=2, epoch_steps=2)
    stored = []
    for fold in range(2):
        parts = split(films, cache, crossval.fold_config(config, fold))
        assert not parts.validation
        stored.append(run_fold(config, fold, cache, parts, tmp_path / f"arm-{fold}", **quiet))
    assert crossval.common_config([path.parent for path in stored]) == crossval.fold_config(config, 0)
    with pytest.raises(ValueError, match=r"lr is 0\.003, not 0\.5"):
        run_fold(dataclasses.replace(config, lr=0.5), 1, cache, parts, tmp_path / "arm-1", **quiet)
    with pytest.raises(ValueError, match="test_fold is 1, not 0"):
        crossval.common_config([path.parent for path in stored[::-1]])
    monkeypatch.setattr(crossval, "fit", None)
    assert run_fold(config, 1, cache, parts, tmp_path / "arm-1") == stored[1]
    found, predictions, folds = load_held_out(stored, films)
    assert sorted(each.image for each in found) == sorted(each.image for each in films if each.trusted)
    assert not {each.patient for each, fold in zip(found, folds, strict=True) if fold} & {
        each.patient for each, fold in zip(found, folds, strict=True) if not fold
    }
    seen = []
    monkeypatch.setattr(
        crossval, "choose", lambda logits, cache, own, **_: seen.append(own) or choose(logits, cache, own)
    )
    readings = cross_fit(found, predictions, folds, cache)
    assert [each.film for each in readings] == found
    for fold, own in enumerate(seen):
        assert [each.image for each in own] == [each.image for each, at in zip(found, folds, strict=True) if at != fold]


def test_a_trained_run_is_measured_from_the_command_line(trained, prepared, data_folder, tmp_path):
    pytest.importorskip("ptxsdk._core")
    pytest.importorskip("matplotlib")
    cache, _ = prepared
    np.save(tmp_path / "vectors.npy", np.eye(len(cache.images)))
    evaluate.main(
        [
            *(str(trained), "--data", str(data_folder), "--out", str(tmp_path), "--cache", str(cache.folder.parent)),
            *("--replicates", "20", "--panels", "1"),
        ]
    )
    results = json.loads((tmp_path / evaluate.METRICS).read_text())
    auc = results["test"]["classification"]["auc"]
    assert auc["low"] <= auc["value"] <= auc["high"]
    assert auc["n"] == len(
        split([*prepared[1].train, *prepared[1].validation, *prepared[1].test], cache, load_network(trained)[1]).test
    )
    assert "Not a medical device" in (tmp_path / evaluate.REPORT).read_text()


def test_films_are_selected_by_label_and_fold():
    films = [
        Film(image="a", origin="nih", patient="1", label=1, labelled_by="siim"),
        Film(image="b", origin="nih", patient="2", label=0, labelled_by="nih"),
        Film(image="c", origin="nih", patient="3", label=1, labelled_by="nih"),
    ]
    assert [each.image for each in select(films, "trusted")] == ["a", "b"]
    assert [each.image for each in select(films, "expert")] == ["a"]
    assert [each.image for each in select(films, "all")] == ["a", "b", "c"]
    parts = [select(films, "trusted", folds=2, fold=fold) for fold in range(2)]
    assert sorted(each.image for part in parts for each in part) == ["a", "b"]
