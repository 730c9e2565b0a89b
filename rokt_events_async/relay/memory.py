"""A queue in the memory of this process, for tests of applications. It is as durable as the process."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import attrs

from rokt_events_async.errors import QueueFullError, QueueUnavailableError
from rokt_events_async.outcomes import DeadLetter
from rokt_events_async.relay.entries import Entry, NewEntry
from rokt_events_async.relay.letters import fields_to_replay
from rokt_events_async.relay.queue import Backlog, Findings, RelayPresence, Roster, Taken


@attrs.define
class _Pending:
    """Who has an entry, and whether its event may have been sent."""

    owner: str
    is_marked: bool = False


@attrs.define
class _Partition:
    """The entries of one partition, those without an owner included, and where reading goes on."""

    entries: OrderedDict[int, tuple[bytes, ...]] = attrs.Factory(OrderedDict)
    pending: dict[int, _Pending] = attrs.Factory(dict)
    last_read: int = 0


@attrs.define
class _Presence:
    """A relay's heartbeat."""

    nonce: str
    until: float
    status: Mapping[str, Any]


class MemoryQueue:
    """A queue in memory. Publishers and relays share one object, which stays usable after they close it.

    Args:
        partitions: How many partitions there are.
        max_entries: How many entries it holds; beyond that it is full.
    """

    def __init__(self, *, partitions: int = 16, max_entries: int = 1_000_000) -> None:
        self.partitions = partitions
        self.is_down = False
        self._max_entries = max_entries
        self._partitions = [_Partition() for _ in range(partitions)]
        self._ids = itertools.count(1)
        self._published = 0
        self._relays: dict[str, _Presence | None] = {}
        self._dead: OrderedDict[int, DeadLetter] = OrderedDict()
        self._dropped = 0
        self._arrived = asyncio.Event()

    def __repr__(self) -> str:
        return f"<MemoryQueue, {self.partitions} partitions>"

    def _check(self) -> None:
        if self.is_down:
            raise QueueUnavailableError("the queue in memory is switched off")

    async def open_publisher(self, *, require_durable: bool) -> Findings:
        self._check()
        return Findings()

    async def open_relay(self, *, heartbeat_timeout: float) -> Findings:
        self._check()
        return Findings(is_server_old=True)

    async def aclose(self) -> None:
        """Does nothing: others use it too."""

    # Publishing and reading.

    async def publish(self, entries: Sequence[NewEntry], *, timeout: float) -> list[str | Exception]:
        self._check()
        replies: list[str | Exception] = []
        for entry in entries:
            fields = tuple([one.encode() if isinstance(one, str) else one for one in entry.fields()])
            entry.tries += 1
            if sum([len(one.entries) for one in self._partitions]) >= self._max_entries:
                replies.append(QueueFullError(f"the queue is full: it holds {self._max_entries} entries"))
                continue
            replies.append(self._append(entry.partition, fields))
        self._arrived.set()
        return replies

    def _append(self, partition: int, fields: tuple[bytes, ...]) -> str:
        number = next(self._ids)
        self._partitions[partition].entries[number] = fields
        self._published += 1
        return f"{int(time.time() * 1000)}-{number}"

    async def read(self, relay_id: str, partitions: Sequence[int], *, count: int, wait: float) -> list[Entry]:
        self._check()
        found = self._read(relay_id, partitions, count)
        if not found and wait:
            self._arrived.clear()
            try:
                async with asyncio.timeout(wait):
                    await self._arrived.wait()
            except TimeoutError:
                return []
            found = self._read(relay_id, partitions, count)
        return found

    def _read(self, relay_id: str, partitions: Sequence[int], count: int) -> list[Entry]:
        found = []
        for number in partitions:
            partition = self._partitions[number]
            fresh = (one for one in partition.entries.items() if one[0] > partition.last_read)
            for id_, fields in itertools.islice(fresh, count):
                found.append(Entry(number, _id(id_), fields))
                partition.pending[id_] = _Pending(relay_id)
        for entry in found:
            self._partitions[entry.partition].last_read = int(entry.id)
        return found

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
        self._check()
        if owner != relay_id and self._is_alive(owner):
            return Taken([])
        place = self._partitions[partition]
        start = int(after or 0)
        owned = [id_ for id_, one in sorted(place.pending.items()) if one.owner == owner and id_ > start]
        wanted = [id_ for id_ in owned if not skip(partition, _id(id_))]
        entries = []
        for id_ in wanted[:count]:
            place.pending[id_].owner = relay_id
            entries.append(Entry(partition, _id(id_), place.entries[id_], place.pending[id_].is_marked))
        return Taken(entries, entries[-1].id if len(wanted) > count else b"")

    def _is_alive(self, relay_id: str) -> bool:
        presence = self._relays.get(relay_id)
        return presence is not None and presence.until > asyncio.get_running_loop().time()

    async def mark(self, relay_id: str, entries: Sequence[Entry]) -> set[Entry]:
        return self._mark(relay_id, entries, is_marked=True)

    async def unmark(self, relay_id: str, entries: Sequence[Entry]) -> None:
        self._mark(relay_id, entries, is_marked=False)

    def _mark(self, relay_id: str, entries: Sequence[Entry], *, is_marked: bool) -> set[Entry]:
        self._check()
        found = set()
        for entry in entries:
            pending = self._partitions[entry.partition].pending.get(int(entry.id))
            if pending is not None and pending.owner == relay_id:
                pending.is_marked = is_marked
                found.add(entry)
        return found

    async def acknowledge(self, entries: Sequence[Entry]) -> int:
        self._check()
        return sum([self._remove(entry) for entry in entries])

    def _remove(self, entry: Entry) -> bool:
        partition = self._partitions[entry.partition]
        partition.entries.pop(int(entry.id), None)
        return partition.pending.pop(int(entry.id), None) is not None

    async def bury(self, letters: Sequence[tuple[Entry, DeadLetter]]) -> int:
        self._check()
        buried = 0
        for entry, letter in letters:
            if self._remove(entry):
                number = next(self._ids)
                self._dead[number] = attrs.evolve(letter, id=str(number))
                buried += 1
        return buried

    # Relays.

    async def beat(
        self, relay_id: str, nonce: str, status: Mapping[str, Any], *, timeout: float
    ) -> Roster | None:
        self._check()
        now = asyncio.get_running_loop().time()
        known = self._relays.get(relay_id)
        if known is not None and known.nonce != nonce and known.until > now:
            return None
        self._relays[relay_id] = _Presence(nonce, now + timeout, status)
        alive = [one for one, presence in self._relays.items() if presence and presence.until > now]
        return Roster(tuple(sorted(alive)), tuple(sorted(self._relays.keys() - set(alive))))

    async def leave(self, relay_id: str, nonce: str) -> None:
        self._check()
        known = self._relays.get(relay_id)
        if known is not None and known.nonce == nonce:
            self._relays[relay_id] = None

    async def forget(self, relay_id: str) -> bool:
        self._check()
        if any(one.owner == relay_id for place in self._partitions for one in place.pending.values()):
            return False
        presence = self._relays.get(relay_id)
        if presence is not None and presence.until > asyncio.get_running_loop().time():
            return False
        self._relays.pop(relay_id, None)
        return True

    async def relays(self) -> list[RelayPresence]:
        self._check()
        now = asyncio.get_running_loop().time()
        owners = [one.owner for place in self._partitions for one in place.pending.values()]
        return [
            RelayPresence(
                relay_id=relay_id,
                is_alive=presence is not None and presence.until > now,
                status=presence.status if presence is not None and presence.until > now else {},
                pending=owners.count(relay_id),
            )
            for relay_id, presence in sorted(self._relays.items())
        ]

    # Looking.

    async def backlog(self) -> Backlog:
        self._check()
        waiting = tuple([len(one.entries) - len(one.pending) for one in self._partitions])
        pending = sum([len(one.pending) for one in self._partitions])
        return Backlog(
            waiting=waiting,
            pending=pending,
            pending_of=Counter([one.owner for place in self._partitions for one in place.pending.values()]),
            oldest=datetime.now(UTC) if sum(waiting) + pending else None,
            published=self._published,
            dead_letters=len(self._dead),
            dead_letters_dropped=self._dropped,
        )

    # Dead letters.

    async def dead_letters(self, *, after: str = "", count: int = 100) -> list[DeadLetter]:
        self._check()
        later = (letter for number, letter in self._dead.items() if number > int(after or 0))
        return list(itertools.islice(later, count))

    async def replay(self, letters: Sequence[DeadLetter]) -> int:
        self._check()
        replayed = 0
        for letter in letters:
            if self._dead.pop(int(letter.id), None) is not None:
                self._append(letter.partition, fields_to_replay(letter))
                replayed += 1
        self._arrived.set()
        return replayed

    async def delete(self, letters: Sequence[DeadLetter]) -> int:
        self._check()
        return sum([self._dead.pop(int(letter.id), None) is not None for letter in letters])

    async def trim(self, *, at_most: int, oldest: datetime) -> int:
        self._check()
        count = len(self._dead)
        kept = [(number, letter) for number, letter in self._dead.items() if letter.at >= oldest]
        self._dead = OrderedDict(kept[-at_most:])
        self._dropped += count - len(self._dead)
        return count - len(self._dead)


def _id(number: int) -> bytes:
    return b"%d" % number
