"""From a caller's event to a pending one: checked against the clock, encoded, admitted, queued."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from rokt_events_async._fields import DEFAULT_TIME, problem
from rokt_events_async._pipeline.commits import StoredDelivery
from rokt_events_async._pipeline.health import HealthMonitor
from rokt_events_async._pipeline.ledger import Ledger
from rokt_events_async._pipeline.recorder import Recorder
from rokt_events_async._pipeline.recovery import Recovery
from rokt_events_async._pipeline.room import Room
from rokt_events_async._pipeline.scheduler import Pool
from rokt_events_async._pipeline.store import StoreFailure
from rokt_events_async._protocol.encoding import Stamp, encode
from rokt_events_async._tracking.hooks import Hooks
from rokt_events_async.errors import InvalidEventError, JournalError, QueueFullError
from rokt_events_async.events import PartnerEvent, time_problems
from rokt_events_async.outcomes import (
    Cause,
    Delivery,
    DeliveryDeferredError,
    DeliveryFailedError,
    DeliveryUnconfirmedError,
)
from rokt_events_async.settings import EmitterSettings


class Intake:
    """Accepts events.

    Args:
        clock: Returns the aware now.
    """

    def __init__(
        self,
        *,
        settings: EmitterSettings,
        room: Room,
        ledger: Ledger,
        pool: Pool,
        health: HealthMonitor,
        hooks: Hooks,
        clock: Callable[[], datetime],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._when_full = settings.when_full
        self._room = room
        self._ledger = ledger
        self._pool = pool
        self._health = health
        self._hooks = hooks
        self._clock = clock
        self._loop = loop
        self._stamp = Stamp.at(DEFAULT_TIME)

    def prepare(self, event: PartnerEvent) -> Delivery:
        """Returns the delivery of an event, checked and encoded. Nothing is accepted yet.

        Raises:
            InvalidEventError: The event is no `PartnerEvent`, or its time is outside the window.
        """
        if not isinstance(event, PartnerEvent):
            raise InvalidEventError((problem("event", event, "must be a PartnerEvent"),))
        now = self._clock()
        delivery = self._new_delivery()
        if event.event_time is None:
            stamp = self._stamp
            if not stamp.since <= now < stamp.until:
                stamp = self._stamp = Stamp.at(now)
            delivery.event = event = event.stamped(now)
            delivery.wire = encode(event, stamp.text)
        elif problems := time_problems(event.event_time, now=now):
            raise InvalidEventError(problems)
        else:
            delivery.event = event
            delivery.wire = encode(event)
        return delivery

    def _new_delivery(self) -> Delivery:
        return Delivery(loop=self._loop)

    def try_accept(self, delivery: Delivery) -> bool:
        """Accepts the event if that needs no waiting. Returns True if it did.

        Raises:
            QueueFullError: The event could never fit.
        """
        return self.accept_nowait(delivery)

    def accept_nowait(self, delivery: Delivery) -> bool:
        """Accepts the event if there is room. Returns True if it did.

        Raises:
            QueueFullError: The event could never fit.
        """
        session_id, size = delivery.event.session_id, len(delivery.wire)
        if self._room.take_nowait(session_id, size):
            now = self._loop.time()
            self._ledger.admit(delivery, now)
            self._pool.enqueue(session_id, delivery, size, now)
            if self._hooks.accepted:
                self._hooks.accepted(delivery)
            return True
        self._room.check_size(size)
        return False

    async def accept(self, delivery: Delivery, *, max_wait: float | None) -> None:
        """Accepts an event that found no room: waits in line, then does as `when_full` says.

        Args:
            max_wait: Seconds to wait at most; `None` waits without bound.

        Raises:
            QueueFullError: No room came free, and `when_full` is `"raise"`.
            EmitterClosedError: The emitter was closed meanwhile.
        """
        session_id, size = delivery.event.session_id, len(delivery.wire)
        if await self._wait_for_room(session_id, size, max_wait=max_wait):
            now = self._loop.time()
            self._ledger.admit(delivery, now)
            self._pool.enqueue(session_id, delivery, size, now)
            self._hooks.accepted(delivery)
        else:
            self.overflow(delivery)

    async def _wait_for_room(self, session_id: str, size: int, *, max_wait: float | None) -> bool:
        """Waits in line, and takes the room. Returns False if none came free in time."""
        may_wait = max_wait is None or (max_wait > 0 and not self._room.is_jammed(session_id))
        if may_wait:
            if await self._room.wait(session_id, size, timeout=max_wait):
                self._room.take_granted(session_id, size)
                return True
            if self._room.take_nowait(session_id, size):  # It came free in this very turn.
                return True
        self._room.jam(session_id, size)
        return False

    def overflow(self, delivery: Delivery) -> None:
        """Does with an event that found no room as `when_full` says: accepts and fails it, or raises.

        Raises:
            QueueFullError: `when_full` is `"raise"`.
        """
        error = self._room.full_error(delivery.event.session_id, len(delivery.wire))
        reason = "the queue was full" if self._room.is_full else "its session held its share of the queue"
        self._drop(delivery, error, reason)

    def _drop(self, delivery: Delivery, error: QueueFullError, reason: str) -> None:
        self._health.refresh()
        if self._when_full == "raise":
            raise error
        failed = DeliveryFailedError(
            f"dropped: {error}", event=delivery.event, reason=reason, cause=Cause.QUEUE_FULL
        )
        self._ledger.drop(delivery, failed, now=self._loop.time())


class DroppingIntake(Intake):
    """Accepts events, and fails them at once: the kill switch is on."""

    def accept_nowait(self, delivery: Delivery) -> bool:
        reason = "ROKT_DISABLED=1 is set"
        failed = DeliveryFailedError(
            f"dropped: {reason}", event=delivery.event, reason=reason, cause=Cause.DISABLED
        )
        self._ledger.drop(delivery, failed, now=self._loop.time())
        return True


_MAX_UNSTORED: Final = 1000
"""How many events that were accepted without waiting may be neither in memory nor on disk yet."""


class DurableIntake(Intake):
    """Accepts events once they are in the journal.

    Room is taken first. The commit then accepts and queues the events, in its order: the tasks that wait for
    it only return. An event that finds no room, or that would overtake one of its session that found none, is
    deferred: the commit accepts it, and it is on disk alone.
    """

    def __init__(self, *, recorder: Recorder, recovery: Recovery, max_bytes: int, **rest: Any) -> None:
        super().__init__(**rest)
        self._recorder = recorder
        self._recovery = recovery
        self._unstored = 0
        self._max_bytes = max_bytes
        recorder.on_stored = self._on_stored
        recorder.on_refused = self._on_refused

    def _new_delivery(self) -> Delivery:
        return self._recorder.new_delivery()

    def try_accept(self, delivery: Delivery) -> bool:
        return False  # The disk is slower than that.

    def accept_nowait(self, delivery: Delivery) -> bool:
        """Accepts the event in memory if there is room, otherwise once the next commit has stored it."""
        assert isinstance(delivery, StoredDelivery), "made by `prepare`"
        if self._recorder.is_full:
            return False
        is_behind = self._recovery.is_behind(delivery.event.session_id)
        if not is_behind and super().accept_nowait(delivery):
            self._recorder.append(delivery)
            return True
        self._room.check_size(len(delivery.wire))
        if self._unstored >= _MAX_UNSTORED:
            return False
        self._unstored += 1
        self._defer(delivery)
        return True

    def _defer(self, delivery: StoredDelivery) -> None:
        delivery.is_deferred = True
        self._recorder.append(delivery)
        self._recovery.defer(delivery.event.session_id, delivery.number)

    async def accept(self, delivery: Delivery, *, max_wait: float | None) -> None:
        """Accepts an event once it is stored, in memory too if there is room.

        Raises:
            QueueFullError: The journal is full, and `when_full` is `"raise"`; or the event could never fit.
            JournalError: It could not be stored.
        """
        assert isinstance(delivery, StoredDelivery), "made by `prepare`"
        session_id, size = delivery.event.session_id, len(delivery.wire)
        if self._recorder.is_full:
            self.overflow(delivery)
            return
        has_room = not self._recovery.is_behind(session_id) and self._room.take_nowait(session_id, size)
        if not has_room:
            self._room.check_size(size)
        delivery.waiter = self._loop.create_future()
        if self._hooks.accepted:
            delivery.context = contextvars.copy_context()
        if has_room:
            self._room.reserve(session_id, size)
            self._recorder.append(delivery)
        else:
            self._defer(delivery)
        try:
            await delivery.waiter
        except asyncio.CancelledError:
            raise asyncio.CancelledError(
                "cancelled while the event was being stored: it may be stored, and is then sent and counted"
            ) from None

    def overflow(self, delivery: Delivery) -> None:
        if self._recorder.is_full:
            self._recorder.measure()  # It may be full no more.
            text = (
                f"the journal is full: {self._recorder.size} bytes in {self._recorder.depot.directory}, "
                f"max_bytes is {self._max_bytes}"
            )
            self._drop(delivery, QueueFullError(text), "the journal was full")
        else:  # Without waiting, for the disk has not taken so many others yet.
            super().overflow(delivery)

    def _on_stored(self, delivery: StoredDelivery) -> None:
        """Accepts and queues an event, unless it was accepted without waiting for the disk."""
        if delivery.is_deferred:
            self._accept_deferred(delivery)
            return
        if delivery.waiter is None:
            if self._pool.is_closing:  # It was being stored when the close began.
                self._pool.defer_stored()
            return
        session_id, size, now = delivery.event.session_id, len(delivery.wire), self._loop.time()
        self._room.unreserve(session_id, size)
        if self._pool.has_left(session_id) and delivery.commits is not None:  # At a close.
            self._room.free(1, size)
            self._accept_deferred(delivery)
            return
        self._ledger.admit(delivery, now)
        self._pool.enqueue(session_id, delivery, size, now)
        if self._pool.is_closing:
            self._pool.defer_stored()
        self._tell_of_acceptance(delivery)

    def _accept_deferred(self, delivery: StoredDelivery) -> None:
        text = "deferred: memory has no room for the event; it is in the journal, and is sent from there"
        deferred = DeliveryDeferredError(text, event=delivery.event)
        self._ledger.accept_deferred(delivery, deferred, self._loop.time())
        self._tell_of_acceptance(delivery)
        self._hooks.deferred(delivery)

    def _tell_of_acceptance(self, delivery: StoredDelivery) -> None:
        if delivery.waiter is None:
            self._unstored -= 1
            self._hooks.accepted(delivery)
            return
        if delivery.context is not None:
            delivery.context.run(self._hooks.accepted, delivery)
            delivery.context = None
        if not delivery.waiter.done():
            delivery.waiter.set_result(None)

    def _on_refused(self, delivery: StoredDelivery, failure: StoreFailure) -> None:
        """Accepts an event into memory alone, or refuses it."""
        waiter = delivery.waiter
        if delivery.is_deferred:
            self._refuse_deferred(delivery, failure)
            return
        if waiter is None:
            delivery.is_stored = False if failure.is_certain else None
            return
        if self._recorder.on_error == "memory" and failure.is_certain:
            self._on_stored(delivery)
            return
        size = len(delivery.wire)
        self._room.unreserve(delivery.event.session_id, size)
        self._room.free(1, size)
        self._recovery.on_released(delivery.event.session_id)
        _refuse(waiter, failure)

    def _refuse_deferred(self, delivery: StoredDelivery, failure: StoreFailure) -> None:
        """Refuses an event that is neither in memory nor on disk."""
        if delivery.waiter is not None:
            _refuse(delivery.waiter, failure)
            return
        self._unstored -= 1
        reason = f"memory had no room for it, and it could not be stored: {failure}"
        error = DeliveryFailedError if failure.is_certain else DeliveryUnconfirmedError
        cause = Cause.QUEUE_FULL if failure.is_certain else Cause.CLOSED
        failed = error(reason, event=delivery.event, reason=reason, cause=cause)
        self._ledger.drop(delivery, failed, now=self._loop.time())


def _refuse(waiter: asyncio.Future[None], failure: StoreFailure) -> None:
    if not waiter.done():
        waiter.set_exception(_refusal(failure))
        waiter.exception()  # Its caller may have been cancelled in this very turn.


def _refusal(failure: StoreFailure) -> JournalError:
    text = (
        f"the event could not be stored and was not accepted: {failure}"
        if failure.is_certain
        else f"it is not known whether the event was stored: {failure}; if it was, the next start sends it"
    )
    return JournalError(text, path=failure.path, reason=failure.reason)
