"""What is on disk alone: who queues behind it, and what is read next."""

from __future__ import annotations

import random
import tracemalloc
from datetime import UTC, datetime

from rokt_events_async._pipeline.backlog import Backlog, Backlogs, LastNumbers


def backlog(**changes: int) -> Backlog:
    return Backlog(**({"after": 10, "until": 10} | changes))


def test_an_empty_backlog_holds_up_nothing() -> None:
    """There is nothing to read either."""
    empty = backlog()
    assert empty.is_empty
    assert not empty.has_more
    assert not empty.is_behind("a")
    assert empty.oldest_at is None
    assert empty.next_ready() is None
    assert empty.is_read_to(10**9)


def test_events_queue_behind_deferred_ones_of_their_session_only() -> None:
    """Until these have been read; numbers between them are of events that are in memory."""
    one = backlog()
    one.defer("a", 12, now=1000)
    one.defer("b", 15, now=2000)
    one.defer("a", 16, now=3000)
    assert (one.after, one.until, one.oldest_at) == (11, 16, 1000)
    assert [one.is_behind(session) for session in ("a", "b", "c")] == [True, True, False]
    one.read(15, at=2000)
    assert [one.is_behind(session) for session in ("a", "b", "c")] == [True, False, False]
    assert one.oldest_at == 2000
    assert one.is_read_to(15)
    assert not one.is_read_to(16)
    one.read(16)
    assert one.is_empty
    one.defer("a", 20, now=9000)
    assert (one.after, one.until, one.oldest_at) == (19, 20, 9000)


def test_a_session_that_was_passed_over_is_read_by_its_id() -> None:
    """Once it holds less; its later events stay behind it, and are not looked for otherwise."""
    one = backlog()
    for number, session in enumerate(("a", "b", "a", "b"), start=11):
        one.defer(session, number, now=number)
    one.pass_over("a", 11, at=11)
    one.read(14, at=14)
    assert not one.is_empty
    assert not one.has_more
    assert one.is_behind("a")
    assert not one.is_behind("b")
    assert one.oldest_at == 11
    assert (one.is_read_to(10), one.is_read_to(11)) == (True, False)
    assert one.passed_over == ("a",)

    one.defer("a", 20, now=20)
    assert (one.after, one.until, one.has_more) == (20, 20, False)
    assert one.next_ready() is None
    one.on_released("b")
    one.on_released("a")
    assert one.next_ready() == ("a", 10)
    one.read_session("a", 13, at=13)  # 20 was not written yet.
    assert one.next_ready() == ("a", 13)
    one.pass_over("a", 20, at=20)
    assert one.next_ready() is None
    one.on_released("a")
    one.read_session("a", 20, at=20)
    assert one.is_empty
    assert not one.is_behind("a")


def test_all_backlogs_hear_of_a_session_that_holds_less() -> None:
    """The emitter's own, and those of earlier processes."""
    all_of_them = Backlogs(10)
    assert all_of_them.oldest is None
    all_of_them.earlier.append(backlog(after=0, until=5))
    for one in (all_of_them.own, all_of_them.earlier[0]):
        one.pass_over("a", 1, at=1500)
    all_of_them.on_released("a")
    assert all_of_them.own.next_ready() == all_of_them.earlier[0].next_ready() == ("a", 0)
    assert all_of_them.oldest == datetime.fromtimestamp(1.5, UTC)


def test_last_numbers_are_those_of_a_dictionary() -> None:
    """Whatever was forgotten is up to the number that was named."""
    luck = random.Random(1)
    numbers, plain = LastNumbers(), {}
    for number in range(1, 20_000):
        session = f"s{luck.randrange(3000)}"
        numbers.put(session, number)
        plain[session] = number
    assert numbers.count == len(plain)
    assert all(numbers.get(session) == number for session, number in plain.items())
    assert numbers.get("another") == 0
    for _ in range(4096):
        numbers.forget_some(15_000)
    left = {session: number for session, number in plain.items() if number > 15_000}
    assert numbers.count == len(left)
    assert all(numbers.get(session) == left.get(session, 0) for session in plain)


def test_last_numbers_of_many_sessions_are_small() -> None:
    """At most 24 bytes each, growth included."""
    tracemalloc.start()
    try:
        numbers = LastNumbers()
        before, _ = tracemalloc.get_traced_memory()
        for number in range(200_000):
            numbers.put(f"session {number}", number)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / numbers.count < 24
