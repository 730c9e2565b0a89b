"""What a publisher and a relay need of a queue: the protocol, its data, and its errors.

A queue is durable, keeps entries in partitions in the order of publication, gives each entry to one relay,
and keeps it pending until that relay acknowledges it. `RedisQueue` is one; `MemoryQueue` is one for tests.

```
published ──read──▶ pending(relay) ──mark──▶ pending, marked ──acknowledge──▶ gone
                        ▲                        │        └────bury────────▶ dead letter ──replay──▶ published
                        └────take: the relay has ended────┘
```

Every method raises `QueueUnavailableError` if the queue cannot be reached or does not answer in time: the
call may then have taken effect. `QueueRefusedError` says that the queue refuses to be used so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import attrs

from rokt_events_async.outcomes import DeadLetter
from rokt_events_async.relay.entries import Entry, NewEntry


@attrs.frozen(kw_only=True)
class RelayPresence:
    """A relay that the queue knows.

    Attributes:
        relay_id: Its id.
        is_alive: True if its heartbeat is younger than its `heartbeat_timeout`.
        status: What it last told of itself; empty if it is not alive.
        pending: Entries that it has read and not acknowledged.
    """

    relay_id: str
    is_alive: bool
    status: Mapping[str, Any] = attrs.field(factory=dict, hash=False)
    pending: int = 0


@attrs.frozen(kw_only=True)
class Backlog:
    """What lies in a queue.

    Attributes:
        waiting: Entries that no relay has read, by partition.
        pending: Entries that relays have read and not acknowledged.
        pending_of: How many of these each relay holds.
        oldest: When the oldest entry was published, in UTC; `None` if there is none.
        published: How many entries were ever published.
        dead_letters: Dead letters that are kept.
        dead_letters_dropped: Dead letters that were dropped, because they were too old or too many.
        used_bytes: The server's memory that is in use, in bytes; `None` if it does not tell.
        max_bytes: The bound on it, at which publications are refused; `None` if it has none, or does not
            tell.
    """

    waiting: tuple[int, ...] = ()
    pending: int = 0
    pending_of: Mapping[str, int] = attrs.field(factory=dict, hash=False)
    oldest: datetime | None = None
    published: int = 0
    dead_letters: int = 0
    dead_letters_dropped: int = 0
    used_bytes: int | None = None
    max_bytes: int | None = None


@attrs.frozen(kw_only=True)
class Findings:
    """What a publisher or a relay finds at a queue when it starts.

    Attributes:
        warnings: What is doubtful: no persistence, a permission that is missing.
        is_server_old: True if the server runs for longer than `heartbeat_timeout`, so that a missing
            heartbeat means an ended relay.
    """

    warnings: tuple[str, ...] = ()
    is_server_old: bool = False


class EventQueue(Protocol):
    """A queue between publishers and relays.

    Attributes:
        partitions: How many partitions there are.
    """

    partitions: int

    async def open_publisher(self, *, require_durable: bool) -> Findings:
        """Checks that the queue keeps what is published.

        Raises:
            QueueRefusedError: It does not, or its format or number of partitions is another one.
        """

    async def open_relay(self, *, heartbeat_timeout: float) -> Findings:
        """Checks the same, and makes what relays need."""

    async def aclose(self) -> None:
        """Closes the connections."""

    async def publish(self, entries: Sequence[NewEntry], *, timeout: float) -> list[str | Exception]:
        """Appends entries, and returns the id of each, or why the queue did not take it.

        `tries` of those that were sent is one more afterwards, whatever comes of it.

        Args:
            timeout: Seconds to wait for the answers.
        """

    async def read(self, relay_id: str, partitions: Sequence[int], *, count: int, wait: float) -> list[Entry]:
        """Returns entries that no relay has read; they are then pending for this relay.

        Args:
            count: At most how many per partition.
            wait: Seconds to wait for the first.
        """

    async def take(
        self,
        relay_id: str,
        owner: str,
        partition: int,
        *,
        after: bytes,
        count: int,
        skip: Callable[[int, bytes], bool],
    ) -> Taken:
        """Returns pending entries of `owner`, in order; they are then pending for this relay.

        Args:
            owner: A relay that has ended, or this relay itself: then entries that it does not hold.
            after: Only ids after this one; empty for all.
            count: At most how many to take.
            skip: Told a partition and an id, returns True if the entry is not wanted.

        Returns:
            None of them if `owner` is another relay that is alive.
        """

    async def mark(self, relay_id: str, entries: Sequence[Entry]) -> set[Entry]:
        """Notes that the events may be sent from now on. Returns those that are pending for this relay."""

    async def unmark(self, relay_id: str, entries: Sequence[Entry]) -> None:
        """Notes that the events were provably not accepted, of those that are pending for this relay."""

    async def acknowledge(self, entries: Sequence[Entry]) -> int:
        """Removes entries. Returns how many were still pending."""

    async def bury(self, letters: Sequence[tuple[Entry, DeadLetter]]) -> int:
        """Makes dead letters of entries that are still pending. Returns how many were."""

    async def beat(
        self, relay_id: str, nonce: str, status: Mapping[str, Any], *, timeout: float
    ) -> Roster | None:
        """Says that a relay is alive, for `timeout` seconds, and returns who else is.

        Args:
            relay_id: The relay.
            nonce: Tells its process from others with the same id.
            status: What it tells of itself.

        Returns:
            `None` if another living process has this id.
        """

    async def leave(self, relay_id: str, nonce: str) -> None:
        """Says that a relay has ended, unless another process has its id."""

    async def forget(self, relay_id: str) -> bool:
        """Forgets a relay that has ended, unless entries are pending for it. Returns True if it is gone."""

    async def backlog(self) -> Backlog:
        """Returns what lies in the queue."""

    async def relays(self) -> list[RelayPresence]:
        """Returns the relays that the queue knows."""

    async def dead_letters(self, *, after: str = "", count: int = 100) -> list[DeadLetter]:
        """Returns dead letters in order, those after the id `after`."""

    async def replay(self, letters: Sequence[DeadLetter]) -> int:
        """Publishes dead letters again. Returns how many: twice is once."""

    async def delete(self, letters: Sequence[DeadLetter]) -> int:
        """Deletes dead letters. Returns how many."""

    async def trim(self, *, at_most: int, oldest: datetime) -> int:
        """Drops the oldest dead letters. Returns how many."""


@attrs.frozen
class Roster:
    """The relays that a queue knows.

    Attributes:
        alive: Ids of those whose heartbeat is young enough, this one included.
        gone: Ids of the others.
    """

    alive: tuple[str, ...]
    gone: tuple[str, ...] = ()


@attrs.frozen
class Taken:
    """Entries that were pending for another relay, or for an earlier process of this one.

    Attributes:
        entries: The entries.
        last: The last id that was looked at; empty if there are no more.
    """

    entries: list[Entry]
    last: bytes = b""
