"""Backends: what runs the network.  Each module has ``probe() -> (usable, reason)`` and ``load(...)``."""

from __future__ import annotations

import importlib
import logging
import re
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ptxsdk.engine import Engine
from ptxsdk.errors import BackendError, DetectorError
from ptxsdk.manifest import Arithmetic

_LOGGER = logging.getLogger("ptxsdk")

NAMES = ("openvino", "tensorrt", "onnxruntime")
MOST_THREADS = 256


class Backend(Protocol):
    """A loaded network with buffers of its own; not thread-safe, one a thread through `clone`.

    Attributes
    ----------
    name, device, precision : str
        What really runs, e.g. "openvino", "cpu", "fp32".
    input : ndarray, shape (rows, columns), float32
        The input buffer, owned by the backend: fill it, then call `infer`.
    """

    name: str
    device: str
    precision: Arithmetic
    input: npt.NDArray[np.float32]

    def infer(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Run the network on `input`.

        Returns
        -------
        patch_logits : ndarray, shape (P, Q), float32
        mask_logits : ndarray, shape (rows, columns), float32
            Both are valid until the next call.

        Raises
        ------
        BackendError
            ``backend.failed``; of a GPU also ``backend.out_of_memory`` and ``backend.lost``.
        """
        ...

    def clone(self) -> Backend:
        """Share the compiled network; buffers and request are the clone's own."""
        ...

    def crew(self) -> tuple[Backend, ...]:
        """Return backends that together run many films fastest, each for a thread of its own.

        Raises
        ------
        BackendError
            ``backend.failed``.
        """
        ...

    def close(self) -> None:
        """Release everything; idempotent."""
        ...


def probe(name: str) -> tuple[bool, str]:
    """Say whether a backend is usable here.

    Returns
    -------
    usable : bool
    reason : str
        Its version and devices, or why not.
    """
    usable, reason = _module(name).probe()
    return bool(usable), str(reason)


def load(engine: Engine, *, backend: str, device: str, precision: str, threads: int) -> Backend:
    """Load the network of `engine` on the best backend that fits.

    Parameters
    ----------
    engine : Engine
        Verified engine.
    backend : str
        "auto" (what the device asks for) or one of ``NAMES``.
    device : str
        "cpu", "cuda" or "cuda:N".  "auto" is TensorRT where it is usable, else OpenVINO on the CPU.
    precision : {"auto", "fp32", "fp16", "int8"}
        "auto" takes the fastest that this device runs natively and the engine allows.
    threads : int
        CPU threads for the network; 0 leaves it to the runtime.

    Raises
    ------
    BackendError
        ``backend.unavailable`` or ``backend.failed``; of a GPU also ``backend.out_of_memory`` and ``backend.lost``.
    EngineError
        ``engine.precision``.
    DetectorError
        ``detector.option``.
    """
    if backend not in ("auto", *NAMES):
        raise DetectorError("detector.option", f"backend {backend!r} is not auto, {', '.join(NAMES)}")
    if precision not in ("auto", "fp32", "fp16", "int8"):
        raise DetectorError("detector.option", f"precision {precision!r} is not auto, fp32, fp16 or int8")
    if isinstance(threads, bool) or not isinstance(threads, int) or not 0 <= threads <= MOST_THREADS:
        raise DetectorError("detector.option", f"threads {threads!r} is not a count up to {MOST_THREADS}")
    if not isinstance(device, str):
        raise DetectorError("detector.option", f"device {device!r} is not auto, cpu or cuda[:N]")
    cuda = re.fullmatch(r"cuda(:[0-9]{1,4})?", device) is not None
    if device not in ("auto", "cpu") and not cuda:
        raise DetectorError("detector.option", f"device {device!r} is not auto, cpu or cuda[:N]")
    if backend != "auto" and device != "auto" and (backend == "tensorrt") != cuda:
        raise BackendError("backend.unavailable", f"{backend} does not run on {device}")
    if backend == "tensorrt" or cuda:
        _require_usable("tensorrt")
        return _on_gpu(engine, device, precision, threads)
    if backend == "auto" and device == "auto" and _module("tensorrt").probe()[0]:
        try:
            return _on_gpu(engine, device, precision, threads)
        except BackendError as error:
            _LOGGER.warning("TensorRT does not run the network, OpenVINO does: %s", error.message)
    loaded: Backend = _require_usable("openvino" if backend == "auto" else backend).load(
        engine, precision=precision, threads=threads
    )
    return loaded


def _on_gpu(engine: Engine, device: str, precision: str, threads: int) -> Backend:
    loaded: Backend = _module("tensorrt").load(engine, precision=precision, threads=threads, device=device)
    return loaded


def _require_usable(name: str) -> Any:
    module = _module(name)
    usable, reason = module.probe()
    if not usable:
        raise BackendError("backend.unavailable", reason)
    return module


def _module(name: str) -> Any:
    if name not in NAMES:
        raise DetectorError("detector.option", f"backend {name!r} is not one of {', '.join(NAMES)}")
    return importlib.import_module(f"ptxsdk.backends.{name}")
