"""Partial failure: what failing, hanging and absent servers do to everything else.

The emitter posts to a server in memory (a transport of the benchmark's own), so that only the scheduling is
measured: which batch starts when, and how long anything is held. Times are real.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import click
import orjson
from rich.console import Console
from rich.table import Table

from benchmarks.load import CREDENTIALS, make
from benchmarks.measure import RESULTS
from benchmarks.scale import Holds
from benchmarks.sink import MARK
from rokt_events_async import Delivery, Emitter, RetryPolicy
from rokt_events_async._pipeline.transport import Request
from rokt_events_async._protocol.replies import NoReply, Reply

HANG = 10.0
"""Seconds after which a request that hangs times out."""

SICK = 1_000_000
"""Sessions from this number on are the ones that fail."""


class Server:
    """A server in memory.

    Args:
        latency: Seconds before every answer.
        rate: How many of all requests are answered 503.
        sick: What requests of sick sessions meet: a status, or `None` for no answer.
        lost: How many of all requests have no answer.
    """

    def __init__(
        self, latency: float = 0.0, rate: float = 0.0, sick: int | None = 200, lost: float = 0.0
    ) -> None:
        self.latency = latency
        self.rate = rate
        self.sick = sick
        self.lost = lost
        self.is_down: int | None = None
        self.is_silent = False
        self.started: list[float] = []
        self._luck = random.Random(1)

    async def post(self, request: Request) -> Reply | NoReply:
        self.started.append(time.perf_counter())
        request.went_out = True
        session = int(orjson.loads(request.body)["events"][0]["sessionId"][-12:], 16)
        status = self.is_down or (503 if self._luck.random() < self.rate else 200)
        if session >= SICK:
            if self.sick is None:
                return await self._be_silent()
            status = self.sick
        if self.is_silent or self._luck.random() < self.lost:
            return await self._be_silent()
        await asyncio.sleep(self.latency)
        if status != 200:
            return Reply(status, {}, b"")
        count = request.body.count(MARK)
        body = b'{"processedEventsCount":%d,"unprocessedEvents":[],"success":true}' % count
        return Reply(200, {}, body)

    async def _be_silent(self) -> NoReply:
        await asyncio.sleep(HANG)
        return NoReply(f"no answer within {HANG:g} s", is_timeout=True)

    async def aclose(self) -> None:
        """Holds nothing."""


def emitter_for(server: Server, **settings: Any) -> Emitter:
    defaults: dict[str, Any] = {"flush_interval": 0.0, "observers": [], "close_timeout": 0.0}
    return Emitter(CREDENTIALS, _transport=server, **(defaults | {"max_pending": 200_000} | settings))


async def until(deliveries: list[Delivery], part: float = 1.0) -> float:
    """Seconds until that part of them is settled."""
    began, needed = time.perf_counter(), int(part * len(deliveries))
    while sum(one.done() for one in deliveries) < needed:
        await asyncio.sleep(0.005)
    return time.perf_counter() - began


async def throughput(
    rate: float = 0.0, latency: float = 0.01, sessions: int = 4000, lost: float = 0.0
) -> float:
    """Events per second, until 90 % are settled."""
    async with emitter_for(Server(latency, rate, lost=lost)) as emitter:
        deliveries = [await emitter.track(make(number, number)) for number in range(sessions)]
        return 0.9 * sessions / await until(deliveries, 0.9)


async def beside(sick: int, *, head_start: float = 0.0) -> float:
    """Seconds until 500 healthy sessions are settled beside some that are always answered 500."""
    async with emitter_for(Server(0.005, sick=500)) as emitter:
        for number in range(sick):
            await emitter.track(make(SICK + number, number))
        await asyncio.sleep(head_start)
        return await until([await emitter.track(make(number, number)) for number in range(500)])


async def latency_beside(sick: int, *, status: int | None, seconds: float = 8.0) -> float:
    """Median seconds before sending, at 200 healthy events per second beside sessions that fail or hang."""
    async with emitter_for(Server(0.005, sick=status)) as emitter:
        for number in range(sick):
            await emitter.track(make(SICK + number, number))
        if sick:  # From then on it is known which ones hang: sixteen are found out at a time.
            await asyncio.sleep(HANG * -(-sick // 16) + 0.5 if status is None else 1.0)
        waits: list[float] = []

        def note(began: float, _: object) -> None:
            waits.append(time.perf_counter() - began)

        end = time.perf_counter() + seconds
        number = 0
        while time.perf_counter() < end:
            number += 1
            delivery = await emitter.track(make(number, number))
            delivery.add_done_callback(functools.partial(note, time.perf_counter()))
            await asyncio.sleep(0.005)
        return statistics.median(waits) - 0.005


async def outage(max_concurrency: int) -> float:
    """Requests per second after the first two seconds of an outage."""
    server = Server(0.005)
    server.is_down = 503
    async with emitter_for(server, max_concurrency=max_concurrency) as emitter:
        for number in range(2000):
            await emitter.track(make(number, number))
        await asyncio.sleep(8)
        first = server.started[0]
        return sum(at > first + 2 for at in server.started) / 6


async def recovery(*, is_silent: bool = False) -> float:
    """Seconds from the end of an outage until 90 % of 1,000 sessions are settled."""
    server = Server(0.005)
    server.is_down = None if is_silent else 503
    server.is_silent = is_silent
    async with emitter_for(server) as emitter:
        deliveries = [await emitter.track(make(number, number)) for number in range(1000)]
        await asyncio.sleep(25 if is_silent else 10)
        server.is_down, server.is_silent = None, False
        return await until(deliveries, 0.9)


async def longest_track() -> float:
    """The longest `track()` in an outage with a full queue and default settings, 200 callers at a time."""
    server = Server(0.005)
    server.is_down = 503
    longest = 0.0

    async def call(number: int) -> None:
        nonlocal longest
        began = time.perf_counter()
        await emitter.track(make(number, number))
        longest = max(longest, time.perf_counter() - began)

    async with Emitter(CREDENTIALS, _transport=server, observers=[], close_timeout=0) as emitter:
        for number in range(0, 12_000, 200):
            await asyncio.gather(*(call(number + one) for one in range(200)))
        return longest


async def hold(work: Callable[[], Any]) -> float:
    """The longest time in seconds that a single callback held the loop meanwhile; the collector is off."""
    holds = Holds()
    gc.collect()
    gc.disable()
    holds.is_counting = True
    try:
        await work()
    finally:
        holds.is_counting = False
        gc.enable()
    return holds.longest


async def hold_of_track_many() -> float:
    events = [make(number // 25, number) for number in range(100_000)]
    async with emitter_for(Server(), max_session_share=1.0) as emitter:

        async def work() -> None:
            async for _ in emitter.track_many(events):
                pass

        return await hold(work)


async def hold_of_deadlines(sessions: int = 100_000) -> float:
    """100,000 sessions whose deadlines pass while the breaker is open."""
    server = Server(0.005)
    server.is_down = 503
    settings: dict[str, Any] = {"retry": RetryPolicy(deadline=8.0), "flush_interval": 1.0}
    async with emitter_for(server, **settings) as emitter:
        for number in range(sessions):
            await emitter.track(make(number, number))
        await asyncio.sleep(5)

        async def work() -> None:
            while emitter.stats.pending:
                await asyncio.sleep(0.05)

        return await hold(work)


async def hold_of_a_return(sessions: int = 100_000) -> float:
    """100,000 sessions that come back at once, when an outage ends."""
    server = Server(0.0)
    server.is_down = 503
    async with emitter_for(server, flush_interval=1.0) as emitter:
        deliveries = [await emitter.track(make(number, number)) for number in range(sessions)]
        await asyncio.sleep(5)

        async def work() -> None:
            server.is_down = None
            await asyncio.wait(deliveries)

        return await hold(work)


async def measure() -> dict[str, float]:
    """All rows, one after the other."""
    calm = await throughput(0.0)
    rows = {"events/s, 10 ms, no faults": calm}
    for rate in (0.01, 0.05, 0.2):
        rows[f"{rate:.0%} of 503s, of that"] = await throughput(rate) / calm
    rows["5% of time-outs, of that"] = await throughput(lost=0.05) / calm
    slow = await throughput(latency=0.05)
    rows["events/s, 50 ms, no faults"] = slow
    rows["5% of 503s at 50 ms, of that"] = await throughput(0.05, 0.05) / slow
    rows["500 healthy alone, s"] = await beside(0)
    rows["500 healthy beside 20 failing, s"] = await beside(20)
    rows["500 healthy after 200 failing, s"] = await beside(200, head_start=2.0)
    for count in (0, 16, 100):
        rows[f"wait beside {count} failing, median s"] = await latency_beside(count, status=500)
    for count in (20, 100):
        rows[f"wait beside {count} hanging, median s"] = await latency_beside(count, status=None)
    for count in (4, 16, 64, 256):
        rows[f"requests/s in an outage, {count} in flight"] = await outage(count)
    rows["recovery after an outage, s"] = await recovery()
    rows["recovery after a black hole, s"] = await recovery(is_silent=True)
    rows["longest track(), full queue, s"] = await longest_track()
    rows["track_many of 100,000, longest hold, ms"] = 1000 * await hold_of_track_many()
    rows["100,000 deadlines, longest hold, ms"] = 1000 * await hold_of_deadlines()
    rows["100,000 back at once, longest hold, ms"] = 1000 * await hold_of_a_return()
    return rows


@click.command()
def main() -> None:
    """Prints a table, and writes it to results/faults.json."""
    rows = asyncio.run(measure())
    table = Table(title="Partial failure", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in rows.items():
        table.add_row(name, f"{value:,.3g}")
    Console().print(table)
    (RESULTS / "faults.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
