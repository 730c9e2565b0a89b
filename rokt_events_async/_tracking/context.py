"""Where a tracker lives: the loop, thread and process in which it was started.

A tracker is used in its own loop and thread. Other threads of the same process reach it through
`threadsafe`; the child of a fork does not reach it at all.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading

from rokt_events_async.errors import WrongContextError


class _Process:
    """The current process. Comparing two of these is faster than asking the system."""

    def __init__(self) -> None:
        self.pid = os.getpid()


_this_process = _Process()


def _after_fork() -> None:
    global _this_process  # noqa: PLW0603 -- a child is another process
    _this_process = _Process()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)


def running_loop() -> asyncio.AbstractEventLoop:
    """Returns the loop that runs here.

    Raises:
        WrongContextError: None does.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise WrongContextError(
            "no asyncio event loop runs here: a tracker works in asyncio, not in trio or plain threads"
        ) from None


class Home:
    """The loop, thread and process of one tracker.

    Args:
        what: What lives here, for messages.
    """

    def __init__(self, what: str = "emitter") -> None:
        self._what = what
        self.loop: asyncio.AbstractEventLoop | None = None
        self._process = _this_process
        self._thread = 0

    def adopt_running_loop(self) -> asyncio.AbstractEventLoop:
        """Makes the running loop, with its thread and process, the tracker's home."""
        self.loop = running_loop()
        self._process, self._thread = _this_process, threading.get_ident()
        return self.loop

    def is_here(self) -> bool:
        """Returns True if this is the home, as far as that can be told quickly.

        Asking for the running loop would cost a system call before Python 3.12. A running loop in its own
        thread is the same without it. A loop that moved to another thread is home too: `check` tells.
        """
        return (
            threading.get_ident() == self._thread
            and self.loop is not None
            and self.loop.is_running()
            and self._process is _this_process
        )

    def is_in_this_process(self) -> bool:
        """Returns True unless this is the child of a fork."""
        return self._process is _this_process

    def check(self) -> None:
        """Checks that this is the home.

        Raises:
            WrongContextError: This is another loop, thread or process.
        """
        if asyncio._get_running_loop() is not self.loop or not self.is_in_this_process():
            raise WrongContextError(self._describe())

    def check_reachable(self) -> asyncio.AbstractEventLoop:
        """Returns the loop if it runs, in whatever thread of this process.

        Raises:
            WrongContextError: The loop runs in another process, or not at all.
        """
        assert self.loop is not None, "a started tracker has a loop"
        if not self.is_in_this_process():
            raise WrongContextError(self._describe())
        if not self.loop.is_running():
            raise self.gone_error()
        return self.loop

    def gone_error(self, *, is_cancelled: bool = False, may_be_stored: bool = False) -> WrongContextError:
        """Returns the error of an event that the loop did not accept because it has ended, or is ending.

        Args:
            may_be_stored: True if the event may be in the journal all the same.
        """
        what = "has cancelled this call" if is_cancelled else "does not run"
        then = "the event may be stored, and is then sent" if may_be_stored else "the event was not accepted"
        return WrongContextError(f"the event loop in which the {self._what} was started {what}: {then}")

    def _describe(self) -> str:
        if not self.is_in_this_process():
            return (
                f"the {self._what} was started in process {self._process.pid}, and this is process "
                f"{_this_process.pid}: construct it before a fork, and start it in each child"
            )
        if self.loop is not None and self.loop.is_closed():
            what = self._what
            return f"the event loop in which the {what} was started is closed: construct another {what}"
        if threading.get_ident() == self._thread:
            return (
                f"the {self._what} was started in another event loop of this thread: start it in the loop "
                "that uses it (a pytest fixture can have another loop than its test: give both a loop_scope)"
            )
        what = self._what
        return f"the {what} was started in another thread; from here use {what}.track_threadsafe(event)"


def outcome_lost_error() -> WrongContextError:
    """Returns the error for threads that wait for an outcome when the loop ends."""
    return WrongContextError(
        "the event loop in which the tracker was started has ended before the event's outcome was known: "
        "close the tracker before its loop ends"
    )
