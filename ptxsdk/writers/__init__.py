"""Writers: what becomes of a Detection.  The output profile is enforced here, for every writer alike."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from ptxsdk.detection import Detection, Profile
from ptxsdk.errors import WriterError
from ptxsdk.files import write_file
from ptxsdk.radiograph import Radiograph

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

DEFAULT = ("overlay", "json")
"""What ``ptxsdk predict --out`` writes unless told otherwise."""

DICOM = ("sc", "sr", "seg", "gsps")
"""Secondary Capture, Structured Report, Segmentation, Grayscale Softcopy Presentation State."""

NAMES = (*DEFAULT, *DICOM)

_LOCATING = frozenset({"overlay", "seg", "gsps"})  # they are nothing but a location


def permitted(profile: Profile, names: Sequence[str] = NAMES) -> tuple[str, ...]:
    """Return those of `names` that may be written in the profile: in "triage" none that consists of a location."""
    return tuple(name for name in names if profile != "triage" or name not in _LOCATING)


def require_location(detection: Detection, writer: str) -> None:
    """Refuse to write a location in the triage profile, which must not direct attention to a part of the film.

    Raises
    ------
    WriterError
        ``writer.profile``.
    """
    if not permitted(detection.profile, (writer,)):
        raise WriterError("writer.profile", f"the triage profile shows no location, so no {writer} is written")


def notices(detection: Detection) -> tuple[str, ...]:
    """Return what every picture and report must say of itself, in ASCII; the most important first.

    At most 64 characters each, which is what the shortest of the DICOM attributes they go into can hold.
    """
    first = "GATE OVERRIDDEN, NOT FOR DIAGNOSTIC USE" if detection.forced else "NOT FOR DIAGNOSTIC USE"
    said = (first, "research and integration only, not a medical device")
    return said if detection.flagged else (*said, "not flagged rules nothing out")


def dicom_objects(
    detection: Detection,
    film: Radiograph,
    formats: Sequence[str] | None = None,
    *,
    uid_seed: str | None = None,
    created: datetime | None = None,
) -> dict[str, Dataset]:
    """Make DICOM objects of a result: complete datasets with file meta information, in the study of the film.

    Parameters
    ----------
    detection : Detection
        The result.
    film : Radiograph
        The film that was scored, read from DICOM.
    formats : sequence of {"sc", "sr", "seg", "gsps"}, optional
        Default: "sc", "sr" and, in the profile "cade", "seg".
    uid_seed : str, optional
        With a seed all UIDs follow from it, the film's SOP Instance UID, the engine and the configuration (device,
        precision, operating point, profile, version): the same film gives the same objects, byte for byte, however
        often they are made.  Without one they are new at every call.
    created : datetime, optional
        Date and time of the objects.  Default: now; with a seed the film's own, so that it is the same every time.
        Who makes a result again and remembers when it was first made should say so here.

    Returns
    -------
    dict of str to Dataset
        In the order SC, SR, SEG, GSPS.  "seg" and "gsps" are left out where the film has no region, as every film
        that is not flagged: neither can be empty.  The SR refers to the SEG made with it, else it holds the outlines.

    Raises
    ------
    WriterError
        ``writer.profile``: a location was asked for in the profile "triage"; ``writer.option``: no such format;
        ``writer.source``: the film was not read from DICOM or lacks what identifies it; ``writer.unavailable``.
    """
    wanted = permitted(detection.profile, ("sc", "sr", "seg")) if formats is None else tuple(formats)
    for name in wanted:
        if name not in DICOM:
            raise WriterError("writer.option", f"{name!r} is not one of {', '.join(DICOM)}")
        if name in _LOCATING:
            require_location(detection, name)
    from ptxsdk.writers.instance import Origin

    origin = Origin.of(detection, film, seed=uid_seed, created=created)
    made: dict[str, Dataset] = {}
    if "sc" in wanted:
        from ptxsdk.writers.secondary_capture import secondary_capture

        made["sc"] = secondary_capture(origin)
    segmentation = None
    if "seg" in wanted and detection.regions:
        from ptxsdk.writers.segmentation import segmentation as make_segmentation

        segmentation = make_segmentation(origin)
    if "sr" in wanted:
        from ptxsdk.writers.structured_report import structured_report

        made["sr"] = structured_report(origin, segmentation)
    if segmentation is not None:
        made["seg"] = segmentation
    if "gsps" in wanted and detection.regions:
        from ptxsdk.writers.presentation_state import presentation_state

        made["gsps"] = presentation_state(origin)
    return made


def dicom_content(dataset: Dataset) -> bytes:
    """Return the content of a DICOM file."""
    from pydicom import dcmwrite

    content = io.BytesIO()
    dcmwrite(content, dataset, enforce_file_format=True)
    return content.getvalue()


def write_dicom(path: str | os.PathLike[str], dataset: Dataset) -> None:
    """Write a DICOM file, atomically.

    Raises
    ------
    WriterError
        ``writer.failed``; nothing is left behind.
    """
    write_file(path, dicom_content(dataset))
