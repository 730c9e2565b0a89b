"""Group commit: what is written together, who is told when, and what a failure does to whom."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from rokt_events_async._pipeline.commits import Commits, StoredDelivery, is_settled
from rokt_events_async._pipeline.recorder import Recorder
from rokt_events_async._pipeline.store import Query, Size, Step, StoreFailure
from tests.samples import event

FAILURE = StoreFailure("file", "the disk is full")


class Store:
    """Keeps steps until a test says what becomes of them."""

    path = "file"
    stored = 0
    oldest: datetime | None = None

    def __init__(self, last: int = 0) -> None:
        self.last = last
        self.steps: list[Step] = []
        self._done: Callable[[Any], None] | None = None

    def commit(self, step: Step, done: Callable[[Any], None]) -> None:
        assert self._done is None, "one group at a time is under way"
        self.steps.append(step)
        self._done = done

    def load(self, query: Query, done: Callable[[Any], None]) -> None:
        """Reads nothing."""

    def make_findable(self, sessions: dict[int, str], done: Callable[[Any], None]) -> None:
        """Finds nothing."""

    def condemn(self, number: int, why: str, done: Callable[[Any], None]) -> None:
        """Puts nothing aside."""

    async def end(self, result: Size | StoreFailure = Size(0, 0, is_full=False)) -> Step:  # noqa: B008 -- frozen
        """Ends the group under way, and lets the next one start."""
        done, self._done = self._done, None
        assert done is not None, "a group is under way"
        done(result)
        await asyncio.sleep(0)
        return self.steps[-1]


class Journal:
    """The commits of one file, and what they tell."""

    def __init__(self) -> None:
        self.store = Store()
        self.told: list[tuple[str, Any]] = []
        self.commits = Commits(
            self.store,
            loop=asyncio.get_running_loop(),
            context=contextvars.Context(),
            on_stored=lambda delivery: self.told.append(("stored", delivery)),
            on_refused=lambda delivery, failure: self.told.append(("refused", delivery)),
            on_commit=lambda result: None,
        )

    def append(self, size: int = 10) -> StoredDelivery:
        made = StoredDelivery()
        made.event, made.wire, made.generation = event(), b"x" * size, object()
        made.commits = made.waiter = made.context = None
        made.is_stored = made.is_settling = made.is_deferred = False
        made.sent_before = 0
        self.commits.append(made)
        return made

    def settle(self, *deliveries: StoredDelivery) -> None:
        self.commits.settle(
            list(deliveries),
            "expired",
            maybe_duplicate=True,
            tell=lambda those: self.told.append(("settled", those)),
        )

    async def start(self) -> Step:
        """Lets the group start."""
        await asyncio.sleep(0)
        return self.store.steps[-1]


async def test_a_group_holds_so_many_bytes_at_most() -> None:
    """The rest makes the next one."""
    journal = Journal()
    for _ in range(3):
        journal.append(600_000)
    assert len((await journal.start()).wires) == 1
    assert len((await journal.store.end()).wires) == 1


async def test_the_numbers_of_a_group_follow_each_other() -> None:
    """Although an event between them has ended before it was stored."""
    journal = Journal()
    first, second, third = journal.append(), journal.append(), journal.append()
    journal.settle(second)
    step = await journal.start()
    assert (step.first, step.wires) == (first.number, [first.wire])
    step = await journal.store.end()
    assert (step.first, step.wires) == (third.number, [third.wire])


async def test_an_event_that_ends_before_it_is_stored_is_not_stored() -> None:
    """Its outcome is told at once; the others of its group are not touched."""
    journal = Journal()
    first, second = journal.append(), journal.append()
    journal.settle(first)
    assert journal.told == [("settled", [first])]
    assert (await journal.start()).wires == [second.wire]
    assert first.commits is None

    third = journal.append()
    journal.settle(third, second)
    assert journal.told[1:] == [("settled", [third])]
    step = await journal.store.end()
    assert (step.wires, step.settled, step.tally) == ([], [2], {"expired": 1, "maybe_duplicate": 1})


async def test_an_event_that_ends_while_it_is_stored_in_vain_is_told_of() -> None:
    """There is nothing to delete."""
    journal = Journal()
    delivery, other = journal.append(), journal.append()
    await journal.start()
    journal.settle(delivery)
    assert is_settled(delivery) is False
    await journal.store.end(FAILURE)
    assert ("refused", delivery) in journal.told
    assert journal.told[-1] == ("settled", [delivery])
    journal.settle(other)
    await journal.start()
    assert journal.store.steps[-1].settled == []


async def test_a_mark_is_withdrawn_before_it_is_written_and_undone_afterwards() -> None:
    """A cancelled caller sends nothing."""
    journal = Journal()
    delivery = journal.append()
    await journal.start()
    queued = asyncio.create_task(journal.commits.mark([delivery]))
    await asyncio.sleep(0)
    queued.cancel()
    with pytest.raises(asyncio.CancelledError):
        await queued
    assert (await journal.store.end()).sent == {}
    assert journal.commits.is_idle

    journal = Journal()
    delivery = journal.append()
    await journal.start()
    await journal.store.end()
    under_way = asyncio.create_task(journal.commits.mark([delivery]))
    await turn()
    assert journal.store.steps[-1].sent == {1: 1}
    under_way.cancel()
    with pytest.raises(asyncio.CancelledError):
        await under_way
    assert (await journal.store.end()).sent == {1: 0}


async def test_a_cancelled_mark_of_a_failed_group_is_not_written_later() -> None:
    """Its events stay unmarked."""
    journal = Journal()
    delivery = journal.append()
    await journal.start()
    await journal.store.end()
    task = asyncio.create_task(journal.commits.mark([delivery]))
    await asyncio.sleep(0)
    await journal.start()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await journal.store.end(FAILURE)
    assert journal.commits._marks == type(journal.commits._marks)()


async def test_nothing_is_lost_of_what_could_not_be_undone() -> None:
    """It is written in the next group, which comes by a timer."""
    journal = Journal()
    delivery = journal.append()
    await journal.start()
    await journal.store.end()
    journal.commits.unmark([delivery], at_least=1)
    await journal.start()
    await journal.store.end(FAILURE)
    assert not journal.commits.is_idle
    await asyncio.sleep(1.1)
    assert journal.store.steps[-1].sent == {1: 1}
    await journal.store.end()
    await journal.commits.idle()


async def turn() -> None:
    """Lets everything that is ready run."""
    for _ in range(5):
        await asyncio.sleep(0)


class Depot:
    directory = "directory"
    size = Size(0, 0, is_full=False)

    def __init__(self) -> None:
        self.own = Store(last=1)


async def test_a_mark_over_two_files_is_all_or_nothing() -> None:
    """If the second cannot be written, the first is undone."""
    depot: Any = Depot()
    recorder = Recorder(
        depot, on_error="raise", loop=asyncio.get_running_loop(), context=contextvars.Context()
    )
    recorder.on_progress = recorder.on_changed = lambda: None
    other: Any = Store(last=1)
    adopted = recorder.open(other)
    here, there = recorder.new_delivery(), recorder.new_delivery()
    for made, commits in ((here, recorder.own), (there, adopted)):
        made.commits, made.number, made.sent_before = commits, 1, 2
    marking = asyncio.create_task(recorder.mark([here, there]))
    await turn()
    await depot.own.end()
    await turn()
    await other.end(FAILURE)
    assert await marking is False
    await asyncio.sleep(0)
    assert depot.own.steps[-1].sent == {1: 2}
    assert recorder.is_failing
    recorder.measure()
    recorder.measure()
    assert await recorder.mark([]) is True
