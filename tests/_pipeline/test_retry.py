"""When again, and how long to wait."""

from __future__ import annotations

import asyncio
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

    assert all(1 <= retry_.next_wait(policy, retry_after=0, random=luck) <= 2 for _ in range(100))
    assert retry_.next_wait(policy, retry_after=30, random=luck) == 30


async def test_repeat_waits_as_told_until_there_is_nothing_more() -> None:
    """Before each attempt, and not after the last."""
    loop = asyncio.get_running_loop()
    waits: list[float | None] = [3.0, 4.0, None]
    times: list[float] = []
    started = loop.time()

    async def attempt() -> float | None:
        times.append(loop.time() - started)
        return waits.pop(0)

    await retry_.repeat(attempt, wait=1.0)

    assert times == [pytest.approx(1, abs=0.01), pytest.approx(4, abs=0.01), pytest.approx(8, abs=0.01)]
