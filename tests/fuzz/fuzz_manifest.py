"""Fuzz target: the engine's manifest, as any JSON, or as a valid one with values exchanged.

It is refused with an EngineError, or what it says is the same after being written and read again.
"""

from __future__ import annotations

import copy
import functools
import json
from dataclasses import replace

from harness import main
from made import tiny_manifest
from script import Script, script_seed

from ptxsdk import manifest as manifest_module
from ptxsdk.errors import EngineError
from ptxsdk.manifest import Entry, Manifest

CODES = {"engine.manifest", "engine.format_version", "engine.too_large"}
STRANGE = (
    *(None, True, -1, 0, 1, 2**31, 2**64, 10**19, 0.5, -0.0, 1e308, 1e-320, "", "fp32", "../../etc/passwd", "é\u202e"),
    *("A" * 300, [], {}, [0], {"": 0}, {"fp32": None}, [[[[]]]], "network/fp32.onnx", "2026-01-01", "NaN"),
)


@functools.cache
def base() -> bytes:
    entry = Entry(size=1, sha256="0" * 64)
    names = (
        "network/fp32.onnx",
        "golden/blob.pixels.npy",
        "golden/blob.patch_logits.npy",
        "golden/blob.mask_logits.npy",
    )
    return replace(tiny_manifest(), entries=dict.fromkeys(names, entry)).to_json()


def exchanged(script: Script) -> bytes:
    """A valid manifest with values exchanged, put in or taken out."""
    plain = json.loads(base())
    for _ in range(script.integer(1, 3)):
        where, key = plain, None
        for _ in range(script.integer(1, 5)):
            keys = list(where) if isinstance(where, dict) else list(range(len(where)))
            if not keys:
                break
            key = script.choice(keys)
            if not isinstance(where[key], (dict, list)):
                break
            if script.integer(0, 3) == 0:
                break
            where, key = where[key], None
        if key is None:
            continue
        kind = script.integer(0, 3)
        if kind == 0:
            del where[key]
        elif kind == 1 and isinstance(where, dict):
            where[script.choice(("name", "entries", "x" * 70, "__class__", "size"))] = where.pop(key)
        elif kind == 2 and isinstance(where[key], str):
            where[key] = script.edits(where[key].encode()).decode("utf-8", "replace")
        else:
            where[key] = copy.deepcopy(script.choice(STRANGE))
    return json.dumps(plain).encode()


def one_input(data: bytes) -> None:
    script = Script(data)
    kind = script.integer(0, 3)
    raw = script.rest() if kind == 0 else script.edits(base()) if kind == 1 else exchanged(script)
    try:
        manifest = Manifest.from_json(raw)
    except EngineError as error:
        assert error.code in CODES, error.code
        return
    assert Manifest.from_json(manifest.to_json()) == manifest


def seeds() -> list[bytes]:
    return [b"\0" + base(), b"\1" + script_seed(0), b"\2" + script_seed(1), b'\0{"a": 1e999}', b"\0" + b"[" * 50]


if __name__ == "__main__":
    main(one_input, seeds, (manifest_module,))
