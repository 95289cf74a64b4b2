"""Fixtures that many tests share."""

from __future__ import annotations

import pytest
from made import make_engine, make_network


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
    """A detector with the small engine."""
    from ptxsdk import Detector

    with Detector(tiny_engine) as made:
        yield made
