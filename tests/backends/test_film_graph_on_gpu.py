"""The one-graph pipeline on a real GPU, around a small network in PyTorch: TensorRT is not needed."""

from __future__ import annotations

import ctypes
import importlib
import threading

import numpy as np
import pytest
import stand_in
from made import GRID, SIZE, make_chest

from ptxsdk import Detector, Engine, Radiograph, backends, readers
from ptxsdk.backends import film_graph
from ptxsdk.backends.cuda import Gpu
from ptxsdk.backends.film_graph import FilmGraph
from ptxsdk.device_array import DeviceArray, _Finished
from ptxsdk.errors import BackendError, InputError, OutOfScope
from ptxsdk.ops import aggregate, preprocess
from ptxsdk.ops.device import DeviceOps, cuda_module
from ptxsdk.radiograph import Display, LookupTable, Window

pytestmark = pytest.mark.gpu

FILM = make_chest(blob=(240, 160, 60))
WIDE = FILM.astype(np.uint16) * 200
SPIN = 10**8  # clocks of a kernel that does nothing: 50 ms at 2 GHz, 0.3 s on an idle device


@pytest.fixture
def gpu():
    try:
        cuda_module()
        return Gpu.open(0)
    except BackendError as error:
        pytest.skip(error.message)


@pytest.fixture
def load(gpu, tiny_engine, monkeypatch):
    """Make detectors on the GPU, and on the CPU with ONNX Runtime, of the small engine."""
    missing = stand_in.why_not()
    if missing is not None:
        pytest.skip(missing)

    def backend(engine, *, device, **options):
        if device != "cpu":
            return stand_in.TorchBackend(gpu, engine)
        onnxruntime = importlib.import_module("ptxsdk.backends.onnxruntime")
        return onnxruntime.load(engine, precision="fp32", threads=1)

    monkeypatch.setattr(backends, "load", backend)
    monkeypatch.setattr(readers, "load", lambda: None)  # codecs: films here are arrays
    engine = Engine.open(tiny_engine)
    made = []

    def load(device="cuda", **options):
        made.append(Detector(engine, device=device, **options))
        assert isinstance(made[-1]._pipeline, FilmGraph) == (device == "cuda")
        return made[-1]

    yield load
    for detector in made:
        detector.close()


def films():
    return {
        "u8": FILM,
        "odd pitch": Radiograph.from_array(WIDE[:, :457], window=(0, 51000)),
        "inverted": Radiograph.from_array((51000 - WIDE).astype(np.uint16), window=(0, 51000), invert=True),
        "i16": Radiograph.from_array((WIDE.astype(np.int32) - 25000).astype(np.int16), window=(-25000, 26000)),
        "float": Radiograph.from_array((FILM / 255).astype(np.float32), window=(0, 1)),
        "transposed": Radiograph.from_array(np.ascontiguousarray(WIDE.T).T, window=(0, 51000)),
        "table": Radiograph(pixels=FILM, display=Display(voi=LookupTable(np.linspace(0, 1, 256))), origin="array"),
        "small": make_chest((300, 310), blob=(100, 90, 30)),
        "large": make_chest((2100, 1700), blob=(800, 500, 200)),
    }


def same(found, expected):
    assert found.probability == pytest.approx(expected.probability, abs=1e-5)
    assert found.flagged == expected.flagged
    assert found.geometry == expected.geometry
    assert len(found.regions) == len(expected.regions)
    for one, other in zip(found.regions, expected.regions, strict=True):
        assert (one.box, one.side, one.area_px, one.outline) == (other.box, other.side, other.area_px, other.outline)
        assert one.mean_probability == pytest.approx(other.mean_probability, abs=1e-5)
    assert [check.status for check in found.quality.checks] == [check.status for check in expected.quality.checks]
    if expected.mask_logits is not None:
        np.testing.assert_allclose(found.mask_logits, expected.mask_logits, atol=1e-3)


def bits(found):
    return found.probability, found.regions, None if found.mask_logits is None else found.mask_logits.tobytes()


@pytest.mark.parametrize("name", films())
def test_every_kind_of_film_equals_the_cpu(load, name):
    film = films()[name]
    found = load().predict(film)
    same(found, load("cpu").predict(film))
    assert (found.backend, found.device) == ("tensorrt", "cuda:0")


def test_one_graph_serves_all_films_in_any_order(load):
    """A film leaves nothing behind for the next; the same film gives the same bits."""
    detector = load()
    every = list(films().values())
    first = [bits(detector.predict(film)) for film in every]
    assert len({logits for *_, logits in first}) >= 5
    for index in np.random.default_rng(0).integers(0, len(every), 300):
        assert bits(detector.predict(every[index])) == first[index]


def test_triage_shows_no_location(load):
    found, expected = load(profile="triage").predict(FILM), load("cpu", profile="triage").predict(FILM)
    same(found, expected)
    assert found.regions == ()


def test_films_that_are_refused_do_no_harm(load):
    detector = load()
    broken = (FILM / 255).astype(np.float32)
    broken[300, 400] = np.nan
    with pytest.raises(InputError) as raised:
        detector.predict(Radiograph.from_array(broken, window=(0, 1)))
    assert raised.value.code == "input.not_finite"
    with pytest.raises(OutOfScope):
        detector.predict(np.full((600, 600), 90, np.uint8))
    assert detector.predict(FILM).flagged


class Plain:
    """A tensor of the film graph's without PyTorch."""

    def __init__(self, gpu, stream, shape):
        size = 4 * int(np.prod(shape))
        self.device, self.pinned = gpu.allocate(size, stream=stream), gpu.pinned(size)
        block = (ctypes.c_uint8 * size).from_address(int(self.pinned.handle))
        self.host = np.ctypeslib.as_array(block).view(np.float32).reshape(shape)


def test_a_graph_around_a_copy(gpu, tiny_engine, monkeypatch):
    """The network only copies, so that sanitizers see no kernel but ours: logits are what preprocess makes."""
    monkeypatch.setattr(film_graph, "PATIENCE", 30.0)  # sanitizers are slow
    engine, cuda = Engine.open(tiny_engine), cuda_module()
    with gpu.current():
        stream = gpu.stream()
        image, patch, mask = (
            Plain(gpu, stream, shape) for shape in ((1, 1, SIZE, SIZE), (1, GRID, GRID), (1, SIZE, SIZE))
        )

    def network(stream):
        for output in (patch, mask):
            source = int(image.device.handle) + 4 * SIZE * (SIZE // 2) * (output is patch)
            cuda.copy(to=int(output.device.handle), source=source, size=output.host.nbytes, stream=stream)
        return True

    graph = FilmGraph(
        gpu, stream, network=network, image=image, patch=patch, mask=mask, engine=engine, locate=True
    )  # fmt: skip
    contract = engine.manifest.input
    for dtype in (np.uint8, np.uint16, np.int16, np.float32):
        pixels = make_chest((131, 117), blob=(60, 40, 20)).astype(dtype)
        display = Display(voi=Window.from_range(0, 255))
        tensor, geometry = preprocess(
            pixels, display=display, size=(SIZE, SIZE), mean=contract.mean, std=contract.std
        )  # fmt: skip
        run = graph.run(pixels, display)
        found_patch, found_mask = run.logits()
        np.testing.assert_allclose(found_mask, tensor, atol=1e-5)
        np.testing.assert_allclose(found_patch.ravel(), tensor[SIZE // 2], atol=1e-5)
        found = run.aggregate(**engine.manifest.scoring)
        expected = aggregate(found_patch, found_mask, geometry=geometry, **engine.manifest.scoring)
        assert found.logit == pytest.approx(expected.logit, abs=1e-5)
        assert [region.box for region in found.regions] == [region.box for region in expected.regions]
    graph.close()


# --- arrays of other libraries, in place ---


class Torch:
    """Arrays of PyTorch, and work on a stream of its own."""

    def __init__(self):
        self.torch = pytest.importorskip("torch", exc_type=ImportError)
        self.side = self.torch.cuda.Stream()
        self.address = self.side.cuda_stream

    def moved(self, host):
        return self.torch.from_numpy(host.copy()).cuda()

    def ready(self):
        self.torch.cuda.synchronize()

    def on_the_side(self):
        return self.torch.cuda.stream(self.side)

    def write_late(self, film, finished):
        self.torch.cuda._sleep(SPIN)
        film.copy_(finished)

    def writing(self):
        return not self.side.query()


class CuPy:
    def __init__(self):
        self.cupy = pytest.importorskip("cupy", exc_type=ImportError)
        code = 'extern "C" __global__ void spin(long long n) { for (long long t = clock64(); clock64() - t < n;); }'
        self.spin = self.cupy.RawKernel(code, "spin")
        self.spin((1,), (1,), (np.int64(1),))
        self.side = self.cupy.cuda.Stream(non_blocking=True)
        self.address = self.side.ptr

    def moved(self, host):
        return self.cupy.asarray(host)

    def ready(self):
        self.cupy.cuda.Device().synchronize()

    def on_the_side(self):
        return self.side

    def write_late(self, film, finished):
        self.spin((1,), (1,), (np.int64(SPIN),))
        film[...] = finished

    def writing(self):
        return not self.side.done


class Interface:
    """``__cuda_array_interface__`` and nothing else, with the stream that the array is made on."""

    def __init__(self, array, stream):
        self.array, self.stream = array, stream

    @property
    def __cuda_array_interface__(self):
        return {**self.array.__cuda_array_interface__, "version": 3, "stream": self.stream}


@pytest.fixture(params=[Torch, CuPy], ids=["torch", "cupy"])
def library(request, gpu):
    return request.param()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_an_array_is_used_in_place(load, library, dtype):
    host = FILM.astype(dtype)
    moved = library.moved(host)
    library.ready()
    detector = load()
    expected = bits(detector.predict(Radiograph.from_array(host, window=(0, 255))))
    for _ in range(3):
        assert bits(detector.predict(Radiograph.from_array(moved, window=(0, 255)))) == expected
    same(detector.predict(Radiograph.from_array(moved, window=(0, 255))),
         load("cpu").predict(Radiograph.from_array(host, window=(0, 255))))  # fmt: skip


def test_a_part_of_an_array_with_an_odd_pitch(load, library):
    host = np.pad(FILM.astype(np.int16) * 100, ((0, 0), (3, 2)))
    moved = library.moved(host)
    library.ready()
    found = load().predict(Radiograph.from_array(moved[:, 3:-2], window=(0, 25500)))
    same(found, load("cpu").predict(Radiograph.from_array(host[:, 3:-2].copy(), window=(0, 25500))))


@pytest.mark.parametrize("timeout", [None, 20.0], ids=["no limit", "time limit"])
@pytest.mark.parametrize("interface", ["as it is", "__cuda_array_interface__"])
def test_a_film_that_is_still_being_written_is_waited_for(load, library, interface, timeout):
    """The producer's stream holds the film up; what is scored is the finished film, not what lay there before.

    The stream is that of the thread that calls; under a time limit the film is scored on another.
    """
    detector = load()
    expected = bits(detector.predict(FILM))
    before, finished = library.moved(make_chest()), library.moved(FILM)
    library.ready()
    shown = before
    if interface != "as it is":
        shown = Interface(before, library.address)
    film = Radiograph.from_array(shown, window=(0, 255))
    assert bits(detector.predict(film)) != expected
    with library.on_the_side():
        library.write_late(before, finished)
        assert library.writing()
        found = detector.predict(film, timeout=timeout)
    assert bits(found) == expected


def test_another_device_is_refused(load, gpu):
    film = DeviceArray(
        address=1 << 20, shape=FILM.shape, strides=FILM.strides, dtype=FILM.dtype, device=gpu.index + 1,
        owner=_Finished(None),
    )  # fmt: skip
    detector = load()
    with pytest.raises(InputError) as raised:
        detector.predict(Radiograph.from_array(film, window=(0, 255)))
    assert raised.value.code == "input.device"
    assert detector.predict(FILM).flagged


# --- clones, threads, failures ---


def test_two_pipelines_at_once(load):
    every = list(films().values())
    detector = load()
    first = [bits(detector.predict(film)) for film in every]
    wrong = []

    def work(own, seed):
        for index in np.random.default_rng(seed).integers(0, len(every), 100):
            if bits(own.predict(every[index])) != first[index]:
                wrong.append(index)

    with detector.clone() as twin:
        threads = [threading.Thread(target=work, args=(own, seed)) for seed, own in enumerate((detector, twin))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert bits(detector.predict(FILM)) == first[0]


def test_a_batch(load):
    every = list(films().values())
    for found, expected in zip(load().predict_batch(every * 3), load("cpu").predict_batch(every) * 3, strict=True):
        same(found, expected)


def test_a_closed_stream_is_an_error(load):
    detector = load()
    with detector.clone() as twin:
        twin._pipeline._memory.stream.close()
        with pytest.raises(BackendError) as raised:
            twin.predict(FILM)
        assert raised.value.code == "backend.failed"
    assert detector.predict(FILM).flagged


def test_a_closed_pipeline_is_an_error(load):
    detector = load()
    pipeline = detector._pipeline
    pipeline.close()
    with pytest.raises(BackendError, match="closed"):
        pipeline.run(FILM, Display(voi=Window.from_range(0, 255)))


def test_a_full_device_is_an_error_and_no_more(gpu):
    """More films in one batch than their tensors have room for: the memory is asked for before anything is launched."""
    from cuda.bindings import driver

    ops = DeviceOps(gpu)
    display = Display(voi=Window.from_range(0, 255))
    with gpu.current():
        _, _, total = driver.cuMemGetInfo()
        buffer = gpu.allocate(64 * 64, stream=ops._stream)
        ops._cuda.zero(to=int(buffer.handle), size=64 * 64, stream=int(ops._stream.handle))
    film = DeviceArray.on(buffer, (64, 64), np.dtype(np.uint8), gpu.index)
    count = total // (4096 * 4096 * 4) + 2
    with pytest.raises(BackendError) as raised:
        ops.preprocess([film] * count, displays=[display] * count, size=(4096, 4096))
    assert raised.value.code == "backend.out_of_memory"
    tensor, _ = ops.preprocess([film], displays=[display], size=(16, 16))
    assert tensor.shape == (1, 1, 16, 16)


def test_a_device_that_is_not_there(gpu):
    with pytest.raises(BackendError) as raised:
        Gpu.open(999)
    assert raised.value.code == "backend.unavailable"
