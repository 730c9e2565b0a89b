"""What a journal costs: the same events through an emitter without one, with one, and with one without fsync.

Many callers await `track()` at once, as handlers do: with a journal a call takes as long as the commit. Also
a lone `track()` beside a bare write and `fdatasync` of as many bytes, the start with many events stored, and
an outage in which memory has no room (`benchmarks.overflow`).
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks import overflow
from benchmarks.load import CREDENTIALS, NoServer, make
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
from rokt_events_async import Delivery, Emitter, Journal
from rokt_events_async._pipeline.store import Step
from rokt_events_async._protocol.encoding import encode
from rokt_events_async.journal._database import Database, open_private
from rokt_events_async.journal._depot import directory_for

CALLERS = 500
"""How many handlers track at once."""

NAMES = {"without": None, "with fsync": True, "without fsync": False}


async def by_callers(url: str, events: int, per_session: int, journal: Journal | None) -> None:
    """Handlers that track one event after the other; the outcomes are awaited at the end."""
    settings: dict[str, Any] = {"flush_interval": 0.01, "max_pending": 100_000, "journal": journal}
    numbers = iter(range(events))
    deliveries: list[Delivery] = []

    async def handle(emitter: Emitter) -> None:
        for number in numbers:
            delivery = await emitter.track(make(number // per_session, number))
            deliveries.append(delivery)

    async with Emitter(CREDENTIALS, endpoint=url, **settings) as emitter:
        await asyncio.gather(*(handle(emitter) for _ in range(CALLERS)))
        await emitter.flush()
        assert emitter.stats.delivered == events


def timed(to: Sink, events: int, per_session: int, *, fsync: bool | None) -> Sample:
    """One contestant, once, in a directory of its own."""
    before = to.counts()
    with tempfile.TemporaryDirectory(dir=".") as directory, Stopwatch() as watch:
        journal = None if fsync is None else Journal(directory, fsync=fsync)
        asyncio.run(by_callers(to.url, events, per_session, journal))
    arrived = to.counts().events - before.events
    assert arrived == events, f"{arrived} of {events} events arrived"
    return watch.sample(events)


async def lone(url: str, calls: int, directory: str, *, fsync: bool) -> list[float]:
    """Seconds of one `track()` after the other."""
    took = []
    async with Emitter(CREDENTIALS, endpoint=url, journal=Journal(directory, fsync=fsync)) as emitter:
        for number in range(calls):
            await asyncio.sleep(0.002)
            event = make(number, number)
            began = time.perf_counter()
            await emitter.track(event)
            took.append(time.perf_counter() - began)
    return took


def bare(calls: int, directory: str) -> list[float]:
    """Seconds of a write and `fdatasync` of as many bytes as an event has."""
    took, content = [], b"x" * 300
    with open_private(Path(directory) / "bare") as file:
        for _ in range(calls):
            time.sleep(0.002)
            began = time.perf_counter()
            os.write(file.fileno(), content)
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - began)
    return took


def fill(directory: Path, events: int, endpoint: str) -> None:
    """Makes a journal with so many events, as a process that ended would leave it."""
    where = directory_for(directory, endpoint, CREDENTIALS.tag_id)
    where.mkdir(parents=True)
    path = where / "00000000.journal"
    open_private(path).close()
    database = Database(path, fsync=False)
    now = datetime.now(UTC)
    for first in range(0, events, 10_000):
        wires = [encode(make(number // 5, number).stamped(now)) for number in range(first, first + 10_000)]
        database.commit(Step(first=first + 1, wires=wires, tally={"accepted": len(wires)}))
    database.close()


def answering() -> NoServer:
    """A transport that answers at once."""
    transport = NoServer()
    transport.gate.set()
    return transport


async def start(directory: Path, endpoint: str) -> dict[str, float]:
    """Seconds until it is started, and until the first outcome; and the memory meanwhile."""
    before = resident()
    emitter = Emitter(
        CREDENTIALS,
        endpoint=endpoint,
        journal=directory,
        observers=[],
        close_timeout=1,
        _transport=answering(),
    )
    began = time.perf_counter()
    await emitter.start()
    started = time.perf_counter() - began
    while not emitter.stats.delivered:
        await asyncio.sleep(0.001)
    first = time.perf_counter() - began
    await asyncio.sleep(3)
    grown = resident() - before
    await emitter.aclose()
    return {"start": started, "first outcome": first, "memory MB": grown / 1e6}


def compare(
    title: str, events: int, per_session: int, latency: float, rounds: int, console: Console
) -> dict[str, Any]:
    """All contestants in turn. Returns their ratios to the emitter without a journal."""

    def contestant(to: Sink, fsync: bool | None) -> Callable[[], Sample]:  # noqa: FBT001 -- private
        return lambda: timed(to, events, per_session, fsync=fsync)

    with sink(latency=latency) as to:
        contestants = {name: contestant(to, fsync) for name, fsync in NAMES.items()}
        samples = alternate(contestants, rounds=rounds, console=console)
    base = samples["without"]
    results = {}
    rows = []
    for name, of in samples.items():
        rate = ratios(of, base)
        cpu = Spread.of([one.cpu_us / other.cpu_us for one, other in zip(of, base, strict=True)])
        results[name] = {"of_that_without": rate, "cpu_of_that_without": cpu}
        rows.append((name, str(Spread.of([one.rate for one in of])), str(rate), str(cpu)))
    show(console, title, ("emitter", "events/s", "of that without", "its CPU"), rows)
    return results


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--quick", is_flag=True, help="Fewer events and rounds, and no start with many events.")
def main(rounds: int, quick: bool) -> None:  # noqa: FBT001 -- by click
    """Measures what a journal costs; everything beside the emitter without one in the same round."""
    steady_heap()
    console = terminal()
    rounds = min(rounds, 2) if quick else rounds
    cases: dict[str, Any] = {}
    results: dict[str, Any] = {"cases": cases}
    for per_session, latency, events in ((25, 0.0, 30_000), (1, 0.0, 8_000), (25, 0.05, 15_000)):
        title = f"{per_session} events a session, answers after {latency * 1000:g} ms"
        count = events // 3 // 25 * 25 if quick else events
        cases[title] = compare(title, count, per_session, latency, rounds, console)
    calls = 200 if quick else 1000
    with sink() as to, tempfile.TemporaryDirectory(dir=".") as directory:
        written = percentile(sorted(bare(calls, directory)), 500)
        stored = {
            name: percentile(
                sorted(asyncio.run(lone(to.url, calls, f"{directory}/{name}", fsync=fsync))), 500
            )
            for name, fsync in (("with fsync", True), ("without fsync", False))
        }
    for name, p50 in stored.items():
        console.print(f"a lone track(), {name}: p50 {p50 * 1e3:.2f} ms, {p50 / written:.1f} x a bare write")
    results["lone"] = {"bare": written, **stored}
    if not quick:
        endpoint = "http://127.0.0.1:9/v1/partner/events"
        with tempfile.TemporaryDirectory(dir=".") as directory:
            fill(Path(directory), 1_000_000, endpoint)
            results["start"] = asyncio.run(start(Path(directory), endpoint))
        console.print(f"1,000,000 events stored: {results['start']}")
    events, rate = (10_000, 5_000) if quick else (1_000_000, 5_000)
    results["overflow"] = overflow.measure(events=events, rate=rate, rounds=1 if quick else 3)
    for name, found in results["overflow"].items():
        console.print(f"overflow, {name}: {found}")
    if not quick:
        save("journal", results)


if __name__ == "__main__":
    main()
