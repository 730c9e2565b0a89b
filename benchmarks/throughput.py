"""Events a second, and processor time an event, from building a `PartnerEvent` to its settled delivery.

Beside (a) a bare aiohttp loop that posts ready-made bodies, (b) what a user writes by hand without this
library (group, `json.dumps`, post, `gather`), (c) the naive one post an event.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

import aiohttp
import click
from rich.console import Console

from benchmarks.load import CREDENTIALS, OUTSTANDING, PAGE, make
from benchmarks.measure import Sample, Spread, Stopwatch, alternate, ratios, save, show, steady_heap, terminal
from benchmarks.sink import Sink, sink
from rokt_events_async import Delivery, Emitter
from rokt_events_async._protocol import encoding

HEADERS = {
    "rokt-pub-id": CREDENTIALS.pub_id,
    "rokt-secret": CREDENTIALS.secret,
    "rokt-tag-id": CREDENTIALS.tag_id,
    "Content-Type": "application/json",
    "Accept": "application/json",
}


# The contestants. Each returns when all events have their answer.


async def by_emitter(url: str, events: int, per_session: int, concurrency: int) -> None:
    """As an application uses it: a page's worth of events at a time, and the oldest deliveries awaited."""
    settings: dict[str, Any] = {"max_concurrency": concurrency, "max_pending": 10_000, "flush_interval": 0.01}
    async with Emitter(CREDENTIALS, endpoint=url, **settings) as emitter:
        deliveries: deque[Delivery] = deque()
        for number in range(events):
            deliveries.append(await emitter.track(make(number // per_session, number)))
            if len(deliveries) >= OUTSTANDING:
                for _ in range(PAGE):
                    await deliveries.popleft()
        await emitter.flush()
        while deliveries:
            await deliveries.popleft()
        assert emitter.stats.delivered == events


async def by_bare_loop(url: str, events: int, per_session: int, concurrency: int) -> None:
    """The wire's limit here: bodies that are ready, and answers that are only read."""
    body = ready_body(per_session)
    todo = events // per_session

    async def post(session: aiohttp.ClientSession) -> None:
        nonlocal todo
        while todo > 0:
            todo -= 1
            async with session.post(url, data=body, headers=HEADERS) as response:
                assert response.status == 200
                await response.read()

    async with session_for(concurrency) as session:
        await asyncio.gather(*(post(session) for _ in range(concurrency)))


def ready_body(per_session: int) -> bytes:
    return encoding.join(
        [encoding.encode(make(1, number).stamped(datetime.now(UTC))) for number in range(per_session)]
    )


async def by_hand(url: str, events: int, per_session: int, concurrency: int) -> None:
    """Group by session, `json.dumps`, post, `gather`; answers are read, and nothing is retried."""
    sessions: dict[str, list[dict[str, Any]]] = {}
    for number in range(events):
        data = plain_event(number // per_session, number)
        sessions.setdefault(data["sessionId"], []).append(data)
    limit = asyncio.Semaphore(concurrency)

    async def post(session: aiohttp.ClientSession, batch: list[dict[str, Any]]) -> None:
        async with limit, session.post(url, data=json.dumps({"events": batch}), headers=HEADERS) as response:
            answer = await response.json()
            assert answer["processedEventsCount"] == len(batch)

    async with session_for(concurrency) as session:
        await asyncio.gather(*(post(session, batch) for batch in sessions.values()))


def plain_event(session: int, number: int) -> dict[str, Any]:
    return {
        "eventType": "SignalImpression",
        "eventTime": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "sessionId": f"aec20024-8d23-46be-95f3-{session:012x}",
        "parentGuid": f"58bcbaa0-e13c-4a3d-84cd-{number:012x}",
        "clientUniqueId": "10f7d87b-e879-47b2-9638-a667e63beae2",
        "metadata": [{"name": "AdditionalData", "value": "ImpressionSlot"}],
    }


async def one_by_one(url: str, events: int, per_session: int, concurrency: int) -> None:
    """The naive one post an event."""
    await by_hand(url, events, 1, concurrency)


def session_for(concurrency: int) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=concurrency), cookie_jar=aiohttp.DummyCookieJar()
    )


Contestant = Callable[[str, int, int, int], Coroutine[Any, Any, None]]


def runner(loop: str) -> Callable[[Coroutine[Any, Any, None]], None]:
    if loop == "uvloop":
        import uvloop  # noqa: PLC0415 -- only where it is asked for

        return uvloop.run
    return asyncio.run


def timed(
    contestant: Contestant, to: Sink, events: int, per_session: int, concurrency: int, loop: str
) -> Sample:
    """One contestant, once; the sink's count is held against what was sent."""
    before = to.counts()
    with Stopwatch() as watch:
        runner(loop)(contestant(to.url, events, per_session, concurrency))
    arrived = to.counts().events - before.events
    assert arrived == events, f"{arrived} of {events} events arrived"
    return watch.sample(events)


@click.command()
@click.option("--rounds", default=9, show_default=True)
@click.option(
    "--seconds", default=0.6, show_default=True, help="About how long each contestant runs a round."
)
@click.option("--quick", is_flag=True, help="One concurrency, one loop, the emitter and the bare loop only.")
def main(rounds: int, seconds: float, quick: bool) -> None:  # noqa: FBT001 -- by click
    """Measures throughput; everything as a ratio to the bare loop of the same round."""
    steady_heap()
    console = terminal()
    cases = [(25, 16, "asyncio"), (1, 16, "asyncio")]
    if not quick:
        cases += [(5, 16, "asyncio")]
        cases += [(per, concurrency, "asyncio") for concurrency in (1, 4, 64) for per in (25, 1)]
        cases += [(per, 16, "uvloop") for per in (25, 5, 1)]
    results = []
    for per_session, concurrency, loop in cases:
        results.append(measure(console, per_session, concurrency, loop, rounds, seconds, quick=quick))
    if not quick:
        save("throughput", {"cases": results})


def measure(
    console: Console,
    per_session: int,
    concurrency: int,
    loop: str,
    rounds: int,
    seconds: float,
    *,
    quick: bool,
) -> dict[str, Any]:
    """One case: all contestants in turn."""
    contestants: dict[str, Contestant] = {"bare loop, ready-made bodies": by_bare_loop, "emitter": by_emitter}
    if not quick and concurrency == 16:
        contestants |= {"by hand": by_hand} | ({"one post an event": one_by_one} if per_session > 1 else {})
    console.print(f"\n{per_session} events a session, {concurrency} requests in flight, {loop}")
    with sink() as to:
        sizes = {}
        for name, contestant in contestants.items():
            probe = timed(contestant, to, 50 * 25, per_session, concurrency, loop)
            sizes[name] = max(1, int(probe.rate * seconds) // 50) * 50
        before = to.counts()
        samples = alternate(
            {
                name: lambda name=name, contestant=contestant: timed(  # type: ignore[misc]
                    contestant, to, sizes[name], per_session, concurrency, loop
                )
                for name, contestant in contestants.items()
            },
            rounds=rounds,
            console=console,
        )
        busy = to.counts().cpu - before.cpu
    total = sum(sample.seconds for each in samples.values() for sample in each) * (rounds + 1) / rounds
    base = samples["bare loop, ready-made bodies"]
    rows, data = [], {}
    for name, taken in samples.items():
        rate, cpu = Spread.of([one.rate for one in taken]), Spread.of([one.cpu_us for one in taken])
        of_bare = ratios(taken, base)
        rows.append([name, str(rate), str(cpu), str(of_bare)])
        data[name] = {"events_a_second": rate, "cpu_us_an_event": cpu, "of_bare_loop": of_bare}
    show(console, "median (least to most)", ["", "events/s", "CPU µs/event", "of the bare loop"], rows)
    console.print(f"the sink was busy {busy / total:.0%} of the time", style="dim")
    return {
        "events_a_session": per_session,
        "concurrency": concurrency,
        "loop": loop,
        "sink_busy": busy / total,
        "contestants": data,
    }


if __name__ == "__main__":
    main()
