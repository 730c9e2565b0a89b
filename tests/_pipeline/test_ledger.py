"""The account: outcomes, the report of a close, and what a flush waits for."""

from __future__ import annotations

import asyncio

import pytest

from rokt_events_async import (
    DeliveryFailedError,
    DrainReport,
)
from tests._pipeline.accounts import Account
from tests.samples import delivery


def make(max_pending: int = 2, max_pending_bytes: int = 100) -> Account:
    return Account(max_pending=max_pending, max_pending_bytes=max_pending_bytes)


async def turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_an_event_is_settled_once() -> None:
    """A second outcome is a fault of the library, and says so."""
    account = make()
    one = delivery()
    account.admit_nowait(one)
    account.settle(one)
    with pytest.raises(RuntimeError, match="settled twice"):
        account.settle(one)
    with pytest.raises(RuntimeError, match="settled twice"):
        account.ledger.settle_undelivered(one, DeliveryFailedError("again", event=one.event))

    assert (account.ledger.stats().delivered, account.ledger.stats().failed) == (1, 0)


async def test_flushes_wait_for_what_came_before_them() -> None:
    """In any order of settling, and each for its own."""
    account = make(max_pending=10)
    one, two, three = delivery(), delivery(), delivery()
    await account.ledger.settled()
    account.admit_nowait(one)
    first = asyncio.create_task(account.ledger.settled())
    await turn()
    account.admit_nowait(two)
    second = asyncio.create_task(account.ledger.settled())
    await turn()
    third = asyncio.create_task(account.ledger.settled())
    await turn()
    account.admit_nowait(three)

    account.settle(two)
    await turn()
    assert not first.done()
    assert not second.done()
    account.settle(one)
    await asyncio.gather(first, second, third)
    assert account.ledger.stats().pending == 1


async def test_a_report_counts_from_the_close() -> None:
    """With the errors of what was not delivered."""
    account = make(max_pending=10)
    before, one, two = delivery(), delivery(), delivery()
    for each in (before, one, two):
        account.admit_nowait(each)
    account.ledger.settle_undelivered(before, DeliveryFailedError("before", event=before.event))
    assert account.ledger.report() == DrainReport()
    account.close()
    error = DeliveryFailedError("since", event=one.event)
    account.ledger.settle_undelivered(one, error)
    account.settle(two)

    assert account.ledger.report() == DrainReport(delivered=1, failed=1, undelivered=(error,))
    assert error.outcome == "failed"


async def test_the_age_of_the_oldest_is_known_to_within_a_second() -> None:
    """Without a search."""
    account = make(max_pending=10)
    old, young = delivery(), delivery()
    account.admit_nowait(old, now=100.0)
    account.admit_nowait(young, now=105.0)
    assert 9.0 <= account.ledger.oldest_age(now=110.0) <= 10.0
    account.settle(old)
    assert 4.0 <= account.ledger.oldest_age(now=110.0) <= 5.0
    account.settle(young)
    assert account.ledger.oldest_age(now=110.0) == 0.0
