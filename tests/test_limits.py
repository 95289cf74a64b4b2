"""Limits: each is held, by the readers and by a detector; time, too."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import fields, replace
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from dicom_files import code, content, dataset, encapsulated, film
from made import make_chest

from ptxsdk import Detector, DetectorError, InputError, Limits, Radiograph, read
from ptxsdk.deadline import Deadline, within
from ptxsdk.readers import helper, read_as
from ptxsdk.readers.reading import Reading

DEFLATED = "1.2.840.10008.1.2.1.99"
JPEG2000 = "1.2.840.10008.1.2.4.90"


def nested(depth):
    from pydicom.dataset import Dataset

    inner = Dataset()
    inner.CodeValue = "1"
    for _ in range(depth - 1):
        outer = Dataset()
        outer.ViewCodeSequence = [inner]
        inner = outer
    return content(dataset(ViewCodeSequence=[inner]))


def jpeg2000():
    made = imagecodecs.jpeg2k_encode(film(), codecformat="j2k", reversible=True, bitspersample=12)
    return encapsulated(dataset(), bytes(made), JPEG2000)


PNG = bytes(imagecodecs.png_encode(film(bits=8)))  # 33 x 47


@pytest.mark.parametrize(
    ("make", "limit", "enough", "expected"),
    [
        (lambda: PNG, "file_bytes", len(PNG), "input.too_large"),
        (lambda: PNG, "pixels", 33 * 47, "input.too_large"),
        (lambda: PNG, "side", 47, "input.too_large"),
        (lambda: PNG, "memory_bytes", 4 * 33 * 47, "input.too_large"),
        (jpeg2000, "pixels", 33 * 47, "input.too_large"),
        (jpeg2000, "memory_bytes", 8 * 33 * 47, "input.too_large"),
        (lambda: content(dataset()), "side", 47, "input.too_large"),
        (lambda: content(dataset()), "elements", 20, "input.too_large"),
        (lambda: content(dataset()), "header_bytes", 300, "input.too_large"),
        (lambda: nested(5), "sequence_depth", 5, "input.corrupt"),
    ],
)
def test_each_limit_is_held_and_reached(make, limit, enough, expected):
    made = make()
    assert code(read, made, decode="in_process", limits=Limits(**{limit: enough})) == "no error"
    assert code(read, made, decode="in_process", limits=Limits(**{limit: max(1, enough // 2)})) == expected


def test_arrays_and_films_are_held_to_pixels_and_side():
    array = film(bits=8)
    for source in (array, Radiograph.from_array(array)):
        for small in (Limits(side=46), Limits(pixels=33 * 47 - 1)):
            assert code(read, source, limits=small) == "input.too_large"
        assert code(read, source, limits=Limits(side=47, pixels=33 * 47, memory_bytes=1)) == "no error"


def test_the_ratio_of_inflation_is_held():
    made = content(dataset(np.zeros((2000, 1000), np.uint16)), DEFLATED)
    assert len(made) < 20_000
    assert code(read, made) == "input.too_large"
    assert code(read, made, limits=Limits(inflate_ratio=2000)) == "no error"
    assert code(read, made, limits=Limits(inflate_ratio=2000, memory_bytes=3 << 20)) == "input.too_large"


@pytest.mark.parametrize("name", [field.name for field in fields(Limits)])
@pytest.mark.parametrize("value", [0, -1, "8", None, True, float("nan"), float("inf"), 2**41])
def test_a_limit_is_a_positive_number(name, value):
    with pytest.raises(DetectorError, match=name) as caught:
        Limits(**{name: value})
    assert caught.value.code == "detector.option"
    assert replace(Limits(), **{name: 1})


def test_a_detector_holds_them(tiny_engine):
    chest = bytes(imagecodecs.png_encode(make_chest()))
    with Detector(tiny_engine, limits=Limits(pixels=1000)) as small, Detector(tiny_engine, decode="in_process") as own:
        helper.close()
        assert code(small.predict, chest) == "input.too_large"
        assert [error.code for error in small.predict_batch([chest] * 3, errors="return")] == ["input.too_large"] * 3
        own.predict(chest)
        assert helper.pids() == []
    for options in ({"limits": 5}, {"decode": "elsewhere"}):
        with pytest.raises(DetectorError) as caught:
            Detector(tiny_engine, **options)
        assert caught.value.code == "detector.option"


# --- time -------------------------------------------------------------------------------------------------------------


def timed_out(call, code="detector.timeout"):
    started = time.monotonic()
    with pytest.raises(DetectorError) as caught:
        call()
    assert caught.value.code == code
    return time.monotonic() - started


CHEST = make_chest(blob=(250, 150, 60))


def test_a_result_in_time_is_the_result(detector):
    assert detector.predict(CHEST, timeout=60).probability == detector.predict(CHEST).probability
    with pytest.raises(InputError) as caught:
        detector.predict(b"", timeout=60)
    assert caught.value.code == "input.empty"


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 2 * threading.TIMEOUT_MAX, "1", True])
def test_a_timeout_is_a_positive_number(detector, timeout):
    with pytest.raises(DetectorError) as caught:
        detector.predict(CHEST, timeout=timeout)
    assert caught.value.code == "detector.option"


@pytest.mark.requirement("R-TIME-1")
def test_a_network_that_takes_long_is_not_waited_for(tiny_engine, monkeypatch):
    with Detector(tiny_engine) as detector:
        infer, held = detector._backend.infer, threading.Event()

        def slow():
            held.wait(30)
            return infer()

        monkeypatch.setattr(detector._backend, "infer", slow)
        assert timed_out(lambda: detector.predict(CHEST, timeout=1)) < 10
        # It still runs: the next call waits for it, within its own time.
        assert timed_out(lambda: detector.predict(CHEST, timeout=1), "detector.busy") < 10
        held.set()
        assert detector.predict(CHEST, timeout=60).flagged
        assert detector.predict(CHEST).flagged


@pytest.mark.requirement("R-BATCH-1", "R-TIME-1")
def test_a_film_of_a_batch_that_takes_long_costs_itself_only(tiny_engine, monkeypatch):
    from ptxsdk import readers

    read, held = readers.read_as, threading.Event()

    def slow(image, reading):
        if isinstance(image, str):
            held.wait(30)
        return read(image, reading)

    films = [CHEST, "a dead mount.dcm", CHEST, CHEST]
    with Detector(tiny_engine) as detector:
        expected = detector.predict(CHEST).probability
        detector.predict_batch(films[2:])
        monkeypatch.setattr(readers, "read_as", slow)
        first, dead, *rest = detector.predict_batch(films, errors="return", timeout=2)
        assert dead.code == "detector.timeout"
        assert [each.probability for each in (first, *rest)] == [expected] * 3
        assert timed_out(lambda: detector.predict_batch(films, timeout=0.5)) < 10
        assert timed_out(lambda: detector.predict_batch(films[1:2], timeout=0.1)) < 5
        with pytest.raises(DetectorError) as caught:
            detector.predict_batch(films, timeout=0)
        assert caught.value.code == "detector.option"
        held.set()


def run_with_support(program, folder):
    """Run a program, dedented, that can import the tests' support modules."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent / "support")}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=60, check=False)


SLOW_NETWORK = """
import os, signal, sys, threading, time
from made import make_chest, make_engine, make_network
from ptxsdk import Detector, DetectorError
detector = Detector(make_engine(make_network()), device="cpu")
infer = detector._backend.infer
def slow():
    until = time.monotonic() + 1
    while time.monotonic() < until:
        infer()
    return infer()
detector._backend.infer = slow
"""


@pytest.mark.requirement("R-TIME-1")
def test_a_process_may_end_while_a_network_that_was_given_up_runs(tmp_path):
    program = """
        try:
            detector.predict(make_chest(), timeout=0.1)
        except DetectorError as error:
            print(error.code)
    """
    ended = run_with_support(SLOW_NETWORK + textwrap.dedent(program), tmp_path)
    assert (ended.returncode, ended.stdout) == (0, "detector.timeout\n"), ended.stderr


@pytest.mark.requirement("R-TIME-1")
@pytest.mark.parametrize("moment", ["started", "waiting"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_process_may_be_told_to_end_while_a_network_runs(tmp_path, name, moment):
    program = f"""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        def tell():
            os.kill(os.getpid(), signal.{name})
        start = threading.Thread.start
        def start_and_tell(thread):
            start(thread)
            if thread.name == "ptxsdk-predict":
                time.sleep(0.3)
                tell()
        if "{moment}" == "started":
            threading.Thread.start = start_and_tell
        else:
            threading.Timer(0.3, tell).start()
        detector.predict(make_chest(), timeout=30)
    """
    ended = run_with_support(SLOW_NETWORK + textwrap.dedent(program), tmp_path)
    assert ended.returncode == (0 if name == "SIGTERM" else -2), ended.stderr


@pytest.mark.requirement("R-TIME-1")
def test_a_busy_detector_is_not_waited_for(tiny_engine):
    with Detector(tiny_engine) as detector:
        with detector._lock:
            assert timed_out(lambda: detector.predict(CHEST, timeout=1), "detector.busy") < 10
            assert timed_out(lambda: detector.predict_batch([CHEST] * 3, timeout=1), "detector.busy") < 10
            [busy] = detector.predict_batch([CHEST], errors="return", timeout=1)
            assert busy.code == "detector.busy"
        assert detector.predict(CHEST, timeout=60).flagged


@pytest.mark.requirement("R-TIME-1")
def test_close_does_not_wait_for_ever_and_releases_the_network_when_it_returns(tiny_engine, monkeypatch):
    monkeypatch.setattr("ptxsdk.detector._CLOSE_SECONDS", 0.2)
    released = threading.Event()
    detector = Detector(tiny_engine)
    close = detector._backend.close
    monkeypatch.setattr(detector._backend, "close", lambda: (close(), released.set()))
    with detector._lock:
        started = time.monotonic()
        detector.close()
        assert time.monotonic() - started < 5
        assert not released.is_set()
        with pytest.raises(DetectorError) as caught:
            detector.predict(CHEST)
        assert caught.value.code == "detector.closed"
    assert released.wait(20)
    detector.close()


@pytest.mark.requirement("R-TIME-1", "R-BATCH-1")
def test_close_waits_once_for_a_whole_crew(tiny_engine, monkeypatch):
    monkeypatch.setattr("ptxsdk.detector._CLOSE_SECONDS", 1)
    detector = Detector(tiny_engine)
    detector.predict_batch([CHEST] * 2)
    crew = detector._crew
    with contextlib.ExitStack() as held:
        for member in crew:
            held.enter_context(member._lock)
        started = time.monotonic()
        detector.close()
        assert time.monotonic() - started < 1.9
    deadline = time.monotonic() + 20
    while detector._crew and time.monotonic() < deadline:
        time.sleep(0.01)
    assert detector._crew == ()
    assert all(member._closed for member in crew)


def test_a_clone_made_while_its_origin_is_closed_lives_on(tiny_engine):
    detector = Detector(tiny_engine)
    make = detector._backend.clone

    def slow():
        closing.start()
        while not detector._closed:
            time.sleep(0.01)
        return make()

    closing = threading.Thread(target=detector.close)
    detector._backend.clone = slow
    with detector.clone() as twin:
        closing.join(20)
        assert twin.predict(CHEST).flagged


@pytest.mark.requirement("R-TIME-1")
def test_a_forked_child_waits_for_no_work_of_its_parent(tmp_path):
    program = """
        import os, sys, time
        from ptxsdk.deadline import Deadline, within
        try:
            within(Deadline(0.1), lambda _: time.sleep(4))
        except Exception as error:
            assert error.code == "detector.timeout"
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            sys.exit(0)
        os.waitpid(child, 0)
        print(time.monotonic() - started < 2)
    """
    assert run_with_support(program, tmp_path).stdout == "True\n"


@pytest.mark.requirement("R-TIME-1")
def test_the_command_line_ends_although_a_network_hangs(tmp_path):
    program = """
        from made import make_chest, make_engine, make_network
        import imagecodecs, sys
        from pathlib import Path
        import ptxsdk.cli, ptxsdk.deadline
        from ptxsdk import Detector
        def hang(self, *_, **__):
            while True:
                self._backend.infer()
        Detector._score = hang
        ptxsdk.deadline._EXIT_SECONDS = 0.5
        Path("tiny.ptxengine").write_bytes(make_engine(make_network()))
        Path("film.png").write_bytes(imagecodecs.png_encode(make_chest()))
        sys.argv[1:] = "predict film.png --engine tiny.ptxengine --device cpu --json --timeout 0.5".split()
        ptxsdk.cli.main()
    """
    ended = run_with_support(program, tmp_path)
    assert (ended.returncode, "detector.timeout" in ended.stdout + ended.stderr) == (1, True), ended.stderr


@pytest.mark.requirement("R-TIME-1")
def test_a_disk_that_hangs_is_not_waited_for(detector, monkeypatch):
    from ptxsdk import readers

    held = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(readers, "_load", lambda *_: held.wait(30))
        assert timed_out(lambda: detector.predict("film.dcm", timeout=0.1)) < 5
    held.set()
    assert detector.predict(CHEST).flagged


@pytest.mark.requirement("R-TIME-1")
def test_the_film_of_a_call_given_up_may_be_freed(tiny_engine, monkeypatch):
    """The caller's memory is not touched once the call has returned."""
    with Detector(tiny_engine) as detector:
        seen, held = [], threading.Event()
        run = detector._pipeline.run

        def slow(pixels, *arguments, **options):
            held.wait(30)
            seen.append(pixels)
            return run(pixels, *arguments, **options)

        monkeypatch.setattr(detector._pipeline, "run", slow)
        mine = CHEST.copy()
        for source, code in ((mine, "detector.timeout"), (Radiograph.from_array(mine), "detector.busy")):
            timed_out(lambda source=source: detector.predict(source, timeout=1), code)
        held.set()
        detector.close()
        assert seen
        assert not any(np.shares_memory(pixels, mine) for pixels in seen)


def test_reading_stops_at_the_deadline():
    deadline = Deadline(1e-9)
    time.sleep(0.001)
    for made in (PNG, jpeg2000()):
        assert timed_out(lambda made=made: read_as(made, Reading(deadline=deadline))) < 5
    many = content(dataset())
    at = many.index(b"\x28\x00\x02\x00US")
    long = many[:at] + b"\x09\x00\x10\x00LO\0\0" * 5000 + many[at:]
    assert timed_out(lambda: read_as(long, Reading(deadline=deadline))) < 5


def test_within_raises_what_the_work_raises():
    with pytest.raises(ZeroDivisionError):
        within(Deadline(60), lambda _: 1 / 0)
    assert within(Deadline(60), lambda deadline: deadline.remaining() > 50)
    assert Deadline().remaining() is None
    Deadline().check()
