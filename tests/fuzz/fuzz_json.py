"""Fuzz target: the JSON that is read outside engines (remembered precisions, cached plans), as any bytes.

A damaged note counts as none, a damaged plan is not used; neither raises.
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from pathlib import Path

from harness import main
from script import Script

from ptxsdk.backends import fastest, plans

KEY = plans.PlanKey(**dict.fromkeys(plans.PlanKey.__dataclass_fields__, "x"))
NOTE = b'{"chosen": "int8", "milliseconds": {"int8": 1.5}}'


@functools.cache
def note() -> Path:
    # In memory: a million files on a disk would wear it.
    return Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)) / "note.json"


def one_input(data: bytes) -> None:
    script = Script(data)
    kind = script.integer(0, 3)
    raw = script.rest() if kind % 2 == 0 else script.edits(NOTE if kind == 1 else KEY.encoded)
    if kind <= 1:
        note().write_bytes(raw)
        assert fastest._read(note(), ("fp32", "int8")) in (None, "fp32", "int8")
        return
    with contextlib.suppress(plans._Refused):
        plans._verified(plans._HEAD.pack(plans._MAGIC, plans.FORMAT, len(raw), 1) + raw + b"\0" * 33, KEY)


def seeds() -> list[bytes]:
    return [b"\0" + NOTE, b"\0" + b"[" * 5000, b"\2" + KEY.encoded, b"\1\0\0", b"\3\0\0\0"]


if __name__ == "__main__":
    main(one_input, seeds, (fastest, plans))
