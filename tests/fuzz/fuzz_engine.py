"""Fuzz target: the engine file, as any bytes, as a valid one with bytes changed, or sealed again after a change.

It is refused with an EngineError, or every part of it can be used.
"""

from __future__ import annotations

import functools
import json

from harness import main
from made import make_engine
from script import Script, script_seed

from ptxsdk import engine as engine_module
from ptxsdk import manifest
from ptxsdk.engine import MANIFEST, Engine, _archive, _entry
from ptxsdk.errors import EngineError
from ptxsdk.manifest import _encode

NAMES = ("network/fp32.onnx", "../up", "/etc/passwd", "a" * 300, "golden/x.npy", "signature.ed25519", "", "network/é")


@functools.cache
def base() -> bytes:
    return make_engine(b"\x12\x13a producer's name, ")


@functools.cache
def parts() -> tuple[dict[str, object], dict[str, bytes]]:
    """The manifest and the entries of a valid engine."""
    engine = Engine.open(base())
    return json.loads(engine.manifest_bytes()), engine.entries()


def sealed_again(script: Script) -> bytes:
    """An engine whose sizes and checksums are right, and whose content is not."""
    table, entries = parts()
    contents = dict(entries)
    for _ in range(script.integer(1, 2)):
        name = script.choice(sorted(contents))
        kind = script.integer(0, 5)
        if kind <= 2:
            # The front is where the headers of arrays are.
            front = contents[name][:128]
            contents[name] = script.edits(front) + contents[name][128:]
        elif kind == 3:
            contents[name] = contents[name][: script.integer(0, len(contents[name]))]
        elif kind == 4:
            contents[script.choice(NAMES) or "x"] = script.bytes(script.integer(0, 40))
        else:
            contents.pop(name)
            if not contents:
                break
    listed = {name: _encode(_entry(content)) for name, content in contents.items()}
    return _archive({MANIFEST: json.dumps({**table, "entries": listed}).encode(), **contents})


def one_input(data: bytes) -> None:
    script = Script(data)
    kind = script.integer(0, 3)
    try:
        if kind == 0:
            raw = script.rest()
        elif kind == 1:
            raw = script.edits(base())
        else:
            raw = sealed_again(script)
    except (UnicodeEncodeError, OverflowError):
        return  # the writer's complaint, not the reader's
    try:
        engine = Engine.open(raw)
    except EngineError:
        assert len(raw) < 1 << 20
        return
    for precision in engine.precisions:
        try:
            engine.network(precision)
        except EngineError as error:
            assert error.code == "engine.corrupt"
    for vector in engine.golden():
        assert vector.pixels.ndim == 2
    assert engine.id.sha256


def seeds() -> list[bytes]:
    return [b"\0" + base(), *(bytes([kind]) + script_seed(kind) for kind in (1, 2, 3))]


if __name__ == "__main__":
    main(one_input, seeds, (engine_module, manifest))
