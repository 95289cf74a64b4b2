"""The engine file: any damage or contradiction is a typed error, and what is written reads back as written."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import random
import resource
import struct
import subprocess
import sys
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from ptxsdk import engine as engine_module
from ptxsdk.detection import EngineId
from ptxsdk.engine import Engine, engine_bytes, npy_bytes, sign_engine, write_engine
from ptxsdk.errors import EngineError, PtxsdkError, WriterError
from ptxsdk.manifest import (
    Aggregation,
    Calibration,
    DataSource,
    Estimate,
    Golden,
    InputSpec,
    Manifest,
    MaskOutput,
    MeasuredPoint,
    Metric,
    Network,
    OutputSpec,
    PatchOutput,
    Provenance,
    RegionRules,
    Tolerance,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
PUBLIC = KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
OTHER_PUBLIC = OTHER_KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

ESTIMATE = Estimate(value=0.84, low=0.75, high=0.9, n=90)
MANIFEST = Manifest(
    name="ClaSegNet",
    version="1.0.0",
    created="2026-11-23",
    intended_use="Tests only.",
    input=InputSpec(size=(7, 5), mean=0.5, std=0.25),
    outputs=OutputSpec(patch_logits=PatchOutput(grid=(3, 2)), mask_logits=MaskOutput(size=(7, 5))),
    aggregation=Aggregation(method="noisy_or"),
    regions=RegionRules(high=0.75, low=0.3, min_area=2),
    calibration=Calibration(scale=1.5, bias=-0.5, data="fold 0", n=180),
    operating_points=(
        MeasuredPoint(name="balanced", threshold=0.4, sensitivity=ESTIMATE, specificity=ESTIMATE, data="fold 0"),
    ),
    default_operating_point="balanced",
    metrics=(Metric(name="auc", value=0.95, low=0.9, high=0.98, n=182, data="test"),),
    provenance=Provenance(
        training_data=(DataSource(name="made", n=10, credit="nobody", licence="CC0"),),
        code_version="0.1.0",
        command="python -m training.train",
        seed=7,
    ),
    networks={"int8": Network(entry="network/int8.onnx"), "fp32": Network(entry="network/fp32.onnx")},
    golden=(
        Golden(
            name="a",
            pixels="golden/a/pixels.npy",
            patch_logits="golden/a/patch_logits.npy",
            mask_logits="golden/a/mask_logits.npy",
            probability=0.9,
            credit="made",
            tolerance={
                "fp32": Tolerance(logits=0.01, probability=0.001),
                "int8": Tolerance(logits=1, probability=0.1),
            },
        ),
    ),
)
PIXELS = np.arange(33, dtype=np.uint8).reshape(11, 3)
PATCH_LOGITS = np.linspace(-4, 4, 6, dtype=np.float32).reshape(3, 2)
MASK_LOGITS = np.linspace(-9, 9, 35, dtype=np.float16).reshape(7, 5)
ENTRIES = {
    # As far as ONNX goes both are models, with nothing but a producer's name.
    "network/int8.onnx": b"\x12\x1fany bytes as a network, in int8",
    "network/fp32.onnx": b"\x12\x80\x02" + bytes(range(256)),
    "golden/a/pixels.npy": npy_bytes(PIXELS),
    "golden/a/patch_logits.npy": npy_bytes(PATCH_LOGITS),
    "golden/a/mask_logits.npy": npy_bytes(MASK_LOGITS),
}
SMALL = engine_bytes(MANIFEST, ENTRIES)
SIGNED = engine_bytes(MANIFEST, ENTRIES, signing_key=KEY)


def zipped(contents: list[tuple[str, bytes]], comment: bytes = b"", **changes: Any) -> bytes:
    """Write a zip with the standard library, with the header fields of the format; `changes` to the second entry."""
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as archive:
        warnings.simplefilter("ignore", UserWarning)  # duplicate names are wanted
        archive.comment = comment
        for index, (name, content) in enumerate(contents):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system = 0
            if index == 1:
                for attribute, value in changes.items():
                    setattr(info, attribute, value)
            kept = info.external_attr
            archive.writestr(info, content)
            info.external_attr = kept  # writestr fills in Unix permissions
    return stream.getvalue()


def unzipped(data: bytes | bytearray) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def list_also(plain: dict[str, Any], extra: dict[str, Any]) -> None:
    plain["entries"].update(extra)


def refusal(data: Any, **options: Any) -> EngineError:
    with pytest.raises(EngineError) as caught:
        Engine.open(data, **options)
    return caught.value


# --- what is written reads back ---


def test_reads_back_what_was_written() -> None:
    engine = Engine.open(SMALL)
    assert replace(engine.manifest, entries={}) == MANIFEST
    assert engine.sha256 == sha256(SMALL)
    assert engine.id == EngineId("ClaSegNet", "1.0.0", engine.sha256)
    assert engine.precisions == ("fp32", "int8")
    assert engine.network("fp32") == ENTRIES["network/fp32.onnx"]
    assert engine.network("int8") == ENTRIES["network/int8.onnx"]
    assert engine.entries() == ENTRIES
    assert engine.signature == "none"
    for name, content in ENTRIES.items():
        assert engine.manifest.entries[name].size == len(content)
        assert engine.manifest.entries[name].sha256 == sha256(content)


def test_golden_vectors_read_back_read_only() -> None:
    (vector,) = Engine.open(SMALL).golden()
    for found, expected in (
        (vector.pixels, PIXELS),
        (vector.patch_logits, PATCH_LOGITS),
        (vector.mask_logits, MASK_LOGITS),
    ):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
        assert not found.flags.writeable
        assert found.flags.aligned
        assert found.flags.c_contiguous
    assert (vector.name, vector.window, vector.probability) == ("a", (0.0, 255.0), 0.9)
    assert vector.tolerance["int8"].logits == 1


@pytest.mark.parametrize("kind", [str, Path, bytes, bytearray, memoryview])
def test_every_kind_of_source_gives_the_same_engine(kind: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "small.ptxengine"
    path.write_bytes(SMALL)
    source = kind(path) if kind in (str, Path) else kind(SMALL)
    assert Engine.open(source).sha256 == sha256(SMALL)


def test_a_callers_buffer_can_change_afterwards() -> None:
    buffer = bytearray(SMALL)
    engine = Engine.open(memoryview(buffer))  # type: ignore[arg-type]
    buffer[:] = bytes(len(buffer))
    assert engine.network("fp32") == ENTRIES["network/fp32.onnx"]


def test_is_the_zip_the_standard_library_writes() -> None:
    names = ["manifest.json", *sorted(ENTRIES)]
    manifest = Engine.open(SMALL).manifest_bytes()
    assert zipped([(name, {"manifest.json": manifest, **ENTRIES}[name]) for name in names]) == SMALL
    with zipfile.ZipFile(io.BytesIO(SIGNED)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["manifest.json", "manifest.sig", *sorted(ENTRIES)]


def test_same_input_same_bytes_whatever_the_order() -> None:
    turned = dict(reversed(ENTRIES.items()))
    networks = dict(reversed(list(MANIFEST.networks.items())))
    assert engine_bytes(replace(MANIFEST, networks=networks), turned) == SMALL
    assert engine_bytes(MANIFEST, turned, signing_key=KEY) == SIGNED
    assert engine_bytes(Manifest.from_json(Engine.open(SMALL).manifest_bytes()), ENTRIES) == SMALL


def test_missing_precision_names_what_there_is() -> None:
    with pytest.raises(EngineError, match="fp32, int8") as caught:
        Engine.open(SMALL).network("fp16")
    assert caught.value.code == "engine.precision"


def test_engine_is_immutable() -> None:
    engine = Engine.open(SMALL)
    with pytest.raises(AttributeError):
        engine.sha256 = ""  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        engine.golden()[0].pixels[0, 0] = 1


def test_default_path_is_the_shipped_file_or_says_there_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.resources.files", lambda _: tmp_path)
    with pytest.raises(EngineError, match=r"clasegnet\.ptxengine") as caught:
        Engine.default_path()
    assert caught.value.code == "engine.not_found"
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "clasegnet.ptxengine").write_bytes(SMALL)
    assert Engine.open(Engine.default_path()).manifest.name == "ClaSegNet"


def test_npy_is_numpys_own_form_and_strict() -> None:
    for array in (PIXELS, PATCH_LOGITS, MASK_LOGITS, PATCH_LOGITS.T, PATCH_LOGITS.astype(">f4")):
        np.testing.assert_array_equal(np.load(io.BytesIO(npy_bytes(array)), allow_pickle=False), array)
    for wrong in (PIXELS[0], PIXELS[None], PIXELS.astype(np.int16), PIXELS.astype(object)):
        with pytest.raises(ValueError, match="golden array"):
            npy_bytes(wrong)
    numpys = io.BytesIO()
    np.save(numpys, PIXELS)
    engine_bytes(MANIFEST, {**ENTRIES, "golden/a/pixels.npy": numpys.getvalue()})


# --- damage ---


@pytest.mark.requirement("R-TRUST-1")
def test_every_flipped_byte_is_detected() -> None:
    chance = random.Random(1)
    for data in (SMALL, SIGNED):
        broken = bytearray(data)
        for position in range(len(data)):
            good = broken[position]
            for flip in (1 << position % 8, 0xFF, chance.randrange(1, 256)):
                broken[position] = good ^ flip
                with pytest.raises(EngineError):
                    Engine.open(bytes(broken))
            broken[position] = good
        assert broken == data


def test_every_flipped_bit_of_the_headers_is_detected() -> None:
    contents = [content for _, content in unzipped(SMALL)]
    bodies = {
        place for content in contents for place in range(SMALL.index(content), SMALL.index(content) + len(content))
    }
    broken = bytearray(SMALL)
    headers = [position for position in range(len(SMALL)) if position not in bodies]
    assert len(headers) > 6 * (30 + 46) + 22
    for position in headers:
        for bit in range(8):
            broken[position] ^= 1 << bit
            with pytest.raises(EngineError):
                Engine.open(bytes(broken))
            broken[position] ^= 1 << bit


@pytest.mark.requirement("R-TRUST-1")
def test_every_truncation_is_detected() -> None:
    assert refusal(b"").code == "engine.not_an_engine"
    for length in range(1, len(SMALL)):
        assert refusal(SMALL[:length]).code == "engine.corrupt"


def test_random_damage_is_detected() -> None:
    chance = random.Random(2)
    for _ in range(3000):
        broken = bytearray(SIGNED)
        for _ in range(chance.randrange(1, 5)):
            start = chance.randrange(len(broken))
            stop = start + chance.randrange(40)
            kind = chance.randrange(3)
            if kind == 0:
                broken[start:stop] = chance.randbytes(stop - start)
            elif kind == 1:
                del broken[start:stop]
            else:
                broken[start:start] = chance.randbytes(stop - start)
        if broken != SIGNED:
            with pytest.raises(EngineError):
                Engine.open(bytes(broken))


@pytest.mark.parametrize("extra", [b"\0", b"PK\x03\x04", SMALL[-22:], SMALL], ids=["zero", "magic", "end", "engine"])
def test_added_bytes_are_detected(extra: bytes) -> None:
    assert refusal(SMALL + extra).code == "engine.corrupt"
    assert refusal(extra + SMALL).code in ("engine.corrupt", "engine.not_an_engine")
    middle = len(SMALL) // 2
    assert refusal(SMALL[:middle] + extra + SMALL[middle:]).code == "engine.corrupt"


@pytest.mark.parametrize(
    "content",
    [b"\x08\x07onnx", b"\x89PNG\r\n\x1a\n", b"\x7fELF", b"PK\x05\x06" + bytes(18), bytes(5000), b"{}"],
)
def test_other_files_are_no_engines(content: bytes) -> None:
    assert refusal(content).code == "engine.not_an_engine"


def test_another_zip_is_no_engine() -> None:
    assert refusal(zipped([("word/document.xml", b"<x/>")])).code == "engine.not_an_engine"


# --- archives made to deceive ---

GOOD = unzipped(SMALL)
NAMES = [name for name, _ in GOOD]


def tampered(change: Callable[[dict[str, Any]], None], contents: Mapping[str, bytes] = ENTRIES) -> bytes:
    """Change the manifest of the small engine and serialise everything canonically."""
    plain = json.loads(Engine.open(SMALL).manifest_bytes())
    change(plain)
    return zipped([("manifest.json", json.dumps(plain).encode()), *sorted(contents.items())])


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.requirement("R-ENGINE-1")
def test_compressed_entries_are_refused_unread(kind: int) -> None:
    error = refusal(zipped(GOOD, compress_type=kind))
    assert error.code == "engine.corrupt"
    assert "compressed" in error.message


@pytest.mark.parametrize(
    "change",
    [
        {"date_time": (1980, 1, 1, 0, 0, 2)},
        {"create_system": 3},
        {"create_version": 45},
        {"extract_version": 45},
        {"external_attr": 0o644 << 16},
        {"internal_attr": 1},
        {"comment": b"x"},
        {"extra": b"\x99\x99\x00\x00"},
    ],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.requirement("R-ENGINE-1")
def test_every_header_field_has_one_value(change: dict[str, Any]) -> None:
    assert zipped(GOOD) == SMALL
    data = zipped(GOOD, **change)
    assert data != SMALL
    assert refusal(data).code == "engine.corrupt"


@pytest.mark.parametrize("flags", [1, 8, 0x40, 0x800, 0x2000], ids=hex)
def test_flags_set_alike_in_both_headers_are_refused(flags: int) -> None:
    for at in directory(SMALL):
        data = bytearray(SMALL)
        local = int.from_bytes(data[at + 42 : at + 46], "little")
        for place in (at + 8, local + 6):
            struct.pack_into("<H", data, place, flags)
        assert refusal(data).code == "engine.corrupt"


def test_a_wrong_crc_is_refused_where_both_headers_agree_on_it() -> None:
    for at in directory(SMALL):
        data = bytearray(SMALL)
        local = int.from_bytes(data[at + 42 : at + 46], "little")
        for place in (at + 16, local + 14):
            data[place] ^= 1
        assert "CRC" in refusal(data).message


def test_archive_comment_is_refused() -> None:
    assert refusal(zipped(GOOD, comment=b"hello")).code == "engine.corrupt"
    assert refusal(zipped(GOOD, comment=SMALL[-22:])).code == "engine.corrupt"


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "golden/../../evil",
        "/etc/passwd",
        "golden//a",
        "golden/.hidden",
        "golden\\a",
        "c:evil",
        "Golden/a",
        "golden/ä",
        "golden/a\n",
        "golden/",
        "x" * 101,
    ],
)
@pytest.mark.requirement("R-ENGINE-1")
def test_names_that_leave_the_archive_are_refused(name: str) -> None:
    error = refusal(zipped([*GOOD[:-1], (name, GOOD[-1][1])]))
    assert error.code == "engine.corrupt"
    assert "impossible name" in error.message


def test_duplicates_in_any_place_are_refused() -> None:
    for index in range(len(GOOD)):
        for place in range(1, len(GOOD) + 1):
            data = zipped([*GOOD[:place], GOOD[index], *GOOD[place:]])
            assert refusal(data).code == "engine.corrupt"
    with pytest.raises(EngineError):
        Engine.open(zipped([GOOD[0], ("manifest.json", b"{}"), *GOOD[1:]]))


def test_order_is_fixed() -> None:
    chance = random.Random(3)
    for _ in range(50):
        turned = GOOD[:]
        chance.shuffle(turned)
        if turned != GOOD:
            with pytest.raises(EngineError):
                Engine.open(zipped(turned))


def test_unknown_missing_and_changed_entries_are_refused() -> None:
    error = refusal(zipped([GOOD[0], *sorted([*GOOD[1:], ("golden/b.npy", b"")])]))
    assert error.code == "engine.corrupt"
    assert "golden/b.npy" in error.message
    for index in range(1, len(GOOD)):
        name, content = GOOD[index]
        error = refusal(zipped(GOOD[:index] + GOOD[index + 1 :]))
        assert error.code == "engine.corrupt"
        assert name in error.message
        for other in (content + b"\0", content[:-1], bytes(len(content)), b""):
            error = refusal(zipped([*GOOD[:index], (name, other), *GOOD[index + 1 :]]))
            assert error.code == "engine.corrupt"
            assert name in error.message
    assert refusal(zipped(GOOD[1:])).code == "engine.not_an_engine"
    assert refusal(zipped(GOOD[:1])).code == "engine.corrupt"


def test_a_size_that_contradicts_the_table_is_refused() -> None:
    for name in ENTRIES:
        error = refusal(tampered(partial(list_also, extra={name: {"size": 7, "sha256": sha256(ENTRIES[name])}})))
        assert error.code == "engine.corrupt"
        assert name in error.message


def test_a_manifest_by_another_name_is_none() -> None:
    later = [(name, content) for name, content in GOOD if name > "manifest.json2"]
    assert refusal(zipped([("manifest.json2", GOOD[0][1]), *later])).code == "engine.corrupt"


def test_swapped_entries_are_refused() -> None:
    contents = dict(GOOD)
    contents["network/fp32.onnx"], contents["network/int8.onnx"] = (
        contents["network/int8.onnx"],
        contents["network/fp32.onnx"],
    )
    assert refusal(zipped(list(contents.items()))).code == "engine.corrupt"


def directory(data: bytes | bytearray) -> Iterator[int]:
    """Yield the offset of every directory entry."""
    at = int.from_bytes(data[-6:-2], "little")
    while data[at : at + 4] == b"PK\x01\x02":
        yield at
        at += 46 + struct.unpack_from("<HHH", data, at + 28)[0]


@pytest.mark.parametrize("size", [0, 1, 2**16, 2**31, 2**32 - 1])
def test_declared_sizes_are_not_believed(size: int) -> None:
    for index, at in enumerate(directory(SMALL)):
        data = bytearray(SMALL)
        local = int.from_bytes(data[at + 42 : at + 46], "little")
        for place in (at + 20, at + 24, local + 18, local + 22):
            struct.pack_into("<I", data, place, size)
        assert refusal(data).code == "engine.corrupt", index


def test_gaps_that_the_headers_account_for_are_refused() -> None:
    places = list(directory(SMALL))
    locals_ = [int.from_bytes(SMALL[at + 42 : at + 46], "little") for at in places]
    for index, gap_at in enumerate([*locals_[1:], places[0], len(SMALL) - 22], start=1):
        data = bytearray(SMALL)
        if gap_at < len(SMALL) - 22:
            struct.pack_into("<I", data, len(data) - 6, places[0] + 4)
        else:
            struct.pack_into("<I", data, len(data) - 10, len(SMALL) - 22 - places[0] + 4)
        for at, local in zip(places[index:], locals_[index:], strict=True):
            struct.pack_into("<I", data, at + 42, local + 4)
        data[gap_at:gap_at] = b"hide"
        if gap_at < len(SMALL) - 22:
            assert unzipped(data) == GOOD  # an ordinary zip reader sees nothing odd
        assert refusal(data).code == "engine.corrupt"


def test_overlapping_entries_are_refused() -> None:
    first, second, *_ = directory(SMALL)
    data = bytearray(SMALL)
    struct.pack_into("<I", data, second + 42, int.from_bytes(data[first + 42 : first + 46], "little"))
    assert refusal(data).code == "engine.corrupt"


@pytest.mark.parametrize(
    ("form", "place", "value"),
    [
        ("<HH", 8, (65535, 65535)),
        ("<HH", 8, (0, 0)),
        ("<HH", 8, (5, 5)),
        ("<HH", 8, (7, 7)),
        ("<HH", 8, (257, 257)),
        ("<I", 12, (2**32 - 1,)),
        ("<I", 12, (0,)),
        ("<I", 16, (2**32 - 1,)),
        ("<I", 16, (0,)),
        ("<H", 20, (65535,)),
        ("<II", 12, (0, len(SMALL) - 22)),
    ],
)
def test_the_end_record_is_not_believed(form: str, place: int, value: tuple[int, ...]) -> None:
    data = bytearray(SMALL)
    struct.pack_into(form, data, len(data) - 22 + place, *value)
    assert refusal(data).code == "engine.corrupt"


def test_too_many_entries_are_refused() -> None:
    many = [(f"golden/{index:03}.npy", b"") for index in range(256)]
    error = refusal(zipped([GOOD[0], *many]))
    assert error.code == "engine.corrupt"
    assert "end record" in error.message


def test_a_large_manifest_is_refused_unparsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("parsed"))
    data = zipped([("manifest.json", b"[" * ((1 << 20) + 1)), *GOOD[1:]])
    assert refusal(data).code == "engine.too_large"
    assert refusal(data, trusted_keys=[PUBLIC]).code == "engine.too_large"


@pytest.mark.requirement("R-TRUST-1")
def test_nothing_is_parsed_before_the_container_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Manifest, "from_json", lambda _: pytest.fail("parsed"))
    refusal(SMALL[:-1])
    refusal(zipped(GOOD, compress_type=zipfile.ZIP_DEFLATED))
    refusal(SMALL, trusted_keys=[PUBLIC])  # unsigned
    refusal(SIGNED, trusted_keys=[OTHER_PUBLIC])


def test_newer_format_is_told_apart_from_damage() -> None:
    error = refusal(tampered(lambda plain: plain.update(format_version=3, novelty={})))
    assert error.code == "engine.format_version"


@pytest.mark.requirement("R-ENGINE-1")
def test_a_broken_rule_names_the_value() -> None:
    error = refusal(tampered(lambda plain: plain["calibration"].update(scale=0)))
    assert error.code == "engine.manifest"
    assert "calibration.scale" in error.message


def test_the_table_cannot_name_the_manifest_or_the_signature() -> None:
    for name in ("manifest.json", "manifest.sig"):
        extra = {name: {"size": 0, "sha256": sha256(b"")}}
        error = refusal(tampered(partial(list_also, extra=extra)))
        assert error.code == "engine.manifest"


def npy(header: str, body: bytes, version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header.encode() + body


PLAIN_HEADER = "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3), }\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        npy(PLAIN_HEADER, bytes(5)),
        npy(PLAIN_HEADER, bytes(7)),
        npy(PLAIN_HEADER, bytes(6), b"\x02\x00"),
        npy(PLAIN_HEADER.replace("|u1", "<f4"), bytes(24)),
        npy(PLAIN_HEADER.replace("|u1", "|O8"), bytes(48)),
        npy(PLAIN_HEADER.replace("|u1", ">u1"), bytes(6)),
        npy(PLAIN_HEADER.replace("False", "True"), bytes(6)),
        npy(PLAIN_HEADER.replace("(2, 3)", "(6,)"), bytes(6)),
        npy(PLAIN_HEADER.replace("(2, 3)", "(0, 3)"), b""),
        npy(PLAIN_HEADER.replace("(2, 3)", "(-2, -3)"), bytes(6)),
        npy(PLAIN_HEADER.replace("(2, 3)", "(99999, 99999)"), bytes(6)),
        npy(PLAIN_HEADER.replace("2, 3", "__import__('os').abort()"), bytes(6)),
        npy(PLAIN_HEADER, bytes(6))[:8] + b"\xff\xff" + PLAIN_HEADER.encode() + bytes(6),
    ],
)
def test_golden_arrays_have_one_form(content: bytes) -> None:
    assert Engine.open(engine_bytes(MANIFEST, {**ENTRIES, "golden/a/pixels.npy": npy(PLAIN_HEADER, bytes(6))}))
    with pytest.raises(EngineError, match=r"pixels\.npy") as caught:
        engine_bytes(MANIFEST, {**ENTRIES, "golden/a/pixels.npy": content})
    assert caught.value.code == "engine.corrupt"


@pytest.mark.parametrize(
    ("part", "array"),
    [
        ("patch_logits", PATCH_LOGITS.T),
        ("mask_logits", MASK_LOGITS[1:]),
        ("mask_logits", MASK_LOGITS.astype(np.float32)),
        ("patch_logits", np.full((3, 2), np.nan, np.float32)),
        ("mask_logits", np.full((7, 5), np.inf, np.float16)),
    ],
)
def test_golden_arrays_fit_the_outputs_and_are_finite(part: str, array: Any) -> None:
    with pytest.raises(EngineError, match=part) as caught:
        engine_bytes(MANIFEST, {**ENTRIES, f"golden/a/{part}.npy": npy_bytes(array)})
    assert caught.value.code == "engine.corrupt"


# --- the file system ---


def test_paths_that_are_no_readable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(tmp_path / "none.ptxengine").code == "engine.not_found"
    assert refusal("no\0name").code == "engine.not_found"
    assert refusal(tmp_path).code == "engine.unreadable"
    (tmp_path / "file").write_bytes(SMALL)
    assert refusal(tmp_path / "file" / "below").code == "engine.not_found"
    assert refusal("/dev/zero").code == "engine.unreadable"
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe").code == "engine.unreadable"  # and does not wait for a writer
    assert refusal(3.5).code == "engine.not_an_engine"
    (tmp_path / "empty").touch()
    assert refusal(tmp_path / "empty").code == "engine.not_an_engine"

    def denied(*_: Any, **__: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    assert refusal(tmp_path / "file").code == "engine.unreadable"


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as stream:
        stream.truncate((1 << 30) + 1)
    assert refusal(path).code == "engine.too_large"


def test_large_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "MAX_ENGINE_BYTES", len(SMALL) - 1)
    assert refusal(SMALL).code == "engine.too_large"
    with pytest.raises(EngineError) as caught:
        engine_bytes(MANIFEST, ENTRIES)
    assert caught.value.code == "engine.too_large"


def test_opening_leaks_no_descriptor(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(SMALL)
    (tmp_path / "bad").write_bytes(SMALL[:-1])
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        Engine.open(tmp_path / "good")
        refusal(tmp_path / "bad")
        refusal(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_write_returns_the_engine_and_replaces_an_old_file(tmp_path: Path) -> None:
    path = tmp_path / "small.ptxengine"
    path.write_bytes(b"old")
    engine = write_engine(path, MANIFEST, ENTRIES)
    assert path.read_bytes() == SMALL
    assert engine.sha256 == Engine.open(path).sha256
    assert list(tmp_path.iterdir()) == [path]


def test_write_honours_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_engine(tmp_path / "small.ptxengine", MANIFEST, ENTRIES)
    finally:
        os.umask(before)
    assert (tmp_path / "small.ptxengine").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("place", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    failure: BaseException, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "small.ptxengine"
    path.write_bytes(b"old")

    def fail(*_: Any) -> None:
        raise failure

    monkeypatch.setattr(*((os, "fsync", fail) if place == "fsync" else (Path, "replace", fail)))
    with pytest.raises(WriterError if isinstance(failure, OSError) else KeyboardInterrupt) as caught:
        write_engine(path, MANIFEST, ENTRIES)
    if isinstance(caught.value, PtxsdkError):
        assert caught.value.code == "writer.failed"
        assert "No space left" in caught.value.message
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform != "linux", reason="file size limits as on Linux")
def test_a_disk_that_fills_while_writing_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(WriterError):
            write_engine(tmp_path / "small.ptxengine", MANIFEST, ENTRIES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_write_to_no_folder_or_onto_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none" / "x.ptxengine", tmp_path / "folder"):
        with pytest.raises(WriterError) as caught:
            write_engine(path, MANIFEST, ENTRIES)
        assert caught.value.code == "writer.failed"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({}, "entries"),
        ({**ENTRIES, "golden/b.npy": b""}, "golden/b.npy"),
        ({**ENTRIES, "../evil": b""}, "evil"),
        ({**ENTRIES, "manifest.json": b"{}"}, "manifest.json"),
        ({**ENTRIES, "manifest.sig": b""}, "manifest.sig"),
        ({name: content for name, content in ENTRIES.items() if "fp32" not in name}, "network/fp32.onnx"),
    ],
)
def test_writing_refuses_entries_the_manifest_does_not_refer_to(
    entries: dict[str, bytes], says: str, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=says) as caught:
        write_engine(tmp_path / "x.ptxengine", MANIFEST, entries)
    assert caught.value.code == "engine.manifest"
    assert list(tmp_path.iterdir()) == []


# --- signatures ---


def pem(key: Any) -> bytes:
    raw: bytes = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return raw


@pytest.mark.parametrize(
    "keys",
    [[PUBLIC], [pem(KEY.public_key())], [KEY.public_key()], [OTHER_PUBLIC, PUBLIC], (PUBLIC, OTHER_PUBLIC)],
    ids=["raw", "pem", "object", "second", "first"],
)
def test_a_trusted_signature_is_accepted(keys: Any) -> None:
    for required in (False, True):
        engine = Engine.open(SIGNED, trusted_keys=keys, require_signature=required)
        assert engine.signature == "verified"
    assert Engine.open(SIGNED).signature == "unchecked"


def test_the_signature_is_plain_ed25519_over_the_manifest() -> None:
    contents = dict(unzipped(SIGNED))
    KEY.public_key().verify(contents["manifest.sig"], contents["manifest.json"])
    assert contents["manifest.json"] == GOOD[0][1]


def test_missing_wrong_and_foreign_signatures_are_refused() -> None:
    signed = unzipped(SIGNED)
    for data, keys in (
        (SMALL, [PUBLIC]),
        (SIGNED, [OTHER_PUBLIC]),
        (zipped([signed[0], ("manifest.sig", bytes(64)), *signed[2:]]), [PUBLIC]),
        (zipped([signed[0], ("manifest.sig", b""), *signed[2:]]), [PUBLIC]),
        (zipped([signed[0], ("manifest.sig", signed[1][1] + b"\0"), *signed[2:]]), [PUBLIC]),
        (zipped([signed[0], ("manifest.sig", OTHER_KEY.sign(signed[0][1])), *signed[2:]]), [PUBLIC]),
    ):
        assert refusal(data, trusted_keys=keys).code == "engine.signature"


def test_a_changed_manifest_under_an_old_signature_is_refused() -> None:
    signed = unzipped(SIGNED)
    raw = signed[0][1].replace(b'"threshold": 0.4', b'"threshold": 0.9')
    assert raw != signed[0][1]
    data = zipped([("manifest.json", raw), *signed[1:]])
    assert Engine.open(data).manifest.operating_points[0].threshold == 0.9  # a good engine but for the signature
    assert refusal(data, trusted_keys=[PUBLIC]).code == "engine.signature"


def test_every_flipped_bit_of_the_signature_is_refused() -> None:
    signed = unzipped(SIGNED)
    for bit in range(512):
        broken = bytearray(signed[1][1])
        broken[bit // 8] ^= 1 << bit % 8
        data = zipped([signed[0], ("manifest.sig", bytes(broken)), *signed[2:]])
        assert refusal(data, trusted_keys=[PUBLIC]).code == "engine.signature"


def test_a_required_signature_without_keys_is_refused() -> None:
    assert refusal(SIGNED, require_signature=True).code == "engine.signature"


@pytest.mark.parametrize(
    "keys",
    [
        [b""],
        [PUBLIC[:31]],
        [b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"],
        [pem(generate_private_key(SECP256R1()).public_key())],
        ["x"],
        [None],
        [PUBLIC, b"bad"],
        PUBLIC,
        b"",
        "",
    ],
    ids=lambda keys: repr(keys)[:20],
)
def test_keys_that_are_none_are_refused_even_for_an_unsigned_engine(keys: Any) -> None:
    assert refusal(SMALL, trusted_keys=keys).code == "engine.signature"
    assert refusal(SIGNED, trusted_keys=keys).code == "engine.signature"


def test_signing_adds_and_replaces_and_keeps_the_manifest(tmp_path: Path) -> None:
    path = tmp_path / "small.ptxengine"
    write_engine(path, MANIFEST, ENTRIES)
    assert sign_engine(path, path, signing_key=OTHER_KEY).signature == "verified"
    assert refusal(path, trusted_keys=[PUBLIC]).code == "engine.signature"
    raw = KEY.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    sign_engine(path, path, signing_key=raw)
    assert path.read_bytes() == SIGNED
    text = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    sign_engine(SMALL, tmp_path / "other", signing_key=text)
    assert (tmp_path / "other").read_bytes() == SIGNED


def test_signing_refuses_what_is_no_key_or_no_engine(tmp_path: Path) -> None:
    for key in (b"", b"short", "text", pem(KEY.public_key()), KEY.public_key(), generate_private_key(SECP256R1())):
        with pytest.raises(EngineError) as caught:
            sign_engine(SMALL, tmp_path / "x", signing_key=key)  # type: ignore[arg-type]
        assert caught.value.code == "engine.signature"
    with pytest.raises(EngineError):
        sign_engine(SMALL[:-1], tmp_path / "x", signing_key=KEY)
    assert list(tmp_path.iterdir()) == []


# --- the house ---


def test_import_needs_numpy_and_the_standard_library_only(tmp_path: Path) -> None:
    code = "import sys, ptxsdk.engine; print(*{name.split('.')[0] for name in sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert not {"cryptography", "cv2", "openvino", "pydicom", "onnxruntime"} & set(found.stdout.split())
    assert "numpy" in found.stdout.split()


def test_threads_may_share_an_engine() -> None:
    engine = Engine.open(SMALL)
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(engine.network("fp32"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [ENTRIES["network/fp32.onnx"]] * 8
