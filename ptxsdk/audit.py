"""Audit log: one record for each film, scored or not, chained by hashes, without patient data; docs/audit.md.

The host supplies the sink.  `AuditChain` makes the records one chain, however many threads and clones score; its
subclass `AuditFile` is a sink ready to use.  `verify` checks a file.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import hashlib
import json
import os
import re
import stat
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ptxsdk.detection import Detection, OperatingPoint
from ptxsdk.engine import Engine
from ptxsdk.errors import AuditError, DetectorError, OutOfScope, PtxsdkError
from ptxsdk.files import flush_folder, open_file, others_may_write
from ptxsdk.gate import GatePolicy

FORMAT = 1
GENESIS = "0" * 64
"""What the first record of a chain names as the one before."""
MAX_RECORD_BYTES = 1 << 16
MAX_ENTRIES = 32
"""How many checks, and how many warnings, of a film a record holds; it says how many more there were."""
MAX_CODE = 64
"""Length of a warning's code: a film that the host made may have any."""

Record = Mapping[str, Any]
Sink = Callable[[Record], object]


@dataclass(frozen=True)
class Head:
    """Where a chain stands: number and hash of its last record; a new chain has number -1."""

    sequence: int = -1
    hash: str = GENESIS


class AuditChain:
    """Chains records and hands each to the sink before the result is returned.

    One chain may serve many detectors; records are numbered in the order in which they reach it.  A chain lives in one
    process: after a fork it refuses.

    Parameters
    ----------
    sink : callable
        Called with each record, a mapping of plain JSON types, one call at a time.  It MUST have kept the record for
        good when it returns, and raise where it cannot.
    head : Head
        Where the chain goes on after a restart.
    """

    def __init__(self, sink: Sink, *, head: Head | None = None) -> None:
        self._sink = sink
        self._head = head or Head()
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._certain = True

    @property
    def head(self) -> Head:
        """Number and hash of the last record: kept elsewhere, they show that a log was cut at its end."""
        return self._head

    def append(self, event: str, content: Record) -> None:
        """Chain a record and hand it over.

        Parameters
        ----------
        event : str
            "start", "predict", or the host's own word.
        content : mapping
            Plain JSON types; the chain's own keys are not for it to set.

        Raises
        ------
        AuditError
            ``audit.failed``: the sink raised.  The chain stays where it was.
        """
        if os.getpid() != self._pid:
            raise AuditError("audit.failed", "the audit chain was made in another process, before a fork")
        with self._lock:
            if not self._certain:
                self._find_head()
            now = dt.datetime.now(dt.timezone.utc).isoformat(timespec="microseconds")
            own = {
                "audit": FORMAT,
                "sequence": self._head.sequence + 1,
                "previous": self._head.hash,
                "time": now.replace("+00:00", "Z"),
                "event": event,
            }
            record = {**own, **content, **own}
            # A signal's handler may raise anywhere in here; then nobody knows whether the record was kept.
            self._certain = False
            try:
                record["hash"] = record_hash(record)
                self._sink(record)
            except Exception as error:
                self._certain = self._was_not_kept(error)
                if isinstance(error, PtxsdkError):
                    raise
                raise AuditError("audit.failed", f"the audit sink failed: {type(error).__name__}") from error
            self._head = Head(record["sequence"], record["hash"])
            self._certain = True

    def _was_not_kept(self, error: Exception) -> bool:
        """Say whether the sink's error proves that a record was not kept; sinks raise it for that."""
        return True

    def _find_head(self) -> None:
        """Find out where the chain stands after a record was interrupted."""
        raise AuditError(
            "audit.failed", "a record was interrupted: make a new chain, with the head of the last record that was kept"
        )


class AuditFile(AuditChain):
    """Appends records to a file, one JSON object a line, flushed to the disk one by one.

    One process holds the file at a time.  After a restart the chain goes on where it ended.  A last line that a power
    cut left unfinished is cut off, and a record "recovered" says how long it was and its SHA-256: its film was never
    given a result, as results are returned after their record is on the disk.

    Parameters
    ----------
    path : path
        The file; made, readable and writable by this user only, where there is none.  One that is there must belong
        to this user or root, and nobody else may write it.

    Raises
    ------
    AuditError
        ``audit.failed``: it cannot be opened or written, or others could have written it; ``audit.locked``: another
        process, or another `AuditFile` of this one, writes it; ``audit.corrupt``: its last record is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._opened_by = os.getpid()
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            self._descriptor = os.open(self.path, flags, 0o600)
        except (OSError, ValueError) as error:
            raise AuditError("audit.failed", f"{str(self.path)!r} cannot be opened: {error}") from None
        try:
            head, torn = self._resume()
        except OSError as error:
            self.close()
            raise AuditError("audit.failed", f"{str(self.path)!r}: {error.strerror}") from None
        except BaseException:
            self.close()
            raise
        super().__init__(self._write, head=head)
        if torn:
            self.append("recovered", {"torn": {"bytes": len(torn), "sha256": hashlib.sha256(torn).hexdigest()}})

    def _was_not_kept(self, error: Exception) -> bool:
        return isinstance(error, AuditError)  # others come from a signal's handler

    def _find_head(self) -> None:
        try:
            self._head, _ = self._resume()
        except OSError as error:
            raise AuditError("audit.failed", f"{str(self.path)!r}: {error.strerror}") from None
        self._certain = True

    def close(self) -> None:
        """Give the file free; later records raise ``audit.failed``.  Idempotent."""
        if self._descriptor >= 0:
            if os.getpid() == self._opened_by:  # or a forked child would keep it locked
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> AuditFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _resume(self) -> tuple[Head, bytes]:
        """Lock the file, cut off an unfinished line, and return where the chain stands and what was cut off."""
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise AuditError("audit.failed", f"{str(self.path)!r} is not a regular file")
        if others_may_write(status):
            remedy = "check it and make it this user's alone (chown, chmod 600), or begin another"
            raise AuditError("audit.failed", f"others could have written {str(self.path)!r}: {remedy}")
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AuditError("audit.locked", f"another process writes {str(self.path)!r}") from None
        size = os.fstat(self._descriptor).st_size
        start = max(0, size - 2 * MAX_RECORD_BYTES)
        tail = os.pread(self._descriptor, size - start, start)
        whole, newline, torn = tail.rpartition(b"\n")
        if len(torn) > MAX_RECORD_BYTES or not (torn.startswith(_BEGIN) or _BEGIN.startswith(torn)):
            raise AuditError("audit.corrupt", f"{str(self.path)!r} does not end with an audit record")
        last = whole.rpartition(b"\n")[2]
        head = _checked(last) if newline else Head()
        if torn:
            os.ftruncate(self._descriptor, size - len(torn))
            os.fsync(self._descriptor)
        else:
            flush_folder(self.path.parent)  # the file itself may be new
        return head, torn

    def _write(self, record: Record) -> None:
        """Append a line, or leave the file as it was."""
        if self._descriptor < 0:
            raise AuditError("audit.failed", "the audit file was closed")
        line = _line(record) + b"\n"
        if len(line) > MAX_RECORD_BYTES:
            raise AuditError("audit.failed", f"a record of {len(line)} bytes is not an audit record")
        before = os.fstat(self._descriptor).st_size
        try:
            written = 0
            while written < len(line):  # a disk may be full in the middle of a line
                written += os.write(self._descriptor, line[written:])
            os.fsync(self._descriptor)
        except OSError as error:
            try:
                os.ftruncate(self._descriptor, before)
            except OSError:
                self.close()  # what is on the disk is not known: only opening it again can tell
            raise AuditError("audit.failed", f"{str(self.path)!r} was not written: {error.strerror}") from error


def chain_of(audit: AuditChain | Sink | None) -> AuditChain | None:
    """Return the chain that ``Detector(audit=...)`` names; a plain sink begins a chain of its own.

    Raises
    ------
    DetectorError
        ``detector.option``: it is neither.
    """
    if audit is None or isinstance(audit, AuditChain):
        return audit
    if not callable(audit):
        raise DetectorError("detector.option", "audit is neither an AuditChain nor callable")
    return AuditChain(audit)


# --- what a record of ptxsdk says ---


@dataclass(frozen=True, kw_only=True)
class Auditor:
    """Writes a detector's records.

    Attributes
    ----------
    chain : AuditChain
        Where to.
    context : mapping
        What is the same in every record of a detector.
    """

    chain: AuditChain
    context: Record

    @classmethod
    def of(
        cls,
        chain: AuditChain,
        engine: Engine,
        policy: GatePolicy,
        *,
        point: OperatingPoint,
        profile: str,
        precision: str,
        backend: str,
        device: str,
    ) -> Auditor:
        """Describe a detector: engine and configuration."""
        from ptxsdk import __version__

        return cls(
            chain=chain,
            context={
                "ptxsdk": __version__,
                "engine": {**asdict(engine.id), "security_version": engine.security_version},
                "signature": engine.signature,
                "profile": profile,
                "operating_point": point.name,
                "threshold": point.threshold,
                "backend": backend,
                "device": device,
                "precision": precision,
                "policy": policy_hash(policy),
            },
        )

    def started(self) -> None:
        """Record that the detector is ready: its engine passed the self-test."""
        self.chain.append("start", self.context)

    def scored(self, detection: Detection) -> None:
        """Record a film's result, with what ran it: a detector may have fallen back to another device."""
        outcome = {
            "backend": detection.backend,
            "device": detection.device,
            "precision": detection.precision,
            "probability": detection.probability,
            "flagged": detection.flagged,
            "regions": len(detection.regions),
            "error": None,
        }
        quality = detection.quality
        self._append(outcome, ((check.code, check.status) for check in quality.checks), quality.warnings)

    def failed(self, error: BaseException) -> None:
        """Record that a film has no result, and by which code."""
        failed = error.failed if isinstance(error, OutOfScope) else ()
        code = error.code if isinstance(error, PtxsdkError) else "detector.internal"
        outcome = {"probability": None, "flagged": None, "regions": None, "error": code}
        self._append(outcome, ((code, "fail") for code, _ in failed), ())

    def _append(self, outcome: Record, checks: Iterable[tuple[str, str]], warnings: Iterable[str]) -> None:
        """Record a film, with the codes of checks and warnings, whose texts hold values of its header."""
        gate = [list(check) for check in checks]
        codes = [str(warning)[:MAX_CODE].partition(":")[0] for warning in warnings]
        left_out = max(0, len(gate) - MAX_ENTRIES) + max(0, len(codes) - MAX_ENTRIES)
        found = {"gate": gate[:MAX_ENTRIES], "warnings": codes[:MAX_ENTRIES]}
        self.chain.append(
            "predict", {**self.context, **outcome, **found, **({"left_out": left_out} if left_out else {})}
        )


def record_refusal(chain: AuditChain, error: PtxsdkError) -> None:
    """Record that a detector did not start: an engine was refused, or a device, and by which code."""
    from ptxsdk import __version__

    chain.append("start", {"ptxsdk": __version__, "error": error.code})


def policy_hash(policy: GatePolicy) -> str:
    """Return the SHA-256 of a gate policy's values: equal policies have equal hashes."""
    return hashlib.sha256(canonical(asdict(policy))).hexdigest()


# --- records and their check ---


_BEGIN = b'{"audit":%d,"sequence":' % FORMAT


def canonical(record: Record) -> bytes:
    """Return the JSON text that is hashed: ASCII, keys sorted, no blanks, whatever order a sink keeps the keys in."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _line(record: Record) -> bytes:
    """Return the JSON text that a file holds: the same with the chain's own keys first."""
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode("ascii")


def record_hash(record: Record) -> str:
    """Return the SHA-256 of a record without its ``hash``."""
    return hashlib.sha256(canonical({key: value for key, value in record.items() if key != "hash"})).hexdigest()


@dataclass(frozen=True)
class Verified:
    """What `verify` found.

    Attributes
    ----------
    records : int
        Number of whole records, each proved.
    head : Head
        Of the last one.
    torn : int
        Bytes of an unfinished last line, as a power cut leaves them; 0 where there is none.
    """

    records: int
    head: Head
    torn: int


def verify(path: str | os.PathLike[str], *, head: str | None = None) -> Verified:
    """Check every record of an audit file, and that each follows the one before.

    A chain by itself does not show that records are missing at its end: for that, give the hash of a record known to
    have been written.

    Parameters
    ----------
    path : path
        The file; it may be in use.
    head : str, optional
        Hash of a record that must be in the chain.

    Raises
    ------
    AuditError
        ``audit.corrupt``, naming the first line that is not as it was written, or `head` if it is not there;
        ``audit.failed``: the file cannot be read.
    """
    last, torn, seen = Head(), 0, False
    try:
        with open_file(Path(path)) as lines:
            number = 0
            while line := lines.readline(MAX_RECORD_BYTES + 1):
                number += 1
                if not line.endswith(b"\n"):
                    if len(line) > MAX_RECORD_BYTES:
                        raise AuditError("audit.corrupt", f"line {number}: too long for an audit record")
                    torn = len(line)
                    break
                try:
                    last = _checked(line[:-1], after=last)
                except AuditError as error:
                    raise AuditError("audit.corrupt", f"line {number}: {error.message}") from None
                seen |= last.hash == head
    except (OSError, ValueError) as error:
        raise AuditError("audit.failed", f"{os.fspath(path)!r} cannot be read: {error}") from None
    if head is not None and not seen:
        raise AuditError("audit.corrupt", "the record known to have been written is missing")
    return Verified(last.sequence + 1, last, torn)


_HASH = re.compile(r"[0-9a-f]{64}")


def _checked(line: bytes, after: Head | None = None) -> Head:
    """Return the head that a line makes, if it is a record, exactly as written, and follows `after`."""
    try:
        record = json.loads(line)
        sequence, own = record["sequence"], record["hash"]
        same = type(sequence) is int and own == record_hash(record) and _line(record) == line
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        same = False
    if not same or not _HASH.fullmatch(own):
        raise AuditError("audit.corrupt", "not an audit record, or altered")
    if after is not None and (sequence != after.sequence + 1 or record.get("previous") != after.hash):
        raise AuditError("audit.corrupt", "does not follow the record before: one was removed, added or moved")
    return Head(sequence, own)
