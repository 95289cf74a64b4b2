"""Networks: what is refused, the rewritten upsampling against ONNX Runtime's own, half precision."""

import numpy as np
import onnx
import onnxruntime
import pytest
from build_films import make_convolutional_network
from onnx import TensorProto, helper, numpy_helper

from ptxsdk import BuildError
from ptxsdk.build import network as net
from ptxsdk.manifest import InputSpec, MaskOutput, OutputSpec, PatchOutput

INPUT = InputSpec(size=(64, 64), mean=0.5, std=0.5)
OUTPUT = OutputSpec(patch_logits=PatchOutput(grid=(8, 8)), mask_logits=MaskOutput(size=(64, 64)))


def parse(model):
    return net.parse_network(model.SerializeToString(), INPUT, OUTPUT)


def run(model, image):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: image})


@pytest.fixture
def model():
    return make_convolutional_network()


def refused(model, match):
    with pytest.raises(BuildError, match=match) as caught:
        parse(model)
    assert caught.value.code == "build.network"


def test_a_good_network_is_taken_with_its_shapes(model):
    shapes = {value.name for value in parse(model).graph.value_info}
    assert {"a", "d", "j"} <= shapes


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(model, bad):
    weights = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weights[3, 0, 1, 1] = bad
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "stem.weight"))
    refused(model, "'stem.weight' hold NaN")


def test_operators_of_others_are_refused(model):
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    model.graph.node[3].domain = "com.example"
    refused(model, "Relu|com.example")


def test_operators_that_do_not_exist_are_refused(model):
    model.graph.node[3].op_type = "Reluctant"
    refused(model, "Reluctant")


@pytest.mark.parametrize("side", ["batch", None])
def test_sizes_that_are_not_fixed_are_refused(model, side):
    dim = model.graph.input[0].type.tensor_type.shape.dim[0]
    dim.Clear()
    if side:
        dim.dim_param = side
    refused(model, "'image' is")


def test_a_rank_that_is_not_fixed_is_refused(model):
    model.graph.input[0].type.tensor_type.ClearField("shape")
    refused(model, "shape")


def test_a_shape_that_depends_on_values_is_refused(model):
    model.graph.node.insert(0, helper.make_node("NonZero", ["image"], ["where"], "where"))
    model.graph.node.insert(1, helper.make_node("Shape", ["where"], ["count"], "count"))
    refused(model, "NonZero 'where' has an output of no fixed shape")


def test_tensors_that_break_the_contract_are_refused(model):
    model.graph.output[0].name = model.graph.node[8].output[0] = "patches"
    refused(model, "'patch_logits' is missing")


def test_weights_outside_the_file_are_refused(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="elsewhere.bin")
    refused(model, "elsewhere|outside")


@pytest.mark.parametrize("content", [b"", b"not onnx", b"\x08\x07" * 50])
def test_what_is_no_onnx_is_refused(content):
    with pytest.raises(BuildError) as caught:
        net.parse_network(content, INPUT, OUTPUT)
    assert caught.value.code == "build.network"


def test_constants_of_nodes_become_weights(model):
    high = next(tensor for tensor in model.graph.initializer if tensor.name == "high")
    model.graph.initializer.remove(high)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["high"], "constant", value=high))
    parsed = parse(model)
    assert "Constant" not in {node.op_type for node in parsed.graph.node}
    assert net.constants(parsed)["high"] == 6


def test_constants_are_looked_at_too(model):
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "stem.bias")
    model.graph.initializer.remove(bias)
    bias = numpy_helper.from_array(np.full(8, np.nan, np.float32), "stem.bias")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["stem.bias"], "constant", value=bias))
    refused(model, "'stem.bias' hold NaN")


def test_nodes_get_names_of_their_own(model):
    for node in model.graph.node:
        node.name = "same" if node.op_type == "Conv" else ""
    parsed = parse(model)
    names = [node.name for node in parsed.graph.node]
    assert "" not in names
    assert len(set(names)) == len(names) == 12
    half = net.to_half(parsed, net.heads(parsed))
    kinds = {weights.dtype for weights in net.constants(half).values() if weights.ndim == 4}
    assert kinds == {np.dtype(np.float16), np.dtype(np.float32)}


def test_shared_weights_are_parted(model):
    for node in model.graph.node:
        if node.name == "mask":
            node.input[1] = "patch.weight"
    convs = {node.name: node.input[1] for node in net.convolutions(parse(model))}
    assert convs["mask"] != convs["patch"] == "patch.weight"


def test_computed_weights_and_inner_networks_are_refused(model):
    other = make_convolutional_network()
    other.graph.node.insert(0, helper.make_node("Relu", ["mask.weight"], ["computed"], "compute"))
    next(node for node in other.graph.node if node.name == "mask").input[1] = "computed"
    refused(other, "Conv 'mask' computes its weights")
    next(node for node in model.graph.node if node.name == "stem").attribute.append(
        helper.make_attribute("auto_pad", "SAME_UPPER")
    )
    refused(model, "padding")


def resize_model(shape, sizes, **attributes):
    value = helper.make_tensor_value_info
    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], "up", **{"mode": "linear"} | attributes)
    graph = helper.make_graph(
        [node],
        "resize",
        [value("x", TensorProto.FLOAT, shape)],
        [value("y", TensorProto.FLOAT, sizes)],
        [numpy_helper.from_array(np.array(sizes, np.int64), "sizes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("factor", [2, 3, 4, 7])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (12, 17)])
def test_rewritten_upsampling_gives_the_same_values(shape, factor):
    sizes = [1, 1, shape[0] * factor, shape[1] * factor]
    model = resize_model([1, 1, *shape], sizes)
    image = np.random.default_rng(0).normal(0, 3, (1, 1, *shape)).astype(np.float32)
    wanted = run(model, image)[0]
    assert net.rewrite_upsampling(model) == 1
    assert [node.op_type for node in model.graph.node] == ["Pad", "Conv", "DepthToSpace"]
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(run(model, image)[0], wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("shape", "sizes", "attributes"),
    [
        ([1, 2, 4, 4], [1, 2, 8, 8], {}),
        ([1, 1, 4, 4], [1, 1, 6, 6], {}),
        ([1, 1, 4, 4], [1, 1, 8, 12], {}),
        ([1, 1, 8, 8], [1, 1, 4, 4], {}),
        ([1, 1, 4, 4], [1, 1, 8, 8], {"mode": "nearest"}),
        ([1, 1, 4, 4], [1, 1, 8, 8], {"coordinate_transformation_mode": "align_corners"}),
    ],
)
def test_other_resizing_is_left_alone(shape, sizes, attributes):
    model = resize_model(shape, sizes, **attributes)
    assert net.rewrite_upsampling(model) == 0


def test_half_precision_keeps_heads_and_contract_in_full(model):
    parsed = parse(model)
    half = net.to_half(parsed, net.heads(parsed))
    net.checked_bytes(half)
    weights = net.constants(half)
    by_name = {node.name: node for node in half.graph.node}
    assert weights[by_name["stem"].input[1]].dtype == np.float16
    assert weights[by_name["pointwise"].input[2]].dtype == np.float16
    assert weights[by_name["mask"].input[1]].dtype == np.float32
    assert weights[by_name["patch"].input[1]].dtype == np.float32
    for value in (*half.graph.input, *half.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    image = np.random.default_rng(1).uniform(-1, 1, (1, 1, 64, 64)).astype(np.float32)
    for wanted, found in zip(run(model, image), run(half, image), strict=True):
        assert 1e-6 < np.abs(wanted - found).max() < 0.1


def test_every_tensor_is_cast_once(model):
    parsed = parse(model)
    half = net.to_half(parsed, net.heads(parsed))
    casts = [(node.input[0], node.attribute[0].i) for node in half.graph.node if node.op_type == "Cast"]
    assert len(casts) == len(set(casts)) == 3  # the input, and what enters each head


def test_weights_beyond_half_precision_are_refused(model):
    net.set_constant(model, "pointwise.bias", np.full(8, 1e5, np.float32))
    parsed = parse(model)
    with pytest.raises(BuildError, match=r"'pointwise\.bias' are too large"):
        net.to_half(parsed, net.heads(parsed))


def test_heads_end_at_the_last_convolution(model):
    assert net.heads(parse(model)) == {"patch", "patch_squeeze", "mask", "enlarge", "mask_squeeze"}


def test_work_is_counted(model):
    counts = net.multiply_accumulates(parse(model))
    assert counts["stem"] == 32 * 32 * 8 * 9
    assert counts["depthwise"] == 32 * 32 * 8 * 9
    assert counts["pointwise"] == 32 * 32 * 8 * 8
    assert counts["patch"] == 8 * 8 * 8


def pointwise_model(between="", groups=1, stride=1, fan_out=False):
    value, node = helper.make_tensor_value_info, helper.make_node
    generator = np.random.default_rng(0)
    weights = {
        "w1": generator.normal(size=(6, 4, 1, 1)),
        "b1": generator.normal(size=6),
        "w2": generator.normal(size=(6, 6 // groups, 1, 1)),
    }
    nodes = [node("Conv", ["x", "w1", "b1"], ["a"], "one")]
    source = "a"
    if between:
        nodes.append(node(between, ["a"], ["b"], "between"))
        source = "b"
    nodes.append(node("Conv", [source, "w2"], ["c"], "two", group=groups, strides=[stride, stride]))
    nodes.append(node("Add", ["c", "a"], ["y"], "sum") if fan_out else node("Relu", ["c"], ["y"], "end"))
    graph = helper.make_graph(
        nodes,
        "pointwise",
        [value("x", TensorProto.FLOAT, [1, 4, 5, 7])],
        [value("y", TensorProto.FLOAT, [1, 6, -(-5 // stride), -(-7 // stride)])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_pointwise_convolutions_in_a_row_become_one():
    model = pointwise_model()
    merged = net.merge_pointwise(model)
    assert [node.name for node in merged.graph.node] == ["two", "end"]
    assert [node.name for node in model.graph.node] == ["one", "two", "end"]
    onnx.checker.check_model(merged, full_check=True)
    image = np.random.default_rng(1).normal(size=(1, 4, 5, 7)).astype(np.float32)
    np.testing.assert_allclose(run(merged, image)[0], run(model, image)[0], atol=1e-5)
    assert {"w1", "b1", "w2"}.isdisjoint(net.constants(merged))


@pytest.mark.parametrize("how", [{"between": "Relu"}, {"groups": 2}, {"stride": 2}, {"fan_out": True}])
def test_other_convolutions_stay_two(how):
    assert len(net.convolutions(net.merge_pointwise(pointwise_model(**how)))) == 2
