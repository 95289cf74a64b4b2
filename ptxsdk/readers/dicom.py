"""DICOM: reads one projection radiograph from a DICOM file or a pydicom Dataset.

What the film is (SOP class, view, age ...) is reported, not judged: the input gate does that.  Refused here is what
cannot be one whole gray film: colour, palette, several frames, no pixels, pixels cut short.

The pixels stay as stored.  The way to display values, `Display`, is built in the order of PS3.3:

- Modality: the Modality LUT Sequence, else Rescale Slope and Intercept.
- VOI: the VOI LUT Sequence, else Window Center and Width with the VOI LUT Function, else percentiles.  The standard
  leaves the choice open where both are there; like pydicom and highdicom we take the LUT, which vendors write for its
  shape and accompany with a window for viewers without LUTs.  Of several alternatives the first is taken.
- Polarity: Photometric Interpretation alone.  Presentation LUT Shape is written wrongly too often to be trusted; a
  contradiction is a warning.
"""

from __future__ import annotations

import itertools
import math
import re
import struct
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ptxsdk.errors import InputError
from ptxsdk.radiograph import (
    Display,
    LookupTable,
    Radiograph,
    VoiFunction,
    Window,
    bounds_of,
    estimate_window,
    sample_of,
)
from ptxsdk.readers import codestream, elements
from ptxsdk.readers.codestream import Family
from ptxsdk.readers.reading import DEFAULT_READING, Reading

Array = npt.NDArray[np.generic]

NATIVE = frozenset({elements.IMPLICIT_LITTLE, elements.EXPLICIT_LITTLE, elements.DEFLATED, elements.EXPLICIT_BIG})
RLE = "1.2.840.10008.1.2.5"
CODESTREAMS: dict[str, Family] = {
    "1.2.840.10008.1.2.4.50": "jpeg",
    "1.2.840.10008.1.2.4.51": "jpeg",
    "1.2.840.10008.1.2.4.57": "jpeg",
    "1.2.840.10008.1.2.4.70": "jpeg",
    "1.2.840.10008.1.2.4.80": "jpegls",
    "1.2.840.10008.1.2.4.81": "jpegls",
    "1.2.840.10008.1.2.4.90": "jpeg2000",
    "1.2.840.10008.1.2.4.91": "jpeg2000",
    "1.2.840.10008.1.2.4.201": "jpeg2000",
    "1.2.840.10008.1.2.4.202": "jpeg2000",
    "1.2.840.10008.1.2.4.203": "jpeg2000",
}
"""Transfer syntaxes of one codestream a frame: JPEG, JPEG-LS, JPEG 2000 and High-Throughput JPEG 2000."""

_MAX_TRAILING = 4096
# An element's first values are looked at, and a text's beginning: nothing that is read here has more.
_MAX_VALUES = 16
_MAX_TEXT = 64 * _MAX_VALUES
_MAX_DIGITS = 32  # of an integer
_VIEW_CODES = {
    # CID 4010: SNOMED CT, and the SNOMED RT codes it replaced.
    "399348003": "AP",
    "R-10206": "AP",
    "272479007": "PA",
    "R-40888": "PA",
    "R-10214": "PA",
    "399173006": "LL",
    "R-10236": "LL",
    "399198007": "RL",
    "R-10232": "RL",
    "399067008": "LATERAL",
    "R-102CD": "LATERAL",
}


def read_dicom(content: bytes, reading: Reading = DEFAULT_READING) -> Radiograph:
    """Read a film from the content of a DICOM file.

    Raises
    ------
    InputError
        ``input.truncated``, ``input.corrupt``, ``input.too_large``, ``input.unsupported``, ``input.colour``,
        ``input.multi_frame`` or ``input.no_pixels``.
    """
    found = elements.split(content, reading)
    header = _Header(found.dataset, little=found.little, reading=reading)
    pixels = found.pixels
    if pixels is not None and pixels.encapsulated and found.syntax in NATIVE:
        raise InputError("input.corrupt", "the pixel data are encapsulated, the transfer syntax is native")
    return _film(
        header,
        None if pixels is None else _Source(pixels.tag, pixels.vr, pixels.value, found.syntax, found.little, True),
        found.warnings,
        reading,
    )


def read_dataset(dataset: Any, reading: Reading = DEFAULT_READING) -> Radiograph:
    """Read a film from a pydicom Dataset, which is left as it is.

    Values that the Dataset has not converted yet are read raw, so pydicom neither warns nor changes the Dataset.

    Raises
    ------
    InputError
        As `read_dicom`.
    """
    syntax, little = _dataset_encoding(dataset)
    header = _Header(dataset, little=little, reading=reading)
    source: _Source | None = None
    for tag in sorted(elements.PIXEL_TAGS):
        element = header.element(tag)
        if element is not None:
            value = element.value
            if not isinstance(value, (bytes, bytearray)):
                raise InputError("input.unsupported", "Pixel Data are not held as bytes")
            source = _Source(tag, _vr(element), memoryview(value), syntax, little, False)
    return _film(_without_pixels(header), source, (), reading)


@dataclass(frozen=True)
class _Source:
    """Undecoded pixels and how they are encoded."""

    tag: int
    vr: str | None
    value: memoryview
    syntax: str
    little: bool
    from_file: bool


def _dataset_encoding(dataset: Any) -> tuple[str, bool]:
    meta = getattr(dataset, "file_meta", None)
    syntax = ""
    if meta is not None:
        syntax = "".join(_Header(meta, little=True).texts(0x00020010)[:1])
    if syntax:
        return syntax, syntax != elements.EXPLICIT_BIG
    _, little = getattr(dataset, "original_encoding", (None, None))
    return (elements.EXPLICIT_BIG, False) if little is False else (elements.EXPLICIT_LITTLE, True)


def _without_pixels(header: _Header) -> _Header:
    """Return the header over a new Dataset without pixels; elements are shared, not copied."""
    from pydicom.dataset import Dataset

    old = header.dataset
    new = Dataset({tag: old.get_item(tag, keep_deferred=True) for tag in old.keys() if tag < 0x7FE00000})  # noqa: SIM118
    implicit, little = old.original_encoding
    new.set_original_encoding(implicit, little, old.original_character_set)
    meta = getattr(old, "file_meta", None)
    if meta is not None:
        new.file_meta = meta
    return _Header(new, little=header.little, reading=header.reading)


# --- values -----------------------------------------------------------------------------------------------------------


def _vr(element: Any) -> str | None:
    vr = element.VR
    return None if vr is None else str(vr)


_FORMATS = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "FL": "f", "FD": "d"}


class _Header:
    """Values of a Dataset, converted here from raw elements, or taken as pydicom has converted them."""

    def __init__(self, dataset: Any, *, little: bool, reading: Reading = DEFAULT_READING) -> None:
        self.dataset = dataset
        self.little = little
        self.reading = reading

    def element(self, tag: int) -> Any:
        """Return the element, None where there is none."""
        try:
            return self.dataset.get_item(tag)
        except (OSError, ValueError, KeyError, AttributeError, NotImplementedError, EOFError, struct.error):
            raise InputError("input.unreadable", "a deferred element of the Dataset cannot be read") from None

    def values(self, tag: int, default_vr: str) -> list[Any]:
        """Return the first values: strings or numbers, unchecked."""
        element = self.element(tag)
        if element is None or element.value is None:
            return []
        value = element.value
        if isinstance(value, (bytes, bytearray)):
            vr = _vr(element)
            code = _FORMATS.get(default_vr if vr in (None, "UN", "OW", "OB", "US or SS") else str(vr))
            if code is not None:
                number = min(len(value) // struct.calcsize("<" + code), _MAX_VALUES)
                return list(struct.unpack_from(f"{'<' if self.little else '>'}{number}{code}", value))
            if not value:
                return []
            value = value[:_MAX_TEXT].decode("latin-1")
        if isinstance(value, str):
            return value[:_MAX_TEXT].split("\\")[:_MAX_VALUES]
        return list(itertools.islice(value, _MAX_VALUES)) if hasattr(value, "__iter__") else [value]

    def texts(self, tag: int) -> list[str]:
        """Return the values as stripped strings; an empty element has none."""
        found = [str(value)[:_MAX_TEXT].strip(" \0\t\r\n") for value in self.values(tag, "LO")]
        return found if any(found) else []

    def text(self, tag: int) -> str | None:
        """Return the first value as an upper-case string, None where empty."""
        found = self.texts(tag)
        return found[0].upper() if found and found[0] else None

    def integers(self, tag: int) -> list[int]:
        """Return the values as integers; those that are none are left out."""
        return [number for value in self.values(tag, "US") if (number := _integer(value)) is not None]

    def integer(self, tag: int) -> int | None:
        """Return the first value as an integer."""
        found = self.integers(tag)
        return found[0] if found else None

    def floats(self, tag: int) -> list[float]:
        """Return the values as floats, NaN for those that are none."""
        return [_float(value) for value in self.values(tag, "DS")]

    def items(self, tag: int) -> list[_Header]:
        """Return the first items of a sequence."""
        element = self.element(tag)
        if element is None or element.value is None:
            return []
        value = element.value
        if isinstance(value, (bytes, bytearray)):
            implicit = _vr(element) is None
            value = elements.split_sequence(bytes(value), implicit=implicit, little=self.little, reading=self.reading)
        first = itertools.islice(value, _MAX_VALUES)
        return [_Header(item, little=self.little, reading=self.reading) for item in first]


def _integer(value: Any) -> int | None:
    try:
        return int(str(value)[:_MAX_DIGITS].strip(" \0"))
    except ValueError:
        return None


def _float(value: Any) -> float:
    try:
        return float(str(value)[:_MAX_TEXT].strip(" \0"))
    except ValueError:
        return math.nan


# --- the film ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bits:
    """Bits Allocated, Bits Stored, High Bit and Pixel Representation."""

    allocated: int
    stored: int
    high: int
    signed: bool

    @property
    def range(self) -> tuple[int, int]:
        """Lowest and highest stored value."""
        if self.signed:
            return -(1 << (self.stored - 1)), (1 << (self.stored - 1)) - 1
        return 0, (1 << self.stored) - 1


def _film(header: _Header, source: _Source | None, assumed: tuple[str, ...], reading: Reading) -> Radiograph:
    warnings = list(assumed)
    photometric = _check_one_gray_frame(header, source)
    assert source is not None  # noqa: S101 - just checked
    rows, columns = header.integer(0x00280010), header.integer(0x00280011)
    if rows is None or columns is None:
        raise InputError("input.corrupt", "Rows or Columns is missing")
    bits = _bits(header, warnings)
    reading.limits.check_size(rows, columns, bits.allocated // 8)
    pixels, actual = _pixels(header, source, rows, columns, bits, warnings, reading)
    padding = _padding(header, bits, warnings)
    display = _display(header, pixels, bits, actual, padding, warnings)
    shape = header.text(0x20500020)
    if shape in ("IDENTITY", "INVERSE") and (shape == "INVERSE") != (photometric == "MONOCHROME1"):
        warnings.append(
            f"polarity.contradiction: Presentation LUT Shape {shape} with {photometric}; the latter decides"
        )
    spacing, spacing_source = _spacing(header, warnings)
    intent = header.text(0x00080068)
    return Radiograph(
        pixels=pixels,
        display=replace(display, invert=photometric == "MONOCHROME1"),
        origin="dicom",
        pixel_spacing=spacing,
        spacing_source=spacing_source,
        patient_orientation=_orientation(header, warnings),
        view=_view(header),
        modality=header.text(0x00080060),
        sop_class_uid=header.text(0x00080016),
        body_part=header.text(0x00180015),
        presentation_intent=intent,
        photometric=photometric,
        laterality=header.text(0x00200062) or header.text(0x00200060),
        age=_age(header),
        warnings=_one_of_each(warnings),
        dataset=header.dataset,
    )


def _one_of_each(warnings: list[str]) -> tuple[str, ...]:
    """Return the first warning of each code: a film chooses how often a code comes, not how long a result is."""
    first: dict[str, str] = {}
    for warning in warnings:
        first.setdefault(warning.partition(":")[0], warning)
    return tuple(first.values())


def _check_one_gray_frame(header: _Header, source: _Source | None) -> str:
    """Refuse what is not one gray frame with pixels; return the Photometric Interpretation."""
    if source is None:
        raise InputError("input.no_pixels", "the DICOM object has no pixel data")
    if source.tag != elements.PIXEL_DATA:
        raise InputError("input.unsupported", "floating-point pixel data are not read")
    photometric = header.text(0x00280004)
    samples = header.integer(0x00280002)
    if samples not in (None, 1) or photometric not in (None, "MONOCHROME1", "MONOCHROME2"):
        raise InputError("input.colour", "the DICOM object has colour: more than one sample, or not MONOCHROME")
    if photometric is None:
        raise InputError("input.corrupt", "Photometric Interpretation is missing")
    frames = header.integer(0x00280008)
    if frames is not None and frames > 1:
        raise InputError("input.multi_frame", f"the DICOM object has {frames} frames")
    if frames is not None and frames < 1:
        raise InputError("input.corrupt", f"the DICOM object declares {frames} frames")
    return photometric


def _bits(header: _Header, warnings: list[str]) -> _Bits:
    allocated = header.integer(0x00280100)
    if allocated is None:
        raise InputError("input.corrupt", "Bits Allocated is missing")
    if allocated not in (8, 16):
        raise InputError("input.unsupported", f"Bits Allocated is {allocated}; 8 and 16 are read")
    stored = header.integer(0x00280101)
    stored = allocated if stored is None else stored
    if not 1 <= stored <= allocated:
        raise InputError("input.corrupt", f"Bits Stored {stored} of {allocated} allocated")
    high = header.integer(0x00280102)
    high = stored - 1 if high is None else high
    if not stored - 1 <= high < allocated:
        warnings.append(f"bits.high_bit: High Bit {high} is impossible, {stored - 1} used")
        high = stored - 1
    representation = header.integer(0x00280103) or 0
    if representation not in (0, 1):
        raise InputError("input.corrupt", f"Pixel Representation is {representation}")
    return _Bits(allocated, stored, high, representation == 1)


# --- pixels -----------------------------------------------------------------------------------------------------------


def _pixels(
    header: _Header, source: _Source, rows: int, columns: int, bits: _Bits, warnings: list[str], reading: Reading
) -> tuple[Array, _Bits]:
    """Return the stored values, and the bits they really have."""
    if source.syntax in NATIVE:
        raw = _native(source, rows, columns, bits, warnings)
        return _stored(raw, bits, header, warnings), bits
    family = CODESTREAMS.get(source.syntax)
    if family is None and source.syntax != RLE:
        raise InputError("input.unsupported", f"transfer syntax {source.syntax[:64]} is not read")
    data = _one_frame(source, reading)
    if family is None:
        return _stored(_rle(data, rows, columns, bits, reading), bits, header, warnings), bits
    found = codestream.measure(data, family, reading.limits)
    if found.components != 1:
        raise InputError("input.colour", f"the codestream has {found.components} components")
    if (found.rows, found.columns) != (rows, columns):
        raise InputError(
            "input.corrupt",
            f"the codestream has {found.rows} x {found.columns} pixels, the header says {rows} x {columns}",
        )
    if found.precision > bits.allocated:
        raise InputError(
            "input.corrupt", f"the codestream has {found.precision} bits, the header allocates {bits.allocated}"
        )
    if found.precision != bits.stored:
        warnings.append(
            f"bits.codestream: the codestream has {found.precision} bits, Bits Stored is {bits.stored}; "
            "the codestream decides"
        )
    raw = codestream.decode(data, family, found, reading)
    actual = replace(bits, stored=found.precision, high=found.precision - 1)
    return _signed_as_declared(raw, found.precision, bits), actual


def _one_frame(source: _Source, reading: Reading) -> bytes:
    table, parts = elements.fragments(source.value, to_delimiter=source.from_file, reading=reading)
    if len(table) > 4:
        raise InputError("input.multi_frame", "the offset table lists more than one frame")
    if not parts:
        raise InputError("input.truncated", "the encapsulated pixel data hold no fragment")
    return b"".join(parts)


def _native(source: _Source, rows: int, columns: int, bits: _Bits, warnings: list[str]) -> Array:
    size = rows * columns * bits.allocated // 8
    value = source.value
    if value.nbytes < size:
        raise InputError("input.truncated", f"the pixel data have {value.nbytes} of {size} bytes")
    excess = value.nbytes - size
    if excess > _MAX_TRAILING:
        raise InputError("input.corrupt", f"the pixel data have {excess} bytes more than Rows x Columns")
    if excess > 1:
        warnings.append(f"pixels.trailing: {excess} bytes follow the pixels")
    if bits.allocated == 8:
        if source.little or source.vr != "OW":
            return np.frombuffer(value, np.uint8, rows * columns).reshape(rows, columns)
        # Big-endian words of two pixels each.
        words = np.frombuffer(value, ">u2", value.nbytes // 2).astype("<u2")
        if words.nbytes < size:
            raise InputError("input.truncated", "the last word of pixels is cut")
        return words.view(np.uint8)[: rows * columns].reshape(rows, columns)
    raw = np.frombuffer(value, "<u2" if source.little else ">u2", rows * columns).reshape(rows, columns)
    return np.require(raw, np.uint16, ["A", "C"])


def _rle(data: bytes, rows: int, columns: int, bits: _Bits, reading: Reading) -> Array:
    """Decode DICOM RLE (PS3.5 annex G): one PackBits segment a byte, most significant first."""
    planes = bits.allocated // 8
    if len(data) < 64:
        raise InputError("input.truncated", "the RLE data end inside their header")
    count, *offsets = struct.unpack_from("<16L", data)
    if count != planes:
        raise InputError("input.corrupt", f"the RLE data have {count} segments, {planes} expected")
    bounds = [*offsets[:planes], len(data)]
    if bounds[0] < 64 or any(low >= high for low, high in itertools.pairwise(bounds)):
        raise InputError("input.truncated", "an RLE segment lies outside the data")
    size = rows * columns
    result = np.empty((rows, columns, planes), np.uint8)
    for plane in range(planes):
        segment = data[bounds[plane] : bounds[plane + 1]]
        decoded = reading.decoded("packbits", segment, most=size, size=size)
        if len(decoded) < size:
            raise InputError("input.truncated", f"an RLE segment holds {len(decoded)} of {size} bytes")
        # The most significant byte comes first; in memory it comes last.
        little_plane = planes - 1 - plane
        result[..., little_plane] = decoded[:size].reshape(rows, columns)
    return result[..., 0] if planes == 1 else result.view("<u2")[..., 0].astype(np.uint16, copy=False)


def _stored(raw: Array, bits: _Bits, header: _Header, warnings: list[str]) -> Array:
    """Cut the stored bits out of native pixels: shift to High Bit, mask, extend the sign."""
    unsigned = cast("npt.NDArray[np.uint16]", raw)
    shift = bits.high + 1 - bits.stored
    if shift:
        unsigned = unsigned >> np.array(shift, unsigned.dtype)
    mask = (1 << bits.stored) - 1
    unused = bits.stored + shift < bits.allocated
    if bits.signed:
        return _extend(unsigned, bits.stored)
    if unused and int(unsigned.max()) > mask:
        if not _has_overlay(header):
            warnings.append(f"bits.masked: bits above the {bits.stored} stored are set and ignored")
        unsigned = unsigned & np.array(mask, unsigned.dtype)
    return unsigned


def _has_overlay(header: _Header) -> bool:
    """Say whether overlays are stored in unused bits of the pixels (retired, still met)."""
    return any(header.integer(group << 16 | 0x0102) for group in range(0x6000, 0x6020, 2))


def _extend(unsigned: Array, bits: int) -> Array:
    """Read the low `bits` as two's complement."""
    words = unsigned.astype(np.uint16)
    shift = np.array(16 - bits, np.uint16)
    return cast("Array", (words << shift).view(np.int16) >> shift.view(np.int16))


def _signed_as_declared(raw: Array, precision: int, bits: _Bits) -> Array:
    """Give decoded samples the signedness that Pixel Representation declares.

    Only JPEG 2000 codestreams know signed samples; elsewhere signed pixels travel as two's complement.
    """
    if raw.dtype.kind == "i":
        if bits.signed:
            return raw.astype(np.int16, copy=False)
        mask = np.array((1 << precision) - 1, np.uint16)
        words = raw.astype(np.int16).view(np.uint16) & mask
        return words.astype(np.uint8) if precision <= 8 else words
    if not bits.signed:
        return raw
    # A codestream of all allocated bits around values of Bits Stored, without sign extension.
    width = bits.stored if bits.stored < precision and int(raw.max()) < 1 << bits.stored else precision
    return _extend(raw, width)


# --- display ----------------------------------------------------------------------------------------------------------


def _padding(header: _Header, bits: _Bits, warnings: list[str]) -> tuple[int, int] | None:
    found: list[int] = []
    for tag in (0x00280120, 0x00280121):
        value = header.integer(tag)
        if value is None:
            break
        if bits.signed:
            value = (value + 0x8000 & 0xFFFF) - 0x8000  # written as US by some
        found.append(value)
    if not found:
        return None
    low, high = min(found), max(found)
    if high < bits.range[0] or low > bits.range[1]:
        warnings.append("pixel_padding.outside: Pixel Padding Value is no stored value; ignored")
        return None
    return low, high


def _display(
    header: _Header,
    pixels: Array,
    bits: _Bits,
    actual: _Bits,
    padding: tuple[int, int] | None,
    warnings: list[str],
) -> Display:
    modality_lut, slope, intercept = _modality(header, bits, warnings)
    if modality_lut is None:
        ends = sorted(value * slope + intercept for value in actual.range)
    else:
        ends = [float(modality_lut.entries.min()), float(modality_lut.entries.max())]
    # A VOI made for the declared bits does not fit values of a codestream with fewer.
    ceiling = ends[1] + (ends[1] - ends[0]) if actual.stored < bits.stored else math.inf
    voi: Window | LookupTable | None = _voi_lut(header, signed=ends[0] < 0, ceiling=ceiling, warnings=warnings)
    if voi is None:
        voi = _window(header, ceiling, warnings)
    if voi is None and modality_lut is None and actual.stored == 8:
        # Eight bits were made to be shown, and images of eight bits are shown whole as well.
        voi = Window.from_range(*ends)
        warnings.append("window.full_range: the file states no usable window, its 8 bits are shown whole")
    if voi is None:
        voi = _estimated(pixels, modality_lut, slope, intercept, padding)
        warnings.append("window.estimated: the file states no usable window, percentiles 0.1 and 99.9 used")
    return Display(voi=voi, slope=slope, intercept=intercept, modality_lut=modality_lut, padding=padding)


def _estimated(
    pixels: Array,
    modality_lut: LookupTable | None,
    slope: float,
    intercept: float,
    padding: tuple[int, int] | None,
) -> Window:
    if modality_lut is None:
        low, high = sorted(value * slope + intercept for value in estimate_window(pixels, padding=padding))
        if not (math.isfinite(low) and math.isfinite(high) and high - low > 0):
            raise InputError("input.corrupt", "the rescale leaves no difference between the pixels")
        return Window.from_range(low, high)
    return Window.from_range(*bounds_of(modality_lut(sample_of(pixels, padding))))


def _modality(header: _Header, bits: _Bits, warnings: list[str]) -> tuple[LookupTable | None, float, float]:
    items = header.items(0x00283000)
    if items:
        table = _lookup_table(items[0], signed=bits.signed)
        if table is None:
            raise InputError("input.corrupt", "the Modality LUT contradicts its descriptor")
        entries, first, _ = table
        return LookupTable(entries, first), 1.0, 0.0
    slope, intercept = (header.floats(tag)[:1] for tag in (0x00281053, 0x00281052))
    numbers = [*(slope or [1.0]), *(intercept or [0.0])]
    if not all(math.isfinite(number) and abs(number) < 1e12 for number in numbers) or abs(numbers[0]) < 1e-12:
        warnings.append("rescale.ignored: Rescale Slope or Intercept is not usable")
        return None, 1.0, 0.0
    return None, numbers[0], numbers[1]


def _lookup_table(item: _Header, *, signed: bool) -> tuple[npt.NDArray[np.float64], int, int] | None:
    """Return entries, first value mapped and bits of a LUT item; None where they contradict each other."""
    descriptor = item.integers(0x00283002)
    element = item.element(0x00283006)
    if len(descriptor) != 3 or element is None or element.value is None:
        return None
    count, first, depth = (number & 0xFFFF for number in descriptor)
    count = count or 0x10000
    first = first - 0x10000 if signed and first >= 0x8000 else first
    value = element.value
    if isinstance(value, (bytes, bytearray)):
        entries = _entries(bytes(value), count, depth, little=item.little)
    else:
        entries = _numbers(value, count)
    if entries is None or entries.size < count or not 1 <= depth <= 16:
        return None
    return entries[:count].astype(np.float64), first, depth


def _numbers(value: Any, count: int) -> Array | None:
    """Return the first entries of a LUT that pydicom has converted."""
    try:
        return (
            np.array(list(itertools.islice(value, count)) if hasattr(value, "__iter__") else [value], np.int64) & 0xFFFF
        )
    except (ValueError, TypeError, OverflowError):  # text, or nothing that is a number
        return None


def _entries(data: bytes, count: int, depth: int, *, little: bool) -> Array | None:
    order = "<u2" if little else ">u2"
    if len(data) >= 2 * count:
        return np.frombuffer(data, order, count)
    if depth <= 8 and len(data) >= count:  # two entries a word
        words = np.frombuffer(data, order, len(data) // 2).astype("<u2")
        return np.concatenate([words.view(np.uint8), np.frombuffer(data[words.nbytes :], np.uint8)])
    return None


def _voi_lut(header: _Header, *, signed: bool, ceiling: float, warnings: list[str]) -> LookupTable | None:
    """Return the first VOI LUT with its output in [0, 1].

    The output is scaled by the descriptor's bits.  Two kinds of wrong bits are known and repaired, with a warning:
    entries that need more bits than declared, and entries that use, to at least nine tenths, the full range of a depth
    two or more bits smaller (12-bit data declared as 16), which would otherwise show the film almost black.
    """
    items = header.items(0x00283010)
    if not items:
        return None
    if len(items) > 1:
        warnings.append(f"voi.alternatives: {len(items)} VOI LUTs, the first used")
    table = _lookup_table(items[0], signed=signed)
    if table is None or table[1] > ceiling:
        warnings.append("voi.ignored: the VOI LUT contradicts its descriptor or the pixels")
        return None
    entries, first, depth = table
    highest = int(entries.max())
    needed = max(1, highest.bit_length())
    if needed > depth or (needed <= depth - 2 and needed >= 8 and highest >= 0.9 * ((1 << needed) - 1)):
        warnings.append(f"voi_lut.bits: the VOI LUT declares {depth} bits, its entries have {needed}")
        depth = needed
    if first + entries.size > ceiling:
        warnings.append("voi.ignored: the VOI LUT is made for more bits than the pixels have")
        return None
    return LookupTable(entries / ((1 << depth) - 1), first)


def _window(header: _Header, ceiling: float, warnings: list[str]) -> Window | None:
    centers, widths = header.floats(0x00281050), header.floats(0x00281051)
    stated = header.text(0x00281056) or "LINEAR"
    if stated not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        warnings.append("voi.function: unknown VOI LUT Function, taken as LINEAR")
        stated = "LINEAR"
    pairs = list(zip(centers, widths, strict=False))
    for index, (center, width) in enumerate(pairs):
        try:
            window = Window(center, width, cast("VoiFunction", stated))
        except ValueError:
            warnings.append("voi.ignored: a window is not usable")
            continue
        if window.bounds[1] > ceiling:
            warnings.append("voi.ignored: the window is made for more bits than the pixels have")
            continue
        if len(pairs) > 1:
            warnings.append(f"voi.alternatives: {len(pairs)} windows, number {index + 1} used")
        return window
    return None


# --- acquisition ------------------------------------------------------------------------------------------------------


def _spacing(header: _Header, warnings: list[str]) -> tuple[tuple[float, float] | None, str | None]:
    for tag, name in ((0x00280030, "PixelSpacing"), (0x00181164, "ImagerPixelSpacing")):
        values = header.floats(tag)
        if not values:
            continue
        if len(values) == 2 and all(math.isfinite(value) and 0 < value < 100 for value in values):
            return (values[0], values[1]), name
        warnings.append(f"spacing.ignored: {name} is not two positive numbers")
    return None, None


def _orientation(header: _Header, warnings: list[str]) -> tuple[str, str] | None:
    values = [value.upper() for value in header.texts(0x00200020)]
    if not values:
        return None
    if len(values) == 2 and all(re.fullmatch(r"[ALRPHF]{1,3}", value) for value in values):
        return values[0], values[1]
    warnings.append("orientation.ignored: Patient Orientation is not two directions")
    return None


def _view(header: _Header) -> str | None:
    """Return View Position, else the view that View Code Sequence names (CID 4010)."""
    view = header.text(0x00185101)
    if view is not None:
        return view
    for item in header.items(0x00540220):
        code = item.text(0x00080100)
        if code in _VIEW_CODES:
            return _VIEW_CODES[code]
    return None


def _age(header: _Header) -> float | None:
    """Return the age in years: Patient's Age, else from the birth date to the study's."""
    match = re.fullmatch(r"(\d{1,3})([DWMY])", header.text(0x00101010) or "")
    if match and int(match[1]):
        return int(match[1]) / {"D": 365.25, "W": 365.25 / 7, "M": 12, "Y": 1}[match[2]]
    born = _date(header.text(0x00100030))
    taken = _date(header.text(0x00080020)) or _date(header.text(0x00080022)) or _date(header.text(0x00080023))
    if born is None or taken is None or not 0 <= (taken - born).days < 150 * 366:
        return None
    return (taken - born).days / 365.25


def _date(text: str | None) -> date | None:
    match = re.fullmatch(r"(\d{4})\.?(\d{2})\.?(\d{2})", text or "")
    try:
        return date(*(int(part) for part in match.groups())) if match else None
    except ValueError:
        return None
