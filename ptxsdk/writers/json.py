"""JSON: one object a film, on one line; the keys are a contract (README, "Command line")."""

from __future__ import annotations

import json
from typing import Any

from ptxsdk.detection import Detection
from ptxsdk.errors import PtxsdkError


def to_line(file: str, outcome: Detection | PtxsdkError) -> str:
    """Return one line of JSON for a film, scored or failed, without a line end; ASCII, whatever the file's name.

    Parameters
    ----------
    file : str
        Name of the film, as the caller knows it.
    outcome : Detection or PtxsdkError
        Its result, or why there is none.
    """
    body: dict[str, Any] = {"file": file}
    if isinstance(outcome, Detection):
        body |= outcome.to_dict()
    else:
        body["error"] = {"code": outcome.code, "message": outcome.message}
    return json.dumps(body, allow_nan=False)


def json_content(file: str, detection: Detection) -> bytes:
    """Return the content of a film's JSON file: the line, with its end."""
    return (to_line(file, detection) + "\n").encode("ascii")
