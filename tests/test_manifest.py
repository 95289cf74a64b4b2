"""The manifest: what is accepted is exactly what docs/engine-format.md says, and every refusal names the value."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ptxsdk.errors import EngineError
from ptxsdk.manifest import Aggregation, Calibration, Estimate, Manifest, RuleError

ENTRY = {"size": 3, "sha256": "0" * 64}
ESTIMATE = {"value": 0.84, "low": 0.75, "high": 0.9, "n": 90}
PLAIN: dict[str, Any] = {
    "format_version": 1,
    "name": "ClaSegNet",
    "version": "1.0.0",
    "created": "2026-11-23",
    "intended_use": "Prioritise frontal chest films.\nNot for diagnosis; für Erwachsene.",
    "not_a_medical_device": True,
    "input": {
        "name": "image",
        "size": [64, 48],
        "channels": 1,
        "layout": "NCHW",
        "mean": 0.5,
        "std": 0.25,
        "padding": 0,
        "preprocess": "ptxsdk.ops.preprocess 1",
    },
    "outputs": {
        "patch_logits": {"name": "patch_logits", "grid": [4, 3]},
        "mask_logits": {"name": "mask_logits", "size": [64, 48]},
    },
    "aggregation": {"method": "top_k", "source": "patch", "k": 3},
    "regions": {"high": 0.75, "low": 0.3, "min_area": 20},
    "calibration": {"method": "platt", "scale": 1.5, "bias": -0.5, "data": "validation fold", "n": 180},
    "operating_points": [
        {
            "name": "balanced",
            "threshold": 0.4,
            "sensitivity": ESTIMATE,
            "specificity": ESTIMATE,
            "data": "validation fold",
        },
        {
            "name": "sensitive",
            "threshold": 0.2,
            "sensitivity": ESTIMATE,
            "specificity": ESTIMATE,
            "data": "validation fold",
        },
    ],
    "default_operating_point": "balanced",
    "metrics": [
        {"name": "auc", "value": 0.95, "low": 0.9, "high": 0.98, "n": 182, "data": "test", "note": "DeLong"},
        {"name": "auc", "value": 0.9, "low": 0.8, "high": 0.95, "n": 40, "data": "test, with a tube"},
    ],
    "provenance": {
        "training_data": [{"name": "NIH", "n": 1444, "credit": "NIH Clinical Center", "licence": "see source"}],
        "code_version": "0.1.0",
        "command": "python -m training.train",
        "seed": 7,
    },
    "networks": {
        "fp32": {"entry": "network/fp32.onnx", "accuracy": {"auc": 0.95}},
        "int8": {"entry": "network/int8.onnx"},
    },
    "golden": [
        {
            "name": "a",
            "pixels": "golden/a/pixels.npy",
            "window": [0, 255],
            "patch_logits": "golden/a/patch_logits.npy",
            "mask_logits": "golden/a/mask_logits.npy",
            "probability": 0.9,
            "credit": "synthetic",
            "tolerance": {
                "fp32": {"logits": 0.01, "probability": 0.001},
                "int8": {"logits": 1, "probability": 0.1},
            },
        }
    ],
    "entries": {
        "network/fp32.onnx": ENTRY,
        "network/int8.onnx": ENTRY,
        "golden/a/pixels.npy": ENTRY,
        "golden/a/patch_logits.npy": ENTRY,
        "golden/a/mask_logits.npy": ENTRY,
    },
}
MISSING = object()


def clone() -> dict[str, Any]:
    copied: dict[str, Any] = json.loads(json.dumps(PLAIN))  # unlike deepcopy, without the shared parts
    return copied


def test_accepts_the_example_and_says_the_same_again() -> None:
    manifest = Manifest.from_json(json.dumps(PLAIN).encode())
    assert json.loads(manifest.to_json()) == PLAIN
    assert manifest.input.size == (64, 48)
    assert manifest.operating_points[1].threshold == 0.2
    assert manifest.networks["fp32"].accuracy == {"auc": 0.95}
    assert manifest.networks["int8"].accuracy is None
    assert manifest.metrics[1].note is None
    assert manifest.golden[0].window == (0.0, 255.0)
    assert isinstance(manifest.golden[0].tolerance["int8"].logits, float)


def test_canonical_json_is_a_fixed_point_and_independent_of_key_order() -> None:
    manifest = Manifest.from_json(json.dumps(PLAIN).encode())
    shuffled = dict(reversed(PLAIN.items()))
    assert Manifest.from_json(json.dumps(shuffled).encode()).to_json() == manifest.to_json()
    assert Manifest.from_json(manifest.to_json()) == manifest
    lines = manifest.to_json().decode().splitlines()
    keys = re.findall(r'^ "(\w+)":', "\n".join(lines), re.MULTILINE)
    assert keys == sorted(PLAIN)
    assert "für".encode() in manifest.to_json()


def test_is_immutable() -> None:
    manifest = Manifest.from_json(json.dumps(PLAIN).encode())
    with pytest.raises(dataclasses.FrozenInstanceError):
        manifest.name = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        manifest.networks["fp16"] = manifest.networks["fp32"]  # type: ignore[index]


def walk(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``(path, value)`` of every value below `node`, as messages name them."""
    if isinstance(node, dict):
        for key, value in node.items():
            where = f"{path}.{key}" if path else key
            yield where, value
            yield from walk(value, where)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield f"{path}[{index}]", value
            yield from walk(value, f"{path}[{index}]")


def changed(path: str, value: Any) -> bytes:
    """Return the example as JSON with one value replaced, added or removed."""
    plain = clone()
    node: Any = plain
    *way, last = steps(path)
    for step in way:
        node = node[step]
    if value is MISSING:
        del node[last]
    else:
        node[last] = value
    return json.dumps(plain).encode()


def steps(path: str) -> list[Any]:
    if path.startswith("entries."):
        name, _, rest = path.removeprefix("entries.").partition(".npy" if ".npy" in path else ".onnx")
        return ["entries", name + (".npy" if ".npy" in path else ".onnx"), *([rest[1:]] if rest else [])]
    return [int(part[1:-1]) if part[0] == "[" else part for part in re.findall(r"\[\d+\]|[^.\[]+", path)]


def refusal(raw: bytes) -> EngineError:
    with pytest.raises(EngineError) as caught:
        Manifest.from_json(raw)
    return caught.value


VALUES = list(walk(PLAIN))
MAPPINGS = {"networks", "networks.fp32.accuracy", "golden[0].tolerance", "entries"}  # their members have test_rules
FIELDS = [
    path
    for path, _ in VALUES
    if not path.endswith("]") and not any(re.fullmatch(re.escape(m) + r"\.[^.]+(\.\w+)?", path) for m in MAPPINGS)
]


@pytest.mark.parametrize("path", FIELDS)
def test_every_field_is_required_but_the_optional_ones(path: str) -> None:
    raw = changed(path, MISSING)
    if path == "metrics[0].note":
        Manifest.from_json(raw)
    else:
        error = refusal(raw)
        assert error.code == "engine.manifest"
        says = "belongs to method 'top_k'" if path == "aggregation.k" else "is missing"
        assert error.message.startswith(f"manifest {path}: {says}")


@pytest.mark.parametrize(
    "path", ["networks.fp32.entry", "golden[0].tolerance.fp32.logits", "entries.network/fp32.onnx.sha256"]
)
def test_fields_of_members_are_required(path: str) -> None:
    assert refusal(changed(path, MISSING)).message == f"manifest {path}: is missing"


@pytest.mark.parametrize("path", ["", *(path for path, value in VALUES if isinstance(value, dict))])
def test_unknown_keys_are_refused_in_every_object(path: str) -> None:
    plain = clone()
    node: Any = plain
    for step in steps(path):
        node = node[step]
    node["surprise"] = ENTRY if path == "entries" else 1
    raw = json.dumps(plain).encode()
    if path == "networks.fp32.accuracy":
        assert Manifest.from_json(raw)  # the one open mapping: any metric
        return
    error = refusal(raw)
    assert error.code == "engine.manifest"
    assert f"{path}.surprise: unknown key".lstrip(".") in error.message or (
        path in MAPPINGS and f"manifest {path}: 'surprise' is" in error.message
    )


def wrongs() -> Iterator[tuple[str, Any]]:
    """Yield every value of the example with values of other types that it must not take."""
    for path, value in VALUES:
        others: tuple[Any, ...] = (None, True, False, "\u0007", [], {}, -1, 10**15 + 0.5)
        for wrong in others:
            number = type(value) in (int, float) and type(wrong) in (int, float)  # ranges have their own test
            right = value is wrong or (path, wrong) in [("networks.fp32.accuracy", {}), ("metrics", [])]
            if not (number or right):
                yield path, wrong


@pytest.mark.parametrize(("path", "wrong"), list(wrongs()))
def test_every_value_refuses_another_type(path: str, wrong: Any) -> None:
    error = refusal(changed(path, wrong))
    assert error.code == "engine.manifest"
    assert f"manifest {path}" in error.message


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("format_version", 0, "format_version"),
        ("format_version", "1", "format_version"),
        ("format_version", 1.0, "format_version"),
        ("name", "../evil", "name"),
        ("name", "x" * 65, "name"),
        ("version", "1 0", "version"),
        ("created", "2026-02-30", "created"),
        ("created", "20261123", "created"),
        ("created", "2026-W48-1", "created"),
        ("intended_use", "  \n ", "intended_use"),
        ("intended_use", "x" * 20001, "intended_use"),
        ("intended_use", "a\u202eb", "U+202E"),
        ("intended_use", "a\x1b[2J", "U+001B"),
        ("intended_use", "a\ud800", "U+D800"),
        ("input.size", [64], "input.size"),
        ("input.size", [64, 48, 1], "input.size"),
        ("input.size", [64, 0], "input.size[1]"),
        ("input.size", [64, 8193], "input.size[1]"),
        ("input.size", [64, 48.0], "input.size[1]"),
        ("input.std", 0, "input.std"),
        ("input.std", -0.5, "input.std"),
        ("input.mean", 1e301, "input.mean"),
        ("input.channels", 3, "input.channels"),
        ("input.channels", True, "input.channels"),
        ("input.layout", "NHWC", "input.layout"),
        ("input.padding", 1, "input.padding"),
        ("input.preprocess", "ptxsdk.ops.preprocess 2", "input.preprocess"),
        ("outputs.patch_logits.grid", [65, 3], "outputs.patch_logits.grid"),
        ("outputs.patch_logits.name", "image", "outputs"),
        ("outputs.patch_logits.name", "mask_logits", "outputs.mask_logits.name"),
        ("outputs.patch_logits.name", "a b", "outputs.patch_logits.name"),
        ("outputs.mask_logits.size", [32, 24], "outputs.mask_logits.size"),
        ("aggregation.method", "mean", "aggregation.method"),
        ("aggregation.method", "max", "aggregation.k"),
        ("aggregation.source", "both", "aggregation.source"),
        ("aggregation.k", 0, "aggregation.k"),
        ("aggregation.k", 13, "aggregation.k"),
        ("aggregation.k", 2.0, "aggregation.k"),
        ("regions.high", 1, "regions.high"),
        ("regions.low", 0, "regions.low"),
        ("regions.low", 0.76, "regions.low"),
        ("regions.min_area", -1, "regions.min_area"),
        ("regions.min_area", 64 * 48 + 1, "regions.min_area"),
        ("calibration.method", "isotonic", "calibration.method"),
        ("calibration.scale", 0, "calibration.scale"),
        ("calibration.scale", -1, "calibration.scale"),
        ("calibration.n", 0, "calibration.n"),
        ("operating_points", [], "operating_points: is empty"),
        ("operating_points[1].name", "balanced", "operating_points"),
        ("operating_points[0].name", "Balanced", "operating_points[0].name"),
        ("operating_points[0].threshold", 0, "operating_points[0].threshold"),
        ("operating_points[0].threshold", 1, "operating_points[0].threshold"),
        ("operating_points[0].sensitivity.value", 1.01, "operating_points[0].sensitivity.value"),
        ("operating_points[0].sensitivity.value", 0.91, "operating_points[0].sensitivity.value"),
        ("operating_points[0].specificity.low", 0.85, "operating_points[0].specificity.value"),
        ("operating_points[1].specificity.n", 0, "operating_points[1].specificity.n"),
        ("default_operating_point", "other", "default_operating_point"),
        ("metrics[0].low", 0.99, "metrics[0].low"),
        ("metrics[0].name", "", "metrics[0].name"),
        ("provenance.training_data", [], "provenance.training_data"),
        ("provenance.seed", -1, "provenance.seed"),
        ("provenance.seed", 2**63, "provenance.seed"),
        ("networks", {}, "networks"),
        ("networks.bf16", {"entry": "network/bf16.onnx"}, "networks"),
        ("networks.fp32.entry", "network/int8.onnx", "networks.fp32.entry"),
        ("networks.fp32.entry", "../fp32.onnx", "networks.fp32.entry"),
        ("networks.fp32.accuracy.auc", "0.9", "networks.fp32.accuracy.auc"),
        ("golden", [], "golden"),
        ("golden", [PLAIN["golden"][0]] * 2, "golden"),
        ("golden[0].pixels", "golden/a/patch_logits.npy", "golden"),
        ("golden[0].pixels", "network/fp32.onnx", "golden[0].pixels"),
        ("golden[0].pixels", "golden/../a.npy", "golden[0].pixels"),
        ("golden[0].pixels", "/golden/a.npy", "golden[0].pixels"),
        ("golden[0].pixels", "golden\\a.npy", "golden[0].pixels"),
        ("golden[0].window", [255, 0], "golden[0].window"),
        ("golden[0].window", [1, 1], "golden[0].window"),
        ("golden[0].probability", 1.5, "golden[0].probability"),
        ("golden[0].tolerance.fp32.logits", 0, "golden[0].tolerance.fp32.logits"),
        ("golden[0].tolerance.int8", MISSING, "golden[0].tolerance"),
        ("golden[0].tolerance.fp16", {"logits": 1, "probability": 1}, "golden[0].tolerance"),
        ("entries", {}, "entries"),
        ("entries.network/int8.onnx", MISSING, "entries"),
        ("entries.network/fp16.onnx", ENTRY, "entries"),
        ("entries.network/fp32.onnx.size", -1, "entries.network/fp32.onnx.size"),
        ("entries.network/fp32.onnx.size", 2**40, "entries.network/fp32.onnx.size"),
        ("entries.network/fp32.onnx.sha256", "0" * 63, "entries.network/fp32.onnx.sha256"),
        ("entries.network/fp32.onnx.sha256", "A" * 64, "entries.network/fp32.onnx.sha256"),
        ("entries.network/fp32.onnx.sha256", "0" * 64 + "\n", "entries.network/fp32.onnx.sha256"),
    ],
)
def test_rules(path: str, value: Any, says: str) -> None:
    error = refusal(changed(path, value))
    assert error.code == "engine.manifest"
    assert (says if says.startswith("U+") else f"manifest {says}") in error.message


def test_k_belongs_to_top_k_only() -> None:
    plain = clone()
    plain["aggregation"] = {"method": "noisy_or", "source": "mask"}
    assert Manifest.from_json(json.dumps(plain).encode()).aggregation.k is None
    plain["aggregation"]["method"] = "top_k"
    assert "aggregation.k" in refusal(json.dumps(plain).encode()).message
    plain["aggregation"]["k"] = 64 * 48  # as many as the mask has
    Manifest.from_json(json.dumps(plain).encode())


@pytest.mark.parametrize("version", [3, 4, 10**9])
def test_a_newer_format_names_both_versions_whatever_else_it_holds(version: int) -> None:
    error = refusal(json.dumps({"format_version": version, "novelty": [1]}).encode())
    assert error.code == "engine.format_version"
    assert str(version) in error.message
    assert "versions 1 to 2" in error.message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "1",
        "null",
        "{",
        '{"a": 1,}',
        '{"a": 1} x',
        "{'a': 1}",
        "\ufeff{}",
        '{"a": NaN}',
        '{"a": Infinity}',
        '{"a": -Infinity}',
        '{"a": 1, "a": 1}',
        '{"x": {"a": 1, "a": 2}}',
        '{"format_version": 2, "format_version": 1}',
        '{"a": ' + "9" * 21 + "}",
        '{"a": ' + "9" * 5000 + "}",
        '{"a": ' + "[" * 12 + "]" * 12 + "}",
        "[" * 200_000,
        '{"a":' * 100_000,
        '{"a": "\\" [[[[[[[[[[[[[[[[[["',
        '{"a": "\n"}',
    ],
    ids=lambda text: repr(text[:24]),
)
def test_json_beyond_the_strict_form_is_refused(text: str) -> None:
    error = refusal(text.encode())
    assert error.code == "engine.manifest"
    assert re.search("not strict JSON|nests deeper|not a JSON object", error.message)


def test_a_second_value_of_a_key_is_refused_in_an_otherwise_good_manifest() -> None:
    raw = json.dumps(PLAIN).encode()
    for key in (b'"name": "ClaSegNet"', b'"threshold": 0.4', b'"k": 3'):
        error = refusal(raw.replace(key, key + b", " + key, 1))
        assert "occurs twice" in error.message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_only_utf8_is_read(encoding: str) -> None:
    raw = json.dumps(PLAIN, ensure_ascii=False).encode(encoding)
    assert refusal(raw).code == "engine.manifest"


def test_brackets_inside_strings_are_text() -> None:
    raw = changed("intended_use", "[" * 50 + ' \\" { ' + "\\")
    assert Manifest.from_json(raw).intended_use.startswith("[[[")


@pytest.mark.parametrize("path", ["input.mean", "calibration.bias", "metrics[0].value", "regions.high"])
@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "-1e999"])
def test_numbers_are_finite(path: str, number: str) -> None:
    raw = changed(path, 123456.5).replace(b"123456.5", number.encode())
    assert refusal(raw).code == "engine.manifest"


def test_size_is_bounded_before_anything_else() -> None:
    assert refusal(b" " * (1 << 20) + b"{").code == "engine.too_large"


def test_hostile_keys_do_not_reach_the_message_raw() -> None:
    error = refusal(json.dumps({**PLAIN, "x\x1b[2J" + "y" * 500: 1}).encode())
    assert "\x1b" not in error.message
    assert len(error.message) < 200


def test_construction_by_hand_holds_the_same_rules() -> None:
    assert Aggregation(method="top_k", k=3).source == "patch"
    with pytest.raises(RuleError, match="k: "):
        Aggregation(method="max", k=3)
    with pytest.raises(RuleError, match="value: "):
        Estimate(value=0.5, low=0.6, high=0.7, n=3)
    with pytest.raises(RuleError, match="n: is int64"):
        Estimate(value=0.5, low=0.4, high=0.7, n=np.int64(3))  # type: ignore[arg-type]
    assert type(Estimate(value=np.float64(0.5), low=0, high=1, n=3).value) is float


def test_calibration_is_the_logistic_function() -> None:
    calibration = Calibration(scale=2.0, bias=-1.0, data="test", n=10)
    for logit in (-3.0, 0.0, 0.5, 4.0):
        expected = np.longdouble(1) / (1 + np.exp(-np.longdouble(2 * logit - 1)))
        assert calibration.probability(logit) == pytest.approx(float(expected), rel=1e-15)
    assert calibration.probability(1e9) == 1.0
    assert 0 <= calibration.probability(-1e9) < 1e-300
    assert not math.isnan(calibration.probability(-math.inf))
