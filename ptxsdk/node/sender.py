"""Sender: brings results from the store to one destination, a DICOM peer or a folder, until they are there.

A destination that cannot be reached holds up nothing but itself: it is tried again after a wait that doubles, with
jitter, up to a limit.  A film that a destination refuses waits by itself, and the films behind it go ahead.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import shutil
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ptxsdk.errors import WriterError
from ptxsdk.files import flush_folder, write_file
from ptxsdk.node.config import NodeConfig, Peer
from ptxsdk.node.log import event as log
from ptxsdk.node.metrics import Metrics
from ptxsdk.node.store import Film, Store
from ptxsdk.writers import DICOM

_BATCH = 25
_DUPLICATE_INSTANCE = 0x0111
_SIGN, _SIGN_PART = "result.json", "result.part"


class Unreachable(Exception):
    """The destination as a whole takes nothing now."""


class Refused(Exception):
    """The destination did not take this film's results."""


class Sender(threading.Thread, ABC):
    """One thread that serves one destination.

    Parameters
    ----------
    destination : str
        Its name in the store.
    config, store, metrics
        Of the node.
    stopping : threading.Event
        Set: the film in hand is finished, the others are left for the next start.
    """

    def __init__(
        self, destination: str, config: NodeConfig, store: Store, metrics: Metrics, stopping: threading.Event
    ) -> None:
        super().__init__(name=f"sender {destination}", daemon=True)
        self.destination = destination
        self.reachable = True
        self._config, self._store, self._metrics, self._stopping = config, store, metrics, stopping

    def run(self) -> None:
        """Deliver until told to stop."""
        failures = 0
        while not self._stopping.is_set():
            version = self._store.version
            try:
                films = self._store.due(self.destination, _BATCH, self._config.retry_cap_seconds)
                if not films:
                    self._store.wait(version, 1.0)
                    continue
                self._deliver_all(films)
                failures, self.reachable = 0, True
            except Unreachable as trouble:
                failures, self.reachable = failures + 1, False
                seconds = self._delay(failures)
                self._metrics.add("ptxsdk_deliveries_total", destination=self.destination, outcome="unreachable")
                log(
                    "unreachable",
                    level=logging.WARNING,
                    destination=self.destination,
                    reason=str(trouble),
                    again_in=round(seconds, 1),
                )
                self._stopping.wait(seconds)
            except Exception:  # the results are in the store; this thread must go on
                logging.getLogger("ptxsdk.node").exception("sender_trouble")
                failures += 1
                self._stopping.wait(self._delay(failures))

    def interrupt(self) -> None:
        """End a delivery that does not come to an end by itself."""

    @abstractmethod
    def _deliver_all(self, films: Sequence[Film]) -> None:
        """Deliver films, each through `_deliver`."""

    def _deliver(self, film: Film, send: Callable[[Film], None]) -> None:
        reason = ""
        try:
            send(film)
        except Unreachable:
            raise
        except Refused as trouble:
            reason = str(trouble)
        except Exception as trouble:  # of this film alone, say a file that is gone: the others go ahead
            logging.getLogger("ptxsdk.node").exception("sender_trouble")
            reason = type(trouble).__name__
        if reason:
            seconds = self._delay(film.attempts + 1)
            self._store.postpone(film, self.destination, seconds)
            self._metrics.add("ptxsdk_deliveries_total", destination=self.destination, outcome="refused")
            log(
                "not_taken",
                level=logging.WARNING,
                film=film.token,
                destination=self.destination,
                reason=reason,
                again_in=round(seconds, 1),
            )
        else:
            done = self._store.delivered(film, self.destination)
            self._metrics.add("ptxsdk_deliveries_total", destination=self.destination, outcome="delivered")
            log("delivered", film=film.token, destination=self.destination, done=done)

    def _delay(self, failures: int) -> float:
        longest = min(self._config.retry_cap_seconds, self._config.retry_seconds * 2.0 ** min(failures - 1, 30))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, so that many nodes do not call at once

    def _files(self, film: Film) -> list[Path]:
        """Return the film's results, all of them; first the picture, which every viewer shows.

        There may be none: a segmentation, say, of a film without regions.
        """
        folder = self._store.result_path(film.token)
        if film.objects is not None:
            paths = [folder / name for name in film.objects]
            whole = all(path.is_file() for path in paths)
        else:  # an older version did not note what it made, but put the folder in its place with all of it
            whole = folder.is_dir()
            paths = [*folder.iterdir()] if whole else []
        if not whole:
            raise Refused("a result is missing in the spool")
        return sorted(paths, key=lambda path: DICOM.index(path.stem))


class DicomSender(Sender):
    """C-STORE to a peer; films that wait together share an association."""

    def __init__(
        self, peer: Peer, config: NodeConfig, store: Store, metrics: Metrics, stopping: threading.Event
    ) -> None:
        from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
        from pynetdicom import AE, evt
        from pynetdicom.sop_class import (
            Comprehensive3DSRStorage,
            GrayscaleSoftcopyPresentationStateStorage,
            SecondaryCaptureImageStorage,
            SegmentationStorage,
        )

        super().__init__(peer.name, config, store, metrics, stopping)
        self._peer = peer
        self._handlers = [(evt.EVT_CONN_OPEN, self._connected)]
        entity = AE(ae_title=config.aet)
        entity.connection_timeout = entity.acse_timeout = config.idle_seconds
        entity.network_timeout = entity.dimse_timeout = 2 * config.idle_seconds  # a PACS may be slow to answer
        kinds = {
            "sc": SecondaryCaptureImageStorage,
            "sr": Comprehensive3DSRStorage,
            "seg": SegmentationStorage,
            "gsps": GrayscaleSoftcopyPresentationStateStorage,
        }
        for sop_class in kinds.values():
            entity.add_requested_context(sop_class, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        self._entity = entity
        self._association: Any = None
        self._tls: tuple[Any, str] | None = None
        if config.forward_tls and config.tls is not None:
            self._tls = (config.tls.client(), peer.host)

    def interrupt(self) -> None:
        """Abort the association."""
        if self._association is not None:
            self._association.abort(block=False)
            with contextlib.suppress(AttributeError, OSError):  # its thread may wait for the rest of a PDU
                self._association.dul.socket.socket.shutdown(socket.SHUT_RDWR)

    def _connected(self, event: Any) -> None:
        """Bound what is read and sent from here on: a destination that falls silent must not hold it for ever."""
        from ptxsdk.node.scp import BoundedSocket

        self._association = event.assoc
        BoundedSocket.of(event.assoc).settimeout(event.assoc.network_timeout)

    def _deliver_all(self, films: Sequence[Film]) -> None:
        for film in films:
            if film.objects == ():  # nothing to send: no peer is asked for it
                self._deliver(film, lambda _: None)
        films = [film for film in films if film.objects != ()]
        if films:
            self._send_all(films)

    def _send_all(self, films: Sequence[Film]) -> None:
        association = self._entity.associate(
            self._peer.host, self._peer.port, ae_title=self._peer.aet, tls_args=self._tls, evt_handlers=self._handlers
        )
        if not association.is_established:
            raise Unreachable("rejected" if association.is_rejected else "no association")
        try:
            for film in films:
                if self._stopping.is_set():
                    return
                self._deliver(film, lambda film: self._send(association, film))
        finally:
            if association.is_established:
                association.release()

    def _send(self, association: Any, film: Film) -> None:
        for path in self._files(film):
            try:
                answer = association.send_c_store(path)
            except ValueError as error:  # no context was accepted for this kind of object
                raise Refused(f"{path.stem}: not supported by the destination") from error
            except RuntimeError as error:
                raise Unreachable("the association ended") from error
            if "Status" not in answer:
                raise Unreachable("no answer")
            status = int(answer.Status)
            if status not in (0x0000, _DUPLICATE_INSTANCE) and status >> 12 != 0xB:  # Bxxx: taken, with a remark
                raise Refused(f"{path.stem}: status {status:04X}")


class FolderSender(Sender):
    """Leaves results in a folder: ``OUT/<SOP Instance UID of the film>/``, ``result.json`` last, as the sign of all.

    All are written to a folder beside it first, so a full disk leaves what lies there as it is.
    """

    def __init__(
        self, folder: Path, config: NodeConfig, store: Store, metrics: Metrics, stopping: threading.Event
    ) -> None:
        super().__init__(f"folder:{folder}", config, store, metrics, stopping)
        self._folder = folder

    def _deliver_all(self, films: Sequence[Film]) -> None:
        for film in films:
            if self._stopping.is_set():
                return
            self._deliver(film, self._leave)

    def _leave(self, film: Film) -> None:
        part = self._folder / f".{film.token}.part"
        line = json.dumps({"file": film.sop_instance_uid, **(film.result or {})}, allow_nan=False)
        contents = {path.name: path.read_bytes() for path in self._files(film)}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(part, ignore_errors=True)  # of a node that was killed
            part.mkdir()
            for name, content in contents.items():
                write_file(part / name, content)
            write_file(part / _SIGN_PART, (line + "\n").encode("ascii"))
            _move(part, self._folder / film.sop_instance_uid, contents)
        except (OSError, WriterError) as error:
            raise Unreachable("the folder cannot be written") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _move(part: Path, target: Path, names: Iterable[str]) -> None:
    """Move finished results to their place, the sign of all last; what else lies there stays."""
    target.mkdir(exist_ok=True)
    (target / _SIGN).unlink(missing_ok=True)  # of an earlier delivery: until the last is moved, nothing is whole
    for name in names:
        (part / name).replace(target / name)
    _flush(target)
    (part / _SIGN_PART).replace(target / _SIGN)
    _flush(target)
    _flush(target.parent)


def _flush(folder: Path) -> None:
    with contextlib.suppress(OSError):  # a network share may not be able to
        flush_folder(folder)
