"""Between the emitter's loop and other threads: calls into the loop, and outcomes out of it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import inspect
import math
import queue
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

_LOOK_AGAIN: Final = 1.0
"""Seconds between two checks by a waiting thread that the loop still runs."""


class LoopGoneError(Exception):
    """The loop has ended or is ending, and has not finished the call.

    Attributes:
        is_cancelled: True if the call was cancelled, on a loop that may go on.
    """

    def __init__(self, *, is_cancelled: bool = False) -> None:
        super().__init__()
        self.is_cancelled = is_cancelled


def run_there(
    coroutine: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop, *, is_running: Callable[[], bool]
) -> T:
    """Runs a coroutine on a loop of another thread, waits for it, and returns its result.

    Args:
        is_running: Returns True while the loop runs; asked about once per second.

    Raises:
        LoopGoneError: The loop does not run, has ended meanwhile, or has cancelled the coroutine.
    """
    call = _Call(coroutine, loop)
    try:
        loop.call_soon_threadsafe(call.start)
    except RuntimeError:  # Closed since the caller checked.
        call.never_run()
        raise LoopGoneError from None
    try:
        while not call.done.wait(_LOOK_AGAIN):
            if not is_running() and not call.done.is_set:
                raise LoopGoneError
        return call.done.result()
    finally:
        if not call.done.is_set:
            with contextlib.suppress(RuntimeError):  # The loop is closed.
                loop.call_soon_threadsafe(call.cancel)
            if not is_running():
                call.never_run()


class Result(Generic[T]):
    """A result that a loop hands to threads that wait for it.

    A future of `concurrent.futures` would not do: a signal can interrupt the waiting thread while it holds
    the future's lock, and the loop would wait for that lock.
    """

    def __init__(self) -> None:
        self._arrived: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._value: T | None = None
        self._error: BaseException | None = None
        self.is_set = False

    def set_result(self, value: T) -> None:
        """Sets the value that `result` returns."""
        self._value, self.is_set = value, True
        self._arrived.put(None)

    def set_exception(self, error: BaseException) -> None:
        """Sets what `result` raises."""
        self._error, self.is_set = error, True
        self._arrived.put(None)

    def wait(self, timeout: float) -> bool:
        """Waits for so many seconds. Returns True if there is a result."""
        with contextlib.suppress(queue.Empty):
            self._arrived.get(timeout=timeout)
            self._arrived.put(None)  # For others that wait.
        return self.is_set

    def result(self) -> T:
        """Returns the value, or raises the error."""
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # It is set.


class _Call(Generic[T]):
    """A coroutine that runs on a loop for another thread, which waits for `done`."""

    def __init__(self, coroutine: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> None:
        # Not the task's own future: that is set one turn later, and a stopping loop takes no more turns.
        self.done: Result[T] = Result()
        self._coroutine = coroutine
        self._running = self._run()
        self._loop = loop
        self._task: asyncio.Task[None] | None = None
        self._is_cancelled = False

    def start(self) -> None:
        """Starts the task. Called on the loop."""
        if self._is_cancelled:
            self.never_run()
            return
        self._task = asyncio.Task(self._running, loop=self._loop, name="rokt-events-call")
        self._task.add_done_callback(self._on_done)

    def cancel(self) -> None:
        """Cancels the task, because its caller waits no more. Called on the loop."""
        self._is_cancelled = True
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            result = await self._coroutine
        except asyncio.CancelledError:
            self.done.set_exception(LoopGoneError(is_cancelled=True))
            raise
        except Exception as error:  # noqa: BLE001 -- raised again in the thread
            self.done.set_exception(error)
        else:
            self.done.set_result(result)

    def _on_done(self, _: asyncio.Task[None]) -> None:
        """Speaks for a task that was cancelled before its first step, and so could not."""
        if not self.done.is_set:
            self.never_run()
            self.done.set_exception(LoopGoneError(is_cancelled=True))

    def never_run(self) -> None:
        """Closes what has not begun, or Python would warn that it was never awaited."""
        _never_run(self._running, self._coroutine)


def _never_run(*coroutines: Coroutine[Any, Any, Any]) -> None:
    """Closes the coroutines that have not begun, or Python would warn that they were never awaited."""
    for coroutine in coroutines:
        if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
            coroutine.close()


class _Outcome(concurrent.futures.Future[T]):
    """An outcome for other threads, which looks once per second whether the loop is still there.

    A loop that is closed without a word tells no thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, lost: Callable[[], Exception]) -> None:
        super().__init__()
        self._loop = loop
        self._lost = lost

    def result(self, timeout: float | None = None) -> T:
        return super().result(self._look(timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        return super().exception(self._look(timeout))

    def _look(self, timeout: float | None) -> float | None:
        """Waits, and returns how much of the time is left."""
        end = math.inf if timeout is None else time.monotonic() + timeout
        while not self.done() and (left := end - time.monotonic()) > 0:
            if concurrent.futures.wait([self], min(_LOOK_AGAIN, left)).done:
                break
            if self._loop.is_closed():
                self.lose()
        return None if timeout is None else max(0.0, end - time.monotonic())

    def lose(self) -> None:
        """Tells that the loop has ended before the outcome was known."""
        with contextlib.suppress(concurrent.futures.InvalidStateError):  # It is told at the same time.
            if self.set_running_or_notify_cancel():
                self.set_exception(self._lost())


class Listeners(Generic[T]):
    """The futures through which other threads wait for outcomes.

    While there are any, an asynchronous generator is open in the loop: a loop that ends closes it, and so
    tells the threads at once. (A task would not do: the application can cancel it.)

    Args:
        lost: Makes the error for an outcome that is not known when the loop ends.
    """

    def __init__(self, lost: Callable[[], Exception]) -> None:
        self._lost = lost
        self._open: dict[_Outcome[T], None] = {}
        self._sentinel: AsyncGenerator[None, None] | None = None
        self._all_told: asyncio.Future[None] | None = None

    def follow(self, source: asyncio.Future[T]) -> concurrent.futures.Future[T]:
        """Returns a future for other threads. Must be called on the loop."""
        outcome: _Outcome[T] = _Outcome(source.get_loop(), self._lost)
        self._open[outcome] = None
        source.add_done_callback(functools.partial(self._tell, outcome), context=Context())
        if self._sentinel is None:
            self._sentinel = self._watch_for_the_end()
            _step(self._sentinel.__anext__())
        return outcome

    async def idle(self) -> None:
        """Waits until every settled outcome has reached its future."""
        if self._open:
            self._all_told = asyncio.get_running_loop().create_future()
            await self._all_told

    def _tell(self, outcome: _Outcome[T], source: asyncio.Future[T]) -> None:
        if outcome not in self._open:
            return  # The future has been told that the outcome is lost.
        del self._open[outcome]
        try:
            _copy(source, outcome)  # It calls the callbacks of the application, which may raise anything.
        finally:
            sentinel = self._sentinel
            if sentinel is not None and not self._open:
                self._sentinel = None
                _step(sentinel.aclose())

    async def _watch_for_the_end(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self._sentinel = None
            if self._all_told is not None and not self._all_told.done():
                self._all_told.set_result(None)
            lost, self._open = self._open, {}
            _tell_all(list(lost))


def _tell_all(lost: list[_Outcome[Any]]) -> None:
    """Tells each of them, whatever the callbacks of the others raise."""
    try:
        while lost:
            lost.pop(0).lose()
    finally:
        if lost:
            _tell_all(lost)


def _step(awaitable: Awaitable[Any]) -> None:
    """Runs an awaitable that waits for nothing."""
    with contextlib.suppress(StopIteration):
        awaitable.__await__().__next__()


def _copy(source: asyncio.Future[T], outcome: concurrent.futures.Future[T]) -> None:
    """Copies an outcome to a thread's future, unless that was cancelled meanwhile."""
    if source.cancelled():
        outcome.cancel()
    if not outcome.set_running_or_notify_cancel():
        return
    error = source.exception()
    if error is None:
        outcome.set_result(source.result())
    else:
        outcome.set_exception(error)
