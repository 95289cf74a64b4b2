"""The GPU pipeline on a pretended GPU, its kernels played on the host: it must give what the CPU pipeline gives."""

from __future__ import annotations

import dataclasses
import gc
import threading
import time
from unittest.mock import Mock

import numpy as np
import played_cuda
import pytest
from made import make_chest
from pretend_gpu import PretendBackend, PretendCuda, PretendGpu

from ptxsdk import Detector, Engine, GatePolicy, Radiograph, backends
from ptxsdk.backends import film_graph
from ptxsdk.backends.openvino import load as load_openvino
from ptxsdk.device_array import DeviceArray
from ptxsdk.errors import BackendError, DetectorError, InputError, OutOfScope
from ptxsdk.ops import device
from ptxsdk.radiograph import Display, LookupTable

FILM = make_chest(blob=(240, 160, 60))


class Setting:
    def __init__(self, engine, monkeypatch):
        self.engine = Engine.open(engine)
        self.gpu = PretendGpu()
        self.cuda = PretendCuda(played_cuda.module(), self.gpu)
        self.backends = []
        self.released = threading.Event()
        self.released.set()
        for module in (device, film_graph):
            monkeypatch.setattr(module, "cuda_module", lambda: self.cuda)
        monkeypatch.setattr(backends, "load", self.load)

    def load(self, engine, *, device, threads, **options):
        if device == "cpu":
            return load_openvino(engine, precision="auto", threads=threads)
        self.backends.append(PretendBackend(self.gpu, engine))
        close = self.backends[-1].close
        self.backends[-1].close = lambda: (self.released.wait(30), close())
        return self.backends[-1]

    def detector(self, **options):
        return Detector(self.engine, **({"device": "cuda"} | options))


@pytest.fixture
def setting(tiny_engine, monkeypatch):
    return Setting(tiny_engine, monkeypatch)


@pytest.fixture
def on_cpu(tiny_engine):
    with Detector(tiny_engine, device="cpu") as detector:
        yield detector


def same(found, expected):
    assert found.probability == pytest.approx(expected.probability, abs=1e-5)
    assert found.flagged == expected.flagged
    assert found.geometry == expected.geometry
    assert len(found.regions) == len(expected.regions)
    for one, other in zip(found.regions, expected.regions, strict=True):
        assert one.outline == other.outline
        # Not the peak: of pixels that are equal but for rounding either may be it.
        assert (one.box, one.side, one.area_px) == (other.box, other.side, other.area_px)
        assert one.probability == pytest.approx(other.probability, abs=1e-5)
        assert one.mean_probability == pytest.approx(other.mean_probability, abs=1e-5)
    assert [check.status for check in found.quality.checks] == [check.status for check in expected.quality.checks]
    if expected.mask_logits is not None:
        np.testing.assert_allclose(found.mask_logits, expected.mask_logits, atol=1e-3)


def films():
    wide = FILM.astype(np.uint16) * 200
    return {
        "u8": FILM,
        "odd pitch": Radiograph.from_array(wide[:, :457], window=(0, 51000)),
        "inverted": Radiograph.from_array((51000 - wide).astype(np.uint16), window=(0, 51000), invert=True),
        "i16": Radiograph.from_array((wide.astype(np.int32) - 25000).astype(np.int16), window=(-25000, 26000)),
        "float": (FILM / 255).astype(np.float32),
        "transposed": Radiograph.from_array(np.ascontiguousarray(wide.T).T, window=(0, 51000)),
        "table": Radiograph(pixels=FILM, display=Display(voi=LookupTable(np.linspace(0, 1, 256))), origin="array"),
        "small": make_chest((300, 310), blob=(100, 90, 30)),
        "large": make_chest((2100, 1700), blob=(800, 500, 200)),
    }


@pytest.mark.parametrize("integrated", [False, True])
def test_every_film_through_one_graph(setting, on_cpu, integrated):
    setting.gpu.integrated = integrated
    with setting.detector() as detector:
        for film in [*films().values(), *films().values()]:
            found = detector.predict(film)
            same(found, on_cpu.predict(film))
            assert (found.backend, found.device) == ("tensorrt", "cuda:0")
        assert setting.cuda.bytes_up == 0 if integrated else setting.cuda.bytes_up > 0
    assert setting.gpu.depth == 0


def test_triage_fetches_no_map(setting, on_cpu, tiny_engine):
    with (
        setting.detector(profile="triage") as detector,
        Detector(tiny_engine, device="cpu", profile="triage") as expected,
    ):
        detector.predict(FILM)
        before = setting.cuda.bytes_copied
        same(detector.predict(FILM), expected.predict(FILM))
        triage = setting.cuda.bytes_copied - before
    with setting.detector() as detector:
        detector.predict(FILM)
        before = setting.cuda.bytes_copied
        detector.predict(FILM)
        assert setting.cuda.bytes_copied - before == triage + 64 * 64 * 4 + 8 * 8 * 4


def test_a_refused_film_has_no_score(setting):
    with setting.detector() as detector:
        for film, code in ((255 - FILM, "gate.polarity"), (np.full((600, 600), 90, np.uint8), "gate.constant")):
            with pytest.raises(OutOfScope) as raised:
                detector.predict(film)
            assert code in [failed[0] for failed in raised.value.failed]
        assert detector.predict(FILM).flagged


def test_broken_pixels(setting):
    broken = (FILM / 255).astype(np.float32)
    broken[30, 40] = np.nan
    film = Radiograph.from_array(broken, window=(0, 1))
    with setting.detector() as detector:
        with pytest.raises(InputError) as raised:
            detector.predict(film)
        assert raised.value.code == "input.not_finite"
        assert detector.predict(FILM).flagged


def test_a_very_wide_film_takes_a_graph_of_its_own(setting, on_cpu):
    policy = GatePolicy(minimum_side=16, maximum_aspect=100)
    with setting.detector(gate_policy=policy) as detector:
        first = detector._pipeline._memory.graph
        film = make_chest((300, 4000), blob=(100, 900, 60))
        with Detector(setting.engine, device="cpu", gate_policy=policy) as expected:
            same(detector.predict(film), expected.predict(film))
        assert detector._pipeline._memory.graph is not first
        detector.predict(FILM)


def test_a_graph_that_cannot_be_taken_anew_leaves_the_old_one(setting, on_cpu, monkeypatch):
    policy = GatePolicy(minimum_side=16, maximum_aspect=100, enforce=False)
    with setting.detector(gate_policy=policy) as detector:
        captured = setting.gpu.captured

        def refuse(stream, record):
            raise RuntimeError("out of memory (cudaErrorMemoryAllocation)")

        film = make_chest((300, 4000), blob=(100, 900, 60))
        monkeypatch.setattr(setting.gpu, "captured", refuse)
        for _ in range(2):
            with pytest.raises(BackendError) as raised:
                detector.predict(film)
            assert raised.value.code == "backend.out_of_memory"
        same(detector.predict(FILM), on_cpu.predict(FILM))
        monkeypatch.setattr(setting.gpu, "captured", captured)
        with Detector(setting.engine, device="cpu", gate_policy=policy) as expected:
            same(detector.predict(film), expected.predict(film))


def test_a_closed_stream_is_not_the_default_stream(setting):
    with setting.detector() as detector:
        detector._pipeline._memory.stream.close()
        with pytest.raises(BackendError, match="stream was closed"):
            detector.predict(FILM)


def test_a_film_too_long_for_the_kernels(setting):
    film = Radiograph.from_array(np.zeros((64, 40000), np.uint8))
    with setting.detector(gate_policy=GatePolicy(minimum_side=16, maximum_aspect=1e6, enforce=False)) as detector:
        with pytest.raises(InputError) as raised:
            detector.predict(film)
        assert raised.value.code == "input.too_large"


def on_device(pixels, device_index=0):
    return DeviceArray(
        address=pixels.ctypes.data, shape=pixels.shape, strides=pixels.strides, dtype=pixels.dtype,
        device=device_index, owner=device_memory(pixels),
    )  # fmt: skip


def device_memory(pixels):
    from ptxsdk.device_array import _Finished

    return _Finished(pixels)


def test_a_film_on_the_device_is_used_in_place(setting, on_cpu):
    with setting.detector() as detector:
        up = setting.cuda.bytes_up
        same(detector.predict(on_device(FILM)), on_cpu.predict(FILM))
        wide = np.pad(FILM.astype(np.uint16) * 200, ((0, 0), (3, 2)))[:, 3:-2]
        film = Radiograph.from_array(on_device(wide), window=(0, 51000))
        same(detector.predict(film), on_cpu.predict(Radiograph.from_array(wide, window=(0, 51000))))
        assert setting.cuda.bytes_up == up


class Unfinished:
    """An array that its producer still works on; says on which threads and for which streams it was asked for."""

    def __init__(self, setting, monkeypatch):
        self.asked = []
        of = DeviceArray.of

        def look(value, *, stream=None):
            if value is not self and not (isinstance(value, DeviceArray) and value.owner is self):
                return of(value, stream=stream)
            if stream is not None:
                self.asked.append((threading.current_thread(), stream))
            return dataclasses.replace(on_device(FILM), owner=self)

        monkeypatch.setattr(DeviceArray, "of", look)
        monkeypatch.setattr("ptxsdk.backends.cuda.Gpu.open", lambda index: setting.gpu)

    def __dlpack_device__(self):
        return (2, 0)


@pytest.mark.parametrize("how", ["timeout", "batch", "radiograph"])
def test_another_thread_gets_an_array_that_is_finished(setting, on_cpu, how, monkeypatch):
    """Exporters order after the stream that is current on the thread that asks: it must be the caller's."""
    array = Unfinished(setting, monkeypatch)
    with setting.detector() as detector:
        if how == "batch":
            found = detector.predict_batch([array] * 3)
        else:
            film = Radiograph.from_array(array, window=(0, 255)) if how == "radiograph" else array
            found = [detector.predict(film, timeout=60)]
        for one in found:
            same(one, on_cpu.predict(FILM))
        assert {thread for thread, _ in array.asked} == {threading.current_thread()}
        assert len(array.asked) == len(found)
        setting.gpu.hangs = True
        with pytest.raises(DetectorError) as raised:
            detector.predict(array, timeout=0.1)
        assert raised.value.code == "detector.timeout"
        [error] = detector.predict_batch([array], errors="return")
        assert error.code == "backend.lost"
        setting.gpu.hangs = False
        detector.predict(array)
        assert len(array.asked) == len(found) + 3


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"device": 1}, "input.device"),
        ({"dtype": np.dtype(np.int32)}, "input.dtype"),
        ({"dtype": np.dtype(np.uint16)}, "input.range"),  # no window
        ({"shape": (3, 64, 64), "strides": (4096, 64, 1)}, "input.shape"),
        ({"strides": (1120, 2)}, "input.layout"),
    ],
)
def test_device_arrays_that_cannot_be_used(setting, change, code):
    with setting.detector() as detector:
        with pytest.raises(InputError) as raised:
            detector.predict(dataclasses.replace(on_device(FILM), **change))
        assert raised.value.code == code
        assert detector.predict(FILM).flagged


def test_a_device_array_on_a_detector_of_the_cpu(on_cpu):
    with pytest.raises(InputError) as raised:
        on_cpu.predict(on_device(FILM))
    assert raised.value.code == "input.device"


class Foreign:
    """An exporter that refuses."""

    @property
    def __cuda_array_interface__(self):
        return {"shape": (4, 4)}


def test_an_array_that_cannot_be_exported(on_cpu):
    with pytest.raises(InputError) as raised:
        on_cpu.predict(Foreign())
    assert raised.value.code == "input.type"


def fail(setting, how):
    if how == "hangs":
        setting.cuda.hangs = True
    else:
        setting.cuda.fails = how


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("hangs", "backend.lost"),
        ("upload: unspecified launch failure (cudaErrorLaunchFailure)", "backend.failed"),
    ],
)
def test_a_lost_device(setting, on_cpu, how, code, caplog):
    """By name it is an error and the detector stays usable; under auto the CPU goes on, and the Detection says so."""
    with setting.detector() as detector:
        detector.predict(FILM)
        fail(setting, how)
        for _ in range(2):
            with pytest.raises(BackendError) as raised:
                detector.predict(FILM)
            assert raised.value.code == code
        setting.cuda.hangs, setting.cuda.fails = False, None
        same(detector.predict(FILM), on_cpu.predict(FILM))
    with setting.detector(device="auto") as detector:
        assert detector.predict(FILM).device == "cuda:0"
        fail(setting, how)
        setting.released = threading.Event()  # until here the device hangs in being released too
        for _ in range(2):
            found = detector.predict(FILM)
            same(found, on_cpu.predict(FILM))
            assert (found.backend, found.device) == ("openvino", "cpu")
            assert found.quality.warnings[-1] == f"device.fallback: cuda:0 failed [{code}], scored on the cpu"
        assert not setting.backends[-1].closed
        setting.released.set()
        deadline = time.monotonic() + (0.2 if how == "hangs" else 10)
        while not setting.backends[-1].closed and time.monotonic() < deadline:
            time.sleep(0.01)
        assert setting.backends[-1].closed == (how != "hangs")  # releasing what hangs may hang as well
        assert "going on on the CPU" in caplog.text


def test_a_full_device_costs_the_film_and_not_the_device(setting, on_cpu):
    with setting.detector(device="auto") as detector:
        for _ in range(2):
            fail(setting, "copy: out of memory (cudaErrorMemoryAllocation)")
            for _ in range(2):
                found = detector.predict(FILM)
                same(found, on_cpu.predict(FILM))
                assert (found.backend, found.device) == ("openvino", "cpu")
                warning = "device.fallback: cuda:0 failed [backend.out_of_memory], scored on the cpu"
                assert found.quality.warnings[-1] == warning
            setting.cuda.fails = None
            found = detector.predict(FILM)
            same(found, on_cpu.predict(FILM))
            assert found.device == "cuda:0"
            assert not any("fallback" in warning for warning in found.quality.warnings)
        full = BackendError("backend.out_of_memory", "no memory")
        detector._pipeline.run = Mock(side_effect=full)
        with pytest.raises(BackendError) as raised:  # the CPU cannot read it
            detector.predict(on_device(FILM))
        assert raised.value.code == "backend.out_of_memory"
        assert detector._reserve
    assert detector._reserve is None
    assert setting.backends[-1].closed


def test_a_crew_that_finds_no_memory_is_the_cpus_and_predict_stays_on_the_gpu(setting, on_cpu, monkeypatch):
    def full(self):
        raise BackendError("backend.out_of_memory", "no memory")

    monkeypatch.setattr(PretendBackend, "crew", full)
    with setting.detector(device="auto") as detector:
        for found in detector.predict_batch([FILM] * 3):
            same(found, on_cpu.predict(FILM))
            assert found.device == "cpu"
            assert "device.fallback" in found.quality.warnings[-1]
        found = detector.predict(FILM)
        assert found.device == "cuda:0"
        assert not any("fallback" in warning for warning in found.quality.warnings)


def test_a_network_that_cannot_be_captured_runs_stage_by_stage(setting, on_cpu, caplog, monkeypatch):
    monkeypatch.setattr(PretendBackend, "launch", lambda self, stream: False)
    with setting.detector() as detector:
        same(detector.predict(FILM), on_cpu.predict(FILM))
    assert "stay on the CPU" in caplog.text


def test_clones_and_batches(setting, on_cpu):
    with setting.detector() as detector:
        expected = on_cpu.predict(FILM)
        with detector.clone() as twin:
            same(twin.predict(FILM), expected)
        same(detector.predict(FILM), expected)


def test_all_is_freed_while_the_device_is_current(setting):
    detector = setting.detector()
    detector.predict(FILM)
    before = len(setting.gpu.freed)
    pipeline = detector._pipeline
    detector.close()
    gc.collect()
    assert len(setting.gpu.freed) - before >= 7  # three pairs and the scratch memory
    assert all(current for _, current in setting.gpu.freed)
    with pytest.raises(BackendError, match="closed"):
        pipeline.run(FILM, Display(voi=LookupTable(np.zeros(1))))


def test_more_regions_than_come_back(setting, on_cpu):
    film = make_chest()
    for y in range(0, 620, 60):
        for x in range(0, 540, 60):
            film[y : y + 20, x : x + 20] = 255  # 2 x 2 pixels of the map
    policy = GatePolicy(enforce=False)  # this is no chest
    with (
        setting.detector(gate_policy=policy) as detector,
        Detector(setting.engine, device="cpu", gate_policy=policy) as expected,
    ):
        found = detector.predict(film)
        assert len(found.regions) > 16
        same(found, expected.predict(film))


# --- on a real GPU ---


@pytest.fixture
def gpu_detector(tmp_path, monkeypatch):
    usable, reason = backends.probe("tensorrt")
    if not usable:
        pytest.skip(reason)
    monkeypatch.setenv("PTXSDK_CACHE", str(tmp_path))
    with Detector(device="cuda", precision="fp32") as detector:
        assert isinstance(detector._pipeline, film_graph.FilmGraph)
        yield detector


@pytest.mark.gpu
@pytest.mark.parametrize("profile", ["cade", "triage"])
def test_the_shipped_engine_finds_on_a_gpu_what_it_finds_on_a_cpu(gpu_detector, profile):
    golden = gpu_detector.engine.golden()
    with Detector(device="cpu", precision="fp32", profile=profile) as expected:
        for film in golden:
            shown = Radiograph.from_array(film.pixels, window=film.window)
            found, wanted = gpu_detector.predict(shown), expected.predict(shown)
            assert found.probability == pytest.approx(wanted.probability, abs=2e-3)
            if profile == "cade":
                assert len(found.regions) == len(wanted.regions)


@pytest.mark.gpu
@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_arrays_of_other_libraries_are_used_in_place(gpu_detector, library):
    arrays = pytest.importorskip(library)
    film = gpu_detector.engine.golden()[0]
    host = np.ascontiguousarray(film.pixels)
    moved = arrays.from_numpy(host.copy()).cuda() if library == "torch" else arrays.asarray(host)
    window = film.window
    found = gpu_detector.predict(Radiograph.from_array(moved, window=window))
    assert found.probability == gpu_detector.predict(Radiograph.from_array(host, window=window)).probability


@pytest.mark.gpu
def test_a_device_that_is_not_there(gpu_detector):
    with pytest.raises(BackendError) as raised:
        Detector(device="cuda:999")
    assert raised.value.code == "backend.unavailable"


@pytest.mark.gpu
def test_a_stream_that_was_destroyed(gpu_detector):
    film = gpu_detector.engine.golden()[0]
    shown = Radiograph.from_array(film.pixels, window=film.window)
    twin = gpu_detector.clone()
    twin._pipeline._memory.stream.close()
    with pytest.raises(BackendError):
        twin.predict(shown)
    assert gpu_detector.predict(shown).probability >= 0
