"""The fleet: what a publisher and a relay cost, how full requests are, how soon a killed relay is replaced.

Everything beside a baseline of the same run: bare pipelined XADDs, and the plain emitter. The server is the
Valkey of the test group, with `appendfsync always`; a sink takes the requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import click
import redis.asyncio
from rich.console import Console

from benchmarks.load import CREDENTIALS, make
from benchmarks.measure import (
    Sample,
    Spread,
    Stopwatch,
    alternate,
    percentile,
    ratios,
    resident,
    save,
    show,
    steady_heap,
    terminal,
)
from benchmarks.sink import Sink, sink
from benchmarks.throughput import by_emitter
from rokt_events_async import Emitter, NotAcceptedError, Observer
from rokt_events_async._protocol.encoding import encode
from rokt_events_async.relay import Publisher, RedisQueue, Relay
from rokt_events_async.relay.entries import NewEntry, partition_of
from tests.servers import QueueServer, need_binary

HANDLERS = 100
SPREAD_RATE = 500
PUBLISHERS = 4
WINDOW = 20_000
BAD = "bad-session"


@contextlib.contextmanager
def server() -> Iterator[QueueServer]:
    with (
        tempfile.TemporaryDirectory() as directory,
        QueueServer(need_binary("valkey"), Path(directory)) as one,
    ):
        yield one


def relay(queue: str, rokt: str, **settings: Any) -> Relay:
    make_emitter = functools.partial(Emitter, CREDENTIALS, endpoint=rokt)
    return Relay(RedisQueue(queue), make_emitter, observers=[], **settings)


async def fill(url: str, events: int, sessions: int) -> None:
    """Publishes ready events as fast as it goes: 25 of each session; or of so many sessions, alternating."""
    queue = RedisQueue(url)
    await queue.open_relay(heartbeat_timeout=15)
    now = datetime.now(UTC)
    for begin in range(0, events, 1000):
        entries = []
        for number in range(begin, min(events, begin + 1000)):
            event = make(number % sessions if sessions else number // 25, number).stamped(now)
            partition = partition_of(event.session_id, queue.partitions)
            entries.append(NewEntry(partition, b"fill-%d" % number, encode(event)))
        await queue.publish(entries, timeout=60)
    await queue.aclose()


async def flush_all(url: str) -> None:
    async with redis.asyncio.from_url(url) as client:
        await client.flushall()


# The publisher beside bare XADDs.


async def by_publisher(url: str, events: int) -> None:
    numbers = iter(range(events))

    async def handle(publisher: Publisher) -> None:
        for number in numbers:
            await publisher.track(make(number // 25, number))

    async with Publisher(RedisQueue(url), observers=[]) as publisher:
        await asyncio.gather(*(handle(publisher) for _ in range(HANDLERS)))


async def by_bare_pipeline(url: str, events: int) -> None:
    """Ready entries, as many at a time as there are handlers."""
    body = encode(make(1, 1).stamped(datetime.now(UTC)))
    async with redis.asyncio.from_url(url) as client:
        for begin in range(0, events, HANDLERS):
            pipe = client.pipeline(transaction=False)
            for number in range(begin, min(events, begin + HANDLERS)):
                pipe.xadd(f"{{rokt}}:events:{number % 16}", {"v": "1", "i": f"n-{number}", "e": body})
            await pipe.execute()


def measure_publisher(console: Console, rounds: int, seconds: float) -> dict[str, Any]:
    contestants: dict[str, Callable[[str, int], Coroutine[Any, Any, None]]] = {
        "bare pipelined XADDs": by_bare_pipeline,
        "publisher": by_publisher,
    }
    with server() as at:

        def timed(name: str, events: int) -> Sample:
            asyncio.run(flush_all(at.url))
            with Stopwatch() as watch:
                asyncio.run(contestants[name](at.url, events))
            return watch.sample(events)

        sizes = {name: int(timed(name, 5000).rate * seconds) for name in contestants}
        samples = alternate(
            {name: functools.partial(timed, name, sizes[name]) for name in contestants},
            rounds=rounds,
            console=console,
        )
        lone = asyncio.run(_lone_publications(at.url))
    bare = samples["bare pipelined XADDs"]
    rows = [
        [
            name,
            *(str(Spread.of([getattr(one, kind) for one in taken])) for kind in ("rate", "cpu_us")),
            str(ratios(taken, bare)),
        ]
        for name, taken in samples.items()
    ]
    show(console, f"{HANDLERS} handlers", ["", "events/s", "CPU µs/event", "of the bare ones"], rows)
    console.print(f"a lone publication: median {lone[0]:.2f} ms, p99 {lone[1]:.2f} ms")
    return {"of_bare": ratios(samples["publisher"], bare), "lone_ms": lone}


async def _lone_publications(url: str) -> tuple[float, float]:
    taken = []
    async with Publisher(RedisQueue(url), observers=[]) as publisher:
        for number in range(500):
            began = time.perf_counter()
            await publisher.track(make(1, number))
            taken.append((time.perf_counter() - began) * 1000)
    taken.sort()
    return percentile(taken, 500), percentile(taken, 990)


# One relay beside the plain emitter.


def by_relay(at: QueueServer, to: Sink, events: int, sessions: int) -> Sample:
    """A relay that delivers what is in the queue already."""
    asyncio.run(flush_all(at.url))
    asyncio.run(fill(at.url, events, sessions))
    before = to.counts().events

    async def drain() -> Sample:
        one = relay(at.url, to.url)
        try:
            with Stopwatch() as watch:  # From its start, and without its close.
                await one.start()
                while one.stats.acknowledged < events:
                    await asyncio.sleep(0.01)
        finally:
            await one.aclose()
        return watch.sample(events)

    sample = asyncio.run(drain())
    assert to.counts().events - before == events
    return sample


def measure_relay(console: Console, rounds: int, seconds: float) -> dict[str, Any]:
    with server() as at, sink() as to:

        def emitter(events: int) -> Sample:
            with Stopwatch() as watch:
                asyncio.run(by_emitter(to.url, events, 25, 16))
            return watch.sample(events)

        def relays(events: int) -> Sample:
            return by_relay(at, to, events, 0)

        def round_of(run: Callable[[int], Sample], rate: float) -> Callable[[], Sample]:
            return functools.partial(run, int(rate * seconds) // 25 * 25)

        samples = alternate(
            {
                "plain emitter": round_of(emitter, emitter(5000).rate),
                "relay": round_of(relays, max(10_000, relays(20_000).rate)),
            },
            rounds=rounds,
            console=console,
        )
    rows = [
        [name, *(str(Spread.of([getattr(one, kind) for one in taken])) for kind in ("rate", "cpu_us"))]
        for name, taken in samples.items()
    ]
    show(console, "25 events per session", ["", "events/s", "CPU µs/event"], rows)
    pairs = list(zip(samples["relay"], samples["plain emitter"], strict=True))
    cpu = Spread.of([one.cpu_us / other.cpu_us for one, other in pairs])
    rate = ratios(samples["relay"], samples["plain emitter"])
    console.print(f"of the plain emitter: events/s {rate}, CPU per event {cpu}")
    return {"rate": rate, "cpu": cpu}


# A deep backlog.


def measure_backlog(console: Console, events: int) -> dict[str, Any]:
    with server() as at, sink() as to:
        plain = by_relay(at, to, 100_000, 0)
        asyncio.run(flush_all(at.url))
        before = to.counts()
        sample = by_relay(at, to, events, 20_000)
        after = to.counts()
    per_request = (after.events - before.events) / (after.requests - before.requests)
    ratio = sample.rate / plain.rate
    console.print(
        f"{events:,} events of 20,000 interleaved sessions: {per_request:.1f} events per request, "
        f"{sample.rate:,.0f} events/s, {ratio:.2f} of {plain.rate:,.0f} at 25 events per session"
    )
    return {"events_per_request": per_request, "rate": sample.rate, "of_a_plain_relay": ratio}


# Sessions spread over publishers.


@contextlib.asynccontextmanager
async def relay_processes(count: int, queue: str, rokt: str, *options: str) -> AsyncIterator[list[Any]]:
    command = (sys.executable, "-m", "benchmarks.relay", "--as-relay", queue, rokt, *options)
    processes = [await asyncio.create_subprocess_exec(*command) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
                await process.wait()


async def _as_relay(queue: str, rokt: str, timeout: str) -> None:
    one = relay(queue, rokt, heartbeat_timeout=float(timeout))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, one.stop)
    await one.run()


async def wait_for_relays(url: str, count: int) -> None:
    queue = RedisQueue(url)
    while sum([one.is_alive for one in await queue.relays()]) < count:
        await asyncio.sleep(0.05)
    await queue.aclose()


async def shop(url: str, seconds: float, number: int, sessions: int = 25) -> int:
    """One publisher's traffic: its sessions are those of the other publishers too."""
    published = 0
    async with Publisher(RedisQueue(url), observers=[]) as publisher:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        while (now := loop.time()) < begin + seconds:
            while published < (now - begin) * SPREAD_RATE:
                # A session lives for about a second, and has 20 events of each publisher.
                session = int(now - begin) * 1000 + published % sessions
                await publisher.track(make(session, number * 10**9 + published))
                published += 1
            await asyncio.sleep(0.005)
    return published


async def _spread(at: QueueServer, to: Sink, count: int, seconds: float) -> float:
    await flush_all(at.url)
    before = to.counts()
    async with relay_processes(count, at.url, to.url, "15"):
        await wait_for_relays(at.url, count)
        published = sum(
            await asyncio.gather(*(shop(at.url, seconds, number) for number in range(PUBLISHERS)))
        )
        while to.counts().events - before.events < published:
            await asyncio.sleep(0.1)
        after = to.counts()
    return (after.events - before.events) / (after.requests - before.requests)


def measure_spread(console: Console, seconds: float) -> dict[str, Any]:
    found = {}
    with server() as at, sink() as to:
        for count in (1, 2, 4):
            found[count] = asyncio.run(_spread(at, to, count, seconds))
            console.print(f"{PUBLISHERS} publishers, {count} relays: {found[count]:.1f} events per request")
    return {"events_per_request": found}


# A killed relay, a failing session, an absent server, an absent Rokt.


async def _kill(at: QueueServer, to: Sink, timeout: float) -> float:
    await flush_all(at.url)
    async with relay_processes(2, at.url, to.url, str(timeout)) as processes:
        await wait_for_relays(at.url, 2)
        before = to.counts().events
        published = await shop(at.url, 3.0, 1)
        processes[0].kill()
        killed_at = time.monotonic()
        await processes[0].wait()
        while to.counts().events - before < published:
            await asyncio.sleep(0.02)
        return time.monotonic() - killed_at - timeout


def measure_kill(console: Console) -> dict[str, Any]:
    with server() as at, sink() as to:
        taken = [asyncio.run(_kill(at, to, 5.0)) for _ in range(3)]
    console.print(
        f"a relay killed -9: its entries are delivered {Spread.of(taken)} s after heartbeat_timeout"
    )
    return {"after_heartbeat_timeout": Spread.of(taken)}


class _Latency(Observer):
    """How long events take from their time to their delivery."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    def on_delivered(self, delivery: Any, receipt: Any) -> None:
        self.taken.append((datetime.now(UTC) - delivery.event.event_time).total_seconds())


async def _beside(at: QueueServer, to: Sink, failing: int, seconds: float) -> list[float]:
    """Returns how long events took beside so many of a session that always fails, in order."""
    await flush_all(at.url)
    queue = RedisQueue(at.url)
    await queue.open_relay(heartbeat_timeout=15)
    partition = partition_of(BAD, queue.partitions)
    for begin in range(0, failing, 1000):
        bad = [
            attrs.evolve(make(1, number), session_id=BAD).stamped(datetime.now(UTC))
            for number in range(begin, min(failing, begin + 1000))
        ]
        await queue.publish([NewEntry(partition, b"bad", encode(one)) for one in bad], timeout=60)
    await queue.aclose()
    latency = _Latency()
    make_emitter = functools.partial(Emitter, CREDENTIALS, endpoint=to.url, observers=[latency])
    one = Relay(RedisQueue(at.url), make_emitter, observers=[], window=WINDOW, close_timeout=0)
    async with one:
        await asyncio.sleep(3 if failing else 0.5)
        await shop(at.url, seconds, 1)
        await asyncio.sleep(3)
    return sorted(latency.taken)


def measure_failing(console: Console, seconds: float) -> dict[str, Any]:
    found = {}
    with server() as at, sink(bad=BAD.encode()) as to:
        for failing in (0, WINDOW):
            taken = asyncio.run(_beside(at, to, failing, seconds))
            found[failing] = percentile(taken, 500), percentile(taken, 990)
            console.print(
                f"beside {failing:,} entries of a session that always fails: {len(taken):,} events, "
                f"median {found[failing][0]:.3f} s, p99 {found[failing][1]:.3f} s after they were tracked"
            )
    ratio = found[WINDOW][0] / found[0][0], found[WINDOW][1] / found[0][1]
    console.print(f"ratio: median {ratio[0]:.2f}, p99 {ratio[1]:.2f}")
    return {"ratio_of_medians": ratio[0], "ratio_of_p99": ratio[1]}


async def _outage_of_server(at: QueueServer, to: Sink, seconds: float) -> dict[str, Any]:
    await flush_all(at.url)
    before = to.counts().events
    accepted = refused = 0
    is_over = False
    async with relay_processes(2, at.url, to.url, "15"):
        await wait_for_relays(at.url, 2)
        async with Publisher(RedisQueue(at.url), observers=[]) as publisher:

            async def handle(name: int) -> None:
                nonlocal accepted, refused
                number = 0
                while not is_over:
                    number += 1
                    try:
                        await publisher.track(make(number, name * 10**9 + number))
                        accepted += 1
                    except NotAcceptedError:
                        refused += 1
                    await asyncio.sleep(0.05)

            handlers = [asyncio.create_task(handle(name)) for name in range(HANDLERS)]
            await asyncio.sleep(2)
            memory = resident()
            at.kill()
            grown = 0
            for _ in range(int(seconds)):
                await asyncio.sleep(1)
                grown = max(grown, resident() - memory)
            await asyncio.to_thread(at.start)
            await asyncio.sleep(3)
            is_over = True
            await asyncio.gather(*handlers)
            unconfirmed = publisher.stats.unconfirmed
        deadline = time.monotonic() + 60
        while to.counts().events - before < accepted and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        await asyncio.sleep(1)
        arrived = to.counts().events - before
    return {
        "accepted": accepted,
        "refused": refused,
        "unconfirmed": unconfirmed,
        "lost": max(0, accepted - arrived),
        "more_than_accepted": max(0, arrived - accepted),
        "memory_grown_mb": grown / 1e6,
    }


def measure_outage(console: Console, seconds: float) -> dict[str, Any]:
    with server() as at, sink() as to:
        found = asyncio.run(_outage_of_server(at, to, seconds))
    console.print(f"the server gone for {seconds:.0f} s: {found}")
    return found


@click.command()
@click.option("--rounds", default=7, show_default=True)
@click.option(
    "--seconds", default=1.0, show_default=True, help="About how long each contestant runs a round."
)
@click.option("--backlog", default=1_000_000, show_default=True, help="Events of the deep backlog.")
@click.option("--only", help="One part: publisher, relay, backlog, spread, kill, failing, outage.")
@click.option("--quick", is_flag=True, help="A short form that writes no results.")
def main(rounds: int, seconds: float, backlog: int, only: str | None, quick: bool) -> None:  # noqa: FBT001 -- by click
    """Measures the fleet."""
    steady_heap()
    console = terminal()
    if quick:
        rounds, seconds, backlog = 2, 0.3, 60_000
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "publisher": lambda: measure_publisher(console, rounds, seconds),
        "relay": lambda: measure_relay(console, rounds, seconds),
        "backlog": lambda: measure_backlog(console, backlog),
        "spread": lambda: measure_spread(console, 4 if quick else 20),
        "kill": lambda: measure_kill(console),
        "failing": lambda: measure_failing(console, 2 if quick else 10),
        "outage": lambda: measure_outage(console, 3 if quick else 20),
    }
    results = {name: part() for name, part in parts.items() if only in (None, name)}
    if only is None and not quick:
        save("relay", results)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-relay"]:
        asyncio.run(_as_relay(*sys.argv[2:5]))
    else:
        main()
