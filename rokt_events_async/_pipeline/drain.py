"""The end of an emitter: wait until everything is settled, or the deadline; then settle the rest.

The drain is a task of its own. The first `aclose` starts it, and all of them await it. It ends, whatever
happens, with every accepted event settled:

```
  draining ──all settled, the deadline, or `end_grace`──▶ stopping ──▶ connections closed ──▶ reported
```
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

import attrs

from rokt_events_async._pipeline.dead_letters import DeadLetters
from rokt_events_async._pipeline.health import HealthMonitor
from rokt_events_async._pipeline.keyring import Keyring
from rokt_events_async._pipeline.ledger import Ledger
from rokt_events_async._pipeline.recorder import Recorder
from rokt_events_async._pipeline.recovery import Recovery
from rokt_events_async._pipeline.room import Room
from rokt_events_async._pipeline.scheduler import Pool
from rokt_events_async._pipeline.transport import Transport
from rokt_events_async._tracking.hooks import Hooks
from rokt_events_async._tracking.log import log
from rokt_events_async._tracking.threadsafe import Listeners
from rokt_events_async.outcomes import DrainReport, Receipt


class Drain:
    """Drains one emitter.

    Args:
        on_closed: Called when the connections are closed and every event is settled.
    """

    def __init__(
        self,
        *,
        pool: Pool,
        room: Room,
        ledger: Ledger,
        transport: Transport,
        keyring: Keyring,
        health: HealthMonitor,
        hooks: Hooks,
        dead_letters: DeadLetters | None,
        listeners: Listeners[Receipt],
        recorder: Recorder | None,
        recovery: Recovery | None,
        on_closed: Callable[[], None],
    ) -> None:
        self._pool = pool
        self._room = room
        self._ledger = ledger
        self._transport = transport
        self._keyring = keyring
        self._health = health
        self._hooks = hooks
        self._dead_letters = dead_letters
        self._listeners = listeners
        self._recorder = recorder
        self._recovery = recovery
        self._on_closed = on_closed
        self._task: asyncio.Task[DrainReport] | None = None
        self._report = DrainReport()
        self._grace_ended = asyncio.Event()
        self._waiters = 0

    @property
    def report(self) -> DrainReport:
        """The report of a drain that has ended, or is telling observers of it."""
        return self._report

    def start(self, seconds: float) -> None:
        """Ends intake and starts the drain, unless it runs already."""
        if self._task is None:
            self._room.close()
            self._ledger.close()
            self._health.enter("closing")
            if self._recovery is not None:
                self._recovery.close()
            self._pool.close(deadline=asyncio.get_running_loop().time() + seconds)
            self._start_task(seconds)

    def _start_task(self, seconds: float) -> None:
        self._task = asyncio.Task(self._run(seconds), name="rokt-events-drain")

    async def wait(self) -> DrainReport:
        """Waits for the end of the drain.

        Cancelling the last waiter ends the grace period at once. Every event is still settled before the
        cancellation goes on.
        """
        self._waiters += 1
        try:
            return await self._ended()
        except asyncio.CancelledError:
            if self._waiters == 1:
                self._grace_ended.set()
                while not self._is_over():
                    with contextlib.suppress(asyncio.CancelledError):
                        await self._ended()
            raise
        finally:
            self._waiters -= 1

    def _is_over(self) -> bool:
        return self._task is not None and self._task.done() and not self._task.cancelled()

    async def _ended(self) -> DrainReport:
        """Waits for the task. A task that was cancelled before it could run is replaced, without grace."""
        while True:
            task = self._task
            assert task is not None, "a drain is started before it is awaited"
            await asyncio.wait([task])  # This leaves the task alone when it is cancelled.
            if not task.cancelled():
                return task.result()
            if task is self._task:
                self._start_task(0)

    async def _run(self, seconds: float) -> DrainReport:
        settled = asyncio.ensure_future(self._settle_all())
        ended = asyncio.ensure_future(self._grace_ended.wait())
        with contextlib.suppress(asyncio.CancelledError):  # At the loop's end, for example: stop now.
            await asyncio.wait((settled, ended), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        left = self._room.events
        settled.cancel()
        ended.cancel()
        if self._recovery is not None:
            self._recovery.stop()
        if self._recorder is not None:
            await self._stop_storing(self._recorder)
        await self._pool.stop()
        if self._recorder is not None:
            await self._finish(self._recorder)
        if self._dead_letters is not None:
            await self._dead_letters.finish()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait((settled, ended))
        with contextlib.suppress(asyncio.CancelledError):
            await self._listeners.idle()
        if self._recorder is not None:
            await _bounded(self._recorder.depot.aclose())
        await self._close_transport()
        await self._keyring.aclose()
        has_run_out = left and not self._grace_ended.is_set()
        self._report = attrs.evolve(
            self._ledger.report(),
            left=left if has_run_out else 0,
            timeout=seconds,
            journal=self._recorder.depot.directory if self._recorder else None,
        )
        self._on_closed()
        self._health.enter("closed")
        self._hooks.closed(self._report)
        return self._report

    async def _stop_storing(self, recorder: Recorder) -> None:
        """Waits for the events that are being stored: what is on disk is deferred, the rest ends."""
        if recorder.own.is_appending:
            await _bounded(recorder.appended())
        recorder.stop_appends()

    async def _finish(self, recorder: Recorder) -> None:
        """Writes what is known now; what a failing disk does not take is told without it."""
        await _bounded(recorder.idle())
        recorder.stop()

    async def _settle_all(self) -> None:
        if self._recorder is not None and self._recovery is not None:
            await self._recorder.idle()  # Events that are being stored are accepted yet.
            await self._recovery.brought_back(self._recovery.deferred_until)
            await self._ledger.revived_settled()
            await self._ledger.returned_settled()
        await self._ledger.settled()
        if self._dead_letters is not None:
            await self._dead_letters.idle()

    async def _close_transport(self) -> None:
        try:
            await self._transport.aclose()
        except asyncio.CancelledError:
            pass  # Every event is settled; the rest is between the connections and the loop.
        except Exception as error:  # noqa: BLE001 -- nothing about the events depends on it
            log(logging.ERROR, "the connections could not be closed: %s", type(error).__name__)


_DISK: Final = 1.0
"""Seconds that a close waits for the disk, beyond its deadline."""


async def _bounded(waiting: Coroutine[Any, Any, None]) -> None:
    """Waits for the disk, but not forever."""
    task = asyncio.ensure_future(waiting)
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.wait((task,), timeout=_DISK)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.wait((task,))
