"""Watcher: takes DICOM files that a unit drops into a folder.

The folder is looked through again and again, which works on network shares too.  A file is taken when its size and
time have stood still; names that begin with a dot or end as unfinished transfers do are left alone.  Files stay where
they are, unless they are to be removed once the queue has them.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from pathlib import Path

from ptxsdk.errors import InputError, WriterError
from ptxsdk.node.instance import instance_uid
from ptxsdk.node.log import event as log
from ptxsdk.node.metrics import Metrics
from ptxsdk.node.store import Store

UNFINISHED = (".part", ".tmp", ".filepart", ".crdownload", ".partial")


class Watcher(threading.Thread):
    """One thread that watches one folder and those in it.

    Parameters
    ----------
    folder : Path
        Where films are dropped.
    max_bytes : int
        Larger files are not taken.
    store, metrics, stopping
        Of the node.
    remove : bool
        Remove a file once it is in the queue.
    settle_seconds : float
        A file must stand still so long.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        store: Store,
        metrics: Metrics,
        stopping: threading.Event,
        *,
        remove: bool = False,
        settle_seconds: float = 2.0,
    ) -> None:
        super().__init__(name="watcher", daemon=True)
        self._folder, self._max_bytes = folder, max_bytes
        self._store, self._metrics, self._stopping = store, metrics, stopping
        self._remove, self._settle = remove, settle_seconds
        self._still: dict[str, tuple[str, float]] = {}
        self._unreadable: dict[str, str] = {}
        self.readable = True

    def run(self) -> None:
        """Look through the folder until told to stop."""
        while not self._stopping.is_set():
            try:
                self.look()
            except (OSError, sqlite3.Error):  # the folder is away, or the disk is full: look again
                logging.getLogger("ptxsdk.node").exception("watch_trouble")
            self._stopping.wait(self._settle / 2)

    def look(self) -> None:
        """Look through the folder once."""
        present: set[str] = set()
        self.readable = self._folder.is_dir()
        if not self.readable:  # a share that is away: what is known of its files stays known
            return
        for path in sorted(self._folder.rglob("*")):
            if self._stopping.is_set():
                return
            relative = path.relative_to(self._folder)
            hidden = any(part.startswith(".") for part in relative.parts)
            if hidden or path.name == "DICOMDIR" or path.suffix.lower() in UNFINISHED or path.is_symlink():
                continue
            with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                if path.is_file():
                    present.add(str(relative))
                    self._consider(path, str(relative))
        self._still = {name: entry for name, entry in self._still.items() if name in present}
        self._store.forget_unseen(present)

    def _consider(self, path: Path, name: str) -> None:
        status = path.stat()
        stamp = f"{status.st_size} {status.st_mtime_ns}"
        if stamp in (self._unreadable.get(name), self._store.seen(name)):
            return
        known, since = self._still.get(name, ("", 0.0))
        if known != stamp:
            self._still[name] = stamp, time.monotonic()
            return
        if time.monotonic() - since < self._settle:
            return
        outcome, token = self._take(path, status.st_size)
        if outcome == "no_room":
            return  # it is looked at again
        self._metrics.add("ptxsdk_received_total", outcome=outcome)
        log("received", film=token, outcome=outcome, bytes=status.st_size, aet="folder")
        if outcome == "unreadable":
            self._unreadable[name] = stamp  # until it changes, or the next start
            return
        self._store.see(name, stamp)
        del self._still[name]
        if self._remove and outcome in ("new", "again", "duplicate"):
            path.unlink()

    def _take(self, path: Path, size: int) -> tuple[str, str]:
        if size > self._max_bytes:
            return "too_large", ""
        try:
            content = path.read_bytes()
        except OSError:
            return "unreadable", ""
        if content[128:132] != b"DICM":
            return "not_understood", ""
        try:
            return self._store.put(content, instance_uid(content), "folder")
        except InputError as error:
            log("not_understood", level=logging.WARNING, code=error.code)
            return "not_understood", ""
        except WriterError as error:
            log("no_room", level=logging.ERROR, code=error.code)
            return "no_room", ""
