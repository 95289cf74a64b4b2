"""Augmentation moves film and region together and never invents a positive without a region."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("cv2")

from training.data.augment import Augmentation

STILL = Augmentation(rotation=0, shift=0, scale=1, flip=0, gamma=0, window=0, blur=0, noise=0, borders=0)


def square(side=65, where=(slice(20, 30), slice(40, 52))):
    plane = np.zeros((side, side), np.uint8)
    plane[where] = 1
    return plane


def test_nothing_changes_when_nothing_may():
    image = np.random.default_rng(0).integers(0, 256, (65, 65), dtype=np.uint8)
    moved, region = STILL(image, square(), np.random.default_rng(1))
    assert np.array_equal(moved, image)
    assert np.array_equal(region, square())


def test_a_flip_mirrors_columns_exactly():
    flip = Augmentation(rotation=0, shift=0, scale=1, flip=1, gamma=0, window=0, blur=0, noise=0, borders=0)
    image = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    moved, region = flip(image, square(64), np.random.default_rng(1))
    assert np.array_equal(moved, image[:, ::-1])
    assert np.array_equal(region, square(64)[:, ::-1])


def test_film_and_region_move_together():
    geometry = Augmentation(gamma=0, window=0, blur=0, noise=0, borders=0)
    for seed in range(20):
        region = square()
        image, moved = geometry(region * 200, region, np.random.default_rng(seed))
        found, wanted = np.argwhere(image > 100).mean(0), np.argwhere(moved).mean(0)
        assert np.abs(found - wanted).max() < 1


def test_a_region_never_leaves_the_film_altogether():
    wild = Augmentation(shift=0.5, borders=1)
    corner = square(where=(slice(0, 3), slice(0, 3)))
    for seed in range(50):
        assert wild(corner * 200, corner, np.random.default_rng(seed))[1].any()


def test_black_stays_black_and_order_of_greys_is_kept():
    for seed in range(20):
        table = Augmentation()._tone(np.random.default_rng(seed))
        assert table[0] == 0
        assert (np.diff(table.astype(int)) >= 0).all()
        assert table[-1] > 150


def test_a_negative_has_no_region():
    image = np.full((64, 64), 90, np.uint8)
    assert Augmentation()(image, None, np.random.default_rng(0))[1] is None
