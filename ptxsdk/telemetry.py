"""Telemetry of others: the libraries beneath are imported so that none tells its makers of it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

_OPENVINO = "openvino_telemetry"
_ONNXRUNTIME = "ORT_DISABLE_TELEMETRY"


@contextlib.contextmanager
def without_telemetry() -> Iterator[None]:
    """Keep what is imported meanwhile from reporting: a device in a hospital keeps to itself.

    OpenVINO and NNCF report every import to their makers, and ONNX Runtime 1.32 does on Linux too; each leaves an
    identifier in the user's home.  The first two go on without where their telemetry package cannot be imported; the
    third reads a variable while it is imported.  A host that imported them before has decided for itself.
    """
    hidden = _OPENVINO not in sys.modules
    unset = _ONNXRUNTIME not in os.environ
    if hidden:
        sys.modules[_OPENVINO] = None  # type: ignore[assignment]  # so an import of it fails
    if unset:
        os.environ[_ONNXRUNTIME] = "1"
    try:
        yield
    finally:
        if hidden:
            sys.modules.pop(_OPENVINO, None)
        if unset:
            os.environ.pop(_ONNXRUNTIME, None)
