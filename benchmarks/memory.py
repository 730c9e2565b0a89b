"""Bytes a pending event takes, and whether memory grows at a steady load.

Each measurement is a process of its own. A pending event takes what the event itself takes, with the
strings the application made for it, its bytes for the wire, its delivery, and its share of its session.
"""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import subprocess
import sys
import time
from collections import deque
from typing import Any

import click

from benchmarks.load import CREDENTIALS, OUTSTANDING, PAGE, NoServer, make
from benchmarks.measure import Spread, resident, save, show, steady_heap, terminal
from benchmarks.sink import sink
from rokt_events_async import Delivery, Emitter

BOUND = 100_000
"""Large beside the pages that a process takes at a time."""


async def at_the_bound(per_session: int, *, own_metadata: bool) -> dict[str, float]:
    """Fills a queue to its bound, with no server to take it."""
    server = NoServer()
    settings: dict[str, Any] = {"max_pending": BOUND, "max_pending_bytes": BOUND * 1000, "_transport": server}
    settings["max_session_share"] = 1.0
    async with Emitter(CREDENTIALS, flush_interval=100.0, close_timeout=0, **settings) as emitter:
        gc.collect()
        gc.freeze()
        before = resident()
        for number in range(BOUND):
            value = f"Slot-{number:09d}" if own_metadata else "ImpressionSlot"
            await emitter.track(make(number // per_session, number, value))
        assert emitter.stats.pending == BOUND
        taken = resident() - before
        wire = emitter.stats.pending_bytes
        tracked = len(gc.get_objects())
        server.gate.set()
        await emitter.flush()
    return {
        "bytes_a_pending_event": taken / BOUND,
        "of_that_on_the_wire": wire / BOUND,
        "tracked_objects": tracked / BOUND,
    }


async def steady(url: str, seconds: float) -> dict[str, float]:
    """As fast as it goes, for so long; memory is read four times a second, after a fifth has gone by."""
    deliveries: deque[Delivery] = deque()
    samples: list[tuple[float, float]] = []
    async with Emitter(CREDENTIALS, endpoint=url, flush_interval=0.01) as emitter:
        began = time.perf_counter()
        number, due = 0, seconds / 5
        while (elapsed := time.perf_counter() - began) < seconds:
            for _ in range(PAGE):
                deliveries.append(await emitter.track(make(number // 5, number, f"Slot-{number:09d}")))
                number += 1
                if len(deliveries) > OUTSTANDING:
                    await deliveries.popleft()
            if elapsed > due:
                due += 0.25
                samples.append((number / 1e6, resident() / 1024))
        await emitter.flush()
        assert emitter.stats.delivered == number
    slope = statistics.linear_regression(*zip(*samples, strict=True)).slope
    first, last = samples[: len(samples) // 4], samples[-(len(samples) // 4) :]
    middle_of = [statistics.median(kib for _, kib in part) for part in (first, last)]
    return {
        "events": number,
        "kib_a_million_events": slope,
        "first_quarter_mib": middle_of[0] / 1024,
        "last_quarter_mib": middle_of[1] / 1024,
    }


def in_a_process(*arguments: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.memory", "--one", " ".join(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def one(what: str, *arguments: str) -> dict[str, float]:
    if what == "steady":
        return asyncio.run(steady(arguments[0], float(arguments[1])))
    return asyncio.run(at_the_bound(int(arguments[0]), own_metadata=arguments[1] == "own"))


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--seconds", default=60.0, show_default=True, help="How long the steady load lasts.")
@click.option("--quick", is_flag=True, help="One round, and ten seconds.")
@click.option("--one", "only", hidden=True)
def main(rounds: int, seconds: float, quick: bool, only: str | None) -> None:  # noqa: FBT001 -- by click
    """Measures memory."""
    steady_heap()
    if only:
        print(json.dumps(one(*only.split())))
        return
    console = terminal()
    if quick:
        rounds, seconds = 1, 10.0
    rows, results = [], []
    for per_session in ("25", "1"):
        for metadata in ("same", "own"):
            taken = [in_a_process("bound", per_session, metadata) for _ in range(rounds)]
            spreads = {key: Spread.of([run[key] for run in taken]) for key in taken[0]}
            rows.append([per_session, metadata, *map(str, spreads.values())])
            results.append({"events_a_session": int(per_session), "metadata": metadata} | spreads)
    columns = ["events a session", "metadata", "bytes a pending event", "of that wire", "tracked objects"]
    show(console, f"at the bound of {BOUND:,} events, median (least to most)", columns, rows)
    with sink() as to:
        growth = in_a_process("steady", to.url, str(seconds))
    console.print(
        f"{growth['events'] / 1e6:.2g} million events in {seconds:g} s: "
        f"{growth['first_quarter_mib']:.1f} MiB at first, {growth['last_quarter_mib']:.1f} MiB at last, "
        f"{growth['kib_a_million_events']:+.0f} KiB a million events"
    )
    if not quick:
        save("memory", {"bound": BOUND, "cases": results, "steady": growth | {"seconds": seconds}})


if __name__ == "__main__":
    main()
