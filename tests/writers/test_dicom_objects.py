"""DICOM results: valid, readable elsewhere, the patient's and nobody else's, the same when they must be."""

from __future__ import annotations

import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime

import numpy as np
import pydicom
import pytest
from dicom_results import (
    EVERY,
    FILMS,
    chest_dataset,
    chest_film,
    encoded,
    in_charset,
    program,
    run,
    uids,
    violations,
    with_map,
)
from made import make_chest
from pydicom.data import get_charset_files, get_testdata_file
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import UID
from scipy import ndimage

from ptxsdk import Radiograph, WriterError, readers
from ptxsdk.writers import dicom_objects, notices, write_dicom

CASES = [(name, profile) for name in FILMS for profile in ("cade", "triage")]


REAL = [
    "RG1_UNCR.dcm",
    "RG1_J2KI.dcm",
    "RG3_J2KR.dcm",
    "mlut_18.dcm",
    "vlut_04.dcm",
    "JPEG-LL.dcm",
    "JPEG-lossy.dcm",
    "JPGExtended.dcm",
    "image_dfl.dcm",
]
NAMED = [
    "chrArab",
    "chrFren",
    "chrFrenMulti",
    "chrGerm",
    "chrGreek",
    "chrH31",
    "chrH32",
    "chrHbrw",
    "chrI2",
    "chrRuss",
    "chrX1",
    "chrX2",
]


def source_of(name):
    """A file of pydicom, of pydicom-data, or of pydicom's collection of character sets."""
    return get_charset_files(f"{name}.dcm")[0] if name.startswith("chr") else get_testdata_file(name, download=False)


@pytest.mark.parametrize("name", [*REAL, *NAMED])
def test_the_objects_of_every_real_film_are_valid(detector, tmp_path, name):
    """Whatever the film shows: the map is made, and has regions everywhere."""
    film = readers.read(source_of(name))
    noise = np.random.default_rng(0).normal(size=(64, 64))
    logits = np.ascontiguousarray(20 * ndimage.gaussian_filter(noise, 2), np.float32)
    detection = with_map(detector.predict(chest_film()), film, logits, min_area=20)
    made = dicom_objects(detection, film, EVERY)
    assert list(made) == list(EVERY)
    for kind, ds in made.items():
        write_dicom(tmp_path / "made.dcm", ds)
        assert violations(tmp_path / "made.dcm") == [], kind
        again, original = (pydicom.dcmread(path) for path in (tmp_path / "made.dcm", source_of(name)))
        assert again.get("SpecificCharacterSet") == original.get("SpecificCharacterSet")
        # Byte for byte, but for empty component groups at the end, which mean nothing.
        names = [ds.get_item("PatientName").value.rstrip(b" =") for ds in (again, original)]
        assert names[0] == names[1]


@pytest.mark.parametrize(("name", "profile"), CASES)
@pytest.mark.requirement("R-DICOM-1")
def test_every_object_is_valid(results_of, name, profile):
    results = results_of(name, profile)
    assert list(results.files) == (list(EVERY) if profile == "cade" else ["sc", "sr"])
    for kind, path in results.files.items():
        assert violations(path) == [], kind


def test_the_validator_finds_what_is_wrong(results_of, tmp_path):
    broken = pydicom.dcmread(results_of("full_dx").files["sr"])
    del broken.VerificationFlag
    broken.save_as(tmp_path / "sr.dcm")
    assert any("VerificationFlag" in line for line in violations(tmp_path / "sr.dcm"))


@pytest.mark.parametrize("name", FILMS)
def test_dcmtk_reads_every_object(results_of, name):
    dump, report, picture = program("dcmdump"), program("dsrdump"), program("dcm2img", "dcmj2pnm")
    files = results_of(name).files
    for path in files.values():
        text = run(dump, "-q", path)
        assert "UNKNOWN" not in text.upper().replace("UNKNOWN TAG", "UNKNOWN")
    text = run(report, files["sr"])
    assert "Imaging Measurement Report" in text
    assert "UNVERIFIED" in text
    for kind in ("sc", "seg"):
        run(picture, files[kind], files[kind].with_suffix(".pgm"))


@pytest.mark.parametrize("name", FILMS)
@pytest.mark.parametrize("profile", ["cade", "triage"])
def test_a_new_series_of_the_same_study_that_refers_to_the_film(results_of, name, profile):
    results = results_of(name, profile)
    source = results.film.dataset
    series = {source.SeriesInstanceUID}
    for kind, path in results.files.items():
        ds = pydicom.dcmread(path)
        assert ds.StudyInstanceUID == source.StudyInstanceUID
        assert ds.SeriesInstanceUID not in series, kind
        series.add(ds.SeriesInstanceUID)
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID != source.SOPInstanceUID
        assert all(UID(uid).is_valid for uid in uids(ds))
        assert source.SOPInstanceUID in {
            element.value for element in ds.iterall() if element.keyword == "ReferencedSOPInstanceUID"
        }, kind
        equipment = ds.ContributingEquipmentSequence
        ours = next(item for item in equipment if item.Manufacturer == "ptxsdk")
        assert ours.ManufacturerModelName == results.detection.engine.name
        assert UID(ours.DeviceUID).is_valid
        assert results.detection.engine.version in "".join(ours.SoftwareVersions)


@pytest.mark.parametrize("name", FILMS)
@pytest.mark.requirement("R-DICOM-1")
def test_patient_and_study_are_the_films(results_of, name):
    results = results_of(name)
    source = results.film.dataset
    broken = {"PatientSex", "PatientBirthDate", "StudyDate", "StudyTime"} if name == "broken_values" else set()
    for path in results.files.values():
        ds = pydicom.dcmread(path)
        for keyword in (
            "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
            "AccessionNumber", "ReferringPhysicianName",
        ):  # fmt: skip
            expected = "" if keyword in broken else str(source.get(keyword) or "")
            assert str(ds[keyword].value or "") == expected, keyword


@pytest.mark.parametrize("name", ["latin1", "cyrillic", "japanese", "japanese, IR 13", "korean", "utf8", "chinese"])
def test_names_in_every_character_set_stay_byte_for_byte(results_of, name):
    results = results_of(name)
    original = results.film.dataset.get_item("PatientName").value
    original = original if isinstance(original, bytes) else original.original_string
    dump = program("dcmdump")
    for path in results.files.values():
        ds = pydicom.dcmread(path)
        assert ds.SpecificCharacterSet == results.film.dataset.SpecificCharacterSet
        assert ds.get_item("PatientName").value.rstrip() == original.rstrip()
        if name not in (
            "japanese",
            "japanese, IR 13",
            "korean",
        ):  # Debian's DCMTK converts with glibc, which it does not trust with ISO 2022
            shown = run(dump, "+U8", "+P", "PatientName", path)
            assert str(ds.PatientName).split("=")[-1].split("^")[0] in shown


def test_a_name_whose_character_set_is_not_declared_keeps_its_bytes(detector):
    film = in_charset(None, "Müller^Jörg", encoding="latin-1")
    made = dicom_objects(detector.predict(film), film, ["sr"])["sr"]
    assert "SpecificCharacterSet" not in made
    assert "Müller^Jörg".encode("latin-1") in encoded(made)


@pytest.mark.parametrize("terms", ["ISO_IR 192", "KLINGON"])
def test_a_name_that_is_not_what_is_declared_is_left_out(detector, terms):
    film = in_charset(terms, "Müller^Jörg", encoding="latin-1", PatientID="ID-1")
    made = dicom_objects(detector.predict(film), film, ["sr"])["sr"]
    assert str(made.PatientName) == ""
    assert made.PatientID == "ID-1"
    pydicom.dcmread(pydicom.filebase.DicomBytesIO(encoded(made)))


@pytest.mark.parametrize("terms", [None, "ISO_IR 100", ["", "ISO 2022 IR 87"]])
def test_a_dataset_in_memory_whose_name_its_character_set_cannot_express_becomes_utf8(detector, terms):
    ds = chest_dataset(PatientName="山田^太郎", SpecificCharacterSet=terms)
    film = readers.read(ds)
    made = dicom_objects(detector.predict(film), film, ["sr"])["sr"]
    again = pydicom.dcmread(pydicom.filebase.DicomBytesIO(encoded(made)))
    assert str(again.PatientName) == "山田^太郎"


def test_a_name_beyond_all_bounds_is_left_out(detector):
    film = in_charset("ISO_IR 100", b"X" * 60000)
    made = dicom_objects(detector.predict(film), film, ["sr"])["sr"]
    assert str(made.PatientName) == ""
    assert made.PatientID == "SECRET-ID"


@pytest.mark.parametrize("tag", ["SpecificCharacterSet", "PatientName"])
def test_a_value_of_millions_of_parts_costs_no_memory(detector, tag):
    film = chest_film()
    detection = detector.predict(film)
    dicom_objects(detection, film, ["sr"])  # loads what it needs
    value = b"x\\" * (4 << 20)
    film.dataset[tag] = RawDataElement(Tag(tag), dictionary_VR(tag), len(value), value, 0, False, True)
    tracemalloc.start()
    try:
        made = dicom_objects(detection, film, ["sr"])["sr"]
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 20 << 20
    assert str(made.PatientName) == ("" if tag == "PatientName" else "Secret^Name")


@pytest.mark.requirement("R-DICOM-1")
def test_nothing_else_of_the_film_is_copied(results_of):
    results = results_of("full_dx")
    for path in results.files.values():
        content = path.read_bytes()
        assert b"CANARY" not in content
        assert b"Secret^Name" in content
        ds = pydicom.dcmread(path)
        assert not [element for element in ds.iterall() if element.tag.is_private]
        assert "FrameOfReferenceUID" not in ds
        assert ds.IssuerOfPatientID == "HOSPITAL"
        assert ds.ContributingEquipmentSequence[0].Manufacturer == "Maker"


@pytest.mark.requirement("R-DICOM-2")
def test_with_a_seed_the_same_film_gives_the_same_bytes(detector):
    first, second = chest_film(), chest_film()
    made = dicom_objects(detector.predict(first), first, EVERY, uid_seed="site 1")
    again = dicom_objects(detector.predict(second), second, EVERY, uid_seed="site 1")
    assert {kind: encoded(ds) for kind, ds in made.items()} == {kind: encoded(ds) for kind, ds in again.items()}


def test_threads_make_objects_side_by_side(detector):
    film = chest_film()
    detection = detector.predict(film)

    def make(_):
        return {kind: encoded(ds) for kind, ds in dicom_objects(detection, film, EVERY, uid_seed="x").items()}

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(make, range(8))
    assert all(other == first for other in others)


@pytest.mark.parametrize(
    "change",
    [
        {"uid_seed": "site 2"},
        {"film": {"SOPInstanceUID": "1.2.3.9"}},
        {"detection": {"precision": "int8"}},
        {"detection": {"device": "cuda:0"}},
    ],
)
def test_another_seed_film_or_configuration_gives_other_uids(detector, change):
    film = chest_film()
    detection = detector.predict(film)
    made = dicom_objects(detection, film, EVERY, uid_seed="site 1")
    other = chest_film(**change.get("film", {}))
    changed = dicom_objects(
        replace(detection, **change.get("detection", {})), other, EVERY, uid_seed=change.get("uid_seed", "site 1")
    )
    for kind in EVERY:
        assert not set(uids(made[kind])) & set(uids(changed[kind]))


def test_a_report_with_outlines_is_another_than_one_with_segments(detector):
    film = chest_film()
    detection = detector.predict(film)
    alone = dicom_objects(detection, film, ["sr"], uid_seed="x")["sr"]
    together = dicom_objects(detection, film, ["sr", "seg"], uid_seed="x")["sr"]
    assert not set(uids(alone)) & set(uids(together))


def test_without_a_seed_every_uid_is_new(detector):
    film = chest_film()
    detection = detector.predict(film)
    found = [uid for _ in range(2) for ds in dicom_objects(detection, film, EVERY).values() for uid in uids(ds)]
    assert len(set(found)) == len(found)


def test_dates_are_now_or_the_callers_or_with_a_seed_the_films(detector):
    film = chest_film(ContentDate="20200229", ContentTime="160000.5")
    detection = detector.predict(film)
    before = datetime.now()  # noqa: DTZ005
    made = dicom_objects(detection, film, EVERY)["sr"]
    stated = datetime.strptime(made.ContentDate + made.ContentTime, "%Y%m%d%H%M%S.%f")  # noqa: DTZ007
    assert before <= stated <= datetime.now()  # noqa: DTZ005
    for ds in dicom_objects(detection, film, EVERY, uid_seed="x").values():
        dates = {
            str(element.value) for element in ds.iterall() if element.VR == "DA" and element.keyword != "StudyDate"
        } - {""}
        assert dates == {"20200229"}
        times = {str(e.value) for e in ds.iterall() if e.VR == "TM" and e.keyword != "StudyTime"}
        assert times == {"160000.000000"}
    undated = chest_film(StudyDate=None)
    assert dicom_objects(detection, undated, ["sr"], uid_seed="x")["sr"].ContentDate == "19700101"
    own = dicom_objects(detection, film, EVERY, uid_seed="x", created=datetime(2021, 2, 3, 4, 5, 6))  # noqa: DTZ001
    assert {ds.InstanceCreationDate + ds.InstanceCreationTime for ds in own.values()} == {"20210203040506.000000"}


def test_a_film_that_is_not_flagged_has_no_segmentation_and_no_outlines(detector):
    film = chest_film(blob=None)
    detection = detector.predict(film)
    assert not detection.flagged
    assert list(dicom_objects(detection, film, EVERY)) == ["sc", "sr"]


def test_what_is_made_by_default(detector, triage):
    film = chest_film()
    assert list(dicom_objects(detector.predict(film), film)) == ["sc", "sr", "seg"]
    assert list(dicom_objects(triage.predict(film), film)) == ["sc", "sr"]


def test_every_object_says_what_it_is_not(results_of):
    results = results_of("full_dx")
    for kind, path in results.files.items():
        content = path.read_bytes()
        assert notices(results.detection)[0].lower().encode() in content.lower(), kind


@pytest.mark.parametrize("flagged", [True, False])
@pytest.mark.requirement("R-WORDS-1")
def test_no_object_calls_a_film_normal_or_a_finding_absent(detector, flagged):
    film = chest_film(blob=(250, 150, 60) if flagged else None)
    detection = detector.predict(film)
    assert detection.flagged is flagged
    for ds in dicom_objects(detection, film, EVERY).values():
        text = str(ds).lower()
        for word in ("normal", "no pneumothorax", "absent", "2667000", "rid28473", "52101004", "rid28472"):
            assert word not in text.replace("abnormal", "")
        assert ("Not flagged" in str(ds)) == (not flagged and ds.Modality == "SR")


def test_notices_fit_where_they_are_written(detector):
    for blob in (None, (250, 150, 60)):
        for notice in notices(detector.predict(chest_film(blob=blob))):
            assert notice.isascii()
            assert len(notice) <= 64


# --- what cannot be done ----------------------------------------------------------------------------------------------


def failure(*arguments, **options):
    with pytest.raises(WriterError) as raised:
        dicom_objects(*arguments, **options)
    return raised.value.code


def test_a_film_that_was_not_dicom_is_no_source(detector):
    film = Radiograph.from_array(make_chest(blob=(250, 150, 60)))
    assert failure(detector.predict(film), film) == "writer.source"


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("value", [None, "", "1.2.x"])
def test_a_film_without_its_identifiers_is_no_source(detector, keyword, value):
    ds = chest_dataset()
    del ds[keyword]
    if value is not None:
        from pydicom import config
        from pydicom.dataelem import DataElement

        ds[keyword] = DataElement(keyword, "UI", value, validation_mode=config.IGNORE)
    film = readers.read(ds)
    assert failure(detector.predict(film), film) == "writer.source"


@pytest.mark.parametrize("uid", ["1.2.840.10008.5.1.4.1.1.2", "1.2.840.113619.4.99"])
def test_an_object_that_is_no_radiograph_is_no_source(detector, uid):
    """Such a film is scored only where the gate was overruled."""
    film = chest_film()
    detection = detector.predict(film)
    ds = chest_dataset(SOPClassUID=uid)
    assert failure(detection, replace(film, dataset=ds)) == "writer.source"


@pytest.mark.parametrize(
    ("part", "written"),
    [
        (None, "CHEST"),
        ("PORT CHEST", "CHEST"),
        ("THORAX", "CHEST"),
        ("LUNG", "CHEST"),
        ("LEG", "LEG"),
        ("HAND", "HAND"),
    ],
)
def test_the_body_part_is_the_chest_unless_the_film_says_another(detector, tmp_path, part, written):
    film = chest_film(BodyPartExamined=part)
    for ds in dicom_objects(detector.predict(chest_film()), film, EVERY).values():
        assert ds.BodyPartExamined == written
        write_dicom(tmp_path / "made.dcm", ds)
        assert violations(tmp_path / "made.dcm") == []


def test_the_result_of_another_film_is_refused(detector):
    other = chest_film(shape=(700, 560))
    assert failure(detector.predict(chest_film()), other) == "writer.source"


def test_a_segmentation_needs_the_map(detector):
    film = chest_film()
    detection = detector.predict(film)
    assert failure(replace(detection, mask_logits=None), film, ["seg"]) == "writer.source"
    assert failure(replace(detection, region_threshold=None), film, ["seg"]) == "writer.source"


def test_an_unknown_format_is_refused(detector):
    film = chest_film()
    assert failure(detector.predict(film), film, ["sc", "pdf"]) == "writer.option"


def test_without_highdicom_the_error_says_what_to_install(detector, monkeypatch):
    film = chest_film()
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(WriterError, match="ptxsdk\\[report\\]") as raised:
        dicom_objects(detector.predict(film), film)
    assert raised.value.code == "writer.unavailable"


@pytest.mark.requirement("R-WRITE-1")
def test_a_file_is_written_whole_or_not_at_all(results_of, tmp_path):
    ds = results_of("full_dx").objects["sr"]
    write_dicom(tmp_path / "a.dcm", ds)
    assert encoded(pydicom.dcmread(tmp_path / "a.dcm")) == encoded(ds)
    with pytest.raises(WriterError) as raised:
        write_dicom(tmp_path / "no" / "a.dcm", ds)
    assert raised.value.code == "writer.failed"
    assert [path.name for path in tmp_path.iterdir()] == ["a.dcm"]


def test_highdicom_is_not_loaded_before_it_is_needed():
    import subprocess

    code = "import ptxsdk.cli, ptxsdk.writers, sys; sys.exit('highdicom' in sys.modules or 'pydicom' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_pixels_of_the_film_are_left_alone(detector):
    film = chest_film()
    before = film.pixels.copy()
    dicom_objects(detector.predict(film), film, EVERY)
    np.testing.assert_array_equal(film.pixels, before)
