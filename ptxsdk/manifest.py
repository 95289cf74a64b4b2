"""Manifest: what an engine file says of itself; frozen, strictly validated; see docs/engine-format.md."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import json
import math
import re
import types
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ptxsdk.errors import EngineError

FORMAT_VERSION = 2
MAX_MANIFEST_BYTES = 1 << 20
MAX_ENTRY_BYTES = 1 << 30
MAX_DEPTH = 12
MAX_SECURITY_VERSION = 2**31 - 1
ENTRY_NAME = re.compile(r"(?=.{1,100}\Z)[a-z0-9_][a-z0-9_.-]*(/[a-z0-9_][a-z0-9_.-]*)*\Z")

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

Arithmetic = Literal["fp32", "bf16", "fp16", "int8"]
"""What a device may run a network in: its own precision, or bf16 for the fp32 network where the CPU has it."""


class RuleError(ValueError):
    """A value breaks a rule of the manifest.

    Attributes
    ----------
    path : str
        Which value, e.g. "aggregation.k".
    why : str
        What is wrong with it.
    """

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


class _Within:
    """A number's interval; `ends` says in the usual notation which ends belong to it."""

    def __init__(self, low: float, high: float, ends: str = "[]") -> None:
        self.low, self.high, self.ends = low, high, ends

    def broken(self, value: Any) -> str | None:
        low = value >= self.low if self.ends[0] == "[" else value > self.low
        high = value <= self.high if self.ends[1] == "]" else value < self.high
        interval = f"{self.ends[0]}{self.low}, {self.high}{self.ends[1]}"
        return None if low and high else f"{value} is not in {interval}"


class _Shaped:
    """A string's form as a regular expression over all of it."""

    def __init__(self, pattern: str, what: str) -> None:
        self.pattern, self.what = re.compile(pattern), what

    def broken(self, value: Any) -> str | None:
        return None if self.pattern.fullmatch(value) else f"{value[:60]!r} is not {self.what}"


class _Day:
    """A calendar day."""

    def broken(self, value: Any) -> str | None:
        try:
            dt.date.fromisoformat(value if re.fullmatch(r"\d{4}-\d{2}-\d{2}", value, re.ASCII) else "")
        except ValueError:
            return f"{value[:60]!r} is not a date YYYY-MM-DD"
        return None


Number = float
Positive = Annotated[float, _Within(0, math.inf, "()")]
Unit = Annotated[float, _Within(0, 1)]
InsideUnit = Annotated[float, _Within(0, 1, "()")]
Count = Annotated[int, _Within(1, 10**9)]
Side = Annotated[int, _Within(1, 8192)]
Size = tuple[Side, Side]
Text = Annotated[str, _Shaped(r"(?s)(?=.*\S).{1,20000}", "a text")]
Name = Annotated[str, _Shaped(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}", "a name of letters, digits and ._-")]
Label = Annotated[str, _Shaped(r"[a-z0-9][a-z0-9_-]{0,63}", "a label of a-z, 0-9, _ and -")]
Version = Annotated[str, _Shaped(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,63}", "a version")]
TensorName = Annotated[str, _Shaped(r"[A-Za-z_][A-Za-z0-9_.]{0,63}", "a tensor name")]
EntryName = Annotated[str, _Shaped(ENTRY_NAME.pattern, "an entry name")]
SecurityVersion = Annotated[int, _Within(1, MAX_SECURITY_VERSION)]
Sha256 = Annotated[str, _Shaped(r"[0-9a-f]{64}", "a SHA-256 in lower-case hexadecimals")]


@dataclass(frozen=True)
class Record:
    """Base of the manifest's parts: construction checks every field and raises RuleError.

    A field whose type admits None MAY be left out of the JSON; every other MUST be there.
    """

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():
            object.__setattr__(self, name, _decode(getattr(self, name), hint, name))
        for path, why in self._broken():
            raise RuleError(path, why)

    def _broken(self) -> Iterator[tuple[str, str]]:
        """Yield ``(path, why)`` of every rule between fields that is broken."""
        yield from ()

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form in plain types."""
        encoded: dict[str, Any] = _encode(self)
        return encoded


R = TypeVar("R", bound=Record)


@dataclass(frozen=True, kw_only=True)
class InputSpec(Record):
    """The network's input: one film, shape ``(1, 1, rows, columns)``, ``(display value - mean) / std``.

    Attributes
    ----------
    size : tuple of int
        ``(rows, columns)``.
    mean, std : float
        Normalisation of display values in [0, 1].
    name, channels, layout
        Fixed by the format.
    padding : int
        Display value outside the film, before normalisation; fixed by the format.
    preprocess : str
        The op and the revision of its result that the network was trained with.
    """

    size: Size
    mean: Number
    std: Positive
    name: Literal["image"] = "image"
    channels: Literal[1] = 1
    layout: Literal["NCHW"] = "NCHW"
    padding: Literal[0] = 0
    preprocess: Literal["ptxsdk.ops.preprocess 1"] = "ptxsdk.ops.preprocess 1"


@dataclass(frozen=True, kw_only=True)
class PatchOutput(Record):
    """The patch logits, shape ``(1, rows, columns)`` of `grid`."""

    grid: Size
    name: TensorName = "patch_logits"


@dataclass(frozen=True, kw_only=True)
class MaskOutput(Record):
    """The mask logits, shape ``(1, rows, columns)`` of `size`, which is the input's."""

    size: Size
    name: TensorName = "mask_logits"


@dataclass(frozen=True, kw_only=True)
class OutputSpec(Record):
    """The network's two outputs."""

    patch_logits: PatchOutput
    mask_logits: MaskOutput

    def _broken(self) -> Iterator[tuple[str, str]]:
        if self.patch_logits.name == self.mask_logits.name:
            yield "mask_logits.name", "both outputs have one name"


@dataclass(frozen=True, kw_only=True)
class Aggregation(Record):
    """How logits become the image score, as `ptxsdk.ops.aggregate` does it.

    Attributes
    ----------
    method : {"noisy_or", "paper_098", "top_k", "max"}
        The score.
    source : {"patch", "mask"}
        The logits it is made of.
    k : int or None
        How many logits "top_k" pools; None for the other methods.
    """

    method: Literal["noisy_or", "paper_098", "top_k", "max"]
    source: Literal["patch", "mask"] = "patch"
    k: Count | None = None

    def _broken(self) -> Iterator[tuple[str, str]]:
        if (self.k is not None) != (self.method == "top_k"):
            yield "k", f"belongs to method 'top_k' and only there, the method is {self.method!r}"


@dataclass(frozen=True, kw_only=True)
class RegionRules(Record):
    """How the mask becomes regions: connected pixels at `low` that hold a pixel at `high`.

    Attributes
    ----------
    high, low : float
        Mask probabilities, ``0 < low <= high < 1``.
    min_area : int
        Smallest region in pixels of the mask.
    """

    high: InsideUnit
    low: InsideUnit
    min_area: Annotated[int, _Within(0, 10**9)]

    def _broken(self) -> Iterator[tuple[str, str]]:
        if self.low > self.high:
            yield "low", f"{self.low} is above high, {self.high}"


@dataclass(frozen=True, kw_only=True)
class Calibration(Record):
    """From the image score's logit to the probability: ``sigmoid(scale * logit + bias)`` (Platt 1999).

    Attributes
    ----------
    scale, bias : float
        Fitted on `data`; ``scale > 0`` keeps the order of films.
    data : str
        What it was fitted on.
    n : int
        Number of films.
    """

    scale: Positive
    bias: Number
    data: Text
    n: Count
    method: Literal["platt"] = "platt"

    def probability(self, logit: float) -> float:
        """Return the calibrated probability of an image score's logit."""
        z = self.scale * logit + self.bias
        return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(max(z, -745.0)) / (1 + math.exp(max(z, -745.0)))


@dataclass(frozen=True, kw_only=True)
class Estimate(Record):
    """A measured proportion with its 95 % interval and the number of films."""

    value: Unit
    low: Unit
    high: Unit
    n: Count

    def _broken(self) -> Iterator[tuple[str, str]]:
        if not self.low <= self.value <= self.high:
            yield "value", f"{self.value} is not in the interval {self.low}..{self.high}"


@dataclass(frozen=True, kw_only=True)
class MeasuredPoint(Record):
    """A named threshold on the calibrated probability, as measured when it was frozen.

    Attributes
    ----------
    name : str
        e.g. "balanced".
    threshold : float
        A film is flagged at ``probability >= threshold``.
    sensitivity, specificity : Estimate
        On `data`.
    data : str
        What it was measured on.
    """

    name: Label
    threshold: InsideUnit
    sensitivity: Estimate
    specificity: Estimate
    data: Text


@dataclass(frozen=True, kw_only=True)
class Metric(Record):
    """A measured value, e.g. "auc", with its 95 % interval, the number of films and the data or stratum.

    The interval of a biased measure (calibration error under the bootstrap) need not hold the value.
    """

    name: Label
    value: Number
    low: Number
    high: Number
    n: Count
    data: Text
    note: Text | None = None

    def _broken(self) -> Iterator[tuple[str, str]]:
        if self.low > self.high:
            yield "low", f"{self.low} is above high, {self.high}"


@dataclass(frozen=True, kw_only=True)
class DataSource(Record):
    """Data the network was trained on.

    Attributes
    ----------
    name : str
        The collection.
    n : int
        Number of films used.
    credit, licence : str
        Whom to thank, and the terms.
    """

    name: Text
    n: Count
    credit: Text
    licence: Text


@dataclass(frozen=True, kw_only=True)
class Provenance(Record):
    """Where the network comes from: data, version of the training code, its command and seed."""

    training_data: tuple[DataSource, ...]
    code_version: Text
    command: Text
    seed: Annotated[int, _Within(0, 2**63 - 1)]

    def _broken(self) -> Iterator[tuple[str, str]]:
        if not self.training_data:
            yield "training_data", "is empty"


@dataclass(frozen=True, kw_only=True)
class Network(Record):
    """One precision of the network: its entry and, where measured, its accuracy by metric name."""

    entry: EntryName
    accuracy: Mapping[Label, Number] | None = None


@dataclass(frozen=True, kw_only=True)
class Tolerance(Record):
    """Greatest absolute difference from a golden vector, in logits and in the probability."""

    logits: Positive
    probability: Positive


@dataclass(frozen=True, kw_only=True)
class Golden(Record):
    """One golden vector: a film and what the network makes of it.

    Attributes
    ----------
    name : str
        Unique in the engine.
    pixels : str
        Entry: uint8, shape (rows, columns), the film as stored.
    patch_logits, mask_logits : str
        Entries: float32 and float16, shapes as in the outputs, from the fp32 network.
    probability : float
        Calibrated probability of the film.
    credit : str
        Where the film is from, and its terms.
    tolerance : mapping of str to Tolerance
        For every precision in the engine.
    window : tuple of float
        ``(low, high)``: the stored values shown as black and as white.
    """

    name: Label
    pixels: EntryName
    patch_logits: EntryName
    mask_logits: EntryName
    probability: Unit
    credit: Text
    tolerance: Mapping[Arithmetic, Tolerance]
    window: tuple[Number, Number] = (0.0, 255.0)

    def _broken(self) -> Iterator[tuple[str, str]]:
        if self.window[0] >= self.window[1]:
            yield "window", f"{self.window} is not (low, high) with low < high"
        for part, entry in self.entries.items():
            if not (entry.startswith("golden/") and entry.endswith(".npy")):
                yield part, f"{entry!r} is not golden/*.npy"

    @property
    def entries(self) -> dict[str, str]:
        """Entry name of each part."""
        return {"pixels": self.pixels, "patch_logits": self.patch_logits, "mask_logits": self.mask_logits}


@dataclass(frozen=True, kw_only=True)
class Entry(Record):
    """Size in bytes and SHA-256 of one entry."""

    size: Annotated[int, _Within(0, MAX_ENTRY_BYTES)]
    sha256: Sha256


@dataclass(frozen=True, kw_only=True)
class Manifest(Record):
    """What an engine file says of itself.

    Attributes
    ----------
    name, version : str
        Of the model.
    created : str
        Day, YYYY-MM-DD.
    intended_use : str
        What the engine is for and what it is not for.
    input, outputs
        The network's tensors.
    aggregation, regions, calibration
        From the outputs to a probability and to regions.
    operating_points : tuple of MeasuredPoint
        At least one, names unique.
    default_operating_point : str
        One of them.
    metrics : tuple of Metric
        What was measured.
    provenance : Provenance
        Where the network comes from.
    networks : mapping of str to Network
        By precision, at least one; the entry is ``network/<precision>.onnx``.
    golden : tuple of Golden
        At least one.
    entries : mapping of str to Entry
        Every entry but the manifest and the signature; empty until the engine is written.
    security_version : int or None
        Raised by the vendor where older engines must not be used any more; None, which counts as 0, in format 1.
    format_version : int
        2 where there is a `security_version`, else 1: what an older ptxsdk can read stays as it was.
    not_a_medical_device
        Fixed.

    Raises
    ------
    RuleError
        A ValueError that names the value.
    """

    name: Name
    version: Version
    created: Annotated[str, _Day()]
    intended_use: Text
    input: InputSpec
    outputs: OutputSpec
    aggregation: Aggregation
    regions: RegionRules
    calibration: Calibration
    operating_points: tuple[MeasuredPoint, ...]
    default_operating_point: Label
    metrics: tuple[Metric, ...]
    provenance: Provenance
    networks: Mapping[Precision, Network]
    golden: tuple[Golden, ...]
    entries: Mapping[EntryName, Entry] = dataclasses.field(default_factory=dict)
    not_a_medical_device: Literal[True] = True
    security_version: SecurityVersion | None = None
    format_version: Literal[1, 2] = 1

    def _broken(self) -> Iterator[tuple[str, str]]:
        if (self.security_version is None) != (self.format_version == 1):
            yield "security_version", f"belongs to format 2 and only there, the format is {self.format_version}"
        yield from self._broken_outputs()
        yield from self._broken_points()
        for precision, network in self.networks.items():
            if network.entry != f"network/{precision}.onnx":
                yield f"networks.{precision}.entry", f"{network.entry!r} is not 'network/{precision}.onnx'"
        if not self.networks:
            yield "networks", "is empty"
        yield from self._broken_golden()
        if self.entries and self.entries.keys() != self.referenced():
            odd = sorted(self.entries.keys() ^ self.referenced())
            yield "entries", f"{odd[0]!r} is listed or referenced, but not both"

    def _broken_outputs(self) -> Iterator[tuple[str, str]]:
        rows, columns = self.input.size
        grid = self.outputs.patch_logits.grid
        if self.input.name in (self.outputs.patch_logits.name, self.outputs.mask_logits.name):
            yield "outputs", f"an output has the input's name {self.input.name!r}"
        if grid[0] > rows or grid[1] > columns:
            yield "outputs.patch_logits.grid", f"{grid} is finer than the input, {(rows, columns)}"
        if self.outputs.mask_logits.size != (rows, columns):
            yield "outputs.mask_logits.size", f"is not input.size, {(rows, columns)}"
        logits = grid[0] * grid[1] if self.aggregation.source == "patch" else rows * columns
        if self.aggregation.k is not None and self.aggregation.k > logits:
            yield "aggregation.k", f"{self.aggregation.k} is more than the {logits} logits"
        if self.regions.min_area > rows * columns:
            yield "regions.min_area", f"{self.regions.min_area} is more than the mask has pixels"

    def _broken_points(self) -> Iterator[tuple[str, str]]:
        names = [point.name for point in self.operating_points]
        if not names:
            yield "operating_points", "is empty"
        if len(set(names)) < len(names):
            yield "operating_points", f"names are not unique: {', '.join(names)}"
        if self.default_operating_point not in names:
            wanted = self.default_operating_point
            yield "default_operating_point", f"{wanted!r} is not one of: {', '.join(names)}"

    def _broken_golden(self) -> Iterator[tuple[str, str]]:
        if not self.golden:
            yield "golden", "is empty"
        if len({vector.name for vector in self.golden}) < len(self.golden):
            yield "golden", "names are not unique"
        files = [entry for vector in self.golden for entry in vector.entries.values()]
        if len(set(files)) < len(files):
            yield "golden", "an entry serves twice"
        for index, vector in enumerate(self.golden):
            stated = vector.tolerance.keys() - ({"bf16"} if "fp32" in self.networks else set())
            if stated != self.networks.keys():
                yield (
                    f"golden[{index}].tolerance",
                    f"has {sorted(vector.tolerance)}, the networks are {sorted(self.networks)}",
                )

    @property
    def scoring(self) -> dict[str, Any]:
        """Keyword arguments of `ptxsdk.ops.aggregate`: how logits become the image score and regions."""
        return {
            "method": self.aggregation.method,
            "k": self.aggregation.k or 1,
            "source": self.aggregation.source,
            **dataclasses.asdict(self.regions),
        }

    def referenced(self) -> set[str]:
        """Return the names of all entries that networks and golden vectors refer to."""
        names = {network.entry for network in self.networks.values()}
        return names.union(*(vector.entries.values() for vector in self.golden))

    def to_json(self) -> bytes:
        """Return the canonical JSON: UTF-8, keys sorted, indented by one space, a final newline."""
        text = json.dumps(self.to_dict(), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        return text.encode() + b"\n"

    @classmethod
    def from_json(cls, raw: bytes) -> Manifest:
        """Read a manifest.

        Parameters
        ----------
        raw : bytes
            Any JSON text with these values; it need not be canonical.

        Raises
        ------
        EngineError
            ``engine.too_large``, ``engine.format_version``, or ``engine.manifest`` naming the value.
        """
        plain = _parse(raw)
        version = plain.get("format_version")
        if type(version) is int and version > FORMAT_VERSION:
            raise EngineError(
                "engine.format_version",
                f"the engine has format version {version}, this ptxsdk reads versions 1 to {FORMAT_VERSION}",
            )
        try:
            manifest = _build(cls, plain)
        except RuleError as broken:
            raise EngineError("engine.manifest", f"manifest {broken}") from None
        if not manifest.entries:
            raise EngineError("engine.manifest", "manifest entries: is empty")
        return manifest


def _parse(raw: bytes) -> dict[str, Any]:
    """Parse bounded JSON: one object, no duplicate keys, no NaN or Infinity, bounded depth."""
    if len(raw) > MAX_MANIFEST_BYTES:
        raise EngineError("engine.too_large", f"the manifest has more than {MAX_MANIFEST_BYTES} bytes")
    depth = 0
    for bracket in re.finditer(rb"[][{}]", re.sub(rb'(?s)"(?:[^"\\]|\\.)*"', b"", raw)):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > MAX_DEPTH:
            raise EngineError("engine.manifest", f"the manifest nests deeper than {MAX_DEPTH}")
    try:
        plain = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_no_duplicates,
            parse_int=_bounded_int,
            parse_constant=_no_constant,
        )
    except ValueError as error:
        raise EngineError("engine.manifest", f"the manifest is not strict JSON: {str(error)[:200]}") from None
    if not isinstance(plain, dict):
        raise EngineError("engine.manifest", "the manifest is not a JSON object")
    return plain


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) < len(pairs):
        raise ValueError("a key occurs twice in an object")
    return plain


def _bounded_int(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


_hints: Callable[[Any], dict[str, Any]] = functools.cache(functools.partial(get_type_hints, include_extras=True))


def _optional(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _build(cls: type[R], plain: Mapping[str, Any]) -> R:
    """Make a record of a JSON object whose keys are exactly the fields, but for those that admit None."""
    hints = _hints(cls)
    for key in plain:
        if key not in hints:
            raise RuleError(key[:60] if key.isidentifier() else repr(key[:60]), "unknown key")
        if plain[key] is None:
            raise RuleError(key, "is null")
    for name, hint in hints.items():
        if name not in plain and not _optional(hint):
            raise RuleError(name, "is missing")
    return cls(**plain)


def _decode(value: Any, hint: Any, path: str) -> Any:
    """Return `value` as `hint` has it; raise RuleError where it is of another type or out of its range."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        decoded = _decode(value, arguments[0], path)
        for rule in arguments[1:]:
            why = rule.broken(decoded)
            if why:
                raise RuleError(path, why)
        return decoded
    if _optional(hint):
        return None if value is None else _decode(value, arguments[0], path)
    if origin is Literal:
        if any(type(value) is type(choice) and value == choice for choice in arguments):
            return value
        raise RuleError(path, f"{str(value)[:60]!r} is not {' or '.join(map(repr, arguments))}")
    if origin is tuple:
        return _decode_tuple(value, arguments, path)
    if origin is Mapping:
        return _decode_mapping(value, arguments, path)
    if issubclass(hint, Record):
        return _decode_record(value, hint, path)
    return _decode_scalar(value, hint, path)


def _decode_tuple(value: Any, hints: tuple[Any, ...], path: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise RuleError(path, f"is {type(value).__name__}, not a list")
    if hints[-1] is Ellipsis:
        hints = (hints[0],) * len(value)
    if len(value) != len(hints):
        raise RuleError(path, f"has {len(value)} values, not {len(hints)}")
    return tuple(
        _decode(item, hint, f"{path}[{index}]") for index, (item, hint) in enumerate(zip(value, hints, strict=True))
    )


def _decode_mapping(value: Any, hints: tuple[Any, ...], path: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RuleError(path, f"is {type(value).__name__}, not an object")
    decoded = {}
    for key, item in value.items():
        _decode(key, hints[0], path)
        decoded[key] = _decode(item, hints[1], f"{path}.{key}")
    return types.MappingProxyType(decoded)


def _decode_record(value: Any, cls: type[R], path: str) -> R:
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise RuleError(path, f"is {type(value).__name__}, not an object")
    try:
        return _build(cls, value)
    except RuleError as broken:
        raise RuleError(f"{path}.{broken.path}", broken.why) from None


def _decode_scalar(value: Any, kind: type, path: str) -> Any:
    accepted: Any = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or isinstance(value, bool):
        raise RuleError(path, f"is {type(value).__name__}, not {kind.__name__}")
    if isinstance(value, str):
        # Control, direction and surrogate characters could rewrite the terminal that shows the text.
        hidden = next((c for c in value if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs")), None)
        if hidden is not None:
            raise RuleError(path, f"holds the character U+{ord(hidden):04X}")
        return str(value)
    if kind is float and not abs(value) < 1e300:
        raise RuleError(path, "is not a finite number")
    return kind(value)


def _encode(value: Any) -> Any:
    if isinstance(value, Record):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {name: _encode(part) for name, part in parts.items() if part is not None}
    if isinstance(value, Mapping):
        return {key: _encode(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return [_encode(part) for part in value]
    return value
