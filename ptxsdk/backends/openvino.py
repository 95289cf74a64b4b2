"""OpenVINO: the embedded default, on x86-64 and aarch64 CPUs."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ptxsdk.backends.contract import as_plane
from ptxsdk.backends.fastest import fastest
from ptxsdk.engine import Engine
from ptxsdk.errors import BackendError
from ptxsdk.manifest import Arithmetic, Precision
from ptxsdk.telemetry import without_telemetry

NONNEGATIVE = "zero_point.nonnegative"
"""The one zero point, int8 and 0, of all quantizers of activations that are never negative."""


def unsigned(network: bytes) -> bytes:
    """Return an INT8 network with activations that are never negative as unsigned: OpenVINO is faster with these.

    The numbers are the same, 0..127: the ReLU before such a quantizer ends where the signed range does. In the file
    only the type of the zero point named `NONNEGATIVE` changes: an ONNX TensorProto is written field by field,
    data_type (2), then name (8).
    """
    name = NONNEGATIVE.encode()
    int8, uint8 = (b"\x10" + kind + b"\x42" + bytes([len(name)]) + name for kind in (b"\x03", b"\x02"))
    return network.replace(int8, uint8) if network.count(int8) == 1 else network


def runtime() -> Any:
    """Import OpenVINO, without its telemetry.

    Raises
    ------
    ImportError
        OpenVINO is not installed.
    """
    with without_telemetry():
        return importlib.import_module("openvino")


def probe() -> tuple[bool, str]:
    """Say whether OpenVINO is installed and has a CPU device; ``(usable, reason)``."""
    try:
        openvino = runtime()
    except ImportError as error:
        return False, f"openvino is not installed: {error}"
    try:
        core = openvino.Core()
        name = core.get_property("CPU", "FULL_DEVICE_NAME")
        capabilities = ", ".join(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    except RuntimeError as error:
        return False, f"openvino {openvino.__version__} has no CPU device: {error}"
    return True, f"openvino {openvino.__version__} on {name.strip()} ({capabilities})"


def load(engine: Engine, *, precision: Literal["auto"] | Precision, threads: int) -> OpenVinoBackend:
    """Compile the network for the CPU with the latency hint.

    The compiled-model cache of OpenVINO stays off: its blobs are not authenticated, and whoever can write to the
    cache folder could replace the network.

    Parameters
    ----------
    engine : Engine
        Verified engine.
    precision : {"auto", "fp32", "fp16", "int8"}
        "auto" is what runs fastest here, measured once, of fp32 and what passed the engine's accuracy gate and runs
        natively on this CPU.
    threads : int
        0: one per core.

    Raises
    ------
    BackendError
        ``backend.failed`` with OpenVINO's own message.
    EngineError
        ``engine.precision``.
    """
    openvino = runtime()

    core = openvino.Core()

    def loaded(arithmetic: Arithmetic) -> OpenVinoBackend:
        return OpenVinoBackend(_compile(core, engine, arithmetic, threads), engine, arithmetic, threads)

    if precision != "auto":
        return loaded(precision)
    native = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    setting = {
        "engine": engine.sha256,
        "runtime": f"openvino {openvino.__version__}",
        "device": core.get_property("CPU", "FULL_DEVICE_NAME").strip(),
        "threads": str(threads or os.cpu_count()),
    }
    if not multiplies_int8():
        native = [each for each in native if each != "INT8"]
    return fastest({each: functools.partial(loaded, each) for each in allowed(engine, native)}, setting)


def allowed(engine: Engine, native: Sequence[str]) -> tuple[Arithmetic, ...]:
    """Return what "auto" may choose from: fp32 (or the most exact there is), and what is safe and native.

    Parameters
    ----------
    engine : Engine
        A precision is safe if the engine's manifest holds its measured accuracy: the build writes none that failed
        its gate.  bf16 arithmetic is safe if every golden film states a tolerance for it.
    native : sequence of str
        OpenVINO's ``OPTIMIZATION_CAPABILITIES`` of the CPU.
    """
    first, *others = engine.gated
    found: list[Arithmetic] = [first]
    if first == "fp32" and "BF16" in native and all("bf16" in film.tolerance for film in engine.golden()):
        found.append("bf16")
    return (*found, *(each for each in others if each.upper() in native))


def multiplies_int8() -> bool:
    """Say whether this CPU sums products of 8-bit numbers without saturating between (x86 with VNNI).

    OpenVINO offers INT8 on others too, where the shipped network was measured to fall out of its accuracy gate.
    """
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            flags = next((line for line in lines if line.startswith("flags")), "").split()
    except OSError:
        return False
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(flags)


def _compile(core: Any, engine: Engine, arithmetic: Arithmetic, threads: int, hint: str = "LATENCY") -> Any:
    """Compile in the arithmetic stated; OpenVINO left alone, or asked for an fp16 that is missing, takes bf16."""
    native = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    network = engine.network("fp32" if arithmetic == "bf16" else arithmetic)
    half = arithmetic == "fp16" and "FP16" in native
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": hint,
        "INFERENCE_PRECISION_HINT": "bf16" if arithmetic == "bf16" else "f16" if half else "f32",
        "CACHE_DIR": "",
    }
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    try:
        return core.compile_model(core.read_model(unsigned(network)), "CPU", options)
    except RuntimeError as error:
        raise BackendError("backend.failed", f"OpenVINO refused the network: {error}") from error


class OpenVinoBackend:
    """A compiled network and one infer request; see `ptxsdk.backends.Backend`."""

    name = "openvino"
    device = "cpu"

    def __init__(self, compiled: Any, engine: Engine, precision: Arithmetic, threads: int) -> None:
        openvino = runtime()

        contract = engine.manifest
        self.precision = precision
        self.input = np.zeros(contract.input.size, np.float32)
        self._compiled = compiled
        self._engine = engine
        self._threads = threads
        self._outputs = contract.outputs
        self._request = compiled.create_infer_request()
        tensor = openvino.Tensor(self.input.reshape(1, 1, *self.input.shape), shared_memory=True)
        try:
            self._request.set_tensor(contract.input.name, tensor)
        except RuntimeError as error:
            raise BackendError("backend.failed", f"the network does not keep its contract: {error}") from error

    def infer(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Run the network on `input`; see `ptxsdk.backends.Backend.infer`."""
        try:
            self._request.infer()
            patch = self._request.get_tensor(self._outputs.patch_logits.name).data
            mask = self._request.get_tensor(self._outputs.mask_logits.name).data
        except RuntimeError as error:
            raise BackendError("backend.failed", f"OpenVINO failed: {error}") from error
        return (
            as_plane(patch, self._outputs.patch_logits.name, self._outputs.patch_logits.grid),
            as_plane(mask, self._outputs.mask_logits.name, self._outputs.mask_logits.size),
        )

    def clone(self) -> OpenVinoBackend:
        """Share the compiled network."""
        return OpenVinoBackend(self._compiled, self._engine, self.precision, self._threads)

    def crew(self) -> tuple[OpenVinoBackend, ...]:
        """Compile the network once more, for throughput: one stream a request, as many as OpenVINO finds best."""
        openvino = runtime()

        compiled = _compile(openvino.Core(), self._engine, self.precision, self._threads, "THROUGHPUT")
        count = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        return tuple(OpenVinoBackend(compiled, self._engine, self.precision, self._threads) for _ in range(count))

    def close(self) -> None:
        """Release request and network."""
        self._request = self._compiled = None
