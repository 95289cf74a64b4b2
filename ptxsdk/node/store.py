"""Store: the durable queue.  A database says what is to be done, a folder beside it holds films and results.

What is in the database is on the disk: every file is flushed, and its folder with it, before the row that names it is
committed, and every commit is flushed (WAL, ``synchronous=FULL``).  Files that no row names are left-overs of a crash
and were never acknowledged to anybody; they are removed at the start, by their names.  Other files are not touched, and
a queue is not begun where films or results lie already: it may have been lost, and they with it.

A film goes ``received`` -> ``scored`` (results stand in the spool) -> ``done`` (every destination has them), or ends as
``refused`` (the input gate) or ``failed``, with the error's code.  Films are named by a random token: neither file
names nor logs nor addresses of the page say anything about a patient.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ptxsdk.errors import NodeError, PtxsdkError, WriterError
from ptxsdk.files import flush_folder, write_file

FORMAT = 3
MAX_ATTEMPTS = 3

State = Literal["received", "scored", "done", "refused", "failed"]
FINAL = ("done", "refused", "failed")
_OUR_FILM = re.compile(r"[0-9a-f]{16}\.dcm|\.[0-9a-f]{16}\.part")  # of `write_file`, too
_OUR_RESULTS = re.compile(r"[0-9a-f]{16}|\.[0-9a-f]{16}\.part")
_NO_OBJECTS = "-"  # in the column `objects`, where nothing at all says that nobody noted them

_SCHEMA = """
CREATE TABLE films (
  id INTEGER PRIMARY KEY,
  token TEXT NOT NULL UNIQUE,
  sop_instance_uid TEXT NOT NULL UNIQUE,
  source TEXT NOT NULL,
  digest TEXT NOT NULL,
  bytes INTEGER NOT NULL,
  received REAL NOT NULL,
  finished REAL,
  ended REAL,  -- by the seconds of `running`; `finished` is for people
  state TEXT NOT NULL DEFAULT 'received',
  attempts INTEGER NOT NULL DEFAULT 0,
  code TEXT NOT NULL DEFAULT '',
  message TEXT NOT NULL DEFAULT '',
  result TEXT NOT NULL DEFAULT '',
  objects TEXT NOT NULL DEFAULT '',
  files INTEGER NOT NULL DEFAULT 1
);
CREATE INDEX films_by_state ON films (state, id);
CREATE TABLE deliveries (
  film INTEGER NOT NULL REFERENCES films (id) ON DELETE CASCADE,
  destination TEXT NOT NULL,
  state TEXT NOT NULL DEFAULT 'waiting',
  attempts INTEGER NOT NULL DEFAULT 0,
  next_try REAL NOT NULL DEFAULT 0,
  waited REAL NOT NULL DEFAULT 0,
  PRIMARY KEY (film, destination)
);
CREATE INDEX deliveries_due ON deliveries (destination, state, next_try);
CREATE TABLE seen (
  path TEXT PRIMARY KEY,
  stamp TEXT NOT NULL
);
CREATE TABLE running (seconds REAL NOT NULL);
INSERT INTO running VALUES (0);
"""
_FROM_1 = """
ALTER TABLE films ADD COLUMN objects TEXT NOT NULL DEFAULT '';
ALTER TABLE deliveries ADD COLUMN waited REAL NOT NULL DEFAULT 0;
"""
_FROM_2 = """
ALTER TABLE films ADD COLUMN ended REAL;
UPDATE films SET ended=0 WHERE finished IS NOT NULL;
CREATE TABLE running (seconds REAL NOT NULL);
INSERT INTO running VALUES (0);
"""


@dataclass(frozen=True)
class Film:
    """A row of the queue.

    Attributes
    ----------
    id : int
        In the order of arrival.
    token : str
        Its name everywhere outside the database.
    sop_instance_uid : str
        Of the object received.
    source : str
        AE title of the sender, or "folder".
    received : float
        Seconds since the epoch.
    state : str
        See the module.
    attempts : int
        Times that scoring it was begun, or its delivery for what `Store.due` returns.
    code, message : str
        Of the error, for ``refused`` and ``failed``.
    result : dict or None
        The detection, as in ``Detection.to_dict``.
    objects : tuple of str or None
        Names of the files that its results consist of, which may be none at all; None: it was not noted, by an older
        version or because there are no results yet.
    files : bool
        Whether its files are still in the spool.
    """

    id: int
    token: str
    sop_instance_uid: str
    source: str
    received: float
    state: State
    attempts: int
    code: str
    message: str
    result: dict[str, Any] | None
    objects: tuple[str, ...] | None
    files: bool


_COLUMNS = (
    "films.id, token, sop_instance_uid, source, received, films.state, films.attempts, code, message, "
    "result, objects, files"
)


class Store:
    """The queue in a folder; safe to call from every thread.

    Parameters
    ----------
    folder : Path
        Made if it is not there, readable by this user only.
    readonly : bool
        Look only, also while a node works in it.
    reserve : int
        Bytes that must stay free: `put` takes nothing below this.

    Attributes
    ----------
    counted : float
        Up to when, by `time.monotonic`, the time that the node ran is written down; see `give_up`.

    Raises
    ------
    NodeError
        ``node.spool``.
    """

    def __init__(self, folder: Path, *, readonly: bool = False, reserve: int = 0) -> None:
        self.folder = folder
        self._reserve = reserve
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._version = 0
        self.counted = time.monotonic()
        self._claimed: set[int] = set()
        self._held: dict[int, tuple[float, str]] = {}  # until when, by `time.monotonic`, and why
        self._owed: set[int] = set()  # films whose attempt does not count, which the disk did not let us write down
        self._films, self._results = folder / "films", folder / "results"
        self._guard: int | None = None
        try:
            if not readonly:
                for path in (folder, self._films, self._results):
                    path.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._guard = _lock_folder(folder)
            self._database = self._open(readonly=readonly)
            self._ran = float(self._database.execute("SELECT seconds FROM running").fetchone()[0])
            if not readonly:
                self._sweep()
        except (OSError, sqlite3.Error) as error:
            self._unlock()
            raise NodeError("node.spool", f"the spool {str(folder)!r} cannot be used: {error}") from error
        except NodeError:
            self._unlock()
            raise

    def _open(self, *, readonly: bool) -> sqlite3.Connection:
        path = self.folder / "queue.sqlite"
        uri = f"{path.absolute().as_uri()}?mode={'ro' if readonly else 'rwc'}"
        if not readonly:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        database = sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None, timeout=10)
        try:
            if not readonly:
                self._refuse_foreign(database)
            _prepare(database, readonly=readonly)
        except BaseException:
            database.close()
            raise
        return database

    def _refuse_foreign(self, database: sqlite3.Connection) -> None:
        """Refuse a queue that is new beside films or results: they are somebody else's, or the queue was lost."""
        if database.execute("PRAGMA user_version").fetchone()[0] != 0:
            return
        for path in (self._films, self._results):
            if any(path.iterdir()):
                raise NodeError(
                    "node.spool",
                    f"there is no queue for what lies in {str(path)!r}: bring its queue.sqlite back, move the files "
                    "away, or name another --spool",
                )

    def _sweep(self) -> None:
        """Remove files of ours that no row names, and end films that took the node down too often."""
        named = {token for (token,) in self._database.execute("SELECT token FROM films WHERE files")}
        for path in self._films.iterdir():
            if _OUR_FILM.fullmatch(path.name) and path.name.removesuffix(".dcm") not in named:
                path.unlink()
        for path in self._results.iterdir():
            if _OUR_RESULTS.fullmatch(path.name) and path.name not in named:
                shutil.rmtree(path)
        with self._transaction():
            self._database.execute(
                "UPDATE films SET state='failed', code=?, message=?, finished=?, ended=? "
                "WHERE state='received' AND attempts>=?",
                (
                    "node.crashed",
                    f"the node went down {MAX_ATTEMPTS} times on it",
                    time.time(),
                    self._running(),
                    MAX_ATTEMPTS,
                ),
            )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commit all or nothing, and wake whoever waits for work."""
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a full disk may have rolled back already
                    self._database.execute("ROLLBACK")
                raise
            self.wake()

    # --- films come in ------------------------------------------------------------------------------------------------

    def put(self, content: bytes, sop_instance_uid: str, source: str) -> tuple[str, str]:
        """Take a film, durably: when this returns, it survives a crash.

        Parameters
        ----------
        content : bytes
            A DICOM file.
        sop_instance_uid : str
            Its SOP Instance UID; a film that is in the queue already is not taken twice.
        source : str
            AE title of the sender, or "folder".

        Returns
        -------
        tuple of str
            Outcome and the film's token.  "new"; "again" for a film that had failed and now gets another try;
            "duplicate"; or "conflict": known, but the content is another one, and the first one stays.

        Raises
        ------
        WriterError
            ``writer.failed``: the disk is full or broken; nothing was taken.
        """
        digest = hashlib.sha256(content).hexdigest()
        token = secrets.token_hex(8)
        with self._lock:
            known = self._known(sop_instance_uid)
        if known is not None and known[2] not in ("failed", "refused"):
            return "duplicate" if known[3] == digest else "conflict", known[1]
        path = self.film_path(token)
        if shutil.disk_usage(self.folder).free < self._reserve + len(content):
            raise WriterError("writer.failed", "the spool's disk is full")
        write_file(path, content, mode=0o600)
        try:
            with self._transaction():
                known = self._known(sop_instance_uid)
                if known is not None and known[2] not in ("failed", "refused"):
                    path.unlink()
                    return "duplicate" if known[3] == digest else "conflict", known[1]
                if known is not None:
                    self._database.execute("DELETE FROM films WHERE id=?", known[:1])
                self._database.execute(
                    "INSERT INTO films (token, sop_instance_uid, source, digest, bytes, received) VALUES (?,?,?,?,?,?)",
                    (token, sop_instance_uid, source, digest, len(content), time.time()),
                )
        except (sqlite3.Error, OSError) as error:
            path.unlink(missing_ok=True)
            raise WriterError("writer.failed", f"the queue cannot be written: {error}") from error
        if known is not None:
            self._remove_files(known[1])
            return "again", token
        return "new", token

    def _known(self, sop_instance_uid: str) -> tuple[int, str, str, str] | None:
        row: tuple[int, str, str, str] | None = self._database.execute(
            "SELECT id, token, state, digest FROM films WHERE sop_instance_uid=?", (sop_instance_uid,)
        ).fetchone()
        return row

    # --- films are scored ---------------------------------------------------------------------------------------------

    def claim(self) -> Film | None:
        """Return the oldest film that nobody scores and that is not held back, None where there is none.

        The attempt is counted on the disk first: a film that takes the process down is tried `MAX_ATTEMPTS` times.
        """
        with self._lock:
            now = time.monotonic()
            passed = self._claimed | {film for film, (until, _) in self._held.items() if until > now}
            films = self._select("state='received' ORDER BY id LIMIT ?", (len(passed) + 1,))
            film = next((film for film in films if film.id not in passed), None)
            if film is None:
                return None
            film = replace(film, attempts=max(0, film.attempts - (film.id in self._owed)))
            with self._transaction():
                self._database.execute("UPDATE films SET attempts=? WHERE id=?", (film.attempts + 1, film.id))
            self._owed.discard(film.id)
            self._claimed.add(film.id)
            return film

    def give_back(self, film: Film, code: str, seconds: float = 0.0) -> None:
        """Take a claimed film's attempt back, which was not the film's fault, and let others go ahead for so long.

        Where the disk does not let this be written, it is with the next `claim`.
        """
        with self._lock:
            self._held[film.id] = time.monotonic() + seconds, code
            self._owed.add(film.id)
            with self._transaction():
                self._database.execute("UPDATE films SET attempts=max(0, attempts-1) WHERE id=?", (film.id,))
            self._owed.discard(film.id)

    def holds(self, kind: str) -> bool:
        """Say whether a film waits that was given back by a code of this kind, "audit", and got no further since."""
        with self._lock:
            return any(code.startswith(f"{kind}.") for _, code in self._held.values())

    def let_go(self, film: Film) -> None:
        """Let others claim the film, if anything is left to be done with it."""
        with self._lock:
            self._claimed.discard(film.id)

    def read(self, film: Film) -> bytes:
        """Return the film's file."""
        return self.film_path(film.token).read_bytes()

    def finish(
        self, film: Film, result: Mapping[str, Any], objects: Mapping[str, bytes], destinations: Sequence[str]
    ) -> None:
        """Keep a film's results, durably, for `destinations` to get.

        Parameters
        ----------
        film : Film
            A claimed film.
        result : mapping
            The detection, JSON-able.
        objects : mapping of str to bytes
            Files by name, "sc.dcm".
        destinations : sequence of str
            Who is to get them.

        Raises
        ------
        WriterError
            ``writer.failed``; the film is still claimed, and nothing of its results is kept.
        """
        folder = self.result_path(film.token)
        part = folder.with_name(f".{film.token}.part")
        try:
            shutil.rmtree(part, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
            part.mkdir(mode=0o700)
            for name, content in objects.items():
                write_file(part / name, content, mode=0o600)
            part.rename(folder)
            flush_folder(self._results)
            with self._transaction():
                self._database.execute(
                    "UPDATE films SET state='scored', result=?, objects=?, code='', message='' WHERE id=?",
                    (json.dumps(result, allow_nan=False), " ".join(objects) or _NO_OBJECTS, film.id),
                )
                ahead = max(0.0, time.monotonic() - self.counted)  # the next note counts this, but it did not wait
                self._database.executemany(
                    "INSERT INTO deliveries (film, destination, waited) VALUES (?,?,?)",
                    [(film.id, name, -ahead) for name in destinations],
                )
                self._held.pop(film.id, None)
        except (OSError, sqlite3.Error) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise WriterError("writer.failed", f"results cannot be kept: {error}") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def end(self, film: Film, error: PtxsdkError) -> None:
        """End a claimed film with an error: ``refused`` by the gate, else ``failed``.

        Where the disk does not let this be written, the attempt does not count, and the next one ends as this one.
        """
        state = "refused" if error.code.startswith("gate.") else "failed"
        with self._lock:
            self._owed.add(film.id)
            with self._transaction():
                self._database.execute(
                    "UPDATE films SET state=?, code=?, message=?, finished=?, ended=? WHERE id=? AND state='received'",
                    (state, error.code, error.message, time.time(), self._running(), film.id),
                )
                self._held.pop(film.id, None)
            self._owed.discard(film.id)

    # --- results go out -----------------------------------------------------------------------------------------------

    def due(self, destination: str, limit: int = 1, longest: float = math.inf) -> list[Film]:
        """Return films whose results `destination` should get now, those first that have waited longest.

        No wait is longer than `longest`: what would be was written down before the clock was set back.
        """
        columns = _COLUMNS.replace("films.attempts", "deliveries.attempts")
        now = time.time()
        with self._lock:
            rows = self._database.execute(
                f"SELECT {columns} FROM deliveries JOIN films ON films.id=film "  # noqa: S608 - constants
                "WHERE destination=? AND deliveries.state='waiting' AND (next_try<=? OR next_try>?) "
                "ORDER BY next_try, film LIMIT ?",
                (destination, now, now + longest, limit),
            ).fetchall()
        return [_film(row) for row in rows]

    def delivered(self, film: Film, destination: str) -> bool:
        """Note that `destination` has the results; return whether the film is done with this."""
        with self._transaction():
            self._settle(film.id, destination, "done")
            return self._close(film.id)

    def postpone(self, film: Film, destination: str, seconds: float) -> None:
        """Try this delivery again in `seconds`."""
        with self._transaction():
            self._database.execute(
                "UPDATE deliveries SET attempts=attempts+1, next_try=? WHERE film=? AND destination=?",
                (time.time() + seconds, film.id, destination),
            )

    def give_up(self, elapsed: float, longest: float) -> list[tuple[str, str]]:
        """Note that the node ran `elapsed` seconds more, and give up deliveries that have waited beyond `longest`.

        Time is counted while a node is there to deliver, and not taken from the clock, which may be set.  This writes
        every waiting delivery, so it is not for every few seconds.

        Returns
        -------
        list of tuple
            Token and destination of each that was given up.
        """
        with self._lock:
            with self._transaction():
                self._database.execute("UPDATE running SET seconds=seconds+?", (elapsed,))
                self._database.execute("UPDATE deliveries SET waited=waited+? WHERE state='waiting'", (elapsed,))
                rows = self._database.execute(
                    "SELECT films.id, token, destination FROM deliveries JOIN films ON films.id=film "
                    "WHERE deliveries.state='waiting' AND waited>?",
                    (longest,),
                ).fetchall()
                for identity, _, destination in rows:
                    self._settle(identity, destination, "failed")
                    self._close(identity)
            self._ran += elapsed
            self.counted += elapsed
        return [(token, destination) for _, token, destination in rows]

    def _running(self) -> float:
        """Return the seconds that nodes have run with this queue; no clock that is set changes it."""
        return self._ran + time.monotonic() - self.counted

    def _settle(self, identity: int, destination: str, state: str) -> None:
        self._database.execute(
            "UPDATE deliveries SET state=?, attempts=attempts+1 WHERE film=? AND destination=?",
            (state, identity, destination),
        )

    def _close(self, identity: int) -> bool:
        """End a film whose last delivery is settled."""
        states = {
            state for (state,) in self._database.execute("SELECT state FROM deliveries WHERE film=?", (identity,))
        }
        if "waiting" in states:
            return False
        failed = "failed" in states
        self._database.execute(
            "UPDATE films SET state=?, code=?, message=?, finished=?, ended=? WHERE id=?",
            (
                "failed" if failed else "done",
                "node.undeliverable" if failed else "",
                "a destination did not take the results in the time allowed" if failed else "",
                time.time(),
                self._running(),
                identity,
            ),
        )
        return True

    # --- looking ------------------------------------------------------------------------------------------------------

    def film_path(self, token: str) -> Path:
        """Return where a film's file stands."""
        return self._films / f"{token}.dcm"

    def result_path(self, token: str) -> Path:
        """Return the folder of a film's results."""
        return self._results / token

    def recent(self, limit: int) -> list[Film]:
        """Return the newest films, newest first."""
        return self._select("1 ORDER BY films.id DESC LIMIT ?", (limit,))

    def find(self, token: str) -> Film | None:
        """Return the film of this token."""
        return next(iter(self._select("token=?", (token,))), None)

    def counts(self) -> dict[str, int]:
        """Return the number of films in every state."""
        with self._lock:
            rows = self._database.execute("SELECT state, count(*) FROM films GROUP BY state").fetchall()
        return dict.fromkeys(("received", "scored", *FINAL), 0) | dict(rows)

    def oldest(self) -> float | None:
        """Return when the oldest film that waits for anything was received."""
        with self._lock:
            row = self._database.execute(
                "SELECT min(received) FROM films WHERE state IN ('received', 'scored')"
            ).fetchone()
        return None if row[0] is None else float(row[0])

    @property
    def version(self) -> int:
        """Number of changes so far."""
        return self._version

    def wait(self, version: int, seconds: float) -> None:
        """Wait until the queue has changed since `version`, at most so long."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != version, seconds)

    def wake(self) -> None:
        """End every `wait`."""
        with self._changed:
            self._version += 1
            self._changed.notify_all()

    def _select(self, condition: str, values: tuple[object, ...]) -> list[Film]:
        with self._lock:
            rows = self._database.execute(f"SELECT {_COLUMNS} FROM films WHERE {condition}", values).fetchall()  # noqa: S608
        return [_film(row) for row in rows]

    # --- dropped files ------------------------------------------------------------------------------------------------

    def seen(self, path: str | bytes) -> str | None:
        """Return the stamp under which a dropped file was taken; what it says is the watcher's to know."""
        with self._lock:
            row = self._database.execute("SELECT stamp FROM seen WHERE path=?", (path,)).fetchone()
        return None if row is None else str(row[0])

    def see(self, path: str | bytes, stamp: str) -> None:
        """Remember that a dropped file was taken."""
        with self._transaction():
            self._database.execute("INSERT OR REPLACE INTO seen (path, stamp) VALUES (?,?)", (path, stamp))

    def all_seen(self) -> list[str | bytes]:
        """Return the dropped files that are remembered."""
        with self._lock:
            return [path for (path,) in self._database.execute("SELECT path FROM seen")]

    def forget(self, paths: Sequence[str | bytes]) -> None:
        """Forget dropped files."""
        with self._transaction():
            self._database.executemany("DELETE FROM seen WHERE path=?", [(path,) for path in paths])

    # --- keeping house ------------------------------------------------------------------------------------------------

    def tidy(self, *, keep: int, forget_after: float) -> None:
        """Remove files of films that are done with, but for the newest `keep`, and rows `forget_after` their end.

        These seconds are those in which a node ran, as `give_up` counts them: a clock that is set forgets nothing.
        Results that could not be delivered stay until their row is forgotten.
        """
        finals = ",".join(f"'{state}'" for state in FINAL)
        with self._lock:
            gone = self._database.execute(
                f"SELECT token FROM films WHERE files AND state IN ({finals}) AND code<>'node.undeliverable' "  # noqa: S608
                "ORDER BY id DESC LIMIT -1 OFFSET ?",
                (keep,),
            ).fetchall()
            forgotten = self._database.execute(
                f"SELECT token FROM films WHERE state IN ({finals}) AND ended<?",  # noqa: S608
                (self._running() - forget_after,),
            ).fetchall()
        if not gone and not forgotten:
            return
        # Rows first: a file without a row is removed at the next start, a row without its file would be a lie.
        with self._transaction():
            self._database.executemany("UPDATE films SET files=0 WHERE token=?", gone)
            self._database.executemany("DELETE FROM films WHERE token=?", forgotten)
        for (token,) in (*gone, *forgotten):
            self._remove_files(token)

    def _remove_files(self, token: str) -> None:
        self.film_path(token).unlink(missing_ok=True)
        shutil.rmtree(self.result_path(token), ignore_errors=True)

    def close(self) -> None:
        """Close the database and let another node have the spool.  Idempotent."""
        with self._lock:
            self._database.close()
            self._unlock()

    def _unlock(self) -> None:
        if self._guard is not None:
            os.close(self._guard)
            self._guard = None


def _prepare(database: sqlite3.Connection, *, readonly: bool) -> None:
    """Check the format, and make the tables where there are none."""
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version > FORMAT or (readonly and version != FORMAT):
        raise NodeError("node.spool", f"the spool is of format {version}, this version knows {FORMAT}")
    if readonly:
        return
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "journal_size_limit=4194304"):
        database.execute(f"PRAGMA {pragma}")
    if version == 0:
        database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={FORMAT}; COMMIT;")
    elif version == 1:
        database.executescript(f"BEGIN; {_FROM_1} {_FROM_2} PRAGMA user_version={FORMAT}; COMMIT;")
    elif version == 2:
        database.executescript(f"BEGIN; {_FROM_2} PRAGMA user_version={FORMAT}; COMMIT;")


def _film(row: Sequence[Any]) -> Film:
    *fields, result, objects, files = row
    names = tuple(name for name in objects.split() if name != _NO_OBJECTS) if objects else None
    fields += [json.loads(result) if result else None, names, bool(files)]
    return Film(*fields)


def _lock_folder(folder: Path) -> int:
    """Hold the spool for this process; the system lets go of it when the process ends, however it ends."""
    guard = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(guard)
        raise NodeError("node.spool", f"another node works in the spool {str(folder)!r}") from None
    return guard
