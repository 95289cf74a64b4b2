"""Folds and splits: disjoint by patient, balanced, and the same whatever the order of the films."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from training.data.films import Film
from training.data.manifest import read_manifest
from training.data.splits import paper_split, patient_folds, split_films


def film(name, patient, label, labelled_by="siim"):
    return Film(image=name, origin="nih", patient=patient, label=label, labelled_by=labelled_by)


def patients(films):
    return {each.patient for each in films if each.patient}


@pytest.fixture(scope="module")
def text_mined():
    """400 films of about 150 patients with one to many films of either class, a fifth of them positive."""
    rng = np.random.default_rng(2)
    owners = np.minimum(rng.geometric(0.02, 400), 150)
    return [film(f"f{index:03}", f"p{owner}", int(index % 5 == 0), "nih") for index, owner in enumerate(owners)]


def test_folds_are_patient_disjoint_stratified_and_deterministic(data_folder):
    films = read_manifest(data_folder)
    folds = patient_folds(films, 4)
    assert folds == patient_folds(films[::-1], 4)
    assert set(folds) == {each.patient for each in films if each.trusted}
    positives = [sum(each.label for each in films if each.patient and folds[each.patient] == fold) for fold in range(4)]
    assert max(positives) - min(positives) <= 2


def test_held_out_patients_leave_training_whoever_labelled_the_film(data_folder):
    films = read_manifest(data_folder)
    films += [film(f"more-{each.image}", each.patient, 0, "nih") for each in films if each.patient]
    split = split_films(films, folds=4, validate=0, test=1)
    names = [patients(part) for part in split]
    for one, other in itertools.combinations(names, 2):
        assert not one & other
    assert all(each.trusted for each in (*split.validation, *split.test))
    held_out = names[1] | names[2]
    assert len(split.train) == sum(each.patient not in held_out for each in films)


def test_a_trusted_film_without_a_patient_is_refused():
    with pytest.raises(ValueError, match="no patient id"):
        patient_folds([film("a", "", 1)], 4)


@pytest.mark.parametrize("choice", [{"validate": 1, "test": 1}, {"test": 4}, {"validate": -1}])
def test_a_fold_that_does_not_exist_or_serves_twice_is_refused(choice):
    with pytest.raises(ValueError, match="fold"):
        split_films([], folds=4, **choice)


def test_the_papers_split_has_its_counts_and_shares_no_patient(text_mined):
    split = paper_split(text_mined, train=32, validation=4, test=5)
    assert [sum(each.label for each in part) for part in split] == [32, 4, 5]
    assert [sum(not each.label for each in part) for part in split] == [32, 4, 5]
    assert len({each.image for part in split for each in part}) == 82
    for one, other in itertools.combinations(split, 2):
        assert not patients(one) & patients(other)


def test_the_papers_split_depends_on_the_seed_and_not_on_the_order(text_mined):
    counts = {"train": 32, "validation": 4, "test": 5}
    one = paper_split(text_mined, **counts)
    two = paper_split(text_mined[::-1], **counts)
    assert [set(part) for part in one] == [set(part) for part in two]
    assert one.test != paper_split(text_mined, **counts, seed=1).test


def test_the_papers_split_says_how_many_films_are_missing():
    films = [film(f"p{index}", f"p{index}", 1, "nih") for index in range(6)]
    films += [film(f"n{index}", f"n{index}", 0, "nih") for index in range(20)]
    with pytest.raises(ValueError, match=r"known patients.*: train lacks 2 of 6 pneumothorax films$"):
        paper_split(films, train=6, validation=1, test=1)
    with pytest.raises(
        ValueError,
        match=r"train lacks .* of 722 pneumothorax .*validation lacks .* test lacks .* of 91 non-pneumothorax",
    ):
        paper_split(films)


def test_the_papers_split_leaves_out_films_of_unknown_patients():
    films = [film(f"{label}{index}", f"{label}{index}", label) for label in (0, 1) for index in range(3)]
    films += [film(f"unknown{index}", "", 1) for index in range(9)]
    split = paper_split(films, train=1, validation=1, test=1)
    assert all(each.patient for part in split for each in part)
    with pytest.raises(ValueError, match="lacks 1 of 2 pneumothorax films"):
        paper_split(films, train=2, validation=1, test=1)
