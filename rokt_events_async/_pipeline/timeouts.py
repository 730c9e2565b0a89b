"""The time of exchanges: one timer for all of them, and bytes that are there beat it."""

from __future__ import annotations

import asyncio
from typing import Final

_TURNS: Final = 8
"""How many turns of the loop an exchange has beyond its time: bytes that are there already are its answer.

After a loop that was held, its timers fall due before what has arrived meanwhile is read.
"""


_HELD: Final = 0.05
"""Seconds by which a timer comes late if a callback of the application has held the loop."""


class Exchange:
    """One exchange in flight, and the task to interrupt when its time is up."""

    __slots__ = ("_cancelling", "_task", "_timed_out", "deadline", "is_renewed")

    def __init__(self, deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        task = asyncio.current_task(loop)  # With the loop given, no system call is needed.
        assert task is not None, "a worker task posts"
        self._task = task
        self._cancelling = task.cancelling()
        self._timed_out = False
        self.deadline = deadline
        self.is_renewed = False
        """True if its time has begun again, because the loop was held."""

    def time_out(self) -> None:
        """Interrupts the task."""
        self._timed_out = True
        self._task.cancel()

    def has_timed_out(self) -> bool:
        """Returns True if the time-out alone cancelled the task; the cancellation is then taken back."""
        return self._timed_out and self._task.uncancel() <= self._cancelling


class Timeouts:
    """One timer for all exchanges. They have the same time-out, so the first to begin is the first to end.

    A timer for each exchange would cost 7 µs per request.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._running: dict[Exchange, None] = {}  # In the order of their start.
        self._due: dict[Exchange, int] = {}  # Their time is up: how many turns they still have.
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> Exchange:
        exchange = Exchange(self._loop.time() + self._seconds, self._loop)
        self._running[exchange] = None
        if self._timer is None:
            self._timer = self._loop.call_at(exchange.deadline, self._on_time)
        return exchange

    def end(self, exchange: Exchange) -> None:
        self._running.pop(exchange, None)
        self._due.pop(exchange, None)
        if not self._running and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_time(self) -> None:
        self._timer = None
        while self._running:
            first = next(iter(self._running))
            if first.deadline > self._loop.time():
                self._timer = self._loop.call_at(first.deadline, self._on_time)
                return
            del self._running[first]
            if self._loop.time() > first.deadline + _HELD and not first.is_renewed:
                self._renew(first)
                continue
            if not self._due:
                self._loop.call_soon(self._on_turn)
            self._due[first] = _TURNS

    def _renew(self, exchange: Exchange) -> None:
        """Gives an exchange its time again, once: a held loop is not the server's silence.

        Its request may not even have been written.
        """
        exchange.is_renewed = True
        exchange.deadline = self._loop.time() + self._seconds
        self._running[exchange] = None  # At the end: no other has a later deadline.

    def _on_turn(self) -> None:
        """Lets the loop turn, so that it reads what is there, before it interrupts anything."""
        for exchange, turns in tuple(self._due.items()):
            if turns:
                self._due[exchange] = turns - 1
            else:
                del self._due[exchange]
                exchange.time_out()
        if self._due:
            self._loop.call_soon(self._on_turn)
