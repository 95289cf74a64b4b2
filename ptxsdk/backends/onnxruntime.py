"""ONNX Runtime on the CPU in fp32: the reference that the other backends are compared with."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ptxsdk.backends.contract import as_plane
from ptxsdk.engine import Engine
from ptxsdk.errors import BackendError
from ptxsdk.manifest import Arithmetic, Precision
from ptxsdk.telemetry import without_telemetry


def probe() -> tuple[bool, str]:
    """Say whether ONNX Runtime is installed; ``(usable, reason)``."""
    try:
        with without_telemetry():
            import onnxruntime
    except ImportError as error:
        return False, f"onnxruntime is not installed (extra 'onnxruntime'): {error}"
    return True, f"onnxruntime {onnxruntime.__version__}"


def load(engine: Engine, *, precision: Literal["auto"] | Precision, threads: int) -> OnnxRuntimeBackend:
    """Open a CPU session; "auto" means fp32.

    Raises
    ------
    BackendError
        ``backend.failed`` with ONNX Runtime's own message.
    EngineError
        ``engine.precision``.
    """
    with without_telemetry():
        import onnxruntime

    chosen: Precision = "fp32" if precision == "auto" else precision
    network = engine.network(chosen)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no public base but Exception
        raise BackendError("backend.failed", f"ONNX Runtime refused the network: {error}") from error
    return OnnxRuntimeBackend(session, engine, chosen)


class OnnxRuntimeBackend:
    """A session; see `ptxsdk.backends.Backend`."""

    name = "onnxruntime"
    device = "cpu"

    def __init__(self, session: Any, engine: Engine, precision: Arithmetic) -> None:
        self.precision: Arithmetic = precision
        self.input = np.zeros(engine.manifest.input.size, np.float32)
        self._session = session
        self._engine = engine
        self._feed = {engine.manifest.input.name: self.input.reshape(1, 1, *self.input.shape)}
        self._outputs = engine.manifest.outputs

    def infer(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Run the network on `input`; see `ptxsdk.backends.Backend.infer`."""
        try:
            names = [self._outputs.patch_logits.name, self._outputs.mask_logits.name]
            patch, mask = self._session.run(names, self._feed)
        except Exception as error:  # as in load
            raise BackendError("backend.failed", f"ONNX Runtime failed: {error}") from error
        return (
            as_plane(patch, names[0], self._outputs.patch_logits.grid),
            as_plane(mask, names[1], self._outputs.mask_logits.size),
        )

    def clone(self) -> OnnxRuntimeBackend:
        """Share the session, which is thread-safe."""
        return OnnxRuntimeBackend(self._session, self._engine, self.precision)

    def crew(self) -> tuple[OnnxRuntimeBackend, ...]:
        """One clone: a session gives every film all threads."""
        return (self.clone(),)

    def close(self) -> None:
        """Release the session."""
        self._session = None
