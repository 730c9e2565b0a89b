"""The account: bounds, the line of those who wait, outcomes, and what a flush waits for."""

from __future__ import annotations

import asyncio

import pytest

from rokt_events_async import (
    Delivery,
    DeliveryFailedError,
    DrainReport,
    EmitterClosedError,
    QueueFullError,
)
from rokt_events_async._pipeline.hooks import Hooks
from rokt_events_async._pipeline.ledger import Ledger
from tests.samples import delivery


def make(max_pending: int = 2, max_pending_bytes: int = 100) -> Ledger:
    return Ledger(max_pending=max_pending, max_pending_bytes=max_pending_bytes, hooks=Hooks())


def settle(ledger: Ledger, *deliveries: Delivery) -> None:
    ledger.settle_delivered(deliveries, attempts=1, maybe_duplicate=False)


async def admit(ledger: Ledger, of: Delivery) -> Delivery:
    await ledger.wait_for_room(len(of.wire))
    ledger.admit_granted(of, now=0.0)
    return of


def counts(ledger: Ledger) -> tuple[int, int]:
    """Events accepted and pending."""
    stats = ledger.stats()
    return stats.accepted, stats.pending


async def turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def full_with_two_in_line() -> tuple[Ledger, Delivery, asyncio.Task[Delivery], asyncio.Task[Delivery]]:
    """An account with room for one event, the event that has it, and two tasks that wait."""
    ledger, first = make(max_pending=1), delivery()
    ledger.admit_nowait(first, now=0.0)
    one, two = (asyncio.create_task(admit(ledger, delivery())) for _ in range(2))
    await turn()
    return ledger, first, one, two


async def test_events_are_bounded() -> None:
    """A full account admits no event until something is settled."""
    ledger = make()
    first, second, third = delivery(), delivery(), delivery()

    assert [ledger.admit_nowait(one, now=0.0) for one in (first, second, third)] == [True, True, False]
    settle(ledger, first)
    assert ledger.admit_nowait(third, now=0.0)


async def test_bytes_are_bounded_exactly() -> None:
    """Up to the bound, and not a byte more."""
    ledger = make(max_pending=10)

    assert ledger.admit_nowait(delivery(60), now=0.0)
    assert not ledger.admit_nowait(delivery(41), now=0.0)
    assert ledger.admit_nowait(delivery(40), now=0.0)
    with pytest.raises(QueueFullError, match="101 bytes can never fit"):
        ledger.check_size(101)


async def test_the_line_is_served_in_order_without_overtaking() -> None:
    """A small event does not slip past a large one that waits."""
    ledger = make(max_pending=10)
    first = delivery(90)
    ledger.admit_nowait(first, now=0.0)
    large = asyncio.create_task(admit(ledger, delivery(80)))
    small = asyncio.create_task(admit(ledger, delivery(1)))
    await turn()

    assert not ledger.admit_nowait(delivery(1), now=0.0)
    assert not small.done()
    settle(ledger, first)
    assert not ledger.admit_nowait(delivery(1), now=0.0), "what is granted is not to be taken"
    await asyncio.gather(large, small)
    assert ledger.stats().pending == 2


async def test_cancelled_in_line() -> None:
    """A cancelled caller leaves the line, and the next one moves up."""
    ledger, first, one, two = await full_with_two_in_line()
    one.cancel()
    await turn()
    settle(ledger, first)
    await two

    assert one.cancelled()
    assert counts(ledger) == (2, 1)


async def test_cancelled_with_the_grant_in_hand() -> None:
    """Room that was granted to a task that is cancelled before it runs goes to the next one."""
    ledger, first, one, two = await full_with_two_in_line()
    settle(ledger, first)
    one.cancel()
    await two

    assert one.cancelled()
    assert counts(ledger) == (2, 1)


async def test_cancelled_while_the_line_moves() -> None:
    """A place whose task is cancelled but has not run yet is passed over."""
    ledger, first, one, two = await full_with_two_in_line()
    one.cancel()
    settle(ledger, first)
    await two

    assert one.cancelled()
    assert ledger.stats().pending == 1


async def test_a_large_event_that_leaves_the_line_lets_small_ones_in() -> None:
    """The room was there all along."""
    ledger = make(max_pending=10)
    ledger.admit_nowait(delivery(50), now=0.0)
    large = asyncio.create_task(admit(ledger, delivery(80)))
    small = asyncio.create_task(admit(ledger, delivery(10)))
    await turn()
    assert not small.done()

    large.cancel()
    await small
    assert ledger.stats().pending == 2


async def test_a_newcomer_behind_a_grant_does_not_wait_for_room_that_is_there() -> None:
    """Who joins the line while a grant is outstanding is served at once if there is room for both."""
    ledger = make(max_pending=2)
    first, second = delivery(), delivery()
    ledger.admit_nowait(first, now=0.0)
    ledger.admit_nowait(second, now=0.0)
    granted = asyncio.create_task(admit(ledger, delivery()))
    await turn()
    settle(ledger, first)
    settle(ledger, second)
    newcomer = asyncio.create_task(admit(ledger, delivery()))
    await asyncio.gather(granted, newcomer)

    assert ledger.stats().pending == 2


async def test_closing_turns_away_who_waits() -> None:
    """In line, with the grant in hand, and both cancelled at that moment."""
    ledger = make(max_pending=1)
    first = delivery()
    ledger.admit_nowait(first, now=0.0)
    granted, waiting, cancelled = (asyncio.create_task(admit(ledger, delivery())) for _ in range(3))
    await turn()
    settle(ledger, first)
    ledger.close()
    cancelled.cancel()
    outcomes = await asyncio.gather(granted, waiting, cancelled, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [
        EmitterClosedError,
        EmitterClosedError,
        asyncio.CancelledError,
    ]
    assert counts(ledger) == (1, 0)


async def test_closing_passes_over_who_is_cancelled() -> None:
    """A place that is cancelled already is not told."""
    ledger = make(max_pending=1)
    ledger.admit_nowait(delivery(), now=0.0)
    waiting = asyncio.create_task(admit(ledger, delivery()))
    await turn()
    waiting.cancel()
    ledger.close()
    await turn()

    assert waiting.cancelled()


async def test_an_event_is_settled_once() -> None:
    """A second outcome is a fault of the library, and says so."""
    ledger = make()
    one = delivery()
    ledger.admit_nowait(one, now=0.0)
    settle(ledger, one)
    with pytest.raises(RuntimeError, match="settled twice"):
        settle(ledger, one)
    with pytest.raises(RuntimeError, match="settled twice"):
        ledger.settle_undelivered(one, DeliveryFailedError("again", event=one.event))

    assert (ledger.stats().delivered, ledger.stats().failed) == (1, 0)


async def test_flushes_wait_for_what_came_before_them() -> None:
    """In any order of settling, and each for its own."""
    ledger = make(max_pending=10)
    one, two, three = delivery(), delivery(), delivery()
    await ledger.settled()
    ledger.admit_nowait(one, now=0.0)
    first = asyncio.create_task(ledger.settled())
    await turn()
    ledger.admit_nowait(two, now=0.0)
    second = asyncio.create_task(ledger.settled())
    await turn()
    third = asyncio.create_task(ledger.settled())
    await turn()
    ledger.admit_nowait(three, now=0.0)

    settle(ledger, two)
    await turn()
    assert not first.done()
    assert not second.done()
    settle(ledger, one)
    await asyncio.gather(first, second, third)
    assert ledger.stats().pending == 1


async def test_a_report_counts_from_the_close() -> None:
    """With the errors of what was not delivered."""
    ledger = make(max_pending=10)
    before, one, two = delivery(), delivery(), delivery()
    for each in (before, one, two):
        ledger.admit_nowait(each, now=0.0)
    ledger.settle_undelivered(before, DeliveryFailedError("before", event=before.event))
    assert ledger.report() == DrainReport()
    ledger.close()
    error = DeliveryFailedError("since", event=one.event)
    ledger.settle_undelivered(one, error)
    settle(ledger, two)

    assert ledger.report() == DrainReport(delivered=1, failed=1, undelivered=(error,))
    assert error.outcome == "failed"
