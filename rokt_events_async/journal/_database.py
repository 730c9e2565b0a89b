"""One journal file: a SQLite database with one connection, and one statement per commit.

A `Database` is used by one thread alone, and lives in that thread's locals only: a forked child that closed
an inherited connection would delete the write-ahead log.

`step` is a view. A row inserted into it appends, marks, deletes and counts within one statement, and so
within one transaction. SQLite runs it without the interpreter's lock.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson

from rokt_events_async._pipeline.store import Step, StoredEvent

APPLICATION_ID: Final = 0x524F4B54
"""Says that a SQLite file is a journal: "ROKT"."""

VERSION: Final = 1
"""The version of the format, SQLite's `user_version`."""

MAX_SENDERS: Final = 10
"""How many processes may send an event and not learn what became of it: it may be what kills them."""

_BALLAST: Final = 64 * 1024
_PAGES: Final = 2000
_SCHEMA: Final = """
BEGIN IMMEDIATE;
CREATE TABLE event(
    seq INTEGER PRIMARY KEY, wire TEXT NOT NULL, at INTEGER NOT NULL, sent INTEGER NOT NULL DEFAULT 0);
CREATE TABLE tally(outcome TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE bad(seq INTEGER PRIMARY KEY, wire BLOB, why TEXT);
PRAGMA application_id = %d;
PRAGMA user_version = %d;
COMMIT;
"""
_STEP: Final = """
CREATE TEMP VIEW step AS SELECT 0 AS first, '' AS wires, 0 AS at, '' AS sent, '' AS settled, '' AS tally;
CREATE TEMP TRIGGER take_step INSTEAD OF INSERT ON step BEGIN
    INSERT INTO event(seq, wire, at) SELECT NEW.first + key, value, NEW.at FROM json_each(NEW.wires);
    UPDATE event SET sent = change.value FROM json_each(NEW.sent) AS change
        WHERE event.seq = CAST(change.key AS INTEGER);
    DELETE FROM event WHERE seq IN (SELECT value FROM json_each(NEW.settled));
    INSERT INTO tally(outcome, count) SELECT key, value FROM json_each(NEW.tally) WHERE true
        ON CONFLICT(outcome) DO UPDATE SET count = count + excluded.count;
END;
"""
_OUTCOMES: Final = ("delivered", "rejected", "expired", "failed", "unconfirmed", "bad", "lost", "erased")
"""The names under which events that are no longer stored are counted."""

_UNREADABLE: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class NewerVersionError(Exception):
    """The file was written by a newer version of the library."""


class NotAJournalError(Exception):
    """The file is damaged, or something else than a journal."""


def explain(error: sqlite3.Error | OSError) -> str:
    """Returns what went wrong, without SQLite's own text: that can quote an event."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    name: str = getattr(error, "sqlite_errorname", "") or type(error).__name__
    return _WORDS.get(name.removeprefix("SQLITE_").split("_", 1)[0], name)


_WORDS: Final = {
    "FULL": "the disk is full",
    "IOERR": "the disk failed (I/O error)",
    "READONLY": "the file cannot be written",
    "CANTOPEN": "the file cannot be opened",
    "CORRUPT": "the file is damaged",
    "NOTADB": "the file is no database",
    "BUSY": "the file is in use by another program",
}


class Database:
    """An open journal file.

    Args:
        path: The file, which must exist. An empty one becomes a journal.
        fsync: True to have each commit on the disk before it counts.

    Raises:
        NewerVersionError: A newer version has written it.
        NotAJournalError: It is damaged, or no journal.
        sqlite3.Error, OSError: It cannot be opened.
    """

    def __init__(self, path: Path, *, fsync: bool) -> None:
        self.path = path
        self._fsync = fsync
        self._ballast = path.with_suffix(".ballast")
        self._connection = self._open()
        self.is_dirty = False
        """True if there may be something to tidy."""

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None)
        try:
            self._prepare(connection)
        except sqlite3.DatabaseError as error:
            connection.close()
            if _is_unreadable(error) or error.sqlite_errorcode == sqlite3.SQLITE_ERROR:  # No such table.
                raise NotAJournalError from None
            raise
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.text_factory = bytes
        is_new = self.path.stat().st_size == 0
        if is_new:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if self._fsync else 'NORMAL'}")
        if sys.platform == "darwin":
            connection.execute("PRAGMA fullfsync = 1")
        connection.execute("PRAGMA wal_autocheckpoint = 1000")
        connection.execute(f"PRAGMA journal_size_limit = {1024 * 1024}")
        if is_new:
            connection.executescript(_SCHEMA % (APPLICATION_ID, VERSION))
        if _pragma(connection, "application_id") != APPLICATION_ID:
            raise NotAJournalError
        if _pragma(connection, "user_version") > VERSION:
            raise NewerVersionError
        connection.executescript(_STEP)
        connection.execute("SELECT seq, wire, at, sent FROM event LIMIT 0")
        self._make_ballast()

    def _make_ballast(self) -> None:
        """Keeps room on the disk: a full one makes deletions fail too."""
        if not self._ballast.exists():
            with contextlib.suppress(OSError), open_private(self._ballast) as file:
                file.write(bytes(_BALLAST))

    def give_up_ballast(self) -> None:
        """Makes room for deletions on a full disk. It is made again when the file is tidied."""
        with contextlib.suppress(OSError):
            self._ballast.unlink()

    # What it holds.

    @property
    def last(self) -> int:
        """The largest number in use, 0 if it is empty."""
        return int(self._connection.execute("SELECT max(seq) FROM event").fetchone()[0] or 0)

    @property
    def oldest(self) -> datetime | None:
        """When the oldest event was stored, in UTC."""
        found = self._connection.execute("SELECT at FROM event ORDER BY seq LIMIT 1").fetchone()
        return None if found is None else datetime.fromtimestamp(found[0] / 1000, UTC)

    def tally(self) -> dict[str, int]:
        """Returns how many events were counted under which name."""
        rows = self._connection.execute("SELECT outcome, count FROM tally").fetchall()
        return {bytes(name).decode(): int(count) for name, count in rows}

    def stored(self) -> int:
        """Returns how many events it holds, without reading them all."""
        tally = self.tally()
        return tally.get("accepted", 0) - sum([tally.get(outcome, 0) for outcome in _OUTCOMES])

    def count_bad(self) -> int:
        """Returns how many events could not be read."""
        return int(self._connection.execute("SELECT count(*) FROM bad").fetchone()[0])

    def count_sent(self) -> int:
        """Returns how many events were sent, and may have been accepted."""
        return int(self._connection.execute("SELECT count(*) FROM event WHERE sent > 0").fetchone()[0])

    def used_bytes(self) -> int:
        """Returns its size in bytes, without the pages that are free."""
        pages = _pragma(self._connection, "page_count") - _pragma(self._connection, "freelist_count")
        return pages * _pragma(self._connection, "page_size")

    # What is done to it.

    def commit(self, step: Step) -> None:
        """Writes a step: all of it, or nothing.

        Raises:
            sqlite3.Error: Nothing of it was written.
        """
        values = (
            step.first,
            b"[%b]" % b",".join(step.wires) if step.wires else None,
            int(time.time() * 1000),
            orjson.dumps(step.sent, option=orjson.OPT_NON_STR_KEYS) if step.sent else None,
            orjson.dumps(step.settled) if step.settled else None,
            orjson.dumps(step.tally) if step.tally else None,
        )
        self._execute_step([value.decode() if isinstance(value, bytes) else value for value in values])
        self.is_dirty = True

    def _execute_step(self, values: list[Any]) -> None:
        try:
            self._connection.execute("INSERT INTO step VALUES (?, ?, ?, ?, ?, ?)", values)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL:
                self.give_up_ballast()
            raise

    def load(self, after: int, until: int, at_most: int) -> list[StoredEvent]:
        """Returns the next events behind a number.

        Events that too many processes have sent are put aside.

        Raises:
            sqlite3.Error: They cannot be read.
        """
        query = "SELECT seq, wire, sent FROM event WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?"
        while rows := self._connection.execute(query, (after, until, at_most)).fetchall():
            after = rows[-1][0]
            good = [StoredEvent(*row) for row in rows if row[2] < MAX_SENDERS]
            for number, _, sent in rows:
                if sent >= MAX_SENDERS:
                    self.condemn(number, f"{sent} processes have sent it and not learned what became of it")
            if good:
                return good
        return []

    def condemn(self, number: int, why: str) -> None:
        """Puts an event aside that cannot be sent.

        Raises:
            sqlite3.Error: Nothing was done.
        """
        self._in_transaction(
            ("INSERT OR REPLACE INTO bad SELECT seq, wire, ? FROM event WHERE seq = ?", (why, number)),
            ("DELETE FROM event WHERE seq = ?", (number,)),
            (_COUNT, ("bad", 1)),
        )

    def fold(self, tally: dict[str, int]) -> None:
        """Adds the counts of another file, which is deleted next."""
        self._in_transaction(*[(_COUNT, item) for item in tally.items()])

    def erase(self, session_id: str) -> int:
        """Deletes all events of a session, those put aside included. Returns how many."""
        gone = dict(self._connection.execute(_OF_SESSION, (session_id, session_id)).fetchall())
        events, bad = (orjson.dumps([seq for seq, kind in gone.items() if kind == of]) for of in (0, 1))
        self._in_transaction(
            ("DELETE FROM event WHERE seq IN (SELECT value FROM json_each(?))", (events.decode(),)),
            ("DELETE FROM bad WHERE seq IN (SELECT value FROM json_each(?))", (bad.decode(),)),
            (_COUNT, ("erased", sum([kind == 0 for kind in gone.values()]))),
        )
        self._connection.execute("VACUUM")  # So that nothing of it is left in free pages.
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return len(gone)

    def _in_transaction(self, *statements: tuple[str, tuple[Any, ...]]) -> None:
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            for statement, values in statements:
                self._connection.execute(statement, values)

    def tidy(self) -> bool:
        """Makes the file small, while nothing else is to do. Returns True if there is more to do."""
        self._make_ballast()
        free = _pragma(self._connection, "freelist_count")
        if not free:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self.is_dirty = False
        elif self._connection.execute("SELECT 1 FROM event LIMIT 1").fetchone() is None:
            self._connection.execute("VACUUM")
        else:
            # By `executescript`: `execute` would free a single page.
            self._connection.executescript(f"PRAGMA incremental_vacuum({_PAGES})")
        return self.is_dirty

    def close(self) -> None:
        """Closes it."""
        self._connection.close()

    def delete(self) -> None:
        """Closes the file and deletes it."""
        self.close()
        for path in (self._ballast, self.path.with_name(f"{self.path.name}-wal"), self.path):
            path.unlink(missing_ok=True)


_OF_SESSION: Final = """
SELECT seq, 0 FROM event WHERE json_valid(wire) AND json_extract(wire, '$.sessionId') = ?
UNION ALL SELECT seq, 1 FROM bad WHERE json_valid(wire) AND json_extract(wire, '$.sessionId') = ?
"""
_COUNT: Final = (
    "INSERT INTO tally(outcome, count) VALUES (?, ?) "
    "ON CONFLICT(outcome) DO UPDATE SET count = count + excluded.count"
)


_FORWARD: Final = "SELECT seq, wire, at, sent FROM event ORDER BY seq"
_BACKWARD: Final = "SELECT seq, wire, at, sent FROM event ORDER BY seq DESC"


def rescue(path: Path, *, fsync: bool) -> tuple[Database, Path, int]:
    """Puts a damaged file aside and reads from it what can be read, into a new one.

    Returns:
        The new file, the path of the damaged one, and how many events were read.
    """
    aside = path.with_name(f"{path.stem}.corrupt-{int(time.time())}")
    log = path.with_name(f"{path.name}-wal")
    if log.exists():
        log.rename(aside.with_name(f"{aside.name}-wal"))
    path.rename(aside)
    open_private(path).close()
    database = Database(path, fsync=fsync)
    rows: dict[int, tuple[Any, ...]] = {}
    tally: dict[str, int] = {}
    with contextlib.suppress(sqlite3.Error):
        # SQLite would write to the log of a file that it opens.
        source = sqlite3.connect(f"file:{aside}?mode=ro", uri=True, isolation_level=None)
        source.text_factory = bytes
        with contextlib.closing(source):
            for query in (_FORWARD, _BACKWARD):  # From both ends, each as far as it goes.
                with contextlib.suppress(sqlite3.Error):
                    rows.update((row[0], row) for row in source.execute(query))
            with contextlib.suppress(sqlite3.Error):
                for name, count in source.execute("SELECT outcome, count FROM tally"):
                    tally[bytes(name).decode(errors="replace")] = int(count)
    read = [
        (seq, wire.decode(), at, sent)
        for seq, wire, at, sent in rows.values()
        if isinstance(wire, bytes) and _is_text(wire) and isinstance(at, int) and isinstance(sent, int)
    ]
    gone = sum([tally.get(outcome, 0) for outcome in _OUTCOMES])
    tally["accepted"] = max(tally.get("accepted", 0), gone + len(read))
    tally["lost"] = tally.get("lost", 0) + tally["accepted"] - gone - len(read)
    insert = "INSERT INTO event(seq, wire, at, sent) VALUES (?, ?, ?, ?)"
    database._in_transaction(
        *[(insert, row) for row in read], *[(_COUNT, item) for item in tally.items() if item[1] >= 0]
    )
    return database, aside, len(read)


def _is_text(wire: bytes) -> bool:
    try:
        wire.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_unreadable(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _UNREADABLE


def is_damage(error: Exception) -> bool:
    """Returns True if an error says that the file is damaged."""
    return isinstance(error, NotAJournalError) or (isinstance(error, sqlite3.Error) and _is_unreadable(error))


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def open_private(path: Path) -> Any:
    """Opens a file for writing that its owner alone can read, whatever the umask."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "r+b")
