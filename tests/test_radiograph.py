"""Radiograph: the display transform by hand-computed values, and arrays whose meaning is stated."""

from __future__ import annotations

import numpy as np
import pytest

from ptxsdk.errors import InputError
from ptxsdk.radiograph import Display, LookupTable, Radiograph, Window, estimate_window


@pytest.mark.requirement("R-INPUT-2")
def test_linear_is_the_formula_of_ps3_3():
    # C.11.2.1.2.1, c = 2048, w = 4096: below 0 black, above 4095 white, (x - 2047.5) / 4095 + 0.5 between.
    shown = Display(voi=Window(2048, 4096))([-5, 0, 1, 2047.5, 4094, 4095, 9999])
    np.testing.assert_allclose(shown, [0, 0, 1 / 4095, 0.5, 4094 / 4095, 1, 1])


def test_linear_of_width_one_is_a_threshold():
    np.testing.assert_array_equal(Display(voi=Window(100, 1))([99, 99.5, 100, 101]), [0, 0, 1, 1])


def test_linear_exact_and_sigmoid():
    np.testing.assert_allclose(Display(voi=Window(100, 50, "LINEAR_EXACT"))([75, 100, 125, 200]), [0, 0.5, 1, 1])
    expected = 1 / (1 + np.exp(-4 * (np.array([75, 100, 130]) - 100) / 50))
    np.testing.assert_allclose(Display(voi=Window(100, 50, "SIGMOID"))([75, 100, 130]), expected)


@pytest.mark.requirement("R-INPUT-2")
def test_order_is_modality_then_voi_then_polarity():
    display = Display(voi=Window.from_range(0, 10), slope=2, intercept=-4, invert=True)
    np.testing.assert_allclose(display([2, 7, 4.5]), [1, 0, 0.5])


def test_lookup_tables_hold_their_end_values():
    table = LookupTable(np.array([0.0, 0.25, 1.0]), first=10)
    np.testing.assert_array_equal(Display(voi=table)([0, 10, 11, 12, 500]), [0, 0, 0.25, 1, 1])


@pytest.mark.requirement("R-INPUT-2")
def test_padding_is_black_whatever_the_polarity():
    for invert in (False, True):
        shown = Display(voi=Window.from_range(0, 10), invert=invert, padding=(0, 2))([0, 2, 5])
        np.testing.assert_array_equal(shown[:2], 0)
        assert shown[2] == 0.5


@pytest.mark.parametrize(
    ("center", "width", "function"),
    [
        (0, 0.5, "LINEAR"),
        (0, 0, "SIGMOID"),
        (0, -1, "LINEAR_EXACT"),
        (np.nan, 1, "LINEAR"),
        (0, np.inf, "LINEAR"),
        (0, 1e300, "LINEAR"),
        (1e300, 1, "LINEAR"),
        (0, 1, "CUBIC"),
    ],
)
def test_impossible_windows_raise_value_error(center, width, function):
    with pytest.raises(ValueError, match=r"window|function"):
        Window(center, width, function)


@pytest.mark.requirement("R-INPUT-5")
def test_default_meaning_of_arrays():
    assert Radiograph.from_array(np.zeros((4, 4), np.uint8)).display.voi.bounds == (0, 255)
    assert Radiograph.from_array(np.zeros((4, 4), np.float32)).display.voi.bounds == (0, 1)
    ramp = np.arange(10000, dtype=np.uint16).reshape(100, 100)
    film = Radiograph.from_array(ramp)
    np.testing.assert_allclose(film.display.voi.bounds, np.percentile(ramp, (0.1, 99.9)))
    assert film.warnings[0].startswith("window.estimated")


def test_stated_window_and_polarity():
    film = Radiograph.from_array(np.zeros((4, 4), np.int16), window=(-100, 300), invert=True)
    np.testing.assert_allclose(film.display([-100, 300]), [1, 0])
    assert film.warnings == ()


@pytest.mark.parametrize(
    ("array", "code"),
    [
        (np.zeros((4, 4)), "input.dtype"),
        (np.zeros((4, 4), np.int32), "input.dtype"),
        (np.zeros((4, 4), ">u2"), "input.dtype"),
        (np.zeros((4, 4, 3), np.uint8), "input.shape"),
        (np.zeros((0, 4), np.uint8), "input.shape"),
        (np.full((4, 4), 2, np.float32), "input.range"),
        (np.full((4, 4), np.nan, np.float32), "input.not_finite"),
        (np.ma.masked_array(np.zeros((4, 4), np.uint8)), "input.type"),
        ([[1, 2]], "input.type"),
    ],
)
@pytest.mark.requirement("R-INPUT-5")
def test_arrays_that_are_no_film(array, code):
    with pytest.raises(InputError) as raised:
        Radiograph.from_array(array)
    assert raised.value.code == code


@pytest.mark.parametrize(
    "window", [(5, 5), (9, 1), (np.nan, 1), (0, np.inf), (-1e308, 1e308), ("a", "b"), (1,), (1, 2, 3), 5]
)
def test_impossible_range(window):
    with pytest.raises(InputError) as raised:
        Radiograph.from_array(np.zeros((4, 4), np.uint8), window=window)
    assert raised.value.code == "input.range"


@pytest.mark.parametrize(
    "stated",
    [
        {"pixel_spacing": (0, 0)},
        {"pixel_spacing": (np.nan, 1)},
        {"pixel_spacing": (1e200, 1e200)},
        {"pixel_spacing": (0.1,)},
        {"patient_orientation": ()},
        {"patient_orientation": ("", "F")},
        {"patient_orientation": ("X", "F")},
        {"patient_orientation": 5},
        {"patient_orientation": (1, 2)},
        {"pixel_spacing": 5},
        {"pixel_spacing": ("a", "b")},
        {"view": 5},
    ],
)
def test_impossible_metadata(stated):
    with pytest.raises(InputError) as raised:
        Radiograph.from_array(np.zeros((4, 4), np.uint8), **stated)
    assert raised.value.code == "input.metadata"


def test_a_view_may_be_given_in_any_case():
    assert Radiograph.from_array(np.zeros((4, 4), np.uint8), view="pa").view == "PA"


def test_pixels_are_checked_however_a_radiograph_is_made():
    with pytest.raises(InputError) as raised:
        Radiograph(pixels=np.zeros((4, 4), ">u2"), display=Display(voi=Window(0, 2)), origin="array")
    assert raised.value.code == "input.dtype"


def test_estimated_window_leaves_padding_out():
    pixels = np.zeros((100, 100), np.uint16)
    pixels[:50] = np.random.default_rng(0).integers(1000, 2000, (50, 100))
    low, high = estimate_window(pixels, padding=(0, 0))
    assert 1000 <= low < high < 2000
