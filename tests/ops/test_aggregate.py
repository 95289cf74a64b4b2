"""aggregate against plain references: decimal arithmetic for scores, scipy.ndimage and sets of edges for regions."""

from __future__ import annotations

import functools
import math
import sys
import threading
from collections import Counter
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest

from ptxsdk.errors import BackendError
from ptxsdk.geometry import Geometry
from ptxsdk.ops.aggregate import Aggregate, aggregate, mask_probability

ndimage = pytest.importorskip("scipy.ndimage", reason="SciPy, the reference, is not installed", exc_type=ImportError)

EIGHT = np.ones((3, 3), int)


def identity(shape):
    return Geometry(shape, shape, (0, 0, shape[1], shape[0]))


def f32(values):
    return np.ascontiguousarray(values, np.float32)


def run_on(aggregate, patch=None, mask=None, **options):
    patch = f32([[0.0]]) if patch is None else f32(patch)
    mask = f32([[-9.0]]) if mask is None else f32(mask)
    defaults = {"geometry": identity(mask.shape), "method": "max", "high": 0.5, "low": 0.5, "min_area": 1}
    return aggregate(patch, mask, **(defaults | options))


@pytest.fixture
def run(twin):
    """aggregate of every twin, with defaults."""
    return functools.partial(run_on, twin.aggregate)


run_on_cpu = functools.partial(run_on, aggregate)


def on(picture):
    """Logits +3 where the picture has ``#``, +1 where ``+``, -3 elsewhere."""
    rows = picture.split()
    return f32([[{"#": 3.0, "+": 1.0}.get(mark, -3.0) for mark in row] for row in rows])


# ---- image logit -------------------------------------------------------------------------------------------


def exact_logit(logits, method):
    """The defining products, without any care, in 150 digits."""
    with localcontext() as context:
        context.prec = 150
        none = Decimal(1)
        for z in np.ravel(logits):
            negative = 1 / (1 + Decimal(float(z)).exp())
            none *= negative if method == "noisy_or" else Decimal("0.98") + Decimal("0.02") * negative
        return float((1 - none).ln() - none.ln())


@pytest.mark.parametrize("method", ["noisy_or", "paper_098"])
@pytest.mark.parametrize(
    "logits",
    [
        np.zeros((1, 1)),
        np.full((1, 1), 100),
        np.full((1, 1), -100),
        np.full((16, 16), -100),
        np.full((16, 16), 100),
        np.full((64, 64), -100),
        np.full((64, 64), -17.5),
        np.full((64, 64), 100),
        np.full((64, 64), 0),
        np.random.default_rng(1).normal(-6, 3, (16, 16)),
        np.random.default_rng(2).normal(0, 8, (13, 17)),
        np.random.default_rng(3).uniform(-100, 100, (64, 64)),
        np.random.default_rng(4).uniform(-100, -30, (8, 8)),
        np.full((3, 5), -800),  # exp underflows
        np.full((2, 2), -1e30),
    ],
    ids=lambda logits: f"{logits.shape[0]}x{logits.shape[1]}_{logits.flat[0]:g}",
)
@pytest.mark.requirement("R-SCORE-2")
def test_products_agree_with_exact_arithmetic(run, twin, method, logits):
    logits = f32(logits)
    if logits.min() < -500:  # 1 - prod(1 - p) is sum(p), to more digits than there are
        expected = float(logits[0, 0]) + math.log(logits.size * (1 if method == "noisy_or" else 0.02))
    else:
        expected = exact_logit(logits, method)
    assert run(logits, method=method).logit == pytest.approx(expected, rel=twin.exact, abs=twin.exact)


def test_noisy_or_of_one_percent_everywhere(run):
    patch = np.full((16, 16), math.log(0.01 / 0.99))
    probability = 1 / (1 + math.exp(-run(patch, method="noisy_or").logit))
    assert probability == pytest.approx(1 - 0.99**256, abs=1e-7)
    assert round(probability, 2) == 0.92


def test_paper_098_of_one_certain_patch(run, twin):
    patch = np.full((16, 16), -100.0)
    patch[3, 7] = 100
    assert run(patch, method="paper_098").logit == pytest.approx(math.log(0.02 / 0.98), abs=10 * twin.exact)


def test_paper_098_needs_35_certain_patches_for_one_half(run):
    patch = np.full((16, 16), -100.0)
    patch.flat[:34] = 100
    assert run(patch, method="paper_098").logit < 0
    patch.flat[34] = 100
    assert run(patch, method="paper_098").logit > 0


def test_noisy_or_of_one_patch_is_its_logit(run, twin):
    for z in (-100, -40, -1, 0, 1, 20, 40, 100):
        assert run([[z]], method="noisy_or").logit == pytest.approx(z, rel=twin.exact, abs=twin.exact)


@pytest.mark.parametrize("k", [1, 2, 7, 34, 35, 36, 10**12])
def test_top_k_is_the_mean_of_the_largest(run, k):
    patch = f32(np.random.default_rng(5).normal(0, 5, (5, 7)))
    patch[0, :3] = patch.max()  # ties
    expected = np.sort(patch.ravel().astype(np.float64))[::-1][:k].mean()
    assert run(patch, method="top_k", k=k).logit == pytest.approx(expected, rel=1e-14)


def test_max_is_the_largest_and_a_plain_float(run):
    patch = f32(np.random.default_rng(6).normal(-50, 5, (9, 4)))
    logit = run(patch, method="max").logit
    assert type(logit) is float
    assert logit == patch.max()


@pytest.mark.parametrize("method", ["noisy_or", "paper_098", "top_k", "max"])
def test_mask_as_source_scores_the_content_only(run, twin, method):
    rng = np.random.default_rng(7)
    geometry = Geometry.fit((40, 21), (17, 19))
    x0, y0, x1, y1 = geometry.content
    assert (x0, y0, x1, y1) == (5, 0, 14, 17)
    mask = np.full((17, 19), 50, np.float32)  # the padding would decide
    mask[y0:y1, x0:x1] = rng.normal(-5, 2, (17, 9))
    content = f32(mask[y0:y1, x0:x1])
    got = run([[90.0]], mask, geometry=geometry, method=method, k=4, source="mask").logit
    expected = {
        "noisy_or": lambda: exact_logit(content, method),
        "paper_098": lambda: exact_logit(content, method),
        "top_k": lambda: np.sort(content, axis=None)[-4:].astype(float).mean(),
        "max": lambda: content.max(),
    }[method]()
    assert got == pytest.approx(float(expected), rel=10 * twin.exact)


# ---- regions -----------------------------------------------------------------------------------------------


def boundary_edges(filled):
    """Directed edges of the outline of a mask, the mask on their right; y runs down."""
    padded = np.pad(filled, 1)
    edges = []
    for y, x in np.argwhere(filled):
        if not padded[y, x + 1]:
            edges.append(((x, y), (x + 1, y)))
        if not padded[y + 1, x + 2]:
            edges.append(((x + 1, y), (x + 1, y + 1)))
        if not padded[y + 2, x + 1]:
            edges.append(((x + 1, y + 1), (x, y + 1)))
        if not padded[y + 1, x]:
            edges.append(((x, y + 1), (x, y)))
    return Counter((tuple(map(int, a)), tuple(map(int, b))) for a, b in edges)


def unit_edges(corners):
    edges = Counter()
    for (xa, ya), (xb, yb) in zip(corners, corners[1:] + corners[:1], strict=True):
        steps = abs(xb - xa) + abs(yb - ya)
        assert xa == xb or ya == yb
        dx, dy = (xb - xa) // steps, (yb - ya) // steps
        edges.update(((xa + i * dx, ya + i * dy), (xa + (i + 1) * dx, ya + (i + 1) * dy)) for i in range(steps))
    return edges


def shoelace(points):
    x, y = np.array(points, float).T
    return 0.5 * float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))


def turns(corners):
    """+1 to the right (clockwise as seen), -1 to the left, 0 straight on; one a corner."""
    points = np.array(corners)
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    return np.sign(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0])


def reference_regions(mask, geometry, high, low, min_area):
    """Boolean masks of the regions, in the promised order."""
    x0, y0, x1, y1 = geometry.content
    content = np.zeros(mask.shape, bool)
    content[y0:y1, x0:x1] = True
    probability = 1 / (1 + np.exp(-mask.astype(np.float64)))
    labels, count = ndimage.label((probability >= low) & content, EIGHT)
    found = [labels == label for label in range(1, count + 1)]
    found = [one for one in found if one.sum() >= min_area and (probability[one] >= high).any()]
    return sorted(found, key=lambda one: (-one.sum(), np.flatnonzero(one)[0]))


def check_against_reference(run, mask, geometry, high, low, min_area):
    mask = f32(mask)
    got = run(
        mask=mask, geometry=geometry, high=high, low=low, min_area=min_area, columns_toward="left",
        pixel_spacing=(0.2, 0.14),
    ).regions  # fmt: skip
    expected = reference_regions(mask, geometry, high, low, min_area)
    assert len(got) == len(expected)
    rows, columns = geometry.source
    x0, y0, x1, y1 = geometry.content
    scale_x, scale_y = Fraction(columns, x1 - x0), Fraction(rows, y1 - y0)
    probability = 1 / (1 + np.exp(-mask.astype(np.float64)))
    for region, pixels in zip(got, expected, strict=True):
        ys, xs = np.nonzero(pixels)
        assert region.box == (
            math.floor((int(xs.min()) - x0) * scale_x),
            math.floor((int(ys.min()) - y0) * scale_y),
            math.ceil((int(xs.max()) + 1 - x0) * scale_x),
            math.ceil((int(ys.max()) + 1 - y0) * scale_y),
        )
        assert 0 <= region.box[0] < region.box[2] <= columns
        assert 0 <= region.box[1] < region.box[3] <= rows
        assert region.area_px == pytest.approx(len(xs) * float(scale_x * scale_y), rel=1e-12)
        assert region.area_mm2 == pytest.approx(region.area_px * 0.2 * 0.14, rel=1e-12)
        centroid = geometry.to_source(xs.mean() + 0.5, ys.mean() + 0.5)
        assert region.centroid == pytest.approx(centroid, rel=1e-12)
        peak = np.argmax(np.where(pixels, mask, -np.inf))
        peak_y, peak_x = divmod(int(peak), mask.shape[1])
        assert region.peak == geometry.to_source(peak_x + 0.5, peak_y + 0.5)
        assert region.probability == pytest.approx(probability[peak_y, peak_x], rel=1e-6)
        assert region.probability == pytest.approx(mask_probability(mask)[peak_y, peak_x], rel=5e-7)
        assert region.mean_probability == pytest.approx(probability[pixels].mean(), rel=1e-6)
        middle = Fraction(int((2 * xs + 1).sum()), 2 * len(xs)) - Fraction(x0 + x1, 2)
        assert region.side == (None if middle == 0 else "left" if middle > 0 else "right")
        check_outline(region.outline, pixels, geometry)


def check_outline(outline, pixels, geometry):
    filled = ndimage.binary_fill_holes(pixels)
    scale = geometry.to_source(geometry.content[0] + 1, geometry.content[1] + 1)
    corners = [tuple(round(value) for value in geometry.to_target(*point)) for point in outline]
    assert outline == tuple(geometry.to_source(*corner) for corner in corners)
    assert unit_edges(corners) == boundary_edges(filled)  # every edge once, none else, the region on the right
    assert shoelace(outline) == pytest.approx(filled.sum() * scale[0] * scale[1], rel=1e-9)
    direction = turns(corners)
    assert np.all(direction != 0)  # no collinear points
    assert direction.sum() == 4  # one turn around: a single closed curve
    often = Counter(corners)
    assert max(often.values()) <= 2
    for corner, turn in zip(corners, direction, strict=True):
        assert often[corner] == 1 or turn == -1  # at a pinch it touches itself, it does not cross
    first = min(map(tuple, np.argwhere(pixels).tolist()))
    assert corners[0] == (first[1], first[0])


SPIRAL = """
    ###########
    ..........#
    #########.#
    #.......#.#
    #.#####.#.#
    #.#...#.#.#
    #.#.###.#.#
    #.#.....#.#
    #.#######.#
    #.........#
    ###########
"""
NESTED = """
    #########
    #.......#
    #.#####.#
    #.#...#.#
    #.#.#.#.#
    #.#...#.#
    #.#####.#
    #.......#
    #########
"""
PINCHES = """
    .#.#..##.
    #.#.#.##.
    .#.#.#..#
    #......#.
    .#.#.##..
    ..#.#....
"""
TWO_HOLES_MEET_AT_A_CORNER = """
    #####
    #.###
    ##.##
    ###..
    #####
"""


@pytest.mark.parametrize(
    "mask",
    [
        on("#"),
        on("."),
        on("######"),
        on("# # # #"),
        on("#. .#"),
        on(".# #."),
        on(SPIRAL),
        on(SPIRAL)[:, ::-1],
        on(SPIRAL)[::-1],
        on(SPIRAL).T,
        on(NESTED),
        on(PINCHES),
        on(TWO_HOLES_MEET_AT_A_CORNER),
        np.full((33, 70), 3.0),
        np.full((9, 11), -3.0),
        np.where(np.indices((13, 131)).sum(0) % 2, 3, -3),
        np.where(np.indices((13, 131)).sum(0) % 2, -3, 3),
        np.where(np.indices((64, 128))[1] % 2, 3, -3),
        np.where(np.indices((65, 129))[0] % 2, 3, -3),
        np.where(np.abs(np.indices((40, 200))[1] - 100) < np.arange(40)[:, None] * 2.5, 2, -2),
        np.where(np.abs(np.indices((40, 200))[1] - 100) >= np.arange(40)[:, None] * 2.5, 2, -2),
    ],
)
def test_shapes_agree_with_the_reference(run, mask):
    for min_area in (0, 1, 2, 20):
        check_against_reference(run, mask, identity(mask.shape), 0.7, 0.5, min_area)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((100, 100), (24, 24)),
        ((2022, 2531), (32, 33)),
        ((2531, 2022), (21, 40)),
        ((7, 5), (64, 64)),  # the film is smaller than the map
        ((3000, 11), (50, 64)),  # content one pixel wide
        ((1, 1), (1, 1)),
        ((1, 900), (3, 130)),
        ((101, 100), (70, 70)),
    ],
)
@pytest.mark.requirement("R-SCORE-2")
def test_random_maps_agree_with_the_reference(run, source, target):
    geometry = Geometry.fit(source, target)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        mask = ndimage.gaussian_filter(rng.normal(0, 1, target), rng.choice([0, 0.6, 1.5]), mode="nearest")
        mask = 3 * (mask - np.quantile(mask, rng.uniform(0.1, 0.95))) / (mask.std() + 1e-6)
        low = rng.uniform(0.1, 0.6)
        check_against_reference(run, mask, geometry, rng.uniform(low, 0.95), low, int(rng.integers(0, 9)))


@pytest.mark.requirement("R-SCORE-2")
def test_regions_by_hand(run):
    mask = on("""
        ......
        .+#...
        .+....
        ....+.
        ......
    """)
    geometry = Geometry((50, 120), (5, 6), (0, 0, 6, 5))  # 20 columns and 10 rows of the film a map pixel
    result = run(mask=mask, geometry=geometry, high=0.9, low=0.6, columns_toward="left", pixel_spacing=(0.5, 0.1))
    assert isinstance(result, Aggregate)
    (region,) = result.regions  # the lone + does not reach `high`
    assert region.box == (20, 10, 60, 30)
    assert region.outline == ((20, 10), (60, 10), (60, 20), (40, 20), (40, 30), (20, 30))
    assert region.area_px == 600
    assert region.area_mm2 == pytest.approx(30)
    assert region.centroid == pytest.approx((110 / 3, 55 / 3))
    assert region.peak == (50, 15)
    assert region.probability == pytest.approx(1 / (1 + math.exp(-3)), rel=1e-6)
    assert region.mean_probability == pytest.approx((1 / (1 + math.exp(-3)) + 2 / (1 + math.exp(-1))) / 3, rel=1e-6)
    assert region.side == "right"


def test_pinch_is_passed_twice(run):
    (region,) = run(mask=on("#. .#")).regions
    assert region.outline == ((0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (1, 2), (1, 1), (0, 1))


def test_hole_is_in_the_outline_but_not_in_the_area(run):
    (region,) = run(mask=on("### #.# ###")).regions
    assert region.outline == ((0, 0), (3, 0), (3, 3), (0, 3))
    assert region.area_px == 8


def test_order_is_by_area_then_raster(run):
    mask = on("""
        ...##..#
        #.......
        #..##..#
        ...#...#
    """)
    boxes = [region.box for region in run(mask=mask).regions]
    assert boxes == [(3, 2, 5, 4), (3, 0, 5, 1), (0, 1, 1, 3), (7, 2, 8, 4), (7, 0, 8, 1)]


def test_padding_holds_no_region_and_cuts_regions(run):
    geometry = Geometry((8, 4), (8, 8), (2, 0, 6, 8))
    mask = np.full((8, 8), 5, np.float32)
    (region,) = run(mask=mask, geometry=geometry, columns_toward="left").regions
    assert region.box == (0, 0, 4, 8)
    assert region.outline == ((0, 0), (4, 0), (4, 8), (0, 8))
    assert region.area_px == 32
    assert region.side is None  # on the midline
    mask[:, 2:6] = -5
    assert run(mask=mask, geometry=geometry).regions == ()


def test_row_ends_are_not_neighbours(run):
    assert len(run(mask=on("..# #..")).regions) == 2
    wide = np.full((3, 130), -3.0)
    wide[0, 63:65] = wide[1, 129] = wide[2, 0] = 3  # across the 64 pixels handled at a time
    assert [region.area_px for region in run(mask=wide).regions] == [2, 1, 1]


def test_peak_is_the_first_of_equals_by_logit(run):
    mask = np.full((4, 70), 30.0)  # the probability is 1 everywhere
    assert run(mask=mask).regions[0].peak == (0.5, 0.5)
    mask[2, 69] = mask[3, 1] = 40
    assert run(mask=mask).regions[0].peak == (69.5, 2.5)
    assert run(mask=mask).regions[0].probability == 1


@pytest.mark.parametrize("threshold", [1e-6, 0.01, 0.3, 0.5, 0.7, 0.9, 0.999])
@pytest.mark.requirement("R-SCORE-2")
def test_thresholds_are_sharp_and_inclusive(run, threshold):
    nearest = np.float32(math.log(threshold / (1 - threshold)))
    with localcontext() as context:
        context.prec = 60
        for z in (np.nextafter(nearest, np.float32(-9)), nearest, np.nextafter(nearest, np.float32(9))):
            inside = 1 / (1 + (-Decimal(float(z))).exp()) >= Decimal(threshold)
            assert len(run(mask=[[z]], high=threshold, low=threshold).regions) == inside
            assert len(run(mask=[[z, 50]], high=0.9999, low=threshold).regions[0].outline) == 4
            assert run(mask=[[z, 50]], high=0.9999, low=threshold).regions[0].area_px == 1 + inside


@pytest.mark.parametrize(("toward", "expected"), [("left", "left"), ("right", "right"), (None, None)])
@pytest.mark.requirement("R-SCORE-5")
def test_side_of_the_patient(run, toward, expected):
    geometry = Geometry.fit((60, 40), (30, 30))
    mask = np.full((30, 30), -3, np.float32)
    mask[4:9, 16:20] = 3  # right of the middle of the content
    assert run(mask=mask, geometry=geometry, columns_toward=toward).regions[0].side == expected
    mirrored = np.ascontiguousarray(mask[:, ::-1])
    opposite = {"left": "right", "right": "left", None: None}[expected]
    assert run(mask=mirrored, geometry=geometry, columns_toward=toward).regions[0].side == opposite


@pytest.mark.requirement("R-SCORE-5")
def test_box_and_outline_come_back_to_the_map(run):
    for source in [(2500, 2048), (511, 513), (90, 30)]:
        geometry = Geometry.fit(source, (61, 47))
        mask = np.full((61, 47), -3, np.float32)
        x0, y0, x1, y1 = geometry.content
        left, top = (x0 + x1) // 2, (y0 + y1) // 2
        mask[top : top + 5, left : left + 3] = 3
        (region,) = run(mask=mask, geometry=geometry).regions
        corners = [geometry.to_target(*point) for point in region.outline]
        expected = [(left, top), (left + 3, top), (left + 3, top + 5), (left, top + 5)]
        assert np.array(corners) == pytest.approx(np.array(expected), abs=1e-9)
        bx0, by0 = geometry.to_target(*region.box[:2])
        bx1, by1 = geometry.to_target(*region.box[2:])
        step_x, step_y = (x1 - x0) / source[1], (y1 - y0) / source[0]  # one pixel of the film
        assert left - step_x < bx0 <= left + 1e-9
        assert top - step_y < by0 <= top + 1e-9
        assert left + 3 - 1e-9 <= bx1 < left + 3 + step_x
        assert top + 5 - 1e-9 <= by1 < top + 5 + step_y


def test_without_outlines_all_else_is_the_same(run):
    mask = np.random.default_rng(8).normal(0, 2, (40, 50))
    wanted = run(mask=mask).regions
    unwanted = run(mask=mask, want_outlines=False).regions
    assert len(wanted) > 5
    for one, other in zip(wanted, unwanted, strict=True):
        assert other.outline == ()
        assert {**vars(one), "outline": ()} == vars(other)


def test_result_holds_plain_python_numbers(run):
    (region,) = run(mask=on("##")).regions
    assert all(type(value) is int for value in region.box)
    assert all(type(value) is float for point in (*region.outline, region.peak, region.centroid) for value in point)
    assert type(region.area_px) is type(region.probability) is type(region.mean_probability) is float
    assert region.area_mm2 is None
    assert region.side is None


def test_inputs_may_be_read_only_and_stay_as_they_are():
    rng = np.random.default_rng(9)
    patch, mask = f32(rng.normal(size=(4, 4))), f32(rng.normal(size=(20, 30)))
    before = patch.copy(), mask.copy()
    patch.flags.writeable = mask.flags.writeable = False
    run_on_cpu(patch, mask, method="top_k", k=3, source="mask")
    mask_probability(mask)
    np.testing.assert_array_equal(patch, before[0])
    np.testing.assert_array_equal(mask, before[1])


# ---- mask_probability --------------------------------------------------------------------------------------


def test_mask_probability_is_the_sigmoid():
    logits = f32(np.concatenate([np.linspace(-87, 87, 40001), np.random.default_rng(10).normal(0, 4, 9998)]))
    logits = logits[None]
    got = mask_probability(logits)
    exact = 1 / (1 + np.exp(-logits.astype(np.longdouble)))
    assert got.dtype == np.float32
    assert got.shape == logits.shape
    assert np.max(np.abs(got / exact - 1)) < 5e-7
    assert np.all(np.diff(got[0, :40001]) >= 0)


def test_mask_probability_of_special_values():
    logits = f32([[0.0, -0.0, 100.0, -100.0, 3e38, -3e38, np.inf, -np.inf, np.nan]])
    got = mask_probability(logits)[0]
    np.testing.assert_array_equal(got[:3], [0.5, 0.5, 1.0])
    assert 0 <= got[3] < 2e-38
    np.testing.assert_array_equal(got[[4, 6]], [1.0, 1.0])
    assert np.all(got[[5, 7]] < 2e-38)
    assert np.isnan(got[8])


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (7, 9), (64, 65)])
def test_mask_probability_keeps_the_shape(shape):
    logits = f32(np.random.default_rng(11).normal(0, 3, shape))
    np.testing.assert_allclose(mask_probability(logits), 1 / (1 + np.exp(-logits.astype(float))), rtol=5e-7)


# ---- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [(0, 0), (16, 18), (8, 11), (3, 0)])
@pytest.mark.requirement("R-SCORE-4")
def test_not_finite_is_an_error_wherever_it_stands(run, bad, where):
    geometry = Geometry.fit((40, 21), (17, 19))  # columns 5 to 13 are content
    clean = np.zeros((17, 19), np.float32)
    broken = clean.copy()
    broken[where] = bad
    with pytest.raises(BackendError, match="mask logits hold NaN or infinity") as caught:
        run(mask=broken, geometry=geometry)
    assert caught.value.code == "backend.not_finite"
    with pytest.raises(BackendError, match="patch logits hold NaN or infinity") as caught:
        run(broken, clean, geometry=geometry, source="mask")
    assert caught.value.code == "backend.not_finite"


@pytest.mark.parametrize("argument", ["patch_logits", "mask_logits"])
@pytest.mark.parametrize(
    ("array", "error", "text"),
    [
        (np.zeros((4, 4)), TypeError, "must be native float32, not float64"),
        (np.zeros((4, 4), np.float16), TypeError, "must be native float32, not float16"),
        (np.zeros((4, 4), np.int32), TypeError, "must be native float32, not int32"),
        (np.zeros((4, 4), np.dtype(np.float32).newbyteorder()), TypeError, "must be native float32"),
        ([[0.0]], TypeError, "must be a numpy array, not list"),
        (None, TypeError, "must be a numpy array, not NoneType"),
        (np.zeros(16, np.float32), ValueError, r"two dimensions and no empty one, not shape \(16,\)"),
        (np.zeros((1, 4, 4), np.float32), ValueError, "two dimensions"),
        (np.zeros((0, 4), np.float32), ValueError, "no empty one"),
        (np.zeros((4, 8), np.float32)[:, ::2], ValueError, "must be C-contiguous"),
        (np.zeros((4, 4), np.float32, order="F"), ValueError, "must be C-contiguous"),
    ],
)
def test_contract_of_the_arrays(argument, array, error, text):
    arrays = {"patch_logits": np.zeros((4, 4), np.float32), "mask_logits": np.zeros((4, 4), np.float32)}
    arrays[argument] = array
    with pytest.raises(error, match=f"^{argument} .*{text}"):
        aggregate(**arrays, geometry=identity((4, 4)), method="max", high=0.5, low=0.5, min_area=1)
    if argument == "mask_logits":
        with pytest.raises(error, match=f"^{argument} .*{text}"):
            mask_probability(array)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"geometry": identity((4, 5))}, r"shape \(4, 4\), the geometry's target is \(4, 5\)"),
        ({"geometry": Geometry((4, 4), (4, 4), (0, 0, 5, 4))}, "content is empty or leaves the mask"),
        ({"geometry": Geometry((4, 4), (4, 4), (-1, 0, 4, 4))}, "content is empty or leaves the mask"),
        ({"geometry": Geometry((4, 4), (4, 4), (2, 0, 2, 4))}, "content is empty or leaves the mask"),
        ({"geometry": Geometry((0, 4), (4, 4), (0, 0, 4, 4))}, "source has an impossible size"),
        ({"method": "mean"}, "method 'mean' is not one of noisy_or, paper_098, top_k, max"),
        ({"source": "image"}, "source 'image' is not one of patch, mask"),
        ({"k": 0}, "k must be at least 1"),
        ({"min_area": -1}, "min_area must not be negative"),
        ({"low": 0.6}, "0 < low <= high < 1"),
        ({"low": 0.0}, "0 < low <= high < 1"),
        ({"high": 1.0}, "0 < low <= high < 1"),
        ({"high": math.nan}, "0 < low <= high < 1"),
        ({"low": math.nan}, "0 < low <= high < 1"),
        ({"columns_toward": "L"}, "columns_toward is 'L', not 'left', 'right' or None"),
        ({"pixel_spacing": (0.1, 0.0)}, r"pixel_spacing \(0.1, 0.0\) is not positive"),
        ({"pixel_spacing": (math.nan, 0.1)}, "is not positive"),
    ],
)
def test_contract_of_the_options(options, text):
    with pytest.raises(ValueError, match=text):
        run_on_cpu(mask=np.zeros((4, 4)), **options)


@pytest.mark.parametrize("options", [{"k": 1.5}, {"min_area": "3"}, {"high": "0.5"}, {"method": None}])
def test_options_of_another_type(options):
    with pytest.raises(TypeError):
        run_on_cpu(mask=np.zeros((4, 4)), **options)


def test_other_threads_run_meanwhile():
    mask = f32(np.where(np.indices((1500, 1500)).sum(0) % 2, 3, -3))
    begun, done, seen = threading.Event(), [False], []

    def work():
        begun.set()
        run_on_cpu(mask=mask, want_outlines=False)
        done[0] = True

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # a thread that holds the GIL now keeps it until it gives it away
    try:
        for _ in range(9):
            begun.clear()
            done[0] = False
            worker = threading.Thread(target=work)
            worker.start()
            begun.wait()
            seen.append(not done[0])
            worker.join()
    finally:
        sys.setswitchinterval(interval)
    assert sum(seen) >= 5  # the first may be seen anyway, as the interval changes; nine when all is well


def test_logits_that_are_not_aligned_are_refused():
    raw = np.zeros(8 * 8 * 4 + 1, np.uint8)
    askew = raw[1:].view(np.float32).reshape(8, 8)
    whole = np.zeros((8, 8), np.float32)
    geometry = Geometry.fit((80, 80), (8, 8))
    for patch, mask in ((askew, whole), (whole, askew)):
        with pytest.raises(ValueError, match="aligned"):
            aggregate(patch, mask, geometry=geometry, method="max", high=0.5, low=0.5, min_area=0)
    with pytest.raises(ValueError, match="aligned"):
        mask_probability(askew)
