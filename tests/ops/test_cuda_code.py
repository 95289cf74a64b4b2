"""What nvcc makes of the kernels: every architecture without a warning, wide loads, sums kept in registers."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not shutil.which("nvcc"), reason="there is no nvcc")

_SPEC = importlib.util.spec_from_file_location(
    "kernel_report", Path(__file__).resolve().parents[2] / "tools/kernel_report.py"
)


@pytest.fixture(scope="module")
def report():
    import sys

    module = importlib.util.module_from_spec(_SPEC)
    sys.modules[_SPEC.name] = module
    _SPEC.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kernel", ["preprocess", "aggregate"])
@pytest.mark.parametrize("architecture", [75, 80, 86, 87, 89, 90, 100, 110, 120])
def test_every_architecture_compiles_and_keeps_its_sums_in_registers(report, kernel, architecture, tmp_path):
    made = report.compiled(kernel, architecture, tmp_path)
    assert made.registers <= 96
    assert made.spill_stores <= 16  # a few words that are needed again after the loops
    if made.wide is not None:
        assert made.wide >= 4
        assert kernel != "preprocess" or made.together >= 16  # of seven or eight times four


def test_the_source_is_read_16_bytes_at_a_time(report):
    """Eight ways of reading a pixel, four loads in each."""
    assert report.wide_loads_in_ptx("preprocess") >= 8 * 4
    assert report.wide_loads_in_ptx("aggregate") >= 4


def test_the_extension_module_has_every_architecture():
    """The installed module, where this installation was built with nvcc."""
    cuda = pytest.importorskip("ptxsdk._cuda", exc_type=ImportError)
    if not shutil.which("cuobjdump"):
        pytest.skip("there is no cuobjdump")
    import subprocess

    listed = subprocess.run(["cuobjdump", "-lelf", "-lptx", cuda.__file__], capture_output=True, text=True, check=True)
    for architecture in (75, 80, 86, 87, 89, 90, 100, 110, 120):
        assert f"sm_{architecture}." in listed.stdout
