"""TensorRT 10, TensorRT 11 and TensorRT for RTX, on NVIDIA GPUs: data-centre cards, Jetsons and RTX cards."""

from __future__ import annotations

import ctypes
import functools
import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ptxsdk.backends.contract import as_plane
from ptxsdk.backends.cuda import (
    FIRST_PATIENCE,
    PATIENCE,
    Gpu,
    address_of,
    capability_name,
    count,
    failure,
    release,
)
from ptxsdk.backends.fastest import fastest
from ptxsdk.backends.plans import PlanCache, PlanKey
from ptxsdk.engine import Engine
from ptxsdk.errors import BackendError, WriterError
from ptxsdk.manifest import Arithmetic, Precision

if TYPE_CHECKING:
    from ptxsdk.backends.film_graph import FilmGraph
    from ptxsdk.backends.tensorrt_api import trt
    from ptxsdk.backends.tensorrt_build import Log

_LOGGER = logging.getLogger("ptxsdk")

# Turing: TensorRT 10.5 and later and TensorRT for RTX know nothing older.
LEAST_CAPABILITY = (7, 5)


def probe() -> tuple[bool, str]:
    """Say whether TensorRT can run here; ``(usable, reason)``.

    Not usable: no TensorRT, one of an unknown major version, no cuda-core, no driver, no GPU, or only GPUs that this
    TensorRT does not support; the reason says which.
    """
    try:
        from ptxsdk.backends import tensorrt_api
    except ImportError as error:
        return False, f"there is no TensorRT to use (extra 'tensorrt' or 'tensorrt-rtx'): {error}"
    version = f"{tensorrt_api.FLAVOUR} {tensorrt_api.VERSION}"
    try:
        gpus = [Gpu.open(index) for index in range(count())]
    except BackendError as error:
        return False, f"{version}, but {error.message}"
    reasons = {gpu: _unsupported(gpu) for gpu in gpus}
    usable = not all(reasons.values())
    told = ", ".join(
        f"cuda:{gpu.index} {gpu.name} ({reason or 'compute capability ' + capability_name(gpu.capability)})"
        for gpu, reason in reasons.items()
    )
    return usable, f"{version} {'on' if usable else 'supports none of'} {told}"


def load(
    engine: Engine,
    *,
    precision: Literal["auto"] | Precision,
    threads: int,
    device: str = "auto",
    plan_cache: PlanCache | None = None,
) -> TensorRtBackend:
    """Load the network's plan from the cache, or build it on this GPU and keep it there.

    A plan enters the cache only after TensorRT has accepted it.  A cache that cannot be read or written costs time,
    never the result: the plan is then built and used from memory, with a warning in the log.

    Parameters
    ----------
    engine : Engine
        Verified engine.
    precision : {"auto", "fp32", "fp16", "int8"}
        "auto" is what runs fastest on this GPU, measured once, of fp32 and what passed the engine's accuracy gate.
    threads : int
        Without effect: the network runs on the GPU.
    device : str
        "cuda:N", or "auto" or "cuda" for the first GPU that TensorRT supports.
    plan_cache : PlanCache, optional
        Default: the user's.

    Raises
    ------
    BackendError
        ``backend.unavailable``; ``backend.failed`` with TensorRT's own text.
    EngineError
        ``engine.precision``.
    """
    try:
        from ptxsdk.backends import tensorrt_api
    except ImportError as error:
        raise BackendError("backend.unavailable", f"there is no TensorRT to use: {error}") from error
    gpu = _chosen(device)
    runtime = f"{tensorrt_api.FLAVOUR} {tensorrt_api.VERSION}"
    cache = PlanCache() if plan_cache is None else plan_cache

    def loaded(chosen: Precision) -> TensorRtBackend:
        network = engine.network(chosen)
        key = PlanKey(
            gpu=gpu.name,
            capability=capability_name(gpu.capability),
            tensorrt=runtime,
            driver=gpu.driver,
            engine=engine.sha256,
            precision=chosen,
        )
        try:
            with gpu.current():
                compiled = _compiled(network, key, gpu, cache)
        except BackendError:
            raise
        except Exception as error:  # cuda-core's exceptions share no public base but Exception
            raise failure(f"{gpu.name} cannot be used: {error}") from error
        return TensorRtBackend(compiled, engine, chosen)

    if precision != "auto":
        return loaded(precision)
    setting = {"engine": engine.sha256, "runtime": runtime, "driver": gpu.driver, "device": gpu.name}
    candidates: dict[Arithmetic, Callable[[], TensorRtBackend]] = {
        each: functools.partial(loaded, each) for each in engine.gated
    }
    return fastest(candidates, setting)


def _compiled(network: bytes, key: PlanKey, gpu: Gpu, cache: PlanCache) -> _Compiled:
    """Return the plan, kept or new, as TensorRT took it; the device must be current."""
    from ptxsdk.backends import tensorrt_build

    log = tensorrt_build.Log()
    plan = cache.read(key)
    if plan is not None:
        kept = tensorrt_build.deserialized(plan, log)
        if kept is not None:
            return _Compiled(engine=kept, gpu=gpu, log=log)
        _LOGGER.warning("TensorRT refuses a cached plan, which is built again: %s", log.taken())
    targets = None if tensorrt_build.supported_targets() is None else (gpu.capability,)
    plan = tensorrt_build.build_plan(network, targets=targets).data
    new = tensorrt_build.deserialized(plan, log)
    if new is None:
        raise BackendError("backend.failed", f"TensorRT refuses the plan it built: {log.taken()}")
    try:
        cache.write(key, plan)
    except WriterError as error:
        _LOGGER.warning("the TensorRT plan is not kept and will be built again: %s", error.message)
    return _Compiled(engine=new, gpu=gpu, log=log)


@dataclass(frozen=True, kw_only=True)
class _Compiled:
    """What clones share: TensorRT's engine, its device, and the log, which must live as long."""

    engine: trt.ICudaEngine
    gpu: Gpu
    log: Log


class _Slot:
    """A tensor of the network: memory on the device, and page-locked memory on the host, which copies fast.

    The page-locked memory is freed with the last array that points to it, which may outlive the backend.
    """

    def __init__(self, compiled: _Compiled, name: str, stream: Any) -> None:
        from ptxsdk.backends.tensorrt_api import trt
        from ptxsdk.backends.tensorrt_build import sizes

        self.name = name
        self.is_input: bool = compiled.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        self.shape = sizes(compiled.engine.get_tensor_shape(name))
        dtypes: dict[Any, type[np.generic]] = {trt.DataType.FLOAT: np.float32, trt.DataType.HALF: np.float16}
        found = compiled.engine.get_tensor_dtype(name)
        if found not in dtypes or any(size <= 0 for size in self.shape):
            raise BackendError("backend.failed", f"the plan's tensor {name!r} is {found} {self.shape}")
        dtype = np.dtype(dtypes[found])
        size = dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))
        self.device = compiled.gpu.allocate(size, stream=stream)
        self.pinned = compiled.gpu.pinned(size)
        block = (ctypes.c_uint8 * size).from_address(int(self.pinned.handle))
        weakref.finalize(block, release, compiled.gpu, [self.pinned]).atexit = False
        self.host: npt.NDArray[Any] = np.ctypeslib.as_array(block).view(dtype).reshape(self.shape)
        self.host[...] = 0

    def rounded_from(self, values: npt.NDArray[np.float32]) -> None:
        """Fill `host` from float32, where it is not that memory itself."""
        if self.host.dtype != np.float32:
            np.copyto(self.host, values.reshape(self.shape), casting="same_kind")


@dataclass(frozen=True, kw_only=True)
class _Running:
    """What a backend owns on the device, beside the plan it shares."""

    compiled: _Compiled
    stream: Any
    context: trt.IExecutionContext
    slots: dict[str, _Slot]
    scratch: list[Any]

    @classmethod
    def start(cls, compiled: _Compiled) -> _Running:
        """Make a stream, and a context with memory for every tensor; the device must be current."""
        from ptxsdk.backends.tensorrt_build import new_context

        stream = compiled.gpu.stream()
        scratch: list[Any] = []

        def allocate(size: int) -> int:
            scratch.append(compiled.gpu.allocate(size, stream=stream))
            return int(scratch[-1].handle)

        context = new_context(compiled.engine, allocate)
        if context is None:
            raise failure(f"TensorRT made no context: {compiled.log.taken()}")
        slots = {}
        for index in range(compiled.engine.num_io_tensors):
            slot = _Slot(compiled, compiled.engine.get_tensor_name(index), stream)
            slots[slot.name] = slot
            if not context.set_tensor_address(slot.name, int(slot.device.handle)):
                raise BackendError("backend.failed", f"TensorRT takes no memory: {compiled.log.taken()}")
        running = cls(compiled=compiled, stream=stream, context=context, slots=slots, scratch=scratch)
        running.infer(FIRST_PATIENCE)  # for which the driver loads what it needs
        return running

    def infer(self, patience: float) -> None:
        """Copy up, run, copy back, wait.

        Raises
        ------
        BackendError
            ``backend.lost``: the device takes longer than `patience`, in seconds; ``backend.out_of_memory``;
            ``backend.failed``.
        """
        for slot in self.slots.values():
            if slot.is_input:
                slot.device.copy_from(slot.pinned, stream=self.stream)
        started = self.context.execute_async_v3(address_of(self.stream))
        for slot in self.slots.values():
            if not slot.is_input:
                slot.device.copy_to(slot.pinned, stream=self.stream)
        gpu = self.compiled.gpu
        if not gpu.done_within(patience, stream=self.stream):
            raise BackendError("backend.lost", f"cuda:{gpu.index} did not answer within {patience:g} s")
        if not started:
            raise failure(f"TensorRT failed: {self.compiled.log.taken()}")


class TensorRtBackend:
    """An execution context on a stream of its own; see `ptxsdk.backends.Backend`.

    Inputs and outputs of the plan may be float16; the contract is float32 in either case.
    """

    name = "tensorrt"

    def __init__(self, compiled: _Compiled, engine: Engine, precision: Arithmetic) -> None:
        contract = engine.manifest
        self.precision: Arithmetic = precision
        self.device = f"cuda:{compiled.gpu.index}"
        self._engine = engine
        self._outputs = contract.outputs
        # The only reference, so that whoever empties it decides where things are freed.
        self._held: list[_Running] = []
        self._let_go = weakref.finalize(self, release, compiled.gpu, self._held)
        self._let_go.atexit = False
        try:
            with compiled.gpu.current():
                self._held.append(_Running.start(compiled))
        except BackendError:
            raise
        except Exception as error:  # cuda-core's exceptions share no public base but Exception
            raise failure(f"TensorRT does not start: {error}; {compiled.log.taken()}") from error
        slots = self._held[0].slots
        _require_contract(engine, slots)
        entry = slots[contract.input.name].host
        self.input: npt.NDArray[np.float32] = (
            entry.reshape(contract.input.size)
            if entry.dtype == np.float32
            else np.zeros(contract.input.size, np.float32)
        )

    def infer(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Run the network on `input`; see `ptxsdk.backends.Backend.infer`."""
        running = self._running()
        compiled, slots = running.compiled, running.slots
        slots[self._engine.manifest.input.name].rounded_from(self.input)
        try:
            with compiled.gpu.current():
                running.infer(PATIENCE)
        except BackendError:
            raise
        except Exception as error:  # as in the constructor
            raise failure(f"TensorRT failed: {error}; {compiled.log.taken()}") from error
        patch, mask = self._outputs.patch_logits, self._outputs.mask_logits
        return (
            as_plane(slots[patch.name].host.astype(np.float32, copy=False), patch.name, patch.grid),
            as_plane(slots[mask.name].host.astype(np.float32, copy=False), mask.name, mask.size),
        )

    def clone(self) -> TensorRtBackend:
        """Share the plan; context, stream and buffers are the clone's own."""
        return TensorRtBackend(self._running().compiled, self._engine, self.precision)

    def crew(self) -> tuple[TensorRtBackend, ...]:
        """Two clones: while one film is on the GPU, the other is read, preprocessed and aggregated."""
        return self.clone(), self.clone()

    def film_graph(self, *, locate: bool) -> FilmGraph:
        """Return a pipeline around this network, on its stream and buffers; close it before the backend.

        Raises
        ------
        BackendError
            As `ptxsdk.backends.film_graph.FilmGraph`.
        """
        from ptxsdk.backends.film_graph import FilmGraph

        running = self._running()
        slots, context = running.slots, running.context
        capturable = getattr(context, "is_stream_capturable", None)  # TensorRT for RTX says so
        if capturable is not None and not capturable(address_of(running.stream)):
            raise BackendError("backend.failed", "TensorRT for RTX cannot be captured: it allocates while it runs")
        return FilmGraph(
            running.compiled.gpu,
            running.stream,
            network=lambda stream: bool(context.execute_async_v3(stream)),
            image=slots[self._engine.manifest.input.name],
            patch=slots[self._outputs.patch_logits.name],
            mask=slots[self._outputs.mask_logits.name],
            engine=self._engine,
            locate=locate,
        )

    def close(self) -> None:
        """Release context, buffers and stream, and the plan with the last of its clones."""
        self._let_go()

    def _running(self) -> _Running:
        if not self._held:
            raise BackendError("backend.failed", "the backend was closed")
        return self._held[0]


def _require_contract(engine: Engine, slots: dict[str, _Slot]) -> None:
    """Refuse a plan whose tensors are not those of the manifest; shapes of outputs are held on every run."""
    contract = engine.manifest
    inputs = {slot.name: slot.shape for slot in slots.values() if slot.is_input}
    outputs = {slot.name for slot in slots.values() if not slot.is_input}
    wanted = {contract.input.name: (1, 1, *contract.input.size)}
    missing = {contract.outputs.patch_logits.name, contract.outputs.mask_logits.name} - outputs
    if inputs != wanted or missing:
        raise BackendError(
            "backend.failed",
            f"the network does not keep its contract: inputs {inputs}, wanted {wanted}; "
            f"outputs {sorted(outputs)}, missing {sorted(missing)}",
        )


def _unsupported(gpu: Gpu) -> str:
    """Say why TensorRT does not run on `gpu`; empty where it does."""
    from ptxsdk.backends import tensorrt_api, tensorrt_build

    targets = tensorrt_build.supported_targets()
    known = gpu.capability >= LEAST_CAPABILITY if targets is None else gpu.capability in targets
    if known:
        return ""
    what = f"{capability_name(LEAST_CAPABILITY)} and later"
    if targets is not None:
        what = ", ".join(map(capability_name, targets))
    return f"compute capability {capability_name(gpu.capability)}, {tensorrt_api.FLAVOUR} supports {what}"


def _chosen(device: str) -> Gpu:
    """Return the device asked for, or the first that TensorRT supports."""
    if device.startswith("cuda:"):
        gpu = Gpu.open(int(device[5:]))
        reason = _unsupported(gpu)
        if reason:
            raise BackendError("backend.unavailable", f"{device} is {gpu.name} of {reason}")
        return gpu
    reasons = []
    for index in range(count()):
        gpu = Gpu.open(index)
        reason = _unsupported(gpu)
        if not reason:
            return gpu
        reasons.append(f"cuda:{index} is {gpu.name} of {reason}")
    raise BackendError("backend.unavailable", "; ".join(reasons))
