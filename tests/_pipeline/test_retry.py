"""When again, and how long to wait."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest

from rokt_events_async import RetryPolicy
from rokt_events_async._pipeline import retry as retry_

NOW = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("0", 0),
        ("5", 5),
        (" 7 ", 7),
        ("60", 60),
        ("61", 60),
        ("9" * 10_000, 60),
        ("-5", 0),
        ("1.5", 0),
        ("nan", 0),
        ("inf", 0),
        ("\u0665", 0),
        ("soon", 0),
        ("Mon, 04 May 2026 12:00:30 GMT", 30),
        ("Mon, 04 May 2026 12:00:30 -0000", 30),
        ("Mon, 04 May 2026 14:00:30 +0200", 30),
        ("Mon, 04 May 2026 11:00:00 GMT", 0),
        ("Tue, 04 May 2027 12:00:00 GMT", 60),
        ("Mon, 99 May 2026 12:00:30 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 -2359", 60),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0),
    ],
)
def test_retry_after_in_both_forms(value: str | None, seconds: float) -> None:
    """Seconds or a date, cut to a minute; 0 for what makes no sense."""
    assert retry_.parse_retry_after(value, now=NOW) == seconds


def test_a_wait_is_the_policys_or_what_the_server_asked_for() -> None:
    """Whichever is longer."""
    policy = RetryPolicy()
    luck = random.Random(1)

    assert all(1 <= retry_.next_wait(policy, failures=1, retry_after=0, random=luck) <= 2 for _ in range(100))
    waits = [retry_.next_wait(policy, failures=1, retry_after=30, random=luck) for _ in range(100)]
    assert all(30 <= wait <= 31 for wait in waits)
    assert max(waits) - min(waits) > 0.5, "spread, or all would come back at once"


def test_waits_grow_from_the_fifth_failure_in_a_row() -> None:
    """Doubled each time, up to `max_backoff`; never below what the server asks for."""
    policy = RetryPolicy(wait=(1, 1), max_backoff=10)
    luck = random.Random(1)

    waits = [retry_.next_wait(policy, failures=count, retry_after=0, random=luck) for count in range(1, 10)]

    assert waits == [1, 1, 1, 1, 2, 4, 8, 10, 10]
    assert retry_.next_wait(policy, failures=9, retry_after=30, random=luck) == 30
    assert retry_.next_wait(policy, failures=1000, retry_after=0, random=luck) == 10


def test_a_policy_that_waits_longer_than_the_limit_is_kept() -> None:
    """`max_backoff` bounds the growth, not the policy's own wait."""
    policy = RetryPolicy(wait=(90, 90), max_backoff=60)

    assert retry_.next_wait(policy, failures=9, retry_after=0, random=random.Random(1)) == 90
