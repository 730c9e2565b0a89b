"""The emitter: the facade, and its lifecycle.

```
new ──start──▶ open ──aclose──▶ closing ──drained, or the deadline──▶ closed
 └───────────────────aclose──────────────────────────────────────────────▲
```

Only an open emitter accepts events. The drain is a task of its own, started by the first `aclose` and
awaited by all of them; it ends, whatever happens, with every accepted event settled.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import logging
import os
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Literal, Self, get_args

import aiohttp
import attrs

from rokt_events_async._pipeline import retry as retry_
from rokt_events_async._pipeline import threadsafe
from rokt_events_async._pipeline.batching import Batches
from rokt_events_async._pipeline.hooks import Observers, OnUndelivered, UndeliveredHandler, log
from rokt_events_async._pipeline.ledger import Ledger, closed_error
from rokt_events_async._pipeline.sender import FlushWorkers
from rokt_events_async._pipeline.transport import HttpTransport, Transport
from rokt_events_async._protocol import encoding
from rokt_events_async.errors import (
    DeliveryFailedError,
    EmitterClosedError,
    EmitterNotStartedError,
    InvalidEventError,
    InvalidSettingError,
    Outcome,
    QueueFullError,
    WrongContextError,
)
from rokt_events_async.events import DEFAULT_TIME, PartnerEvent, problem, time_problems
from rokt_events_async.observers import LoggingObserver, Observer
from rokt_events_async.outcomes import Delivery, DrainReport, EmitterStats, Receipt
from rokt_events_async.settings import (
    MAX_BATCH_SIZE,
    PRODUCTION,
    Credentials,
    RetryPolicy,
    check_choice,
    check_count,
    check_endpoint,
    check_number,
)

WhenFull = Literal["wait", "raise", "drop"]

_MAX_CONCURRENCY: Final = 1024
_MIB: Final = 1024 * 1024


class _Process:
    """The process this runs in. Comparing two is faster than asking the system."""

    def __init__(self) -> None:
        self.pid = os.getpid()


_this_process = _Process()


def _after_fork() -> None:
    global _this_process  # noqa: PLW0603 -- a child is another process
    _this_process = _Process()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)


_utc_now: Final[Callable[[], datetime]] = functools.partial(datetime.now, UTC)


class Emitter:
    """Delivers events to Rokt's Server Events API, and tells what became of every single one.

    Constructing it does no I/O and needs no running loop. It works in the loop, thread and process in
    which it is started, by `async with` or `await start()`.

    Args:
        credentials: What Rokt handed out; `None` reads `ROKT_PUB_ID`, `ROKT_SECRET`, `ROKT_TAG_ID`.
        endpoint: `PRODUCTION`, `DEMO`, or another https URL (http to loopback).
        flush_interval: Seconds after its first event at which a batch leaves though it is not full;
            0 sends as soon as the loop turns.
        max_batch_size: Events a request carries at most, 1 to 25 (specification).
        max_concurrency: Requests under way at most, each of another session.
        max_pending: Events accepted and not settled, at most; those in flight count.
        max_pending_bytes: Their size as encoded, in bytes, at most.
        when_full: What `track` does at a bound: `"wait"` for room, `"raise"` a `QueueFullError`, or
            `"drop"`: accept the event and fail it at once, counted.
        retry: When a request is sent again, and when its events are given up.
        request_timeout: Seconds for one exchange, connecting and reading the answer included.
        close_timeout: Seconds `aclose` drains for, unless it is told otherwise.
        session: An aiohttp session to use, which is never closed here. Its cookie jar, its default
            headers, proxy and traces are the caller's to answer for; `trust_env` is refused.
        observers: Who is told what happens, instead of a `LoggingObserver`, which `None` means.
        on_undelivered: Called with the `DeliveryError` of every event that ends other than delivered, one
            after the other, outside of the emitter's own work; a coroutine is awaited. What it raises is
            logged once. At a close it has until the deadline, and a second more.

    Raises:
        InvalidSettingError: An argument is out of bounds; its name, value and bounds are in the message.
    """

    _state: Literal["new", "open", "closing", "closed"] = "closed"

    def __init__(
        self,
        credentials: Credentials | None = None,
        *,
        endpoint: str = PRODUCTION,
        flush_interval: float = 0.25,
        max_batch_size: int = MAX_BATCH_SIZE,
        max_concurrency: int = 16,
        max_pending: int = 10_000,
        max_pending_bytes: int = 64 * _MIB,
        when_full: WhenFull = "wait",
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 -- frozen
        request_timeout: float = 10.0,
        close_timeout: float = 10.0,
        session: aiohttp.ClientSession | None = None,
        observers: Iterable[Observer] | None = None,
        on_undelivered: OnUndelivered | None = None,
        _clock: Callable[[], datetime] = _utc_now,
        _random: retry_.Random = random,
        _transport: Transport | None = None,
    ) -> None:
        self._credentials = Credentials.from_env() if credentials is None else credentials
        _check_instance("credentials", self._credentials, Credentials)
        self._endpoint = check_endpoint(endpoint)
        interval = check_number("flush_interval", flush_interval, at_least=0)
        check_count("max_batch_size", max_batch_size, at_most=MAX_BATCH_SIZE)
        self._max_concurrency = check_count("max_concurrency", max_concurrency, at_most=_MAX_CONCURRENCY)
        self._max_pending = check_count("max_pending", max_pending)
        check_count("max_pending_bytes", max_pending_bytes)
        self._when_full = check_choice("when_full", when_full, ("wait", "raise", "drop"))
        _check_instance("retry", retry, RetryPolicy)
        self._retry = retry
        if interval >= retry.deadline:
            raise InvalidSettingError(
                f"flush_interval must be shorter than the retry deadline of {retry.deadline:g} s, "
                f"or events are given up before they are sent, got {flush_interval!r}"
            )
        self._request_timeout = check_number("request_timeout", request_timeout, at_least=0, above=True)
        self._close_timeout = check_number("close_timeout", close_timeout, at_least=0)
        self._session = _check_session(session)
        self._clock = _clock
        self._random = _random
        self._transport = _transport
        self._batches: Batches[Delivery] = Batches(max_batch_size=max_batch_size, interval=interval)
        self._handler: UndeliveredHandler | None = None
        if on_undelivered is not None:
            self._handler = UndeliveredHandler(on_undelivered, max_pending=self._max_pending)
        everybody = (LoggingObserver(),) if observers is None else observers
        self._observers = Observers(everybody, self._handler)
        self._ledger = Ledger(
            max_pending=max_pending, max_pending_bytes=max_pending_bytes, observers=self._observers
        )
        self._listeners: threadsafe.Listeners[Receipt] = threadsafe.Listeners(_outcome_lost_error)
        self._state = "new"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = _this_process
        self._thread = 0
        self._workers: FlushWorkers | None = None
        self._drain: asyncio.Task[DrainReport] | None = None
        self._close_waiters = 0
        self._hurry = asyncio.Event()
        self._stamp = encoding.Stamp.at(DEFAULT_TIME)

    # Lifecycle.

    async def start(self) -> None:
        """Opens the emitter in the running loop. Starting an open one again does nothing.

        Raises:
            EmitterClosedError: It has been closed; a closed one stays closed.
            WrongContextError: It was started in another loop, thread or process, or the session that
                was passed in belongs to another loop.
        """
        if self._state == "open":
            self._check_context()
            return
        if self._state != "new":
            raise EmitterClosedError("a closed emitter cannot be started again: construct another one")
        loop = asyncio.get_running_loop()
        session_loop = getattr(self._session, "_loop", loop)
        if session_loop is not loop:
            raise WrongContextError("the session that was passed in belongs to another event loop")
        self._loop, self._process, self._thread = loop, _this_process, threading.get_ident()
        if self._transport is None:
            self._transport = HttpTransport(
                self._credentials,
                self._endpoint,
                session=self._session,
                timeout=self._request_timeout,
                connections=self._max_concurrency,
            )
        context = contextvars.copy_context()
        if self._handler is not None:
            self._handler.bind(loop, context)
        self._workers = FlushWorkers(
            batches=self._batches,
            ledger=self._ledger,
            transport=self._transport,
            observers=self._observers,
            credentials=self._credentials,
            endpoint=self._endpoint,
            policy=self._retry,
            max_concurrency=self._max_concurrency,
            request_timeout=self._request_timeout,
            clock=self._clock,
            random=self._random,
            loop=loop,
            context=context,
        )
        self._state = "open"

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

    async def aclose(self, timeout: float | None = None) -> DrainReport:
        """Stops intake, drains, and gives what is left at the deadline its outcome.

        The deadline holds: back-offs and requests are interrupted. A second caller gets the same
        report. When the last waiting caller is cancelled, the deadline is now, and everything is still
        settled before the cancellation goes on.

        Args:
            timeout: Seconds to drain for; `None` takes the constructor's `close_timeout`. Only the
                first call's counts.

        Returns:
            What became of the events since the close began.

        Raises:
            InvalidSettingError: `timeout` is no finite number >= 0.
            WrongContextError: Called in another loop, thread or process.
        """
        seconds = self._close_timeout
        if timeout is not None:
            seconds = check_number("timeout", timeout, at_least=0)
        if self._state == "new":
            self._state = "closed"
            return DrainReport()
        if self._state == "closed":
            return DrainReport() if self._drain is None else self._drain.result()
        workers = self._check_context()
        if self._drain is None:
            self._state = "closing"
            self._ledger.close()
            self._start_drain(workers, seconds)
        self._close_waiters += 1
        try:
            return await self._drained(workers)
        except asyncio.CancelledError:
            if self._close_waiters == 1:
                self._hurry.set()
                while not self._is_closed():
                    with contextlib.suppress(asyncio.CancelledError):
                        await self._drained(workers)
            raise
        finally:
            self._close_waiters -= 1

    def _is_closed(self) -> bool:
        return self._state == "closed"

    def _start_drain(self, workers: FlushWorkers, seconds: float) -> None:
        self._drain = asyncio.Task(self._run_drain(workers, seconds), name="rokt-events-drain")

    async def _drained(self, workers: FlushWorkers) -> DrainReport:
        """Waits for the drain; one that was cancelled before it could run is begun anew, in a hurry."""
        while True:
            drain = self._drain
            assert drain is not None
            await asyncio.wait([drain])  # Which leaves it alone when this is cancelled.
            if not drain.cancelled():
                return drain.result()
            if drain is self._drain:
                self._start_drain(workers, 0)

    async def _run_drain(self, workers: FlushWorkers, seconds: float) -> DrainReport:
        """Waits until all is settled, the deadline, or somebody's hurry; then settles the rest."""
        settled = asyncio.ensure_future(self._flush_and_handle(workers))
        hurried = asyncio.ensure_future(self._hurry.wait())
        with contextlib.suppress(asyncio.CancelledError):  # At the loop's end for one: it is now.
            await asyncio.wait((settled, hurried), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        settled.cancel()
        hurried.cancel()
        await workers.stop()
        if self._handler is not None:
            await self._handler.finish()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait((settled, hurried))
        with contextlib.suppress(asyncio.CancelledError):
            await self._listeners.idle()
        await self._close_transport()
        self._state = "closed"
        report = self._ledger.report()
        if report.undelivered:
            counts = attrs.asdict(report, filter=attrs.filters.exclude("delivered", "undelivered"))
            shown = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
            log(logging.WARNING, "closed with events undelivered: %s", shown)
        self._observers.tell(self._observers.closed, report)
        return report

    async def _flush_and_handle(self, workers: FlushWorkers) -> None:
        await self._flush(workers)
        if self._handler is not None:
            await self._handler.idle()

    async def _close_transport(self) -> None:
        assert self._transport is not None
        try:
            await self._transport.aclose()
        except asyncio.CancelledError:
            pass  # Everything is settled; what is left is between the connections and the loop.
        except Exception as error:  # noqa: BLE001 -- nothing about the events depends on it
            log(logging.ERROR, "the connections could not be closed: %s", type(error).__name__)

    # Events.

    async def track(self, event: PartnerEvent) -> Delivery:
        """Accepts one event; waits only while the queue is full.

        Cancelled while it waits for room, the event is not accepted. Once it is, it ends in exactly one
        outcome, whatever becomes of the caller.

        Returns:
            The delivery, whose `event` has its time stamped. Awaiting it returns the receipt or raises
            what became of the event; cancelling it detaches the caller, and the event is still sent.

        Raises:
            InvalidEventError: No `PartnerEvent`, or its time is not within 3 days back and 5 minutes ahead.
            QueueFullError: No room, with `when_full="raise"`; or it is larger than `max_pending_bytes`.
            EmitterNotStartedError: Before `start()`.
            EmitterClosedError: After `aclose()` began, also while it waited for room.
            WrongContextError: Called in another loop, thread or process.
        """
        workers = self._check_open()
        delivery = self._prepare(event)
        if not self._accept(workers, delivery):
            if self._when_full == "raise":
                raise self._full_error()
            await self._ledger.wait_for_room(len(delivery.wire))
            now = workers.now()
            self._ledger.admit_granted(delivery, now=now)
            self._enqueue(workers, delivery, now=now)
        return delivery

    def track_nowait(self, event: PartnerEvent) -> Delivery:
        """Accepts one event without waiting, for synchronous code on the loop's thread.

        Raises:
            QueueFullError: No room, or others wait for it, except with `when_full="drop"`.
            InvalidEventError, EmitterNotStartedError, EmitterClosedError, WrongContextError: As `track`.
        """
        workers = self._check_open()
        delivery = self._prepare(event)
        if not self._accept(workers, delivery):
            raise self._full_error()
        return delivery

    async def deliver(self, event: PartnerEvent) -> Receipt:
        """Accepts one event and waits for its outcome.

        Cancelled after the event was accepted, it is still sent and still counted.

        Raises:
            DeliveryError: What became of it, if it was not delivered.
            InvalidEventError, QueueFullError, EmitterNotStartedError, EmitterClosedError,
            WrongContextError: As `track`.
        """
        return await (await self.track(event))

    def track_threadsafe(self, event: PartnerEvent) -> concurrent.futures.Future[Receipt]:
        """Accepts one event from any thread, as `track` does from the emitter's own loop.

        It returns once the event is accepted, and holds the calling thread while the queue is full. The
        loop's own thread it must not hold: there it is `track_nowait`, and a full queue a `QueueFullError`.
        Not for handlers of `signal.signal`, which may come in the middle of the emitter's own work.

        Returns:
            The outcome: `result()` returns the receipt or raises what became of the event, or a
            `WrongContextError` if the loop ended before that was known. Cancelling it detaches the caller,
            and the event is still sent.

        Raises:
            InvalidEventError, QueueFullError, EmitterNotStartedError, EmitterClosedError: As `track`.
            WrongContextError: The emitter was started in another process, or its loop does not run any more.
        """
        loop = self._check_reachable()
        if isinstance(event, PartnerEvent):
            event = event.stamped(self._clock())
        if asyncio._get_running_loop() is loop:
            return self._listeners.follow(self.track_nowait(event))
        try:
            return threadsafe.run_there(self._track_for_thread(event), loop, is_running=loop.is_running)
        except threadsafe.LoopGoneError:
            raise _loop_gone_error(loop) from None

    def _check_reachable(self) -> asyncio.AbstractEventLoop:
        """That the emitter's loop runs, in whatever thread of this process."""
        if self._state == "new":
            raise _not_started_error()
        if self._state == "closed":
            raise closed_error()
        assert self._loop is not None
        if self._process is not _this_process:
            raise WrongContextError(_describe_context(self._process, self._loop))
        if not self._loop.is_running():
            raise _loop_gone_error(self._loop)
        return self._loop

    async def _track_for_thread(self, event: PartnerEvent) -> concurrent.futures.Future[Receipt]:
        return self._listeners.follow(await self.track(event))

    async def flush(self) -> None:
        """Sends what is queued now, without waiting out the interval.

        Returns when everything accepted before the call has its outcome. Cancelling it changes nothing
        about the events.

        Raises:
            EmitterNotStartedError, WrongContextError: As `track`.
        """
        if self._state == "new":
            raise _not_started_error()
        if self._state == "closed":
            return
        await self._flush(self._check_context())

    async def _flush(self, workers: FlushWorkers) -> None:
        self._batches.flush()
        if self._batches.next_due() is not None:
            workers.start_one()
        await self._ledger.settled()

    def _prepare(self, event: PartnerEvent) -> Delivery:
        """Validates against the clock and encodes; nothing is accepted yet."""
        if not isinstance(event, PartnerEvent):
            raise InvalidEventError((problem("event", event, "must be a PartnerEvent"),))
        now = self._clock()
        delivery = Delivery(loop=self._loop)
        if event.event_time is None:
            stamp = self._stamp
            if not stamp.since <= now < stamp.until:
                stamp = self._stamp = encoding.Stamp.at(now)
            delivery.event = event = event.stamped(now)
            delivery.wire = encoding.encode(event, stamp.text)
        elif problems := time_problems(event.event_time, now=now):
            raise InvalidEventError(problems)
        else:
            delivery.event = event
            delivery.wire = encoding.encode(event)
        return delivery

    def _accept(self, workers: FlushWorkers, delivery: Delivery) -> bool:
        """Accepts the event if there is room, or to drop it if that was asked for. Whether it did."""
        now = workers.now()
        if self._ledger.admit_nowait(delivery, now=now):
            self._enqueue(workers, delivery, now=now)
            return True
        self._ledger.check_size(len(delivery.wire))
        if self._when_full != "drop":
            return False
        reason = "the queue was full"
        error = DeliveryFailedError(f"dropped: {reason}", event=delivery.event, reason=reason)
        self._ledger.drop(delivery, error, now=now)
        return True

    def _enqueue(self, workers: FlushWorkers, delivery: Delivery, *, now: float) -> None:
        if self._batches.add(delivery.event.session_id, delivery, now=now):
            workers.start_one()
        elif workers.wake_timer is None:
            workers.arm()
        if self._observers.accepted:
            self._observers.tell(self._observers.accepted, delivery)

    def _full_error(self) -> QueueFullError:
        return QueueFullError(
            f"the queue is full: {self._ledger.pending} of {self._max_pending} events "
            f"and {self._ledger.pending_bytes} bytes pending"
        )

    # Checks and views.

    def _check_open(self) -> FlushWorkers:
        # That the loop runs, and that this is its thread, is known without the system call that asking
        # for the running loop costs before Python 3.12.
        if (
            self._state == "open"
            and threading.get_ident() == self._thread
            and self._loop is not None
            and self._loop.is_running()
            and self._process is _this_process
            and self._workers is not None
        ):
            return self._workers
        if self._state == "new":
            raise _not_started_error()
        if self._state == "closed":
            raise closed_error()
        workers = self._check_context()
        if self._state == "closing":
            raise closed_error()
        return workers  # The loop runs in another thread now than when it was started.

    def _check_context(self) -> FlushWorkers:
        """That this is the loop, thread and process the emitter was started in."""
        if asyncio._get_running_loop() is not self._loop or self._process is not _this_process:
            raise WrongContextError(_describe_context(self._process, self._loop))
        assert self._workers is not None
        return self._workers

    @property
    def stats(self) -> EmitterStats:
        """A snapshot of the account; at every instant it adds up."""
        workers = self._workers
        return self._ledger.stats(
            sessions=self._batches.sessions,
            in_flight=workers.in_flight if workers else 0,
            requests=workers.requests if workers else 0,
            retries=workers.retries if workers else 0,
        )

    def __repr__(self) -> str:
        stats = self.stats
        shown = [f"{count} {name}" for name in get_args(Outcome) if (count := getattr(stats, name))]
        return (
            f"<Emitter {self._state}, {self._endpoint}: {stats.accepted} accepted, "
            f"{stats.pending} pending ({stats.pending_bytes} bytes, {stats.sessions} sessions, "
            f"{stats.in_flight} requests in flight)" + "".join(f", {part}" for part in shown) + ">"
        )

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        if self._state in ("new", "closed") or self._process is not _this_process:
            return
        _warn(f"unclosed {self!r}", ResourceWarning, source=self)


def _check_instance(name: str, value: object, cls: type[Any]) -> None:
    if not isinstance(value, cls):
        raise InvalidSettingError(f"{name} must be a {cls.__name__}, got {type(value).__name__}")


def _check_session(session: aiohttp.ClientSession | None) -> aiohttp.ClientSession | None:
    if session is None:
        return None
    _check_instance("session", session, aiohttp.ClientSession)
    if session.closed:
        raise InvalidSettingError("session must be open, got a closed one")
    if session.trust_env:
        raise InvalidSettingError(
            "session must not have trust_env=True (it could send the secret to a proxy), got one that has"
        )
    return session


def _not_started_error() -> EmitterNotStartedError:
    return EmitterNotStartedError("the emitter is not started: use `async with emitter`, or `await start()`")


def _loop_gone_error(loop: asyncio.AbstractEventLoop) -> WrongContextError:
    what = "has cancelled this call" if loop.is_running() else "does not run"
    return WrongContextError(
        f"the event loop in which the emitter was started {what}: the event was not accepted"
    )


def _outcome_lost_error() -> WrongContextError:
    return WrongContextError(
        "the event loop in which the emitter was started has ended before the event's outcome was known: "
        "close the emitter before its loop ends"
    )


def _describe_context(process: _Process, loop: asyncio.AbstractEventLoop | None) -> str:
    if process is not _this_process:
        return (
            f"the emitter was started in process {process.pid}, and this is process {_this_process.pid}: "
            "construct it before a fork, and start it in each child"
        )
    if loop is not None and loop.is_closed():
        return "the event loop in which the emitter was started is closed: construct another emitter"
    return (
        "the emitter was started in another event loop or thread; "
        "from here use emitter.track_threadsafe(event)"
    )
