"""Readers: from a path, bytes, a pydicom Dataset or an array to a Radiograph."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import numpy as np

from ptxsdk.device_array import is_device_array
from ptxsdk.errors import BackendError, DetectorError, InputError
from ptxsdk.files import NotAFile, open_file
from ptxsdk.radiograph import Radiograph, check_pixels
from ptxsdk.readers import decoder
from ptxsdk.readers.limits import Limits
from ptxsdk.readers.reading import DEFAULT_READING, Decode, Reading

__all__ = ["FILM_SUFFIXES", "is_dataset", "load", "looks_like_film", "read", "read_as"]

FILM_SUFFIXES = (".dcm", ".dicom", ".png", ".jpg", ".jpeg", ".tif", ".tiff")
"""What films are called, where a folder is searched."""


def load() -> None:
    """Import the codecs and pydicom now, so that the first film does not wait for them."""
    import imagecodecs

    for name in decoder.CODECS:
        getattr(imagecodecs, f"{name}_decode")  # each codec is loaded at its first mention
    importlib.import_module("pydicom.dataset")


def read(
    source: object, *, name: str | None = None, limits: Limits | None = None, decode: Decode = "helper"
) -> Radiograph:
    """Read one film.

    The content decides its format, never the file name: DICOM (with its preamble, or without when it starts like
    a data set), PNG, JPEG or TIFF.  A file that is DICOM and something else at once is DICOM.

    Parameters
    ----------
    source : str, os.PathLike, bytes, bytearray, memoryview, pydicom.Dataset, numpy.ndarray, device array or Radiograph
        A path, a file's content, or a film.  An array is taken as `Radiograph.from_array` takes it;
        a Radiograph is returned as it is.
    name : str, optional
        What error messages call the source.  Paths are not quoted: they often name patients.
    limits : Limits, optional
        What the film may take; default: `Limits()`.
    decode : {"helper", "in_process"}
        Where codecs run: in a supervised helper process, started with the first compressed film, which cannot take
        the caller with it; or here, for films that are trusted.

    Returns
    -------
    Radiograph
        The whole film; never a part of one.

    Raises
    ------
    InputError
        ``input.*``, as listed in `ptxsdk.errors.CODES`; nothing else, whatever the content.
    MemoryError
        This machine has less memory left than the limits allow a film.
    """
    return read_as(source, Reading(DEFAULT_READING.limits if limits is None else limits, decode), name=name)


def read_as(source: object, reading: Reading, *, name: str | None = None) -> Radiograph:
    """Read one film as `read` does, in this way and until its deadline.

    Raises
    ------
    InputError
        As `read`.
    DetectorError
        ``detector.timeout``.
    """
    try:
        return _read(source, reading)
    except DetectorError:
        raise
    except InputError as error:
        if name is None:
            raise
        raise InputError(error.code, f"{name}: {error.message}") from error
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - the promise holds for content that no check foresaw
        what = "the film" if name is None else name
        # Its text, or that of a cause, may quote the film's header: hosts log tracebacks.
        raise InputError("input.corrupt", f"{what} contradicts itself ({type(error).__name__})") from None


def _read(source: object, reading: Reading) -> Radiograph:
    if isinstance(source, Radiograph):
        reading.limits.check_extent(*source.shape)
        return source
    if isinstance(source, np.ndarray):
        reading.limits.check_extent(*check_pixels(source).shape)
        return Radiograph.from_array(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        try:
            reading.limits.check_file(memoryview(source).nbytes)
        except ValueError:
            raise InputError("input.type", "the memoryview was released") from None
        return _read_content(bytes(source), reading)
    if isinstance(source, (str, os.PathLike)):
        return _read_content(_load(source, reading.limits), reading)
    if is_dataset(source):
        from ptxsdk.readers import dicom

        return dicom.read_dataset(source, reading)
    if is_device_array(source):
        try:
            film = Radiograph.from_array(source)
        except BackendError as error:
            raise InputError("input.type", error.message) from error
        reading.limits.check_extent(*film.shape)
        return film
    raise InputError(
        "input.type",
        f"cannot read a film from {type(source).__name__}: expected a path, bytes, a pydicom Dataset, "
        "a numpy array or a Radiograph",
    )


def is_dataset(source: object) -> bool:
    """Say whether this is a pydicom Dataset."""
    # Whoever holds a Dataset has loaded pydicom; this module does not have to.
    module: Any = sys.modules.get("pydicom.dataset")
    return module is not None and isinstance(source, module.Dataset)


def _load(source: str | os.PathLike[str], limits: Limits) -> bytes:
    try:
        with open_file(source) as file:
            limits.check_file(os.fstat(file.fileno()).st_size)
            content = file.read(limits.file_bytes + 1)  # it may grow meanwhile
    except IsADirectoryError:
        raise InputError("input.is_directory", "the path names a directory; pass the files one by one") from None
    except NotAFile:
        raise InputError("input.unreadable", "the path names a device, pipe or socket, not a file") from None
    except FileNotFoundError:
        raise InputError("input.not_found", "there is no such file") from None
    except NotADirectoryError:
        raise InputError("input.not_found", "a part of the path is not a directory") from None
    except OSError as error:
        # Its text would quote the path.
        raise InputError("input.unreadable", f"{type(error).__name__}: {error.strerror}") from None
    except (ValueError, TypeError) as error:
        raise InputError("input.not_found", f"not a valid path: {type(error).__name__}") from None
    limits.check_file(len(content))
    return content


def looks_like_film(beginning: bytes) -> bool:
    """Say whether the first 256 bytes of a file are those of a DICOM file with its preamble, a PNG, JPEG or TIFF."""
    from ptxsdk.readers import elements, image

    return elements.has_preamble(beginning) or image.reader_for(beginning) is not None


def _read_content(content: bytes, reading: Reading) -> Radiograph:
    from ptxsdk.readers import dicom, elements, image

    if not content:
        raise InputError("input.empty", "there is no content")
    if elements.has_preamble(content):
        return dicom.read_dicom(content, reading)
    if (reader := image.reader_for(content)) is not None:
        return reader(content, reading)
    if elements.looks_like_dataset(content):
        return dicom.read_dicom(content, reading)
    raise InputError("input.unknown_format", "the content is neither DICOM nor PNG, JPEG or TIFF")
