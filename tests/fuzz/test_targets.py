"""Every fuzz target holds on its seeds, on what the repository keeps for it, and on some random changes of both.

A campaign is `make fuzz`; this is what every run of the tests can afford.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize("name", ["codestream", "dicom", "engine", "image", "json", "manifest", "ops"])
def test_a_target_holds(name, monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    target, harness = importlib.import_module(f"fuzz_{name}"), importlib.import_module("harness")
    harness.play(target.one_input, target.seeds() + harness.corpus(name), runs=300, seed=7)


def test_a_target_can_fail(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    target = importlib.import_module("fuzz_dicom")
    from ptxsdk.readers import elements

    with monkeypatch.context() as patch:
        patch.setattr(elements, "fragments", lambda *_, **__: 1 / 0)
        with pytest.raises(AssertionError, match="contradicts itself"):
            for seed in target.seeds():
                target.one_input(seed)
    assert "fuzz_dicom" in sys.modules
