"""A made pneumothorax lies in one lung, looks like air there, and leaves everything else as it was."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("cv2")

import cv2

from training.made_positives import Appearance, make_positive

SIDE = 192
KINDS = ("apical", "lateral", "large", "basal")


def only(kind, **others):
    """Return an appearance of one kind."""
    return Appearance(**{name: float(name == kind) for name in KINDS}, **others)


@pytest.fixture(scope="module")
def lungs():
    """Two lungs: half ellipses, flat where the diaphragm is."""
    plane = np.zeros((SIDE, SIDE), np.uint8)
    for value, x in ((1, 54), (2, 138)):
        cv2.ellipse(plane, (x, 120), (32, 85), 0, 180, 360, value, -1)
        cv2.ellipse(plane, (x, 119), (32, 25), 0, 0, 180, value, -1)
    return plane


@pytest.fixture(scope="module")
def film(lungs):
    """A film with dark lungs full of fine texture, darker towards the base."""
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.normal(0, 1, lungs.shape).astype(np.float32), (0, 0), 1.2)
    shade = np.linspace(50, -50, SIDE)[:, None]
    grey = np.where(lungs > 0, 100 + shade + 40 * texture, 170)
    return np.clip(cv2.GaussianBlur(grey, (0, 0), 0.6), 0, 255).astype(np.uint8)


def made(film, lungs, count=24, appearance=None):
    """Return made films and masks, a list of pairs, one a seed."""
    found = (make_positive(film, lungs, np.random.default_rng(seed), appearance) for seed in range(count))
    return [pair for pair in found if pair is not None]


def test_most_draws_serve(film, lungs):
    assert len(made(film, lungs, 60)) > 45


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_lies_in_one_lung(film, lungs, kind):
    for image, mask in made(film, lungs, appearance=only(kind)):
        assert image.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 1}
        assert len(np.unique(lungs[mask > 0])) == 1
        assert lungs[mask > 0].all()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_outside_the_lung_changes(film, lungs, kind):
    for image, mask in made(film, lungs, appearance=only(kind)):
        lung = lungs == lungs[mask > 0][0]
        assert np.array_equal(image[~lung], film[~lung])


def test_nothing_but_mask_and_line_changes_where_the_lung_is_not_brightened(film, lungs):
    appearance = Appearance(brightening=(0, 0))
    for image, mask in made(film, lungs, appearance=appearance):
        near = cv2.dilate(mask, np.ones((9, 9), np.uint8)) > 0
        assert np.array_equal(image[~near], film[~near])


def test_both_lungs_are_chosen(film, lungs):
    assert {int(lungs[mask > 0][0]) for _, mask in made(film, lungs)} == {1, 2}


def test_it_is_darker_beyond_the_line(film, lungs):
    for image, mask in made(film, lungs):
        assert image[mask > 0].mean() < film[mask > 0].mean() - 0.5


def test_air_is_as_pale_as_the_film(lungs):
    losses = []
    for span in (100, 20):
        shade = np.linspace(span / 2, -span / 2, SIDE)[:, None]
        film = np.where(lungs > 0, 150 + shade, 200).astype(np.uint8)
        pairs = made(film, lungs, appearance=only("large", line_grey=(0, 0)))
        losses.append(np.mean([(film.astype(float) - image)[mask > 0].mean() for image, mask in pairs]))
    assert losses[0] > 2.5 * losses[1] > 0


def test_the_lungs_detail_is_gone_beyond_the_line(film, lungs):
    def detail(plane, where):
        plane = plane.astype(np.float32)
        return float((plane - cv2.GaussianBlur(plane, (0, 0), 3))[where].std())

    ratios = []
    for image, mask in made(film, lungs, appearance=only("large", texture_kept=(0, 0))):
        core = cv2.erode(mask, np.ones((9, 9), np.uint8)) > 0
        ratios.append(detail(image, core) / detail(film, core))
    assert np.mean(ratios) < 0.7
    assert max(ratios) < 0.75


def test_ribs_stay(lungs):
    rows = np.arange(SIDE)[:, None]
    ribs = np.where(lungs > 0, 100 + 30 * (rows % 24 < 10), 170).astype(np.uint8)
    for image, mask in made(ribs, lungs, appearance=only("large", darkening=(0, 0))):
        core = cv2.erode(mask, np.ones((9, 9), np.uint8)) > 0
        assert image[core].std() > 0.8 * ribs[core].std()


def test_the_heart_stays_bright(lungs):
    film = np.where(lungs > 0, 100, 180).astype(np.uint8)
    cv2.ellipse(film, (110, 135), (32, 30), 0, 0, 360, 180, -1)
    heart = np.zeros_like(film)
    cv2.ellipse(heart, (110, 135), (26, 24), 0, 0, 360, 1, -1)
    for _, mask in made(film, lungs, appearance=only("large")):
        assert not mask[heart > 0].any()


def test_a_bright_line_follows_the_border_of_the_mask(film, lungs):
    flat = np.where(lungs > 0, 100, 170).astype(np.uint8)
    appearance = only("large", darkening=(0, 0), brightening=(0, 0), line_grey=(4, 4))
    for image, mask in made(flat, lungs, appearance=appearance):
        gain = image.astype(int) - flat
        rim = (cv2.dilate(mask, np.ones((5, 5), np.uint8)) > 0) & (mask == 0) & (lungs == lungs[mask > 0][0])
        deep = cv2.erode(mask, np.ones((9, 9), np.uint8)) > 0
        assert gain[rim].max() > 8
        assert gain[deep].max() <= 1


def test_an_apical_one_reaches_the_apex_and_a_basal_one_does_not(film, lungs):
    top = np.flatnonzero((lungs > 0).any(1))[0]
    for kind, expected in (("apical", True), ("basal", False)):
        reaches = [mask[: top + 6].any() for _, mask in made(film, lungs, appearance=only(kind))]
        assert np.mean(reaches) == expected


def test_the_air_lies_at_the_chest_wall(film, lungs):
    for _, mask in made(film, lungs, appearance=only("lateral")):
        lung = lungs[mask > 0][0]
        outward = -1 if lung == 1 else 1
        assert outward * (np.argwhere(mask)[:, 1].mean() - np.argwhere(lungs == lung)[:, 1].mean()) > 3


def test_small_ones_prevail(film, lungs):
    share = np.array([mask.mean() for _, mask in made(film, lungs, 150)])
    assert share.min() >= Appearance().least_area
    assert 0.005 < np.median(share) < 0.02
    assert np.mean(share > 0.04) > 0.03


def test_the_same_draws_make_the_same_film(film, lungs):
    one, other = (make_positive(film, lungs, np.random.default_rng(3)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_film_given_is_left_alone(film, lungs):
    before = film.copy()
    made(film, lungs, 3)
    assert np.array_equal(film, before)


def test_there_is_none_without_lungs_or_with_a_speck(film):
    speck = np.zeros_like(film)
    assert make_positive(film, speck, np.random.default_rng(0)) is None
    speck[50:60, 50:60] = 1
    assert make_positive(film, speck, np.random.default_rng(0)) is None


def test_one_outlined_lung_is_enough(film, lungs):
    for _, mask in made(film, np.where(lungs == 2, 2, 0).astype(np.uint8)):
        assert (lungs[mask > 0] == 2).all()
