"""The emitter: the public face and its lifecycle. What it does is done in `_pipeline`.

```
new ──start──▶ open ──aclose──▶ closing ──drained, or the deadline──▶ closed
 └───────────────────aclose──────────────────────────────────────────────▲
```

Only an open emitter accepts events.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextvars
import logging
import os
import random
import ssl
import warnings
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Generic, Literal, NoReturn, Self, TypeVar, get_args, overload

import aiohttp

from rokt_events_async._pipeline.dead_letters import DeadLetters, OnUndelivered
from rokt_events_async._pipeline.engine import Engine, assemble
from rokt_events_async._pipeline.intake import Intake
from rokt_events_async._pipeline.keyring import CredentialsProvider, Keyring
from rokt_events_async._pipeline.recorder import Recorder
from rokt_events_async._pipeline.retry import Random
from rokt_events_async._pipeline.room import closed_error
from rokt_events_async._pipeline.store import Depot
from rokt_events_async._pipeline.transport import (
    HttpTransport,
    Transport,
    check_route,
    check_session,
)
from rokt_events_async._tracking.context import Home, outcome_lost_error, running_loop
from rokt_events_async._tracking.hooks import Hooks
from rokt_events_async._tracking.log import log
from rokt_events_async._tracking.threadsafe import Listeners, LoopGoneError, run_there
from rokt_events_async.errors import (
    EmitterClosedError,
    EmitterNotStartedError,
    InvalidSettingError,
    WrongContextError,
)
from rokt_events_async.events import PartnerEvent
from rokt_events_async.journal import Journal, choose_journal
from rokt_events_async.observers import LoggingObserver, Observer
from rokt_events_async.outcomes import Delivery, DrainReport, EmitterStats, Health, Outcome, Receipt
from rokt_events_async.settings import (
    MAX_BATCH_SIZE,
    Credentials,
    RetryPolicy,
    WhenFull,
    allows_http,
    check_number,
    check_settings,
    choose_endpoint,
    is_disabled,
)

T = TypeVar("T")

_MIB: Final = 1024 * 1024

_NO_CREDENTIALS: Final = Credentials(pub_id="disabled", secret="disabled", tag_id="0")  # noqa: S106 -- never sent

_TURN: Final = 100
"""After how many events `track_many` lets the loop turn."""


def _utc_now() -> datetime:
    return datetime.now(UTC)  # Looked up each time: a test may replace the clock.


class _Setting(Generic[T]):
    """A setting of an emitter, which can be read and not changed."""

    def __set_name__(self, _owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, emitter: None, owner: type) -> Self: ...

    @overload
    def __get__(self, emitter: Emitter, owner: type) -> T: ...

    def __get__(self, emitter: Emitter | None, owner: type) -> Any:
        return self if emitter is None else getattr(emitter._settings, self._name)

    def __set__(self, emitter: Emitter, _value: object) -> NoReturn:
        raise AttributeError(
            f"{self._name} cannot be changed: construct another emitter, with Emitter({self._name}=...)"
        )


class Emitter:
    """Delivers events to Rokt's Server Events API, with a definite outcome for every event.

    Constructing it does no I/O and needs no running loop. It works in the loop, thread and process in
    which it is started, by `async with` or `await start()`.

    With `ROKT_DISABLED=1` in the environment, a kill switch, it accepts, counts and drops all events (failed,
    with the cause `disabled`), says so once, tells no observer and no `on_undelivered`, opens no journal, and
    needs no credentials.

    Args:
        credentials: The partner's credentials; `None` reads `ROKT_PUB_ID`, `ROKT_SECRET`, `ROKT_TAG_ID`. Or
            a provider: a callable without arguments, plain or a coroutine function, which returns them. It
            is asked at the start, and again while Rokt refuses them, at most every 30 s, and may take
            `request_timeout`. A plain one runs in the loop's executor. The `tag_id` must stay the same.
        endpoint: `PRODUCTION`, `DEMO`, or another https URL (http to loopback). `None` reads
            `ROKT_ENDPOINT`, and is `PRODUCTION` without it.
        allow_http: Lets an http endpoint be other than loopback, such as a sandbox in another container; so
            does `ROKT_ALLOW_HTTP=1`. The secret then travels in clear.
        flush_interval: The linger: seconds after its first event at which a batch leaves though it is not
            full; 0 sends as soon as the loop turns.
        max_batch_size: The most events per request, 1 to 25 (specification).
        max_concurrency: The most requests in flight, each of another session.
        max_pending: The bound on pending events: accepted and not settled, those in flight included. With a
            journal, further events are stored and deferred: on disk alone until there is room.
        max_pending_bytes: The bound on their size as encoded, in bytes.
        max_session_share: The part of both bounds that one session may hold, at least one full batch.
            Beyond it the queue is full for that session only.
        max_wait: Seconds that `track` waits for room; 0 never waits, `None` waits without bound. After a
            caller has waited in vain, callers do not wait until room comes free. Without effect with a
            journal, which has room.
        when_full: What `track` does then: `"drop"` accepts the event and fails it at once, counted, logged
            and handed to `on_undelivered`; `"raise"` raises a `QueueFullError`.
        retry: When a request is retried, and when its events are given up.
        journal: A `Journal`, or the path of its directory: accepted events then survive their process.
            `None` reads `ROKT_JOURNAL`, and has no journal without it; `False` has none in any case.
        request_timeout: Seconds for one exchange, connecting and reading the answer included.
        close_timeout: Seconds for which `aclose` drains, unless the call says otherwise.
        session: An aiohttp session to use; the emitter never closes it. The caller answers for its cookie
            jar, default headers, proxy and traces. `trust_env` is refused.
        proxy: The URL of a forward proxy, as in `http://user:password@proxy.example:3128`, through which the
            emitter's own session connects. Over https it sees the endpoint's host, and nothing else.
        ssl: An `ssl.SSLContext` for the emitter's own session: an authority of one's own, or a client
            certificate. `None` trusts the system's authorities.
        observers: Told what happens, instead of the `LoggingObserver` that `None` means.
        on_undelivered: Called with the `DeliveryError` of every event that was not delivered, one after the
            other, outside the emitter's own work. A coroutine is awaited. An exception is logged once. At a
            close it has until the deadline, and one second more.

    Raises:
        InvalidSettingError: An argument is out of bounds; the message has its name, value and bounds.
    """

    # So that an emitter whose constructor raised can be shown.
    _state: Literal["new", "open", "closing", "closed"] = "closed"
    _engine: Engine | None = None

    endpoint: _Setting[str] = _Setting()
    flush_interval: _Setting[float] = _Setting()
    max_batch_size: _Setting[int] = _Setting()
    max_concurrency: _Setting[int] = _Setting()
    max_pending: _Setting[int] = _Setting()
    max_pending_bytes: _Setting[int] = _Setting()
    max_session_share: _Setting[float] = _Setting()
    max_wait: _Setting[float | None] = _Setting()
    when_full: _Setting[WhenFull] = _Setting()
    retry: _Setting[RetryPolicy] = _Setting()
    request_timeout: _Setting[float] = _Setting()
    close_timeout: _Setting[float] = _Setting()

    def __init__(
        self,
        credentials: Credentials | CredentialsProvider | None = None,
        *,
        endpoint: str | None = None,
        allow_http: bool = False,
        flush_interval: float = 0.25,
        max_batch_size: int = MAX_BATCH_SIZE,
        max_concurrency: int = 16,
        max_pending: int = 10_000,
        max_pending_bytes: int = 64 * _MIB,
        max_session_share: float = 0.25,
        max_wait: float | None = 0.25,
        when_full: WhenFull = "drop",
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 -- frozen
        request_timeout: float = 10.0,
        close_timeout: float = 10.0,
        session: aiohttp.ClientSession | None = None,
        proxy: str | None = None,
        ssl: ssl.SSLContext | None = None,
        journal: Journal | str | os.PathLike[str] | Literal[False] | None = None,
        observers: Iterable[Observer] | None = None,
        on_undelivered: OnUndelivered | None = None,
        _clock: Callable[[], datetime] = _utc_now,
        _random: Random = random,
        _transport: Transport | None = None,
    ) -> None:
        self._is_disabled = is_disabled()
        if credentials is None:
            credentials = _NO_CREDENTIALS if self._is_disabled else Credentials.from_env()
        self._journal = None if self._is_disabled else choose_journal(journal)
        self._settings = check_settings(
            is_durable=self._journal is not None,
            endpoint=choose_endpoint(endpoint, allow_http=allow_http),
            flush_interval=flush_interval,
            max_batch_size=max_batch_size,
            max_concurrency=max_concurrency,
            max_pending=max_pending,
            max_pending_bytes=max_pending_bytes,
            max_session_share=max_session_share,
            max_wait=max_wait,
            when_full=when_full,
            retry=retry,
            request_timeout=request_timeout,
            close_timeout=close_timeout,
        )
        self._keyring = Keyring(credentials, timeout=self._settings.request_timeout)
        self._session = check_session(session)
        self._route = check_route(
            proxy,
            ssl,
            session=session,
            endpoint=self._settings.endpoint,
            allow_http=allows_http(allow_http=allow_http),
        )
        self._clock = _clock
        self._random = _random
        self._transport = _transport
        self._dead_letters: DeadLetters | None = None
        if on_undelivered is not None:
            self._dead_letters = DeadLetters(on_undelivered, max_pending=max_pending)
        told = (LoggingObserver(),) if observers is None else observers
        self._hooks = Hooks(told, self._dead_letters)
        if self._is_disabled:
            self._hooks, self._dead_letters = Hooks(), None
        self._listeners: Listeners[Receipt] = Listeners(outcome_lost_error)
        self._home = Home()
        self._opening = asyncio.Lock()
        self._intake: Intake | None = None  # Only while the emitter is open.
        self._state = "new"

    # Lifecycle.

    async def start(self) -> None:
        """Opens the emitter in the running loop. Starting an open emitter again does nothing.

        Raises:
            EmitterClosedError: The emitter has been closed; it stays closed.
            WrongContextError: The emitter was started in another loop, thread or process, or the session
                that was passed in belongs to another loop.
            JournalError: The journal cannot be opened: no permission, no local disk.
            Exception: Whatever the provider of credentials raises, a `TimeoutError` if it takes too long.
        """
        if self._state == "open":
            self._home.check()
            return
        if self._state != "new":
            raise EmitterClosedError("a closed emitter cannot be started again: construct another one")
        loop = running_loop()
        if getattr(self._session, "_loop", loop) is not loop:
            raise WrongContextError("the session that was passed in belongs to another event loop")
        if not self._keyring.is_open:
            try:
                await self._keyring.open(now=loop.time())
            except InvalidSettingError:
                if self._state == "new":  # Otherwise a close has cancelled the call.
                    raise
            await self.start()  # Another call may have opened or closed it meanwhile.
            return
        if self._journal is None:
            self._assemble(loop, None)
            return
        async with self._opening:
            if self._state == "new":
                await self._open_journal(loop, self._journal)
                return
        await self.start()

    async def _open_journal(self, loop: asyncio.AbstractEventLoop, journal: Journal) -> None:
        credentials = self._keyring.current
        depot = await journal.open(
            endpoint=self._settings.endpoint, tag_id=credentials.tag_id, pub_id=credentials.pub_id
        )
        if self._state == "new":
            self._assemble(loop, depot)
            log(logging.INFO, "%r: accepted events are kept in the journal in %s", self, journal.directory)
        else:  # Closed meanwhile.
            await depot.aclose()
            raise EmitterClosedError("the emitter was closed while it was being started")

    def _assemble(self, loop: asyncio.AbstractEventLoop, depot: Depot | None) -> None:
        self._home.adopt_running_loop()
        settings = self._settings
        # Empty: an emitter that a request starts must not carry that request's values forever.
        context = contextvars.Context()
        recorder = None
        if depot is not None and self._journal is not None:
            on_error = self._journal.on_error
            recorder = Recorder(depot, on_error=on_error, loop=loop, context=context)
        self._engine = assemble(
            settings=settings,
            keyring=self._keyring,
            transport=self._transport
            or HttpTransport(
                self._keyring,
                settings.endpoint,
                session=self._session,
                route=self._route,
                timeout=settings.request_timeout,
                connections=settings.max_concurrency,
            ),
            recorder=recorder,
            max_bytes=self._journal.max_bytes if self._journal else 0,
            drops=self._is_disabled,
            hooks=self._hooks,
            dead_letters=self._dead_letters,
            listeners=self._listeners,
            clock=self._clock,
            random=self._random,
            loop=loop,
            context=context,
            on_closed=self._on_closed,
        )
        self._intake = self._engine.intake
        self._state = "open"
        if self._is_disabled:
            log(logging.WARNING, "%r: ROKT_DISABLED=1, so events are accepted, counted and dropped", self)
        _started.add(self)
        self._engine.start()

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
        raise TypeError("an emitter is opened by `async with emitter:`, not by `with emitter:`")

    def __exit__(self, *_: object) -> None:
        """Never called: `__enter__` raises."""

    async def aclose(self, timeout: float | None = None) -> DrainReport:
        """Stops intake, drains, and settles the rest at the deadline.

        The deadline holds: waits and requests are interrupted. A second caller gets the same report.
        Cancelling the last waiting caller ends the grace period at once; every event is still settled
        before the cancellation goes on.

        Args:
            timeout: Seconds to drain for; `None` takes the constructor's `close_timeout`. Only the
                first call's timeout counts.

        Returns:
            The outcomes since the close began.

        Raises:
            InvalidSettingError: `timeout` is no finite number >= 0.
            WrongContextError: Called in another loop, thread or process.
        """
        seconds = self._settings.close_timeout
        if timeout is not None:
            seconds = check_number("timeout", timeout, at_least=0)
        if self._state == "new":
            self._state = "closed"
        if self._engine is None:
            await self._keyring.aclose()
            return DrainReport()
        if self._state == "closed":
            return self._engine.drain.report
        self._home.check()
        self._state, self._intake = "closing", None
        self._engine.drain.start(seconds)
        return await self._engine.drain.wait()

    def _on_closed(self) -> None:
        self._state = "closed"

    # Events.

    async def track(self, event: PartnerEvent) -> Delivery:
        """Accepts one event; waits only while the queue is full, and at most `max_wait`.

        Cancelled while it waits for room, the event is not accepted. An accepted event ends in exactly one
        outcome, whatever becomes of the caller.

        With a journal it returns once the event is stored, and never waits for room: without room the event
        is deferred, its delivery raises a `DeliveryDeferredError`, and its outcome reaches observers later.
        Cancelled meanwhile, the event may be stored; it is then sent and counted.

        Returns:
            The delivery, whose `event` has its time stamped. Awaiting it returns the receipt or raises
            the event's `DeliveryError`. Cancelling it detaches the caller, and the event is still sent.

        Raises:
            InvalidEventError: No `PartnerEvent`, or its time is not within 3 days back and 5 minutes ahead.
            QueueFullError: No room, or with a journal none in its directory, with `when_full="raise"`; or
                it is larger than `max_pending_bytes`.
            JournalError: It could not be stored.
            EmitterNotStartedError: Before `start()`.
            EmitterClosedError: After `aclose()` began, also while it waited for room.
            WrongContextError: Called in another loop, thread or process.
        """
        intake = self._intake
        if intake is None or not self._home.is_here():
            intake = self._check_open()
        delivery = intake.prepare(event)
        if not intake.try_accept(delivery):
            await intake.accept(delivery, max_wait=self._settings.max_wait)
        return delivery

    def track_nowait(self, event: PartnerEvent) -> Delivery:
        """Accepts one event without waiting, for synchronous code on the loop's thread.

        With a journal the event is accepted in memory, and on disk milliseconds later. If the disk then
        fails, it stays in memory alone. Without room it is deferred, and fails if it cannot be stored.

        Raises:
            QueueFullError: No room, or other callers wait for it, with `when_full="raise"`.
            InvalidEventError, EmitterNotStartedError, EmitterClosedError, WrongContextError: As `track`.
        """
        intake = self._intake
        if intake is None or not self._home.is_here():
            intake = self._check_open()
        delivery = intake.prepare(event)
        if not intake.accept_nowait(delivery):
            intake.overflow(delivery)
        return delivery

    async def track_many(
        self,
        events: Iterable[PartnerEvent] | AsyncIterable[PartnerEvent],
        *,
        max_wait: float | None = None,
    ) -> AsyncIterator[Delivery]:
        """Accepts many events in order, and yields the delivery of each.

        It waits for room and lets the loop turn every 100 events, where a plain loop over `track` would
        hold the loop for as long as there is room.

        Args:
            events: A plain or asynchronous iterable.
            max_wait: Seconds to wait for room for each event; `None` waits without bound.

        Raises:
            InvalidEventError, QueueFullError, EmitterNotStartedError, EmitterClosedError,
            WrongContextError: As `track`; the events before were accepted.
            InvalidSettingError: `max_wait` is neither `None` nor a finite number >= 0.
        """
        if max_wait is not None:
            max_wait = check_number("max_wait", max_wait, at_least=0)
        accepted = 0
        async for event in _iterate(events):
            intake = self._check_open()
            delivery = intake.prepare(event)
            if not intake.try_accept(delivery):
                await intake.accept(delivery, max_wait=max_wait)
            yield delivery
            accepted += 1
            if accepted % _TURN == 0:  # After the yield: a cancellation here loses no delivery.
                await asyncio.sleep(0)

    async def deliver(self, event: PartnerEvent, timeout: float | None = None) -> Receipt:
        """Accepts one event and waits for its outcome.

        Cancelled after the event was accepted, it is still sent and still counted.

        Args:
            timeout: Seconds to wait for the outcome once the event is accepted; `None` waits without bound.

        Raises:
            DeliveryError: The event was not delivered.
            TimeoutError: Its outcome is not known in time; the event is still sent and still counted.
            InvalidSettingError: `timeout` is no finite number >= 0.
            InvalidEventError, QueueFullError, EmitterNotStartedError, EmitterClosedError,
            WrongContextError: As `track`.
        """
        seconds = None if timeout is None else check_number("timeout", timeout, at_least=0)
        delivery = await self.track(event)
        async with asyncio.timeout(seconds):
            return await delivery

    def track_threadsafe(self, event: PartnerEvent) -> concurrent.futures.Future[Receipt]:
        """Accepts one event from any thread, as `track` does from the emitter's own loop.

        It returns once the event is accepted, and blocks the calling thread for at most `max_wait` while the
        queue is full. On the loop's own thread it cannot block: there it is `track_nowait`.
        Do not call it from a handler of `signal.signal`, which may interrupt the emitter's own work.

        Returns:
            The outcome: `result()` returns the receipt, or raises the event's `DeliveryError`, or a
            `WrongContextError` if the loop ended before the outcome was known. Cancelling it detaches the
            caller, and the event is still sent.

        Raises:
            InvalidEventError, QueueFullError, EmitterNotStartedError, EmitterClosedError: As `track`.
            WrongContextError: The emitter was started in another process, or its loop no longer runs.
        """
        self._check_started()
        if self._state == "closed":
            raise closed_error()
        loop = self._home.check_reachable()
        if isinstance(event, PartnerEvent):
            event = event.stamped(self._clock())
        if asyncio._get_running_loop() is loop:
            outcome = self._listeners.follow(self.track_nowait(event))
            if not self._home.is_here():  # A greenlet of the loop's thread: the loop may sleep.
                loop.call_soon_threadsafe(_wake)
            return outcome
        try:
            return run_there(self._track_for_thread(event), loop, is_running=loop.is_running)
        except LoopGoneError as gone:
            may_be_stored = self._journal is not None
            raise self._home.gone_error(is_cancelled=gone.is_cancelled, may_be_stored=may_be_stored) from None

    async def _track_for_thread(self, event: PartnerEvent) -> concurrent.futures.Future[Receipt]:
        return self._listeners.follow(await self.track(event))

    async def flush(self, timeout: float | None = None) -> bool:
        """Sends every queued event now, without waiting for the linger, and waits for the outcomes.

        Cancelling it changes nothing about the events.

        Args:
            timeout: Seconds to wait; `None` waits without bound.

        Returns:
            True when every event accepted before the call has its outcome; False if that takes longer. The
            events are still sent.

        Raises:
            InvalidSettingError: `timeout` is no finite number >= 0.
            EmitterNotStartedError, WrongContextError: As `track`.
        """
        seconds = None if timeout is None else check_number("timeout", timeout, at_least=0)
        self._check_started()
        if self._state == "closed":
            return True
        self._home.check()
        assert self._engine is not None, "a started emitter has an engine"
        self._engine.pool.flush()
        try:
            async with asyncio.timeout(seconds):
                await self._engine.settled()
        except TimeoutError:
            return False
        return True

    def _check_open(self) -> Intake:
        """Returns the intake of an open emitter, also if its loop has moved to another thread."""
        self._check_started()
        if self._state == "closed":
            raise closed_error()
        self._home.check()
        if self._intake is None:
            raise closed_error()
        return self._intake

    def _check_started(self) -> None:
        if self._state == "new":
            raise EmitterNotStartedError(
                "the emitter is not started: use `async with emitter`, or `await start()`"
            )

    # Views.

    @property
    def stats(self) -> EmitterStats:
        """A snapshot of the account; at every instant it adds up."""
        return EmitterStats() if self._engine is None else self._engine.stats()

    @property
    def health(self) -> Health:
        """How the emitter is doing at this moment. Safe from any thread."""
        if self._engine is None:
            return Health(state="new" if self._state == "new" else "closed")
        return self._engine.health.snapshot()

    @property
    def is_disabled(self) -> bool:
        """True if the environment had `ROKT_DISABLED=1` when the emitter was made: it drops all events."""
        return self._is_disabled

    @property
    def credentials(self) -> Credentials | None:
        """The credentials in use; `None` if a provider has not been asked yet. They cannot be set."""
        return self._keyring.current if self._keyring.is_open else None

    def __repr__(self) -> str:
        if not hasattr(self, "_settings"):
            return "<Emitter, not constructed>"
        stats = self.stats
        shown = [f"{count} {name}" for name in get_args(Outcome) if (count := getattr(stats, name))]
        return (
            f"<Emitter {self._state}, {self._settings.endpoint}: {stats.accepted} accepted, "
            f"{stats.pending} pending ({stats.pending_bytes} bytes, {stats.sessions} sessions, "
            f"{stats.in_flight} requests in flight)" + "".join(f", {part}" for part in shown) + ">"
        )

    def _tell_of_loss(self, what: str) -> None:
        """Logs how many events are lost with an emitter that was not closed."""
        if not (pending := self.stats.pending):
            return
        if self._journal is not None:
            held = "1 event of it is" if pending == 1 else f"{pending} events of it are"
            text = "%r %s: %s in the journal in %s, and the next start sends them"
            log(logging.WARNING, text, self, what, held, self._journal.directory)
        else:
            events = "1 event" if pending == 1 else f"{pending} events"
            log(logging.ERROR, "%r %s: %s will be lost unless it is closed", self, what, events)

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        if self._state in ("new", "closed") or not self._home.is_in_this_process():
            return
        _warn(f"unclosed {self!r}", ResourceWarning, source=self)
        self._tell_of_loss("was left open")


def _wake() -> None:
    """Does nothing: to be called wakes a loop that sleeps."""


_started: Final[weakref.WeakSet[Emitter]] = weakref.WeakSet()


@atexit.register
def _tell_of_open_emitters() -> None:
    """Says what is lost with emitters that were not closed: in a daemon thread, for example."""
    for emitter in tuple(_started):
        if emitter._state in ("open", "closing") and emitter._home.is_in_this_process():
            emitter._tell_of_loss("is open while the program ends")


async def _iterate(
    events: Iterable[PartnerEvent] | AsyncIterable[PartnerEvent],
) -> AsyncIterator[PartnerEvent]:
    if isinstance(events, AsyncIterable):
        async for event in events:
            yield event
    else:
        for event in events:
            yield event
