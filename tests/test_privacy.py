"""A device keeps to itself: no connection is opened, nothing is written but results and what the cache is for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

WATCH = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"):
        print(event, arguments)
sys.addaudithook(watch)
"""
SCORE = """
from ptxsdk import Detector, dicom_objects, read
film = read({film!r})
for backend in ("openvino", "onnxruntime"):
    with Detector(backend=backend) as detector:
        dicom_objects(detector.predict(film), film, ("sc", "sr"))
        detector.predict_batch([film, film])
"""
BUILD = """
from ptxsdk.build.quantize import _nncf
_nncf()
"""


@pytest.mark.requirement("R-PRIVACY-1")
@pytest.mark.parametrize("work", [SCORE, BUILD], ids=["predict", "build"])
def test_no_connection_and_no_file(work, tmp_path):
    home, cache = tmp_path / "home", tmp_path / "cache"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "XDG_CACHE_HOME")}
    environment |= {"HOME": str(home), "PTXSDK_CACHE": str(cache)}
    code = WATCH + work.format(film=str(EXAMPLES / "00008841_025.dcm"))
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert child.stdout == ""
    assert list(home.iterdir()) == []
    assert {path.name for path in cache.glob("*")} <= {"precision"}


def test_a_host_that_imported_openvino_itself_is_left_alone():
    code = """
import sys, types
sys.modules["openvino"] = openvino = types.ModuleType("openvino")
from ptxsdk.backends.openvino import runtime
assert runtime() is openvino
assert "openvino_telemetry" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
