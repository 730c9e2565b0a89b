"""What of a journal file is on disk alone: what is read next, and who must queue behind it. Pure.

How it works
------------
A file is read from front to back. `after` is how far that has come. A session that may hold no more is
*passed over*: its events stay on disk, and are read by its id once it holds less. So a session whose requests
fail holds up no other.

```
       after                 until
 ────────┼─────────────────────┼──▶ numbers
   read, but for what           not read yet
   was passed over
```

With the emitter's own file, `until` moves: an event that finds no room in memory is deferred, and so is each
later event of its session, as long as one of them is on disk alone. Otherwise it would overtake.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from datetime import UTC, datetime
from typing import Final

_SHARDS: Final = 4096
_MASK: Final = 2**64 - 1


class LastNumbers:
    """The last number of each session, in 16 bytes per session: there can be a million of them.

    A session is known by its hash. Two sessions that share one are taken for the same, and the later number
    holds for both.
    """

    def __init__(self) -> None:
        self._keys = [array("Q") for _ in range(_SHARDS)]
        self._numbers = [array("Q") for _ in range(_SHARDS)]
        self._next_shard = 0
        self.count = 0

    def put(self, session_id: str, number: int) -> None:
        """Notes a number, which is larger than all before."""
        key = hash(session_id) & _MASK
        keys, numbers = self._keys[key % _SHARDS], self._numbers[key % _SHARDS]
        place = bisect_left(keys, key)
        if place < len(keys) and keys[place] == key:
            numbers[place] = number
        else:
            keys.insert(place, key)
            numbers.insert(place, number)
            self.count += 1

    def get(self, session_id: str) -> int:
        """Returns the last number of a session, 0 if there is none."""
        key = hash(session_id) & _MASK
        keys = self._keys[key % _SHARDS]
        place = bisect_left(keys, key)
        return self._numbers[key % _SHARDS][place] if place < len(keys) and keys[place] == key else 0

    def forget_some(self, until: int) -> None:
        """Forgets numbers up to that one, a part of them per call."""
        shard = self._next_shard
        self._next_shard = (shard + 1) % _SHARDS
        keys, numbers = self._keys[shard], self._numbers[shard]
        left = [place for place, number in enumerate(numbers) if number > until]
        self.count -= len(keys) - len(left)
        self._keys[shard] = array("Q", [keys[place] for place in left])
        self._numbers[shard] = array("Q", [numbers[place] for place in left])


class Backlog:
    """What of one file is on disk alone.

    Args:
        after: The number in front of it.
        until: Its last number; the same if there is nothing yet.
        oldest_at: When the oldest event of it was stored, in milliseconds since 1970.
    """

    def __init__(self, *, after: int, until: int, oldest_at: int = 0) -> None:
        self.after = after
        """The number up to which it was read, but for what was passed over."""
        self.until = until
        self._last = LastNumbers()
        self._passed: dict[str, tuple[int, int]] = {}  # Read up to this number; stored at.
        self._ready: dict[str, None] = {}
        self._oldest_at = oldest_at

    @property
    def is_empty(self) -> bool:
        """True if nothing of it is on disk alone."""
        return not self.has_more and not self._passed

    @property
    def has_more(self) -> bool:
        """True if something of it was not looked at yet."""
        return self.after < self.until

    def is_read_to(self, number: int) -> bool:
        """Returns True if all of it has been read, up to that number."""
        return self.after >= min(number, self.until) and all(
            after >= number for after, _ in self._passed.values()
        )

    @property
    def oldest_at(self) -> int | None:
        """When its oldest event was stored, in milliseconds since 1970; none of it is older."""
        times = [at for _, at in tuple(self._passed.values())]  # Also from other threads.
        if self.after < self.until:
            times.append(self._oldest_at)
        return min(times, default=None)

    @property
    def passed_over(self) -> tuple[str, ...]:
        """The sessions that are passed over."""
        return tuple(self._passed)

    def is_passed_over(self, session_id: str) -> bool:
        """Returns True if the events of a session are read by its id."""
        return session_id in self._passed

    # Events that come to it.

    def is_behind(self, session_id: str) -> bool:
        """Returns True if a new event of a session would overtake one that is on disk alone."""
        if self.after >= self.until and not self._passed:
            return False
        return session_id in self._passed or self._last.get(session_id) > self.after

    def defer(self, session_id: str, number: int, *, now: int) -> None:
        """Adds a new event.

        Args:
            session_id: Its session.
            number: Its number, which is larger than all before.
            now: Milliseconds since 1970.
        """
        if self.after >= self.until:
            if session_id in self._passed:  # It is read by its session's id: nothing need be looked for.
                self.after = self.until = number
                return
            self.after, self._oldest_at = number - 1, now
        self.until = number
        self._last.put(session_id, number)

    # Reading.

    def next_ready(self) -> tuple[str, int] | None:
        """Returns a session that was passed over and may hold more, and up to where it was read."""
        for session_id in self._ready:
            return session_id, self._passed[session_id][0]
        return None

    def pass_over(self, session_id: str, number: int, *, at: int) -> None:
        """Leaves an event and all later ones of its session on disk, until the session holds less."""
        self._passed[session_id] = number - 1, at
        self._ready.pop(session_id, None)

    def on_released(self, session_id: str) -> None:
        """Notes that a session holds less than before."""
        if session_id in self._passed:
            self._ready[session_id] = None

    def read_session(self, session_id: str, number: int, *, at: int) -> None:
        """Notes that all events of a session that was passed over were read, up to that number."""
        if number >= self.after:
            del self._passed[session_id]
            self._ready.pop(session_id, None)
        else:
            self._passed[session_id] = number, at

    def read(self, number: int, *, at: int | None = None) -> None:
        """Notes that it was read up to that number, but for what was passed over.

        Args:
            number: The number.
            at: When an event was stored that is not younger than the next; `None` if there was none.
        """
        self.after = max(self.after, number)
        if at is not None:
            self._oldest_at = at
        if self._last.count:
            self._last.forget_some(self.after)


class Backlogs:
    """All backlogs of one emitter.

    Args:
        last: The last number in the emitter's own file.
    """

    def __init__(self, last: int) -> None:
        self.own = Backlog(after=last, until=last)
        """What the emitter has deferred."""
        self.earlier: list[Backlog] = []
        """What earlier processes have left."""

    def on_released(self, session_id: str) -> None:
        """Notes that a session holds less than before."""
        self.own.on_released(session_id)
        for backlog in self.earlier:
            backlog.on_released(session_id)

    @property
    def oldest(self) -> datetime | None:
        """When the oldest event that this emitter has deferred was stored, in UTC."""
        at = self.own.oldest_at
        return None if at is None else datetime.fromtimestamp(at / 1000, UTC)
