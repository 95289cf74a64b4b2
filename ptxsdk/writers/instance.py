"""Instance: what all DICOM objects of one film have in common: whose they are, their UIDs, dates and equipment.

highdicom builds the objects upon a stand-in for the film, which names nobody.  `Origin.finish` then adds the
attributes of patient and study that the standard requires, copied from the film, and nothing else of it: no private
element, no address, no further description of the person.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import ptxsdk
from ptxsdk import gate
from ptxsdk.detection import Detection
from ptxsdk.errors import WriterError
from ptxsdk.radiograph import Radiograph
from ptxsdk.writers import notices

MANUFACTURER = "ptxsdk"

_NAMESPACE = uuid.UUID("b1f7f0a8-6f4c-5d0e-9a53-0d6f3f2f7c11")  # of all UIDs that are made from names
_SERIES = {"sc": 9001, "sr": 9002, "seg": 9003, "gsps": 9004}
_TITLES = {"sc": "picture", "sr": "report", "seg": "regions", "gsps": "outlines"}

# Type 2 in every object: there, if empty.
_ALWAYS = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
# Optional, but archives tell patients and studies apart by them.
_IF_PRESENT = ("IssuerOfPatientID", "StudyDescription")

_FORMS = {
    "DA": re.compile(r"\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])", re.ASCII),
    "TM": re.compile(r"([01]\d|2[0-3])([0-5]\d(([0-5]\d|60)(\.\d{1,6})?)?)?", re.ASCII),
    "UI": re.compile(r"(?=.{1,64}$)(0|[1-9]\d*)(\.(0|[1-9]\d*))+", re.ASCII),
    "CS": re.compile(r"[A-Z0-9_ ]{1,16}", re.ASCII),
    "DS": re.compile(r"(?=.{1,16}$)[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII),
}
_SEXES = ("M", "F", "O")
_LONGEST = 1024  # characters; no name or identifier may have as many, whatever its kind
_LONGEST_ENCODED = 8 * _LONGEST


@dataclass(frozen=True)
class Origin:
    """A result, its film, and what identifies the objects made of them.

    Attributes
    ----------
    detection : Detection
        The result.
    film : Radiograph
        The film, read from DICOM.
    source : Dataset
        Stand-in for the film: its UIDs, its size, and no patient.
    header : Header
        The film's own header.
    seed : str
        What the UIDs are made from.
    created : datetime
        Date and time of the objects.
    """

    detection: Detection
    film: Radiograph
    source: Any
    header: Header
    seed: str
    created: datetime

    @classmethod
    def of(cls, detection: Detection, film: Radiograph, *, seed: str | None, created: datetime | None) -> Origin:
        """Check that objects can be made.

        Raises
        ------
        WriterError
            ``writer.source`` or ``writer.unavailable``.
        """
        try:
            import highdicom  # noqa: F401
        except ImportError:
            raise WriterError(
                "writer.unavailable", "DICOM results need highdicom: pip install 'ptxsdk[report]'"
            ) from None
        if film.dataset is None:
            raise WriterError("writer.source", f"DICOM results need a film read from DICOM, not from an {film.origin}")
        if detection.geometry.source != film.shape:
            raise WriterError("writer.source", "the result is of another film: their sizes differ")
        header = Header(film.dataset)
        source = _stand_in(header, film)
        if created is None:
            created = datetime.now() if seed is None else _time_of(header)  # noqa: DTZ005 - DICOM's times are local
        point = detection.operating_point
        configuration = (
            source.SOPInstanceUID,
            ptxsdk.__version__,
            detection.engine.sha256,
            detection.backend,
            detection.device,
            detection.precision,
            point.name,
            repr(point.threshold),
            detection.profile,
            *notices(detection),
        )
        seed = uuid.uuid4().hex if seed is None else "\n".join((seed, *configuration))
        return cls(detection, film, source, header, seed, created)

    def uid(self, *what: str) -> str:
        """Return the UID of the thing of this name (PS3.5 B.2: derived from a UUID)."""
        return _uid("\n".join((self.seed, *what)))

    @property
    def device_uid(self) -> str:
        """UID of the engine file, as a device."""
        return _uid(self.detection.engine.sha256)

    @property
    def software(self) -> list[str]:
        """Software Versions: this package, the engine."""
        return [f"ptxsdk {ptxsdk.__version__}", f"engine {self.detection.engine.version}"[:64]]

    @property
    def parameters(self) -> dict[str, str]:
        """What the engine was run with."""
        detection = self.detection
        point = detection.operating_point
        return {
            "operating point": point.name,
            "threshold": f"{point.threshold:.6g}",
            "precision": detection.precision,
            "backend": f"{detection.backend} on {detection.device}",
            "profile": detection.profile,
            "engine SHA-256": detection.engine.sha256,
        }

    def identifiers(self, kind: str, *what: str) -> dict[str, Any]:
        """Return the arguments that name an object to highdicom: a series of its own for every kind."""
        return {
            "series_instance_uid": self.uid(kind, *what, "series"),
            "series_number": _SERIES[kind],
            "sop_instance_uid": self.uid(kind, *what),
            "instance_number": 1,
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": self.detection.engine.name[:64],
            "software_versions": self.software,
            "device_serial_number": self.detection.engine.sha256,
            "series_description": f"ptxsdk {_TITLES[kind]}: {notices(self.detection)[0].lower()}",
        }

    def finish(self, dataset: Any) -> Any:
        """Make an object of highdicom's the patient's and of the time of `created`, in place; return it."""
        for keyword in _ALWAYS:
            dataset[keyword] = self.header.element(keyword)
        for keyword in _IF_PRESENT:
            if self.header.text(keyword):
                dataset[keyword] = self.header.element(keyword)
        if self.header.charset:
            dataset.SpecificCharacterSet = self.header.charset
        elif "SpecificCharacterSet" in dataset:
            del dataset.SpecificCharacterSet
        self._add_body_part(dataset)
        dataset.ContributingEquipmentSequence = self._equipment()
        day, clock = self.created.strftime("%Y%m%d"), self.created.strftime("%H%M%S.%f")
        for name in ("InstanceCreation", "Content", "PresentationCreation"):
            if f"{name}Date" in dataset:
                setattr(dataset, f"{name}Date", day)
                setattr(dataset, f"{name}Time", clock)
        if "DateOfSecondaryCapture" in dataset:
            dataset.DateOfSecondaryCapture, dataset.TimeOfSecondaryCapture = day, clock
        dataset.InstanceCreatorUID = self.device_uid
        dataset.file_meta.ImplementationClassUID = _uid("implementation")
        dataset.file_meta.ImplementationVersionName = f"PTXSDK_{ptxsdk.__version__}"[:16]
        return dataset

    def _add_body_part(self, dataset: Any) -> None:
        """Say "CHEST", which has no laterality; another part, scored against the gate, as the film says it."""
        part = self.header.text("BodyPartExamined")
        if not part or gate.is_chest(part):
            dataset.BodyPartExamined = "CHEST"
            return
        dataset.BodyPartExamined = part
        if dataset.Modality != "SEG":  # whose frames would say it
            dataset.Laterality = self.header.text("Laterality")

    def _equipment(self) -> list[Any]:
        """Return the items of Contributing Equipment: what took the film, and what made the object."""
        import highdicom
        from highdicom import ContributingEquipment
        from pydicom.sr.codedict import codes

        items = []
        maker, model = (
            self.header.text(keyword).replace("\\", "/")[:64] for keyword in ("Manufacturer", "ManufacturerModelName")
        )
        if maker:
            items.append(
                ContributingEquipment(maker, codes.DCM.AcquisitionEquipment, manufacturer_model_name=model or None)
            )
        ours = ContributingEquipment(
            MANUFACTURER,
            codes.DCM.ProcessingEquipment,
            manufacturer_model_name=self.detection.engine.name[:64],
            software_versions=self.software,
            device_serial_number=self.detection.engine.sha256,
            contribution_datetime=self.created,
            contribution_description="Scored the film",
        )
        ours.DeviceUID = self.device_uid
        library = ContributingEquipment(
            "Highdicom open-source contributors",
            codes.DCM.ProcessingEquipment,
            manufacturer_model_name="highdicom",
            software_versions=highdicom.__version__,
            contribution_datetime=self.created,
            contribution_description="Software library used to create this instance",
        )
        return [*items, ours, library]


class Header:
    """The film's header, with values that break the rules of their kind taken as absent.

    Attributes
    ----------
    charset : list of str
        Specific Character Set of what is copied.  It is the film's, and where the film declares none its bytes stay as
        they are; only text of a Dataset in memory that the film's cannot express makes it UTF-8.
    """

    def __init__(self, dataset: Any) -> None:
        from pydicom.charset import python_encoding

        self._dataset = dataset
        terms = [term.strip(" \0") for term in self._latin("SpecificCharacterSet").split("\\")]
        self._known = all(term in python_encoding for term in terms)
        self._encodings = [python_encoding[term] for term in terms] if self._known else ["ascii"]
        copied = (*_ALWAYS, *_IF_PRESENT, "Manufacturer", "ManufacturerModelName")
        foreign = [keyword for keyword in copied if not self.text(keyword).isascii()]
        undeclared = not any(terms)
        if not foreign:
            self.charset = terms if self._known and not undeclared else []
        elif all(isinstance(self._value(keyword), bytes) for keyword in foreign):
            self.charset = [] if undeclared else terms
        else:
            kept = not undeclared and all(map(self._expresses, foreign))
            self.charset = terms if kept else ["ISO_IR 192"]

    def text(self, keyword: str) -> str:
        """Return the value as text, empty where there is none that can be read."""
        from pydicom.datadict import dictionary_VR

        vr = dictionary_VR(keyword)
        if vr in _FORMS:
            found = self._latin(keyword).strip(" \0")
            good = _FORMS[vr].fullmatch(found) and (keyword != "PatientSex" or found in _SEXES)
            return found if good else ""
        value = self._value(keyword)
        text = self._decoded(value) if isinstance(value, bytes) else "" if value is None else str(value).strip(" \0")
        return text if len(text) <= _LONGEST else ""

    def element(self, keyword: str) -> Any:
        """Return a copy of the element, empty where its value cannot be read."""
        from pydicom import config
        from pydicom.datadict import dictionary_VR
        from pydicom.dataelem import DataElement
        from pydicom.valuerep import PersonName

        vr, text = dictionary_VR(keyword), self.text(keyword)
        value = PersonName(text, validation_mode=config.IGNORE) if vr == "PN" else text
        return DataElement(keyword, vr, value, validation_mode=config.IGNORE)

    def _value(self, keyword: str) -> Any:
        """Return the value as it is held: bytes where pydicom has not converted it, several as they are encoded.

        None where it is longer than any that is copied may be.
        """
        from pydicom.datadict import tag_for_keyword
        from pydicom.multival import MultiValue

        element = self._dataset.get_item(tag_for_keyword(keyword))
        value = None if element is None else element.value
        if isinstance(value, (MultiValue, list, str, bytes)) and len(value) > _LONGEST_ENCODED:
            return None
        return "\\".join(str(one) for one in value) if isinstance(value, (MultiValue, list)) else value

    def _latin(self, keyword: str) -> str:
        value = self._value(keyword)
        return value.decode("latin-1") if isinstance(value, bytes) else "" if value is None else str(value)

    def _decoded(self, value: bytes) -> str:
        """Return text decoded as declared; empty where it is not what it is declared to be."""
        from pydicom.charset import decode_bytes
        from pydicom.valuerep import TEXT_VR_DELIMS

        try:
            if len(self._encodings) == 1:
                text = value.decode(self._encodings[0])
            else:
                text = decode_bytes(value, self._encodings, TEXT_VR_DELIMS | {ord("^"), ord("=")})
        except (UnicodeError, LookupError):
            return ""
        return "" if "\ufffd" in text else text.strip(" \0")

    def _expresses(self, keyword: str) -> bool:
        """Say whether the declared character set holds the value: it does what was encoded in it."""
        if isinstance(self._value(keyword), bytes):
            return True
        try:
            self.text(keyword).encode(self._encodings[0])
        except UnicodeError:
            return False
        return True


def _stand_in(header: Header, film: Radiograph) -> Any:
    """Return what highdicom needs to know of the film."""
    from pydicom.dataset import Dataset

    source = Dataset()
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        value = header.text(keyword)
        if not value:
            raise WriterError("writer.source", f"the film has no valid {keyword}, which DICOM results refer to")
        setattr(source, keyword, value)
    radiographs = (
        gate.COMPUTED_RADIOGRAPHY,
        gate.DIGITAL_X_RAY,
        gate.DIGITAL_X_RAY_FOR_PROCESSING,
        gate.SECONDARY_CAPTURE,
    )
    if source.SOPClassUID not in radiographs:
        raise WriterError("writer.source", "DICOM results are made of CR, DX and Secondary Capture objects only")
    source.Modality = header.text("Modality") or "OT"
    source.Rows, source.Columns = film.shape
    if header.text("LossyImageCompression") == "01":
        source.LossyImageCompression = "01"
        for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            if header.text(keyword):
                setattr(source, keyword, header.text(keyword))
    source.SamplesPerPixel = 1
    for keyword in _ALWAYS:
        setattr(source, keyword, "")
    return source


def _time_of(header: Header) -> datetime:
    """Return when the film was made, as far as it says so."""
    for name in ("Content", "Acquisition", "Series", "Study"):
        day = header.text(f"{name}Date")
        if day:
            clock = (header.text(f"{name}Time").split(".")[0] + "000000")[:6]
            try:
                return datetime.strptime(day + clock, "%Y%m%d%H%M%S")  # noqa: DTZ007 - DICOM's times are local
            except ValueError:
                continue
    return datetime(1970, 1, 1)  # noqa: DTZ001


def _uid(name: str) -> str:
    return f"2.25.{uuid.uuid5(_NAMESPACE, name).int}"
