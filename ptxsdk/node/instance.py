"""Instance: which DICOM object a file is."""

from __future__ import annotations

from ptxsdk.errors import InputError, PtxsdkError

_SOP_INSTANCE_UID = 0x00080018


def instance_uid(content: bytes) -> str:
    """Return the SOP Instance UID in the data set of a DICOM file.

    Of a deflated data set no more than its head is inflated: it may be a hundred times as large as the file.

    Raises
    ------
    InputError
        ``input.*``: the file cannot be read as far as its pixels, or a deflated one as far as its UID; or it names no
        instance.
    """
    from pydicom.uid import UID

    from ptxsdk.readers import elements

    try:
        found = elements.head(content, _SOP_INSTANCE_UID)
        if found is None:
            element = elements.split(content).dataset.get_item(_SOP_INSTANCE_UID)
        else:
            element = found.get(_SOP_INSTANCE_UID)
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
