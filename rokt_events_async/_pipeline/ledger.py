"""The account: what is accepted and not settled, both bounds, the line for room, what `flush()` awaits.

How it works
------------
An event is *admitted* once, by `admit_nowait` or `admit_granted`, and *settled* once, by `settle_delivered`
or `settle_undelivered`. In between it is pending and counts against both bounds, events and bytes. At every
instant

    accepted = delivered + rejected + expired + failed + unconfirmed + pending

Callers without room wait in FIFO order; new callers never overtake. Room that comes free is *granted* to
the head of the line. The head holds that room from then on, but is admitted only when its task runs: a
caller that is cancelled in between gives the room back. While a caller waits or holds a grant, new callers
join the line.

For `flush()`, events belong to generations. A flush ends the current generation and waits until it and
those before it are empty, so its cost does not depend on how much is pending.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable
from typing import Final, get_args

from rokt_events_async._pipeline.hooks import Hooks
from rokt_events_async.errors import EmitterClosedError, QueueFullError
from rokt_events_async.outcomes import (
    Delivery,
    DeliveryError,
    DrainReport,
    EmitterStats,
    Outcome,
    Receipt,
    receipt_for,
)


class _Generation:
    """The events admitted between two flushes."""

    __slots__ = ("empty", "pending")

    def __init__(self) -> None:
        self.pending = 0
        self.empty: asyncio.Future[None] | None = None


class Ledger:
    """The account of one emitter.

    Args:
        max_pending: The bound on pending events.
        max_pending_bytes: The bound on pending bytes, as encoded.
        hooks: Called with each outcome, once the account includes it.
    """

    def __init__(self, *, max_pending: int, max_pending_bytes: int, hooks: Hooks) -> None:
        self._hooks = hooks
        self._max_pending: Final = max_pending
        self._max_pending_bytes: Final = max_pending_bytes
        self._accepted = 0
        self._outcomes: dict[Outcome, int] = dict.fromkeys(get_args(Outcome), 0)
        self._pending = 0
        self._pending_bytes = 0
        self._possible_duplicates = 0
        self._granted = 0
        self._granted_bytes = 0
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._generations: deque[_Generation] = deque([_Generation()])
        self._before_close: dict[Outcome, int] | None = None
        self._undelivered: list[DeliveryError] = []

    # Admission.

    def check_size(self, size: int) -> None:
        """Refuses an event that could never fit.

        Raises:
            QueueFullError: The event alone is larger than the bound.
        """
        if size > self._max_pending_bytes:
            raise QueueFullError(
                f"an event of {size} bytes can never fit: max_pending_bytes is {self._max_pending_bytes}"
            )

    def full_error(self) -> QueueFullError:
        """Returns the error of an event that found no room."""
        return QueueFullError(
            f"the queue is full: {self._pending} of {self._max_pending} events "
            f"and {self._pending_bytes} bytes pending"
        )

    def admit_nowait(self, delivery: Delivery, *, now: float) -> bool:
        """Admits the event if there is room and no caller waits for it. Returns True if it did."""
        pending, pending_bytes = self._pending + 1, self._pending_bytes + len(delivery.wire)
        if (
            pending > self._max_pending
            or pending_bytes > self._max_pending_bytes
            or self._line
            or self._granted
        ):
            return False
        self._pending, self._pending_bytes = pending, pending_bytes
        self._enter(delivery, now)
        return True

    async def wait_for_room(self, size: int) -> None:
        """Waits in line. On return the caller holds the room, and must call `admit_granted` at once.

        Cancelling it leaves the line, or gives back room that was granted meanwhile.

        Raises:
            EmitterClosedError: The emitter was closed meanwhile.
        """
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((size, room))
        self._grant()  # There may be room: a grant that is not used yet makes newcomers join the line.
        try:
            await room
        except asyncio.CancelledError:
            if room.cancelled():
                with contextlib.suppress(ValueError):  # `_grant` may have passed over it already.
                    self._line.remove((size, room))
            elif room.exception() is None:
                self._give_back(size)
            self._grant()
            raise
        if self._before_close is not None:
            self._give_back(size)
            raise closed_error()

    def admit_granted(self, delivery: Delivery, *, now: float) -> None:
        """Admits an event into the room that was granted."""
        size = len(delivery.wire)
        self._give_back(size)
        self._pending += 1
        self._pending_bytes += size
        self._enter(delivery, now)

    def _fits(self, size: int) -> bool:
        return (
            self._pending + self._granted < self._max_pending
            and self._pending_bytes + self._granted_bytes + size <= self._max_pending_bytes
        )

    def _enter(self, delivery: Delivery, now: float) -> None:
        """Counts the event as accepted now, and as pending in the newest generation."""
        self._accepted += 1
        delivery.accepted_at = now
        delivery.generation = generation = self._generations[-1]
        generation.pending += 1

    def _grant(self) -> None:
        while self._line and (self._line[0][1].done() or self._fits(self._line[0][0])):
            size, room = self._line.popleft()
            if not room.done():  # Done means cancelled, by a task that has not run yet.
                self._granted += 1
                self._granted_bytes += size
                room.set_result(None)

    def _give_back(self, size: int) -> None:
        self._granted -= 1
        self._granted_bytes -= size

    # Settling.

    def drop(self, delivery: Delivery, error: DeliveryError, *, now: float) -> None:
        """Accepts an event that found no room and fails it at once, so that it is counted."""
        self._accepted += 1
        delivery.accepted_at = now
        self._outcomes[error.outcome] += 1
        delivery.settle(error)
        self._hooks.accepted(delivery)
        self._hooks.undelivered(delivery, error)

    def settle_delivered(
        self, deliveries: Iterable[Delivery], *, attempts: int, maybe_duplicate: bool
    ) -> None:
        """Ends pending events of one request as delivered.

        Raises:
            RuntimeError: One of them has been settled before.
        """
        count = size = 0
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

    def count_possible_duplicates(self, count: int) -> None:
        """Counts events that are sent again after a lost answer."""
        self._possible_duplicates += count

    def _count(self, outcome: Outcome, count: int, size: int) -> None:
        self._outcomes[outcome] += count
        self._pending -= count
        self._pending_bytes -= size
        if self._line:
            self._grant()
        self._close_generations()

    # Waiting for the end of what is pending.

    async def settled(self) -> None:
        """Waits until every event that is pending now has its outcome."""
        current = self._generations[-1]
        if current.pending:
            self._generations.append(_Generation())
        elif len(self._generations) > 1:
            current = self._generations[-2]
        else:
            return
        if current.empty is None:
            current.empty = asyncio.get_running_loop().create_future()
        await asyncio.shield(current.empty)

    def _close_generations(self) -> None:
        """Drops the oldest generations that are empty. The newest stays, because it is being filled."""
        while len(self._generations) > 1 and not self._generations[0].pending:
            empty = self._generations.popleft().empty
            assert empty is not None, "a flush ended this generation, and waits for it"
            empty.set_result(None)

    # Closing.

    def close(self) -> None:
        """Ends admission, refuses the callers in line, and starts counting outcomes for the report."""
        self._before_close = dict(self._outcomes)
        for _, room in self._line:
            if not room.done():
                room.set_exception(closed_error())
        self._line.clear()

    def report(self) -> DrainReport:
        """Returns the outcomes since `close`."""
        before = self._before_close or self._outcomes
        counts = {name: count - before[name] for name, count in self._outcomes.items()}
        return DrainReport(**counts, undelivered=tuple(self._undelivered))

    def stats(self, **rest: int) -> EmitterStats:
        """Returns a snapshot; `rest` are the numbers that others keep."""
        return EmitterStats(
            accepted=self._accepted,
            pending=self._pending,
            pending_bytes=self._pending_bytes,
            possible_duplicates=self._possible_duplicates,
            **self._outcomes,
            **rest,
        )


def closed_error() -> EmitterClosedError:
    """Returns the error of a closed emitter, in its one wording."""
    return EmitterClosedError("the emitter is closing or closed: the event was not accepted")


def _leave(delivery: Delivery) -> None:
    """Takes an event out of its generation. Doing so twice is a fault of the library."""
    generation: _Generation | None = delivery.generation
    if generation is None:
        raise RuntimeError(f"settled twice: {delivery.event!r}")
    delivery.generation = None
    generation.pending -= 1
