"""Files: written whole or not at all; and where what can be made again is kept."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path
from typing import BinaryIO, cast

from ptxsdk.errors import WriterError

CACHE = "PTXSDK_CACHE"


def cache_folder(name: str) -> Path | None:
    """Return the folder in which what can be made again is kept for the next start.

    ``$PTXSDK_CACHE/name``, else ``ptxsdk/name`` in the user's cache folder (``$XDG_CACHE_HOME``, else ``~/.cache``).
    None where the variable is set and empty, or there is no such folder: nothing is kept then.
    """
    named = os.environ.get(CACHE)
    if named is not None:
        return Path(named) / name if named else None
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:  # the XDG specification: a relative path is ignored
        return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "ptxsdk" / name
    except RuntimeError:  # a user without a home
        return None


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading; never wait for a pipe's writer, nor read what is no regular file.

    What stands at the path is looked at once it is open, so nobody can exchange it in between.

    Raises
    ------
    OSError
        The system refuses it; IsADirectoryError; `NotAFile`.
    ValueError
        The path is none.
    """
    stream = cast("BinaryIO", open(path, "rb", opener=_without_waiting))  # noqa: SIM115 - returned open
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise NotAFile(errno.EINVAL, "not a regular file")
    return stream


class NotAFile(OSError):
    """A device, pipe or socket stands where a file must be."""


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def write_file(path: str | os.PathLike[str], data: bytes, *, mode: int | None = None) -> None:
    """Write beside `path`, flush to the disk, then take its place; leave nothing behind on failure.

    Parameters
    ----------
    path : path
        The file; an existing one is replaced in one step.
    data : bytes
        Its content.
    mode : int, optional
        Permissions of the file whatever the process's umask; default: what the umask leaves of 666.

    Raises
    ------
    WriterError
        ``writer.failed``.
    """
    target = Path(path)
    try:
        # Not named after the target: a legal name of the greatest length would grow beyond it.
        part = target.with_name(f".{secrets.token_hex(8)}.part")
        try:
            with part.open("xb") as stream:
                if mode is not None:
                    os.fchmod(stream.fileno(), mode)
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
    except OSError as error:
        raise WriterError("writer.failed", f"{str(target)!r} was not written: {error.strerror}") from error
    except ValueError as error:
        raise WriterError("writer.failed", f"{str(target)!r} is no file name: {error}") from error
    with contextlib.suppress(OSError):  # the rename itself, where the file system can
        flush_folder(target.parent)


def others_may_write(status: os.stat_result) -> bool:
    """Say whether a user other than this one and root could have written what has this status."""
    return status.st_uid not in (os.geteuid(), 0) or bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def flush_folder(folder: Path) -> None:
    """Flush to the disk what was made, renamed and removed in a folder.

    Raises
    ------
    OSError
        The file system cannot.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; one that is there stays.

    Raises
    ------
    WriterError
        ``writer.failed``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriterError("writer.failed", f"no folder {str(folder)!r}: {error.strerror}") from error
