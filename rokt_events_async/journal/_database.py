"""One journal file: a SQLite database with one connection, and one statement per commit.

A `Database` is used by one thread alone, and lives in that thread's locals only: a forked child that closed
an inherited connection would delete the write-ahead log.

`step` is a view. A row inserted into it appends, marks, deletes and counts within one statement, and so
within one transaction. SQLite runs it without the interpreter's lock.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson

from rokt_events_async._pipeline.store import Page, Query, Step, StoredEvent
from rokt_events_async.journal._ownership import FileLock

APPLICATION_ID: Final = 0x524F4B54
"""Says that a SQLite file is a journal: "ROKT"."""

VERSION: Final = 2
"""The version of the format, SQLite's `user_version`. A file of version 1 gets its `session` when opened."""

MAX_SENDERS: Final = 10
"""How many processes may send an event and not learn what became of it: it may be what kills them."""

_BALLASTS: Final = (4 * 1024**2, 1024**2, 256 * 1024, 64 * 1024)
"""The sizes of the ballast, the first that fits. The largest has room for all that the log can hold."""

_STRETCH: Final = 20_000
"""How many numbers are looked through at once."""

_PAGES: Final = 2000
_SCHEMA: Final = """
BEGIN IMMEDIATE;
CREATE TABLE event(
    seq INTEGER PRIMARY KEY, wire TEXT NOT NULL, at INTEGER NOT NULL, sent INTEGER NOT NULL DEFAULT 0,
    session TEXT);
CREATE INDEX by_session ON event(session) WHERE session IS NOT NULL;
CREATE TABLE tally(outcome TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE bad(seq INTEGER PRIMARY KEY, wire BLOB, why TEXT);
PRAGMA application_id = %d;
PRAGMA user_version = %d;
COMMIT;
"""
_UPGRADE: Final = """
BEGIN IMMEDIATE;
ALTER TABLE event ADD COLUMN session TEXT;
CREATE INDEX by_session ON event(session) WHERE session IS NOT NULL;
PRAGMA user_version = %d;
COMMIT;
"""
_STEP: Final = """
CREATE TEMP VIEW step AS
    SELECT 0 AS first, '' AS wires, 0 AS at, '' AS sent, '' AS deferred, '' AS settled, '' AS tally;
CREATE TEMP TRIGGER take_step INSTEAD OF INSERT ON step BEGIN
    INSERT INTO event(seq, wire, at) SELECT NEW.first + key, value, NEW.at FROM json_each(NEW.wires);
    UPDATE event SET sent = change.value FROM json_each(NEW.sent) AS change
        WHERE event.seq = CAST(change.key AS INTEGER);
    UPDATE event SET session = change.value FROM json_each(NEW.deferred) AS change
        WHERE event.seq = CAST(change.key AS INTEGER);
    DELETE FROM event WHERE seq IN (SELECT value FROM json_each(NEW.settled));
    INSERT INTO tally(outcome, count) SELECT key, value FROM json_each(NEW.tally) WHERE true
        ON CONFLICT(outcome) DO UPDATE SET count = count + excluded.count;
END;
"""
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
        self._log = path.with_name(f"{path.name}-wal")
        self._has_ballast = False
        self._count: int | None = None
        """How many events it holds; `None` if that must be counted each time."""
        self._connection = self._open()
        self.condemned = 0
        """How many events were put aside since it was opened."""
        self.lock: FileLock | None = None
        """Says that this process owns the file; released when it is closed."""
        self.is_dirty = False
        """True if there may be something to tidy."""

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, timeout=0)  # It has one owner.
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
        if is_new and size_of(self._log):
            raise NotAJournalError  # SQLite would delete the log.
        if is_new:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if self._fsync else 'NORMAL'}")
        if sys.platform == "darwin":
            connection.execute("PRAGMA fullfsync = 1")
        connection.execute("PRAGMA wal_autocheckpoint = 1000")
        connection.execute("PRAGMA temp_store = MEMORY")  # No copy of an event outside the directory.
        connection.execute(f"PRAGMA journal_size_limit = {1024 * 1024}")
        if is_new:
            connection.executescript(_SCHEMA % (APPLICATION_ID, VERSION))
        if _pragma(connection, "application_id") != APPLICATION_ID:
            raise NotAJournalError
        version = _pragma(connection, "user_version")
        if version > VERSION:
            raise NewerVersionError
        if version < VERSION:
            self._upgrade(connection)
        connection.executescript(_STEP)
        self._count = _count(connection)
        connection.execute("SELECT seq, wire, at, sent, session FROM event LIMIT 0")
        self._make_ballast()

    def _upgrade(self, connection: sqlite3.Connection) -> None:
        """Brings a file of version 1 to the current format; on a full disk in the room of the ballast."""
        try:
            connection.executescript(_UPGRADE % VERSION)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_FULL:
                raise
            connection.rollback()
            self._ballast.unlink(missing_ok=True)
            connection.executescript(_UPGRADE % VERSION)

    def _make_ballast(self) -> None:
        """Keeps room on the disk: a full one makes deletions fail too."""
        if not self._has_ballast:
            self._has_ballast = size_of(self._ballast) >= _BALLASTS[-1] or _fill(self._ballast)

    def _make_room(self) -> None:
        """Makes room for deletions on a full disk: gives up the ballast, and moves the log into the file.

        While there is no room for another ballast, nothing is appended.
        """
        self._has_ballast = False
        with contextlib.suppress(OSError):
            self._ballast.unlink()
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # What it holds.

    @property
    def last(self) -> int:
        """The largest number in use, 0 if it is empty."""
        query = "SELECT max(seq) FROM event UNION ALL SELECT max(seq) FROM bad"
        return max(int(row[0] or 0) for row in self._connection.execute(query).fetchall())

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
        """Returns how many events it holds."""
        return self._count_stored() if self._count is None else self._count

    def _count_stored(self) -> int:
        return _count(self._connection)

    def distrust(self) -> None:
        """Counts each time from now on: what is settled may be missing, because the file was damaged."""
        self._count = None

    def count_bad(self) -> int:
        """Returns how many events could not be read."""
        return int(self._connection.execute("SELECT count(*) FROM bad").fetchone()[0])

    def count_sent(self) -> int:
        """Returns how many events were sent, and may have been accepted."""
        return int(self._connection.execute("SELECT count(*) FROM event WHERE sent > 0").fetchone()[0])

    def deferred(self) -> tuple[int, datetime | None]:
        """Returns how many of its events found no room in memory, and when the oldest was stored, in UTC."""
        query = "SELECT count(*), min(at) FROM event INDEXED BY by_session WHERE session IS NOT NULL"
        count, at = self._connection.execute(query).fetchone()
        return int(count), None if at is None else datetime.fromtimestamp(at / 1000, UTC)

    def used_bytes(self) -> int:
        """Returns its size in bytes, without the pages that are free."""
        free = _pragma(self._connection, "freelist_count") * _pragma(self._connection, "page_size")
        return max(0, size_of(self.path) + size_of(self._log) - free)

    # What is done to it.

    def commit(self, step: Step) -> None:
        """Writes a step: all of it, or nothing.

        Raises:
            sqlite3.Error, OSError: Nothing of it was written.
        """
        if step.wires and not self._has_ballast:
            self._make_ballast()
            if not self._has_ballast:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        values = (
            step.first,
            b"[%b]" % b",".join(step.wires) if step.wires else None,
            int(time.time() * 1000),
            orjson.dumps(step.sent, option=orjson.OPT_NON_STR_KEYS) if step.sent else None,
            _by_number(step.deferred) if step.deferred else None,
            orjson.dumps(step.settled) if step.settled else None,
            orjson.dumps(step.tally) if step.tally else None,
        )
        self._execute_step([value.decode() if isinstance(value, bytes) else value for value in values])
        if self._count is not None:
            self._count += len(step.wires) - len(step.settled)
        self.is_dirty = True

    def _execute_step(self, values: list[Any]) -> None:
        try:
            self._connection.execute("INSERT INTO step VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
                self._make_room()
            raise

    def load(self, query: Query) -> Page:
        """Returns the next events of a range; of a long one perhaps none, and how far it was read.

        Events that too many processes have sent are put aside.

        Raises:
            sqlite3.Error: They cannot be read.
        """
        read_to = query.until if query.session_id is not None else min(query.until, query.after + _STRETCH)
        values: tuple[Any, ...] = (query.after, read_to)
        if query.session_id is not None:
            source = "event INDEXED BY by_session WHERE seq > ? AND seq <= ? AND session = ?"
            values += (_key(query.session_id),)
        else:
            source = "event NOT INDEXED WHERE seq > ? AND seq <= ?"
            if query.only_deferred:
                source += " AND session IS NOT NULL"
            if query.without:
                source += " AND (session IS NULL OR session NOT IN (SELECT value FROM json_each(?)))"
                values += (orjson.dumps([_key(one) for one in query.without]).decode(),)
        select = f"SELECT seq, wire, sent, at, session IS NOT NULL FROM {source} ORDER BY seq LIMIT ?"  # noqa: S608
        rows = self._connection.execute(select, (*values, query.at_most)).fetchall()
        if len(rows) == query.at_most:
            read_to = rows[-1][0]
        for number, _, sent, *_ in rows:
            if sent >= MAX_SENDERS:
                self.condemn(number, f"{sent} processes have sent it and not learned what became of it")
        events = [
            StoredEvent(number, wire, sent, at, bool(is_findable))
            for number, wire, sent, at, is_findable in rows
            if sent < MAX_SENDERS
        ]
        return Page(events, read_to, self.stored())

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
        self._count = self._count_stored()
        self.condemned += 1

    def fold(self, tally: dict[str, int]) -> None:
        """Adds the counts of another file, which is deleted next."""
        self._in_transaction(*[(_COUNT, item) for item in tally.items()])

    def erase(self, session_id: str) -> int:
        """Deletes all events of a session, those put aside included. Returns how many."""
        named = b'"sessionId":%b' % orjson.dumps(session_id)
        gone = self._connection.execute(_OF_SESSION, (named.decode(), named.decode())).fetchall()
        events, bad = ([seq for seq, kind in gone if kind == of] for of in (0, 1))
        self._in_transaction(
            ("DELETE FROM event WHERE seq IN (SELECT value FROM json_each(?))", (_as_json(events),)),
            ("DELETE FROM bad WHERE seq IN (SELECT value FROM json_each(?))", (_as_json(bad),)),
            (_COUNT, ("erased", len(events))),
        )
        self._count = self._count_stored()
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

    def disconnect(self) -> None:
        """Closes it, and stays its owner."""
        self._connection.close()

    def close(self) -> None:
        """Closes it, and gives up its lock."""
        self.disconnect()
        if self.lock is not None:
            self.lock.release()
            self.lock = None

    def delete(self) -> None:
        """Closes the file and deletes it. It must be empty."""
        assert not self._count_stored(), "a file with events is not deleted"
        lock, self.lock = self.lock, None
        self.close()
        for path in (self._ballast, self._log, self.path):
            path.unlink(missing_ok=True)
        if lock is not None:
            lock.path.unlink(missing_ok=True)
            lock.release()


_OF_SESSION: Final = """
SELECT seq, 0 FROM event WHERE instr(CAST(wire AS TEXT), ?) > 0
UNION ALL SELECT seq, 1 FROM bad WHERE instr(CAST(wire AS TEXT), ?) > 0
"""
_COUNT: Final = (
    "INSERT INTO tally(outcome, count) VALUES (?, ?) "
    "ON CONFLICT(outcome) DO UPDATE SET count = count + excluded.count"
)


def rescue(path: Path, *, fsync: bool) -> tuple[Database, Path, int]:
    """Reads from a damaged file what can be read, into a new one, and puts the damaged one aside.

    The new file is made beside it and takes its name when it is complete: a crash leaves one of the two.

    Returns:
        The new file, the path of the damaged one, and how many events were read.
    """
    made = path.with_suffix(RESCUED)
    made.unlink(missing_ok=True)
    open_private(made).close()
    with contextlib.closing(Database(made, fsync=fsync)) as database:
        count = _copy_readable(path, database)
    made.with_suffix(".ballast").unlink(missing_ok=True)
    aside = path.with_name(f"{path.stem}.corrupt-{int(time.time())}")
    log = path.with_name(f"{path.name}-wal")
    path.rename(aside)
    if log.exists():
        log.rename(aside.with_name(f"{aside.name}-wal"))
    made.rename(path)
    database = Database(path, fsync=fsync)
    database.distrust()
    return database, aside, count


def finish_rescue(made: Path) -> None:
    """Ends a rescue on which a crash has come: the new file is complete if the damaged one is aside."""
    path = made.with_suffix(".journal")
    if path.exists():
        made.unlink()
    else:
        made.rename(path)


RESCUED: Final = ".rescued"
"""The suffix of a file that a rescue makes."""


def _copy_readable(path: Path, database: Database) -> int:
    """Copies what can be read, page after page of the damaged file."""
    if not size_of(path):
        return 0
    source = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None, timeout=0)
    source.text_factory = bytes
    with contextlib.closing(source):
        with contextlib.suppress(sqlite3.Error):
            source.execute("PRAGMA writable_schema = 1")  # It reads files that are too short, too.
        insert = "INSERT OR IGNORE INTO event(seq, wire, at, sent, session) VALUES (?, ?, ?, ?, ?)"
        following = _NEXT % ("session" if _has_sessions(source) else "NULL")
        read = 0
        after, step = 0, 1
        while step < _FAR:
            try:
                while rows := source.execute(following, (after, _PAGES)).fetchall():
                    good = [_decoded(row) for row in rows if _is_good(row)]
                    database._in_transaction(*[(insert, row) for row in good])
                    read, after, step = read + len(good), rows[-1][0], 1
                break
            except sqlite3.Error:
                # A page cannot be read: one row after the other up to there, then on behind it.
                row = _read_one(source, following, after)
                if row is not None and _is_good(row):
                    database._in_transaction((insert, _decoded(row)))
                    read += 1
                after, step = (row[0], 1) if row is not None else (after + step, step * 2)
        tally = {"accepted": read}
        with contextlib.suppress(sqlite3.Error):
            rows = source.execute("SELECT outcome, count FROM tally").fetchall()
            tally = {bytes(name).decode(errors="replace"): int(count) for name, count in rows}
        database._in_transaction(*[(_COUNT, item) for item in tally.items()])
    return read


_FAR: Final = 2**40
_NEXT: Final = "SELECT seq, wire, at, sent, %s FROM event NOT INDEXED WHERE seq > ? ORDER BY seq LIMIT ?"


def _has_sessions(source: sqlite3.Connection) -> bool:
    """Returns True if a damaged file has the column; version 1 has none."""
    try:
        source.execute("SELECT session FROM event LIMIT 0")
    except sqlite3.Error:
        return False
    return True


def _read_one(source: sqlite3.Connection, following: str, after: int) -> Any:
    """Returns the next row behind a number; `None` if it cannot be read."""
    try:
        return source.execute(following, (after, 1)).fetchone()
    except sqlite3.Error:
        return None


def _is_good(row: tuple[Any, ...]) -> bool:
    _, wire, at, sent, session = row
    is_named = session is None or (isinstance(session, bytes) and _is_text(session))
    return (
        is_named
        and isinstance(wire, bytes)
        and _is_text(wire)
        and isinstance(at, int)
        and isinstance(sent, int)
    )


def _decoded(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple([value.decode() if isinstance(value, bytes) else value for value in row])


def _by_number(sessions: dict[int, str]) -> bytes:
    keys = {number: _key(session_id) for number, session_id in sessions.items()}
    return orjson.dumps(keys, option=orjson.OPT_NON_STR_KEYS)


def _key(session_id: str) -> str:
    """Returns how a session is named in the database: SQLite's JSON would cut it at a NUL."""
    return session_id.replace("\\", "\\\\").replace("\0", "\\0")


def _as_json(numbers: list[int]) -> str:
    return orjson.dumps(numbers).decode()


def size_of(path: Path) -> int:
    """Returns the size of a file in bytes, 0 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


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


def _count(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM event").fetchone()[0])


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _fill(path: Path) -> bool:
    """Makes a file as large as there is room for. Returns False if there is none."""
    for size in _BALLASTS:
        try:
            with open_private(path) as file:
                _allocate(file.fileno(), size)
        except OSError:
            path.unlink(missing_ok=True)
        else:
            return True
    return False


def _allocate(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:  # pragma: no cover -- macOS
        os.write(descriptor, bytes(size))


def open_private(path: Path) -> Any:
    """Opens a file for writing that its owner alone can read, whatever the umask."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "r+b")
