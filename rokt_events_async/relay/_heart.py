"""A relay's heartbeat: says that it is alive, and learns who else is, what to read, and what waits."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import attrs

from rokt_events_async._tracking.log import log
from rokt_events_async.errors import QueueUnavailableError, RelayStoppedError
from rokt_events_async.relay._link import Counts, Link, Signals
from rokt_events_async.relay._shares import share_of
from rokt_events_async.relay.queue import Backlog, EventQueue

_PREDECESSOR: Final = 30.0
"""Seconds that the heartbeat of a predecessor with the same id may live on, whatever its time-out was."""

_TRIM_EVERY: Final = 60.0


@attrs.frozen
class Keeping:
    """How long dead letters are kept.

    Attributes:
        at_most: How many.
        age: For how many seconds.
    """

    at_most: int
    age: float


class Heart:
    """Beats once per second.

    Args:
        queue: Told, and asked.
        nonce: Tells this process from others with its id.
        status: Returns what the relay tells of itself.
        on_beat: Called after each beat that was heard, with how many entries are pending for this relay.
    """

    def __init__(
        self,
        queue: EventQueue,
        relay_id: str,
        nonce: str,
        *,
        timeout: float,
        keeping: Keeping,
        counts: Counts,
        link: Link,
        signals: Signals,
        clock: Callable[[], datetime],
        status: Callable[[], Mapping[str, Any]],
        on_beat: Callable[[int], None],
    ) -> None:
        self._queue = queue
        self._relay_id = relay_id
        self._nonce = nonce
        self._timeout = timeout
        self._every = min(1.0, timeout / 5)
        self._keeping = keeping
        self._counts = counts
        self._link = link
        self._signals = signals
        self._clock = clock
        self._status = status
        self._on_beat = on_beat
        self._last_beat = -math.inf
        self.has_id = False
        self.share: tuple[int, ...] = ()
        self.gone: tuple[str, ...] = ()
        self.backlog = Backlog()

    async def take_id(self) -> None:
        """Says for the first time that this relay is alive. A predecessor with its id may have to expire.

        Raises:
            RelayStoppedError: Another living relay has the id.
        """
        loop = asyncio.get_running_loop()
        patience = max(self._timeout, _PREDECESSOR) + 2
        until, is_told = loop.time() + patience, False
        while not self.has_id:
            try:
                self.has_id = await self._beat()
            except QueueUnavailableError as error:
                self._link.note_failure(error, now=loop.time())
                until = loop.time() + patience
            if loop.time() > until:
                raise RelayStoppedError(
                    f"another living relay has the id {self._relay_id!r}: each needs its own"
                )
            if not self.has_id:
                if not is_told:
                    is_told = True
                    text = "the relay %s waits: its id is another relay's, which is alive, or has ended less "
                    text += "than its heartbeat_timeout ago"
                    log(logging.WARNING, text, self._relay_id)
                await asyncio.sleep(self._every)
        self._link.note_success()

    async def run(self) -> None:
        """Beats until it is cancelled.

        Raises:
            RelayStoppedError: Another process has taken the id.
        """
        trim_at = -math.inf
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._every)
            try:
                self.has_id = await self._beat()
                if not self.has_id:
                    raise RelayStoppedError(f"another process has taken the id {self._relay_id!r}")
                self.backlog = await self._queue.backlog()
                self._on_beat(self.backlog.pending_of.get(self._relay_id, 0))
                if loop.time() >= trim_at and 0 in self.share:
                    trim_at = loop.time() + _TRIM_EVERY
                    oldest = self._clock() - timedelta(seconds=self._keeping.age)
                    await self._queue.trim(at_most=self._keeping.at_most, oldest=oldest)
            except QueueUnavailableError as error:
                self._link.note_failure(error, now=loop.time())

    async def _beat(self) -> bool:
        """Says that this relay is alive. Returns False if another process has its id."""
        sent_at = asyncio.get_running_loop().time()
        roster = await self._queue.beat(self._relay_id, self._nonce, self._status(), timeout=self._timeout)
        if roster is None:
            return False
        self._last_beat = sent_at
        self._signals.beaten.set()
        self._counts.relays = len(roster.alive)
        # Also relays that the queue has forgotten, if entries were pending for them the last time.
        ghosts = set(self.backlog.pending_of) - set(roster.alive)
        self.gone = tuple(sorted(ghosts | set(roster.gone)))
        share = share_of(self._relay_id, roster.alive, self._queue.partitions)
        if share != self.share:
            text = "the relay %s reads %d of %d partitions; relays alive: %d"
            log(logging.INFO, text, self._relay_id, len(share), self._queue.partitions, len(roster.alive))
            self.share = share
        return True

    async def wait_until_known(self) -> None:
        """Waits until the others know that this relay is alive.

        After it stood still they may take its entries for those of an ended relay at any moment.
        """
        loop = asyncio.get_running_loop()
        while loop.time() - self._last_beat > self._timeout * 0.9:
            self._signals.beaten.clear()
            await self._signals.beaten.wait()
