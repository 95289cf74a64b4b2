"""The audit log: one chain of records, whoever scores; nothing of the patient; no result without its record."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
from dicom_files import content, dataset
from made import make_chest
from typer.testing import CliRunner

from ptxsdk import (
    AuditChain,
    AuditError,
    AuditFile,
    Detector,
    DetectorError,
    EngineError,
    GatePolicy,
    OutOfScope,
    Radiograph,
)
from ptxsdk import audit as audit_module
from ptxsdk.audit import GENESIS, Head, canonical, policy_hash, record_hash, verify
from ptxsdk.cli import app

BLOB = (250, 150, 60)


@pytest.fixture
def log(tmp_path):
    return tmp_path / "audit.jsonl"


def records(path):
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def refusal(call, *arguments, **options):
    with pytest.raises(AuditError) as raised:
        call(*arguments, **options)
    return raised.value.code


def make_dicom(pixels, **attributes):
    return content(dataset(pixels, bits=8, WindowCenter=128, WindowWidth=256, **attributes))


def write_some(path, count=6):
    with AuditFile(path) as chain:
        for n in range(count):
            chain.append("test", {"n": n})
    return path.read_bytes()


# --- what is recorded ---


@pytest.mark.requirement("R-AUDIT-1")
def test_a_record_of_every_film_scored_or_not(tiny_engine, log):
    policy = GatePolicy(minimum_side=300)
    with AuditFile(log) as chain, Detector(tiny_engine, audit=chain, gate_policy=policy, profile="triage") as detector:
        flagged = detector.predict(make_chest(blob=BLOB))
        with pytest.raises(OutOfScope):
            detector.predict(make_chest((280, 280)))
        for nothing in (b"no film", np.zeros((400, 400), np.uint8), 7):
            with pytest.raises(Exception, match=r"\["):
                detector.predict(nothing)
        point, sha256 = flagged.operating_point, detector.engine.sha256
        ran = (detector.backend, detector.precision, "cpu")
    start, *films = records(log)
    assert start["event"] == "start"
    assert [film["error"] for film in films] == [
        None,
        "gate.size",
        "input.unknown_format",
        "gate.constant",
        "input.type",
    ]
    for film in films:
        assert film["event"] == "predict"
        assert film["engine"] == {"name": "tiny", "version": "1.0", "sha256": sha256, "security_version": 0}
        assert (film["operating_point"], film["threshold"], film["profile"]) == (point.name, point.threshold, "triage")
        assert (film["backend"], film["precision"], film["device"]) == ran
        assert film["policy"] == policy_hash(policy) != policy_hash(GatePolicy())
        assert (film["error"] is None) == (film["probability"] is not None) == (film["flagged"] is not None)
    assert (films[0]["probability"], films[0]["flagged"]) == (flagged.probability, True)
    assert films[0]["gate"] == [[check.code, check.status] for check in flagged.quality.checks]
    assert ["gate.size", "fail"] in films[1]["gate"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", film["time"]) for film in films)


@pytest.mark.requirement("R-AUDIT-2")
def test_nothing_of_the_patient_is_recorded(tiny_engine, log, tmp_path):
    secret = tmp_path / "DOE^JANE.dcm"
    marks = {"PatientName": "DOE^JANE", "PatientID": "7531", "PatientBirthDate": "19310203", "PatientAge": "094Y"}
    marks |= {"StudyInstanceUID": "1.2.3.7531", "AccessionNumber": "ACC7531", "StudyDate": "20250607"}
    secret.write_bytes(make_dicom(make_chest(), **marks))
    child = make_dicom(make_chest(), PatientName="DOE^JIM", PatientAge="007Y", ViewPosition="LL")
    with AuditFile(log) as chain, Detector(tiny_engine, audit=chain) as detector:
        detector.predict(secret)
        with pytest.raises(OutOfScope):
            detector.predict(child)
        with pytest.raises(Exception, match="not_found"):
            detector.predict(tmp_path / "DOE^JACK.dcm")
    ours = r'"(hash|previous|sha256|policy|time|probability|ptxsdk)":("[^"]*"|[\d.e-]+)'
    text = re.sub(ours, "", log.read_text("ascii"))
    for mark in ("DOE", "JANE", "7531", "1931", "094", "94", "007", "ACC", "20250607", "LL", str(tmp_path)):
        assert mark not in text


@pytest.mark.requirement("R-AUDIT-1")
def test_no_film_makes_its_record_too_long(tiny_engine, log):
    """A film that could would have no result, and would stop a node for good."""
    windows = {"WindowCenter": [128] * 4000, "WindowWidth": [0] * 4000}
    warnings = (*(f"host.{n}: x" for n in range(9000)), "\u20ac" * 99_999)
    of_the_host = replace(Radiograph.from_array(make_chest()), warnings=warnings)
    with AuditFile(log) as chain, Detector(tiny_engine, audit=chain) as detector:
        result = detector.predict(content(dataset(make_chest(), bits=8, **windows)))
        assert len(json.dumps(result.to_dict())) < 10_000
        detector.predict(of_the_host)
    _, film, made = records(log)
    assert film["warnings"].count("voi.ignored") == 1
    assert "left_out" not in film
    assert (len(made["warnings"]), made["left_out"]) == (32, 9001 + 1 - 32)


def test_a_refused_engine_is_recorded(tiny_engine, log):
    with AuditFile(log) as chain:
        for engine, options in ((tiny_engine[:-1], {}), (tiny_engine, {"require_signature": True})):
            with pytest.raises(EngineError):
                Detector(engine, audit=chain, **options)
        with pytest.raises(DetectorError):
            Detector(tiny_engine, audit=chain, profile="none")
    assert [record["error"] for record in records(log)] == ["engine.corrupt", "engine.signature", "detector.option"]


def test_a_defect_of_ours_is_recorded(tiny_engine, monkeypatch):
    kept = []
    with Detector(tiny_engine, audit=kept.append) as detector:
        monkeypatch.setattr("ptxsdk.gate.enforce", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            detector.predict(make_chest())
    assert kept[-1]["error"] == "detector.internal"


@pytest.mark.requirement("R-AUDIT-3")
def test_one_chain_for_threads_clones_and_batches(tiny_engine, log):
    films = [make_chest(), make_chest(blob=BLOB), make_chest((100, 100))]
    with AuditFile(log) as chain, Detector(tiny_engine, audit=chain) as detector:
        detector.predict_batch(films * 2, errors="return")

        def work():
            with detector.clone() as own:
                own.predict_batch(films, errors="return")
                own.predict(films[0])

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with Detector(tiny_engine, audit=chain) as second:
            second.predict(films[1])
        head = chain.head
    found = verify(log, head=head.hash)
    assert (found.records, found.head, found.torn) == (1 + 6 + 4 * 4 + 1 + 1, head, 0)
    assert sum(record.get("error") == "gate.size" for record in records(log)) == 2 + 4


@pytest.mark.requirement("R-AUDIT-4")
def test_no_result_where_the_record_cannot_be_kept(tiny_engine):
    kept, broken = [], []

    def sink(record):
        if broken:
            raise OSError("gone")
        kept.append(record)

    with Detector(tiny_engine, audit=sink) as detector:
        detector.predict(make_chest())
        broken.append(True)
        assert refusal(detector.predict, make_chest()) == "audit.failed"
        assert refusal(detector.predict, b"no film") == "audit.failed"
        results = detector.predict_batch([make_chest()] * 3, errors="return")
        assert [result.code for result in results] == ["audit.failed"] * 3
        assert refusal(Detector, tiny_engine, audit=sink) == "audit.failed"
        broken.clear()
        detector.predict(make_chest())
    assert [record["sequence"] for record in kept] == [0, 1, 2]
    assert kept[2]["previous"] == kept[1]["hash"]
    assert kept[0]["previous"] == GENESIS


def test_what_is_no_sink(tiny_engine, tmp_path):
    with pytest.raises(DetectorError, match="audit"):
        Detector(tiny_engine, audit=str(tmp_path / "audit.jsonl"))


def test_a_host_can_go_on_with_its_own_chain():
    kept = []
    first = AuditChain(kept.append)
    first.append("installed", {"unit": 7, "sequence": "ours cannot be overwritten"})
    AuditChain(kept.append, head=first.head).append("serviced", {})
    assert [record["sequence"] for record in kept] == [0, 1]
    assert kept[1]["previous"] == kept[0]["hash"] == record_hash(kept[0])
    turned = dict(reversed(kept[0].items()))
    assert record_hash(turned) == kept[0]["hash"]  # a database may keep keys in an order of its own
    for unwritable in (float("nan"), object()):
        assert refusal(first.append, "test", {"value": unwritable}) == "audit.failed"
    assert first.head == Head(0, kept[0]["hash"])


def test_the_hash_is_what_the_documentation_says(log):
    write_some(log, 2)
    for record in records(log):
        stated = record.pop("hash")
        text = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
        assert stated == hashlib.sha256(text).hexdigest()


def test_a_fork_cannot_split_the_chain(log):
    with AuditFile(log) as chain:
        chain._pid += 1
        assert refusal(chain.append, "test", {}) == "audit.failed"


# --- the file ---


@pytest.mark.requirement("R-AUDIT-5")
def test_every_changed_removed_added_or_moved_record_is_found(log):
    good = write_some(log)
    lines = good.splitlines(keepends=True)
    chance = random.Random(3)
    damaged = [good[:at] + bytes([good[at] ^ chance.randrange(1, 256)]) + good[at + 1 :] for at in range(len(good) - 1)]
    damaged += [b"".join(lines[:n] + lines[n + 1 :]) for n in range(len(lines) - 1)]  # removed
    damaged += [b"".join([*lines[:n], lines[n], *lines[n:]]) for n in range(len(lines))]  # twice
    damaged += [b"".join([*lines[:n], lines[n + 1], lines[n], *lines[n + 2 :]]) for n in range(len(lines) - 1)]
    damaged += [b"\n" + good, good + b"\n", good.replace(b'":', b'": ', 1), b"[]\n", b"{}\n", b"[" * 5000 + b"\n"]
    for bad in damaged:
        log.write_bytes(bad)
        assert refusal(verify, log) == "audit.corrupt"
    log.write_bytes(good)
    assert verify(log).records == 6


def test_a_forged_record_breaks_the_link(log):
    write_some(log)
    forged = records(log)
    forged[2]["n"] = 99
    forged[2]["hash"] = record_hash(forged[2])  # consistent in itself
    log.write_bytes(b"".join(audit_module._line(record) + b"\n" for record in forged))
    with pytest.raises(AuditError, match="line 4") as raised:
        verify(log)
    assert raised.value.code == "audit.corrupt"


def test_a_cut_end_shows_against_a_head_kept_elsewhere(log):
    good = write_some(log)
    head = verify(log).head.hash
    log.write_bytes(b"".join(good.splitlines(keepends=True)[:-1]))
    assert verify(log).records == 5
    assert refusal(verify, log, head=head) == "audit.corrupt"


def test_the_chain_goes_on_after_a_restart(log):
    write_some(log, 2)
    write_some(log, 3)
    assert verify(log).records == 5
    assert log.stat().st_mode & 0o777 == 0o600


@pytest.mark.requirement("R-AUDIT-6")
def test_every_unfinished_last_line_is_cut_off_and_told(log):
    good = write_some(log, 3)
    whole = good.splitlines(keepends=True)
    for length in range(1, len(whole[2])):
        torn = whole[2][:length]
        log.write_bytes(b"".join(whole[:2]) + torn)
        assert verify(log) == replace(verify(log), records=2, torn=length)
        with AuditFile(log) as chain:
            chain.append("test", {})
        told = records(log)[2]
        assert told["torn"] == {"bytes": length, "sha256": hashlib.sha256(torn).hexdigest()}
        assert verify(log).records == 4
        assert verify(log).torn == 0


def test_the_very_first_line_may_be_torn_but_a_foreign_file_is_left_alone(log):
    first = write_some(log, 1)
    for length in (1, 10, 30, len(first) - 1):
        log.write_bytes(first[:length])
        AuditFile(log).close()
        assert [record["event"] for record in records(log)] == ["recovered"]
    for foreign in (b"notes", b"notes\n", b'{"a": 1}', b"\0" * 200_000, b"{}\n" + first[:20], b"\n"):
        log.write_bytes(foreign)
        assert refusal(AuditFile, log) == "audit.corrupt"
        assert log.read_bytes() == foreign


def test_an_altered_last_record_stops_the_log(log):
    good = write_some(log)
    log.write_bytes(good.replace(b'"n":5', b'"n":6'))
    assert refusal(AuditFile, log) == "audit.corrupt"


def test_a_power_cut_at_any_moment_leaves_a_chain(log):
    """Killed while it writes as fast as it can: at most the last line is unfinished, and the next start goes on."""
    code = f"""
from ptxsdk import AuditFile
chain = AuditFile({str(log)!r})
n = 0
while True:
    chain.append("test", {{"n": n, "filling": "x" * 3000}}); n += 1
    print(n, flush=True)
"""
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        acknowledged = 0
        while acknowledged < 20:
            acknowledged = int(child.stdout.readline())
        child.kill()
        acknowledged = max([acknowledged, *map(int, child.stdout.read().split())])
        child.wait()
        child.stdout.close()
        found = verify(log)
        kept = [record["n"] for record in records(log)[-acknowledged:] if "n" in record]
        assert found.records >= acknowledged
        assert acknowledged - 1 in kept or acknowledged in kept  # what was acknowledged is there


def test_every_record_is_on_the_disk_before_the_caller_goes_on(log, monkeypatch):
    synced = []
    with AuditFile(log) as chain:
        monkeypatch.setattr(os, "fsync", lambda _: synced.append(log.read_bytes()))
        chain.append("test", {})
        assert synced == [log.read_bytes()]


@pytest.mark.requirement("R-AUDIT-3")
@pytest.mark.parametrize("at", ["before", "after"])
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, TimeoutError, AssertionError])
def test_a_signal_in_the_middle_of_a_record_leaves_a_chain(log, monkeypatch, at, interruption):
    """A signal's handler may raise on either side of the moment when a record is on the disk."""
    fsync = os.fsync

    def interrupted(descriptor):
        if at == "after":
            fsync(descriptor)
        raise interruption

    with AuditFile(log) as chain:
        chain.append("host", {})
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", interrupted)
            with pytest.raises((KeyboardInterrupt, AuditError)):
                chain.append("host", {})
        for _ in range(2):
            chain.append("host", {})
        assert verify(log).head == chain.head


def test_a_chain_of_the_hosts_that_was_interrupted_is_not_guessed():
    kept = []

    def sink(record):
        kept.append(record)
        if len(kept) == 2:
            raise KeyboardInterrupt

    chain = AuditChain(sink)
    chain.append("host", {})
    with pytest.raises(KeyboardInterrupt):
        chain.append("host", {})
    assert refusal(chain.append, "host", {}) == "audit.failed"
    assert len(kept) == 2


def test_a_forked_child_keeps_no_lock(log):
    with AuditFile(log) as chain:
        chain.append("host", {})
        holder, end = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(end)
            os.read(holder, 1)
            os._exit(0)
        os.close(holder)
    AuditFile(log).close()
    os.close(end)
    os.waitpid(child, 0)


def test_one_writer_at_a_time(log, tmp_path):
    with AuditFile(log):
        assert refusal(AuditFile, log) == "audit.locked"
        code = f"from ptxsdk import AuditFile; AuditFile({str(log)!r})"
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "audit.locked" in child.stderr
    AuditFile(log).close()
    for path in (tmp_path, tmp_path / "no" / "folder", "a\0b"):
        assert refusal(AuditFile, path) == "audit.failed"
    os.mkfifo(tmp_path / "pipe")
    assert refusal(AuditFile, tmp_path / "pipe") == "audit.failed"
    (tmp_path / "link").symlink_to(log)
    assert refusal(AuditFile, tmp_path / "link") == "audit.failed"
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero"):
        assert refusal(verify, path) == "audit.failed"  # and does not wait for a writer
    assert refusal(verify, tmp_path / "missing") == "audit.failed"


def test_a_log_that_others_could_have_written_is_not_gone_on_with(log, monkeypatch):
    before = write_some(log) + b'{"audit":1'
    log.write_bytes(before)
    for mode in (0o666, 0o620, 0o602):
        log.chmod(mode)
        with pytest.raises(AuditError, match="chmod 600") as raised:
            AuditFile(log)
        assert raised.value.code == "audit.failed"
    log.chmod(0o644)
    owner = log.stat().st_uid
    real = os.fstat

    def owned_by(user):
        def fstat(descriptor):
            return os.stat_result((*real(descriptor)[:4], user, *real(descriptor)[5:]))

        return fstat

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", owned_by(owner + 1))
        assert refusal(AuditFile, log) == "audit.failed"
    assert log.read_bytes() == before  # the unfinished line neither
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", owned_by(0))
        AuditFile(log).close()
    with AuditFile(log) as chain:
        log.chmod(0o666)
        chain.append("test", {})  # opened while it was this user's alone
    assert verify(log).records == 8


def test_a_full_disk_leaves_whole_records_and_the_chain_goes_on(log, monkeypatch):
    with AuditFile(log) as chain:
        chain.append("test", {})
        before = log.read_bytes()
        real = os.write

        def half(descriptor, data):
            if len(data) < 100:
                raise OSError(28, "No space left on device")
            return real(descriptor, data[: len(data) - 50])

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", half)
            assert refusal(chain.append, "test", {}) == "audit.failed"
        assert log.read_bytes() == before
        chain.append("test", {})
        assert refusal(chain.append, "test", {"long": "x" * 70_000}) == "audit.failed"
    assert verify(log).records == 2
    assert refusal(chain.append, "test", {}) == "audit.failed"


def test_canonical_is_ascii_and_refuses_nan():
    assert canonical({"b": "ä", "a": 1}) == b'{"a":1,"b":"\\u00e4"}'
    with pytest.raises(ValueError, match="JSON"):
        canonical({"a": float("inf")})


# --- the command line ---


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_on_the_command_line(tmp_path, tiny_engine, log):
    import cv2

    (tmp_path / "tiny.ptxengine").write_bytes(tiny_engine)
    cv2.imwrite(str(tmp_path / "a.png"), make_chest())
    (tmp_path / "b.png").write_bytes(b"no film")
    for _ in range(2):
        films = (tmp_path / "a.png", tmp_path / "b.png", tmp_path / "missing.png")
        result = run("predict", *films, "--engine", tmp_path / "tiny.ptxengine", "--audit", log, "--json")
        assert result.exit_code == 1
    assert [record.get("error") for record in records(log)] == 2 * [
        None,
        None,
        "input.unknown_format",
        "input.not_found",
    ]
    good = run("audit", log, "--json")
    assert good.exit_code == 0
    head = records(log)[-1]["hash"]
    assert json.loads(good.stdout) == {"records": 8, "head": head, "torn_bytes": 0}
    assert "8 records" in run("audit", log, "--head", head).stdout
    assert run("audit", log, "--head", "0" * 64).exit_code == 1
    with log.open("ab") as file:
        file.write(b'{"audit":1')
    torn = run("audit", log, "--json")
    assert (torn.exit_code, json.loads(torn.stdout)["torn_bytes"]) == (1, 10)
    log.write_bytes(log.read_bytes().replace(b"predict", b"predicT", 1))
    wrong = run("audit", log, "--json")
    assert (wrong.exit_code, json.loads(wrong.stdout)["error"]["code"]) == (1, "audit.corrupt")
    assert "line 2" in wrong.stdout
    failed = run("predict", tmp_path / "a.png", "--audit", tmp_path, "--json")
    assert json.loads(failed.stdout)["error"]["code"] == "audit.failed"
