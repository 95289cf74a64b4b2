"""Question: how long does aggregate take beside the hand-written way, and beside reading the map once.

Hand-written: the sigmoid in numpy, components by cv2, statistics in numpy on each component's box, outlines
by cv2.findContours, the noisy-OR in numpy.  The ways are timed in turns; the table shows medians.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from measure import Measurement, interleaved, print_table, write_json

from ptxsdk.geometry import Geometry
from ptxsdk.ops.aggregate import Aggregate, aggregate, mask_probability

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


def ways(size: int, mask: npt.NDArray[np.float32]) -> dict[str, Callable[[], object]]:
    """Every way to treat one map, after seeing that ours and the hand-written one agree."""
    geometry = Geometry.fit(FILM, (size, size))
    patch = np.random.default_rng(1).normal(-4, 1, (size // 32, size // 32)).astype(np.float32)

    def ours(*, want_outlines: bool = True) -> Aggregate:
        return aggregate(
            patch,
            mask,
            geometry=geometry,
            method="noisy_or",
            high=HIGH,
            low=LOW,
            min_area=MIN_AREA,
            columns_toward="left",
            want_outlines=want_outlines,
        )

    logit, regions = by_hand(patch, mask, geometry)
    assert abs(ours().logit - logit) < 1e-9 * max(1, abs(logit))
    assert len(ours().regions) == len(regions)
    return {
        "aggregate": ours,
        "without outlines": lambda: ours(want_outlines=False),
        "by hand": lambda: by_hand(patch, mask, geometry),
        "one read (np.sum)": lambda: mask.sum(),
        "mask_probability": lambda: mask_probability(mask),
        "numpy sigmoid": lambda: 1 / (1 + np.exp(-mask)),
    }


def main() -> None:
    """Run, check that both agree, print ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs="+", default=[512, 1024], help="sides of the map")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    report: dict[str, Measurement] = {}
    for size in options.size:
        for name, mask in maps(size).items():
            measured = interleaved(ways(size, mask), options.repeats)
            print_table(f"\n{size} x {size} map, {name}, one thread", list(measured.items()), measured["aggregate"])
            report |= {f"{size}, {name}: {way}": one for way, one in measured.items()}
    if options.json:
        write_json(options.json, report)


if __name__ == "__main__":
    main()
