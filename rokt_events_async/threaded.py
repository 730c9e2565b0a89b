"""A tracker for programs without a loop: Flask, Django under WSGI, Celery, plain scripts.

The tracker lives on a loop in a daemon thread, which the first call starts: in each process its own, so a
server may load the application before it forks its workers. When the interpreter ends, it is closed and
drained, for at most the tracker's own `close_timeout`.

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
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, NoReturn, Self

from rokt_events_async._making import MakeTracker, check_make, make_one
from rokt_events_async._tracking.log import log
from rokt_events_async.emitter import Emitter
from rokt_events_async.errors import EmitterClosedError, WrongContextError
from rokt_events_async.events import PartnerEvent
from rokt_events_async.outcomes import DrainReport, EmitterStats, Health
from rokt_events_async.settings import check_number
from rokt_events_async.tracker import Tracker, TrackerStats


class ThreadedEmitter:
    """Tracks events from synchronous code, on a loop in a thread of its own.

    All methods may be called from any thread, but not from a running loop, which they would block: there,
    use an `Emitter`. Constructing it does nothing. The first `track` starts the thread; after a fork, each
    process starts its own.

    Args:
        make: A factory of the tracker: `Emitter`, `tracker_from_env`, or a function that calls one with
            settings. It is called in the thread, once per process.

    Raises:
        InvalidSettingError: `make` is not callable.
    """

    def __init__(self, make: MakeTracker = Emitter) -> None:
        self._make = check_make(make)
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._is_closed = False
        self._report: object = DrainReport()
        _all.add(self)

    def start(self) -> None:
        """Starts the thread and the tracker now, instead of with the first event.

        So wrong settings show when the program starts. Do not call it before a server forks its workers: the
        thread does not live on in them.

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
        queue.

        Returns:
            The outcome: `result()` returns the receipt, or raises the event's `DeliveryError`. It need not be
            looked at. Cancelling it detaches the caller, and the event is still sent.

        Raises:
            InvalidEventError, QueueFullError, JournalError, QueueUnavailableError: As the tracker's `track`.
            EmitterClosedError: It was closed.
            WrongContextError: Called from a running loop.
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
        with self._lock:
            running = self._running
        if running is None:
            return True
        return bool(running.call(lambda tracker: tracker.flush(seconds)))

    def close(self, timeout: float | None = None) -> object:
        """Stops intake, drains for at most `timeout` seconds, and ends the thread.

        It is called when the interpreter ends, if it was not called before. A second call returns the same.

        Args:
            timeout: Seconds to drain for; `None` takes the tracker's `close_timeout`.

        Returns:
            What the tracker's `aclose` returns: of an emitter, the `DrainReport`.

        Raises:
            InvalidSettingError: `timeout` is no finite number >= 0.
            WrongContextError: Called from a running loop.
        """
        seconds = None if timeout is None else check_number("timeout", timeout, at_least=0)
        _refuse_a_loop()
        with self._lock:
            self._is_closed = True
            running, self._running = self._running, None
            if running is not None:
                self._report = running.end(seconds)
            return self._report

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
    def stats(self) -> TrackerStats:
        """A snapshot of the tracker's account, in this process; empty before the first event."""
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
        shown = repr(running.tracker) if running is not None else "closed" if self._is_closed else "new"
        return f"<ThreadedEmitter {shown}>"

    def _tracker(self) -> Tracker[Any]:
        """Returns this process's tracker, and starts it first if it is not running."""
        running = self._running
        if running is not None and running.thread.is_alive():
            return running.tracker
        with self._lock:
            if self._is_closed:
                raise EmitterClosedError("the ThreadedEmitter is closed: construct another one")
            if self._running is None or not self._running.thread.is_alive():
                self._running = _Running(self._make)
            return self._running.tracker

    def _forget(self) -> None:
        """Forgets the parent's thread in a child, which has neither the thread nor what its lock guards."""
        self._lock = threading.Lock()
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
        self._ended: concurrent.futures.Future[object] = concurrent.futures.Future()
        opened: concurrent.futures.Future[Tracker[Any]] = concurrent.futures.Future()
        self.thread = threading.Thread(target=self._run, args=(opened,), name="rokt-events-loop", daemon=True)
        self.thread.start()
        try:
            self.tracker = opened.result()
        except BaseException:
            self.thread.join()
            raise

    def _run(self, opened: concurrent.futures.Future[Tracker[Any]]) -> None:
        with contextlib.suppress(asyncio.CancelledError):  # Something of the application's did that.
            asyncio.run(self._live(opened))

    async def _live(self, opened: concurrent.futures.Future[Tracker[Any]]) -> None:
        """Keeps the tracker open until `end`."""
        self._loop = asyncio.get_running_loop()
        self._stopped: asyncio.Future[float | None] = self._loop.create_future()
        try:
            tracker = make_one(self._make)
            await tracker.start()
        except BaseException as error:  # noqa: BLE001 -- raised again in the thread that waits
            opened.set_exception(error)
            return
        opened.set_result(tracker)
        timeout = None
        try:
            timeout = await self._stopped
        finally:
            try:
                self._ended.set_result(await tracker.aclose(timeout))
            except BaseException as error:  # noqa: BLE001 -- raised again in the thread that waits
                self._ended.set_exception(error)

    def call(self, make_call: Callable[[Tracker[Any]], Any]) -> Any:
        """Awaits a call of the tracker, and returns its result."""
        future = asyncio.run_coroutine_threadsafe(make_call(self.tracker), self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def end(self, timeout: float | None) -> object:
        """Closes the tracker, and ends the thread."""
        with contextlib.suppress(RuntimeError):  # The loop has ended already.
            self._loop.call_soon_threadsafe(self._stop, timeout)
        self.thread.join()
        return self._ended.result(0)

    def _stop(self, timeout: float | None) -> None:
        if not self._stopped.done():
            self._stopped.set_result(timeout)


def _refuse_a_loop() -> None:
    """Raises if the calling thread has a running loop, which must not be blocked."""
    if asyncio._get_running_loop() is not None:
        raise WrongContextError(
            "a ThreadedEmitter blocks, and this thread has a running event loop: use an Emitter there"
        )


_all: Final[weakref.WeakSet[ThreadedEmitter]] = weakref.WeakSet()

_left_behind: Final[list[_Running]] = []
"""What a child has from its parent. It is kept: to collect it would close what is the parent's."""


def _close_all() -> None:
    """Closes, when the interpreter ends, what is still open."""
    for emitter in tuple(_all):
        try:
            emitter.close()
        except Exception as error:  # noqa: BLE001 -- the others are still to be closed
            log(logging.ERROR, "%r could not be closed at the end: %s", emitter, type(error).__name__)


def _forget_all() -> None:
    for emitter in tuple(_all):
        emitter._forget()


# Before the standard library ends its executors, without which no name is resolved any more. Where Python
# does not have that hook, a drain at the end needs connections that are open already.
_register: Callable[[Callable[[], None]], object] = getattr(threading, "_register_atexit", atexit.register)
_register(_close_all)

if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_all)
