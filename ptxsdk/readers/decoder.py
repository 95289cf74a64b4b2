"""Decoder: runs one codec on one codestream, here or as the program of the helper process.

The program (`main`) is started by `ptxsdk.readers.helper` with this file's path, not as a module: it imports numpy and
imagecodecs and nothing of ptxsdk, so it starts quickly and holds little.  It ends with its parent, whatever happens
to it, and is ended by the kernel when a codestream takes too long, even if nobody is left to watch.  Before the first
codestream it gives up files, connections and signals, where the kernel has Landlock.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import sys
from typing import Any

CODECS = ("jpeg2k", "jpeg8", "jpegls", "packbits", "png", "tiff")
"""The codecs that may be asked for, as imagecodecs calls them."""

ERRORS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, OverflowError)
"""What codecs raise when they refuse a codestream; MemoryError is not among them."""

MAX_MESSAGE = 4096
READY = b"ready"


def run_codec(codec: str, data: Any, options: dict[str, Any]) -> Any:
    """Decode `data`.

    Parameters
    ----------
    codec : str
        One of `CODECS`.
    data : bytes-like
        The codestream.
    options : dict
        The codec's own options; ``size`` for PackBits: the number of bytes expected.

    Returns
    -------
    ndarray
        As the codec returns it, unchecked.
    """
    import imagecodecs
    import numpy as np

    if codec not in CODECS:
        raise ValueError(f"there is no codec {codec!r}")
    decode = getattr(imagecodecs, f"{codec}_decode")
    if codec == "packbits":
        return np.frombuffer(decode(data, out=bytearray(options["size"])), np.uint8)
    return np.asarray(decode(data, **options))


def main() -> None:
    """Serve requests from standard input, a socket, until it is closed; pixels travel through shared memory."""
    parent, memory = int(sys.argv[1]), int(sys.argv[2])
    sys.path[:] = json.loads(sys.argv[3])
    _tie_to(parent)
    import imagecodecs
    import numpy as np

    for name in CODECS:
        getattr(imagecodecs, f"{name}_decode")
    np.zeros(1)
    own = _address_space()
    _confine()
    channel = socket.socket(fileno=0)
    channel.send(READY)
    while request := channel.recv(MAX_MESSAGE):
        channel.send(json.dumps(_answer(json.loads(request), memory, own)).encode()[:MAX_MESSAGE])


def _answer(request: dict[str, Any], memory: int, own: int) -> dict[str, Any]:
    import numpy as np

    _, hard = resource.getrlimit(resource.RLIMIT_AS)  # a host that is limited itself must not be outbid
    most = own + request["memory"]
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    # The parent keeps the time; this ends a helper whose parent is gone, or stopped.
    signal.setitimer(signal.ITIMER_REAL, 2 * request["seconds"] + 1)
    try:
        data = os.pread(memory, request["bytes"], 0)
        pixels = np.ascontiguousarray(run_codec(request["codec"], data, request["options"]))
        if pixels.nbytes > request["most"]:
            return {"error": f"it decoded to {pixels.dtype} {pixels.shape}"}
        view = memoryview(pixels.reshape(-1).view(np.uint8).data)
        at = 0
        while at < view.nbytes:
            at += os.pwrite(memory, view[at:], at)
    except MemoryError:
        return {"memory": True}
    except ERRORS as error:
        return {"error": str(error)[:200]}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return {"shape": pixels.shape, "dtype": pixels.dtype.str}


def _tie_to(parent: int) -> None:
    """End when the parent ends; no core file, which would hold a film; no signals of the parent's terminal."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    set_parent_death_signal, set_no_new_privileges, set_dumpable = 1, 38, 4
    libc.prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
    libc.prctl(set_no_new_privileges, 1, 0, 0, 0)
    libc.prctl(set_dumpable, 0, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the first of these
        sys.exit(1)


def landlock() -> int:
    """Return the version of Landlock's interface that this kernel offers; 0 where it has none or does not use it."""
    create_ruleset, version = 444, 1
    return max(0, int(ctypes.CDLL(None).syscall(create_ruleset, None, ctypes.c_size_t(0), version)))


def _confine() -> None:
    """Give up, for good, opening or changing files, TCP, and signals and abstract sockets to others.

    As far as this kernel knows how (linux/landlock.h): version 1, Linux 5.13, files; 4, Linux 6.7, TCP; 6, Linux 6.12,
    the rest.  What is open, the socket and the shared memory, stays usable.  For this thread and those it starts; there
    is no other yet.
    """
    offered = landlock()
    if not offered:
        return
    files = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(offered, 16)) - 1
    rights = (files, 0b11 if offered >= 4 else 0, 0b11 if offered >= 6 else 0)
    rules = (ctypes.c_uint64 * 3)(*rights)
    size = 8 * (1 if offered < 4 else 2 if offered < 6 else 3)
    create_ruleset, restrict_self = 444, 446
    libc = ctypes.CDLL(None)
    nothing = libc.syscall(create_ruleset, ctypes.byref(rules), ctypes.c_size_t(size), 0)
    if nothing < 0 or libc.syscall(restrict_self, nothing, 0):
        sys.exit(1)
    os.close(nothing)


def _address_space() -> int:
    with open("/proc/self/statm", "rb") as stream:  # noqa: PTH123 - pathlib would have to be imported
        return int(stream.read().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main()
