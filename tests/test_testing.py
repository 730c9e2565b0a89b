"""The tracker for unit tests: as an emitter, and without a socket."""

from __future__ import annotations

import concurrent.futures
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from rokt_events_async import (
    DeliveryFailedError,
    EmitterClosedError,
    EmitterStats,
    InvalidEventError,
    PartnerEvent,
    QueueFullError,
    ThreadedEmitter,
    Tracker,
)
from rokt_events_async.testing import RecordingTracker
from tests.samples import event


async def test_it_is_a_tracker() -> None:
    """It can be handed to whatever takes one, and keeps what it was given."""
    recording = RecordingTracker()
    tracker: Tracker[Any] = recording
    async with tracker:
        await tracker.start()
        delivery = await tracker.track(event("a"))
        assert (await delivery).attempts == 1
        assert delivery.event.event_time is not None
        assert tracker.track_threadsafe(event("b")).result(0).event.session_id == "b"
        assert await tracker.flush(1)
        assert tracker.health.state == "ok"
    assert [kept.session_id for kept in recording.events] == ["a", "b"]
    assert recording.stats == EmitterStats(accepted=2, delivered=2)
    assert repr(recording) == "<RecordingTracker: 2 events>"
    assert str(tracker.health.state) == "closed"
    with pytest.raises(EmitterClosedError):
        await tracker.track(event())


async def test_all_ways_to_track() -> None:
    """Those of an emitter."""
    recording = RecordingTracker()

    async def some() -> AsyncIterator[PartnerEvent]:
        yield event("c")

    recording.track_nowait(event("a"))
    await recording.deliver(event("b"), timeout=1)
    assert [await one async for one in recording.track_many(some())]
    assert [await one async for one in recording.track_many([event("d")])]
    assert [kept.session_id for kept in recording.events] == ["a", "b", "c", "d"]


async def test_failures() -> None:
    """An outcome is the event's; anything else is raised by `track`."""
    recording = RecordingTracker()
    lost = DeliveryFailedError("failed", event=event())
    recording.fail_with(QueueFullError("full"), lost, lost)
    with pytest.raises(QueueFullError):
        await recording.track(event())
    with pytest.raises(DeliveryFailedError):
        await (await recording.track(event()))
    assert isinstance(recording.track_threadsafe(event()).exception(0), DeliveryFailedError)
    await recording.deliver(event())
    assert recording.stats == EmitterStats(accepted=3, delivered=1, failed=2)


async def test_what_it_refuses() -> None:
    """As an emitter does."""
    recording = RecordingTracker()
    old = event(event_time=datetime.now(UTC) - timedelta(days=4))
    with pytest.raises(InvalidEventError):
        await recording.track(old)
    with pytest.raises(InvalidEventError, match="must be a PartnerEvent"):
        await recording.track({})  # type: ignore[arg-type]
    assert recording.events == []


def test_without_a_loop() -> None:
    """From threads, and in a `ThreadedEmitter`."""
    recording = RecordingTracker()
    with ThreadedEmitter(lambda: recording) as threaded:
        assert threaded.track(event()).result(1)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        other = RecordingTracker()
        list(pool.map(lambda _: other.track_threadsafe(event()), range(9)))
    assert (len(recording.events), len(other.events)) == (1, 9)
