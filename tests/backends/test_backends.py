"""Backends: what they say of themselves, what precision they choose, and that each computes the network."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from made import SIZE, make_engine, network_output, tiny_manifest

from ptxsdk import BackendError, Detector, DetectorError, Engine, backends
from ptxsdk.manifest import Tolerance

ON_CPU = ("openvino", "onnxruntime")


def load(engine, backend, precision="auto", threads=0):
    return backends.load(engine, backend=backend, device="cpu", precision=precision, threads=threads)


@pytest.fixture(scope="module")
def opened(tiny_engine):
    return Engine.open(tiny_engine)


@pytest.mark.parametrize("name", ON_CPU)
def test_a_usable_backend_says_its_version(name):
    usable, reason = backends.probe(name)
    assert usable
    assert name in reason


@pytest.mark.parametrize("name", ON_CPU)
def test_a_missing_runtime_is_a_reason_and_a_typed_error(name, opened, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    usable, reason = backends.probe(name)
    assert not usable
    assert "not installed" in reason
    with pytest.raises(BackendError) as raised:
        load(opened, name)
    assert raised.value.code == "backend.unavailable"


@pytest.mark.parametrize(("backend", "device"), [("tensorrt", "cpu"), ("openvino", "cuda"), ("onnxruntime", "cuda:1")])
def test_a_backend_and_a_device_that_do_not_go_together(opened, backend, device):
    with pytest.raises(BackendError) as raised:
        backends.load(opened, backend=backend, device=device, precision="auto", threads=0)
    assert raised.value.code == "backend.unavailable"
    assert f"{backend} does not run on {device}" in raised.value.message


@pytest.mark.parametrize(
    "device", ["cuda:", "cuda:x", "cuda:-1", "cuda:\u0661", "cuda:" + 5000 * "9", "cuda\n", "gpu", "", None, 0]
)
def test_an_unknown_device(opened, device):
    with pytest.raises(DetectorError) as raised:
        backends.load(opened, backend="auto", device=device, precision="auto", threads=0)
    assert raised.value.code == "detector.option"


def test_an_unknown_backend():
    with pytest.raises(DetectorError) as raised:
        backends.probe("caffe")
    assert raised.value.code == "detector.option"


@pytest.mark.parametrize("name", ON_CPU)
def test_the_network_is_computed_from_the_input_buffer(name, opened):
    loaded = load(opened, name, "fp32")
    for seed in range(3):
        loaded.input[...] = np.random.default_rng(seed).uniform(-1, 1, (SIZE, SIZE))
        expected = network_output(loaded.input)
        for found, wanted in zip(loaded.infer(), expected, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-4)
    loaded.close()
    loaded.close()


@pytest.mark.parametrize("name", ON_CPU)
def test_a_clone_has_buffers_of_its_own(name, opened):
    first = load(opened, name, "fp32")
    second = first.clone()
    first.input[...], second.input[...] = 0.5, -0.5
    (_, high), (_, low) = first.infer(), second.infer()
    np.testing.assert_allclose(high, 30 * 0.5 - 22.2, atol=1e-4)
    np.testing.assert_allclose(low, 30 * -0.5 - 22.2, atol=1e-4)


def test_bf16_runs_only_where_engine_and_cpu_allow_it(tiny_network):
    from ptxsdk.backends import openvino

    film = tiny_manifest().golden[0]
    both = replace(
        film, tolerance={"fp32": Tolerance(logits=0.05, probability=0.01), "bf16": Tolerance(logits=1, probability=0.1)}
    )
    stating = Engine.open(make_engine(tiny_network, golden=(both,)))
    silent = Engine.open(make_engine(tiny_network))
    assert openvino.allowed(stating, ["FP32", "BF16"]) == ("fp32", "bf16")
    assert openvino.allowed(stating, ["FP32"]) == ("fp32",)
    assert openvino.allowed(silent, ["FP32", "BF16"]) == ("fp32",)
    assert load(stating, "openvino").precision in ("fp32", "bf16")
    assert load(silent, "openvino").precision == "fp32"


@pytest.mark.parametrize(
    ("flags", "usable"), [("fpu avx2 avx_vnni", True), ("avx512f avx512_vnni", True), ("fpu avx2 avx512f", False)]
)
def test_auto_takes_int8_only_where_products_do_not_saturate(monkeypatch, tmp_path, flags, usable):
    from ptxsdk.backends import openvino

    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    real = openvino.Path
    monkeypatch.setattr(openvino, "Path", lambda name: tmp_path / "cpuinfo" if name == "/proc/cpuinfo" else real(name))
    assert openvino.multiplies_int8() == usable
    asked = []

    def only_asked(candidates, _):
        asked.append(set(candidates))
        return candidates["fp32"]()

    monkeypatch.setattr(openvino, "fastest", only_asked)
    with Detector(backend="openvino") as detector:
        assert detector.precision == "fp32"
    assert ("int8" in asked[0]) == usable
