"""What the engine writes to the journal: of its own file, and of files of earlier processes.

A row is *stored* from its append on, and *sent* from its mark on:

```
 append ─▶ stored ──mark, before the POST──▶ sent ──outcome──▶ deleted and counted
              ▲                               │
              └─unmark: not accepted for sure─┘
```

A row that is found as sent may have been accepted. Rows of one batch can be in several files.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal

from rokt_events_async._pipeline.commits import Commits, StoredDelivery, Tell
from rokt_events_async._pipeline.store import Depot, Size, Store, StoreFailure
from rokt_events_async._tracking.log import log
from rokt_events_async.outcomes import Delivery, JournalStats, Outcome

OnError = Literal["raise", "memory"]
"""What becomes of events that the journal cannot store: refused, or accepted into memory alone."""

_MEASURE_AGAIN: Final = 1.0
"""Seconds between two measurements of a full directory."""

_LOG_AGAIN: Final = 10.0
"""Seconds between two records of failures."""


class Recorder:
    """The journal as one emitter's engine uses it."""

    def __init__(
        self,
        depot: Depot,
        *,
        on_error: OnError,
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context,
    ) -> None:
        self.depot = depot
        self.on_error = on_error
        self._loop = loop
        self._context = context
        self.on_stored: Callable[[StoredDelivery], None]
        """Called with each event that is on disk."""
        self.on_refused: Callable[[StoredDelivery, StoreFailure], None]
        """Called with each event that could not be written."""
        self.on_progress: Callable[[], None]
        """Called after each commit."""
        self.on_changed: Callable[[], None]
        """Called when the journal begins to fail, or is well again."""
        self._files: list[Commits] = []
        self.own = self.open(depot.own)
        self._commits = 0
        self._failures = 0
        self.size = depot.size.file_bytes
        """How many bytes the directory holds."""
        self._quiet_until = 0.0
        self._measured_at = -math.inf
        self.is_full = depot.size.is_full
        """True if the directory holds more than its bound."""
        self.is_failing = False
        """True if the last write failed."""

    def open(self, store: Store) -> Commits:
        """Returns the commits of a file, which is written to from now on."""
        commits = Commits(
            store,
            loop=self._loop,
            context=self._context,
            on_stored=self._on_stored,
            on_refused=self._on_refused,
            on_commit=self._on_commit,
        )
        self._files.append(commits)
        return commits

    def forget(self, commits: Commits) -> None:
        """Writes to a file no more."""
        self._files.remove(commits)

    def new_delivery(self) -> StoredDelivery:
        """Returns the delivery of an event that is to come."""
        delivery = StoredDelivery(loop=self._loop)
        delivery.commits = delivery.waiter = delivery.context = None
        delivery.is_stored = delivery.is_settling = delivery.is_deferred = False
        delivery.sent_before = 0
        return delivery

    def _on_stored(self, delivery: StoredDelivery) -> None:
        self.on_stored(delivery)

    def _on_refused(self, delivery: StoredDelivery, failure: StoreFailure) -> None:
        self.on_refused(delivery, failure)

    def _on_commit(self, result: Size | StoreFailure) -> None:
        was_failing, was_full = self.is_failing, self.is_full
        if isinstance(result, StoreFailure):
            self._failures += 1
            self.is_failing = True
            now = self._loop.time()
            if now >= self._quiet_until:
                self._quiet_until = now + _LOG_AGAIN
                log(logging.ERROR, "the journal could not be written: %s", result)
        else:
            self._commits += 1
            self.is_failing = False
            self.size, self.is_full = result.file_bytes, result.is_full
        if (self.is_failing, self.is_full) != (was_failing, was_full):
            self.on_changed()
        self.on_progress()

    # What happens to events.

    def append(self, delivery: StoredDelivery) -> None:
        """Stores an event in the own file."""
        self.own.append(delivery)

    async def mark(self, deliveries: Iterable[Delivery]) -> bool:
        """Notes that events are about to be sent. Returns False if that could not be written.

        Cancelled, the events are not marked in the end.
        """
        marked: list[Delivery] = []
        is_written = False
        try:
            for commits, stored in _by_file(deliveries).items():
                if commits is not None and not await commits.mark(stored):
                    break
                marked += stored
            else:
                is_written = True
        finally:
            if not is_written:
                self.unmark(marked)
        return is_written

    def unmark(self, deliveries: Iterable[Delivery], *, at_least: int = 0) -> None:
        """Notes that this process has not sent marked events, or that it ends in good order.

        Args:
            at_least: How many processes have sent them at least.
        """
        for commits, stored in _by_file(deliveries).items():
            if commits is not None:
                commits.unmark(stored, at_least=at_least)

    def measure(self) -> None:
        """Has a full directory measured again, once per second at most."""
        now = self._loop.time()
        if now >= self._measured_at + _MEASURE_AGAIN:
            self._measured_at = now
            self.own.measure()

    def settle(
        self, deliveries: Iterable[Delivery], outcome: Outcome, *, maybe_duplicate: bool, tell: Tell
    ) -> None:
        """Writes the outcome of events, and then calls `tell` with those of each file."""
        for commits, stored in _by_file(deliveries).items():
            for delivery in stored:
                delivery.is_settling = True
            if commits is None:
                tell(stored)
                self._loop.call_soon(self.on_progress, context=self._context)  # There is room, and no commit.
            else:
                commits.settle(stored, outcome, maybe_duplicate=maybe_duplicate, tell=tell)

    # Views, and the end.

    def stats(self, *, deferred: int, recovered: int) -> JournalStats:
        """Returns the journal's numbers. Safe from any thread."""
        return JournalStats(
            stored=sum([commits.stored for commits in tuple(self._files)]),
            deferred=deferred,
            recovered=recovered,
            file_bytes=self.size,
            commits=self._commits,
            failures=self._failures,
        )

    async def idle(self) -> None:
        """Waits until everything is written."""
        for commits in tuple(self._files):
            await commits.idle()

    async def appended(self) -> None:
        """Waits until no event is being stored any more."""
        while self.own.is_appending:
            await self.own.idle()

    def stop_appends(self) -> None:
        """Refuses the events that are not stored yet."""
        self.own.stop_appends()

    def stop(self) -> None:
        """Gives up what is not written yet, and tells the outcomes that wait for it."""
        untold = sum([commits.stop() for commits in self._files])
        if untold:
            text = "the journal in %s could not be written: the outcomes of %d events were told all the same"
            log(logging.ERROR, text, self.depot.directory, untold)


def _by_file(deliveries: Iterable[Delivery]) -> dict[Commits | None, list[StoredDelivery]]:
    """Returns the events by their file; those that are in none under `None`."""
    stored: Any = deliveries if isinstance(deliveries, (list, tuple)) else list(deliveries)
    commits = stored[0].commits if stored else None
    for delivery in stored:
        if delivery.commits is not commits:
            break
    else:
        return {commits: list(stored)} if stored else {}  # Nearly always: all in the own file.
    found: dict[Commits | None, list[StoredDelivery]] = {}
    for delivery in stored:
        found.setdefault(delivery.commits, []).append(delivery)
    return found
