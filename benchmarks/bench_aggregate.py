"""Question: how long does aggregate take beside the hand-written way, and beside reading the map once.

Hand-written: the sigmoid in numpy, components by cv2, statistics in numpy on each component's box, outlines
by cv2.findContours, the noisy-OR in numpy.  The ways are timed in turns; the table shows medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import cv2
import numpy as np

from ptxsdk.geometry import Geometry
from ptxsdk.ops.aggregate import aggregate, mask_probability

HIGH, LOW, MIN_AREA = 0.75, 0.3, 20
FILM = (2544, 3056)


def maps(size: int) -> dict[str, np.ndarray]:
    """Make maps from the usual to the worst."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] * (512 / size)
    texture = cv2.GaussianBlur(rng.normal(0, 1, (size, size)), (0, 0), 3) * 3
    apex = 8 * np.exp(-(((x - 370) / 60) ** 2) - ((y - 130) / 25) ** 2)
    base = 7 * np.exp(-(((x - 130) / 20) ** 2) - ((y - 330) / 60) ** 2)
    made = {
        "nothing above low": np.full((size, size), -6.0),
        "two regions": -6 + apex + base + texture,
        "all above low": np.full((size, size), 3.0),
        "smooth noise": 2 * texture - 1,
        "white noise": rng.normal(-1, 1.5, (size, size)),
    }
    return {name: np.ascontiguousarray(one, np.float32) for name, one in made.items()}


def by_hand(patch: np.ndarray, mask: np.ndarray, geometry: Geometry) -> tuple[float, list[tuple[object, ...]]]:
    """Do what `aggregate` does with numpy and OpenCV, as one would write it by hand."""
    s = -np.logaddexp(0, patch.astype(np.float64)).sum()
    logit = float(np.log(-np.expm1(s)) - s)
    x0, y0, x1, y1 = geometry.content
    probability = 1 / (1 + np.exp(-mask[y0:y1, x0:x1]))
    count, labels, stats, centroids = cv2.connectedComponentsWithStats(
        (probability >= LOW).astype(np.uint8), connectivity=8
    )
    regions: list[tuple[object, ...]] = []
    for label in range(1, count):
        left, top, width, height, area = (int(value) for value in stats[label])
        if area < MIN_AREA:
            continue
        pixels = labels[top : top + height, left : left + width] == label
        inside = np.where(pixels, probability[top : top + height, left : left + width], 0)
        peak = np.unravel_index(inside.argmax(), inside.shape)
        if inside[peak] < HIGH:
            continue
        contours, _ = cv2.findContours(pixels.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        outline = [geometry.to_source(x0 + left + x, y0 + top + y) for x, y in contours[0][:, 0].tolist()]
        box = (
            *geometry.to_source(x0 + left, y0 + top),
            *geometry.to_source(x0 + left + width, y0 + top + height),
        )
        regions.append((area, box, outline, centroids[label], peak, inside[peak], inside.sum() / area))
    return logit, sorted(regions, key=lambda region: -region[0])  # type: ignore[operator]


def timed(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median milliseconds of each way, run in turns."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = perf_counter()
            way()
            taken[name].append(1e3 * (perf_counter() - start))
    return {name: statistics.median(times[len(times) // 10 :]) for name, times in taken.items()}


def bench(size: int, repeats: int) -> dict[str, dict[str, float]]:
    """Time every way on every map of `size`; first see that they agree."""
    geometry = Geometry.fit(FILM, (size, size))
    patch = np.random.default_rng(1).normal(-4, 1, (size // 32, size // 32)).astype(np.float32)
    results = {}
    for name, mask in maps(size).items():

        def ours(mask: np.ndarray = mask, *, want_outlines: bool = True) -> object:
            return aggregate(
                patch, mask, geometry=geometry, method="noisy_or", high=HIGH, low=LOW, min_area=MIN_AREA,
                columns_toward="left", want_outlines=want_outlines,
            )  # fmt: skip

        logit, regions = by_hand(patch, mask, geometry)
        found = ours()
        assert abs(found.logit - logit) < 1e-9 * max(1, abs(logit))  # type: ignore[attr-defined]
        assert len(found.regions) == len(regions)  # type: ignore[attr-defined]
        results[name] = {
            "regions": len(regions),
            **timed(
                {
                    "aggregate": ours,
                    "no outlines": lambda ours=ours: ours(want_outlines=False),
                    "by hand": lambda mask=mask: by_hand(patch, mask, geometry),
                    "read once": lambda mask=mask: mask.sum(),
                    "probability": lambda mask=mask: mask_probability(mask),
                    "numpy sigmoid": lambda mask=mask: 1 / (1 + np.exp(-mask)),
                },
                repeats,
            ),
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs="+", default=[512, 1024], help="sides of the map")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    results = {size: bench(size, options.repeats) for size in options.size}
    columns = ("aggregate", "no outlines", "by hand", "read once", "probability", "numpy sigmoid")
    for size, by_map in results.items():
        print(f"\n{size} x {size} map, one thread, median ms")
        print(f"{'map':18} regions " + " ".join(f"{column:>13}" for column in columns) + "   by hand/ours  ours/read")
        for name, row in by_map.items():
            print(
                f"{name:18} {row['regions']:7} "
                + " ".join(f"{row[column]:13.3f}" for column in columns)
                + f" {row['by hand'] / row['aggregate']:14.1f} {row['aggregate'] / row['read once']:10.1f}"
            )
    if options.json:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
            "system": platform.system(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "opencv": cv2.__version__,
        }
        options.json.write_text(json.dumps({"machine": machine, "unit": "ms", "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
