"""Elements: splits a DICOM byte string into its data elements, bounded and without recursion.

The splitting is ours and not pydicom's for three reasons.  pydicom inflates deflated data sets without a bound,
recurses as deep as the file says, and takes a file that ends early for a complete one.  It also reports through
`warnings` and the log, which cannot be silenced in one thread alone before Python 3.14.  So pydicom receives finished
raw elements and converts none of them while a film is read: no warning, no global setting, safe in every thread.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

from ptxsdk.errors import InputError
from ptxsdk.readers.limits import DEFAULT_LIMITS, Limits
from ptxsdk.readers.reading import DEFAULT_READING, Reading

MIN_INFLATE_LIMIT = 1 << 20
HEAD_BYTES = 1 << 16
"""What `head` looks at; the SOP Instance UID is among the first dozen elements, behind nothing large."""

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"

PIXEL_DATA = 0x7FE00010
PIXEL_TAGS = frozenset({PIXEL_DATA, 0x7FE00008, 0x7FE00009})

_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_MAX_UID = 64
_MAX_TERMS = 16
_CHARACTER_SET = 0x00080005
_TRANSFER_SYNTAX = 0x00020010
_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_SHORT_VRS = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN"}
    | {b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}
)


@dataclass(frozen=True)
class PixelElement:
    """Where the pixels are: the value of Pixel Data, undecoded.

    Attributes
    ----------
    tag : int
        Pixel Data, Float Pixel Data or Double Float Pixel Data.
    vr : str or None
        Value representation; None in implicit VR.
    value : memoryview
        Native pixels, or the items of an encapsulated codestream up to the end of the file.
    encapsulated : bool
        The value has undefined length.
    """

    tag: int
    vr: str | None
    value: memoryview
    encapsulated: bool


@dataclass(frozen=True)
class Elements:
    """A DICOM file, split.

    Attributes
    ----------
    dataset : pydicom.Dataset
        Everything before the pixels, with ``file_meta``; raw elements, none converted.
    pixels : PixelElement or None
        The pixels; what follows them is not read.
    syntax : str
        Transfer syntax UID.
    little : bool
        Byte order of the data set.
    warnings : tuple of str
        What had to be assumed.
    """

    dataset: Any
    pixels: PixelElement | None
    syntax: str
    little: bool
    warnings: tuple[str, ...]


def looks_like_dataset(content: bytes) -> bool:
    """Say whether content without a preamble starts like a DICOM data set: groups 0002 or 0008, in any encoding."""
    if len(content) < 8:
        return False
    for order in "<>":
        group, element, length = struct.unpack_from(order + "HHL", content)
        if group not in (0x0002, 0x0008) or element > 0x0100:
            continue
        if content[4:6] in _LONG_VRS | _SHORT_VRS:
            return True
        if order == "<" and length <= 256 and 8 + length <= len(content):
            return True
    return False


def split(content: bytes, reading: Reading = DEFAULT_READING) -> Elements:
    """Split a DICOM file up to and including its pixels.

    Raises
    ------
    InputError
        ``input.truncated``, ``input.corrupt`` or ``input.too_large``.
    DetectorError
        ``detector.timeout``.
    """
    from pydicom.dataset import FileMetaDataset

    warnings: list[str] = []
    meta_elements, syntax, start = _meta(content, reading)
    if syntax == DEFLATED:
        content, start = _inflate(content, start, reading.limits), 0
    implicit, little = _encoding(content, start, syntax, warnings)
    walk = _Walk(content, start, implicit=implicit, little=little, reading=reading)
    elements = walk.run()
    if not elements and walk.pixels is None:
        raise InputError("input.truncated", "the DICOM file ends before its data set")
    dataset = _dataset(elements, implicit=implicit, little=little)
    dataset.file_meta = FileMetaDataset(meta_elements)
    return Elements(
        dataset=dataset,
        pixels=walk.pixels,
        syntax=syntax or (IMPLICIT_LITTLE if implicit else EXPLICIT_LITTLE if little else EXPLICIT_BIG),
        little=little,
        warnings=(*warnings, *walk.warnings),
    )


def head(content: bytes, last: int) -> Any:
    """Return the elements of a deflated DICOM file up to and with the tag `last`, by tag.

    No more than the first `HEAD_BYTES` of the data set are inflated: it may be a hundred times as large as the file.
    None is returned for a file that is not deflated.

    Raises
    ------
    InputError
        ``input.corrupt``, ``input.too_large``, or ``input.truncated`` where what comes first is longer.
    """
    _, syntax, start = _meta(content, DEFAULT_READING)
    if syntax != DEFLATED:
        return None
    try:
        inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(memoryview(content)[start:], HEAD_BYTES)
    except zlib.error:
        raise InputError("input.corrupt", "the deflated data set cannot be inflated") from None
    return _Walk(inflated, 0, implicit=False, little=True, last=last, reading=DEFAULT_READING).run()


def has_preamble(content: bytes) -> bool:
    """Say whether the content has the DICM mark behind a 128-byte preamble."""
    return content[128:132] == b"DICM"


def _meta(content: bytes, reading: Reading) -> tuple[dict[Any, Any], str, int]:
    """Return the file meta information, the transfer syntax it names, and where the data set starts."""
    start = 132 if has_preamble(content) else 0
    walk = _Walk(content, start, implicit=False, little=True, only_group=2, reading=reading)
    found = walk.run()
    return found, _text(found.get(_TRANSFER_SYNTAX), _MAX_UID), walk.position


def split_sequence(value: bytes, *, implicit: bool, little: bool, reading: Reading = DEFAULT_READING) -> list[Any]:
    """Split the value of a sequence of defined length into its items, as pydicom Datasets; errors as `split`."""
    walk = _Walk(value, 0, implicit=implicit, little=little, reading=reading)
    return walk.run_sequence()


def fragments(
    value: memoryview, *, to_delimiter: bool, reading: Reading = DEFAULT_READING
) -> tuple[bytes, list[memoryview]]:
    """Split encapsulated pixel data into the Basic Offset Table and the fragments.

    Parameters
    ----------
    value : memoryview
        Items, little endian.
    to_delimiter : bool
        True when the Sequence Delimitation Item must be there: without it the file ended early.
    reading : Reading
        How many there may be, and until when they are looked for.

    Raises
    ------
    InputError
        ``input.truncated``, ``input.corrupt`` or ``input.too_large``.
    DetectorError
        ``detector.timeout``.
    """
    found: list[memoryview] = []
    count = _Count(reading)
    position = 0
    while True:
        count.one_more()
        if position == len(value) and not to_delimiter:
            break
        if position + 8 > len(value):
            raise InputError("input.truncated", "the encapsulated pixel data have no end")
        group, element, length = struct.unpack_from("<HHL", value, position)
        tag = group << 16 | element
        position += 8
        if tag == _SEQUENCE_END:
            break
        if tag != _ITEM or length == _UNDEFINED:
            raise InputError("input.corrupt", "the encapsulated pixel data are not a row of items")
        if position + length > len(value):
            raise InputError("input.truncated", "the encapsulated pixel data end inside a fragment")
        found.append(value[position : position + length])
        position += length
    if not found:
        raise InputError("input.truncated", "the encapsulated pixel data hold no item")
    return bytes(found[0]), found[1:]


def _text(element: Any, most: int) -> str:
    """Return the value's first characters; more than `most` are nothing that could be known."""
    value = getattr(element, "value", None) or b""
    return str(value[: most + 1].decode("latin-1") if isinstance(value, bytes) else value)[: most + 1].strip(" \0")


def _inflate(content: bytes, start: int, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """Inflate a deflated data set, at most 100:1 (small files: to 1 MiB) and never beyond a film and its header."""
    packed = memoryview(content)[start:]
    # What comes out is a file without the deflation, so a file's limit holds for it too.
    limit = min(max(limits.inflate_ratio * len(packed), MIN_INFLATE_LIMIT), limits.file_bytes)
    limits.check_memory(len(content))
    limit = min(limit, limits.memory_bytes - len(content))
    machine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = machine.decompress(packed, limit + 1)
    except zlib.error:
        raise InputError("input.corrupt", "the deflated data set cannot be inflated") from None
    if len(plain) > limit:
        raise InputError("input.too_large", f"the deflated data set inflates beyond {limit} bytes")
    if not machine.eof:
        raise InputError("input.truncated", "the deflated data set has no end")
    return plain


def _encoding(content: bytes, start: int, syntax: str, warnings: list[str]) -> tuple[bool, bool]:
    """Return ``(implicit, little)``: as the transfer syntax says, unless the first element shows otherwise."""
    first = content[start : start + 8]
    little = syntax != EXPLICIT_BIG
    if len(first) < 8:
        return syntax == IMPLICIT_LITTLE, little
    explicit = first[4:6] in _LONG_VRS | _SHORT_VRS
    if not syntax:
        # In big endian the group of the first element, 0008 as a rule, reads as 0800.
        return not explicit, not (explicit and first[0] == 0 and first[1] != 0)
    implicit = syntax == IMPLICIT_LITTLE
    if implicit == explicit:
        warnings.append("dicom.encoding: the data set is not encoded as its transfer syntax says")
    return not explicit, little


def _dataset(elements: dict[Any, Any], *, implicit: bool, little: bool) -> Any:
    from pydicom.charset import python_encoding
    from pydicom.dataset import Dataset

    dataset = Dataset(elements)
    charset: str | list[str] = "iso8859"
    if _CHARACTER_SET in elements:
        terms = _text(elements[_CHARACTER_SET], 16 * _MAX_TERMS).split("\\")[:_MAX_TERMS]
        # Unknown terms read as the default: pydicom would warn.
        charset = [python_encoding.get(term.strip(), "iso8859") for term in terms] or charset
    dataset.set_original_encoding(implicit, little, charset)
    return dataset


class _Count:
    """Counts what a film has of elements, items and fragments, within the limit and until the deadline."""

    def __init__(self, reading: Reading) -> None:
        self._number = 0
        self._limit = reading.limits.elements
        self._deadline = reading.deadline

    def one_more(self) -> None:
        self._number += 1
        if self._number % 1024 == 0:
            self._deadline.check()
        if self._number > self._limit:
            raise InputError("input.too_large", f"the DICOM object has more than {self._limit} elements")


@dataclass
class _Level:
    """A data set or a sequence being read; ``end`` is None while only a delimiter ends it."""

    is_sequence: bool
    end: int | None
    limit: int
    implicit: bool
    tag: int = 0
    elements: dict[Any, Any] = field(default_factory=dict)
    items: list[Any] = field(default_factory=list)


class _Walk:
    """One pass over encoded elements with an explicit stack."""

    def __init__(
        self,
        content: bytes,
        position: int,
        *,
        implicit: bool,
        little: bool,
        only_group: int | None = None,
        last: int | None = None,
        reading: Reading = DEFAULT_READING,
    ) -> None:
        from pydicom.datadict import dictionary_VR
        from pydicom.dataelem import DataElement, RawDataElement
        from pydicom.sequence import Sequence
        from pydicom.tag import BaseTag

        self.content = content
        self.position = position
        self.start = position
        self.implicit = implicit
        self.little = little
        self.only_group = only_group
        self.last = last
        self.limits = reading.limits
        self.count = _Count(reading)
        self.pixels: PixelElement | None = None
        self.warnings: list[str] = []
        self.order = "<" if little else ">"
        self._types: Any = (DataElement, RawDataElement, Sequence, BaseTag)
        self._dictionary: Any = dictionary_VR
        self.stack: list[_Level] = []
        # Where to go on when a sequence of defined length in the root turns out to be broken.
        self._resume: tuple[int, int, int, str | None] | None = None

    def run(self) -> dict[Any, Any]:
        """Return the elements of the root data set."""
        root = _Level(False, len(self.content), len(self.content), self.implicit)
        self.stack = [root]
        self._loop()
        return root.elements

    def run_sequence(self) -> list[Any]:
        """Return the items when the content is the value of a sequence."""
        root = _Level(True, len(self.content), len(self.content), self.implicit)
        self.stack = [root]
        self._loop()
        return root.items

    def _loop(self) -> None:
        while self.stack:
            try:
                if not self._step():
                    return
            except _Broken as broken:
                if self._resume is None:
                    raise InputError(broken.code, broken.text) from None
                # A vendor's broken sequence stays raw and does not cost the film.
                where, end, tag, vr = self._resume
                self._resume = None
                del self.stack[1:]
                self.position = end
                self._store(self.stack[0], tag, vr, where, end - where)
                self.warnings.append(f"dicom.sequence: ({tag >> 16:04X},{tag & 0xFFFF:04X}) is broken and ignored")

    def _step(self) -> bool:
        level = self.stack[-1]
        if level.end is not None and self.position >= level.end:
            if len(self.stack) == 1:
                return False
            self._close()
            return True
        self.count.one_more()
        if self.position - self.start > self.limits.header_bytes:
            raise InputError("input.too_large", f"the DICOM header has more than {self.limits.header_bytes} bytes")
        if self.position + 8 > level.limit:
            raise _Broken("input.truncated", "the DICOM header ends inside an element")
        group, number = struct.unpack_from(self.order + "HH", self.content, self.position)
        tag = group << 16 | number
        if level.is_sequence:
            self._item(level, tag)
            return True
        if self.only_group is not None and group != self.only_group:
            return False
        if self.last is not None and tag > self.last and len(self.stack) == 1:
            return False
        if tag == _ITEM_END and level.end is None:
            self.position += 8
            self._close()
            return True
        return self._element(level, tag)

    def _item(self, level: _Level, tag: int) -> None:
        (length,) = struct.unpack_from(self.order + "L", self.content, self.position + 4)
        self.position += 8
        if tag == _SEQUENCE_END and level.end is None:
            self._close()
        elif tag == _ITEM:
            self._open(level, is_sequence=False, length=length, implicit=level.implicit, tag=0)
        else:
            raise _Broken("input.corrupt", "a DICOM sequence holds something that is not an item")

    def _element(self, level: _Level, tag: int) -> bool:
        vr, length, header = self._measure(level)
        root = len(self.stack) == 1
        if root and tag in PIXEL_TAGS:
            self._take_pixels(level, tag, vr, length, header)
            return False
        self.position += header
        if tag >> 16 == 0xFFFE:
            raise _Broken("input.corrupt", "a DICOM delimiter stands where an element must be")
        kind = vr if vr is not None else self._lookup(tag)
        if kind == "SQ" or (length == _UNDEFINED and kind in ("UN", None)):
            # PS3.5 6.2.2: UN of undefined length is a sequence in implicit VR.
            implicit = level.implicit or vr == "UN"
            start = self.position
            self._open(level, is_sequence=True, length=length, implicit=implicit, tag=tag)
            if root and length != _UNDEFINED:
                self._resume = (start, start + length, tag, vr)
            return True
        if length == _UNDEFINED:
            length = self._skip_fragments(level)
        if self.position + length > level.limit:
            raise _Broken("input.truncated", f"a DICOM element of {length} bytes has no end")
        self._store(level, tag, vr, self.position, length)
        self.position += length
        return True

    def _measure(self, level: _Level) -> tuple[str | None, int, int]:
        """Return VR, length and size of the header of the element at the position."""
        vr = self.content[self.position + 4 : self.position + 6]
        # Some writers switch to implicit VR inside sequences: a VR is two capitals, a length hardly ever.
        if level.implicit or not (vr.isalpha() and vr.isupper()):
            (length,) = struct.unpack_from(self.order + "L", self.content, self.position + 4)
            return None, length, 8
        if vr in _LONG_VRS:
            if self.position + 12 > level.limit:
                raise _Broken("input.truncated", "the DICOM header ends inside an element")
            (length,) = struct.unpack_from(self.order + "L", self.content, self.position + 8)
            return vr.decode(), length, 12
        (length,) = struct.unpack_from(self.order + "H", self.content, self.position + 6)
        return vr.decode("latin-1"), length, 8

    def _lookup(self, tag: int) -> str | None:
        try:
            return str(self._dictionary(tag))
        except KeyError:
            return None

    def _take_pixels(self, level: _Level, tag: int, vr: str | None, length: int, header: int) -> None:
        start = self.position + header
        encapsulated = length == _UNDEFINED
        end = level.limit if encapsulated else start + length
        # A film cut short is refused where its size is known; here the value is what there is.
        self.pixels = PixelElement(tag, vr, memoryview(self.content)[start:end], encapsulated)

    def _open(self, level: _Level, *, is_sequence: bool, length: int, implicit: bool, tag: int) -> None:
        end = None if length == _UNDEFINED else self.position + length
        if end is not None and end > level.limit:
            raise _Broken("input.truncated", f"a DICOM sequence or item of {length} bytes has no end")
        if len(self.stack) > 2 * self.limits.sequence_depth:
            raise InputError("input.corrupt", f"DICOM sequences are nested more than {self.limits.sequence_depth} deep")
        limit = level.limit if end is None else end
        self.stack.append(_Level(is_sequence, end, limit, implicit, tag))

    def _close(self) -> None:
        level = self.stack.pop()
        parent = self.stack[-1]
        if not level.is_sequence:
            parent.items.append(_dataset(level.elements, implicit=level.implicit, little=self.little))
            return
        element, _, sequence, tag = self._types
        parent.elements[tag(level.tag)] = element(tag(level.tag), "SQ", sequence(level.items))
        if len(self.stack) == 1:
            self._resume = None

    def _store(self, level: _Level, tag: int, vr: str | None, start: int, length: int) -> None:
        if length > self.limits.header_bytes:
            raise InputError("input.too_large", f"a DICOM header element has {length} bytes")
        _, raw, _, base = self._types
        value = self.content[start : start + length]
        level.elements[base(tag)] = raw(base(tag), vr, length, value, start, vr is None, self.little)

    def _skip_fragments(self, level: _Level) -> int:
        """Return the length, with its delimiter, of an encapsulated value that is not the film (an icon)."""
        position = self.position
        while position + 8 <= level.limit:
            self.count.one_more()
            group, number, length = struct.unpack_from(self.order + "HHL", self.content, position)
            position += 8
            if group << 16 | number == _SEQUENCE_END:
                return position - self.position
            if group << 16 | number != _ITEM or length == _UNDEFINED:
                break
            position += length
        raise _Broken("input.truncated", "an encapsulated DICOM value has no end")


class _Broken(Exception):
    """The structure does not hold."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
