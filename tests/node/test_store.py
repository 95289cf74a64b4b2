"""The queue: what was taken survives, what was not leaves nothing behind."""

from __future__ import annotations

import sqlite3
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from ptxsdk.errors import BackendError, NodeError, OutOfScope, WriterError
from ptxsdk.node.store import MAX_ATTEMPTS, Store

DESTINATIONS = ("A@h:1", "folder:/x")
RESULT = {"flagged": True}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "spool"


@pytest.fixture
def store(folder):
    made = Store(folder)
    yield made
    made.close()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here (needs root)")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != "")


def dicom_files(folder):
    return [name for name in files(folder) if name.endswith((".dcm", ".part"))]


def test_a_film_goes_its_way(store, folder):
    assert store.put(b"film", "1.2", "AET")[0] == "new"
    film = store.claim()
    assert (film.sop_instance_uid, film.source, film.state) == ("1.2", "AET", "received")
    assert store.read(film) == b"film"
    assert store.claim() is None
    store.finish(film, RESULT, {"sc.dcm": b"picture"}, DESTINATIONS)
    assert store.counts()["scored"] == 1
    (due,) = store.due(DESTINATIONS[0])
    assert due.result == RESULT
    assert (store.result_path(due.token) / "sc.dcm").read_bytes() == b"picture"
    assert not store.delivered(due, DESTINATIONS[0])
    assert not store.due(DESTINATIONS[0])
    assert store.delivered(due, DESTINATIONS[1])
    assert store.find(film.token).state == "done"
    assert store.oldest() is None


def test_results_without_objects_are_told_from_those_that_nobody_noted(store):
    for number, objects in enumerate(({}, {"sc.dcm": b"", "seg.dcm": b""})):
        store.put(b"film", f"1.{number}", "AET")
        assert store.recent(1)[0].objects is None
        store.finish(store.claim(), RESULT, objects, DESTINATIONS)
        assert store.recent(1)[0].objects == tuple(objects)


def test_nothing_in_names_or_modes_gives_a_film_away(store, folder):
    store.put(b"film", "1.2.840.99", "AET")
    assert not [name for name in files(folder) if "1.2.840" in name]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o077 for path in folder.rglob("*") if path.is_file()} == {0}


def test_films_are_claimed_in_order_and_by_one_alone(store):
    for number in range(4):
        store.put(b"film", f"1.{number}", "AET")
    claimed = [store.claim() for _ in range(4)]
    assert store.claim() is None
    assert [film.sop_instance_uid for film in claimed] == ["1.0", "1.1", "1.2", "1.3"]
    store.let_go(claimed[2])
    assert store.claim().sop_instance_uid == "1.2"


def test_a_film_sent_twice_is_taken_once(store, folder):
    _, token = store.put(b"film", "1.2", "AET")
    assert store.put(b"film", "1.2", "AET") == ("duplicate", token)
    assert store.put(b"other", "1.2", "AET") == ("conflict", token)
    assert store.read(store.claim()) == b"film"
    assert len(dicom_files(folder)) == 1


def test_a_film_sent_twice_at_a_time_is_taken_once(store, folder):
    barrier = threading.Barrier(8)

    def put(_):
        barrier.wait()
        return store.put(b"film", "1.2", "AET")[0]

    with ThreadPoolExecutor(8) as pool:
        outcomes = sorted(pool.map(put, range(8)))
    assert outcomes == ["duplicate"] * 7 + ["new"]
    assert len(dicom_files(folder)) == 1


@pytest.mark.parametrize(
    ("error", "state"),
    [(OutOfScope((("gate.view", "view LL"),)), "refused"), (BackendError("backend.failed", "no"), "failed")],
)
def test_a_film_that_failed_gets_another_try_when_it_is_sent_again(store, folder, error, state):
    store.put(b"film", "1.2", "AET")
    store.end(store.claim(), error)
    film = store.recent(1)[0]
    assert (film.state, film.code, film.message) == (state, error.code, error.message)
    assert store.put(b"film", "1.2", "AET")[0] == "again"
    assert store.counts()["received"] == 1
    assert len(dicom_files(folder)) == 1


@pytest.mark.requirement("R-NODE-1")
def test_what_was_taken_survives_and_what_was_not_is_swept(folder):
    store = Store(folder)
    store.put(b"one", "1.1", "AET")
    store.put(b"two", "1.2", "AET")
    store.claim()
    film = store.claim()
    store.finish(film, RESULT, {"sc.dcm": b"picture"}, DESTINATIONS)
    (folder / "films" / ("0" * 16 + ".dcm")).write_bytes(b"never acknowledged")
    (folder / "films" / f".{'1' * 16}.part").write_bytes(b"half")
    (folder / "results" / f".{'2' * 16}.part").mkdir()
    (folder / "results" / ("3" * 16)).mkdir()
    (folder / "results" / ("3" * 16) / "sc.dcm").write_bytes(b"of a film that is forgotten")
    store.close()
    store = Store(folder)
    assert store.claim().sop_instance_uid == "1.1"
    assert store.due(DESTINATIONS[0])[0].token == film.token
    assert sorted(path.name for path in (folder / "results").iterdir()) == [film.token]
    assert len(dicom_files(folder)) == 3
    store.close()


def test_what_is_not_ours_is_left_where_it_lies(folder):
    Store(folder).close()
    foreign = [
        *(folder / "films" / name for name in ("original.dcm", "0123.dcm", "notes", ".copy.part")),
        *(folder / "results" / name for name in ("1.2.3/result.json", "report.pdf", ".copy.part")),
    ]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"the only copy")
    Store(folder).close()
    assert all(path.read_bytes() == b"the only copy" for path in foreign)


@pytest.mark.parametrize("place", ["films", "results"])
def test_a_folder_of_somebody_elses_is_no_spool(folder, place):
    path = folder / place / "original.dcm"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"the only copy")
    for _ in range(2):
        with pytest.raises(NodeError) as raised:
            Store(folder)
        assert raised.value.code == "node.spool"
        assert str(path.parent) in raised.value.message
        assert path.read_bytes() == b"the only copy"


@pytest.mark.requirement("R-NODE-1")
@pytest.mark.parametrize("how", ["gone", "empty", "zeros"])
def test_a_queue_that_was_lost_costs_no_film(folder, how):
    store = Store(folder)
    _, token = store.put(b"film", "1.2", "AET")
    store.close()
    queue, kept = folder / "queue.sqlite", (folder / "queue.sqlite").read_bytes()
    queue.unlink()
    if how != "gone":
        queue.write_bytes(b"" if how == "empty" else bytes(len(kept)))
    for _ in range(2):
        with pytest.raises(NodeError) as raised:
            Store(folder)
        assert raised.value.code == "node.spool"
    queue.write_bytes(kept)
    store = Store(folder)
    assert store.read(store.find(token)) == b"film"
    store.close()


def test_a_film_that_takes_the_node_down_is_not_tried_for_ever(folder):
    for _ in range(MAX_ATTEMPTS):
        store = Store(folder)
        store.put(b"film", "1.2", "AET")
        assert store.claim() is not None
        store.close()
    store = Store(folder)
    assert store.claim() is None
    assert store.recent(1)[0].code == "node.crashed"
    store.close()


def test_attempts_given_back_do_not_count(folder):
    store = Store(folder)
    store.put(b"film", "1.2", "AET")
    for _ in range(2 * MAX_ATTEMPTS):
        film = store.claim()
        store.give_back(film, "audit.failed")
        store.let_go(film)
    store.close()
    store = Store(folder)
    assert store.claim() is not None
    store.close()


def test_deliveries_wait_and_are_given_up(store):
    store.put(b"film", "1.2", "AET")
    store.finish(store.claim(), RESULT, {"sc.dcm": b""}, DESTINATIONS)
    (film,) = store.due(DESTINATIONS[0])
    store.postpone(film, DESTINATIONS[0], 3600)
    assert not store.due(DESTINATIONS[0])
    store.postpone(film, DESTINATIONS[0], -1)
    assert store.due(DESTINATIONS[0])[0].attempts == 2
    store.delivered(film, DESTINATIONS[1])
    assert store.give_up(3600, 3600) == []
    assert store.give_up(1, 3600) == [(film.token, DESTINATIONS[0])]
    assert (store.find(film.token).state, store.find(film.token).code) == ("failed", "node.undeliverable")
    store.tidy(keep=0, forget_after=60)
    assert store.result_path(film.token).exists()  # somebody may still want them


def test_a_film_given_back_lets_the_others_go_ahead(store, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("ptxsdk.node.store.time", SimpleNamespace(time=time.time, monotonic=lambda: now[0]))
    for number in range(3):
        store.put(b"film", f"1.{number}", "AET")
    first = store.claim()
    store.give_back(first, "audit.failed", 20)
    store.let_go(first)
    assert store.holds("audit")
    assert not store.holds("writer")
    assert [store.claim().sop_instance_uid for _ in range(2)] == ["1.1", "1.2"]
    assert store.claim() is None
    now[0] += 20
    assert store.claim().sop_instance_uid == "1.0"
    assert store.holds("audit")  # until it gets further
    store.finish(first, RESULT, {"sc.dcm": b""}, DESTINATIONS)
    assert not store.holds("audit")


def test_a_delivery_has_not_waited_before_it_was_there(store):
    """However long ago the waiting of the others was written down."""
    store.counted -= 3600
    store.put(b"film", "1.2", "AET")
    store.finish(store.claim(), RESULT, {"sc.dcm": b""}, DESTINATIONS)
    assert store.give_up(time.monotonic() - store.counted, 60) == []
    assert time.monotonic() - store.counted < 60
    assert len(store.give_up(61, 60)) == 2


@pytest.mark.requirement("R-NODE-1")
def test_a_clock_that_is_set_gives_nothing_up_and_delays_nothing(store, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("ptxsdk.node.store.time.time", lambda: clock[0])
    store.put(b"film", "1.2", "AET")
    store.finish(store.claim(), RESULT, {"sc.dcm": b""}, DESTINATIONS)
    clock[0] = 1.8e9  # from 1970 to today
    assert store.give_up(5, 3600) == []
    clock[0] += 86400
    (film,) = store.due(DESTINATIONS[0], longest=300)
    store.postpone(film, DESTINATIONS[0], 2)
    assert not store.due(DESTINATIONS[0], longest=300)
    clock[0] -= 86400  # a day too late, and set right
    assert store.due(DESTINATIONS[0], longest=300)


def run(store, seconds):
    """As if so long had gone by, and was written down."""
    store.counted -= seconds
    return store.give_up(seconds, 3600)


@pytest.mark.requirement("R-NODE-1")
def test_a_film_is_forgotten_by_the_time_that_nodes_ran(folder, monkeypatch):
    """Over restarts, and whatever the clock says."""
    clock = [1.8e9]
    monkeypatch.setattr("ptxsdk.node.store.time.time", lambda: clock[0])
    store = Store(folder)
    store.put(b"film", "1.1", "AET")
    store.end(store.claim(), BackendError("backend.failed", "no"))
    run(store, 3000)
    store.put(b"film", "1.2", "AET")
    store.finish(store.claim(), RESULT, {"sc.dcm": b""}, DESTINATIONS[:1])
    store.delivered(store.due(DESTINATIONS[0])[0], DESTINATIONS[0])
    store.close()
    for step in (366 * 86400, -1.7e9):
        clock[0] += step
        store = Store(folder)
        store.tidy(keep=9, forget_after=3600)
        assert [film.sop_instance_uid for film in store.recent(9)] == ["1.2", "1.1"]
        store.close()
    store = Store(folder)
    run(store, 1000)
    store.tidy(keep=9, forget_after=3600)
    assert [film.sop_instance_uid for film in store.recent(9)] == ["1.2"]
    store.close()


_BACK_TO_2 = "ALTER TABLE films DROP COLUMN ended; DROP TABLE running; PRAGMA user_version=2;"
_BACK_TO_1 = (
    f"{_BACK_TO_2} ALTER TABLE films DROP COLUMN objects; ALTER TABLE deliveries DROP COLUMN waited; "
    "PRAGMA user_version=1;"
)


@pytest.mark.parametrize(("before", "objects"), [(_BACK_TO_1, None), (_BACK_TO_2, ("sc.dcm",))])
def test_a_spool_of_a_version_before_is_carried_on(folder, before, objects):
    store = Store(folder)
    for number in range(2):
        store.put(b"film", f"1.{number}", "AET")
        store.finish(store.claim(), RESULT, {"sc.dcm": b""}, DESTINATIONS)
    for name in DESTINATIONS:
        store.delivered(store.due(name)[0], name)
    store._database.executescript(before)
    store.close()
    store = Store(folder)
    assert store.due(DESTINATIONS[0])[0].objects == objects
    assert run(store, 3500) == []
    assert run(store, 3500) == [(store.recent(1)[0].token, name) for name in DESTINATIONS]
    store.tidy(keep=9, forget_after=7500)
    assert len(store.recent(9)) == 2
    store.tidy(keep=9, forget_after=6500)  # what was done before is remembered from the change on
    assert [film.code for film in store.recent(9)] == ["node.undeliverable"]
    assert store.put(b"film", "1.0", "AET")[0] == "new"
    store.close()


def test_tidying_keeps_the_newest_and_what_is_not_done(store, folder):
    for number in range(5):
        store.put(b"film", f"1.{number}", "AET")
    for _ in range(4):
        film = store.claim()
        store.finish(film, RESULT, {"sc.dcm": b""}, DESTINATIONS[:1])
        store.delivered(film, DESTINATIONS[0])
    store.tidy(keep=1, forget_after=60)
    assert [film.files for film in store.recent(9)] == [True, True, False, False, False]
    assert len(dicom_files(folder)) == 3
    assert store.put(b"film", "1.0", "AET")[0] == "duplicate"
    store.tidy(keep=1, forget_after=0)
    assert store.counts() == {"received": 1, "scored": 0, "done": 0, "refused": 0, "failed": 0}
    assert store.put(b"film", "1.0", "AET")[0] == "new"


def test_a_full_disk_takes_nothing_and_keeps_nothing(small_disk):
    store = Store(small_disk / "spool")
    store.put(b"small", "1.1", "AET")
    film = store.claim()
    with pytest.raises(WriterError) as raised:
        store.put(bytes(1 << 20), "1.2", "AET")
    assert raised.value.code == "writer.failed"
    with pytest.raises(WriterError):
        store.finish(film, RESULT, {"a.dcm": bytes(1 << 18), "b.dcm": bytes(1 << 20)}, DESTINATIONS)
    assert len(dicom_files(small_disk)) == 1
    assert list((small_disk / "spool" / "results").iterdir()) == []
    assert store.counts()["received"] == 1
    store.finish(film, RESULT, {"a.dcm": b"fits"}, DESTINATIONS)
    store.close()


def test_a_disk_that_fills_while_the_file_is_written_keeps_nothing(small_disk, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1 << 40}))
    store = Store(small_disk / "spool")
    with pytest.raises(WriterError):
        store.put(bytes(2 << 20), "1.2", "AET")
    assert dicom_files(small_disk) == []
    assert store.put(b"small", "1.2", "AET")[0] == "new"
    store.close()


def test_room_is_left_on_the_disk(folder):
    store = Store(folder, reserve=1 << 60)
    with pytest.raises(WriterError):
        store.put(b"film", "1.2", "AET")
    assert dicom_files(folder) == []
    store.close()


def test_one_node_works_in_a_spool_and_others_may_look(store, folder):
    with pytest.raises(NodeError) as raised:
        Store(folder)
    assert raised.value.code == "node.spool"
    looking = Store(folder, readonly=True)
    store.put(b"film", "1.2", "AET")
    assert looking.counts()["received"] == 1
    with pytest.raises(sqlite3.OperationalError):
        looking.end(looking.recent(1)[0], BackendError("backend.failed", "no"))
    looking.close()


@pytest.mark.parametrize("damage", ["newer", "garbage", "file"])
def test_a_spool_that_cannot_be_used(folder, damage):
    if damage == "file":
        folder.write_bytes(b"")
    else:
        Store(folder).close()
        if damage == "newer":
            with sqlite3.connect(folder / "queue.sqlite") as database:
                database.execute("PRAGMA user_version=99")
            database.close()
        else:
            (folder / "queue.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(NodeError) as raised:
        Store(folder)
    assert raised.value.code == "node.spool"


def test_looking_into_a_spool_that_is_not_there(folder):
    with pytest.raises(NodeError) as raised:
        Store(folder, readonly=True)
    assert raised.value.code == "node.spool"
    assert not folder.exists()


def test_commits_are_flushed(store):
    assert store._database.execute("PRAGMA synchronous").fetchone()[0] == 2
    assert store._database.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
