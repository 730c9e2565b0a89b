"""What an outage costs with a journal: events that find no room in memory are on disk alone.

Tracked at a fixed rate while every request is answered 503, then delivered once it is over; beside a recovery
of as many events by the next process. And one session that fails forever, beside sessions that are well.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import tempfile
import time
from array import array
from collections.abc import AsyncIterator
from typing import Any

import attrs
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from benchmarks.load import CREDENTIALS, make
from benchmarks.measure import percentile, resident
from benchmarks.sink import sink
from rokt_events_async import Emitter, LoggingObserver
from rokt_events_async._pipeline.transport import Request
from rokt_events_async._protocol.replies import Reply
from rokt_events_async.integrations.opentelemetry import OpenTelemetryObserver

_STUCK = make(10**9, 0).session_id


class Outages:
    """Answers requests with 503 instead of sending them: all of them, or those of one session."""

    def __init__(self, *, latency: float = 0.0, is_stuck: bool = False) -> None:
        self._latency = latency
        self.is_down = False
        self._stuck = _STUCK.encode() if is_stuck else b"no session"

    def come_between(self, emitter: Emitter) -> None:
        """Stands between an emitter and its server from now on."""
        assert emitter._engine is not None
        transport: Any = emitter._engine.transport
        post = transport.post

        async def stand_in(request: Request) -> Reply:
            if self._latency:
                await asyncio.sleep(self._latency)
            if not self.is_down and self._stuck not in request.body:
                return await post(request)  # type: ignore[no-any-return]
            await asyncio.sleep(0)
            request.went_out = True
            return Reply(503, {}, b"")

        transport.post = stand_in


@contextlib.asynccontextmanager
async def opened(outages: Outages, url: str, directory: str, **settings: Any) -> AsyncIterator[Emitter]:
    """An emitter as it runs in production: it logs, and has metrics."""
    metrics = OpenTelemetryObserver(meter_provider=MeterProvider([InMemoryMetricReader()]))
    observers = [LoggingObserver(), metrics]
    async with Emitter(
        CREDENTIALS, endpoint=url, journal=directory, observers=observers, **settings
    ) as emitter:
        outages.come_between(emitter)
        yield emitter


@attrs.frozen
class Outage:
    """What was measured of one."""

    track_p99_ms: float
    track_longest_ms: float
    memory_mb: float
    drained_per_second: float
    recovered_per_second: float

    @property
    def drained_to_recovered(self) -> float:
        """Of 1: as fast as the next process would send them."""
        return self.drained_per_second / self.recovered_per_second


async def _track(emitter: Emitter, events: int, rate: float, per_session: int) -> array[float]:
    """Tracks at that rate, a task for each event, as handlers do. Returns the seconds that each took."""
    took = array("d")  # Small: the memory is measured, too.

    async def handle(number: int) -> None:
        event = make(number // per_session, number)
        began = time.perf_counter()
        await emitter.track(event)
        took.append(time.perf_counter() - began)

    began, number = time.perf_counter(), 0
    handlers: set[asyncio.Task[None]] = set()
    while number < events:
        due = min(events, int((time.perf_counter() - began) * rate))
        for one in range(number, due):
            handler = asyncio.create_task(handle(one))
            handlers.add(handler)
            handler.add_done_callback(handlers.discard)
        number = due
        await asyncio.sleep(0.002)
    await asyncio.gather(*handlers)
    return took


async def _delivered(emitter: Emitter, events: int) -> float:
    """Waits until so many are delivered. Returns how many per second, of those from 30 to 90 percent."""
    began, first = 0.0, 0
    while (delivered := emitter.stats.delivered) < events * 0.9:
        if not began and delivered >= events * 0.3:
            began, first = time.perf_counter(), delivered
        await asyncio.sleep(0.002)
    return (emitter.stats.delivered - first) / (time.perf_counter() - began)


async def outage(url: str, events: int, rate: float, per_session: int) -> Outage:
    """Tracks in an outage, then ends it; and has the next process send as many."""
    outages = Outages()
    with tempfile.TemporaryDirectory(dir=".") as directory:
        async with opened(outages, url, directory) as emitter:
            await asyncio.gather(*[emitter.track(make(number, number)) for number in range(100)])
            await emitter.flush()
            gc.collect()
            empty = resident()
            outages.is_down = True
            found = await _track(emitter, events, rate, per_session)
            gc.collect()
            grown = resident() - empty
            took = sorted(found)
            outages.is_down = False
            drained = await _delivered(emitter, events)
            await emitter.flush()
            assert emitter.stats.delivered == emitter.stats.accepted
            outages.is_down = True
            await _track(emitter, events, 10**9, per_session)
        outages.is_down = False
        async with opened(outages, url, directory) as emitter:
            recovered = await _delivered(emitter, events)
            await _all_delivered(emitter, events)
    ms = 1000
    return Outage(percentile(took, 990) * ms, took[-1] * ms, grown / 1e6, drained, recovered)


async def _all_delivered(emitter: Emitter, events: int) -> None:
    while emitter.stats.delivered < events:
        await asyncio.sleep(0.01)


async def beside(url: str, seconds: float, rate: float, *, is_stuck: bool) -> float:
    """Returns the median seconds from `track()` to the outcome, of sessions that are well."""
    outages = Outages(latency=0.01, is_stuck=is_stuck)
    settings: dict[str, Any] = {"max_pending": 2000, "flush_interval": 0.05, "close_timeout": 0.1}
    with tempfile.TemporaryDirectory(dir=".") as directory:
        async with opened(outages, url, directory, **settings) as emitter:
            if is_stuck:
                for number in range(0, 5000, 500):
                    events = [make(10**9, one) for one in range(number, number + 500)]
                    await asyncio.gather(*map(emitter.track, events))
                assert emitter.health.deferred > 0
            took: list[float] = []

            async def handle(number: int) -> None:
                began = time.perf_counter()
                await (await emitter.track(make(number, number)))
                took.append(time.perf_counter() - began)

            handlers = []
            for number in range(int(seconds * rate)):
                handlers.append(asyncio.create_task(handle(number)))
                await asyncio.sleep(1 / rate)
            await asyncio.gather(*handlers)
    return percentile(sorted(took), 500)


def measure(*, events: int, rate: float, rounds: int) -> dict[str, Any]:
    """All of it."""
    results: dict[str, Any] = {"events": events, "rate": rate}
    with sink() as to:
        for per_session, count in ((25, events), (1, events // 10)):
            found = asyncio.run(outage(to.url, count, rate, per_session))
            of = attrs.asdict(found) | {"drained_to_recovered": found.drained_to_recovered}
            results[f"{per_session} events a session"] = of
        pairs = [
            [asyncio.run(beside(to.url, 5, 200, is_stuck=is_stuck)) for is_stuck in (True, False)]
            for _ in range(rounds)
        ]
    quotient = percentile(sorted([with_it / without for with_it, without in pairs]), 500)
    results["beside a session that fails"] = {"latency_to_that_without": quotient, "seconds": pairs}
    return results
