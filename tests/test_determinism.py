"""docs/determinism.md: a film gives the same bits, however it is scored; between backends, the stated tolerance."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ptxsdk import Detector, Timings

EXAMPLES = sorted(Path(__file__).parents[1].joinpath("examples").glob("*.jpg"))[:3]
NO_TIME = Timings(0, 0, 0, 0, 0, 0)

# Greatest absolute difference between OpenVINO and ONNX Runtime on one CPU: probability, mask logits.
TOLERANCE = {"fp32": (1e-5, 1e-3), "fp16": (1e-3, 0.02), "int8": (0.05, 2)}


def bits(detection):
    """Return all of a detection but its timings, the map's bits included."""
    said = replace(detection, timings=NO_TIME)
    logits = b"" if detection.mask_logits is None else detection.mask_logits.tobytes()
    return repr(said.to_dict()), logits


@pytest.fixture(scope="module", params=["fp32", "fp16", "int8"])
def shipped(request):
    with Detector(precision=request.param, backend="openvino", device="cpu") as made:
        yield made


@pytest.fixture(scope="module")
def expected(shipped):
    return [bits(shipped.predict(film)) for film in EXAMPLES]


@pytest.mark.requirement("R-DET-1")
def test_runs(shipped, expected):
    for film, first in zip(EXAMPLES * 3, expected * 3, strict=True):
        assert bits(shipped.predict(film)) == first


@pytest.mark.requirement("R-DET-1")
def test_threads_and_clones(shipped, expected):
    found = {}

    def work(number):
        with shipped.clone() as own:
            detector = own if number % 2 else shipped
            found[number] = [bits(detector.predict(film)) for film in EXAMPLES]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[number] == expected for number in range(8))


@pytest.mark.requirement("R-DET-1")
def test_batch_sizes(shipped, expected):
    for size in (1, 2, 5):
        films = [EXAMPLES[n % len(EXAMPLES)] for n in range(size)]
        assert [bits(each) for each in shipped.predict_batch(films)] == [expected[n % 3] for n in range(size)]


@pytest.mark.requirement("R-DET-1")
def test_numbers_of_cpu_threads(shipped, expected):
    for threads in (1, 2):
        with Detector(precision=shipped.precision, backend="openvino", threads=threads) as detector:
            assert [bits(detector.predict(film)) for film in EXAMPLES] == expected


@pytest.mark.requirement("R-DET-1")
def test_processes(shipped, expected):
    code = f"""
import hashlib
from dataclasses import replace
from ptxsdk import Detector, Timings
with Detector(precision={shipped.precision!r}, backend="openvino") as detector:
    for film in {[str(film) for film in EXAMPLES]!r}:
        found = replace(detector.predict(film), timings=Timings(0, 0, 0, 0, 0, 0))
        print(hashlib.sha256(repr(found.to_dict()).encode() + found.mask_logits.tobytes()).hexdigest())
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.split() == [hashlib.sha256(said.encode() + logits).hexdigest() for said, logits in expected]


@pytest.mark.requirement("R-DET-1")
def test_forms_of_one_film(detector):
    """The same pixels in any layout."""
    from made import make_chest

    film = make_chest(blob=(250, 150, 60))
    wide = np.zeros((film.shape[0], 2 * film.shape[1]), np.uint8)
    wide[:, ::2] = film
    forms = [film, np.asfortranarray(film), wide[:, ::2], film[::-1][::-1]]
    assert len({bits(detector.predict(form)) for form in forms}) == 1


@pytest.mark.requirement("R-DET-2")
@pytest.mark.parametrize("precision", TOLERANCE)
def test_backends_agree_as_far_as_stated(precision):
    probability, logits = TOLERANCE[precision]
    with (
        Detector(precision=precision, backend="openvino") as one,
        Detector(precision=precision, backend="onnxruntime") as other,
    ):
        for film in EXAMPLES:
            first, second = one.predict(film), other.predict(film)
            assert abs(first.probability - second.probability) <= probability
            assert np.abs(first.mask_logits - second.mask_logits).max() <= logits
            if precision != "int8":
                assert [region.box for region in first.regions] == [region.box for region in second.regions]


def test_the_page_states_these_tolerances():
    page = Path(__file__).parents[1].joinpath("docs", "determinism.md").read_text("utf-8")
    for precision, (probability, logits) in TOLERANCE.items():
        assert f"| {precision} | {probability:g} | {logits:g} |" in page, precision
