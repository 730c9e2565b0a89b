"""Between the emitter's loop and other threads: a call that waits there, and a future that learns here."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

_LOOK_AGAIN: Final = 1.0
"""Seconds after which a thread that waits looks whether the loop still runs."""


class LoopGoneError(Exception):
    """The loop has ended, or ends: what was handed over did not run."""


def run_there(
    coroutine: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop, *, is_running: Callable[[], bool]
) -> None:
    """Runs a coroutine on a loop that runs in another thread, and waits for it.

    Args:
        is_running: Whether the loop still runs; asked now and then.

    Raises:
        LoopGoneError: The loop was not there, or has ended meanwhile. The coroutine was cancelled.
    """
    try:
        there = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError:  # Closed since the caller has looked.
        coroutine.close()
        raise LoopGoneError from None
    try:
        while True:
            with contextlib.suppress(TimeoutError):
                return there.result(_LOOK_AGAIN)
            if not is_running():
                raise LoopGoneError
    except concurrent.futures.CancelledError:
        raise LoopGoneError from None
    finally:
        there.cancel()  # Which does nothing where it has come to its end.


def run_here(
    coroutine: Coroutine[Any, Any, None],
    loop: asyncio.AbstractEventLoop,
    outcome: concurrent.futures.Future[T],
) -> None:
    """Runs a coroutine on the running loop without waiting; what it raises is the outcome.

    Cancelling the outcome cancels it.
    """
    task = loop.create_task(coroutine)

    def on_done(task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is not None:
            copy(task, outcome)

    def on_outcome(outcome: concurrent.futures.Future[T]) -> None:
        if outcome.cancelled():
            with contextlib.suppress(RuntimeError):  # The loop is closed, and the task with it.
                loop.call_soon_threadsafe(task.cancel)

    task.add_done_callback(on_done)
    outcome.add_done_callback(on_outcome)


def follow(source: asyncio.Future[T], outcome: concurrent.futures.Future[T]) -> None:
    """Tells the outcome to another thread, when it is there."""
    source.add_done_callback(functools.partial(copy, outcome=outcome))


def copy(source: asyncio.Future[Any], outcome: concurrent.futures.Future[T]) -> None:
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
