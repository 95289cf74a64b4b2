"""The engine file: one canonical zip, verified whole before any of its bytes reaches a parser or a runtime.

The format is docs/engine-format.md; what the manifest inside says is `ptxsdk.manifest`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.resources
import os
import re
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ptxsdk.detection import EngineId
from ptxsdk.errors import EngineError
from ptxsdk.files import open_file, write_file
from ptxsdk.manifest import (
    ENTRY_NAME,
    MAX_MANIFEST_BYTES,
    PRECISIONS,
    Arithmetic,
    Entry,
    Golden,
    Manifest,
    Precision,
    RuleError,
    Tolerance,
)
from ptxsdk.onnx_weights import require_own_weights

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

MAX_ENGINE_BYTES = 1 << 30
MAX_ENTRIES = 256
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
DEFAULT_ENGINE = "clasegnet.ptxengine"


@dataclass(frozen=True, eq=False, kw_only=True)
class GoldenVector:
    """A film and what the network makes of it; the arrays are read-only.

    Attributes
    ----------
    name, credit : str
        Which film, and its source and terms.
    pixels : ndarray, shape (rows, columns), uint8
        The film as stored.
    window : tuple of float
        ``(low, high)``: the stored values shown as black and as white.
    patch_logits : ndarray, shape of ``outputs.patch_logits.grid``, float32
        From the fp32 network.
    mask_logits : ndarray, shape of ``outputs.mask_logits.size``, float16
        From the fp32 network, rounded.
    probability : float
        Calibrated probability.
    tolerance : mapping of str to Tolerance
        Greatest absolute differences by precision.
    """

    name: str
    credit: str
    pixels: npt.NDArray[np.uint8]
    window: tuple[float, float]
    patch_logits: npt.NDArray[np.float32]
    mask_logits: npt.NDArray[np.float16]
    probability: float
    tolerance: Mapping[Arithmetic, Tolerance]


@dataclass(frozen=True, eq=False, kw_only=True)
class Engine:
    """A verified engine; made by `Engine.open` only, immutable, safe to share between threads.

    Attributes
    ----------
    manifest : Manifest
        What the engine says of itself.
    sha256 : str
        Of the whole file.
    signature : {"none", "unchecked", "verified"}
        "unchecked": there is a signature, and no key was given to check it with.
    """

    manifest: Manifest = field(repr=False)
    sha256: str
    signature: Literal["none", "unchecked", "verified"]
    _data: bytes = field(repr=False)
    _contents: Mapping[str, slice] = field(repr=False)
    _golden: tuple[GoldenVector, ...] = field(repr=False)

    @classmethod
    def open(
        cls,
        source: str | os.PathLike[str] | bytes,
        *,
        trusted_keys: Sequence[bytes | Ed25519PublicKey] = (),
        require_signature: bool = False,
    ) -> Engine:
        """Read an engine into memory and verify all of it.

        Parameters
        ----------
        source : path or bytes
            The file, or its content, for example after decryption.
        trusted_keys : sequence of bytes or Ed25519PublicKey
            Ed25519 public keys, 32 raw bytes or PEM.  Where any is given, one of them must have signed.
        require_signature : bool
            Refuse to go on when `trusted_keys` is empty, so that a lost key list cannot switch the check off.

        Raises
        ------
        EngineError
            ``engine.not_found``, ``engine.unreadable``, ``engine.too_large``, ``engine.not_an_engine``,
            ``engine.corrupt``, ``engine.signature``, ``engine.format_version`` or ``engine.manifest``.
        """
        keys = _public_keys(trusted_keys)
        if require_signature and not keys:
            raise EngineError("engine.signature", "a signature is required, but no trusted key was given")
        data = _read(source)
        view = memoryview(data)
        contents = _contents(view)
        raw = bytes(view[contents[MANIFEST]])
        signature = bytes(view[contents[SIGNATURE]]) if SIGNATURE in contents else None
        if keys:
            _verify(raw, signature, keys)
        manifest = Manifest.from_json(raw)
        _check_entries(view, contents, manifest.entries)
        return cls(
            manifest=manifest,
            sha256=hashlib.sha256(data).hexdigest(),
            signature="none" if signature is None else "verified" if keys else "unchecked",
            _data=data,
            _contents=contents,
            _golden=tuple(_golden_vector(spec, manifest, view, contents) for spec in manifest.golden),
        )

    def verified(self, trusted_keys: Sequence[bytes | Ed25519PublicKey]) -> Engine:
        """Return this engine with its signature checked against `trusted_keys`.

        Raises
        ------
        EngineError
            ``engine.signature``: no key given, no signature, or by none of the keys.
        """
        return Engine.open(self._data, trusted_keys=trusted_keys, require_signature=True)

    @property
    def id(self) -> EngineId:
        """Name, version and SHA-256, as a Detection carries them."""
        return EngineId(self.manifest.name, self.manifest.version, self.sha256)

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions the engine has a network in, most exact first."""
        return tuple(precision for precision in PRECISIONS if precision in self.manifest.networks)

    @property
    def gated(self) -> tuple[Precision, ...]:
        """The most exact precision, and those whose accuracy was measured: a build writes none that fails its gate."""
        first, *others = self.precisions
        return (first, *(each for each in others if "farthest_flip" in (self.manifest.networks[each].accuracy or {})))

    @property
    def security_version(self) -> int:
        """What devices compare to refuse older engines; 0 where the manifest has none."""
        return self.manifest.security_version or 0

    def network(self, precision: Precision) -> bytes:
        """Return the ONNX network of a precision.

        Raises
        ------
        EngineError
            ``engine.precision``: the engine has none; ``engine.corrupt``: it takes weights from outside, or is no ONNX.
        """
        network = self.manifest.networks.get(precision)
        if network is None:
            there = ", ".join(self.precisions)
            raise EngineError("engine.precision", f"no {precision!r} network in the engine, there is {there}")
        content = self._data[self._contents[network.entry]]
        require_own_weights(content)
        return content

    def golden(self) -> tuple[GoldenVector, ...]:
        """Return the golden vectors, for the self-test."""
        return self._golden

    def manifest_bytes(self) -> bytes:
        """Return the manifest as it is in the file, which is what a signature is made over."""
        return self._data[self._contents[MANIFEST]]

    def entries(self) -> dict[str, bytes]:
        """Return a copy of every entry the manifest lists, to write a changed engine with `write_engine`."""
        return {name: self._data[self._contents[name]] for name in self.manifest.entries}

    @staticmethod
    def default_path() -> Path:
        """Return where the engine is that ships in the wheel.

        Raises
        ------
        EngineError
            ``engine.not_found``: this installation ships none.
        """
        path = importlib.resources.files("ptxsdk") / "models" / DEFAULT_ENGINE
        if isinstance(path, Path) and path.is_file():
            return path
        raise EngineError("engine.not_found", f"this installation ships no {DEFAULT_ENGINE}; name an engine")


def engine_bytes(
    manifest: Manifest,
    entries: Mapping[str, bytes],
    *,
    signing_key: bytes | Ed25519PrivateKey | None = None,
) -> bytes:
    """Make the content of an engine file; the same input gives the same bytes.

    Parameters
    ----------
    manifest : Manifest
        Its table of entries is filled here, whatever it holds.
    entries : mapping of str to bytes
        Content of every entry the manifest refers to: networks, and golden arrays as `npy_bytes` makes them.
    signing_key : bytes or Ed25519PrivateKey, optional
        Ed25519 private key, 32 raw bytes or unencrypted PEM.

    Raises
    ------
    EngineError
        As `Engine.open`, which reads the result before it is returned; ``engine.manifest`` where entries and
        references do not match; ``engine.signature`` where the key is none.
    """
    return _made(manifest, entries, signing_key)[0]


def write_engine(
    path: str | os.PathLike[str],
    manifest: Manifest,
    entries: Mapping[str, bytes],
    *,
    signing_key: bytes | Ed25519PrivateKey | None = None,
) -> Engine:
    """Write an engine file, whole or not at all, and return it opened.

    Parameters
    ----------
    path : path
        The file; an existing one is replaced in one step.
    manifest, entries, signing_key
        As in `engine_bytes`.

    Raises
    ------
    EngineError
        As `engine_bytes`.
    WriterError
        ``writer.failed``: the operating system refused.  What was at `path` is unchanged.
    """
    data, engine = _made(manifest, entries, signing_key)
    write_file(path, data)
    return engine


def sign_engine(
    source: str | os.PathLike[str] | bytes,
    path: str | os.PathLike[str],
    *,
    signing_key: bytes | Ed25519PrivateKey,
    security_version: int | None = None,
) -> Engine:
    """Write `source` with a signature, in place of any it has, and return it opened.

    Parameters
    ----------
    source : path or bytes
        The engine; all but its signature is verified, so sign only what you trust.
    path : path
        Where to; may be `source`.
    signing_key : bytes or Ed25519PrivateKey
        As in `engine_bytes`.
    security_version : int, optional
        1 or more, written into the manifest, which is then of format 2: devices that keep a `RollbackFile` refuse
        engines of a lower one.  Default: what the engine has; a format 1 engine stays as it is and counts as 0.

    Raises
    ------
    EngineError, WriterError
        As `Engine.open` and `write_engine`; ``engine.manifest`` for a security version that is lower than the
        engine's own, or none.
    """
    key = _private_key(signing_key)
    engine = Engine.open(source)
    raw = engine.manifest_bytes()
    if security_version is not None:
        if isinstance(security_version, int) and security_version < engine.security_version:
            raise EngineError(
                "engine.manifest", f"security version {security_version} is below the {engine.security_version} it has"
            )
        try:
            raw = replace(engine.manifest, security_version=security_version, format_version=2).to_json()
        except RuleError as broken:
            raise EngineError("engine.manifest", f"manifest {broken}") from None
    data, signed = _sealed(raw, engine.entries(), key)
    write_file(path, data)
    return signed


def new_keys() -> tuple[bytes, bytes]:
    """Return a new Ed25519 key to sign engines with, and the public key that devices trust: both PEM.

    The private key is plain PKCS 8, as `openssl genpkey -algorithm ed25519` makes it: keep it off the devices.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = Ed25519PrivateKey.generate()
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    )


def npy_bytes(array: npt.NDArray[Any]) -> bytes:
    """Return a two-dimensional uint8, float16 or float32 array in the one .npy form that engines hold."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    if little.dtype.str not in ("|u1", "<f2", "<f4") or little.ndim != 2:
        raise ValueError(f"{array.dtype} of shape {array.shape} is not a golden array")
    header = f"{{'descr': '{little.dtype.str}', 'fortran_order': False, 'shape': {little.shape}, }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + little.tobytes()


# --- reading ---


def _read(source: object) -> bytes:
    """Return the content of a regular file or of a byte string, at most MAX_ENGINE_BYTES of it."""
    if isinstance(source, bytes | bytearray | memoryview):
        _bound(memoryview(source).nbytes, "the engine")
        return bytes(source)
    if not isinstance(source, str | os.PathLike):
        raise EngineError("engine.not_an_engine", f"expected a path or bytes, got {type(source).__name__}")
    try:
        with open_file(source) as stream:
            size = os.fstat(stream.fileno()).st_size
            _bound(size, "the engine")
            data = stream.read(size + 1)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise EngineError("engine.not_found", f"there is no engine at {os.fspath(source)!r}") from None
    except OSError as error:
        raise EngineError("engine.unreadable", f"{os.fspath(source)!r}: {error.strerror}") from None
    if len(data) != size:
        raise EngineError("engine.corrupt", f"{os.fspath(source)!r} changed while it was read")
    return data


def _bound(size: int, what: str, limit: int | None = None) -> None:
    limit = MAX_ENGINE_BYTES if limit is None else limit
    if size > limit:
        raise EngineError("engine.too_large", f"{what} has {size} bytes, the limit is {limit}")


def _check_entries(data: memoryview, contents: Mapping[str, slice], entries: Mapping[str, Entry]) -> None:
    """Hold every content against the manifest's table; the table against the archive."""
    for name in sorted((contents.keys() ^ entries.keys()) - {MANIFEST, SIGNATURE}):
        where = "the manifest does not list" if name in contents else "the archive does not hold"
        raise EngineError("engine.corrupt", f"{where} {name!r}")
    for name, entry in entries.items():
        content = data[contents[name]] if name in contents else b""
        if len(content) != entry.size or hashlib.sha256(content).hexdigest() != entry.sha256:
            raise EngineError("engine.corrupt", f"size or SHA-256 of {name!r} is not what the manifest says")


_NPY = re.compile(
    rb"\x93NUMPY\x01\x00(..)\{'descr': '([|<][uf]\d)', "
    rb"'fortran_order': False, 'shape': \((\d{1,5}), (\d{1,5})\), \} *\n",
    re.DOTALL,
)


def _array(content: memoryview, dtype: str, name: str) -> npt.NDArray[Any]:
    """Read the one .npy form there is: version 1.0, C order, 2-D, this dtype, exactly as long as it says."""
    found = _NPY.match(content[:1024])
    if found is None or found.end() != 10 + int.from_bytes(found[1], "little") or found[2] != dtype.encode():
        raise EngineError("engine.corrupt", f"{name!r} is not a plain .npy of {dtype}")
    shape = int(found[3]), int(found[4])
    body = content[found.end() :]
    if 0 in shape or len(body) != shape[0] * shape[1] * np.dtype(dtype).itemsize:
        raise EngineError("engine.corrupt", f"{name!r} has {len(body)} bytes for the shape {shape}")
    array = np.frombuffer(bytes(body), dtype).reshape(shape)
    if not np.isfinite(array).all():
        raise EngineError("engine.corrupt", f"{name!r} holds NaN or infinity")
    return array


def _golden_vector(spec: Golden, manifest: Manifest, data: memoryview, contents: Mapping[str, slice]) -> GoldenVector:
    arrays = {
        part: _array(data[contents[spec.entries[part]]], dtype, spec.entries[part])
        for part, dtype in (("pixels", "|u1"), ("patch_logits", "<f4"), ("mask_logits", "<f2"))
    }
    for part, shape in (
        ("patch_logits", manifest.outputs.patch_logits.grid),
        ("mask_logits", manifest.outputs.mask_logits.size),
    ):
        found = arrays[part].shape
        if found != shape:
            raise EngineError("engine.corrupt", f"{spec.entries[part]!r} has shape {found}, not {shape}")
    return GoldenVector(
        name=spec.name,
        credit=spec.credit,
        window=spec.window,
        probability=spec.probability,
        tolerance=spec.tolerance,
        **arrays,
    )


# --- the canonical archive ---
# PKWARE APPNOTE 4.3.7, 4.3.12 and 4.3.16 with every free field fixed: version 2.0, no flags, stored,
# 1980-01-01, no extra field, no comment, one disk, no attributes, no gaps.  One content has one serialisation,
# so the reader takes names, sizes and CRCs from the directory, bounds them, and compares everything else.

_COMMON = struct.Struct("<HHHHHIIIHH")  # version, flags, method, time, date, CRC, 2 sizes, 2 lengths
_ENTRY_END = struct.Struct("<HHHII")  # comment, disk, attributes, offset of the local header
_END = struct.Struct("<4sHHHHIIH")
_LOCAL_MAGIC, _CENTRAL_MAGIC, _END_MAGIC = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_VERSION = 20
_LOCAL_BYTES = 4 + _COMMON.size
_CENTRAL_BYTES = 4 + 2 + _COMMON.size + _ENTRY_END.size


@dataclass(frozen=True)
class _Member:
    """One entry of the archive: its headers and where its content lies."""

    name: str
    crc: int
    size: int
    offset: int  # of the local header

    @property
    def _common(self) -> bytes:
        return _COMMON.pack(_VERSION, 0, 0, 0, 0x21, self.crc, self.size, self.size, len(self.name), 0)

    @property
    def local(self) -> bytes:
        return _LOCAL_MAGIC + self._common + self.name.encode()

    @property
    def central(self) -> bytes:
        end = _ENTRY_END.pack(0, 0, 0, 0, self.offset)
        return _CENTRAL_MAGIC + struct.pack("<H", _VERSION) + self._common + end + self.name.encode()

    @property
    def content(self) -> slice:
        start = self.offset + _LOCAL_BYTES + len(self.name)
        return slice(start, start + self.size)


def _order(names: Iterable[str]) -> list[str]:
    """Return the one order of entries: manifest, signature, then the others by name."""
    return sorted(names, key=lambda name: (name != MANIFEST, name != SIGNATURE, name))


def _archive(contents: Mapping[str, bytes]) -> bytes:
    """Serialise, in the one way there is."""
    parts: list[bytes] = []
    directory: list[bytes] = []
    offset = 0
    for name in _order(contents):
        content = contents[name]
        member = _Member(name, zlib.crc32(content), len(content), offset)
        parts += [member.local, content]
        directory.append(member.central)
        offset = member.content.stop
        _bound(offset, "the engine")
    central = b"".join(directory)
    end = _END.pack(_END_MAGIC, 0, 0, len(directory), len(directory), len(central), offset, 0)
    return b"".join([*parts, central, end])


def _contents(data: memoryview) -> dict[str, slice]:
    """Check that the archive is canonical and return where each content lies."""
    if not data or not _LOCAL_MAGIC.startswith(data[:4]):
        raise EngineError("engine.not_an_engine", "the content is not a zip archive")
    if not MANIFEST.encode().startswith(data[_LOCAL_BYTES : _LOCAL_BYTES + len(MANIFEST)]):
        raise EngineError("engine.not_an_engine", f"the content is a zip that does not begin with {MANIFEST}")
    directory, count = _directory(data)
    members: list[_Member] = []
    offset, at = 0, directory
    for _ in range(count):
        member = _member(data, at, offset, directory)
        members.append(member)
        offset, at = member.content.stop, at + len(member.central)
    if offset != directory or at != len(data) - _END.size:
        raise EngineError("engine.corrupt", "the archive has gaps")
    names = [member.name for member in members]
    if len(set(names)) < count or names != _order(names) or names[0] != MANIFEST:
        raise EngineError("engine.corrupt", "the archive's entries are repeated or out of order")
    for member in members:
        if zlib.crc32(data[member.content]) != member.crc:
            raise EngineError("engine.corrupt", f"the CRC of {member.name!r} is wrong")
    _bound(members[0].size, MANIFEST, MAX_MANIFEST_BYTES)
    return {member.name: member.content for member in members}


def _directory(data: memoryview) -> tuple[int, int]:
    """Return offset and number of the directory's entries."""
    at = len(data) - _END.size
    if at < 0 or data[at : at + 4] != _END_MAGIC:
        raise EngineError("engine.corrupt", "the archive's end record is missing: cut short, or added to")
    end = _END.unpack_from(data, at)
    count, offset = end[3], end[6]
    if end != (_END_MAGIC, 0, 0, count, count, at - offset, offset, 0) or not 0 < count <= MAX_ENTRIES:
        raise EngineError("engine.corrupt", "the archive's end record is not canonical or contradicts it")
    return offset, count


def _member(data: memoryview, at: int, offset: int, directory: int) -> _Member:
    """Read the directory entry at `at`; local header must be at `offset`, content end before `directory`."""
    head = bytes(data[at : at + _CENTRAL_BYTES])
    if len(head) < _CENTRAL_BYTES:
        raise EngineError("engine.corrupt", "the archive's directory is cut short")
    _, _, method, _, _, crc, _, size, length, _ = _COMMON.unpack_from(head, 6)
    raw = bytes(data[at + _CENTRAL_BYTES : at + _CENTRAL_BYTES + length])
    name = raw.decode("latin-1")
    if not ENTRY_NAME.match(name):
        raise EngineError("engine.corrupt", f"an entry has the impossible name {name[:60]!r}")
    if method:
        raise EngineError("engine.corrupt", f"{name!r} is compressed (method {method}); entries are stored")
    member = _Member(name, crc, size, offset)
    if member.content.stop > directory:
        raise EngineError("engine.corrupt", f"{name!r} declares {size} bytes, more than there are")
    local = data[offset : offset + len(member.local)]
    if head + raw != member.central or local != member.local:
        raise EngineError("engine.corrupt", f"a header of {name!r} is not canonical")
    return member


# --- writing and signing ---


def _entry(content: bytes) -> Entry:
    return Entry(size=len(content), sha256=hashlib.sha256(content).hexdigest())


def _made(
    manifest: Manifest, entries: Mapping[str, bytes], signing_key: bytes | Ed25519PrivateKey | None
) -> tuple[bytes, Engine]:
    """Fill the manifest's table of entries and serialise."""
    key = None if signing_key is None else _private_key(signing_key)
    table = {name: _entry(content) for name, content in entries.items()}
    try:
        raw = replace(manifest, entries=table).to_json()
    except RuleError as broken:
        raise EngineError("engine.manifest", f"manifest {broken}") from None
    return _sealed(raw, entries, key)


def _sealed(raw: bytes, entries: Mapping[str, bytes], key: Ed25519PrivateKey | None) -> tuple[bytes, Engine]:
    """Serialise a manifest and its entries, signed where there is a key, and read the result back."""
    contents = {MANIFEST: raw, **entries}
    if key is not None:
        contents[SIGNATURE] = key.sign(raw)
    data = _archive(contents)
    return data, Engine.open(data, trusted_keys=() if key is None else (key.public_key(),))


def _verify(raw: bytes, signature: bytes | None, keys: Sequence[Ed25519PublicKey]) -> None:
    """Check that one of the keys signed the manifest's bytes."""
    from cryptography.exceptions import InvalidSignature

    if signature is None:
        raise EngineError("engine.signature", "the engine is not signed, and trusted keys were given")
    for key in keys:
        with contextlib.suppress(InvalidSignature):
            key.verify(signature, raw)
            return
    raise EngineError("engine.signature", f"none of the {len(keys)} trusted keys made the signature")


def _public_keys(keys: Iterable[Any]) -> list[Ed25519PublicKey]:
    if isinstance(keys, bytes | str) or not isinstance(keys, Iterable):
        raise EngineError("engine.signature", "trusted_keys is not a sequence of keys")
    return [_public_key(key) for key in keys]


def _public_key(key: bytes | Ed25519PublicKey) -> Ed25519PublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    with contextlib.suppress(ValueError, TypeError, UnsupportedAlgorithm):
        if isinstance(key, bytes):
            loaded = Ed25519PublicKey.from_public_bytes(key) if len(key) == 32 else load_pem_public_key(key)
        else:
            loaded = key
        if isinstance(loaded, Ed25519PublicKey):
            return loaded
    raise EngineError("engine.signature", "a trusted key is not an Ed25519 public key of 32 bytes or in PEM")


def _private_key(key: bytes | Ed25519PrivateKey) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    with contextlib.suppress(ValueError, TypeError, UnsupportedAlgorithm):
        if isinstance(key, bytes):
            raw = len(key) == 32
            loaded = Ed25519PrivateKey.from_private_bytes(key) if raw else load_pem_private_key(key, None)
        else:
            loaded = key
        if isinstance(loaded, Ed25519PrivateKey):
            return loaded
    raise EngineError("engine.signature", "the signing key is not an Ed25519 private key, 32 bytes or plain PEM")
