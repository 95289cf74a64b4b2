"""The scope model's training: what is drawn, how it is split, what is measured; and that it learns."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from made import make_chest

pytest.importorskip("sklearn")

from ptxsdk.gate.scope import N_FEATURES, features, load_model
from training import scope

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def chests():
    rng = np.random.default_rng(0)
    made = []
    for index in range(12):
        noisy = np.clip(make_chest((220, 200)) + rng.normal(0, 12, (220, 200)), 0, 255).astype(np.uint8)
        made.append(
            scope.prepare(f"{index}.png", f"patient {index // 2}", "trusted", cv2.GaussianBlur(noisy, (0, 0), 4))
        )
    return made


def _picture(rng):
    blobs = rng.normal(size=(180, 240))
    return cv2.normalize(cv2.GaussianBlur(blobs, (0, 0), 9), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(1)
    return [scope.prepare(f"{index}.png", f"series {index}", "blobs", _picture(rng)) for index in range(6)]


def test_a_film_is_seen_as_the_device_sees_it(chests):
    shown = scope.small(chests[0].pixels)
    assert min(shown.shape) in range(60, 80)
    assert shown.dtype == np.float32
    assert 0 <= shown.min() < shown.max() <= 1


@pytest.mark.parametrize("maker", scope.MADE.values(), ids=scope.MADE)
def test_what_is_made_is_a_small_picture_and_reproducible(maker, chests):
    first, again = (maker(chests, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.dtype == np.float32
    assert min(first.shape) >= 24
    assert np.isfinite(first).all()
    assert first.min() >= 0
    assert first.max() <= 1
    assert np.ptp(first) > 0.01


def test_poses():
    shown = np.arange(6, dtype=np.float32).reshape(2, 3) / 5
    np.testing.assert_array_equal(scope.pose(shown, 1), np.rot90(shown))
    np.testing.assert_allclose(scope.pose(shown, 6), 1 - shown[::-1, ::-1])


def test_a_varied_film_stays_the_film(chests):
    rng = np.random.default_rng(0)
    upright = features(scope.small(chests[0].pixels))[:144]
    alike = [np.corrcoef(upright, features(scope.vary(chests[0].pixels, rng))[:144])[0, 1] for _ in range(40)]
    assert np.median(alike) > 0.6  # white borders outweigh the film in a few


def test_folds_keep_patients_whole(chests):
    for fold in range(3):
        seen, unseen = scope._split(chests, 3, fold)
        assert len(seen) + len(unseen) == len(chests)
        assert not {film.group for film in seen} & {film.group for film in unseen}
    assert sum(len(scope._split(chests, 3, fold)[1]) for fold in range(3)) == len(chests)


def test_examples_are_balanced_and_labelled_by_their_pose(chests, pictures):
    recipe = scope.Recipe(copies=1)
    found, labels = scope.make_examples(chests, pictures, [*scope.MADE.values()], recipe)
    assert found.shape == (len(labels), N_FEATURES)
    counts = np.bincount(labels)
    assert counts.tolist() == [24, *[12] * 7, 72]


def test_it_learns_what_a_chest_is(chests, pictures):
    model = scope.train(chests[:8], pictures[:4], scope.Recipe(copies=6, epochs=30, hidden=32))
    for film in chests[8:]:
        shown = scope.small(film.pixels)
        for label in range(scope.OTHER):
            judged = model(scope.pose(shown, label))
            assert judged.chest > 0.5
            assert int(np.argmax(judged.turned)) == label % 4
            assert (judged.inverted > 0.5) == (label >= 4)
    assert np.mean([model(scope.small(picture.pixels)).chest for picture in pictures[4:]]) < 0.3


def test_from_a_folder_to_a_model_and_a_report(tmp_path, chests):
    data, pictures = tmp_path / "films", tmp_path / "pictures"
    data.mkdir()
    (pictures / "blobs").mkdir(parents=True)
    (pictures / "nothing").mkdir()
    rows = []
    for index, film in enumerate(chests):
        cv2.imwrite(str(data / f"{index}.png"), film.pixels)
        rows.append({"image": f"{index}.png", "set": "nih", "patient": film.group, "label": 0, "labelled_by": "nih"})
    with (data / "manifest.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(
            stream, ["image", "set", "patient", "label", "labelled_by", "mask", "boxes_xywh", "nih_label", "findings"]
        )
        writer.writeheader()
        writer.writerows(rows)
    rng = np.random.default_rng(1)
    for index in range(4):
        cv2.imwrite(str(pictures / "blobs" / f"{index}.png"), _picture(rng))
    out, report = tmp_path / "scope.npz", tmp_path / "scope.json"
    options = f"--data {data} --pictures {pictures} --out {out} --report {report} --folds 2 --copies 1 --epochs 2"
    scope.main([*options.split(), "--hidden", "4", "--leave-out", "patient 0"])
    model = load_model(out.read_bytes())
    assert model.provenance["films"] == 10
    assert model.provenance["left out"] == ["patient 0"]
    measured = json.loads(report.read_text())
    assert measured["out of fold"]["all films"]["n"] == len(chests)
    assert measured["out of fold"]["blobs"]["n"] == 4
    assert set(measured["kind not seen in training"]) == {"blobs", *scope.MADE}
    assert "| blobs | 4 |" in scope.render(measured)


def test_the_documents_show_the_report_of_the_shipped_model():
    measured = json.loads((ROOT / "training" / "results" / "scope.json").read_text())
    assert scope.render(measured) in (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")
    shipped = load_model((ROOT / "ptxsdk" / "models" / "scope.npz").read_bytes())
    assert shipped.provenance["recipe"] == measured["recipe"]
    refused = measured["out of fold"]["all films"]
    assert refused["refused"] <= 0.01 * refused["n"]
