"""Helper: a supervised process in which codecs run, so that one that hangs or crashes takes nobody with it.

A helper is started when the first compressed film comes, is used again for the next, and is killed when a codestream
takes longer than it may.  It is a plain Python program on a socket (`decoder.py`), neither forked from the host nor
importing its main module.  The codestream and the pixels travel through one shared memory file; the parent only reads
and writes that file, never maps it, so nothing that the helper does to it can reach the parent as a signal.

Each helper has a thread of the parent's that starts it, waits for its end and reaps it: Linux sends the
parent-death signal when the *thread* that started a process ends, and a caller's thread may be short-lived.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt

from ptxsdk.deadline import Deadline
from ptxsdk.errors import InputError
from ptxsdk.readers import decoder
from ptxsdk.readers.limits import Limits

Array = npt.NDArray[np.generic]

INTERPRETER = "PTXSDK_PYTHON"
"""Environment variable: the Python interpreter of the helper, for hosts that embed Python."""

_START_SECONDS = 60.0
_KEPT_MEMORY = 64 << 20  # of the shared memory file, between films


class _Gone(Exception):
    """The helper has ended."""


class _Helper:
    """One helper process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.sound = False
        self._ready = False
        self._size = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: Exception | None = None
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._memory = _memory_file()
        except BaseException:
            self._channel.close()
            theirs.close()
            raise
        started = threading.Event()
        try:
            keeper = threading.Thread(
                target=self._supervise, args=(theirs, started), name="ptxsdk-decoder", daemon=True
            )
            keeper.start()
            started.wait()
            theirs.close()  # or nothing would show that the helper has ended
            if self._failure is not None:
                raise _not_started(str(self._failure))  # noqa: TRY301 - what else fails ends here, too
        except BaseException as error:
            self.close()
            if isinstance(error, RuntimeError):
                raise _not_started("the system gives no thread") from None
            raise
        finally:
            theirs.close()
        self._patience = monotonic() + _START_SECONDS
        self.sound = True

    def _wait_until_ready(self, deadline: Deadline) -> None:
        """Wait for the helper's start; one that is not over at the deadline goes on for the next film."""
        left = deadline.remaining()
        patience = self._patience - monotonic()
        self._channel.settimeout(max(1e-3, patience if left is None else min(patience, left)))
        try:
            ready = self._channel.recv(decoder.MAX_MESSAGE)
        except TimeoutError:
            if left is not None and left < patience:
                self.sound = True
                raise deadline.error() from None
            raise _not_started("it does not answer") from None
        except OSError:
            ready = b""
        if ready != decoder.READY:
            raise _not_started(f"{_interpreter()} ended at once")
        self._ready = True

    def _supervise(self, theirs: socket.socket, started: threading.Event) -> None:
        try:
            arguments = [_interpreter(), "-I", "-S", str(Path(decoder.__file__).resolve())]
            # Python passes over what is no string; and a link stays a link.
            path = [os.path.abspath(folder) for folder in sys.path if folder and isinstance(folder, str)]  # noqa: PTH100
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter and our own program
                [*arguments, str(os.getpid()), str(self._memory), json.dumps(path)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(self._memory,),
                start_new_session=True,
                cwd="/",
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        except Exception as error:  # noqa: BLE001 - raised again where the start is waited for
            self._failure = error
            return
        finally:
            started.set()
        self._process.wait()

    def close(self) -> None:
        """End the helper; its thread reaps it."""
        if self._process is not None and self.pid == os.getpid():
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)
        self._channel.close()
        os.close(self._memory)

    def decode(
        self, codec: str, data: Any, options: dict[str, Any], most: int, limits: Limits, deadline: Deadline
    ) -> Array:
        """Decode, as `decode` does; `_Gone` where the helper had ended before.

        Afterwards the helper is `sound`, or must be closed.
        """
        self.sound = False
        if not self._ready:
            self._wait_until_ready(deadline)
        size = memoryview(data).nbytes
        self._grow(max(size, most))
        self._write(data)
        seconds = limits.decode_seconds
        request = {"codec": codec, "options": options, "bytes": size, "most": most, "memory": limits.memory_bytes}
        try:
            self._channel.send(json.dumps({**request, "seconds": seconds}).encode(), socket.MSG_NOSIGNAL)
        except OSError:
            raise _Gone from None
        answer = self._receive(seconds, deadline)
        if "shape" in answer:
            pixels = self._pixels(answer, most)
            self.sound = True
            return pixels
        self.sound = True
        if "memory" in answer:
            raise InputError("input.too_large", "the decoder needs more memory than the limit")
        raise InputError("input.corrupt", f"the decoder refused the codestream: {answer.get('error')}")

    def settle(self) -> None:
        """Give memory back between films: all of a large one, and nothing of a patient's stays in it."""
        os.ftruncate(self._memory, 0)
        if self._size <= _KEPT_MEMORY:
            os.ftruncate(self._memory, self._size)
        else:
            self._size = 0

    def _grow(self, size: int) -> None:
        if size > self._size:
            os.ftruncate(self._memory, size)
            self._size = size

    def _write(self, data: Any) -> None:
        view, at = memoryview(data).cast("B"), 0
        while at < view.nbytes:
            at += os.pwrite(self._memory, view[at:], at)

    def _receive(self, seconds: float, deadline: Deadline) -> dict[str, Any]:
        end = monotonic() + seconds
        left = deadline.remaining()
        self._channel.settimeout(max(1e-3, seconds if left is None else min(seconds, left)))
        try:
            message = self._channel.recv(decoder.MAX_MESSAGE)
        except TimeoutError:
            deadline.check()
            if monotonic() < end - 1e-3:  # the deadline's last moments
                raise deadline.error() from None
            raise InputError("input.timeout", f"the codestream was not decoded within {seconds:g} s") from None
        except OSError:
            message = b""
        finally:
            self._channel.settimeout(None)
        return self._answer(message)

    @staticmethod
    def _answer(message: bytes) -> dict[str, Any]:
        if not message:
            raise InputError("input.corrupt", "the decoder crashed on the codestream")
        try:
            answer = json.loads(message)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise InputError("input.corrupt", "the decoder's answer makes no sense")
        return answer

    def _pixels(self, answer: dict[str, Any], most: int) -> Array:
        """Copy the pixels out: from here on nothing the helper does can change them."""
        shape, dtype = answer["shape"], answer.get("dtype")
        sound = isinstance(shape, list) and len(shape) <= 4 and all(type(n) is int and 0 < n < 1 << 31 for n in shape)
        if not sound or dtype not in ("|u1", "|i1", "<u2", "<i2") or math.prod(shape) * int(dtype[-1]) > most:
            raise InputError("input.corrupt", "the codestream decoded to something that is no film")
        pixels: Array = np.empty(shape, dtype)
        view, at = memoryview(pixels.reshape(-1).view(np.uint8).data), 0
        while at < view.nbytes:
            count = os.preadv(self._memory, [view[at:]], at)
            if count == 0:
                raise InputError("input.corrupt", "the decoder left no pixels")
            at += count
        return pixels


def _not_started(why: str) -> InputError:
    return InputError("input.decoder", f"the decoding helper cannot be started: {why}")


def _memory_file() -> int:
    """Return a file in memory; never as 0, 1 or 2, which are free in a host that closed its standard streams."""
    made = os.memfd_create("ptxsdk-decoder", os.MFD_CLOEXEC)
    try:
        return fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(made)


def _interpreter() -> str:
    return os.environ.get(INTERPRETER) or sys.executable or "python3"


class _Pool:
    """The helpers of this process: as many as CPUs, started when needed, used again."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._idle: list[_Helper] = []
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(max(2, os.cpu_count() or 1))

    def decode(
        self, codec: str, data: Any, options: dict[str, Any], most: int, limits: Limits, deadline: Deadline
    ) -> Array:
        left = deadline.remaining()
        if not self._places.acquire(timeout=left):
            raise deadline.error()
        try:
            # A helper that ended while it was idle (killed from outside) says nothing of this film.
            while True:
                with self._lock:
                    helper = self._idle.pop() if self._idle else None
                fresh = helper is None
                if helper is None:
                    try:
                        helper = _Helper()
                    except OSError as error:  # no more open files
                        raise _not_started(str(error)) from None
                try:
                    return self._decode(helper, codec, data, options, most, limits, deadline)
                except _Gone:
                    if fresh:
                        raise InputError("input.decoder", "the decoding helper ended at its start") from None
        finally:
            self._places.release()

    def _decode(
        self,
        helper: _Helper,
        codec: str,
        data: Any,
        options: dict[str, Any],
        most: int,
        limits: Limits,
        deadline: Deadline,
    ) -> Array:
        try:
            return helper.decode(codec, data, options, most, limits, deadline)
        except OSError as error:
            raise InputError("input.too_large", f"no shared memory for the film: {error.strerror}") from None
        finally:
            if helper.sound:
                helper.settle()
                with self._lock:
                    self._idle.append(helper)
            else:
                helper.close()

    def close(self) -> None:
        """End the idle helpers."""
        with self._lock:
            idle, self._idle = self._idle, []
        for helper in idle:
            helper.close()

    def pids(self) -> list[int]:
        """Return the processes of the idle helpers."""
        with self._lock:
            return [helper._process.pid for helper in self._idle if helper._process is not None]  # noqa: SLF001


_pool = _Pool()


def _forget() -> None:
    """In a forked child: the parent's helpers are not ours, and its locks may be held for ever."""
    global _pool
    old, _pool = _pool, _Pool()
    for helper in old._idle:  # noqa: SLF001
        helper.close()


atexit.register(lambda: _pool.close())  # the pool of that moment
os.register_at_fork(after_in_child=_forget)


def decode(
    codec: str,
    data: bytes | memoryview,
    options: dict[str, Any],
    *,
    most: int,
    limits: Limits,
    deadline: Deadline,
) -> Array:
    """Decode in a helper process.

    Parameters
    ----------
    codec, data, options
        As in `decoder.run_codec`.
    most : int
        Bytes of pixels that may come out.
    limits : Limits
        ``decode_seconds`` and ``memory_bytes``.
    deadline : Deadline
        Of the call that the film belongs to.

    Returns
    -------
    ndarray
        The pixels; shape and dtype as the codec gives them, at most `most` bytes.

    Raises
    ------
    InputError
        ``input.corrupt``: the codec refused, or crashed; ``input.timeout``; ``input.too_large``: it needed more memory
        than the limit; ``input.decoder``: the helper cannot be started.
    DetectorError
        ``detector.timeout``: the deadline passed.
    """
    return _pool.decode(codec, data, options, most, limits, deadline)


def close() -> None:
    """End the idle helpers; the next film starts one."""
    _pool.close()


def pids() -> list[int]:
    """Return the process numbers of the idle helpers."""
    return _pool.pids()
