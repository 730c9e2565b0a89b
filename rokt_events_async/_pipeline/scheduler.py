"""The pool of flush workers: which batch is sent when, and by which task.

How it works
------------
A worker is a task that runs while something can start, up to `max_concurrency` at a time. With nothing to
do there is none. A worker takes a trip, sends it until it is over or must wait, and takes the next. A trip
that must wait is *parked*: it holds neither a task nor a slot. Its session stays in flight, so order holds.

```
  queue ──due──▶ in flight ──over──▶ session released
                  ▲    │
     due again    │    │ must wait
                  │    ▼
                 parked ──deadline──▶ given up
```

Which trip a free slot takes:

- While the breaker is closed, the trip that fell due first. Retries take at most half of the slots while
  fresh batches wait. Trips of *slow* sessions, whose last request timed out, take at most half of the slots
  always: requests that hang would otherwise take all of them.
- While the breaker is open, fresh batches first: each start is a probe, and a batch that has failed is the
  worst probe.
- While the pool closes, fresh batches first: what was never tried has the best prospects.

One timer wakes the pool when something can start. Another one, the sweep, runs while something is held up:
it gives up events whose delivery deadline has passed.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterable
from contextvars import Context
from typing import Final

from rokt_events_async._pipeline.batching import Batches
from rokt_events_async._pipeline.breaker import Breaker
from rokt_events_async._pipeline.parking import Parking
from rokt_events_async._pipeline.sender import Sender
from rokt_events_async._pipeline.settlement import Settlement
from rokt_events_async._pipeline.trips import Trip
from rokt_events_async._tracking.log import log_fault
from rokt_events_async.outcomes import Cause, Delivery
from rokt_events_async.settings import EmitterSettings

_SLICE: Final = 50
"""How many events or sessions are given up between two turns of the loop."""

_RESTART: Final = 0.1
"""Seconds of rest after a worker was cancelled from outside."""

_FAILING_SESSIONS: Final = 3
"""How many sessions must have failed since the last answer, so that a close tries no others."""

_LAST_ATTEMPT: Final = 1.0
"""Seconds before the deadline of a close at which trips that would come too late get a last attempt."""


class Pool:
    """Owns the workers, and decides what they send.

    Args:
        queue: Fresh batches. Only the pool takes from it.
        parking: Parked trips. Only the pool takes from it.
        on_released: Called with a session's id when the session holds less than before.
        context: The context in which tasks and timers run, so that they do not inherit a caller's.
    """

    def __init__(
        self,
        *,
        settings: EmitterSettings,
        queue: Batches[Delivery],
        parking: Parking,
        sender: Sender,
        settlement: Settlement,
        breaker: Breaker,
        on_released: Callable[[str], None],
        loop: asyncio.AbstractEventLoop,
        context: Context,
    ) -> None:
        self._queue = queue
        self._parking = parking
        self._sender = sender
        self._settlement = settlement
        self._breaker = breaker
        breaker.on_resumed = self._arm
        self._on_released = on_released
        self._deadline = settings.deadline
        self._is_durable = settings.is_durable
        self._linger = settings.flush_interval
        self._max_concurrency = settings.max_concurrency
        self._max_retries = max(1, settings.max_concurrency // 2)
        self._retries = {False: 0, True: 0}  # In flight, by whether their session is slow.
        self._sweep_interval = min(1.0, max(0.05, settings.request_timeout / 2))
        self._loop = loop
        self._context = context
        self._workers: dict[asyncio.Task[None], None] = {}  # Ordered: a set would be ordered by address.
        self._wake_timer: asyncio.Handle | None = None
        self._wakes_at = math.inf
        """When the timer wakes the pool; infinity without one. (uvloop's handle does not always know.)"""
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._closes_at = math.inf
        self._is_stopping = False
        self._left: set[str] = set()

    def enqueue(self, session_id: str, delivery: Delivery, size: int, now: float) -> None:
        """Queues an admitted event of that session and size."""
        if self._queue.add(session_id, delivery, now, size):
            self._wake(now)
        elif self._wakes_at > now + self._linger or self._breaker.starts_at > now:
            # A wake-up may be scheduled for later, for a parked trip; or nothing may start, and the event
            # needs the sweep although one is scheduled.
            self._arm()

    def flush(self) -> None:
        """Makes every queued event due now."""
        self._queue.flush()
        if self._queue.next_due() is not None:
            self._wake(self._loop.time())
        if self.is_closing:
            self._defer_queue()

    @property
    def is_closing(self) -> bool:
        """True from `close` on."""
        return self._closes_at < math.inf

    @property
    def is_failing(self) -> bool:
        """True if requests fail, or none may start: a close then leaves the rest to the next process."""
        are_failing = self._breaker.failed_sessions >= min(_FAILING_SESSIONS, self._max_concurrency)
        return are_failing or self._breaker.starts_at > self._loop.time()

    def close(self, *, deadline: float) -> None:
        """Prepares for a stop at the deadline.

        With a journal, what would have to wait is deferred. Without one, parked trips that would come too
        late get a last attempt.
        """
        self._closes_at = deadline
        self.defer_stored()
        self._arm()

    def defer_stored(self) -> None:
        """Defers what waits while the pool closes, as far as it is in the journal by now."""
        for trip in tuple(self._parking):
            self._parking.remove(trip)
            self._set_aside(trip, trip.due_at)
        self.flush()

    # What to start, and when.

    def _is_busy(self) -> bool:
        return len(self._workers) >= self._max_concurrency

    def _starts_at(self, now: float) -> float:
        """Returns when a free worker can start something; infinity if there is nothing."""
        fresh_at = self._queue.next_due()
        when = min(math.inf if fresh_at is None else fresh_at, self._retry_due(fresh_at, now))
        return when if when == math.inf else max(when, now, self._breaker.starts_at)

    def _retry_due(self, fresh_at: float | None, now: float) -> float:
        """Returns when a parked trip may start, as far as its share of the slots allows."""
        if not self._parking:
            return math.inf
        due = math.inf
        if self._retries[True] < self._max_retries:
            due = self._parking.next_due(is_slow=True)
        has_fresh = fresh_at is not None and fresh_at <= now
        if not has_fresh or sum(self._retries.values()) < self._max_retries:
            due = min(due, self._parking.next_due(is_slow=False))
        return due

    def _take(self) -> Trip | None:
        """Takes the trip that the free slot sends next."""
        now = self._loop.time()
        if not self._breaker.may_start(now=now):
            return None
        if not self._parking:
            trip = self._take_fresh(now)
            if trip is not None or not self._parking:
                return trip
        prefers_fresh = self._breaker.is_open or self._closes_at < math.inf
        retry_at = self._retry_due(self._queue.next_due(), now)
        if prefers_fresh or retry_at > now or retry_at > self._queue.due_since(now=now):
            if (trip := self._take_fresh(now)) is not None:
                return trip
            retry_at = self._retry_due(None, now)
        return self._take_parked(now) if retry_at <= now else None

    def _take_fresh(self, now: float) -> Trip | None:
        """Takes a fresh batch. Batches of slow sessions are parked: they wait for a slot as retries do."""
        while (taken := self._queue.take(now=now)) is not None:
            trip = Trip(*taken)
            if not trip.session.is_slow:
                return trip
            self._park(trip, now)
        return None

    def _take_parked(self, now: float) -> Trip:
        slow_at = self._parking.next_due(is_slow=True)
        other_at = self._parking.next_due(is_slow=False)
        is_slow = self._retries[True] < self._max_retries and slow_at <= min(now, other_at)
        return self._parking.take(is_slow=is_slow)

    def _park(self, trip: Trip, until: float) -> None:
        batch = trip.batch
        assert batch is not None, "a trip that is over is not parked"
        if self._closes_at < until:
            until = min(until, max(trip.not_before, self._closes_at - _LAST_ATTEMPT, self._loop.time()))
        self._parking.park(trip, until=until, deadline=batch.deliveries[0].accepted_at + self._deadline)

    def _wake(self, now: float) -> None:
        """Starts a worker if something can start, otherwise sets the timers."""
        if self._is_stopping:
            return
        if self._is_busy() or self._breaker.starts_at > now:
            self._arm()
            return
        # Not by the loop's task factory: an eager one would run the worker inside `track()`.
        task = asyncio.Task(
            self._work(), loop=self._loop, name="rokt-events-flush", context=self._context.copy()
        )
        self._workers[task] = None
        task.add_done_callback(self._on_worker_done)

    def _arm(self) -> None:
        """Schedules the next start, and the sweep if something is held up."""
        if self._is_stopping:
            return
        if len(self._workers) >= self._max_concurrency:
            if self._sweep_timer is None:
                self._arm_sweep()
            return
        now = self._loop.time()
        when = self._starts_at(now)
        if when < math.inf:
            self._wake_at(when)
        if self._parking or self._breaker.starts_at > now:
            self._arm_sweep()

    def _wake_at(self, when: float) -> None:
        if self._wake_timer is not None:
            if self._wakes_at <= when:
                return
            self._wake_timer.cancel()
        self._wakes_at = when
        self._wake_timer = self._loop.call_at(when, self._on_due, context=self._context)

    def _on_due(self) -> None:
        self._wake_timer, self._wakes_at = None, math.inf
        self._wake(self._loop.time())

    def _on_worker_done(self, task: asyncio.Task[None]) -> None:
        del self._workers[task]
        if self._sweep_timer is not None and not self._queue.sessions:
            self._sweep_timer.cancel()
            self._sweep_timer = None
        fault = None if task.cancelled() else task.exception()
        if fault is not None:
            log_fault(fault)
        if task.cancelled() or fault is not None:
            # Cancelled from outside, perhaps because the loop is ending, or died of a fault: rest first.
            if not self._is_stopping:
                self._wake_at(self._loop.time() + _RESTART)
        else:
            self._arm()

    # One worker.

    async def _work(self) -> None:
        unsent = 0
        while (trip := self._take()) is not None:
            self._start_next()
            requests = self._sender.requests
            await self._send(trip)
            unsent = unsent + trip.count if self._sender.requests == requests else 0
            if unsent >= _SLICE:  # All of them overdue or expired: nothing has let the loop turn.
                unsent = 0
                await asyncio.sleep(0)

    def _start_next(self) -> None:
        """Starts or schedules the next worker: the current one is busy from now on."""
        if self._is_busy():
            self._arm_sweep()
            return
        now = self._loop.time()
        if self._starts_at(now) <= now:
            self._wake(now)
        else:
            self._arm()

    async def _send(self, trip: Trip) -> None:
        """Sends a trip until it is over, or parks it."""
        is_slow = trip.session.is_slow
        is_retry = is_slow or trip.is_retry
        if is_retry:
            self._retries[is_slow] += 1
        wait = None
        try:
            wait = await self._sender.advance(trip)
        finally:
            if is_retry:
                self._retries[is_slow] -= 1
            if wait is None:
                self._release(trip)
        if wait is not None:
            self._set_aside(trip, self._loop.time() + wait)
        if self.is_closing:
            self._defer_queue()

    def _set_aside(self, trip: Trip, until: float) -> None:
        """Parks a trip. While the pool closes, what is in the journal is deferred instead."""
        if self.is_closing and self._is_durable:
            self._sender.defer(trip)
            self._leave_rest(trip)
            if trip.batch is None:
                self._release(trip)
                return
        self._let_go(trip)
        self._park(trip, until)

    def _leave_rest(self, trip: Trip) -> None:
        """Defers what waits behind a trip of which events were deferred: it must not overtake.

        What is in memory alone is still tried.
        """
        session, now = trip.session, self._loop.time()
        self._left.add(session.id)
        rest = self._queue.drop_overdue(session, lambda _: True, at_most=session.items)
        for delivery in self._settlement.defer(rest):
            self._queue.add(session.id, delivery, now, len(delivery.wire))

    def has_left(self, session_id: str) -> bool:
        """Returns True if events of a session were left to the next process: others must not overtake."""
        return session_id in self._left

    def _defer_queue(self) -> None:
        """Defers a slice of the queue, and the rest later, if requests fail while the pool closes."""
        now = self._loop.time()
        if not self._is_durable or self._is_stopping or not self.is_failing:
            return
        handled = 0
        while handled < _SLICE and (taken := self._queue.take(now=math.inf)) is not None:
            trip = Trip(*taken)
            handled += trip.count
            self._set_aside(trip, now)
        if handled:
            self._loop.call_soon(self._defer_queue, context=self._context)

    def _let_go(self, trip: Trip) -> None:
        """Gives back what a trip that goes on has settled."""
        items, size = trip.let_go()
        if items:
            self._queue.settle(trip.session, items=items, size=size)
            self._on_released(trip.session.id)

    def _release(self, trip: Trip) -> None:
        """Takes back the session of a trip that is over."""
        now, session = self._loop.time(), trip.session
        items, size = trip.held
        self._queue.settle(session, items=items, size=size)
        if session.has_more:
            is_overdue = self._sender.overdue_by(now)
            overdue = self._queue.drop_overdue(session, is_overdue, at_most=_SLICE)
            self._give_up_overdue(overdue)
            if len(overdue) >= _SLICE:
                self._sweep_after(0, 0)
        self._queue.release(session, now=now)
        self._on_released(session.id)

    # Deadlines, while something is held up.

    def _arm_sweep(self) -> None:
        if self._sweep_timer is None:
            self._sweep_after(self._sweep_interval, 0)

    def _sweep_after(self, wait: float, start: int) -> None:
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        self._sweep_timer = self._loop.call_later(wait, self._sweep, start, context=self._context)

    def _sweep(self, start: int) -> None:
        self._sweep_timer = None
        now = self._loop.time()
        handled = self._sweep_parked(now)
        overdue, start = self._queue.take_overdue(self._sender.overdue_by(now), start=start, at_most=_SLICE)
        self._give_up_overdue(overdue)
        if start or handled >= _SLICE or len(overdue) >= _SLICE:
            self._sweep_after(0, start)
        elif self._parking or (self._queue.sessions and (self._is_busy() or self._breaker.starts_at > now)):
            self._sweep_after(self._sweep_interval, 0)
        if handled or overdue:
            self._arm()  # A session that is released may have more to send.

    def _sweep_parked(self, now: float) -> int:
        """Gives up overdue events of parked trips, a slice of them. Returns how many trips it looked at."""
        handled = 0
        while handled < _SLICE and (trip := self._parking.take_overdue(now=now)) is not None:
            handled += 1
            self._sender.give_up_overdue(trip)
            if trip.batch is None:
                self._release(trip)
            else:
                self._let_go(trip)
                self._park(trip, trip.due_at)
        return handled

    def _give_up_overdue(self, deliveries: Iterable[Delivery]) -> None:
        for delivery in deliveries:
            reason = f"its deadline of {self._deadline:g} s passed in the queue"
            self._settlement.abandon((delivery,), Cause.DEADLINE, reason)
            self._on_released(delivery.event.session_id)

    # The end.

    async def stop(self) -> None:
        """Interrupts waits and requests, and settles every pending event.

        Cancelling it skips the waiting; every event is still settled.
        """
        self._is_stopping = True
        self._stop_timers()
        for task in self._workers:
            task.cancel()
        while self._workers:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(self._workers)
        self._queue.flush()
        while self._give_up_some():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)

    def _stop_timers(self) -> None:
        for timer in (self._wake_timer, self._sweep_timer):
            if timer is not None:
                timer.cancel()
        self._wake_timer = self._sweep_timer = None
        self._wakes_at = math.inf

    def _give_up_some(self) -> bool:
        """Ends a slice of what is parked, then of the queue. Returns True if there was any."""
        handled = 0
        for trip in tuple(self._parking)[:_SLICE]:
            self._parking.remove(trip)
            self._sender.close(trip)
            self._release(trip)
            handled += 1
        while handled < _SLICE and (taken := self._queue.take(now=math.inf)) is not None:
            trip = Trip(*taken)
            left = self._settlement.defer(taken[1])
            self._settlement.abandon(left, Cause.CLOSED, "the emitter was closed")
            self._release(trip)
            handled += trip.count
        return handled > 0
