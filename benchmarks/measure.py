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

import numpy as np

import ptxsdk


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
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "ptxsdk": ptxsdk.__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def write_json(path: Path, report: Mapping[str, Measurement], **facts: object) -> None:
    """Write measurements with the machine they came from."""
    body = {"machine": machine(), **facts, "milliseconds": {name: asdict(m) for name, m in report.items()}}
    path.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
