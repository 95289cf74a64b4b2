"""Geometry: the film fits, and the way forward and back is one way."""

from __future__ import annotations

import pytest

from ptxsdk.geometry import Geometry


@pytest.mark.parametrize(
    ("source", "target", "content"),
    [
        ((3000, 2500), (512, 512), (42, 0, 469, 512)),
        ((2500, 3000), (512, 512), (0, 42, 512, 469)),
        ((512, 512), (512, 512), (0, 0, 512, 512)),
        ((1, 1), (384, 384), (0, 0, 384, 384)),
        ((1, 10000), (16, 16), (0, 7, 16, 8)),
        ((10000, 1), (16, 16), (7, 0, 8, 16)),
        ((100, 100), (20, 40), (10, 0, 30, 20)),
    ],
)
def test_content(source, target, content):
    assert Geometry.fit(source, target).content == content


@pytest.mark.parametrize("source", [(3001, 2499), (33, 47), (1, 9), (640, 640), (2022, 2022)])
@pytest.mark.requirement("R-SCORE-5")
def test_round_trip_has_no_half_pixel_offset(source):
    geometry = Geometry.fit(source, (384, 384))
    x0, y0, x1, y1 = geometry.content
    assert geometry.to_source(x0, y0) == (0, 0)
    assert geometry.to_source(x1, y1) == (source[1], source[0])
    for point in [(0, 0), (source[1], source[0]), (source[1] / 3, source[0] / 7), (12.25, 0.5)]:
        assert geometry.to_source(*geometry.to_target(*point)) == pytest.approx(point)
