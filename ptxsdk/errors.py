"""The typed errors of ptxsdk: one shallow tree, every error with a stable code.

A code is ``family.cause`` and never changes its meaning; integrators switch on it.  ``CODES`` lists them all,
and ``docs/errors.md`` says for each family when it occurs and what to check.
"""

from __future__ import annotations

CODES: dict[str, str] = {
    "input.not_found": "There is no file at this path.",
    "input.is_directory": "The path names a directory where one film was expected.",
    "input.unreadable": "The operating system refused to read the file.",
    "input.empty": "The file or byte string has no content.",
    "input.unknown_format": "The content is neither DICOM nor PNG, JPEG or TIFF.",
    "input.truncated": "The content ends before the film does.",
    "input.corrupt": "The content contradicts itself or its decoder refused it.",
    "input.too_large": "A declared or real size is beyond the limits.",
    "input.unsupported": "A valid film in a form this version does not read.",
    "input.type": "An object of this Python type is not a film.",
    "input.dtype": "The array's dtype is not uint8, uint16, int16 or float32.",
    "input.shape": "The array is not two-dimensional, or a side is zero.",
    "input.layout": "The device array's elements do not lie as the kernels read them.",
    "input.device": "The array lies on a device that this detector does not use.",
    "input.timeout": "A codec took longer than the limit.",
    "input.decoder": "The helper process that codecs run in cannot be started.",
    "input.range": "Float pixels outside [0, 1] without a stated display window.",
    "input.metadata": "Spacing, orientation or age stated for an array is impossible.",
    "input.not_finite": "The pixels hold NaN or infinity.",
    "input.colour": "The film has colour; radiographs are gray.",
    "input.multi_frame": "The object holds more than one frame.",
    "input.no_pixels": "The DICOM object has no pixel data.",
    "gate.not_radiograph": "SOP class or modality is not a projection radiograph (CR, DX).",
    "gate.for_processing": "The object is raw FOR PROCESSING data.",
    "gate.body_part": "The body part is not the chest.",
    "gate.view": "The view is not frontal.",
    "gate.age": "The patient is younger than the intended population.",
    "gate.size": "The film has too few pixels or an implausible aspect ratio.",
    "gate.spacing": "The pixel spacing makes the film implausibly small or large.",
    "gate.constant": "The film is blank.",
    "gate.contrast": "The film has hardly any contrast.",
    "gate.saturation": "Too much of the film is wholly black or white.",
    "gate.padding": "Too much of the picture is black border.",
    "gate.scope": "The picture does not look like a frontal chest.",
    "gate.rotation": "The film is turned by 90 or 180 degrees.",
    "gate.polarity": "The film looks inverted.",
    "engine.not_found": "There is no engine file at this path.",
    "engine.unreadable": "The operating system refused to read the engine file.",
    "engine.not_an_engine": "The content is not a ptxengine archive.",
    "engine.corrupt": "The archive is damaged, truncated or was altered.",
    "engine.too_large": "The archive or an entry is beyond the limits.",
    "engine.format_version": "The engine was written in a format this version does not know.",
    "engine.manifest": "The manifest breaks the format's rules.",
    "engine.signature": "The signature is missing, or not by a trusted key.",
    "engine.rollback": "The engine is older than one this device has already accepted.",
    "engine.rollback_state": "The record of the newest accepted engine is missing, damaged or cannot be kept.",
    "engine.precision": "The engine has no network in the requested precision.",
    "engine.self_test": "On this device the engine does not reproduce its golden vectors.",
    "backend.unavailable": "The backend or device asked for cannot be used here.",
    "backend.failed": "The inference runtime refused the network or failed while running it.",
    "backend.lost": "The device stopped answering.",
    "backend.out_of_memory": "The device has not enough free memory.",
    "backend.not_finite": "The network produced NaN or infinity.",
    "detector.busy": "Another film held the detector for all of the time given to predict.",
    "detector.closed": "The detector was closed.",
    "detector.forked": "The detector was made in another process, before a fork.",
    "detector.internal": "A defect in ptxsdk itself; nothing was scored.",
    "detector.timeout": "The film was not scored within the time given to predict.",
    "detector.option": "An option has a value that does not exist.",
    "audit.failed": "The audit log could not be written or read; no result was returned.",
    "audit.locked": "Another process writes this audit log.",
    "audit.corrupt": "The audit log was altered, or is none.",
    "build.films": "The films to build with are missing, too few, unreadable or out of scope.",
    "build.network": "The network is not one that variants can be made of.",
    "build.accuracy": "A variant is less accurate than the engine's fp32 network by more than the budget.",
    "build.option": "An option of the build has a value that does not exist.",
    "build.unavailable": "A package that the build needs is not installed.",
    "writer.failed": "A result could not be written.",
    "writer.profile": "The output profile forbids this result.",
    "writer.option": "A kind of result was asked for that does not exist.",
    "writer.source": "The film cannot be the source of DICOM results.",
    "writer.unavailable": "The package that DICOM results need is not installed.",
    "node.option": "An option of the node has a value that it cannot work with.",
    "node.unavailable": "A package that the node needs is not installed.",
    "node.listen": "The node cannot listen at this address and port.",
    "node.spool": "The spool folder cannot be used.",
    "node.crashed": "The node went down several times while it scored this film.",
    "node.undeliverable": "A destination did not take the results in the time allowed.",
}


class PtxsdkError(Exception):
    """Base of every error that ptxsdk raises on purpose.

    Parameters
    ----------
    code : str
        One of ``CODES``.
    message : str
        What happened, with the values at hand; never patient data.

    Attributes
    ----------
    code : str
        Stable identifier of the cause.
    message : str
        The message without the code.
    """

    family: str = ""

    def __init__(self, code: str, message: str) -> None:
        if code not in CODES or not code.startswith(self.family):
            raise ValueError(f"{code!r} is not an error code of {type(self).__name__}")
        super().__init__(f"{message} [{code}]")
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.code, self.message)


class InputError(PtxsdkError):
    """The input is not a film that can be read."""

    family = "input."


class OutOfScope(PtxsdkError):
    """The film was read, but the input gate refuses to have it scored.

    Attributes
    ----------
    failed : tuple of tuple of str
        ``(code, detail)`` of every failed check; ``code`` of the error is the first.
    """

    family = "gate."

    def __init__(self, failed: tuple[tuple[str, str], ...]) -> None:
        super().__init__(failed[0][0], "; ".join(detail for _, detail in failed))
        self.failed = failed

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.failed,)


class EngineError(PtxsdkError):
    """The engine file cannot be trusted or used."""

    family = "engine."


class BackendError(PtxsdkError):
    """The inference runtime is not usable or failed."""

    family = "backend."


class DetectorError(PtxsdkError):
    """The detector was asked for something it cannot do."""

    family = "detector."


class AuditError(PtxsdkError):
    """The audit log cannot be kept or trusted; where it cannot be kept, no result is returned."""

    family = "audit."


class BuildError(PtxsdkError):
    """A variant of an engine could not be made; nothing was written."""

    family = "build."


class WriterError(PtxsdkError):
    """A result could not be written; no partial file is left behind."""

    family = "writer."


class NodeError(PtxsdkError):
    """The DICOM node cannot run as asked, or could not bring a film's results where they belong."""

    family = "node."
