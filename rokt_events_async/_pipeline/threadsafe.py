"""Between the emitter's loop and other threads: a call that waits there, and the futures that learn here."""

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
"""Seconds after which a thread that waits looks whether the loop still runs."""

_LAST_WORDS: Final = 0.05
"""Seconds in which workers that are cancelled by a loop at its end may still settle what they carry."""


class LoopGoneError(Exception):
    """The loop has ended, or ends: what was handed over did not come to its end."""


def run_there(
    coroutine: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop, *, is_running: Callable[[], bool]
) -> T:
    """Runs a coroutine on a loop that runs in another thread, waits for it, and returns what it does.

    Args:
        is_running: Whether the loop still runs; asked now and then.

    Raises:
        LoopGoneError: The loop was not there, has ended meanwhile, or somebody there has cancelled it.
    """
    # Not the task's own future: that learns a turn later, which a loop that stops does not take any more.
    done: concurrent.futures.Future[T] = concurrent.futures.Future()
    running = _run(coroutine, done)
    try:
        there = asyncio.run_coroutine_threadsafe(running, loop)
    except RuntimeError:  # Closed since the caller has looked.
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
    """Says so of those that have not begun, or they would complain that nobody has awaited them."""
    for coroutine in coroutines:
        if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
            coroutine.close()


class Listeners(Generic[T]):
    """The futures by which other threads wait for outcomes.

    While there are any, a task watches for the end of the loop: without a last word from it, a thread that
    waits would do so for ever.

    Args:
        lost: Makes the error of an outcome that is not known when the loop ends.
    """

    def __init__(self, lost: Callable[[], Exception]) -> None:
        self._lost = lost
        self._open: dict[concurrent.futures.Future[T], None] = {}
        self._watch: asyncio.Task[None] | None = None
        self._all_told: asyncio.Future[None] | None = None

    def follow(self, source: asyncio.Future[T]) -> concurrent.futures.Future[T]:
        """What other threads can wait for. To be called on the loop."""
        outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._open[outcome] = None
        source.add_done_callback(functools.partial(self._tell, outcome))
        if self._watch is None:
            loop = source.get_loop()
            self._watch = asyncio.Task(self._watch_over(loop), loop=loop, name="rokt-events-threads")
        return outcome

    async def idle(self) -> None:
        """Waits until all that is settled has been told."""
        if self._watch is not None:
            await asyncio.wait([self._watch])

    def _tell(self, outcome: concurrent.futures.Future[T], source: asyncio.Future[T]) -> None:
        if outcome not in self._open:
            return  # It was told that it would never know.
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
    """What became of the one, to the other, unless that was cancelled meanwhile."""
    if source.cancelled():
        outcome.cancel()
    if not outcome.set_running_or_notify_cancel():
        return
    error = source.exception()
    if error is None:
        outcome.set_result(source.result())
    else:
        outcome.set_exception(error)
