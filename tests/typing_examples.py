"""What a type checker makes of a user's code. Checked by mypy, and never run."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import assert_type

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
    NameValuePair,
    Outcome,
    PartnerEvent,
    Receipt,
    RetryPolicy,
)
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
