"""Room: the bounds, the shares of sessions, and the lines of those who wait."""

from __future__ import annotations

import asyncio

import pytest

from rokt_events_async import (
    Delivery,
    EmitterClosedError,
    QueueFullError,
)
from tests._pipeline.accounts import Account
from tests.samples import delivery, event


def make(max_pending: int = 2, max_pending_bytes: int = 100) -> Account:
    return Account(max_pending=max_pending, max_pending_bytes=max_pending_bytes)


def counts(account: Account) -> tuple[int, int]:
    """Events accepted and pending."""
    stats = account.ledger.stats()
    return stats.accepted, stats.pending


async def turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def full_with_two_in_line() -> tuple[Account, Delivery, asyncio.Task[Delivery], asyncio.Task[Delivery]]:
    """An account with room for one event, the event that has it, and two tasks that wait."""
    account, first = make(max_pending=1), delivery()
    account.admit_nowait(first)
    one, two = (asyncio.create_task(account.admit(delivery())) for _ in range(2))
    await turn()
    return account, first, one, two


async def test_events_are_bounded() -> None:
    """A full account admits no event until something is settled."""
    account = make()
    first, second, third = delivery(), delivery(), delivery()

    assert [account.admit_nowait(one) for one in (first, second, third)] == [True, True, False]
    account.settle(first)
    assert account.admit_nowait(third)


async def test_bytes_are_bounded_exactly() -> None:
    """Up to the bound, and not a byte more."""
    account = make(max_pending=10)

    assert account.admit_nowait(delivery(60))
    assert not account.admit_nowait(delivery(41))
    assert account.admit_nowait(delivery(40))
    with pytest.raises(QueueFullError, match="101 bytes can never fit"):
        account.room.check_size(101)


async def test_the_line_is_served_in_order_without_overtaking() -> None:
    """A small event does not slip past a large one that waits."""
    account = make(max_pending=10)
    first = delivery(90)
    account.admit_nowait(first)
    large = asyncio.create_task(account.admit(delivery(80)))
    small = asyncio.create_task(account.admit(delivery(1)))
    await turn()

    assert not account.admit_nowait(delivery(1))
    assert not small.done()
    account.settle(first)
    assert not account.admit_nowait(delivery(1)), "what is granted is not to be taken"
    await asyncio.gather(large, small)
    assert account.ledger.stats().pending == 2


async def test_cancelled_in_line() -> None:
    """A cancelled caller leaves the line, and the next one moves up."""
    account, first, one, two = await full_with_two_in_line()
    one.cancel()
    await turn()
    account.settle(first)
    await two

    assert one.cancelled()
    assert counts(account) == (2, 1)


async def test_cancelled_with_the_grant_in_hand() -> None:
    """Room that was granted to a task that is cancelled before it runs goes to the next one."""
    account, first, one, two = await full_with_two_in_line()
    account.settle(first)
    one.cancel()
    await two

    assert one.cancelled()
    assert counts(account) == (2, 1)


async def test_cancelled_while_the_line_moves() -> None:
    """A place whose task is cancelled but has not run yet is passed over."""
    account, first, one, two = await full_with_two_in_line()
    one.cancel()
    account.settle(first)
    await two

    assert one.cancelled()
    assert account.ledger.stats().pending == 1


async def test_a_large_event_that_leaves_the_line_lets_small_ones_in() -> None:
    """The room was there all along."""
    account = make(max_pending=10)
    account.admit_nowait(delivery(50))
    large = asyncio.create_task(account.admit(delivery(80)))
    small = asyncio.create_task(account.admit(delivery(10)))
    await turn()
    assert not small.done()

    large.cancel()
    await small
    assert account.ledger.stats().pending == 2


async def test_a_newcomer_behind_a_grant_does_not_wait_for_room_that_is_there() -> None:
    """Who joins the line while a grant is outstanding is served at once if there is room for both."""
    account = make(max_pending=2)
    first, second = delivery(), delivery()
    account.admit_nowait(first)
    account.admit_nowait(second)
    granted = asyncio.create_task(account.admit(delivery()))
    await turn()
    account.settle(first)
    account.settle(second)
    newcomer = asyncio.create_task(account.admit(delivery()))
    await asyncio.gather(granted, newcomer)

    assert account.ledger.stats().pending == 2


async def test_closing_turns_away_who_waits() -> None:
    """In line, with the grant in hand, and both cancelled at that moment."""
    account = make(max_pending=1)
    first = delivery()
    account.admit_nowait(first)
    granted, waiting, cancelled = (asyncio.create_task(account.admit(delivery())) for _ in range(3))
    await turn()
    account.settle(first)
    account.close()
    cancelled.cancel()
    outcomes = await asyncio.gather(granted, waiting, cancelled, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [
        EmitterClosedError,
        EmitterClosedError,
        asyncio.CancelledError,
    ]
    assert counts(account) == (1, 0)


async def test_closing_passes_over_who_is_cancelled() -> None:
    """A place that is cancelled already is not told."""
    account = make(max_pending=1)
    account.admit_nowait(delivery())
    waiting = asyncio.create_task(account.admit(delivery()))
    await turn()
    waiting.cancel()
    account.close()
    await turn()

    assert waiting.cancelled()


def shared(held: dict[str, int]) -> Account:
    """An account in which sessions hold what `held` says, and may hold two events."""
    return Account(held, max_pending=8, max_batch_size=1, max_session_share=0.25)


def of(session: str) -> Delivery:
    made = delivery()
    made.event = event(session)
    return made


async def test_a_session_at_its_share_blocks_no_other() -> None:
    """Its callers wait in a line of their own, and are served when it holds less."""
    held: dict[str, int] = {}
    account = shared(held)
    busy = [of("busy") for _ in range(2)]
    for one in busy:
        assert account.admit_nowait(one)
    held["busy"] = 2
    waiting = [asyncio.create_task(account.admit(of("busy"))) for _ in range(2)]
    await turn()

    assert not account.admit_nowait(of("busy"))
    assert account.admit_nowait(of("other"))
    assert account.room.problems == ("session_stalled",)
    account.room.on_released("busy")
    await turn()
    assert not any(task.done() for task in waiting), "it holds as much as before"
    account.settle(busy[0])
    held["busy"] = 1
    account.room.on_released("busy")
    await turn()
    assert [task.done() for task in waiting] == [True, False]
    held["busy"] = 0
    account.room.on_released("busy")
    await turn()
    assert waiting[1].done()
    assert not account.room.problems


async def test_the_error_names_the_bound_that_was_hit() -> None:
    """The queue's, or the session's share."""
    held = {"busy": 2}
    account = shared(held)
    for _ in range(3):
        account.admit_nowait(of("other"))
    assert "holds its share of the queue: 2 of 2 events" in str(account.full_error(of("busy")))
    for _ in range(5):
        account.admit_nowait(of(f"s{_}"))
    assert "the queue is full: 8 of 8 events" in str(account.full_error(of("busy")))


async def test_a_wait_ends_in_time_and_newcomers_do_not_wait_in_vain() -> None:
    """Until room comes free."""
    account = make(max_pending=1)
    first = delivery()
    account.admit_nowait(first)

    assert not await account.wait_for_room(delivery(), timeout=0.25)
    assert account.room.is_jammed(delivery().event.session_id)
    assert account.room.problems == ("queue_full",)
    account.settle(first)
    assert not account.room.is_jammed(delivery().event.session_id)
    assert not account.room.problems


async def test_a_wait_in_a_sessions_line_ends_in_time_too() -> None:
    """That line is jammed then, not the line for all."""
    held = {"busy": 2}
    account = shared(held)
    for _ in range(2):
        account.admit_nowait(of("busy"))
    assert not await account.wait_for_room(of("busy"), timeout=0.25)
    assert account.room.is_jammed(of("busy").event.session_id)
    assert not account.room.is_jammed(of("other").event.session_id)
    account.room.on_released("busy")
    assert not account.room.is_jammed(of("busy").event.session_id)


async def test_a_close_turns_away_every_line() -> None:
    """The callers of a session at its share too."""
    held = {"busy": 2}
    account = shared(held)
    for _ in range(2):
        account.admit_nowait(of("busy"))
    waiting = asyncio.create_task(account.admit(of("busy")))
    await turn()
    account.close()

    with pytest.raises(EmitterClosedError):
        await waiting


async def test_cancelled_in_a_sessions_line() -> None:
    """The line is gone with its last caller."""
    account = shared({"busy": 2})
    for _ in range(2):
        account.admit_nowait(of("busy"))
    waiting = asyncio.create_task(account.admit(of("busy")))
    await turn()
    waiting.cancel()
    await turn()

    assert waiting.cancelled()
    assert not account.room.problems


async def test_room_that_came_meanwhile_jams_no_line() -> None:
    """A caller that timed out in the turn in which room came free."""
    account = shared({"busy": 0})
    account.jam(of("busy"))

    assert not account.room.problems


async def test_room_that_is_granted_in_the_turn_of_the_time_out_is_taken() -> None:
    """The caller has it, and is not told that it waited in vain."""
    account, loop = make(max_pending=1), asyncio.get_running_loop()
    first = delivery()
    account.admit_nowait(first)
    waiting = asyncio.create_task(account.wait_for_room(delivery(), timeout=0.25))
    await asyncio.sleep(0)
    loop.call_at(loop.time() + 0.25 - 1e-10, account.settle, first)

    assert await waiting


async def test_a_cancelled_caller_in_a_sessions_line_is_passed_over() -> None:
    """Before its task has run."""
    held = {"busy": 2}
    account = shared(held)
    for _ in range(2):
        account.admit_nowait(of("busy"))
    waiting = asyncio.create_task(account.admit(of("busy")))
    await turn()
    waiting.cancel()
    held["busy"] = 0
    account.room.on_released("busy")
    assert not account.room.problems
    await turn()

    assert waiting.cancelled()


async def test_room_beside_a_grant_is_given_to_another_session() -> None:
    """The caller that holds the grant is not overtaken by its own session."""
    account = make(max_pending=3)
    first = [delivery() for _ in range(3)]
    for one in first:
        account.admit_nowait(one)
    waiting = asyncio.create_task(account.admit(delivery()))
    await turn()
    account.settle(*first[:2])

    assert not account.admit_nowait(delivery())
    assert "other callers of the event's session" in str(account.full_error(delivery()))
    assert account.admit_nowait(of("other"))
    await waiting
    assert account.ledger.stats().pending == 3


async def test_a_session_at_its_share_jams_its_own_line_only() -> None:
    """A caller that may not wait."""
    account = shared({"busy": 2})
    account.jam(of("busy"))

    assert account.room.problems == ("session_stalled",)
