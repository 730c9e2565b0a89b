"""Queues for the tests of the fleet: in memory, on Valkey, on Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from rokt_events_async.relay import EventQueue, RedisQueue
from rokt_events_async.relay.memory import MemoryQueue
from tests.servers import ENGINES, QueueServer

MakeQueue = Callable[[], EventQueue]


@pytest.fixture(params=["memory", *ENGINES])
async def make_queue(
    request: pytest.FixtureRequest, servers: Callable[[str], QueueServer]
) -> AsyncIterator[MakeQueue]:
    """Makes queues to the same data, in each engine."""
    if request.param == "memory":
        shared = MemoryQueue()
        yield lambda: shared
        return
    server = servers(request.param)
    server.run("FLUSHALL")
    made: list[Any] = []

    def make() -> EventQueue:
        queue = RedisQueue(server.url)
        made.append(queue)
        return queue

    yield make
    for queue in made:
        await queue.aclose()
