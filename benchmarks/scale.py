"""What a session costs when there are many: 1,000 to 1,000,000 open at once, one event each.

The emitter posts to no server here (a transport of the benchmark's own answers at once), so that what is
measured is the library: processor time an event, memory a pending event, and the longest time any
callback held the loop meanwhile. Each size runs in a process of its own, with the collector off and on;
with it on, a full collection holds the loop whatever the library does.
"""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import time
from typing import Any

import click

from benchmarks.load import CREDENTIALS, NoServer, make
from benchmarks.measure import Spread, resident, save, show, steady_heap, terminal
from rokt_events_async import Emitter

SIZES = (1_000, 10_000, 100_000, 1_000_000)
TURN = 50
"""Events tracked between two turns of the loop, as handlers would."""


class Holds:
    """The longest time a single callback held the loop, the benchmark's own producer aside."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.is_counting = False
        run = asyncio.Handle._run

        def timed(handle: asyncio.Handle) -> None:
            if not self.is_counting:
                return run(handle)
            started = time.perf_counter()
            run(handle)
            self.longest = max(self.longest, time.perf_counter() - started)
            return None

        asyncio.Handle._run = timed  # type: ignore[method-assign,assignment]


async def measure(sessions: int, per_session: int, *, collector: bool) -> dict[str, Any]:
    """Fills the queue, with the interval far off, then flushes it."""
    events = sessions * per_session
    settings: dict[str, Any] = {
        "max_pending": events,
        "max_pending_bytes": events * 1000,
        "max_session_share": 1.0,
        "flush_interval": 100.0,
    }
    holds = Holds()
    gc.collect()
    gc.freeze()
    if not collector:
        gc.disable()
    server = NoServer()
    settings |= {"request_timeout": 1000.0, "_transport": server}
    async with Emitter(CREDENTIALS, **settings) as emitter:
        before = resident()
        holds.is_counting = True
        cpu = time.process_time()
        for number in range(events):
            session = number % sessions
            await emitter.track(make(session, number))
            if number % TURN == 0:
                await asyncio.sleep(0)
        tracked = time.process_time() - cpu
        pending = emitter.stats.pending
        memory = resident() - before
        server.gate.set()
        await emitter.flush()
        total = time.process_time() - cpu
        assert emitter.stats.delivered == events
    return {
        "track_us": tracked / events * 1e6,
        "total_us": total / events * 1e6,
        "bytes_a_pending_event": memory / pending if pending else None,
        "longest_hold_ms": holds.longest * 1e3,
    }


def in_a_process(sessions: int, per_session: int, *, collector: bool) -> dict[str, Any]:
    arguments = [str(sessions), str(per_session), "on" if collector else "off"]
    command = [sys.executable, "-m", "benchmarks.scale", "--one", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--quick", is_flag=True, help="Up to 100,000 sessions, the collector off.")
@click.option("--one", nargs=3, hidden=True)
def main(rounds: int, quick: bool, one: tuple[str, str, str] | None) -> None:  # noqa: FBT001 -- by click
    """Measures what many sessions cost; the ratio is to the smallest size of the same round."""
    steady_heap()
    if one:
        measured = asyncio.run(measure(int(one[0]), int(one[1]), collector=one[2] == "on"))
        print(json.dumps(measured))
        return
    console = terminal()
    sizes = SIZES[:3] if quick else SIZES
    cases = [(size, 1, collector) for collector in ((False,) if quick else (False, True)) for size in sizes]
    cases += [(4_000, 25, False), (1, 100_000, False)]
    taken: dict[tuple[int, int, bool], list[dict[str, Any]]] = {case: [] for case in cases}
    for number in range(rounds):
        for case in cases:
            taken[case].append(in_a_process(case[0], case[1], collector=case[2]))
        console.print(f"  round {number + 1} of {rounds}", style="dim")
    rows, results = [], []
    for (sessions, per_session, collector), samples in taken.items():
        spreads = {key: Spread.of([sample[key] for sample in samples]) for key in samples[0]}
        base = taken[(sizes[0], 1, collector)]
        ratio = Spread.of(
            [one["total_us"] / other["total_us"] for one, other in zip(samples, base, strict=True)]
        )
        rows.append(
            [
                f"{sessions:,} x {per_session:,}",
                "on" if collector else "off",
                *map(str, spreads.values()),
                str(ratio),
            ]
        )
        described = {"sessions": sessions, "events_a_session": per_session, "collector": collector}
        results.append(described | spreads | {"of_the_smallest": ratio})
    columns = [
        "sessions x events",
        "gc",
        "track µs",
        "all µs",
        "bytes pending",
        "longest hold ms",
        "of smallest",
    ]
    show(console, "median (least to most), processor time an event", columns, rows)
    if not quick:
        save("scale", {"cases": results})


if __name__ == "__main__":
    main()
