"""What does a precision bring on this CPU? The network alone, against ONNX Runtime in fp32 on the same threads.

All in one run, in turns of ten calls each, of which the median turn counts; a pause before each turn lets the threads
of the one before come to rest, which some runtimes keep spinning.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from time import sleep

import numpy as np
from measure import Measurement, interleaved, write_json

from ptxsdk import Detector, Engine, backends

PAUSE = 0.1
CALLS = 10


def main() -> None:
    """Run, print ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--engine", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    engine = Engine.open(options.engine or Engine.default_path())
    pixels = engine.golden()[0].pixels
    report: dict[str, Measurement] = {}
    ratios = {}
    for threads in options.threads:
        candidates: dict[str, Callable[[], object]] = {}
        for name, precision in (("onnxruntime", "fp32"), *(("openvino", each) for each in engine.precisions)):
            with Detector(engine, backend=name, precision=precision, threads=threads) as detector:
                print(f"{name} {precision}: probability {detector.predict(pixels).probability:.4f}")
            loaded = backends.load(engine, backend=name, device="cpu", precision=precision, threads=threads)
            loaded.input[...] = np.random.default_rng(0).uniform(-1, 1, loaded.input.shape)
            candidates[f"{name} {precision}"] = lambda loaded=loaded: [loaded.infer() for _ in range(CALLS)]
        measured = interleaved(candidates, options.repeats, before=lambda: sleep(PAUSE))
        base = next(iter(measured.values()))
        print(f"\nthe network, {threads} thread{'s' if threads > 1 else ''}: times faster than onnxruntime fp32")
        for name, own in measured.items():
            ratio = base.median / own.median
            print(f"  {name:20}{own.median / CALLS:9.2f} ms (least {own.low / CALLS:.2f}){ratio:8.2f} x")
            report[f"{name}, {threads} threads"] = own
            ratios[f"{name}, {threads} threads"] = round(ratio, 3)
    if options.json:
        write_json(
            options.json, report, engine=engine.id.sha256, calls_a_turn=CALLS, times_faster_than_onnxruntime_fp32=ratios
        )


if __name__ == "__main__":
    main()
