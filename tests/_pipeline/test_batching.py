"""Batching, without a loop: nothing lost or doubled, at most 25, one session, order and deadlines kept."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from rokt_events_async._pipeline.batching import Batches, Session


def make(max_batch_size: int = 3, linger: float = 10.0) -> Batches[str]:
    return Batches(max_batch_size=max_batch_size, linger=linger)


def take(batches: Batches[str], now: float) -> tuple[str, list[str]] | None:
    taken = batches.take(now=now)
    return taken and (taken[0].id, taken[1])


def test_a_batch_is_due_an_interval_after_its_first_item() -> None:
    """Later items do not push it back."""
    batches = make()
    batches.add("s", "a", now=0.0)
    batches.add("s", "b", now=9.0)

    assert batches.next_due() == 10.0
    assert batches.take(now=9.9) is None
    assert take(batches, 10.0) == ("s", ["a", "b"])
    assert batches.next_due() is None


def test_a_full_batch_is_due_at_once() -> None:
    """The add that fills it says so; the next item opens another."""
    batches = make()

    assert [batches.add("s", item, now=0.0) for item in "abcd"] == [False, False, True, False]
    assert take(batches, 0.0) == ("s", ["a", "b", "c"])
    assert take(batches, 0.0) is None


def test_a_batch_of_one_is_always_full() -> None:
    """`max_batch_size=1` never waits."""
    batches = make(max_batch_size=1)

    assert batches.add("s", "a", now=0.0)
    assert take(batches, 0.0) == ("s", ["a"])


def test_one_batch_of_a_session_is_in_flight() -> None:
    """The next one waits for the release, and then takes its turn at once if it is due."""
    batches = make()
    for item in "abcd":
        batches.add("s", item, now=0.0)
    session, _ = batches.take(now=0.0) or pytest.fail("nothing due")

    assert batches.take(now=50.0) is None
    batches.release(session, now=50.0)
    assert take(batches, 50.0) == ("s", ["d"])


def test_what_is_not_due_at_release_waits_for_its_interval() -> None:
    """A release does not make a young batch leave early."""
    batches = make()
    for item in "abc":
        batches.add("s", item, now=0.0)
    session, _ = batches.take(now=0.0) or pytest.fail("nothing due")
    batches.add("s", "d", now=1.0)
    batches.release(session, now=2.0)

    assert batches.take(now=10.9) is None
    assert take(batches, 11.0) == ("s", ["d"])


def test_a_flush_makes_everything_due() -> None:
    """Whatever is waiting, and nothing that comes later."""
    batches = make()
    batches.add("a", "1", now=0.0)
    batches.add("b", "2", now=1.0)
    batches.flush()
    batches.flush()
    batches.add("c", "3", now=1.0)

    assert batches.next_due() == -math.inf
    assert [take(batches, 1.0), take(batches, 1.0), take(batches, 1.0)] == [("a", ["1"]), ("b", ["2"]), None]


def test_a_flush_reaches_what_waits_behind_a_flight() -> None:
    """It leaves at the release, not at its interval."""
    batches = make()
    for item in "abcd":
        batches.add("s", item, now=0.0)
    session, _ = batches.take(now=0.0) or pytest.fail("nothing due")
    batches.flush()
    assert batches.take(now=0.0) is None
    batches.release(session, now=0.0)

    assert take(batches, 0.0) == ("s", ["d"])


def test_the_oldest_goes_first() -> None:
    """Full, due and flushed batches are served by age."""
    batches = make(linger=1.0)
    batches.add("due", "1", now=0.0)
    for item in "abc":
        batches.add("full", item, now=0.5)
    batches.add("late", "2", now=2.0)

    assert [take(batches, 2.0), take(batches, 2.0), take(batches, 2.0)] == [
        ("full", ["a", "b", "c"]),
        ("due", ["1"]),
        None,
    ]


def test_a_released_session_goes_to_the_end_of_the_line() -> None:
    """One busy session cannot starve others."""
    batches = make(max_batch_size=1)
    for item in "abc":
        batches.add("busy", item, now=0.0)
    batches.add("other", "x", now=1.0)
    session, _ = batches.take(now=2.0) or pytest.fail("nothing due")
    batches.release(session, now=2.0)

    assert take(batches, 2.0) == ("other", ["x"])
    assert take(batches, 2.0) == ("busy", ["b"])


def test_a_session_is_forgotten_when_it_is_empty() -> None:
    """Session ids are many and short-lived."""
    batches = make()
    batches.add("s", "a", now=0.0)
    session, _ = batches.take(now=10.0) or pytest.fail("nothing due")
    assert batches.sessions == 1

    batches.release(session, now=10.0)
    assert batches.sessions == 0


def test_overdue_items_are_taken_from_the_front() -> None:
    """From open, flushed and full batches; what is younger stays where it is."""
    batches = make()
    batches.add("flushed", "1", now=0.0)
    batches.flush()
    batches.add("open", "2", now=0.0)
    batches.add("open", "9", now=5.0)
    for item in "345678":
        batches.add("full", item, now=1.0)

    assert batches.take_overdue(lambda item: item < "7", start=0, at_most=100) == (["1", "2", *"3456"], 0)
    assert take(batches, 5.0) == ("full", ["7", "8"])
    assert take(batches, 50.0) == ("open", ["9"])
    assert batches.take_overdue(lambda _: True, start=0, at_most=100) == ([], 0)


def test_the_search_for_overdue_items_is_bounded() -> None:
    """A piece at a time, so that a million sessions do not hold the loop."""
    batches = make(max_batch_size=1)
    for number in range(10):
        batches.add(f"s{number}", "x", now=0.0)

    assert batches.take_overdue(lambda _: False, start=0, at_most=4) == ([], 4)
    assert batches.take_overdue(lambda _: False, start=8, at_most=4) == ([], 0)
    for left in (6, 2, 0):
        overdue, start = batches.take_overdue(lambda _: True, start=0, at_most=4)
        assert (len(overdue), start, batches.sessions) == (4 if left else 2, 0, left)
    assert batches.take(now=0.0) is None


def test_what_is_left_of_a_session_hides_nothing_that_is_overdue() -> None:
    """It is younger then than what was behind it, and is taken all the same."""
    batches = make(max_batch_size=25)
    for session, item, now in (("a", "old", 0.0), ("b", "older than c", 1.0), ("a", "c", 9.0)):
        batches.add(session, item, now=now)

    overdue = batches.take_overdue(lambda item: item.startswith("old"), start=0, at_most=10)
    assert overdue == (["old", "older than c"], 0)
    assert batches.sessions == 1
    assert take(batches, 10.0) == ("a", ["c"])


def test_a_session_whose_full_batches_are_overdue_keeps_the_open_one() -> None:
    """Which waits for its own interval."""
    batches = make(max_batch_size=2)
    for item, now in (("old", 0.0), ("older than c", 0.0), ("c", 9.0)):
        batches.add("s", item, now=now)

    overdue, _ = batches.take_overdue(lambda item: item.startswith("old"), start=0, at_most=10)
    assert overdue == ["old", "older than c"]
    assert batches.take(now=18.9) is None
    assert take(batches, 19.0) == ("s", ["c"])
    assert batches.next_due() is None


def test_a_session_emptied_in_the_ready_queue_starts_again() -> None:
    """What is added to it afterwards waits for its own interval."""
    batches = make(max_batch_size=2)
    for item in "ab":
        batches.add("s", item, now=0.0)
    assert batches.take_overdue(lambda _: True, start=0, at_most=10)[0] == ["a", "b"]
    batches.add("s", "c", now=1.0)

    assert batches.take(now=1.0) is None
    assert take(batches, 11.0) == ("s", ["c"])


def test_overdue_items_of_one_session_are_taken_a_piece_at_a_time() -> None:
    """A large session does not hold the loop either."""
    batches = make(max_batch_size=2)
    for number in range(9):
        batches.add("s", str(number), now=0.0)
    session, _ = batches.take(now=0.0) or pytest.fail("nothing due")

    assert batches.drop_overdue(session, lambda _: True, at_most=3) == list("2345")
    assert batches.drop_overdue(session, lambda _: True, at_most=3) == list("678")
    batches.release(session, now=0.0)
    assert batches.sessions == 0


def test_a_million_sessions_of_one_item() -> None:
    """Many and short-lived: all of them leave, each with its own, and none is remembered."""
    batches: Batches[int] = Batches(max_batch_size=25, linger=10.0)
    for number in range(1_000_000):
        batches.add(str(number), number, now=0.0)
    assert batches.sessions == 1_000_000
    batches.flush()
    for number in range(1_000_000):
        session, batch = batches.take(now=0.0) or pytest.fail("nothing due")
        assert batch == [number]
        batches.release(session, now=0.0)

    assert batches.sessions == 0
    assert batches.next_due() is None


class BatchingMachine(RuleBasedStateMachine):
    """Any order of adds, takes, releases, flushes and passing time, against a plain model."""

    flights = Bundle("flights")

    def __init__(self) -> None:
        super().__init__()
        self.batches: Batches[tuple[str, int]] = Batches(max_batch_size=25, linger=5.0)
        self.now = 0.0
        self.number = 0
        self.queued: dict[str, list[tuple[str, int]]] = defaultdict(list)
        self.opened: dict[str, float] = {}
        self.flying: set[str] = set()

    @rule(session=st.sampled_from("abc"), count=st.integers(1, 60))
    def add(self, session: str, count: int) -> None:
        for _ in range(count):
            item = (session, self.number)
            self.number += 1
            self.batches.add(session, item, now=self.now)
            self.queued[session].append(item)

    @rule(seconds=st.sampled_from([0.0, 1.0, 2.5, 10.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def flush(self) -> None:
        self.batches.flush()

    @rule(target=flights)
    def take(self) -> Session[tuple[str, int]] | None:
        taken = self.batches.take(now=self.now)
        if taken is None:
            return None
        session, batch = taken
        assert 1 <= len(batch) <= 25
        assert session.id not in self.flying, "one request in flight a session"
        assert batch == self.queued[session.id][: len(batch)], "order kept, nothing lost or doubled"
        del self.queued[session.id][: len(batch)]
        self.flying.add(session.id)
        return session

    @rule(session=consumes(flights))
    def release(self, session: Session[tuple[str, int]] | None) -> None:
        if session is not None:
            self.flying.discard(session.id)
            self.batches.release(session, now=self.now)

    @precondition(lambda self: any(self.queued.values()))
    @rule(before=st.integers(0, 200))
    def drop_overdue(self, before: int) -> None:
        dropped, start = [], 0
        while True:
            found, start = self.batches.take_overdue(
                lambda item: item[1] < self.number - before, start=start, at_most=7
            )
            dropped += found
            if start == 0 and not found:
                break
        for item in dropped:
            assert self.queued[item[0]].pop(0) == item

    @invariant()
    def sessions_are_forgotten(self) -> None:
        known = {session for session, items in self.queued.items() if items} | self.flying
        assert known <= {"a", "b", "c"}
        assert len(known) <= self.batches.sessions <= 3

    def teardown(self) -> None:
        for name in self.flying:
            state = next(shard[name] for shard in self.batches._shards if name in shard)
            self.batches.release(state, now=self.now)
        self.batches.flush()
        while (taken := self.batches.take(now=self.now)) is not None:
            session, batch = taken
            assert batch == self.queued[session.id][: len(batch)]
            del self.queued[session.id][: len(batch)]
            self.batches.release(session, now=self.now)
        assert not any(self.queued.values()), "nothing is left behind"
        assert self.batches.sessions == 0
        assert self.batches.next_due() is None


TestBatching = BatchingMachine.TestCase
TestBatching.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.floats(0, 3)), min_size=1, max_size=120))
def test_no_batch_waits_longer_than_its_linger(arrivals: list[tuple[str, float]]) -> None:
    """With workers at hand, every item leaves within the interval of its own arrival."""
    batches: Batches[float] = Batches(max_batch_size=25, linger=2.0)
    now = 0.0
    for session_id, gap in arrivals:
        arrival = now + gap
        while (due := batches.next_due()) is not None and due <= arrival:
            now = max(now, due)
            session, batch = batches.take(now=now) or pytest.fail("due, but not handed out")
            assert all(now - since <= 2.0 + 1e-9 for since in batch)
            batches.release(session, now=now)
        now = arrival
        batches.add(session_id, now, now=now)


def test_heavy_sessions_are_known() -> None:
    """By items or by bytes, until they hold less, whatever became of the items."""
    batches: Batches[int] = Batches(max_batch_size=2, linger=1.0, heavy=(3, 10), size_of=lambda item: item)
    for _ in range(3):
        batches.add("many", 1, size=1, now=0.0)
    batches.add("large", 10, size=10, now=0.0)
    batches.add("small", 1, size=1, now=0.0)
    assert set(batches.heavy) == {"many", "large"}

    taken = batches.take(now=0.0)
    assert taken is not None
    batches.settle(taken[0], items=2, size=2)
    batches.release(taken[0], now=0.0)
    assert set(batches.heavy) == {"large"}
    batches.take_overdue(lambda _: True, start=0, at_most=10)
    assert not batches.heavy
    assert batches.held_by("large") == (0, 0)
    assert batches.sessions == 0


def test_a_session_that_loses_its_front_at_a_release_hides_no_other() -> None:
    """Its place in the ring is that of items which are gone: it must not stand before older ones."""
    batches: Batches[float] = Batches(max_batch_size=5, linger=0.0)
    batches.add("flying", 0.0, now=0.0)
    flying = batches.take(now=1.0)
    assert flying is not None
    batches.add("flying", 1.0, now=1.0)
    batches.add("other", 1.5, now=1.5)
    batches.add("flying", 9.0, now=9.0)
    assert batches.drop_overdue(flying[0], lambda item: item <= 1.0, at_most=10) == [1.0]
    assert batches.take_overdue(lambda item: item <= 2.0, start=0, at_most=10)[0] == [1.5]
    batches.release(flying[0], now=9.0)
    assert batches.take(now=9.0) == (flying[0], [9.0])
