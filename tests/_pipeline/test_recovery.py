"""Bringing back events: what a failure delays, and what has no room."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from rokt_events_async import Emitter
from rokt_events_async._pipeline import recovery
from rokt_events_async._pipeline.store import StoreFailure
from rokt_events_async.journal import _depot
from rokt_events_async.sandbox import Sandbox
from tests.samples import emitter_for, event

pytestmark = pytest.mark.every_loop

FAILURE = StoreFailure("file", "Input/output error")


async def leave(sandbox: Sandbox, directory: Path, count: int = 3, **changes: Any) -> None:
    settings: dict[str, Any] = {"journal": directory, "flush_interval": 60, "close_timeout": 0}
    async with emitter_for(sandbox, observers=[], **settings) as emitter:
        for number in range(count):
            await emitter.track(event(f"s{number}", **changes))


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks again soon."""
    monkeypatch.setattr(recovery, "LOOK_AGAIN", (0.05, 0.1))


async def test_events_that_cannot_be_read_are_read_later(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error is logged; others go on meanwhile."""
    await leave(sandbox, tmp_path)
    original, failures = _depot.StoreFile.load, [FAILURE, FAILURE]

    def load(self: Any, query: Any, done: Any) -> None:
        if failures:
            asyncio.get_running_loop().call_soon(done, failures.pop())
        else:
            original(self, query, done)

    monkeypatch.setattr(_depot.StoreFile, "load", load)
    async with emitter_for(sandbox, journal=tmp_path) as emitter:
        await (await emitter.track(event()))
        await until(lambda: emitter.stats.delivered == 4)
    assert caplog.text.count("stored events cannot be read: file: Input/output error") == 2


async def test_adoption_that_fails_is_tried_again(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And a file that cannot be deleted is told of."""
    await leave(sandbox, tmp_path)
    original, failures = _depot.FileDepot.adopt, [FAILURE]

    def adopt(self: Any, done: Any) -> None:
        if failures:
            asyncio.get_running_loop().call_soon(done, failures.pop())
        else:
            original(self, done)

    monkeypatch.setattr(_depot.FileDepot, "adopt", adopt)
    monkeypatch.setattr(
        _depot.FileDepot,
        "release",
        lambda self, store, done: asyncio.get_running_loop().call_soon(done, FAILURE),
    )
    async with (
        emitter_for(sandbox, journal=tmp_path, flush_interval=60, close_timeout=0, observers=[]) as first,
        emitter_for(sandbox, journal=tmp_path, flush_interval=60, close_timeout=0, observers=[]) as second,
    ):
        await first.track(event())
        await second.track(event())
    async with emitter_for(sandbox, journal=tmp_path):
        await until(lambda: "could not be deleted" in caplog.text)
    assert "the journal files of other processes cannot be read: file" in caplog.text


async def test_pages_wait_for_room(sandbox: Sandbox, tmp_path: Path) -> None:
    """By bytes too; an event that is larger than the bound goes alone."""
    await leave(sandbox, tmp_path, count=6, metadata={"x": "y" * 900})
    async with emitter_for(sandbox, journal=tmp_path, max_pending_bytes=2500, max_pending=4) as emitter:
        await until(lambda: emitter.stats.delivered >= 2)
    await leave(sandbox, tmp_path, count=2, metadata={"x": "y" * 900})
    async with emitter_for(sandbox, journal=tmp_path, max_pending_bytes=500) as emitter:
        await until(lambda: emitter.stats.delivered >= 1)


async def test_an_event_that_cannot_be_put_aside_stays(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is not deleted with it."""
    await leave(sandbox, tmp_path, count=1)
    monkeypatch.setattr(
        _depot.StoreFile,
        "condemn",
        lambda self, number, why, done: asyncio.get_running_loop().call_soon(done, FAILURE),
    )
    monkeypatch.setattr(recovery, "decode", _refuse)
    async with emitter_for(sandbox, journal=tmp_path) as emitter:
        await asyncio.sleep(0.2)
        assert isinstance(emitter, Emitter)
        assert emitter.stats.journal is not None
        assert emitter.stats.journal.stored == 1


def _refuse(_: bytes) -> Any:
    from rokt_events_async import InvalidEventError

    raise InvalidEventError(())
