"""How long does a film take on this unit?  The command to run on a Jetson, an RTX machine or a CPU box.

    python benchmarks/latency.py [--device auto|cpu|cuda[:N]] [--precision auto] [--json out.json] [--plot out.png]

Cold start (a new process until its first Detection), warm latency (p50, p95, p99) with its stages, films per second in
batches, and the power drawn where the platform says it.  pytest-benchmark times the warm part.  The films are the
golden ones of the engine, enlarged to 3000 x 2500 uint16, in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
import pytest
from measure import HIGH, LOW, golden_film, machine

from ptxsdk import Detector, Engine, Radiograph

BATCHES = (1, 4, 16, 64)
STAGES = ("read", "gate", "preprocess", "network", "aggregate")
_OPTIONS = "PTXSDK_LATENCY"  # JSON of the detector's options, from the command line to the benchmark below

COLD = """
import sys, time
started = time.perf_counter()
import numpy
from ptxsdk import Detector, Radiograph
imported = time.perf_counter()
detector = Detector({engine}, **{options})
loaded = time.perf_counter()
film = Radiograph.from_array(numpy.load(sys.argv[1]), window=(0, 4080))
detector.predict(film)
print(imported - started, loaded - imported, time.perf_counter() - loaded)
"""


def film(engine: Engine) -> Radiograph:
    """What a unit has in memory."""
    return Radiograph.from_array(golden_film(engine), window=(LOW, HIGH))


def make_detector() -> Detector:
    """The detector asked for on the command line."""
    options = json.loads(os.environ[_OPTIONS])
    return Detector(options.pop("engine"), **options)


@pytest.fixture(scope="session")
def detector() -> Any:
    with make_detector() as made:
        yield made


def test_warm(detector: Detector, benchmark: Any) -> None:
    """One film after the other, as a unit makes them."""
    pixels = film(detector.engine)
    detections = []
    benchmark.pedantic(
        lambda: detections.append(detector.predict(pixels)),
        rounds=int(os.environ.get("PTXSDK_LATENCY_ROUNDS", "200")),
        warmup_rounds=10,
    )
    timings = [found.timings for found in detections[10:]]
    benchmark.extra_info["stages_ms"] = {
        stage: statistics.median(getattr(timing, stage) for timing in timings) for stage in STAGES
    }
    benchmark.extra_info["runs_on"] = {
        "backend": detections[-1].backend,
        "device": detections[-1].device,
        "precision": detections[-1].precision,
        "engine": detections[-1].engine.version,
    }


def warm(rounds: int) -> dict[str, Any]:
    """Run `test_warm` under pytest-benchmark and return its report."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        os.environ["PTXSDK_LATENCY_ROUNDS"] = str(rounds)
        status = pytest.main(
            [__file__, "-q", "-o", "addopts=", "-p", "no:cacheprovider", f"--benchmark-json={report}",
             "--benchmark-disable-gc", "--benchmark-quiet", "-W", "default"]
        )  # fmt: skip
        if status:
            raise SystemExit("the warm run failed")
        (found,) = json.loads(report.read_text())["benchmarks"]
    milliseconds = 1e3 * np.array(found["stats"]["data"])
    return {
        "films": len(milliseconds),
        "milliseconds": {
            name: float(np.percentile(milliseconds, p)) for name, p in (("p50", 50), ("p95", 95), ("p99", 99))
        },
        "all_ms": [round(float(value), 3) for value in milliseconds],
        **found["extra_info"],
    }


def cold(options: dict[str, Any], engine: Engine, repeats: int = 3) -> dict[str, float]:
    """Seconds from a new process to its first Detection; the median of a few, after one that fills caches."""
    options = dict(options)
    code = COLD.format(engine=repr(options.pop("engine")), options=options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.npy"
        np.save(path, film(engine).pixels)
        runs = []
        for _ in range(repeats + 1):
            out = subprocess.run(
                [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, cwd=folder
            )
            runs.append([float(word) for word in out.stdout.split()])
    names = ("import", "load, compile, self-test", "first film")
    return dict(zip(names, (float(value) for value in np.median(runs[1:], axis=0)), strict=True))


def batches(detector: Detector) -> dict[str, float]:
    """Films per second of `predict_batch`."""
    pixels = film(detector.engine)
    detector.predict_batch([pixels] * 4)
    rates = {}
    for size in BATCHES:
        times = []
        for _ in range(3):
            started = perf_counter()
            detector.predict_batch([pixels] * size)
            times.append(perf_counter() - started)
        rates[str(size)] = size / statistics.median(times)
    return rates


def power_reader() -> tuple[str, Callable[[], float]] | None:
    """Where the platform says how many watts are drawn: NVIDIA's driver, a Jetson's sensors, or RAPL's counters."""
    query = ["nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits"]

    def gpu() -> float:
        return float(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0])

    rails = list(Path("/sys/bus/i2c/drivers/ina3221").glob("*/hwmon/hwmon*/curr1_input"))
    counters = list(Path("/sys/class/powercap").glob("intel-rapl:?/energy_uj"))

    def jetson() -> float:
        return (
            sum(float(rail.read_text()) * float(rail.with_name("in1_input").read_text()) for rail in rails) / 1e6
        )  # mA x mV

    def rapl() -> float:
        def joules() -> float:
            return sum(float(counter.read_text()) for counter in counters) / 1e6

        before, started = joules(), perf_counter()
        sleep(0.2)
        return (joules() - before) / (perf_counter() - started)

    for name, read in (("GPU (nvidia-smi)", gpu), ("module (INA3221)", jetson), ("CPU package (RAPL)", rapl)):
        try:
            if read() > 0:
                return name, read
        except (OSError, ValueError, IndexError, subprocess.SubprocessError):
            continue
    return None


def power(detector: Detector, seconds: float = 3.0) -> dict[str, Any] | None:
    """Watts idle and while films are scored one after the other; None where the platform does not say."""
    source = power_reader()
    if source is None:
        return None
    name, read = source

    def mean() -> float:
        ends = perf_counter() + seconds
        readings = []
        while perf_counter() < ends:
            readings.append(read())
            sleep(0.05)
        return statistics.fmean(readings)

    idle = mean()
    pixels, stop = film(detector.engine), threading.Event()

    def work() -> None:
        while not stop.is_set():
            detector.predict(pixels)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        busy = mean()
    finally:
        stop.set()
        worker.join()
    return {"source": name, "idle_w": idle, "busy_w": busy}


def device(where: str) -> str:
    """What the network runs on, in words."""
    if not where.startswith("cuda"):
        return "CPU"
    from ptxsdk.backends.cuda import Gpu

    gpu = Gpu.open(int(where.partition(":")[2] or 0))
    return f"{gpu.name}, compute capability {gpu.capability[0]}.{gpu.capability[1]}, driver {gpu.driver}"


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    quantiles, stages = report["warm"]["milliseconds"], report["warm"]["stages_ms"]
    on = report["warm"]["runs_on"]
    lines = [
        (
            f"ptxsdk {report['machine']['ptxsdk']}, engine {on['engine']}: {on['backend']} on {report['device']}, "
            f"{on['precision']}; {report['machine']['cpu']}"
        ),
        f"{'film in memory, 3000 x 2500 uint16':40} {report['warm']['films']} films",
        *(f"  {name:38} {value:9.2f} ms" for name, value in quantiles.items()),
        *(f"  {'stage: ' + name:38} {value:9.2f} ms" for name, value in stages.items()),
        *(f"  {'cold start: ' + name:38} {1e3 * value:9.0f} ms" for name, value in report["cold_s"].items()),
        *(f"  {'batch of ' + size:38} {rate:9.1f} films/s" for size, rate in report["batch_films_per_s"].items()),
    ]
    if report["power"] is None:
        lines.append("  power: the platform does not say")
    else:
        lines += [
            f"  {'power, idle':38} {report['power']['idle_w']:9.1f} W, {report['power']['source']}",
            f"  {'power, one film after the other':38} {report['power']['busy_w']:9.1f} W",
        ]
    return "\n".join(lines)


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw the distribution of the warm latency, the stages, and the batches."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    values = np.sort(report["warm"]["all_ms"])
    left.plot(values, np.arange(1, len(values) + 1) / len(values))
    for name, value in report["warm"]["milliseconds"].items():
        left.axvline(value, color="0.7", linewidth=0.8)
        left.text(value, 0.03, name, rotation=90, va="bottom", ha="right", fontsize=8)
    left.set(title="warm latency", xlabel="ms", ylabel="share of films")
    stages = report["warm"]["stages_ms"]
    bars = middle.barh(list(stages)[::-1], list(stages.values())[::-1])
    middle.bar_label(bars, fmt="%.2f", fontsize=8, padding=2)
    middle.margins(x=0.2)
    middle.set(title="stages, median", xlabel="ms")
    rates = report["batch_films_per_s"]
    right.plot(range(len(rates)), list(rates.values()), marker="o")
    right.set_xticks(range(len(rates)), list(rates))
    right.set(title="predict_batch", xlabel="films in the batch", ylabel="films/s", ylim=(0, None))
    figure.suptitle(report["device"] + ", " + report["warm"]["runs_on"]["precision"])
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--profile", default="cade")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    chosen = parser.parse_args()
    if chosen.engine is not None:
        chosen.engine = str(Path(chosen.engine).resolve())
    options = {name: getattr(chosen, name) for name in ("engine", "device", "precision", "profile", "threads")}
    os.environ[_OPTIONS] = json.dumps(options)
    report: dict[str, Any] = {"machine": machine(), "options": options}
    with make_detector() as detector:
        parts: dict[str, Callable[[], Any]] = {
            "warm": lambda: warm(chosen.rounds),
            "device": lambda: device(report["warm"]["runs_on"]["device"]),
            "cold_s": lambda: cold(options, detector.engine),
            "batch_films_per_s": lambda: batches(detector),
            "power": lambda: power(detector),
        }
        for name, part in parts.items():
            report[name] = part()
            if chosen.json:  # after each part: one that fails costs no other
                chosen.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(report))
    if chosen.plot:
        plot(report, chosen.plot)


if __name__ == "__main__":
    main()
