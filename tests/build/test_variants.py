"""Building from end to end: an engine that loads in every precision, a gate that holds, nothing lost on failure."""

import json
import os
import resource
import subprocess
import sys
from itertools import pairwise

import numpy as np
import onnx
import pytest
from build_films import SHAPE, make_convolutional_engine, make_convolutional_network, write_films
from onnx import numpy_helper

from ptxsdk import BuildError, Detector, Engine, WriterError
from ptxsdk.build import Budget, build_engine, build_variants, variants
from ptxsdk.build.network import constants, convolutions, producers

LOOSE = Budget(flip=0.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_films(tmp_path_factory.mktemp("films"), 160)


@pytest.fixture(scope="module")
def engine():
    return Engine.open(make_convolutional_engine())


@pytest.fixture(scope="module")
def built(engine, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "new.ptxengine"
    stages = []
    made, found = build_engine(
        engine, folder, out, budget=LOOSE, version="2.0", describe="made films", track=lambda *said: stages.append(said)
    )
    return out, made, found, stages


def test_the_engine_has_every_precision_and_works(built):
    out, _, _, _ = built
    engine = Engine.open(out)
    assert engine.precisions == ("fp32", "fp16", "int8")
    assert engine.manifest.version == "2.0"
    for precision in engine.precisions:
        with Detector(engine, precision=precision, backend="openvino") as detector:
            assert detector.precision == precision
            assert detector.self_test() == 1
        with Detector(engine, precision=precision, backend="onnxruntime") as detector:
            assert detector.self_test() == 1


def test_the_fp32_network_is_untouched(built, engine):
    out, _, _, _ = built
    assert Engine.open(out).network("fp32") == engine.network("fp32")


def test_the_numbers_are_in_the_manifest(built):
    out, _, found, _ = built
    manifest = Engine.open(out).manifest
    for variant in found:
        accuracy = manifest.networks[variant.precision].accuracy
        assert accuracy["films"] + variants.MOST_CALIBRATION >= 160 - 32
        assert accuracy["farthest_flip"] <= LOOSE.flip
        assert accuracy == pytest.approx(variant.accuracy.numbers())
        named = [metric for metric in manifest.metrics if metric.name.startswith(f"{variant.precision}_")]
        assert {metric.name for metric in named} == {
            f"{variant.precision}_{what}" for what in ("auc_change", "dice_change", "peak_change")
        }
        for metric in named:
            assert metric.low <= metric.high
            assert "made films" in metric.data
            assert f"{variant.precision} less fp32" in metric.data
    assert manifest.networks["fp32"].accuracy is None
    assert set(manifest.golden[0].tolerance) == {"fp32", "fp16", "int8"}


def test_int8_is_explicit_and_weighs_less(built, engine):
    out, _, found, _ = built
    model = onnx.load_model_from_string(Engine.open(out).network("int8"))
    made_by, values = producers(model), constants(model)
    quantized = [node for node in convolutions(model) if node.input[1] in made_by]
    floats = found[1].float_layers
    assert {node.name for node in quantized} == {"stem", "depthwise", "pointwise", "patch", "mask"} - set(floats)
    assert all(values[made_by[node.input[1]].input[0]].dtype == np.int8 for node in quantized)
    assert [node.op_type for node in model.graph.node if node.name.startswith("enlarge")] == [
        "Pad",
        "Conv",
        "DepthToSpace",
    ]


def test_progress_is_told(built):
    _, _, _, stages = built
    assert {stage.split(" with ")[0] for stage, _, _ in stages} >= {
        "reading films for calibration",
        "reading films for validation",
        "fp32 on validation films",
        "fp16 on validation films",
        "int8: ranges of activations",
        "int8: cost of layers",
    }
    assert all(0 <= done <= of for _, done, of in stages)


def test_building_again_replaces_and_does_not_pile_up(built, folder, tmp_path):
    _, made, _, _ = built
    again, _ = build_engine(made, folder, tmp_path / "again.ptxengine", budget=LOOSE, precisions=("fp16",))
    assert len(again.manifest.metrics) == len(made.manifest.metrics)
    assert again.network("int8") == made.network("int8")


@pytest.mark.requirement("R-ENGINE-3")
def test_auto_takes_only_what_passed_the_gate(built, engine, monkeypatch, tmp_path):
    from ptxsdk.backends import openvino

    out, made, _, _ = built
    native = ["FP32", "INT8", "FP16"]
    assert openvino.allowed(made, native) == ("fp32", "fp16", "int8")
    assert openvino.allowed(made, ["FP32", "INT8"]) == ("fp32", "int8")
    assert openvino.allowed(engine, [*native, "BF16"]) == ("fp32",)
    monkeypatch.setenv("PTXSDK_CACHE", str(tmp_path))
    with Detector(out) as detector:
        chosen = detector.precision
    notes = list((tmp_path / "precision").glob("*.json"))
    assert len(notes) == 1
    assert json.loads(notes[0].read_text())["chosen"] == chosen


def test_auto_goes_on_in_fp32_where_a_variant_does_not_reproduce_its_golden_film(built, monkeypatch, caplog):
    from dataclasses import replace

    from ptxsdk import EngineError, backends
    from ptxsdk.engine import engine_bytes
    from ptxsdk.manifest import Tolerance

    _, made, _, _ = built
    golden = made.manifest.golden[0]
    tiny = Tolerance(logits=1e-9, probability=1e-9)
    strict = replace(golden, tolerance={"fp32": golden.tolerance["fp32"], "fp16": tiny, "int8": tiny})
    content = engine_bytes(replace(made.manifest, golden=(strict,), entries={}), made.entries())
    with pytest.raises(EngineError) as raised:
        Detector(content, precision="int8")
    assert raised.value.code == "engine.self_test"
    real = backends.load
    monkeypatch.setattr(
        backends,
        "load",
        lambda engine, **how: real(engine, **how | ({"precision": "int8"} if how["precision"] == "auto" else {})),
    )
    with Detector(content) as detector:
        assert detector.precision == "fp32"
    assert "going on in fp32" in caplog.text


@pytest.mark.requirement("R-ENGINE-3")
def test_a_variant_over_budget_fails_and_the_old_engine_stays(engine, folder, tmp_path):
    out = tmp_path / "engine.ptxengine"
    out.write_bytes(make_convolutional_engine())
    before = out.read_bytes()
    with pytest.raises(BuildError, match=r"the layers that cost most: .*(stem|depthwise)") as caught:
        build_engine(engine, folder, out, budget=Budget(auc=-1), precisions=("int8",))
    assert caught.value.code == "build.accuracy"
    assert "AUC changes by" in str(caught.value)
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_layers_go_back_to_float_until_the_budget_holds(engine, folder, monkeypatch):
    monkeypatch.setattr(variants, "MOST_FLOAT", 1.0)
    tried = []
    real = variants.int8.keep_float

    def keep(quantized, model, layers):
        tried.append(tuple(layers))
        return real(quantized, model, layers)

    monkeypatch.setattr(variants.int8, "keep_float", keep)
    with pytest.raises(BuildError):
        build_variants(engine.manifest, engine.network("fp32"), folder, budget=Budget(auc=-1), precisions=("int8",))
    assert [len(layers) for layers in tried] == [0, 1, 2, 3, 4, 5]
    assert all(one == other[: len(one)] for one, other in pairwise(tried))


def test_a_failing_fp16_names_its_layers(engine, folder):
    with pytest.raises(BuildError, match=r"fp16: .*the layers that cost most: (stem|depthwise|pointwise)") as caught:
        build_variants(engine.manifest, engine.network("fp32"), folder, budget=Budget(auc=-1), precisions=("fp16",))
    assert caught.value.code == "build.accuracy"


def test_no_films_no_int8(engine, tmp_path):
    for source in (tmp_path, tmp_path / "missing"):
        with pytest.raises(BuildError) as caught:
            build_engine(engine, source, tmp_path / "out.ptxengine", precisions=("int8",))
        assert caught.value.code == "build.films"
    assert not (tmp_path / "out.ptxengine").exists()


def test_films_of_which_too_few_are_flagged_prove_nothing(engine, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(variants, "FEWEST_FLAGGED", 161)
    with pytest.raises(BuildError, match=r"flags \d+ of \d+ validation films; at least 161") as caught:
        build_engine(engine, folder, tmp_path / "out.ptxengine")
    assert caught.value.code == "build.films"


def test_noise_is_no_calibration(engine, tmp_path):
    import cv2

    generator = np.random.default_rng(0)
    for index in range(120):
        cv2.imwrite(str(tmp_path / f"{index}.png"), generator.integers(0, 255, SHAPE).astype(np.uint8))
    with pytest.raises(BuildError, match=r"gate\.") as caught:
        build_engine(engine, tmp_path, tmp_path / "out.ptxengine")
    assert caught.value.code == "build.films"


def test_a_network_with_nan_is_refused_before_anything_runs(engine, folder):
    model = make_convolutional_network()
    weights = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weights[0] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "stem.weight"))
    with pytest.raises(BuildError, match="NaN") as caught:
        build_variants(engine.manifest, model.SerializeToString(), folder)
    assert caught.value.code == "build.network"


def test_a_network_beyond_half_precision_is_refused(engine, folder):
    model = make_convolutional_network()
    for tensor in model.graph.initializer:
        if tensor.name == "stem.bias":
            tensor.CopyFrom(numpy_helper.from_array(np.full(8, 4e4, np.float32), tensor.name))
        if tensor.name == "high":
            tensor.CopyFrom(numpy_helper.from_array(np.float32(6e4), tensor.name))
    with pytest.raises(BuildError, match="comes near the end of its range") as caught:
        build_variants(engine.manifest, model.SerializeToString(), folder, precisions=("fp16",))
    assert caught.value.code == "build.accuracy"


@pytest.mark.parametrize("precisions", [(), ("int4",), ("fp32",)])
def test_precisions_that_do_not_exist_are_refused(engine, folder, tmp_path, precisions):
    with pytest.raises(BuildError) as caught:
        build_engine(engine, folder, tmp_path / "out.ptxengine", precisions=precisions)
    assert caught.value.code == "build.option"


def test_a_full_disk_leaves_the_old_engine(engine, folder, tmp_path, monkeypatch):
    out = tmp_path / "engine.ptxengine"
    out.write_bytes(b"the old engine")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    write = variants.write_engine

    def full(*arguments):
        """Only from here on: films are read through a file, too."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        return write(*arguments)

    monkeypatch.setattr(variants, "write_engine", full)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(WriterError):
            build_engine(engine, folder, out, budget=LOOSE, precisions=("fp16",))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert out.read_bytes() == b"the old engine"
    assert list(tmp_path.iterdir()) == [out]


def test_no_folder_for_the_engine_is_said_at_once(engine, tmp_path):
    for out in (tmp_path / "missing" / "out.ptxengine", tmp_path):
        with pytest.raises(WriterError, match="no folder"):
            build_engine(engine, tmp_path / "missing films", out)


def command(*arguments, **options):
    environment = os.environ | {"COLUMNS": "200"}
    line = [sys.executable, "-m", "ptxsdk", "build", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, env=environment, check=False, **options)


def test_the_command_line_builds_from_an_onnx(folder, tmp_path):
    like = tmp_path / "like.ptxengine"
    like.write_bytes(make_convolutional_engine())
    network = tmp_path / "mine.onnx"
    network.write_bytes(make_convolutional_network(seed=0).SerializeToString())
    ran = command(
        network, "--like", like, "--films", folder, "--out", tmp_path / "out", "--precisions", "fp16", "--json"
    )
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert report["written"] == [str(tmp_path / "out" / "mine.fp16.onnx")]
    assert report["variants"]["fp16"]["accuracy"]["films"] > 50
    onnx.checker.check_model(onnx.load(tmp_path / "out" / "mine.fp16.onnx"))


def test_the_command_line_says_what_is_wrong(tmp_path):
    ran = command("--films", tmp_path, "--out", tmp_path / "new.ptxengine", "--json")
    assert ran.returncode == 1
    assert json.loads(ran.stdout)["error"]["code"] == "build.films"
    assert command("--out", tmp_path / "new.ptxengine").returncode == 2
    assert command("--films", tmp_path, "--out", "x", "--precisions", "fp8").returncode == 2
