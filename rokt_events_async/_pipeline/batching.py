"""Sessions, batches, lingers: which events travel together, and when. Pure; `now` is passed in.

How it works
------------
A session exists only while it has events. It holds

- `open`: the batch that is being filled. It is due one linger after its first event;
- `full`: the oldest batch that became full and has not left yet, and `more_full` the batches behind it;
- `in_flight`: True while a batch of the session is in flight. At most one is, so that order is kept.

```
             add                     full, or linger over,
  (no state) ───▶ open, not due ─────or flushed──────▶ due ──take──▶ in flight
       ▲                ▲                               ▲               │
       │                └──── release: more, not due ───┼───────────────┤
       │                                                └─ release: more, due
       └───────────────────── release: nothing left ────────────────────┘
```

Events that arrive while a session is due or in flight fill its open batch; they never overtake.

Three queues hold the sessions that wait, each in order of age. All moves are O(1):

- `_opening`: a ring of the sessions whose open batch lingers. The linger is the same for all, so the
  order of opening is the order of falling due. A flush moves the whole ring at once;
- `_flushed`: a ring of the sessions whose open batch was flushed;
- `_ready`: the sessions, in order, that have a full batch, or came back from a flight with a due one.

Nothing is done when a batch falls due: `take` looks at the three heads and returns the oldest batch. A
session in flight that comes up in a ring is only marked (`is_due`); `release` makes it ready.

The sessions are kept in 64 dictionaries, because growing a single one of a million entries would hold the
caller for a tenth of a second.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import islice, takewhile
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_SHARDS: Final = 64


class _Link:
    """A place in a ring. A link that is in no ring has `_NOWHERE` as its neighbours."""

    __slots__ = ("after", "before")

    before: _Link
    after: _Link


_NOWHERE: Final = _Link()


class _Ring(_Link):
    """The anchor of a doubly linked ring: O(1) append, removal anywhere, and splice."""

    __slots__ = ()

    def __init__(self) -> None:
        self.before = self.after = self

    def append(self, link: _Link) -> None:
        last = self.before
        link.before, link.after = last, self
        last.after = self.before = link

    def splice(self, other: _Ring) -> None:
        """Appends all of the other ring, which is empty afterwards."""
        if other.after is other:
            return
        first, last = other.after, other.before
        self.before.after, first.before = first, self.before
        last.after, self.before = self, last
        other.before = other.after = other


def _unlink(link: _Link) -> None:
    if link.after is not _NOWHERE:
        link.before.after, link.after.before = link.after, link.before
        link.before = link.after = _NOWHERE


class Session(_Link, Generic[T]):
    """A session with events waiting or in flight. Callers of `take` hand it back to `release`."""

    __slots__ = (
        "bytes",
        "full",
        "id",
        "in_flight",
        "is_due",
        "is_ready",
        "is_slow",
        "items",
        "more_full",
        "open",
        "opened_at",
        "ready_at",
    )

    def __init__(self, session_id: str) -> None:
        self.before = self.after = _NOWHERE
        self.id = session_id
        self.open: list[T] = []
        self.opened_at = math.inf
        self.full: list[T] | None = None
        self.more_full: deque[list[T]] | None = None
        self.ready_at = math.inf
        self.is_ready = False
        self.is_due = False
        self.in_flight = False
        self.is_slow = False
        """True from a time-out of its request until its next answer."""
        self.items = 0
        self.bytes = 0

    @property
    def has_more(self) -> bool:
        """True if events wait behind the batch in flight."""
        return bool(self.open or self.full)

    def push_full(self, batch: list[T]) -> None:
        """Puts a full batch behind those that wait already. A single one needs no queue."""
        if self.full is None:
            self.full = batch
            return
        if self.more_full is None:
            self.more_full = deque()
        self.more_full.append(batch)

    def pop_full(self) -> None:
        """Removes the oldest full batch."""
        self.full = self.more_full.popleft() if self.more_full else None
        if not self.more_full:
            self.more_full = None


class Batches(Generic[T]):
    """All sessions with events waiting or in flight.

    Args:
        max_batch_size: The most items that a batch holds.
        linger: Seconds after its first item at which an open batch falls due.
        heavy: A session that holds as many items, or as many bytes, is heavy.
        size_of: Returns the size of an item in bytes.
    """

    def __init__(
        self,
        *,
        max_batch_size: int,
        linger: float,
        heavy: tuple[float, float] = (math.inf, math.inf),
        size_of: Callable[[T], int] = lambda _: 0,
    ) -> None:
        self._max_batch_size = max_batch_size
        self._linger = linger
        self._heavy_items, self._heavy_bytes = heavy
        self._size_of = size_of
        self._shards: tuple[dict[str, Session[T]], ...] = tuple({} for _ in range(_SHARDS))
        self._opening = _Ring()
        self._flushed = _Ring()
        self._ready: OrderedDict[Session[T], None] = OrderedDict()
        self.sessions = 0
        self.heavy: dict[str, Session[T]] = {}
        """The sessions that are heavy, by their id."""

    def held_by(self, session_id: str) -> tuple[int, int]:
        """Returns how many items and bytes a session holds, those in flight included."""
        session = self._shards[hash(session_id) % _SHARDS].get(session_id)
        return (session.items, session.bytes) if session else (0, 0)

    def add(self, session_id: str, item: T, now: float, size: int = 0) -> bool:
        """Adds an item to its session. Returns True if that made a batch due that was not due before."""
        shard = self._shards[hash(session_id) % _SHARDS]
        session = shard.get(session_id)
        if session is None:
            session = shard[session_id] = Session(session_id)
            self.sessions += 1
        session.items = items = session.items + 1
        session.bytes = held = session.bytes + size
        if items >= self._heavy_items or held >= self._heavy_bytes:
            self.heavy[session_id] = session
        batch = session.open
        if batch:
            batch.append(item)
        else:
            batch = session.open = [item]
            session.opened_at = now
            self._opening.append(session)
        if len(batch) < self._max_batch_size:
            return False
        return self._close_open(session, now=now)

    def _close_open(self, session: Session[T], *, now: float) -> bool:
        _unlink(session)
        session.push_full(session.open)
        session.open = []
        session.is_due = False
        return self._make_ready(session, now=now)

    def _make_ready(self, session: Session[T], *, now: float) -> bool:
        if session.in_flight or session.is_ready:
            return False
        session.is_ready, session.ready_at = True, now
        self._ready[session] = None
        return True

    def flush(self) -> None:
        """Makes every waiting batch due, whatever is left of its linger."""
        self._flushed.splice(self._opening)

    def next_due(self) -> float | None:
        """Returns when the next batch falls due: the past if one is due, `None` if none waits."""
        if self._ready or self._flushed.after is not self._flushed:
            return -math.inf
        head = self._opening.after
        return head.opened_at + self._linger if isinstance(head, Session) else None

    def due_since(self, *, now: float) -> float:
        """Returns since when the oldest due batch has been due; infinity if none is due."""
        since = next(iter(self._ready)).ready_at if self._ready else math.inf
        if isinstance(flushed := self._flushed.after, Session):
            since = min(since, flushed.opened_at)
        if isinstance(opening := self._opening.after, Session):
            due_at = opening.opened_at + self._linger
            since = min(since, due_at) if due_at <= now else since
        return since

    def take(self, *, now: float) -> tuple[Session[T], list[T]] | None:
        """Returns the batch that has been due longest, now in flight, or `None` if none is due.

        The caller must give the session back with `release`, whatever becomes of the batch.
        """
        while (session := self._pop_oldest(now)) is not None:
            if session.in_flight or session.is_ready:
                continue  # Its open batch fell due behind another batch, and waits for that one.
            session.in_flight = True
            return session, self._next_batch(session)
        return None

    def _pop_oldest(self, now: float) -> Session[T] | None:
        """Takes the oldest of the three heads out of its queue, if it is due."""
        ready_since = next(iter(self._ready)).ready_at if self._ready else math.inf
        flushed, opening = self._flushed.after, self._opening.after
        flushed_since = flushed.opened_at if isinstance(flushed, Session) else math.inf
        due_since = opening.opened_at + self._linger if isinstance(opening, Session) else math.inf
        if due_since > now:
            due_since = math.inf
        since = min(ready_since, flushed_since, due_since)
        if since == math.inf:
            return None
        if since == ready_since:
            session, _ = self._ready.popitem(last=False)
            session.is_ready = False
            return session
        ring = self._flushed if since == flushed_since else self._opening
        return self._pop_due(ring)

    def _pop_due(self, ring: _Ring) -> Session[T]:
        session = ring.after
        assert isinstance(session, Session), "the ring has a head"
        _unlink(session)
        session.is_due = True
        return session

    def _next_batch(self, session: Session[T]) -> list[T]:
        """Returns what is due of a session, full batches first."""
        if session.full:
            batch = session.full
            session.pop_full()
            return batch
        assert session.is_due, "a session that was taken has a due batch"
        batch, session.open = session.open, []
        session.is_due = False
        return batch

    def settle(self, session: Session[T], *, items: int, size: int) -> None:
        """Takes settled items and bytes off what their session holds."""
        session.items -= items
        session.bytes -= size
        if self.heavy and session.items < self._heavy_items and session.bytes < self._heavy_bytes:
            self.heavy.pop(session.id, None)

    def release(self, session: Session[T], *, now: float) -> None:
        """Takes back a session whose batch is settled, so that its next batch can leave."""
        session.in_flight = False
        if session.full or session.is_due:
            self._make_ready(session, now=now)
        else:
            self._forget_if_empty(session)

    def _forget_if_empty(self, session: Session[T]) -> None:
        if session.open or session.full or session.in_flight or session.is_ready:
            return
        del self._shards[hash(session.id) % _SHARDS][session.id]
        self.heavy.pop(session.id, None)
        self.sessions -= 1

    def take_overdue(
        self, is_overdue: Callable[[T], bool], *, start: int, at_most: int
    ) -> tuple[list[T], int]:
        """Takes out overdue items, a bounded number per call.

        Items of a session are overdue from the front, and so are the sessions of a ring. The ready queue
        has no such order and is searched from `start`.

        Returns:
            The items, and where to go on: 0 with fewer than `at_most` items when the end was reached.
        """
        overdue: list[T] = []
        for ring in (self._flushed, self._opening):
            while isinstance(head := ring.after, Session) and len(overdue) < at_most:
                opened = len(head.open)
                overdue += self.drop_overdue(head, is_overdue, at_most=at_most - len(overdue))
                if len(head.open) == opened:
                    break
        looked_at = list(islice(self._ready, start, start + at_most))
        before = len(self._ready)
        for session in looked_at:
            overdue += self.drop_overdue(session, is_overdue, at_most=at_most)
        gone = before - len(self._ready)
        return overdue, start + at_most - gone if len(looked_at) == at_most else 0

    def _fall_due(self, session: Session[T]) -> None:
        """Moves a session from its ring to the ready queue: its rest is due, but younger than the next."""
        _unlink(session)
        session.is_due = True
        self._make_ready(session, now=session.opened_at)

    def drop_overdue(self, session: Session[T], is_overdue: Callable[[T], bool], *, at_most: int) -> list[T]:
        """Takes overdue items out of one session, from the front, about `at_most` of them."""
        overdue: list[T] = []
        while session.full and len(overdue) < at_most:
            overdue += self._drop_front(session, session.full, is_overdue)
            if session.full:
                return overdue
            session.pop_full()
        if session.full:
            return overdue
        dropped = self._drop_front(session, session.open, is_overdue)
        overdue += dropped
        if not session.open:
            _unlink(session)
            session.is_due = False
        elif dropped:  # Its place in a ring is that of events which are gone.
            self._fall_due(session)
        if session.is_ready and not session.is_due:
            session.is_ready = False
            del self._ready[session]
        self._forget_if_empty(session)
        return overdue

    def _drop_front(self, session: Session[T], batch: list[T], is_overdue: Callable[[T], bool]) -> list[T]:
        dropped = list(takewhile(is_overdue, batch))
        del batch[: len(dropped)]
        self.settle(session, items=len(dropped), size=sum(map(self._size_of, dropped)))
        return dropped
