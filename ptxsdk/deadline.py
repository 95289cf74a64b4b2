"""Deadline: until when a call may go on."""

from __future__ import annotations

import atexit
import contextvars
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TypeVar

from ptxsdk.errors import DetectorError

T = TypeVar("T")


class Deadline:
    """A moment after which work is given up.

    Parameters
    ----------
    seconds : float, optional
        From now; None: never.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._seconds = seconds
        self._end = None if seconds is None else monotonic() + seconds
        self._queued = False

    def remaining(self) -> float | None:
        """Return the seconds that are left, 0 when there are none, None without a deadline."""
        return None if self._end is None else max(0.0, self._end - monotonic())

    def check(self) -> None:
        """Raise when the moment has passed.

        Raises
        ------
        DetectorError
            ``detector.timeout``.
        """
        if self._end is not None and monotonic() >= self._end:
            raise self.error()

    @contextmanager
    def holding(self, lock: threading.Lock) -> Iterator[None]:
        """Hold a detector's lock, waiting for it no longer than until the deadline.

        Raises
        ------
        DetectorError
            ``detector.busy``.
        """
        left = self.remaining()
        self._queued = True
        if not lock.acquire(timeout=-1 if left is None else left):
            raise self.error()
        self._queued = False
        try:
            self.check()
            yield
        finally:
            lock.release()

    def error(self) -> DetectorError:
        """Return the error of a deadline that has passed."""
        if self._queued:
            return DetectorError("detector.busy", f"another film held the detector for {self._seconds:g} s")
        return DetectorError("detector.timeout", f"the film was not scored within {self._seconds:g} s")


NO_DEADLINE = Deadline()

_EXIT_SECONDS = 5.0
_working: weakref.WeakKeyDictionary[threading.Thread, threading.Event] = weakref.WeakKeyDictionary()
"""The threads of `within`, waited for or given up, and what each sets when its work is done."""

os.register_at_fork(after_in_child=_working.clear)  # none of them is in the child


@atexit.register
def wait_for_those_left() -> bool:
    """Let work that was given up end before the interpreter does: a thread inside a runtime would abort the process.

    Returns
    -------
    bool
        Whether all of it has ended; else only `os._exit` ends the process cleanly.
    """
    end = monotonic() + _EXIT_SECONDS
    for reference in _working.keyrefs():  # a list, whatever other threads do meanwhile
        thread = reference()
        if thread is None:
            continue
        if not _working[thread].wait(max(0.0, end - monotonic())):
            return False
        thread.join()
    return True


def within(deadline: Deadline, work: Callable[[Deadline], T]) -> T:
    """Do work on another thread, and wait for it no longer than until the deadline.

    Nothing can interrupt a thread that reads from a dead disk or waits for a device; so it is left behind, as a daemon,
    until it meets its deadline or ends, and nobody sees what it found.

    Raises
    ------
    DetectorError
        ``detector.timeout``; ``detector.internal``: the system gives no thread.
    Exception
        What `work` raises.
    """
    context = contextvars.copy_context()
    done = threading.Event()
    found: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(context.run(work, deadline))
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            failed.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=run, name="ptxsdk-predict", daemon=True)
    _working[thread] = done  # a signal's handler may raise at any moment from here on, and leave the thread behind
    try:
        thread.start()
    except RuntimeError as error:
        del _working[thread]
        raise DetectorError("detector.internal", f"the system gives no thread: {error}") from None
    if not done.wait(deadline.remaining()):
        raise deadline.error()
    if failed:
        try:
            raise failed.pop()
        finally:
            del run  # whose cell would keep the error, and the film in its traceback, alive
    return found.pop()
