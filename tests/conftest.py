"""What all tests share: loops on virtual time, and an eye on the secret."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import pickle
import signal
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from rokt_events_async import Emitter, RoktEventsError, events
from rokt_events_async.sandbox import Sandbox
from tests.samples import SECRET, OpenEmitter, emitter_for
from tests.servers import QueueServer, need_binary
from tests.virtual_time import VirtualTimeLoop

pytest_plugins = ["pytester"]

settings.register_profile("default", deadline=None, print_blob=True)
settings.load_profile("default")


def pytest_configure() -> None:
    """Ctrl-C reaches the programs that tests start, also where a shell runs the suite in its background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Virtual time, unless a test is marked to run on every real loop, or on asyncio's."""
    if item.get_closest_marker("real_loop") is not None:
        return {"asyncio": asyncio.new_event_loop}
    if item.get_closest_marker("every_loop") is None:
        return {"virtual": VirtualTimeLoop}
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    try:
        import uvloop
    except ImportError:
        if os.environ.get("CI"):
            raise
        return loops
    return loops | {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox() as started:
        yield started


@pytest.fixture
async def open_emitter() -> AsyncIterator[OpenEmitter]:
    """Opens emitters for tests that close them themselves, or fail before they do."""
    opened: list[Emitter] = []

    async def open_one(sandbox: Sandbox, **settings: Any) -> Emitter:
        emitter = emitter_for(sandbox, **settings)
        opened.append(emitter)
        await emitter.start()
        return emitter

    yield open_one
    for emitter in opened:
        await emitter.aclose(timeout=0)


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


@pytest.fixture(autouse=True)
def _no_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resets what the package remembers across tests: which event types it has warned of."""
    monkeypatch.setattr(events, "_warned_types", set())


@pytest.fixture(autouse=True)
def _nothing_left_open(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails the test that leaves an emitter open, rather than a later one in which it is collected."""
    made: weakref.WeakSet[Emitter] = weakref.WeakSet()
    init = Emitter.__init__

    @functools.wraps(init)
    def remember(self: Emitter, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        made.add(self)

    monkeypatch.setattr(Emitter, "__init__", remember)
    yield
    left = [emitter for emitter in made if emitter._state in ("open", "closing")]
    shown = [repr(emitter) for emitter in left]
    for emitter in left:
        emitter._state = "closed"
    assert shown == []


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and all that hangs on it."""
    seen: list[BaseException] = []
    todo = [error]
    while todo:
        found = todo.pop()
        if found is not None and found not in seen:
            seen.append(found)
            todo += [found.__cause__, found.__context__]
            yield found


@pytest.fixture(autouse=True)
def _no_secret(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Searches all that a test produces for the secret: logs, reprs, exceptions, pickles.

    All secrets of the tests, and the sandbox's, begin with `rsec-`.
    """
    made: list[Any] = []

    def remember(cls: Any, *args: Any, **kwargs: Any) -> Any:
        error = Exception.__new__(cls, *args)
        made.append(error)
        return error

    monkeypatch.setattr(RoktEventsError, "__new__", remember, raising=False)
    init = Emitter.__init__

    @functools.wraps(init)
    def remember_emitter(self: Emitter, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        made.append(repr(self))

    monkeypatch.setattr(Emitter, "__init__", remember_emitter)
    caplog.set_level(logging.DEBUG)

    yield

    for record in caplog.get_records("call"):
        assert "rsec-" not in record.getMessage()
        assert "rsec-" not in repr(record.__dict__)
        made += [record.exc_info[1]] if record.exc_info else []
    for thing in made:
        for error in chain(thing) if isinstance(thing, BaseException) else [thing]:
            assert "rsec-" not in repr(error) + str(error) + repr(getattr(error, "args", ""))
            assert "rsec-" not in repr(getattr(error, "__dict__", ""))
        if isinstance(thing, RoktEventsError):
            assert SECRET.encode() not in pickle.dumps(thing)
            assert b"rsec-" not in pickle.dumps(thing)
