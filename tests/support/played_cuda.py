"""The CUDA twins played on the host: the templates of csrc/ops/*_block.hpp, compiled by the C++ compiler.

Addresses "on the device" are addresses of the host.  It checks the kernels' indices, reductions and labelling, and the
binding; races are looked for in csrc/tests/test_blocks.cpp.  ``PTXSDK_SANITIZE=address,undefined`` in the environment
compiles it for the sanitizers, as `make sanitize` does.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("bindings/cuda.cpp", "tests/host_cuda.cpp", "ops/preprocess_film.cpp", "ops/aggregate.cpp")


@functools.cache
def module():
    """Compile and import it; skips where there is no C++ compiler."""
    pybind11 = pytest.importorskip("pybind11", reason="pybind11, whose headers the binding needs, is not installed")
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    folder = Path(tempfile.mkdtemp(prefix="played-cuda-"))
    target = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = [ROOT / "csrc", pybind11.get_include(), sysconfig.get_path("include")]
    sanitize = os.environ.get("PTXSDK_SANITIZE")
    watched = [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all"] if sanitize else []
    subprocess.run(
        [compiler, *watched, "-std=c++20", "-O1", "-g", "-shared", "-fPIC", "-fvisibility=hidden",
         "-Wall", "-Wextra", "-Werror", *(f"-I{path}" for path in include),
         *(str(ROOT / "csrc" / source) for source in SOURCES), "-o", str(target)],
        check=True,
    )  # fmt: skip
    spec = importlib.util.spec_from_file_location("_cuda", target)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    shutil.rmtree(folder)
    return loaded
