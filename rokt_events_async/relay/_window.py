"""A relay's window: the entries in its memory, grouped by session, and which of them are due.

```
added ──▶ waiting ──due: a full batch, or the linger is over──▶ out ──settled──▶ done ──acknowledged──▶ gone
             ▲                                                   │
             └───────────────────put back: not accepted──────────┘
```

What is out is in the emitter's hands, and marked in the queue before. A session has at most two batches out,
so that a session that fails keeps little out. FIFO holds within a session. A session may hold its share of
the window only: further entries are passed over. They stay pending in the queue, for this relay, and are
fetched once the session has room.

Pure: `now` is passed in.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterable
from typing import Final

import attrs

from rokt_events_async.relay.entries import Held

_BATCHES_OUT: Final = 2
"""The most batches of a session that are out."""


@attrs.define(eq=False)
class _Session:
    """The entries of one session.

    Attributes:
        partition: Their partition.
        waiting: Those that are not out, in order.
        held: How many are in the window.
        out: How many are out.
        passed: How many were passed over, as far as is known.
        due_at: When the first of those that wait has lingered long enough.
        not_before: When the first of them may be out again, after it was put back.
        timer: For when a timer is set.
        is_ready: True while it stands in the line of those that are ready.
    """

    partition: int
    waiting: deque[Held] = attrs.Factory(deque)
    held: int = 0
    out: int = 0
    passed: int = 0
    due_at: float = math.inf
    not_before: float = -math.inf
    timer: float = math.inf
    is_ready: bool = False


class Window:
    """The entries that one relay holds.

    Args:
        size: The most entries.
        max_bytes: The most bytes of their events; the last entry may exceed it.
        linger: Seconds that a batch waits to fill.
        batch_size: The most events per request.
        share: The part that one session may hold, at least two batches.
    """

    def __init__(
        self, size: int, *, max_bytes: int, linger: float, batch_size: int, share: float = 0.25
    ) -> None:
        self.size = size
        self._max_bytes = max_bytes
        self._linger = linger
        self._batch_size = batch_size
        self._most_out = _BATCHES_OUT * batch_size
        self._share = max(self._most_out, int(size * share))
        self._sessions: dict[str, _Session] = {}
        self._known: dict[tuple[int, bytes], Held] = {}
        self._timers: list[tuple[float, int, _Session]] = []
        self._numbers = itertools.count()
        self._ready: deque[_Session] = deque()
        self._passed: dict[str, _Session] = {}  # Sessions of which entries were passed over.
        self._added_since_flush = self._bytes_since_flush = 0
        self._mean_size = 0.0
        self.bytes = 0
        self.out = 0
        self.waiting = 0

    def __len__(self) -> int:
        return len(self._known)

    @property
    def free(self) -> int:
        """For how many more entries there is room."""
        return 0 if self.bytes >= self._max_bytes else max(0, self.size - len(self._known))

    @property
    def free_bytes(self) -> int:
        """For how many more bytes there is room."""
        return max(0, self._max_bytes - self.bytes)

    @property
    def mean_size(self) -> int:
        """The mean size of the latest events, in bytes; 0 if there were none yet."""
        return int(self._mean_size)

    @property
    def passed_over(self) -> int:
        """How many entries were passed over, as far as is known."""
        return sum([session.passed for session in self._passed.values()])

    def holds(self, partition: int, id_: bytes) -> bool:
        """Returns True if an entry is in the window."""
        return (partition, id_) in self._known

    # In.

    def add(self, held: Held, *, now: float, is_late: bool = False) -> bool:
        """Takes an entry that the window does not hold, or passes it over: then it returns False.

        Args:
            held: The entry.
            now: The time, in seconds.
            is_late: True if it has waited long enough already.
        """
        name = held.event.session_id
        session = self._sessions.get(name)
        if session is None:
            session = self._sessions[name] = _Session(held.entry.partition)
        if session.passed or session.held >= self._share:
            session.passed += 1
            self._passed[name] = session
            return False
        self._take(session, held, now=now, is_late=is_late)
        return True

    def _take(self, session: _Session, held: Held, *, now: float, is_late: bool) -> None:
        self._known[held.entry.partition, held.entry.id] = held
        held.number = next(self._numbers)
        self._added_since_flush += 1
        self._bytes_since_flush += held.size
        self._mean_size += (held.size - self._mean_size) / (50 if self._mean_size else 1)
        self.bytes += held.size
        session.held += 1
        self.waiting += 1
        if is_late:
            session.due_at = now
        elif not session.waiting:
            session.due_at = now + self._linger
        session.waiting.append(held)
        self._arrange(session, now=now)

    def hungry(self) -> set[int]:
        """Returns the partitions in which a session has room for entries that were passed over."""
        return {one.partition for one in self._passed.values() if one.held <= self._share // 2}

    def take_back(self, held: Held, *, now: float) -> bool:
        """Takes an entry that was passed over before, or one that got lost on its way here.

        Returns:
            False if its session has no room: then further entries of it must not be taken in this pass.
        """
        name = held.event.session_id
        session = self._sessions.get(name)
        if session is None:
            session = self._sessions[name] = _Session(held.entry.partition)
        if session.held >= self._share:
            session.passed = max(1, session.passed)
            self._passed[name] = session
            return False
        session.passed = max(1, session.passed - 1) if name in self._passed else 0
        self._take(session, held, now=now, is_late=True)
        return True

    def caught_up(self, partition: int, left: Iterable[str]) -> None:
        """Notes that a pass through the partition has ended: only entries of `left` are passed over yet."""
        kept = set(left)
        for name, session in tuple(self._passed.items()):
            if session.partition == partition and name not in kept:
                session.passed = 0
                del self._passed[name]
                self._drop_if_empty(name, session)

    # Out.

    def _arrange(self, session: _Session, *, now: float) -> None:
        """Puts a session in line if a batch of it is due and may be out; otherwise sets its timer."""
        if session.is_ready or not session.waiting:
            return
        count = min(self._batch_size, len(session.waiting))
        due_at = max(session.not_before, -math.inf if count == self._batch_size else session.due_at)
        if due_at > now:
            if session.timer != due_at:
                session.timer = due_at
                heapq.heappush(self._timers, (due_at, next(self._numbers), session))
        elif session.out + count <= self._most_out:  # Otherwise `settle` comes here again.
            session.is_ready = True
            self._ready.append(session)

    def next_due(self) -> float | None:
        """Returns when a batch may be due next; `None` if none waits for its time."""
        return self._timers[0][0] if self._timers else None

    def has_ready(self) -> bool:
        """Returns True if a batch is due."""
        return bool(self._ready)

    def drain(self, *, now: float) -> None:
        """Makes every batch due, and those that come later too."""
        self._linger = 0.0
        self.flush(now=now)

    def flush(self, *, now: float) -> None:
        """Makes every batch due."""
        self._added_since_flush = self._bytes_since_flush = 0
        for session in self._sessions.values():
            session.due_at = now
            self._arrange(session, now=now)

    def flush_if_full(self, *, now: float) -> None:
        """Makes every batch due if the window is full and half of it has come since the last time.

        Waiting longer would fill no batch, because nothing more can be read.
        """
        is_new = self._added_since_flush >= 0.75 * self.size
        if not self.free and (is_new or self._bytes_since_flush >= 0.75 * self._max_bytes):
            self.flush(now=now)

    def take_due(self, *, now: float) -> list[list[Held]]:
        """Returns the batches that are due, each of one session, in order. They are out then."""
        while self._timers and self._timers[0][0] <= now:
            due_at, _, session = heapq.heappop(self._timers)
            if session.timer == due_at:
                session.timer = math.inf
                self._arrange(session, now=now)
        batches = []
        while self._ready:
            session = self._ready.popleft()
            session.is_ready = False
            # More may have come since it stood in line.
            count = min(self._batch_size, len(session.waiting), self._most_out - session.out)
            batch = [session.waiting.popleft() for _ in range(count)]
            session.out += count
            self.out += count
            self.waiting -= count
            session.due_at = now + self._linger
            self._arrange(session, now=now)
            batches.append(batch)
        return batches

    def finish(self, held: Held, *, now: float) -> None:
        """Removes an entry that was out: it is acknowledged, or another relay has it. Twice is once."""
        if not self.holds(held.entry.partition, held.entry.id):
            return
        name = held.event.session_id
        session = self._sessions[name]
        session.out -= 1
        self.out -= 1
        self._remove(name, session, held)
        if session.waiting:
            self._arrange(session, now=now)

    def put_back(self, held: Held, *, now: float, wait: float) -> None:
        """Takes back an entry that was out and was not accepted, before the others of its session.

        Args:
            held: The entry.
            now: The time, in seconds.
            wait: Seconds until it is due again.
        """
        session = self._sessions[held.event.session_id]
        place = next((at for at, other in enumerate(session.waiting) if other.number > held.number), None)
        session.waiting.insert(len(session.waiting) if place is None else place, held)
        self.waiting += 1
        session.due_at = session.not_before = now + wait
        session.out -= 1
        self.out -= 1
        self._arrange(session, now=now)

    def _remove(self, name: str, session: _Session, held: Held) -> None:
        del self._known[held.entry.partition, held.entry.id]
        self.bytes -= held.size
        session.held -= 1
        self._drop_if_empty(name, session)

    def _drop_if_empty(self, name: str, session: _Session) -> None:
        if not session.held and not session.passed:
            del self._sessions[name]
