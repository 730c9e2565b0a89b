"""The publisher: what is accepted is in the queue; what is not, is said in time."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from rokt_events_async import (
    EmitterClosedError,
    EmitterNotStartedError,
    InvalidEventError,
    InvalidSettingError,
    LoggingObserver,
    NotAcceptedError,
    Observer,
    PartnerEvent,
    PublishUnconfirmedError,
    QueueFullError,
    QueueRefusedError,
    QueueUnavailableError,
    Tracker,
    WrongContextError,
)
from rokt_events_async._tracking.threadsafe import LoopGoneError
from rokt_events_async.outcomes import PublishReceipt
from rokt_events_async.relay import Publisher, tracker_from_env
from rokt_events_async.relay.entries import NewEntry, read_entry
from rokt_events_async.relay.memory import MemoryQueue
from rokt_events_async.relay.queue import Findings
from tests.samples import NOW, Clock, event


class FaultyQueue(MemoryQueue):
    """A queue that does as the test says: each item is for one publication."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[Any] = []
        self.batches: list[int] = []
        self.findings = Findings()
        self.opened = 0
        self.closed = 0

    async def open_publisher(self, *, require_durable: bool) -> Findings:
        self.opened += 1
        await super().open_publisher(require_durable=require_durable)
        return self.findings

    async def publish(self, entries: Sequence[NewEntry], *, timeout: float) -> list[str | Exception]:
        self.batches.append(len(entries))
        fault = self.faults.pop(0) if self.faults else None
        if fault == "lost answer":
            await super().publish(entries, timeout=timeout)
            raise QueueUnavailableError("the connection broke")
        if fault == "hangs":
            for entry in entries:
                entry.tries += 1
            await asyncio.sleep(timeout)
            raise QueueUnavailableError("no answer")
        if fault == "slow":
            await asyncio.sleep(0.5)
        if fault == "not yet":
            for entry in entries:
                entry.tries += 1
            return [QueueUnavailableError("LOADING") for _ in entries]
        if isinstance(fault, Exception):
            raise fault
        return await super().publish(entries, timeout=timeout)

    async def aclose(self) -> None:
        self.closed += 1


@pytest.fixture
def queue() -> FaultyQueue:
    return FaultyQueue()


async def published(queue: MemoryQueue) -> list[str]:
    """The parent guids of all entries, in order."""
    entries = await queue.read("reader", range(16), count=10_000, wait=0)
    return [read_entry(entry).event.parent_guid for entry in sorted(entries, key=lambda entry: int(entry.id))]


async def test_an_event_is_in_the_queue(queue: FaultyQueue) -> None:
    """With its time stamped, and the id of its entry in the receipt."""
    one = event()
    async with Publisher(queue, _clock=Clock()) as publisher:
        receipt = await publisher.track(one)

    assert receipt.event == one.stamped(NOW)
    assert receipt.entry_id
    assert await published(queue) == [one.parent_guid]
    assert (publisher.stats.accepted, publisher.stats.pending, publisher.stats.pending_bytes) == (1, 0, 0)
    assert queue.closed == 1


async def test_handlers_share_batches(queue: FaultyQueue) -> None:
    """What comes while a batch is under way is the next one, of at most 256."""
    async with Publisher(queue) as publisher:
        await asyncio.gather(*(publisher.track(event()) for _ in range(600)))

    assert queue.batches == [256, 256, 88]
    assert publisher.stats.batches == 3


async def test_the_order_of_a_caller_is_kept(queue: FaultyQueue) -> None:
    """Also when the queue fails in between."""
    queue.faults = [None, QueueUnavailableError("away")]
    events = [event("one") for _ in range(5)]
    async with Publisher(queue) as publisher:
        for one in events:
            await publisher.track(one)

    assert await published(queue) == [one.parent_guid for one in events]


async def test_invalid_events_are_refused_at_once(queue: FaultyQueue) -> None:
    """Nothing is published."""
    async with Publisher(queue, _clock=Clock()) as publisher:
        with pytest.raises(InvalidEventError, match="must be a PartnerEvent"):
            await publisher.track("event")  # type: ignore[arg-type]
        with pytest.raises(InvalidEventError, match="3 days in the past"):
            await publisher.track(event(event_time=NOW - timedelta(days=4)))
        await publisher.track(event(event_time=NOW))

    assert publisher.stats.accepted == 1


# When the queue fails.


async def test_a_queue_that_comes_back_in_time(queue: FaultyQueue) -> None:
    """The caller does not notice."""
    queue.faults = [QueueUnavailableError("away"), "not yet", QueueUnavailableError("away")]
    async with Publisher(queue) as publisher:
        await publisher.track(event())

        assert publisher.health.state == "ok"
        assert publisher.health.last_error is not None
    assert publisher.stats.refused == publisher.stats.repeats == 0


async def test_a_queue_that_is_away_too_long(queue: FaultyQueue) -> None:
    """The caller is told within `publish_timeout`, and the event is surely not in the queue."""
    queue.faults = [QueueUnavailableError("away")] * 1000
    async with Publisher(queue, publish_timeout=3) as publisher:
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(QueueUnavailableError, match="not in the queue after 3 s: away"):
            await publisher.track(event())
        assert loop.time() - began == pytest.approx(3, abs=0.01)
        health = publisher.health
        assert (health.state, health.last_error and health.last_error.text) == ("outage", "away")
        queue.faults = []
        await publisher.track(event())
        health = publisher.health
        assert (health.state, health.problems) == ("ok", ())

    assert (publisher.stats.refused, publisher.stats.unconfirmed) == (1, 0)
    assert queue.batches.count(1) < 20


async def test_a_lost_answer_is_asked_again(queue: FaultyQueue) -> None:
    """With the same publish id, so that a relay can tell."""
    queue.faults = ["lost answer"]
    async with Publisher(queue) as publisher:
        await publisher.track(event())

    first, second = [read_entry(one) for one in await queue.read("r", range(16), count=9, wait=0)]
    assert first.publish_id == second.publish_id
    assert (first.is_repeated, second.is_repeated) == (False, True)
    assert publisher.stats.repeats == 1


async def test_an_answer_that_never_comes(queue: FaultyQueue) -> None:
    """The event may be in the queue, and the error says so."""
    queue.faults = ["hangs"]
    async with Publisher(queue, publish_timeout=2) as publisher:
        with pytest.raises(PublishUnconfirmedError, match="may be in it"):
            await publisher.track(event())

        assert publisher.stats.unconfirmed == 1
        assert publisher.stats.refused == 0


async def test_a_fault_of_the_client_is_contained(
    queue: FaultyQueue, caplog: pytest.LogCaptureFixture
) -> None:
    """The events are refused, the fault is logged, and the next ones are published."""
    queue.faults = [ZeroDivisionError("fault")]
    async with Publisher(queue) as publisher:
        with pytest.raises(QueueUnavailableError, match="ZeroDivisionError"):
            await publisher.track(event())
        await publisher.track(event())

    assert "ZeroDivisionError" in caplog.text


async def test_a_queue_that_refuses(queue: FaultyQueue) -> None:
    """Each caller gets an error of its own at once."""
    queue.faults = [QueueRefusedError("NOPERM")]
    async with Publisher(queue) as publisher:
        errors = await asyncio.gather(*(publisher.track(event()) for _ in range(2)), return_exceptions=True)

    assert [type(one) for one in errors] == [QueueRefusedError] * 2
    assert errors[0] is not errors[1]


async def test_a_full_queue() -> None:
    """The events that found no room are refused, the others are in it."""
    queue = MemoryQueue(max_entries=3)
    async with Publisher(queue) as publisher:
        outcomes = await asyncio.gather(*(publisher.track(event()) for _ in range(5)), return_exceptions=True)

    assert [type(one) for one in outcomes] == [PublishReceipt] * 3 + [QueueFullError] * 2
    assert (publisher.stats.accepted, publisher.stats.refused) == (3, 2)


@pytest.mark.parametrize("bound", [{"max_pending": 3}, {"max_pending_bytes": 500}])
async def test_memory_is_bounded(queue: FaultyQueue, bound: dict[str, Any]) -> None:
    """While the queue is away, further events are refused at once; health and error say why."""
    queue.faults = [QueueUnavailableError("away")] * 1000
    async with Publisher(queue, publish_timeout=2, **bound) as publisher:
        waiting = [asyncio.create_task(publisher.track(event())) for _ in range(3)]
        await asyncio.sleep(0.5)
        with pytest.raises(QueueFullError, match=f"{next(iter(bound))}=.* the queue fails: away"):
            await publisher.track(event())
        if "max_pending" in bound:
            assert publisher.health.problems == ("queue_full",)
        assert publisher.health.pending == 3
        assert publisher.health.oldest_pending_age == pytest.approx(0.5)
        await asyncio.wait(waiting)

        assert all(isinstance(one.exception(), QueueUnavailableError) for one in waiting)
        assert publisher.stats.refused == 4


# Cancelling.


async def test_a_caller_that_is_cancelled_before_the_event_was_sent(queue: FaultyQueue) -> None:
    """It is not published."""
    queue.faults = ["hangs"]
    async with Publisher(queue, publish_timeout=1) as publisher:
        first = asyncio.create_task(publisher.track(event()))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(publisher.track(event()))
        await asyncio.sleep(0.1)
        second.cancel()
        await asyncio.wait([first, second])
        assert await publisher.flush()

    assert await published(queue) == []
    assert (publisher.stats.refused, publisher.stats.unconfirmed, publisher.stats.pending) == (1, 1, 0)


async def test_a_caller_that_is_cancelled_while_the_event_is_sent(queue: FaultyQueue) -> None:
    """The event may be published, and the writer goes on."""
    async with Publisher(queue) as publisher:
        caller = asyncio.create_task(publisher.track(event()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        caller.cancel()
        await publisher.track(event())

    assert publisher.stats.pending == 0
    assert publisher.stats.accepted + publisher.stats.refused == 2


# Life.


async def test_a_queue_that_is_away_at_the_start(queue: FaultyQueue) -> None:
    """The application starts all the same; the queue is checked once it is there."""
    queue.is_down = True
    async with Publisher(queue, publish_timeout=1) as publisher:
        assert publisher.health.state == "outage"
        with pytest.raises(QueueUnavailableError):
            await publisher.track(event())
        queue.is_down = False
        await publisher.track(event())
        await publisher.track(event())

    assert queue.opened > 2


async def test_a_queue_that_is_doubtful(queue: FaultyQueue, caplog: pytest.LogCaptureFixture) -> None:
    """It is used; the log and the health say so."""
    queue.findings = Findings(warnings=("it has no append-only file",))
    async with Publisher(queue) as publisher:
        assert publisher.health.problems == ("queue_doubtful",)

    assert "it has no append-only file" in caplog.text


async def test_starting_and_closing_in_any_order(queue: FaultyQueue) -> None:
    """Twice is once; closed stays closed; unused is closed too."""
    publisher = Publisher(queue)
    with pytest.raises(EmitterNotStartedError):
        await publisher.track(event())
    await asyncio.gather(publisher.start(), publisher.start())
    await publisher.start()
    assert "Publisher open" in repr(publisher)
    await publisher.aclose()
    await publisher.aclose()
    assert "Publisher closed" in repr(publisher)
    assert await publisher.flush()
    for call in (publisher.start(), publisher.track(event())):
        with pytest.raises(EmitterClosedError):
            await call
    with pytest.raises(EmitterClosedError):
        publisher.track_threadsafe(event())
    unused = Publisher(queue)
    await unused.aclose()
    assert unused.health.state == "closed"
    with pytest.raises(TypeError, match="async with"):
        with unused:
            pass
    unused.__exit__()


class SlowQueue(FaultyQueue):
    async def open_publisher(self, *, require_durable: bool) -> Findings:
        await asyncio.sleep(1)
        return Findings()


async def test_two_starts_and_two_closes_at_once() -> None:
    """Each pair is one."""
    publisher = Publisher(SlowQueue())
    await asyncio.gather(publisher.start(), publisher.start())
    caller = asyncio.create_task(publisher.track(event()))
    await asyncio.sleep(0)
    stats = await asyncio.gather(publisher.aclose(), publisher.aclose())

    assert [one.accepted for one in stats] == [1, 1]
    assert caller.done()


async def test_events_whose_time_is_over_behind_a_batch(queue: FaultyQueue) -> None:
    """They are refused, and what comes later is published."""
    queue.faults = ["hangs", None]
    async with Publisher(queue, publish_timeout=1) as publisher:
        first = asyncio.create_task(publisher.track(event()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        others = [asyncio.create_task(publisher.track(event())) for _ in range(3)]
        await asyncio.sleep(0.5)
        late = asyncio.create_task(publisher.track(event()))
        others[0].cancel()
        await asyncio.wait([first, *others, late])

    assert isinstance(late.result(), PublishReceipt)
    assert publisher.stats.refused == 3


async def test_a_caller_that_is_cancelled_in_line(queue: FaultyQueue) -> None:
    """Its event is not sent."""
    queue.faults = ["slow"]
    async with Publisher(queue) as publisher:
        first = asyncio.create_task(publisher.track(event()))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(publisher.track(event()))
        await asyncio.sleep(0.1)
        second.cancel()
        await first

    assert await published(queue) == [first.result().event.parent_guid]
    assert (publisher.stats.accepted, publisher.stats.refused) == (1, 1)


async def test_a_caller_that_is_cancelled_too_late(queue: FaultyQueue) -> None:
    """Its event is in the queue all the same."""
    queue.faults = ["slow"]
    async with Publisher(queue) as publisher:
        caller = asyncio.create_task(publisher.track(event()))
        await asyncio.sleep(0.1)
        caller.cancel()
        await asyncio.sleep(1)

    assert publisher.stats.accepted == 1
    assert len(await published(queue)) == 1


async def test_a_close_while_it_is_being_started() -> None:
    """The start says that it came too late."""

    publisher = Publisher(SlowQueue())
    starting = asyncio.create_task(publisher.start())
    await asyncio.sleep(0.5)
    await publisher.aclose()
    with pytest.raises(EmitterClosedError):
        await starting


async def test_a_close_waits_for_what_is_on_its_way(queue: FaultyQueue) -> None:
    """Newcomers are refused."""
    queue.faults = [QueueUnavailableError("away")] * 3
    publisher = Publisher(queue)
    await publisher.start()
    caller = asyncio.create_task(publisher.track(event()))
    await asyncio.sleep(0.01)
    closing = asyncio.create_task(publisher.aclose())
    await asyncio.sleep(0.01)
    with pytest.raises(EmitterClosedError):
        await publisher.track(event())
    assert (await closing).accepted == 1
    assert isinstance(await caller, PublishReceipt)


async def test_a_close_that_runs_out_of_time(queue: FaultyQueue) -> None:
    """What is not in the queue is refused, what may be is unconfirmed."""
    queue.faults = ["hangs"]
    publisher = Publisher(queue, publish_timeout=30, close_timeout=1)
    await publisher.start()
    first = asyncio.create_task(publisher.track(event()))
    await asyncio.sleep(0.01)
    second = asyncio.create_task(publisher.track(event()))
    await asyncio.sleep(0.01)
    stats = await publisher.aclose()

    assert (stats.unconfirmed, stats.refused, stats.pending) == (1, 1, 0)
    with pytest.raises(PublishUnconfirmedError):
        await first
    with pytest.raises(EmitterClosedError):
        await second


async def test_a_close_that_is_cancelled_twice(queue: FaultyQueue) -> None:
    """Every caller is told all the same."""
    queue.faults = ["hangs"]
    publisher = Publisher(queue, publish_timeout=30, close_timeout=100)
    await publisher.start()
    callers = [asyncio.create_task(publisher.track(event())) for _ in range(3)]
    await asyncio.sleep(0.01)
    closing = asyncio.create_task(publisher.aclose())
    await asyncio.sleep(0.01)
    closing.cancel()
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    await asyncio.wait(callers, timeout=1)

    assert all(isinstance(one.exception(), PublishUnconfirmedError) for one in callers)
    assert (await publisher.aclose()).pending == 0
    assert queue.closed == 1


async def test_only_what_was_sent_is_counted(queue: FaultyQueue) -> None:
    """A queue that is away is sent nothing."""
    queue.faults = [QueueUnavailableError("away")] * 4
    async with Publisher(queue) as publisher:
        await publisher.track(event())

    assert (publisher.stats.batches, publisher.stats.repeats) == (1, 0)


async def test_a_flush_waits(queue: FaultyQueue) -> None:
    """At most as long as it is asked to."""
    queue.faults = [QueueUnavailableError("away")] * 4
    publisher = Publisher(queue)
    with pytest.raises(EmitterNotStartedError):
        await publisher.flush()
    async with publisher:
        assert await publisher.flush()
        caller = asyncio.create_task(publisher.track(event()))
        await asyncio.sleep(0.01)
        assert not await publisher.flush(timeout=0.05)
        assert await publisher.flush()
        assert caller.done()


# Threads.


@pytest.mark.every_loop
async def test_other_threads_publish(queue: FaultyQueue) -> None:
    """The future has the receipt."""
    async with Publisher(queue) as publisher:
        one = event()

        def from_thread() -> PublishReceipt:
            return publisher.track_threadsafe(one).result(5)

        receipt = await asyncio.to_thread(from_thread)
        here = publisher.track_threadsafe(event())
        await asyncio.wrap_future(here)

    assert receipt.event.parent_guid == one.parent_guid
    assert publisher.stats.accepted == 2


@pytest.mark.every_loop
async def test_another_thread_hears_of_errors(queue: FaultyQueue) -> None:
    """At once: what was not published was not accepted, and a caller may look at nothing else."""
    queue.faults = [QueueRefusedError("no")]
    async with Publisher(queue) as publisher:

        def from_thread() -> None:
            with pytest.raises(InvalidEventError):
                publisher.track_threadsafe("event")  # type: ignore[arg-type]
            with pytest.raises(QueueRefusedError):
                publisher.track_threadsafe(event())

        await asyncio.to_thread(from_thread)


@pytest.mark.every_loop
async def test_a_publisher_of_a_loop_that_has_ended(queue: FaultyQueue) -> None:
    """Using it says where it lived."""
    publisher = Publisher(queue)

    def live() -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(publisher.start())
        loop.run_until_complete(publisher.track(event()))
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()

    thread = threading.Thread(target=live)
    thread.start()
    thread.join()
    with pytest.raises(WrongContextError, match="publisher was started"):
        await publisher.track(event())
    with pytest.raises(WrongContextError, match="the publisher was started does not run"):
        publisher.track_threadsafe(event())


async def test_a_thread_whose_loop_ends_meanwhile(
    queue: FaultyQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told."""

    def gone(coroutine: Any, *_: Any, **__: Any) -> concurrent.futures.Future[PublishReceipt]:
        coroutine.close()
        raise LoopGoneError

    monkeypatch.setattr("rokt_events_async.relay.publisher.run_there", gone)
    async with Publisher(queue) as publisher:
        monkeypatch.setattr(asyncio, "_get_running_loop", lambda: None)
        with pytest.raises(PublishUnconfirmedError, match="may be in the queue: the publisher's event loop"):
            publisher.track_threadsafe(event())
        monkeypatch.undo()


# Observers.


class Watcher(Observer):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_published(self, receipt: PublishReceipt, duration: float) -> None:
        self.seen.append(("published", receipt.event.parent_guid, round(duration, 3)))

    def on_unpublished(self, event: PartnerEvent, error: NotAcceptedError) -> None:
        self.seen.append(("unpublished", event.parent_guid, type(error).__name__))


async def test_observers_are_told(queue: FaultyQueue) -> None:
    """Of each event, with how long it took, or why not."""
    queue.faults = [QueueUnavailableError("away"), None, QueueRefusedError("no")]
    watcher = Watcher()
    first, second = event(), event()
    async with Publisher(queue, observers=[watcher]) as publisher:
        await publisher.track(first)
        with contextlib.suppress(QueueRefusedError):
            await publisher.track(second)

    assert watcher.seen == [
        ("published", first.parent_guid, 0.05),
        ("unpublished", second.parent_guid, "QueueRefusedError"),
    ]


async def test_the_log(queue: FaultyQueue, caplog: pytest.LogCaptureFixture) -> None:
    """An outage when it begins and ends, and a bounded number of events."""
    queue.faults = [QueueUnavailableError("away")] * 100
    observer = LoggingObserver(max_records=2)
    async with Publisher(queue, publish_timeout=1, observers=[observer]) as publisher:
        await asyncio.gather(*(publisher.track(event()) for _ in range(5)), return_exceptions=True)
        queue.faults = ["hangs"]
        with contextlib.suppress(NotAcceptedError):
            await publisher.track(event())
        await publisher.track(event())

    text = caplog.text
    assert text.count("events cannot be published: away") == 1
    assert text.count("events can be published again, after") == 1
    assert text.count("SignalViewed event not published: the event is not in the queue after 1 s") == 2
    assert text.count("SignalViewed event unconfirmed: no answer") == 1


# Settings.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"publish_timeout": 0}, "publish_timeout must be a finite number > 0, got 0"),
        ({"max_pending": 0}, "max_pending must be a whole number >= 1, got 0"),
        ({"max_pending_bytes": "x"}, "max_pending_bytes must be a whole number >= 1, got 'x'"),
        ({"close_timeout": -1}, "close_timeout must be a finite number >= 0, got -1"),
        ({"require_durable": "yes"}, "require_durable must be True or False, got 'yes'"),
    ],
)
def test_settings_out_of_bounds(settings: dict[str, Any], message: str) -> None:
    """One clear error."""
    with pytest.raises(InvalidSettingError, match=message):
        Publisher(MemoryQueue(), **settings)


def test_a_url_is_no_queue() -> None:
    """The error says what is."""
    with pytest.raises(InvalidSettingError, match=r"such as RedisQueue\(url\)"):
        Publisher("redis://localhost")  # type: ignore[arg-type]


def test_a_publisher_is_a_tracker() -> None:
    """Code that only tracks takes either."""
    tracker: Tracker[PublishReceipt] = Publisher(MemoryQueue())
    assert tracker.stats.accepted == 0
    assert "0 accepted" in repr(tracker)


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ROKT_QUEUE_URL` means a publisher, which needs no credentials."""
    monkeypatch.setenv("ROKT_QUEUE_URL", "redis://:hush@localhost:7000/2")
    publisher = tracker_from_env(publish_timeout=1)

    assert isinstance(publisher, Publisher)
    assert "localhost:7000" in repr(publisher)
    assert "hush" not in repr(publisher)
    with pytest.raises(
        InvalidSettingError, match="no setting on_undelivered here: with ROKT_QUEUE_URL it is"
    ):
        tracker_from_env(on_undelivered=print, close_timeout=3)
    monkeypatch.setenv("ROKT_QUEUE_URL", "")
    with pytest.raises(InvalidSettingError, match="no setting publish_timeout here: without ROKT_QUEUE_URL"):
        tracker_from_env(publish_timeout=1)
    with pytest.raises(InvalidSettingError, match="no credentials"):
        tracker_from_env()
