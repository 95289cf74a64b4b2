"""``ptxsdk watch``: files that a unit drops into a folder."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from made import make_chest
from node_process import FLAGGED, Node, dx, encoded, film_files, wait_for
from typer.testing import CliRunner

from ptxsdk import readers
from ptxsdk.cli import app
from ptxsdk.errors import PtxsdkError
from ptxsdk.node.metrics import Metrics
from ptxsdk.node.store import Store
from ptxsdk.node.watcher import Watcher, _stamp


@pytest.fixture
def dropped(tmp_path):
    folder = tmp_path / "dropped"
    folder.mkdir()
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)  # Python's own gives up where it is deep


def watch(engine_file, tmp_path, dropped, *arguments):
    return Node(
        *(dropped, "--engine", engine_file, "--http", 0, "--spool", tmp_path / "spool", "--out", tmp_path / "out"),
        *("--settle", 0.4, *arguments),
        command="watch",
    )


def results(tmp_path):
    return {path.parent.name: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*/result.json")}


def test_dropped_films_become_results_and_stay(engine_file, tmp_path, dropped):
    film_files(dropped, 2, 1)
    with watch(engine_file, tmp_path, dropped) as node:
        node.wait_done(2, 30)
        (dropped / "later").mkdir()
        film_files(dropped / "later", 1, 3)
        node.wait_done(3, 30)
        assert node.stop() == 0
    assert sorted(found["flagged"] for found in results(tmp_path).values()) == [False, True, True]
    assert len(list(dropped.rglob("*.dcm"))) == 3
    with watch(engine_file, tmp_path, dropped) as node:  # what was taken is known
        (dropped / "new.dcm").write_bytes(encoded(dx(None, 9)))
        node.wait_done(4, 30)
        assert len(node.events("received")) == 1
        assert node.stop() == 0


@pytest.mark.requirement("R-AUDIT-1")
def test_every_film_stands_in_the_audit_log_and_a_restart_goes_on_with_it(engine_file, tmp_path, dropped):
    film_files(dropped, 2, 1)
    (dropped / "lateral.dcm").write_bytes(encoded(dx(None, 5, ViewPosition="LL")))
    log = tmp_path / "audit.jsonl"
    for start in (1, 2):
        with watch(engine_file, tmp_path, dropped, "--audit", log, "--timeout", 60) as node:
            node.wait_done(2, 30)
            wait_for(lambda node=node: node.health()["queue"]["refused"], 20)
            assert node.stop() == 0
        assert CliRunner().invoke(app, ["audit", str(log)]).exit_code == 0
        records = [json.loads(line) for line in log.read_text().splitlines()]
        assert [record["event"] for record in records].count("start") == start
        films = [record for record in records if record["event"] == "predict"]
        assert sorted(str(record["error"]) for record in films) == ["None", "None", "gate.view"]


@pytest.mark.requirement("R-TRUST-4")
def test_a_rollback_file_without_a_key_is_refused(tmp_path, dropped):
    arguments = ["watch", str(dropped), "--out", str(tmp_path / "out"), "--spool", str(tmp_path / "spool")]
    done = CliRunner().invoke(app, [*arguments, "--rollback", str(tmp_path / "state.json")])
    assert done.exit_code == 2
    assert "detector.option" in done.output
    for wrong in ("0", "-1", "nan", "inf"):
        assert CliRunner().invoke(app, [*arguments, "--timeout", wrong]).exit_code == 2


def test_a_film_that_is_still_being_written_is_left_alone(engine_file, tmp_path, dropped):
    content = encoded(dx(make_chest((512, 448), **FLAGGED), 21))
    hidden, part = dropped / ".copy.dcm", dropped / "copy.dcm.part"
    hidden.write_bytes(content[:1000])
    part.write_bytes(content[:1000])
    with (
        watch(engine_file, tmp_path, dropped, "--settle", 0.8) as node,
        (dropped / "slow.dcm").open("wb", buffering=0) as slow,
    ):
        for start in range(0, len(content), 1 << 17):
            slow.write(content[start : start + (1 << 17)])
            time.sleep(0.6)
        node.wait_done(1, 30)
        assert not node.events("failed")
        assert [entry["outcome"] for entry in node.events("received")] == ["new"]
        part.write_bytes(content)
        part.rename(dropped / "copy.dcm")
        wait_for(lambda: node.events("received", outcome="duplicate"), 20)
        assert node.stop() == 0


def test_a_film_cut_short_is_taken_when_it_is_whole(engine_file, tmp_path, dropped):
    content = encoded(dx(make_chest((512, 448), **FLAGGED), 31))
    path = dropped / "film.dcm"
    path.write_bytes(content[: len(content) // 2])
    with watch(engine_file, tmp_path, dropped) as node:
        wait_for(lambda: node.events("failed") or node.events("received", outcome="not_understood"), 20)
        assert not results(tmp_path)
        path.write_bytes(content)
        node.wait_done(1, 30)
        assert node.stop() == 0
    assert [found["flagged"] for found in results(tmp_path).values()] == [True]


def test_other_files_are_not_taken_and_stop_nothing(engine_file, tmp_path, dropped):
    (dropped / "notes.txt").write_text("nothing")
    (dropped / "broken.dcm").write_bytes(bytes(128) + b"DICM" + b"\xff" * 500)
    (dropped / "empty.dcm").write_bytes(b"")
    (dropped / "large.dcm").write_bytes(bytes(3 << 20))
    (dropped / "link.dcm").symlink_to("/etc/hostname")
    (dropped / "lateral.dcm").write_bytes(encoded(dx(None, 40, ViewPosition="LL")))
    (dropped / "zz.dcm").write_bytes(encoded(dx(None, 41)))
    with watch(engine_file, tmp_path, dropped, "--max-object", 2) as node:
        node.wait_done(1, 30)
        assert [entry["code"] for entry in node.events("refused")] == ["gate.view"]
        outcomes = sorted(entry["outcome"] for entry in node.events("received"))
        assert outcomes == ["new", "new", "not_understood", "not_understood", "not_understood", "too_large"]
        assert node.stop() == 0
    assert len(list(dropped.iterdir())) == 7


def test_a_file_that_cannot_be_read_holds_up_no_other(tmp_path, dropped, monkeypatch):
    first, second = film_files(dropped, 2, 70)
    real = os.open

    def refuse(path, *arguments):
        if path == first:
            raise PermissionError
        return real(path, *arguments)

    monkeypatch.setattr("ptxsdk.node.watcher.os.open", refuse)
    store, metrics = Store(tmp_path / "spool"), Metrics()
    watcher = Watcher(dropped, 1 << 30, store, metrics, threading.Event(), settle_seconds=0)
    for _ in range(4):
        watcher.look()
    assert store.counts()["received"] == 1
    assert 'outcome="unreadable"} 1' in metrics.render()
    assert second.exists()
    store.close()


def test_remove_takes_files_away_once_the_queue_has_them(engine_file, tmp_path, dropped):
    film_files(dropped, 2, 50)
    (dropped / "broken.dcm").write_bytes(b"not a film")
    with watch(engine_file, tmp_path, dropped, "--remove") as node:
        node.wait_done(2, 30)
        wait_for(lambda: node.events("received", outcome="not_understood"), 20)
        wait_for(lambda: [path.name for path in dropped.iterdir()] == ["broken.dcm"], 20)
        assert node.stop() == 0


@pytest.fixture
def queue(tmp_path):
    made = Store(tmp_path / "spool")
    yield made
    made.close()


def watcher(dropped, store, **options):
    return Watcher(dropped, 1 << 30, store, Metrics(), threading.Event(), settle_seconds=0, **options)


def look(watcher, times=3):
    for _ in range(times):
        watcher.look()


def score(store):
    """What a worker does with the next film: it fails what is cut short."""
    film = store.claim()
    try:
        readers.read(store.read(film))
    except PtxsdkError as error:
        store.end(film, error)
    else:
        store.finish(film, {"flagged": True}, {"sr.dcm": b""}, ["folder:x"])
    store.let_go(film)


@pytest.mark.requirement("R-NODE-1")
def test_remove_leaves_a_film_whose_writer_stalls_until_it_is_whole(dropped, queue):
    content, path = encoded(dx(number=5)), dropped / "film.dcm"
    path.write_bytes(content[: len(content) // 2])
    seeing = watcher(dropped, queue, remove=True)
    look(seeing)
    assert queue.counts()["received"] == 1
    with path.open("ab") as slow:
        slow.write(content[len(content) // 2 :])
    look(seeing)
    assert queue.counts()["received"] == 1  # the other half waits for what becomes of the first
    score(queue)
    assert queue.counts()["failed"] == 1
    look(seeing)
    assert queue.counts()["received"] == 1
    assert path.exists()
    score(queue)
    look(seeing)
    assert queue.counts()["scored"] == 1
    assert not path.exists()


def test_remove_leaves_a_film_that_could_not_be_read(dropped, queue):
    content, path = encoded(dx(number=6)), dropped / "film.dcm"
    path.write_bytes(content[: len(content) // 2])
    seeing = watcher(dropped, queue, remove=True)
    look(seeing)
    score(queue)
    look(watcher(dropped, queue, remove=True))  # nor does the next start take it again
    assert queue.counts()["failed"] == 1
    assert path.exists()


@pytest.mark.requirement("R-NODE-1")
@pytest.mark.parametrize("moment", ["while it is put", "while it is scored"])
def test_remove_leaves_the_next_film_of_the_same_name(dropped, queue, monkeypatch, moment):
    path, part = dropped / "export.dcm", dropped / "next.part"
    path.write_bytes(encoded(dx(number=1)))
    part.write_bytes(encoded(dx(number=2)))
    assert part.stat().st_size == path.stat().st_size
    os.utime(part, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    put = queue.put

    def put_and_replace(*arguments):
        found = put(*arguments)
        if part.exists():
            part.replace(path)
        return found

    if moment == "while it is put":
        monkeypatch.setattr(queue, "put", put_and_replace)
    seeing = watcher(dropped, queue, remove=True)
    look(seeing, 2)
    if part.exists():
        part.replace(path)
    score(queue)
    look(seeing)
    assert path.exists()
    score(queue)
    look(seeing)
    assert queue.counts()["scored"] == 2
    assert not path.exists()


def test_a_pipe_or_link_in_place_of_a_file_holds_up_nothing(dropped, queue):
    path, secret = dropped / "film.dcm", dropped / ".film"
    secret.write_bytes(encoded(dx(number=3)))
    os.mkfifo(dropped / ".pipe")
    seeing = watcher(dropped, queue)
    for make in (lambda: path.symlink_to(secret), lambda: (dropped / ".pipe").rename(path)):
        path.write_bytes(b"x")
        stamp = _stamp(path.lstat())
        path.unlink()
        make()
        with contextlib.suppress(OSError):
            assert seeing._take(path, stamp)[0] == ""
        path.unlink()
    assert queue.counts()["received"] == 0


def test_names_and_folders_that_are_not_to_be_had_hold_up_no_others(dropped, queue, caplog):
    odd = Path(os.fsdecode(os.fsencode(dropped) + b"/M\xfcller.dcm"))
    odd.write_bytes(encoded(dx(number=1)))
    (dropped / "deep").mkdir()
    start = os.open(".", os.O_RDONLY)
    try:
        for name, depth in (("0", 1100), ("0" * 200, 25)):
            os.chdir(dropped / "deep")
            for _ in range(depth):
                Path(name).mkdir()
                os.chdir(name)
            Path("film.dcm").write_bytes(encoded(dx(number=depth)))
    finally:
        os.fchdir(start)
        os.close(start)
    film_files(dropped, 1, 80)
    seeing = watcher(dropped, queue)
    look(seeing, 4)
    assert seeing.readable
    assert queue.counts()["received"] == 3  # but for the one of more than 4096 characters
    assert [record.getMessage() for record in caplog.records].count("watch_trouble") == 1  # said once
    odd.unlink()
    look(seeing)
    assert len(queue.all_seen()) == 2


def test_a_folder_that_cannot_be_entered_holds_up_no_other(dropped, queue, monkeypatch):
    (dropped / "a").mkdir()
    film_files(dropped / "a", 1, 81)
    film_files(dropped, 1, 82)
    seeing = watcher(dropped, queue)
    look(seeing)
    scan = os.scandir

    def closed(path):
        if Path(path).name == "a":
            raise PermissionError
        return scan(path)

    monkeypatch.setattr("ptxsdk.node.watcher.os.scandir", closed)
    film_files(dropped, 1, 83)
    look(seeing)
    assert seeing.readable
    assert queue.counts()["received"] == 3
    assert len(queue.all_seen()) == 3  # what is in there stays known


def test_what_no_check_foresaw_does_not_end_the_watcher(dropped, queue, monkeypatch):
    film_files(dropped, 1, 84)
    seeing = watcher(dropped, queue)
    monkeypatch.setattr(queue, "all_seen", lambda: 1 / 0)
    seeing._settle = 0.1
    seeing.start()
    wait_for(lambda: not seeing.readable, 20)
    monkeypatch.undo()
    wait_for(lambda: seeing.readable, 20)
    seeing._stopping.set()
    seeing.join(10)


def test_a_folder_that_goes_away_and_comes_back(engine_file, tmp_path, dropped):
    film_files(dropped, 1, 60)
    with watch(engine_file, tmp_path, dropped) as node:
        node.wait_done(1, 30)
        away = dropped.rename(tmp_path / "away")
        wait_for(lambda: node.health()["status"] == "not ok", 20)
        away.rename(dropped)
        film_files(dropped, 1, 61)
        node.wait_done(2, 30)
        assert node.health()["status"] == "ok"
        assert len(node.events("received")) == 2
        assert node.stop() == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("watch", "{0}/none", "--out", "{0}/o"),
        ("watch", "{0}", "--out", "{0}/o"),
        ("watch", "{0}", "--out", "{0}_out"),  # the spool is in there
        ("watch", "{0}/s/dropped", "--out", "{0}_out"),
        ("node", "--port", "0", "--http", "0", "--out", "\udcfcber"),
        ("node", "--port", "0", "--http", "0", "--out", "{0}/s"),
        ("node", "--port", "0", "--http", "0", "--out", "{0}/s/results"),
        ("node", "--port", "0", "--http", "0", "--out", "{0}/s/../s/out"),
        ("watch", "{0}"),
        ("node", "--port", "0", "--http", "0", "--forward", "PACS@host"),
        ("node", "--port", "0", "--http", "0", "--forward", "PACS@host:0"),
        ("node", "--port", "0", "--http", "0", "--forward", "A_TITLE_THAT_IS_TOO_LONG@host:104"),
        ("node", "--port", "0", "--http", "0", "--out", "o", "--aet", "back\\slash"),
        ("node", "--port", "0", "--http", "0", "--out", "o", "--write", "pdf"),
        ("node", "--port", "0", "--http", "0", "--out", "o", "--profile", "triage", "--write", "sc,seg"),
        ("node", "--port", "0", "--http", "0", "--out", "o", "--host", "0.0.0.0"),
        ("node", "--port", "0", "--http", "0", "--out", "o", "--tls-cert", "{0}/none.pem"),
        ("node", "--port", "0", "--http", "0", "--out", "o", "--tls-cert", "{0}/none.pem", "--tls-key", "{0}/none.key"),
        ("node", "--port", "0", "--http", "0", "--out", "o", "--forward-tls"),
    ],
)
def test_mistakes_are_said_before_anything_starts(engine_file, tmp_path, arguments):
    (tmp_path / "s" / "dropped").mkdir(parents=True)
    command, *rest = (argument.format(tmp_path) for argument in arguments)
    run = CliRunner().invoke(app, [command, *rest, "--spool", str(tmp_path / "s"), "--engine", str(engine_file)])
    assert run.exit_code == 2
    assert "node.option" in run.output
    assert not (tmp_path / "s" / "films").exists() or not list((tmp_path / "s" / "films").iterdir())


@pytest.mark.parametrize("option", ["--profile", "--precision"])
def test_a_choice_that_there_is_not(tmp_path, option):
    run = CliRunner().invoke(app, ["node", "--out", str(tmp_path), option, "both"])
    assert run.exit_code == 2
    assert option in run.output


@pytest.mark.requirement("R-TIME-1", "R-NODE-1")
def test_a_network_that_hangs_ends_the_process_and_the_next_one_scores_the_film(engine_file, tmp_path, dropped):
    program = """
        import sys, ptxsdk.cli, ptxsdk.deadline
        from ptxsdk import Detector
        def hang(self, *_, **__):
            while True:
                self._backend.infer()
        Detector._score = hang
        ptxsdk.deadline._EXIT_SECONDS = 0.5
        ptxsdk.cli.main()
    """
    film_files(dropped, 1, 1)
    spool = tmp_path / "spool"
    options = f"--engine {engine_file} --spool {spool} --out {tmp_path / 'out'} --settle 0.4 --timeout 1"
    command = [sys.executable, "-c", textwrap.dedent(program), "watch", str(dropped), *options.split()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert ended.returncode == 1, ended.stderr
    assert [json.loads(line)["event"] for line in ended.stderr.splitlines()].count("hangs") == 1
    with watch(engine_file, tmp_path, dropped) as node:
        node.wait_done(1, 30)
        assert node.stop() == 0
    assert len(results(tmp_path)) == 1
