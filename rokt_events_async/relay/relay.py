"""The relay: reads a queue, hands its events to an emitter, and acknowledges each by its outcome.

```
          ┌─────────── read ──── take over ─── fetch again
queue ────┤                                             ▼
          │   ┌── mark ◀── due ◀───────────────────── window ◀── put back
          │   └──▶ emitter ──▶ outcome ──▶ judge ──┬──▶ acknowledge
          └───────────────────────────────────────┴──▶ dead letter
```

Three loops share the window: the reader, the sender, and the one that acknowledges. A fourth says once per
second that this relay is alive, and learns who else is. Only the reader adds to the window.

Nothing is lost, because an entry stays in the queue until it is acknowledged. An event is sent twice only if
its entry was marked: by a relay that ended before it acknowledged it, or that was stopped for longer than
its `heartbeat_timeout`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import logging
import math
import os
import secrets
import socket
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Final, NoReturn, Self

import attrs

from rokt_events_async._tracking.hooks import Hooks
from rokt_events_async._tracking.log import log, log_raised
from rokt_events_async._version import __version__
from rokt_events_async.emitter import Emitter
from rokt_events_async.errors import (
    EmitterClosedError,
    InvalidEventError,
    InvalidSettingError,
    NotAcceptedError,
    QueueFullError,
    QueueUnavailableError,
    RoktEventsError,
)
from rokt_events_async.observers import LoggingObserver, Observer
from rokt_events_async.outcomes import (
    DeadLetter,
    Health,
    LastError,
    Receipt,
    RelayHealth,
    RelayState,
    RelayStats,
)
from rokt_events_async.relay.entries import Entry, Held, UnreadableEntryError, read_entry
from rokt_events_async.relay.judging import judge, judge_invalid, judge_redelivered, judge_unreadable
from rokt_events_async.relay.queue import Backlog, EventQueue
from rokt_events_async.relay.shares import share_of
from rokt_events_async.relay.turns import Turns
from rokt_events_async.relay.window import Window
from rokt_events_async.settings import MAX_BATCH_SIZE, RetryPolicy, check_count, check_number

_MIB: Final = 1024 * 1024
_DAY: Final = 24 * 3600.0
_THREE_DAYS: Final = 3 * _DAY
"""As old as an event may be (specification, "PartnerEvent", eventTime)."""

_PAGE: Final = 1000
"""The most entries of one exchange with the queue."""

_PAGE_BYTES: Final = 4 * _MIB
"""About the most bytes of such an exchange."""

_FIRST_PAGE: Final = 125
"""The first page: how large the events are is not known yet."""

_BLOCK: Final = 0.5
"""Seconds that a read waits for entries."""

_ACKNOWLEDGE_EVERY: Final = 0.01
_RETRY_AFTER: Final = (0.05, 1.0)
"""The first and the longest wait before the queue is tried again, in seconds."""

_AGAIN_AFTER: Final = 1.0
"""Seconds until an event that the emitter had no room for is offered again."""

_LATER: Final = 30.0
"""Seconds until an event whose time lies too far ahead is offered again."""

_PREDECESSOR: Final = 30.0
"""Seconds that the heartbeat of a predecessor with the same id may live on, whatever its time-out was."""

_TRIM_EVERY: Final = 60.0
_LEAVE_WITHIN: Final = 5.0
"""Seconds for the last exchanges with the queue."""


class RelayStoppedError(RoktEventsError):
    """The relay has stopped by itself, and says why. What it had read stays in the queue."""


class Relay:
    """Delivers the events of a queue to Rokt, along with other relays.

    `async with relay:` runs it beside the application's own work, and raises at its end what the relay had to
    stop for; `await relay.run()` runs it until it is cancelled or `stop()` is called.

    Args:
        queue: The queue, such as `RedisQueue("rediss://…")`. The relay opens and closes it.
        make_emitter: Makes the emitter that the relay sends with: `Emitter` itself, `partial(Emitter, …)`,
            or a function with `**settings` that calls it. It is called with the settings that fit a relay
            (`flush_interval`, `max_pending`, `max_pending_bytes`, `max_session_share`, `when_full`,
            `retry`), those that a `partial` has set excepted. If it takes no arguments, its emitter is used
            as it is, and the window is at most its `max_pending`.
        relay_id: The id among all relays; `None` makes one up. A process that is restarted with the same
            id fetches what its predecessor held. No two may have the same id at a time.
        flush_interval: The linger: seconds that a batch waits to fill. The events are durable meanwhile.
        window: The most entries in memory.
        window_bytes: The most bytes of their events.
        heartbeat_timeout: Seconds without a heartbeat after which the other relays take over its entries.
        close_timeout: Seconds for which a stop drains.
        max_dead_letters: The most dead letters that are kept, the youngest.
        dead_letter_age: Seconds for which they are kept.
        observers: Told what happens at the relay, instead of the `LoggingObserver` that `None` means. The
            emitter has its own.

    Raises:
        InvalidSettingError: An argument is out of bounds.
    """

    def __init__(
        self,
        queue: EventQueue,
        make_emitter: Callable[..., Emitter],
        *,
        relay_id: str | None = None,
        flush_interval: float = 2.0,
        window: int = 20_000,
        window_bytes: int = 64 * _MIB,
        heartbeat_timeout: float = 15.0,
        close_timeout: float = 20.0,
        max_dead_letters: int = 100_000,
        dead_letter_age: float = 30 * 24 * 3600.0,
        observers: Iterable[Observer] | None = None,
        _clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if not hasattr(queue, "read"):
            raise InvalidSettingError(
                f"queue must be an EventQueue, such as RedisQueue(url), got a {type(queue).__name__}"
            )
        if not callable(make_emitter):
            raise InvalidSettingError(f"make_emitter must be callable, as Emitter is, got {make_emitter!r}")
        if relay_id is not None and (
            not isinstance(relay_id, str) or not relay_id.isprintable() or not relay_id
        ):
            raise InvalidSettingError(f"relay_id must be a non-empty printable string, got {relay_id!r}")
        self.relay_id = relay_id or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._queue = queue
        self._make_emitter = make_emitter
        self._linger = check_number("flush_interval", flush_interval, at_least=0)
        self._window_size = check_count("window", window, at_least=2 * MAX_BATCH_SIZE)
        self._window_bytes = check_count("window_bytes", window_bytes)
        self._heartbeat_timeout = check_number(
            "heartbeat_timeout", heartbeat_timeout, at_least=0.5, at_most=_DAY
        )
        self._close_timeout = check_number("close_timeout", close_timeout, at_least=0)
        self._max_dead_letters = check_count("max_dead_letters", max_dead_letters, at_most=10**9)
        self._dead_letter_age = check_number(
            "dead_letter_age", dead_letter_age, at_least=0, at_most=3650 * _DAY
        )
        self._hooks = Hooks((LoggingObserver(),) if observers is None else observers)
        self._clock = _clock
        self._nonce = secrets.token_hex(8)
        self._state: RelayState = "new"
        self._since: datetime | None = None
        self._started_at: datetime | None = None
        self._last_error: LastError | None = None
        self._queue_fails_since: datetime | None = None
        self._emitter: Emitter | None = None
        self._window = self._make_window(self._window_size)
        self._turns = Turns(self._window_size)
        self._share: tuple[int, ...] = ()
        self._gone: tuple[str, ...] = ()
        self._backlog = Backlog()
        self._last_beat = -math.inf
        self._no_taking_until = -math.inf
        self._must_fetch_own = True
        self._page = _FIRST_PAGE
        self._has_id = False
        self._handing_over = False
        self._resends = True
        self._recent: OrderedDict[bytes, tuple[int, bytes]] = OrderedDict()
        self._acknowledgements: list[tuple[Entry, Held | None]] = []
        self._letters: list[tuple[Entry, Held | None, DeadLetter]] = []
        self._leaving: set[tuple[int, bytes]] = set()  # What is on these lists and not in the window.
        self._released: list[Entry] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._reader: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._stopping = asyncio.Event()
        self._due = asyncio.Event()
        self._settled = asyncio.Event()
        self._room = asyncio.Event()
        self._beaten = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None
        self._counts = _Counts()
        self._told = RelayStats()
        self._rate = _Rate()

    def _make_window(self, size: int) -> Window:
        return Window(size, max_bytes=self._window_bytes, linger=self._linger, batch_size=MAX_BATCH_SIZE)

    # Lifecycle.

    async def start(self) -> None:
        """Starts the relay in the running loop. Starting it again does nothing.

        While the queue cannot be reached it keeps trying, and `health` says so.

        Raises:
            QueueRefusedError: The queue may drop events, or refuses the user, or was set up otherwise.
            InvalidSettingError: `make_emitter` returned no emitter, or one with a journal.
            EmitterClosedError: The relay has been closed.
            Exception: Whatever the provider of credentials raises.
        """
        if self._state != "new":
            if self._is_closing():
                raise EmitterClosedError("a closed relay cannot be started again: construct another one")
            return
        self._set_state("starting")
        self._started_at = self._clock()
        try:
            self._emitter = self._make_one()
            await self._emitter.start()
            self._check_emitter(self._emitter)
            opened = await self._try_to_open()
            if self._is_closing():
                raise EmitterClosedError("the relay was closed while it was being started")
        except BaseException:
            if not self._is_closing():
                self._set_state("closed")
            if self._emitter is not None:
                await self._emitter.aclose(0)
            await self._queue.aclose()
            raise
        self._spawn(self._live(is_open=opened))

    def _make_one(self) -> Emitter:
        settings: dict[str, Any] = {
            "flush_interval": 0,  # The relay lingers.
            "max_pending": self._window_size + 16 * _PAGE,  # A read may exceed the window by a page or so.
            "max_pending_bytes": 2 * self._window_bytes + 64 * _MIB,
            "max_session_share": 1,
            "when_full": "raise",
            "retry": RetryPolicy(deadline=_THREE_DAYS),
        }
        set_already = getattr(self._make_emitter, "keywords", {})
        settings = {name: value for name, value in settings.items() if name not in set_already}
        try:
            inspect.signature(self._make_emitter).bind(**settings)
        except (TypeError, ValueError):
            settings = {}
        emitter: Any = self._make_emitter(**settings)
        if isinstance(emitter, Emitter):
            return emitter
        if inspect.iscoroutine(emitter):
            emitter.close()
        raise InvalidSettingError(
            f"make_emitter must return an Emitter, as Emitter itself does, got a {type(emitter).__name__}"
        )

    def _check_emitter(self, emitter: Emitter) -> None:
        if emitter.stats.journal is not None:
            raise InvalidSettingError(
                "a relay's emitter must have no journal (journal=, ROKT_JOURNAL): the queue is durable, and "
                "a journal would send events that another relay has taken over"
            )
        if emitter.max_pending < self._window_size:
            self._window_size = emitter.max_pending
            self._window, self._turns = self._make_window(self._window_size), Turns(self._window_size)
        deadline = emitter.retry.deadline
        if deadline is None or deadline < _THREE_DAYS:
            text = (
                "the relay's emitter has a delivery deadline of %g s: what may have been sent then becomes a "
            )
            text += "dead letter; RetryPolicy(deadline=%g) is as old as an event may be"
            log(logging.WARNING, text, deadline or 120, _THREE_DAYS)
        self._resends = emitter.retry.retry_unconfirmed

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
        if self._failure is not None and exc is None:
            raise self._failure

    def __enter__(self) -> NoReturn:
        raise TypeError("a relay is opened by `async with relay:`, not by `with relay:`")

    def __exit__(self, *_: object) -> None:
        """Never called: `__enter__` raises."""

    async def run(self) -> RelayStats:
        """Runs the relay until `stop()` is called, and drains. Cancelling it drains too.

        Returns:
            The account.

        Raises:
            RelayStoppedError: The relay cannot go on: Rokt refuses the credentials, or another process has
                its id. What it had read stays in the queue.
            QueueRefusedError, InvalidSettingError, EmitterClosedError: As `start`.
        """
        try:
            await self.start()
            await self._stopping.wait()
        finally:
            await self.aclose()
        if self._failure is not None:
            raise self._failure
        return self.stats

    def stop(self) -> None:
        """Asks a relay that runs to stop: `run()` then drains and returns. Call it on the relay's loop."""
        self._stopping.set()

    async def aclose(self, timeout: float | None = None) -> RelayStats:
        """Stops reading, drains, acknowledges, and leaves the rest in the queue for other relays.

        Args:
            timeout: Seconds to drain for; `None` takes the constructor's `close_timeout`.

        Raises:
            InvalidSettingError: `timeout` is no finite number >= 0.
        """
        seconds = self._close_timeout if timeout is None else check_number("timeout", timeout, at_least=0)
        if self._state == "new":
            self._set_state("closed")
            await self._queue.aclose()
        if self._state == "closed":
            return self.stats
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(seconds), name="rokt-events-relay-close")
        try:
            await asyncio.shield(self._closing)
        except asyncio.CancelledError:  # A second interrupt: the grace period ends.
            self._closing.cancel()
            await asyncio.wait([self._closing])
            raise
        return self.stats

    async def _close(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        self._set_state("closing")
        self._stopping.set()
        try:
            if self._reader is not None:
                await asyncio.wait([self._reader], timeout=_BLOCK + 1)
            await self._drain(deadline)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.shield(self._leave())

    async def _drain(self, deadline: float) -> None:
        """Sends what the window holds, and waits for the outcomes. In an outage that would be in vain."""
        if self._emitter is None:
            return
        loop = asyncio.get_running_loop()
        self._window.drain(now=loop.time())
        self._due.set()
        while (self._window.waiting or self._handing_over) and self._can_drain() and loop.time() < deadline:
            await asyncio.sleep(0.01)
        await self._emitter.aclose(max(0.0, deadline - loop.time()))

    def _can_drain(self) -> bool:
        assert self._emitter is not None, "the relay was started"
        is_up = not self._emitter.health.is_breaker_open and self._failure is None
        return is_up and self._queue_fails_since is None

    async def _leave(self) -> None:
        """Acknowledges what has an outcome, and tells the others that this relay has ended."""
        try:
            if self._tasks:
                await asyncio.wait(self._tasks)
            if self._emitter is not None:
                await self._emitter.aclose(0)
            await asyncio.sleep(0)  # The last outcomes are told one turn later.
            if self._has_id:
                async with asyncio.timeout(_LEAVE_WITHIN):
                    await self._take_leave()
        except (NotAcceptedError, TimeoutError) as error:
            text = "the relay %s could not take its leave of the queue: its entries are taken over later (%s)"
            log(logging.WARNING, text, self.relay_id, str(error) or "no answer in time")
        finally:
            self._set_state("closed")
            await self._queue.aclose()
            self._tell()

    async def _take_leave(self) -> None:
        await self._acknowledge()
        if self._released:
            await self._queue.unmark(self.relay_id, self._released)
        await self._queue.leave(self.relay_id, self._nonce)
        await self._queue.forget(self.relay_id)

    def _is_closing(self) -> bool:
        return self._state in ("closing", "closed")

    def _set_state(self, state: RelayState) -> None:
        if state != self._state:
            self._state, self._since = state, self._clock()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # Empty: what a request starts must not carry that request's values for ever.
        loop = asyncio.get_running_loop()
        task = loop.create_task(work, name="rokt-events-relay", context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if not isinstance(error, RoktEventsError):
                log_raised("a loop of the relay", error)
                error = RelayStoppedError(
                    f"a fault in the relay or in its queue's client: {type(error).__name__}"
                )
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Stops the relay with an error, the first one."""
        if self._failure is None and self._state != "closed":
            self._failure = error
            log(logging.ERROR, "the relay %s stops: %s", self.relay_id, error)
        self._stopping.set()
        if self._closing is None:
            self._closing = asyncio.create_task(
                self._close(self._close_timeout), name="rokt-events-relay-close"
            )

    async def _try_to_open(self) -> bool:
        """Opens the queue. Returns False if it cannot be reached."""
        try:
            findings = await self._queue.open_relay(heartbeat_timeout=self._heartbeat_timeout)
        except QueueUnavailableError as error:
            self._note_failure(error)
            return False
        for warning in findings.warnings:
            log(logging.WARNING, "%r: %s", self._queue, warning)
        # A server that has just started has lost the heartbeats of relays that are alive.
        now = asyncio.get_running_loop().time()
        self._no_taking_until = now if findings.is_server_old else now + self._heartbeat_timeout
        return True

    async def _live(self, *, is_open: bool) -> None:
        """Opens the queue, takes the id, and starts the loops."""
        wait = _RETRY_AFTER[0]
        while not is_open:
            await asyncio.sleep(wait)
            wait = min(2 * wait, _RETRY_AFTER[1])
            is_open = await self._try_to_open()
        await self._take_id()
        if self._state == "starting":
            self._set_state("ok")
        self._reader = self._spawn(self._read())
        self._spawn(self._send())
        self._spawn(self._settle())
        self._spawn(self._beat())

    async def _take_id(self) -> None:
        """Says for the first time that this relay is alive. A predecessor with its id may have to expire."""
        loop = asyncio.get_running_loop()
        patience = max(self._heartbeat_timeout, _PREDECESSOR) + 2
        until = loop.time() + patience
        while True:
            try:
                if await self._beat_once():
                    self._has_id = True
                    return
            except QueueUnavailableError as error:
                self._note_failure(error)
                until = loop.time() + patience
            if loop.time() > until:
                raise RelayStoppedError(
                    f"another living relay has the id {self.relay_id!r}: each needs its own"
                )
            await asyncio.sleep(min(1.0, self._heartbeat_timeout / 5))

    # Heartbeat.

    async def _beat(self) -> None:
        trim_at = 0.0
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(1.0, self._heartbeat_timeout / 5))
            try:
                if not await self._beat_once():
                    self._has_id = False
                    raise RelayStoppedError(f"another process has taken the id {self.relay_id!r}")
                self._backlog = await self._queue.backlog()
                self._turns.note({number: self._backlog.waiting[number] for number in self._share})
                self._tell()
                if loop.time() >= trim_at and 0 in self._share:
                    trim_at = loop.time() + _TRIM_EVERY
                    oldest = self._clock() - timedelta(seconds=self._dead_letter_age)
                    await self._queue.trim(at_most=self._max_dead_letters, oldest=oldest)
            except QueueUnavailableError as error:
                self._note_failure(error)

    async def _beat_once(self) -> bool:
        """Says that this relay is alive. Returns False if another process has its id."""
        loop = asyncio.get_running_loop()
        sent_at = loop.time()
        roster = await self._queue.beat(
            self.relay_id, self._nonce, self._status(), timeout=self._heartbeat_timeout
        )
        if roster is None:
            return False
        self._last_beat = sent_at
        self._beaten.set()
        self._counts.relays = len(roster.alive)
        # Also relays that the queue has forgotten, if entries are pending for them since the last time.
        ghosts = set(self._backlog.holders) - set(roster.alive)
        self._gone = tuple(sorted(ghosts | set(roster.gone)))
        share = share_of(self.relay_id, roster.alive, self._queue.partitions)
        if share != self._share:
            text = "the relay %s reads %d of %d partitions: %d relays are alive"
            log(logging.INFO, text, self.relay_id, len(share), self._queue.partitions, len(roster.alive))
            self._share = share
        return True

    def _status(self) -> dict[str, Any]:
        assert self._emitter is not None, "the relay was started"
        now = asyncio.get_running_loop().time()
        return {
            "version": __version__,
            "started": self._started_at.isoformat() if self._started_at else None,
            "partitions": list(self._share),
            "held": len(self._window),
            "delivered": self._counts.delivered,
            "redelivered": self._counts.redelivered,
            "rate": round(self._rate.of(self._counts.delivered, now=now), 1),
            "rokt": self._emitter.health.state,
        }

    def _note_failure(self, error: Exception) -> None:
        """Notes that the queue cannot be reached: others may look ended that are not."""
        self._counts.queue_failures += 1
        self._last_error = LastError(str(error), self._clock())
        self._must_fetch_own = True
        self._no_taking_until = asyncio.get_running_loop().time() + self._heartbeat_timeout
        self._queue_fails_since = self._queue_fails_since or self._clock()
        if self._state == "ok":
            self._set_state("queue_unavailable")
            log(logging.ERROR, "the relay %s cannot reach its queue: %s", self.relay_id, error)

    def _note_success(self) -> None:
        self._queue_fails_since = None
        if self._state == "queue_unavailable":
            assert self._since is not None, "a state has begun"
            seconds = (self._clock() - self._since).total_seconds()
            self._set_state("ok")
            log(logging.WARNING, "the relay %s reaches its queue again, after %.0f s", self.relay_id, seconds)

    # The reader.

    async def _read(self) -> None:
        wait = _RETRY_AFTER[0]
        while not self._stopping.is_set():
            try:
                await self._read_once()
                wait = _RETRY_AFTER[0]
            except QueueUnavailableError as error:
                self._note_failure(error)
                self._page = max(1, self._page // 2)  # It may have been too large to come in time.
                await asyncio.sleep(wait)
                wait = min(2 * wait, _RETRY_AFTER[1])

    async def _read_once(self) -> None:
        loop = asyncio.get_running_loop()
        if not await self._wait_for_room():
            return
        if self._must_fetch_own:
            self._must_fetch_own = False
            for number in range(self._queue.partitions):
                await self._fetch_own(number)
        for number in self._window.hungry():
            await self._fetch_own(number)
        if self._gone and loop.time() >= self._no_taking_until:
            await self._take_over()
        partitions = self._turns.choose(self._share, now=loop.time())
        if not partitions or not self._window.free:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_BLOCK):
                    await self._stopping.wait()
            return
        count = self._page_for(len(partitions))
        entries = await self._queue.read(
            self.relay_id, partitions, count=count, wait=0 if self._turns.is_turn else _BLOCK
        )
        self._note_success()
        self._page = min(_PAGE, 2 * self._page)
        read = dict.fromkeys(partitions, 0)
        now = loop.time()
        for entry in entries:
            read[entry.partition] += 1
            self._admit(entry, now=now)
        for number, found in read.items():
            self._turns.count(number, found)
        self._due.set()

    def _page_for(self, partitions: int) -> int:
        """Returns how many entries to ask for of each of so many partitions: what fits, and comes in time."""
        fitting = min(self._page, self._window.free)
        if size := self._window.mean_size:
            fitting = min(fitting, self._window.free_bytes // size, _PAGE_BYTES // size)
        return max(1, fitting // partitions)

    async def _wait_for_room(self) -> bool:
        """Returns True if there is room for a page, or for anything at all after a short while."""
        if self._window.free >= min(_PAGE, self._window.size // 10):
            return True
        self._room.clear()
        self._window.flush_if_full(now=asyncio.get_running_loop().time())
        self._due.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_BLOCK / 5):
                await self._room.wait()
                return False
        return self._window.free > 0

    async def _fetch_own(self, partition: int) -> None:
        """Fetches entries that are pending for this relay and not in its window.

        Passed over, or on their way when a connection was lost, or of a predecessor with the same id.
        """
        loop = asyncio.get_running_loop()
        left: set[str] = set()
        after = b""
        while True:
            if not self._window.free:
                self._must_fetch_own = True
                return
            taken = await self._queue.take(
                self.relay_id,
                self.relay_id,
                partition,
                after=after,
                count=self._page_for(1),
                skip=self._is_known,
            )
            for entry in taken.entries:
                held = self._open(entry)
                if held is None or held.event.session_id in left:
                    continue
                if self._window.take_back(held, now=loop.time()):
                    self._count(held)
                else:
                    left.add(held.event.session_id)
            self._due.set()
            if not taken.last:
                self._window.caught_up(partition, left)
                return
            after = taken.last
            if left and partition not in self._window.hungry():
                return  # What is left waits until its session has room.

    def _is_known(self, partition: int, id_: bytes) -> bool:
        """Returns True if an entry is in the window, or is being acknowledged or buried without it."""
        return self._window.holds(partition, id_) or (partition, id_) in self._leaving

    def _count(self, held: Held) -> None:
        """Counts an entry that is in the window now."""
        self._counts.read += 1
        self._counts.redelivered += held.entry.may_have_been_sent
        self._counts.repeated += held.is_repeated

    async def _take_over(self) -> None:
        """Takes the entries of relays that have ended, in the partitions of this relay's share."""
        gone, self._gone = self._gone, ()
        for owner in gone:
            taken = sum([await self._take_from(owner, number) for number in self._share])
            if taken:
                text = "the relay %s has taken over %d entries of %s, which has ended"
                log(logging.WARNING, text, self.relay_id, taken, owner)
            if self._window.free:
                await self._queue.forget(owner)
        self._due.set()

    async def _take_from(self, owner: str, partition: int) -> int:
        """Takes the entries of an ended relay in one partition. Returns how many."""
        after, count = b"", 0
        while self._window.free:
            taken = await self._queue.take(
                self.relay_id, owner, partition, after=after, count=self._page_for(1), skip=self._is_known
            )
            now = asyncio.get_running_loop().time()
            for entry in taken.entries:
                self._admit(entry, now=now, is_late=True)
            count += len(taken.entries)
            self._counts.taken_over += len(taken.entries)
            if not taken.last:
                break
            after = taken.last
        return count

    def _admit(self, entry: Entry, *, now: float, is_late: bool = False) -> None:
        if self._is_known(entry.partition, entry.id):
            return  # The server has come back as it was a moment before.
        held = self._open(entry)
        if held is not None and self._window.add(held, now=now, is_late=is_late):
            self._count(held)

    def _open(self, entry: Entry) -> Held | None:
        """Reads an entry. What must not be sent does not get into the window."""
        try:
            held = read_entry(entry)
        except UnreadableEntryError as error:
            letter = judge_unreadable(entry, str(error), relay_id=self.relay_id, now=self._clock())
            self._bury(entry, None, letter)
            return None
        if self._is_repeat(held):
            self._count(held)
            self._counts.repeats_dropped += 1
            self._leaving.add((entry.partition, entry.id))
            self._acknowledgements.append((entry, None))
            self._settled.set()
            return None
        if entry.may_have_been_sent and not self._resends:
            self._count(held)
            self._bury(entry, None, judge_redelivered(held, relay_id=self.relay_id, now=self._clock()))
            return None
        return held

    def _is_repeat(self, held: Held) -> bool:
        """Returns True if its publisher sent it again, and another entry of that publication was read."""
        here = held.entry.partition, held.entry.id
        there = self._recent.setdefault(held.publish_id, here)
        if len(self._recent) > 2 * self._window_size + 16 * _PAGE:
            self._recent.popitem(last=False)
        return held.is_repeated and there != here

    # The sender.

    async def _send(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_at = self._window.next_due()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due_at):
                    await self._due.wait()
            self._due.clear()
            batches = self._window.take_due(now=loop.time())
            self._handing_over = True
            while batches:
                page: list[list[Held]] = []
                while batches and sum(map(len, page)) < _PAGE:
                    page.append(batches.pop(0))
                await self._hand_over(page)
            self._handing_over = False

    async def _hand_over(self, batches: list[list[Held]]) -> None:
        """Marks the entries of batches, and gives their events to the emitter."""
        await self._wait_for_heartbeat()
        entries = [held.entry for batch in batches for held in batch]
        pending = await self._insist(functools.partial(self._queue.mark, self.relay_id, entries))
        for batch in batches:
            for held in batch:
                if held.entry in pending:
                    self._track(held)
                else:  # Another relay has it, or has had it.
                    self._counts.acknowledged_elsewhere += 1
                    self._finish([held])

    async def _insist(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Calls the queue until it answers."""
        wait = _RETRY_AFTER[0]
        while True:
            try:
                return await call()
            except (QueueUnavailableError, QueueFullError) as error:
                self._note_failure(error)
                await asyncio.sleep(wait)
                wait = min(2 * wait, _RETRY_AFTER[1])

    async def _wait_for_heartbeat(self) -> None:
        """Waits until the others know that this relay is alive.

        After it stood still they may take its entries for those of an ended relay at any moment.
        """
        loop = asyncio.get_running_loop()
        while loop.time() - self._last_beat > self._heartbeat_timeout * 0.9:
            self._beaten.clear()
            await self._beaten.wait()

    def _track(self, held: Held) -> None:
        assert self._emitter is not None, "the relay was started"
        loop = asyncio.get_running_loop()
        context = None
        if held.trace_parent is not None and self._hooks.has_traces:
            context = self._hooks.in_trace(held.trace_parent)
        try:
            if context is None:
                delivery = self._emitter.track_nowait(held.event)
            else:
                delivery = context.run(self._emitter.track_nowait, held.event)
        except InvalidEventError as error:
            verdict = judge_invalid(held, error, relay_id=self.relay_id, now=self._clock())
            if isinstance(verdict, DeadLetter):
                self._bury(held.entry, held, verdict)
            else:
                self._window.put_back(held, now=loop.time(), wait=_LATER)
        except QueueFullError:
            self._window.put_back(held, now=loop.time(), wait=_AGAIN_AFTER)
        except EmitterClosedError:
            self._released.append(held.entry)
            if self._state != "closing":
                self._fail(RelayStoppedError("the relay's emitter was closed by something else"))
        else:
            callback = functools.partial(self._on_outcome, held)
            delivery.add_done_callback(callback, context=contextvars.Context())

    def _on_outcome(self, held: Held, delivery: asyncio.Future[Receipt]) -> None:
        outcome: Receipt | BaseException
        if delivery.cancelled():
            outcome = asyncio.CancelledError()
        else:
            outcome = delivery.exception() or delivery.result()
        if isinstance(outcome, Receipt):
            self._counts.delivered += 1
            self._counts.possible_duplicates += outcome.maybe_duplicate
            self._acknowledgements.append((held.entry, held))
            self._settled.set()
            return
        verdict = judge(held, outcome, relay_id=self.relay_id, now=self._clock())
        if isinstance(verdict, DeadLetter):
            self._bury(held.entry, held, verdict)
        elif verdict == "again":
            now = asyncio.get_running_loop().time()
            self._window.put_back(held, now=now, wait=_AGAIN_AFTER)
            self._due.set()
        else:
            if getattr(outcome, "outcome", None) == "failed":  # Provably not accepted.
                self._released.append(held.entry)
            if verdict == "stop":
                self._fail(RelayStoppedError(f"{outcome}; the events stay in the queue"))

    def _bury(self, entry: Entry, held: Held | None, letter: DeadLetter) -> None:
        if held is None:
            self._leaving.add((entry.partition, entry.id))
        self._letters.append((entry, held, letter))
        self._settled.set()

    def _finish(self, done: Iterable[Held]) -> None:
        """Removes entries from the window: the queue has them no more, or another relay has them."""
        now = asyncio.get_running_loop().time()
        for held in done:
            self._window.finish(held, now=now)
        self._room.set()
        if self._window.has_ready():
            self._due.set()

    # Acknowledging.

    async def _settle(self) -> None:
        while True:
            await self._settled.wait()
            await asyncio.sleep(_ACKNOWLEDGE_EVERY)
            self._settled.clear()
            await self._insist(self._acknowledge)

    async def _acknowledge(self) -> None:
        """Removes from the queue what has an outcome. First what frees memory."""
        while self._acknowledgements:
            page = self._acknowledgements[:_PAGE]
            count = await self._queue.acknowledge([entry for entry, _ in page])
            del self._acknowledgements[: len(page)]
            self._counts.acknowledged += count
            self._counts.acknowledged_elsewhere += len(page) - count
            self._finish([held for _, held in page if held is not None])
            self._leaving.difference_update([(entry.partition, entry.id) for entry, _ in page])
        while self._letters:
            letters = self._letters[: _PAGE // 10]
            count = await self._queue.bury([(entry, letter) for entry, _, letter in letters])
            del self._letters[: len(letters)]
            self._counts.dead_letters += count
            self._counts.acknowledged_elsewhere += len(letters) - count
            self._finish([held for _, held, _ in letters if held is not None])
            self._leaving.difference_update([(entry.partition, entry.id) for entry, _, _ in letters])
            for _, _, letter in letters:
                self._hooks.dead_letter(letter)
        self._note_success()

    # Views.

    def _tell(self) -> None:
        """Tells observers what has changed since the last time."""
        before, self._told = self._told, self.stats
        self._hooks.relay(before, self._told)

    @property
    def stats(self) -> RelayStats:
        """A snapshot of the account."""
        counts, window, backlog = self._counts, self._window, self._backlog
        age = 0.0
        if backlog.oldest is not None:
            age = max(0.0, (self._clock() - backlog.oldest).total_seconds())
        return RelayStats(
            **attrs.asdict(counts),
            held=len(window),
            held_bytes=window.bytes,
            passed_over=window.passed_over,
            partitions=self._share,
            waiting=sum(backlog.waiting),
            pending=backlog.pending,
            oldest_age=age,
        )

    @property
    def health(self) -> RelayHealth:
        """How the relay is doing at this moment."""
        emitter = Health(state="new") if self._emitter is None else self._emitter.health
        return RelayHealth(
            state=self._state,
            since=self._since,
            last_error=self._last_error,
            emitter=emitter,
            stats=self.stats,
        )

    def __repr__(self) -> str:
        return (
            f"<Relay {self.relay_id} {self._state}, {self._queue!r}: {len(self._window)} held, "
            f"{self._counts.delivered} delivered, {self._counts.dead_letters} dead letters>"
        )


@attrs.define
class _Counts:
    """What a relay counts; see `RelayStats`."""

    read: int = 0
    delivered: int = 0
    dead_letters: int = 0
    redelivered: int = 0
    taken_over: int = 0
    repeated: int = 0
    repeats_dropped: int = 0
    possible_duplicates: int = 0
    acknowledged: int = 0
    acknowledged_elsewhere: int = 0
    relays: int = 0
    queue_failures: int = 0


@attrs.define
class _Rate:
    """How fast a count grows, over the last ten seconds or so."""

    at: float = math.nan
    count: int = 0
    rate: float = 0.0

    def of(self, count: int, *, now: float) -> float:
        """Returns the count's growth per second."""
        if math.isnan(self.at):
            self.at, self.count = now, count
        elif now - self.at >= 1:
            latest = (count - self.count) / (now - self.at)
            self.rate += (latest - self.rate) * min(1.0, (now - self.at) / 5)
            self.at, self.count = now, count
        return self.rate
