"""The GPU check and its benchmark, as far as a machine without a GPU can tell: they launch what they say."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import played_cuda
import pytest
import stand_in
from made import GRID, SIZE, network_output
from pretend_gpu import PretendBackend, PretendCuda, PretendGpu

from ptxsdk import Engine
from ptxsdk.backends import film_graph
from ptxsdk.ops import device

ROOT = Path(__file__).resolve().parents[1]


def load(path, monkeypatch):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    monkeypatch.syspath_prepend(str((ROOT / path).parent))
    spec.loader.exec_module(module)
    return module


def test_the_kernel_benchmark_launches_what_it_times(monkeypatch):
    bench_kernels = load("benchmarks/bench_kernels.py", monkeypatch)
    gpu = PretendGpu()
    cuda = PretendCuda(played_cuda.module(), gpu)
    monkeypatch.setattr(device, "cuda_module", lambda: cuda)
    for name, value in {"ROWS": 60, "COLUMNS": 50, "SIZE": 32, "BATCH": 3}.items():
        monkeypatch.setattr(bench_kernels, name, value)
    launched = []

    def once(self, launch, launches=0):
        launch(self.handle)
        self.wait()
        launched.append(launches)
        return 1e-5

    monkeypatch.setattr(bench_kernels.Bench, "seconds", once)
    with gpu.current():
        bench = bench_kernels.Bench(gpu)
        times = bench_kernels.preprocess_times(bench) | bench_kernels.aggregate_time(bench)
    assert len(launched) == len(times) == 6
    floor = {"copy_bandwidth": 1e9, "launch": 2e-6, "transfer": 5e-6}
    found = bench_kernels.verdicts(floor, times)
    batch_bytes = 3 * (60 * 50 * 2 + 32 * 32 * 4)
    ratio = found["batch, rows as stored: bandwidth over that of a copy (at least 0.8)"]
    assert ratio == pytest.approx(batch_bytes / 1e-5 / 1e9)
    assert found["aggregate: microseconds (at most 15)"] == pytest.approx(10)


@pytest.fixture
def bench_kernels(monkeypatch):
    return load("benchmarks/bench_kernels.py", monkeypatch)


def test_a_part_of_the_benchmark_that_fails_costs_no_other(bench_kernels, monkeypatch, capsys):
    def fails(bench):
        raise RuntimeError("no memory")

    def missing(bench):
        raise ImportError("no such library")

    parts = {"floors": ("floors", lambda bench: {"launch": 1e-6}), "bad": ("seconds", fails),
             "absent": ("seconds", missing), "good": ("seconds", lambda bench: {"work": 2.0})}  # fmt: skip
    monkeypatch.setattr(bench_kernels, "PARTS", parts)
    report = {"floors": {}, "seconds": {}, "verdicts": {}, "end_to_end": {}, "errors": {}, "not_run": {}}
    written = []
    bench_kernels.measured(
        SimpleNamespace(held=[]), list(parts), report, lambda: written.append(json.loads(json.dumps(report)))
    )
    assert len(written) == 4
    assert written[0]["floors"] == {"launch": 1e-6}
    assert report["errors"] == {"bad": "RuntimeError: no memory"}
    assert report["not_run"] == {"absent": "no such library"}
    assert report["seconds"] == {"work": 2.0}
    assert "no memory" in capsys.readouterr().err


def test_nothing_is_measured_after_a_device_is_lost(bench_kernels, monkeypatch):
    def lost(bench):
        raise bench_kernels.LostDeviceError("the device does not answer")

    monkeypatch.setattr(bench_kernels, "PARTS", {"first": ("seconds", lost), "second": ("seconds", pytest.fail)})
    report = {"floors": {}, "seconds": {}, "verdicts": {}, "end_to_end": {}, "errors": {}, "not_run": {}}
    bench_kernels.measured(SimpleNamespace(held=[]), ["first", "second"], report, lambda: None)
    assert list(report["errors"]) == ["first"]


def test_end_to_end_compares_graphs_that_are_launched_alike(bench_kernels, monkeypatch, tiny_engine):
    gpu = PretendGpu()
    cuda = PretendCuda(played_cuda.module(), gpu)
    for module in (device, film_graph):
        monkeypatch.setattr(module, "cuda_module", lambda: cuda)
    engine = Engine.open(tiny_engine)
    monkeypatch.setattr(bench_kernels, "Engine", SimpleNamespace(open=lambda path: engine, default_path=lambda: None))
    monkeypatch.setattr(bench_kernels, "network_on", lambda gpu, engine: (PretendBackend(gpu, engine), "pretended"))
    for name, value in {"ROWS": 60, "COLUMNS": 50, "WARM_UP": 0}.items():
        monkeypatch.setattr(bench_kernels, name, value)
    found = bench_kernels.end_to_end(SimpleNamespace(gpu=gpu))
    seconds = found["seconds"]
    assert found["network"] == "pretended"
    assert all(value > 0 for name, value in seconds.items() if name != "graph beyond network and map")
    assert seconds["graph beyond network and map"] == seconds["graph"] - seconds["network and map down, one graph"]


def test_the_stand_in_computes_the_small_network():
    torch = pytest.importorskip("torch", exc_type=ImportError)
    image = np.random.default_rng(0).normal(size=(1, 1, SIZE, SIZE)).astype(np.float32)
    patch, mask = torch.zeros(1, GRID, GRID), torch.zeros(1, SIZE, SIZE)
    stand_in.small("cpu")(torch.from_numpy(image), patch, mask)
    for found, expected in zip((patch, mask), network_output(image[0, 0]), strict=True):
        np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-5)


# --- the check itself ---

ABSENT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in NAMES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""
NAMES = {"pydicom", "openvino", "imagecodecs", "cryptography", "pynetdicom", "highdicom", "nncf", "psutil",
         "tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings"}  # fmt: skip


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """The environment of a machine with little more than numpy, OpenCV, ONNX and pytest, and without a GPU."""
    folder = tmp_path / "absent"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"NAMES = {NAMES}{ABSENT}")
    variables = {"PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


@pytest.fixture
def gpu_check(monkeypatch):
    return load("tools/gpu_check.py", monkeypatch)


@pytest.fixture
def check(gpu_check, tmp_path):
    return gpu_check.Check(tmp_path / "out", minutes=5)


def report_of(check):
    return json.loads((check.out / "gpu-check.json").read_text())


@pytest.mark.parametrize("script", ["bench_kernels.py", "latency.py"])
def test_the_benchmarks_start_with_little_installed(check, bare, monkeypatch, script):
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    step = check.run("starts", sys.executable, str(ROOT / "benchmarks" / script), "--help", limit=60)
    assert step.outcome == "passed", step
    assert "--json" in (check.logs / step.log).read_text()


def test_the_tests_for_the_gpu_are_found_with_little_installed(gpu_check, check, bare):
    found = {}
    for name, tests in {**gpu_check.TESTS, "sanitized": gpu_check.SANITIZED}.items():
        step = check.run(name, *gpu_check.PYTEST, "--collect-only", *tests, limit=60)
        found[name] = (check.logs / step.log).read_text()
        assert re.search(r"\b\d+/\d+ tests collected", found[name]), found[name]
        assert "error" not in found[name].lower().replace("is_an_error", "").replace("not_finite_is_an_error", "")
    for dtype in ("uint8", "uint16", "int16", "float32"):
        assert f"[gpu-3-4-{dtype}]" in found["sanitized"]
    for test in ("test_a_batch_and_its_repetition[gpu]", "test_a_graph_around_a_copy"):
        assert test in found["sanitized"]
    assert int(re.search(r"(\d+)/\d+ tests collected", found["sanitized"]).group(1)) < 15
    for test in ("test_a_film_that_is_still_being_written_is_waited_for", "test_the_shipped_network_on_a_gpu"):
        assert test in found["pipeline on the GPU"]


def test_without_a_gpu_every_step_says_why_it_is_not_run(gpu_check, bare, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "tools/gpu_check.py", "--skip-build", "--out", "results"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "results/gpu-check.json").read_text())
    steps = {step["name"]: step for step in report["steps"]}
    assert {step["outcome"] for step in steps.values()} == {"not run"}
    assert all(step["said"] for step in steps.values())
    assert "TensorRT" in steps["latency"]["said"]
    assert set(gpu_check.TESTS) < set(steps)
    assert all((tmp_path / "results/gpu-check-logs" / step["log"]).exists() for step in steps.values())
    assert report["versions"]["numpy"] == np.__version__
    order = list(steps)
    assert order.index("kernel times") < order.index("end to end") < order.index("compute-sanitizer memcheck")


def alive(process):
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_step_that_hangs_is_ended_with_its_children(check):
    child = "import time; time.sleep(60)"
    code = (
        f"import subprocess, sys, time; print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid); time.sleep(60)"
    )
    step = check.run("hangs", sys.executable, "-c", code, limit=8)
    assert step.outcome == "timed out"
    assert step.seconds < 30
    process = int((check.logs / step.log).read_text().split()[0])  # what it had printed is kept
    deadline = time.monotonic() + 5
    while alive(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(process)
    assert report_of(check)["steps"][0]["outcome"] == "timed out"


def test_how_a_step_can_end(check, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    outcomes = {
        "pass": "passed",
        "raise SystemExit(3)": "failed",
        "raise SystemExit(77)": "not run",
        "import os; os.kill(os.getpid(), 11)": "failed",
    }
    for i, (code, outcome) in enumerate(outcomes.items()):
        assert check.run(f"step {i}", sys.executable, "-c", code, limit=30).outcome == outcome
        assert len(report_of(check)["steps"]) == i + 1  # written at once
    assert check.run("absent", str(check.out / "no-such-program"), limit=30).outcome == "failed"
    assert "SIGSEGV" in report_of(check)["steps"][3]["said"]
    assert "cannot be started" in report_of(check)["steps"][4]["said"]


def test_what_does_not_fit_in_the_time_is_left_out(gpu_check, tmp_path):
    check = gpu_check.Check(tmp_path, minutes=0.05)
    step = check.run("late", sys.executable, "-c", "raise SystemExit(1)", limit=60)
    assert (step.outcome, step.said) == ("not run", "no time was left")
    assert report_of(check)["steps"][0]["said"] == "no time was left"


FOUND_ONE = """#!/bin/sh
echo "========= COMPUTE-SANITIZER"
echo "========= Invalid __global__ read of size 16 bytes"
for i in 1 2 3 4 5 6 7 8 9; do for j in 1 2 3 4 5 6 7 8 9; do echo "a line of something else"; done; done
echo "==== 9 passed in 2.00s ===="
echo "========= ERROR SUMMARY: 1 error"
exit 9
"""


def test_what_a_sanitizer_found_is_kept(gpu_check, check, monkeypatch):
    tool = check.out / "compute-sanitizer"
    monkeypatch.setattr(gpu_check, "found", lambda name: str(tool))
    for text in (
        FOUND_ONE,
        FOUND_ONE.replace("exit 9", "exit 0").replace("1 error", "0 errors"),
        "#!/bin/sh\necho 9 passed\n",
    ):
        tool.write_text(text)
        tool.chmod(0o755)
        gpu_check.sanitize(check, "memcheck", "--report-api-errors=no")
    bad, good, silent = check.steps
    assert bad.outcome == "failed"
    assert "ERROR SUMMARY: 1 error" in bad.said
    assert any("Invalid __global__ read" in line for line in bad.output)
    assert good.outcome == "passed"
    assert (silent.outcome, silent.said.split(" | ")[0]) == ("failed", "no summary")


def test_one_architecture_is_built_where_the_compiler_knows_it(gpu_check):
    def architectures(capability, known):
        options = gpu_check.build_options(capability, known)
        return [option.rpartition("=")[2] for option in options if "ARCHITECTURES" in option]

    assert architectures("9.0", "sm_80 | sm_90 | sm_90a") == ["90-real"]
    assert architectures("11.0", "sm_80 | sm_90 | sm_100a") == []
    assert architectures("", "sm_90") == []


@pytest.mark.parametrize(
    ("gpu", "outcome", "proves"),
    [
        ("NVIDIA H200", "passed", True),
        ("NVIDIA H200", "not run", False),
        ("NVIDIA H200", "failed", False),
        ("", "not run", True),  # nothing could be shown, and nothing is said to be
    ],
)
def test_a_gpu_on_which_no_twin_ran_is_a_failure(gpu_check, tmp_path, gpu, outcome, proves):
    check = gpu_check.Check(tmp_path, 1)
    check.facts["gpu"] = {"name": gpu} if gpu else {}
    check.steps = [gpu_check.Step(gpu_check.TWINS, outcome, 1.0, "")]
    assert check.proves_something() is proves
