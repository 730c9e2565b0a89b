"""Queues for the tests of the fleet: in memory, on Valkey, on Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rokt_events_async.relay import EventQueue, RedisQueue
from rokt_events_async.relay.memory import MemoryQueue
from tests.servers import ENGINES, QueueServer, need_binary


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], QueueServer]]:
    """Starts a server of an engine when a test first asks for it."""
    running: dict[str, QueueServer] = {}

    def server_of(engine: str) -> QueueServer:
        if engine not in running:
            made = QueueServer(need_binary(engine), tmp_path_factory.mktemp(engine), appendfsync="everysec")
            made.start()
            running[engine] = made
        return running[engine]

    yield server_of
    for one in running.values():
        one.kill()


@pytest.fixture
def server(servers: Callable[[str], QueueServer]) -> QueueServer:
    """A Valkey that is empty."""
    one = servers("valkey")
    one.run("FLUSHALL")
    return one


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Callable[..., QueueServer]]:
    """Starts servers of the test's own, which it may kill or fill."""
    running: list[QueueServer] = []

    def start(engine: str = "valkey", **options: str) -> QueueServer:
        directory = tmp_path / f"server-{len(running)}"
        directory.mkdir()
        one = QueueServer(need_binary(engine), directory, **options)
        one.start()
        running.append(one)
        return one

    yield start
    for one in running:
        one.kill()


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
