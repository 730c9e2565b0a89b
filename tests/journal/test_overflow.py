"""The journal as overflow queue: what finds no room in memory is on disk alone, and comes back in order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import sqlite3
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from rokt_events_async import (
    DeliveryDeferredError,
    DeliveryFailedError,
    DeliveryUnconfirmedError,
    Emitter,
    InvalidEventError,
    Journal,
    JournalError,
    QueueFullError,
    RetryPolicy,
)
from rokt_events_async._pipeline import recovery
from rokt_events_async._pipeline.store import StoreFailure
from rokt_events_async._protocol.encoding import decode
from rokt_events_async.journal import _depot
from rokt_events_async.journal._database import Database
from rokt_events_async.journal.files import erase_session, list_files
from rokt_events_async.sandbox import Sandbox
from tests.diary import Diary
from tests.samples import emitter_for, event

pytestmark = pytest.mark.every_loop

FAILURE = StoreFailure("file", "Input/output error")
QUICK = RetryPolicy(wait=(0.01, 0.02), max_backoff=0.05)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks again soon."""
    monkeypatch.setattr(recovery, "LOOK_AGAIN", (0.05, 0.1))
    monkeypatch.setattr(recovery, "_NO_ROOM", 0.02)
    monkeypatch.setattr(recovery, "_WRITE_AGAIN", 0.02)


class Rokt(Sandbox):
    """A sandbox in an outage, or to which some sessions are not welcome."""

    def __init__(self) -> None:
        super().__init__()
        self.outage = False
        self.failing: set[str] = set()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        events = json.loads(await request.read())["events"]
        if self.outage or events[0]["sessionId"] in self.failing:
            return web.Response(status=503)
        return await super()._handle(request)


@pytest.fixture
async def sandbox() -> AsyncIterator[Rokt]:
    async with Rokt() as made:
        yield made


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def track(emitter: Emitter, count: int, sessions: int = 3) -> list[str]:
    """Tracks so many events; returns their ids in order."""
    ids = []
    for number in range(count):
        one = event(f"s{number % sessions}")
        await emitter.track(one)
        ids.append(one.parent_guid)
    return ids


def order(sandbox: Rokt) -> dict[str, list[str]]:
    """The events that were accepted, by their session, in their order."""
    found: dict[str, list[str]] = defaultdict(list)
    for one in sandbox.events:
        found[one["sessionId"]].append(one["parentGuid"])
    return found


async def test_more_events_than_memory_holds_are_delivered_in_order(sandbox: Rokt, tmp_path: Path) -> None:
    """Flush waits for all of them; the health tells that some are deferred."""
    sandbox.outage = True
    async with emitter_for(
        sandbox, journal=tmp_path, max_pending=10, flush_interval=0.01, retry=QUICK
    ) as emitter:
        ids = await track(emitter, 100)
        health = emitter.health
        assert "deferring" in health.problems
        assert health.deferred > 0
        assert health.oldest_deferred_age >= 0.0
        assert health.pending <= 10
        sandbox.outage = False
        assert all(await asyncio.gather(emitter.flush(timeout=30), emitter.flush()))
        assert emitter.health.problems == ()
        assert (emitter.health.deferred, emitter.health.oldest_deferred_age) == (0, 0.0)
        assert emitter.stats.delivered == 100
    assert order(sandbox) == {f"s{number}": ids[number::3] for number in range(3)}


async def test_a_deferred_delivery_says_so(sandbox: Rokt, tmp_path: Path) -> None:
    """Its event is accepted, then deferred; its outcome reaches observers."""
    diary = Diary()
    async with emitter_for(
        sandbox, journal=tmp_path, max_pending=1, flush_interval=60, observers=[diary]
    ) as emitter:
        first, second = await emitter.track(event("a")), await emitter.track(event("b"))
        assert not first.done()
        with pytest.raises(DeliveryDeferredError, match="memory has no room for the event"):
            await second
        third = emitter.track_nowait(event("c"))
        await until(third.done)
        assert isinstance(third.exception(), DeliveryDeferredError)
        assert emitter.stats.accepted == 3
        (file,) = list_files(tmp_path)
        assert (file.stored, file.deferred) == (3, 2)
        assert file.oldest_deferred is not None
    assert emitter.stats.delivered == 3
    assert [name for name, _ in diary.told][:5] == [
        "accepted",
        "accepted",
        "deferred",
        "accepted",
        "deferred",
    ]
    assert [name for name, _ in diary.told].count("delivered") == 3


async def test_what_is_deferred_in_an_outage_is_delivered_after_it(sandbox: Rokt, tmp_path: Path) -> None:
    """Also by the next process, if this one closes meanwhile."""
    sandbox.outage = True
    settings: dict[str, Any] = {"journal": tmp_path, "max_pending": 8, "retry": QUICK, "flush_interval": 0.01}
    async with emitter_for(sandbox, **settings, observers=[]) as emitter:
        ids = await track(emitter, 40)
        assert await emitter.flush(timeout=0.1) is False
    assert (await emitter.aclose()).deferred == 40
    sandbox.outage = False
    async with emitter_for(sandbox, **settings) as emitter:
        more = await track(emitter, 20)
        await until(lambda: emitter.stats.delivered == 60)
    assert sorted(ids + more) == sorted(one["parentGuid"] for one in sandbox.events)


async def test_a_session_that_fails_holds_up_no_other(sandbox: Rokt, tmp_path: Path) -> None:
    """Its events stay on disk; new ones of it queue behind them. A close leaves them in order."""
    sandbox.failing.add("s0")
    bounds: dict[str, Any] = {"max_pending": 40, "max_session_share": 0.2, "max_batch_size": 2}
    settings: dict[str, Any] = {"journal": tmp_path, "retry": QUICK, "flush_interval": 0.01, "observers": []}
    async with emitter_for(sandbox, **settings, **bounds) as emitter:
        for _ in range(3):
            ids = await track(emitter, 90)
            await until(lambda: len(order(sandbox)["s1"]) == len(order(sandbox)["s2"]))
        await until(lambda: emitter.stats.delivered == 180)
        assert emitter.stats.pending <= 8
    assert emitter.stats.journal is not None
    assert emitter.stats.journal.deferred == 90
    sandbox.failing.clear()
    async with emitter_for(sandbox, **settings, **bounds) as emitter:
        await until(lambda: emitter.stats.delivered == 90)
    assert order(sandbox)["s0"][-30:] == ids[::3]


async def test_an_event_that_cannot_be_read_back_is_put_aside(
    sandbox: Rokt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also if its session was passed over: the others of the session come back."""
    sandbox.failing.add("s0")
    bounds: dict[str, Any] = {"max_pending": 40, "max_session_share": 0.2, "max_batch_size": 2}
    settings: dict[str, Any] = {"journal": tmp_path, "retry": QUICK, "flush_interval": 0.01, "observers": []}
    async with emitter_for(sandbox, **settings, **bounds) as emitter:
        ids = await track(emitter, 20, sessions=1)
        await until(lambda: emitter._engine.recovery._backlogs.own.passed_over)  # type: ignore[union-attr]

        def read(wire: bytes) -> Any:
            if ids[-2].encode() in wire:
                raise InvalidEventError(())
            return decode(wire)

        monkeypatch.setattr(recovery, "decode", read)
        sandbox.failing.clear()
        await until(lambda: emitter.stats.delivered == 19)
        assert await emitter.flush(timeout=30)
    assert "cannot be read and was put aside" in caplog.text


async def test_an_event_that_could_never_fit_is_refused(sandbox: Rokt, tmp_path: Path) -> None:
    """By all ways in."""
    async with emitter_for(sandbox, journal=tmp_path, max_pending_bytes=1000) as emitter:
        large = event(metadata={"x": "y" * 2000})
        with pytest.raises(QueueFullError, match="can never fit"):
            await emitter.track(large)
        with pytest.raises(QueueFullError, match="can never fit"):
            emitter.track_nowait(large)


async def test_beyond_max_bytes_the_queue_is_full(
    sandbox: Rokt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The health says so; what was delivered makes room again."""
    sandbox.outage = True
    journal = Journal(tmp_path, max_bytes=16 * 1024**2)
    monkeypatch.setattr(Database, "used_bytes", lambda self: 1024**2 * self.stored())
    monkeypatch.setattr(_depot, "_MEASURE", 10**9)
    settings: dict[str, Any] = {"max_pending": 4, "retry": QUICK, "when_full": "raise"}
    async with emitter_for(sandbox, journal=journal, observers=[], **settings) as emitter:
        with pytest.raises(QueueFullError, match="the journal is full"):
            await track(emitter, 200)
        with pytest.raises(QueueFullError, match="the journal is full"):
            emitter.track_nowait(event())
        assert "journal_full" in emitter.health.problems
        sandbox.outage = False
        await emitter.flush()
        await until(lambda: not emitter._engine.recorder.is_full)  # type: ignore[union-attr]
        await emitter.track(event())


async def test_what_cannot_be_stored_is_not_deferred(
    sandbox: Rokt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`track()` raises; what did not wait fails. The rest goes on."""
    async with emitter_for(sandbox, journal=tmp_path, max_pending=1, flush_interval=60) as emitter:
        await emitter.track(event("a"))
        await emitter.track(event("b"))
        original = _depot.StoreFile.commit
        monkeypatch.setattr(
            _depot.StoreFile,
            "commit",
            lambda self, step, done: (
                asyncio.get_running_loop().call_soon(done, FAILURE)
                if step.wires
                else original(self, step, done)
            ),
        )
        with pytest.raises(JournalError, match="could not be stored"):
            await emitter.track(event("b"))
        failed = emitter.track_nowait(event("b"))
        with pytest.raises(
            DeliveryFailedError, match="memory had no room for it, and it could not be stored"
        ):
            await failed
        monkeypatch.setattr(_depot.StoreFile, "commit", original)
        await emitter.track(event("b"))
        assert await emitter.flush(timeout=30)
    assert (emitter.stats.accepted, emitter.stats.delivered, emitter.stats.failed) == (4, 3, 1)


async def test_so_many_events_without_room_wait_for_the_disk(
    sandbox: Rokt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are refused. At a close on a disk that does not answer they are unconfirmed."""
    settings: dict[str, Any] = {"journal": tmp_path, "max_pending": 1, "flush_interval": 60}
    emitter = emitter_for(sandbox, **settings, when_full="raise", close_timeout=0.0, observers=[])
    await emitter.start()
    await emitter.track(event("a"))
    kept: list[Any] = []
    original = _depot.StoreFile.commit
    monkeypatch.setattr(_depot.StoreFile, "commit", lambda self, step, done: kept.append((step, done)))
    deliveries = [emitter.track_nowait(event("b")) for _ in range(1000)]
    with pytest.raises(QueueFullError):
        emitter.track_nowait(event("b"))
    await asyncio.sleep(0)
    monkeypatch.setattr(_depot.StoreFile, "commit", original)
    report = await emitter.aclose()
    assert kept
    assert (report.unconfirmed, report.failed) == (500, 500)
    assert isinstance(deliveries[0].exception(), DeliveryUnconfirmedError)


async def test_pages_and_writes_that_fail_are_tried_again(
    sandbox: Rokt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What an earlier process has left is passed over once it can be found by its session."""
    sandbox.outage = True
    settings: dict[str, Any] = {"journal": tmp_path, "retry": QUICK, "flush_interval": 0.01, "observers": []}
    async with emitter_for(sandbox, **settings) as emitter:
        ids = await track(emitter, 60, sessions=2)
    sandbox.outage = False
    sandbox.failing.add("s0")
    find, failures = _depot.StoreFile.make_findable, [FAILURE, FAILURE]

    def refuse(self: Any, original: Any, what: Any, done: Any) -> None:
        if failures:
            asyncio.get_running_loop().call_soon(done, failures.pop())
        else:
            original(self, what, done)

    monkeypatch.setattr(
        _depot.StoreFile, "make_findable", lambda self, numbers, done: refuse(self, find, numbers, done)
    )
    bounds: dict[str, Any] = {"max_pending": 40, "max_session_share": 0.2, "max_batch_size": 2}
    async with emitter_for(sandbox, **settings, **bounds) as emitter:
        await until(lambda: len(order(sandbox)["s1"]) == 30)
        assert caplog.text.count("the journal could not be written") == 2
        sandbox.failing.clear()
        await until(lambda: emitter.stats.delivered == 60)
    assert order(sandbox) == {"s0": ids[::2], "s1": ids[1::2]}


async def test_a_stop_ends_a_write_that_is_tried_again(
    sandbox: Rokt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No timer is left."""
    monkeypatch.setattr(recovery, "_WRITE_AGAIN", 60.0)
    sandbox.outage = True
    settings: dict[str, Any] = {"journal": tmp_path, "retry": QUICK, "flush_interval": 0.01, "observers": []}
    async with emitter_for(sandbox, **settings) as emitter:
        await track(emitter, 60, sessions=1)
    monkeypatch.setattr(
        _depot.StoreFile,
        "make_findable",
        lambda self, numbers, done: asyncio.get_running_loop().call_soon(done, FAILURE),
    )
    bounds: dict[str, Any] = {"max_pending": 40, "max_session_share": 0.2, "max_batch_size": 2}
    async with emitter_for(sandbox, **settings, **bounds) as emitter:
        await until(lambda: emitter._engine.recovery._write_timer is not None)  # type: ignore[union-attr]
    assert emitter._engine.recovery._write_timer is None  # type: ignore[union-attr]


async def test_deferral_is_logged(sandbox: Rokt, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When it begins, how fast the events come back, and when it ends."""
    from rokt_events_async import LoggingObserver

    caplog.set_level(logging.WARNING, "rokt_events_async")
    sandbox.outage = True
    settings: dict[str, Any] = {"max_pending": 10, "flush_interval": 0.02, "retry": QUICK}
    observers = [LoggingObserver(per=0.01)]
    async with emitter_for(sandbox, journal=tmp_path, observers=observers, **settings) as emitter:
        await track(emitter, 60)
        sandbox.outage = False
        await emitter.flush()
    log = caplog.text
    assert "memory has room for no more events, 10 events pending: further ones are in the journal" in log
    assert "per second: " in log
    assert " left, the oldest 0 seconds old" in log
    assert caplog.messages[-1].endswith(": none is left")


async def test_no_object_of_a_deferred_event_stays(sandbox: Rokt, tmp_path: Path) -> None:
    """Memory holds its session's hash and its number."""
    async with emitter_for(
        sandbox, journal=tmp_path, max_pending=1, flush_interval=60, close_timeout=0, observers=[]
    ) as emitter:
        await emitter.track(event("a"))
        gc.collect()
        before = sum(type(one).__name__ == "StoredDelivery" for one in gc.get_objects())
        await track(emitter, 50)
        gc.collect()
        assert sum(type(one).__name__ == "StoredDelivery" for one in gc.get_objects()) == before


def refuse_appends(monkeypatch: pytest.MonkeyPatch, *, after: float = 0.0) -> Any:
    """Lets the disk take no event; returns what ends that."""
    original = _depot.StoreFile.commit

    def commit(self: Any, step: Any, done: Any) -> None:
        if step.wires:
            asyncio.get_running_loop().call_later(after, done, FAILURE)
        else:
            original(self, step, done)

    monkeypatch.setattr(_depot.StoreFile, "commit", commit)
    return lambda: monkeypatch.setattr(_depot.StoreFile, "commit", original)


async def test_an_event_in_memory_alone_is_not_told_deferred(
    sandbox: Rokt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although others of its session are, at a close; it is still tried."""
    sandbox.outage = True
    settings: dict[str, Any] = {
        "flush_interval": 0.01,
        "retry": RetryPolicy(wait=(5.0, 6.0)),
        "observers": [],
    }
    journal = Journal(tmp_path, on_error="memory")
    async with emitter_for(sandbox, journal=journal, close_timeout=0.5, **settings) as emitter:
        await emitter.track(event("a"))
        await until(lambda: emitter.stats.requests and not emitter.stats.in_flight)
        well = refuse_appends(monkeypatch, after=0.2)
        second = asyncio.ensure_future(emitter.track(event("a")))
        await asyncio.sleep(0.05)
    well()
    with pytest.raises(DeliveryFailedError):
        await (await second)
    (file,) = list_files(tmp_path)
    assert (emitter.stats.failed, file.stored) == (1, 1)


@pytest.mark.parametrize("on_error", ["raise", "memory"])
async def test_room_of_events_in_memory_alone_is_taken(
    sandbox: Rokt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_error: Any
) -> None:
    """Their end is no commit: the deferred ones come back all the same."""
    monkeypatch.setattr(recovery, "_TRY_AGAIN", 60.0)
    sandbox.outage = True
    settings: dict[str, Any] = {"max_pending": 4, "flush_interval": 0.01, "retry": QUICK, "observers": []}
    async with emitter_for(sandbox, journal=Journal(tmp_path, on_error=on_error), **settings) as emitter:
        well = refuse_appends(monkeypatch)
        for _ in range(4):
            emitter.track_nowait(event("a"))
        await asyncio.sleep(0.05)
        well()
        await track(emitter, 3)
        await asyncio.sleep(0.2)
        sandbox.outage = False
        assert await emitter.flush(timeout=10)
    assert emitter.stats.delivered == 7


async def test_what_is_on_disk_alone_is_looked_for_now_and_then(
    sandbox: Rokt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although nothing has changed that would tell."""
    monkeypatch.setattr(recovery, "_TRY_AGAIN", 0.05)
    async with emitter_for(sandbox, journal=tmp_path, max_pending=1, flush_interval=60) as emitter:
        await track(emitter, 2)
        found = emitter._engine.recovery  # type: ignore[union-attr]
        assert found is not None
        monkeypatch.setattr(found._recorder, "on_progress", lambda: None)
        emitter._engine.pool.flush()  # type: ignore[union-attr]
        await until(lambda: emitter.health.deferred == 0)


async def test_a_damaged_file_keeps_what_is_deferred(sandbox: Rokt, tmp_path: Path) -> None:
    """It is rescued, and read on."""
    sandbox.outage = True
    settings: dict[str, Any] = {"max_pending": 4, "flush_interval": 0.01, "retry": QUICK, "observers": []}
    async with emitter_for(sandbox, journal=tmp_path, **settings) as emitter:
        ids = await track(emitter, 20)
        store: Any = emitter._engine.recorder.own.store  # type: ignore[union-attr]
        store._depot._damaged.add(store.file)
        sandbox.outage = False
        assert await emitter.flush(timeout=30)
        assert emitter.stats.delivered == 20
    assert order(sandbox) == {f"s{number}": ids[number::3] for number in range(3)}


@pytest.mark.parametrize("max_pending", [5, 30, 60])
async def test_one_session_holds_up_no_other_in_little_memory(
    sandbox: Rokt, tmp_path: Path, max_pending: int
) -> None:
    """It gets a part of what comes back, however large its share is."""
    sandbox.outage = True
    settings: dict[str, Any] = {"max_session_share": 1.0, "flush_interval": 0.01, "retry": QUICK}
    async with emitter_for(
        sandbox, journal=tmp_path, max_pending=max_pending, observers=[], close_timeout=0.5, **settings
    ) as emitter:
        for number in range(max_pending):
            await emitter.track(event(f"first {number}"))
        for _ in range(100):
            await emitter.track(event("bad"))
        for number in range(20):
            await emitter.track(event(f"good {number}"))
        sandbox.failing.add("bad")
        sandbox.outage = False
        await until(lambda: emitter.stats.delivered == max_pending + 20)


async def test_a_file_that_cannot_be_read_holds_up_no_other(
    sandbox: Rokt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this emitter has deferred comes back meanwhile."""
    sandbox.outage = True
    settings: dict[str, Any] = {"journal": tmp_path, "retry": QUICK, "flush_interval": 0.01, "observers": []}
    async with emitter_for(sandbox, **settings) as first, emitter_for(sandbox, **settings) as second:
        await track(first, 1)
        await track(second, 1)
    monkeypatch.setattr(recovery, "LOOK_AGAIN", (60.0, 60.0))
    async with emitter_for(sandbox, max_pending=20, **settings) as emitter:
        own, original = emitter._engine.recorder.own.store.path, _depot.StoreFile.load  # type: ignore[union-attr]

        def load(self: Any, query: Any, done: Any) -> None:
            if self.path != own:
                asyncio.get_running_loop().call_soon(done, FAILURE)
            else:
                original(self, query, done)

        monkeypatch.setattr(_depot.StoreFile, "load", load)
        await track(emitter, 100)
        sandbox.outage = False
        assert await emitter.flush(timeout=20)


async def test_the_next_file_is_adopted_after_one_that_cannot_be_read_to_its_end(
    sandbox: Rokt, tmp_path: Path
) -> None:
    """Nothing else need happen for that."""
    sandbox.outage = True
    settings: dict[str, Any] = {"journal": tmp_path, "retry": QUICK, "flush_interval": 0.01, "observers": []}
    async with (
        emitter_for(sandbox, **settings) as first,
        emitter_for(sandbox, **settings) as second,
        emitter_for(sandbox, **settings) as third,
    ):
        for one in (first, second, third):
            await track(one, 1)
    paths = [file.path for file in list_files(tmp_path)]
    with contextlib.closing(sqlite3.connect(paths[1])) as connection:
        connection.execute("""UPDATE event SET wire = '{"a":1}'""")
        connection.commit()
    sandbox.outage = False
    async with emitter_for(sandbox, **settings) as emitter:
        await until(lambda: emitter.stats.delivered == 2)


async def test_a_session_id_with_a_nul_is_found(sandbox: Rokt, tmp_path: Path) -> None:
    """And erased, and no other with it."""
    sandbox.outage = True
    bounds: dict[str, Any] = {"max_pending": 40, "max_session_share": 0.2, "max_batch_size": 2}
    settings: dict[str, Any] = {"journal": tmp_path, "retry": QUICK, "flush_interval": 0.01, "observers": []}
    async with emitter_for(sandbox, **settings, **bounds) as emitter:
        for session in ("a\0b", "a"):
            for _ in range(40):
                await emitter.track(event(session))
        sandbox.outage = False
        assert await emitter.flush(timeout=30)
        assert emitter.stats.delivered == 80
        sandbox.outage = True
        for session in ("a\0b", "a"):
            for _ in range(10):
                await emitter.track(event(session))
    assert erase_session(tmp_path, "a\0b").erased == 10
    assert erase_session(tmp_path, "a").erased == 10


async def test_a_burst_after_the_other_is_logged_once(
    sandbox: Rokt, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not each time that memory has no room."""
    async with emitter_for(sandbox, journal=tmp_path, max_pending=2, flush_interval=0.01) as emitter:
        for _ in range(3):
            await asyncio.gather(*(emitter.track(event(f"s{number}")) for number in range(20)))
            await emitter.flush()
    assert caplog.text.count("memory has room for no more events") == 1
    assert caplog.text.count("came back from the journal") == 1
