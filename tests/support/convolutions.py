"""Networks made for the tests that have convolutions, in every precision a graph can state."""

from __future__ import annotations

import numpy as np
from made import GRID, SIZE


def make_convolutions(precision="fp32", *, half_tensors=False):
    """A strongly typed network with the small engine's inputs and outputs, as ONNX.

    `half_tensors`: inputs and outputs are float16 too; otherwise they are float32 in every precision.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(7)
    inside = np.float16 if precision == "fp16" else np.float32
    outside = TensorProto.FLOAT16 if half_tensors else TensorProto.FLOAT
    weights = {"first": random.normal(0, 0.3, (32, 1, 3, 3)), "second": random.normal(0, 0.1, (32, 32, 3, 3))}
    constants = {"channel": np.array([1], np.int64), "head.weight": random.normal(0, 0.2, (1, 32, 1, 1)).astype(inside)}
    nodes = []

    def add(kind, inputs, output, **attributes):
        nodes.append(helper.make_node(kind, inputs, [output], name=f"node.{output}", **attributes))
        return output

    def quantized(value, scale):
        constants[f"{value}.scale"], constants[f"{value}.zero"] = np.array(scale, np.float32), np.array(0, np.int8)
        add("QuantizeLinear", [value, f"{value}.scale", f"{value}.zero"], f"{value}.int8")
        return add("DequantizeLinear", [f"{value}.int8", f"{value}.scale", f"{value}.zero"], f"{value}.real")

    flow = "image"
    if precision == "fp16" and not half_tensors:
        flow = add("Cast", [flow], "image.half", to=TensorProto.FLOAT16)
    for name, weight in weights.items():
        constants[f"{name}.weight"] = weight.astype(inside)
        kernel = f"{name}.weight"
        if precision == "int8":
            flow, kernel = quantized(flow, 0.02), quantized(kernel, float(np.abs(weight).max()) / 127)
        flow = add("Relu", [add("Conv", [flow, kernel], f"{name}.sum", pads=[1] * 4)], f"{name}.out")
    flow = add("Conv", [flow, "head.weight"], "map")
    step = SIZE // GRID
    patches = add("MaxPool", [flow], "patches", kernel_shape=[step, step], strides=[step, step])
    for source, output in ((patches, "patch_logits"), (flow, "mask_logits")):
        if precision == "fp16" and not half_tensors:
            source = add("Cast", [source], f"{source}.float", to=TensorProto.FLOAT)
        add("Squeeze", [source, "channel"], output)
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [tensor("image", outside, [1, 1, SIZE, SIZE])],
        [tensor("patch_logits", outside, [1, GRID, GRID]), tensor("mask_logits", outside, [1, SIZE, SIZE])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()
