"""Watcher: takes DICOM files that a unit drops into a folder.

The folder is looked through again and again, which works on network shares too.  A file is taken when its size and
time have stood still; names that begin with a dot or end as unfinished transfers do are left alone.  A file that has
changed since is taken again.  Files stay where they are, unless they are to be removed: then a file goes once its film
was read as far as its pixels, and only while it is the very file that was read.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ptxsdk.errors import InputError, WriterError
from ptxsdk.node.instance import instance_uid
from ptxsdk.node.log import event as log
from ptxsdk.node.metrics import Metrics
from ptxsdk.node.store import Store
from ptxsdk.readers.elements import has_preamble

UNFINISHED = (".part", ".tmp", ".filepart", ".crdownload", ".partial")

Stamp = list[str]
"""Of a file: size and time, which say whether it changed, then device and inode, which say whether it is the same."""


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
        Remove a file once its film was read.
    settle_seconds : float
        A file must stand still so long.

    Attributes
    ----------
    readable : bool
        It was looked through, the last time.
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
        self._still: dict[str, tuple[Stamp, float]] = {}
        self._troubled: set[str] = set()
        self.readable = True

    def run(self) -> None:
        """Look through the folder until told to stop."""
        while not self._stopping.is_set():
            try:
                self.look()
            except Exception:  # the disk is full, or there is no memory: look again
                self.readable = False
                logging.getLogger("ptxsdk.node").exception("watch_trouble")
            self._stopping.wait(self._settle / 2)

    def look(self) -> None:
        """Look through the folder once."""
        present: set[str] = set()
        unknown: list[str] = []  # what begins so cannot be seen now, and stays known
        folders = [""]
        while folders:
            folder = folders.pop()
            with self._alone(folder, unknown):
                for entry in self._entries(folder):
                    if self._stopping.is_set():
                        return
                    name = folder + entry.name
                    with self._alone(name, unknown):
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(f"{name}/")
                        elif entry.is_file(follow_symlinks=False):
                            present.add(name)
                            self._consider(name)
            if "" in unknown:  # a share that is away
                self.readable = False
                return
        self._still = {name: entry for name, entry in self._still.items() if name in present}
        self._troubled &= set(unknown)
        seen = ((key, os.fsdecode(key)) for key in self._store.all_seen())
        gone = [key for key, name in seen if name not in present and not name.startswith(tuple(unknown))]
        if gone:
            self._store.forget(gone)
        self.readable = True

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        """Return what lies in a folder and is not to be left alone."""
        with os.scandir(self._folder / folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        return [
            entry
            for entry in entries
            if not entry.name.startswith(".")
            and entry.name != "DICOMDIR"
            and Path(entry.name).suffix.lower() not in UNFINISHED
        ]

    @contextlib.contextmanager
    def _alone(self, name: str, unknown: list[str]) -> Iterator[None]:
        """Let what is wrong with one path hold up no other; it is logged once, until it is well again."""
        try:
            yield
        except sqlite3.Error:  # not the path's trouble
            raise
        except Exception as trouble:
            if name and isinstance(trouble, FileNotFoundError):  # gone since it was listed
                return
            unknown.append(name)
            if name not in self._troubled:
                self._troubled.add(name)
                self._metrics.add("ptxsdk_received_total", outcome="unreadable")
                logging.getLogger("ptxsdk.node").exception("watch_trouble")

    def _consider(self, name: str) -> None:
        path, key = self._folder / name, _key(name)
        stamp = _stamp(path.lstat())
        seen = (self._store.seen(key) or "").split()
        if seen[:2] == stamp[:2] and not (self._remove and len(seen) > len(stamp)):
            return
        if seen[:4] == stamp:  # what was read from it is in the queue
            if self._was_read(seen[4]):
                path.unlink()
            return
        known, since = self._still.get(name, ([], 0.0))
        if known != stamp:
            self._still[name] = stamp, time.monotonic()
            return
        if time.monotonic() - since < self._settle:
            return
        outcome, token, size = self._take(path, stamp)
        if outcome in ("", "no_room"):  # it is looked at again, though not at every turn
            self._still[name] = stamp, time.monotonic()
            return
        self._metrics.add("ptxsdk_received_total", outcome=outcome)
        log("received", film=token, outcome=outcome, bytes=size, aet="folder")
        if outcome in ("new", "again", "duplicate"):
            stamp = [*stamp, token]
        self._store.see(key, " ".join(stamp))
        del self._still[name]

    def _was_read(self, token: str) -> bool:
        """Say whether a film was read as far as its pixels; a file that was cut short never is."""
        film = self._store.find(token)
        return film is not None and (film.state in ("scored", "done", "refused") or film.code == "node.undeliverable")

    def _take(self, path: Path, stamp: Stamp) -> tuple[str, str, int]:
        """Return what became of a file, its film's token, and its size; nothing where it changed meanwhile."""
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as stream:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode) or _stamp(status) != stamp:
                return "", "", 0
            if status.st_size > self._max_bytes:
                return "too_large", "", status.st_size
            content = stream.read(status.st_size + 1)
            if len(content) != status.st_size or _stamp(os.fstat(handle)) != stamp:
                return "", "", 0
        outcome, token = self._put(content)
        return outcome, token, len(content)

    def _put(self, content: bytes) -> tuple[str, str]:
        if not has_preamble(content):
            return "not_understood", ""
        try:
            outcome, token = self._store.put(content, instance_uid(content), "folder")
        except InputError as error:
            log("not_understood", level=logging.WARNING, code=error.code)
            return "not_understood", ""
        except WriterError as error:
            log("no_room", level=logging.ERROR, code=error.code)
            return "no_room", ""
        film = self._store.find(token)
        if outcome == "conflict" and film is not None and film.state == "received":
            return "", ""  # this one may be the whole of it, and the other the half: wait until that was read
        return outcome, token


def _stamp(status: os.stat_result) -> Stamp:
    return [str(value) for value in (status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino)]


def _key(name: str) -> str | bytes:
    """Return what the store knows a file by: its name, or the bytes of one that is not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name)
    return name
