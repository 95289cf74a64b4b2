"""The lung network learns, and only what looks like two lungs comes back as an outline."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("cv2")

from training.lungs import Plausible, dice, predict_lungs, separate_lungs, train_lungs

SIDE = 96


def ellipses(*lungs, side=SIDE):
    """Return a (side, side) uint8 plane, 1 inside ellipses of centre (x, y) and half axes (a, b)."""
    rows, columns = np.mgrid[:side, :side]
    return np.max([((columns - x) / a) ** 2 + ((rows - y) / b) ** 2 < 1 for x, y, a, b in lungs], 0).astype(np.uint8)


TWO = ((28, 48, 13, 28), (68, 48, 13, 28))


def films(count, rng):
    """Return films with two dark lungs at random places, and their outlines, (count, 96, 96) uint8."""
    outlines = []
    for _ in range(count):
        x, y, half = rng.uniform(44, 52), rng.uniform(44, 52), rng.uniform(22, 30)
        outlines.append(ellipses((x - 20, y, 13, half), (x + 20, y, 13, half)))
    outlines = np.stack(outlines)
    return np.clip(180 - 110 * outlines + rng.normal(0, 12, outlines.shape), 0, 255).astype(np.uint8), outlines


def separate(plane, **bounds):
    return separate_lungs(plane.astype(np.float32), Plausible(**bounds))


@pytest.fixture(scope="module")
def trained():
    """A network that has seen twelve films for a few seconds."""
    return train_lungs(*films(12, np.random.default_rng(0)), steps=45, seed=0, batch=4)


def test_the_network_learns_two_ellipses(trained):
    images, outlines = films(6, np.random.default_rng(1))
    found = predict_lungs(trained, images)
    assert found.dtype == np.uint8
    assert dice(found, outlines).min() > 0.85
    assert np.array_equal(np.unique(found), [0, 1, 2])


def test_the_batch_does_not_matter(trained):
    images, _ = films(3, np.random.default_rng(2))
    assert np.array_equal(predict_lungs(trained, images, batch=1), predict_lungs(trained, images, batch=3))


def test_the_lung_at_the_left_of_the_image_is_one():
    plane = separate(ellipses(*TWO))
    assert (plane[48, 28], plane[48, 68], plane[48, 48]) == (1, 2, 0)


def test_an_outline_keeps_its_place():
    assert dice(separate(ellipses(*TWO))[None], ellipses(*TWO)[None])[0] > 0.97


def test_holes_are_filled_and_specks_dropped():
    clean = separate(ellipses(*TWO))
    plane = ellipses(*TWO)
    plane[45:50, 25:30] = 0
    plane[2:7, 2:7] = 1
    assert np.array_equal(separate(plane), clean)


@pytest.mark.parametrize(
    "lungs",
    [
        ((28, 48, 13, 28),),
        ((28, 48, 13, 28), (68, 48, 5, 14)),
        ((28, 30, 13, 25), (68, 66, 13, 25)),
        ((38, 48, 8, 28), (55, 48, 8, 28)),
        ((14, 48, 10, 28), (40, 48, 10, 28)),
        ((28, 48, 18, 10), (68, 48, 18, 10)),
    ],
    ids=["one lung", "unequal", "not level", "too close", "off centre", "flat"],
)
def test_what_does_not_look_like_two_lungs_is_empty(lungs):
    assert not separate(ellipses(*lungs)).any()


def test_a_ragged_lung_is_empty():
    plane = ellipses(*TWO)
    plane[20:60, 18:32] = 0
    assert not separate(plane).any()


def test_dice_agrees_with_a_plain_count():
    rng = np.random.default_rng(0)
    found, truth = rng.integers(0, 3, (4, 9, 7)), rng.integers(0, 2, (4, 9, 7))
    found[3], truth[3] = 0, 0
    for row, score in enumerate(dice(found, truth)):
        one, other = set(map(tuple, np.argwhere(found[row]))), set(map(tuple, np.argwhere(truth[row])))
        total = len(one) + len(other)
        assert score == pytest.approx(2 * len(one & other) / total if total else 1.0)
