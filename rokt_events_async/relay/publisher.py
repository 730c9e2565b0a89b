"""The publisher: puts events into a queue, for relays to deliver. It needs no credentials of Rokt.

```
track() → validate → stamp, encode once → bound → batch of up to 256 → queue → receipt
```

A single writer sends batches, one after the other: what comes while one is under way is the next one. What
the queue did not answer for is sent again, with the same publish id, until its time-out.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import itertools
import logging
import secrets
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Literal, NoReturn, Self

from rokt_events_async._fields import problem
from rokt_events_async._protocol.encoding import encode
from rokt_events_async._tracking.context import Home, outcome_lost_error, running_loop
from rokt_events_async._tracking.hooks import Hooks
from rokt_events_async._tracking.log import log
from rokt_events_async._tracking.threadsafe import Listeners, LoopGoneError, run_there
from rokt_events_async.errors import (
    EmitterClosedError,
    EmitterNotStartedError,
    InvalidEventError,
    InvalidSettingError,
    PublishUnconfirmedError,
    QueueFullError,
    QueueUnavailableError,
)
from rokt_events_async.events import PartnerEvent, time_problems
from rokt_events_async.observers import LoggingObserver, Observer
from rokt_events_async.outcomes import (
    EmitterStats,
    Health,
    HealthState,
    PublisherStats,
    PublishReceipt,
)
from rokt_events_async.relay._writing import Nowhere, Publication, Writer
from rokt_events_async.relay.entries import NewEntry, partition_of
from rokt_events_async.relay.queue import EventQueue
from rokt_events_async.settings import check_count, check_number, is_disabled

_MIB: Final = 1024 * 1024


class Publisher:
    """Publishes events to a queue, from which relays deliver them to Rokt.

    It is a `Tracker`, as an emitter is: `await publisher.track(event)` returns once the event is in the
    queue. The outcome at Rokt is not known here. Constructing it does no I/O.

    Args:
        queue: The queue, such as `RedisQueue("rediss://…")`. The publisher opens and closes it.
        publish_timeout: Seconds within which `track` returns or raises.
        max_pending: The bound on events that are on their way into the queue.
        max_pending_bytes: The bound on their size as encoded, in bytes.
        require_durable: True to refuse a queue that does not persist to disk; otherwise that is logged.
        close_timeout: Seconds for which `aclose` waits for events on their way.
        observers: Told what happens, instead of the `LoggingObserver` that `None` means.

    Raises:
        InvalidSettingError: An argument is out of bounds.
    """

    def __init__(
        self,
        queue: EventQueue,
        *,
        publish_timeout: float = 5.0,
        max_pending: int = 10_000,
        max_pending_bytes: int = 64 * _MIB,
        require_durable: bool = False,
        close_timeout: float = 10.0,
        observers: Iterable[Observer] | None = None,
        _clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if not hasattr(queue, "publish"):
            raise InvalidSettingError(
                f"queue must be an EventQueue, such as RedisQueue(url), got a {type(queue).__name__}"
            )
        if not isinstance(require_durable, bool):
            raise InvalidSettingError(f"require_durable must be True or False, got {require_durable!r}")
        self._is_disabled = is_disabled()
        self._queue = Nowhere(queue.partitions) if self._is_disabled else queue
        self._timeout = check_number("publish_timeout", publish_timeout, at_least=0, above=True)
        self._max_pending = check_count("max_pending", max_pending)
        self._max_bytes = check_count("max_pending_bytes", max_pending_bytes)
        self._close_timeout = check_number("close_timeout", close_timeout, at_least=0)
        self._hooks = Hooks((LoggingObserver(),) if observers is None else observers)
        self._clock = _clock
        self._home = Home("publisher")
        self._listeners: Listeners[PublishReceipt] = Listeners(outcome_lost_error)
        self._state: Literal["new", "open", "closing", "closed"] = "new"
        self._since: datetime | None = None
        self._nonce = b""
        self._numbers = itertools.count(1)
        self._writer = Writer(
            self._queue,
            timeout=self._timeout,
            require_durable=require_durable,
            hooks=self._hooks,
            clock=_clock,
        )
        self._writing: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    # Lifecycle.

    async def start(self) -> None:
        """Opens the publisher in the running loop. Starting an open publisher again does nothing.

        A queue that cannot be reached does not keep the application from starting: events are refused until
        it can be.

        Raises:
            EmitterClosedError: The publisher has been closed.
            QueueRefusedError: The queue may drop events, or refuses the user, or was set up otherwise.
            WrongContextError: It was started in another loop, thread or process.
        """
        if self._state == "open":
            self._home.check()
            return
        if self._state != "new":
            raise EmitterClosedError("a closed publisher cannot be started again: construct another one")
        running_loop()
        try:
            await self._writer.check_queue()
        except QueueUnavailableError as error:
            self._writer.note_failure(error)
        except BaseException:
            await self._queue.aclose()
            raise
        if self._state != "new":
            await self.start()  # Another call has opened or closed it meanwhile.
            return
        if self._is_disabled:
            log(logging.WARNING, "%r: ROKT_DISABLED=1, so events are accepted, counted and dropped", self)
        loop = self._home.adopt_running_loop()
        self._nonce = secrets.token_hex(8).encode()
        self._state, self._since = "open", self._clock()
        # Empty: what a request starts must not carry that request's values forever.
        self._writing = loop.create_task(
            self._writer.run(), name="rokt-events-publisher", context=contextvars.Context()
        )

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __enter__(self) -> NoReturn:
        raise TypeError("a publisher is opened by `async with publisher:`, not by `with publisher:`")

    def __exit__(self, *_: object) -> None:
        """Never called: `__enter__` raises."""

    async def aclose(self, timeout: float | None = None) -> PublisherStats:
        """Stops intake, and waits for the events on their way; at the deadline the rest is refused.

        Cancelling it ends the waiting at once.

        Args:
            timeout: Seconds to wait; `None` takes the constructor's `close_timeout`.

        Returns:
            The account.

        Raises:
            InvalidSettingError: `timeout` is no finite number >= 0.
            WrongContextError: Called in another loop, thread or process.
        """
        seconds = self._close_timeout if timeout is None else check_number("timeout", timeout, at_least=0)
        if self._state == "new":
            self._state = "closed"
            await self._queue.aclose()
        if self._state == "closed":
            return self.stats
        self._home.check()
        if self._closing is None:
            self._state, self._since = "closing", self._clock()
            self._closing = asyncio.create_task(self._close(seconds), name="rokt-events-publisher-close")
        try:
            await asyncio.shield(self._closing)
        finally:
            if not self._closing.done():  # Cancelled: the waiting ends, and every caller is told.
                self._closing.cancel()
                await asyncio.wait([self._closing])
        return self.stats

    async def _close(self, seconds: float) -> None:
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._writer.settled()
        finally:
            assert self._writing is not None, "the publisher was started"
            self._writing.cancel()
            self._writer.refuse_rest(_closed_error())
            self._state, self._since = "closed", self._clock()
            await asyncio.shield(self._end(self._writing))

    async def _end(self, writer: asyncio.Task[None]) -> None:
        await asyncio.wait([writer])
        await self._listeners.idle()
        await self._queue.aclose()

    # Events.

    async def track(self, event: PartnerEvent) -> PublishReceipt:
        """Publishes one event, and returns once the queue has it.

        Cancelled before the event was sent to the queue, it is not published; after that it may be.

        Raises:
            InvalidEventError: No `PartnerEvent`, or its time is not within 3 days back and 5 minutes ahead.
            QueueFullError: Too many events are on their way, or the queue's memory is full.
            QueueUnavailableError: The queue cannot be reached. The event is not in it.
            PublishUnconfirmedError: The queue did not answer in time. The event may be in it.
            QueueRefusedError: The queue refuses: a permission is missing, or it may drop events.
            EmitterNotStartedError: Before `start()`.
            EmitterClosedError: After `aclose()` began.
            WrongContextError: Called in another loop, thread or process.
        """
        if self._state != "open" or not self._home.is_here():
            self._check_open()
        return await self._publish(event).future

    def track_threadsafe(self, event: PartnerEvent) -> concurrent.futures.Future[PublishReceipt]:
        """Publishes one event from any thread, and returns once it is in the queue, as `track` does.

        On the loop's own thread it cannot block: there it returns at once.

        Returns:
            The receipt; on the loop's own thread perhaps later, or the error that `track` would raise.

        Raises:
            InvalidEventError, QueueFullError, EmitterNotStartedError, EmitterClosedError: As `track`.
            QueueUnavailableError, QueueRefusedError, PublishUnconfirmedError: As `track`.
            WrongContextError: The publisher was started in another process, or its loop no longer runs.
        """
        self._check_started()
        loop = self._home.check_reachable()
        if isinstance(event, PartnerEvent):
            event = event.stamped(self._clock())
        if asyncio._get_running_loop() is loop:
            self._check_open()
            return self._listeners.follow(self._publish(event).future)
        try:
            return run_there(self._publish_for_thread(event), loop, is_running=loop.is_running)
        except LoopGoneError:
            raise PublishUnconfirmedError(
                "the event may be in the queue: the publisher's event loop has ended, or is ending"
            ) from None

    async def _publish_for_thread(self, event: PartnerEvent) -> concurrent.futures.Future[PublishReceipt]:
        self._check_open()
        future = self._publish(event).future
        await future
        return self._listeners.follow(future)

    async def flush(self, timeout: float | None = None) -> bool:
        """Waits until every event that was on its way before the call is in the queue, or refused.

        Args:
            timeout: Seconds to wait; `None` waits without bound, which `publish_timeout` bounds.

        Returns:
            False if that takes longer.

        Raises:
            InvalidSettingError: `timeout` is no finite number >= 0.
            EmitterNotStartedError, WrongContextError: As `track`.
        """
        seconds = None if timeout is None else check_number("timeout", timeout, at_least=0)
        if self._state == "closed":
            return True
        self._check_started()
        self._home.check()
        try:
            async with asyncio.timeout(seconds):
                await self._writer.settled()
        except TimeoutError:
            return False
        return True

    def _check_started(self) -> None:
        if self._state == "new":
            raise EmitterNotStartedError(
                "the publisher is not started: use `async with publisher`, or `await start()`"
            )
        if self._state == "closed":
            raise _closed_error()

    def _check_open(self) -> None:
        self._check_started()
        self._home.check()
        if self._state != "open":
            raise _closed_error()

    def _publish(self, event: PartnerEvent) -> Publication:
        """Puts a checked and encoded event in line."""
        if not isinstance(event, PartnerEvent):
            raise InvalidEventError((problem("event", event, "must be a PartnerEvent"),))
        now = self._clock()
        if event.event_time is None:
            event = event.stamped(now)
        elif problems := time_problems(event.event_time, now=now):
            raise InvalidEventError(problems)
        wire = encode(event)
        writer = self._writer
        if writer.pending >= self._max_pending or writer.pending_bytes + len(wire) > self._max_bytes:
            writer.refused += 1
            raise self._full_error(len(wire))
        loop = self._home.loop
        assert loop is not None, "a started publisher has a loop"
        accepted_at = loop.time()
        publish_id = b"%b-%x" % (self._nonce, next(self._numbers))
        entry = NewEntry(partition_of(event.session_id, self._queue.partitions), publish_id, wire)
        if self._hooks.has_traces:
            entry.trace_parent = self._hooks.trace_parent()
        publication = Publication(
            event, entry, loop.create_future(), accepted_at, accepted_at + self._timeout
        )
        writer.put(publication)
        return publication

    def _full_error(self, size: int) -> QueueFullError:
        bound = (
            f"max_pending={self._max_pending} events"
            if self._writer.pending >= self._max_pending
            else f"max_pending_bytes={self._max_bytes} bytes (this one has {size})"
        )
        why = f"; the queue fails: {self._writer.failure}" if self._writer.failure else ""
        return QueueFullError(f"{bound} are on their way into the queue: the event was not published{why}")

    # Health.

    @property
    def stats(self) -> PublisherStats:
        """A snapshot of the account."""
        return self._writer.stats()

    @property
    def health(self) -> Health:
        """How the publisher is doing. `"outage"` means that the queue does not take events.

        `problems` can be `"queue_full"` (no more events may be on their way) and `"queue_doubtful"` (it does
        not persist to disk, or does not tell: see the log).
        """
        writer, loop = self._writer, self._home.loop
        state: HealthState = "ok" if self._state == "open" else self._state
        since = self._since
        if state == "ok" and writer.failing_since is not None:
            state, since = "outage", writer.failing_since
        problems = writer.problems
        if writer.pending >= self._max_pending:
            problems = ("queue_full", *problems)
        return Health(
            state=state,
            problems=problems,
            since=since,
            last_delivered_at=writer.last_published_at,
            last_error=writer.last_error,
            pending=writer.pending,
            oldest_pending_age=0.0 if loop is None else writer.oldest_age(now=loop.time()),
            stats=EmitterStats(
                accepted=writer.accepted + writer.pending,
                delivered=writer.accepted,
                pending=writer.pending,
                pending_bytes=writer.pending_bytes,
            ),
        )

    def __repr__(self) -> str:
        stats = self.stats
        return (
            f"<Publisher {self._state}, {self._queue!r}: {stats.accepted} accepted, {stats.pending} pending, "
            f"{stats.refused} refused, {stats.unconfirmed} unconfirmed>"
        )


def _closed_error() -> EmitterClosedError:
    return EmitterClosedError("the publisher is closing or closed: the event was not published")
