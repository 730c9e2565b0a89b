"""What is on disk alone, brought back: events of earlier processes, and those that found no room in memory.

How it works
------------
There are two backlogs. `own` is what this emitter has deferred, because memory had no room for it. `earlier`
is what earlier processes have left: first in the emitter's own file, then in files of processes that have
ended, one file at a time. A file is read in pages, in the order in which its events were stored. At most
half of the room is for them, so that new events find room too.

```
 look for a file ──found──▶ read a page ──▶ pending ──all settled──▶ delete the file, look for the next
       ▲  every 30 s at most    ▲                │
       └──none                  └──room is free──┘
```

A session that holds its share is passed over, and read by its id once it holds less. While the emitter
closes, `own` is still brought back as long as requests succeed; the rest stays for the next process.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Final

import attrs

from rokt_events_async._pipeline.backlog import Backlog, Backlogs
from rokt_events_async._pipeline.commits import Commits
from rokt_events_async._pipeline.health import HealthMonitor
from rokt_events_async._pipeline.hooks import Hooks
from rokt_events_async._pipeline.ledger import Ledger
from rokt_events_async._pipeline.log import log
from rokt_events_async._pipeline.recorder import Recorder
from rokt_events_async._pipeline.retry import Random
from rokt_events_async._pipeline.room import Room
from rokt_events_async._pipeline.scheduler import Pool
from rokt_events_async._pipeline.settlement import Settlement
from rokt_events_async._pipeline.store import Page, Query, Size, Store, StoredEvent, StoreFailure
from rokt_events_async._protocol.encoding import decode
from rokt_events_async.errors import InvalidEventError
from rokt_events_async.events import PartnerEvent
from rokt_events_async.settings import EmitterSettings

_PAGE: Final = 200
"""How many events are read at once: what is done with them must not hold the loop."""

_NO_ROOM: Final = 0.5
"""Seconds to wait for room."""

_CLOSING: Final = 0.1
"""Seconds between two looks at whether requests succeed, while the emitter closes."""

_WRITE_AGAIN: Final = 1.0
"""Seconds before a write that failed is tried again."""

LOOK_AGAIN: Final = (20.0, 30.0)
"""The shortest and the longest time between two looks for files of processes that have ended, in seconds."""


@attrs.define
class _Earlier:
    """What earlier processes have left in a file."""

    commits: Commits
    backlog: Backlog
    stuck: int = 0
    """How many of its events can neither be sent nor put aside."""

    @property
    def is_passed_over(self) -> bool:
        """True if what is left of it waits for sessions that may hold no more."""
        return not self.backlog.has_more and not self.backlog.is_empty


@attrs.frozen
class _Asked:
    """What was asked of a file."""

    commits: Commits
    backlog: Backlog
    query: Query


class Recovery:
    """Brings back what is on disk alone.

    Args:
        clock: Returns the aware now.
    """

    def __init__(
        self,
        *,
        settings: EmitterSettings,
        backlogs: Backlogs,
        recorder: Recorder,
        room: Room,
        ledger: Ledger,
        pool: Pool,
        settlement: Settlement,
        health: HealthMonitor,
        hooks: Hooks,
        clock: Callable[[], datetime],
        random: Random,
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context,
    ) -> None:
        self._limit = max(1, settings.max_pending // 2)
        self._retry_unconfirmed = settings.retry.retry_unconfirmed
        self._backlogs = backlogs
        self._earlier: list[_Earlier] = []
        self._recorder = recorder
        self._room = room
        self._ledger = ledger
        self._pool = pool
        self._settlement = settlement
        self._health = health
        self._hooks = hooks
        self._clock = clock
        self._random = random
        self._loop = loop
        self._context = context
        self._is_asking = False
        """True while something that was asked of the journal is not answered."""
        self._is_closing = False
        self._is_stopped = False
        self._is_waiting = False
        """True until the timer: a page did not fit, or could not be read."""
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._read: asyncio.Future[None] | None = None
        recorder.on_progress = self.go_on

    def start(self) -> None:
        """Begins with the own file."""
        self._begin(self._recorder.own)
        self.go_on()

    def close(self) -> None:
        """Brings back what this emitter has deferred, as long as requests succeed, and nothing else."""
        self._is_closing = True
        self._stop_timer()
        self._is_waiting = False
        self.go_on()

    def stop(self) -> None:
        """Reads no more. What is in memory stays there."""
        self._is_stopped = True
        self._stop_timer()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        self._tell_readers()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self, commits: Commits) -> None:
        store = commits.store
        if store.oldest is not None:
            oldest_at = int(store.oldest.timestamp() * 1000)
            backlog = Backlog(after=0, until=store.last, oldest_at=oldest_at)
            self._earlier.append(_Earlier(commits, backlog))
            self._backlogs.earlier.append(backlog)
            self._hooks.recovered(store.stored, store.oldest)

    def on_released(self, session_id: str) -> None:
        """Notes that a session holds less than before."""
        self._backlogs.on_released(session_id)

    # Events that find no room in memory.

    def is_behind(self, session_id: str) -> bool:
        """Returns True if a new event of a session would overtake one that is on disk alone."""
        return self._backlogs.own.is_behind(session_id)

    def defer(self, session_id: str, number: int) -> None:
        """Notes that the event with that number is on disk alone, once it is written."""
        own = self._backlogs.own
        was_empty = own.is_empty
        own.defer(session_id, number, now=int(self._clock().timestamp() * 1000))
        if was_empty:
            self._health.refresh()

    @property
    def deferred_until(self) -> int:
        """The number of the last event that this emitter has deferred."""
        return self._backlogs.own.until

    async def brought_back(self, until: int) -> None:
        """Waits until what this emitter has deferred, up to that number, is in memory or past it.

        It also ends once the rest is left to the next process.
        """
        while not self._is_stopped and not self._backlogs.own.is_read_to(until):
            if self._read is None:
                self._read = self._loop.create_future()
            await asyncio.shield(self._read)

    def _tell_readers(self) -> None:
        if self._read is not None:
            self._read.set_result(None)
            self._read = None

    # What to do next.

    def go_on(self) -> None:
        """Does what can be done next. Called when anything has changed."""
        if self._is_stopped or self._is_asking or self._is_waiting:
            return
        if self._is_closing:
            self._go_on_closing()
        elif not self._ask_next() and self._timer is None and self._may_adopt():
            self._is_asking = True
            self._recorder.depot.adopt(self._on_adopted)

    def _go_on_closing(self) -> None:
        own = self._backlogs.own
        if own.is_empty or self._pool.is_failing:
            self.stop()
        elif not self._ask(self._recorder.own, own, only_deferred=True):
            if self._room.events or not self._recorder.own.is_idle:
                self._wait(_CLOSING)
            else:
                self.stop()  # The rest is of sessions that were left to the next process.

    def _ask_next(self) -> bool:
        """Asks for the next page: the own file's first, oldest events first. Returns True if it did."""
        own = self._recorder.own
        first = [earlier for earlier in self._earlier if earlier.commits is own]
        others = [earlier for earlier in self._earlier if earlier.commits is not own]
        return (
            any(self._go_on_with(earlier) for earlier in first)
            or self._ask(own, self._backlogs.own, only_deferred=True)
            or any(self._go_on_with(earlier) for earlier in others)
        )

    def _may_adopt(self) -> bool:
        """Returns True if nothing but what was passed over is left to read."""
        return not self._backlogs.own.has_more and all(earlier.is_passed_over for earlier in self._earlier)

    def _go_on_with(self, earlier: _Earlier) -> bool:
        """Reads on, or is done with a file. Returns True if something was asked for."""
        if not earlier.backlog.is_empty:
            return self._ask(earlier.commits, earlier.backlog, only_deferred=False)
        if earlier.commits is self._recorder.own:
            self._forget(earlier)
        elif earlier.commits.stored <= earlier.stuck and earlier.commits.is_idle:
            self._forget(earlier)
            self._recorder.forget(earlier.commits)
            self._recorder.depot.release(earlier.commits.store, self._on_released)
        return False

    def _ask(self, commits: Commits, backlog: Backlog, *, only_deferred: bool) -> bool:
        """Asks for the next page, if there is one and room for it. Returns True if it did."""
        brought_back = self._ledger.brought_back
        is_enough = brought_back > self._limit // 2 and self._limit - brought_back < _PAGE
        if is_enough or self._room.is_full:
            return False
        at_most = min(_PAGE, self._limit - brought_back)
        written = commits.written
        if (ready := backlog.next_ready()) is not None:
            session_id, after = ready
            query = Query(after, min(backlog.after, written), at_most, session_id=session_id)
        else:
            until = min(backlog.until, written)
            query = Query(backlog.after, until, at_most, only_deferred, without=backlog.passed_over)
        if query.after >= query.until:
            return False
        self._is_asking = True
        asked = _Asked(commits, backlog, query)
        commits.store.load(query, lambda result: self._on_page(asked, result))
        return True

    def _forget(self, earlier: _Earlier) -> None:
        self._earlier.remove(earlier)
        self._backlogs.earlier.remove(earlier.backlog)

    def _look_later(self) -> None:
        wait = self._random.uniform(*LOOK_AGAIN)
        self._timer = self._loop.call_later(wait, self._on_timer, context=self._context)

    def _wait(self, seconds: float) -> None:
        self._stop_timer()  # It may be that of the next look for files.
        self._is_waiting = True
        self._timer = self._loop.call_later(seconds, self._on_timer, context=self._context)

    def _on_timer(self) -> None:
        self._timer, self._is_waiting = None, False
        self.go_on()

    def _on_released(self, result: StoreFailure | None) -> None:
        if result is not None:
            log(logging.WARNING, "an empty journal file could not be deleted: %s", result)

    def _on_adopted(self, result: Store | StoreFailure | None) -> None:
        self._is_asking = False
        if self._is_stopped or self._is_closing:
            self.go_on()
            return  # The depot closes the file.
        if isinstance(result, StoreFailure):
            log(logging.WARNING, "the journal files of other processes cannot be read: %s", result)
        if result is None or isinstance(result, StoreFailure):
            self._look_later()
        else:
            self._begin(self._recorder.open(result))
        self.go_on()

    # A page.

    def _on_page(self, asked: _Asked, result: Page | StoreFailure) -> None:
        self._is_asking = False
        if self._is_stopped:
            return
        if isinstance(result, StoreFailure):
            log(logging.ERROR, "stored events cannot be read: %s", result)
            self._wait(LOOK_AGAIN[0])
            return
        asked.commits.stored = result.stored
        deferred = self._ledger.deferred
        if asked.query.session_id is None:
            unfindable = self._take_page(asked, result)
        else:
            self._take_session(asked, asked.query.session_id, result)
            unfindable = []
        if asked.backlog is self._backlogs.own:
            self._tell_of_progress(deferred - self._ledger.deferred)
        if unfindable:
            self._make_findable(asked.commits, unfindable)
        self.go_on()

    def _may_hold(self, session_id: str, size: int) -> bool:
        """Returns True if one more event of a session may come back: half of the room is for those, too."""
        return self._room.fits_share(session_id, size, part=2) and not self._pool.has_left(session_id)

    def _take_page(self, asked: _Asked, page: Page) -> list[int]:
        """Brings back a page. Returns the numbers of events passed over that must be made findable first."""
        unfindable: list[int] = []
        backlog, at = asked.backlog, None
        for stored in page.events:
            event, at = self._decode(asked, stored), stored.at
            if event is None:
                continue
            session_id, size = event.session_id, len(stored.wire)
            if not backlog.is_passed_over(session_id):
                if not self._may_hold(session_id, size):
                    backlog.pass_over(session_id, stored.number, at=stored.at)
                elif self._bring_back(asked, stored, event):
                    continue
                else:
                    backlog.read(stored.number - 1, at=at)
                    self._wait(_NO_ROOM)
                    return unfindable
            if not stored.is_findable:
                unfindable.append(stored.number)
        backlog.read(page.read_to, at=at)
        return unfindable

    def _take_session(self, asked: _Asked, session_id: str, page: Page) -> None:
        """Brings back events of a session that was passed over, as many as it may hold now."""
        backlog = asked.backlog
        for stored in page.events:
            event = self._decode(asked, stored)
            if event is None:
                continue
            if not self._may_hold(session_id, len(stored.wire)):
                backlog.pass_over(session_id, stored.number, at=stored.at)
                return
            if not self._bring_back(asked, stored, event):
                backlog.read_session(session_id, stored.number - 1, at=stored.at)
                self._wait(_NO_ROOM)
                return
        at = page.events[-1].at if page.events else 0
        backlog.read_session(session_id, page.read_to, at=at)

    def _decode(self, asked: _Asked, stored: StoredEvent) -> PartnerEvent | None:
        try:
            return decode(stored.wire)
        except InvalidEventError as error:
            self._condemn(asked.commits, stored.number, str(error))
            return None

    def _bring_back(self, asked: _Asked, stored: StoredEvent, event: PartnerEvent) -> bool:
        """Makes a stored event pending. Returns False if there is no room for it."""
        size = len(stored.wire)
        if not self._room.take_recovered(size):
            return False
        delivery = self._recorder.new_delivery()
        delivery.event, delivery.wire = event, stored.wire
        delivery.commits, delivery.number = asked.commits, stored.number
        delivery.is_stored, delivery.sent_before = True, stored.sent
        now = self._loop.time()
        if asked.backlog is self._backlogs.own:
            self._ledger.bring_back(delivery, now)
        else:
            self._ledger.recover(delivery, now)
        if stored.sent and not self._retry_unconfirmed:
            self._settlement.leave_sent(delivery)
        else:
            self._pool.enqueue(event.session_id, delivery, size, now)
        return True

    def _tell_of_progress(self, count: int) -> None:
        if self._is_closing or self._read is not None:  # A close or a flush waits for them.
            self._pool.flush()
        self._tell_readers()
        if count:
            self._hooks.returned(count, self._ledger.deferred, self._backlogs.oldest)
        if self._backlogs.own.is_empty:
            self._health.refresh()

    def _make_findable(self, commits: Commits, numbers: list[int]) -> None:
        """Has events that were passed over found by their session; nothing else is read before."""

        def done(result: Size | StoreFailure) -> None:
            if isinstance(result, StoreFailure) and not self._is_stopped:
                log(logging.ERROR, "the journal could not be written: %s", result)
                self._write_timer = self._loop.call_later(_WRITE_AGAIN, again, context=self._context)
                return
            self._is_asking = False
            self.go_on()

        def again() -> None:
            self._write_timer = None
            commits.store.make_findable(numbers, done)

        self._is_asking = True
        commits.store.make_findable(numbers, done)

    def _condemn(self, commits: Commits, number: int, why: str) -> None:
        found = [earlier for earlier in self._earlier if earlier.commits is commits]

        def done(result: Size | StoreFailure) -> None:
            if not isinstance(result, StoreFailure):
                commits.stored = result.stored
            else:
                for earlier in found:
                    earlier.stuck += 1

        log(logging.ERROR, "%s: event %d cannot be read and was put aside", commits.store.path, number)
        commits.store.condemn(number, why, done)
