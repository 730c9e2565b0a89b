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

A session that holds enough is passed over, and read by its id once it holds less. While the emitter
closes, `own` is still brought back as long as requests succeed; the rest stays for the next process.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
from collections.abc import Callable
from datetime import datetime
from typing import Final

import attrs

from rokt_events_async._pipeline.backlog import Backlog, Backlogs
from rokt_events_async._pipeline.commits import Commits
from rokt_events_async._pipeline.health import HealthMonitor
from rokt_events_async._pipeline.ledger import Ledger
from rokt_events_async._pipeline.recorder import Recorder
from rokt_events_async._pipeline.retry import Random
from rokt_events_async._pipeline.room import Room
from rokt_events_async._pipeline.scheduler import Pool
from rokt_events_async._pipeline.settlement import Settlement
from rokt_events_async._pipeline.store import Page, Query, Size, Store, StoredEvent, StoreFailure
from rokt_events_async._protocol.encoding import decode
from rokt_events_async._tracking.hooks import Hooks
from rokt_events_async._tracking.log import log
from rokt_events_async.errors import InvalidEventError
from rokt_events_async.events import PartnerEvent
from rokt_events_async.settings import EmitterSettings

_PAGE: Final = 200
"""How many events are read at once: what is done with them must not hold the loop."""

_NO_ROOM: Final = 0.5
"""Seconds to wait for room."""

_TRY_AGAIN: Final = 1.0
"""Seconds after which it goes on at the latest, while something is on disk alone."""

_CLOSING: Final = 0.1
"""The same while the emitter closes."""

_MAX_FILES: Final = 8
"""How many files of earlier processes are open at most. Each but the last waits for sessions that fail."""

_WRITE_AGAIN: Final = 1.0
"""Seconds before a write that failed is tried again."""

LOOK_AGAIN: Final = (20.0, 30.0)
"""The shortest and the longest time between two looks for files of processes that have ended, in seconds."""


@attrs.define(eq=False)
class _Source:
    """A file with what is on disk alone: deferred by this emitter, or left by earlier processes."""

    commits: Commits
    backlog: Backlog
    only_deferred: bool = False
    not_before: float = -math.inf
    """When it may be read again: a page did not fit, or could not be read."""
    stuck: int = 0
    """How many of its events can neither be sent nor put aside."""


@attrs.frozen
class _Asked:
    """What was asked of a file."""

    source: _Source
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
        share = int(settings.max_session_share * settings.max_pending)
        self._session_limit = max(1, min(share // 2, self._limit // 4))
        self._retry_unconfirmed = settings.retry.retry_unconfirmed
        self._backlogs = backlogs
        self._own = _Source(recorder.own, backlogs.own, only_deferred=True)
        self._earlier: list[_Source] = []
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
        self._look_timer: asyncio.TimerHandle | None = None
        """Until the next look for files of processes that have ended."""
        self._timer: asyncio.TimerHandle | None = None
        """Until the next try, if something is on disk alone and was not asked for."""
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
        self.go_on()

    def stop(self) -> None:
        """Reads no more. What is in memory stays there."""
        self._is_stopped = True
        for timer in (self._look_timer, self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._look_timer = self._timer = self._write_timer = None
        self._tell_readers()

    def _begin(self, commits: Commits) -> None:
        store = commits.store
        if store.oldest is not None:
            oldest_at = int(store.oldest.timestamp() * 1000)
            backlog = Backlog(after=0, until=store.last, oldest_at=oldest_at)
            self._earlier.append(_Source(commits, backlog))
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
        """Does what can be done next. Called when anything has changed, and now and then."""
        if self._is_stopped or self._is_asking:
            return
        if self._is_closing:
            self._go_on_closing()
        elif not self._ask_next():
            if self._look_timer is None and self._may_adopt():
                self._is_asking = True
                self._recorder.depot.adopt(self._on_adopted)
            elif self._earlier or not self._own.backlog.is_empty:
                self._try_again(_TRY_AGAIN)

    def _go_on_closing(self) -> None:
        if self._own.backlog.is_empty or self._pool.is_failing:
            self.stop()
        elif not self._ask(self._own):
            if self._room.events or not self._recorder.own.is_idle:
                self._try_again(_CLOSING)
            else:
                self.stop()  # The rest is of sessions that were left to the next process.

    def _try_again(self, seconds: float) -> None:
        """Goes on later, if nothing makes it go on before."""
        if self._timer is None:
            self._timer = self._loop.call_later(seconds, self._on_timer, context=self._context)

    def _on_timer(self) -> None:
        self._timer = None
        self.go_on()

    def _ask_next(self) -> bool:
        """Asks for the next page: the own file's first, oldest events first. Returns True if it did."""
        first = [source for source in self._earlier if source.commits is self._own.commits]
        others = [source for source in self._earlier if source.commits is not self._own.commits]
        return any(self._go_on_with(source) for source in (*first, self._own, *others))

    def _may_adopt(self) -> bool:
        """Returns True if nothing but what is in memory, or was passed over, is left of the open files."""
        has_more = any(source.backlog.has_more for source in (self._own, *self._earlier))
        return not has_more and len(self._earlier) < _MAX_FILES

    def _go_on_with(self, source: _Source) -> bool:
        """Reads on, or is done with a file. Returns True if something was asked for."""
        if source is self._own or not source.backlog.is_empty:
            return self._ask(source)
        if source.commits is self._own.commits:
            self._forget(source)
        elif source.commits.stored <= source.stuck and source.commits.is_idle:
            self._forget(source)
            self._recorder.forget(source.commits)
            self._recorder.depot.release(source.commits.store, self._on_released)
        return False

    def _forget(self, source: _Source) -> None:
        self._earlier.remove(source)
        self._backlogs.earlier.remove(source.backlog)

    def _ask(self, source: _Source) -> bool:
        """Asks for the next page, if there is one and room for it. Returns True if it did."""
        free = self._limit - self._ledger.brought_back
        is_enough = free < self._limit - self._limit // 2 and free < min(_PAGE, max(1, self._limit // 4))
        if is_enough or self._room.is_full or self._loop.time() < source.not_before:
            return False
        commits, backlog = source.commits, source.backlog
        at_most, written = min(_PAGE, free), commits.written
        if (ready := backlog.next_ready()) is not None:
            session_id, after = ready
            query = Query(after, min(backlog.after, written), at_most, session_id=session_id)
        else:
            until, without = min(backlog.until, written), backlog.passed_over
            query = Query(backlog.after, until, at_most, source.only_deferred, without=without)
        if query.after >= query.until:
            return False
        self._is_asking = True
        asked = _Asked(source, query)
        commits.store.load(query, lambda result: self._on_page(asked, result))
        return True

    def _look_later(self) -> None:
        wait = self._random.uniform(*LOOK_AGAIN)
        self._look_timer = self._loop.call_later(wait, self._on_look_timer, context=self._context)

    def _on_look_timer(self) -> None:
        self._look_timer = None
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
        source = asked.source
        if self._is_stopped or (self._is_closing and source is not self._own):
            self.go_on()
            return
        if isinstance(result, StoreFailure):
            log(logging.ERROR, "stored events cannot be read: %s", result)
            source.not_before = self._loop.time() + LOOK_AGAIN[0]
            self.go_on()
            return
        source.commits.stored = result.stored
        deferred = self._ledger.deferred
        unfindable: dict[int, str] = {}
        if asked.query.session_id is None:
            unfindable = self._take_page(source, result)
        else:
            self._take_session(source, asked.query.session_id, result)
        if source is self._own:
            self._tell_of_progress(deferred - self._ledger.deferred)
        if unfindable:
            self._make_findable(source.commits, unfindable)
        self.go_on()

    def _may_hold(self, session_id: str, size: int) -> bool:
        """Returns True if one more event of a session may come back, within its part of what may."""
        held, _ = self._room.held_by(session_id)
        is_bounded = held < self._session_limit and self._room.fits_share(session_id, size)
        return is_bounded and not self._pool.has_left(session_id)

    def _take_page(self, source: _Source, page: Page) -> dict[int, str]:
        """Brings back a page. Returns the sessions of events that must be made findable, by number."""
        unfindable: dict[int, str] = {}
        backlog, at = source.backlog, None
        for stored in page.events:
            event, at = self._decode(source, stored), stored.at
            if event is None:
                continue
            session_id, size = event.session_id, len(stored.wire)
            if not backlog.is_passed_over(session_id):
                if not self._may_hold(session_id, size):
                    backlog.pass_over(session_id, stored.number, at=stored.at)
                elif self._bring_back(source, stored, event):
                    continue
                else:
                    backlog.read(stored.number - 1, at=at)
                    source.not_before = self._loop.time() + _NO_ROOM
                    return unfindable
            if not stored.is_findable:
                unfindable[stored.number] = session_id
        backlog.read(page.read_to, at=at)
        return unfindable

    def _take_session(self, source: _Source, session_id: str, page: Page) -> None:
        """Brings back events of a session that was passed over, as many as it may hold now."""
        backlog = source.backlog
        for stored in page.events:
            event = self._decode(source, stored)
            if event is None:
                continue
            if not self._may_hold(session_id, len(stored.wire)):
                backlog.pass_over(session_id, stored.number, at=stored.at)
                return
            if not self._bring_back(source, stored, event):
                backlog.read_session(session_id, stored.number - 1, at=stored.at)
                source.not_before = self._loop.time() + _NO_ROOM
                return
        at = page.events[-1].at if page.events else 0
        backlog.read_session(session_id, page.read_to, at=at)

    def _decode(self, source: _Source, stored: StoredEvent) -> PartnerEvent | None:
        try:
            return decode(stored.wire)
        except InvalidEventError as error:
            self._condemn(source, stored.number, str(error))
            return None

    def _bring_back(self, source: _Source, stored: StoredEvent, event: PartnerEvent) -> bool:
        """Makes a stored event pending. Returns False if there is no room for it."""
        size = len(stored.wire)
        if not self._room.take_recovered(size):
            return False
        delivery = self._recorder.new_delivery()
        delivery.event, delivery.wire = event, stored.wire
        delivery.commits, delivery.number = source.commits, stored.number
        delivery.is_stored, delivery.sent_before = True, stored.sent
        now = self._loop.time()
        since = now - max(0.0, self._clock().timestamp() - stored.at / 1000)
        if source is self._own:
            self._ledger.bring_back(delivery, now, since=since)
        else:
            self._ledger.recover(delivery, now, since=since)
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
            left = self._ledger.deferred
            self._hooks.returned(count, left, self._backlogs.oldest if left else None)
        if self._backlogs.own.is_empty:
            self._health.refresh()

    def _make_findable(self, commits: Commits, sessions: dict[int, str]) -> None:
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
            commits.store.make_findable(sessions, done)

        self._is_asking = True
        commits.store.make_findable(sessions, done)

    def _condemn(self, source: _Source, number: int, why: str) -> None:
        commits = source.commits

        def done(result: Size | StoreFailure) -> None:
            if isinstance(result, StoreFailure):
                source.stuck += 1
            else:
                commits.stored = result.stored
            self.go_on()

        log(logging.ERROR, "%s: event %d cannot be read and was put aside", commits.store.path, number)
        commits.store.condemn(number, why, done)
