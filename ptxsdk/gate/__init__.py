"""The input gate: may this film be scored?  Checks of what the file says, then of what the picture shows.

Every check is "pass", "fail" or "unknown" and has a stable code; docs/gate.md lists them with their evidence.
"""

from __future__ import annotations

import importlib

from ptxsdk.detection import Check
from ptxsdk.errors import OutOfScope
from ptxsdk.gate.content import check_content, sample, sample_step
from ptxsdk.gate.header import (
    COMPUTED_RADIOGRAPHY,
    DIGITAL_X_RAY,
    DIGITAL_X_RAY_FOR_PROCESSING,
    SECONDARY_CAPTURE,
    check_header,
    is_chest,
)
from ptxsdk.gate.policy import GatePolicy

__all__ = [
    "COMPUTED_RADIOGRAPHY",
    "DIGITAL_X_RAY",
    "DIGITAL_X_RAY_FOR_PROCESSING",
    "SECONDARY_CAPTURE",
    "GatePolicy",
    "check_content",
    "check_header",
    "enforce",
    "is_chest",
    "load",
    "sample",
    "sample_step",
]


def load() -> None:
    """Load OpenCV and the scope model now, so that no film waits for them."""
    from ptxsdk.gate.scope import shipped_model

    importlib.import_module("cv2")
    shipped_model()


def enforce(checks: tuple[Check, ...]) -> None:
    """Raise for failed checks.

    Raises
    ------
    OutOfScope
        Naming every failed check.
    """
    failed = tuple((check.code, check.detail) for check in checks if check.status == "fail")
    if failed:
        raise OutOfScope(failed)
