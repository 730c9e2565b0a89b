"""The account: what is accepted and not settled, both bounds, who waits for room, what `flush()` awaits.

How it works
------------
An event is *admitted* once, by `admit` or `admit_nowait`, and *settled* once, by `settle`; between the
two it is pending and counts against both bounds, events and bytes. At every instant

    accepted = delivered + rejected + expired + failed + unconfirmed + pending

Who finds no room waits in line. Room that comes free is *granted* to the head of the line, who holds it
from then on but is admitted only when its task has come to run: whoever is cancelled in between gives
it back. Nobody overtakes: while someone waits or holds a grant, newcomers join the line.

For `flush()`, events belong to generations. A flush ends the current one and waits until it and those
before it are empty, so its cost does not depend on how much is pending.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable
from typing import Final, get_args

from rokt_events_async._pipeline.hooks import Observers
from rokt_events_async.errors import DeliveryError, EmitterClosedError, Outcome, QueueFullError
from rokt_events_async.outcomes import Delivery, DrainReport, EmitterStats, Receipt, receipt_for


class _Generation:
    """The events admitted between two flushes."""

    __slots__ = ("empty", "pending")

    def __init__(self) -> None:
        self.pending = 0
        self.empty: asyncio.Future[None] | None = None


class Ledger:
    """The account of one emitter.

    Args:
        max_pending: Events pending at most.
        max_pending_bytes: Bytes pending at most, as encoded.
        observers: Who is told what becomes of an event, when the account is up to date with it.
    """

    def __init__(self, *, max_pending: int, max_pending_bytes: int, observers: Observers) -> None:
        self._observers = observers
        self._max_pending: Final = max_pending
        self._max_pending_bytes: Final = max_pending_bytes
        self.accepted = 0
        self.outcomes: dict[Outcome, int] = dict.fromkeys(get_args(Outcome), 0)
        self.pending = 0
        self.pending_bytes = 0
        self.possible_duplicates = 0
        self._granted = 0
        self._granted_bytes = 0
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._generations: deque[_Generation] = deque([_Generation()])
        self._before_close: dict[Outcome, int] | None = None
        self._undelivered: list[DeliveryError] = []

    # Admission.

    def check_size(self, size: int) -> None:
        """Refuses what could never fit.

        Raises:
            QueueFullError: The event alone is larger than the bound.
        """
        if size > self._max_pending_bytes:
            raise QueueFullError(
                f"an event of {size} bytes can never fit: max_pending_bytes is {self._max_pending_bytes}"
            )

    def admit_nowait(self, delivery: Delivery, *, now: float) -> bool:
        """Admits the event if there is room and nobody waits for it. Whether it did."""
        pending, pending_bytes = self.pending + 1, self.pending_bytes + len(delivery.wire)
        if (
            pending > self._max_pending
            or pending_bytes > self._max_pending_bytes
            or self._line
            or self._granted
        ):
            return False
        self.pending, self.pending_bytes = pending, pending_bytes
        self._enter(delivery, now)
        return True

    async def wait_for_room(self, size: int) -> None:
        """Waits in line; on return the room is held, for `admit_granted` to use at once.

        Cancelled, it leaves the line, or gives back what it was granted meanwhile.

        Raises:
            EmitterClosedError: The emitter was closed meanwhile.
        """
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((size, room))
        self._grant()  # There may be room: who was granted some before holds up newcomers till it is used.
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
        """Admits an event into the room it has waited for."""
        size = len(delivery.wire)
        self._give_back(size)
        self.pending += 1
        self.pending_bytes += size
        self._enter(delivery, now)

    def _fits(self, size: int) -> bool:
        return (
            self.pending + self._granted < self._max_pending
            and self.pending_bytes + self._granted_bytes + size <= self._max_pending_bytes
        )

    def _enter(self, delivery: Delivery, now: float) -> None:
        """Accepted at this moment, and pending in the newest generation."""
        self.accepted += 1
        delivery.accepted_at = now
        delivery.generation = generation = self._generations[-1]
        generation.pending += 1

    def _grant(self) -> None:
        while self._line and (self._line[0][1].done() or self._fits(self._line[0][0])):
            size, room = self._line.popleft()
            if not room.done():  # Done: cancelled, and its task has not come to run yet.
                self._granted += 1
                self._granted_bytes += size
                room.set_result(None)

    def _give_back(self, size: int) -> None:
        self._granted -= 1
        self._granted_bytes -= size

    # Settling.

    def drop(self, delivery: Delivery, error: DeliveryError, *, now: float) -> None:
        """Accepts an event that found no room, and fails it at once: counted, and nobody is held."""
        self.accepted += 1
        delivery.accepted_at = now
        self.outcomes[error.outcome] += 1
        delivery.settle(error)
        self._observers.tell(self._observers.accepted, delivery)
        self._observers.tell(self._observers.undelivered, delivery, error)

    def settle_delivered(
        self, deliveries: Iterable[Delivery], *, attempts: int, maybe_duplicate: bool
    ) -> None:
        """Ends pending events, all that a request carried, as delivered.

        Raises:
            RuntimeError: One has been settled before.
        """
        count = size = 0
        receipts: list[tuple[Delivery, Receipt]] | None = [] if self._observers.delivered else None
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
        for told in receipts or ():
            self._observers.tell(self._observers.delivered, *told)

    def settle_undelivered(self, delivery: Delivery, error: DeliveryError) -> None:
        """Ends a pending event in another way.

        Raises:
            RuntimeError: It has been settled before.
        """
        _leave(delivery)
        size = len(delivery.wire)
        delivery.settle(error)
        if self._before_close is not None:
            self._undelivered.append(error)
        self._count(error.outcome, 1, size)
        self._observers.tell(self._observers.undelivered, delivery, error)

    def _count(self, outcome: Outcome, count: int, size: int) -> None:
        self.outcomes[outcome] += count
        self.pending -= count
        self.pending_bytes -= size
        if self._line:
            self._grant()
        self._close_generations()

    # Waiting for the end of what is pending.

    async def settled(self) -> None:
        """Waits until all that is pending now has its outcome."""
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
        """Drops the oldest generations that are empty; the last one stays, it is being filled."""
        while len(self._generations) > 1 and not self._generations[0].pending:
            empty = self._generations.popleft().empty
            assert empty is not None, "a flush ended this generation, and waits for it"
            empty.set_result(None)

    # Closing.

    def close(self) -> None:
        """Ends admission, turns away who waits in line, and counts outcomes anew for the report."""
        self._before_close = dict(self.outcomes)
        for _, room in self._line:
            if not room.done():
                room.set_exception(closed_error())
        self._line.clear()

    def report(self) -> DrainReport:
        """The outcomes since `close`."""
        before = self._before_close or self.outcomes
        counts = {name: count - before[name] for name, count in self.outcomes.items()}
        return DrainReport(**counts, undelivered=tuple(self._undelivered))

    def stats(self, **rest: int) -> EmitterStats:
        """A snapshot; `rest` are the numbers that others keep."""
        return EmitterStats(
            accepted=self.accepted,
            pending=self.pending,
            pending_bytes=self.pending_bytes,
            possible_duplicates=self.possible_duplicates,
            **self.outcomes,
            **rest,
        )


def closed_error() -> EmitterClosedError:
    """The one wording for a closed emitter."""
    return EmitterClosedError("the emitter is closing or closed: the event was not accepted")


def _leave(delivery: Delivery) -> None:
    """Takes an event out of its generation. Once: a second time is a fault of the library."""
    generation: _Generation | None = delivery.generation
    if generation is None:
        raise RuntimeError(f"settled twice: {delivery.event!r}")
    delivery.generation = None
    generation.pending -= 1
