"""Signing, trusted keys, rollback: older engines are refused, and the record of the newest is not lost unseen."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import threading
from dataclasses import replace

import pytest
from made import make_chest
from typer.testing import CliRunner

from ptxsdk import Detector, DetectorError, Engine, EngineError, RollbackFile
from ptxsdk.cli import app
from ptxsdk.engine import engine_bytes, new_keys, sign_engine
from ptxsdk.manifest import FORMAT_VERSION

PRIVATE, PUBLIC = new_keys()


@pytest.fixture
def signed(tmp_path, tiny_engine):
    """Return a function that makes the small engine with a security version, signed."""

    def make(version):
        path = tmp_path / f"{version}.ptxengine"
        sign_engine(tiny_engine, path, signing_key=PRIVATE, security_version=version)
        return path

    return make


@pytest.fixture
def state(tmp_path):
    return RollbackFile.create(tmp_path / "rollback.json")


def refusal(call, *arguments, **options):
    with pytest.raises(EngineError) as raised:
        call(*arguments, **options)
    return raised.value.code


# --- the version in the manifest ---


def test_an_engine_without_a_version_stays_as_it_was_and_counts_as_zero(tiny_engine, tmp_path):
    engine = Engine.open(tiny_engine)
    assert (engine.manifest.format_version, engine.security_version) == (1, 0)
    resigned = sign_engine(tiny_engine, tmp_path / "signed.ptxengine", signing_key=PRIVATE)
    assert resigned.manifest_bytes() == engine.manifest_bytes()


def test_a_version_makes_format_2_and_is_under_the_signature(signed):
    engine = Engine.open(signed(7), trusted_keys=[PUBLIC])
    assert (engine.manifest.format_version, engine.security_version, engine.signature) == (2, 7, "verified")
    assert FORMAT_VERSION == 2
    raised = replace(engine.manifest, security_version=8)
    contents = {**engine.entries()}
    unsigned = engine_bytes(raised, contents)
    assert refusal(Engine.open, unsigned, trusted_keys=[PUBLIC]) == "engine.signature"


@pytest.mark.parametrize(("version", "format_version"), [(None, 2), (1, 1), (0, 2), (-1, 2), (2**31, 2), (True, 2)])
def test_version_and_format_belong_together(tiny_engine, version, format_version):
    plain = json.loads(Engine.open(tiny_engine).manifest_bytes())
    plain["format_version"] = format_version
    if version is not None:
        plain["security_version"] = version
    from ptxsdk.manifest import Manifest

    assert refusal(Manifest.from_json, json.dumps(plain).encode()) == "engine.manifest"


@pytest.mark.parametrize("version", [0, 3, -1, 2**31, "4", 4.0])
def test_signing_never_lowers_a_version(signed, tmp_path, version):
    source = signed(5)
    code = refusal(sign_engine, source, tmp_path / "lower", signing_key=PRIVATE, security_version=version)
    assert code == "engine.manifest"
    assert not (tmp_path / "lower").exists()


# --- the device ---


@pytest.mark.requirement("R-TRUST-4")
def test_an_older_engine_is_refused_after_a_newer_one(signed, state):
    options = {"trusted_keys": [PUBLIC], "rollback": state.path}
    for version in (1, 3, 3):
        with Detector(signed(version), **options) as detector:
            assert detector.predict(make_chest()).engine.sha256 == detector.engine.sha256
        assert state.read() == version
    with pytest.raises(EngineError, match=r"2.*3") as raised:
        Detector(signed(2), **options)
    assert raised.value.code == "engine.rollback"
    assert state.read() == 3
    Detector(Engine.open(signed(4)), **options).close()
    assert state.read() == 4


def test_an_engine_without_a_version_runs_until_one_with_a_version_has_run(signed, state, tiny_engine, tmp_path):
    plain = tmp_path / "plain.ptxengine"
    sign_engine(tiny_engine, plain, signing_key=PRIVATE)
    options = {"trusted_keys": [PUBLIC], "rollback": state}
    Detector(plain, **options).close()
    Detector(signed(1), **options).close()
    assert refusal(Detector, plain, **options) == "engine.rollback"


def test_an_old_engine_is_refused_before_its_network_is_parsed(signed, state, monkeypatch):
    state.advance(9)
    monkeypatch.setattr(Engine, "network", lambda *_: pytest.fail("a network was read"))
    assert refusal(Detector, signed(8), trusted_keys=[PUBLIC], rollback=state) == "engine.rollback"


def test_an_engine_that_fails_its_self_test_locks_nobody_out(tiny_network, state, tmp_path):
    from made import make_engine, tiny_manifest

    golden = replace(tiny_manifest().golden[0], probability=0.123)
    path = tmp_path / "wrong.ptxengine"
    sign_engine(make_engine(tiny_network, golden=(golden,)), path, signing_key=PRIVATE, security_version=5)
    assert refusal(Detector, path, trusted_keys=[PUBLIC], rollback=state) == "engine.self_test"
    assert state.read() == 0


def test_rollback_without_keys_is_a_mistake(tiny_engine, state):
    with pytest.raises(DetectorError, match="trusted_keys"):
        Detector(tiny_engine, rollback=state)
    with pytest.raises(DetectorError, match="rollback"):
        Detector(tiny_engine, rollback=3, trusted_keys=[PUBLIC])


@pytest.mark.requirement("R-TRUST-3")
def test_a_required_signature_cannot_be_lost_with_the_key_list(tiny_engine, signed):
    for engine in (tiny_engine, signed(1), Engine.open(signed(1))):
        assert refusal(Detector, engine, require_signature=True) == "engine.signature"
    Detector(signed(1), require_signature=True, trusted_keys=[PUBLIC]).close()


def test_a_counter_of_the_hosts(signed):
    class Counter:
        kept = 2

        def read(self):
            return self.kept

        def advance(self, version):
            self.kept = version

    counter = Counter()
    assert refusal(Detector, signed(1), trusted_keys=[PUBLIC], rollback=counter) == "engine.rollback"
    Detector(signed(3), trusted_keys=[PUBLIC], rollback=counter).close()
    assert counter.kept == 3
    counter.kept = "3"
    assert refusal(Detector, signed(3), trusted_keys=[PUBLIC], rollback=counter) == "engine.rollback_state"
    counter.kept, counter.advance = 3, lambda _: 1 / 0
    assert refusal(Detector, signed(4), trusted_keys=[PUBLIC], rollback=counter) == "engine.rollback_state"


# --- the file ---


def test_every_damage_to_the_file_is_an_error(state):
    state.advance(12)
    good = state.path.read_bytes()
    damaged = [good[:n] for n in range(len(good))] + [good + b" ", b"null", b"[" * 200, b'{"security_version": 1}']
    damaged += [good[:n] + bytes([good[n] ^ flip]) + good[n + 1 :] for n in range(len(good)) for flip in (1, 32, 255)]
    for content in damaged:
        state.path.write_bytes(content)
        assert refusal(state.read) == "engine.rollback_state", content
        assert refusal(state.advance, 13) == "engine.rollback_state"
    state.path.write_bytes(good)
    assert state.read() == 12


def test_a_missing_file_is_no_fresh_start(state, signed):
    state.path.unlink()
    options = {"trusted_keys": [PUBLIC], "rollback": state.path}
    assert refusal(Detector, signed(1), **options) == "engine.rollback_state"
    assert not state.path.exists()


def test_what_others_could_have_written_does_not_count(state, tmp_path):
    for path, mode in ((state.path, 0o620), (tmp_path, 0o777)):
        before = path.stat().st_mode & 0o7777
        path.chmod(mode)
        assert refusal(state.read) == "engine.rollback_state"
        path.chmod(before)
    assert state.read() == 0
    link = RollbackFile(tmp_path / "link")
    link.path.symlink_to(state.path)
    assert refusal(link.read) == "engine.rollback_state"
    os.mkfifo(tmp_path / "pipe")
    assert refusal(RollbackFile(tmp_path / "pipe").read) == "engine.rollback_state"


def test_a_file_is_made_once_and_never_lowered(state):
    assert refusal(RollbackFile.create, state.path) == "engine.rollback_state"
    state.advance(3)
    assert refusal(state.advance, 2) == "engine.rollback"
    assert state.path.stat().st_mode & 0o777 == 0o600
    assert refusal(RollbackFile.create, state.path.parent / "no" / "folder") == "engine.rollback_state"
    assert refusal(RollbackFile("a\0b").read) == "engine.rollback_state"


def test_a_disk_that_refuses_leaves_what_was_there(state, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert refusal(state.advance, 5) == "engine.rollback_state"
    assert state.read() == 0
    assert {path.name for path in state.path.parent.iterdir()} == {"rollback.json", ".rollback.json.lock"}


def test_the_highest_of_many_writers_stays(state):
    def advance(version):
        try:
            state.advance(version)
        except EngineError as error:
            assert error.code == "engine.rollback"  # noqa: PT017 - one of the two outcomes there may be

    threads = [threading.Thread(target=advance, args=(version,)) for version in range(1, 25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert state.read() == 24


# --- the command line ---


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_from_keys_to_a_refused_rollback(tmp_path, tiny_engine):
    (tmp_path / "tiny.ptxengine").write_bytes(tiny_engine)
    key, public, file = tmp_path / "key.pem", tmp_path / "key.pem.pub", tmp_path / "state"
    assert run("keygen", "--out", key).exit_code == 0
    assert key.stat().st_mode & 0o777 == 0o600
    before = key.read_bytes()
    assert run("keygen", "--out", key).exit_code == 1
    assert key.read_bytes() == before
    for version in (1, 2):
        out = tmp_path / f"{version}.ptxengine"
        arguments = ("--key", key, "--out", out, "--security-version", version, "--json")
        result = run("sign", tmp_path / "tiny.ptxengine", *arguments)
        assert json.loads(result.stdout)["security_version"] == version
    assert run("provision", file).exit_code == 0
    assert run("provision", file).exit_code == 1
    options = ("--key", public, "--rollback", file, "--json")
    for version, code in ((1, None), (2, None), (1, "engine.rollback")):
        result = run("verify", tmp_path / f"{version}.ptxengine", *options)
        assert json.loads(result.stdout).get("error", {}).get("code") == code
        assert result.exit_code == (code is not None)
    assert "security version" in run("inspect", tmp_path / "2.ptxengine").stdout
    assert run("verify", tmp_path / "2.ptxengine", "--rollback", file).exit_code == 2
    wrong = run("sign", tmp_path / "tiny.ptxengine", "--key", public, "--out", tmp_path / "x", "--json")
    assert (wrong.exit_code, json.loads(wrong.stdout)["error"]["code"]) == (1, "engine.signature")


@pytest.mark.requirement("R-TRUST-4")
def test_who_may_only_read_the_folder_holds_nobody_up(state, monkeypatch):
    monkeypatch.setattr("ptxsdk.rollback._LOCK_SECONDS", 0.2)
    assert [path.name for path in state.path.parent.iterdir()] == ["rollback.json"]  # made by anybody, run by another
    folder = os.open(state.path.parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    state.advance(1)
    os.close(folder)
    lock = state.path.with_name(f".{state.path.name}.lock")
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600


@pytest.mark.requirement("R-TRUST-4")
def test_a_lock_that_is_not_given_free_is_an_error_and_changes_nothing(state, monkeypatch):
    monkeypatch.setattr("ptxsdk.rollback._LOCK_SECONDS", 0.2)
    state.advance(1)
    with state.path.with_name(f".{state.path.name}.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert refusal(state.advance, 2) == "engine.rollback_state"
    assert state.read() == 1
    state.advance(2)
    assert state.read() == 2
