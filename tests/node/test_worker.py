"""The worker and the folder sender, in this process: failures that a real node meets seldom."""

from __future__ import annotations

import contextlib
import io
import sqlite3
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from made import make_chest
from node_process import FLAGGED, dx, encoded, wait_for

from ptxsdk import Detector, readers
from ptxsdk.errors import BackendError, DetectorError, InputError, NodeError, OutOfScope, WriterError
from ptxsdk.node.config import NodeConfig, Peer
from ptxsdk.node.metrics import Metrics
from ptxsdk.node.sender import DicomSender, FolderSender, Unreachable
from ptxsdk.node.service import Service
from ptxsdk.node.store import MAX_ATTEMPTS, Store
from ptxsdk.node.worker import Worker


@pytest.fixture
def parts(tmp_path, monkeypatch):
    monkeypatch.setattr("ptxsdk.node.worker._PAUSE", 0.05)
    monkeypatch.setattr("ptxsdk.node.worker._BEHIND", 0.2)
    config = NodeConfig(spool=tmp_path / "spool", out=tmp_path / "out", retry_seconds=0.05, formats=("sr",))
    made = SimpleNamespace(config=config, store=Store(config.spool), metrics=Metrics(), stopping=threading.Event())
    made.rest = (config, made.store, made.metrics, made.stopping)
    made.threads = []

    def start(thread):
        made.threads.append(thread)
        thread.start()
        return thread

    made.start = start
    yield made
    made.stopping.set()
    made.store.wake()
    for thread in made.threads:
        thread.join(10)
    made.store.close()


def put(parts, number):
    ds = dx(make_chest((512, 448), **FLAGGED), number)
    parts.store.put(encoded(ds), ds.SOPInstanceUID, "AET")


def test_what_is_sent_follows_from_the_profile(tmp_path):
    for profile, formats in (("cade", ("sc", "sr", "seg")), ("triage", ("sc", "sr"))):
        assert NodeConfig(spool=tmp_path / "spool", out=tmp_path, profile=profile).formats == formats


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("PACS@host:104", ("PACS", "host", 104)),
        ("MY PACS@[::1]:11112", ("MY PACS", "::1", 11112)),
        (" PACS @10.0.0.1:1", ("PACS", "10.0.0.1", 1)),
    ],
)
def test_peers(text, peer):
    found = Peer.parse(text)
    assert (found.aet, found.host, found.port) == peer
    assert Peer.parse(found.name) == found


@pytest.mark.parametrize(
    "text", ["", "PACS", "@h:1", "P@:1", "P@h", "P@h:", "P@h:99999", "P@::1:104", "P\n@h:1", "é@h:1"]
)
def test_what_is_no_peer(text):
    with pytest.raises(NodeError) as raised:
        Peer.parse(text)
    assert raised.value.code == "node.option"


class Broken:
    """A detector that fails `times` times with `error`, then works."""

    def __init__(self, detector, error, times):
        self._detector, self._error, self.left = detector.clone(), error, times

    def read_and_predict(self, film, *, timeout):
        if self.left:
            self.left -= 1
            raise self._error
        return self._detector.read_and_predict(film, timeout=timeout)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._detector.close()


@pytest.fixture
def own(tiny_engine):
    with Detector(tiny_engine) as made:
        yield made


@pytest.mark.parametrize(
    "error",
    [
        BackendError("backend.failed", "no"),
        DetectorError("detector.timeout", "late"),
        DetectorError("detector.internal", "the system gives no thread"),
        InputError("input.decoder", "the decoding helper cannot be started"),
        MemoryError(),
        OSError(24, "Too many open files"),
    ],
)
def test_what_may_pass_gets_another_try(parts, own, error):
    put(parts, 1)
    parts.start(Worker(Broken(own, error, MAX_ATTEMPTS - 1), *parts.rest))
    wait_for(lambda: parts.store.counts()["scored"], 20)


@pytest.mark.parametrize(
    "error",
    [
        InputError("input.timeout", "the codestream was not decoded within 30 s"),
        InputError("input.too_large", "40000 x 40000 pixels; the limit is 30000 a side"),
        InputError("input.corrupt", "no"),
        WriterError("writer.failed", "no"),
    ],
)
def test_what_is_said_of_the_film_itself_is_final(parts, own, error):
    put(parts, 1)
    parts.start(Worker(Broken(own, error, 1), *parts.rest))
    wait_for(lambda: parts.store.counts()["failed"], 20)
    assert parts.store.recent(1)[0].code == error.code
    assert parts.store.recent(1)[0].attempts == 1


def test_memory_that_a_detector_did_not_find_may_be_there_for_the_next_try(parts, own, monkeypatch):
    """It says so as of a film that is too large."""
    read, failures = readers.read_as, [1] * (MAX_ATTEMPTS - 1)

    def hungry(*arguments):
        if failures:
            failures.pop()
            raise MemoryError
        return read(*arguments)

    monkeypatch.setattr("ptxsdk.readers.read_as", hungry)
    put(parts, 1)
    parts.start(Worker(own.clone(), *parts.rest))
    wait_for(lambda: parts.store.counts()["scored"], 20)
    assert not failures


def test_but_not_for_ever_and_the_next_film_goes_ahead(parts, own):
    put(parts, 1)
    put(parts, 2)
    parts.start(Worker(Broken(own, BackendError("backend.failed", "no"), MAX_ATTEMPTS), *parts.rest))
    wait_for(lambda: parts.store.counts()["scored"], 20)
    assert [film.code for film in parts.store.recent(2)] == ["", "backend.failed"]


@pytest.mark.requirement("R-AUDIT-4")
def test_a_film_whose_record_cannot_be_kept_waits_until_it_can(parts, tiny_engine):
    kept, refusing = [], threading.Event()

    def sink(record):
        if refusing.is_set() and record["event"] == "predict":
            raise OSError("no room")
        kept.append(record)

    with Detector(tiny_engine, audit=sink) as detector:
        refusing.set()
        put(parts, 1)
        parts.start(Worker(detector.clone(), *parts.rest))
        time.sleep(0.05 * (MAX_ATTEMPTS + 5))
        assert parts.store.counts()["received"] == 1
        refusing.clear()
        wait_for(lambda: parts.store.counts()["scored"], 20)
    assert [record["event"] for record in kept] == ["start", "predict"]


@pytest.mark.requirement("R-AUDIT-4")
def test_films_whose_record_cannot_be_kept_do_not_hold_up_the_others(parts, tiny_engine):
    refused = []

    def sink(record):
        if record["event"] == "predict" and record["flagged"]:
            refused.append(record)
            raise OSError("too long")

    for number in (1, 2):
        put(parts, number)
    for number in (3, 4):
        ds = dx(make_chest((512, 448)), number)
        parts.store.put(encoded(ds), ds.SOPInstanceUID, "AET")
    with Detector(tiny_engine, audit=sink) as detector:
        for _ in range(2):
            parts.start(Worker(detector.clone(), *parts.rest))
        wait_for(lambda: parts.store.counts()["scored"] == 2, 20)
        assert parts.store.holds("audit")
        wait_for(lambda: len(refused) >= 2 * MAX_ATTEMPTS, 20)
        assert parts.store.counts()["received"] == 2
        assert all(film.attempts <= 1 for film in parts.store.recent(4))
        parts.stopping.set()


@pytest.mark.requirement("R-TIME-1")
def test_a_film_that_takes_too_long_is_given_up(parts, own, monkeypatch):
    parts.config = replace(parts.config, film_seconds=0.05)
    held = threading.Event()
    monkeypatch.setattr("ptxsdk.readers.read_as", lambda *_: held.wait(30))
    put(parts, 1)
    parts.start(Worker(own.clone(), parts.config, *parts.rest[1:]))
    wait_for(lambda: parts.store.counts()["failed"], 20)
    held.set()
    assert parts.store.recent(1)[0].code == "detector.timeout"


@pytest.mark.requirement("R-TIME-1", "R-NODE-1")
def test_a_network_that_hangs_ends_the_worker_and_costs_no_film(parts, own, monkeypatch):
    parts.config = replace(parts.config, film_seconds=2)  # for reading, too: the network has to be reached
    monkeypatch.setattr("ptxsdk.detector._CLOSE_SECONDS", 0.1)
    entered, back, infer = threading.Event(), threading.Event(), own._backend.infer
    monkeypatch.setattr(type(own._backend), "infer", lambda _: (entered.set(), back.wait(60), infer()))
    put(parts, 1)
    put(parts, 2)
    worker = parts.start(Worker(own.clone(), parts.config, *parts.rest[1:]))
    worker.join(40)
    back.set()
    assert entered.is_set()
    assert worker.hangs
    assert not worker.is_alive()
    assert parts.store.counts()["received"] == 2
    assert [film.attempts for film in parts.store.recent(2)] == [0, 1]


@pytest.mark.parametrize(
    ("error", "code"), [(RuntimeError("Secret^Name"), "detector.internal"), (MemoryError(), "input.too_large")]
)
def test_a_defect_of_ours_fails_one_film(parts, own, error, code):
    put(parts, 1)
    put(parts, 2)
    parts.start(Worker(Broken(own, error, MAX_ATTEMPTS), *parts.rest))
    wait_for(lambda: parts.store.counts()["scored"], 20)
    failed = parts.store.recent(2)[1]
    assert failed.code == code
    assert "Secret" not in failed.message


@pytest.mark.parametrize("error", [MemoryError(), UnicodeEncodeError("utf-8", "", 0, 1, "no")])
def test_results_that_cannot_be_kept_for_other_reasons_fail_one_film(parts, own, monkeypatch, error):
    put(parts, 1)
    put(parts, 2)
    finish, failures = parts.store.finish, [1] * MAX_ATTEMPTS

    def broken(*arguments):
        if failures:
            failures.pop()
            raise error
        finish(*arguments)

    monkeypatch.setattr(parts.store, "finish", broken)
    parts.start(Worker(own.clone(), *parts.rest))
    wait_for(lambda: parts.store.counts()["scored"], 20)
    assert parts.store.counts()["failed"] == 1


def test_what_no_check_foresaw_does_not_end_the_worker(parts, own, monkeypatch):
    put(parts, 1)
    claim, failures = parts.store.claim, [MemoryError(), RuntimeError("no")]

    def broken():
        if failures:
            raise failures.pop()
        return claim()

    monkeypatch.setattr(parts.store, "claim", broken)
    parts.start(Worker(own.clone(), *parts.rest))
    wait_for(lambda: parts.store.counts()["scored"], 20)


def test_results_that_find_no_room_are_made_again_when_there_is(parts, own, monkeypatch):
    put(parts, 1)
    finish, failures = parts.store.finish, [1, 1]

    def full(*arguments):
        if failures:
            failures.pop()
            raise WriterError("writer.failed", "no room")
        finish(*arguments)

    monkeypatch.setattr(parts.store, "finish", full)
    parts.start(Worker(own.clone(), *parts.rest))
    wait_for(lambda: parts.store.counts()["scored"], 20)
    assert parts.store.recent(1)[0].code == ""


@pytest.mark.requirement("R-NODE-1")
@pytest.mark.parametrize("write", ["finish", "end"])
def test_a_disk_that_takes_nothing_at_all_counts_no_attempt(parts, own, monkeypatch, write):
    """Neither the results nor that the attempt was not the film's fault."""
    put(parts, 1)
    transaction, full, passes = parts.store._transaction, threading.Event(), []
    full.set()

    @contextlib.contextmanager
    def filling():
        with transaction():
            yield
            caller = sys._getframe(2).f_code.co_name
            if full.is_set() and caller in ("finish", "give_back", "end"):
                passes.append(caller)
                raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(parts.store, "_transaction", filling)
    error = OutOfScope((("gate.view", "view LL"),))
    detector = own.clone() if write == "finish" else Broken(own, error, 1000)
    parts.start(Worker(detector, *parts.rest))
    wait_for(lambda: len(passes) > 3 * MAX_ATTEMPTS, 20)
    (film,) = parts.store.recent(1)
    assert film.state == "received"
    assert film.attempts <= 1  # a start after this does not take it for one that took the node down
    full.clear()
    wait_for(lambda: not parts.store.counts()["received"], 20)
    assert parts.store.recent(1)[0].state == ("scored" if write == "finish" else "refused")


def test_a_folder_that_cannot_be_written_gets_all_when_it_can(parts, own, tmp_path):
    (tmp_path / "out").write_text("in the way")
    put(parts, 1)
    parts.start(Worker(own.clone(), *parts.rest))
    sender = parts.start(FolderSender(tmp_path / "out", *parts.rest))
    wait_for(lambda: not sender.reachable, 20)
    assert parts.store.counts()["scored"] == 1
    (tmp_path / "out").unlink()
    wait_for(lambda: parts.store.counts()["done"], 20)
    assert len(list((tmp_path / "out").glob("*/sr.dcm"))) == 1
    assert not list((tmp_path / "out").rglob("*.part"))


@pytest.fixture
def leaving(parts, tmp_path):
    """A folder sender that is not running, and a scored film that waits for it."""
    parts.store.put(b"film", "1.2.3", "AET")
    parts.store.finish(
        parts.store.claim(), {"flagged": True}, {"sc.dcm": b"new", "sr.dcm": b"new"}, parts.config.destinations
    )
    (film,) = parts.store.recent(1)
    return FolderSender(tmp_path / "out", *parts.rest), film, tmp_path / "out" / "1.2.3"


def texts(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 6])  # three files are written, then moved
@pytest.mark.parametrize("before", ["nothing", "others'", "an earlier delivery"])
def test_a_folder_that_fails_loses_nothing_of_others_and_gets_no_half(leaving, tmp_path, monkeypatch, before, step):
    sender, film, target = leaving
    others = {"original.dcm": "the only copy"} if before == "others'" else {}
    earlier = {"sc.dcm": "old", "sr.dcm": "old", "result.json": "old"} if before == "an earlier delivery" else {}
    if before != "nothing":
        target.mkdir(parents=True)
    for name, text in {**others, **earlier}.items():
        (target / name).write_text(text)
    real, steps = Path.replace, []

    def fail(path, new):
        steps.append(new)
        if len(steps) == step:
            raise OSError(28, "No space left on device")
        return real(path, new)

    with monkeypatch.context() as failing:
        failing.setattr(Path, "replace", fail)
        with pytest.raises(Unreachable):
            sender._leave(film)
    found = texts(target) if target.exists() else {}
    assert others.items() <= found.items()
    assert "result.json" not in found or found == earlier
    if step <= 3:
        assert found == {**others, **earlier}
    assert not list(tmp_path.glob("out/.*"))
    sender._leave(film)
    found = texts(target)
    assert found.pop("result.json").startswith('{"file": "1.2.3"')
    assert found == {**others, "sc.dcm": "new", "sr.dcm": "new"}


def test_what_a_killed_node_left_beside_is_cleared_away(leaving, tmp_path):
    sender, film, target = leaving
    (tmp_path / "out" / f".{film.token}.part").mkdir(parents=True)
    (tmp_path / "out" / f".{film.token}.part" / "seg.dcm").write_text("half")
    sender._leave(film)
    assert sorted(texts(target)) == ["result.json", "sc.dcm", "sr.dcm"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["1.2.3"]


def test_a_result_that_is_gone_holds_up_no_other(parts, own, tmp_path):
    put(parts, 1)
    put(parts, 2)
    worker = parts.start(Worker(own.clone(), *parts.rest))
    wait_for(lambda: parts.store.counts()["scored"] == 2, 20)
    assert worker.is_alive()
    second, first = parts.store.recent(2)
    (parts.store.result_path(first.token) / "sr.dcm").unlink()
    parts.store.result_path(first.token).rmdir()
    parts.start(FolderSender(tmp_path / "out", *parts.rest))
    wait_for(lambda: parts.store.find(second.token).state == "done", 20)
    assert parts.store.find(first.token).state == "scored"


@pytest.mark.requirement("R-NODE-1")
def test_a_delivery_lacks_no_object(parts, own, tmp_path):
    """Also where two of three are there."""
    parts.config = replace(parts.config, formats=("sc", "sr"))
    put(parts, 1)
    parts.start(Worker(own.clone(), parts.config, *parts.rest[1:]))
    wait_for(lambda: parts.store.counts()["scored"], 20)
    (film,) = parts.store.recent(1)
    assert sorted(film.objects) == ["sc.dcm", "sr.dcm"]
    (parts.store.result_path(film.token) / "sc.dcm").rename(tmp_path / "sc.dcm")
    parts.start(FolderSender(tmp_path / "out", *parts.rest))
    wait_for(lambda: 'outcome="refused"} 1' in parts.metrics.render(), 20)
    assert not (tmp_path / "out").exists()
    (tmp_path / "sc.dcm").rename(parts.store.result_path(film.token) / "sc.dcm")
    wait_for(lambda: parts.store.counts()["done"], 20)


def no_regions(parts, own, formats, *peers):
    """Score a film in which nothing is found; nothing is drawn for it then."""
    parts.config = replace(parts.config, formats=formats, forward=peers)
    parts.rest = (parts.config, *parts.rest[1:])
    ds = dx(make_chest((512, 448)), 1)
    parts.store.put(encoded(ds), ds.SOPInstanceUID, "AET")
    parts.start(Worker(own.clone(), *parts.rest))
    wait_for(lambda: parts.store.counts()["scored"], 20)
    (film,) = parts.store.recent(1)
    assert film.objects == ()
    return film


@pytest.mark.requirement("R-NODE-1")
@pytest.mark.parametrize("formats", [("seg",), ("gsps",), ("seg", "gsps")])
def test_a_film_without_objects_is_delivered(parts, own, tmp_path, formats):
    peer = Peer("NOBODY", "127.0.0.1", 1)  # nothing is sent, so nobody has to be there
    film = no_regions(parts, own, formats, peer)
    folder = parts.start(FolderSender(tmp_path / "out", *parts.rest))
    sender = parts.start(DicomSender(peer, *parts.rest))
    wait_for(lambda: parts.store.counts()["done"], 20)
    assert [path.name for path in (tmp_path / "out" / film.sop_instance_uid).iterdir()] == ["result.json"]
    assert folder.reachable
    assert sender.reachable


@pytest.mark.parametrize("kept", ["nothing", "empty", "whole"])
def test_what_an_older_version_made_is_what_lies_there(parts, own, tmp_path, kept):
    formats = ("sr",) if kept == "whole" else ("seg",)
    parts.config = replace(parts.config, formats=formats)
    ds = dx(make_chest((512, 448)), 1)
    parts.store.put(encoded(ds), ds.SOPInstanceUID, "AET")
    parts.start(Worker(own.clone(), parts.config, *parts.rest[1:]))
    wait_for(lambda: parts.store.counts()["scored"], 20)
    parts.store._database.execute("UPDATE films SET objects=''")
    (film,) = parts.store.recent(1)
    assert film.objects is None
    if kept == "nothing":
        parts.store.result_path(film.token).rmdir()
    parts.start(FolderSender(tmp_path / "out", *parts.rest))
    if kept == "nothing":
        wait_for(lambda: 'outcome="refused"} 1' in parts.metrics.render(), 20)
        assert parts.store.counts()["scored"] == 1
    else:
        wait_for(lambda: parts.store.counts()["done"], 20)
        names = {path.name for path in (tmp_path / "out" / film.sop_instance_uid).iterdir()}
        assert names == {"result.json", *(("sr.dcm",) if kept == "whole" else ())}


def test_a_database_that_cannot_be_written_leaves_the_film_in_the_queue(parts, own, monkeypatch):
    put(parts, 1)
    failures = [1, 1]
    end = parts.store.end

    def broken(*arguments):
        if failures:
            failures.pop()
            raise sqlite3.OperationalError("database or disk is full")
        end(*arguments)

    monkeypatch.setattr(parts.store, "end", broken)
    parts.start(Worker(Broken(own, RuntimeError("no"), 9), *parts.rest))
    wait_for(lambda: parts.store.counts()["failed"], 20)


@pytest.fixture
def service(tmp_path, own):
    """Of a node that was not started, with a film that waits for delivery."""
    made = Service(NodeConfig(spool=tmp_path / "kept", out=tmp_path / "out", http_port=None), own.clone)
    made.store.put(b"film", "1.2", "AET")
    made.store.finish(made.store.claim(), {}, {}, made.config.destinations)
    made.writes = []
    yield made
    for worker in made._workers:
        worker._detector.close()
    made._detector.close()
    made.store.close()


def watched(service, monkeypatch, *, fails=()):
    def watch(name, method):
        def call(*arguments, **options):
            service.writes.append(name)
            if name in fails:
                raise sqlite3.OperationalError("database or disk is full")
            return method(*arguments, **options)

        monkeypatch.setattr(service.store, name, call)

    watch("give_up", service.store.give_up)
    watch("tidy", service.store.tidy)


def waited(service):
    return {row[0] for row in service.store._database.execute("SELECT waited FROM deliveries")}.pop()


def test_waiting_is_written_once_a_minute_and_at_a_stop(service, monkeypatch):
    watched(service, monkeypatch)
    for _ in range(12):
        service.tidy()
    assert service.writes == ["tidy"] * 12
    service.store.counted -= 60  # as if a minute went by
    for _ in range(12):
        service.tidy()
    assert service.writes.count("give_up") == 1
    assert 60 <= waited(service) < 100
    service.tidy(last=True)
    assert service.writes.count("give_up") == 2


def test_a_full_disk_keeps_no_house_from_being_tidied_and_no_time_from_being_counted(service, monkeypatch):
    with monkeypatch.context() as full:
        watched(service, full, fails=("give_up",))
        service.store.counted -= 60
        service.tidy()
        assert service.writes == ["give_up", "tidy"]
        assert waited(service) <= 0
    service.tidy()
    assert 60 <= waited(service) < 100


@pytest.mark.parametrize("delivered", [True, False])
def test_a_clock_that_is_set_forgets_no_film(service, monkeypatch, delivered):
    """But the time does in which the node ran."""
    (film,) = service.store.recent(1)
    if delivered:
        service.store.delivered(film, service.config.destinations[0])
    else:
        service.store.give_up(2, 1)
    now, days = time.time(), 24 * 3600
    with monkeypatch.context() as ahead:
        ahead.setattr("time.time", lambda: now + 31 * days)
        service.tidy()
    assert service.store.find(film.token).state == ("done" if delivered else "failed")
    assert service.store.result_path(film.token).exists()
    service.store.counted -= 29 * days
    service.tidy()
    assert service.store.find(film.token) is not None
    service.store.counted -= 2 * days
    service.tidy()
    assert service.store.find(film.token) is None
    assert not service.store.result_path(film.token).exists()


def test_the_same_film_gives_the_same_bytes(parts, own, tmp_path):
    """What is sent again after a crash is what was sent before."""
    import pydicom

    put(parts, 1)
    worker = Worker(own.clone(), *parts.rest)
    film = parts.store.claim()
    (_, first), (_, second) = worker._score(film), worker._score(film)
    assert first == second
    report = pydicom.dcmread(io.BytesIO(first["sr.dcm"]))
    assert report.ContentTime[:6] == time.strftime("%H%M%S", time.localtime(film.received))
