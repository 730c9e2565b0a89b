"""Events of earlier processes: brought back from the journal as room comes free, and sent like all others.

How it works
------------
First the emitter's own file, if an earlier process has left events in it; then files of processes that have
ended, one at a time. A file is read in pages, in the order in which its events were stored. At most half of
the room is for them, and none while a caller waits for room.

```
 look for a file ──found──▶ read a page ──▶ pending ──all settled──▶ delete the file, look for the next
       ▲  every 30 s at most    ▲                │
       └──none                  └──room is free──┘
```
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import Final

from rokt_events_async._pipeline.commits import Commits
from rokt_events_async._pipeline.hooks import Hooks
from rokt_events_async._pipeline.ledger import Ledger
from rokt_events_async._pipeline.log import log
from rokt_events_async._pipeline.recorder import Recorder
from rokt_events_async._pipeline.retry import Random
from rokt_events_async._pipeline.room import Room
from rokt_events_async._pipeline.scheduler import Pool
from rokt_events_async._pipeline.settlement import Settlement
from rokt_events_async._pipeline.store import Page, Size, Store, StoredEvent, StoreFailure
from rokt_events_async._protocol.encoding import decode
from rokt_events_async.errors import InvalidEventError
from rokt_events_async.settings import EmitterSettings

_PAGE: Final = 200
"""How many events are read at once: what is done with them must not hold the loop."""

_NO_ROOM: Final = 0.5
"""Seconds to wait for room."""

LOOK_AGAIN: Final = (20.0, 30.0)
"""The shortest and the longest time between two looks for files of processes that have ended, in seconds."""


class Recovery:
    """Brings back the events of earlier processes."""

    def __init__(
        self,
        *,
        settings: EmitterSettings,
        recorder: Recorder,
        room: Room,
        ledger: Ledger,
        pool: Pool,
        settlement: Settlement,
        hooks: Hooks,
        random: Random,
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context,
    ) -> None:
        self._limit = max(1, settings.max_pending // 2)
        self._retry_unconfirmed = settings.retry.retry_unconfirmed
        self._recorder = recorder
        self._room = room
        self._ledger = ledger
        self._pool = pool
        self._settlement = settlement
        self._hooks = hooks
        self._random = random
        self._loop = loop
        self._context = context
        self._file: Commits | None = None
        self._after = 0
        self._is_read = False
        """True if all events of the file have been read."""
        self._is_asking = False
        """True while something that was asked of the journal is not answered."""
        self._is_stopped = False
        self._is_waiting = False
        """True until the timer: a page did not fit, or could not be read."""
        self._timer: asyncio.TimerHandle | None = None
        recorder.on_progress = self.go_on

    def start(self) -> None:
        """Begins with the own file."""
        self._begin(self._recorder.own)
        self.go_on()

    def stop(self) -> None:
        """Reads no more. What is in memory stays there."""
        self._is_stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self, commits: Commits) -> None:
        store = commits.store
        self._file, self._after, self._is_read = commits, 0, store.oldest is None
        if store.oldest is not None:
            self._hooks.recovered(store.stored, store.oldest)

    def go_on(self) -> None:
        """Does what can be done next. Called when anything has changed."""
        if self._is_stopped or self._is_asking or self._is_waiting:
            return
        if self._file is None:
            if self._timer is None:
                self._is_asking = True
                self._recorder.depot.adopt(self._on_adopted)
        elif not self._is_read:
            if self._ledger.revived <= self._limit // 2 and not self._room.is_full:
                self._is_asking = True
                at_most = min(_PAGE, self._limit - self._ledger.revived)
                self._file.store.load(self._after, at_most, self._on_page)
        elif not self._ledger.revived and self._file.is_idle:
            self._finish(self._file)

    def _look_later(self) -> None:
        wait = self._random.uniform(*LOOK_AGAIN)
        self._timer = self._loop.call_later(wait, self._on_timer, context=self._context)

    def _wait(self, seconds: float) -> None:
        self._is_waiting = True
        self._timer = self._loop.call_later(seconds, self._on_timer, context=self._context)

    def _on_timer(self) -> None:
        self._timer, self._is_waiting = None, False
        self.go_on()

    def _finish(self, commits: Commits) -> None:
        """Is done with a file: an adopted one is deleted."""
        self._file = None
        if commits is not self._recorder.own:
            self._recorder.forget(commits)
            self._recorder.depot.release(commits.store, self._on_released)
        self.go_on()

    def _on_released(self, result: StoreFailure | None) -> None:
        if result is not None:
            log(logging.WARNING, "an empty journal file could not be deleted: %s", result)

    def _on_adopted(self, result: Store | StoreFailure | None) -> None:
        self._is_asking = False
        if self._is_stopped:
            return  # The depot closes the file.
        if isinstance(result, StoreFailure):
            log(logging.WARNING, "the journal files of other processes cannot be read: %s", result)
        if result is None or isinstance(result, StoreFailure):
            self._look_later()
            return
        self._begin(self._recorder.open(result))
        self.go_on()

    def _on_page(self, result: Page | StoreFailure) -> None:
        self._is_asking = False
        if self._is_stopped:
            return
        if isinstance(result, StoreFailure):
            log(logging.ERROR, "stored events cannot be read: %s", result)
            self._wait(LOOK_AGAIN[0])
            return
        assert self._file is not None, "a file is being read"
        self._file.stored = result.stored
        self._is_read = not result.events
        for stored in result.events:
            if not self._bring_back(stored):
                self._wait(_NO_ROOM)
                break
            self._after = stored.number
        self.go_on()

    def _bring_back(self, stored: StoredEvent) -> bool:
        """Makes a stored event pending. Returns False if there is no room for it."""
        assert self._file is not None, "a file is being read"
        try:
            event = decode(stored.wire)
        except InvalidEventError as error:
            self._condemn(self._file, stored.number, str(error))
            return True
        size = len(stored.wire)
        if not self._room.take_recovered(size):
            return False
        delivery = self._recorder.new_delivery()
        delivery.event, delivery.wire = event, stored.wire
        delivery.commits, delivery.number = self._file, stored.number
        delivery.is_stored, delivery.sent_before = True, stored.sent
        now = self._loop.time()
        self._ledger.recover(delivery, now)
        if stored.sent and not self._retry_unconfirmed:
            self._settlement.leave_sent(delivery)
        else:
            self._pool.enqueue(event.session_id, delivery, size, now)
        return True

    def _condemn(self, commits: Commits, number: int, why: str) -> None:
        def done(result: Size | StoreFailure) -> None:
            if not isinstance(result, StoreFailure):
                commits.stored = result.stored

        log(logging.ERROR, "%s: event %d cannot be read and was put aside", commits.store.path, number)
        commits.store.condemn(number, why, done)
