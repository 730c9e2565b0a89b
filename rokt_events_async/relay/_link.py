"""A relay's way to its queue: whether it can be reached, and what the relay counts.

While the queue cannot be reached, heartbeats expire of relays that are alive. So nothing is taken over for
`heartbeat_timeout` after the last failure.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any, Final, TypeVar

import attrs

from rokt_events_async._tracking.log import log
from rokt_events_async.errors import QueueFullError, QueueUnavailableError
from rokt_events_async.outcomes import LastError

T = TypeVar("T")

_LOG_AGAIN: Final = 10.0
"""Seconds after which the log tells again of entries that are gone."""

RETRY_AFTER: Final = (0.05, 1.0)
"""The first and the longest wait before the queue is tried again, in seconds."""


@attrs.define
class Counts:
    """What a relay counts; see `RelayStats`."""

    read: int = 0
    delivered: int = 0
    dead_letters: int = 0
    redelivered: int = 0
    taken_over: int = 0
    repeated: int = 0
    repeats_dropped: int = 0
    possible_duplicates: int = 0
    acknowledged: int = 0
    acknowledged_elsewhere: int = 0
    relays: int = 0
    queue_failures: int = 0


class Signals:
    """How the loops of a relay wake each other. A loop clears what it has heard."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self.due = asyncio.Event()
        self.settled = asyncio.Event()
        self.room = asyncio.Event()
        self.beaten = asyncio.Event()


class Link:
    """Notes whether the queue can be reached.

    Args:
        relay_id: The relay, for the log.
        heartbeat_timeout: Seconds.
        clock: Returns the aware now.
    """

    def __init__(
        self, relay_id: str, *, counts: Counts, heartbeat_timeout: float, clock: Callable[[], datetime]
    ) -> None:
        self._relay_id = relay_id
        self._counts = counts
        self._heartbeat_timeout = heartbeat_timeout
        self._clock = clock
        self.is_open = False
        self.failing_since: datetime | None = None
        self.last_error: LastError | None = None
        self.no_taking_until = -math.inf
        self._gone = 0
        self._quiet_until = -math.inf
        self.has_lost_entries = True
        """True if entries may be pending for this relay that it does not hold."""

    def note_failure(self, error: Exception, *, now: float) -> None:
        """Notes that the queue could not be reached: others may look ended that are not."""
        self._counts.queue_failures += 1
        self.last_error = LastError(str(error), self._clock())
        self.has_lost_entries = True
        self.no_taking_until = now + self._heartbeat_timeout
        if self.failing_since is None:
            self.failing_since = self._clock()
            log(logging.ERROR, "the relay %s cannot reach its queue: %s", self._relay_id, error)

    def note_gone(self, count: int, *, now: float) -> None:
        """Notes entries that were gone from the queue when they were to be sent or acknowledged."""
        self._counts.acknowledged_elsewhere += count
        self._gone += count
        if self._gone and now >= self._quiet_until:
            self._quiet_until = now + _LOG_AGAIN
            text = "the relay %s held %d entries that are gone from the queue: another relay has settled "
            text += "them, the answer to their acknowledgement was lost, or the queue has lost its data"
            log(logging.WARNING, text, self._relay_id, self._gone)
            self._gone = 0

    def note_success(self) -> None:
        """Notes that the queue was reached."""
        if self.failing_since is not None:
            seconds = (self._clock() - self.failing_since).total_seconds()
            self.failing_since = None
            log(
                logging.WARNING, "the relay %s reaches its queue again, after %.0f s", self._relay_id, seconds
            )

    async def insist(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Calls the queue until it answers."""
        wait = RETRY_AFTER[0]
        while True:
            try:
                result = await call()
            except (QueueUnavailableError, QueueFullError) as error:
                self.note_failure(error, now=asyncio.get_running_loop().time())
                await asyncio.sleep(wait)
                wait = min(2 * wait, RETRY_AFTER[1])
            else:
                self.note_success()
                return result
