"""The account: outcomes, the report of a close, and what a flush waits for."""

from __future__ import annotations

import asyncio
from unittest.mock import Mock

import pytest

from rokt_events_async import (
    DeliveryDeferredError,
    DeliveryFailedError,
    DrainReport,
)
from rokt_events_async._pipeline.ledger import Ledger
from rokt_events_async._tracking.hooks import Hooks
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


async def test_what_was_stored_is_as_old_as_its_storing() -> None:
    """Of this process and of earlier ones, whichever is the oldest; what has ended counts no more."""
    account = make(max_pending=10)
    ledger = Ledger(account.room, Hooks(), Mock())
    new, deferred, earlier, young = (delivery() for _ in range(4))
    for each in (new, deferred, earlier, young):
        assert account.room.take_recovered(len(each.wire))
    ledger.admit(new, 100.0)
    ledger.accept_deferred(deferred, DeliveryDeferredError("deferred", event=deferred.event), 100.0)
    assert ledger.oldest_age(now=100.0) == 0.0
    ledger.bring_back(deferred, 100.0, since=80.0)
    assert ledger.oldest_age(now=100.0) == 20.0
    ledger.recover(young, 100.0, since=90.0)
    ledger.recover(earlier, 100.5, since=-500.0)
    assert ledger.oldest_age(now=101.0) == 601.0
    for each in (young, earlier):
        ledger.settle_undelivered(each, DeliveryFailedError("x", event=each.event))
    assert ledger.oldest_age(now=101.0) == 21.0


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
