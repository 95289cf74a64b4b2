"""Networks as ONNX: what a variant may be made of, the exact rewriting of its upsampling, and its fp16 form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ptxsdk.errors import BuildError
from ptxsdk.manifest import InputSpec, OutputSpec

if TYPE_CHECKING:
    import onnx

_LARGEST_HALF = 65504.0
_MERGED_WORK = 1.5


def parse_network(content: bytes, inputs: InputSpec, outputs: OutputSpec) -> onnx.ModelProto:
    """Read a network and hold it against its contract, so that no builder meets what it cannot digest.

    Parameters
    ----------
    content : bytes
        ONNX with standard operators, weights inside, static shapes.
    inputs, outputs
        The tensors it must have.

    Raises
    ------
    BuildError
        ``build.network``, saying what is wrong; ``build.unavailable``: ONNX is not installed.
    """
    library = require("onnx")
    model: Any
    try:
        model = library.load_model_from_string(content)
        library.checker.check_model(model, full_check=True)
        model = library.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # onnx raises ValueError, its own errors and protobuf's, with no common base
        raise BuildError("build.network", f"ONNX refuses the network: {_first_line(error)}") from error
    foreign = sorted(
        {f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain not in ("", "ai.onnx")}
    )
    if foreign or model.functions:
        raise BuildError("build.network", f"the network has operators outside ONNX's own: {', '.join(foreign)}")
    if any(tensor.data_location == library.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise BuildError("build.network", "the network keeps weights outside its file")
    _normalise(model)
    _check_tensors(model, inputs, outputs)
    for name, weights in constants(model).items():
        if weights.dtype.kind == "f" and not np.isfinite(weights).all():
            raise BuildError("build.network", f"the weights {name!r} hold NaN or infinity")
    checked: onnx.ModelProto = model
    return checked


def _normalise(model: onnx.ModelProto) -> None:
    """Give nodes unique names and convolutions weights of their own; make constants of nodes into weights."""
    graph = model.graph
    kept, names = [], set()
    for index, node in enumerate(graph.node):
        how = attributes(node)
        if node.op_type == "Constant":
            if "value" not in how:
                raise BuildError("build.network", f"the constant {node.output[0]!r} is not a tensor")
            graph.initializer.add().CopyFrom(how["value"])
            graph.initializer[-1].name = node.output[0]
            continue
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise BuildError("build.network", f"{node.op_type} {node.name!r} holds a network of its own")
        if how.get("auto_pad", b"NOTSET") != b"NOTSET":
            raise BuildError("build.network", f"{node.op_type} {node.name!r} leaves its padding to the runtime")
        if not node.name or node.name in names:
            node.name = f"{node.op_type}_{index}_{node.output[0]}"
        names.add(node.name)
        kept.append(node)
    nodes = [type(node).FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(nodes)
    weights, made_by, used = constants(model), producers(model), set()
    for node in convolutions(model):
        for position, name in enumerate(node.input[1:], 1):
            if name not in weights:
                if made_by.get(name) is None or made_by[name].op_type != "DequantizeLinear":
                    raise BuildError("build.network", f"Conv {node.name!r} computes its weights")
                continue
            if name in used:
                set_constant(model, f"{node.name}.own.{position}", weights[name])
                node.input[position] = f"{node.name}.own.{position}"
            used.add(name)


def _check_tensors(model: onnx.ModelProto, inputs: InputSpec, outputs: OutputSpec) -> None:
    """Compare input and outputs with the contract; refuse any tensor without a fixed shape."""
    graph = model.graph
    wanted = {
        inputs.name: (1, 1, *inputs.size),
        outputs.patch_logits.name: (1, *outputs.patch_logits.grid),
        outputs.mask_logits.name: (1, *outputs.mask_logits.size),
    }
    weights = {tensor.name for tensor in graph.initializer}
    found = {value.name: _shape(value) for value in (*graph.input, *graph.output) if value.name not in weights}
    for name, shape in wanted.items():
        if found.get(name, "missing") != shape:
            raise BuildError(
                "build.network", f"tensor {name!r} is {found.get(name, 'missing')}, the engine says {shape}"
            )
    for name in found.keys() - wanted.keys():
        raise BuildError("build.network", f"the network has a tensor {name!r} that the engine does not know")
    for value in (*graph.input, *graph.output):
        if value.name in wanted and value.type.tensor_type.elem_type != 1:
            raise BuildError("build.network", f"tensor {value.name!r} is not float32")
    known = {value.name: _shape(value) for value in graph.value_info}
    for node in graph.node:
        for name in node.output:
            if name and name not in wanted and None in known.get(name, (None,)):
                raise BuildError("build.network", f"{node.op_type} {node.name!r} has an output of no fixed shape")


def _shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    if not value.type.tensor_type.HasField("shape"):
        return (None,)
    sides = value.type.tensor_type.shape.dim
    return tuple(side.dim_value if side.HasField("dim_value") else None for side in sides)


def require(name: str) -> Any:
    """Import a package of the extra 'build'.

    Raises
    ------
    BuildError
        ``build.unavailable``.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BuildError("build.unavailable", f"building needs the extra 'build': {error}") from error


def constants(model: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    """Return every weight by name."""
    from onnx import numpy_helper

    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Return the node that makes each tensor."""
    return {name: node for node in model.graph.node for name in node.output}


def convolutions(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the convolutions, in the graph's order."""
    return [node for node in model.graph.node if node.op_type == "Conv"]


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the attributes of a node as plain values."""
    from onnx.helper import get_attribute_value

    return {attribute.name: get_attribute_value(attribute) for attribute in node.attribute}


def set_constant(model: onnx.ModelProto, name: str, value: npt.NDArray[Any]) -> None:
    """Set or add a weight."""
    from onnx import numpy_helper

    tensor = numpy_helper.from_array(value, name)
    for there in model.graph.initializer:
        if there.name == name:
            there.CopyFrom(tensor)
            return
    model.graph.initializer.append(tensor)


def multiply_accumulates(model: onnx.ModelProto) -> dict[str, int]:
    """Return the multiply-accumulates of each convolution by its node's name."""
    shapes = {value.name: _shape(value) for value in (*model.graph.value_info, *model.graph.output)}
    weights = constants(model)
    counts = {}
    for node in convolutions(model):
        rows, columns = (side or 0 for side in shapes[node.output[0]][-2:])
        counts[node.name] = int(weights[node.input[1]].size) * rows * columns
    return counts


def merge_pointwise(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the network with each 1 x 1 convolution that feeds another one alone multiplied into it; the values stay.

    Nothing stands between the two, as where a linear bottleneck is expanded again: one product of their weights, made
    in float64, does the work of both. There is one rounding and one pass through memory less, which is worth up to half
    as many multiply-accumulates again.
    """
    from onnx import shape_inference

    merged = type(model)()
    merged.CopyFrom(model)
    graph = merged.graph
    while (pair := _pointwise_pair(merged)) is not None:
        first, second = pair
        weights = constants(merged)
        inner, outer = (weights[node.input[1]][:, :, 0, 0].astype(np.float64) for node in pair)
        name = f"{second.name}.merged.{{}}".format
        set_constant(merged, name("weight"), (outer @ inner).astype(np.float32)[:, :, None, None])
        biases = [weights[node.input[2]] if len(node.input) > 2 else np.zeros(1) for node in pair]
        set_constant(
            merged, name("bias"), np.asarray(outer @ np.broadcast_to(biases[0], len(inner)) + biases[1], np.float32)
        )
        second.input[:] = [first.input[0], name("weight"), name("bias")]
        graph.node.remove(first)
    drop_unused(merged)
    del graph.value_info[:]
    return shape_inference.infer_shapes(merged)


def _pointwise_pair(model: onnx.ModelProto) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
    """Return two 1 x 1 convolutions of which the second is all that reads the first, if one is not much more work."""
    weights, made_by = constants(model), producers(model)
    readers = [name for node in model.graph.node for name in node.input]
    outputs = {value.name for value in model.graph.output}

    def is_pointwise(node: onnx.NodeProto | None) -> bool:
        if node is None or node.op_type != "Conv" or any(name not in weights for name in node.input[1:]):
            return False
        how = attributes(node)
        plain = how.get("group", 1) == 1 and set(how.get("strides", (1,))) == {1} and not any(how.get("pads", ()))
        return plain and weights[node.input[1]].shape[2:] == (1, 1)

    for second in convolutions(model):
        first = made_by.get(second.input[0])
        if first is not None and is_pointwise(first) and is_pointwise(second):
            name = first.output[0]
            inner, outer = (weights[node.input[1]].shape for node in (first, second))
            fits = outer[0] * inner[1] <= _MERGED_WORK * (inner[0] * inner[1] + outer[0] * outer[1])
            if fits and readers.count(name) == 1 and name not in outputs:
                return first, second
    return None


def rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with `rewrite_upsampling` done and every shape known."""
    from onnx import shape_inference

    copy = type(model)()
    copy.CopyFrom(model)
    rewrite_upsampling(copy)
    del copy.graph.value_info[:]
    return shape_inference.infer_shapes(copy)


def rewrite_upsampling(model: onnx.ModelProto) -> int:
    """Write enlargements of one channel by a whole factor as a 3 x 3 convolution and a shuffle; the values stay.

    Bilinear interpolation with pixel centres at half-integers and clamped edges (ONNX ``half_pixel``) reads each
    output from the 3 x 3 inputs around it with fixed weights, so factor f is a convolution to f * f channels behind an
    edge padding, then DepthToSpace. CPU runtimes interpolate a single channel pixel by pixel; this takes a
    fifth of the time.

    Returns
    -------
    int
        How many were rewritten.
    """
    from onnx import helper, shape_inference

    graph = model.graph
    del graph.value_info[:]
    inferred = shape_inference.infer_shapes(model).graph
    shapes = {value.name: _shape(value) for value in (*inferred.value_info, *graph.input, *graph.output)}
    count = 0
    for index, node in reversed(list(enumerate(graph.node))):
        if node.op_type != "Resize":
            continue
        before, after = shapes.get(node.input[0]), shapes.get(node.output[0])
        if not before or not after or len(before) != 4 or before[:2] != (1, 1):
            continue
        mode = attributes(node)
        factor = (after[2] or 0) // (before[2] or 1)
        if (
            mode.get("mode") != b"linear"
            or mode.get("coordinate_transformation_mode", b"half_pixel") != b"half_pixel"
            or mode.get("antialias", 0)
            or factor < 2
            or after[2:] != tuple((side or 0) * factor for side in before[2:])
        ):
            continue
        name = f"{node.name}.{{}}".format
        set_constant(model, name("weight"), _upsampling_kernel(factor))
        set_constant(model, name("pads"), np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
        padded, phases = name("padded"), name("phases")
        graph.node.remove(node)
        for offset, new in enumerate(
            (
                helper.make_node("Pad", [node.input[0], name("pads")], [padded], name("pad"), mode="edge"),
                helper.make_node("Conv", [padded, name("weight")], [phases], name("conv"), kernel_shape=[3, 3]),
                helper.make_node("DepthToSpace", [phases], [node.output[0]], name("shuffle"), blocksize=factor),
            )
        ):
            graph.node.insert(index + offset, new)
        count += 1
    return count


def _upsampling_kernel(factor: int) -> npt.NDArray[np.float32]:
    """Return the weights (factor * factor, 1, 3, 3) of the outputs within one input pixel."""
    shift = (np.arange(factor) + 0.5) / factor - 0.5  # from the centre of the input pixel, in input pixels
    line = np.stack([np.maximum(-shift, 0), 1 - np.abs(shift), np.maximum(shift, 0)], 1)
    kernel = line[:, None, :, None] * line[None, :, None, :]
    weights: npt.NDArray[np.float32] = kernel.reshape(factor * factor, 1, 3, 3).astype(np.float32)
    return weights


def to_half(model: onnx.ModelProto, full: Iterable[str]) -> onnx.ModelProto:
    """Return the network in half precision, but for the nodes named; input and outputs stay float32.

    Parameters
    ----------
    model : ModelProto
        fp32, as `parse_network` returns it.
    full : iterable of str
        Names of nodes to keep in fp32: the heads, whose logits are compared with thresholds.

    Raises
    ------
    BuildError
        ``build.network``: a weight is beyond the range of half precision.
    """
    from onnx import TensorProto, helper

    half = type(model)()
    half.CopyFrom(model)
    graph = half.graph
    kept = set(full)
    weights = constants(half)
    outputs = {value.name for value in graph.output}
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    is_float = {name for name, kind in types.items() if kind == TensorProto.FLOAT}
    is_half: set[str] = set()
    cast: dict[tuple[str, int], str] = {}
    nodes: list[onnx.NodeProto] = []

    def converted(name: str, node: onnx.NodeProto, *, to_half: bool) -> str:
        """Return the name of a tensor in the precision that a node wants."""
        if name in weights:
            if not to_half or weights[name].dtype != np.float32:
                return name
            if np.abs(weights[name]).max(initial=0) > _LARGEST_HALF:
                raise BuildError("build.network", f"the weights {name!r} are too large for half precision")
            set_constant(half, f"{name}.half", weights[name].astype(np.float16))
            return f"{name}.half"
        if name not in is_float or (name in is_half) == to_half:
            return name
        kind = TensorProto.FLOAT16 if to_half else TensorProto.FLOAT
        if (name, kind) not in cast:
            cast[name, kind] = f"{name}.{'half' if to_half else 'full'}"
            nodes.append(helper.make_node("Cast", [name], [cast[name, kind]], f"{name}.cast", to=kind))
        return cast[name, kind]

    for node in graph.node:
        whole = node.name in kept or any(name in outputs for name in node.output)
        # Sizes, scales and bounds of the region of interest of a Resize are no data: their type is fixed.
        data = node.input[:1] if node.op_type in ("Resize", "Pad") else node.input
        for position, name in enumerate(data):
            if name:
                node.input[position] = converted(name, node, to_half=not whole)
        if not whole:
            is_half.update(name for name in node.output if name in is_float)
        nodes.append(node)
    made = list(nodes)
    del graph.node[:]
    graph.node.extend(made)
    del graph.value_info[:]
    drop_unused(half)
    return half


def drop_unused(model: onnx.ModelProto) -> None:
    """Take out the weights and nodes that no output depends on."""
    graph = model.graph
    needed = {value.name for value in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(reversed(nodes))
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(weights)


def heads(model: onnx.ModelProto) -> set[str]:
    """Return the heads' nodes by name: the last convolution that mixes channels before each output, and all after."""
    made_by, weights = producers(model), constants(model)
    found: set[str] = set()

    def walk(name: str) -> None:
        node = made_by.get(name)
        if node is None or node.name in found:
            return
        found.add(node.name)
        if node.op_type != "Conv" or weights[node.input[1]].shape[1] == 1:
            for source in node.input:
                walk(source)

    for value in model.graph.output:
        walk(value.name)
    return found


def checked_bytes(model: onnx.ModelProto) -> bytes:
    """Return the file of a network that was changed, after ONNX's own check.

    Raises
    ------
    BuildError
        ``build.network``.
    """
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # as in `parse_network`
        raise BuildError("build.network", f"ONNX refuses the variant: {_first_line(error)}") from error
    content: bytes = model.SerializeToString()
    return content


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
