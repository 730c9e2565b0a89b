"""The account: what is accepted and not settled, how events ended, and what `flush()` waits for.

An event that has room is *admitted* once, and *settled* once, by `settle_delivered` or `settle_undelivered`.
In between it is pending. With a journal, an event of an earlier process is *recovered* instead of admitted,
and one that is on disk alone is *deferred* instead of settled: until there is room, or until the next
process. At every instant

    accepted + recovered = delivered + rejected + expired + failed + unconfirmed + deferred + pending

For `flush()` and for the age of the oldest pending event, admitted events belong to generations. A flush
ends the current generation and waits until it and those before it are empty, so its cost does not depend on
how much is pending. A generation also ends after a second.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Any, Final, get_args

from rokt_events_async._pipeline.recorder import Recorder
from rokt_events_async._pipeline.room import Room
from rokt_events_async._tracking.hooks import Hooks
from rokt_events_async.outcomes import (
    Delivery,
    DeliveryDeferredError,
    DeliveryError,
    DrainReport,
    EmitterStats,
    Outcome,
    Receipt,
    receipt_for,
)

_GENERATION: Final = 1.0
"""Seconds after which a generation ends, so that the age of the oldest is known to within a second."""


class _Generation:
    """The events admitted between two flushes, or within a second; `began` is when the oldest was stored."""

    __slots__ = ("began", "empty", "pending", "until")

    def __init__(self, began: float) -> None:
        self.began = began
        self.until = began + _GENERATION
        self.pending = 0
        self.empty: asyncio.Future[None] | None = None


class _Generations:
    """Pending events by when they became pending, oldest first. The newest generation is being filled."""

    __slots__ = ("all",)

    def __init__(self) -> None:
        self.all: deque[_Generation] = deque([_Generation(0.0)])

    @property
    def pending(self) -> int:
        return sum([generation.pending for generation in tuple(self.all)])

    def join(self, delivery: Delivery, now: float, *, since: float | None = None) -> None:
        """Adds an event that is pending from now on; it is as old as from `since` on."""
        delivery.accepted_at = now
        generation = self.all[-1]
        if now >= generation.until:
            generation = self._begin(now)
        if since is not None and since < generation.began:
            generation.began = since
        delivery.generation = generation
        generation.pending += 1

    def _begin(self, now: float) -> _Generation:
        generation = self.all[-1]
        if not generation.pending and generation.empty is None:
            self.all.pop()
        generation = _Generation(now)
        self.all.append(generation)
        return generation

    def oldest_age(self, *, now: float) -> float:
        for generation in tuple(self.all):
            if generation.pending:
                return max(0.0, now - generation.began)
        return 0.0

    async def settled(self) -> None:
        """Waits until every event that is pending now is so no more."""
        current = self.all[-1]
        if current.pending:
            self.all.append(_Generation(current.until - _GENERATION))
        elif len(self.all) > 1:
            current = self.all[-2]
        else:
            return
        if current.empty is None:
            current.empty = asyncio.get_running_loop().create_future()
        await asyncio.shield(current.empty)

    def close_empty(self) -> None:
        """Drops the oldest generations that are empty. The newest stays."""
        while len(self.all) > 1 and not self.all[0].pending:
            empty = self.all.popleft().empty
            if empty is not None:  # A flush waits for it.
                empty.set_result(None)


class Ledger:
    """The account of one emitter.

    Args:
        room: Is freed when an event is settled.
        hooks: Called with each outcome, once the account includes it.
        recorder: The journal, if there is one; asked for its numbers only.
    """

    def __init__(self, room: Room, hooks: Hooks, recorder: Recorder | None = None) -> None:
        self._room = room
        self._recorder = recorder
        self._hooks = hooks
        self._accepted = 0
        self._recovered = 0
        self._deferred = 0
        self._outcomes: dict[Outcome, int] = dict.fromkeys(get_args(Outcome), 0)
        self._possible_duplicates = 0
        self._admitted = _Generations()
        self._returned = _Generations()
        self._revived = _Generations()
        self._before_close: dict[Outcome, int] | None = None
        self._undelivered: list[DeliveryError] = []
        self.last_delivered_at: float | None = None
        """When an event was last delivered, by the loop's clock."""

    def oldest_age(self, *, now: float) -> float:
        """Returns how long the oldest pending event has been pending, in seconds, to within a second.

        One that was on disk alone counts from when it was stored. Of these, the first that are pending count.
        """
        age = self._admitted.oldest_age(now=now)
        if self._recorder is not None:
            age = max(age, self._returned.oldest_age(now=now), self._revived.oldest_age(now=now))
        return age

    def admit(self, delivery: Delivery, now: float) -> None:
        """Counts an event that has room as accepted now, and as pending in the newest generation."""
        self._accepted += 1
        newest = self._admitted.all[-1]
        if now >= newest.until:
            self._admitted.join(delivery, now)
        else:  # As `join` does, without the call.
            delivery.accepted_at, delivery.generation = now, newest
            newest.pending += 1

    def recover(self, delivery: Delivery, now: float, *, since: float) -> None:
        """Counts an event of an earlier process, stored at `since`, for which room was taken, as pending."""
        self._recovered += 1
        self._revived.join(delivery, now, since=since)

    def bring_back(self, delivery: Delivery, now: float, *, since: float) -> None:
        """Counts an event that was stored at `since` and deferred, and has room now, as pending."""
        self._deferred -= 1
        self._returned.join(delivery, now, since=since)

    @property
    def brought_back(self) -> int:
        """How many events are pending that were brought back from disk."""
        return self._revived.pending + self._returned.pending

    @property
    def deferred(self) -> int:
        """How many events were deferred, and not brought back."""
        return self._deferred

    # Settling.

    def drop(self, delivery: Delivery, error: DeliveryError, *, now: float) -> None:
        """Accepts an event that found no room and fails it at once, so that it is counted."""
        self._accepted += 1
        delivery.accepted_at = now
        self._outcomes[error.outcome] += 1
        delivery.settle(error)
        self._hooks.accepted(delivery)
        self._hooks.undelivered(delivery, error)

    def accept_deferred(self, delivery: Delivery, error: DeliveryDeferredError, now: float) -> None:
        """Counts an event that found no room in memory as accepted, and as deferred at once."""
        self._accepted += 1
        self._deferred += 1
        delivery.accepted_at = now
        delivery.settle(error)

    def settle_delivered(
        self, deliveries: Iterable[Delivery], *, attempts: int, maybe_duplicate: bool, now: float
    ) -> None:
        """Ends pending events of one request as delivered.

        Raises:
            RuntimeError: One of them has been settled before.
        """
        count = size = 0
        self.last_delivered_at = now
        receipts: list[tuple[Delivery, Receipt]] | None = [] if self._hooks.delivered else None
        try:
            for delivery in deliveries:
                _leave(delivery)
                count += 1
                size += len(delivery.wire)
                receipt = receipt_for(delivery.event, attempts, maybe_duplicate)
                delivery.settle(receipt)
                if receipts is not None:
                    receipts.append((delivery, receipt))
        finally:
            self._count("delivered", count, size)
        for delivery, receipt in receipts or ():
            self._hooks.delivered(delivery, receipt)

    def settle_undelivered(self, delivery: Delivery, error: DeliveryError) -> None:
        """Ends a pending event in another outcome.

        Raises:
            RuntimeError: It has been settled before.
        """
        _leave(delivery)
        size = len(delivery.wire)
        delivery.settle(error)
        if self._before_close is not None:
            self._undelivered.append(error)
        self._count(error.outcome, 1, size)
        self._hooks.undelivered(delivery, error)

    def defer(self, delivery: Delivery, error: DeliveryDeferredError) -> None:
        """Leaves a pending event to the next process.

        Raises:
            RuntimeError: It has been settled before.
        """
        _leave(delivery)
        size = len(delivery.wire)
        delivery.settle(error)
        self._deferred += 1
        self._free(1, size)
        self._hooks.deferred(delivery)

    def count_possible_duplicates(self, count: int) -> None:
        """Counts events that are sent again after a lost answer."""
        self._possible_duplicates += count

    def _count(self, outcome: Outcome, count: int, size: int) -> None:
        self._outcomes[outcome] += count
        self._free(count, size)

    def _free(self, count: int, size: int) -> None:
        self._room.free(count, size)
        if not self._admitted.all[0].pending:
            self._admitted.close_empty()
        if self._recorder is not None:
            self._returned.close_empty()
            self._revived.close_empty()

    # Waiting for the end of what is pending.

    async def settled(self) -> None:
        """Waits until every event that is pending now, and never was on disk alone, has its outcome."""
        await self._admitted.settled()

    async def returned_settled(self) -> None:
        """Waits until every event that is pending now, and was deferred before, has its outcome."""
        await self._returned.settled()

    async def revived_settled(self) -> None:
        """Waits until no event of an earlier process is pending."""
        await self._revived.settled()

    # Closing.

    def close(self) -> None:
        """Starts counting outcomes for the report."""
        self._before_close = dict(self._outcomes)

    def report(self) -> DrainReport:
        """Returns the outcomes since `close`."""
        before = self._before_close or self._outcomes
        counts = {name: count - before[name] for name, count in self._outcomes.items()}
        return DrainReport(
            delivered=counts["delivered"],
            rejected=counts["rejected"],
            expired=counts["expired"],
            failed=counts["failed"],
            unconfirmed=counts["unconfirmed"],
            deferred=self._deferred,
            undelivered=tuple(self._undelivered),
        )

    def stats(self, **rest: Any) -> EmitterStats:
        """Returns a snapshot; `rest` is what others keep.

        Safe from any thread, without a lock: the outcomes are read in one step, and before what was accepted,
        so that the sum holds, and no number ever falls but `pending` and `journal.deferred`.
        """
        outcomes = self._outcomes.copy()
        left = self._deferred
        accepted = self._accepted
        came = accepted + self._recovered
        values: dict[str, Any] = dict(outcomes) | rest
        recorder, recovered = self._recorder, came - accepted
        return EmitterStats(
            accepted=accepted,
            pending=came - left - sum(outcomes.values()),
            pending_bytes=self._room.bytes,
            possible_duplicates=self._possible_duplicates,
            journal=None if recorder is None else recorder.stats(deferred=left, recovered=recovered),
            **values,
        )


def _leave(delivery: Delivery) -> None:
    """Takes an event out of its generation. Doing so twice is a fault of the library."""
    generation: _Generation | None = delivery.generation
    if generation is None:
        raise RuntimeError(f"settled twice: {delivery.event!r}")
    delivery.generation = None
    generation.pending -= 1
