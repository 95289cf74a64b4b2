"""The exported network runs elsewhere, and the engine holds what the run measured."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
cv2 = pytest.importorskip("cv2")

from training import export  # noqa: E402
from training.evaluate import describe_data, evaluate  # noqa: E402
from training.train import TrainConfig, load_average  # noqa: E402

# PyTorch's exporter trips over deprecations of PyTorch itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def network_file(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "network.onnx"
    export.export_onnx(load_average(trained)[0], path)
    return path


def test_onnxruntime_computes_what_pytorch_does(network_file, trained):
    session = onnxruntime.InferenceSession(str(network_file), providers=["CPUExecutionProvider"])
    assert [(each.name, each.shape) for each in session.get_inputs()] == [("image", [1, 1, 64, 64])]
    assert [(each.name, each.shape) for each in session.get_outputs()] == [
        ("patch_logits", [1, 4, 4]),
        ("mask_logits", [1, 64, 64]),
    ]
    image = np.random.default_rng(7).uniform(-1, 1, (1, 1, 64, 64)).astype(np.float32)
    network, _ = load_average(trained)
    with torch.inference_mode():
        wanted = network(torch.from_numpy(image))
    for found, expected in zip(session.run(None, {"image": image}), wanted, strict=True):
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)


def test_the_file_holds_standard_operators_and_nothing_of_the_machine(network_file):
    model = onnx.load(str(network_file))
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert all(not node.doc_string and not node.metadata_props for node in model.graph.node)
    assert str(network_file.parents[1]).encode() not in network_file.read_bytes()
    assert b"site-packages" not in network_file.read_bytes()


def test_another_network_is_refused(network_file, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "onnx_predictor", lambda path: lambda image: (np.ones((1, 4, 4)), np.ones((1, 64, 64))))
    with pytest.raises(ValueError, match="differs from PyTorch"):
        export.export_onnx(load_average(trained)[0], tmp_path / "network.onnx")


def test_the_command_names_what_differs_from_the_defaults():
    assert export.command_of(TrainConfig(size=512, grid=16, paper_floor=True)) == (
        "python -m training.train --data DIR --out RUNDIR --size 512 --grid 16 --paper-floor"
    )


def test_the_engine_opens_and_its_golden_vectors_hold(
    network_file, trained, prepared, tiny_config, data_folder, tmp_path
):
    pytest.importorskip("ptxsdk._core")
    from ptxsdk.engine import Engine

    cache, split = prepared
    network, _ = load_average(trained)
    report = {"data": describe_data(split.train, tiny_config)} | evaluate(
        network, cache, split.validation, split.test, replicates=20
    )
    path = tmp_path / "tiny.ptxengine"
    export.export_engine(network_file, report, tiny_config, split.test, data_folder, path)
    engine = Engine.open(path)
    manifest = engine.manifest
    assert manifest.input.size == (64, 64)
    assert manifest.outputs.patch_logits.grid == (4, 4)
    assert {point.name for point in manifest.operating_points} == {"balanced", "high_sensitivity"}
    assert {metric.name for metric in manifest.metrics} >= {"auc", "dice_mean_positives", "sensitivity_at_balanced"}
    assert "not a medical device" in manifest.intended_use
    assert sum(source.n for source in manifest.provenance.training_data) == len(split.train)
    assert engine.network("fp32") == network_file.read_bytes()
    session = onnxruntime.InferenceSession(engine.network("fp32"), providers=["CPUExecutionProvider"])
    for vector in engine.golden():
        assert "NIH" in vector.credit
        image = cv2.resize(vector.pixels / np.float32(255), (64, 64), interpolation=cv2.INTER_AREA) * 2 - 1
        patch, mask = session.run(None, {"image": image[None, None]})
        np.testing.assert_allclose(vector.patch_logits, patch[0], atol=2e-3)
        np.testing.assert_allclose(vector.mask_logits, mask[0], atol=2e-2)
