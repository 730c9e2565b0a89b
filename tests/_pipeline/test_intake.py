"""Intake: which events are accepted, and what happens at the bounds."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from rokt_events_async import (
    DeliveryFailedError,
    InvalidEventError,
    PartnerEvent,
    QueueFullError,
)
from rokt_events_async.sandbox import Sandbox
from tests.samples import Clock, emitter_for, event

WAITS: dict[str, Any] = {"max_wait": None, "flush_interval": 0}


async def test_a_missing_time_is_the_moment_of_the_call(sandbox: Sandbox) -> None:
    """An event without a time happened when `track` was called; the caller's object is untouched."""
    clock = Clock(datetime.now(UTC))
    async with emitter_for(sandbox, _clock=clock) as emitter:
        untimed = event()
        receipt = await emitter.deliver(untimed)

    assert untimed.event_time is None
    assert receipt.event.event_time == clock.now


@pytest.mark.parametrize("ahead", [timedelta(minutes=5, seconds=1), timedelta(days=-3, seconds=-1)])
async def test_an_event_out_of_its_window_is_not_accepted(sandbox: Sandbox, ahead: timedelta) -> None:
    """The time window is checked when the event is tracked."""
    async with emitter_for(sandbox) as emitter:
        with pytest.raises(InvalidEventError, match="event_time must not be over"):
            await emitter.track(event(event_time=datetime.now(UTC) + ahead))

    assert emitter.stats.accepted == 0


async def test_what_is_no_event_is_not_accepted(sandbox: Sandbox) -> None:
    """A dictionary is no event, though it may look like one."""
    async with emitter_for(sandbox) as emitter:
        with pytest.raises(InvalidEventError, match="event must be a PartnerEvent, got "):
            await emitter.track({"eventType": "SignalViewed"})  # type: ignore[arg-type]


async def test_a_full_queue_makes_track_wait() -> None:
    """`max_wait=None`: the caller waits for room, and goes on when there is."""
    async with (
        Sandbox(latency=1.0) as slow,
        emitter_for(slow, max_pending=2, **WAITS) as emitter,
    ):
        await emitter.track(event("a"))
        await emitter.track(event("b"))
        waiting = asyncio.create_task(emitter.track(event("c")))
        await asyncio.sleep(0.5)

        assert not waiting.done()
        assert emitter.stats.accepted == emitter.stats.pending == 2

        delivery = await waiting
        assert (await delivery).attempts == 1


async def test_waiting_callers_are_served_in_order() -> None:
    """First come, first served, a thousand of them, by one that comes later too."""
    served: list[int] = []
    async with (
        Sandbox(latency=0.01) as slow,
        emitter_for(slow, max_pending=1, **WAITS) as emitter,
    ):

        async def call(number: int) -> None:
            delivery = await emitter.track(event(f"session-{number}"))
            served.append(number)
            await delivery

        await asyncio.gather(*(call(number) for number in range(1000)))

    assert served == list(range(1000))


async def test_a_full_queue_raises_when_told_to(sandbox: Sandbox) -> None:
    """`when_full="raise"`: the event is not accepted, and the error says what is full."""
    async with emitter_for(sandbox, max_pending=1, when_full="raise") as emitter:
        await emitter.track(event())
        with pytest.raises(QueueFullError, match="1 of 1 events"):
            await emitter.track(event())

        assert emitter.stats.accepted == 1


async def test_a_full_queue_drops_when_told_to(sandbox: Sandbox) -> None:
    """`when_full="drop"`: the event is accepted, failed and counted, and the caller goes on."""
    async with emitter_for(sandbox, max_pending=1, when_full="drop") as emitter:
        await emitter.track(event())
        for dropped in (await emitter.track(event()), emitter.track_nowait(event())):
            with pytest.raises(DeliveryFailedError, match="dropped: the queue is full: 1 of 1 events"):
                await dropped

        assert (emitter.stats.accepted, emitter.stats.failed, emitter.stats.pending) == (3, 2, 1)


async def test_bytes_are_bounded_too(sandbox: Sandbox) -> None:
    """A few large events fill the queue as many small ones do."""
    large = event(metadata={"note": "x" * 600})
    async with emitter_for(sandbox, max_pending_bytes=1000, when_full="raise") as emitter:
        await emitter.track(large)
        with pytest.raises(QueueFullError, match="bytes pending"):
            await emitter.track(large)
        await emitter.track(event())


@pytest.mark.parametrize("when_full", ["raise", "drop"])
async def test_an_event_that_can_never_fit_is_refused_at_once(sandbox: Sandbox, when_full: Any) -> None:
    """Larger than the bound itself: an error in every mode, rather than an endless wait."""
    async with emitter_for(sandbox, max_pending_bytes=200, when_full=when_full) as emitter:
        with pytest.raises(QueueFullError, match="can never fit: max_pending_bytes is 200"):
            await emitter.track(event(metadata={"note": "x" * 600}))

    assert emitter.stats.accepted == 0


async def test_track_nowait_accepts_and_raises_when_full(sandbox: Sandbox) -> None:
    """For synchronous code: a full queue, or one with others waiting, is an error."""
    async with emitter_for(
        sandbox, max_pending=2, when_full="raise", flush_interval=0, max_batch_size=1
    ) as emitter:
        delivery = emitter.track_nowait(event())
        emitter.track_nowait(event("other"))
        with pytest.raises(QueueFullError):
            emitter.track_nowait(event())

        assert (await delivery).attempts == 1


# Retries.


async def test_mutating_what_was_handed_over_changes_nothing(sandbox: Sandbox) -> None:
    """What was accepted is encoded: later changes do not reach it."""
    metadata = {"AdditionalData": "before"}
    made = PartnerEvent.response(session_id="s", parent_guid="p", client_unique_id="c", metadata=metadata)
    async with emitter_for(sandbox) as emitter:
        delivery = await emitter.track(made)
        metadata["AdditionalData"] = "after"
        await delivery

    assert sandbox.events[0]["metadata"] == [{"name": "AdditionalData", "value": "before"}]


async def test_while_waiting_for_room_the_event_is_not_accepted() -> None:
    """Nor sent, and the room goes to the next in line."""
    async with (
        Sandbox(latency=1.0) as slow,
        emitter_for(slow, max_pending=1, **WAITS) as emitter,
    ):
        await emitter.track(event())
        waiting = asyncio.create_task(emitter.track(event("cancelled")))
        patient = asyncio.create_task(emitter.track(event("patient")))
        await asyncio.sleep(0.1)
        waiting.cancel()
        await patient

        assert waiting.cancelled()
        assert emitter.stats.accepted == 2
    assert {item["sessionId"] for item in slow.events} == {"session", "patient"}


@pytest.mark.parametrize("comes_free", [True, False])
async def test_room_that_comes_free_in_the_turn_of_the_time_out_is_taken(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, *, comes_free: bool
) -> None:
    """The event is accepted; without room it is dropped."""
    async with emitter_for(sandbox, max_pending=1, observers=[]) as emitter:
        await emitter.track(event())
        intake = emitter._intake
        assert intake is not None

        async def time_out(*_: object, **__: object) -> bool:
            if comes_free:
                await emitter.flush()
            return False

        monkeypatch.setattr(intake._room, "wait", time_out)
        delivery = await emitter.track(event())
        await emitter.flush()
        assert (delivery.exception() is None) is comes_free
        assert emitter.stats.delivered == 1 + comes_free
