"""`python -m tests.soak --minutes N`: full speed with 5 % faults, and an outage in the middle.

The server is a process of its own, and keeps a count for every event. At the end each event's outcome is
held against that: none is lost, and none is there twice but after a lost answer. The memory of this
process, and its descriptors, must not grow. Exit status 1 if anything of that is not so.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import statistics
import sys
import time
from array import array
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

import click

from rokt_events_async import DeliveryError, Emitter, PartnerEvent, Receipt, RetryPolicy
from tests.samples import CREDENTIALS

FAULTS = 0.05
A_SESSION = 20
SETTLED = {"delivered": 1, "rejected": 2, "expired": 3, "failed": 4, "unconfirmed": 5}
MAY_BE_DUPLICATE = 8
NONE = 255
MOST_A_SECOND = 30_000
SLOPE = 200.0
"""KiB a million events beyond which memory is said to grow."""


class Server(asyncio.Protocol):
    """Counts what it accepts, and has bad luck with some requests."""

    counts: ClassVar = array("B")
    luck: ClassVar = random.Random("soak")
    connections: ClassVar[set[Server]] = set()
    waste: ClassVar[Counter[str]] = Counter()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.buffer = b""
        self.connections.add(self)

    def connection_lost(self, _error: Exception | None) -> None:
        self.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            length = int(head[head.index(b"content-length:") + 15 :].split(b"\r\n")[0])
            if len(self.buffer) < end + 4 + length:
                return
            body, self.buffer = self.buffer[end + 4 : end + 4 + length], self.buffer[end + 4 + length :]
            self.take([int(event["parentGuid"]) for event in json.loads(body)["events"]])

    def take(self, numbers: list[int]) -> None:
        plan = "well"
        if self.luck.random() < FAULTS:
            plan = self.luck.choice(["503", "503", "429", "504", "reset, accepted", "reset", "silence"])
            self.waste[plan] += 1
        if plan in ("well", "reset, accepted", "504"):
            self.accept(numbers)
        if plan == "well":
            answer = b'{"processedEventsCount":%d,"unprocessedEvents":[],"success":true}' % len(numbers)
            self.answer(b"200 OK", answer)
        elif plan.isdigit():
            self.answer(plan.encode() + b" Trouble", b"{}")
        elif plan != "silence":
            self.transport.abort()

    def accept(self, numbers: list[int]) -> None:
        missing = max(numbers) + 1 - len(self.counts)
        if missing > 0:
            self.counts.extend([0] * (missing + 100_000))
        for number in numbers:
            self.counts[number] = min(255, self.counts[number] + 1)

    def answer(self, status: bytes, body: bytes) -> None:
        head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (
            status,
            len(body),
        )
        self.transport.write(head + body)


async def serve(pipe: Connection) -> None:
    """Until it is told to stop; `down` is an outage, `up` its end."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Server, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pipe.send(port)
    while True:
        while not pipe.poll():
            await asyncio.sleep(0.02)
        match pipe.recv():
            case "down":
                server.close()
                for connection in list(Server.connections):
                    connection.transport.abort()
            case "up":
                server = await loop.create_server(Server, "127.0.0.1", port, reuse_address=True)
            case _:
                pipe.send((Server.counts, Server.waste))
                return


def run_server(pipe: Connection) -> None:
    asyncio.run(serve(pipe))


class Soak:
    """The client's side, and its account of every event."""

    def __init__(self, port: int, pipe: Connection, seconds: float) -> None:
        self.pipe, self.seconds = pipe, seconds
        self.url = f"http://127.0.0.1:{port}/v1/partner/events"
        # All of it now, or this account would be what grows.
        self.outcomes = bytearray(b"\xff") * int(100_000 + seconds * MOST_A_SECOND)
        self.count = 0
        self.samples: list[tuple[float, float]] = []
        self.descriptors: list[int] = []

    async def live(self) -> None:
        retry = RetryPolicy(deadline=120.0)
        began = time.monotonic()
        outage = asyncio.create_task(self.outage())
        look_at = began + self.seconds * 0.1
        async with Emitter(
            CREDENTIALS, endpoint=self.url, retry=retry, request_timeout=2.0, close_timeout=120.0
        ) as emitter:
            self.emitter = emitter
            number = 0
            while (now := time.monotonic()) < began + self.seconds:
                if now >= look_at:
                    look_at += max(0.25, self.seconds / 200)
                    self.look(number)
                for _ in range(25):
                    await self.track(number)
                    number += 1
                await asyncio.sleep(0)
            await outage
            await emitter.flush()
            self.descriptors.append(descriptors())
        self.seconds_taken = time.monotonic() - began
        await asyncio.sleep(0)

    async def outage(self) -> None:
        """In the middle, for a twentieth of the time; a caller may have to wait for its end."""
        await asyncio.sleep(self.seconds * 0.45)
        self.pipe.send("down")
        await asyncio.sleep(self.seconds * 0.05)
        self.pipe.send("up")

    async def track(self, number: int) -> None:
        event = PartnerEvent.viewed(
            session_id=f"session-{number // A_SESSION}", parent_guid=str(number), client_unique_id="order"
        )
        self.count += 1
        delivery = await self.emitter.track(event)
        delivery.add_done_callback(self.settled)

    def settled(self, delivery: asyncio.Future[Receipt]) -> None:
        outcome: Any = delivery.exception() or delivery.result()
        number = int(outcome.event.parent_guid)
        assert self.outcomes[number] == NONE, "settled twice"
        may_be_duplicate = isinstance(outcome, DeliveryError) or outcome.maybe_duplicate
        self.outcomes[number] = SETTLED[outcome.outcome] + MAY_BE_DUPLICATE * may_be_duplicate

    def look(self, number: int) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.samples.append((number / 1e6, pages * os.sysconf("SC_PAGE_SIZE") / 1024))
        self.descriptors.append(descriptors())

    def report(self, counts: array[int], waste: Counter[str]) -> list[str]:
        """Prints what came of it, and returns what is wrong."""
        stats = self.emitter.stats
        times = [counts[number] if number < len(counts) else 0 for number in range(self.count)]
        codes = self.outcomes[: self.count]
        names = {code: name for name, code in SETTLED.items()}
        outcomes = [names.get(code % MAY_BE_DUPLICATE, "none") for code in codes]
        lost = [n for n, outcome in enumerate(outcomes) if outcome == "delivered" and not times[n]]
        wrong = [n for n, outcome in enumerate(outcomes) if outcome == "failed" and times[n]]
        twice = [n for n, count in enumerate(times) if count > 1]
        hidden = [n for n in twice if codes[n] < MAY_BE_DUPLICATE]
        slope = statistics.linear_regression(*zip(*self.samples, strict=True)).slope
        first, last = self.samples[0][1] / 1024, self.samples[-1][1] / 1024
        for line in (
            f"{stats.accepted:,} events in {self.seconds_taken:.0f} s",
            f"{stats.requests:,} requests, {stats.retries:,} of them retries; bad luck: {dict(waste)}",
            f"outcomes: {dict(Counter(outcomes))}",
            f"without an outcome: {codes.count(NONE)}",
            f"delivered and not there: {len(lost)}; failed and there: {len(wrong)}",
            f"there more than once: {len(twice)}, of which without a word: {len(hidden)}",
            f"memory: {first:.1f} MiB at first, {last:.1f} at last, {slope:+.0f} KiB a million events",
            f"descriptors: {min(self.descriptors)} to {max(self.descriptors)}",
        ):
            print(line)
        problems = {
            "events without an outcome": codes.count(NONE) + stats.pending,
            "events lost": len(lost),
            "events failed that are there": len(wrong),
            "duplicates without a word": len(hidden),
            "memory grows": slope > SLOPE and last - first > 2.0,
            "descriptors grow": max(self.descriptors) > min(self.descriptors) + 2 * 16,
        }
        return [name for name, count in problems.items() if count]


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@click.command()
@click.option("--minutes", default=10.0, show_default=True)
def main(minutes: float) -> None:
    """Runs it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=run_server, args=(theirs,), daemon=True)
    process.start()
    soak = Soak(ours.recv(), ours, minutes * 60)
    asyncio.run(soak.live())
    ours.send("stop")
    problems = soak.report(*ours.recv())
    process.join(10)
    print("; ".join(problems) or "nothing lost, and nothing twice without a word")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
