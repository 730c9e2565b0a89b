"""The health endpoints of web applications."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient as AiohttpClient
from aiohttp.test_utils import TestServer
from fastapi import FastAPI
from fastapi.testclient import TestClient

from rokt_events_async import Emitter, Health, LastError
from rokt_events_async.integrations._health import describe_health, health_status
from rokt_events_async.integrations.aiohttp import emitter_context
from rokt_events_async.integrations.aiohttp import health_endpoint as aiohttp_health_endpoint
from rokt_events_async.integrations.fastapi import emitter_lifespan, health_endpoint
from rokt_events_async.sandbox import Sandbox
from tests.samples import event


def test_a_fastapi_application(rokt_sandbox: Sandbox) -> None:
    """200 with the state, also in an outage; strict tells a monitor."""
    app = FastAPI(lifespan=emitter_lifespan(Emitter))
    app.add_route("/rokt", health_endpoint())
    app.add_route("/strict", health_endpoint(strict=True))

    @app.post("/track/{session}")
    async def track(session: str) -> None:
        await app.state.rokt_tracker.track(event(session))

    with TestClient(app) as client:
        answer = client.get("/rokt")
        assert (answer.status_code, answer.json()["state"]) == (200, "ok")
        assert client.get("/strict").status_code == 200
        rokt_sandbox.fail_next(*[503] * 100)
        for number in range(20):
            client.post(f"/track/s{number}")
        until = time.monotonic() + 20
        while client.get("/rokt").json()["state"] != "outage":
            assert time.monotonic() < until
            time.sleep(0.05)
        answer = client.get("/rokt")
        assert answer.status_code == 200
        assert answer.json()["pending"] == 20
        assert answer.json()["last_error"]["text"] == "HTTP 503"
        assert client.get("/strict").status_code == 503
        rokt_sandbox._behaviour.plan = Sandbox()._behaviour.plan  # The server is well again.


def test_a_tracker_of_its_own() -> None:
    """New and closed are no health to rely on."""
    emitter = Emitter(Sandbox().credentials)
    app = FastAPI()
    app.add_route("/rokt", health_endpoint(emitter))

    answer = TestClient(app).get("/rokt")
    assert (answer.status_code, answer.json()["state"]) == (503, "new")


@pytest.mark.every_loop
async def test_an_aiohttp_application(rokt_sandbox: Sandbox) -> None:
    """The same."""
    app = web.Application()
    app.cleanup_ctx.append(emitter_context(Emitter))
    app.router.add_get("/rokt", aiohttp_health_endpoint())
    app.router.add_get("/new", aiohttp_health_endpoint(Emitter(rokt_sandbox.credentials), strict=True))
    async with AiohttpClient(TestServer(app)) as client:
        answer = await client.get("/rokt")
        assert (answer.status, (await answer.json())["state"]) == (200, "ok")
        assert (await client.get("/new")).status == 503


@pytest.mark.parametrize(
    ("health", "plain", "strict"),
    [
        ({"state": "ok"}, 200, 200),
        ({"state": "retrying"}, 200, 200),
        ({"state": "closing"}, 200, 200),
        ({"state": "outage"}, 200, 503),
        ({"state": "credentials_refused"}, 200, 503),
        ({"state": "ok", "problems": ("queue_full",)}, 200, 503),
        ({"state": "ok", "problems": ("deferring", "session_stalled")}, 200, 200),
        ({"state": "ok", "problems": ("journal_failed",)}, 200, 503),
        ({"state": "closed"}, 503, 503),
    ],
)
def test_states(health: dict[str, Any], plain: int, strict: int) -> None:
    """Rokt's outage is not the application's."""
    found = Health(**health)
    assert health_status(found, strict=False) == plain
    assert health_status(found, strict=True) == strict


def test_the_body() -> None:
    """Times as text, and nothing of an event."""
    now = datetime(2026, 5, 4, tzinfo=UTC)
    body = describe_health(Health(state="retrying", since=now, last_error=LastError("HTTP 503", now)))

    assert body["since"] == "2026-05-04T00:00:00+00:00"
    assert body["last_error"] == {"text": "HTTP 503", "at": "2026-05-04T00:00:00+00:00"}
    assert body["next_attempt_at"] is None
