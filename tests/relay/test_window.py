"""A relay's window: what is due, what is out, what is passed over."""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rokt_events_async.relay._window import Window
from rokt_events_async.relay.entries import Entry, Held
from tests.samples import event

_ids = itertools.count(1)


def held(session: str = "s", partition: int = 0) -> Held:
    entry = Entry(partition, b"%d-0" % next(_ids), ())
    return Held(
        entry,
        event(session),
        b"",
        is_repeated=False,
        trace_parent=None,
        size=100,
    )


def window(size: int = 1000, **changes: Any) -> Window:
    values: dict[str, Any] = {"max_bytes": 10**9, "linger": 2.0, "batch_size": 25, "share": 0.25}
    return Window(size, **(values | changes))


def test_a_batch_lingers_and_leaves() -> None:
    """The linger counts from its first entry."""
    one = window()
    first, second = held(), held()
    one.add(first, now=10.0)
    one.add(second, now=11.0)

    assert one.take_due(now=11.9) == []
    assert one.next_due() == 12.0
    assert one.take_due(now=12.0) == [[first, second]]
    assert (one.out, len(one), one.next_due()) == (2, 2, None)


def test_a_full_batch_leaves_at_once() -> None:
    """And the rest lingers."""
    one = window()
    entries = [held() for _ in range(27)]
    for entry in entries:
        one.add(entry, now=10.0)

    assert one.has_ready()
    assert one.take_due(now=10.5) == [entries[:25]]
    assert one.take_due(now=12.4) == []
    assert one.take_due(now=12.5) == [entries[25:]]


def test_a_late_entry_is_due_at_once() -> None:
    """It has waited at another relay."""
    one = window()
    entry = held()
    one.add(entry, now=10.0, is_late=True)

    assert one.take_due(now=10.0) == [[entry]]


def test_at_most_two_batches_of_a_session_are_out() -> None:
    """The third leaves when enough of them is settled."""
    one = window()
    entries = [held() for _ in range(75)]
    for entry in entries:
        one.add(entry, now=10.0)

    assert one.take_due(now=10.0) == [entries[:25], entries[25:50]]
    assert one.take_due(now=20.0) == []
    for entry in entries[:24]:
        one.finish(entry, now=20.0)
    assert one.take_due(now=20.0) == []
    one.finish(entries[24], now=20.0)
    assert one.has_ready()
    assert one.take_due(now=20.0) == [entries[50:]]


def test_an_entry_that_is_put_back_goes_first() -> None:
    """After its wait, and before the others of its session, in their order."""
    one = window()
    entries = [held() for _ in range(30)]
    for entry in entries[:5]:
        one.add(entry, now=10.0, is_late=True)
    (batch,) = one.take_due(now=10.0)
    for entry in entries[5:]:
        one.add(entry, now=10.0)
    assert one.take_due(now=10.0) == [entries[5:]]
    for entry in batch:
        one.put_back(entry, now=11.0, wait=1.0)

    assert one.take_due(now=11.9) == []
    assert one.take_due(now=12.0) == [entries[:5]]


def test_what_is_put_back_keeps_its_order() -> None:
    """Also when the younger one comes back first."""
    one = window()
    entries = [held() for _ in range(3)]
    for entry in entries:
        one.add(entry, now=10.0, is_late=True)
    one.take_due(now=10.0)
    for entry in (entries[1], entries[0], entries[2]):
        one.put_back(entry, now=10.0, wait=1.0)

    assert one.take_due(now=11.0) == [entries]


def test_a_session_at_its_share_is_passed_over() -> None:
    """So are all its further entries, until it has caught up."""
    one = window(400)
    entries = [held() for _ in range(100)]
    assert all(one.add(entry, now=0.0) for entry in entries)
    assert not one.add(held(), now=0.0)
    assert one.add(held("other"), now=0.0)
    assert one.passed_over == 1
    assert one.hungry() == set()
    one.take_due(now=0.0)
    for entry in entries[:50]:
        one.finish(entry, now=0.0)

    assert one.hungry() == {0}
    assert not one.add(held(), now=0.0)
    back = held()
    assert one.take_back(back, now=0.0)
    one.caught_up(0, [])
    assert (one.passed_over, one.hungry()) == (0, set())
    assert one.add(held(), now=0.0)


def test_a_pass_that_leaves_some() -> None:
    """They stay passed over."""
    one = window(400)
    for _ in range(100):
        one.add(held(), now=0.0)

    assert not one.take_back(held(), now=0.0)
    one.caught_up(1, [])
    one.caught_up(0, ["s"])
    assert one.passed_over == 1
    assert not one.add(held(), now=0.0)


def test_a_session_is_forgotten_when_nothing_of_it_is_left() -> None:
    """Otherwise memory would grow with every session ever seen."""
    one = window()
    entry = held()
    one.add(entry, now=0.0, is_late=True)
    one.take_due(now=0.0)
    one.finish(entry, now=0.0)

    assert (len(one), one.bytes, one.out, one._sessions, one._passed) == (0, 0, 0, {}, {})


def test_bounds() -> None:
    """By number, and by bytes."""
    one = window(60)
    one.add(held(), now=0.0)
    assert one.free == 59
    assert window(60, max_bytes=1).free == 60
    small = window(60, max_bytes=1)
    small.add(held(), now=0.0)
    assert small.free == 0


def test_a_full_window_does_not_linger() -> None:
    """Nothing more can be read that would fill its batches; but it is not flushed for every entry."""
    one = window(100)
    entries = [held(f"s{number}") for number in range(100)]
    for entry in entries[:99]:
        one.add(entry, now=0.0)
    one.flush_if_full(now=0.0)
    assert not one.has_ready()
    one.add(entries[99], now=0.0)
    one.flush_if_full(now=0.0)
    assert len(one.take_due(now=0.0)) == 100
    one.finish(entries[0], now=0.0)
    one.add(held("x"), now=0.0)
    one.flush_if_full(now=0.0)
    assert not one.has_ready()


def test_draining() -> None:
    """Nothing lingers any more, also what comes later."""
    one = window()
    first, second = held("a"), held("b")
    one.add(first, now=0.0)
    one.drain(now=0.0)
    one.add(second, now=0.0)

    assert one.take_due(now=0.0) == [[first], [second]]
    assert (one.waiting, one.out) == (0, 2)


def test_what_comes_while_a_session_stands_in_line() -> None:
    """It makes the batch fuller, and no more out than two batches."""
    one = window(60, batch_size=3)
    for _ in range(4):
        one.add(held(), now=0.0, is_late=True)
    assert [len(batch) for batch in one.take_due(now=0.0)] == [3]
    assert [len(batch) for batch in one.take_due(now=2.0)] == [1]
    one.add(held(), now=2.0, is_late=True)  # It stands in line, because four and one are five.
    for _ in range(3):
        one.add(held(), now=2.0)
    assert [len(batch) for batch in one.take_due(now=2.0)] == [2]
    assert (one.out, one.waiting) == (6, 2)


def test_finishing_twice_is_once() -> None:
    """What is not held is not removed."""
    one = window()
    entry = held()
    one.add(entry, now=0.0, is_late=True)
    one.take_due(now=0.0)
    one.finish(entry, now=0.0)
    one.finish(entry, now=0.0)

    assert len(one) == one.out == one.bytes == 0


def test_sizes() -> None:
    """Of what is held, and of the room that is left."""
    one = window(max_bytes=250)
    assert (one.mean_size, one.free_bytes) == (0, 250)
    for _ in range(3):
        one.add(held(), now=0.0)
    assert (one.mean_size, one.free_bytes, one.free) == (100, 0, 0)


class Relaying(RuleBasedStateMachine):
    """Entries of a few sessions come, leave, come back and are done, in any order, beside a plain model."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.window = window(60, batch_size=3, share=0.2, linger=1.0)
        self.pending: dict[str, deque[Held]] = defaultdict(deque)  # In the queue: passed over.
        self.waiting: dict[str, list[Held]] = defaultdict(list)
        self.out: list[Held] = []

    @rule(session=st.sampled_from("abcde"), is_late=st.booleans())
    def arrive(self, session: str, is_late: bool) -> None:
        entry = held(session)
        if self.window.add(entry, now=self.now, is_late=is_late):
            assert not self.pending[session], "nothing overtakes what was passed over"
            self.waiting[session].append(entry)
        else:
            self.pending[session].append(entry)

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0]))
    def take(self, seconds: float) -> None:
        self.now += seconds
        for batch in self.window.take_due(now=self.now):
            session = batch[0].event.session_id
            assert 0 < len(batch) <= 3
            assert batch == self.waiting[session][: len(batch)]
            del self.waiting[session][: len(batch)]
            self.out += batch

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.out))
        self.out.remove(entry)
        self.window.finish(entry, now=self.now)

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def put_back(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.out))
        self.out.remove(entry)
        self.window.put_back(entry, now=self.now, wait=0.5)
        waiting = self.waiting[entry.event.session_id]
        waiting.append(entry)
        waiting.sort(key=lambda one: one.number)

    @precondition(lambda self: self.window.hungry())
    @rule()
    def fetch(self) -> None:
        left = []
        for session, entries in self.pending.items():
            while entries:
                if not self.window.take_back(entries[0], now=self.now):
                    left.append(session)
                    break
                self.waiting[session].append(entries.popleft())
        self.window.caught_up(0, left)

    @rule()
    def flush(self) -> None:
        self.window.flush(now=self.now)

    @invariant()
    def the_sums_are_right(self) -> None:
        waiting = [entry for entries in self.waiting.values() for entry in entries]
        assert len(self.window) == len(waiting) + len(self.out)
        assert self.window.out == len(self.out)
        assert self.window.waiting == len(waiting)
        assert self.window.bytes == 100 * len(self.window)
        assert all(self.window.holds(0, entry.entry.id) for entry in (*waiting, *self.out))
        for session in "abcde":
            out = [entry for entry in self.out if entry.event.session_id == session]
            assert len(out) <= 6

    @invariant()
    def nothing_is_stuck(self) -> None:
        """What waits is due, or will be, or waits for what is out."""
        for session, entries in self.waiting.items():
            if entries and not any(one.event.session_id == session for one in self.out):
                assert self.window.has_ready() or self.window.next_due() is not None

    def teardown(self) -> None:
        """All of it can be delivered in the end."""
        for _ in range(1000):
            self.take(1.0)
            for entry in tuple(self.out):
                self.out.remove(entry)
                self.window.finish(entry, now=self.now)
            if self.window.hungry():
                self.fetch()
        assert not len(self.window)
        assert not any(self.pending.values())
        assert self.window._sessions == {}


TestRelaying = Relaying.TestCase
TestRelaying.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
