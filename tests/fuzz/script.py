"""Choices out of a fuzzer's bytes: what the structure-aware targets are steered by."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Script:
    """Reads choices off a byte string; zeros where it has run out."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def __bool__(self) -> bool:
        return self.position < len(self.data)

    def bytes(self, count: int) -> bytes:
        found = self.data[self.position : self.position + count]
        self.position += count
        return found.ljust(count, b"\0")

    def rest(self) -> bytes:
        found = self.data[self.position :]
        self.position = len(self.data)
        return found

    def integer(self, low: int, high: int) -> int:
        """An integer of [low, high], from as many bytes as that takes."""
        count = max(1, ((high - low).bit_length() + 7) // 8)
        return low + int.from_bytes(self.bytes(count), "little") % (high - low + 1)

    def choice(self, values: Sequence[T]) -> T:
        return values[self.integer(0, len(values) - 1)]

    def edits(self, content: bytes, most: int = 4) -> bytes:
        """`content` with some bytes changed, cut out, repeated or put in."""
        changed = bytearray(content)
        for _ in range(self.integer(1, most)):
            if not changed:
                break
            at = self.integer(0, len(changed) - 1)
            kind = self.integer(0, 6)
            if kind <= 2:
                changed[at] ^= self.integer(1, 255)
            elif kind == 3:
                new = self.choice(INTERESTING)
                changed[at : at + len(new)] = new
            elif kind == 4:
                del changed[at : at + self.integer(1, 16)]
            elif kind == 5:
                changed[at:at] = self.bytes(self.integer(1, 8))
            else:
                del changed[at:]
        return bytes(changed)


def script_seed(number: int, length: int = 80) -> bytes:
    """Bytes to begin with: a script of zeros steers to the same place only."""
    return random.Random(number).randbytes(length)


INTERESTING = tuple(
    value.to_bytes(size, "little")
    for size in (1, 2, 4, 8)
    for value in (0, 1, (1 << 8 * size - 1) - 1, 1 << 8 * size - 1, (1 << 8 * size) - 1)
)
