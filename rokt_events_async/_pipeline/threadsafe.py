"""Between the emitter's loop and other threads: calls into the loop, and outcomes out of it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

_LOOK_AGAIN: Final = 1.0
"""Seconds between two checks by a waiting thread that the loop still runs."""

_LAST_WORDS: Final = 0.05
"""Seconds in which workers that the ending loop has cancelled may still settle their events."""


class LoopGoneError(Exception):
    """The loop has ended or is ending, and has not finished the call."""


def run_there(
    coroutine: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop, *, is_running: Callable[[], bool]
) -> T:
    """Runs a coroutine on a loop of another thread, waits for it, and returns its result.

    Args:
        is_running: Returns True while the loop runs; asked about once per second.

    Raises:
        LoopGoneError: The loop does not run, has ended meanwhile, or has cancelled the coroutine.
    """
    # Not the task's own future: that is set one turn later, and a stopping loop takes no more turns.
    done: concurrent.futures.Future[T] = concurrent.futures.Future()
    running = _run(coroutine, done)
    try:
        there = asyncio.run_coroutine_threadsafe(running, loop)
    except RuntimeError:  # Closed since the caller checked.
        _never_run(running, coroutine)
        raise LoopGoneError from None
    try:
        while not concurrent.futures.wait([done], _LOOK_AGAIN).done:
            if not is_running() and not done.done():
                raise LoopGoneError
        return done.result()
    finally:
        if not done.done():
            there.cancel()
            if not is_running():
                _never_run(running, coroutine)


async def _run(coroutine: Coroutine[Any, Any, T], done: concurrent.futures.Future[T]) -> None:
    try:
        result = await coroutine
    except asyncio.CancelledError:
        done.set_exception(LoopGoneError())
        raise
    except Exception as error:  # noqa: BLE001 -- raised again in the thread
        done.set_exception(error)
    else:
        done.set_result(result)


def _never_run(*coroutines: Coroutine[Any, Any, Any]) -> None:
    """Closes the coroutines that have not begun, or Python would warn that they were never awaited."""
    for coroutine in coroutines:
        if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
            coroutine.close()


class Listeners(Generic[T]):
    """The futures through which other threads wait for outcomes.

    While there are any, a task watches for the end of the loop. Without it, a waiting thread would wait for
    ever if the loop ended first.

    Args:
        lost: Makes the error for an outcome that is not known when the loop ends.
    """

    def __init__(self, lost: Callable[[], Exception]) -> None:
        self._lost = lost
        self._open: dict[concurrent.futures.Future[T], None] = {}
        self._watch: asyncio.Task[None] | None = None
        self._all_told: asyncio.Future[None] | None = None

    def follow(self, source: asyncio.Future[T]) -> concurrent.futures.Future[T]:
        """Returns a future for other threads. Must be called on the loop."""
        outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._open[outcome] = None
        source.add_done_callback(functools.partial(self._tell, outcome))
        if self._watch is None:
            loop = source.get_loop()
            self._watch = asyncio.Task(self._watch_over(loop), loop=loop, name="rokt-events-threads")
        return outcome

    async def idle(self) -> None:
        """Waits until every settled outcome has reached its future."""
        if self._watch is not None:
            await asyncio.wait([self._watch])

    def _tell(self, outcome: concurrent.futures.Future[T], source: asyncio.Future[T]) -> None:
        if outcome not in self._open:
            return  # The future has been told that the outcome is lost.
        del self._open[outcome]
        _copy(source, outcome)
        if not self._open and self._all_told is not None and not self._all_told.done():
            self._all_told.set_result(None)

    async def _watch_over(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while self._open:
                self._all_told = loop.create_future()
                await self._all_told
        except asyncio.CancelledError:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(_LAST_WORDS)
            raise
        finally:
            self._watch = None
            lost, self._open = self._open, {}
            for outcome in lost:
                if outcome.set_running_or_notify_cancel():
                    outcome.set_exception(self._lost())


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
