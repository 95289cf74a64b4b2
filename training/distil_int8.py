"""Teach an INT8 network to answer as its engine's fp32 network does.

``python -m training.distil_int8 ENGINE --films TABLE --out FILE``: the quantized network of `ptxsdk.build` (explicit
Q/DQ, as ONNX) is run in PyTorch as it is written, with rounding that lets gradients pass (the straight-through
estimator of Bengio et al. 2013), and its weights and biases are trained so that its logits are those of the fp32
network; the scales stay. No label is read. The films are those a table gives to calibration, so that the accuracy gate
of ``ptxsdk build --int8 FILE`` measures on others.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ptxsdk import Engine
from ptxsdk.build import quantize as int8
from ptxsdk.build.films import ReadFilm, find_build_films, read_films, split_films, usable
from ptxsdk.build.network import (
    attributes,
    checked_bytes,
    constants,
    merge_pointwise,
    parse_network,
    producers,
    set_constant,
)
from ptxsdk.files import write_file

if TYPE_CHECKING:
    import onnx

logger = logging.getLogger(__name__)

CALIBRATION = 300
CERTAIN = 6.0
"""Logits beyond this say the same; the student need not follow them exactly."""


class QuantizedNetwork(nn.Module):
    """A Q/DQ network in PyTorch: (N, 1, S, S) float to patch logits (N, P, P) and mask logits (N, S, S).

    Parameters
    ----------
    model : ModelProto
        From `ptxsdk.build.quantize.quantize`: convolutions, Clip, Relu, Add, Mul, Resize, Squeeze, and quantizers.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self.model = model
        self.graph = model.graph
        values, made_by = constants(model), producers(model)
        self.parameters_by_name = nn.ParameterDict()
        self.scale_of: dict[str, str] = {}  # weights by the name of their integers
        fixed = {}
        for name, value in values.items():
            if value.dtype == np.float32:
                fixed[name] = torch.from_numpy(value.copy())
        for node in self.graph.node:
            if node.op_type == "Conv":
                dequantize = made_by.get(node.input[1])
                if dequantize is not None:
                    integers, scale = dequantize.input[:2]
                    whole = values[integers] * values[scale].reshape(-1, 1, 1, 1)
                    self._learn(integers, torch.from_numpy(whole.astype(np.float32)))
                    self.scale_of[integers] = scale
                for name in node.input[1 if dequantize is None else 2 :]:
                    self._learn(name, fixed[name])
        self.fixed = {name: value for name, value in fixed.items() if self._key(name) not in self.parameters_by_name}

    @staticmethod
    def _key(name: str) -> str:
        return name.replace(".", "|")

    def _learn(self, name: str, value: Tensor) -> None:
        if self._key(name) not in self.parameters_by_name:
            value = value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value.clone()
            self.parameters_by_name[self._key(name)] = nn.Parameter(value)

    def _weight(self, name: str) -> Tensor:
        """Return weights rounded to their grid; the gradient passes as if they were not."""
        weight = self.parameters_by_name[self._key(name)]
        scale = self.fixed[self.scale_of[name]].reshape(-1, 1, 1, 1)
        rounded = (weight / scale).round().clamp(-int8.LEVELS, int8.LEVELS) * scale
        return weight + (rounded - weight).detach()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return patch logits and mask logits."""
        values: dict[str, Any] = {self.graph.input[0].name: image}
        last = {name: index for index, node in enumerate(self.graph.node) for name in node.input}
        for index, node in enumerate(self.graph.node):
            values[node.output[0]] = self._run(node, values)
            for name in node.input:
                if last.get(name) == index:
                    values.pop(name, None)
        patch, mask = (values[output.name] for output in self.graph.output)
        return patch, mask

    def _run(self, node: onnx.NodeProto, values: dict[str, Any]) -> Tensor:
        if node.op_type == "DequantizeLinear":
            held = values.get(node.input[0])
            return self._weight(node.input[0]) if held is None else held
        inputs = [self._value(name, values) for name in node.input if name]
        if node.op_type == "QuantizeLinear":
            return torch.fake_quantize_per_tensor_affine(inputs[0], float(inputs[1]), 0, -128, 127)
        how = attributes(node)
        if node.op_type == "Conv":
            top, left, bottom, right = how.get("pads", (0, 0, 0, 0))
            if (top, left) != (bottom, right):
                inputs[0], top, left = F.pad(inputs[0], (left, right, top, bottom)), 0, 0
            bias = inputs[2] if len(inputs) > 2 else None
            strides, groups = tuple(how.get("strides", (1, 1))), how.get("group", 1)
            return F.conv2d(
                inputs[0], inputs[1], bias, strides, (top, left), tuple(how.get("dilations", (1, 1))), groups
            )
        if node.op_type == "Clip":
            return inputs[0].clamp(float(inputs[1]), float(inputs[2]))
        if node.op_type == "Resize":
            sizes = constants(self.model)[node.input[3]][2:].tolist()
            if how["mode"] == b"nearest":
                return F.interpolate(inputs[0], sizes, mode="nearest")
            return F.interpolate(inputs[0], sizes, mode="bilinear", align_corners=False)
        if node.op_type == "Squeeze":
            return inputs[0].squeeze(1)
        if node.op_type == "MaxPool":
            return F.max_pool2d(inputs[0], tuple(how["kernel_shape"]), tuple(how.get("strides", (1, 1))))
        simple = {"Relu": torch.relu, "Add": torch.add, "Mul": torch.mul}
        if node.op_type not in simple:
            raise ValueError(f"{node.op_type} {node.name!r} has no counterpart here")
        return simple[node.op_type](*inputs)

    def _value(self, name: str, values: dict[str, Any]) -> Any:
        if name in values:
            return values[name]
        if self._key(name) in self.parameters_by_name:
            return self.parameters_by_name[self._key(name)]
        return self.fixed.get(name)

    def to_onnx(self) -> bytes:
        """Return the network with what was learned as an ONNX file.

        Raises
        ------
        BuildError
            ``build.network``: ONNX refuses it.
        """
        learned = type(self.model)()
        learned.CopyFrom(self.model)
        kinds = {name: value.dtype for name, value in constants(learned).items()}
        for key, parameter in self.parameters_by_name.items():
            name, value = key.replace("|", "."), parameter.detach().cpu()
            if name in self.scale_of:
                scale = self.fixed[self.scale_of[name]].reshape(-1, 1, 1, 1)
                found = (value / scale).round().clamp(-int8.LEVELS, int8.LEVELS).numpy().astype(np.int8)
            else:
                found = value.numpy()
            if found.dtype != kinds[name]:
                raise ValueError(f"{name} became {found.dtype}")
            set_constant(learned, name, found)
        return checked_bytes(learned)


def loss(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> Tensor:
    """Return how far logits are from the teacher's: every patch, the best patch of each film, and the mask."""
    (patch, mask), (teacher_patch, teacher_mask) = found, wanted
    best = (
        patch.flatten(1).amax(1).clamp(-CERTAIN, CERTAIN),
        teacher_patch.flatten(1).amax(1).clamp(-CERTAIN, CERTAIN),
    )
    sure = teacher_mask.abs() > CERTAIN
    mask_error = torch.where(sure, 0.1, 1.0) * (mask - teacher_mask).square()
    return (patch - teacher_patch).square().mean() + (best[0] - best[1]).square().mean() + 0.3 * mask_error.mean()


def batches(films: Sequence[ReadFilm], batch: int, steps: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Yield batches (N, 1, S, S) of films drawn at random, mirrored, and shown a little brighter or flatter."""
    generator = np.random.default_rng(seed)
    positive = [film for film in films if film.film.label]
    for _ in range(steps):
        drawn = []
        for index in range(batch):
            pool = positive if positive and index % 3 == 0 else films
            tensor = pool[generator.integers(len(pool))].tensor.astype(np.float32)
            if generator.random() < 0.5:
                tensor = tensor[:, ::-1]
            shown = tensor * generator.uniform(0.85, 1.1) + generator.uniform(-0.1, 0.1)
            drawn.append(np.clip(shown, tensor.min(), tensor.max()))
        yield np.stack(drawn)[:, None]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.distil_int8",
        description="Train an INT8 network to answer as an engine's fp32 network.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("engine", type=Path, help="engine with a network in fp32")
    add("--films", type=Path, required=True, help="folder or table of films, as `ptxsdk build` takes it")
    add("--out", type=Path, required=True, help="ONNX file to write, for `ptxsdk build --int8`")
    add("--float-layers", default="", help="convolutions to leave in float, by node name, separated by commas")
    add("--steps", type=int, default=600, help="steps of training")
    add("--batch", type=int, default=8, help="films a step")
    add("--lr", type=float, default=2e-4, help="learning rate, relative to the size of each tensor's values")
    add("--most-films", type=int, default=3000, help="most films to hold in memory")
    add("--threads", type=int, default=0, help="threads of the arithmetic; 0 leaves it to PyTorch")
    add("--seed", type=int, default=0, help="seed of every draw")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    engine = Engine.open(options.engine)
    model = parse_network(engine.network("fp32"), engine.manifest.input, engine.manifest.outputs)
    model = merge_pointwise(model)  # as the build does
    calibration, _ = split_films(find_build_films(options.films))
    films = usable(list(read_films(calibration[: options.most_films], engine.manifest.input)), "calibration")
    logger.info("%d films", len(films))
    tensors = [film.tensor for film in films]
    quantized = int8.quantize(model, tensors[:: max(1, len(tensors) // CALIBRATION)])
    quantized = int8.keep_float(quantized, model, filter(None, options.float_layers.split(",")))
    network = train(QuantizedNetwork(quantized), engine.network("fp32"), films, options)
    write_file(options.out, network.to_onnx())


def train(
    network: QuantizedNetwork, teacher: bytes, films: Sequence[ReadFilm], options: argparse.Namespace
) -> QuantizedNetwork:
    """Train the student for the steps of the options; cosine schedule, Adam."""
    from ptxsdk.backends.openvino import runtime

    openvino = runtime()

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(teacher), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    # Adam moves every value by its rate a step: that must be small beside the tensor, or rounding errors drown in it.
    groups = [
        {"params": [each], "lr": options.lr * float(each.detach().square().mean().sqrt())}
        for each in network.parameters()
    ]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / options.steps))
    )
    names = [output.name for output in network.graph.output]
    mean = 0.0
    for step, images in enumerate(batches(films, options.batch, options.steps, options.seed)):
        answers = [compiled(image[None]) for image in images]
        wanted = tuple(torch.from_numpy(np.concatenate([answer[name] for answer in answers])) for name in names)
        shown = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
        error = loss(network(shown), (wanted[0], wanted[1]))
        optimizer.zero_grad()
        error.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean = error.item() if not step else 0.95 * mean + 0.05 * error.item()
        if step % 10 == 0:
            logger.info("step %d: loss %.4f", step, mean)
    return network


if __name__ == "__main__":
    main()
