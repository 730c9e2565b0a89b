"""What a type checker makes of a user's code. Checked by mypy, and never run."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, assert_type

from aiohttp import web
from fastapi import Depends, FastAPI
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from starlette.applications import Starlette
from starlette.requests import Request

from rokt_events_async import (
    DEMO,
    ApiError,
    Credentials,
    Delivery,
    DeliveryError,
    DrainReport,
    Emitter,
    EmitterStats,
    EventProblem,
    EventRejectedError,
    EventType,
    InvalidEventError,
    LoggingObserver,
    NameValuePair,
    Observer,
    Outcome,
    PartnerEvent,
    Receipt,
    RequestReport,
    RetryPolicy,
    RetryReport,
)
from rokt_events_async.integrations import aiohttp as rokt_aiohttp
from rokt_events_async.integrations.aiohttp import EMITTER, emitter_context
from rokt_events_async.integrations.fastapi import RoktEmitter, emitter_lifespan, get_emitter
from rokt_events_async.integrations.opentelemetry import OpenTelemetryObserver
from rokt_events_async.sandbox import Echo, Fault, RecordedRequest, Sandbox


async def use(emitter: Emitter, event: PartnerEvent) -> None:
    delivery = await emitter.track(event)
    assert_type(delivery, Delivery)
    assert_type(await delivery, Receipt)
    assert_type(await asyncio.wait_for(asyncio.shield(delivery), 1.0), Receipt)
    assert_type(emitter.track_nowait(event), Delivery)
    assert_type(await emitter.deliver(event), Receipt)
    assert_type(await emitter.aclose(timeout=1), DrainReport)
    assert_type(emitter.stats, EmitterStats)
    assert_type(delivery.event, PartnerEvent)


def build() -> None:
    event = PartnerEvent(
        event_type="SignalNew",
        session_id="s",
        parent_guid="p",
        client_unique_id="c",
        metadata={"a": "b"},
        event_time=datetime.now(UTC),
    )
    PartnerEvent.viewed(
        session_id="s", parent_guid="p", client_unique_id="c", metadata=[NameValuePair("a", "b")]
    )
    assert_type(event.event_type, EventType | str)
    assert_type(event.metadata, tuple[NameValuePair, ...])
    assert_type(event.event_time, datetime | None)
    assert_type(PartnerEvent.from_dict(event.to_dict()), PartnerEvent)

    PartnerEvent(event_type=5, session_id="s", parent_guid="p", client_unique_id="c")  # type: ignore[arg-type]
    PartnerEvent(event_type="x", session_id="s", parent_guid="p")  # type: ignore[call-arg]
    event.session_id = "t"  # type: ignore[misc]


def configure() -> None:
    Emitter()
    Emitter(Credentials(pub_id="a", secret="b", tag_id="c"), endpoint=DEMO, retry=RetryPolicy(max_attempts=3))
    Emitter(when_full="drop")
    Emitter(when_full="explode")  # type: ignore[arg-type]
    Emitter(flush_interval="1")  # type: ignore[arg-type]


def hear(error: DeliveryError) -> None:
    assert_type(error.event, PartnerEvent)
    assert_type(error.attempts, int)
    assert_type(error.status, int | None)
    assert_type(error.outcome, Outcome)
    if isinstance(error, EventRejectedError):
        assert_type(error.errors, tuple[ApiError, ...])


def hear_early(error: InvalidEventError) -> None:
    assert_type(error.errors, tuple[EventProblem, ...])
    assert_type(error.errors[0].code, str | None)


async def try_out() -> None:
    async with Sandbox(
        echo=Echo.of("shuffled"), script=[503, Fault.answer(429)], faults={"cut": 0.1}
    ) as sandbox:
        assert_type(sandbox, Sandbox)
        assert_type(sandbox.url, str)
        assert_type(sandbox.credentials, Credentials)
        assert_type(sandbox.requests, list[RecordedRequest])
        assert_type(await sandbox.wait_for(1), list[Mapping[str, Any]])
    with Sandbox() as sandbox:
        assert_type(sandbox, Sandbox)


def from_a_thread(emitter: Emitter, event: PartnerEvent) -> None:
    future = emitter.track_threadsafe(event)
    assert_type(future, concurrent.futures.Future[Receipt])
    assert_type(future.result(1.0), Receipt)


# FastAPI, Starlette, aiohttp.


@asynccontextmanager
async def own_lifespan(app: FastAPI) -> AsyncIterator[dict[str, int]]:
    yield {"answer": 42}


@asynccontextmanager
async def stateless_lifespan(app: Starlette) -> AsyncIterator[None]:
    yield


def make_emitter() -> Emitter:
    return Emitter(endpoint=DEMO)


app = FastAPI(lifespan=emitter_lifespan(Emitter))
FastAPI(lifespan=emitter_lifespan(make_emitter, own_lifespan))
Starlette(lifespan=emitter_lifespan(lambda: Emitter(endpoint=DEMO), stateless_lifespan))
emitter_lifespan(Emitter())  # type: ignore[arg-type]
emitter_lifespan(lambda: 5)  # type: ignore[arg-type, return-value]


@app.post("/viewed")
async def viewed(emitter: RoktEmitter, other: Annotated[Emitter, Depends(get_emitter)]) -> None:
    assert_type(emitter, Emitter)
    assert_type(other, Emitter)


async def starlette_handler(request: Request) -> None:
    assert_type(get_emitter(request), Emitter)


async def aiohttp_handler(request: web.Request) -> web.Response:
    assert_type(rokt_aiohttp.get_emitter(request), Emitter)
    assert_type(request.app[EMITTER], Emitter)
    assert_type(request.config_dict[EMITTER], Emitter)
    return web.Response()


def build_aiohttp() -> None:
    application = web.Application()
    application.cleanup_ctx.append(emitter_context(Emitter))
    application.cleanup_ctx.append(emitter_context(make_emitter))
    emitter_context(Emitter())  # type: ignore[arg-type]


# Observers, and what becomes of failures.


class Eyes(Observer):
    def on_accepted(self, delivery: Delivery) -> None:
        assert_type(delivery.event, PartnerEvent)

    def on_request(self, request: RequestReport) -> None:
        assert_type(request.status, int | None)
        assert_type(request.deliveries, tuple[Delivery, ...])

    def on_retry(self, retry: RetryReport) -> None:
        assert_type(retry.wait, float)

    def on_undelivered(self, delivery: Delivery, error: DeliveryError) -> None:
        assert_type(error.reason, str)


class Blind(Observer):
    async def on_closed(self, report: DrainReport) -> None: ...  # type: ignore[override]


def keep(error: DeliveryError) -> None: ...


async def keep_later(error: DeliveryError) -> None: ...


def watch() -> None:
    Emitter(observers=[Eyes(), LoggingObserver(logging.getLogger("shop"), max_records=3)])
    Emitter(observers=())
    Emitter(
        observers=[OpenTelemetryObserver(meter_provider=MeterProvider(), tracer_provider=TracerProvider())]
    )
    Emitter(on_undelivered=keep)
    Emitter(on_undelivered=keep_later)
    Emitter(observers=[print])  # type: ignore[list-item]
    Emitter(on_undelivered=lambda: None)  # type: ignore[arg-type, misc]
