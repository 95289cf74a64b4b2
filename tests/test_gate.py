"""The gate: each check by its header or by its picture; real films, and what is made of them or is none."""

from __future__ import annotations

import io
from pathlib import Path

import data_store
import numpy as np
import pydicom
import pytest
from made import make_chest

from ptxsdk import CODES, Detector, DetectorError, InputError, OutOfScope, gate
from ptxsdk.gate import GatePolicy, content, scope
from ptxsdk.ops import preprocess
from ptxsdk.radiograph import Display, Radiograph, Window
from ptxsdk.readers import read

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(path for path in (ROOT / "examples").iterdir() if path.suffix in (".jpg", ".dcm"))
PYDICOM_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
MORE_FILES = Path(data_store.__file__).parent / "data"

DISPLAY = Display(voi=Window.from_range(0, 255))
ADULT_CHEST = {
    "sop_class_uid": gate.DIGITAL_X_RAY,
    "modality": "DX",
    "presentation_intent": "FOR PRESENTATION",
    "body_part": "CHEST",
    "view": "AP",
    "age": 61.0,
    "pixel_spacing": (0.5, 0.5),
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


@pytest.mark.parametrize(
    ("spacing", "status"),
    [
        ((0.5, 0.5), "pass"),
        ((0.16, 0.2), "pass"),
        ((0.1, 0.1), "fail"),
        ((1.3, 1.3), "fail"),
        ((0.5, 1.5), "fail"),
        (None, "unknown"),
    ],
)
def test_spacing_that_makes_no_film_of_a_chest(spacing, status):
    assert statuses(shape=(640, 560), pixel_spacing=spacing)["gate.spacing"] == status


def test_a_picture_without_a_file_has_an_unknown_modality():
    film = Radiograph.from_array(make_chest())
    found = {check.code: check.status for check in gate.check_header(film, GatePolicy())}
    assert found["gate.not_radiograph"] == "unknown"
    assert "fail" not in found.values()


@pytest.mark.parametrize(
    "changes",
    [
        {"blank_view": "reject"},
        {"secondary_capture": "all"},
        {"minimum_age": "18"},
        {"minimum_side": np.nan},
        {"enforce": 0},
    ],
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


def small(film, *, side=384, change=lambda values: values):
    """The small picture of a film that the detector would judge, changed at the film's own size."""
    values, geometry = preprocess(film.pixels, display=film.display, size=film.shape)
    assert geometry.content == (0, 0, film.shape[1], film.shape[0])
    changed = np.ascontiguousarray(change(values))
    display = Display(voi=Window.from_range(0, 1))
    tensor, geometry = preprocess(changed, display=display, size=(side, side), mean=0.5, std=0.25)
    return gate.sample(tensor, geometry, 0.5, 0.25)


def judge(shown, policy=None):
    return {check.code: check.status for check in gate.check_content(np.float32(shown), policy or GatePolicy())}


CONTENT_CODES = [
    "gate.constant",
    "gate.contrast",
    "gate.saturation",
    "gate.padding",
    "gate.scope",
    "gate.rotation",
    "gate.polarity",
]


@pytest.mark.parametrize("side", [64, 128, 256, 384, 512])
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_chest_films_pass_every_check_at_every_size_of_network(path, side):
    assert judge(small(read(path), side=side)) == dict.fromkeys(CONTENT_CODES, "pass")


def test_the_real_chest_film_of_pydicom_data_passes():
    assert judge(small(read(MORE_FILES / "RG1_UNCR.dcm"))) == dict.fromkeys(CONTENT_CODES, "pass")


CHANGES = {
    "turned by 90 degrees": (np.rot90, "gate.rotation"),
    "turned by 180 degrees": (lambda film: np.rot90(film, 2), "gate.rotation"),
    "turned by 270 degrees": (lambda film: np.rot90(film, 3), "gate.rotation"),
    "upside down": (lambda film: film[::-1], "gate.rotation"),
    "inverted": (lambda film: 1 - film, "gate.polarity"),
    "blank": (lambda film: np.full_like(film, 0.4), "gate.constant"),
    "black": (np.zeros_like, "gate.constant"),
    "faint": (lambda film: 0.5 + 0.1 * (film - 0.5), "gate.contrast"),
    "cut off by its window": (lambda film: np.clip((film - 0.5) * 20 + 0.5, 0, 1), "gate.saturation"),
    "small on a sheet": (lambda film: np.pad(film, [(side, side) for side in film.shape]), "gate.padding"),
    "a corner": (lambda film: film[: film.shape[0] // 4, : film.shape[1] // 4], "gate.scope"),
    "four on a sheet": (lambda film: np.tile(film, (2, 2)), "gate.scope"),
    "shuffled": (
        lambda film: np.vstack([np.hstack(np.array_split(band, 3, 1)[::-1]) for band in np.array_split(film, 3)[::-1]]),
        "gate.scope",
    ),
    "noise": (lambda film: np.random.default_rng(0).random(film.shape, np.float32), "gate.scope"),
    "a gradient": (lambda film: np.linspace(0, 1, film.size, dtype=np.float32).reshape(film.shape), "gate.scope"),
}


@pytest.mark.parametrize(("change", "code"), CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
@pytest.mark.requirement("R-GATE-2")
def test_what_is_made_of_a_film_is_refused_with_its_code(path, change, code):
    assert judge(small(read(path), change=change))[code] == "fail"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_a_mirrored_film_is_not_told_apart(path):
    assert "fail" not in judge(small(read(path), change=lambda film: film[:, ::-1])).values()


def test_an_inverted_and_turned_film_fails_twice():
    found = judge(small(read(EXAMPLES[0]), change=lambda film: np.rot90(1 - film)))
    assert found["gate.rotation"] == found["gate.polarity"] == "fail"


def test_what_cannot_be_judged_is_unknown():
    blank = judge(np.full((70, 60), 0.4))
    assert blank.pop("gate.constant") == "fail"
    assert set(blank.values()) == {"unknown"}
    noise = judge(np.random.default_rng(0).random((70, 60)))
    assert (noise["gate.scope"], noise["gate.rotation"], noise["gate.polarity"]) == ("fail", "unknown", "unknown")


@pytest.mark.requirement("R-GATE-2")
def test_no_real_file_but_the_chest_film_looks_like_a_chest():
    # None of these files was used in training.
    refused, n = 0, 0
    for root in (PYDICOM_FILES, MORE_FILES):
        for path in sorted(root.rglob("*")):
            if not path.is_file() or path.suffix in (".py", ".pyc", ".json", ".txt", ".md") or "RG1" in path.name:
                continue
            try:
                film = read(path)
            except InputError:
                continue
            n += 1
            refused += "fail" in judge(small(film)).values()
    assert n >= 60
    assert refused == n


def test_limits_of_the_content_checks_can_be_changed():
    shown = small(read(EXAMPLES[0]))
    for limit, code in (
        ("minimum_contrast", "gate.contrast"),
        ("minimum_scope", "gate.scope"),
        ("minimum_upright", "gate.rotation"),
        ("minimum_positive", "gate.polarity"),
    ):
        assert judge(shown, GatePolicy(**{limit: 1.01}))[code] == "fail"
    for limit, code in (("maximum_saturation", "gate.saturation"), ("maximum_padding", "gate.padding")):
        assert judge(shown, GatePolicy(**{limit: -0.01}))[code] == "fail"


def test_padding_is_black_from_the_edge_and_saturation_what_is_cut_off_inside():
    shown = np.full((50, 40), 0.5, np.float32)
    shown[:10] = 0  # a border: 400 of 2000 pixels
    shown[20:30, 10:20] = 0  # a hole: 100
    shown[30:35, -10:] = 1  # white at the edge: 50
    details = {check.code: check.detail for check in gate.check_content(shown, GatePolicy())}
    assert details["gate.padding"].startswith("20%")
    assert details["gate.saturation"].startswith(f"{150 / 1600:.0%}")


def test_the_scope_model_is_a_small_network_over_features():
    model = scope.shipped_model()
    shown = small(read(EXAMPLES[0]))
    found = scope.features(shown)
    assert found.shape == (scope.N_FEATURES,)
    # Brightness and contrast do not matter.
    np.testing.assert_allclose(scope.features(0.3 + 0.5 * shown), found, atol=0.12)
    first, last = model.weights
    hidden = np.maximum((found - model.mean) * model.scale @ first + model.biases[0], 0)
    logits = hidden @ last + model.biases[1]
    shares = np.exp(logits) / np.exp(logits).sum()
    judged = model(shown)
    assert judged.chest == pytest.approx(shares[:8].sum(), rel=1e-4)
    assert judged.turned == pytest.approx((shares[:4] + shares[4:8]) / shares[:8].sum(), rel=1e-3, abs=1e-9)
    assert judged.inverted == pytest.approx(shares[4:8].sum() / shares[:8].sum(), rel=1e-3, abs=1e-9)
    again = scope.load_model(scope.save_model(model))
    assert again(shown) == judged
    assert again.provenance == model.provenance


def test_a_damaged_scope_model_is_a_typed_error(monkeypatch, tmp_path):
    scope.shipped_model.cache_clear()
    monkeypatch.setattr(scope.importlib.resources, "files", lambda _: tmp_path)
    (tmp_path / "models").mkdir()
    try:
        for content_ in (None, b"", b"PK nothing", scope.save_model(_shipped())[:-400]):
            if content_ is not None:
                (tmp_path / "models" / "scope.npz").write_bytes(content_)
            with pytest.raises(DetectorError) as raised:
                scope.shipped_model()
            assert raised.value.code == "detector.internal"
    finally:
        scope.shipped_model.cache_clear()


def _shipped():
    return scope.load_model((ROOT / "ptxsdk" / "models" / "scope.npz").read_bytes())


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (3, 3), (17, 200)])
def test_small_and_odd_pictures_do_not_break_the_checks(shape):
    assert list(judge(np.random.default_rng(0).random(shape))) == CONTENT_CODES


def test_grid_means_are_the_means_of_the_cells():
    values = np.random.default_rng(0).random((48, 80)).astype(np.float32)
    expected = values.astype(float).reshape(16, 3, 16, 5).mean((1, 3))
    np.testing.assert_allclose(content._grid_means(values, 16), expected)


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


def test_every_check_is_documented_with_its_code():
    page = (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")
    for code in CODES:
        if code.startswith("gate."):
            assert f"| `{code}` |" in page


# --- through the detector ---


@pytest.fixture(scope="module")
def shipped():
    with Detector() as made:
        yield made


def test_four_encodings_of_one_film_are_one_film(shipped):
    found = [shipped.predict(MORE_FILES / f"RG1_{name}.dcm") for name in ("UNCR", "UNCI", "J2KR", "J2KI")]
    probabilities = [detection.probability for detection in found]
    assert max(probabilities) - min(probabilities) <= 0.01
    for detection in found:
        assert not detection.forced
        polarity = next(check for check in detection.quality.checks if check.code == "gate.polarity")
        assert polarity.status == "pass"


def _example(**attributes):
    ds = pydicom.dcmread(ROOT / "examples" / "00008841_025.dcm")
    for name, value in attributes.items():
        setattr(ds, name, value)
    buffer = io.BytesIO()
    ds.save_as(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("film", "codes"),
    [
        (lambda: MORE_FILES / "RG3_UNCR.dcm", {"gate.body_part"}),
        (lambda: PYDICOM_FILES / "CT_small.dcm", {"gate.not_radiograph", "gate.size", "gate.spacing"}),
        (lambda: PYDICOM_FILES / "MR_small.dcm", {"gate.not_radiograph", "gate.size", "gate.spacing"}),
        (lambda: MORE_FILES / "JPGLosslessP14SV1_1s_1f_8b.dcm", {"gate.not_radiograph"}),
        (lambda: _example(ViewPosition="LL"), {"gate.view"}),
        (lambda: _example(PatientOrientation=["A", "F"]), {"gate.view"}),
        (lambda: _example(PatientAge="012Y"), {"gate.age"}),
        (
            lambda: _example(ViewPosition="RL", PatientAge="003Y", PixelSpacing=[9, 9]),
            {"gate.view", "gate.age", "gate.spacing"},
        ),
        (
            lambda: np.ascontiguousarray(255 - np.rot90(read(EXAMPLES[0]).pixels)),
            {"gate.rotation", "gate.polarity"},
        ),
    ],
)
def test_a_refusal_names_every_check_that_failed(shipped, film, codes):
    with pytest.raises(OutOfScope) as raised:
        shipped.predict(film())
    assert {code for code, _ in raised.value.failed} == codes


def test_us_in_one_gray_frame_is_no_radiograph():
    film = read(MORE_FILES / "JPGLosslessP14SV1_1s_1f_8b.dcm")
    assert film.modality == "US"


@pytest.mark.requirement("R-GATE-3")
def test_an_overridden_gate_scores_and_marks_the_result(tiny_engine):
    with Detector(tiny_engine, gate_policy=GatePolicy(enforce=False)) as forced:
        good = forced.predict(make_chest())
        assert (good.forced, good.to_dict()["forced"]) == (False, False)
        turned = forced.predict(np.ascontiguousarray(np.rot90(make_chest(), 2)))
        assert (turned.forced, turned.to_dict()["forced"]) == (True, True)
        failed = [check["code"] for check in turned.to_dict()["quality"]["checks"] if check["status"] == "fail"]
        assert failed == ["gate.rotation"]
        child = forced.predict(_example(PatientAge="001Y", PatientSex="F"))
        assert child.forced
        # The reader's refusals stay: there is no film.
        with pytest.raises(InputError):
            forced.predict(np.zeros((5, 5, 3), np.uint8))
