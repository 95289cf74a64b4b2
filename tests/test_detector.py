"""Detector: the pipeline end to end with a network whose answer can be worked out by hand."""

from __future__ import annotations

import json
import mmap
import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from made import SIZE, make_chest, make_engine, network_output
from pydicom.dataset import Dataset

import ptxsdk
from ptxsdk import BackendError, Detector, DetectorError, EngineError, InputError, OutOfScope, Radiograph
from ptxsdk.ops import preprocess

BLOB = (250, 150, 60)


@pytest.fixture(params=["openvino", "onnxruntime"])
def any_detector(request, tiny_engine):
    with Detector(tiny_engine, backend=request.param) as made:
        yield made


def expected_probability(film):
    radiograph = Radiograph.from_array(film)
    tensor, _ = preprocess(film, display=radiograph.display, size=(SIZE, SIZE), mean=0.5, std=0.5)
    patch, _ = network_output(tensor)
    return 1 / (1 + np.exp(-(float(patch.max()) + 0.5)))


@pytest.mark.requirement("R-SCORE-3")
def test_probability_is_the_calibrated_maximum(any_detector):
    for film in (make_chest(), make_chest(blob=BLOB), make_chest((333, 401), blob=(200, 300, 9))):
        detection = any_detector.predict(film)
        assert detection.probability == pytest.approx(expected_probability(film), abs=1e-3)
        assert detection.flagged == (detection.probability >= 0.5)


@pytest.mark.requirement("R-SCORE-5")
def test_region_lies_on_the_blob_in_source_pixels(any_detector):
    film = Radiograph.from_array(make_chest(blob=BLOB), pixel_spacing=(0.5, 0.25))
    detection = any_detector.predict(film)
    (region,) = detection.regions
    pixel = 10  # one network pixel is 640 / 64 film pixels
    row, column, radius = BLOB
    np.testing.assert_allclose(region.box, (column - radius, row - radius, column + radius, row + radius), atol=pixel)
    np.testing.assert_allclose(region.centroid, (column, row), atol=pixel / 4)
    assert region.area_px == pytest.approx(np.pi * radius**2, rel=0.1)
    assert region.area_mm2 == pytest.approx(region.area_px / 8)
    assert region.side == "right"  # of the patient: the left half of the picture
    assert region.probability > 0.95


@pytest.mark.parametrize(("rows", "side"), [("L", "right"), ("R", "left")])
@pytest.mark.requirement("R-SCORE-5")
def test_side_follows_the_patient_orientation(detector, rows, side):
    film = Radiograph.from_array(make_chest(blob=BLOB), patient_orientation=(rows, "F"))
    detection = detector.predict(film)
    assert detection.regions[0].side == side


@pytest.mark.parametrize("orientation", [("A", "F"), ("P", "F"), ("L", "H"), ("F", "L")])
def test_a_lateral_or_turned_film_by_its_orientation_is_refused(detector, orientation):
    with pytest.raises(OutOfScope) as raised:
        detector.predict(Radiograph.from_array(make_chest(), patient_orientation=orientation))
    assert raised.value.code == "gate.view"


def test_an_assumed_orientation_is_said(detector):
    def said(film):
        return [w for w in detector.predict(film).quality.warnings if w.startswith("orientation.assumed")]

    assert said(make_chest())
    assert not said(Radiograph.from_array(make_chest(), patient_orientation=("L", "F")))


def test_a_film_that_is_not_flagged_has_no_regions_but_a_map(detector):
    detection = detector.predict(make_chest())
    assert not detection.flagged
    assert detection.regions == ()
    assert detection.map.shape == (SIZE, SIZE)
    assert detection.map.max() < 0.5
    assert not detection.mask_logits.flags.writeable
    np.testing.assert_allclose(detection.map, 1 / (1 + np.exp(-detection.mask_logits.astype(float))), atol=1e-6)


@pytest.mark.requirement("R-PROFILE-1")
def test_triage_shows_no_location(tiny_engine):
    with Detector(tiny_engine, profile="triage") as triage:
        detection = triage.predict(make_chest(blob=BLOB))
    assert detection.flagged
    assert detection.regions == ()
    assert detection.map is None
    assert detection.mask_logits is None
    assert json.loads(json.dumps(detection.to_dict()))["regions"] == []


@pytest.mark.requirement("R-SCORE-3")
def test_operating_point_by_name(tiny_engine):
    with Detector(tiny_engine, operating_point="high") as sensitive:
        film = make_chest()
        film[200:260, 100:160] = 214
        detection = sensitive.predict(film)
        assert detection.operating_point.name == "high"
        assert 0.001 <= detection.probability < 0.5
        assert detection.flagged


def test_detection_names_what_ran(detector, tiny_engine):
    detection = detector.predict(make_chest())
    assert (detection.backend, detection.device, detection.precision) == ("openvino", "cpu", "fp32")
    assert detection.engine == ptxsdk.Engine.open(tiny_engine).id
    times = detection.timings
    parts = (times.read, times.gate, times.preprocess, times.network, times.aggregate)
    assert all(part >= 0 for part in parts)
    assert sum(parts) <= times.total


def test_json_form_has_the_contracted_keys(detector):
    body = json.loads(json.dumps(detector.predict(make_chest(blob=BLOB)).to_dict()))
    assert {
        "probability",
        "flagged",
        "operating_point",
        "regions",
        "quality",
        "backend",
        "precision",
        "engine",
        "timings_ms",
    } <= body.keys()
    assert {"box", "side", "area_px", "area_mm2", "probability"} <= body["regions"][0].keys()
    assert body["engine"].keys() == {"name", "version", "sha256"}
    assert "not a medical device" in body["disclaimer"].lower()


def test_backends_agree(tiny_engine):
    film = make_chest(blob=(100, 400, 33))
    with (
        Detector(tiny_engine, backend="openvino", precision="fp32") as one,
        Detector(tiny_engine, backend="onnxruntime") as two,
    ):
        first, second = one.predict(film), two.predict(film)
    assert first.probability == pytest.approx(second.probability, abs=1e-5)
    np.testing.assert_allclose(first.map, second.map, atol=1e-5)
    assert first.regions[0].box == second.regions[0].box


@pytest.mark.requirement("R-THREAD-1")
def test_many_threads_get_what_one_would(detector):
    films = [make_chest((300 + 7 * n, 300), blob=(100 + 5 * n, 80 + 3 * n, 20 + n)) for n in range(8)]
    serial = [detector.predict(film) for film in films]
    results = [None] * len(films)

    def work(n):
        for _ in range(5):
            results[n] = detector.predict(films[n])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(films))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, many in zip(serial, results, strict=True):
        assert one.probability == many.probability
        assert one.regions == many.regions
        np.testing.assert_array_equal(one.map, many.map)


def test_a_clone_is_independent(tiny_engine):
    first = Detector(tiny_engine)
    second = first.clone()
    film = make_chest(blob=BLOB)
    expected = first.predict(film)
    assert second.predict(make_chest()).flagged is False
    first.close()
    assert second.predict(film).probability == expected.probability
    second.close()


@pytest.mark.requirement("R-THREAD-1")
def test_clones_predict_at_the_same_time(detector):
    films = [make_chest((300 + 7 * n, 300), blob=(100 + 5 * n, 80 + 3 * n, 20 + n)) for n in range(4)]
    expected = [detector.predict(film) for film in films]
    results = {}

    def work(n):
        clone = detector.clone()
        results[n] = [clone.predict(films[n]) for _ in range(20)]
        clone.close()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(result == expected[n] for n in range(4) for result in results[n])


@pytest.mark.requirement("R-TRUST-2")
def test_keys_are_asked_of_an_opened_engine_too(tiny_engine):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from ptxsdk.engine import engine_bytes

    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    opened = ptxsdk.Engine.open(tiny_engine)
    from dataclasses import replace

    signed = engine_bytes(replace(opened.manifest, entries={}), opened.entries(), signing_key=key)
    for engine in (signed, ptxsdk.Engine.open(signed)):
        with Detector(engine, trusted_keys=[public]) as detector:
            assert detector.engine.signature == "verified"
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    refusals = [(tiny_engine, [public]), (opened, [public]), (signed, [other]), (ptxsdk.Engine.open(signed), [])]
    for engine, keys in refusals:
        with pytest.raises(EngineError) as raised:
            Detector(engine, trusted_keys=keys)
        assert raised.value.code == "engine.signature"


def test_a_result_outlives_the_next_call(detector):
    first = detector.predict(make_chest(blob=BLOB))
    before = first.map.copy()
    detector.predict(make_chest())
    np.testing.assert_array_equal(first.map, before)


@pytest.mark.requirement("R-BATCH-1")
def test_batch_equals_single_and_keeps_the_order(detector):
    films = [make_chest(blob=BLOB), make_chest(), make_chest((400, 400), blob=(100, 100, 30))]
    assert [d.probability for d in detector.predict_batch(films)] == [detector.predict(f).probability for f in films]


@pytest.mark.requirement("R-BATCH-1")
def test_batch_errors_are_raised_or_returned(detector):
    films = [make_chest(), np.zeros((10, 10), np.uint8), make_chest(blob=BLOB)]
    with pytest.raises(OutOfScope):
        detector.predict_batch(films)
    first, second, third = detector.predict_batch(films, errors="return")
    assert not first.flagged
    assert isinstance(second, OutOfScope)
    assert third.flagged


@pytest.mark.requirement("R-BATCH-1")
def test_a_batch_keeps_the_order_whoever_is_done_first(detector):
    sizes = [(2400, 2000) if index % 5 == 0 else (300, 260) for index in range(24)]
    films = [make_chest(size, blob=(120, 60 + index, 20)) for index, size in enumerate(sizes)]
    found = detector.predict_batch(iter(films))
    assert [detection.geometry.source for detection in found] == sizes
    expected = [detector.predict(film) for film in films]
    assert [d.probability for d in found] == pytest.approx([d.probability for d in expected], abs=1e-6)
    assert [d.regions for d in found] == [d.regions for d in expected]


def test_the_first_error_in_order_ends_a_batch(detector):
    taken = []

    def films():
        for index in range(200):
            taken.append(index)
            yield np.zeros((10, 10), np.uint8) if index == 3 else make_chest((300, 260))

    with pytest.raises(OutOfScope):
        detector.predict_batch(films())
    assert len(taken) < 60


def test_films_are_taken_as_they_are_needed(detector):
    ahead = []

    def films():
        for index in range(30):
            ahead.append(index - scored[0])
            yield make_chest((300, 260))

    scored = [0]
    real = Detector.predict

    def counted(self, image, **options):
        result = real(self, image, **options)
        scored[0] += 1
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Detector, "predict", counted)
        detector.predict_batch(films())
    assert max(ahead) <= 4 * (os.cpu_count() or 1) + 2


def test_an_error_of_the_caller_ends_a_batch(detector):
    def films():
        yield make_chest()
        yield make_chest()
        raise KeyError("the caller's own")

    with pytest.raises(KeyError):
        detector.predict_batch(films())
    assert detector.predict(make_chest()).engine


def test_a_buffer_that_is_used_again_does_no_harm(detector):
    buffer = np.empty((300, 260), np.uint8)
    films = [make_chest((300, 260), blob=BLOB if index % 2 else None) for index in range(8)]

    def reusing():
        for film in films:
            buffer[...] = film
            yield buffer

    found = [detection.probability for detection in detector.predict_batch(reusing())]
    assert found == pytest.approx([detector.predict(film).probability for film in films], abs=1e-6)


@pytest.mark.requirement("R-BATCH-1")
@pytest.mark.parametrize("timeout", [None, 60])
def test_a_file_buffer_that_is_used_again_does_no_harm(detector, timeout):
    import imagecodecs

    files = [bytes(imagecodecs.png_encode(make_chest(blob=BLOB if index % 2 else None))) for index in range(2)]
    buffer = bytearray(max(map(len, files)))
    expected = [detector.predict(files[index % 2]).probability for index in range(12)]

    def reusing(view):
        for index in range(12):
            content = files[index % 2]
            buffer[: len(content)] = content
            yield view(buffer)[: len(content)] if view is memoryview else buffer

    for view in (bytearray, memoryview):
        found = detector.predict_batch(reusing(view), timeout=timeout)
        assert [detection.probability for detection in found] == expected


def test_small_batches(detector):
    assert detector.predict_batch([]) == []
    assert len(detector.predict_batch([make_chest()])) == 1
    (error,) = detector.predict_batch([np.zeros((10, 10), np.uint8)], errors="return")
    assert isinstance(error, OutOfScope)


def test_the_network_for_batches_is_compiled_once_and_closed(tiny_engine):
    with Detector(tiny_engine) as detector:
        detector.predict(make_chest())
        assert not detector._crew
        detector.predict_batch([make_chest()] * 3)
        crew = detector._crew
        assert crew
        detector.predict_batch([make_chest()] * 3)
        assert detector._crew is crew
        twin = detector.clone()
        assert not twin._crew
        twin.close()
    assert all(member._closed for member in crew)


@pytest.mark.requirement("R-THREAD-1")
def test_batches_on_many_threads(detector):
    films = [make_chest((300, 260), blob=(100, 60 + 5 * index, 20)) for index in range(6)]
    expected = [d.probability for d in detector.predict_batch(films)]
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(lambda _: detector.predict_batch(films), range(6)):
            assert [d.probability for d in found] == pytest.approx(expected, abs=1e-6)


def test_a_detector_closed_during_a_batch_says_so(tiny_engine):
    detector = Detector(tiny_engine)

    def films():
        yield from [make_chest((300, 260))] * 4
        detector.close()
        yield from [make_chest((300, 260))] * 4

    with pytest.raises(DetectorError) as raised:
        detector.predict_batch(films(), errors="return")
    assert raised.value.code == "detector.closed"


@pytest.mark.requirement("R-THREAD-2")
def test_closed(tiny_engine):
    detector = Detector(tiny_engine)
    detector.close()
    detector.close()
    for call in (
        lambda: detector.predict(make_chest()),
        lambda: detector.predict_batch([make_chest()], errors="return"),
        detector.self_test,
        detector.clone,
        detector.__enter__,
    ):
        with pytest.raises(DetectorError) as raised:
            call()
        assert raised.value.code == "detector.closed"


def _predict_in_child(detector, queue):
    try:
        detector.predict(make_chest())
    except DetectorError as error:
        queue.put(error.code)
    else:
        queue.put("scored")


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.requirement("R-THREAD-2")
def test_a_fork_is_refused(detector):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_predict_in_child, args=(detector, queue))
    child.start()
    assert queue.get(timeout=30) == "detector.forked"
    child.join()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_can_close_what_another_thread_held_at_the_fork(tiny_engine):
    detector = Detector(tiny_engine)
    with detector._lock:
        child = os.fork()
        if not child:
            detector.close()
            os._exit(0)
    for _ in range(300):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        threading.Event().wait(0.1)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child waits for a lock that nobody holds")
    assert status == 0
    detector.close()


@pytest.mark.requirement("R-BATCH-1")
@pytest.mark.parametrize("size", [1, 3])
def test_a_film_that_cannot_be_taken_over_costs_itself_only(tiny_engine, size):
    released = memoryview(bytearray(b"DICM"))
    released.release()
    huge = np.broadcast_to(np.uint8(3), (10**6, 10**6))
    of_the_host = Radiograph.from_array(huge)
    kept = []
    with Detector(tiny_engine, audit=kept.append) as detector:
        for bad, code in ((released, "input.type"), (huge, "input.too_large"), (of_the_host, "input.too_large")):
            kept.clear()
            films = [bad] if size == 1 else [make_chest(), bad, make_chest()]
            found = detector.predict_batch(films, errors="return")
            assert [getattr(each, "code", None) for each in found] == ([code] if size == 1 else [None, code, None])
            assert sorted(str(record["error"]) for record in kept) == sorted([code] + ["None"] * (size - 1))
            for timeout in (None, 60):
                with pytest.raises(InputError) as raised:
                    detector.predict(bad, timeout=timeout)
                assert raised.value.code == code


@pytest.mark.parametrize("timeout", [None, 60])
def test_an_array_that_is_mapped_is_refused(detector, tmp_path, timeout):
    """A file cut short would end the process; the pages of one that hangs are waited for by the system."""
    mapped = np.memmap(tmp_path / "film", np.uint8, "w+", shape=(2, 300, 260))
    mapped[:] = make_chest((300, 260))
    for film in (mapped[0], np.asarray(mapped[0]), mapped[1][10:]):
        with pytest.raises(InputError, match=r"numpy\.array\(film\)") as raised:
            detector.predict(film, timeout=timeout)
        assert raised.value.code == "input.type"
    expected = detector.predict(make_chest((300, 260))).probability
    shared = np.frombuffer(mmap.mmap(-1, 300 * 260), np.uint8).reshape(300, 260)
    shared[:] = mapped[0]
    for copy in (np.array(mapped[0]), mapped[0].copy(), shared):
        assert detector.predict(copy, timeout=timeout).probability == expected


@pytest.mark.parametrize("films", ["chest.dcm", b"DICM", bytearray(9), make_chest(), Dataset(), None, 5])
def test_a_batch_is_several_films(detector, films):
    with pytest.raises(DetectorError) as raised:
        detector.predict_batch(films, errors="return")
    assert raised.value.code == "detector.option"


def test_no_memory_is_a_typed_error(detector, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr("ptxsdk.readers.read_as", fail)
    with pytest.raises(InputError) as raised:
        detector.predict(make_chest())
    assert raised.value.code == "input.too_large"


@pytest.mark.parametrize(
    ("options", "error", "code"),
    [
        ({"profile": "diagnose"}, DetectorError, "detector.option"),
        ({"precision": "fp8"}, DetectorError, "detector.option"),
        ({"backend": "caffe"}, DetectorError, "detector.option"),
        ({"device": "tpu"}, DetectorError, "detector.option"),
        ({"operating_point": "best"}, DetectorError, "detector.option"),
        ({"operating_point": ["balanced"]}, DetectorError, "detector.option"),
        ({"device": None}, DetectorError, "detector.option"),
        ({"gate_policy": {"minimum_age": 1}}, DetectorError, "detector.option"),
        ({"trusted_keys": 5}, DetectorError, "detector.option"),
        ({"threads": -1}, DetectorError, "detector.option"),
        ({"threads": 10**9}, DetectorError, "detector.option"),
        ({"threads": 1.5}, DetectorError, "detector.option"),
        ({"device": "cuda:99"}, BackendError, "backend.unavailable"),
        ({"precision": "int8"}, EngineError, "engine.precision"),
        ({"precision": "fp16", "backend": "onnxruntime"}, EngineError, "engine.precision"),
    ],
)
def test_impossible_options(tiny_engine, options, error, code):
    with pytest.raises(error) as raised:
        Detector(tiny_engine, **options)
    assert raised.value.code == code


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_network_that_cannot_be_parsed(backend):
    with pytest.raises(EngineError) as raised:
        Detector(make_engine(b"not an ONNX graph"), backend=backend)
    assert raised.value.code == "engine.corrupt"
    with pytest.raises(BackendError) as raised:
        Detector(make_engine(b"\x12\x01a"), backend=backend)
    assert raised.value.code == "backend.failed"


def _change(network, change):
    import onnx

    model = onnx.load_from_string(network)
    change(model.graph)
    return model.SerializeToString()


def _half(graph):
    import onnx

    for node in graph.node[-2:]:
        name = node.output[0]
        node.output[0] = f"{name}_single"
        graph.node.append(onnx.helper.make_node("Cast", [f"{name}_single"], [name], to=onnx.TensorProto.FLOAT16))
    for output in graph.output:
        output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


def _coarse(graph):
    pool = next(node for node in graph.node if node.op_type == "MaxPool")
    for attribute in pool.attribute:
        attribute.ints[:] = [16, 16]
    for dimension in graph.output[0].type.tensor_type.shape.dim[1:]:
        dimension.dim_value = 4


def _renamed(graph):
    graph.node[-1].output[0] = graph.output[1].name = "something_else"


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("change", [_half, _coarse, _renamed])
def test_a_network_that_breaks_its_contract(tiny_network, backend, change):
    with pytest.raises(BackendError) as raised:
        Detector(make_engine(_change(tiny_network, change)), backend=backend)
    assert raised.value.code == "backend.failed"


def _outside(tensor):
    import onnx

    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")


def _outside_in_a_branch(graph):
    import onnx

    branch = onnx.GraphProto()
    _outside(branch.initializer.add(name="hidden", dims=[1], data_type=1))
    graph.node[0].attribute.append(onnx.helper.make_attribute("then_branch", branch))


def _outside_in_a_constant(graph):
    import onnx

    constant = onnx.TensorProto(name="hidden", dims=[1], data_type=1)
    _outside(constant)
    graph.node.append(onnx.helper.make_node("Constant", [], ["unused"], value=constant))


def _outside_if_sparse(graph):
    _outside(graph.sparse_initializer.add().values)


@pytest.mark.requirement("R-TRUST-1")
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize(
    "change",
    [lambda graph: _outside(graph.initializer[0]), _outside_in_a_branch, _outside_in_a_constant, _outside_if_sparse],
    ids=["initializer", "branch", "constant", "sparse"],
)
def test_weights_outside_the_engine_are_refused(tiny_network, backend, change):
    with pytest.raises(EngineError, match="outside the engine") as raised:
        Detector(make_engine(_change(tiny_network, change)), backend=backend)
    assert raised.value.code == "engine.corrupt"


@pytest.mark.requirement("R-TRUST-1")
@pytest.mark.parametrize(
    "entry",
    [
        b"\x0a\x08location\x12\x01w",
        b"\x12\x01w\x0a\x08location",  # the value before its key
        b"\x0a\x88\x00location\x12\x01w",  # a length in more bytes than it needs
        b"\x0a\x08location\x92\x80\x00\x01w",  # a tag in more bytes than it needs
        b"",
    ],
)
@pytest.mark.parametrize("tag", [b"\x6a", b"\xea\x80\x00"])
def test_however_they_are_encoded(tiny_network, entry, tag):
    tensor = tag + bytes([len(entry)]) + entry
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    # Fields of the same message are merged: this adds a tensor to the network's own graph.
    network = tiny_network + b"\x3a" + bytes([len(graph)]) + graph
    with pytest.raises(EngineError, match="outside the engine"):
        Detector(make_engine(network))


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_network_with_a_free_batch_axis_works(tiny_network, backend):
    def free(graph):
        for value in (*graph.input, *graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "N"

    with Detector(make_engine(_change(tiny_network, free)), backend=backend) as detector:
        assert detector.predict(make_chest(blob=BLOB)).flagged


@pytest.mark.requirement("R-ENGINE-2")
def test_a_network_that_does_not_reproduce_its_golden_film(tiny_network):
    from dataclasses import replace

    from made import tiny_manifest

    wrong = replace(tiny_manifest().golden[0], probability=0.2)
    with pytest.raises(EngineError) as raised:
        Detector(make_engine(tiny_network, golden=(wrong,)))
    assert raised.value.code == "engine.self_test"
    assert "blob" in raised.value.message


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.requirement("R-SCORE-4")
def test_numbers_that_are_not_finite_are_never_a_score(tiny_network, backend):
    import onnx

    model = onnx.load_from_string(tiny_network)
    for constant in model.graph.initializer:
        if constant.name == "gain":
            constant.CopyFrom(onnx.numpy_helper.from_array(np.array(np.inf, np.float32), "gain"))
    with pytest.raises(BackendError) as raised:
        Detector(make_engine(model.SerializeToString()), backend=backend)
    assert raised.value.code == "backend.not_finite"


@pytest.mark.parametrize(
    ("film", "code"),
    [
        (np.full((400, 400), 77, np.uint8), "gate.constant"),
        (np.zeros((10, 10), np.uint8), "gate.size"),
        (make_chest((300, 900)), "gate.size"),
        (255 - make_chest(), "gate.polarity"),
        ((make_chest() // 16 + 100).astype(np.uint8), "gate.contrast"),
    ],
)
@pytest.mark.requirement("R-GATE-3")
def test_a_film_that_fails_the_gate_is_never_scored(detector, film, code, monkeypatch):
    def score(*_):
        raise AssertionError("the network ran")

    monkeypatch.setattr(type(detector._backend), "infer", score)
    with pytest.raises(OutOfScope) as raised:
        detector.predict(film)
    assert raised.value.code == code
    assert (code, raised.value.failed[0][1]) in raised.value.failed


@pytest.mark.parametrize(
    ("film", "code"),
    [
        (np.full((400, 400), np.nan, np.float32), "input.not_finite"),
        (np.zeros((400, 400), np.float64), "input.dtype"),
        (np.zeros((400, 400, 3), np.uint8), "input.shape"),
        (None, "input.type"),
        (42, "input.type"),
        (b"", "input.empty"),
        (b"hello, I am text" * 100, "input.unknown_format"),
        ("no/such/file.dcm", "input.not_found"),
        (os.curdir, "input.is_directory"),
    ],
)
def test_what_is_no_film(detector, film, code):
    with pytest.raises(InputError) as raised:
        detector.predict(film)
    assert raised.value.code == code


@pytest.mark.requirement("R-SCORE-4")
def test_a_nan_in_a_stated_window_is_found_in_the_pass(detector):
    pixels = make_chest().astype(np.float32)
    pixels[3, 3] = np.nan
    with pytest.raises(InputError) as raised:
        detector.predict(Radiograph.from_array(pixels, window=(0, 255)))
    assert raised.value.code == "input.not_finite"


def test_the_detector_works_on_after_an_error(detector):
    with pytest.raises(InputError):
        detector.predict(b"")
    assert detector.predict(make_chest(blob=BLOB)).flagged
