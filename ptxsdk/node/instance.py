"""Instance: which DICOM object a file is."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from ptxsdk.errors import InputError, PtxsdkError

_SOP_INSTANCE_UID, _TRANSFER_SYNTAX = 0x00080018, 0x00020010
_ITEM_END, _SEQUENCE_END = 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_INFLATED = 1 << 16  # the UID is among the first dozen elements, and nothing large can stand before it


def instance_uid(content: bytes) -> str:
    """Return the SOP Instance UID in the data set of a DICOM file.

    Of a deflated data set no more than its head is inflated: it may be a hundred times as large as the file.

    Raises
    ------
    InputError
        ``input.*``: the file cannot be read as far as its pixels, or a deflated one as far as its UID; or it names no
        instance.
    """
    from pydicom.uid import UID

    try:
        value = _value(content)
        text = value.decode("ascii") if isinstance(value, bytes) else str(value)
    except PtxsdkError:
        raise
    except Exception as error:  # as in readers.read: the promise holds for content that no check foresaw
        raise InputError("input.corrupt", f"the file contradicts itself ({type(error).__name__})") from error
    uid = UID(text.strip(" \0"))
    if not uid.is_valid:
        raise InputError("input.corrupt", "the file names no SOP Instance UID")
    return str(uid)


def _value(content: bytes) -> object:
    from ptxsdk.readers import elements

    start, syntax = 132, b""
    for tag, value, end in _elements(content, start):
        if tag >> 16 != 0x0002:
            break
        start = end
        if tag == _TRANSFER_SYNTAX:
            syntax = value.strip(b" \0")
    if syntax != elements.DEFLATED.encode():
        element = elements.split(content).dataset.get_item(_SOP_INSTANCE_UID)
        return b"" if element is None else element.value
    try:
        head = zlib.decompressobj(-zlib.MAX_WBITS).decompress(memoryview(content)[start:], _INFLATED)
    except zlib.error:
        raise InputError("input.corrupt", "the deflated data set cannot be inflated") from None
    return next((value for tag, value, _ in _elements(head, 0) if tag == _SOP_INSTANCE_UID), b"")


def _elements(encoded: bytes, position: int) -> Iterator[tuple[int, bytes, int]]:
    """Yield tag, value and end of every whole element outside of sequences, in explicit VR little endian."""
    from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

    depth = 0
    while position + 8 <= len(encoded):
        group, number, vr, length = struct.unpack_from("<HH2sH", encoded, position)
        tag, position = group << 16 | number, position + 8
        if group == 0xFFFE:
            length = int.from_bytes(encoded[position - 4 : position], "little")
        elif vr.decode("latin-1") in EXPLICIT_VR_LENGTH_32:
            length, position = int.from_bytes(encoded[position : position + 4], "little"), position + 4
        if length == _UNDEFINED:  # a sequence, or an item of one
            depth += 1
            continue
        end = position + length
        if end > len(encoded):
            return
        if tag in (_ITEM_END, _SEQUENCE_END):
            depth -= 1
        elif depth == 0:
            yield tag, encoded[position:end], end
        position = end
