"""The GPU check and its benchmark, as far as a machine without a GPU can tell: they launch what they say."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import played_cuda
import pytest
from pretend_gpu import PretendCuda, PretendGpu

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


def test_the_check_tells_what_could_not_be_run(monkeypatch, tmp_path, capsys):
    gpu_check = load("tools/gpu_check.py", monkeypatch)
    monkeypatch.setattr(gpu_check, "found", lambda tool: None)
    ran = []

    class Done:
        returncode, stdout = 0, "3 skipped"

    def run(command, **options):
        ran.append(command)
        return Done()

    monkeypatch.setattr(gpu_check.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    assert ended.value.code == 0
    steps = {step["name"]: step for step in json.loads((tmp_path / "gpu-check.json").read_text())["steps"]}
    assert steps["compute-sanitizer racecheck"]["outcome"] == "not run"
    assert steps["twins and pipeline on the GPU"]["outcome"] == "not run"  # all tests were skipped
    assert steps["kernel times"]["outcome"] == "passed"
    assert "could not" not in capsys.readouterr().out
    Done.returncode = 1
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    assert ended.value.code == 1
