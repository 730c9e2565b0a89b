"""Applications with a publisher in place of an emitter, and with neither."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient as AiohttpClient
from aiohttp.test_utils import TestServer
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.requests import Request

from rokt_events_async import EmitterNotStartedError, InvalidSettingError, tracker_from_env
from rokt_events_async.integrations.aiohttp import EMITTER, TRACKER, emitter_context
from rokt_events_async.integrations.aiohttp import get_emitter as aiohttp_get_emitter
from rokt_events_async.integrations.aiohttp import get_tracker as aiohttp_get_tracker
from rokt_events_async.integrations.fastapi import RoktEmitter, RoktTracker, emitter_lifespan
from rokt_events_async.relay import Publisher, RedisQueue
from rokt_events_async.relay.memory import MemoryQueue
from rokt_events_async.sandbox import Sandbox
from tests.integrations.test_web import readme
from tests.samples import event
from tests.servers import QueueServer


def test_the_readmes_fastapi_application_with_a_queue(
    own_server: Callable[..., QueueServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs unchanged, and needs no credentials."""
    monkeypatch.setenv("ROKT_QUEUE_URL", own_server().url)
    app = readme("from fastapi import FastAPI")["app"]
    with TestClient(app) as client:
        assert client.post("/checkout/s-1/viewed/v-1").json() == {"tracked": "v-1"}
        assert client.post("/checkout/s-1/chosen/c-1").json() == {"tracked": "c-1"}
        assert isinstance(app.state.rokt_tracker, Publisher)
        assert app.state.rokt_tracker.stats.accepted >= 1

    async def published() -> int:
        queue = RedisQueue(os.environ["ROKT_QUEUE_URL"])
        try:
            return (await queue.backlog()).published
        finally:
            await queue.aclose()

    assert asyncio.run(published()) == 2


def test_a_handler_that_needs_an_emitter() -> None:
    """It is told that there is a publisher."""
    app = FastAPI(lifespan=emitter_lifespan(lambda: Publisher(MemoryQueue())))
    errors: list[str] = []

    @app.exception_handler(EmitterNotStartedError)
    async def refuse(request: Request, error: EmitterNotStartedError) -> Any:
        errors.append(str(error))
        return web_response()

    @app.get("/emitter")
    async def emitter(emitter: RoktEmitter) -> None: ...

    @app.get("/tracker")
    async def tracker(tracker: RoktTracker) -> None:
        await tracker.track(event())

    with TestClient(app) as client:
        assert client.get("/tracker").status_code == 200
        assert client.get("/emitter").status_code == 500
    assert "has a Publisher and no emitter" in errors[0]


def web_response() -> Any:
    from starlette.responses import PlainTextResponse

    return PlainTextResponse("no", status_code=500)


@pytest.mark.every_loop
async def test_aiohttp_with_a_publisher() -> None:
    """The same."""
    app = web.Application()
    app.cleanup_ctx.append(emitter_context(lambda: Publisher(MemoryQueue())))

    async def viewed(request: web.Request) -> web.Response:
        await aiohttp_get_tracker(request).track(event())
        assert TRACKER in request.app
        assert EMITTER not in request.app
        with pytest.raises(EmitterNotStartedError, match="has a Publisher"):
            aiohttp_get_emitter(request)
        return web.Response()

    app.router.add_get("/", viewed)
    async with AiohttpClient(TestServer(app)) as client:
        assert (await client.get("/")).status == 200


def test_a_class_is_no_tracker() -> None:
    """A factory that returns the class itself has forgotten to call it."""
    app = FastAPI(lifespan=emitter_lifespan(lambda: Publisher))  # type: ignore[arg-type, return-value]
    with pytest.raises(InvalidSettingError, match="got a type"), TestClient(app):
        pass


def test_the_environment_without_a_queue(rokt_sandbox: Sandbox) -> None:
    """An emitter, as before."""
    app = FastAPI(lifespan=emitter_lifespan(tracker_from_env))

    @app.get("/")
    async def handler(emitter: RoktEmitter, tracker: RoktTracker) -> bool:
        await tracker.track(event())
        return emitter is tracker

    with TestClient(app) as client:
        assert client.get("/").json() is True
    assert len(rokt_sandbox.events) == 1
