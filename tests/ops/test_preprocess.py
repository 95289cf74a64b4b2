"""ops.preprocess against the definition in plain loops: every display value, then the area mean."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from ptxsdk import _core
from ptxsdk.errors import InputError
from ptxsdk.geometry import Geometry
from ptxsdk.ops import preprocess, preprocess_into
from ptxsdk.radiograph import Display, LookupTable, Window

TOLERANCE = 1e-5


def area_mean(shown, size):
    """Mean of the display values under each target pixel, pixel by pixel, in float64."""
    geometry = Geometry.fit(shown.shape, size)
    x0, y0, x1, y1 = geometry.content
    height, width = y1 - y0, x1 - x0
    result = np.zeros(size)
    for i in range(height):
        top, bottom = i * shown.shape[0] / height, (i + 1) * shown.shape[0] / height
        for j in range(width):
            left, right = j * shown.shape[1] / width, (j + 1) * shown.shape[1] / width
            total = weight = 0.0
            for row in range(int(top), min(int(np.ceil(bottom)), shown.shape[0])):
                high = min(bottom, row + 1) - max(top, row)
                for column in range(int(left), min(int(np.ceil(right)), shown.shape[1])):
                    wide = min(right, column + 1) - max(left, column)
                    total += high * wide * shown[row, column]
                    weight += high * wide
            result[y0 + i, x0 + j] = total / weight
    return result


def stored(dtype, shape, seed=0):
    rng = np.random.default_rng(seed)
    if dtype == np.float32:
        return rng.normal(100, 60, shape).astype(np.float32)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, endpoint=True).astype(dtype)


SHAPES = [
    ((33, 47), (16, 16)),
    ((211, 102), (64, 48)),
    ((40, 40), (40, 40)),
    ((7, 5), (32, 32)),
    ((1, 1), (8, 8)),
    ((1, 50), (8, 8)),
    ((64, 1), (16, 16)),
    ((30, 61), (61, 30)),
]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize(("shape", "size"), SHAPES)
@pytest.mark.requirement("R-SCORE-1")
def test_linear_window_equals_the_loops(twin, dtype, shape, size):
    pixels = stored(dtype, shape)
    low, high = (20.0, 180.0) if dtype == np.float32 else np.percentile(np.arange(*_span(dtype)), (20, 80))
    display = Display(voi=Window.from_range(low, high))
    tensor, geometry = twin.preprocess(pixels, display=display, size=size)
    assert tensor.dtype == np.float32
    assert geometry == Geometry.fit(shape, size)
    np.testing.assert_allclose(tensor, area_mean(display(pixels), size), atol=TOLERANCE)


def _span(dtype):
    return np.iinfo(dtype).min, np.iinfo(dtype).max + 1


DISPLAYS = {
    "ct-like": Display(voi=Window(40, 400), slope=2.0, intercept=-1024.0),
    "inverted": Display(voi=Window(2048, 4096), invert=True),
    "negative slope": Display(voi=Window(-2000, 3000), slope=-1.5, intercept=100.0),
    "odd width": Display(voi=Window(1000.5, 333)),
    "exact": Display(voi=Window(1000, 333, "LINEAR_EXACT")),
    "sigmoid": Display(voi=Window(2000, 900, "SIGMOID")),
    "sigmoid inverted": Display(voi=Window(-2000, 900, "SIGMOID"), slope=-1.0, invert=True),
    "threshold": Display(voi=Window(1500, 1)),
    "narrow, far": Display(voi=Window(30000.3, 1.9), slope=1.0),
    "narrow, far, exact": Display(voi=Window(-29999.7, 0.37, "LINEAR_EXACT")),
    "outside": Display(voi=Window(-1e7, 10)),
    "enormous": Display(voi=Window(0, 1e9)),
    "modality table": Display(voi=Window(300, 500), modality_lut=LookupTable(np.linspace(0, 700, 4096) ** 1.01, 10)),
    "voi table": Display(voi=LookupTable(np.linspace(0, 1, 1024) ** 2, 100), invert=True),
    "steep": Display(voi=Window(2000, 1000), slope=1e-25),
    "flat": Display(voi=Window(2000, 1000), slope=1e25),
    "largest": Display(voi=Window.from_range(-4e29, 5e29), slope=1e-20),
    "padding": Display(voi=Window(2048, 4096), invert=True, padding=(0, 40)),
}


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
@pytest.mark.parametrize("name", DISPLAYS)
@pytest.mark.requirement("R-SCORE-1")
def test_every_display_transform_equals_the_definition(twin, dtype, name):
    pixels = stored(dtype, (37, 29), seed=3)
    pixels[:20] = np.random.default_rng(5).integers(0, 4096, (20, 29))
    if "far" in name:
        pixels[20:30] = round(DISPLAYS[name].voi.center) + np.random.default_rng(6).integers(-1, 2, (10, 29))
    tensor, _ = twin.preprocess(pixels, display=DISPLAYS[name], size=(24, 24))
    np.testing.assert_allclose(tensor, area_mean(DISPLAYS[name](pixels), (24, 24)), atol=TOLERANCE)


@pytest.mark.parametrize("name", ["ct-like", "inverted", "odd width", "sigmoid", "sigmoid inverted"])
def test_float_sources_equal_the_definition(twin, name):
    pixels = np.random.default_rng(1).uniform(-3000, 5000, (37, 29)).astype(np.float32)
    tensor, _ = twin.preprocess(pixels, display=DISPLAYS[name], size=(24, 24))
    np.testing.assert_allclose(tensor, area_mean(DISPLAYS[name](pixels), (24, 24)), atol=TOLERANCE)


def test_float_sources_keep_their_precision_in_a_narrow_window_far_from_zero(twin):
    pixels = (30000 + np.random.default_rng(1).uniform(-1, 1, (16, 16))).astype(np.float32)
    display = Display(voi=Window(30000.3, 0.8, "LINEAR_EXACT"))
    tensor, _ = twin.preprocess(pixels, display=display, size=(16, 16))
    np.testing.assert_allclose(tensor, display(pixels), atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("isa", _core.usable_isas())
@pytest.mark.requirement("R-SCORE-1")
def test_every_instruction_set_agrees(dtype, isa):
    pixels = stored(dtype, (131, 259), seed=9)
    display = Display(voi=Window(120.0, 100.0))
    target = np.empty((96, 96), np.float32)
    preprocess_into(target, pixels, display=display, isa=isa)
    np.testing.assert_allclose(target, area_mean(display(pixels), (96, 96)), atol=TOLERANCE)


@pytest.mark.parametrize(
    "display",
    [
        Display(voi=Window(1e20, 1, "LINEAR_EXACT")),
        Display(voi=Window(1e30, 1e29), slope=1e-20),
        Display(voi=Window(5, 1)),
    ],
)
def test_a_window_too_extreme_for_float_pixels_is_an_error(twin, display):
    with pytest.raises(InputError) as raised:
        twin.preprocess(np.zeros((20, 20), np.float32), display=display, size=(20, 20))
    assert raised.value.code == "input.unsupported"


def test_a_steep_sigmoid_on_float_pixels(twin):
    pixels = np.random.default_rng(0).uniform(-10, 10, (20, 20)).astype(np.float32)
    display = Display(voi=Window(0, 1e-12, "SIGMOID"))
    tensor, _ = twin.preprocess(pixels, display=display, size=(20, 20))
    np.testing.assert_allclose(tensor, display(pixels), atol=TOLERANCE)


def test_threads_that_cannot_start_are_done_without(tmp_path):
    code = """
import resource, numpy as np
from ptxsdk import Display, Window
from ptxsdk.ops import preprocess_into
pixels, target = np.zeros((2000, 2000), np.uint8), np.empty((512, 512), np.float32)
display = Display(voi=Window(0, 200))
preprocess_into(target, pixels, display=display, threads=1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (40 << 20),) * 2)
preprocess_into(target, pixels, display=display, threads=200)
print(float(target.min()), float(target.max()))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    low, high = (float(value) for value in run.stdout.split())
    assert low == high == pytest.approx(100 / 199, abs=1e-5)


@pytest.mark.requirement("R-SCORE-1")
def test_strides_of_every_kind_read_the_same_film():
    base = stored(np.uint16, (122, 186), seed=2)
    display = Display(voi=Window(30000, 20000))
    unaligned = np.frombuffer(b"\0" + base.tobytes(), np.uint8)[1:].view(np.uint16).reshape(base.shape)
    assert not unaligned.flags.aligned
    views = {
        "every second": base[::2, ::2],
        "backwards": base[::-1, ::-1],
        "transposed": base.T,
        "cropped": base[5:90, 7:100],
        "fortran": np.asfortranarray(base),
        "broadcast": np.broadcast_to(base[:, :1], base.shape),
        "unaligned": unaligned,
    }
    for name, view in views.items():
        expected, _ = preprocess(np.ascontiguousarray(view), display=display, size=(32, 32))
        actual, _ = preprocess(view, display=display, size=(32, 32))
        np.testing.assert_array_equal(actual, expected, err_msg=name)


def test_normalisation_and_padding(twin):
    tensor, geometry = twin.preprocess(
        np.full((10, 5), 255, np.uint8),
        display=Display(voi=Window.from_range(0, 255)),
        size=(8, 8),
        mean=0.5,
        std=0.25,
    )
    x0, y0, x1, y1 = geometry.content
    assert (x0, y0, x1, y1) == (2, 0, 6, 8)
    assert (tensor[:, x0:x1] == 2).all()
    assert (np.delete(tensor, np.s_[x0:x1], axis=1) == -2).all()


def test_half_precision_is_the_rounded_single(twin):
    pixels = stored(np.uint16, (90, 75))
    display = Display(voi=Window(30000, 60000))
    single, _ = twin.preprocess(pixels, display=display, size=(48, 48), mean=0.4, std=1e-3)
    half, _ = twin.preprocess(pixels, display=display, size=(48, 48), mean=0.4, std=1e-3, dtype=np.float16)
    np.testing.assert_array_equal(half, single.astype(np.float16))
    tiny, _ = twin.preprocess(pixels, display=display, size=(48, 48), std=3e4, dtype=np.float16)
    exact, _ = twin.preprocess(pixels, display=display, size=(48, 48), std=3e4)
    np.testing.assert_array_equal(tiny, exact.astype(np.float16))


@pytest.mark.requirement("R-DET-1")
def test_the_number_of_threads_changes_nothing():
    pixels = stored(np.uint16, (1100, 900))
    display = Display(voi=Window(30000, 20000))
    results = [
        preprocess(pixels, display=display, size=(128, 100), threads=threads)[0] for threads in (0, 1, 2, 7, 400)
    ]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_target_may_be_a_view_and_nothing_outside_it_is_touched():
    canvas = np.full((20, 40), 7, np.float32)
    preprocess_into(canvas[2:18, 4:36], stored(np.uint8, (50, 50)), display=Display(voi=Window.from_range(0, 255)))
    assert (canvas[:2] == 7).all()
    assert (canvas[18:] == 7).all()
    assert (canvas[:, :4] == 7).all()
    assert (canvas[:, 36:] == 7).all()
    assert (canvas[2:18, 4:36] <= 1).all()


@pytest.mark.requirement("R-INPUT-1")
def test_uint16_is_never_read_as_eight_bit(twin):
    pixels = np.full((20, 20), 0x0100, np.uint16)  # the low byte is zero
    tensor, _ = twin.preprocess(pixels, display=Display(voi=Window.from_range(0, 65535)), size=(4, 4))
    np.testing.assert_allclose(tensor, 256 / 65535, rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.requirement("R-SCORE-4")
def test_a_pixel_that_is_not_finite_is_an_error(value, function, threads):
    pixels = np.zeros((50, 50), np.float32)
    pixels[49, 49] = value
    with pytest.raises(InputError) as raised:
        preprocess(pixels, display=Display(voi=Window(0, 1, function)), size=(8, 8), threads=threads)
    assert raised.value.code == "input.not_finite"


@pytest.mark.parametrize("dtype", [np.int32, np.float64, ">u2", np.uint32, bool, np.complex64])
def test_other_dtypes_raise_type_error(dtype):
    with pytest.raises(TypeError):
        preprocess(np.zeros((5, 5), dtype), display=Display(voi=Window(0, 1.5)), size=(4, 4))
    with pytest.raises(TypeError):
        preprocess(np.zeros((5, 5), np.uint8), display=Display(voi=Window(0, 2)), size=(4, 4), dtype=dtype)


@pytest.mark.parametrize("shape", [(5,), (5, 5, 1), (0, 5), (5, 0)])
def test_other_shapes_raise_value_error(shape):
    with pytest.raises(ValueError, match="shape"):
        preprocess(np.zeros(shape, np.uint8), display=Display(voi=Window(0, 2)), size=(4, 4))


@pytest.mark.parametrize(("mean", "std"), [(0, 0), (0, -1), (0, np.nan), (np.inf, 1)])
def test_an_impossible_normalisation_raises_value_error(mean, std):
    with pytest.raises(ValueError, match="mean and std"):
        preprocess(np.zeros((5, 5), np.uint8), display=Display(voi=Window(0, 2)), size=(4, 4), mean=mean, std=std)


def test_a_read_only_target_raises_value_error():
    target = np.zeros((4, 4), np.float32)
    target.setflags(write=False)
    with pytest.raises(ValueError, match="read-only"):
        preprocess_into(target, np.zeros((5, 5), np.uint8), display=Display(voi=Window(0, 2)))


def test_other_threads_run_during_the_pass():
    pixels = np.zeros((8000, 8000), np.float32)
    display = Display(voi=Window(0, 1, "SIGMOID"))  # the slow path: long enough to see
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    ticker = threading.Thread(target=tick)
    ticker.start()
    begin = time.perf_counter()
    preprocess(pixels, display=display, size=(64, 64), threads=1)
    end = time.perf_counter()
    stop.set()
    ticker.join()
    assert sum(begin < t < end for t in ticks) > 5
