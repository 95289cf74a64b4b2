"""The CUDA twins where they are more than their CPU twins: pitches, batches, float16, many regions, wrong arrays."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from ptxsdk.device_array import DeviceArray, is_device_array
from ptxsdk.errors import InputError
from ptxsdk.geometry import Geometry
from ptxsdk.ops import aggregate, device, preprocess
from ptxsdk.radiograph import Display, LookupTable, Window

DISPLAYS = {
    "ramp": Display(voi=Window.from_range(40, 200), invert=True),
    "table": Display(voi=LookupTable(np.linspace(0, 1, 200) ** 2, 30)),
}
SCORING = {"method": "noisy_or", "high": 0.6, "low": 0.4, "min_area": 3}


def film(dtype, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 255, shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("offset", [0, 4, 12])
@pytest.mark.parametrize("extra", [0, 1, 2, 3, 7])
def test_rows_may_begin_anywhere(cuda_twin, dtype, offset, extra):
    """Every phase of alignment, and the columns beside the 16-byte words."""
    base = film(dtype, (37, 61 + extra))
    pixels = base[:, :61]
    moved = cuda_twin.moved(pixels, offset)
    tensor, _ = cuda_twin.ops.preprocess([moved], displays=[DISPLAYS["ramp"]], size=(16, 24))
    expected, _ = preprocess(pixels, display=DISPLAYS["ramp"], size=(16, 24))
    np.testing.assert_allclose(cuda_twin.back(tensor)[0, 0], expected, atol=1e-6)


def test_rows_may_run_upwards(cuda_twin):
    pixels = film(np.uint16, (40, 33))[::-1]
    tensor, _ = cuda_twin.preprocess(pixels, display=DISPLAYS["ramp"], size=(16, 16))
    np.testing.assert_allclose(tensor, preprocess(pixels, display=DISPLAYS["ramp"], size=(16, 16))[0], atol=1e-6)


@pytest.mark.parametrize("shape", [(700, 1300), (1300, 700), (90, 3000)])
def test_targets_wider_than_a_tile(cuda_twin, shape):
    pixels = film(np.uint16, shape)
    tensor, geometry = cuda_twin.preprocess(pixels, display=DISPLAYS["ramp"], size=(384, 384), mean=0.4, std=0.3)
    expected, wanted = preprocess(pixels, display=DISPLAYS["ramp"], size=(384, 384), mean=0.4, std=0.3)
    assert geometry == wanted
    np.testing.assert_allclose(tensor, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((2100, 60), (16, 16)),  # more rows under a target row than are staged at a time
        ((40, 5600), (24, 24)),  # rows so wide that few are
        ((9, 7), (200, 300)),  # pixels larger than a target's
        ((31, 900), (7, 513)),  # a third tile with one column
    ],
)
def test_any_shape_from_any_address(cuda_twin, dtype, shape, size):
    wide = film(dtype, (shape[0], shape[1] + 5))
    tensor, _ = cuda_twin.ops.preprocess(
        [cuda_twin.moved(wide[:, 2:-3])] * 2, displays=[DISPLAYS["ramp"]] * 2, size=size, mean=0.4, std=0.3
    )
    expected, _ = preprocess(wide[:, 2:-3], display=DISPLAYS["ramp"], size=size, mean=0.4, std=0.3)
    for made in cuda_twin.back(tensor):
        np.testing.assert_allclose(made[0], expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
@pytest.mark.parametrize(
    "window", [(99.999, 100.001), (100, 100.0001), (99.5, 101.2), (-3e4, 3.5e4), (-1e9, 1e9), (99, 1e6)]
)
def test_windows_narrow_and_wide(cuda_twin, dtype, window):
    pixels = np.random.default_rng(5).integers(97, 104, (40, 50)).astype(dtype)
    display = Display(voi=Window.from_range(*window))
    tensor, _ = cuda_twin.preprocess(pixels, display=display, size=(40, 50))
    np.testing.assert_allclose(tensor, preprocess(pixels, display=display, size=(40, 50))[0], atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_batch_of_films_of_every_kind(cuda_twin, dtype):
    films = [
        film(np.uint8, (50, 40)),
        film(np.uint16, (90, 31), 1),
        film(np.int16, (20, 70), 2),
        film(np.float32, (33, 47), 3),
    ]
    displays = [DISPLAYS["ramp"], DISPLAYS["table"], DISPLAYS["table"], DISPLAYS["ramp"]]
    moved = [cuda_twin.moved(one) for one in films]
    tensor, geometries = cuda_twin.ops.preprocess(
        moved, displays=displays, size=(32, 40), mean=0.5, std=0.25, dtype=dtype
    )
    assert tensor.shape == (4, 1, 32, 40)
    for made, geometry, pixels, display in zip(cuda_twin.back(tensor), geometries, films, displays, strict=True):
        expected, wanted = preprocess(pixels, display=display, size=(32, 40), mean=0.5, std=0.25, dtype=dtype)
        assert geometry == wanted
        np.testing.assert_allclose(made[0], expected, atol=2e-3 if dtype == np.float16 else 1e-5)


def test_a_stream_of_the_callers(cuda_twin):
    with cuda_twin.gpu.current():
        stream = cuda_twin.gpu.stream()
        ops = device.DeviceOps(cuda_twin.gpu, stream=int(stream.handle))
        assert int(ops._stream.handle) == int(stream.handle)
    pixels = film(np.uint8, (50, 40))
    tensor, _ = ops.preprocess([cuda_twin.moved(pixels)], displays=[DISPLAYS["ramp"]], size=(16, 16))
    expected, _ = preprocess(pixels, display=DISPLAYS["ramp"], size=(16, 16))
    np.testing.assert_allclose(cuda_twin.back(tensor)[0, 0], expected, atol=1e-6)


def test_one_broken_film_of_a_batch_is_an_error(cuda_twin):
    good, bad = film(np.float32, (20, 20)), film(np.float32, (20, 20))
    bad[3, 17] = np.nan
    with pytest.raises(InputError) as raised:
        cuda_twin.ops.preprocess(
            [cuda_twin.moved(good), cuda_twin.moved(bad)], displays=[DISPLAYS["ramp"]] * 2, size=(8, 8)
        )
    assert raised.value.code == "input.not_finite"


def blobs(shape, seed, threshold=1.2):
    smooth = cv2.GaussianBlur(np.random.default_rng(seed).normal(0, 1, shape), (0, 0), 3)
    return np.ascontiguousarray(4 * (smooth / smooth.std() - threshold), np.float32)


def same(found, expected, probability=1e-5):
    assert found.logit == pytest.approx(expected.logit, rel=1e-5, abs=1e-5)
    assert len(found.regions) == len(expected.regions)
    for one, other in zip(found.regions, expected.regions, strict=True):
        assert one.probability == other.probability
        assert one.mean_probability == pytest.approx(other.mean_probability, abs=probability)
        assert dataclasses.replace(one, mean_probability=0) == dataclasses.replace(other, mean_probability=0)


@pytest.mark.parametrize("shape", [(512, 512), (384, 384), (100, 1024), (97, 1000), (1, 33), (300, 5)])
@pytest.mark.parametrize("source", ["patch", "mask"])
def test_maps_of_every_size_equal_the_cpu_twin(cuda_twin, shape, source):
    patch = np.random.default_rng(1).normal(-4, 2, (16, 12)).astype(np.float32)
    mask = blobs(shape, 2)
    geometry = Geometry.fit((1500, 1300), shape)
    options = SCORING | {"source": source, "geometry": geometry, "columns_toward": "left"}
    same(cuda_twin.aggregate(patch, mask, **options), aggregate(patch, mask, **options))


@pytest.mark.parametrize("k", [1, 5, 1000, 10**6])
def test_the_largest_of_a_whole_map(cuda_twin, k):
    mask = np.round(blobs((128, 200), 3), 1)  # many ties
    options = SCORING | {"method": "top_k", "k": k, "source": "mask", "geometry": Geometry.fit((90, 100), (128, 200))}
    patch = np.zeros((2, 2), np.float32)
    assert cuda_twin.aggregate(patch, mask, **options).logit == pytest.approx(
        aggregate(patch, mask, **options).logit, rel=1e-12
    )


def test_a_batch_and_its_repetition(cuda_twin):
    """Maps of one launch do not mix, and a launch leaves nothing behind for the next."""
    patch = np.random.default_rng(4).normal(-3, 2, (5, 8, 8)).astype(np.float32)
    mask = np.stack([blobs((96, 130), seed) for seed in range(5)])
    geometries = [Geometry.fit((1000 + 100 * i, 1200), (96, 130)) for i in range(5)]
    moved = cuda_twin.moved(patch), cuda_twin.moved(mask)
    expected = [aggregate(patch[i], mask[i], geometry=geometry, **SCORING) for i, geometry in enumerate(geometries)]
    first = cuda_twin.ops.aggregate(*moved, geometries=geometries, **SCORING)
    for found, wanted in zip(first, expected, strict=True):
        same(found, wanted)
    assert cuda_twin.ops.aggregate(*moved, geometries=geometries, **SCORING) == first


def test_float16_logits(cuda_twin):
    patch = np.random.default_rng(5).normal(-3, 2, (8, 8)).astype(np.float16)
    mask = blobs((64, 96), 6).astype(np.float16)
    patch[0, :4] = [6e-8, -6e-8, 65504, -65504]
    geometry = Geometry.fit((64, 96), (64, 96))
    found = cuda_twin.aggregate(patch, mask, geometry=geometry, **SCORING)
    same(found, aggregate(patch.astype(np.float32), mask.astype(np.float32), geometry=geometry, **SCORING))


def test_more_regions_than_there_is_room_for(cuda_twin):
    mask = np.full((128, 128), -3, np.float32)
    mask[::2, ::2] = 3
    geometry = Geometry.fit((128, 128), (128, 128))
    options = SCORING | {"min_area": 1, "geometry": geometry}
    patch = np.zeros((2, 2), np.float32)
    found = cuda_twin.aggregate(patch, mask, **options)
    assert len(found.regions) == 64 * 64
    assert found == aggregate(patch, mask, **options)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"dtype": np.dtype(np.float64)}, "input.dtype"),
        ({"dtype": np.dtype(">u2")}, "input.dtype"),
        ({"shape": (20,), "strides": (2,)}, "input.shape"),
        ({"shape": (0, 20)}, "input.shape"),
        ({"strides": (40, 4)}, "input.layout"),
        ({"strides": (41, 2)}, "input.layout"),
        ({"device": 3}, "input.device"),
    ],
)
def test_arrays_that_cannot_be_used_in_place(cuda_twin, change, code):
    moved = dataclasses.replace(cuda_twin.moved(film(np.uint16, (20, 20))), **change)
    with pytest.raises(InputError) as raised:
        cuda_twin.ops.preprocess([moved], displays=[DISPLAYS["ramp"]], size=(8, 8))
    assert raised.value.code == code
    tensor, _ = cuda_twin.preprocess(film(np.uint16, (20, 20)), display=DISPLAYS["ramp"], size=(8, 8))
    assert np.isfinite(tensor).all()  # still usable


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"dtype": np.dtype(np.float64)}, "input.dtype"),
        ({"shape": (16, 16), "strides": (64, 4)}, "input.shape"),
        ({"strides": (2048, 128, 4)}, "input.layout"),
        ({"device": 1}, "input.device"),
    ],
)
def test_logits_that_cannot_be_used_in_place(cuda_twin, change, code):
    patch = cuda_twin.moved(np.zeros((1, 4, 4), np.float32))
    mask = dataclasses.replace(cuda_twin.moved(np.zeros((1, 16, 16), np.float32)), **change)
    with pytest.raises(InputError) as raised:
        cuda_twin.ops.aggregate(patch, mask, geometries=[Geometry.fit((16, 16), (16, 16))], **SCORING)
    assert raised.value.code == code


def test_maps_beyond_shared_memory_are_refused(cuda_twin):
    patch = cuda_twin.moved(np.zeros((1, 4, 4), np.float32))
    mask = cuda_twin.moved(np.zeros((1, 2, 1025), np.float32))
    with pytest.raises(ValueError, match="4096 x 1024"):
        cuda_twin.ops.aggregate(patch, mask, geometries=[Geometry.fit((2, 1025), (2, 1025))], **SCORING)


def test_what_counts_as_a_device_array():
    class Interface:
        @property
        def __cuda_array_interface__(self):
            return {}

    class OnDevice:
        def __dlpack_device__(self):
            return (2, 0)

    class OnHost:
        def __dlpack_device__(self):
            return (1, 0)

    assert is_device_array(Interface())
    assert is_device_array(OnDevice())
    assert not any(map(is_device_array, (OnHost(), np.zeros(3), [1], None, "film.dcm", b"")))


def test_device_arrays_lend_themselves_to_others():
    owner = np.zeros((4, 6), np.uint16)
    lent = DeviceArray(
        address=owner.ctypes.data, shape=(4, 6), strides=owner.strides, dtype=owner.dtype, device=0, owner=owner
    )
    assert lent.__cuda_array_interface__ == {
        "shape": (4, 6), "strides": (12, 2), "typestr": "<u2", "data": (owner.ctypes.data, False), "version": 3,
    }  # fmt: skip
