"""The account: what is accepted and not settled, the bounds, the lines for room, what `flush()` awaits.

How it works
------------
An event is *admitted* once, by `admit_nowait` or `admit_granted`, and *settled* once, by `settle_delivered`
or `settle_undelivered`. In between it is pending and counts against both bounds, events and bytes. At every
instant

    accepted = delivered + rejected + expired + failed + unconfirmed + pending

One session may hold its share of both bounds only. Callers without room wait in FIFO order; new callers
never overtake. There is one line for all, and one for each session that is at its share: its callers wait
there without blocking others, and join the line for all when the session holds less.

Room that comes free is *granted* to the head of the line. The head holds that room from then on, but is
admitted only when its task runs: a caller that is cancelled in between gives the room back. While a caller
waits or holds a grant, new callers join the line.

A line is *jammed* from the moment at which a waiting caller times out until room comes free in it: callers
that arrive meanwhile would wait in vain, and do not wait.

For `flush()` and for the age of the oldest pending event, events belong to generations. A flush ends the
current generation and waits until it and those before it are empty, so its cost does not depend on how much
is pending. A generation also ends after a second.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable
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
from rokt_events_async.settings import EmitterSettings

_GENERATION: Final = 1.0
"""Seconds after which a generation ends, so that the age of the oldest is known to within a second."""


class _Generation:
    """The events admitted between two flushes, or within a second."""

    __slots__ = ("began", "empty", "pending", "until")

    def __init__(self, began: float) -> None:
        self.began = began
        self.until = began + _GENERATION
        self.pending = 0
        self.empty: asyncio.Future[None] | None = None


class _Waiter:
    """A caller that waits for room."""

    __slots__ = ("room", "session_id", "size")

    def __init__(self, session_id: str, size: int, room: asyncio.Future[None]) -> None:
        self.session_id = session_id
        self.size = size
        self.room = room


class _Line:
    """Callers that wait for the same room, in order."""

    __slots__ = ("is_jammed", "waiters")

    def __init__(self) -> None:
        self.waiters: deque[_Waiter] = deque()
        self.is_jammed = False


class Ledger:
    """The account of one emitter.

    Args:
        settings: Has the bounds, and the part of them that one session may hold.
        hooks: Called with each outcome, once the account includes it.
    """

    def __init__(self, settings: EmitterSettings, hooks: Hooks) -> None:
        self._hooks = hooks
        self._max_pending: Final = settings.max_pending
        self._max_pending_bytes: Final = settings.max_pending_bytes
        share = settings.max_session_share
        self._share: Final = min(
            self._max_pending, max(settings.max_batch_size, int(share * self._max_pending))
        )
        self._min_share: Final = settings.max_batch_size
        self._share_bytes: Final = int(share * self._max_pending_bytes)
        self._accepted = 0
        self._outcomes: dict[Outcome, int] = dict.fromkeys(get_args(Outcome), 0)
        self._pending = 0
        self._pending_bytes = 0
        self._possible_duplicates = 0
        self._granted: dict[str, list[int]] = {}
        self._granted_events = 0
        self._granted_bytes = 0
        self._line = _Line()
        self._session_lines: dict[str, _Line] = {}
        self._held_by: Callable[[str], tuple[int, int]] = lambda _: (0, 0)
        self._generations: deque[_Generation] = deque([_Generation(0.0)])
        self._before_close: dict[Outcome, int] | None = None
        self._undelivered: list[DeliveryError] = []
        self.last_delivered_at: float | None = None
        """When an event was last delivered, by the loop's clock."""

    def watch(self, held_by: Callable[[str], tuple[int, int]]) -> None:
        """Sets where is read how many events and bytes a session holds."""
        self._held_by = held_by

    @property
    def pending(self) -> int:
        """Events accepted and not settled."""
        return self._pending

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the queue."""
        is_full = self._line.is_jammed or bool(self._line.waiters)
        names = (("queue_full", is_full), ("session_stalled", bool(self._session_lines)))
        return tuple([name for name, is_so in names if is_so])

    def oldest_age(self, *, now: float) -> float:
        """Returns how long the oldest pending event has been pending, in seconds, to within a second."""
        for generation in tuple(self._generations):
            if generation.pending:
                return max(0.0, now - generation.began)
        return 0.0

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

    def full_error(self, delivery: Delivery) -> QueueFullError:
        """Returns the error of an event that found no room; it names the bound that was hit."""
        return QueueFullError(self._describe(delivery))

    def _describe(self, delivery: Delivery) -> str:
        if self._line.waiters or not self._fits(len(delivery.wire)):
            return (
                f"the queue is full: {self._pending} of {self._max_pending} events "
                f"and {self._pending_bytes} of {self._max_pending_bytes} bytes pending"
            )
        if delivery.event.session_id in self._granted:
            return "other callers of the event's session were granted room before it"
        events, size = self._held_by(delivery.event.session_id)
        return (
            f"the event's session holds its share of the queue: {events} of {self._share} events "
            f"and {size} of {self._share_bytes} bytes pending (max_session_share)"
        )

    def admit_nowait(self, delivery: Delivery, *, now: float) -> bool:
        """Admits the event if there is room and no caller waits for it. Returns True if it did."""
        size = len(delivery.wire)
        pending, pending_bytes = self._pending + 1, self._pending_bytes + size
        if (
            pending > self._max_pending
            or pending_bytes > self._max_pending_bytes
            or self._line.waiters
            or self._granted
            # No session can be at its share while all of them together hold less.
            or (
                (pending > self._share or pending_bytes > self._share_bytes)
                and self._is_at_share(delivery.event.session_id, size)
            )
        ):
            return bool(self._granted) and self._admit_beside_grants(delivery, now)
        self._pending, self._pending_bytes = pending, pending_bytes
        self._enter(delivery, now)
        return True

    def _admit_beside_grants(self, delivery: Delivery, now: float) -> bool:
        """Admits an event while callers of other sessions hold grants, if there is room beside theirs."""
        session_id, size = delivery.event.session_id, len(delivery.wire)
        if (
            self._line.waiters
            or session_id in self._granted
            or not self._fits(size)
            or self._is_at_share(session_id, size)
        ):
            return False
        self._pending += 1
        self._pending_bytes += size
        self._enter(delivery, now)
        return True

    def _is_at_share(self, session_id: str, size: int) -> bool:
        """Returns True if the session may not hold another event of that size, or its callers wait."""
        if self._session_lines and session_id in self._session_lines:
            return True
        return not self._fits_share(session_id, size)

    def _fits_share(self, session_id: str, size: int) -> bool:
        events, held = self._held_by(session_id)
        if events < self._min_share and not self._granted:
            return True
        granted, granted_bytes = self._granted.get(session_id, (0, 0))
        if events + granted < self._min_share:
            return True
        return events + granted < self._share and held + granted_bytes + size <= self._share_bytes

    def is_jammed(self, delivery: Delivery) -> bool:
        """Returns True if waiting for room would be in vain: a caller before has timed out, and none came."""
        line = self._session_lines.get(delivery.event.session_id, self._line)
        return line.is_jammed

    def jam(self, delivery: Delivery) -> None:
        """Notes that the event found no room in time."""
        session_id, size = delivery.event.session_id, len(delivery.wire)
        if not self._fits(size):
            self._line.is_jammed = True
        elif not self._fits_share(session_id, size):
            self._session_lines.setdefault(session_id, _Line()).is_jammed = True

    async def wait_for_room(self, delivery: Delivery, *, timeout: float | None) -> bool:
        """Waits in line. Returns True if the caller holds the room; it must call `admit_granted` at once.

        Cancelling it leaves the line, or gives back room that was granted meanwhile.

        Args:
            timeout: Seconds to wait at most; `None` waits without bound.

        Raises:
            EmitterClosedError: The emitter was closed meanwhile.
        """
        loop = asyncio.get_running_loop()
        session_id, size = delivery.event.session_id, len(delivery.wire)
        waiter = _Waiter(session_id, size, loop.create_future())
        self._enqueue(waiter)
        self._grant()  # There may be room: a grant that is not used yet makes newcomers join the line.
        timer = None if timeout is None else loop.call_later(timeout, self._time_out, waiter)
        try:
            await waiter.room
        except TimeoutError:
            return False
        except asyncio.CancelledError:
            if waiter.room.cancelled():
                self._leave_line(waiter)
            elif waiter.room.exception() is None:
                self._give_back(waiter.session_id, waiter.size)
            self._grant()
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if self._before_close is not None:
            self._give_back(session_id, size)
            raise closed_error()
        return True

    def _enqueue(self, waiter: _Waiter) -> None:
        self._line_for(waiter.session_id, waiter.size).waiters.append(waiter)

    def _line_for(self, session_id: str, size: int) -> _Line:
        """Returns the line that an event joins: its session's only if the session alone is at its bound."""
        if self._fits(size) and self._is_at_share(session_id, size):
            return self._session_lines.setdefault(session_id, _Line())
        return self._session_lines.get(session_id, self._line)

    def _time_out(self, waiter: _Waiter) -> None:
        if waiter.room.done():
            return
        line = self._session_lines.get(waiter.session_id)
        line = line if line is not None and waiter in line.waiters else self._line
        line.is_jammed = True
        line.waiters.remove(waiter)
        waiter.room.set_exception(TimeoutError())

    def _leave_line(self, waiter: _Waiter) -> None:
        line = self._session_lines.get(waiter.session_id)
        if line is not None and waiter in line.waiters:
            line.waiters.remove(waiter)
            self._drop_line(waiter.session_id, line)
            return
        with contextlib.suppress(ValueError):  # `_grant` may have passed over it already.
            self._line.waiters.remove(waiter)

    def _drop_line(self, session_id: str, line: _Line) -> None:
        if not line.waiters and not line.is_jammed:
            del self._session_lines[session_id]

    def admit_granted(self, delivery: Delivery, *, now: float) -> None:
        """Admits an event into the room that was granted."""
        size = len(delivery.wire)
        self._give_back(delivery.event.session_id, size)
        self._pending += 1
        self._pending_bytes += size
        self._enter(delivery, now)

    def _fits(self, size: int) -> bool:
        return (
            self._pending + self._granted_events < self._max_pending
            and self._pending_bytes + self._granted_bytes + size <= self._max_pending_bytes
        )

    def _enter(self, delivery: Delivery, now: float) -> None:
        """Counts the event as accepted now, and as pending in the newest generation."""
        self._accepted += 1
        delivery.accepted_at = now
        generation = self._generations[-1]
        if now >= generation.until:
            generation = self._begin_generation(now)
        delivery.generation = generation
        generation.pending += 1

    def _begin_generation(self, now: float) -> _Generation:
        generation = self._generations[-1]
        if not generation.pending and generation.empty is None:
            self._generations.pop()
        generation = _Generation(now)
        self._generations.append(generation)
        return generation

    def _grant(self) -> None:
        """Grants room to the heads of the line. A head whose session is at its share makes way."""
        waiters = self._line.waiters
        while waiters and (waiters[0].room.done() or self._fits(waiters[0].size)):
            waiter = waiters.popleft()
            if waiter.room.done():  # Cancelled, by a task that has not run yet.
                continue
            if not self._fits_share(waiter.session_id, waiter.size):
                # In front: the callers in that line came later.
                self._session_lines.setdefault(waiter.session_id, _Line()).waiters.appendleft(waiter)
                continue
            granted = self._granted.setdefault(waiter.session_id, [0, 0])
            granted[0] += 1
            granted[1] += waiter.size
            self._granted_events += 1
            self._granted_bytes += waiter.size
            waiter.room.set_result(None)

    def _give_back(self, session_id: str, size: int) -> None:
        granted = self._granted[session_id]
        granted[0] -= 1
        granted[1] -= size
        if not granted[0]:
            del self._granted[session_id]
        self._granted_events -= 1
        self._granted_bytes -= size

    def on_released(self, session_id: str) -> None:
        """Lets callers of a session that holds less than its share join the line for all."""
        line = self._session_lines.get(session_id)
        if line is None:
            return
        line.is_jammed = False
        while line.waiters:
            waiter = line.waiters[0]
            if not waiter.room.done() and not self._fits_share(session_id, waiter.size):
                break
            line.waiters.popleft()
            if not waiter.room.done():
                self._line.waiters.append(waiter)
        self._drop_line(session_id, line)
        self._grant()

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

    def count_possible_duplicates(self, count: int) -> None:
        """Counts events that are sent again after a lost answer."""
        self._possible_duplicates += count

    def _count(self, outcome: Outcome, count: int, size: int) -> None:
        self._outcomes[outcome] += count
        self._pending -= count
        self._pending_bytes -= size
        self._line.is_jammed = False
        if self._line.waiters:
            self._grant()
        if not self._generations[0].pending:
            self._close_generations()

    # Waiting for the end of what is pending.

    async def settled(self) -> None:
        """Waits until every event that is pending now has its outcome."""
        current = self._generations[-1]
        if current.pending:
            self._generations.append(_Generation(current.until - _GENERATION))
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
            if empty is not None:  # A flush waits for it.
                empty.set_result(None)

    # Closing.

    def close(self) -> None:
        """Ends admission, refuses the callers in line, and starts counting outcomes for the report."""
        self._before_close = dict(self._outcomes)
        for line in (self._line, *self._session_lines.values()):
            for waiter in line.waiters:
                if not waiter.room.done():
                    waiter.room.set_exception(closed_error())
        self._line = _Line()
        self._session_lines.clear()

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
