"""How long `track()` holds its caller, how long an event takes to its outcome, and what rest costs.

Calls in a row, into a queue with room, tell what `track()` does. Under a load it is called in between
other work, and finds the processor's caches full of that: how much this costs any call is told by
building the event, which is measured the same way. The load comes evenly, some events every
millisecond, at 10, 50 and 90 % of what this machine could deliver a moment before; 5 events a session,
to a sink in another process.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import selectors
import time
from collections import deque
from typing import Any

import click

from benchmarks.load import CREDENTIALS, OUTSTANDING, PAGE, make
from benchmarks.measure import Spread, percentile, save, show, steady_heap, terminal
from benchmarks.sink import sink
from rokt_events_async import Delivery, Emitter

A_SESSION = 5
INTERVAL = 0.25
TICK = 0.001
SHARES = (0.1, 0.5, 0.9)
THOUSANDTHS = (500, 990, 999)


async def capacity(url: str, events: int) -> float:
    """Events a second, as fast as they go."""
    deliveries: deque[Delivery] = deque()
    began = time.perf_counter()
    async with Emitter(CREDENTIALS, endpoint=url, flush_interval=0.01) as emitter:
        for number in range(events):
            deliveries.append(await emitter.track(make(number // A_SESSION, number)))
            if len(deliveries) >= OUTSTANDING:
                for _ in range(PAGE):
                    await deliveries.popleft()
        await emitter.flush()
    return events / (time.perf_counter() - began)


async def in_a_row(url: str, events: int) -> dict[str, float]:
    """`track()` called for events that are there, with a turn of the loop now and then."""
    calls: list[float] = []
    made = [make(number // A_SESSION, number) for number in range(events)]
    async with Emitter(CREDENTIALS, endpoint=url, max_pending=events) as emitter:
        for number, event in enumerate(made):
            before = time.perf_counter()
            await emitter.track(event)
            calls.append(time.perf_counter() - before)
            if number % 500 == 499:
                await asyncio.sleep(0)
    return percentiles("track_us", calls, 1e6)


def percentiles(name: str, values: list[float], unit: float) -> dict[str, float]:
    ordered = sorted(values)
    return {f"{name}_p{each / 10:g}": percentile(ordered, each) * unit for each in THOUSANDTHS}


def in_short(figures: dict[str, Spread], name: str) -> str:
    return " / ".join(f"{figures[key].median:.3g}" for key in figures if key.startswith(name))


async def paced(url: str, rate: float, seconds: float) -> dict[str, float]:
    """So many events a second for so long; percentiles of all times, in microseconds and seconds."""
    loop = asyncio.get_running_loop()
    builds: list[float] = []
    calls: list[float] = []
    outcomes: list[float] = []

    def note(since: float, _: Delivery) -> None:
        outcomes.append(time.perf_counter() - since)

    async with Emitter(CREDENTIALS, endpoint=url, flush_interval=INTERVAL) as emitter:
        began = loop.time()
        number = 0
        while (elapsed := loop.time() - began) < seconds:
            for _ in range(int(elapsed * rate) - number):
                start = time.perf_counter()
                event = make(number // A_SESSION, number)
                number += 1
                before = time.perf_counter()
                builds.append(before - start)
                delivery = await emitter.track(event)
                after = time.perf_counter()
                calls.append(after - before)
                delivery.add_done_callback(functools.partial(note, after))
            await asyncio.sleep(TICK)
        await emitter.flush()
        assert emitter.stats.delivered == number
    return (
        percentiles("building_us", builds, 1e6)
        | percentiles("track_us", calls, 1e6)
        | percentiles("outcome_s", outcomes, 1)
    )


async def wake_ups(url: str, seconds: float, *, with_emitter: bool) -> int:
    """How often the loop looks at its sockets while nothing happens."""
    emitter = Emitter(CREDENTIALS, endpoint=url)
    if with_emitter:
        await emitter.start()
        await emitter.deliver(make(1, 1))
    selects = 0
    select = selectors.DefaultSelector.select

    def counted(self: Any, timeout: float | None = None) -> Any:
        nonlocal selects
        selects += 1
        return select(self, timeout)

    selectors.DefaultSelector.select = counted  # type: ignore[method-assign]
    try:
        await asyncio.sleep(seconds)
    finally:
        selectors.DefaultSelector.select = select  # type: ignore[method-assign]
    await emitter.aclose()
    return selects


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--seconds", default=3.0, show_default=True, help="How long each load lasts a round.")
@click.option("--quick", is_flag=True, help="One round of a second each.")
def main(rounds: int, seconds: float, quick: bool) -> None:  # noqa: FBT001 -- by click
    """Measures latency under an even load."""
    steady_heap()
    console = terminal()
    if quick:
        rounds, seconds = 1, 1.0
    row: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    taken: dict[tuple[float, bool], list[dict[str, float]]] = {}
    with sink() as to:
        for number in range(rounds):
            full = asyncio.run(capacity(to.url, 30_000))
            for collector in (True, False):
                gc.collect()
                (gc.enable if collector else gc.disable)()
                row[collector].append(asyncio.run(in_a_row(to.url, 8_000)))
                for share in SHARES:
                    figures = asyncio.run(paced(to.url, full * share, seconds))
                    taken.setdefault((share, collector), []).append(figures)
                gc.enable()
            console.print(f"  round {number + 1} of {rounds}: {full:,.0f} events/s are all", style="dim")
        at_rest = {
            name: asyncio.run(wake_ups(to.url, 2.0, with_emitter=with_emitter))
            for name, with_emitter in (("without", False), ("with", True))
        }
    results: list[dict[str, Any]] = []
    rows: list[list[str]] = []
    for collector in (True, False):
        cases = {"in a row": row[collector]} | {f"{share:.0%}": taken[share, collector] for share in SHARES}
        for name, runs in cases.items():
            spreads = {key: Spread.of([run[key] for run in runs]) for key in runs[0]}
            results.append({"load": name, "collector": collector, "figures": spreads})
            cells = [in_short(spreads, what) for what in ("building_us", "track_us", "outcome_s")]
            rows.append([name, "on" if collector else "off", *cells])
    columns = ["load", "collector", "building µs", "track µs", "outcome s"]
    show(console, f"medians of {rounds}: p50 / p99 / p99.9", columns, rows)
    console.print(
        f"at rest for 2 s the loop looked at its sockets {at_rest['with']} times with an emitter, "
        f"{at_rest['without']} without"
    )
    if not quick:
        save("latency", {"interval": INTERVAL, "cases": results, "wake_ups_in_2_s": at_rest})


if __name__ == "__main__":
    main()
