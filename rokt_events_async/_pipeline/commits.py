"""Group commit: what is written to one journal file, and who is told once it is there.

How it works
------------
What the engine wants to write is collected. One group is under way at a time; what comes meanwhile makes the
next one. A group is one commit: all of it is on disk, or nothing.

```
 append ─▶┐            ┌─ written ─▶ append: accepted, mark: sent, settled: told
 mark ───▶├─ group ────┤
 settle ─▶┘            └─ failed ──▶ append: refused, mark: refused,
                                     settled: in the next group, once the disk can be written again
```

Nothing is told before it is on disk: an event is accepted once its append is there, a request leaves once its
mark is there, and an outcome is told once the event is deleted. A forbidden move: to mark or delete an event
in an earlier group than its append.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import attrs

from rokt_events_async._pipeline.store import Size, Step, Store, StoreFailure
from rokt_events_async.outcomes import Delivery, Outcome

_MAX_EVENTS: Final = 500
"""The most events that a group appends or settles: what it tells afterwards must not hold the loop."""

_MAX_BYTES: Final = 1024 * 1024
"""The most bytes that a group appends."""

_RETRY: Final = 1.0
"""Seconds before outcomes that could not be written are written again."""


class StoredDelivery(Delivery):
    """A delivery whose event is in a journal file, or will be.

    Attributes:
        commits: The file's commits; `None` once the event is known not to be there.
        number: The event's number in the file.
        is_stored: True once it is on disk; `None` if that cannot be known any more.
        is_deferred: True if memory has no room for it: it is on disk alone.
        is_settling: True once its outcome is known; it is told when that is on disk.
        sent_before: How many earlier processes have sent it: Rokt may have accepted it.
        waiter: Is done once it is known whether the event is stored; `None` if no call waits for that.
        context: The context of the `track()` call, if an observer wants to know of it.
    """

    __slots__ = (
        "commits",
        "context",
        "is_deferred",
        "is_settling",
        "is_stored",
        "number",
        "sent_before",
        "waiter",
    )

    commits: Commits | None
    context: contextvars.Context | None
    is_deferred: bool
    is_settling: bool
    is_stored: bool | None
    number: int
    sent_before: int
    waiter: asyncio.Future[None] | None


class _Settlement:
    __slots__ = ("deliveries", "maybe_duplicate", "outcome", "tell")

    def __init__(
        self,
        deliveries: list[StoredDelivery],
        outcome: Outcome,
        maybe_duplicate: bool,  # noqa: FBT001 -- private
        tell: Tell,
    ) -> None:
        self.deliveries = deliveries
        self.outcome = outcome
        self.maybe_duplicate = maybe_duplicate
        self.tell = tell


Tell = Callable[[list[StoredDelivery]], None]
"""Tells the outcome of events."""

_Mark = tuple[list[StoredDelivery], asyncio.Future[bool]]


@attrs.define
class _Group:
    """What is under way."""

    appends: list[StoredDelivery] = attrs.Factory(list)
    unmarked: list[tuple[StoredDelivery, int]] = attrs.Factory(list)
    marks: list[_Mark] = attrs.Factory(list)
    settled: list[_Settlement] = attrs.Factory(list)
    step: Step = attrs.Factory(Step)


class Commits:
    """The commits of one file.

    Args:
        on_stored: Called with each event that is on disk, in the order of the appends.
        on_refused: Called with each event that could not be written, and why.
        on_commit: Called after each group with its result.
    """

    def __init__(
        self,
        store: Store,
        *,
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context,
        on_stored: Callable[[StoredDelivery], None],
        on_refused: Callable[[StoredDelivery, StoreFailure], None],
        on_commit: Callable[[Size | StoreFailure], None],
    ) -> None:
        self.store = store
        self._loop = loop
        self._context = context
        self._on_stored = on_stored
        self._on_refused = on_refused
        self._on_commit = on_commit
        self._next = store.last + 1
        self._appends: deque[StoredDelivery] = deque()
        self._marks: deque[_Mark] = deque()
        self._unmarked: list[tuple[StoredDelivery, int]] = []
        self._settled: deque[_Settlement] = deque()
        self._is_scheduled = False
        self._is_to_be_measured = False
        self._spares_appends = False
        """True if the next group appends nothing, because the one before may have failed of that."""
        self._under_way: _Group | None = None
        self._retry_timer: asyncio.TimerHandle | None = None
        self._idle: asyncio.Future[None] | None = None
        self.stored = store.stored
        """How many events are on disk."""
        self.written = store.last
        """The number up to which all events are on disk, or refused."""

    @property
    def is_idle(self) -> bool:
        """True if nothing waits to be written, or is being written."""
        return self._under_way is None and not self._has_work()

    def _has_work(self) -> bool:
        return bool(
            self._appends or self._marks or self._unmarked or self._settled or self._is_to_be_measured
        )

    def measure(self) -> None:
        """Has the directory measured."""
        self._is_to_be_measured = True
        self._schedule()

    # What to write.

    def append(self, delivery: StoredDelivery) -> None:
        """Stores an event."""
        delivery.commits, delivery.number = self, self._next
        self._next += 1
        self._appends.append(delivery)
        self._schedule()

    async def mark(self, deliveries: list[StoredDelivery]) -> bool:
        """Notes that events are about to be sent. Returns False if that could not be written.

        Cancelled, the events are not marked in the end.
        """
        mark: _Mark = deliveries, self._loop.create_future()
        self._marks.append(mark)
        self._schedule()
        try:
            return await mark[1]
        except asyncio.CancelledError:
            if mark in self._marks:
                self._marks.remove(mark)
            else:
                self.unmark(deliveries)
            raise

    def unmark(self, deliveries: Iterable[StoredDelivery], *, at_least: int = 0) -> None:
        """Notes that this process has not sent marked events, or that it ends in good order.

        Args:
            at_least: How many processes have sent them at least.
        """
        self._unmarked += [(delivery, max(at_least, delivery.sent_before)) for delivery in deliveries]
        self._schedule()

    def settle(
        self, deliveries: list[StoredDelivery], outcome: Outcome, *, maybe_duplicate: bool, tell: Tell
    ) -> None:
        """Deletes and counts events whose outcome is known, and calls `tell` once that is written.

        Events that wait to be stored yet need not be stored any more.
        """
        waiting = [
            delivery for delivery in deliveries if not delivery.is_stored and delivery in self._appends
        ]
        for delivery in waiting:
            self._appends.remove(delivery)
            delivery.commits = None
        if waiting:
            tell(waiting)
            deliveries = [delivery for delivery in deliveries if delivery.commits is not None]
        if deliveries:
            self._settled.append(_Settlement(deliveries, outcome, maybe_duplicate, tell))
            self._schedule()

    def _schedule(self) -> None:
        if self._under_way is None and not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._start, context=self._context)

    # One group.

    def _start(self) -> None:
        self._is_scheduled = False
        if self._under_way is None and self._has_work():
            has_others = bool(self._marks or self._unmarked or self._settled)
            appends = [] if self._spares_appends and has_others else self._take_appends()
            self._spares_appends = False
            self._is_to_be_measured = False
            step = Step()
            unmarked, self._unmarked = self._unmarked, []
            for delivery, sent in unmarked:
                step.sent[delivery.number] = sent
            if appends:
                step.first, step.wires = appends[0].number, [delivery.wire for delivery in appends]
                deferred = (delivery for delivery in appends if delivery.is_deferred)
                step.deferred = {delivery.number: delivery.event.session_id for delivery in deferred}
            marks, settled = self._take_marks(step), self._take_settled(step)
            step.tally = _tally(appends, settled)
            self._under_way = _Group(appends, unmarked, marks, settled, step)
            self.store.commit(step, self._on_done)

    def _take_appends(self) -> list[StoredDelivery]:
        taken: list[StoredDelivery] = []
        size = 0
        while self._appends and len(taken) < _MAX_EVENTS:
            size += len(self._appends[0].wire)
            if taken and (size > _MAX_BYTES or self._appends[0].number != taken[-1].number + 1):
                break  # Their numbers follow each other; one in between may have ended already.
            taken.append(self._appends.popleft())
        return taken

    def _take_marks(self, step: Step) -> list[_Mark]:
        """Takes the marks of events that are appended, or are in this step."""
        not_before = self._appends[0].number if self._appends else self._next
        taken: list[_Mark] = []
        for _ in range(len(self._marks)):
            mark = self._marks.popleft()
            if any(delivery.number >= not_before for delivery in mark[0]):
                self._marks.append(mark)
                continue
            taken.append(mark)
            for delivery in mark[0]:
                step.sent[delivery.number] = delivery.sent_before + 1
        return taken

    def _take_settled(self, step: Step) -> list[_Settlement]:
        taken: list[_Settlement] = []
        while self._settled and len(step.settled) < _MAX_EVENTS:
            settlement = self._settled.popleft()
            refused = [delivery for delivery in settlement.deliveries if delivery.commits is None]
            if refused:  # Their append, in the group before, has failed.
                settlement.deliveries = [one for one in settlement.deliveries if one.commits is not None]
                settlement.tell(refused)
            if settlement.deliveries:
                taken.append(settlement)
                step.settled += [delivery.number for delivery in settlement.deliveries]
        return taken

    def _on_done(self, result: Size | StoreFailure) -> None:
        group, self._under_way = self._under_way, None
        assert group is not None, "one group at a time is under way"
        if group.step.wires:
            self.written = group.step.first + len(group.step.wires) - 1
        if isinstance(result, StoreFailure):
            self._on_failed(group, result)
        else:
            self.stored = result.stored
            self._on_written(group)
        self._on_commit(result)
        waits = self._retry_timer is not None
        if self._appends or self._marks or (self._has_work() and not waits):
            self._schedule()
        elif self._idle is not None and not self._has_work():
            self._idle.set_result(None)
            self._idle = None

    def _on_written(self, group: _Group) -> None:
        for delivery in group.appends:
            delivery.is_stored = True
            self._on_stored(delivery)
        for _, marked in group.marks:
            if not marked.done():
                marked.set_result(True)
        for settlement in group.settled:
            settlement.tell(settlement.deliveries)

    def _on_failed(self, group: _Group, failure: StoreFailure) -> None:
        self._settled.extendleft(reversed(group.settled))
        self._unmarked[:0] = group.unmarked
        if group.appends:  # The disk may have no room for them, and for the rest.
            self._spares_appends = True
            self._marks.extendleft([mark for mark in reversed(group.marks) if not mark[1].done()])
        else:
            for _, marked in group.marks:
                if not marked.done():
                    marked.set_result(False)
            if (self._settled or self._unmarked) and self._retry_timer is None:
                self._retry_timer = self._loop.call_later(_RETRY, self._on_retry, context=self._context)
        self._refuse(group.appends, failure)

    def _on_retry(self) -> None:
        self._retry_timer = None
        self._schedule()

    # The end.

    async def idle(self) -> None:
        """Waits until nothing waits to be written. A disk that fails makes it wait."""
        while not self.is_idle:
            if self._idle is None:
                self._idle = self._loop.create_future()
            await asyncio.shield(self._idle)

    @property
    def is_appending(self) -> bool:
        """True if events wait to be stored, or are being stored."""
        return bool(self._appends or (self._under_way and self._under_way.appends))

    def stop_appends(self) -> None:
        """Refuses the events that are not stored yet."""
        closed = StoreFailure(self.store.path, "the disk had not answered when the emitter was closed")
        if self._under_way is not None:
            appends, self._under_way.appends = self._under_way.appends, []
            self._refuse(appends, attrs.evolve(closed, is_certain=False))
        self._refuse(self._appends, closed)
        self._appends.clear()

    def _refuse(self, deliveries: Iterable[StoredDelivery], failure: StoreFailure) -> None:
        for delivery in deliveries:
            delivery.commits = None
            self._on_refused(delivery, failure)

    def stop(self) -> int:
        """Gives up what is not written yet, and tells the outcomes among it. Returns of how many events."""
        if self._retry_timer is not None:
            self._retry_timer.cancel()
            self._retry_timer = None
        untold = list(self._settled)
        if self._under_way is not None:
            untold[:0], self._under_way.settled = self._under_way.settled, []
        self._settled.clear()
        self._unmarked.clear()
        for settlement in untold:
            settlement.tell(settlement.deliveries)
        return sum([len(settlement.deliveries) for settlement in untold])


def is_settled(delivery: Delivery) -> bool:
    """Returns True if the outcome of an event is known, told or not."""
    return delivery.generation is None or (isinstance(delivery, StoredDelivery) and delivery.is_settling)


def _tally(appends: list[StoredDelivery], settled: list[_Settlement]) -> dict[str, int]:
    tally = {"accepted": len(appends)} if appends else {}
    for settlement in settled:
        count = len(settlement.deliveries)
        tally[settlement.outcome] = tally.get(settlement.outcome, 0) + count
        if settlement.maybe_duplicate:
            tally["maybe_duplicate"] = tally.get("maybe_duplicate", 0) + count
    return tally
