"""A tracker for programs without a loop: Flask, Django under WSGI, Celery, plain scripts.

The tracker lives on a loop in a daemon thread, which the first call starts: in each process its own, so a
server may load the application before it forks its workers. Make one per process, at the top of a module.
When the interpreter ends, it is closed and drained, for at most the tracker's own `close_timeout`; all that
are open drain at the same time.

What ends a process without the interpreter's end loses what is pending in memory:

- SIGTERM in a script or under `flask run`, which Python does not catch; gunicorn and uWSGI do:
  `signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))`.
- `os._exit`, the end of a child of `os.fork`, or of a worker of `multiprocessing.Pool` or Celery:
  `rokt.flush()` or `rokt.close()` in the child.
- `kill -9`: a journal (`ROKT_JOURNAL`).

At the interpreter's end it waits for other threads first (plain `threading.Thread`s that are no daemons),
for at most `close_timeout`, because they may still track. Track nothing in exit handlers (`atexit`) and in
thread pools that are not shut down.

Flask, under gunicorn with any worker, `--preload` too (uWSGI needs `enable-threads = true`):

```python
from flask import Flask

from rokt_events_async import PartnerEvent, ThreadedEmitter, tracker_from_env

app = Flask(__name__)
rokt = ThreadedEmitter(tracker_from_env)


@app.post("/checkout/<session_id>/viewed/<guid>")
def viewed(session_id, guid):
    rokt.track(PartnerEvent.viewed(session_id=session_id, parent_guid=guid, client_unique_id="order-4711"))
    return {"tracked": guid}
```

Django under WSGI is the same: `rokt` in a module of its own, and `rokt.track(...)` in a view.

Celery's worker processes end without exit handlers, so Celery's own signal has to close it:

```python
from celery import Celery
from celery.signals import worker_process_shutdown

from rokt_events_async import PartnerEvent, ThreadedEmitter, tracker_from_env

app = Celery("shop")
rokt = ThreadedEmitter(tracker_from_env)


@worker_process_shutdown.connect
def close_rokt(**_):
    rokt.close()


@app.task
def viewed(session_id, guid):
    rokt.track(PartnerEvent.viewed(session_id=session_id, parent_guid=guid, client_unique_id="order-4711"))
```

A test replaces the module's `rokt` by one that keeps what it is told to track, without sockets:

```python
from shop import app

from rokt_events_async import ThreadedEmitter
from rokt_events_async.testing import RecordingTracker


def test_a_view_is_reported(monkeypatch):
    tracker = RecordingTracker()
    monkeypatch.setattr("shop.rokt", ThreadedEmitter(lambda: tracker))
    app.test_client().post("/checkout/s-1/viewed/c-1")
    assert [event.parent_guid for event in tracker.events] == ["c-1"]
```

Settings go through the factory, `ThreadedEmitter(lambda: tracker_from_env(close_timeout=60))`, and
`rokt.start()` makes wrong ones show when a worker starts rather than with its first event (in gunicorn's
`post_worker_init`).

A script:

```python
from rokt_events_async import PartnerEvent, ThreadedEmitter, tracker_from_env

with ThreadedEmitter(tracker_from_env) as rokt:
    for number in range(100):
        rokt.track(PartnerEvent.viewed(session_id="s-1", parent_guid=f"g-{number}", client_unique_id="o-1"))
```
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, NoReturn, Self

from rokt_events_async._making import MakeTracker, check_make, make_one
from rokt_events_async._tracking.log import log
from rokt_events_async._tracking.threadsafe import LoopGoneError, Result, run_there
from rokt_events_async.emitter import Emitter
from rokt_events_async.errors import EmitterClosedError, WrongContextError
from rokt_events_async.events import PartnerEvent
from rokt_events_async.outcomes import DrainReport, EmitterStats, Health
from rokt_events_async.settings import check_number
from rokt_events_async.tracker import Tracker


class ThreadedEmitter:
    """Tracks events from synchronous code, on a loop in a thread of its own.

    All methods may be called from any thread, but not from a running loop, which they would block: there,
    use an `Emitter`. That goes for `on_undelivered`, observers and a future's callbacks too, which run on the
    tracker's loop. Constructing it does nothing. The first `track` starts the thread; after a fork, each
    process starts its own. A signal's handler must call none of them, because it may have interrupted one: it
    raises `SystemExit` (`sys.exit`), and the end of the interpreter closes.

    Args:
        make: A factory of the tracker: `Emitter`, `tracker_from_env`, or a function that calls one with
            settings. It is called in the thread, once per process.

    Raises:
        InvalidSettingError: `make` is not callable.
    """

    def __init__(self, make: MakeTracker = Emitter) -> None:
        self._make = check_make(make)
        self._lock = threading.RLock()
        self._is_starting = False
        self._running: _Running | None = None
        self._is_closed = False
        _all.add(self)

    def start(self) -> None:
        """Starts the thread and the tracker now, instead of with the first event.

        So wrong settings show when the program starts. Do not call it before a server forks its workers: the
        thread does not live on in them. Nor while a module is imported that `make` imports itself: the thread
        would wait for that import, and the import for the thread.

        Raises:
            EmitterClosedError: It was closed.
            InvalidSettingError, JournalError, Exception: As the tracker's constructor and `start`.
        """
        _refuse_a_loop()
        self._tracker()

    def track(self, event: PartnerEvent) -> concurrent.futures.Future[Any]:
        """Accepts one event, and returns its outcome as a future.

        It blocks while the queue is full, at most the tracker's `max_wait`; the first call also while the
        tracker starts. With a journal it returns once the event is stored, with a publisher once it is in the
        queue, which takes its `publish_timeout` at most.

        Returns:
            The outcome: `result()` returns the receipt, or raises the event's `DeliveryError`. It need not be
            looked at. Cancelling it detaches the caller, and the event is still sent.

        Raises:
            InvalidEventError, QueueFullError, JournalError, QueueUnavailableError: As the tracker's `track`.
            EmitterClosedError: It was closed.
            WrongContextError: Called from a running loop, or by a signal's handler while the tracker starts.
            Exception: The tracker cannot be made or started; the next call tries again.
        """
        _refuse_a_loop()
        return self._tracker().track_threadsafe(event)

    def flush(self, timeout: float | None = None) -> bool:
        """Sends every queued event now, and waits for the outcomes: before a serverless function returns.

        Args:
            timeout: Seconds to wait; `None` waits without bound.

        Returns:
            True when every event accepted before the call has its outcome; False if that takes longer. The
            events are still sent.

        Raises:
            InvalidSettingError: `timeout` is no finite number >= 0.
            WrongContextError: Called from a running loop.
        """
        seconds = None if timeout is None else check_number("timeout", timeout, at_least=0)
        _refuse_a_loop()
        running = self._running
        return True if running is None else running.flush(seconds)

    def close(self, timeout: float | None = None) -> Any:
        """Stops intake at once, drains for at most `timeout` seconds, and ends the thread.

        It is called when the interpreter ends, if it was not called before. A second call waits for the same,
        and returns the same. Interrupted, as by a second Ctrl-C, it ends the drain: every event has its
        outcome before the interruption goes on.

        Args:
            timeout: Seconds to drain for; `None` takes the tracker's `close_timeout`. Only the first call's
                timeout counts.

        Returns:
            What the tracker's `aclose` returns: of an emitter, the `DrainReport`.

        Raises:
            InvalidSettingError: `timeout` is no finite number >= 0.
            WrongContextError: Called from a running loop.
        """
        seconds = None if timeout is None else check_number("timeout", timeout, at_least=0)
        _refuse_a_loop()
        running = self._begin_closing(seconds)
        if running is None:
            return DrainReport()
        try:
            return running.report()
        finally:
            _open.pop(self, None)

    def _begin_closing(self, timeout: float | None) -> _Running | None:
        """Stops intake, and starts the drain if there is something to drain."""
        self._is_closed = True
        with self._lock:  # Another thread may be starting it.
            running = self._running
        if running is not None:
            running.stop(timeout)
        return running

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> NoReturn:
        raise TypeError("a ThreadedEmitter is for programs without a loop: use `async with Emitter(...)`")

    async def __aexit__(self, *_: object) -> None:
        """Never called: `__aenter__` raises."""

    @property
    def stats(self) -> Any:
        """A snapshot of the tracker's account, in this process: of an emitter, its `EmitterStats`.

        It is empty before the first event; after the close it is the final account.
        """
        running = self._running
        return EmitterStats() if running is None else running.tracker.stats

    @property
    def health(self) -> Health:
        """How the tracker is doing at this moment, in this process."""
        running = self._running
        if running is None:
            return Health(state="closed" if self._is_closed else "new")
        return running.tracker.health

    def __repr__(self) -> str:
        running = self._running
        if self._is_closed and (running is None or not running.thread.is_alive()):
            return "<ThreadedEmitter closed>"
        shown = "new" if running is None else repr(running.tracker)
        return f"<ThreadedEmitter {shown}>"

    def _tracker(self) -> Tracker[Any]:
        """Returns this process's tracker, and starts it first if it is not running."""
        if self._is_closed:
            raise _closed_error()
        running = self._running
        if running is not None and running.thread.is_alive():
            return running.tracker
        with self._lock:
            if self._is_starting:  # The lock is this thread's own: a signal has interrupted the start.
                raise WrongContextError("the ThreadedEmitter is being started, and a signal interrupts that")
            self._is_starting = True
            try:
                return self._start_if_needed()
            finally:
                self._is_starting = False

    def _start_if_needed(self) -> Tracker[Any]:
        if self._is_closed:
            raise _closed_error()
        if self._running is None or not self._running.thread.is_alive():
            self._running = _Running(self._make)
            _open[self] = None
            if self._is_closed:  # By a signal's handler meanwhile.
                self._running.stop(0)
                raise _closed_error()
        return self._running.tracker

    def _close_timeout(self) -> float:
        """Returns for how many seconds a close may drain."""
        running = self._running
        return 0.0 if running is None else getattr(running.tracker, "close_timeout", _CLOSE_TIMEOUT)

    def _forget(self) -> None:
        """Forgets the parent's thread in a child, which has neither the thread nor what its lock guards."""
        self._lock = threading.RLock()
        self._is_starting = False
        if self._running is not None:
            _left_behind.append(self._running)
        self._running = None


class _Running:
    """A tracker that is open on the loop of a thread.

    Raises:
        Exception: It could not be made or started.
    """

    def __init__(self, make: MakeTracker) -> None:
        self._make = make
        self._opened: Result[Tracker[Any]] = Result()
        self._ended: Result[object] = Result()
        self._is_abandoned = False
        self._closing: asyncio.Task[Any] | None = None
        self._is_given_up = False
        self.thread = threading.Thread(target=self._run, name="rokt-events-loop", daemon=True)
        try:
            self.thread.start()
            while not self._opened.wait(_LOOK_AGAIN):
                pass
        except BaseException:
            self._is_abandoned = True  # The thread closes what it opens.
            if self._opened.is_set:
                self.stop(0)
            raise
        try:
            self.tracker = self._opened.result()
        except BaseException:
            self.thread.join()
            raise

    def _run(self) -> None:
        try:
            with asyncio.Runner() as runner:
                runner.run(self._live())
        except BaseException as error:  # noqa: BLE001 -- told to the threads that wait
            # No loop could be made, something of the application's has stopped it, or it could not be cleaned
            # up at the interpreter's end, when all is told.
            for result in (self._opened, self._ended):
                if not result.is_set:
                    result.set_exception(error)

    async def _live(self) -> None:
        """Keeps the tracker open until `stop`."""
        self._loop = asyncio.get_running_loop()
        self._stopped: asyncio.Future[float | None] = self._loop.create_future()
        try:
            tracker = make_one(self._make)
            await tracker.start()
        except BaseException as error:  # noqa: BLE001 -- raised again in the thread that waits
            self._opened.set_exception(error)
            return
        self._opened.set_result(tracker)
        if self._is_abandoned:
            self._stop(0)
        timeout = None
        try:
            timeout = await self._stopped
        finally:
            self._closing = asyncio.current_task()
            try:
                self._ended.set_result(await self._close(tracker, timeout))
            except BaseException as error:  # noqa: BLE001 -- raised again in the thread that waits
                self._ended.set_exception(error)

    async def _close(self, tracker: Tracker[Any], timeout: float | None) -> object:
        try:
            return await tracker.aclose(0 if self._is_given_up else timeout)
        except asyncio.CancelledError:
            if not self._is_given_up:
                raise
            return await tracker.aclose(0)  # The report: every event has its outcome.

    def flush(self, timeout: float | None) -> bool:
        """Flushes the tracker. A loop that has ended has nothing left to send."""
        if self._ended.is_set:
            return True
        try:
            return run_there(self.tracker.flush(timeout), self._loop, is_running=self.thread.is_alive)
        except LoopGoneError as gone:
            return self._ended.is_set or not gone.is_cancelled

    def stop(self, timeout: float | None) -> None:
        """Begins to close the tracker. Only the first call's timeout counts."""
        self._call_soon(self._stop, timeout)

    def _stop(self, timeout: float | None) -> None:
        if not self._stopped.done():
            self._stopped.set_result(timeout)

    def report(self) -> object:
        """Waits until the tracker is closed and the thread has ended. Interrupted, it ends the drain."""
        try:
            while not self._ended.wait(_LOOK_AGAIN):
                pass
        except BaseException:
            self.give_up()
            raise
        self.thread.join()
        return self._ended.result()

    def give_up(self) -> None:
        """Ends the drain, and waits until every event has its outcome."""
        self._call_soon(self._give_up)
        self._ended.wait(_GIVING_UP)

    def _give_up(self) -> None:
        self._is_given_up = True
        if self._closing is not None:
            self._closing.cancel()

    def _call_soon(self, call: Callable[..., None], *values: object) -> None:
        with contextlib.suppress(RuntimeError):  # The loop has ended already.
            self._loop.call_soon_threadsafe(call, *values)


_LOOK_AGAIN: Final = 1.0
"""Seconds of one wait; a signal ends it sooner."""

_LOOK_AT_THREADS: Final = 0.1

_CLOSE_TIMEOUT: Final = 10.0
"""Seconds, of a tracker that does not tell its own."""

_GIVING_UP: Final = 2.0
"""Seconds that an interrupted close waits for the outcomes of what it gives up."""


def _refuse_a_loop() -> None:
    """Raises if the calling thread has a running loop, which must not be blocked."""
    if asyncio._get_running_loop() is not None:
        raise WrongContextError(
            "a ThreadedEmitter blocks, and this thread has a running event loop: use an Emitter there"
        )


def _closed_error() -> EmitterClosedError:
    return EmitterClosedError("the ThreadedEmitter is closed: construct another one")


_all: Final[weakref.WeakSet[ThreadedEmitter]] = weakref.WeakSet()
"""All there are: a child has to make new locks for them."""

_open: Final[dict[ThreadedEmitter, None]] = {}
"""Those that the interpreter's end has to close, whether or not the program still knows them."""

_left_behind: Final[list[_Running]] = []
"""What a child has from its parent. It is kept: to collect it would close what is the parent's."""


def _close_all() -> None:
    """Closes, when the interpreter ends, what is not closed; all that are open drain at the same time."""
    try:
        if any(not emitter._is_closed for emitter in tuple(_all)):
            _wait_for_threads()
    finally:
        _close_each()


def _wait_for_threads() -> None:
    """Waits for the program's own threads, as the interpreter would do next: they may track until then.

    It waits for the longest `close_timeout` at most: what a thread waits for may come with the close alone.
    """
    began = time.monotonic()
    while threads := [one for one in threading.enumerate() if _is_waited_for(one)]:
        timeout = max([emitter._close_timeout() for emitter in tuple(_open)], default=_CLOSE_TIMEOUT)
        left = began + timeout - time.monotonic()
        if left <= 0:
            break
        threads[0].join(min(left, _LOOK_AT_THREADS))


def _is_waited_for(thread: threading.Thread) -> bool:
    """Returns True for the program's own threads. Those of pools end when they are told to, after this."""
    if thread.daemon or thread in (threading.current_thread(), threading.main_thread()):
        return False
    workers: Any = getattr(sys.modules.get("concurrent.futures.thread"), "_threads_queues", ())
    return thread not in workers and type(thread).__module__ in ("threading", "__main__")


def _close_each() -> None:
    closing = [(emitter, emitter._begin_closing(None)) for emitter in {*_all, *_open}]
    try:
        for emitter, _ in closing:
            try:
                emitter.close()
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 -- the others must be closed
                log(logging.ERROR, "%r could not be closed at the end: %s", emitter, type(error).__name__)
    except BaseException:
        for running in filter(None, [running for _, running in closing]):
            running.give_up()
        raise


def _forget_all() -> None:
    _open.clear()
    for emitter in tuple(_all):
        emitter._forget()


# Before the standard library ends its executors, without which no name is resolved any more, unless they were
# imported later. Where Python does not have that hook, a drain needs connections that are open already.
_register: Callable[[Callable[[], None]], object] = getattr(threading, "_register_atexit", atexit.register)
_register(_close_all)

if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_all)
