"""The plan cache: TensorRT plans on disk, verified whole before a byte of one reaches TensorRT.

A plan is executable code for one GPU, driver and TensorRT version.  docs/architecture.md says what is trusted and why.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import struct
from dataclasses import asdict, dataclass
from pathlib import Path

from ptxsdk.errors import WriterError
from ptxsdk.files import cache_folder, others_may_write, write_file
from ptxsdk.manifest import Precision

_LOGGER = logging.getLogger("ptxsdk")

MAX_PLAN_BYTES = 1 << 30
FORMAT = 2  # 1: plans of TensorRT for RTX might allocate while they run

# magic, format, bytes of the key, bytes of the plan; then the key, the plan's SHA-256, the plan, and nothing else
_HEAD = struct.Struct("<8sIIQ")
_MAGIC = b"PTXPLAN\0"
_DIGEST_BYTES = 32
_MAX_KEY_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class PlanKey:
    """All that a plan depends on.

    Attributes
    ----------
    gpu, capability : str
        Name and compute capability, e.g. "NVIDIA RTX A2000" and "8.6".  Not the serial number: a replaced card of the
        same model takes the same plan.
    tensorrt : str
        Flavour and full version, e.g. "tensorrt 10.13.3.9" or "tensorrt_rtx 1.7.1.116".
    driver : str
        As `ptxsdk.backends.cuda.Gpu.driver`.
    engine : str
        SHA-256 of the engine file.
    precision : str
        Which of the engine's networks.
    """

    gpu: str
    capability: str
    tensorrt: str
    driver: str
    engine: str
    precision: Precision

    @property
    def encoded(self) -> bytes:
        """The key as it stands in a file: one key, one byte string."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @property
    def file_name(self) -> str:
        """Name of the plan's file.

        The versions are left out: after an update of driver or TensorRT the new plan takes the place of the old one.
        """
        flavour = self.tensorrt.partition(" ")[0]
        lasting = f"{self.gpu}\n{self.capability}\n{flavour}\n{self.engine}\n{self.precision}"
        return f"{hashlib.sha256(lasting.encode()).hexdigest()[:40]}.plan"


class PlanCache:
    """A folder of plans.

    Parameters
    ----------
    folder : path, optional
        Default: `ptxsdk.files.cache_folder` "plans"; where there is none, nothing is kept.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder: Path | None = cache_folder("plans") if folder is None else Path(folder)

    def path(self, key: PlanKey) -> Path | None:
        """Return where the plan of `key` is kept, None where nothing is."""
        return None if self.folder is None else self.folder / key.file_name

    def read(self, key: PlanKey) -> bytes | None:
        """Return the plan of `key`; None, with a warning in the log, for anything but exactly that plan.

        The file is read once, through one descriptor, and what was verified is what is returned: nothing can be
        exchanged between the check and the use.
        """
        path = self.path(key)
        if path is None or self.folder is None:
            return None
        try:
            _require_private(self.folder.stat(), "the folder of plans")
            plan = _verified(_content(path), key)
        except _Refused as refused:
            _LOGGER.warning("cached TensorRT plan %s is not used, and built again: %s", path.name, refused)
            return None
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            _LOGGER.warning("cached TensorRT plan %s cannot be read: %s", path.name, error.strerror)
            return None
        return plan

    def write(self, key: PlanKey, plan: bytes) -> None:
        """Keep a plan, whole or not at all, readable and writable by this user only.

        Raises
        ------
        WriterError
            ``writer.failed``: the operating system refused.  What was there is unchanged.
        """
        path = self.path(key)
        if path is None or self.folder is None:
            return
        if not 0 < len(plan) <= MAX_PLAN_BYTES:
            raise WriterError("writer.failed", f"a plan of {len(plan)} bytes is not kept")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise WriterError("writer.failed", f"{str(self.folder)!r} was not made: {error.strerror}") from error
        encoded = key.encoded
        head = _HEAD.pack(_MAGIC, FORMAT, len(encoded), len(plan))
        write_file(path, b"".join((head, encoded, hashlib.sha256(plan).digest(), plan)), mode=0o600)


class _Refused(Exception):
    """Why a cached plan is not used."""


def _require_private(status: os.stat_result, what: str) -> None:
    """Refuse what another user could have written; who could is who could have this process run code."""
    if others_may_write(status):
        owned = f"user {status.st_uid}, mode {stat.S_IMODE(status.st_mode):o}"
        raise _Refused(f"others could have written {what} ({owned})")


def _content(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)  # no link, no waiting pipe
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _Refused("it is not a regular file")
        _require_private(status, "it")
        if status.st_size > _HEAD.size + _MAX_KEY_BYTES + _DIGEST_BYTES + MAX_PLAN_BYTES:
            raise _Refused(f"it has {status.st_size} bytes")
        return stream.read(status.st_size + 1)


def _verified(content: bytes, key: PlanKey) -> bytes:
    """Return the plan in `content` if every byte around it is what `PlanCache.write` would have written."""
    if len(content) < _HEAD.size:
        raise _Refused("it is cut short")
    magic, version, key_bytes, plan_bytes = _HEAD.unpack_from(content)
    if magic != _MAGIC or version != FORMAT:
        raise _Refused(f"it is no plan of format {FORMAT}")
    if key_bytes > _MAX_KEY_BYTES or len(content) != _HEAD.size + key_bytes + _DIGEST_BYTES + plan_bytes:
        raise _Refused("it is cut short, or added to")
    found = content[_HEAD.size : _HEAD.size + key_bytes]
    if found != key.encoded:
        raise _Refused(_difference(found, key))
    at = _HEAD.size + key_bytes
    plan = content[at + _DIGEST_BYTES :]
    if not plan or hashlib.sha256(plan).digest() != content[at : at + _DIGEST_BYTES]:
        raise _Refused("its SHA-256 is wrong")
    return plan


def _difference(found: bytes, key: PlanKey) -> str:
    """Say what a plan was built for, and what is here."""
    try:
        stored = json.loads(found)
    except (ValueError, RecursionError):
        stored = None
    if not isinstance(stored, dict):
        return "its key is damaged"
    differ = (
        f"{name} {stored.get(name)!r:.80}, here {value!r}"
        for name, value in asdict(key).items()
        if stored.get(name) != value
    )
    return f"it was built for {'; '.join(differ) or 'something else'}"
