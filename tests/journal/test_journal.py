"""A journal as an application uses it: over real files, and the sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from rokt_events_async import (
    DeliveryDeferredError,
    DeliveryFailedError,
    Emitter,
    EmitterClosedError,
    InvalidSettingError,
    Journal,
    JournalError,
    QueueFullError,
    RetryPolicy,
)
from rokt_events_async._pipeline.store import Query, Step
from rokt_events_async.journal import choose_journal
from rokt_events_async.journal._database import Database
from rokt_events_async.journal._depot import FileDepot, directory_for, open_depot
from rokt_events_async.journal._ownership import FileLock, is_owned
from rokt_events_async.journal.files import erase_session, list_files
from rokt_events_async.sandbox import Sandbox
from tests.diary import Diary
from tests.programs import run_script
from tests.samples import CREDENTIALS, SECRET, emitter_for, event

pytestmark = pytest.mark.every_loop

NOWHERE = "http://127.0.0.1:9/v1/partner/events"
"""Nothing listens there."""


def nowhere(journal: Journal | Path, **settings: Any) -> Emitter:
    """An emitter in an outage."""
    options = {"endpoint": NOWHERE, "journal": journal, "close_timeout": 5.0, "observers": []} | settings
    return Emitter(CREDENTIALS, **options)


async def leave(directory: Path, count: int = 3, **settings: Any) -> None:
    """Leaves events in a journal, for a sandbox that is yet to come."""
    async with nowhere(directory, **settings) as emitter:
        await asyncio.gather(*(emitter.track(event(f"s{number}")) for number in range(count)))


def journal_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*/*.journal"))


def list_corrupt(directory: Path) -> list[Path]:
    return [path for path in directory.glob("*/*.corrupt-*") if not path.name.endswith(("-wal", "-shm"))]


async def until(condition: Any) -> None:
    """Waits until something is so; the suite's time limit ends what never is."""
    while not condition():
        await asyncio.sleep(0.01)


# Settings.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"directory": ""}, "directory must be a non-empty path, got ''"),
        ({"directory": 5}, "directory must be a non-empty path, got 5"),
        ({"fsync": 1}, "fsync must be True or False, got 1"),
        ({"max_bytes": 5}, "max_bytes must be a whole number >= 16777216, got 5"),
        ({"on_error": "ignore"}, "on_error must be one of 'raise', 'memory', got 'ignore'"),
    ],
)
async def test_wrong_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    """With their name, value, and what would be right."""
    with pytest.raises(InvalidSettingError, match=message):
        Journal(**({"directory": "x"} | arguments))


async def test_a_journal_is_refused_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no flock."""
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(InvalidSettingError, match="cannot be used on Windows"):
        Journal("x")


async def test_a_journal_is_chosen_from_an_object_a_path_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty variable counts as none."""
    given = Journal(tmp_path)
    assert choose_journal(given) is given
    assert choose_journal(str(tmp_path)) == choose_journal(tmp_path) == given
    monkeypatch.setenv("ROKT_JOURNAL", "")
    assert choose_journal(None) is None
    monkeypatch.setenv("ROKT_JOURNAL", str(tmp_path))
    assert choose_journal(None) == given
    wrong: Any = 5
    with pytest.raises(InvalidSettingError, match="must be a Journal, a path, or False for none, got 5"):
        choose_journal(wrong)
    with pytest.raises(InvalidSettingError, match="directory must be a non-empty path, got ''"):
        choose_journal("")


async def test_the_delivery_deadline_is_three_days(tmp_path: Path) -> None:
    """Unless the policy names one."""
    assert nowhere(tmp_path)._settings.deadline == 3 * 24 * 3600
    assert nowhere(tmp_path, retry=RetryPolicy(deadline=5.0))._settings.deadline == 5.0


# From acceptance to the outcome.


async def test_an_event_is_on_disk_when_track_returns(sandbox: Sandbox, tmp_path: Path) -> None:
    """And gone once its outcome is told."""
    async with emitter_for(sandbox, journal=tmp_path, flush_interval=30) as emitter:
        delivery = await emitter.track(event())
        assert [file.stored for file in list_files(tmp_path)] == [1]
        assert emitter.stats.journal is not None
        assert emitter.stats.journal.stored == 1
        await emitter.flush()
        assert (await delivery).maybe_duplicate is False
        stats = emitter.stats
        assert stats.journal is not None
        assert (stats.delivered, stats.journal.stored, stats.journal.failures) == (1, 0, 0)
        assert emitter.health.stats.journal is not None
    assert [file.tally for file in list_files(tmp_path)] == [{"accepted": 1, "delivered": 1}]


async def test_an_outage_defers_events_to_the_next_process(sandbox: Sandbox, tmp_path: Path) -> None:
    """No outcome, a hand-over: told as such, and delivered by the next."""
    diary = Diary()
    async with nowhere(tmp_path, observers=[diary]) as emitter:
        deliveries = await asyncio.gather(*(emitter.track(event(f"s{number}")) for number in range(30)))
        nowait = emitter.track_nowait(event("s0"))
    report = await emitter.aclose()
    assert (report.deferred, report.undelivered, report.journal) == (31, (), str(tmp_path))
    for delivery in (*deliveries, nowait):
        with pytest.raises(DeliveryDeferredError, match="in the journal") as caught:
            await delivery
        assert caught.value.event is delivery.event
    assert len(diary.of("deferred")) == 31

    where = directory_for(tmp_path, sandbox.url, sandbox.credentials.tag_id)
    directory_for(tmp_path, NOWHERE, CREDENTIALS.tag_id).rename(where)
    later = Diary()
    async with emitter_for(sandbox, journal=tmp_path, observers=[later]) as emitter:
        await until(lambda: emitter.stats.delivered == 31)
        assert emitter.stats.accepted == 0
        assert emitter.stats.journal is not None
        assert emitter.stats.journal.recovered == 31
    (recovered,) = later.of("recovered")
    assert recovered[0] == 31
    assert isinstance(recovered[1], datetime)
    assert len(sandbox.events) == 31


async def test_the_age_of_what_an_earlier_process_has_left_counts(tmp_path: Path) -> None:
    """From when it was stored, not from when this process found it: an alert on the age must see it."""
    await leave(tmp_path)
    later = timedelta(hours=1)
    async with nowhere(tmp_path, _clock=lambda: datetime.now(UTC) + later, close_timeout=0) as emitter:
        await emitter.track(event("new"))
        await until(lambda: emitter.stats.pending == 4)
        assert 3600 <= emitter.health.oldest_pending_age < 3700


async def test_none_is_none_whatever_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`False`, for programs whose events are durable already."""
    monkeypatch.setenv("ROKT_JOURNAL", str(tmp_path / "journal"))
    assert choose_journal(False) is None
    with pytest.raises(InvalidSettingError, match="must be a Journal, a path, or False for none, got True"):
        choose_journal(True)  # type: ignore[arg-type]


async def test_a_start_says_where_the_journal_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Once: a misspelled variable would go unseen otherwise."""
    caplog.set_level(logging.INFO)
    async with nowhere(tmp_path):
        assert caplog.text.count(f"accepted events are kept in the journal in {tmp_path}") == 1


async def test_flush_does_not_wait_for_events_of_earlier_processes(tmp_path: Path) -> None:
    """It waits for what this process accepted."""
    await leave(tmp_path)
    async with nowhere(tmp_path) as emitter:
        await until(lambda: emitter.stats.pending == 3)
        assert await emitter.flush(timeout=30)
        assert emitter.stats.pending == 3


async def test_what_an_earlier_process_has_sent_is_flagged(sandbox: Sandbox, tmp_path: Path) -> None:
    """And only that: the flag does not spread over the batch."""
    where = directory_for(tmp_path, sandbox.url, sandbox.credentials.tag_id)
    async with emitter_for(sandbox, journal=tmp_path, flush_interval=30, close_timeout=0) as emitter:
        for _ in range(4):
            await emitter.track(event("one"))
    with contextlib.closing(Database(journal_files(tmp_path)[0], fsync=False)) as database:
        database.commit(Step(sent={2: 1, 3: 1}))
    assert where.exists()

    diary = Diary()
    async with emitter_for(sandbox, journal=tmp_path, observers=[diary]) as emitter:
        await until(lambda: emitter.stats.delivered == 4)
        assert emitter.stats.possible_duplicates == 2
    flags = [receipt.maybe_duplicate for _, receipt in diary.of("delivered")]
    assert flags == [False, True, True, False]


async def test_what_was_sent_ends_unconfirmed_if_the_policy_forbids_to_send_again(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    """Without a request."""
    async with emitter_for(sandbox, journal=tmp_path, flush_interval=30, close_timeout=0) as emitter:
        await emitter.track(event("one"))
        await emitter.track(event("one"))
    with contextlib.closing(Database(journal_files(tmp_path)[0], fsync=False)) as database:
        database.commit(Step(sent={1: 1}))
    retry = RetryPolicy(retry_unconfirmed=False)
    async with emitter_for(sandbox, journal=tmp_path, retry=retry) as emitter:
        await until(lambda: emitter.stats.delivered == 1)
        await until(lambda: emitter.stats.unconfirmed == 1)
    assert len(sandbox.events) == 1


async def test_an_event_that_cannot_be_read_is_put_aside(
    sandbox: Sandbox, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The others go on."""
    async with emitter_for(sandbox, journal=tmp_path, flush_interval=30, close_timeout=0) as emitter:
        for _ in range(3):
            await emitter.track(event("one"))
    with contextlib.closing(Database(journal_files(tmp_path)[0], fsync=False)) as database:
        database._connection.execute("UPDATE event SET wire = '[1]' WHERE seq = 2")
    async with emitter_for(sandbox, journal=tmp_path) as emitter:
        await until(lambda: emitter.stats.delivered == 2)
        await until(lambda: emitter.stats.journal is not None and not emitter.stats.journal.stored)
    assert [(file.bad, file.stored) for file in list_files(tmp_path)] == [(1, 0)]
    assert "event 2 cannot be read and was put aside" in caplog.text


async def test_refused_credentials_do_not_end_an_event(sandbox: Sandbox, tmp_path: Path) -> None:
    """The journal waits for credentials that work; other ones in the next process are told of."""
    from rokt_events_async import Credentials

    wrong = Credentials(pub_id="rpub-other", secret="rsec-other", tag_id=sandbox.credentials.tag_id)
    settings: dict[str, Any] = {"endpoint": sandbox.url, "journal": tmp_path, "observers": []}
    async with Emitter(wrong, retry=RetryPolicy(wait=(0.05, 0.1)), **settings) as emitter:
        await emitter.track(event())
        await until(lambda: emitter.health.state == "credentials_refused")
        await until(lambda: emitter.stats.requests >= 2)
        assert emitter.stats.pending == 1
    assert (await emitter.aclose()).deferred == 1
    async with emitter_for(sandbox, journal=tmp_path) as emitter:
        await until(lambda: emitter.stats.delivered == 1)


async def test_a_change_of_the_pub_id_is_logged(
    sandbox: Sandbox, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The directory is the same: a rotation changes both, and the journal waits for exactly that."""
    await leave(tmp_path)
    about = journal_files(tmp_path)[0].with_name("about.json")
    about.write_text(json.dumps(json.loads(about.read_text()) | {"pub_id": "rpub-before"}))
    await leave(tmp_path)
    assert "written for pub_id 'rpub-before', and is now sent with 'rpub-test'" in caplog.text
    about.write_text("no JSON")
    await leave(tmp_path)
    assert json.loads(about.read_text())["pub_id"] == "rpub-test"


# Files and their owners.


async def test_files_and_directories_are_private_under_any_umask(tmp_path: Path) -> None:
    """Customer data is in them; the secret is not."""
    before = os.umask(0)
    try:
        await leave(tmp_path / "deep" / "journal")
    finally:
        os.umask(before)
    made = list((tmp_path / "deep").rglob("*"))
    assert {path.stat().st_mode & 0o777 for path in made if path.is_dir()} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in made if path.is_file()} == {0o600}
    assert not any(SECRET.encode() in path.read_bytes() for path in made if path.is_file())


async def test_several_emitters_share_a_directory(sandbox: Sandbox, tmp_path: Path) -> None:
    """Each has its own file, and an adopted one is deleted once it is empty."""
    async with emitter_for(sandbox, journal=tmp_path) as one, emitter_for(sandbox, journal=tmp_path) as two:
        await asyncio.gather(one.track(event()), two.track(event()))
        assert len(journal_files(tmp_path)) == 2
    async with emitter_for(sandbox, journal=tmp_path) as emitter:
        await until(lambda: len(journal_files(tmp_path)) == 1)
        await emitter.flush()
    assert [file.tally for file in list_files(tmp_path)] == [{"accepted": 2, "delivered": 2}]


async def test_the_files_of_a_killed_process_are_adopted(sandbox: Sandbox, tmp_path: Path) -> None:
    """Besides the own one, one after the other."""
    script = """
        import asyncio, os, sys
        from rokt_events_async import Credentials, Emitter
        from tests.samples import event

        async def main(url, directory):
            credentials = Credentials("rpub-sandbox", "rsec-sandbox", "sandbox")
            emitter = Emitter(credentials, endpoint=url, journal=directory, flush_interval=60)
            other = Emitter(credentials, endpoint=url, journal=directory, flush_interval=60)
            await emitter.start()
            await other.start()
            for one in (emitter, other):
                for number in range(5):
                    await one.track(event(f"s{number}"))
            os.kill(os.getpid(), 9)

        asyncio.run(main(*sys.argv[1:]))
    """
    credentials = sandbox.credentials
    script = script.replace("rpub-sandbox", credentials.pub_id).replace("rsec-sandbox", credentials.secret)
    script = script.replace('"sandbox"', repr(credentials.tag_id))
    status, _, err = await asyncio.to_thread(run_script, script, sandbox.url, str(tmp_path))
    assert (status, err) == (-9, "")
    async with emitter_for(sandbox, journal=tmp_path) as emitter:
        await until(lambda: emitter.stats.delivered == 10)
        await until(lambda: len(journal_files(tmp_path)) == 1)
    assert len(sandbox.events) == 10


async def test_eight_emitters_race_to_adopt(sandbox: Sandbox, tmp_path: Path) -> None:
    """Each event is delivered by one of them, once."""
    for _ in range(3):
        async with emitter_for(sandbox, journal=tmp_path, flush_interval=30, close_timeout=0) as emitter:
            await asyncio.gather(*(emitter.track(event(f"s{number}")) for number in range(20)))
    async with contextlib.AsyncExitStack() as stack:
        racing = [emitter_for(sandbox, journal=tmp_path) for _ in range(8)]
        await asyncio.gather(*(stack.enter_async_context(emitter) for emitter in racing))
        await until(lambda: sum(emitter.stats.delivered for emitter in racing) == 60)
    assert len(sandbox.events) == 60
    assert len({one["parentGuid"] for one in sandbox.events}) == 60


async def test_a_newer_file_is_left_alone(
    sandbox: Sandbox, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With one warning, and another file is used."""
    await leave(tmp_path)
    (path,) = journal_files(tmp_path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 3")
    await leave(tmp_path)
    assert len(journal_files(tmp_path)) == 2
    assert caplog.text.count("is left alone: it was written by a newer version") == 1


@pytest.mark.parametrize("when", ["at the start", "meanwhile"])
async def test_a_damaged_file_is_put_aside(
    sandbox: Sandbox, tmp_path: Path, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An error is logged, and a new file is used; what could be read is sent."""
    async with emitter_for(sandbox, journal=tmp_path, flush_interval=30, close_timeout=0) as emitter:
        await asyncio.gather(*(emitter.track(event(f"s{n}", metadata={"x": "y" * 900})) for n in range(400)))
    (path,) = journal_files(tmp_path)
    content = bytearray(path.read_bytes())
    if when == "at the start":
        content[:100] = b"\xff" * 100
    else:
        middle = len(content) // 8192 * 4096
        content[middle : middle + 4096] = b"\xff" * 4096
    path.write_bytes(content)
    async with emitter_for(sandbox, journal=tmp_path) as emitter:
        delivery = await emitter.track(event())
        await delivery
        if when == "meanwhile":
            await until(lambda: emitter.stats.delivered > 380)
        await until(lambda: emitter.stats.journal is not None and not emitter.stats.journal.stored)
    assert "is damaged: it was put aside as" in caplog.text
    assert len(list_corrupt(tmp_path)) == 1


async def test_events_of_other_endpoints_are_told_of_once(
    sandbox: Sandbox, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Only if nothing that lives sends them, and only if there are some."""
    async with emitter_for(sandbox, journal=tmp_path) as emitter:
        await (await emitter.track(event()))
        async with nowhere(tmp_path) as other:
            await other.track(event())
        assert "other endpoints" not in caplog.text
    async with emitter_for(sandbox, journal=tmp_path):
        assert caplog.text.count("holds events of other endpoints or tag ids") == 1
    for path in journal_files(tmp_path):
        if path.parent != directory_for(tmp_path, sandbox.url, sandbox.credentials.tag_id):
            path.write_bytes(b"no database" * 100)
    caplog.clear()
    async with emitter_for(sandbox, journal=tmp_path):
        assert "other endpoints" not in caplog.text


# Failures.


async def test_a_directory_that_cannot_be_used_fails_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the path and the system's own words."""
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(JournalError, match=r"the journal cannot be opened: .*: (File exists|Not a dir)"):
        await nowhere(file).start()
    monkeypatch.setattr(
        "rokt_events_async.journal._depot._read_mounts", lambda: "22 1 8:1 / / rw - nfs4 server:/x rw\n"
    )
    with pytest.raises(JournalError, match=r"network file system \(nfs4\): use a local disk") as caught:
        await nowhere(tmp_path).start()
    assert caught.value.path.startswith(str(tmp_path))


class Broken:
    """Lets a database fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: Exception | None = None
        self.fails: Callable[[Step], object] = lambda _: True
        """Which steps fail."""
        self.gate = threading.Event()
        self.gate.set()
        original = Database.commit

        def commit(database: Database, step: Step) -> None:
            self.gate.wait(20)
            if self.error is not None and self.fails(step):
                raise self.error
            original(database, step)

        monkeypatch.setattr(Database, "commit", commit)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Broken]:
    made = Broken(monkeypatch)
    yield made
    made.gate.set()


async def test_an_event_that_cannot_be_stored_is_not_accepted(
    sandbox: Sandbox, tmp_path: Path, broken: Broken, caplog: pytest.LogCaptureFixture
) -> None:
    """With one clear error; later ones are stored again."""
    async with emitter_for(sandbox, journal=tmp_path) as emitter:
        broken.error = OSError(28, "No space left on device")
        with pytest.raises(JournalError, match=r"not accepted: .*journal: No space left on device") as caught:
            await emitter.track(event())
        assert caught.value.reason == "No space left on device"
        with pytest.raises(JournalError):
            await emitter.track(event())
        assert emitter.health.problems == ("journal_failed",)
        assert emitter.stats.pending == emitter.stats.accepted == 0
        broken.error = None
        await (await emitter.track(event()))
        assert not emitter.health.problems
        assert emitter.stats.journal is not None
        assert emitter.stats.journal.failures == 2
    assert caplog.text.count("the journal could not be written") == 1
    assert "the journal can be written again" in caplog.text


async def test_an_event_goes_on_in_memory_if_that_is_wanted(
    sandbox: Sandbox, tmp_path: Path, broken: Broken
) -> None:
    """With `on_error="memory"`."""
    async with emitter_for(sandbox, journal=Journal(tmp_path, on_error="memory")) as emitter:
        broken.error = OSError(28, "No space left on device")
        await (await emitter.track(event()))
        await emitter.track_nowait(event())
        assert emitter.stats.delivered == 2
        broken.error = None
    assert len(sandbox.events) == 2


async def test_a_request_is_not_sent_unmarked(sandbox: Sandbox, tmp_path: Path, broken: Broken) -> None:
    """It waits for the disk."""
    retry = RetryPolicy(wait=(0.0, 0.0))
    async with emitter_for(sandbox, journal=tmp_path, flush_interval=0.05, retry=retry) as emitter:
        delivery = await emitter.track(event())
        broken.error = OSError(5, "Input/output error")
        await until(lambda: emitter.stats.journal is not None and emitter.stats.journal.failures >= 2)
        assert not sandbox.requests
        broken.error = None
        await delivery
        assert emitter.stats.requests == 1


async def test_an_outcome_waits_for_the_disk(sandbox: Sandbox, tmp_path: Path, broken: Broken) -> None:
    """It is told after the commit."""
    async with emitter_for(sandbox, journal=tmp_path, flush_interval=0) as emitter:
        broken.error, broken.fails = OSError(5, "Input/output error"), lambda step: step.settled
        delivery = await emitter.track(event())
        await until(lambda: emitter.stats.journal is not None and emitter.stats.journal.failures)
        assert len(sandbox.events) == 1
        assert not delivery.done()
        broken.error = None
        await delivery


async def test_a_close_tells_what_the_disk_does_not_take(
    sandbox: Sandbox, tmp_path: Path, broken: Broken, caplog: pytest.LogCaptureFixture
) -> None:
    """With an error logged, and within its time."""
    emitter = emitter_for(sandbox, journal=tmp_path, flush_interval=0, close_timeout=0.3)
    async with emitter:
        broken.error, broken.fails = OSError(5, "Input/output error"), lambda step: step.settled
        delivery = await emitter.track(event())
    assert (await delivery).attempts == 1
    assert "the outcomes of 1 events were told all the same" in caplog.text


async def test_a_close_does_not_wait_for_a_disk_that_hangs(
    sandbox: Sandbox, tmp_path: Path, broken: Broken
) -> None:
    """A caller hears that it is not known whether its event is stored."""
    emitter = emitter_for(sandbox, journal=tmp_path, close_timeout=0.1)
    await emitter.start()
    broken.gate.clear()
    waiting = [asyncio.create_task(emitter.track(event())) for _ in range(2)]
    await asyncio.sleep(0)
    nowait = emitter.track_nowait(event())
    await asyncio.sleep(0.05)
    late = asyncio.create_task(emitter.track(event()))
    await asyncio.sleep(0.05)
    report = await emitter.aclose()
    assert (report.unconfirmed, report.deferred) == (1, 0)
    assert str(nowait.exception()).startswith("unconfirmed, perhaps accepted (the emitter was closed before")
    for task in waiting:
        with pytest.raises(JournalError, match="not known whether the event was stored"):
            await task
    with pytest.raises(JournalError, match=r"was not accepted: .*: the disk had not answered"):
        await late
    broken.gate.set()


async def test_a_cancelled_call_says_that_the_event_may_be_stored(
    sandbox: Sandbox, tmp_path: Path, broken: Broken
) -> None:
    """It is stored, sent and counted."""
    async with emitter_for(sandbox, journal=tmp_path) as emitter:
        broken.gate.clear()
        call = asyncio.create_task(emitter.track(event()))
        await asyncio.sleep(0.02)
        call.cancel()
        with pytest.raises(asyncio.CancelledError, match="it may be stored, and is then sent and counted"):
            await call
        broken.gate.set()
        await until(lambda: emitter.stats.delivered == 1)


async def test_a_fault_of_the_library_is_a_failure_like_others(
    sandbox: Sandbox, tmp_path: Path, broken: Broken, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread goes on."""
    async with emitter_for(sandbox, journal=tmp_path) as emitter:
        broken.error = RuntimeError("secret text")
        with pytest.raises(JournalError, match="a fault in the library: RuntimeError"):
            await emitter.track(event())
        broken.error = None
        await (await emitter.track(event()))
    assert "secret text" not in caplog.text


async def test_a_full_journal_does_as_when_full_says(sandbox: Sandbox, tmp_path: Path) -> None:
    """The error names the bound."""
    journal = Journal(tmp_path, max_bytes=16 * 1024**2, fsync=False)
    settings: dict[str, Any] = {"journal": journal, "flush_interval": 60, "close_timeout": 0}
    async with emitter_for(sandbox, when_full="raise", **settings) as emitter:
        while emitter.stats.journal is None or emitter.stats.journal.file_bytes <= journal.max_bytes:
            calls = [emitter.track(event(f"s{number}", metadata={"x": "y" * 9000})) for number in range(100)]
            await asyncio.gather(*calls, return_exceptions=True)
        full = r"the journal is full: \d+ bytes in .*, max_bytes is 16777216"
        with pytest.raises(QueueFullError, match=full):
            await emitter.track(event())
        with pytest.raises(QueueFullError, match="the journal is full"):
            emitter.track_nowait(event())
        assert emitter.stats.pending > 200
        async with emitter_for(sandbox, when_full="drop", observers=[], **settings) as other:
            delivery = await other.track(event())  # The directory is measured at the start too.
            error = delivery.exception()
            assert error is not None
            assert str(error).startswith("dropped: the journal is full")
        emitter._engine.recorder.depot._settings = Journal(tmp_path)  # type: ignore[union-attr]
        await until(lambda: not emitter._engine.recorder.is_full or emitter._engine.recorder.measure())  # type: ignore[union-attr]
        await emitter.track(event())


async def test_on_accepted_runs_in_the_context_of_the_call(sandbox: Sandbox, tmp_path: Path) -> None:
    """Although the commit accepts the event."""
    import contextvars

    from rokt_events_async import Observer

    variable = contextvars.ContextVar("variable", default="none")
    seen = []

    class Eye(Observer):
        def on_accepted(self, delivery: Any) -> None:
            seen.append(variable.get())

    async with emitter_for(sandbox, journal=tmp_path, observers=[Eye()]) as emitter:
        variable.set("request")
        await emitter.track(event())
    assert seen == ["request"]


# Starting and closing.


async def test_two_starts_at_once_open_one_journal(sandbox: Sandbox, tmp_path: Path) -> None:
    """And a close meanwhile leaves nothing open."""
    emitter = emitter_for(sandbox, journal=tmp_path)
    await asyncio.gather(emitter.start(), emitter.start())
    assert len(journal_files(tmp_path)) == 1
    await emitter.aclose()

    emitter = emitter_for(sandbox, journal=tmp_path)
    starting = asyncio.create_task(emitter.start())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await emitter.aclose()
    with pytest.raises(EmitterClosedError):
        await starting
    (path,) = journal_files(tmp_path)
    lock = FileLock(path.with_suffix(".lock"))
    assert lock.acquire(wait=True)
    lock.release()


async def test_a_cancelled_start_leaves_nothing_open(sandbox: Sandbox, tmp_path: Path) -> None:
    """The next one opens the same file."""
    emitter = emitter_for(sandbox, journal=tmp_path)
    starting = asyncio.create_task(emitter.start())
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    for thread in threading.enumerate():
        if thread.name == "rokt-events-journal":
            await asyncio.to_thread(thread.join)
    async with emitter:
        await (await emitter.track(event()))
    assert len(journal_files(tmp_path)) == 1


async def test_an_emitter_that_is_not_closed_names_its_journal(tmp_path: Path) -> None:
    """Its events are not lost."""
    script = """
        import asyncio, sys
        from tests.samples import CREDENTIALS, event
        from rokt_events_async import Emitter

        async def main():
            emitter = Emitter(CREDENTIALS, endpoint="http://127.0.0.1:9/", journal=sys.argv[1])
            await emitter.start()
            await emitter.track(event())
            return emitter

        emitter = asyncio.run(main())
    """
    status, _, err = await asyncio.to_thread(run_script, script, str(tmp_path))
    assert status == 0
    assert "1 event of it is in the journal" in err
    assert "will be lost" not in err
    assert [file.stored for file in list_files(tmp_path)] == [1]


FORK = """
    import asyncio, gc, os, sys
    from tests.samples import CREDENTIALS, event
    from rokt_events_async import Emitter
    from rokt_events_async.sandbox import Sandbox

    async def main(directory):
        async with Sandbox() as box:
            async with Emitter(box.credentials, endpoint=box.url, journal=directory) as emitter:
                for round in range(30):
                    calls = [asyncio.create_task(emitter.track(event(f"s{n}"))) for n in range(20)]
                    await asyncio.sleep(0)
                    child = os.fork()
                    if child == 0:
                        gc.collect()
                        os._exit(0)
                    assert os.waitpid(child, 0)[1] == 0
                    await asyncio.gather(*calls)
                await emitter.flush()
                print(emitter.stats.delivered, len(box.events))

    asyncio.run(main(sys.argv[1]))
"""


async def test_forks_harm_nothing(tmp_path: Path) -> None:
    """While the thread writes: neither child nor parent hangs, and no log is deleted."""
    status, out, err = await asyncio.to_thread(run_script, FORK, str(tmp_path))
    assert (status, out.split()) == (0, ["600", "600"]), err
    assert [file.tally["delivered"] for file in list_files(tmp_path)] == [600]


# Looking at files, and erasing.


async def test_files_are_listed_with_what_they_hold(sandbox: Sandbox, tmp_path: Path) -> None:
    """Those of a process that is alive too; and what cannot be read says why."""
    async with emitter_for(sandbox, journal=tmp_path, flush_interval=60, close_timeout=0) as emitter:
        await emitter.track(event())
        (file,) = list_files(tmp_path)
        assert (file.is_owned, file.stored, file.sent, file.bad, file.problem) == (True, 1, 0, 0, None)
        assert (file.deferred, file.oldest_deferred) == (0, None)
        assert (file.endpoint, file.tag_id) == (sandbox.url, sandbox.credentials.tag_id)
        assert file.oldest is not None
        assert (datetime.now(UTC) - file.oldest).total_seconds() < 60
    (file,) = list_files(tmp_path)
    assert not file.is_owned

    with contextlib.closing(sqlite3.connect(file.path)) as connection:
        connection.execute("PRAGMA user_version = 3")
    assert list_files(tmp_path)[0].problem == "written by a newer version of the library"
    file.path.write_bytes(b"no database" * 100)
    file.path.with_name("about.json").write_text("[1]")
    assert list_files(tmp_path)[0].problem == "damaged, or no journal"
    assert list_files(tmp_path)[0].endpoint == "?"
    file.path.with_name("about.json").unlink()
    file.path.unlink()
    file.path.mkdir()
    assert list_files(tmp_path)[0].problem == "Is a directory"
    with pytest.raises(JournalError, match="no such directory"):
        list_files(tmp_path / "none")


async def test_a_session_is_erased_where_the_owner_has_ended(sandbox: Sandbox, tmp_path: Path) -> None:
    """The other files are named."""
    settings: dict[str, Any] = {"journal": tmp_path, "flush_interval": 60, "close_timeout": 0}
    async with emitter_for(sandbox, **settings) as emitter:
        await emitter.track(event("person"))
        await emitter.track(event("other"))
        erasure = erase_session(tmp_path, "person")
        assert (erasure.erased, list(erasure.skipped)) == (0, journal_files(tmp_path))
    erasure = erase_session(tmp_path, "person")
    assert (erasure.erased, erasure.skipped) == (1, ())
    assert [file.stored for file in list_files(tmp_path)] == [1]
    (path,) = journal_files(tmp_path)
    path.write_bytes(b"no database" * 100)
    assert erase_session(tmp_path, "person").skipped == (path,)
    aside = path.with_suffix(".corrupt-1")
    path.rename(aside)
    assert erase_session(tmp_path, "person").skipped == (aside,)


# The depot by itself.


async def test_an_adopted_file_with_events_put_aside_is_kept(sandbox: Sandbox, tmp_path: Path) -> None:
    """It is not adopted again."""
    one = emitter_for(sandbox, journal=tmp_path, flush_interval=60, close_timeout=0)
    two = emitter_for(sandbox, journal=tmp_path, flush_interval=60, close_timeout=0)
    async with one, two:
        await one.track(event())
        await two.track(event())
        await two.track(event())
    for path in journal_files(tmp_path):
        with contextlib.closing(Database(path, fsync=False)) as database:
            database.condemn(1, "a test")
    async with emitter_for(sandbox, journal=tmp_path) as emitter:
        await until(lambda: emitter.stats.delivered == 1)
        await asyncio.sleep(0.1)
        assert len(journal_files(tmp_path)) == 2
    assert sum(file.bad for file in list_files(tmp_path)) == 2


async def test_a_directory_that_is_gone_fails_what_is_asked(tmp_path: Path) -> None:
    """Adoption, for example."""
    depot = await open_depot(Journal(tmp_path / "j"), endpoint="e", tag_id="t", pub_id="p")
    assert isinstance(depot, FileDepot)
    depot._where = tmp_path / "none"
    told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    depot.adopt(told.set_result)
    assert "No such file" in str(await told)
    await depot.aclose()


@pytest.mark.parametrize("more", [[], ["--outages"]])
def test_kills(more: list[str]) -> None:
    """Twenty processes are killed: nothing is lost, told twice or overtaken, every duplicate flagged."""
    options = ["--kills", "10", "--workers", "3", "--longest", "0.3", *more]
    done = subprocess.run(
        [sys.executable, "-m", "tests.kills", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 lost, 0 told twice" in done.stdout
    assert logging.getLogger("rokt_events_async").level == logging.NOTSET


async def test_an_odd_file_stops_nothing(
    sandbox: Sandbox, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A directory of that name, for example: it is left alone, with a warning."""
    await leave(tmp_path)
    where = directory_for(tmp_path, NOWHERE, CREDENTIALS.tag_id)
    (where / "0.journal").mkdir()
    await leave(tmp_path)
    assert f"the journal file {where / '0.journal'} is left alone: " in caplog.text
    assert sum(file.stored for file in list_files(tmp_path)) == 6


async def test_events_that_too_many_processes_have_sent_are_told_of(
    sandbox: Sandbox, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are put aside."""
    async with emitter_for(sandbox, journal=tmp_path, flush_interval=30, close_timeout=0) as emitter:
        await emitter.track(event())
        await emitter.track(event())
    with contextlib.closing(Database(journal_files(tmp_path)[0], fsync=False)) as database:
        database.commit(Step(sent={1: 10}))
    async with emitter_for(sandbox, journal=tmp_path) as emitter:
        await until(lambda: emitter.stats.delivered == 1)
    assert "1 events were put aside, because too many processes have sent them" in caplog.text


async def test_ten_starts_in_an_outage_put_nothing_aside(tmp_path: Path) -> None:
    """A process that ends in good order is not what its events have killed."""
    retry = RetryPolicy(wait=(0.0, 0.01))
    await leave(tmp_path, 1)
    with contextlib.closing(Database(journal_files(tmp_path)[0], fsync=False)) as database:
        database.commit(Step(sent={1: 1}))
    for _ in range(11):
        async with nowhere(tmp_path, retry=retry, flush_interval=0) as emitter:
            await until(lambda: emitter.stats.requests)
    with contextlib.closing(Database(journal_files(tmp_path)[0], fsync=False)) as database:
        assert [stored.sent for stored in database.load(Query(0, 10, 10)).events] == [1]


async def test_a_rescue_that_fails_is_tried_again(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls are refused meanwhile."""
    async with emitter_for(sandbox, journal=tmp_path, flush_interval=30, close_timeout=0) as emitter:
        await emitter.track(event("one"))
        depot = emitter._engine.recorder.depot  # type: ignore[union-attr]
        damage: Any = sqlite3.DatabaseError("malformed")
        damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        original, problems = Database.commit, [damage, OSError(28, "No space")]

        def commit(database: Database, step: Step) -> None:
            if len(problems) == 2:
                raise problems.pop(0)
            original(database, step)

        def fail(path: Path) -> Database:
            monkeypatch.undo()
            raise problems.pop()

        monkeypatch.setattr(Database, "commit", commit)
        monkeypatch.setattr(depot, "_rescue", fail)
        with pytest.raises(JournalError, match="No space"):
            await emitter.track(event("one"))
        await emitter.track(event("one"))
        assert [file.stored for file in list_files(tmp_path)] == [2]


async def test_a_file_of_another_kind_fails_to_open_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails while a file is described closes it again."""
    await leave(tmp_path)
    monkeypatch.setattr(Database, "last", property(lambda self: 1 / 0))
    with pytest.raises(JournalError, match="a fault in the library: ZeroDivisionError"):
        await nowhere(tmp_path).start()
    monkeypatch.undo()
    async with nowhere(tmp_path) as emitter:
        assert emitter.stats.journal is not None
        assert emitter.stats.journal.stored == 3


async def test_a_directory_that_is_locked_for_long_fails_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner may be stopped."""
    await leave(tmp_path)
    monkeypatch.setattr("rokt_events_async.journal._ownership._PATIENCE", 0.05)
    lock = FileLock(directory_for(tmp_path, NOWHERE, CREDENTIALS.tag_id) / "lock")
    assert lock.acquire(wait=False)
    with pytest.raises(JournalError, match="another process has held"):
        await nowhere(tmp_path).start()
    lock.release()


async def test_a_rescue_is_finished_at_the_start(tmp_path: Path) -> None:
    """The file that it had made is used."""
    await leave(tmp_path)
    (path,) = journal_files(tmp_path)
    path.rename(path.with_suffix(".rescued"))
    lock = FileLock(path.with_suffix(".lock"))
    assert lock.acquire(wait=False)  # Its owner is in the middle of it.
    async with nowhere(tmp_path) as emitter:
        assert emitter.stats.journal is not None
        assert emitter.stats.journal.stored == 0
    lock.release()
    for other in journal_files(tmp_path):
        other.unlink()
    async with nowhere(tmp_path) as emitter:
        assert emitter.stats.journal is not None
        assert emitter.stats.journal.stored == 3


async def test_an_event_whose_deadline_passes_while_it_is_marked_is_not_sent(
    sandbox: Sandbox, tmp_path: Path, broken: Broken
) -> None:
    """The disk was slow."""
    retry = RetryPolicy(deadline=0.3)
    async with emitter_for(sandbox, journal=tmp_path, flush_interval=0.1, retry=retry) as emitter:
        delivery = await emitter.track(event())
        broken.gate.clear()
        await asyncio.sleep(0.5)
        broken.gate.set()
        with pytest.raises(DeliveryFailedError, match=r"deadline of 0\.3 s has passed"):
            await delivery
    assert not sandbox.events


async def test_an_error_of_sqlite_that_is_no_damage_is_a_failure(
    sandbox: Sandbox, tmp_path: Path, broken: Broken
) -> None:
    """The file is not put aside for it."""
    async with emitter_for(sandbox, journal=tmp_path) as emitter:
        broken.error = sqlite3.OperationalError("its text is not shown")
        with pytest.raises(JournalError, match="OperationalError") as caught:
            await emitter.track(event())
        assert "its text" not in str(caught.value)
        broken.error = None
    assert not list_corrupt(tmp_path)


async def test_a_close_that_is_given_up_ends_all_the_same(tmp_path: Path) -> None:
    """The thread ends once it can; what is asked afterwards is refused."""
    depot = await open_depot(Journal(tmp_path), endpoint="e", tag_id="t", pub_id="p")
    with depot._writer.lock:
        closing = asyncio.create_task(depot.aclose())
        await asyncio.sleep(0.01)
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
    await asyncio.to_thread(depot._writer._thread.join)
    await asyncio.sleep(0.01)
    assert not is_owned(journal_files(tmp_path)[0])
    with pytest.raises(FileNotFoundError, match="the file is closed"):
        depot.database({}, tmp_path)
