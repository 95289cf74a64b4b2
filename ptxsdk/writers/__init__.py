"""Writers: what becomes of a Detection.  The output profile is enforced here, for every writer alike."""

from __future__ import annotations

from ptxsdk.detection import Detection
from ptxsdk.errors import WriterError

NAMES = ("overlay", "json")
LATER = ("sc", "sr", "seg", "gsps")


def require_location(detection: Detection, writer: str) -> None:
    """Refuse to write a location in the triage profile, which must not direct attention to a part of the film.

    Raises
    ------
    WriterError
        ``writer.profile``.
    """
    if detection.profile == "triage":
        raise WriterError("writer.profile", f"the triage profile shows no location, so no {writer} is written")
