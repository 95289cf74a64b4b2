"""Rollback: an engine older than one this device has accepted is refused, though its signature is good.

The vendor raises the engine's ``security_version``; the device keeps the highest it has accepted, in a `RollbackFile`
or in a counter of its own such as a TPM's.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Protocol, runtime_checkable

from ptxsdk.engine import Engine
from ptxsdk.errors import DetectorError, EngineError, WriterError
from ptxsdk.files import others_may_write, write_file
from ptxsdk.manifest import MAX_SECURITY_VERSION

_MAX_BYTES = 256
_LOCK_SECONDS = 10.0


@runtime_checkable
class RollbackCounter(Protocol):
    """Where a device keeps the highest security version it has accepted."""

    def read(self) -> int:
        """Return it."""
        ...

    def advance(self, version: int) -> None:
        """Keep `version` for good before returning; it is never lower than what `read` returned."""
        ...


class RollbackFile:
    """The highest accepted security version in a file of this user's, replaced whole and flushed to the disk.

    One file for each engine that a device uses.  It must exist: `create` it when the device is made.  A missing file
    is an error, because whoever can delete it could otherwise bring back every engine that was ever signed.  A
    checksum shows damage; forgery is kept out by owner and mode, as for TensorRT's plans (docs/architecture.md).

    Parameters
    ----------
    path : path
        The file.  File and folder must belong to this user or root, and nobody else may write them.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | os.PathLike[str], version: int = 0) -> RollbackFile:
        """Make the file, on a device that has none.

        Raises
        ------
        EngineError
            ``engine.rollback_state``: there is a file already, or the operating system refused.
        """
        made = cls(path)
        _require_version(version)
        if os.path.lexists(made.path):
            raise EngineError("engine.rollback_state", f"there is a {str(made.path)!r} already")
        made._write(version)  # no lock file: who makes a device may be another user than who runs it
        return made

    def read(self) -> int:
        """Return the highest accepted version.

        Raises
        ------
        EngineError
            ``engine.rollback_state``: missing, damaged, unreadable, or others could have written it.
        """
        try:
            folder = self.path.parent.stat()
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as stream:
                status = os.fstat(descriptor)
                content = stream.read(_MAX_BYTES) if stat.S_ISREG(status.st_mode) else b""
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise EngineError("engine.rollback_state", f"{str(self.path)!r} cannot be read: {why}") from None
        for what, found in (("its folder", folder), ("it", status)):
            if others_may_write(found):
                raise EngineError("engine.rollback_state", f"{str(self.path)!r}: others could have written {what}")
        with contextlib.suppress(ValueError, RecursionError, LookupError, TypeError):
            version = json.loads(content)["security_version"]
            if type(version) is int and 0 <= version <= MAX_SECURITY_VERSION and content == _encoded(version):
                return version
        raise EngineError("engine.rollback_state", f"{str(self.path)!r} is damaged")

    def advance(self, version: int) -> None:
        """Keep `version` where it is higher; processes that do so at once take turns.

        Raises
        ------
        EngineError
            ``engine.rollback`` where a higher one is there by now; ``engine.rollback_state`` as `read`, or where the
            operating system refuses to write.  What was there stays.
        """
        _require_version(version)
        with self._locked():
            highest = self.read()
            if version < highest:
                raise _rolled_back(version, highest)
            if version > highest:
                self._write(version)

    def _write(self, version: int) -> None:
        try:
            write_file(self.path, _encoded(version), mode=0o600)
        except WriterError as error:
            raise EngineError("engine.rollback_state", error.message) from None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold a lock file of this user's beside the file, which is another after every write."""
        try:
            lock = self.path.with_name(f".{self.path.name}.lock")
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        except (OSError, ValueError) as error:
            raise EngineError("engine.rollback_state", f"{str(self.path)!r} cannot be locked: {error}") from None
        try:
            end = monotonic() + _LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if monotonic() > end:
                        raise EngineError("engine.rollback_state", f"{str(lock)!r} is held by others") from None
                    sleep(0.01)
                except OSError as error:
                    why = f"{str(lock)!r} cannot be locked: {error.strerror}"
                    raise EngineError("engine.rollback_state", why) from None
            yield
        finally:
            os.close(descriptor)


def counter_of(rollback: str | os.PathLike[str] | RollbackCounter | None, *, signed: bool) -> RollbackCounter | None:
    """Return the counter that `Detector(rollback=...)` names.

    Raises
    ------
    DetectorError
        ``detector.option``: it is none, or no signature is asked for, without which anybody could raise the counter
        and lock the device's own engine out.
    """
    if rollback is None:
        return None
    if not signed:
        raise DetectorError("detector.option", "rollback needs trusted_keys: an unsigned version proves nothing")
    if isinstance(rollback, str | os.PathLike):
        return RollbackFile(rollback)
    if isinstance(rollback, RollbackCounter):
        return rollback
    raise DetectorError("detector.option", "rollback is neither a path nor has it read() and advance()")


def check(counter: RollbackCounter, engine: Engine) -> None:
    """Refuse an engine older than one this device has accepted.

    Raises
    ------
    EngineError
        ``engine.rollback`` or ``engine.rollback_state``.
    """
    with _typed():
        highest = counter.read()
        _require_version(highest)
    if engine.security_version < highest:
        raise _rolled_back(engine.security_version, highest)


def accept(counter: RollbackCounter, engine: Engine) -> None:
    """Keep an engine's security version, after it has proved itself on this device.

    Raises
    ------
    EngineError
        As `check`.
    """
    check(counter, engine)
    with _typed():
        if engine.security_version > counter.read():
            counter.advance(engine.security_version)


@contextlib.contextmanager
def _typed() -> Iterator[None]:
    """Turn what a counter of the host's raises into an error of ours."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        raise EngineError("engine.rollback_state", f"the rollback counter failed: {type(error).__name__}") from error


def _rolled_back(version: int, highest: int) -> EngineError:
    return EngineError(
        "engine.rollback", f"the engine's security version is {version}, this device has accepted {highest}"
    )


def _require_version(version: object) -> None:
    if type(version) is not int or not 0 <= version <= MAX_SECURITY_VERSION:
        raise EngineError("engine.rollback_state", f"{version!r} is no security version")


def _encoded(version: int) -> bytes:
    """Return the one content of the file that says `version`."""
    checksum = hashlib.sha256(b"ptxsdk rollback 1 %d" % version).hexdigest()
    return json.dumps({"security_version": version, "sha256": checksum}).encode() + b"\n"
