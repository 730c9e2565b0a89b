"""The relay: reads a queue, hands its events to an emitter, and acknowledges each by its outcome.

```
          ┌─────────── read ──── take over ─── fetch again
queue ────┤                                             ▼
          │   ┌── mark ◀── due ◀───────────────────── window ◀── put back
          │   └──▶ emitter ──▶ outcome ──▶ judge ──┬──▶ acknowledge
          └───────────────────────────────────────┴──▶ dead letter
```

Four loops: the reader fills the window, the sender empties it, the settler acknowledges, and the heart says
once per second that this relay is alive. This module wires them, starts them, and stops them.

Nothing is lost, because an entry stays in the queue until it is acknowledged. An event is sent twice only if
its entry was marked: by a relay that ended before it acknowledged it, or that was stopped for longer than
its `heartbeat_timeout`.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import math
import os
import secrets
import socket
from collections.abc import Callable, Coroutine, Iterable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Literal, NoReturn, Self

import attrs

from rokt_events_async._tracking.hooks import Hooks
from rokt_events_async._tracking.log import log, log_raised
from rokt_events_async._version import __version__
from rokt_events_async.emitter import Emitter
from rokt_events_async.errors import (
    EmitterClosedError,
    InvalidSettingError,
    NotAcceptedError,
    QueueUnavailableError,
    RelayStoppedError,
    RoktEventsError,
)
from rokt_events_async.observers import LoggingObserver, Observer
from rokt_events_async.outcomes import Health, RelayHealth, RelayState, RelayStats
from rokt_events_async.relay._heart import Heart, Keeping
from rokt_events_async.relay._link import RETRY_AFTER, Counts, Link, Signals
from rokt_events_async.relay._publications import Publications
from rokt_events_async.relay._reading import BLOCK, PAGE, Reader
from rokt_events_async.relay._sending import Sender
from rokt_events_async.relay._settling import Settler
from rokt_events_async.relay._window import Window
from rokt_events_async.relay.queue import EventQueue
from rokt_events_async.settings import MAX_BATCH_SIZE, RetryPolicy, check_count, check_number

_MIB: Final = 1024 * 1024
_DAY: Final = 24 * 3600.0
_THREE_DAYS: Final = 3 * _DAY
"""As old as an event may be (specification, "PartnerEvent", eventTime)."""

_LEAVE_WITHIN: Final = 5.0
"""Seconds for the last exchanges with the queue."""


@attrs.frozen
class _Loops:
    """What a started relay works with."""

    emitter: Emitter
    reader: Reader
    sender: Sender


@attrs.define
class _Rate:
    """How fast a count grows, over the last seconds."""

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
        dead_letter_age: float = 30 * _DAY,
        observers: Iterable[Observer] | None = None,
        _clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if not hasattr(queue, "read"):
            raise InvalidSettingError(
                f"queue must be an EventQueue, such as RedisQueue(url), got a {type(queue).__name__}"
            )
        if not callable(make_emitter):
            raise InvalidSettingError(f"make_emitter must be callable, as Emitter is, got {make_emitter!r}")
        self.relay_id: str = _check_id(relay_id)
        self._queue = queue
        self._make_emitter = make_emitter
        self._linger = check_number("flush_interval", flush_interval, at_least=0)
        self._window_size = check_count("window", window, at_least=2 * MAX_BATCH_SIZE)
        self._window_bytes = check_count("window_bytes", window_bytes)
        self._heartbeat_timeout = check_number(
            "heartbeat_timeout", heartbeat_timeout, at_least=0.5, at_most=_DAY
        )
        self._close_timeout = check_number("close_timeout", close_timeout, at_least=0)
        keeping = Keeping(
            check_count("max_dead_letters", max_dead_letters, at_most=10**9),
            check_number("dead_letter_age", dead_letter_age, at_least=0, at_most=3650 * _DAY),
        )
        self._hooks = Hooks((LoggingObserver(),) if observers is None else observers)
        self._clock = _clock
        self._nonce = secrets.token_hex(8)
        self._counts, self._signals = Counts(), Signals()
        self._link = Link(
            self.relay_id, counts=self._counts, heartbeat_timeout=self._heartbeat_timeout, clock=_clock
        )
        self._heart = Heart(
            queue,
            self.relay_id,
            self._nonce,
            timeout=self._heartbeat_timeout,
            keeping=keeping,
            counts=self._counts,
            link=self._link,
            signals=self._signals,
            clock=_clock,
            status=self._status,
            on_beat=self._on_beat,
        )
        self._window = self._make_window(self._window_size)
        self._settler: Settler | None = None
        self._loops: _Loops | None = None
        self._state: Literal["new", "open", "closing", "closed"] = "new"
        self._since: datetime | None = None
        self._failure: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._reading: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
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
        self._set_state("open")
        emitter = None
        try:
            emitter = self._make_one()
            if emitter.is_disabled:
                raise InvalidSettingError(
                    "a relay must not run with ROKT_DISABLED=1, which would drop what is in the queue: "
                    "stop the relay instead"
                )
            await emitter.start()
            self._check_emitter(emitter)
            is_open = await self._try_to_open()
            if self._is_closing():
                raise EmitterClosedError("the relay was closed while it was being started")
        except BaseException:
            if not self._is_closing():
                self._set_state("closed")
            if emitter is not None:
                await emitter.aclose(0)
            await self._queue.aclose()
            raise
        self._assemble(emitter, is_open=is_open)

    def _assemble(self, emitter: Emitter, *, is_open: bool) -> None:
        """Wires the loops and starts them."""
        common: dict[str, Any] = {"counts": self._counts, "link": self._link, "signals": self._signals}
        settler = Settler(self._queue, self._window, hooks=self._hooks, **common)
        common |= {"heart": self._heart, "settler": settler, "clock": self._clock}
        common["publications"] = Publications(2 * self._window.size + 16 * PAGE)
        reader = Reader(
            self._queue, self.relay_id, self._window, resends=emitter.retry.retry_unconfirmed, **common
        )
        sender = Sender(
            self._queue, self.relay_id, self._window, emitter, hooks=self._hooks, fail=self._fail, **common
        )
        self._settler, self._loops = settler, _Loops(emitter, reader, sender)
        self._spawn(self._live(self._loops, settler, is_open=is_open))

    def _make_one(self) -> Emitter:
        settings: dict[str, Any] = {
            "flush_interval": 0,  # The relay lingers.
            "max_pending": self._window_size + 16 * PAGE,  # A read may exceed the window by a page or so.
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
                "a relay's emitter must have no journal (journal=False: none, whatever ROKT_JOURNAL says): "
                "the queue is durable, and a journal would send events that another relay has taken over"
            )
        if emitter.max_pending < self._window_size:
            self._window = self._make_window(emitter.max_pending)
        deadline = emitter.retry.deadline
        if deadline is None or deadline < _THREE_DAYS:
            text = (
                "the relay's emitter has a delivery deadline of %g s: what may have been sent then becomes a "
            )
            text += "dead letter; RetryPolicy(deadline=%g) is as old as an event may be"
            log(logging.WARNING, text, deadline or 120, _THREE_DAYS)

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
            await self._signals.stopping.wait()
        finally:
            await self.aclose()
        if self._failure is not None:
            raise self._failure
        return self.stats

    def stop(self) -> None:
        """Asks a relay that runs to stop: `run()` then drains and returns. Call it on the relay's loop."""
        self._signals.stopping.set()

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
        text = "the relay %s stops: what it holds is sent for at most %.3g s, and the rest stays in the queue"
        log(logging.INFO, text, self.relay_id, seconds)
        self._signals.stopping.set()
        try:
            if self._reading is not None:
                await asyncio.wait([self._reading], timeout=BLOCK + 1)
            if self._loops is not None:
                await self._drain(self._loops, deadline)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.shield(self._leave())

    async def _drain(self, loops: _Loops, deadline: float) -> None:
        """Sends what the window holds, and waits for the outcomes. In an outage that would be in vain."""
        loop = asyncio.get_running_loop()
        self._window.drain(now=loop.time())
        self._signals.due.set()
        while (self._window.waiting or loops.sender.is_busy) and loop.time() < deadline:
            if loops.emitter.health.is_breaker_open or self._failure or self._link.failing_since:
                break
            await asyncio.sleep(0.01)
        await loops.emitter.aclose(max(0.0, deadline - loop.time()))

    async def _leave(self) -> None:
        """Tells the queue what is known yet, and the other relays that this one has ended."""
        try:
            if self._tasks:
                await asyncio.wait(self._tasks)
            if self._loops is not None:
                await self._loops.emitter.aclose(0)
                await asyncio.sleep(0)  # The last outcomes are told one turn later.
            if self._settler is not None and self._link.is_open:
                async with asyncio.timeout(_LEAVE_WITHIN):
                    await self._take_leave(self._settler)
        except (NotAcceptedError, TimeoutError) as error:
            text = "the relay %s could not take its leave of the queue: its entries are taken over later (%s)"
            log(logging.WARNING, text, self.relay_id, str(error) or "no answer in time")
        finally:
            self._set_state("closed")
            await self._queue.aclose()
            self._tell()

    async def _take_leave(self, settler: Settler) -> None:
        assert self._loops is not None, "the relay was started"
        await settler.flush()
        if not self._heart.has_id:
            return
        if self._loops.sender.released:
            await self._queue.unmark(self.relay_id, self._loops.sender.released)
        await self._queue.leave(self.relay_id, self._nonce)
        await self._queue.forget(self.relay_id)

    def _is_closing(self) -> bool:
        return self._state in ("closing", "closed")

    def _set_state(self, state: Literal["open", "closing", "closed"]) -> None:
        self._state, self._since = state, self._clock()

    # Loops.

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # Empty: what a request starts must not carry that request's values forever.
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
        self._signals.stopping.set()
        if self._closing is None:
            self._closing = asyncio.create_task(
                self._close(self._close_timeout), name="rokt-events-relay-close"
            )

    async def _try_to_open(self) -> bool:
        """Opens the queue. Returns False if it cannot be reached."""
        now = asyncio.get_running_loop().time()
        try:
            findings = await self._queue.open_relay(heartbeat_timeout=self._heartbeat_timeout)
        except QueueUnavailableError as error:
            self._link.note_failure(error, now=now)
            return False
        for warning in findings.warnings:
            log(logging.WARNING, "%r: %s", self._queue, warning)
        if not findings.is_server_old:  # It has lost the heartbeats of relays that are alive.
            self._link.no_taking_until = max(self._link.no_taking_until, now + self._heartbeat_timeout)
        return True

    async def _live(self, loops: _Loops, settler: Settler, *, is_open: bool) -> None:
        """Opens the queue, takes the id, and starts the loops."""
        wait = RETRY_AFTER[0]
        while not is_open:
            await asyncio.sleep(wait)
            wait = min(2 * wait, RETRY_AFTER[1])
            is_open = await self._try_to_open()
        await self._heart.take_id()
        self._link.is_open = True
        self._reading = self._spawn(loops.reader.run())
        self._spawn(loops.sender.run())
        self._spawn(settler.run())
        self._spawn(self._heart.run())

    # Views.

    def _status(self) -> dict[str, Any]:
        """Returns what the relay tells the others of itself."""
        assert self._loops is not None, "the relay beats"
        self._loops.reader.note_known()
        return {
            "version": __version__,
            "partitions": list(self._heart.share),
            "held": len(self._window),
            "delivered": self._counts.delivered,
            "redelivered": self._counts.redelivered,
            "rate": round(self._rate.of(self._counts.delivered, now=asyncio.get_running_loop().time()), 1),
            "rokt": self._loops.emitter.health.state,
        }

    def _on_beat(self, pending: int) -> None:
        assert self._loops is not None, "the relay beats"
        self._loops.reader.note_backlog(pending)
        self._tell()

    def _tell(self) -> None:
        """Tells observers what has changed since the last time."""
        before, self._told = self._told, self.stats
        self._hooks.relay(before, self._told)

    @property
    def stats(self) -> RelayStats:
        """A snapshot of the account."""
        window, backlog = self._window, self._heart.backlog
        age = 0.0
        if backlog.oldest is not None:
            age = max(0.0, (self._clock() - backlog.oldest).total_seconds())
        return RelayStats(
            **attrs.asdict(self._counts),
            held=len(window),
            held_bytes=window.bytes,
            passed_over=window.passed_over,
            partitions=self._heart.share,
            waiting=sum(backlog.waiting),
            pending=backlog.pending,
            oldest_age=age,
        )

    @property
    def health(self) -> RelayHealth:
        """How the relay is doing at this moment."""
        state: RelayState = "starting" if self._state == "open" else self._state
        since = self._since
        if self._state == "open" and self._link.is_open:
            state = "ok" if self._link.failing_since is None else "queue_unavailable"
            since = self._link.failing_since or since
        return RelayHealth(
            state=state,
            since=since,
            last_error=self._link.last_error,
            emitter=Health(state="new") if self._loops is None else self._loops.emitter.health,
            stats=self.stats,
        )

    def __repr__(self) -> str:
        return (
            f"<Relay {self.relay_id} {self.health.state}, {self._queue!r}: {len(self._window)} held, "
            f"{self._counts.delivered} delivered, {self._counts.dead_letters} dead letters>"
        )


def _check_id(relay_id: object) -> str:
    """Returns a relay's id, a new one for `None`."""
    if relay_id is None:
        return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    if not isinstance(relay_id, str) or not relay_id.isprintable() or not relay_id:
        raise InvalidSettingError(f"relay_id must be a non-empty printable string, got {relay_id!r}")
    return relay_id
