"""Teaching INT8: PyTorch runs the file as ONNX Runtime does, learning brings it nearer, the build takes it."""

from __future__ import annotations

import argparse

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnxruntime = pytest.importorskip("onnxruntime")

import onnx  # noqa: E402
from build_films import make_convolutional_engine, make_convolutional_network, write_films  # noqa: E402

from ptxsdk import BuildError, Engine  # noqa: E402
from ptxsdk.build import Budget, build_variants  # noqa: E402
from ptxsdk.build import quantize as int8  # noqa: E402
from ptxsdk.build.films import find_build_films, read_films, usable  # noqa: E402
from ptxsdk.build.network import parse_network  # noqa: E402
from training.distil_int8 import QuantizedNetwork, batches, loss, main, train  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_films(tmp_path_factory.mktemp("films"), 150)


@pytest.fixture(scope="module")
def engine():
    return Engine.open(make_convolutional_engine())


@pytest.fixture(scope="module")
def films(engine, folder):
    return usable(list(read_films(find_build_films(folder)[:40], engine.manifest.input)), "tests")


@pytest.fixture(scope="module")
def quantized(engine, films):
    model = parse_network(engine.network("fp32"), engine.manifest.input, engine.manifest.outputs)
    return int8.quantize(model, [film.tensor for film in films])


def run(content, image):
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(["patch_logits", "mask_logits"], {"image": image})


def test_pytorch_runs_the_file_as_onnx_runtime_does(quantized, films):
    network = QuantizedNetwork(quantized)
    for film in films[:4]:
        image = film.tensor.astype(np.float32)[None, None]
        with torch.inference_mode():
            found = network(torch.from_numpy(image))
        for own, wanted in zip(found, run(quantized.SerializeToString(), image), strict=True):
            assert own.shape == wanted.shape
            # a value on the edge between two steps may fall either way
            assert np.abs(own.numpy() - wanted).mean() < 0.01 * np.abs(wanted).mean()


def test_what_was_not_taught_comes_back_as_it_was(quantized):
    back = onnx.load_model_from_string(QuantizedNetwork(quantized).to_onnx())
    before = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in quantized.graph.initializer}
    for tensor in back.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor)
        assert value.dtype == before[tensor.name].dtype
        np.testing.assert_allclose(value, before[tensor.name], rtol=1e-6)


def options(**changes):
    return argparse.Namespace(**({"lr": 2e-3, "steps": 40, "batch": 6, "seed": 0} | changes))


def test_learning_brings_it_nearer(engine, quantized, films):
    images = torch.from_numpy(next(batches(films, 24, 1, seed=9)))
    answers = [run(engine.network("fp32"), image[None].numpy()) for image in images]
    targets = tuple(torch.from_numpy(np.concatenate(parts)) for parts in zip(*answers, strict=True))
    network = QuantizedNetwork(quantized)
    with torch.no_grad():
        network.parameters_by_name["patch|bias"] += 0.5  # something to mend
        network.parameters_by_name["mask|bias"] -= 0.5
        before = float(loss(network(images), targets))
    train(network, engine.network("fp32"), films, options())
    with torch.no_grad():
        after = float(loss(network(images), targets))
    assert after < 0.5 * before


def test_the_same_seed_gives_the_same_network(engine, quantized, films):
    contents = [
        train(QuantizedNetwork(quantized), engine.network("fp32"), films, options(steps=3)).to_onnx() for _ in range(2)
    ]
    assert contents[0] == contents[1]


def test_batches_are_films_mirrored_and_shown_otherwise(films):
    (batch,) = batches(films, 8, 1, seed=1)
    assert batch.shape == (8, 1, 64, 64)
    assert batch.dtype == np.float32
    assert -1 <= batch.min() < batch.max() <= 1


def test_the_build_takes_what_was_taught(engine, folder, tmp_path):
    (tmp_path / "engine.ptxengine").write_bytes(make_convolutional_engine())
    out = tmp_path / "taught.onnx"
    arguments = ["--films", str(folder), "--out", str(out), "--steps", "4", "--batch", "4"]
    main([str(tmp_path / "engine.ptxengine"), *arguments])
    taught = out.read_bytes()
    (variant,) = build_variants(
        engine.manifest,
        engine.network("fp32"),
        folder,
        precisions=("int8",),
        int8_network=taught,
        budget=Budget(flip=0.2),
    )
    before = {t.name: t for t in onnx.load_model_from_string(taught).graph.initializer}
    after = {t.name: t for t in onnx.load_model_from_string(variant.network).graph.initializer}
    shared = [name for name in after if name in before and before[name].data_type == onnx.TensorProto.INT8]
    assert shared
    assert all(before[name] == after[name] for name in shared)


def test_a_network_of_another_engine_is_not_taken(engine, quantized, folder):
    other = make_convolutional_network(seed=1)
    for node in other.graph.node:
        node.name += ".other"
    for content, match in (
        (other.SerializeToString(), "not the engine's"),
        (engine.network("fp32"), "nothing quantized"),
        (b"none", "ONNX refuses"),
    ):
        with pytest.raises(BuildError, match=match):
            build_variants(engine.manifest, engine.network("fp32"), folder, precisions=("int8",), int8_network=content)
