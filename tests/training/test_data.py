"""Reading, trust, folds, near-duplicates, the cache and the stream of batches."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from training.augment import Augmentation  # noqa: E402
from training.data import (  # noqa: E402
    TRUST,
    Film,
    FilmCache,
    TrainingStream,
    collate_targets,
    patient_folds,
    read_manifest,
    split_films,
)


def film(name, patient, label, labelled_by="siim", **more):
    return Film(image=name, mask="", origin="nih", patient=patient, label=label, labelled_by=labelled_by, **more)


def test_the_manifest_is_read_in_order(data_folder):
    films = read_manifest(data_folder)
    assert len(films) == 80
    assert films[0] == Film(
        image="film000.png",
        mask="film000.mask.png",
        origin="nih",
        patient="p00",
        label=1,
        labelled_by="siim",
        view="PA",
    )


def test_every_kind_of_label_has_a_trust():
    assert all(trust.draw > 0 and 0 < trust.label <= 1 for trust in TRUST.values())
    assert film("a", "p", 1, "predicted").trust.mask < film("a", "p", 1).trust.mask


def test_folds_are_patient_disjoint_stratified_and_deterministic(data_folder):
    films = read_manifest(data_folder)
    folds = patient_folds(films, 4)
    assert folds == patient_folds(films[::-1], 4)
    assert set(folds) == {film.patient for film in films if film.trusted}
    positives = [sum(each.label for each in films if each.patient and folds[each.patient] == fold) for fold in range(4)]
    assert max(positives) - min(positives) <= 2


def test_held_out_patients_leave_training_whoever_labelled_the_film(data_folder):
    films = read_manifest(data_folder)
    films += [film(f"more-{each.image}", each.patient, 0, "nih") for each in films if each.patient]
    split = split_films(films)
    names = [{each.patient for each in part if each.patient} for part in split]
    for one, other in itertools.combinations(names, 2):
        assert not one & other
    assert all(each.trusted for each in (*split.validation, *split.test))
    held_out = names[1] | names[2]
    assert len(split.train) == sum(each.patient not in held_out for each in films)


def test_a_trusted_film_without_a_patient_is_refused():
    with pytest.raises(ValueError, match="no patient id"):
        patient_folds([film("a", "", 1)], 4)


def test_the_cache_holds_the_preprocessed_film_and_its_region(data_folder, prepared, plain_preprocess):
    import cv2

    cache, _ = prepared
    films = read_manifest(data_folder)
    for each in films[:3]:
        pixels = cv2.imread(str(data_folder / each.image), cv2.IMREAD_GRAYSCALE)
        assert np.array_equal(cache.image(each), np.rint(plain_preprocess(pixels, 64)[0] * 255))
    mask = cv2.imread(str(data_folder / films[0].mask), cv2.IMREAD_GRAYSCALE)
    assert np.array_equal(cache.region(films[0]), plain_preprocess(mask, 64)[0] >= 0.5)
    assert cache.region(films[1]) is None


def test_boxes_stand_in_where_there_is_no_mask(tmp_path, data_folder, plain_preprocess):
    boxed = dataclasses.replace(
        read_manifest(data_folder)[0], mask="", labelled_by="box", boxes=((24.0, 48.0, 12.0, 24.0),)
    )
    cache = FilmCache.open(data_folder, [boxed], 96, tmp_path, preprocess=plain_preprocess)
    region = cache.region(boxed)
    assert np.argwhere(region).min(0).tolist() == [48, 24]
    assert np.argwhere(region).max(0).tolist() == [71, 35]
    targets = collate_targets([boxed], [region], 96)
    assert targets.has_region.all()
    assert targets.mask_weight.sum() == 0  # a box is no pixel mask


def test_a_cache_is_made_once(tmp_path, data_folder, plain_preprocess):
    films = read_manifest(data_folder)[:4]
    first = FilmCache.open(data_folder, films, 32, tmp_path, preprocess=plain_preprocess)

    def refuse(pixels, size):
        raise AssertionError("decoded again")

    second = FilmCache.open(data_folder, films, 32, tmp_path, preprocess=refuse)
    assert np.array_equal(first.images, second.images)
    assert [path.name.endswith(".part") for path in tmp_path.iterdir()] == [False]


def test_a_batch_is_a_function_of_seed_and_step(prepared):
    cache, split = prepared
    make = {"batch": 6, "steps": 9, "augmentation": Augmentation()}
    one = TrainingStream(cache, split.train, seed=4, **make)[5]
    two = TrainingStream(cache, split.train, seed=4, **make)[5]
    other = TrainingStream(cache, split.train, seed=5, **make)[5]
    assert one.image.shape == (6, 1, 64, 64)
    assert one.image.min() >= -1
    assert one.image.max() <= 1
    assert torch.equal(one.image, two.image)
    assert not torch.equal(one.image, other.image)
    assert 0 < one.targets.label.sum() < 6


def test_the_sdks_preprocessing_fits_and_averages():
    pytest.importorskip("ptxsdk._core")
    from training.data import sdk_preprocess

    pixels = np.random.default_rng(0).integers(0, 256, (64, 96), dtype=np.uint8)
    tensor, content = sdk_preprocess(pixels, 48)
    assert content == (0, 8, 48, 40)
    wanted = pixels.reshape(32, 2, 48, 2).mean((1, 3)) / 255
    np.testing.assert_allclose(tensor[8:40], wanted, atol=1e-6)
    assert not tensor[:8].any()
    assert not tensor[40:].any()
