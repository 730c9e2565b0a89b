"""Health: the state of an emitter, its problems, and who is told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rokt_events_async import (
    DeliveryError,
    Emitter,
    Health,
    InvalidSettingError,
    Observer,
    PartnerEvent,
    RetryPolicy,
)
from rokt_events_async.sandbox import Sandbox
from tests.samples import CREDENTIALS, emitter_for, event


class Ear(Observer):
    """Keeps the states it is told of."""

    def __init__(self) -> None:
        self.states: list[str] = []
        self.problems: list[tuple[str, ...]] = []

    def on_health(self, before: Health, after: Health) -> None:
        self.states.append(after.state)
        self.problems.append(after.problems)


async def test_an_emitter_is_new_then_ok_then_closed(sandbox: Sandbox) -> None:
    """And knows when it last delivered."""
    emitter = Emitter(sandbox.credentials, endpoint=sandbox.url)
    assert emitter.health == Health(state="new")
    async with emitter:
        assert emitter.health.state == "ok"
        assert emitter.health.last_delivered_at is None
        delivery = await emitter.track(event())
        assert emitter.health.pending == 1
        await delivery
        assert emitter.health.last_delivered_at is not None
    assert emitter.health.state == "closed"
    never = Emitter(CREDENTIALS)
    await never.aclose()
    assert never.health == Health(state="closed")


async def test_an_outage_of_three_sessions_and_its_end() -> None:
    """Every request fails until the server is back; observers hear of both, once."""
    ear = Ear()
    async with Sandbox(script=[503] * 40) as down:
        async with emitter_for(down, observers=[ear], flush_interval=0) as emitter:
            for number in range(20):
                await emitter.track(event(f"s{number}"))
            while emitter.health.state != "outage":
                await asyncio.sleep(0.05)
            health = emitter.health
            assert health.is_breaker_open
            assert health.parked > 0
            assert health.next_attempt_at is not None
            assert health.last_error is not None
            assert health.last_error.text == "HTTP 503"
            assert await emitter.flush(timeout=60)
            assert not emitter.health.is_breaker_open
    assert ear.states.count("outage") == 1
    assert ear.states[-2:] == ["closing", "closed"]


async def test_one_failing_session_is_no_outage() -> None:
    """However often it fails, and though the breaker opens."""
    async with Sandbox(faults={500: 1.0}) as down:
        async with emitter_for(down, flush_interval=0, retry=RetryPolicy(wait=(0.01, 0.02))) as emitter:
            await emitter.track(event())
            while not emitter.health.is_breaker_open:
                await asyncio.sleep(1)  # The waits between attempts grow to a minute.
            assert emitter.health.state == "retrying"
            await emitter.aclose(timeout=0)
            assert not emitter.health.is_breaker_open, "a closed emitter starts nothing"


async def test_a_full_queue_is_a_problem(sandbox: Sandbox) -> None:
    """Until there is room again."""
    ear = Ear()
    async with emitter_for(sandbox, observers=[ear], max_pending=1, max_wait=0, flush_interval=0) as emitter:
        await emitter.track(event())
        with pytest.raises(DeliveryError, match="dropped: the queue is full"):
            await (await emitter.track(event()))
        assert emitter.health.problems == ("queue_full",)
        await emitter.flush()
        assert not emitter.health.problems
    assert ("queue_full",) in ear.problems


async def test_retrying_ends_after_a_calm_time(sandbox: Sandbox) -> None:
    """Not between two failures."""
    ear = Ear()
    sandbox.fail_next(503)
    async with emitter_for(sandbox, observers=[ear], flush_interval=0) as emitter:
        await emitter.deliver(event())
        states = [emitter.health.state]
        await asyncio.sleep(11)
        await emitter.deliver(event())
        assert [*states, emitter.health.state] == ["retrying", "ok"]
    assert ear.states == ["retrying", "ok", "closing", "closed"]


async def test_waits_for_an_outcome_are_bounded() -> None:
    """The event goes on when the wait ends."""
    async with Sandbox(latency=5.0) as slow:
        async with emitter_for(slow, flush_interval=0) as emitter:
            assert not await emitter.flush(timeout=0) or emitter.stats.pending == 0
            with pytest.raises(TimeoutError):
                await emitter.deliver(event(), timeout=0.5)
            assert not await emitter.flush(timeout=0.5)
            assert await emitter.flush(timeout=60)
            assert emitter.stats.delivered == 1
            for wait in (-1, float("nan")):
                with pytest.raises(InvalidSettingError, match="timeout must be"):
                    await emitter.flush(timeout=wait)
                with pytest.raises(InvalidSettingError, match="timeout must be"):
                    await emitter.deliver(event(), timeout=wait)
        assert await emitter.flush()


async def test_many_events_are_accepted_in_order(sandbox: Sandbox) -> None:
    """From a plain or an asynchronous iterable; it waits for room, and lets the loop turn."""
    turns = 0

    async def tick() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def produce(events: list[PartnerEvent]) -> Any:
        for one in events:
            yield one

    ticking = asyncio.create_task(tick())
    events = [event(f"s{number % 7}") for number in range(1000)]
    async with emitter_for(sandbox, max_pending=300, max_session_share=1.0, flush_interval=0) as emitter:
        plain = [delivery async for delivery in emitter.track_many(events[:500])]
        later = [delivery async for delivery in emitter.track_many(produce(events[500:]), max_wait=30)]
        await emitter.flush()
        assert emitter.stats.delivered == 1000
        with pytest.raises(InvalidSettingError, match="max_wait must be"):
            await anext(emitter.track_many(events, max_wait=-1))
    ticking.cancel()

    assert [delivery.event.parent_guid for delivery in plain + later] == [one.parent_guid for one in events]
    assert turns > 10


async def test_a_time_out_of_the_outcome_does_not_count_the_wait_for_room() -> None:
    """The event that a `TimeoutError` tells of was accepted, and is still sent."""
    async with Sandbox(latency=2.0) as slow:
        async with emitter_for(slow, max_pending=1, max_wait=None, flush_interval=0) as emitter:
            await emitter.track(event())
            with pytest.raises(TimeoutError):
                await emitter.deliver(event(), timeout=0.5)
            assert emitter.stats.accepted == 2
            await emitter.flush()
            assert emitter.stats.delivered == 2


async def test_many_events_that_are_broken_off_lose_no_delivery(sandbox: Sandbox) -> None:
    """Every accepted event was yielded, also where the loop turns."""
    seen = 0

    async def consume(emitter: Emitter) -> None:
        nonlocal seen
        async for _ in emitter.track_many([event() for _ in range(250)]):
            seen += 1

    async with emitter_for(sandbox, flush_interval=60) as emitter:
        consuming = asyncio.create_task(consume(emitter))
        while not seen:
            await asyncio.sleep(0)
        consuming.cancel()
        await asyncio.wait([consuming])
        assert 0 < seen == emitter.stats.accepted < 250
        await emitter.aclose(timeout=0)


async def test_retrying_ends_by_time(sandbox: Sandbox) -> None:
    """Ten seconds after the last failure, and observers hear of it."""
    told: list[str] = []

    class Looks(Observer):
        def on_health(self, before: Health, after: Health) -> None:
            told.append(after.state)

    sandbox.fail_next(503)
    async with emitter_for(sandbox, flush_interval=0, observers=[Looks()]) as emitter:
        await emitter.deliver(event())
        await asyncio.sleep(5)
        sandbox.fail_next(503)
        await emitter.deliver(event())
        assert told == ["retrying"]
        await asyncio.sleep(20)
        assert told == ["retrying", "ok"]
        first = emitter.health.since
        await asyncio.sleep(5)
        assert emitter.health.since == first
