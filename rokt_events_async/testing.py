"""For tests of applications: a tracker without sockets, a queue in memory, the audit of a sandbox."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from rokt_events_async.errors import EmitterClosedError, EventProblem, InvalidEventError, RoktEventsError
from rokt_events_async.events import PartnerEvent, time_problems
from rokt_events_async.outcomes import (
    Delivery,
    DeliveryError,
    DrainReport,
    EmitterStats,
    Health,
    Receipt,
)
from rokt_events_async.relay.memory import MemoryQueue
from rokt_events_async.sandbox.audit import Claim, disagreements

__all__ = ["Claim", "MemoryQueue", "RecordingTracker", "claim_of", "disagreements"]


class RecordingTracker:
    """A tracker for unit tests: it keeps what it is told to track, opens nothing, and sends nothing.

    Each event is delivered at once, unless the test says otherwise by `fail_with`. It has the methods of an
    `Emitter` that applications use, and refuses what an emitter refuses; it need not be started.

    Attributes:
        events: All events that were accepted, in order, with their time stamped.
    """

    def __init__(self) -> None:
        self.events: list[PartnerEvent] = []
        self._failures: list[RoktEventsError] = []
        self._failed: list[DeliveryError] = []
        self._is_closed = False

    def fail_with(self, *errors: RoktEventsError) -> None:
        """Says what the next events end in, one error for each.

        A `DeliveryError` is the outcome of an event that was accepted. Any other error, such as a
        `QueueFullError`, is raised by `track` itself.
        """
        self._failures.extend(errors)

    async def start(self) -> None:
        """Does nothing."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self, timeout: float | None = None) -> DrainReport:
        """Refuses further events. Nothing is left to drain."""
        self._is_closed = True
        return DrainReport()

    async def track(self, event: PartnerEvent) -> Delivery:
        """Keeps one event, and returns its settled delivery.

        Raises:
            InvalidEventError: It is no `PartnerEvent`, or its time is not within 3 days back and 5
                minutes ahead.
            EmitterClosedError: After `aclose()`.
            RoktEventsError: What `fail_with` was given.
        """
        return self.track_nowait(event)

    def track_nowait(self, event: PartnerEvent) -> Delivery:
        """Does what `track` does, without a coroutine."""
        outcome = self._accept(event)
        delivery = Delivery(loop=asyncio.get_running_loop())
        delivery.event = self.events[-1]
        delivery.settle(outcome)
        return delivery

    async def track_many(
        self, events: Iterable[PartnerEvent] | AsyncIterable[PartnerEvent], *, max_wait: float | None = None
    ) -> AsyncIterator[Delivery]:
        """Does what `track` does, for many events."""
        if isinstance(events, AsyncIterable):
            async for event in events:
                yield self.track_nowait(event)
        else:
            for event in events:
                yield self.track_nowait(event)

    async def deliver(self, event: PartnerEvent, timeout: float | None = None) -> Receipt:
        """Keeps one event, and returns its receipt, or raises its `DeliveryError`."""
        return await self.track_nowait(event)

    def track_threadsafe(self, event: PartnerEvent) -> concurrent.futures.Future[Receipt]:
        """Keeps one event from any thread, with a loop or without."""
        outcome = self._accept(event)
        future: concurrent.futures.Future[Receipt] = concurrent.futures.Future()
        if isinstance(outcome, Receipt):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)
        return future

    async def flush(self, timeout: float | None = None) -> bool:
        """Has nothing to send."""
        return True

    @property
    def stats(self) -> EmitterStats:
        """The account."""
        failed: Counter[str] = Counter(error.outcome for error in self._failed)
        accepted = len(self.events)
        return EmitterStats(
            accepted=accepted,
            delivered=accepted - len(self._failed),
            rejected=failed["rejected"],
            expired=failed["expired"],
            failed=failed["failed"],
            unconfirmed=failed["unconfirmed"],
        )

    @property
    def health(self) -> Health:
        """It is always well."""
        return Health(state="closed" if self._is_closed else "ok", stats=self.stats)

    def __repr__(self) -> str:
        return f"<RecordingTracker: {len(self.events)} events>"

    def _accept(self, event: PartnerEvent) -> Receipt | DeliveryError:
        if self._is_closed:
            raise EmitterClosedError("the tracker is closed")
        if not isinstance(event, PartnerEvent):
            shown = type(event).__name__
            message = f"event must be a PartnerEvent, got a {shown}"
            raise InvalidEventError((EventProblem(None, message, "event", shown, "must be a PartnerEvent"),))
        now = datetime.now(UTC)
        stamped = event.stamped(now)
        if problems := time_problems(stamped.event_time or now, now=now):
            raise InvalidEventError(problems)
        error = self._failures.pop(0) if self._failures else None
        if error is not None and not isinstance(error, DeliveryError):
            raise error
        self.events.append(stamped)
        if error is None:
            return Receipt(stamped, 1, maybe_duplicate=False)
        self._failed.append(error)
        return error


def claim_of(event: PartnerEvent, outcome: Receipt | DeliveryError) -> Claim:
    """Returns what an outcome says of its event, in the terms of the sandbox's audit."""
    if isinstance(outcome, Receipt):
        return Claim(event=event.to_dict(), outcome="delivered", maybe_duplicate=outcome.maybe_duplicate)
    codes = tuple(error.code for error in getattr(outcome, "errors", ()))
    return Claim(event=event.to_dict(), outcome=outcome.outcome, codes=codes)
