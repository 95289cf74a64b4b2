"""Every changed byte of an engine is found before a parser sees any: all of its structure, the rest at random."""

from __future__ import annotations

import json
import random
import zlib

import numpy as np
import pytest

from ptxsdk.engine import MANIFEST, SIGNATURE, Engine, _contents, new_keys, sign_engine
from ptxsdk.errors import EngineError
from ptxsdk.manifest import Manifest

PRIVATE, PUBLIC = new_keys()


@pytest.fixture(scope="module")
def signed(tiny_engine, tmp_path_factory):
    """The small engine, signed, of format 2: every kind of byte an engine has."""
    path = tmp_path_factory.mktemp("tamper") / "signed.ptxengine"
    sign_engine(tiny_engine, path, signing_key=PRIVATE, security_version=3)
    return path.read_bytes()


@pytest.fixture
def no_parser(monkeypatch):
    """Fail where the manifest's parser, and so anything after it, is reached."""
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("the manifest was parsed"))
    monkeypatch.setattr(Manifest, "from_json", lambda _: pytest.fail("the manifest was parsed"))


def structure_of(data):
    """Return the places of headers, directory, manifest and signature, and those of the other entries' content."""
    elsewhere = np.zeros(len(data), bool)
    for name, place in _contents(memoryview(data)).items():
        elsewhere[place] = name not in (MANIFEST, SIGNATURE)
    return np.flatnonzero(~elsewhere).tolist(), np.flatnonzero(elsewhere)


def assert_found(data, places_and_flips, **options):
    """Open the engine with each change; return how many there were."""
    broken = bytearray(data)
    count = 0
    for at, flip in places_and_flips:
        broken[at] ^= flip
        with pytest.raises(EngineError) as raised:
            Engine.open(broken, **options)
        assert raised.value.code in ("engine.corrupt", "engine.not_an_engine", "engine.too_large")
        broken[at] ^= flip
        count += 1
    assert broken == data
    return count


@pytest.mark.requirement("R-TRUST-1")
def test_every_bit_of_manifest_and_structure(signed, no_parser):
    places, _ = structure_of(signed)
    assert len(places) > 3000
    flips = ((at, flip) for at in places for flip in (1, 2, 4, 8, 16, 32, 64, 128, 255))
    assert assert_found(signed, flips) == 9 * len(places)


@pytest.mark.requirement("R-TRUST-1")
def test_ten_thousand_random_changes_elsewhere(signed, no_parser):
    _, content = structure_of(signed)
    chance = random.Random(7)
    flips = ((int(chance.choice(content)), chance.randrange(1, 256)) for _ in range(10_000))
    assert assert_found(signed, flips) == 10_000


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_value_of_every_byte(signed, no_parser):
    places, content = structure_of(signed)
    flips = ((at, flip) for at in places for flip in range(1, 256))
    assert assert_found(signed, flips) == 255 * len(places)
    assert assert_found(signed, ((at, 1 << at % 8) for at in content.tolist())) == len(content)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_shipped_engine(no_parser):
    data = Engine.default_path().read_bytes()
    places, content = structure_of(data)
    chance = random.Random(8)
    assert assert_found(data, ((at, 1 << chance.randrange(8)) for at in places)) == len(places)
    flips = ((int(chance.choice(content)), chance.randrange(1, 256)) for _ in range(10_000))
    assert assert_found(data, flips) == 10_000


@pytest.mark.requirement("R-TRUST-2")
def test_a_change_with_every_checksum_made_right_again_is_found_by_the_signature(signed, no_parser):
    """Who can compute a CRC can change the manifest; who has no key cannot sign it."""
    manifest = _contents(memoryview(signed))[MANIFEST]
    for at in range(manifest.start, manifest.stop):
        forged = bytearray(signed)
        forged[at] ^= 1
        crc = zlib.crc32(forged[manifest]).to_bytes(4, "little")
        old = zlib.crc32(signed[manifest]).to_bytes(4, "little")
        assert forged.count(old) == 2  # local header and directory
        with pytest.raises(EngineError) as raised:
            Engine.open(bytes(forged).replace(old, crc), trusted_keys=[PUBLIC])
        assert raised.value.code == "engine.signature"
