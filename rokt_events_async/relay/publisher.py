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
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Literal, NoReturn, Self

import attrs

from rokt_events_async._fields import problem
from rokt_events_async._protocol.encoding import encode
from rokt_events_async._tracking.context import Home, outcome_lost_error, running_loop
from rokt_events_async._tracking.hooks import Hooks
from rokt_events_async._tracking.log import log, log_raised
from rokt_events_async._tracking.threadsafe import Listeners, LoopGoneError, run_there
from rokt_events_async.errors import (
    EmitterClosedError,
    EmitterNotStartedError,
    InvalidEventError,
    InvalidSettingError,
    NotAcceptedError,
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
    LastError,
    PublisherStats,
    PublishReceipt,
)
from rokt_events_async.relay.entries import NewEntry, partition_of
from rokt_events_async.relay.queue import EventQueue, Findings
from rokt_events_async.settings import check_count, check_number, is_disabled

_MIB: Final = 1024 * 1024
_BATCH: Final = 256
"""The most events that are sent to the queue at once."""

_WAITS: Final = (0.05, 1.0)
"""The first and the longest wait before the queue is tried again, in seconds."""


@attrs.define(eq=False)
class _Publication:
    """An event on its way into the queue.

    Attributes:
        event: The event, stamped.
        entry: What is sent.
        future: Its receipt.
        accepted_at: When it was taken, in the loop's time.
        deadline: When its time is over.
    """

    event: PartnerEvent
    entry: NewEntry
    future: asyncio.Future[PublishReceipt]
    accepted_at: float
    deadline: float


class _Nowhere:
    """In place of a queue while the kill switch is on. The queue itself is never opened."""

    def __repr__(self) -> str:
        return "no queue"

    def __init__(self, partitions: int) -> None:
        self.partitions = partitions

    async def open_publisher(self, *, require_durable: bool) -> Findings:
        return Findings()

    async def publish(self, entries: Sequence[NewEntry], *, timeout: float) -> list[str | Exception]:
        return ["dropped"] * len(entries)

    async def aclose(self) -> None:
        """Has nothing to close."""


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
        self._queue = _Nowhere(queue.partitions) if self._is_disabled else queue
        self._timeout = check_number("publish_timeout", publish_timeout, at_least=0, above=True)
        self._max_pending = check_count("max_pending", max_pending)
        self._max_bytes = check_count("max_pending_bytes", max_pending_bytes)
        self._close_timeout = check_number("close_timeout", close_timeout, at_least=0)
        self._require_durable = require_durable
        self._hooks = Hooks((LoggingObserver(),) if observers is None else observers)
        self._clock = _clock
        self._home = Home("publisher")
        self._listeners: Listeners[PublishReceipt] = Listeners(outcome_lost_error)
        self._state: Literal["new", "open", "closing", "closed"] = "new"
        self._since: datetime | None = None
        self._nonce = b""
        self._numbers = itertools.count(1)
        self._waiting: deque[_Publication] = deque()
        self._wake: asyncio.Event = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._is_checked = False
        self._problems: tuple[str, ...] = ()
        self._failing_since: datetime | None = None
        self._last_error: LastError | None = None
        self._last_published_at: datetime | None = None
        self._under_way: list[_Publication] = []
        self._pending_bytes = 0
        self._pending = 0
        self._accepted = self._refused = self._unconfirmed = self._batches = self._repeats = 0

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
            await self._check_queue()
        except QueueUnavailableError as error:
            self._note_failure(error)
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
        # Empty: what a request starts must not carry that request's values for ever.
        self._writer = loop.create_task(
            self._write(), name="rokt-events-publisher", context=contextvars.Context()
        )

    async def _check_queue(self) -> None:
        """Checks the queue once; it may be unreachable at the start."""
        if self._is_checked:
            return
        findings = await self._queue.open_publisher(require_durable=self._require_durable)
        self._is_checked = True
        self._problems = ("queue_doubtful",) if findings.warnings else ()
        for warning in findings.warnings:
            log(logging.WARNING, "%r: %s", self._queue, warning)

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
                    await self._settled()
        finally:
            assert self._writer is not None, "the publisher was started"
            self._writer.cancel()
            self._waiting.extendleft(reversed(self._under_way))
            self._under_way = []
            while self._waiting:
                self._refuse(self._waiting.popleft(), _closed_error())
            self._state, self._since = "closed", self._clock()
            await asyncio.shield(self._end(self._writer))

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
        except LoopGoneError as gone:
            raise self._home.gone_error(is_cancelled=gone.is_cancelled) from None

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
                await self._settled()
        except TimeoutError:
            return False
        return True

    async def _settled(self) -> None:
        """Waits for the events that are on their way now."""
        futures = [one.future for one in (*self._under_way, *self._waiting)]
        if futures:
            await asyncio.wait(futures)

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

    def _publish(self, event: PartnerEvent) -> _Publication:
        """Puts a checked and encoded event in line."""
        if not isinstance(event, PartnerEvent):
            raise InvalidEventError((problem("event", event, "must be a PartnerEvent"),))
        now = self._clock()
        if event.event_time is None:
            event = event.stamped(now)
        elif problems := time_problems(event.event_time, now=now):
            raise InvalidEventError(problems)
        wire = encode(event)
        if self._pending >= self._max_pending or self._pending_bytes + len(wire) > self._max_bytes:
            self._refused += 1
            raise self._full_error(len(wire))
        loop = self._home.loop
        assert loop is not None, "a started publisher has a loop"
        accepted_at = loop.time()
        publish_id = b"%b-%x" % (self._nonce, next(self._numbers))
        entry = NewEntry(partition_of(event.session_id, self._queue.partitions), publish_id, wire)
        if self._hooks.has_traces:
            entry.trace_parent = self._hooks.trace_parent()
        publication = _Publication(
            event, entry, loop.create_future(), accepted_at, accepted_at + self._timeout
        )
        self._pending += 1
        self._pending_bytes += len(wire)
        self._waiting.append(publication)
        self._wake.set()
        return publication

    def _full_error(self, size: int) -> QueueFullError:
        bound = (
            f"max_pending={self._max_pending} events"
            if self._pending >= self._max_pending
            else f"max_pending_bytes={self._max_bytes} bytes (this one has {size})"
        )
        why = (
            f"; the queue fails: {self._last_error.text}" if self._failing_since and self._last_error else ""
        )
        return QueueFullError(f"{bound} are on their way into the queue: the event was not published{why}")

    # The writer.

    async def _write(self) -> None:
        wait = _WAITS[0]
        while True:
            await self._wake.wait()
            self._under_way = self._next_batch()
            if not self._under_way:
                self._wake.clear()
                continue
            if await self._send():
                wait = _WAITS[0]
                continue
            self._waiting.extendleft(reversed(self._under_way))
            self._under_way = []
            await self._pause(wait)
            wait = min(2 * wait, _WAITS[1], self._timeout / 4)

    def _next_batch(self) -> list[_Publication]:
        """Returns the next events, without those whose callers wait no more."""
        batch: list[_Publication] = []
        while self._waiting and len(batch) < _BATCH:
            publication = self._waiting.popleft()
            if publication.future.cancelled():
                self._leave(publication)
                self._count_refusal(publication)
            else:
                batch.append(publication)
        return batch

    async def _pause(self, seconds: float) -> None:
        """Waits before the queue is tried again, and refuses what is overdue meanwhile."""
        assert self._home.loop is not None, "the writer runs"
        loop = self._home.loop
        until = loop.time() + seconds
        while (left := until - loop.time()) > 0:
            if self._waiting:
                left = min(left, max(0.0, self._waiting[0].deadline - loop.time()))
            await asyncio.sleep(left)
            while self._waiting and self._waiting[0].deadline <= loop.time():
                publication = self._waiting.popleft()
                self._refuse(publication, self._overdue_error(publication))

    async def _send(self) -> bool:
        """Sends what is under way. Returns False if the queue did not take or not answer for some of it."""
        assert self._home.loop is not None, "the writer runs"
        batch = self._under_way
        loop = self._home.loop
        tries = [publication.entry.tries for publication in batch]
        try:
            async with asyncio.timeout_at(batch[0].deadline):
                await self._check_queue()
            left = max(0.001, batch[0].deadline - loop.time())
            try:
                replies = await self._queue.publish([one.entry for one in batch], timeout=left)
            finally:
                sent = [before for before, one in zip(tries, batch, strict=True) if one.entry.tries > before]
                self._batches += bool(sent)
                self._repeats += sum([before > 0 for before in sent])
        except (QueueUnavailableError, TimeoutError) as error:
            self._note_failure(error)
            return False
        except Exception as error:  # noqa: BLE001 -- the queue as a whole refuses, or its client has a fault
            if not isinstance(error, NotAcceptedError):
                log_raised("the queue's client", error)
                error = QueueUnavailableError(f"the queue's client failed: {type(error).__name__}")
            self._note_failure(error)
            for publication in batch:
                self._refuse(publication, error)
            self._under_way = []
            return True
        self._under_way = []
        self._settle(batch, replies)
        return not self._under_way

    def _settle(self, batch: list[_Publication], replies: list[str | Exception]) -> None:
        failure: Exception | None = None
        for publication, reply in zip(batch, replies, strict=True):
            if isinstance(reply, str):
                self._receive(publication, reply)
                continue
            failure = reply
            publication.entry.tries -= 1  # The queue has said that it did not take it.
            if isinstance(reply, QueueUnavailableError):
                self._under_way.append(publication)
            else:
                self._refuse(publication, reply)
        if failure is None:
            self._note_success()
        else:
            self._note_failure(failure)

    def _receive(self, publication: _Publication, entry_id: str) -> None:
        self._leave(publication)
        self._accepted += 1
        receipt = PublishReceipt(publication.event, entry_id)
        if self._hooks.published:
            assert self._home.loop is not None, "the writer runs"
            self._hooks.published(receipt, self._home.loop.time() - publication.accepted_at)
        if not publication.future.done():
            publication.future.set_result(receipt)

    def _refuse(self, publication: _Publication, error: Exception) -> None:
        """Tells the caller of an error of its own: an exception that is shared would grow its traceback."""
        self._leave(publication)
        told = PublishUnconfirmedError if publication.entry.tries else type(error)
        text = str(error)
        if publication.entry.tries and not isinstance(error, PublishUnconfirmedError):
            text = f"the event may be in the queue: it was sent, and no answer came ({text})"
        own = told(text)
        self._count_refusal(publication)
        if self._hooks.unpublished:
            self._hooks.unpublished(publication.event, own)
        if not publication.future.done():
            publication.future.set_exception(own)
            publication.future.exception()  # A caller that waits no more makes no noise.

    def _count_refusal(self, publication: _Publication) -> None:
        if publication.entry.tries:
            self._unconfirmed += 1
        else:
            self._refused += 1

    def _leave(self, publication: _Publication) -> None:
        self._pending -= 1
        self._pending_bytes -= len(publication.entry.wire)

    def _overdue_error(self, publication: _Publication) -> NotAcceptedError:
        why = self._last_error.text if self._failing_since and self._last_error else "the queue was too slow"
        if publication.entry.tries:
            return PublishUnconfirmedError(
                f"no answer of the queue within {self._timeout:g} s: the event may be in it ({why})"
            )
        return QueueUnavailableError(f"the event is not in the queue after {self._timeout:g} s: {why}")

    # Health.

    def _note_failure(self, error: Exception) -> None:
        self._last_error = LastError(str(error) or "the queue did not answer in time", self._clock())
        if self._failing_since is None:
            self._failing_since = self._clock()
            log(logging.ERROR, "events cannot be published: %s", self._last_error.text)

    def _note_success(self) -> None:
        self._last_published_at = self._clock()
        if self._failing_since is not None:
            seconds = (self._last_published_at - self._failing_since).total_seconds()
            self._failing_since = None
            text = (
                "events can be published again, after %.0f s: %d refused and %d unconfirmed since the start"
            )
            log(logging.WARNING, text, seconds, self._refused, self._unconfirmed)

    @property
    def stats(self) -> PublisherStats:
        """A snapshot of the account."""
        return PublisherStats(
            accepted=self._accepted,
            refused=self._refused,
            unconfirmed=self._unconfirmed,
            pending=self._pending,
            pending_bytes=self._pending_bytes,
            batches=self._batches,
            repeats=self._repeats,
        )

    @property
    def health(self) -> Health:
        """How the publisher is doing. `"outage"` means that the queue does not take events.

        `problems` can be `"queue_full"` (no more events may be on their way) and `"queue_doubtful"` (it does
        not persist to disk, or does not tell: see the log).
        """
        state: HealthState = "ok" if self._state == "open" else self._state
        since = self._since
        if state == "ok" and self._failing_since is not None:
            state, since = "outage", self._failing_since
        problems = self._problems
        if self._pending >= self._max_pending:
            problems = ("queue_full", *problems)
        return Health(
            state=state,
            problems=problems,
            since=since,
            last_delivered_at=self._last_published_at,
            last_error=self._last_error,
            pending=self._pending,
            oldest_pending_age=self._oldest_age(),
            stats=EmitterStats(
                accepted=self._accepted + self._pending,
                delivered=self._accepted,
                pending=self._pending,
                pending_bytes=self._pending_bytes,
            ),
        )

    def _oldest_age(self) -> float:
        first = next(iter((*self._under_way[:1], *itertools.islice(self._waiting, 1))), None)
        if first is None or self._home.loop is None:
            return 0.0
        return max(0.0, self._home.loop.time() - first.accepted_at)

    def __repr__(self) -> str:
        return (
            f"<Publisher {self._state}, {self._queue!r}: {self._accepted} accepted, {self._pending} pending, "
            f"{self._refused} refused, {self._unconfirmed} unconfirmed>"
        )


def _closed_error() -> EmitterClosedError:
    return EmitterClosedError("the publisher is closing or closed: the event was not published")
