"""The pool of flush workers: when a batch is sent, and by which task.

How it works
------------
A worker is a task that runs while something is due, up to `max_concurrency` at a time. With nothing to do
there is none. A worker takes a batch from the queue, carries it until each of its events is settled, and
gives the session back. Two timers exist, each only while it is needed:

- the wake timer starts the first worker when the next batch falls due. A worker that leaves a due batch
  behind starts the next worker;
- the sweep timer runs while all workers are busy. It gives up events in the queue whose delivery deadline
  has passed.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Iterable
from contextvars import Context
from typing import Final

from rokt_events_async._pipeline.batching import Batches, Session
from rokt_events_async._pipeline.log import log_fault
from rokt_events_async._pipeline.sender import Sender
from rokt_events_async._pipeline.settlement import Settlement
from rokt_events_async._pipeline.trips import Trip
from rokt_events_async.outcomes import Delivery
from rokt_events_async.settings import EmitterSettings

_SLICE: Final = 500
"""How many events or sessions are given up between two turns of the loop."""

_RESTART: Final = 0.1
"""Seconds of rest after a worker was cancelled from outside."""


class Pool:
    """Owns the queue of batches, and the workers that send them.

    Args:
        context: The context in which tasks and timers run, so that they do not inherit a caller's.
    """

    def __init__(
        self,
        *,
        settings: EmitterSettings,
        sender: Sender,
        settlement: Settlement,
        loop: asyncio.AbstractEventLoop,
        context: Context,
    ) -> None:
        self._queue: Batches[Delivery] = Batches(
            max_batch_size=settings.max_batch_size, linger=settings.flush_interval
        )
        self._sender = sender
        self._settlement = settlement
        self._deadline = settings.retry.deadline
        self._max_concurrency = settings.max_concurrency
        self._sweep_interval = min(1.0, max(0.05, settings.request_timeout / 2))
        self._loop = loop
        self._context = context
        self._workers: dict[asyncio.Task[None], None] = {}  # Ordered: a set would be ordered by address.
        self._wake_timer: asyncio.Handle | None = None
        """Starts a worker for the oldest batch, if set. A batch that opens later is not older."""
        self._wakes_at = math.inf  # Kept here: uvloop's handle for a time that has come has no `when()`.
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._is_stopping = False

    @property
    def sessions(self) -> int:
        """Sessions with events waiting or in flight."""
        return self._queue.sessions

    def enqueue(self, delivery: Delivery, *, now: float) -> None:
        """Queues an admitted event."""
        if self._queue.add(delivery.event.session_id, delivery, now=now):
            self._start_worker()
        elif self._wake_timer is None:
            self._arm()

    def flush(self) -> None:
        """Makes every queued event due now."""
        self._queue.flush()
        if self._queue.next_due() is not None:
            self._start_worker()

    # When to run.

    def _is_busy(self) -> bool:
        return len(self._workers) >= self._max_concurrency

    def _start_worker(self) -> None:
        """Starts a worker for a due batch, unless enough workers run."""
        if self._is_stopping:
            return
        if self._is_busy():
            self._arm_sweep()
            return
        # Not by the loop's task factory: an eager one would run the worker inside `track()`.
        task = asyncio.Task(
            self._work(), loop=self._loop, name="rokt-events-flush", context=self._context.copy()
        )
        self._workers[task] = None
        task.add_done_callback(self._on_worker_done)

    def _arm(self) -> None:
        """Schedules the wake-up for the next due batch."""
        if self._is_busy():
            self._arm_sweep()
            return
        due_at = self._queue.next_due()
        if due_at is not None:
            self._wake_at(max(due_at, self._loop.time()))

    def _wake_at(self, when: float) -> None:
        if self._wake_timer is not None:
            if self._wakes_at <= when:
                return
            self._wake_timer.cancel()
        self._wakes_at = when
        self._wake_timer = self._loop.call_at(when, self._on_due, context=self._context)

    def _on_due(self) -> None:
        self._wake_timer = None
        self._start_worker()

    def _on_worker_done(self, task: asyncio.Task[None]) -> None:
        del self._workers[task]
        if not self._workers and self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None
        fault = None if task.cancelled() else task.exception()
        if fault is not None:
            log_fault(fault)
        if self._is_stopping:
            return
        if task.cancelled() or fault is not None:
            # Cancelled from outside, perhaps because the loop is ending, or died of a fault: rest first.
            self._wake_at(self._loop.time() + _RESTART)
        else:
            self._arm()

    # One worker.

    async def _work(self) -> None:
        unsent = 0
        while (taken := self._queue.take(now=self._loop.time())) is not None:
            self._start_next()
            session, deliveries = taken
            requests = self._sender.requests
            try:
                await self._sender.carry(Trip(session, deliveries))
            finally:
                self._release(session)
            unsent = unsent + len(deliveries) if self._sender.requests == requests else 0
            if unsent >= _SLICE:  # All of them overdue or expired: nothing has let the loop turn.
                unsent = 0
                await asyncio.sleep(0)

    def _start_next(self) -> None:
        """Starts or schedules the worker for the next due batch: the current worker is busy from now on."""
        if self._is_busy():
            self._arm_sweep()
            return
        due_at = self._queue.next_due()
        if due_at is not None and due_at <= self._loop.time():
            self._start_worker()
        else:
            self._arm()

    def _release(self, session: Session[Delivery]) -> None:
        now = self._loop.time()
        if session.has_more:
            is_overdue = self._sender.overdue_by(now)
            self._give_up_overdue(self._queue.drop_overdue(session, is_overdue, at_most=_SLICE))
        self._queue.release(session, now=now)

    # Deadlines in the queue, while all workers are busy.

    def _arm_sweep(self) -> None:
        if self._sweep_timer is None:
            self._sweep_after(self._sweep_interval, 0)

    def _sweep_after(self, wait: float, start: int) -> None:
        self._sweep_timer = self._loop.call_later(wait, self._sweep, start, context=self._context)

    def _sweep(self, start: int) -> None:
        is_overdue = self._sender.overdue_by(self._loop.time())
        overdue, start = self._queue.take_overdue(is_overdue, start=start, at_most=_SLICE)
        self._give_up_overdue(overdue)
        if self._is_busy():
            is_done = start == 0 and len(overdue) < _SLICE
            self._sweep_after(self._sweep_interval if is_done else 0, start)
        else:
            self._sweep_timer = None

    def _give_up_overdue(self, deliveries: Iterable[Delivery]) -> None:
        self._settlement.abandon(deliveries, f"its deadline of {self._deadline:g} s passed in the queue")

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

    def _give_up_some(self) -> bool:
        """Fails a slice of the queue, as closed before it was sent. Returns True if there was any."""
        handled = 0
        while handled < _SLICE and (taken := self._queue.take(now=math.inf)) is not None:
            session, deliveries = taken
            self._settlement.abandon(deliveries, "the emitter was closed")
            self._queue.release(session, now=self._loop.time())
            handled += len(deliveries)
        return handled > 0
