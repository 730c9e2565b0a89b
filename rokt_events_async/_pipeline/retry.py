"""When to retry, and how long to wait first. The only module that knows `backoff`, which is archived."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, Protocol

import backoff

from rokt_events_async.settings import RetryPolicy

MAX_RETRY_AFTER: Final = 60.0
"""The longest `Retry-After` that is honoured, in seconds: a server may ask for a rest, not for a year."""


class Random(Protocol):
    """The source of jitter: `random.Random`, or a test's own."""

    def uniform(self, a: float, b: float, /) -> float: ...


def parse_retry_after(value: str | None, *, now: datetime) -> float:
    """Returns the seconds that a `Retry-After` asks for, 0 to 60; 0 if it cannot be read.

    It has two forms: whole seconds, and an HTTP date (RFC 9110, section 10.2.3).
    """
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), MAX_RETRY_AFTER)
    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:  # RFC 5322 writes an unknown zone as -0000.
            moment = moment.replace(tzinfo=UTC)
        seconds = (moment - now).total_seconds()
    except (ValueError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def next_wait(policy: RetryPolicy, *, retry_after: float, random: Random) -> float:
    """Returns the seconds before a retry: as the policy says, but at least what the server asked for."""
    return max(random.uniform(*policy.wait), retry_after)


async def repeat(attempt: Callable[[], Awaitable[float | None]], *, wait: float) -> None:
    """Waits and calls `attempt`, again and again with the wait that it returns, until it returns `None`."""
    first = [wait]

    async def again() -> float | None:
        return first.pop() if first else await attempt()

    await _waiting(again)()


_waiting = backoff.on_predicate(
    backoff.runtime,
    predicate=lambda wait: wait is not None,
    value=lambda wait: wait,
    jitter=None,
    logger=None,
)
"""`max_time` is not used, because it cuts the last wait below `Retry-After`; the sender gives up itself."""
