"""`rokt-events send` beside the emitter alone: events/s, the longest hold of the loop, memory."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from benchmarks.load import CREDENTIALS, make
from benchmarks.measure import Sample, Spread, Stopwatch, ratios, resident, save, steady_heap, terminal
from benchmarks.sink import Sink, sink
from benchmarks.throughput import by_emitter
from rokt_events_async.cli import send

TICK = 0.001


def write(path: Path, lines: int) -> None:
    now = datetime.now(UTC)
    with path.open("w") as file:
        for number in range(lines):
            print(json.dumps(make(number // 25, number).stamped(now).to_dict()), file=file)


def by_send(path: Path, to: Sink, lines: int) -> Sample:
    os.environ["ROKT_ENDPOINT"] = to.url
    inputs = send._Inputs((str(path),))
    with Stopwatch() as watch:
        asyncio.run(send._send(inputs, None, resume=False, max_concurrency=16))
    return watch.sample(lines)


async def _holds(path: Path) -> float:
    """Returns the longest time in which the loop did not turn."""
    longest, last = 0.0, time.perf_counter()

    async def tick() -> None:
        nonlocal longest, last
        while True:
            await asyncio.sleep(TICK)
            now = time.perf_counter()
            longest, last = max(longest, now - last - TICK), now

    ticking = asyncio.create_task(tick())
    await send._send(send._Inputs((str(path),)), None, resume=False, max_concurrency=16)
    ticking.cancel()
    return longest


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--lines", default=100_000, show_default=True)
@click.option("--many", default=5_000_000, show_default=True, help="Lines of the long file.")
def main(rounds: int, lines: int, many: int) -> None:
    """Measures `send`."""
    steady_heap()
    console = terminal()
    os.environ |= {
        "ROKT_PUB_ID": CREDENTIALS.pub_id,
        "ROKT_TAG_ID": CREDENTIALS.tag_id,
        "ROKT_SECRET": CREDENTIALS.secret,
    }
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory, sink() as to:
        path = Path(directory, "events.jsonl")
        write(path, lines)
        alone, sent = [], []
        for number in range(rounds + 1):
            with Stopwatch() as watch:
                asyncio.run(by_emitter(to.url, lines, 25, 16))
            pair = watch.sample(lines), by_send(path, to, lines)
            if number:
                alone.append(pair[0])
                sent.append(pair[1])
        found["of_the_emitter"] = ratios(sent, alone)
        rates = Spread.of([one.rate for one in sent])
        console.print(f"send: {rates} events/s, of the emitter alone {found['of_the_emitter']}")
        gc.disable()
        found["longest_hold"] = asyncio.run(_holds(path))
        gc.enable()
        console.print(f"longest hold of the loop, collector off: {found['longest_hold'] * 1000:.1f} ms")
        write(path, many)
        gc.collect()
        before = resident()
        peak = 0

        async def watch_memory() -> None:
            nonlocal peak
            sending = asyncio.create_task(
                send._send(send._Inputs((str(path),)), None, resume=False, max_concurrency=16)
            )
            while not sending.done():
                peak = max(peak, resident())
                await asyncio.sleep(0.1)
            await sending

        asyncio.run(watch_memory())
        found["memory"] = peak - before
        console.print(f"{many:,} lines: {found['memory'] / 1e6:.0f} MB above the start")
    save("send", found)


if __name__ == "__main__":
    main()
