"""One journal file: what a step does, what is read back, and what becomes of damaged files."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rokt_events_async._pipeline.store import Page, Query, Step
from rokt_events_async._protocol.encoding import encode
from rokt_events_async.journal import _database
from rokt_events_async.journal._database import (
    MAX_SENDERS,
    Database,
    NewerVersionError,
    NotAJournalError,
    explain,
    finish_rescue,
    open_private,
    rescue,
)
from tests.samples import NOW, event


def wire(session: str = "session", **changes: Any) -> bytes:
    return encode(event(session, **changes).stamped(NOW))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Database]:
    open_private(path).close()
    with contextlib.closing(Database(path, fsync=False)) as database:
        yield database


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "one.journal"


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    with opened(path) as made:
        yield made


def append(database: Database, *wires: bytes, first: int = 1) -> None:
    database.commit(Step(first=first, wires=list(wires), tally={"accepted": len(wires)}))


def numbers(database: Database) -> list[int]:
    return [stored.number for stored in database.load(Query(0, 10**4, 1000)).events]


def test_a_step_appends_marks_deletes_and_counts(database: Database) -> None:
    """All in one statement."""
    wires = [wire() for _ in range(4)]
    append(database, *wires)
    step = Step(first=5, wires=[wire()], sent={2: 1, 3: 2}, settled=[1], tally={"accepted": 1})
    step.tally |= {"delivered": 1}
    database.commit(step)

    found = database.load(Query(0, 100, 100)).events
    assert [(stored.number, stored.sent) for stored in found] == [(2, 1), (3, 2), (4, 0), (5, 0)]
    assert found[0].wire == wires[1]
    assert database.tally() == {"accepted": 5, "delivered": 1}
    assert (database.stored(), database.last, database.count_sent()) == (4, 5, 2)
    assert database.oldest is not None


def test_an_empty_file_has_no_oldest_event(database: Database) -> None:
    """And no last number."""
    assert database.oldest is None
    assert (database.last, database.stored()) == (0, 0)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@given(TEXTS, TEXTS)
def test_events_are_read_back_byte_for_byte(tmp_path_factory: Any, name: str, value: str) -> None:
    """Whatever they contain: SQLite takes them out of a JSON array."""
    made = wire(metadata={name: value, "quote": '"\\\u2028\x00'})
    with opened(tmp_path_factory.mktemp("bytes") / "one.journal") as database:
        append(database, made, made)
        assert [stored.wire for stored in database.load(Query(0, 9, 9)).events] == [made, made]


def test_pages_go_on_behind_a_number_up_to_another(database: Database) -> None:
    """In the order of the appends."""
    append(database, *[wire() for _ in range(5)])
    page = database.load(Query(1, 4, 2))
    assert ([stored.number for stored in page.events], page.read_to, page.stored) == ([2, 3], 3, 5)
    page = database.load(Query(3, 4, 2))
    assert ([stored.number for stored in page.events], page.read_to) == ([4], 4)
    assert database.load(Query(4, 4, 2)) == Page([], 4, 5)


def test_deferred_events_are_read_alone_by_session_and_without_sessions(database: Database) -> None:
    """What is passed over is made findable; of a long range a stretch is read."""
    wires = [encode(event(session, event_time=NOW)) for session in ("a", "b", "a", "c", "a")]
    database.commit(Step(first=1, wires=wires, deferred={2: "b", 3: "a", 4: "c"}))

    def found(**query: Any) -> list[int]:
        return [stored.number for stored in database.load(Query(0, 9, 9, **query)).events]

    assert found(only_deferred=True) == [2, 3, 4]
    assert found(only_deferred=True, without=("b", "c")) == [3]
    assert found(without=("a",)) == [1, 2, 4, 5], "it is not known of what session 1 and 5 are"
    assert found(session_id="a") == [3]
    assert [stored.is_findable for stored in database.load(Query(0, 9, 9)).events] == [
        False,
        *[True] * 3,
        False,
    ]
    database.commit(Step(deferred={1: "a", 5: "a"}))
    assert found(session_id="a") == [1, 3, 5]
    assert found(without=("a",)) == [2, 4]
    count, oldest = database.deferred()
    assert (count, oldest) == (5, database.oldest)
    assert database.load(Query(5, 10**6, 9)) == Page([], 20_005, 5)


def test_a_file_of_version_1_is_brought_to_version_2(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a full disk, in the room of the ballast."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(VERSION_1)
    statements: list[str] = []
    refusals = [True]

    class Connection(sqlite3.Connection):
        def executescript(self, script: str) -> sqlite3.Cursor:
            if "ALTER" in script:
                statements.append(script)
                if refusals.pop():
                    refusals.append(False)
                    full: Any = sqlite3.OperationalError("full")
                    full.sqlite_errorcode = sqlite3.SQLITE_FULL
                    self.execute("BEGIN")
                    raise full
            return super().executescript(script)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **rest: connect(*args, factory=Connection, **rest))
    path.with_suffix(".ballast").write_bytes(b"x" * 2**20)
    with contextlib.closing(Database(path, fsync=False)) as database:
        assert [stored.number for stored in database.load(Query(0, 9, 9)).events] == [1]
        database.commit(Step(deferred={1: "s"}))
        assert [one.number for one in database.load(Query(0, 9, 9, session_id="s")).events] == [1]
    assert len(statements) == 2
    with contextlib.closing(connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)


def test_an_upgrade_that_fails_of_something_else_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is changed."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(VERSION_1)
    monkeypatch.setattr(_database, "_UPGRADE", "BEGIN; SELECT nothing FROM %d;")
    with pytest.raises(NotAJournalError):
        Database(path, fsync=False)


VERSION_1 = """
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA journal_mode = WAL;
CREATE TABLE event(
    seq INTEGER PRIMARY KEY, wire TEXT NOT NULL, at INTEGER NOT NULL, sent INTEGER NOT NULL DEFAULT 0);
CREATE TABLE tally(outcome TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE bad(seq INTEGER PRIMARY KEY, wire BLOB, why TEXT);
PRAGMA application_id = 1380928340;
PRAGMA user_version = 1;
INSERT INTO event VALUES (1, '{"sessionId":"s"}', 1000, 0);
"""


def test_a_failed_step_does_nothing(database: Database) -> None:
    """A number that is in use fails the whole statement."""
    append(database, wire())
    with pytest.raises(sqlite3.IntegrityError):
        database.commit(Step(first=1, wires=[wire()], settled=[1], tally={"delivered": 1}))
    assert numbers(database) == [1]
    assert database.tally() == {"accepted": 1}


def test_what_ten_processes_have_sent_in_vain_is_put_aside(database: Database) -> None:
    """It may be what kills them."""
    append(database, wire(), wire(), wire())
    database.commit(Step(sent={1: MAX_SENDERS, 2: MAX_SENDERS - 1}))
    assert numbers(database) == [2, 3]
    assert (database.count_bad(), database.stored()) == (1, 2)

    database.commit(Step(sent={2: MAX_SENDERS, 3: MAX_SENDERS}))
    assert numbers(database) == []
    assert database.tally()["bad"] == 3


def test_an_erased_session_leaves_nothing_in_the_files(database: Database, path: Path) -> None:
    """Neither in free pages nor in the log, events that were put aside included."""
    append(database, wire("person"), wire("other"), wire("person"))
    database.condemn(3, "a test")
    assert database.erase("person") == 2

    assert numbers(database) == [2]
    assert (database.stored(), database.count_bad()) == (1, 0)
    found = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b'"other"' in found
    assert b'"person"' not in found


def test_an_empty_file_becomes_small(database: Database, path: Path) -> None:
    """By a vacuum; with events left, free pages are given back."""
    append(database, *[wire(metadata={"x": "y" * 1000}) for _ in range(1000)])
    database.commit(Step(settled=list(range(2, 1001)), tally={"delivered": 999}))
    while database.tidy():
        pass
    assert path.stat().st_size < 200_000
    assert numbers(database) == [1]

    append(database, *[wire(metadata={"x": "y" * 1000}) for _ in range(100)], first=2001)
    database.commit(Step(settled=[1, *range(2001, 2101)], tally={"delivered": 101}))
    while database.tidy():
        pass
    assert path.stat().st_size < 100_000
    assert database.used_bytes() < 100_000


def test_a_full_disk_fails_the_step_and_gives_up_the_ballast(database: Database, path: Path) -> None:
    """The ballast is made again when the file is tidied."""
    ballast = path.with_suffix(".ballast")
    assert ballast.stat().st_size == 4 * 1024**2
    database._connection.execute("PRAGMA max_page_count = 10")
    with pytest.raises(sqlite3.OperationalError) as caught:
        append(database, *[wire(metadata={"x": "y" * 1000}) for _ in range(100)])
    assert explain(caught.value) == "the disk is full"
    assert not ballast.exists()

    database._connection.execute("PRAGMA max_page_count = 100000")
    append(database, wire())
    assert ballast.exists()


def test_counts_of_a_deleted_file_are_kept(database: Database) -> None:
    """They are added to the own ones."""
    append(database, wire())
    database.fold({"accepted": 3, "delivered": 3})
    assert database.tally() == {"accepted": 4, "delivered": 3}
    assert database.stored() == 1


def test_a_newer_version_is_refused(path: Path) -> None:
    """Whatever it means."""
    with opened(path) as database:
        database._connection.execute("PRAGMA user_version = 3")
    with pytest.raises(NewerVersionError):
        Database(path, fsync=False)


@pytest.mark.parametrize(
    "content", [b"no database at all" * 100, b"SQLite format 3\x00" + b"\xff" * 4000], ids=["text", "header"]
)
def test_another_file_is_no_journal(path: Path, content: bytes) -> None:
    """Neither text nor a broken header."""
    path.write_bytes(content)
    with pytest.raises(NotAJournalError):
        Database(path, fsync=False)


def test_another_programs_database_is_no_journal(path: Path) -> None:
    """Its application id says so; and a journal without its tables is none either."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE other(x)")
    with pytest.raises(NotAJournalError):
        Database(path, fsync=False)
    path.unlink()
    with opened(path) as database:
        database._connection.execute("DROP TABLE event")
    with pytest.raises(NotAJournalError):
        Database(path, fsync=False)


def test_a_directory_cannot_be_opened(tmp_path: Path) -> None:
    """The error is SQLite's own, and is explained without its text."""
    (tmp_path / "dir.journal").mkdir()
    with pytest.raises(sqlite3.Error) as caught:
        Database(tmp_path / "dir.journal", fsync=False)
    assert explain(caught.value) in ("the file cannot be opened", "the disk failed (I/O error)")


def test_a_file_has_one_owner(database: Database, path: Path) -> None:
    """Another program cannot open it."""
    assert database.last == 0
    with pytest.raises(sqlite3.OperationalError) as caught:
        Database(path, fsync=False)
    assert explain(caught.value) == "the file is in use by another program"


def test_errors_are_explained_without_what_they_quote() -> None:
    """SQLite can quote an event."""
    assert explain(OSError(28, "No space left on device")) == "No space left on device"
    assert explain(OSError()) == "OSError"
    assert explain(sqlite3.OperationalError("Could not decode 'secret'")) == "OperationalError"


def test_a_damaged_file_is_put_aside_and_read_as_far_as_it_can_be(path: Path) -> None:
    """From both ends; what is lost is counted."""
    with opened(path) as database:
        append(database, *[wire(metadata={"x": "y" * 1000}) for _ in range(400)])
        database.commit(Step(sent={400: 1}))
    content = bytearray(path.read_bytes())
    page = 4096
    middle = len(content) // page // 2 * page
    content[middle : middle + page] = b"\xff" * page
    path.write_bytes(content)

    database, aside, count = rescue(path, fsync=False)
    with contextlib.closing(database):
        assert 300 <= count < 400
        found = database.load(Query(0, 10**4, 1000)).events
        assert [stored.number for stored in found] == sorted(stored.number for stored in found)
        assert (found[0].number, found[-1].number, found[-1].sent) == (1, 400, 1)
        assert database.stored() == count == len(found)
        assert database.tally()["accepted"] == 400
    assert ".corrupt-" in aside.name
    assert aside.exists()


def test_a_file_that_cannot_be_read_at_all_yields_an_empty_one(path: Path) -> None:
    """With its log put aside beside it."""
    path.write_bytes(b"no database at all" * 100)
    path.with_name(f"{path.name}-wal").write_bytes(b"log")
    database, aside, count = rescue(path, fsync=False)
    with contextlib.closing(database):
        assert (count, database.stored()) == (0, 0)
    assert aside.with_name(f"{aside.name}-wal").read_bytes() == b"log"


def test_rows_that_are_no_events_are_not_rescued(path: Path) -> None:
    """A row whose text is no UTF-8, or no text."""
    with opened(path) as database:
        append(database, wire(), wire(), wire())
        database._connection.execute("UPDATE event SET wire = CAST(x'ff' AS TEXT) WHERE seq = 1")
        database._connection.execute("UPDATE event SET at = 'never' WHERE seq = 2")
    database, _, count = rescue(path, fsync=False)
    with contextlib.closing(database):
        assert (count, numbers(database)) == (1, [3])


@pytest.mark.parametrize("where", ["frame", "middle", "last byte"])
def test_a_log_that_was_cut_costs_the_last_commits_only(path: Path, where: str) -> None:
    """At each frame, and within one: what was written before is there, and whole."""
    with opened(path) as database:
        for number in range(1, 9):
            append(database, wire(), first=number)
        log = path.with_name(f"{path.name}-wal").read_bytes()
        content = path.read_bytes()
    frame = 24 + 4096
    ends = range(32, len(log) + 1, frame)
    shift = {"frame": 0, "middle": frame // 2, "last byte": -1}[where]
    before = 0
    for end in ends:
        copy = path.with_name(f"copy-{end}.journal")
        copy.write_bytes(content)
        copy.with_name(f"{copy.name}-wal").write_bytes(log[: max(0, end + shift)])
        if end + shift < 32 + 2 * frame:  # The schema is not there yet.
            continue
        try:
            with contextlib.closing(Database(copy, fsync=False)) as database:
                found = numbers(database)
        except NotAJournalError:
            assert before == 0
            continue
        assert found == list(range(1, len(found) + 1))
        assert len(found) >= before
        assert database is not None
        before = len(found)
    assert before >= 7


def test_a_statement_that_fails_otherwise_leaves_the_ballast(database: Database, path: Path) -> None:
    """It is for a full disk."""
    with pytest.raises(sqlite3.OperationalError):
        append(database, b"{")
    assert path.with_suffix(".ballast").exists()


def test_nothing_is_appended_without_room_for_a_ballast(
    database: Database, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of the disk is for deletions."""
    append(database, wire())

    def refuse(descriptor: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rokt_events_async.journal._database._allocate", refuse)
    database._make_room()
    with pytest.raises(OSError, match="No space left"):
        append(database, wire(), first=2)
    database.commit(Step(sent={1: 1}))
    database.commit(Step(settled=[1], tally={"delivered": 1}))
    assert database.stored() == 0
    assert not path.with_suffix(".ballast").exists()


def test_an_empty_file_beside_a_log_is_no_journal(path: Path) -> None:
    """SQLite would delete the log."""
    open_private(path).close()
    path.with_name(f"{path.name}-wal").write_bytes(b"x" * 100)
    with pytest.raises(NotAJournalError):
        Database(path, fsync=False)
    database, _, count = rescue(path, fsync=False)
    database.close()
    assert count == 0


def test_an_interruption_while_a_file_is_opened_closes_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is."""

    def interrupt(self: Database) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Database, "_make_ballast", interrupt)
    open_private(path).close()
    with pytest.raises(KeyboardInterrupt):
        Database(path, fsync=False)


def test_an_empty_file_is_deleted_and_no_other(database: Database, path: Path) -> None:
    """Its log and ballast too."""
    append(database, wire())
    with pytest.raises(AssertionError, match="a file with events is not deleted"):
        database.delete()
    database.commit(Step(settled=[1], tally={"delivered": 1}))
    database.delete()
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("is_aside", [True, False])
def test_a_rescue_on_which_a_crash_has_come_is_finished(path: Path, *, is_aside: bool) -> None:
    """The new file is complete once the damaged one is aside."""
    made = path.with_suffix(".rescued")
    made.write_bytes(b"new")
    if not is_aside:
        path.write_bytes(b"damaged")
    finish_rescue(made)
    assert path.read_bytes() == (b"new" if is_aside else b"damaged")
    assert not made.exists()
