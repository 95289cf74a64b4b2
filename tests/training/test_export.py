"""The exported network runs elsewhere, and the engine holds what the run measured."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
cv2 = pytest.importorskip("cv2")

from training import export  # noqa: E402
from training.crossval import fold_config, run_fold  # noqa: E402
from training.learner import TrainConfig  # noqa: E402
from training.train import load_network, split  # noqa: E402

# PyTorch's exporter trips over deprecations of PyTorch itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def network_file(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "network.onnx"
    export.export_onnx(load_network(trained)[0], path)
    return path


def test_onnxruntime_computes_what_pytorch_does(network_file, trained):
    session = onnxruntime.InferenceSession(str(network_file), providers=["CPUExecutionProvider"])
    assert [(each.name, each.shape) for each in session.get_inputs()] == [("image", [1, 1, 64, 64])]
    assert [(each.name, each.shape) for each in session.get_outputs()] == [
        ("patch_logits", [1, 4, 4]),
        ("mask_logits", [1, 64, 64]),
    ]
    image = np.random.default_rng(7).uniform(-1, 1, (1, 1, 64, 64)).astype(np.float32)
    network, _ = load_network(trained)
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
        export.export_onnx(load_network(trained)[0], tmp_path / "network.onnx")


def test_the_command_names_what_differs_from_the_defaults():
    assert export.command_of(TrainConfig(size=512, grid=16, paper_floor=True)) == (
        "python -m training.train --data DIR --out RUNDIR --size 512 --grid 16 --paper-floor"
    )
    assert "--weights none" in export.command_of(TrainConfig(weights="none"))
    assert export.command_of(TrainConfig(made=0.25)).endswith("--made 0.25 --lungs LUNGS.npz")


def test_the_engine_opens_and_its_golden_vectors_hold(
    network_file, trained, prepared, tiny_config, data_folder, tmp_path
):
    pytest.importorskip("ptxsdk._core")
    from ptxsdk.engine import Engine

    cache, parts = prepared
    films = [*parts.train, *parts.validation, *parts.test]
    evidence = export.evidence_of_run(load_network(trained)[0], tiny_config, cache, films)
    assert evidence.n == len(parts.validation)
    path = tmp_path / "tiny.ptxengine"
    export.export_engine(network_file, evidence, tiny_config, parts.test, data_folder, path)
    engine = Engine.open(path)
    manifest = engine.manifest
    assert manifest.input.size == (64, 64)
    assert manifest.outputs.patch_logits.grid == (4, 4)
    assert {point.name for point in manifest.operating_points} == {"balanced", "high_sensitivity"}
    assert {metric.name for metric in manifest.metrics} >= {"auc", "dice_mean_positives", "sensitivity_at_balanced"}
    assert "not a medical device" in manifest.intended_use
    assert sum(source.n for source in manifest.provenance.training_data) == len(parts.train)
    assert f"{len(parts.validation)} films" in manifest.calibration.data
    assert engine.network("fp32") == network_file.read_bytes()
    session = onnxruntime.InferenceSession(engine.network("fp32"), providers=["CPUExecutionProvider"])
    for vector in engine.golden():
        assert "NIH" in vector.credit
        image = cv2.resize(vector.pixels / np.float32(255), (64, 64), interpolation=cv2.INTER_AREA) * 2 - 1
        patch, mask = session.run(None, {"image": image[None, None]})
        np.testing.assert_allclose(vector.patch_logits, patch[0], atol=2e-3)
        np.testing.assert_allclose(vector.mask_logits, mask[0], atol=2e-2)


def test_an_engine_trained_on_every_film_is_vouched_for_by_the_folds(
    network_file, tiny_config, prepared, quiet, data_folder, tmp_path
):
    pytest.importorskip("ptxsdk._core")
    from ptxsdk.engine import Engine

    cache, parts = prepared
    films = [*parts.train, *parts.validation, *parts.test]
    config = dataclasses.replace(tiny_config, folds=2, steps=2, epoch_steps=2)
    for fold in range(2):
        own = split(films, cache, fold_config(config, fold))
        run_fold(config, fold, cache, own, tmp_path / f"clasegnet-{fold}", **quiet)
    evidence = export.evidence_of_folds("clasegnet", tmp_path, config, cache, films)
    trusted = [each for each in films if each.trusted]
    assert evidence.n == len(trusted)
    path = tmp_path / "tiny.ptxengine"
    export.export_engine(network_file, evidence, config, trusted, data_folder, path)
    manifest = Engine.open(path).manifest
    auc = [metric for metric in manifest.metrics if metric.name == "auc"]
    assert [metric.n for metric in auc] == [len(trusted)] * 2  # trusted labels, and experts' alone
    assert "2-fold cross-validation" in auc[0].data
    assert sum(source.n for source in manifest.provenance.training_data) == len(films)
    assert manifest.operating_points[0].threshold == evidence.choices.operating_points[0].threshold
