"""Building a TensorRT plan from a network, and what TensorRT said while it did.

Networks are strongly typed: the precision of every layer is what the ONNX graph says.  TensorRT 11 knows nothing else,
10 and RTX know it too, so one way serves all.  TensorRT for RTX needs no GPU for it; TensorRT builds for the GPU it
finds.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from ptxsdk.backends.cuda import capability_name
from ptxsdk.backends.tensorrt_api import FLAVOUR, VERSION, trt
from ptxsdk.errors import BackendError

_LOGGER = logging.getLogger("ptxsdk")

_MOST_TEXT = 2000

_LAYERS = "Layers:"
_LAYER = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,]+), (?P<rest>Inputs: .*)")
_SECTION = re.compile(r"(?:^|, )(Inputs|Constants|Outputs|\w*Type|TacticName|StreamId|Metadata): ")
_TENSOR = re.compile(r"\{ Name: (.*?), .*?(?:Format/)?Datatype: ([\w ]+)")


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor of a built layer: its name and, as TensorRT calls it, its dtype ("Float", "Half", "Int8")."""

    name: str
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer of a plan, after fusion.

    Attributes
    ----------
    name, kind : str
        As TensorRT calls it; a convolution of TensorRT for RTX is a "correlation".
    inputs, constants, outputs : tuple of Tensor
        Constants are weights and scales; TensorRT does not list them, TensorRT for RTX does.
    """

    name: str
    kind: str
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """A built network.

    Attributes
    ----------
    data : bytes
        What TensorRT deserialises.
    tensorrt : str
        Flavour and version of the builder, e.g. "tensorrt_rtx 1.7.1.116".
    layers : tuple of Layer
        Empty unless asked for.
    """

    data: bytes = field(repr=False)
    tensorrt: str
    layers: tuple[Layer, ...] = ()


class Log(trt.ILogger):
    """What TensorRT says: errors are kept for our exceptions, warnings go to the log "ptxsdk" as information.

    TensorRT may call it from threads of its own, and as long as anything made with it lives.
    """

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._errors: list[str] = []
        self.layers = ""

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Take a message; called by TensorRT."""
        if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
            self._errors.append(msg.strip())
        elif severity == trt.ILogger.Severity.WARNING:
            _LOGGER.info("TensorRT: %s", msg.strip())
        elif msg.startswith(_LAYERS):
            self.layers = msg

    def taken(self) -> str:
        """Return the errors so far as one text, and forget them."""
        errors, self._errors = self._errors, []
        return "; ".join(dict.fromkeys(errors))[:_MOST_TEXT] or "TensorRT gave no reason"


def build_plan(
    network: bytes,
    *,
    targets: Sequence[tuple[int, int]] | None = None,
    inspect: bool = False,
) -> Plan:
    """Build the plan of a network.

    TF32, which TensorRT allows by default, is off: a network in fp32 computes in fp32.

    Parameters
    ----------
    network : bytes
        ONNX, self-contained, every dimension fixed.
    targets : sequence of tuple of int, optional
        Compute capabilities ``(major, minor)`` to build for, with TensorRT for RTX only.  Default: there, every one
        it makes portable plans for (8.0 and later); with TensorRT, the GPU that is current.
    inspect : bool
        List the layers of the plan.  Needs no GPU with TensorRT for RTX.

    Raises
    ------
    BackendError
        ``backend.failed``, with TensorRT's own text: the network cannot be parsed, has operators that TensorRT does
        not know or dimensions that are not fixed, or cannot be built.
    """
    log = Log()
    try:
        built = _built(network, targets, inspect, log)
    except BackendError:
        raise
    except Exception as error:  # pybind11's exceptions share no base but Exception
        raise BackendError("backend.failed", f"TensorRT failed: {error}; {log.taken()}") from error
    if built is None:
        raise BackendError("backend.failed", f"TensorRT cannot build the network: {log.taken()}")
    layers: tuple[Layer, ...] = ()
    if inspect:
        layers = parse_layers(log.layers or _inspected(built, log))
    return Plan(data=built, tensorrt=f"{FLAVOUR} {VERSION}", layers=layers)


def deserialized(plan: bytes, log: Log) -> trt.ICudaEngine | None:
    """Give a verified plan to TensorRT; None where it refuses, with the reason in `log`."""
    engine: trt.ICudaEngine | None = trt.Runtime(log).deserialize_cuda_engine(plan)
    return engine


def new_context(engine: trt.ICudaEngine, allocate: Callable[[int], int]) -> trt.IExecutionContext | None:
    """Return a context with its scratch memory; None where TensorRT makes none, with the reason in the log.

    Parameters
    ----------
    engine : ICudaEngine
        A plan.
    allocate : callable
        Returns the address of so many bytes on the device, which outlive the context.  TensorRT for RTX works in them,
        because a context that allocates for itself cannot be captured in a CUDA graph.
    """
    if FLAVOUR != "tensorrt_rtx":
        context: trt.IExecutionContext | None = engine.create_execution_context()
        return context
    managed: Any = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if managed is not None:
        size = int(engine.device_memory_size_v2)
        managed.set_device_memory(allocate(max(size, 1)), size)
    return cast("trt.IExecutionContext | None", managed)


def sizes(shape: trt.Dims) -> tuple[int, ...]:
    """Return a shape; -1 where a size is not fixed.

    Raises
    ------
    ValueError
        The rank is not known.
    """
    return tuple(int(shape[index]) for index in range(len(shape)))


def parse_layers(text: str) -> tuple[Layer, ...]:
    """Read TensorRT's list of layers, one a line, as the builder logs it and the inspector's ONELINE format has it."""
    layers = []
    for line in text.splitlines():
        match = _LAYER.match(line.strip())
        if match:
            names_and_texts = _SECTION.split(match["rest"])[1:]
            sections = dict(zip(names_and_texts[::2], names_and_texts[1::2], strict=True))
            layers.append(
                Layer(
                    name=match["name"],
                    kind=match["kind"],
                    inputs=_tensors(sections.get("Inputs", "")),
                    constants=_tensors(sections.get("Constants", "")),
                    outputs=_tensors(sections.get("Outputs", "")),
                )
            )
    return tuple(layers)


def supported_targets() -> tuple[tuple[int, int], ...] | None:
    """Return the compute capabilities that plans can be built for; None: TensorRT does not say."""
    if FLAVOUR != "tensorrt_rtx":
        return None
    rtx: Any = trt  # for TensorRT has no such thing
    numbers = (name[2:] for name in rtx.ComputeCapability.__members__ if re.fullmatch(r"SM\d\d+", name))
    return tuple((int(number[:-1]), int(number[-1])) for number in numbers)


def _built(network: bytes, targets: Sequence[tuple[int, int]] | None, inspect: bool, log: Log) -> bytes | None:
    builder = trt.Builder(log)
    definition = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(definition, log)
    if not parser.parse(network):
        raise BackendError("backend.failed", f"TensorRT cannot read the network: {_parser_errors(parser, log)}")
    _require_fixed(definition)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if FLAVOUR == "tensorrt_rtx":
        rtx: Any = trt
        config.set_flag(rtx.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if targets is not None:
        _set_targets(config, targets)
    if inspect:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    memory: Any = builder.build_serialized_network(definition, config)  # its stubs do not all know it is a buffer
    return None if memory is None else bytes(memoryview(memory))


def _parser_errors(parser: trt.OnnxParser, log: Log) -> str:
    told = [parser.get_error(index) for index in range(parser.num_errors)]
    text = "; ".join(
        f"node {error.node_name() or error.node()!r}, operator {error.node_operator() or 'none'}: {error.desc()}"
        for error in told
    )
    return text[:_MOST_TEXT] or log.taken()


def _require_fixed(definition: trt.INetworkDefinition) -> None:
    """Refuse a network whose tensors are not known before the first film: buffers are made once."""
    inputs = [definition.get_input(index) for index in range(definition.num_inputs)]
    outputs = [definition.get_output(index) for index in range(definition.num_outputs)]
    for tensor in (*inputs, *outputs):
        shape = _shape(tensor)
        if not shape or any(size < 0 for size in shape):  # a graph that states no shape is read as a scalar
            known = str(shape) if shape else "no rank"
            raise BackendError(
                "backend.failed", f"the network's tensor {tensor.name!r} has no fixed shape but {known} (-1: any)"
            )


def _shape(tensor: trt.ITensor) -> tuple[int, ...]:
    try:
        return sizes(tensor.shape)
    except ValueError:  # how the bindings tell of an unknown rank
        return ()


def _set_targets(config: trt.IBuilderConfig, targets: Sequence[tuple[int, int]]) -> None:
    supported = supported_targets()
    if supported is None:
        raise BackendError("backend.failed", f"{FLAVOUR} builds for the GPU it runs on, TensorRT for RTX for targets")
    unknown = [capability_name(target) for target in targets if target not in supported]
    if unknown or not targets:
        there = ", ".join(map(capability_name, supported))
        raise BackendError(
            "backend.failed",
            f"{FLAVOUR} {VERSION} has no compute capability {', '.join(unknown) or '(none given)'}, it has {there}",
        )
    rtx: Any = trt
    targeted: Any = config
    targeted.num_compute_capabilities = len(targets)
    for index, (major, minor) in enumerate(targets):
        targeted.set_compute_capability(rtx.ComputeCapability.__members__[f"SM{major}{minor}"], index)


def _inspected(plan: bytes, log: Log) -> str:
    engine = deserialized(plan, log)
    if engine is None:
        raise BackendError("backend.failed", f"TensorRT refuses the plan it built: {log.taken()}")
    text: str = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.ONELINE)
    return text


def _tensors(text: str) -> tuple[Tensor, ...]:
    return tuple(Tensor(name=name, dtype=dtype.strip()) for name, dtype in _TENSOR.findall(text))
