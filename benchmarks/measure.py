"""How benchmarks measure: candidates interleaved in one run, medians, ratios; and the machine beside the numbers."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

import ptxsdk
from ptxsdk.cli.doctor import cpu

ROWS, COLUMNS = 3000, 2500
LOW, HIGH = 0.0, 4080.0  # window of `golden_film`


@dataclass(frozen=True)
class Measurement:
    """Wall-clock milliseconds of one candidate."""

    median: float
    low: float
    p95: float
    repeats: int


def interleaved(
    candidates: Mapping[str, Callable[[], object]], repeats: int, *, before: Callable[[], object] = lambda: None
) -> dict[str, Measurement]:
    """Time candidates in turns, so that a noisy moment hits all of them; three warm-up turns; `before` is not timed."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(repeats + 3):
        for name, call in candidates.items():
            before()
            begin = perf_counter()
            call()
            if turn >= 3:
                times[name].append(1e3 * (perf_counter() - begin))
    return {
        name: Measurement(float(np.median(t)), min(t), float(np.percentile(t, 95)), len(t)) for name, t in times.items()
    }


def print_table(title: str, rows: Sequence[tuple[str, Measurement]], base: Measurement) -> None:
    """Print medians and each row's ratio to `base`."""
    print(title)
    print(f"  {'':28}{'median ms':>11}{'min ms':>9}{'p95 ms':>9}{'ratio':>8}")
    for name, m in rows:
        print(f"  {name:28}{m.median:11.2f}{m.low:9.2f}{m.p95:9.2f}{m.median / base.median:8.2f}")


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "cpu": cpu()["model"],
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "ptxsdk": ptxsdk.__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def golden_film(engine: ptxsdk.Engine) -> npt.NDArray[np.uint16]:
    """The engine's first golden film, enlarged to 3000 x 2500, 12 bits."""
    golden = engine.golden()[0].pixels.astype(np.float32) * 16
    large = cv2.resize(golden, (COLUMNS, ROWS), interpolation=cv2.INTER_CUBIC)
    return np.clip(large, 0, 4095).astype(np.uint16)


def write_json(path: Path, report: Mapping[str, Measurement], **facts: object) -> None:
    """Write measurements with the machine they came from."""
    body = {"machine": machine(), **facts, "milliseconds": {name: asdict(m) for name, m in report.items()}}
    path.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
