"""OpenVINO: the embedded default, on x86-64 and aarch64 CPUs."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ptxsdk.backends.contract import as_plane
from ptxsdk.engine import Engine
from ptxsdk.errors import BackendError
from ptxsdk.manifest import Arithmetic, Precision


def probe() -> tuple[bool, str]:
    """Say whether OpenVINO is installed and has a CPU device; ``(usable, reason)``."""
    try:
        import openvino
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
        "auto" is bf16 arithmetic where the CPU has it and the engine states a tolerance for it, else fp32.
    threads : int
        0: one per core.

    Raises
    ------
    BackendError
        ``backend.failed`` with OpenVINO's own message.
    EngineError
        ``engine.precision``.
    """
    import openvino

    core = openvino.Core()
    arithmetic: Arithmetic = "fp32" if precision == "auto" else precision
    if precision == "auto" and all("bf16" in film.tolerance for film in engine.golden()):
        native = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        arithmetic = "bf16" if "BF16" in native else "fp32"
    network = engine.network("fp32" if arithmetic == "bf16" else arithmetic)
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": {"bf16": "bf16", "fp16": "f16"}.get(arithmetic, "f32"),
        "CACHE_DIR": "",
    }
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    try:
        compiled = core.compile_model(core.read_model(network), "CPU", options)
    except RuntimeError as error:
        raise BackendError("backend.failed", f"OpenVINO refused the network: {error}") from error
    return OpenVinoBackend(compiled, engine, arithmetic)


class OpenVinoBackend:
    """A compiled network and one infer request; see `ptxsdk.backends.Backend`."""

    name = "openvino"
    device = "cpu"

    def __init__(self, compiled: Any, engine: Engine, precision: Arithmetic) -> None:
        import openvino

        contract = engine.manifest
        self.precision = precision
        self.input = np.zeros(contract.input.size, np.float32)
        self._compiled = compiled
        self._engine = engine
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
        return OpenVinoBackend(self._compiled, self._engine, self.precision)

    def close(self) -> None:
        """Release request and network."""
        self._request = self._compiled = None
