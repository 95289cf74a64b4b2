"""Does a detector stay as it is?  Many predictions in one process: memory, handles, latency, and every result bitwise.

    python benchmarks/soak.py --small 100000 --shipped 10000 --json benchmarks/results/soak.json

Films come as arrays, as DICOM and PNG files (through the helper process) and, one in fifty, as something to refuse; one
call in ten has a timeout.  `small` is the network of the tests, whose time is all the SDK's own.

A machine's speed drifts by more than a detector's would, so latencies late and early in the run do not say whose drift
they show.  At the end the old process and a new one therefore take the same films in turn, and are compared.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter, process_time

import cv2
import numpy as np
import psutil
from measure import machine

from ptxsdk import Detector, PtxsdkError
from ptxsdk.readers import helper

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = 400
WARM_UP = 500
BLOCKS = 100
PAIRS = 20_000


def films(folder: Path) -> list[object]:
    """Films of a chest: array, PNG by content and by path, DICOM by path; and two that are none."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from dicom_files import content, dataset
    from made import make_chest

    chests = [make_chest((640 + 40 * i, 560), blob=(250, 150, 20 * i) if i else None) for i in range(4)]
    png = cv2.imencode(".png", chests[1])[1].tobytes()
    (folder / "film.png").write_bytes(png)
    dicom = content(
        dataset(chests[2].astype(np.uint16) * 16, ViewPosition="AP", PatientAge="050Y", BodyPartExamined="CHEST")
    )
    (folder / "film.dcm").write_bytes(dicom)
    return [*chests, png, folder / "film.png", folder / "film.dcm", dicom[:-100], np.full((500, 500), 7, np.uint8)]


def outcome(detector: Detector, film: object, timeout: float | None) -> bytes:
    """Everything a prediction says but its timings, as a digest."""
    try:
        found = detector.predict(film, timeout=timeout)
    except PtxsdkError as error:
        return error.code.encode()
    said = found.to_dict()
    del said["timings_ms"]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    digest.update(found.mask_logits.tobytes())
    return digest.digest()


def turn_of(detector: Detector, given: list[object], turn: int) -> tuple[int, bytes, float, float]:
    """Make the prediction number `turn`: which film, what was said, seconds, and seconds of CPU."""
    good = len(given) - 2
    which = turn % good if turn % 50 else good + (turn // 50) % 2
    started, worked = perf_counter(), process_time()
    said = outcome(detector, given[which], 60.0 if turn % 10 == 3 else None)
    return which, said, perf_counter() - started, process_time() - worked


def newcomer(make: Callable[[], Detector], folder: Path, asked: Connection) -> None:
    """Predict in a new process when asked to."""
    given = films(folder)
    with make() as detector:
        for turn in range(WARM_UP):
            turn_of(detector, given, turn)
        asked.send(None)
        while (turn := asked.recv()) is not None:
            asked.send(turn_of(detector, given, turn))


def beside_a_newcomer(
    detector: Detector, given: list[object], make: Callable[[], Detector], count: int
) -> dict[str, object]:
    """Compare this process with a new one: `count` predictions each, in turn, on the same machine at the same time."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    seconds = np.empty((2, 2, count))  # latency and work; old and new
    differing = 0
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=newcomer, args=(make, Path(folder), there), daemon=True)
        process.start()
        there.close()  # the end of a newcomer that fails to start is then seen here
        here.recv()

        def old(turn: int) -> tuple[int, bytes, float, float]:
            return turn_of(detector, given, turn)

        def new(turn: int) -> tuple[int, bytes, float, float]:
            here.send(turn)
            return here.recv()

        for turn in range(count):
            if turn % 2:
                second, first = new(turn), old(turn)
            else:
                first, second = old(turn), new(turn)
            differing += first[:2] != second[:2]
            seconds[:, :, turn] = np.transpose((first[2:], second[2:]))
        here.send(None)
        process.join()
    found: dict[str, object] = {"predictions_each": count, "results_that_differ": int(differing)}
    for name, (mine, its) in (("latency", seconds[0]), ("cpu", seconds[1])):
        for label, percent in (("median", 50), ("p99", 99)):
            found[f"{name}_{label}"] = compared(mine, its, percent)
    return found


def compared(mine: np.ndarray, its: np.ndarray, percent: int) -> dict[str, object]:
    """Milliseconds of the old and the new process, what the old one takes more, and its 95 % interval.

    The interval is a bootstrap over blocks of the run: neighbours share the machine's mood.
    """
    rng = np.random.default_rng(0)
    blocks = [np.array_split(values, BLOCKS) for values in (mine, its)]

    def more(old: np.ndarray, new: np.ndarray) -> float:
        return 100 * float(np.percentile(old, percent) / np.percentile(new, percent) - 1)

    drawn = []
    for _ in range(1000):
        chosen = rng.integers(0, BLOCKS, BLOCKS)
        drawn.append(more(*(np.concatenate([side[block] for block in chosen]) for side in blocks)))
    return {
        "old_new_ms": [round(1e3 * float(np.percentile(values, percent)), 3) for values in (mine, its)],
        "percent": round(more(mine, its), 1),
        "interval_95": [round(float(edge), 1) for edge in np.percentile(drawn, (2.5, 97.5))],
    }


def slope(seconds: np.ndarray, values: np.ndarray) -> float:
    """Least-squares slope, per hour."""
    return float(np.polyfit(seconds, values, 1)[0] * 3600)


def soak(make: Callable[[], Detector], count: int, folder: Path) -> dict[str, object]:
    """Predict `count` times; the first fifth is warm-up."""
    given = films(folder)
    process = psutil.Process()
    latency, work = np.full(count, np.nan), np.full(count, np.nan)  # touched: they do not grow the process later
    every = max(1, count // SAMPLES)
    times, rss, helpers = (np.empty(count // every + 1) for _ in range(3))
    taken, differing, restarts, last = 0, 0, 0, None
    first: list[bytes | None] = [None] * len(given)
    with make() as detector:
        described = {"backend": detector.backend, "precision": detector.precision}
        begun = perf_counter()
        handles = -1
        for turn in range(count):
            which, said, latency[turn], work[turn] = turn_of(detector, given, turn)
            if first[which] is None:
                first[which] = said
            differing += said != first[which]
            if turn == count // 5:
                gc.collect()
                handles = process.num_fds() + process.num_threads()
            if turn % every == 0:
                times[taken], rss[taken] = perf_counter() - begun, process.memory_info().rss / 2**20
                pids = helper.pids()
                restarts += last is not None and pids != last
                last = pids
                helpers[taken] = sum(psutil.Process(pid).memory_info().rss for pid in pids) / 2**20
                taken += 1
        gc.collect()
        after = process.num_fds() + process.num_threads()
        seconds = perf_counter() - begun
        beside = beside_a_newcomer(detector, given, make, min(count, PAIRS))
    warm = slice(taken // 5, taken)
    early, late = slice(count // 5, 2 * count // 5), slice(count - count // 5, count)

    def drift(name: str, values: np.ndarray, percent: int) -> dict[str, object]:
        """Milliseconds of the second and the last fifth, and what the latter is more."""
        pair = [1e3 * float(np.percentile(values[part], percent)) for part in (early, late)]
        return {
            f"{name}_ms": [round(value, 3) for value in pair],
            f"{name}_drift_percent": round(100 * (pair[1] / pair[0] - 1), 1),
        }

    return described | {
        "predictions": count,
        "seconds": round(seconds, 1),
        "results_that_differ": int(differing),
        "rss_mb_by_tenths": [round(float(rss[taken * tenth // 10]), 2) for tenth in range(10)],
        "rss_slope_mb_per_hour": round(slope(times[warm], rss[warm]), 2),
        "rss_growth_after_warm_up_mb": round(float(rss[taken - 1] - rss[warm][0]), 2),
        "helper_rss_slope_mb_per_hour": round(slope(times[warm], helpers[warm]), 2),
        "helper_restarts": int(restarts),
        "new_handles_and_threads": int(after - handles),
        **drift("median", latency, 50),
        **drift("p99", latency, 99),
        # On a busy machine waiting for a CPU is most of the tail; the process's own work is not.
        **drift("cpu_median", work, 50),
        **drift("cpu_p99", work, 99),
        "beside_a_new_process": beside,
    }


def small() -> Detector:
    """The small network of the tests."""
    from made import make_engine, make_network

    return Detector(make_engine(make_network()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", type=int, default=0, metavar="N", help="predictions with the tests' network")
    parser.add_argument("--shipped", type=int, default=0, metavar="N", help="predictions with the shipped engine")
    parser.add_argument("--json", type=Path, help="write results there; what it holds of the other network stays")
    options = parser.parse_args()
    results: dict[str, object] = {}
    if options.json is not None and options.json.exists():
        results = json.loads(options.json.read_text())
    with tempfile.TemporaryDirectory() as folder:
        for name, make, count in (("small", small, options.small), ("shipped", Detector, options.shipped)):
            if count:
                results[name] = soak(make, count, Path(folder)) | {"machine": machine()}
                print(name, json.dumps(results[name], indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
