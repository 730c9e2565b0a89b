"""From a caller's event to a pending one: checked against the clock, encoded, admitted, queued."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

from rokt_events_async._fields import DEFAULT_TIME, problem
from rokt_events_async._pipeline.health import HealthMonitor
from rokt_events_async._pipeline.hooks import Hooks
from rokt_events_async._pipeline.ledger import Ledger
from rokt_events_async._pipeline.room import Room
from rokt_events_async._pipeline.scheduler import Pool
from rokt_events_async._protocol.encoding import Stamp, encode
from rokt_events_async.errors import InvalidEventError
from rokt_events_async.events import PartnerEvent, time_problems
from rokt_events_async.outcomes import Cause, Delivery, DeliveryFailedError
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
        delivery = Delivery(loop=self._loop)
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
        may_wait = max_wait is None or (max_wait > 0 and not self._room.is_jammed(session_id))
        if may_wait and await self._room.wait(session_id, size, timeout=max_wait):
            now = self._loop.time()
            self._room.take_granted(session_id, size)
            self._ledger.admit(delivery, now)
            self._pool.enqueue(session_id, delivery, size, now)
            self._hooks.accepted(delivery)
            return
        self._room.jam(session_id, size)
        self.overflow(delivery)

    def overflow(self, delivery: Delivery) -> None:
        """Does with an event that found no room as `when_full` says: accepts and fails it, or raises.

        Raises:
            QueueFullError: `when_full` is `"raise"`.
        """
        error = self._room.full_error(delivery.event.session_id, len(delivery.wire))
        self._health.refresh()
        if self._when_full == "raise":
            raise error
        reason = "the queue was full" if self._room.is_full else "its session held its share of the queue"
        failed = DeliveryFailedError(
            f"dropped: {error}", event=delivery.event, reason=reason, cause=Cause.QUEUE_FULL
        )
        self._ledger.drop(delivery, failed, now=self._loop.time())
