"""Service: the node's parts put together, started in order, and stopped so that nothing is lost."""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ptxsdk
from ptxsdk.errors import NodeError
from ptxsdk.node.config import NodeConfig
from ptxsdk.node.log import event as log
from ptxsdk.node.metrics import Metrics
from ptxsdk.node.sender import DicomSender, FolderSender, Sender
from ptxsdk.node.store import Store
from ptxsdk.node.watcher import Watcher
from ptxsdk.node.web import Web
from ptxsdk.node.worker import Worker

if TYPE_CHECKING:
    from ptxsdk.node.scp import Listener

_ABORT_SECONDS = 5.0
_TIDY_SECONDS = 5.0
_COUNT_SECONDS = 60.0  # every waiting delivery is written then: more often would wear a flash disk


class Service:
    """The node.

    Parameters
    ----------
    config : NodeConfig
        What it does.
    make_detector : callable
        Makes the detector.  Called once; the workers take clones.

    Raises
    ------
    NodeError
        ``node.spool``, ``node.listen``, ``node.option`` or ``node.unavailable``; nothing runs then.
    PtxsdkError
        As `make_detector`.
    """

    def __init__(self, config: NodeConfig, make_detector: Callable[[], ptxsdk.Detector]) -> None:
        require_packages(dicom=config.port is not None or bool(config.forward))
        self.config = config
        self.metrics = Metrics()
        self._stopping = threading.Event()
        self._started = time.monotonic()
        self.store = Store(config.spool, reserve=config.reserve_bytes)
        self.listener: Listener | None = None
        self.web: Web | None = None
        try:
            self._detector = make_detector()
            try:
                self._build()
            except BaseException:
                self._detector.close()
                raise
        except BaseException:
            self.store.close()
            raise

    def _build(self) -> None:
        config, rest = self.config, (self.config, self.store, self.metrics, self._stopping)
        if config.http_port is not None:
            self.web = Web(config.http_port, self.store, health=self.health, metrics=self.render_metrics)
        try:
            if config.port is not None:
                from ptxsdk.node.scp import Listener

                self.listener = Listener(config, self.store, self.metrics)
            self._senders: list[Sender] = [DicomSender(peer, *rest) for peer in config.forward]
        except BaseException:
            if self.listener is not None:
                self.listener.stop(0)
            if self.web is not None:
                self.web.stop()
            raise
        if config.out is not None:
            self._senders.append(FolderSender(config.out, *rest))
        self._workers = [Worker(self._detector.clone(), *rest) for _ in range(config.workers)]
        self._watcher = (
            None
            if config.watch is None
            else Watcher(
                config.watch,
                config.max_object_bytes,
                self.store,
                self.metrics,
                self._stopping,
                remove=config.remove_dropped,
                settle_seconds=config.settle_seconds,
            )
        )

    def start(self) -> None:
        """Start everything; what takes films in comes last."""
        for part in (*self._workers, *self._senders, *self._taking()):
            part.start()
        log(
            "started",
            version=ptxsdk.__version__,
            engine=f"{self._detector.engine.id.name} {self._detector.engine.id.version}",
            precision=self._detector.precision,
            port=None if self.listener is None else self.listener.port,
            http=None if self.web is None else self.web.port,
            queue=self.store.counts(),
        )

    def _taking(self) -> list[Any]:
        return [part for part in (self.web, self._watcher, self.listener) if part is not None]

    def run(self) -> bool:
        """Run until SIGTERM or SIGINT, or until the network hangs, then stop; call it on the main thread.

        Returns
        -------
        bool
            Whether it was told to stop; else a new process has to go on.
        """
        asked = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: asked.set())
        self.start()
        while not asked.wait(_TIDY_SECONDS) and not any(worker.hangs for worker in self._workers):
            self.tidy()
        self.stop()
        return asked.is_set()

    def tidy(self, *, last: bool = False) -> None:
        """Keep house: give up what is too old, remove what is done with."""
        elapsed = time.monotonic() - self.store.counted
        if last or elapsed >= min(_COUNT_SECONDS, self.config.give_up_seconds / 60):
            with _trouble_logged():
                self._give_up(elapsed)
        with _trouble_logged():  # it makes room, which the other may lack
            self.store.tidy(keep=self.config.keep, forget_after=self.config.forget_seconds)

    def _give_up(self, elapsed: float) -> None:
        tried = time.monotonic() - self._started > self.config.retry_cap_seconds  # also after this start
        for token, destination in self.store.give_up(elapsed, self.config.give_up_seconds if tried else math.inf):
            self.metrics.add("ptxsdk_deliveries_total", destination=destination, outcome="given_up")
            log("given_up", level=logging.ERROR, film=token, destination=destination, code="node.undeliverable")

    def stop(self) -> None:
        """Take nothing more, finish the films in hand, leave the others in the queue.  Idempotent."""
        if self._stopping.is_set():
            return
        log("stopping")
        if self.listener is not None:
            self.listener.stop(self.config.grace_seconds)
        self._stopping.set()
        self.store.wake()
        deadline = time.monotonic() + self.config.grace_seconds
        for part in (*self._workers, *self._senders, *((self._watcher,) if self._watcher else ())):
            part.join(max(0.0, deadline - time.monotonic()))
        for sender in self._senders:
            if sender.is_alive():  # the destination does not answer; it gets all of it after the next start
                sender.interrupt()
                sender.join(_ABORT_SECONDS)
        if self.web is not None:
            self.web.stop()
        self.tidy(last=True)
        log("stopped", queue=self.store.counts())
        self._detector.close()
        self.store.close()

    # --- looking ------------------------------------------------------------------------------------------------------

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Return whether every part is at work, and particulars."""
        parts = {
            "listener": self.listener is None or self.listener.alive,
            "watcher": self._watcher is None or (self._watcher.is_alive() and self._watcher.readable),
            "workers": all(worker.is_alive() for worker in self._workers),
            "senders": all(sender.is_alive() for sender in self._senders),
            "disk": shutil.disk_usage(self.config.spool).free >= self.config.reserve_bytes
            and not self.store.holds("writer"),
            "audit": not self.store.holds("audit"),
            "running": not self._stopping.is_set(),
        }
        well = all(parts.values())
        destinations = {
            sender.destination: "reachable" if sender.reachable else "unreachable" for sender in self._senders
        }
        return well, {
            "status": "ok" if well else "not ok",
            "parts": parts,
            "destinations": destinations,  # a PACS that is down is no reason to restart the node
            "queue": self.store.counts(),
        }

    def render_metrics(self) -> str:
        """Return all counters as text."""
        oldest = self.store.oldest()
        gauges: list[tuple[str, dict[str, str], float]] = [
            ("ptxsdk_queue_films", {"state": state}, count) for state, count in self.store.counts().items()
        ]
        gauges += [
            ("ptxsdk_queue_oldest_seconds", {}, 0.0 if oldest is None else max(0.0, time.time() - oldest)),
            ("ptxsdk_associations_open", {}, 0 if self.listener is None else self.listener.open),
            ("ptxsdk_disk_free_bytes", {}, shutil.disk_usage(self.config.spool).free),
            ("ptxsdk_resident_bytes", {}, resident_bytes()),
            ("ptxsdk_up", {}, float(self.health()[0])),
        ]
        return self.metrics.render(gauges)


@contextlib.contextmanager
def _trouble_logged() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError):
        logging.getLogger("ptxsdk.node").exception("tidy_trouble")


def require_packages(*, dicom: bool) -> None:
    """Import what the first film would otherwise wait for, and say now what is missing.

    Raises
    ------
    NodeError
        ``node.unavailable``.
    """
    for name in ("highdicom.sr", "highdicom.seg", *(("pynetdicom",) if dicom else ())):
        try:
            importlib.import_module(name)
        except ImportError:
            package = name.partition(".")[0]
            raise NodeError("node.unavailable", f"the node needs {package}: pip install 'ptxsdk[node]'") from None


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
