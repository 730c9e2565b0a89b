"""A tracker for any ASGI application, by the messages of the protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from rokt_events_async import Emitter, EmitterNotStartedError, InvalidSettingError
from rokt_events_async.integrations.asgi import ASGIApp, get_tracker, with_tracker
from rokt_events_async.sandbox import Sandbox
from tests.samples import emitter_for, event

pytestmark = pytest.mark.real_loop


class Server:
    """Runs an application's lifespan as a server does, and sends it requests."""

    def __init__(self, app: ASGIApp, *, hands_on: bool = True) -> None:
        self.app, self.hands_on = app, hands_on
        self.to: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.scope: dict[str, Any] = {"type": "lifespan", "state": {}}

    async def tell(self, what: str) -> dict[str, Any]:
        if what == "startup":
            self.task = asyncio.create_task(self.run())
        self.to.put_nowait({"type": f"lifespan.{what}"})
        return await asyncio.wait_for(self.said.get(), 5)

    async def run(self) -> None:
        await self.app(self.scope, self.to.get, self.said.put)

    async def request(self) -> dict[str, Any]:
        scope: dict[str, Any] = {"type": "http"}
        if self.hands_on:
            scope["state"] = dict(self.scope["state"])
        await self.app(scope, None, None)
        return scope


async def plain(scope: Any, receive: Any, send: Any) -> None:
    """Supports no lifespan, and says so as the specification wants it."""
    if scope["type"] == "lifespan":
        raise ValueError("no lifespan here")
    await get_tracker(scope).track(event())


def whole(order: list[str], *, ends_with: str = "complete") -> ASGIApp:
    """An application with a lifespan of its own, which tracks in it too."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await plain(scope, receive, send)
            return
        assert (await receive())["type"] == "lifespan.startup"
        await get_tracker(scope).track(event(parent_guid="at the start"))
        order.append("started")
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        await get_tracker(scope).track(event(parent_guid="at the end"))
        order.append("stopped")
        if ends_with == "raise":
            raise KeyError("odd")
        await send({"type": f"lifespan.shutdown.{ends_with}", "message": "mine"})

    return app


@pytest.mark.parametrize("hands_on", [True, False], ids=["state handed on", "no state"])
async def test_an_application_without_a_lifespan(sandbox: Sandbox, hands_on: bool) -> None:
    """It needs none; what it has tracked is drained before the server hears of the end."""
    server = Server(with_tracker(plain, lambda: emitter_for(sandbox, flush_interval=60)), hands_on=hands_on)
    assert await server.tell("startup") == {"type": "lifespan.startup.complete"}
    await server.request()
    assert await server.tell("shutdown") == {"type": "lifespan.shutdown.complete"}
    assert len(sandbox.events) == 1
    await server.task
    with pytest.raises(EmitterNotStartedError, match="with_tracker"):
        await Server(with_tracker(plain, Emitter), hands_on=False).request()


async def test_an_application_with_a_lifespan(sandbox: Sandbox) -> None:
    """Its lifespan is inside: it can track at both ends."""
    order: list[str] = []
    server = Server(with_tracker(whole(order), lambda: emitter_for(sandbox, flush_interval=60)))
    await server.tell("startup")
    await server.request()
    assert (await server.tell("shutdown"))["type"] == "lifespan.shutdown.complete"
    assert order == ["started", "stopped"]
    assert {sent["parentGuid"] for sent in sandbox.events} >= {"at the start", "at the end"}
    await server.task


@pytest.mark.parametrize("until", ["startup", "shutdown"])
async def test_a_lifespan_that_ends_without_a_word(sandbox: Sandbox, until: str) -> None:
    """It is taken as complete."""

    async def silent(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if until == "shutdown":
            await send({"type": "lifespan.startup.complete"})
            await receive()

    server = Server(with_tracker(silent, lambda: emitter_for(sandbox)))
    assert await server.tell("startup") == {"type": "lifespan.startup.complete"}
    assert await server.tell("shutdown") == {"type": "lifespan.shutdown.complete"}
    await server.task


@pytest.mark.parametrize(("ends_with", "message"), [("failed", "mine"), ("raise", "KeyError: 'odd'")])
async def test_a_shutdown_that_fails(sandbox: Sandbox, ends_with: str, message: str) -> None:
    """The server hears of it, and the events are drained all the same."""
    server = Server(
        with_tracker(whole([], ends_with=ends_with), lambda: emitter_for(sandbox, flush_interval=60))
    )
    await server.tell("startup")
    assert await server.tell("shutdown") == {"type": "lifespan.shutdown.failed", "message": message}
    assert len(sandbox.events) == 2
    await server.task


async def test_a_start_that_fails(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the tracker, or of the application: the server hears why, and nothing is left open."""
    monkeypatch.delenv("ROKT_PUB_ID", raising=False)
    server = Server(with_tracker(plain, Emitter))
    said = await server.tell("startup")
    assert said["type"] == "lifespan.startup.failed"
    assert "ROKT_PUB_ID" in said["message"]
    await server.task

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "my own"})

    server = Server(with_tracker(fails, lambda: emitter_for(sandbox)))
    assert (await server.tell("startup"))["message"] == "my own"
    await server.task


async def test_a_server_that_goes_without_a_word(sandbox: Sandbox) -> None:
    """Its lifespan is cancelled: both are ended."""
    order: list[str] = []
    server = Server(with_tracker(whole(order), lambda: emitter_for(sandbox, flush_interval=60)))
    await server.tell("startup")
    await server.request()
    server.task.cancel()
    await asyncio.wait([server.task])
    assert order == ["started"]
    assert len(sandbox.events) == 2


async def test_two_by_name(sandbox: Sandbox) -> None:
    """Each is found under its name; two of a name are refused, and one inside another without a name."""
    make: Callable[[], Emitter] = lambda: emitter_for(sandbox)  # noqa: E731
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError
        seen.extend([get_tracker(scope), get_tracker(scope, "eu")])

    server = Server(with_tracker(with_tracker(app, make, name="eu"), make))
    await server.tell("startup")
    await server.request()
    await server.tell("shutdown")
    assert seen[0] is not seen[1]
    await server.task
    for inner, outer in (("eu", "eu"), (None, None), (None, "eu")):
        server = Server(with_tracker(with_tracker(app, make, name=inner), make, name=outer))
        said = await server.tell("startup")
        assert said["type"] == "lifespan.startup.failed"
        assert "could not tell apart" in said["message"]
        await server.task


def test_what_is_wrong() -> None:
    """At once, where it can be seen."""
    with pytest.raises(InvalidSettingError, match="app must be an ASGI application"):
        with_tracker(None, Emitter)  # type: ignore[arg-type]
    with pytest.raises(InvalidSettingError, match="make must be callable"):
        with_tracker(plain, None)  # type: ignore[arg-type]
    for name in ("", "e-u", 5):
        with pytest.raises(InvalidSettingError, match="name must be an identifier"):
            with_tracker(plain, Emitter, name=name)  # type: ignore[arg-type]
    with pytest.raises(EmitterNotStartedError, match="no tracker named 'eu'"):
        get_tracker({}, "eu")
