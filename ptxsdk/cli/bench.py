"""Command: ``ptxsdk bench``."""

from __future__ import annotations

import json
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import typer

import ptxsdk
from ptxsdk.cli.detector import make_detector
from ptxsdk.cli.doctor import cpu
from ptxsdk.cli.options import (
    BackendOption,
    DeviceOption,
    EngineOption,
    JsonOption,
    KeyOption,
    Precision,
    PrecisionOption,
)
from ptxsdk.cli.output import console, fail, table
from ptxsdk.errors import PtxsdkError


def bench(
    engine: EngineOption = None,
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    precision: PrecisionOption = Precision.auto,
    repeats: Annotated[int, typer.Option("--repeats", min=5, help="Films to time.")] = 50,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time cold start, every stage and end to end on this device, with a 3000 x 2500 uint16 film in memory."""
    started = perf_counter()
    try:
        detector = make_detector(engine, key, device=device, backend=backend, precision=precision.value)
        cold = perf_counter() - started
        film = _bench_film(detector)
        for _ in range(3):
            detector.predict(film)
        timings = [detector.predict(film).timings for _ in range(repeats)]
    except PtxsdkError as error:
        fail(error, as_json=as_json)
    report: dict[str, Any] = {
        "engine": {"name": detector.engine.id.name, "version": detector.engine.id.version},
        "backend": detector.backend,
        "precision": detector.precision,
        "cpu": cpu()["model"],
        "film": "3000 x 2500 uint16",
        "repeats": repeats,
        "cold_start_ms": round(1e3 * cold, 1),
        "stages_ms": {},
    }
    for stage in ("read", "gate", "preprocess", "network", "aggregate", "total"):
        values = [getattr(timing, stage) for timing in timings]
        p50, p95, p99 = (round(float(value), 3) for value in np.percentile(values, (50, 95, 99)))
        report["stages_ms"][stage] = {"p50": p50, "p95": p95, "p99": p99}
    detector.close()
    if as_json:
        print(json.dumps(report))
        return
    terminal = console()
    terminal.print(
        f"{report['backend']} {report['precision']} on {report['cpu']}, cold start {report['cold_start_ms']} ms"
    )
    table(
        terminal,
        f"milliseconds a film, {repeats} films",
        ("stage", "p50", "p95", "p99"),
        [
            (stage, f"{entry['p50']:.2f}", f"{entry['p95']:.2f}", f"{entry['p99']:.2f}")
            for stage, entry in report["stages_ms"].items()
        ],
    )


def _bench_film(detector: ptxsdk.Detector) -> ptxsdk.Radiograph:
    """Return a golden film of the engine, enlarged to 3000 x 2500 and 12 bits: what a portable unit has in memory."""
    import cv2

    golden = detector.engine.golden()[0]
    low, high = golden.window
    pixels = cv2.resize(golden.pixels.astype(np.float32) * 16, (2500, 3000), interpolation=cv2.INTER_CUBIC)
    return ptxsdk.Radiograph.from_array(np.clip(pixels, 0, 4095).astype(np.uint16), window=(16 * low, 16 * high))
