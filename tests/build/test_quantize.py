"""INT8: signed and symmetric throughout, rounding that is no worse than to nearest, layers given back to float."""

import itertools
import os
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from build_films import SHAPE, make_convolutional_network
from made import SIZE, make_chest

from ptxsdk.build import quantize as int8
from ptxsdk.build.network import constants, convolutions, parse_network, producers
from ptxsdk.manifest import InputSpec, MaskOutput, OutputSpec, PatchOutput
from ptxsdk.ops import preprocess
from ptxsdk.radiograph import Display, Window

LAYERS = ["stem", "depthwise", "pointwise", "patch", "mask"]


@pytest.fixture(scope="module")
def films():
    generator = np.random.default_rng(3)
    display = Display(voi=Window.from_range(0, 255))
    made = []
    for index in range(24):
        blob = (*generator.integers(60, 200, 2), 30) if index % 2 else None
        tensor, _ = preprocess(make_chest(SHAPE, blob=blob), display=display, size=(SIZE, SIZE), mean=0.5, std=0.5)
        made.append(tensor.astype(np.float16))
    return made


@pytest.fixture(scope="module")
def model():
    outputs = OutputSpec(patch_logits=PatchOutput(grid=(8, 8)), mask_logits=MaskOutput(size=(SIZE, SIZE)))
    return parse_network(
        make_convolutional_network().SerializeToString(), InputSpec(size=(SIZE, SIZE), mean=0.5, std=0.5), outputs
    )


@pytest.fixture(scope="module")
def quantized(model, films):
    return int8.quantize(model, films)


def run(model, film):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": film[None, None].astype(np.float32)})


def test_every_quantizer_is_signed_and_symmetric(quantized):
    values = constants(quantized)
    zeros = [values[node.input[2]] for node in quantized.graph.node if node.op_type.endswith("quantizeLinear")]
    zeros += [values[node.input[2]] for node in quantized.graph.node if node.op_type == "QuantizeLinear"]
    assert zeros
    for zero in zeros:
        assert zero.dtype == np.int8
        assert not zero.any()


def test_activations_have_one_scale(quantized):
    values = constants(quantized)
    scales = [values[node.input[1]] for node in quantized.graph.node if node.op_type == "QuantizeLinear"]
    assert scales
    assert all(scale.size == 1 for scale in scales)  # TensorRT takes no more


def test_weights_are_int8_with_a_scale_for_each_channel(quantized):
    values, made_by = constants(quantized), producers(quantized)
    for node in convolutions(quantized):
        dequantize = made_by[node.input[1]]
        weights = values[dequantize.input[0]]
        assert weights.dtype == np.int8
        assert np.abs(weights.astype(int)).max() <= int8.LEVELS
        assert values[dequantize.input[1]].size == len(weights)


def test_the_result_is_near_the_original(model, quantized, films):
    onnx.checker.check_model(quantized, full_check=True)
    for film in films[:4]:
        for wanted, found in zip(run(model, film), run(quantized, film), strict=True):
            assert 0 < np.abs(wanted - found).max() < 0.05 * np.abs(wanted).max()


def test_all_layers_in_float_is_the_original(model, quantized, films):
    freed = int8.keep_float(quantized, model, LAYERS)
    for node in freed.graph.node:  # the sum is not a layer and stays quantized
        assert node.op_type != "DequantizeLinear" or "weight" not in node.input[0]
    weights = constants(freed)
    original = constants(model)
    for node in convolutions(freed):
        np.testing.assert_array_equal(weights[node.input[1]], original[node.input[1]])
        np.testing.assert_array_equal(weights[node.input[2]], original[f"{node.name}.bias"])


def test_one_layer_in_float_leaves_the_others_alone(model, quantized):
    freed = int8.keep_float(quantized, model, ["depthwise"])
    made_by = producers(freed)
    kinds = {node.name: node.input[1] in made_by for node in convolutions(freed)}
    assert kinds == {name: name != "depthwise" for name in LAYERS}
    assert [node.name for node in convolutions(quantized) if node.input[1] in producers(quantized)] != []


def test_costs_name_every_layer_greatest_first(model, quantized, films):
    seen = []
    costs = int8.sensitivities(quantized, model, films[:4], lambda done, of: seen.append((done, of)))
    assert set(costs) == set(LAYERS)
    assert list(costs.values()) == sorted(costs.values(), reverse=True)
    assert min(costs.values()) > 0
    assert seen[-1] == (5, 5)


def test_a_costly_layer_is_found(model, films):
    wild = type(model)()
    wild.CopyFrom(model)
    quantized = int8.quantize(wild, films)
    made_by, values = producers(quantized), constants(quantized)
    node = next(each for each in convolutions(quantized) if each.name == "pointwise")
    scale = made_by[node.input[1]].input[1]
    from ptxsdk.build.network import set_constant

    set_constant(quantized, scale, values[scale] * np.float32(1.3))
    assert next(iter(int8.sensitivities(quantized, wild, films[:4], lambda done, of: None))) == "pointwise"


def test_moments_are_those_of_a_plain_loop(model, films):
    names = {node.name: node for node in convolutions(model)}
    found = int8.moments(model, films[:2])
    planes = [
        {k: v.copy() for k, v in values.items()} for values in int8.run_tensors(model, ["image", "b", "d"], films[:2])
    ]
    # the pointwise layer: 1024 positions a film, 512 of them drawn; the mean of all is near
    assert found["pointwise"].mean.shape == (1, 8)
    everything = np.concatenate([values["d"][0].reshape(8, -1) for values in planes], 1)
    np.testing.assert_allclose(found["pointwise"].mean[0], everything.mean(1), rtol=0.1, atol=0.02)
    # the depthwise layer, position by position
    draws = np.random.default_rng(0)
    node = names["depthwise"]
    plane = planes[0]["b"][0]
    seen = int8._under_kernel(plane, node, (3, 3), draws)
    drawn = np.random.default_rng(0).choice(32 * 32, 512, replace=False)
    padded = np.pad(plane, ((0, 0), (1, 1), (1, 1)))
    for channel, tap, position in itertools.product((0, 5), range(9), (0, 17, 511)):
        y, x = divmod(int(drawn[position]), 32)
        assert seen[channel, tap, position] == padded[channel, y + tap // 3, x + tap % 3]
    assert found["depthwise"].second.shape == (8, 9, 9)
    assert found["stem"].second.shape == (1, 9, 9)


def test_strides_are_followed(model):
    node = next(each for each in convolutions(model) if each.name == "stem")
    plane = np.arange(64 * 64, dtype=np.float32).reshape(1, 64, 64)
    seen = int8._under_kernel(plane, node, (3, 3), np.random.default_rng(5))
    drawn = np.random.default_rng(5).choice(32 * 32, 512, replace=False)
    y, x = np.divmod(drawn, 32)
    np.testing.assert_array_equal(seen[0, 4], plane[0, 2 * y, 2 * x])


def cost(rows, scale, rounded, second):
    error = rows - rounded * scale[:, None]
    return np.einsum("oi,ij,oj->o", error, second, error)


@pytest.mark.parametrize("seed", range(5))
def test_rounding_beats_the_nearest_where_inputs_go_together(seed):
    generator = np.random.default_rng(seed)
    mixed = generator.normal(size=(9, 9)) * 0.2 + 1  # neighbours under a kernel are alike
    second = mixed @ mixed.T / 9
    rows, scale = generator.normal(size=(40, 9)), np.full(40, 0.2)
    rounded = int8.round_rows(rows, scale, second)
    assert np.array_equal(rounded, np.rint(rounded))
    assert np.abs(rounded).max() <= int8.LEVELS
    nearest = cost(rows, scale, np.rint(rows / scale[:, None]), second)
    assert cost(rows, scale, rounded, second).mean() < 0.5 * nearest.mean()


def test_rounding_is_to_nearest_where_inputs_have_nothing_in_common():
    rows, scale = np.random.default_rng(0).normal(size=(20, 6)), np.linspace(0.01, 0.3, 20)
    found = int8.round_rows(rows, scale, np.eye(6))
    wanted = np.clip(np.rint(rows / scale[:, None]), -int8.LEVELS, int8.LEVELS)
    np.testing.assert_array_equal(found, wanted)


def test_rounding_comes_near_the_best_there_is():
    generator = np.random.default_rng(1)
    mixed = generator.normal(size=(4, 4)) * 0.3 + 1
    second = mixed @ mixed.T
    rows, scale = generator.normal(size=(8, 4)), np.full(8, 0.25)
    found = cost(rows, scale, int8.round_rows(rows, scale, second), second)
    nearest = cost(rows, scale, np.rint(rows / scale[:, None]), second)
    best = np.full(8, np.inf)
    for up in itertools.product((-1, 0, 1, 2), repeat=4):
        best = np.minimum(best, cost(rows, scale, np.floor(rows / scale[:, None]) + np.array(up), second))
    assert (best <= found + 1e-9).all()
    assert found.sum() - best.sum() < 0.5 * (nearest.sum() - best.sum())


def test_an_input_that_is_always_nothing_does_no_harm():
    second = np.zeros((3, 3))
    assert np.isfinite(int8.round_rows(np.ones((2, 3)), np.full(2, 0.1), second)).all()


def test_nncf_is_loaded_without_its_telemetry():
    code = (
        "from ptxsdk.build import quantize; import os, sys; quantize._nncf();"
        "from nncf.telemetry.wrapper import telemetry; print(type(telemetry).__name__, 'NNCF_CI' in os.environ)"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("NNCF_CI", "NNCF_DEV")}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert ran.stdout.split() == ["MagicMock", "False"]


def test_what_is_never_negative_is_marked_and_read_unsigned(model, quantized, films):
    from ptxsdk.backends.openvino import NONNEGATIVE, unsigned

    marked = int8.keep_float(quantized, model, [])
    count = int8.mark_nonnegative(marked)
    made_by = producers(marked)
    quantizers = [node for node in marked.graph.node if node.op_type == "QuantizeLinear"]
    for node in quantizers:
        source = made_by.get(node.input[0])
        nonnegative = source is not None and source.op_type in ("Relu", "Clip")
        assert (node.input[2] == NONNEGATIVE) == nonnegative
    assert 0 < count < len(quantizers)
    onnx.checker.check_model(marked, full_check=True)
    signed = marked.SerializeToString()
    read = unsigned(signed)
    assert len(read) == len(signed)
    assert sum(a != b for a, b in zip(read, signed, strict=True)) == 1
    changed = onnx.load_model_from_string(read)
    onnx.checker.check_model(changed, full_check=True)
    assert constants(changed)[NONNEGATIVE].dtype == np.uint8
    for film in films[:4]:  # nothing here lies above the calibrated range
        for wanted, found in zip(run(marked, film), run(changed, film), strict=True):
            np.testing.assert_allclose(found, wanted, atol=2e-3 * np.abs(wanted).max())
    assert unsigned(quantized.SerializeToString()) == quantized.SerializeToString()
    assert unsigned(read) == read


def test_both_readings_agree_beyond_the_calibrated_range(model, quantized):
    from ptxsdk.backends.openvino import unsigned

    marked = int8.keep_float(quantized, model, [])
    int8.mark_nonnegative(marked)
    signed = marked.SerializeToString()
    bright = np.full((SIZE, SIZE), 4, np.float16)  # four times what any film shows
    for wanted, found in zip(
        run(marked, bright), run(onnx.load_model_from_string(unsigned(signed)), bright), strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_clip_that_goes_below_zero_is_not_marked(model, quantized):
    other = int8.keep_float(quantized, model, [])
    from ptxsdk.build.network import set_constant

    set_constant(other, "low", np.array(-1, np.float32))
    before = int8.mark_nonnegative(int8.keep_float(quantized, model, []))
    assert int8.mark_nonnegative(other) < before
