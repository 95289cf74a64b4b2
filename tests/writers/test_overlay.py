"""The overlay: what is drawn lies where the region is, and the picture says what it is not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from made import make_chest

from ptxsdk import Detector, GatePolicy, Radiograph, WriterError
from ptxsdk.writers.drawing import percent
from ptxsdk.writers.overlay import overlay_content, render_overlay

BLOB = (250, 150, 60)


@pytest.fixture(scope="module")
def film():
    return Radiograph.from_array(make_chest(blob=BLOB), pixel_spacing=(0.4, 0.4))


def amber(picture):
    """Where anything of the amber is drawn, blended with the film or not; all else is gray or the red banner."""
    blue, green, red = (picture[..., channel].astype(int) for channel in range(3))
    return (red - blue > 40) & (green - blue > 30)


def film_part(picture, film, longest):
    factor = min(longest / max(film.shape), 2.0)
    rows, columns = (round(side * factor) for side in film.shape)
    bars = (picture.shape[0] - rows) // 2
    return picture[bars : bars + rows], columns / film.shape[1]


@pytest.mark.parametrize("longest", [320, 640, 1400])
def test_box_and_outline_lie_on_the_region(detector, film, longest):
    detection = detector.predict(film)
    picture = render_overlay(film, detection, longest_side=longest)
    assert picture.dtype == np.uint8
    drawn, scale = film_part(picture, film, longest)
    x0, y0, _, y1 = (value * scale for value in detection.regions[0].box)
    rows, columns = np.nonzero(amber(drawn))
    label = 0.05 * longest  # the label stands just above the box
    assert rows.max() == pytest.approx(y1, abs=3)
    assert columns.min() == pytest.approx(x0, abs=3)
    assert y0 - label <= rows.min() <= y0 + 2
    on_outline = np.array(detection.regions[0].outline) * scale
    hits = [amber(drawn[max(0, int(y) - 3) : int(y) + 3, max(0, int(x) - 3) : int(x) + 3]).any() for x, y in on_outline]
    assert np.mean(hits) > 0.95
    inside = drawn[int(BLOB[0] * scale), int(BLOB[1] * scale)]
    np.testing.assert_array_equal(inside, 255)  # the anatomy inside is not painted over


def test_the_film_is_shown_as_a_viewer_would(detector):
    chest = make_chest((700, 640))
    for film in (Radiograph.from_array(chest), Radiograph.from_array(255 - chest, invert=True)):
        shown, _ = film_part(render_overlay(film, detector.predict(film), longest_side=700), film, 700)
        np.testing.assert_array_equal(shown, np.repeat(chest[..., None], 3, axis=2))


def test_a_film_that_is_not_flagged_has_no_amber(detector):
    film = Radiograph.from_array(make_chest())
    assert not amber(render_overlay(film, detector.predict(film))).any()


def test_every_picture_carries_the_red_banner(detector):
    for chest in (make_chest(), make_chest(blob=BLOB), make_chest((900, 400), blob=(500, 100, 50))):
        film = Radiograph.from_array(chest)
        picture = render_overlay(film, detector.predict(film)).astype(int)
        foot = picture[-picture.shape[0] // 20 :]
        assert ((foot[..., 2] > 200) & (foot[..., 1] < 120)).sum() > 200


def test_an_overridden_gate_stands_in_the_banner(tiny_engine, monkeypatch):
    from ptxsdk.writers import overlay

    written = []
    draw = overlay.line
    monkeypatch.setattr(overlay, "line", lambda bar, text, *rest: (written.append(text), draw(bar, text, *rest)))
    turned = Radiograph.from_array(np.ascontiguousarray(make_chest()[::-1]))
    with Detector(tiny_engine, gate_policy=GatePolicy(enforce=False)) as forced:
        render_overlay(turned, forced.predict(turned))
        assert "GATE OVERRIDDEN, NOT FOR DIAGNOSTIC USE" in written
        written.clear()
        upright = Radiograph.from_array(make_chest())
        render_overlay(upright, forced.predict(upright))
    assert "NOT FOR DIAGNOSTIC USE" in written


def test_large_films_are_shrunk_and_small_ones_enlarged(detector):
    large = Radiograph.from_array(make_chest((2000, 1500)))
    assert render_overlay(large, detector.predict(large)).shape[1] == 1050
    small = Radiograph.from_array(make_chest((300, 280)))
    assert render_overlay(small, detector.predict(small)).shape[1] == 560


def test_the_file_is_the_picture(detector, film):
    detection = detector.predict(film)
    content = np.frombuffer(overlay_content(film, detection), np.uint8)
    np.testing.assert_array_equal(cv2.imdecode(content, cv2.IMREAD_COLOR), render_overlay(film, detection))


def test_triage_has_no_overlay(tiny_engine, film):
    with Detector(tiny_engine, profile="triage") as triage:
        detection = triage.predict(film)
    with pytest.raises(WriterError) as raised:
        overlay_content(film, detection)
    assert raised.value.code == "writer.profile"


def test_a_percentage_is_never_rounded_to_certainty():
    assert [percent(p) for p in (0.0, 0.004, 0.123, 0.5, 0.992, 1.0)] == [
        "<1 %",
        "<1 %",
        "12 %",
        "50 %",
        ">99 %",
        ">99 %",
    ]
