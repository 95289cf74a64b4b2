"""TensorRT's Python module: ``trt``, under whichever of its names a version that we know is installed.

NVIDIA ships one API three times: TensorRT 10, TensorRT 11 (both ``tensorrt``) and TensorRT for RTX (``tensorrt_rtx``).
Importing this file imports it, or raises ImportError with the reason.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["FLAVOUR", "VERSION", "trt"]

# By flavour: the names it may have, the thin wrapper's first, and the major versions this code was written for.
_FLAVOURS = {
    "tensorrt": (("tensorrt", "tensorrt_bindings"), (10, 11)),
    "tensorrt_rtx": (("tensorrt_rtx", "tensorrt_rtx_bindings"), (1,)),
}


def _found() -> tuple[Any, str, str]:
    """Return module, flavour and version."""
    reasons = []
    for flavour, (names, majors) in _FLAVOURS.items():
        missing = None
        for name in names:
            try:
                module = importlib.import_module(name)
            except (ImportError, OSError) as error:  # OSError: one of its libraries
                missing = missing or f"{name}: {error}"
                continue
            # Type stubs install a folder of this name, which Python imports as an empty package.
            version = str(getattr(module, "__version__", ""))
            if not version or not hasattr(module, "Builder"):
                reasons.append(f"{name} is an empty package, not TensorRT")
            elif version.partition(".")[0] in map(str, majors):
                return module, flavour, version
            else:
                known = " or ".join(map(str, majors))
                reasons.append(f"{name} {version} is of an unknown major version, {known} is known")
        if missing:
            reasons.append(missing)
    raise ImportError("; ".join(reasons))


if TYPE_CHECKING:
    import tensorrt as trt

    FLAVOUR: str
    VERSION: str
else:
    trt, FLAVOUR, VERSION = _found()
