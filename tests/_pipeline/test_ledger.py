"""The account: bounds, the line of those who wait, outcomes, and what a flush waits for."""

from __future__ import annotations

import asyncio
from typing import Any

import attrs
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
from tests.samples import SETTINGS, delivery, event


def make(max_pending: int = 2, max_pending_bytes: int = 100) -> Ledger:
    settings = attrs.evolve(SETTINGS, max_pending=max_pending, max_pending_bytes=max_pending_bytes)
    return Ledger(settings, Hooks())


def settle(ledger: Ledger, *deliveries: Delivery) -> None:
    ledger.settle_delivered(deliveries, attempts=1, maybe_duplicate=False, now=0.0)


async def admit(ledger: Ledger, of: Delivery) -> Delivery:
    assert await ledger.wait_for_room(of, timeout=None)
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


def shared(held: dict[str, int]) -> Ledger:
    """An account in which sessions hold what `held` says, and may hold two events."""
    bounds: dict[str, Any] = {"max_pending": 8, "max_batch_size": 1, "max_session_share": 0.25}
    made = Ledger(attrs.evolve(SETTINGS, **bounds), Hooks())
    made.watch(lambda session_id: (held.get(session_id, 0), 0))
    return made


def of(session: str) -> Delivery:
    made = delivery()
    made.event = event(session)
    return made


async def test_a_session_at_its_share_blocks_no_other() -> None:
    """Its callers wait in a line of their own, and are served when it holds less."""
    held: dict[str, int] = {}
    ledger = shared(held)
    busy = [of("busy") for _ in range(2)]
    for one in busy:
        assert ledger.admit_nowait(one, now=0.0)
    held["busy"] = 2
    waiting = [asyncio.create_task(admit(ledger, of("busy"))) for _ in range(2)]
    await turn()

    assert not ledger.admit_nowait(of("busy"), now=0.0)
    assert ledger.admit_nowait(of("other"), now=0.0)
    assert ledger.problems == ("session_stalled",)
    ledger.on_released("busy")
    await turn()
    assert not any(task.done() for task in waiting), "it holds as much as before"
    settle(ledger, busy[0])
    held["busy"] = 1
    ledger.on_released("busy")
    await turn()
    assert [task.done() for task in waiting] == [True, False]
    held["busy"] = 0
    ledger.on_released("busy")
    await turn()
    assert waiting[1].done()
    assert not ledger.problems


async def test_the_error_names_the_bound_that_was_hit() -> None:
    """The queue's, or the session's share."""
    held = {"busy": 2}
    ledger = shared(held)
    for _ in range(3):
        ledger.admit_nowait(of("other"), now=0.0)
    assert "holds its share of the queue: 2 of 2 events" in str(ledger.full_error(of("busy")))
    for _ in range(5):
        ledger.admit_nowait(of(f"s{_}"), now=0.0)
    assert "the queue is full: 8 of 8 events" in str(ledger.full_error(of("busy")))


async def test_a_wait_ends_in_time_and_newcomers_do_not_wait_in_vain() -> None:
    """Until room comes free."""
    ledger = make(max_pending=1)
    first = delivery()
    ledger.admit_nowait(first, now=0.0)

    assert not await ledger.wait_for_room(delivery(), timeout=0.25)
    assert ledger.is_jammed(delivery())
    assert ledger.problems == ("queue_full",)
    settle(ledger, first)
    assert not ledger.is_jammed(delivery())
    assert not ledger.problems


async def test_a_wait_in_a_sessions_line_ends_in_time_too() -> None:
    """That line is jammed then, not the line for all."""
    held = {"busy": 2}
    ledger = shared(held)
    for _ in range(2):
        ledger.admit_nowait(of("busy"), now=0.0)
    assert not await ledger.wait_for_room(of("busy"), timeout=0.25)
    assert ledger.is_jammed(of("busy"))
    assert not ledger.is_jammed(of("other"))
    ledger.on_released("busy")
    assert not ledger.is_jammed(of("busy"))


async def test_a_close_turns_away_every_line() -> None:
    """The callers of a session at its share too."""
    held = {"busy": 2}
    ledger = shared(held)
    for _ in range(2):
        ledger.admit_nowait(of("busy"), now=0.0)
    waiting = asyncio.create_task(admit(ledger, of("busy")))
    await turn()
    ledger.close()

    with pytest.raises(EmitterClosedError):
        await waiting


async def test_cancelled_in_a_sessions_line() -> None:
    """The line is gone with its last caller."""
    ledger = shared({"busy": 2})
    for _ in range(2):
        ledger.admit_nowait(of("busy"), now=0.0)
    waiting = asyncio.create_task(admit(ledger, of("busy")))
    await turn()
    waiting.cancel()
    await turn()

    assert waiting.cancelled()
    assert not ledger.problems


async def test_the_age_of_the_oldest_is_known_to_within_a_second() -> None:
    """Without a search."""
    ledger = make(max_pending=10)
    old, young = delivery(), delivery()
    ledger.admit_nowait(old, now=100.0)
    ledger.admit_nowait(young, now=105.0)
    assert 9.0 <= ledger.oldest_age(now=110.0) <= 10.0
    settle(ledger, old)
    assert 4.0 <= ledger.oldest_age(now=110.0) <= 5.0
    settle(ledger, young)
    assert ledger.oldest_age(now=110.0) == 0.0


async def test_room_that_came_meanwhile_jams_no_line() -> None:
    """A caller that timed out in the turn in which room came free."""
    ledger = shared({"busy": 0})
    ledger.jam(of("busy"))

    assert not ledger.problems


async def test_room_that_is_granted_in_the_turn_of_the_time_out_is_taken() -> None:
    """The caller has it, and is not told that it waited in vain."""
    ledger, loop = make(max_pending=1), asyncio.get_running_loop()
    first = delivery()
    ledger.admit_nowait(first, now=0.0)
    waiting = asyncio.create_task(ledger.wait_for_room(delivery(), timeout=0.25))
    await asyncio.sleep(0)
    loop.call_at(loop.time() + 0.25 - 1e-10, settle, ledger, first)

    assert await waiting


async def test_a_cancelled_caller_in_a_sessions_line_is_passed_over() -> None:
    """Before its task has run."""
    held = {"busy": 2}
    ledger = shared(held)
    for _ in range(2):
        ledger.admit_nowait(of("busy"), now=0.0)
    waiting = asyncio.create_task(admit(ledger, of("busy")))
    await turn()
    waiting.cancel()
    held["busy"] = 0
    ledger.on_released("busy")
    assert not ledger.problems
    await turn()

    assert waiting.cancelled()


async def test_room_beside_a_grant_is_given_to_another_session() -> None:
    """The caller that holds the grant is not overtaken by its own session."""
    ledger = make(max_pending=3)
    first = [delivery() for _ in range(3)]
    for one in first:
        ledger.admit_nowait(one, now=0.0)
    waiting = asyncio.create_task(admit(ledger, delivery()))
    await turn()
    settle(ledger, *first[:2])

    assert not ledger.admit_nowait(delivery(), now=0.0)
    assert "other callers of the event's session" in str(ledger.full_error(delivery()))
    assert ledger.admit_nowait(of("other"), now=0.0)
    await waiting
    assert ledger.stats().pending == 3


async def test_a_session_at_its_share_jams_its_own_line_only() -> None:
    """A caller that may not wait."""
    ledger = shared({"busy": 2})
    ledger.jam(of("busy"))

    assert ledger.problems == ("session_stalled",)
