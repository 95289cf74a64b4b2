"""Worker: takes films from the store, one after the other, and leaves their results there."""

from __future__ import annotations

import logging
import threading
import time
from datetime import datetime
from typing import Any

import ptxsdk
from ptxsdk.errors import AuditError, BackendError, DetectorError, InputError, PtxsdkError, WriterError
from ptxsdk.node.config import NodeConfig
from ptxsdk.node.log import event as log
from ptxsdk.node.metrics import Metrics
from ptxsdk.node.store import MAX_ATTEMPTS, Film, Store

_PAUSE = 2.0
_BEHIND = 20.0  # for so long the others go ahead of a film that was given back
_SEED = "node"


class Worker(threading.Thread):
    """One thread with a detector of its own.

    Parameters
    ----------
    detector : Detector
        A clone for this thread alone; closed with it.
    config, store, metrics
        Of the node.
    stopping : threading.Event
        Set: the film in hand is finished, the others are left for the next start.

    Attributes
    ----------
    hangs : bool
        The network has not returned from a film; the thread ends, and only a new process helps.
    """

    def __init__(
        self,
        detector: ptxsdk.Detector,
        config: NodeConfig,
        store: Store,
        metrics: Metrics,
        stopping: threading.Event,
    ) -> None:
        super().__init__(name="worker", daemon=True)
        self._detector, self._config, self._store, self._metrics = detector, config, store, metrics
        self._stopping = stopping
        self.hangs = False

    def run(self) -> None:
        """Score films until told to stop, or until the network hangs: then the film stays in the queue."""
        with self._detector:
            while not self._stopping.is_set() and not self.hangs:
                version = self._store.version
                try:
                    film = self._store.claim()
                    if film is None:
                        self._store.wait(version, 1.0)
                        continue
                    try:
                        self._work(film)
                    finally:
                        self._store.let_go(film)
                except Exception:  # a full or broken disk, no memory: the film is still in the queue
                    logging.getLogger("ptxsdk.node").exception("queue_trouble")
                    self._stopping.wait(_PAUSE)

    def _work(self, film: Film) -> None:
        started = time.monotonic()
        error = self._try(film, started)
        seconds = time.monotonic() - started
        self._metrics.add("ptxsdk_scoring_seconds_total", seconds)
        if error is None:
            return
        if isinstance(error, AuditError):  # no result without its record: the film waits in the queue until there is
            self._give_back(film, "no_audit", error)
        elif isinstance(error, _NoRoom):  # likewise
            self._give_back(film, "no_room", error)
        elif error.code == "detector.busy":  # a film before it was given up, and its network has not come back since
            log("hangs", level=logging.ERROR, film=film.token, code=error.code)
            self.hangs = True
            self._store.give_back(film, error.code)
        elif _may_pass(error) and film.attempts + 1 < MAX_ATTEMPTS:
            log("retry", level=logging.WARNING, film=film.token, code=error.code)
            self._stopping.wait(_PAUSE)
        else:
            self._store.end(film, error)
            outcome = "refused" if error.code.startswith("gate.") else "failed"
            self._metrics.add("ptxsdk_films_total", outcome=outcome, code=error.code)
            log(outcome, level=logging.WARNING, film=film.token, code=error.code, seconds=round(seconds, 4))

    def _try(self, film: Film, started: float) -> PtxsdkError | None:
        """Score a film and keep its results; return why there are none."""
        try:
            self._keep(film, *self._score(film), started)
        except PtxsdkError as error:
            return _NoMemory.instead_of(error)
        except MemoryError:
            return _NoMemory()
        except Exception as unexpected:  # a defect of ours must not stop the other films
            logging.getLogger("ptxsdk.node").exception("unexpected")
            return DetectorError("detector.internal", f"unexpected {type(unexpected).__name__}")
        return None

    def _give_back(self, film: Film, event: str, error: PtxsdkError) -> None:
        """Leave a film in the queue, behind the others: what it lacks they may do without."""
        log(event, level=logging.ERROR, film=film.token, code=error.code)
        self._store.give_back(film, error.code, _BEHIND)
        self._stopping.wait(_PAUSE)

    def _keep(self, film: Film, result: dict[str, Any], objects: dict[str, bytes], started: float) -> None:
        try:
            self._store.finish(film, result, objects, self._config.destinations)
        except WriterError as error:
            raise _NoRoom(error.code, error.message) from error
        seconds = time.monotonic() - started
        outcome = "flagged" if result["flagged"] else "not_flagged"
        self._metrics.add("ptxsdk_films_total", outcome=outcome, code="")
        log("scored", film=film.token, outcome=outcome, objects=sorted(objects), seconds=round(seconds, 4))

    def _score(self, film: Film) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Return the detection and the DICOM files that go to the destinations.

        The seed makes the same film, engine and configuration give the same instances: a PACS knows what it has.
        """
        from ptxsdk.writers import dicom_content, dicom_objects

        content = self._store.read(film)
        radiograph, detection = self._detector.read_and_predict(content, timeout=self._config.film_seconds)
        datasets = dicom_objects(
            detection,
            radiograph,
            self._config.formats,
            uid_seed=_SEED,
            created=datetime.fromtimestamp(film.received),  # noqa: DTZ006 - DICOM's times are local
        )
        return detection.to_dict(), {f"{name}.dcm": dicom_content(dataset) for name, dataset in datasets.items()}


class _NoRoom(WriterError):
    """The store could not keep the results."""


class _NoMemory(InputError):
    """There was no memory in this process, which is not said of the film: there may be some for the next try."""

    def __init__(self) -> None:
        super().__init__("input.too_large", "there is not enough memory for this film")

    @classmethod
    def instead_of(cls, error: PtxsdkError) -> PtxsdkError:
        """Return an error of this class for one that a MemoryError was turned into, else `error`."""
        return cls() if error.code == "input.too_large" and isinstance(error.__context__, MemoryError) else error


def _may_pass(error: PtxsdkError) -> bool:
    """Say whether the next try may go better: there may be memory, threads or a helper process again."""
    return isinstance(error, (BackendError, DetectorError, _NoMemory)) or error.code == "input.decoder"
