"""What `track()` adds to the latency of a FastAPI handler: the same handler with and without, in one run.

Uvicorn runs the application in a process of its own, the sink takes its events in another. The handlers
take turns, round after round: paced, at a share of what the plain one can do, where latency counts from
the moment at which a request was due; and as fast as sixteen customers can ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import attrs
import click
from fastapi import FastAPI

from benchmarks.load import CREDENTIALS, make
from benchmarks.measure import MALLOC, Spread, percentile, save, show, terminal
from benchmarks.sink import sink
from rokt_events_async import Emitter
from rokt_events_async.integrations.fastapi import RoktEmitter, emitter_lifespan

HANDLERS = ("plain", "tracked")
CUSTOMERS = 16
A_SESSION = 25
"""Page views of one session."""

app = FastAPI(
    lifespan=emitter_lifespan(lambda: Emitter(CREDENTIALS, endpoint=os.environ["BENCHMARK_SINK"])),
    openapi_url=None,
)


@app.get("/plain/{number}")
async def plain(number: int, emitter: RoktEmitter) -> dict[str, str]:
    """Answers."""
    return {"session": str(number // A_SESSION)}


@app.get("/tracked/{number}")
async def tracked(number: int, emitter: RoktEmitter) -> dict[str, str]:
    """Tracks an event, and answers the same."""
    await emitter.track(make(number // A_SESSION, number))
    return {"session": str(number // A_SESSION)}


@contextlib.contextmanager
def server(sink_url: str, loop: str) -> Iterator[str]:
    """The application under uvicorn; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--port", str(port), "--log-level", "warning", "--no-access-log", "--loop", loop]
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "benchmarks.webapp:app", *options],
        env=os.environ | MALLOC | {"BENCHMARK_SINK": sink_url},
    )
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                break
            time.sleep(0.05)
        else:
            raise click.ClickException("uvicorn does not listen")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


@attrs.frozen
class Latency:
    """Of one handler in one round, in milliseconds; and requests a second."""

    p50: float
    p99: float
    rate: float

    @classmethod
    def of(cls, seconds: list[float], took: float) -> Latency:
        ordered = sorted(seconds)
        return cls(percentile(ordered, 500) * 1e3, percentile(ordered, 990) * 1e3, len(ordered) / took)


async def ask(
    url: str, handler: str, numbers: Iterator[int], *, requests: int, rate: float | None
) -> Latency:
    """Asks so many times: `rate` times a second, or each customer as soon as it has its answer."""
    taken: list[float] = []
    left = iter(range(requests))
    began = time.perf_counter()

    async def customer(session: aiohttp.ClientSession) -> None:
        for place in left:
            due = time.perf_counter() if rate is None else began + place / rate
            wait = due - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            async with session.get(f"{url}/{handler}/{next(numbers)}") as response:
                assert response.status == 200
                await response.read()
            taken.append(time.perf_counter() - due)

    connector = aiohttp.TCPConnector(limit=CUSTOMERS)
    async with aiohttp.ClientSession(connector=connector) as session:
        await asyncio.gather(*(customer(session) for _ in range(CUSTOMERS)))
    return Latency.of(taken, time.perf_counter() - began)


def measure(console: Any, loop: str, rounds: int, requests: int, share: float) -> dict[str, Any]:
    """Both handlers in turn, paced and not."""
    numbers = iter(range(10**9))
    results: dict[str, Any] = {"loop": loop}
    with sink() as to, server(to.url, loop) as url:
        capacity = asyncio.run(ask(url, "plain", numbers, requests=requests, rate=None)).rate
        for name, rate in ((f"{share:.0%} of capacity", capacity * share), ("as fast as it goes", None)):
            rounds_of: dict[str, list[Latency]] = {handler: [] for handler in HANDLERS}
            for _ in range(rounds):
                for handler in HANDLERS:
                    latency = asyncio.run(ask(url, handler, numbers, requests=requests, rate=rate))
                    rounds_of[handler].append(latency)
            results[name] = report(console, f"{loop}, {name}", rounds_of)
        time.sleep(1.0)  # The last events are on their way.
        sent = rounds * requests * 2
        assert to.counts().events == sent, f"{to.counts().events} of {sent} events arrived"
    return results


def report(console: Any, title: str, rounds_of: dict[str, list[Latency]]) -> dict[str, Any]:
    data: dict[str, dict[str, Spread]] = {
        handler: {
            field: Spread.of([getattr(one, field) for one in taken]) for field in ("p50", "p99", "rate")
        }
        for handler, taken in rounds_of.items()
    }
    data["ratio"] = {
        field: Spread.of(
            [
                getattr(with_, field) / getattr(without, field)
                for with_, without in zip(rounds_of["tracked"], rounds_of["plain"], strict=True)
            ]
        )
        for field in ("p50", "p99", "rate")
    }
    labels = {"plain": "without track()", "tracked": "with track()", "ratio": "with over without"}
    rows = [
        [labels[name], *(str(spreads[field]) for field in ("p50", "p99", "rate"))]
        for name, spreads in data.items()
    ]
    show(console, f"{title}, median (least to most)", ["", "p50, ms", "p99, ms", "requests/s"], rows)
    return data


@click.command()
@click.option("--rounds", default=7, show_default=True)
@click.option("--requests", default=4000, show_default=True, help="Of each handler in each round.")
@click.option("--share", default=0.5, show_default=True, help="Of capacity, where the load is paced.")
@click.option("--quick", is_flag=True, help="Three short rounds on asyncio alone.")
def main(rounds: int, requests: int, share: float, quick: bool) -> None:  # noqa: FBT001 -- by click
    """Measures the handlers in turn, round after round."""
    console = terminal()
    if quick:
        rounds, requests = 3, 1000
    loops = ("asyncio",) if quick else ("asyncio", "uvloop")
    results = [measure(console, loop, rounds, requests, share) for loop in loops]
    if not quick:
        save("webapp", {"requests": requests, "share": share, "loops": results})


if __name__ == "__main__":
    main()
