"""Hands the errors of undelivered events to the application's `on_undelivered`, one after the other.

`DeadLetters` is an observer. Its task exists only while errors wait:

```
          on_undelivered            handled, none left
  idle ──────────────────▶ working ───────────────────▶ idle
                            │   ▲
   cancelled from outside   ▼   │ after a moment
                          resting
```

At a close, `finish` grants the application one second beyond the deadline, and then interrupts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any, Final

from rokt_events_async._tracking.hooks import check_takes
from rokt_events_async._tracking.log import log, log_raised
from rokt_events_async.errors import InvalidSettingError
from rokt_events_async.observers import Observer
from rokt_events_async.outcomes import Delivery, DeliveryError

OnUndelivered = Callable[[DeliveryError], Awaitable[None] | None]
"""The type of `on_undelivered=`."""

_GRACE: Final = 1.0
"""Seconds that the application has beyond the deadline of a close."""

_RESTART: Final = 0.1
"""Seconds of rest after the task was cancelled from outside."""

_MAX_BEHIND: Final = 10_000
"""How many errors may wait beyond `max_pending`, which a close can end at once.

Further errors are counted, but not handed over: memory is bounded.
"""


class DeadLetters(Observer):
    """Calls the application with the error of every undelivered event.

    Args:
        handle: The application's callable; an awaitable result is awaited.
        max_pending: How many events a close can end at once.

    Raises:
        InvalidSettingError: `handle` cannot be called with one error.
    """

    def __init__(self, handle: OnUndelivered, *, max_pending: int) -> None:
        if not callable(handle):
            raise InvalidSettingError(f"on_undelivered must be callable with a DeliveryError, got {handle!r}")
        check_takes("on_undelivered", handle, ["error"])
        self._handle = handle
        self._max_waiting = _MAX_BEHIND + max_pending
        self._waiting: deque[DeliveryError] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context: Context | None = None
        self._task: asyncio.Task[None] | None = None
        self._restart: asyncio.TimerHandle | None = None
        self._is_finishing = False
        self._has_raised = False
        self._passed_over = 0

    def bind(self, loop: asyncio.AbstractEventLoop, context: Context) -> None:
        """Sets the loop and the context in which the application is called."""
        self._loop, self._context = loop, context

    def on_undelivered(self, delivery: Delivery, error: DeliveryError) -> None:
        if len(self._waiting) >= self._max_waiting:
            self._passed_over += 1
            if self._passed_over == 1:
                text = (
                    "on_undelivered is too slow: %d errors wait for it, and further ones are not handed over"
                )
                log(logging.ERROR, text, self._max_waiting)
            return
        self._waiting.append(error)
        self._start()

    def _start(self) -> None:
        """Starts the task if errors wait and none runs."""
        assert self._loop is not None, "events end only in an emitter that was started"
        if self._task is None and self._waiting and not self._loop.is_closed():
            context = self._context.copy() if self._context else None
            self._task = asyncio.Task(
                self._work(), loop=self._loop, name="rokt-events-undelivered", context=context
            )
            self._task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled():
            task.exception()  # An exit, if any. The loop has raised it already: here it makes no noise.
        if self._waiting and self._loop is not None and not self._is_finishing:
            # Cancelled from outside, perhaps because the loop is ending: rest first.
            self._restart = self._loop.call_later(_RESTART, self._start)

    async def _work(self) -> None:
        while self._waiting:
            error = self._waiting.popleft()
            try:
                result = self._handle(error)
                if inspect.isawaitable(result):
                    await result
            except (KeyboardInterrupt, SystemExit, GeneratorExit):
                raise
            except BaseException as raised:
                if _is_cancelled():
                    self._waiting.appendleft(error)
                    raise
                if not self._has_raised:
                    self._has_raised = True
                    log_raised("on_undelivered", raised)
            await asyncio.sleep(0)

    async def idle(self) -> None:
        """Waits until all errors are handled. Cancelling it does not interrupt the handling."""
        self._start()
        while self._task is not None:
            await asyncio.wait([self._task])
            self._start()

    async def finish(self) -> None:
        """Grants a last second for the errors that wait, then interrupts. Cancelling it skips the second."""
        idle = asyncio.ensure_future(self.idle())
        self._is_finishing = True
        if self._restart is not None:
            self._restart.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([idle], timeout=_GRACE)
        idle.cancel()
        if self._task is not None:
            self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([idle])
        if left := len(self._waiting) + self._passed_over:
            log(logging.ERROR, "closed with %d undelivered events that on_undelivered has not handled", left)


def _is_cancelled() -> bool:
    task: asyncio.Task[Any] | None = asyncio.current_task()
    return task is not None and task.cancelling() > 0
