"""ops.preprocess: is one fused pass worth it?

3000 x 2500 uint16 to 512 x 512, against the float formulation a user writes first, against the best that OpenCV and
numpy can do of it, and against the floor: one pure read of the source.  All in one run, on the same threads.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from measure import Measurement, interleaved, print_table, write_json

from ptxsdk import Display, Window
from ptxsdk.ops import preprocess_into

ROWS, COLUMNS, SIZE = 3000, 2500, 512
LOW, HIGH = 547.5, 3546.5  # the bounds of Window(2047.5, 3000)
STRIP = 375  # source rows that make exactly 64 target rows: 3000 / 512 = 375 / 64


def film() -> npt.NDArray[np.uint16]:
    """A 12-bit film with the smoothness and noise of a radiograph."""
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.uniform(300, 3800, (12, 10)).astype(np.float32), (COLUMNS, ROWS))
    return np.clip(smooth + rng.normal(0, 60, smooth.shape), 0, 4095).astype(np.uint16)


def float_formulation(pixels: npt.NDArray[np.uint16], width: int) -> npt.NDArray[np.float32]:
    """astype, window, clip, invert, resize: what a user writes first."""
    values = pixels.astype(np.float32)
    values = (values - np.float32(LOW)) / np.float32(HIGH - LOW)
    values = np.clip(values, 0, 1)
    values = 1 - values
    return cv2.resize(values, (width, SIZE), interpolation=cv2.INTER_AREA)


class BestOpenCv:
    """Strips that stay in the cache, buffers reused, every step in place; window folded into one affine map."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.values = np.empty((STRIP, COLUMNS), np.float32)
        self.result = np.empty((SIZE, width), np.float32)

    def __call__(self, pixels: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
        """The same numbers as the float formulation."""
        gain = 1 / (HIGH - LOW)
        rows = STRIP * SIZE // ROWS
        for strip in range(ROWS // STRIP):
            source = pixels[strip * STRIP : (strip + 1) * STRIP]
            np.clip(source, LOW, HIGH, out=self.values, casting="unsafe", dtype=np.float32)
            target = self.result[strip * rows : (strip + 1) * rows]
            cv2.resize(self.values, (self.width, rows), dst=target, interpolation=cv2.INTER_AREA)
        self.result *= -gain
        self.result += 1 + LOW * gain
        return self.result


def main() -> None:
    """Run, check that all give the same result, print ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    pixels = film()
    display = Display(voi=Window((LOW + HIGH) / 2, HIGH - LOW, "LINEAR_EXACT"), invert=True)
    target = np.empty((SIZE, SIZE), np.float32)
    geometry = preprocess_into(target, pixels, display=display)
    x0, y0, x1, y1 = geometry.content
    width = x1 - x0
    best = BestOpenCv(width)
    expected = float_formulation(pixels, width)
    for name, result in (("preprocess", target[y0:y1, x0:x1]), ("best OpenCV", best(pixels))):
        difference = float(np.abs(result - expected).max())
        print(f"{name} against the float formulation: largest difference {difference:.1e}")
        assert difference < 1e-5

    words = pixels.view(np.uint64)
    report: dict[str, Measurement] = {}
    for threads in options.threads:
        cv2.setNumThreads(threads)
        candidates: dict[str, Callable[[], object]] = {
            "preprocess": lambda threads=threads: preprocess_into(target, pixels, display=display, threads=threads),
            "float formulation": lambda: float_formulation(pixels, width),
            "best OpenCV/numpy": lambda: best(pixels),
            "one read (np.max)": lambda: words.max(),
        }
        for name, measured in interleaved(candidates, options.repeats).items():
            report[f"{name}, {threads} threads"] = measured
        base = report[f"preprocess, {threads} threads"]
        print_table(
            f"\n{ROWS} x {COLUMNS} uint16 -> {SIZE} x {SIZE}, {threads} thread(s); the read is always on one thread",
            [(n, report[f"{n}, {threads} threads"]) for n in candidates],
            base,
        )
    megabytes = pixels.nbytes / 1e6
    print(f"\nsource {megabytes:.1f} MB, read once; target {target.nbytes / 1e6:.1f} MB, written once")
    if options.json:
        write_json(options.json, report, film=f"{ROWS}x{COLUMNS} uint16", size=SIZE)


if __name__ == "__main__":
    main()
