"""ONNX weights: refuses a network that takes any from files of its own choice.

The engine's hashes and signature cover the network's bytes and nothing that it names; runtimes open what it names.
The answer comes from the protobuf fields themselves, however they are encoded (onnx.proto, protobuf encoding guide).
"""

from __future__ import annotations

from collections.abc import Iterator

from ptxsdk.errors import EngineError

# Which fields of a message hold messages that lead to tensors.
_HOLDS = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        **dict.fromkeys((5, 10), "TensorProto"),
        **dict.fromkeys((6, 11), "GraphProto"),
        **dict.fromkeys((22, 23), "SparseTensorProto"),
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of TensorProto
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_MOST_FIELDS = 1_000_000


def require_own_weights(network: bytes) -> None:
    """Refuse a network that takes weights from outside.

    Raises
    ------
    EngineError
        ``engine.corrupt``: it does, or it is no ONNX.
    """
    waiting = [("ModelProto", 0, len(network))]
    left = _MOST_FIELDS
    while waiting:
        message, start, end = waiting.pop()
        for number, kind, first, last in _fields(network, start, end):
            left -= 1
            if left < 0:
                raise EngineError("engine.corrupt", "the network has more parts than any needs")
            if message == "TensorProto" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and first)):
                raise EngineError("engine.corrupt", "the network takes weights from outside the engine")
            held = _HOLDS[message].get(number)
            if held is not None and kind == _BYTES:
                waiting.append((held, first, last))


def _fields(data: bytes, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, wire type, and, of bytes where they begin and end, of a varint its value."""
    while position < end:
        tag, position = _varint(data, position, end)
        number, kind = tag >> 3, tag & 7
        first = last = 0
        if kind == _VARINT:
            first, position = _varint(data, position, end)
        elif kind == _BYTES:
            length, first = _varint(data, position, end)
            position = last = first + length
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            position += 8 if kind == _EIGHT_BYTES else 4
        else:
            raise _no_onnx()
        if number == 0 or position > end:
            raise _no_onnx()
        yield number, kind, first, last


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _no_onnx()


def _no_onnx() -> EngineError:
    return EngineError("engine.corrupt", "the network is no ONNX")
