"""An event loop without sockets or time: the clock jumps, and tasks wake in an order drawn from a seed."""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
import weakref
from collections.abc import Callable
from typing import Any

MAX_STEPS = 200_000
"""Turns of the loop after which it is called busy."""

_EPSILON = 1e-9
"""What keeps timers due at the same instant first in, first out."""

Connect = Callable[[Callable[[], asyncio.BaseProtocol], Any], asyncio.Transport]


class DeadlockError(AssertionError):
    """Nothing is due any more, and a task waits."""


class _Selector:
    """Asked to wait, it moves the clock; asked to wait forever, it says that nothing will come."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        self._loop.on_turn(timeout)
        return []


class SimulatedLoop(asyncio.BaseEventLoop):
    """The clock starts at 1000.

    Args:
        luck: What draws the order of tasks.
    """

    def __init__(self, luck: random.Random) -> None:
        super().__init__()
        self._luck = luck
        self._selector = _Selector(self)
        self._clock_resolution = _EPSILON
        self._now = 1000.0
        self._timers = 0
        self._counter = itertools.count()
        self._ages: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self.turns = 0
        self._hold = 0.0
        self.was_held = False
        """Whether this turn came late: a callback held the loop."""
        self.after_turn: Callable[[], None] | None = None
        self.resolve: Callable[[], None] | None = None
        self.connect: Connect | None = None

    def time(self) -> float:
        return self._now

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        self._timers += 1
        return super().call_at(when + self._timers * _EPSILON, callback, *args, context=context)

    def hold(self, seconds: float) -> None:
        """Lets a callback of the application hold the loop, from the end of this turn on."""
        self._hold = seconds

    def on_turn(self, timeout: float | None) -> None:
        self.turns += 1
        if self.turns > MAX_STEPS:
            raise DeadlockError(f"busy: {self.turns} turns of the loop")
        if timeout is None:
            raise DeadlockError("nothing is due, and a task waits")
        self._now += timeout + self._hold
        self.was_held, self._hold = self._hold > 0, 0.0
        self._shuffle()
        if self.after_turn is not None:
            self.after_turn()

    def _shuffle(self) -> None:
        """Draws the order of the tasks that are to run; what else is to run keeps its place."""
        ready: Any = self._ready  # type: ignore[attr-defined]
        places = [place for place, handle in enumerate(ready) if _wakes_a_task(handle)]
        # First by age: aiohttp wakes some from a set, in the order of their addresses.
        handles = sorted((ready[place] for place in places), key=self._age)
        if len(places) > 1:
            self._luck.shuffle(handles)
            for place, handle in zip(places, handles, strict=True):
                ready[place] = handle

    def _age(self, handle: Any) -> int:
        """The number of its task, by when it was first to run."""
        return self._ages.setdefault(handle._callback.__self__, next(self._counter))

    # What asyncio asks of a loop, without threads and sockets.

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """No thread sleeps."""

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        future = self.create_future()
        future.set_result(func(*args))
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """There is none."""

    async def getaddrinfo(self, host: Any, port: Any, **_kwargs: Any) -> list[Any]:
        assert self.resolve is not None
        self.resolve()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    async def create_connection(  # type: ignore[override]
        self, protocol_factory: Any, *_args: Any, sock: Any, **_kwargs: Any
    ) -> Any:
        assert self.connect is not None
        protocol = protocol_factory()
        transport = self.connect(lambda: protocol, sock)
        protocol.connection_made(transport)
        return transport, protocol


def _wakes_a_task(handle: Any) -> bool:
    callback = handle._callback
    return type(callback).__name__ in ("TaskStepMethWrapper", "TaskWakeupMethWrapper") or isinstance(
        getattr(callback, "__self__", None), asyncio.Task
    )
