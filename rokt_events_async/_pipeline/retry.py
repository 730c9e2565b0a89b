"""When to retry, and how long to wait first. The only module that knows `backoff`, which is archived."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, Protocol

import backoff

from rokt_events_async.settings import RetryPolicy

MAX_RETRY_AFTER: Final = 60.0
"""The longest `Retry-After` that is honoured, in seconds: a server may ask for a rest, not for a year."""


_CONSTANT_WAITS: Final = 4
"""How many failures in a row have the policy's wait, before it grows."""


def _grow() -> tuple[float, ...]:
    waits = backoff.expo(base=2)
    next(waits)  # backoff's wait generators yield nothing first.
    return tuple(itertools.islice(waits, 17))


_GROWTH: Final = _grow()
"""How often the policy's wait is taken: 1, 2, 4, …"""


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


def next_wait(policy: RetryPolicy, *, failures: int, retry_after: float, random: Random) -> float:
    """Returns the seconds before a retry: as the policy says, but at least what the server asked for.

    From the fifth failure in a row on, the wait doubles. A `Retry-After` gets jitter too, or all batches
    that were asked to wait would come back in the same millisecond.

    Args:
        failures: How many attempts in a row have failed.
    """
    shortest, longest = policy.wait
    wait = random.uniform(shortest, longest)
    if failures > _CONSTANT_WAITS:
        growth = _GROWTH[min(failures - _CONSTANT_WAITS, len(_GROWTH) - 1)]
        wait = max(wait, min(wait * growth, policy.max_backoff))
    if retry_after > 0:
        wait = max(wait, retry_after + random.uniform(0.0, longest - shortest))
    return wait
