"""The gate: each check by its header or by its picture."""

from __future__ import annotations

import numpy as np
import pytest
from made import make_chest

from ptxsdk import DetectorError, OutOfScope, gate
from ptxsdk.gate import GatePolicy
from ptxsdk.radiograph import Display, Radiograph, Window

DISPLAY = Display(voi=Window.from_range(0, 255))
ADULT_CHEST = {
    "sop_class_uid": gate.DIGITAL_X_RAY,
    "modality": "DX",
    "presentation_intent": "FOR PRESENTATION",
    "body_part": "CHEST",
    "view": "AP",
    "age": 61.0,
}


def statuses(policy=None, shape=(640, 560), **header):
    film = Radiograph(pixels=np.zeros(shape, np.uint8), display=DISPLAY, origin="dicom", **(ADULT_CHEST | header))
    return {check.code: check.status for check in gate.check_header(film, policy or GatePolicy())}


def test_an_adult_chest_passes_every_header_check():
    assert set(statuses().values()) == {"pass"}


@pytest.mark.parametrize(
    ("header", "code", "status"),
    [
        ({"modality": "CT", "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2"}, "gate.not_radiograph", "fail"),
        ({"modality": "CT"}, "gate.not_radiograph", "fail"),
        ({"sop_class_uid": None}, "gate.not_radiograph", "fail"),
        ({"modality": "CR", "sop_class_uid": gate.COMPUTED_RADIOGRAPHY}, "gate.not_radiograph", "pass"),
        ({"modality": "CR", "sop_class_uid": gate.SECONDARY_CAPTURE}, "gate.not_radiograph", "pass"),
        ({"modality": "OT", "sop_class_uid": gate.SECONDARY_CAPTURE}, "gate.not_radiograph", "fail"),
        ({"presentation_intent": "FOR PROCESSING"}, "gate.for_processing", "fail"),
        ({"presentation_intent": None}, "gate.for_processing", "unknown"),
        (
            {"presentation_intent": None, "sop_class_uid": gate.DIGITAL_X_RAY_FOR_PROCESSING},
            "gate.for_processing",
            "fail",
        ),
        ({"body_part": "KNEE"}, "gate.body_part", "fail"),
        ({"body_part": None}, "gate.body_part", "unknown"),
        ({"body_part": "PORT CHEST"}, "gate.body_part", "pass"),
        ({"view": "LL"}, "gate.view", "fail"),
        ({"view": "PA"}, "gate.view", "pass"),
        ({"view": None}, "gate.view", "unknown"),
        ({"age": 17.9}, "gate.age", "fail"),
        ({"age": 18.0}, "gate.age", "pass"),
        ({"age": None}, "gate.age", "unknown"),
    ],
)
@pytest.mark.requirement("R-GATE-1")
def test_header(header, code, status):
    assert statuses(**header)[code] == status


def test_policy_changes_the_rules():
    strict = GatePolicy(blank_view="refuse", secondary_capture="refuse", minimum_age=21)
    assert statuses(strict, view=None)["gate.view"] == "fail"
    assert statuses(strict, modality="CR", sop_class_uid=gate.SECONDARY_CAPTURE)["gate.not_radiograph"] == "fail"
    assert statuses(strict, age=20.0)["gate.age"] == "fail"


@pytest.mark.parametrize(
    ("shape", "status"), [((256, 256), "pass"), ((255, 400), "fail"), ((256, 641), "fail"), ((1, 1), "fail")]
)
def test_size(shape, status):
    assert statuses(shape=shape)["gate.size"] == status


def test_a_picture_without_a_file_has_an_unknown_modality():
    film = Radiograph.from_array(make_chest())
    found = {check.code: check.status for check in gate.check_header(film, GatePolicy())}
    assert found["gate.not_radiograph"] == "unknown"
    assert "fail" not in found.values()


@pytest.mark.parametrize(
    "changes", [{"blank_view": "reject"}, {"secondary_capture": "all"}, {"minimum_age": "18"}, {"minimum_side": np.nan}]
)
def test_a_policy_that_says_nothing_known_is_refused(changes):
    with pytest.raises(DetectorError) as raised:
        GatePolicy(**changes)
    assert raised.value.code == "detector.option"


@pytest.mark.requirement("R-ERROR-2")
def test_free_text_in_a_header_is_not_repeated():
    free = {"view": "JOHN^DOE 1950", "body_part": "ARM OF JOHN\x1b[2J", "modality": "JOHN"}
    film = Radiograph(pixels=np.zeros((300, 300), np.uint8), display=DISPLAY, origin="dicom", **(ADULT_CHEST | free))
    for check in gate.check_header(film, GatePolicy()):
        assert "JOHN" not in check.detail
        assert check.detail.isprintable()


@pytest.mark.parametrize(
    ("orientation", "status"),
    [(("L", "F"), "pass"), (("R", "F"), "pass"), (("LA", "FR"), "pass"), (("A", "F"), "fail"), (("L", "H"), "fail")],
)
@pytest.mark.requirement("R-GATE-1")
def test_orientation_tells_a_lateral_with_a_frontal_view(orientation, status):
    assert statuses(patient_orientation=orientation)["gate.view"] == status
    assert statuses(patient_orientation=orientation, view=None)["gate.view"] == status.replace("pass", "unknown")


def content(shown):
    return {check.code: check.status for check in gate.check_content(shown.astype(np.float32), GatePolicy())}


@pytest.mark.requirement("R-GATE-2")
def test_content_of_a_chest_and_of_its_negative():
    chest = make_chest() / 255
    assert set(content(chest).values()) == {"pass"}
    assert content(1 - chest)["gate.polarity"] == "fail"
    assert content(chest[:, ::-1])["gate.polarity"] == "pass"  # the gate does not mind a mirrored film


@pytest.mark.requirement("R-GATE-2")
def test_blank_and_faint_films():
    assert content(np.full((50, 60), 0.4)) == {"gate.constant": "fail"}
    assert content(0.5 + 0.1 * (make_chest() / 255 - 0.5))["gate.contrast"] == "fail"


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (3, 3), (17, 200)])
def test_small_and_odd_pictures_do_not_break_the_checks(shape):
    checks = content(np.random.default_rng(0).random(shape))
    assert "gate.contrast" in checks


def test_grid_means_are_the_means_of_the_cells():
    values = np.random.default_rng(0).random((48, 80)).astype(np.float32)
    expected = values.astype(float).reshape(16, 3, 16, 5).mean((1, 3))
    np.testing.assert_allclose(gate._grid_means(values, 16), expected)


def test_every_failed_check_is_named():
    film = Radiograph(
        pixels=np.zeros((300, 300), np.uint8),
        display=DISPLAY,
        origin="dicom",
        **(ADULT_CHEST | {"view": "LL", "age": 3}),
    )
    with pytest.raises(OutOfScope) as raised:
        gate.enforce(gate.check_header(film, GatePolicy()))
    assert [code for code, _ in raised.value.failed] == ["gate.view", "gate.age"]
    assert raised.value.code == "gate.view"
