"""Telling observers, so that nothing they do reaches the emitter.

`Observers` keeps, for each thing that can happen, only those who want to know: where that is nobody, the
emitter asks one tuple whether it is empty. `UndeliveredHandler` is the application's `on_undelivered`:
an observer that calls it in a task of its own, one error after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import Context
from typing import Any, Final

from rokt_events_async.errors import DeliveryError, InvalidSettingError
from rokt_events_async.observers import Observer
from rokt_events_async.outcomes import Delivery

OnUndelivered = Callable[[DeliveryError], Awaitable[None] | None]
"""What `on_undelivered=` takes."""

_log: Final = logging.getLogger("rokt_events_async")

_GRACE: Final = 1.0
"""Seconds that the handler of undelivered events has beyond the deadline of a close."""

_RESTART: Final = 0.1
"""Seconds after which it goes on when its task was cancelled from outside."""

_MAX_BEHIND: Final = 10_000
"""By how many errors it may be behind, and still be handed all that a close ends at once.

Beyond that and `max_pending` they are counted, but not handed over: memory is bounded.
"""

Hooks = tuple[tuple[Observer, Callable[..., object]], ...]


class Observers:
    """All observers of one emitter, and its handler of undelivered events, if it has one.

    Raises:
        InvalidSettingError: One is no `Observer`, or has a coroutine for a method.
    """

    def __init__(self, observers: Iterable[Observer] = (), handler: UndeliveredHandler | None = None) -> None:
        everybody = _check_observers(observers) + ((handler,) if handler else ())
        self.accepted = _hooks(everybody, "on_accepted")
        self.request = _hooks(everybody, "on_request")
        self.retry = _hooks(everybody, "on_retry")
        self.delivered = _hooks(everybody, "on_delivered")
        self.undelivered = _hooks(everybody, "on_undelivered")
        self.closed = _hooks(everybody, "on_closed")
        self._blamed: set[int] = set()
        self._is_leaving = False

    def tell(self, hooks: Hooks, *what: object) -> None:
        """Calls those hooks. The first thing that an observer raises is logged; an exit waits a turn."""
        for observer, hook in hooks:
            try:
                hook(*what)
            except (KeyboardInterrupt, SystemExit) as leaving:
                self._leave(leaving)
            except BaseException as error:  # noqa: BLE001 -- whatever it may be, a test's `fail()` included
                if id(observer) not in self._blamed:
                    self._blamed.add(id(observer))
                    log_raised(f"{type(observer).__name__}.{getattr(hook, '__name__', '?')}", error)

    def _leave(self, leaving: BaseException) -> None:
        """Ends the program, as an observer wants it: by the loop, when the account is in order, and once.

        What then ends all tasks will be told of as well, and is not to be ended itself.
        """
        if not self._is_leaving:
            self._is_leaving = True
            with contextlib.suppress(RuntimeError):  # No loop runs: it has ended already.
                asyncio.get_running_loop().call_soon(_raise, leaving)


def _check_observers(observers: Iterable[Observer]) -> tuple[Observer, ...]:
    if isinstance(observers, (str, bytes)) or not isinstance(observers, Iterable):
        raise InvalidSettingError(f"observers must be a list of Observer objects, got {observers!r}")
    everybody = tuple(observers)
    for observer in everybody:
        if not isinstance(observer, Observer):
            shown = repr(observer) if isinstance(observer, type) else f"a {type(observer).__name__}"
            raise InvalidSettingError(f"observers must be a list of Observer objects, got {shown} in it")
    return everybody


def _hooks(observers: Iterable[Observer], name: str) -> Hooks:
    """Those observers' methods that do something."""
    found = [(observer, getattr(observer, name)) for observer in observers]
    for observer, hook in found:
        if inspect.iscoroutinefunction(hook):
            raise InvalidSettingError(
                f"{type(observer).__name__}.{name} must be a plain method, got a coroutine"
            )
        _check_takes(f"{type(observer).__name__}.{name}", hook, _parameters(getattr(Observer, name))[1:])
    nothing = getattr(Observer, name)
    return tuple(
        (observer, hook) for observer, hook in found if getattr(hook, "__func__", None) is not nothing
    )


def _check_takes(who: str, call: Callable[..., object], wanted: Sequence[str]) -> None:
    """That it can be called with so many values, as far as that can be told without doing it."""
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*wanted)
    except TypeError:
        got = ", ".join(signature.parameters)
        raise InvalidSettingError(
            f"{who} must take ({', '.join(wanted)}), got one that takes ({got})"
        ) from None


def _parameters(call: Callable[..., object]) -> list[str]:
    return list(inspect.signature(call).parameters)


def _raise(error: BaseException) -> None:
    raise error


def log(level: int, text: str, *values: object) -> None:
    """Logs, whatever the application's filters and handlers raise: no event's outcome depends on them."""
    with contextlib.suppress(Exception):
        _log.log(level, text, *values, stacklevel=2)


def log_raised(who: str, error: BaseException) -> None:
    """What the application's own code raised: once, for it may happen with every event.

    Not with what it was raised in the middle of, for that may be anybody's, headers included.
    """
    where = "".join(traceback.format_tb(error.__traceback__))
    what = "".join(traceback.format_exception_only(error)).strip()
    text = "%s raised, which is logged once and changes nothing about the events: %s\n%s"
    log(logging.ERROR, text, who, what, where)


class UndeliveredHandler(Observer):
    """Hands errors to the application, one after the other, in a task that exists while there are any.

    Args:
        handle: The application's callable; what it returns is awaited, if it can be.
        max_pending: How many events a close can end at once.

    Raises:
        InvalidSettingError: It is not callable, or not with one error.
    """

    def __init__(self, handle: OnUndelivered, *, max_pending: int) -> None:
        if not callable(handle):
            raise InvalidSettingError(f"on_undelivered must be callable with a DeliveryError, got {handle!r}")
        _check_takes("on_undelivered", handle, ["error"])
        self._handle = handle
        self._max_waiting = _MAX_BEHIND + max_pending
        self._todo: deque[DeliveryError] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context: Context | None = None
        self._task: asyncio.Task[None] | None = None
        self._restart: asyncio.TimerHandle | None = None
        self._is_finishing = False
        self._has_raised = False
        self._passed_over = 0

    def bind(self, loop: asyncio.AbstractEventLoop, context: Context) -> None:
        """From now on there is a loop to run in."""
        self._loop, self._context = loop, context

    def on_undelivered(self, delivery: Delivery, error: DeliveryError) -> None:
        if len(self._todo) >= self._max_waiting:
            self._passed_over += 1
            if self._passed_over == 1:
                text = (
                    "on_undelivered is too slow: %d errors wait for it, and further ones are not handed over"
                )
                log(logging.ERROR, text, self._max_waiting)
            return
        self._todo.append(error)
        self._see_to_it()

    def _see_to_it(self) -> None:
        assert self._loop is not None, "events end only in an emitter that was started"
        if self._task is None and self._todo and not self._loop.is_closed():
            context = self._context.copy() if self._context else None
            self._task = asyncio.Task(
                self._work(), loop=self._loop, name="rokt-events-undelivered", context=context
            )
            self._task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled():
            task.exception()  # An exit, if any, which the loop has raised already: it makes no further noise.
        if self._todo and self._loop is not None and not self._is_finishing:
            # Cancelled from outside, perhaps at the loop's end: nothing new right now.
            self._restart = self._loop.call_later(_RESTART, self._see_to_it)

    async def _work(self) -> None:
        while self._todo:
            error = self._todo.popleft()
            try:
                result = self._handle(error)
                if inspect.isawaitable(result):
                    await result
            except (KeyboardInterrupt, SystemExit, GeneratorExit):
                raise
            except BaseException as raised:
                if _is_cancelled():
                    self._todo.appendleft(error)
                    raise
                if not self._has_raised:
                    self._has_raised = True
                    log_raised("on_undelivered", raised)
            await asyncio.sleep(0)

    async def idle(self) -> None:
        """Waits until all errors were handled. Cancelling it leaves them alone."""
        self._see_to_it()
        while self._task is not None:
            await asyncio.wait([self._task])
            self._see_to_it()

    async def finish(self) -> None:
        """Gives it a last moment for what is left, and then interrupts it. Cancelled, it takes no longer."""
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
        if left := len(self._todo) + self._passed_over:
            log(logging.ERROR, "closed with %d undelivered events that on_undelivered has not handled", left)


def _is_cancelled() -> bool:
    task: asyncio.Task[Any] | None = asyncio.current_task()
    return task is not None and task.cancelling() > 0
