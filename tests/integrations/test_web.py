"""The README's applications, in their frameworks' own test clients."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from unittest import mock

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient as AiohttpClient
from aiohttp.test_utils import TestServer
from fastapi import BackgroundTasks, Depends, FastAPI, WebSocket
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from rokt_events_async import (
    Emitter,
    EmitterNotStartedError,
    InvalidEventError,
    InvalidSettingError,
    Tracker,
    tracker_from_env,
)
from rokt_events_async.integrations.aiohttp import EMITTER, emitter_context
from rokt_events_async.integrations.aiohttp import get_emitter as aiohttp_get_emitter
from rokt_events_async.integrations.aiohttp import get_tracker as aiohttp_get_tracker
from rokt_events_async.integrations.aiohttp import tracker_named as aiohttp_tracker_named
from rokt_events_async.integrations.fastapi import (
    RoktEmitter,
    RoktTracker,
    emitter_lifespan,
    get_emitter,
    get_tracker,
    tracker_named,
)
from rokt_events_async.sandbox import Sandbox
from rokt_events_async.testing import RecordingTracker
from tests.samples import event
from tests.test_readme import block_with

EuTracker = Annotated[Tracker[Any], Depends(tracker_named("eu"))]


async def undecorated(app: FastAPI) -> AsyncIterator[None]:
    yield


def make_emitter(sandbox: Sandbox) -> Any:
    return lambda: Emitter(sandbox.credentials, endpoint=sandbox.url)


def readme(text: str) -> dict[str, Any]:
    """What the README's block defines."""
    defined: dict[str, Any] = {"__name__": "shop"}
    exec(block_with(text), defined)
    return defined


# FastAPI and Starlette.


def test_the_readmes_fastapi_application(rokt_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Coroutine and plain function, and a second start of the same application."""
    monkeypatch.setenv("ROKT_ENDPOINT", rokt_sandbox.url)
    app = readme("from fastapi import FastAPI")["app"]
    for number in range(2):
        with TestClient(app) as client:
            assert client.post(f"/checkout/s-1/viewed/v-{number}").json() == {"tracked": f"v-{number}"}
            assert client.post(f"/checkout/s-2/chosen/c-{number}").json() == {"tracked": f"c-{number}"}

    received = sorted((event["parentGuid"], event["eventType"]) for event in rokt_sandbox.events)
    assert received == [
        ("c-0", "SignalResponse"),
        ("c-1", "SignalResponse"),
        ("v-0", "SignalViewed"),
        ("v-1", "SignalViewed"),
    ]


def test_a_lifespan_within(rokt_sandbox: Sandbox) -> None:
    """It begins after the emitter, ends before it, may track till its end, and keeps its state."""
    order: list[str] = []

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        order.append("begins")
        yield {"prices": {"hat": 7}}
        order.append("ends")
        await emitters[0].track(event("last"))

    emitters: list[Emitter] = []
    app = FastAPI(lifespan=emitter_lifespan(make_emitter(rokt_sandbox), own))

    @app.get("/")
    async def price(request: Request, emitter: RoktEmitter) -> int:
        emitters.append(emitter)
        prices: dict[str, int] = request.state.prices
        return prices["hat"]

    with TestClient(app) as client:
        assert client.get("/").json() == 7

    assert order == ["begins", "ends"]
    assert [event["sessionId"] for event in rokt_sandbox.events] == ["last"]
    assert "closed" in repr(emitters[0])


def test_a_lifespan_within_that_has_no_state(rokt_sandbox: Sandbox) -> None:
    """As most."""

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[None]:
        yield

    app = FastAPI(lifespan=emitter_lifespan(make_emitter(rokt_sandbox), own))
    app.get("/")(lambda emitter: None)
    with TestClient(app) as client:
        assert client.get("/", params={"emitter": "a query"}).status_code == 200


def test_background_tasks_websockets_and_dependencies(rokt_sandbox: Sandbox) -> None:
    """Wherever FastAPI resolves a dependency."""
    app = FastAPI(lifespan=emitter_lifespan(make_emitter(rokt_sandbox)))

    @app.post("/later")
    async def later(tasks: BackgroundTasks, emitter: RoktEmitter) -> None:
        tasks.add_task(emitter.track, event("in the background"))

    @app.websocket("/socket")
    async def socket(socket: WebSocket, emitter: RoktEmitter) -> None:
        await socket.accept()
        await emitter.track(event("by a websocket"))
        await get_emitter(socket).track(event("by a websocket"))
        await socket.close()

    with TestClient(app) as client:
        client.post("/later")
        with client.websocket_connect("/socket"):
            pass

    sessions = sorted(event["sessionId"] for event in rokt_sandbox.events)
    assert sessions == ["by a websocket", "by a websocket", "in the background"]


def test_starlette_and_its_mounts(rokt_sandbox: Sandbox) -> None:
    """A mounted application has the emitter of the one that it is mounted in."""

    async def track(request: Request) -> PlainTextResponse:
        await get_emitter(request).track(event(request.url.path))
        return PlainTextResponse("tracked")

    inner = Starlette(routes=[Route("/inner", track)])
    routes = [Route("/outer", track), Mount("/mounted", inner)]
    app = Starlette(routes=routes, lifespan=emitter_lifespan(make_emitter(rokt_sandbox)))
    with TestClient(app) as client:
        assert client.get("/outer").text == client.get("/mounted/inner").text == "tracked"

    assert sorted(event["sessionId"] for event in rokt_sandbox.events) == ["/mounted/inner", "/outer"]


def test_an_application_that_was_not_started(rokt_sandbox: Sandbox) -> None:
    """The error says what is missing."""
    app = FastAPI(lifespan=emitter_lifespan(make_emitter(rokt_sandbox)))

    @app.get("/")
    async def handler(emitter: RoktEmitter) -> None: ...

    with pytest.raises(EmitterNotStartedError, match="with TestClient"):
        TestClient(app).get("/")


def test_a_lifespan_within_has_the_emitter(rokt_sandbox: Sandbox) -> None:
    """From its beginning to its end."""

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[None]:
        await app.state.rokt_emitter.track(event("begins"))
        yield
        await app.state.rokt_emitter.track(event("ends"))

    with TestClient(FastAPI(lifespan=emitter_lifespan(make_emitter(rokt_sandbox), own))):
        pass

    assert sorted(one["sessionId"] for one in rokt_sandbox.events) == ["begins", "ends"]


def test_a_lifespan_within_cannot_hide_the_emitter(rokt_sandbox: Sandbox) -> None:
    """Whatever names its own state has."""

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        yield {"rokt_emitter": "mine"}

    app = FastAPI(lifespan=emitter_lifespan(make_emitter(rokt_sandbox), own))

    @app.get("/")
    async def handler(emitter: RoktEmitter) -> None:
        await emitter.track(event("tracked"))

    with TestClient(app) as client:
        assert client.get("/").status_code == 200


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        ("x", "inner must be a lifespan, called with the application, got 'x'"),
        (undecorated, "inner must be a lifespan: is @asynccontextmanager missing before undecorated?"),
    ],
)
def test_what_is_no_lifespan(inner: Any, message: str) -> None:
    """Refused at once, not when the application starts."""
    with pytest.raises(InvalidSettingError, match=re.escape(message)):
        emitter_lifespan(Emitter, inner)


async def coroutine() -> None: ...


@pytest.mark.parametrize("make", [coroutine, lambda: None])
async def test_what_makes_no_emitter(make: Any) -> None:
    """Said when the application starts, and no coroutine is left unawaited."""
    with pytest.raises(
        InvalidSettingError, match=r"make must return a tracker.*, got a (coroutine|NoneType)"
    ):
        async with emitter_lifespan(make)(FastAPI()):
            pass
    with pytest.raises(InvalidSettingError, match="make must return a tracker"):
        await anext(emitter_context(make)(web.Application()))


@pytest.mark.parametrize("integrate", [emitter_lifespan, emitter_context])
def test_an_emitter_is_not_what_makes_one(integrate: Any) -> None:
    """It could be started but once."""
    emitter = Emitter(Sandbox().credentials)
    with pytest.raises(InvalidSettingError, match=r"callable and return a tracker.*got <Emitter new"):
        integrate(emitter)


def test_what_the_readme_says_of_errors_and_overrides(rokt_sandbox: Sandbox) -> None:
    """One handler answers for all that is invalid; a test may put another emitter in its place."""
    app = FastAPI(lifespan=emitter_lifespan(make_emitter(rokt_sandbox)))

    @app.exception_handler(InvalidEventError)
    async def refuse(request: Request, error: InvalidEventError) -> PlainTextResponse:
        return PlainTextResponse(str(error), status_code=422)

    @app.get("/")
    async def handler(emitter: RoktEmitter, session_id: str = "") -> None:
        await emitter.track(event(session_id))

    with TestClient(app) as client:
        assert client.get("/").status_code == 422
        assert client.get("/", params={"session_id": "s"}).status_code == 200

    tracked = mock.AsyncMock()
    app.dependency_overrides[get_emitter] = lambda: tracked
    assert TestClient(app).get("/", params={"session_id": "s"}).status_code == 200  # No lifespan runs.
    tracked.track.assert_awaited_once()


def test_the_recipe_for_two_accounts(rokt_sandbox: Sandbox) -> None:
    """Each event goes to the tracker of its account."""
    shop = readme('tracker_named("eu")')
    shop["EU"] = rokt_sandbox.credentials
    with TestClient(shop["app"]) as client:
        for guid in ("us-1", "eu-1"):
            assert client.post(f"/viewed/{guid}").status_code == 200
    assert sorted(one["parentGuid"] for one in rokt_sandbox.events) == ["eu-1", "us-1"]
    assert len({request.headers["rokt-tag-id"] for request in rokt_sandbox.requests}) == 1


def test_a_recording_tracker_in_place_of_the_tracker() -> None:
    """Without sockets, as the README says."""
    app = FastAPI(lifespan=emitter_lifespan(tracker_from_env))

    @app.get("/")
    async def handler(tracker: RoktTracker) -> None:
        await tracker.track(event())

    tracker = RecordingTracker()
    app.dependency_overrides[get_tracker] = lambda: tracker
    assert TestClient(app).get("/").status_code == 200
    assert len(tracker.events) == 1


# aiohttp.


@pytest.mark.every_loop
async def test_the_readmes_aiohttp_application(
    rokt_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started and stopped as aiohttp does it."""
    monkeypatch.setenv("ROKT_ENDPOINT", rokt_sandbox.url)
    app: web.Application = await readme("from aiohttp import web")["make_app"]()
    async with AiohttpClient(TestServer(app)) as client:
        answer = await client.post("/checkout/s-9/viewed/c-9")
        assert await answer.json() == {"tracked": "c-9"}
        assert "open" in repr(app[EMITTER])

    assert "closed" in repr(app[EMITTER])
    assert [(event["sessionId"], event["parentGuid"]) for event in rokt_sandbox.events] == [("s-9", "c-9")]


@pytest.mark.every_loop
async def test_an_aiohttp_application_within_another(rokt_sandbox: Sandbox) -> None:
    """`config_dict` looks further up."""

    async def track(request: web.Request) -> web.Response:
        await aiohttp_get_emitter(request).track(event("within"))
        return web.Response()

    inner, app = web.Application(), web.Application()
    inner.router.add_get("/", track)
    app.add_subapp("/inner", inner)
    app.cleanup_ctx.append(emitter_context(make_emitter(rokt_sandbox)))
    async with AiohttpClient(TestServer(app)) as client:
        assert (await client.get("/inner/")).status == 200
        await asyncio.gather(*(client.get("/inner/") for _ in range(5)))

    assert len(rokt_sandbox.events) == 6


@pytest.mark.every_loop
async def test_an_aiohttp_application_without_an_emitter() -> None:
    """The error says what is missing."""

    async def track(request: web.Request) -> web.Response:
        with pytest.raises(EmitterNotStartedError, match=r"cleanup_ctx\.append\(emitter_context"):
            aiohttp_get_emitter(request)
        return web.Response(text="said so")

    app = web.Application()
    app.router.add_get("/", track)
    async with AiohttpClient(TestServer(app)) as client:
        assert await (await client.get("/")).text() == "said so"


async def _nothing(_app: Any) -> AsyncIterator[None]:
    yield


class _CallableGenerator:
    async def __call__(self, _app: Any) -> AsyncIterator[None]:
        yield


@pytest.mark.parametrize("inner", [_nothing, functools.partial(_nothing), _CallableGenerator()])
def test_an_inner_lifespan_that_is_none(inner: Any) -> None:
    """Its decorator is missing, in whatever form it comes."""
    with pytest.raises(InvalidSettingError, match="is @asynccontextmanager missing before"):
        emitter_lifespan(Emitter, inner)


async def test_two_lifespans_one_inside_the_other(rokt_sandbox: Sandbox) -> None:
    """Handlers could not tell their emitters apart."""
    app = FastAPI()
    nested = emitter_lifespan(Emitter, emitter_lifespan(Emitter))
    with pytest.raises(InvalidSettingError, match="got two that handlers could not tell apart"):
        async with nested(app):
            pass  # pragma: no cover
    async with emitter_lifespan(Emitter)(app):
        assert app.state.rokt_emitter.stats.accepted == 0
    assert not hasattr(app.state, "rokt_emitter")


def test_two_trackers_by_name(rokt_sandbox: Sandbox) -> None:
    """One for each Rokt account; the name is the application's, whatever a customer puts into the query."""
    with Sandbox() as other:
        lifespan = emitter_lifespan(Emitter, emitter_lifespan(make_emitter(other), name="eu"))
        app = FastAPI(lifespan=lifespan)

        async def viewed(tracker: RoktTracker, european: EuTracker) -> None:
            await tracker.track(event("here"))
            await european.track(event("there"))

        app.post("/viewed")(viewed)
        with TestClient(app) as client:
            assert app.state.rokt_tracker_eu is not app.state.rokt_tracker
            assert client.post("/viewed?name=us&connection=x").status_code == 200
        assert not hasattr(app.state, "rokt_tracker_eu")
        assert [sent["sessionId"] for sent in rokt_sandbox.events] == ["here"]
        assert [sent["sessionId"] for sent in other.events] == ["there"]


@pytest.mark.parametrize(("outer", "inner"), [("eu", "eu"), ("eu", None)])
async def test_names_that_tell_nothing_apart(
    outer: str | None, inner: str | None, rokt_sandbox: Sandbox
) -> None:
    """The inner one needs a name, and another."""
    app = FastAPI()
    nested = emitter_lifespan(Emitter, emitter_lifespan(Emitter, name=inner), name=outer)
    with pytest.raises(InvalidSettingError, match="could not tell apart"):
        async with nested(app):
            pass  # pragma: no cover
    assert app.state.rokt_trackers == ()


def test_a_name_that_is_not_there() -> None:
    """It is said which, and how to have it."""
    dependency = tracker_named("eu")
    with pytest.raises(EmitterNotStartedError, match=r"no tracker named 'eu'.*Emitter, name='eu'"):
        dependency(Request({"type": "http", "state": {}}))
    with pytest.raises(InvalidSettingError, match="name must be an identifier, as in name='eu', got 'e u'"):
        tracker_named("e u")


@pytest.mark.real_loop
async def test_two_trackers_of_an_aiohttp_application(rokt_sandbox: Sandbox) -> None:
    """By name; two that nothing tells apart do not start."""
    async with Sandbox() as other:
        app = web.Application()
        app.cleanup_ctx.append(emitter_context(Emitter))
        app.cleanup_ctx.append(emitter_context(make_emitter(other), name="eu"))

        async def viewed(request: web.Request) -> web.Response:
            await aiohttp_get_tracker(request).track(event("here"))
            await aiohttp_tracker_named("eu")(request).track(event("there"))
            with pytest.raises(EmitterNotStartedError, match="no tracker named 'us'"):
                aiohttp_tracker_named("us")(request)
            return web.Response()

        app.router.add_post("/viewed", viewed)
        async with AiohttpClient(TestServer(app)) as client:
            async with client.post("/viewed") as answer:
                assert answer.status == 200
        assert [sent["sessionId"] for sent in rokt_sandbox.events] == ["here"]
        assert [sent["sessionId"] for sent in other.events] == ["there"]
    for names in ((None, None), ("eu", "eu"), ("eu", None)):
        app = web.Application()
        for name in names:
            app.cleanup_ctx.append(emitter_context(Emitter, name=name))
        runner = web.AppRunner(app)
        with pytest.raises(InvalidSettingError, match="could not tell apart"):
            await runner.setup()
        await runner.cleanup()
