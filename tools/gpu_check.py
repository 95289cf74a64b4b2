"""Everything that only a CUDA machine can show, in one go: build, twin tests, pipeline, times, sanitizers.

    python tools/gpu_check.py [--out benchmarks/results] [--minutes 8] [--skip-build]

Needs nvcc and a driver; installs ptxsdk for the GPU at hand alone, in the environment of this interpreter.
compute-sanitizer is used where it is found (it comes with the toolkit, and as the package nvidia-cuda-sanitizer-api),
TensorRT, PyTorch and CuPy where they are installed.  What ptxsdk itself depends on need not all be there: numpy, OpenCV
and ONNX suffice.

Made to run unattended: steps stand in the order of their worth, each has a time limit of its own, and what no longer
fits in the minutes is left out and said so.  As soon as a step ends, its full output is in gpu-check-logs/ and its
outcome in gpu-check.json; the benchmarks write gpu-kernels.json, gpu-end-to-end.json and gpu-latency.json part by part.
Ends with a table of what passed, failed or could not be run, and with status 1 if anything failed,
or if there is a GPU and the twins did not run on it.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("numpy", "cuda-core", "cuda-bindings", "cuda-pathfinder", "torch", "cupy-cuda13x", "cupy-cuda12x",
            "tensorrt", "tensorrt_rtx", "pybind11", "scikit-build-core", "cmake", "pytest")  # fmt: skip
PYTEST = (
    sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider", "--tb=short", "--durations=8",
    # A GPU that hangs costs one test; warnings of other libraries, and plugins that lie about, are no failure of ours.
    "-p", "pytest_timeout", "--timeout=60", "-W", "default",
)  # fmt: skip
# One process each: after a bad address CUDA refuses everything else in the process.
TWINS = "twins on the GPU"
TESTS = {
    TWINS: (f"{ROOT}/tests/ops/test_device.py",),
    "preprocess on the GPU": (f"{ROOT}/tests/ops/test_preprocess.py",),
    "aggregate on the GPU": (f"{ROOT}/tests/ops/test_aggregate.py",),
    "pipeline on the GPU": (f"{ROOT}/tests/backends",),
}
# Sanitizers are slow: every dtype and path of both kernels, small films and maps, and a graph of nothing but ours.
SMALL = (
    "(begin_anywhere and gpu-3-4) or run_upwards or batch_of_films or batch_and_its_repetition or float16_logits"
    " or around_a_copy"
)
SANITIZED = (
    f"{ROOT}/tests/ops/test_device.py",
    f"{ROOT}/tests/backends/test_film_graph_on_gpu.py",
    "-k",
    SMALL,
)
SANITIZERS = {
    # PyTorch and cuda-bindings ask the driver for functions that it may not have; Python never frees everything.
    "memcheck": ("--report-api-errors=no",),
    "racecheck": (),
    "initcheck": (),
    "synccheck": (),
}
NOT_RUN, NO_TESTS = 77, 5  # exit status of a benchmark that cannot be run here, and of pytest without a test
KEPT_LINES, KEPT_LINE = 60, 300  # of a step's output in the JSON; all of it is in the log
LEAST_SECONDS = 10  # a step that would get less is not begun
PROBE = f"""
import sys
from ptxsdk import backends
usable, reason = backends.probe("tensorrt")
print(reason)
sys.exit(0 if usable else {NOT_RUN})
"""


@dataclass(frozen=True)
class Step:
    """What was run and how it ended: "passed", "failed", "timed out" or "not run"."""

    name: str
    outcome: str
    seconds: float
    said: str
    log: str = ""
    output: list[str] = field(default_factory=list, repr=False)


class Check:
    """The steps so far, in files under `out`, and the time that is left."""

    def __init__(self, out: Path, minutes: float) -> None:
        self.out, self.logs = out, out / "gpu-check-logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        for old in self.logs.glob("[0-9][0-9]-*.log"):
            old.unlink()
        self.ends = monotonic() + 60 * minutes
        self.facts: dict[str, Any] = {"date": datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds")}
        self.steps: list[Step] = []

    def proves_something(self) -> bool:
        """Say whether nothing failed, and the twins ran if there is a GPU."""
        ran = any(step.name == TWINS and step.outcome == "passed" for step in self.steps)
        broken = any(step.outcome in ("failed", "timed out") for step in self.steps)
        return not broken and (ran or not self.facts["gpu"].get("name"))

    def run(self, name: str, *command: str, limit: float, **environment: str) -> Step:
        """Run a step for at most `limit` seconds; its output goes to its log."""
        left = self.ends - monotonic()
        if left < LEAST_SECONDS:
            return self.leave_out(name, "no time was left")
        print(f"\n== {name}: {' '.join(command)}", flush=True)
        started = monotonic()
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        log = self.logs / f"{len(self.steps) + 1:02}-{slug}.log"
        outcome, why = ended(command, log, min(limit, left), environment, self.logs)
        text = log.read_text("utf-8", "replace").replace(str(ROOT), ".").replace(sys.prefix, "python")
        lines = [line.rstrip()[:KEPT_LINE] for line in text.splitlines() if line.strip()]
        if outcome == "passed" and "pytest" in command and not re.search(r"\b\d+ passed", "\n".join(lines[-9:])):
            outcome = "not run"  # every test was skipped
        if outcome == "passed" and "sanitizer" in command[0] and "SUMMARY" not in text:
            outcome, why = "failed", "no summary"
        said = " | ".join([*([why] if why else []), *worth_saying(lines)])[:KEPT_LINE]
        print("\n".join(lines[-12:]), flush=True)
        seconds = round(monotonic() - started, 1)
        return self._add(Step(name, outcome, seconds, said, log.name, kept(lines)))

    def leave_out(self, name: str, reason: str) -> Step:
        """Note a step that is not run."""
        print(f"\n== {name}: not run, {reason}", flush=True)
        return self._add(Step(name, "not run", 0.0, reason))

    def _add(self, step: Step) -> Step:
        self.steps.append(step)
        self.write()
        return step

    def write(self) -> None:
        """Bring the JSON up to date."""
        report = self.facts | {"steps": [asdict(step) for step in self.steps]}
        new = self.out / "gpu-check.json.new"
        new.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        new.replace(self.out / "gpu-check.json")


def ended(command: Sequence[str], log: Path, limit: float, environment: dict[str, str], where: Path) -> tuple[str, str]:
    """Run a command with its output in `log`; how it ended, and what the output does not say of that.

    It runs in a folder outside the checkout: the installed ptxsdk is to be imported, not the one here.
    """
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    variables |= {"PYTHONUNBUFFERED": "1", **environment}
    if "pytest" in command:
        variables["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command,
                cwd=where,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=os.setpgrp,  # so that its children can be ended with it
            )
        except OSError as error:
            return "failed", f"{command[0]} cannot be started: {error}"
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            end_all(process)
            return "timed out", f"ended after {limit:.0f} s"
        except BaseException:
            end_all(process)
            raise
    if status == NOT_RUN or (status == NO_TESTS and "pytest" in command):
        return "not run", ""
    if status < 0:
        return "failed", f"ended by {signal.Signals(-status).name}"
    return ("failed", f"status {status}") if status else ("passed", "")


def end_all(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children: asked first, so that pytest tells what it has so far."""
    for how, patience in ((signal.SIGINT, 5), (signal.SIGKILL, 5)):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, how)
        with suppress(subprocess.TimeoutExpired):  # one that hangs in the driver may not die
            process.wait(patience)


def worth_saying(lines: list[str]) -> list[str]:
    """Return the lines that say how a step ended: the counts of sanitizer and tests, and the last."""
    sanitizer = [line.strip("= ") for line in lines if re.match(r"=+ .*SUMMARY:", line)]
    pytest = [line.strip("= ") for line in lines if re.match(r"=+ .*\b(passed|failed|skipped|errors?)\b.* in ", line)]
    last = [line for line in lines[-2:] if not line.startswith("=")]
    return [*sanitizer[-1:], *pytest[-1:], *last]


def kept(lines: list[str]) -> list[str]:
    """Return what stands in the JSON of an output: failures and a sanitizer's first blocks, then the end."""
    telling = [
        i for i, line in enumerate(lines)
        if re.match(r"=========|E  |FAILED|ERROR|SKIPPED", line) or re.search(r"\berror\b|SUMMARY", line)
    ]  # fmt: skip
    first = telling[: KEPT_LINES // 2]
    last = range(max(0, len(lines) - KEPT_LINES + len(first)), len(lines))
    return [lines[i] for i in sorted({*first, *last})]


def found(tool: str) -> str | None:
    """Where a program is: on the path, or in the packages of this interpreter."""
    near = sorted(Path(sysconfig.get_path("purelib")).glob(f"nvidia/**/{tool}"))
    return shutil.which(tool) or next((str(path) for path in near if os.access(path, os.X_OK) and path.is_file()), None)


def said(*command: str) -> str:
    """Return what a short command prints, in one line; empty where it cannot be run."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return " | ".join(line.strip() for line in done.stdout.splitlines() if line.strip()) if not done.returncode else ""


def versions() -> dict[str, str]:
    """Return the versions of what the outcome depends on."""
    known = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            known[name] = importlib.metadata.version(name)
    for tool in ("nvcc", "compute-sanitizer"):
        known[tool] = said(found(tool) or tool, "--version").rpartition("| ")[2]
    return {name: version or "not there" for name, version in known.items()}


def gpu() -> dict[str, str]:
    """Name, driver and compute capability of the first GPU, as far as nvidia-smi knows them."""
    known = {}
    for name in ("name", "driver_version", "compute_cap", "memory.total", "clocks.sm", "power.limit"):
        # One by one: an old nvidia-smi refuses all for one that it does not know.
        value = said("nvidia-smi", f"--query-gpu={name}", "--format=csv,noheader").split(" | ")[0]
        if value:
            known[name] = value
    return known


def build_options(capability: str, known: str) -> list[str]:
    """Options of the build for one GPU alone, where nvcc knows it (`known` are its architectures); else for all."""
    options = ["--config-settings=build-dir=build/gpu-check"]  # no settings of another build
    architecture = capability.replace(".", "")
    if architecture and re.search(rf"\bsm_{architecture}\b", known):
        options.append(f"--config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES={architecture}-real")
    return options


def build(check: Check) -> None:
    """Install this checkout, its CUDA operations for the GPU at hand."""
    nvcc = found("nvcc")
    if nvcc is None:
        check.leave_out("build", "nvcc is not there")
        return
    options = build_options(check.facts["gpu"].get("compute_cap", ""), said(nvcc, "--list-gpu-code"))
    check.run(
        "build", sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--verbose", "--no-index",
        "--no-build-isolation", "--no-deps", *options, str(ROOT),
        limit=240,
        CUDACXX=nvcc,
        CMAKE_BUILD_PARALLEL_LEVEL=str(os.cpu_count() or 1),
        # Warnings of a host compiler that CI does not have are no reason to go without a result.
        NVCC_APPEND_FLAGS=f"{os.environ.get('NVCC_APPEND_FLAGS', '')} -Xcompiler=-Wno-error".strip(),
    )  # fmt: skip


def sanitize(check: Check, tool: str, *options: str) -> None:
    """Run a few small tests under one of compute-sanitizer's tools."""
    name = f"compute-sanitizer {tool}"
    sanitizer = found("compute-sanitizer")
    if sanitizer is None:
        check.leave_out(name, "compute-sanitizer is not there")
        return
    twins = next((step for step in check.steps if step.name == TWINS and step.outcome == "not run"), None)
    if twins is not None:  # the same tests would not run either
        check.leave_out(name, twins.said)
        return
    general = (f"--tool={tool}", "--error-exitcode=9", "--print-limit=20")
    check.run(name, sanitizer, *general, *options, *PYTEST, *SANITIZED, limit=75)


def latency(check: Check) -> None:
    """Time a detector, where TensorRT can run its network."""
    probe = check.run("TensorRT", sys.executable, "-c", PROBE, limit=60)
    if probe.outcome != "passed":
        check.leave_out("latency", probe.said)
        return
    script = (f"{ROOT}/benchmarks/latency.py", "--device", "cuda", "--json", str(check.out / "gpu-latency.json"))
    check.run("latency", sys.executable, *script, limit=180)


def main() -> None:
    """Run all steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all steps together")
    parser.add_argument("--skip-build", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # so that the running step is ended too
    check = Check(options.out.resolve(), options.minutes)
    check.facts |= {"gpu": gpu(), "versions": versions()}
    check.write()
    for facts in (check.facts["gpu"], check.facts["versions"]):
        print("\n".join(f"{name:20} {value}" for name, value in facts.items()), flush=True)
    if not options.skip_build:
        build(check)
    for name, tests in TESTS.items():
        check.run(name, *PYTEST, *tests, limit=90)
    for name, parts, file in (
        ("kernel times", ("floors", "preprocess", "aggregate"), "gpu-kernels.json"),
        ("end to end", ("end to end",), "gpu-end-to-end.json"),
    ):
        command = (f"{ROOT}/benchmarks/bench_kernels.py", "--json", str(check.out / file), "--parts", *parts)
        check.run(name, sys.executable, *command, limit=90)
    for tool, more in SANITIZERS.items():
        sanitize(check, tool, *more)
    comparison = (f"{ROOT}/benchmarks/bench_kernels.py", "--json", str(check.out / "gpu-others.json"), "--parts")
    check.run("PyTorch and CuPy", sys.executable, *comparison, "PyTorch", "CuPy", limit=60)
    latency(check)
    print(f"\n{check.facts['gpu'].get('name', 'no GPU')}; {check.out / 'gpu-check.json'}")
    for step in check.steps:
        print(f"  {step.name:28} {step.outcome:9} {step.seconds:6.1f} s   {step.said[:110]}")
    sys.exit(not check.proves_something())


if __name__ == "__main__":
    main()
