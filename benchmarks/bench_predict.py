"""Detector.predict: what does the SDK cost beside the network, and beside what a user would write by hand?

A warm predict on a 3000 x 2500 uint16 film in memory, against numpy + OpenCV + ONNX Runtime fp32 with the same network
and OpenCV components, in one run on the same threads.  The hand-written way also runs on OpenVINO, to tell the share
of the runtime from the share of the SDK.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import onnxruntime
import openvino
from measure import COLUMNS, HIGH, LOW, ROWS, golden_film, interleaved, print_table, write_json

from ptxsdk import Detector, Engine, Radiograph, Timings


class ByHand:
    """What a user writes: float image, resize, pad, network, sigmoid, top-k, components."""

    def __init__(self, engine: Engine, run: Callable[[npt.NDArray[np.float32]], tuple[Any, Any]]) -> None:
        self.manifest = engine.manifest
        self.run = run

    def __call__(self, pixels: npt.NDArray[np.uint16]) -> tuple[float, list[tuple[int, ...]]]:
        """Probability and boxes in source pixels."""
        spec = self.manifest.input
        values = np.clip((pixels.astype(np.float32) - LOW) / (HIGH - LOW), 0, 1)
        scale = min(spec.size[0] / ROWS, spec.size[1] / COLUMNS)
        height, width = round(ROWS * scale), round(COLUMNS * scale)
        top, left = (spec.size[0] - height) // 2, (spec.size[1] - width) // 2
        tensor = np.zeros(spec.size, np.float32)
        tensor[top : top + height, left : left + width] = cv2.resize(
            values, (width, height), interpolation=cv2.INTER_AREA
        )
        patch, mask = self.run(((tensor - spec.mean) / spec.std)[None, None].astype(np.float32))
        logits = patch if self.manifest.aggregation.source == "patch" else mask
        count = {"max": 1, "top_k": self.manifest.aggregation.k or 1}.get(self.manifest.aggregation.method, 8)
        logit = np.sort(logits.ravel())[-count:].mean()
        calibration = self.manifest.calibration
        probability = 1 / (1 + np.exp(-(calibration.scale * logit + calibration.bias)))
        heat = 1 / (1 + np.exp(-np.squeeze(mask)))
        count, labels, stats, _ = cv2.connectedComponentsWithStats(
            (heat >= self.manifest.regions.low).astype(np.uint8), connectivity=8
        )
        boxes = []
        for label in range(1, count):
            inside = labels == label
            if heat[inside].max() < self.manifest.regions.high or stats[label][4] < self.manifest.regions.min_area:
                continue
            cv2.findContours(inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            x, y, w, h = (int(v) for v in stats[label][:4])
            boxes.append(tuple(round(v / scale) for v in (x - left, y - top, x - left + w, y - top + h)))
        return float(probability), boxes


def onnxruntime_network(network: bytes, threads: int) -> Callable[[npt.NDArray[np.float32]], tuple[Any, Any]]:
    """Run the network by ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    return lambda tensor: tuple(session.run(["patch_logits", "mask_logits"], {"image": tensor}))


def openvino_network(network: bytes, threads: int) -> Callable[[npt.NDArray[np.float32]], tuple[Any, Any]]:
    """Run the network by OpenVINO."""
    core = openvino.Core()
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(core.read_model(network), "CPU", options).create_infer_request()

    def run(tensor: npt.NDArray[np.float32]) -> tuple[Any, Any]:
        request.infer([tensor])
        return request.get_tensor("patch_logits").data, request.get_tensor("mask_logits").data

    return run


def main() -> None:
    """Run, check that all agree, print ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cv2.setNumThreads(options.threads)

    engine = Engine.open(Engine.default_path())
    network = engine.network("fp32")
    pixels = golden_film(engine)
    radiograph = Radiograph.from_array(pixels, window=(LOW, HIGH))
    detector = Detector(engine, precision="fp32", threads=options.threads)
    by_hand = ByHand(engine, onnxruntime_network(network, options.threads))
    by_hand_openvino = ByHand(engine, openvino_network(network, options.threads))

    timings: list[Timings] = []
    candidates: dict[str, Callable[[], object]] = {
        "ptxsdk": lambda: timings.append(detector.predict(radiograph).timings),
        "by hand, onnxruntime": lambda: by_hand(pixels),
        "by hand, openvino": lambda: by_hand_openvino(pixels),
    }
    print(f"probability by hand {by_hand(pixels)[0]:.5f}, by ptxsdk {detector.predict(radiograph).probability:.5f}")
    report = interleaved(candidates, options.repeats)
    rows = list(report.items())
    title = f"\nwarm predict, {ROWS} x {COLUMNS} uint16 in memory, fp32, {options.threads} threads"
    print_table(title, rows, rows[0][1])

    stages = {
        stage: float(np.median([getattr(t, stage) for t in timings[3:]]))
        for stage in ("read", "gate", "preprocess", "network", "aggregate", "total")
    }
    overhead = float(np.median([t.total - t.network for t in timings[3:]]))
    print("\n" + ", ".join(f"{name} {value:.2f}" for name, value in stages.items()) + " ms")
    print(
        f"overhead (predict minus network) {overhead:.2f} ms, {100 * overhead / stages['network']:.1f} % of the network"
    )
    if options.json:
        write_json(
            options.json,
            report,
            threads=options.threads,
            engine=engine.id.sha256,
            stages_ms=stages,
            overhead_ms=overhead,
        )


if __name__ == "__main__":
    main()
