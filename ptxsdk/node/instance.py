"""Instance: which DICOM object a file is."""

from __future__ import annotations

from ptxsdk.errors import InputError, PtxsdkError


def instance_uid(content: bytes) -> str:
    """Return the SOP Instance UID in the data set of a DICOM file.

    Raises
    ------
    InputError
        ``input.*``: the file cannot be read as far as its pixels, or names no instance.
    """
    from pydicom.uid import UID

    from ptxsdk.readers import elements

    try:
        element = elements.split(content).dataset.get_item(0x00080018)
        value = b"" if element is None else element.value
        text = value.decode("ascii") if isinstance(value, bytes) else str(value)
    except PtxsdkError:
        raise
    except Exception as error:  # as in readers.read: the promise holds for content that no check foresaw
        raise InputError("input.corrupt", f"the file contradicts itself ({type(error).__name__})") from error
    uid = UID(text.strip(" \0"))
    if not uid.is_valid:
        raise InputError("input.corrupt", "the file names no SOP Instance UID")
    return str(uid)
