"""A server that takes whatever is posted to it, in a process of its own, and does next to nothing.

It counts requests and events, and answers as the API would, so that what is measured is the client.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import attrs

_API = b"post /v1/partner/events "

MARK = b"eventType"
"""How an event is known on the wire."""


@attrs.define
class Counts:
    """What has arrived so far, and the processor time it took."""

    requests: int = 0
    events: int = 0
    cpu: float = 0.0


class _Answering(asyncio.Protocol):
    def __init__(
        self, counts: Counts, failing: float, luck: random.Random, latency: float, bad: bytes
    ) -> None:
        self._bad = bad
        self._counts = counts
        self._failing = failing
        self._luck = luck
        self._latency = latency
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            start = head.find(b"content-length:") + 15
            stop = head.find(b"\r\n", start)
            length = int(head[start : stop if stop >= 0 else end])
            total = end + 4 + length
            if len(self._buffer) < total:
                return
            body, self._buffer = self._buffer[end + 4 : total], self._buffer[total:]
            self._answer(body, is_of_the_api=head.startswith(_API))

    def _answer(self, body: bytes, *, is_of_the_api: bool) -> None:
        count = body.count(MARK)
        self._counts.requests += 1
        if self._bad and self._bad in body:
            self._transport.write(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")
            return
        if self._failing and self._luck.random() < self._failing:
            self._transport.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
            return
        self._counts.events += count
        if is_of_the_api:
            answer = b'{"processedEventsCount":%d,"unprocessedEvents":[],"success":true}' % count
        else:  # What Mixpanel and Amplitude expect, and who asks how many have come.
            answer = b'{"status":1,"code":200,"events":%d}' % self._counts.events
        whole = (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(answer), answer)
        )
        if self._latency:
            asyncio.get_running_loop().call_later(self._latency, self._transport.write, whole)
        else:
            self._transport.write(whole)


async def _serve(pipe: Connection, failing: float, latency: float, bad: bytes) -> None:
    counts, luck = Counts(), random.Random(1)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: _Answering(counts, failing, luck, latency, bad), "127.0.0.1", 0, backlog=1024
    )
    asked: asyncio.Event = asyncio.Event()
    loop.add_reader(pipe.fileno(), asked.set)
    pipe.send(server.sockets[0].getsockname()[1])
    while True:
        await asked.wait()
        asked.clear()
        while pipe.poll():
            if pipe.recv() == "stop":
                return
            counts.cpu = time.process_time()
            pipe.send((counts.requests, counts.events, counts.cpu))


def _run(pipe: Connection, failing: float, latency: float, bad: bytes) -> None:
    try:
        import uvloop  # noqa: PLC0415 -- the faster, the less it is in the way
    except ImportError:
        asyncio.run(_serve(pipe, failing, latency, bad))
    else:
        uvloop.run(_serve(pipe, failing, latency, bad))


class Sink:
    """The running server, seen from the benchmark."""

    def __init__(self, pipe: Connection, port: int) -> None:
        self._pipe = pipe
        self.port = port
        self.url = f"http://127.0.0.1:{port}/v1/partner/events"

    def counts(self) -> Counts:
        """What has arrived so far."""
        self._pipe.send("count")
        return Counts(*self._pipe.recv())


@contextmanager
def sink(failing: float = 0.0, latency: float = 0.0, bad: bytes = b"") -> Iterator[Sink]:
    """Starts one, and stops it at the end.

    Args:
        failing: How many of all requests are answered 503.
        latency: Seconds before each answer.
        bad: Requests that contain it are answered 500.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(theirs, failing, latency, bad), daemon=True)
    process.start()
    try:
        yield Sink(ours, ours.recv())
    finally:
        ours.send("stop")
        process.join(5)
        if process.is_alive():
            process.terminate()
