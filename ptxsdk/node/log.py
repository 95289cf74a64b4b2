"""Log: one JSON object a line; films by their token in the spool, never by anything that names a patient."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import warnings
from typing import TextIO

_LOGGER = logging.getLogger("ptxsdk.node")
_FOREIGN = ("pynetdicom", "pydicom", "highdicom")


def event(name: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Log that something happened.

    Parameters
    ----------
    name : str
        What; a few stable words, see docs/node.md.
    level : int
        As in `logging`.
    **fields
        JSON-able values: tokens, codes, AE titles, sizes, seconds.
    """
    _LOGGER.log(level, name, extra={"fields": fields})


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        body = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            # The type and the place; the text of a foreign exception may quote what it was reading.
            trace = record.exc_info[2]
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            body["exception"] = record.exc_info[0].__name__
            body["at"] = "" if trace is None else f"{trace.tb_frame.f_code.co_name}:{trace.tb_lineno}"
        return json.dumps(body, default=str)


def start(stream: TextIO | None = None) -> None:
    """Log to `stream`, default stderr.

    What the DICOM libraries log and warn of is dropped: it quotes values of the data sets they read.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("ptxsdk")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for name in _FOREIGN:
        foreign = logging.getLogger(name)
        foreign.setLevel(logging.CRITICAL + 1)
        foreign.propagate = False
    warnings.simplefilter("ignore")
    threading.excepthook = _thread_broke


def _thread_broke(broken: threading.ExceptHookArgs) -> None:
    """Log that a thread ended by an exception: pynetdicom's do where a peer breaks the protocol."""
    kind = broken.exc_type.__name__
    event("thread_broke", level=logging.WARNING, thread=broken.thread.name if broken.thread else "", exception=kind)
