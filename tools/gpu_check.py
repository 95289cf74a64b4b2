"""Everything that only a CUDA machine can show, in one go: build, twin tests, sanitizers, times, end to end.

    python tools/gpu_check.py [--out benchmarks/results] [--skip-build]

Needs nvcc and a driver.  compute-sanitizer is used where it is found (it comes with the toolkit, and as the package
nvidia-cuda-sanitizer-api), TensorRT, PyTorch and CuPy where they are installed.  Prints a table of what passed, failed
or could not be run, writes gpu-check.json and gpu-kernels.json, and ends with status 1 if anything failed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).resolve().parent.parent
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
# Small films and maps: sanitizers are slow.
SANITIZED = ("tests/ops/test_device.py", "tests/ops/test_preprocess.py", "tests/ops/test_aggregate.py")


@dataclass(frozen=True)
class Step:
    """What was run and how it ended: "passed", "failed" or "not run"."""

    name: str
    outcome: str
    seconds: float
    said: str


def run(name: str, *command: str, needs: str | None = None) -> Step:
    """Run a step; what it prints is shown, its last lines are kept."""
    if needs is not None and not found(needs):
        return Step(name, "not run", 0.0, f"{needs} is not there")
    print(f"\n== {name}: {' '.join(command)}", flush=True)
    started = perf_counter()
    # Not the folder here but what is installed is to be imported: safe path, in Python 3.11 and later.
    safe = os.environ | {"PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=safe, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    print(done.stdout, flush=True)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    outcome = "failed" if done.returncode else "passed"
    if outcome == "passed" and "passed" not in done.stdout and "pytest" in command:
        outcome = "not run"  # every test was skipped
    return Step(name, outcome, round(perf_counter() - started, 1), " | ".join(lines[-2:])[-300:])


def found(tool: str) -> str | None:
    """Where a program is: on the path, or in the packages of this interpreter."""
    near = sorted(Path(sys.prefix).glob(f"lib/python*/site-packages/nvidia/**/{tool}"))
    return shutil.which(tool) or (str(near[0]) if near else None)


def main() -> None:
    """Run all steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--skip-build", action="store_true")
    options = parser.parse_args()
    python = sys.executable
    pytest = (python, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider")
    steps = []
    if not options.skip_build:
        steps.append(
            run("build", python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", ".", needs="nvcc")
        )
    steps.append(run("kernels compile", python, "tools/kernel_report.py", needs="nvcc"))
    steps.append(run("twins and pipeline on the GPU", *pytest, "tests"))
    sanitizer = found("compute-sanitizer")
    for tool in SANITIZERS:
        # Python and PyTorch never free everything; leaks are not what this looks for.
        command = (
            str(sanitizer),
            f"--tool={tool}",
            "--error-exitcode=9",
            "--target-processes=all",
            *pytest,
            *SANITIZED,
        )
        steps.append(run(f"compute-sanitizer {tool}", *command, needs="compute-sanitizer"))
    kernels = options.out / "gpu-kernels.json"
    steps.append(run("kernel times", python, "benchmarks/bench_kernels.py", "--json", str(kernels)))
    steps.append(
        run(
            "latency",
            python,
            "benchmarks/latency.py",
            "--device",
            "cuda",
            "--json",
            str(options.out / "gpu-latency.json"),
        )
    )
    driver = run("driver", "nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", needs="nvidia-smi")
    options.out.mkdir(parents=True, exist_ok=True)
    report = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "gpu": driver.said,
        "steps": [asdict(step) for step in steps],
    }
    (options.out / "gpu-check.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"\n{driver.said}")
    for step in steps:
        print(f"  {step.name:36} {step.outcome:8} {step.seconds:7.1f} s   {step.said[:90]}")
    sys.exit(any(step.outcome == "failed" for step in steps))


if __name__ == "__main__":
    main()
