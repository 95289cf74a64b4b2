"""INT8: explicit symmetric quantization (Q/DQ) that OpenVINO and TensorRT read from one file.

NNCF places the quantizers and takes the ranges of activations from films. What it leaves to be desired is done here:
TensorRT wants signed activations; rounding to nearest costs depthwise filters their balance, so weights are rounded
with the errors fed forward (Frantar et al., "GPTQ", ICLR 2023) in the metric of what the layer sees on films; and the
layers that cost most can be given back to float.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ptxsdk.backends.openvino import NONNEGATIVE, runtime
from ptxsdk.build.network import (
    attributes,
    constants,
    convolutions,
    drop_unused,
    heads,
    producers,
    require,
    set_constant,
)
from ptxsdk.errors import BuildError
from ptxsdk.telemetry import without_telemetry

if TYPE_CHECKING:
    import onnx

Half = npt.NDArray[np.float16]
Double = npt.NDArray[np.float64]

LEVELS = 127
"""Largest quantized magnitude; -128 is not used, so that the range is symmetric."""
_POSITIONS = 512
_DAMPING = 0.01
_NARROWER = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.32, 0.25)


@dataclass(frozen=True, kw_only=True)
class Moments:
    """What a convolution sees: of the inputs under its kernel, over films and positions.

    Attributes
    ----------
    second : ndarray, shape (groups, inputs, inputs), float64
        Mean of products of two inputs.
    mean : ndarray, shape (groups, inputs), float64
        Mean of each input.
    """

    second: Double
    mean: Double


def quantize(
    model: onnx.ModelProto,
    films: Sequence[Half],
    *,
    seed: int = 0,
    track: Callable[[int, int], None] = lambda done, of: None,
) -> onnx.ModelProto:
    """Return the network with every convolution in INT8, weights and activations.

    Weights have one scale a channel, activations one a tensor, both signed with a zero point of 0.

    Parameters
    ----------
    model : ModelProto
        fp32, as `ptxsdk.build.network.parse_network` returns it.
    films : sequence of ndarray, shape (rows, columns), float16
        Preprocessed films to calibrate with.
    seed : int
        Of the positions that are looked at.
    track : callable
        Told ``(done, of)``.

    Raises
    ------
    BuildError
        ``build.network``: NNCF refuses the network, or it has nothing to quantize.
    """
    quantized = _place_quantizers(model, films)
    _make_signed(quantized)
    behind = {node.name for node in model.graph.node if node.op_type != "Conv"} & heads(model)
    quantized = _freed(quantized, model, lambda node, _: node.name not in behind)  # logits stay as they are
    _fit_ranges(quantized, model, films[:: max(1, len(films) // 24)], track)
    found = moments(model, films[:: max(1, len(films) // 64)], seed=seed)
    _round_weights(quantized, model, found)
    return quantized


def check_quantized(quantized: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a quantized network that was made elsewhere, if it is of the form that `quantize` gives.

    Raises
    ------
    BuildError
        ``build.network``: it is not of this form, or not of `model`.
    """
    values = constants(quantized)
    quantizers = [node for node in quantized.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in quantizers:
        zero = values.get(node.input[2]) if len(node.input) > 2 else None
        if zero is None or zero.dtype != np.int8 or zero.any() or node.input[1] not in values:
            raise BuildError("build.network", f"the quantizer {node.name!r} is not signed and symmetric")
        if node.op_type == "QuantizeLinear" and values[node.input[1]].size != 1:
            raise BuildError("build.network", f"the quantizer {node.name!r} has more than one scale for activations")
    known = {node.name: node.op_type for node in model.graph.node}
    foreign = [each for each in quantized.graph.node if each not in quantizers and known.get(each.name) != each.op_type]
    if foreign or not quantizers:
        what = f"{foreign[0].op_type} {foreign[0].name!r}" if foreign else "nothing quantized"
        raise BuildError("build.network", f"the INT8 network is not the engine's: it has {what}")
    return quantized


def _place_quantizers(model: onnx.ModelProto, films: Sequence[Half]) -> onnx.ModelProto:
    nncf = _nncf()
    name = next(value.name for value in model.graph.input)
    advanced = nncf.AdvancedQuantizationParameters(
        disable_bias_correction=True,  # biases are corrected with the weights
        activations_quantization_params=nncf.quantization.advanced_parameters.QuantizationParameters(
            mode=require("nncf.common.quantization.structs").QuantizationScheme.SYMMETRIC,
            per_channel=False,
        ),
        # The largest value of any film: with NNCF's default, the mean of the films' largest, the strong positives clip.
        activations_range_estimator_params=nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX,
    )
    copy = type(model)()
    copy.CopyFrom(model)
    dataset = nncf.Dataset(films, lambda film: {name: film[None, None].astype(np.float32)})
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # its progress bars
            placed: onnx.ModelProto = nncf.quantize(
                copy,
                dataset,
                preset=nncf.QuantizationPreset.PERFORMANCE,
                target_device=nncf.TargetDevice.ANY,
                subset_size=len(films),
                advanced_parameters=advanced,
            )
    except Exception as error:  # its errors and those of ONNX Runtime beneath have no common base
        raise BuildError("build.network", f"NNCF refuses the network: {str(error)[:300]}") from error
    del placed.graph.value_info[:]
    del placed.metadata_props[:]
    if not any(node.op_type == "QuantizeLinear" for node in placed.graph.node):
        raise BuildError("build.network", "the network has nothing to quantize")
    return placed


def _nncf() -> Any:
    """Import NNCF, and OpenVINO with it, without their telemetry."""
    with without_telemetry():
        nncf = require("nncf")
        require("nncf.quantization.advanced_parameters")
        require("nncf.quantization.range_estimator")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf


def _make_signed(model: onnx.ModelProto) -> None:
    """Turn unsigned quantizers (ranges from 0, as behind a ReLU) into signed ones of the same range."""
    values = constants(model)
    done = set()
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.input) < 3:
            continue
        _, scale, zero = node.input
        if values[zero].any():
            raise BuildError("build.network", f"the quantizer {node.name!r} is not symmetric")
        if values[zero].dtype == np.uint8 and zero not in done:
            done.add(zero)
            set_constant(model, scale, (values[scale] * (255 / LEVELS)).astype(np.float32))
            set_constant(model, zero, values[zero].astype(np.int8))


def _fit_ranges(
    quantized: onnx.ModelProto, model: onnx.ModelProto, films: Sequence[Half], track: Callable[[int, int], None]
) -> None:
    """Narrow the range of each activation as far as the network's outputs come nearer to the original's.

    Clipping the few largest values makes the steps finer for all others; what that is worth is asked of the outputs,
    with nothing else quantized.
    """
    quantizers = [node for node in quantized.graph.node if node.op_type == "QuantizeLinear"]
    wanted = _outputs(model, films)
    for done, node in enumerate(quantizers, 1):
        whole = constants(quantized)[node.input[1]]
        alone = _freed(quantized, model, functools.partial(_is_source, node.name))
        errors: dict[float, float] = {}
        for factor in _NARROWER:
            set_constant(alone, node.input[1], (whole * np.float32(factor)).astype(np.float32))
            errors[factor] = _error(alone, films, wanted)
            if errors[factor] > 1.2 * min(errors.values()):
                break
        best = min(errors, key=lambda factor: errors[factor])
        set_constant(quantized, node.input[1], (whole * np.float32(best)).astype(np.float32))
        track(done, len(quantizers))


def mark_nonnegative(quantized: onnx.ModelProto) -> int:
    """Give quantizers behind a ReLU the zero point named `NONNEGATIVE`; return how many.

    Signed as TensorRT wants it, they use 0..127 only, and the ReLU is made to end where they do: unsigned, these are
    the same numbers. A runtime that is faster with unsigned activations may read them so, as
    `ptxsdk.backends.openvino` does. A ReLU that something else reads too stays as it is.
    """
    from onnx import helper

    values, made_by = constants(quantized), producers(quantized)
    readers = [name for node in quantized.graph.node for name in node.input]
    found = set()
    for node in quantized.graph.node:
        source = made_by.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        if source is None or source.op_type not in ("Relu", "Clip") or readers.count(node.input[0]) > 1:
            continue
        bounds = [values.get(name) for name in source.input[1:]] if source.op_type == "Clip" else [np.float32(0)]
        if bounds and bounds[0] is not None and bounds[0] == 0:
            last = np.float32(LEVELS) * values[node.input[1]].reshape(())
            most = last if len(bounds) < 2 or bounds[1] is None else np.minimum(last, bounds[1].reshape(()))
            low, high = f"{source.name}.low", f"{source.name}.high"
            set_constant(quantized, low, np.float32(0))
            set_constant(quantized, high, np.asarray(most, np.float32))
            source.CopyFrom(helper.make_node("Clip", [source.input[0], low, high], list(source.output), source.name))
            node.input[2] = NONNEGATIVE
            found.add(node.output[0])
    for node in quantized.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in found:
            node.input[2] = NONNEGATIVE
    if found:
        set_constant(quantized, NONNEGATIVE, np.array(0, np.int8))
    drop_unused(quantized)
    return len(found)


def moments(model: onnx.ModelProto, films: Sequence[Half], *, seed: int = 0) -> dict[str, Moments]:
    """Return what every convolution sees on films, by its node's name, from positions drawn at random."""
    layers = convolutions(model)
    weights = constants(model)
    generator = np.random.default_rng(seed)
    sums: dict[str, tuple[Double, Double, int]] = {}
    for values in run_tensors(model, sorted({node.input[0] for node in layers}), films):
        for node in layers:
            kernel = weights[node.input[1]].shape[2:]
            seen = _under_kernel(values[node.input[0]][0], node, kernel, generator).astype(np.float64)
            second, mean = seen @ seen.transpose(0, 2, 1), seen.sum(2)
            if node.name in sums:
                second, mean = second + sums[node.name][0], mean + sums[node.name][1]
            sums[node.name] = second, mean, sums.get(node.name, (0, 0, 0))[2] + seen.shape[2]
    return {name: Moments(second=second / n, mean=mean / n) for name, (second, mean, n) in sums.items()}


def _under_kernel(
    plane: npt.NDArray[np.float32], node: onnx.NodeProto, kernel: tuple[int, ...], generator: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Return inputs (groups, inputs of a group, positions) under a kernel at random positions."""
    how = attributes(node)
    top, left, bottom, right = how.get("pads", (0, 0, 0, 0))
    down, across = how.get("strides", (1, 1))
    spread_y, spread_x = how.get("dilations", (1, 1))
    groups = how.get("group", 1)
    padded = np.pad(plane, ((0, 0), (top, bottom), (left, right)))
    rows = (padded.shape[1] - spread_y * (kernel[0] - 1) - 1) // down + 1
    columns = (padded.shape[2] - spread_x * (kernel[1] - 1) - 1) // across + 1
    drawn = generator.choice(rows * columns, min(_POSITIONS, rows * columns), replace=False)
    y = (drawn // columns * down)[None, :] + np.repeat(np.arange(kernel[0]) * spread_y, kernel[1])[:, None]
    x = (drawn % columns * across)[None, :] + np.tile(np.arange(kernel[1]) * spread_x, kernel[0])[:, None]
    seen = padded[:, y, x]  # (channels, kernel positions, positions)
    return np.ascontiguousarray(seen.reshape(groups, -1, drawn.size))


def run_tensors(
    model: onnx.ModelProto, names: Sequence[str], films: Iterable[Half]
) -> Iterator[dict[str, npt.NDArray[np.float32]]]:
    """Run a network in OpenVINO in fp32 and yield the named tensors of each film."""
    openvino = runtime()

    watched = type(model)()
    watched.CopyFrom(model)
    there = {value.name for value in (*watched.graph.input, *watched.graph.output)}
    for name in names:
        if name not in there:
            watched.graph.output.add().name = name
    name = next(value.name for value in model.graph.input)
    try:
        core = openvino.Core()
        options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "CACHE_DIR": ""}
        compiled = core.compile_model(core.read_model(watched.SerializeToString()), "CPU", options)
        request = compiled.create_infer_request()
        for film in films:
            tensor = film[None, None].astype(np.float32)
            request.infer({name: tensor})
            yield {each: tensor if each == name else request.get_tensor(each).data for each in names}
    except RuntimeError as error:
        raise BuildError("build.network", f"OpenVINO refuses the network: {str(error)[:300]}") from error


def _round_weights(quantized: onnx.ModelProto, model: onnx.ModelProto, found: dict[str, Moments]) -> None:
    """Round every convolution's weights for what it sees, and let its bias take up the mean error that is left."""
    weights, values = constants(model), constants(quantized)
    original = {node.name: node for node in convolutions(model)}
    made_by = producers(quantized)
    for node in convolutions(quantized):
        dequantize = made_by.get(node.input[1])
        if dequantize is None:
            continue
        whole = weights[original[node.name].input[1]]
        seen = found[node.name]
        groups = len(seen.mean)
        rows = whole.astype(np.float64).reshape(groups, len(whole) // groups, -1)
        scale = np.broadcast_to(values[dequantize.input[1]].astype(np.float64).reshape(-1), len(whole))
        scale = scale.reshape(groups, -1)
        rounded = np.stack([round_rows(rows[g], scale[g], seen.second[g]) for g in range(groups)])
        set_constant(quantized, dequantize.input[0], rounded.reshape(whole.shape).astype(np.int8))
        if len(node.input) > 2:
            error = np.einsum("gok,gk->go", rows - rounded * scale[:, :, None], seen.mean).reshape(-1)
            bias = weights[original[node.name].input[2]] + error
            set_constant(quantized, node.input[2], bias.astype(np.float32))


def round_rows(rows: Double, scale: Double, second: Double) -> Double:
    """Round weights so that the layer's output changes least, by feeding each error forward to the weights to come.

    Minimizes ``(w - s q) second (w - s q)^T`` of each row greedily, one input after another, the strongest first.

    Parameters
    ----------
    rows : ndarray, shape (outputs, inputs)
        Weights.
    scale : ndarray, shape (outputs,)
        Size of a quantization step.
    second : ndarray, shape (inputs, inputs)
        Second moments of the inputs.

    Returns
    -------
    ndarray, shape (outputs, inputs)
        Whole numbers within +-`LEVELS`.
    """
    count = rows.shape[1]
    strength = np.diag(second)
    order = np.argsort(-strength, kind="stable")
    damped = second[np.ix_(order, order)] + np.eye(count) * (_DAMPING * strength.mean() + 1e-12)
    inverse = np.linalg.cholesky(np.linalg.inv(damped)).T
    left = rows[:, order].copy()
    rounded = np.empty_like(left)
    for column in range(count):
        rounded[:, column] = np.clip(np.rint(left[:, column] / scale), -LEVELS, LEVELS)
        error = (left[:, column] - rounded[:, column] * scale) / inverse[column, column]
        left[:, column + 1 :] -= np.outer(error, inverse[column, column + 1 :])
    back: Double = np.empty_like(rounded)
    back[:, order] = rounded
    return back


def keep_float(quantized: onnx.ModelProto, model: onnx.ModelProto, layers: Iterable[str]) -> onnx.ModelProto:
    """Return a copy in which the named convolutions run in float, with the weights of `model`.

    Parameters
    ----------
    quantized, model : ModelProto
        From `quantize`, and what it was made from.
    layers : iterable of str
        Names of convolution nodes.
    """
    floats = set(layers)
    return _freed(quantized, model, lambda node, _: node.name not in floats)


def sensitivities(
    quantized: onnx.ModelProto, model: onnx.ModelProto, films: Sequence[Half], track: Callable[[int, int], None]
) -> dict[str, float]:
    """Return the error that each convolution brings when it alone is quantized, by name, greatest first.

    The error is the root mean square of the difference of the patch logits plus that of the mask logits.

    Parameters
    ----------
    quantized, model : ModelProto
        From `quantize`, and what it was made from.
    films : sequence of ndarray
        Preprocessed films.
    track : callable
        Told ``(done, of)``.
    """
    return costs_alone(model, lambda name: _freed(quantized, model, functools.partial(_is_node, name)), films, track)


def costs_alone(
    model: onnx.ModelProto,
    alone: Callable[[str], onnx.ModelProto],
    films: Sequence[Half],
    track: Callable[[int, int], None],
) -> dict[str, float]:
    """Return the error of the network that `alone` makes for each convolution, by name, greatest first."""
    wanted = _outputs(model, films)
    names = [node.name for node in convolutions(model)]
    errors = {}
    for done, name in enumerate(names, 1):
        errors[name] = _error(alone(name), films, wanted)
        track(done, len(names))
    return dict(sorted(errors.items(), key=lambda item: -item[1]))


def _outputs(model: onnx.ModelProto, films: Sequence[Half]) -> list[dict[str, npt.NDArray[np.float32]]]:
    """Return the outputs for each film."""
    names = [value.name for value in model.graph.output]
    return [{name: value.copy() for name, value in each.items()} for each in run_tensors(model, names, films)]


def _error(
    model: onnx.ModelProto, films: Sequence[Half], wanted: Sequence[dict[str, npt.NDArray[np.float32]]]
) -> float:
    """Return the root mean square difference of each output, summed."""
    squares = dict.fromkeys(wanted[0], 0.0)
    for found, right in zip(run_tensors(model, list(squares), films), wanted, strict=True):
        for name in squares:
            squares[name] += float(np.square(found[name] - right[name]).mean()) / len(films)
    return sum(math.sqrt(square) for square in squares.values())


def _is_node(name: str, node: onnx.NodeProto, _: onnx.NodeProto | None) -> bool:
    return bool(node.name == name)


def _is_source(name: str, _: onnx.NodeProto, source: onnx.NodeProto | None) -> bool:
    return source is not None and source.name == name


def _freed(
    quantized: onnx.ModelProto,
    model: onnx.ModelProto,
    keep: Callable[[onnx.NodeProto, onnx.NodeProto | None], bool],
) -> onnx.ModelProto:
    """Return a copy in which nodes read what is not quantized, except where `keep` holds.

    Parameters
    ----------
    quantized, model : ModelProto
        From `quantize`, and what it was made from.
    keep : callable
        Asked of each node and the quantizer whose output it reads, None for weights.
    """
    copy = type(quantized)()
    copy.CopyFrom(quantized)
    weights = constants(model)
    original = {node.name: node for node in model.graph.node}
    made_by = producers(copy)
    for node in copy.graph.node:
        if node.name not in original:
            continue
        for position, name in enumerate(node.input):
            dequantize = made_by.get(name)
            if dequantize is None or dequantize.op_type != "DequantizeLinear":
                continue
            quantizer = made_by.get(dequantize.input[0])
            if keep(node, quantizer):
                continue
            if quantizer is not None:
                node.input[position] = quantizer.input[0]
                continue
            whole = original[node.name]
            set_constant(copy, whole.input[position], weights[whole.input[position]])
            node.input[position] = whole.input[position]
            if len(node.input) > 2:  # the bias took up the rounding's error
                set_constant(copy, node.input[2], weights[whole.input[2]])
    drop_unused(copy)
    return copy
