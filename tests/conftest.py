"""Fixtures that many tests share."""

from __future__ import annotations

import os

import pytest
from made import make_engine, make_network


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Keep choices of precision and plans out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTXSDK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory):
    """Leave the checkout: a program that a test starts must import the installed ptxsdk, not the folder here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        yield


@pytest.fixture(scope="session")
def tiny_network():
    """The small network as ONNX."""
    return make_network()


@pytest.fixture(scope="session")
def tiny_engine(tiny_network):
    """The small engine, as bytes."""
    return make_engine(tiny_network)


@pytest.fixture(scope="session")
def detector(tiny_engine):
    """A detector with the small engine.

    Under ThreadSanitizer (tools/sanitize.sh) on ONNX Runtime: OpenVINO loads a library in a way that it refuses.
    """
    from ptxsdk import Detector

    backend = "onnxruntime" if os.environ.get("PTXSDK_SANITIZE") == "thread" else "auto"
    with Detector(tiny_engine, backend=backend) as made:
        yield made
