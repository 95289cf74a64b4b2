"""Fuzz target: the bindings of the operations: arrays of any shape, stride, dtype, alignment and byte order.

They raise TypeError or ValueError (BackendError or InputError for values that are not finite), or compute.
"""

from __future__ import annotations

import sys

import numpy as np
from harness import main
from script import Script, script_seed

from ptxsdk import _core
from ptxsdk.errors import BackendError, InputError
from ptxsdk.geometry import Geometry
from ptxsdk.ops import aggregate, preprocess_into
from ptxsdk.radiograph import Display, LookupTable, Window

MODULES = tuple(sys.modules[f"ptxsdk.{name}"] for name in ("geometry", "ops.aggregate", "ops.preprocess", "radiograph"))
DTYPES = ("u1", "<u2", ">u2", "<i2", "<f4", ">f4", "<f2", "<f8", "i1", "<i4", "?", "<c8", "V3", "M8[s]", "O")
ALLOWED = (TypeError, ValueError, InputError, BackendError, _core.NotFiniteError)


def array(script: Script, usual: str) -> np.ndarray:
    """An array with strides of its own over memory of its own."""
    dtype = np.dtype(usual if script.integer(0, 3) else script.choice(DTYPES))
    shape = [script.integer(0, 40) for _ in range(2 if script.integer(0, 7) else script.integer(0, 3))]
    if dtype.hasobject:
        return np.empty(shape, dtype)
    size = int(np.prod(shape))
    spare = script.integer(0, 3)
    raw = np.resize(np.frombuffer(script.bytes(64), np.uint8), 4 * size * dtype.itemsize + spare)
    made = raw[spare : spare + size * dtype.itemsize].view(dtype).reshape(shape)
    for axis in range(len(shape)):
        kind = script.integer(0, 5)
        if kind == 0:
            made = np.flip(made, axis)
        elif kind == 1:
            made = made[tuple(slice(None, None, 2) if a == axis else slice(None) for a in range(made.ndim))]
        elif kind == 2 and made.size:
            made = np.broadcast_to(made.take([0], axis), shape if made.ndim == len(shape) else made.shape)
    if script.integer(0, 5) == 0:
        made = made.T
    return made


def display(script: Script) -> Display:
    low = script.integer(-300, 70000)
    if script.integer(0, 3) == 0:
        return Display(voi=LookupTable(first=low % 256, entries=np.linspace(0, 1, 300)))
    return Display(
        voi=Window(low, script.integer(1, 3000), script.choice(("LINEAR", "LINEAR_EXACT", "SIGMOID"))),
        slope=script.choice((1.0, -1.0, 0.001)),
        intercept=script.choice((0.0, -1024.0, 1e6)),
        invert=bool(script.integer(0, 1)),
    )


def one_input(data: bytes) -> None:
    script = Script(data)
    kind = script.integer(0, 4)
    try:
        if kind <= 1:
            target = np.array(array(script, "<f4")) if script.integer(0, 3) else array(script, "<f2")
            preprocess_into(target, array(script, "<u2"), display=display(script), threads=script.integer(0, 2))
        elif kind == 2:
            mask = array(script, "<f4")
            geometry = Geometry.fit((script.integer(1, 99), script.integer(1, 99)), mask.shape)
            aggregate(
                array(script, "<f4"),
                mask,
                geometry=geometry,
                method=script.choice(("noisy_or", "paper_098", "top_k", "max", "mean")),
                k=script.integer(-1, 9),
                source=script.choice(("patch", "mask")),
                high=script.integer(0, 20) / 20,
                low=script.integer(0, 20) / 20,
                min_area=script.integer(-1, 9),
            )
        elif kind == 3:
            _core.mask_probability(array(script, "<f4"))
        else:
            _core.aggregate_of_result(
                array(script, "u1").ravel() if script.integer(0, 1) else np.zeros(script.integer(0, 200), np.uint8),
                source_shape=(script.integer(-1, 90), script.integer(-1, 90)),
                content=tuple(script.integer(-1, 20) for _ in range(4)),
                method="max",
                low=0.5,
                map_shape=(script.integer(-1, 20), script.integer(-1, 20)),
            )
    except ALLOWED:
        pass


def seeds() -> list[bytes]:
    return [bytes([kind]) + script_seed(turn, 160) for kind in range(5) for turn in range(4)]


if __name__ == "__main__":
    main(one_input, seeds, MODULES)
