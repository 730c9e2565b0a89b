"""Events, credentials, emitters and times that tests share."""

from __future__ import annotations

import asyncio
import itertools
import os
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, Protocol

import pytest

from rokt_events_async import Credentials, Delivery, Emitter, PartnerEvent, RetryPolicy
from rokt_events_async.sandbox import Sandbox
from rokt_events_async.settings import EmitterSettings

SECRET = "rsec-for-nothing"
CREDENTIALS = Credentials(pub_id="rpub-test", secret=SECRET, tag_id="42")
NOW = datetime(2026, 5, 4, 12, 0, 0, 123456, tzinfo=UTC)

SETTINGS = EmitterSettings(
    endpoint="http://127.0.0.1:9/",
    flush_interval=0.25,
    max_batch_size=25,
    max_concurrency=16,
    max_pending=10_000,
    max_pending_bytes=10**7,
    max_session_share=1.0,
    max_wait=0.25,
    when_full="drop",
    retry=RetryPolicy(),
    request_timeout=10.0,
    close_timeout=10.0,
)

_numbers = itertools.count()


def event(session: str = "session", **changes: Any) -> PartnerEvent:
    """A valid event, no two alike: the parent guid is numbered."""
    values: dict[str, Any] = {
        "event_type": "SignalViewed",
        "session_id": session,
        "parent_guid": f"parent-{next(_numbers)}",
        "client_unique_id": "order-1",
    }
    return PartnerEvent(**(values | changes))


def delivery(size: int = 10, loop: asyncio.AbstractEventLoop | None = None) -> Delivery:
    """What the account keeps of an event of so many bytes."""
    made = Delivery(loop=loop)
    made.event, made.wire = event(), b"x" * size
    return made


def emitter_for(sandbox: Sandbox, **settings: Any) -> Emitter:
    """An emitter that delivers to this sandbox."""
    return Emitter(sandbox.credentials, endpoint=sandbox.url, **settings)


class OpenEmitter(Protocol):
    """The fixture `open_emitter`: opens an emitter for a sandbox, and closes it after the test."""

    async def __call__(self, sandbox: Sandbox, **settings: Any) -> Emitter: ...


def missing(reason: str) -> NoReturn:
    """This machine lacks what a test needs: that fails in CI, and is skipped elsewhere."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def unchecked(**changes: Any) -> PartnerEvent:
    """An event that the client would refuse, past its checks."""
    made = event()
    for name, value in changes.items():
        object.__setattr__(made, name, value)
    return made


class Clock:
    """A wall clock that a test sets."""

    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **by: float) -> None:
        self.now += timedelta(**by)
