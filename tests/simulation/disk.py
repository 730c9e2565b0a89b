"""A journal made of memory, as the engine sees one: it outlives crashes, and knows when it was told what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

import attrs
import orjson

from rokt_events_async._pipeline.store import Page, Query, Size, Step, StoredEvent, StoreFailure

STRETCH = 10
"""How many numbers are looked through at once."""

FAILED = StoreFailure("disk", "the disk is full")


class Owner(Protocol):
    """What the disk asks of its world."""

    def now(self) -> float: ...

    def disk_delay(self) -> float: ...

    def disk_fails(self, *, appends: bool) -> bool: ...

    def may_crash(self, where: str) -> None: ...

    def later(self, wait: float, call: Callable[..., Any], *args: Any) -> None: ...


@attrs.define
class File:
    """What is on the disk: rows by their number, each with its bytes and how often it was sent."""

    name: str
    rows: dict[int, tuple[bytes, int]] = attrs.Factory(dict)
    findable: set[int] = attrs.Factory(set)
    """The numbers that are found by their session."""
    tally: Counter[str] = attrs.Factory(Counter)
    owner: int | None = None
    """The life that owns it."""


class Disk:
    """All files; those of a life that has crashed are free."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.files: list[File] = []
        self.gone: Counter[str] = Counter()
        """The tallies of deleted files."""
        self.life = 0
        self.max_rows = 10**9
        """How many events make it full."""
        self.appended: dict[str, tuple[str, str, int]] = {}
        """Of each event that was ever stored: where (the file, and the life), its session and number."""
        self.siblings_until = 0.0
        """Until when other processes are alive, and own the files that are free afterwards."""

    def crash(self) -> None:
        """Ends a life: what it has handed over is lost if it is not written yet."""
        self.life += 1
        for file in self.files:
            file.owner = None

    def sent_of(self, event_id: str) -> int | None:
        """How often the row of an event was sent; `None` if there is none."""
        for file in self.files:
            for wire, sent in file.rows.values():
                if orjson.loads(wire)["parentGuid"] == event_id:
                    return sent
        return None

    def sent(self) -> set[str]:
        """The events that were sent, by what the disk says."""
        return {
            orjson.loads(wire)["parentGuid"]
            for file in self.files
            for wire, sent in file.rows.values()
            if sent
        }

    def tally(self) -> Counter[str]:
        """What all files have counted."""
        return sum((file.tally for file in self.files), Counter(self.gone))

    @property
    def rows(self) -> int:
        return sum(len(file.rows) for file in self.files)


class FakeStore:
    """One file, in one life."""

    def __init__(self, disk: Disk, file: File) -> None:
        self._disk = disk
        self._life = disk.life
        self.file = file
        file.owner = disk.life
        self.path = file.name
        self.last = max(file.rows, default=0)
        self.stored = len(file.rows)
        self.oldest: datetime | None = datetime(2026, 5, 4, tzinfo=UTC) if file.rows else None
        self.is_busy = False

    def _later(self, call: Callable[..., Any], *args: Any) -> None:
        self._disk.owner.later(self._disk.owner.disk_delay(), call, *args)

    def commit(self, step: Step, done: Callable[[Any], None]) -> None:
        assert not self.is_busy, "one group at a time is under way"
        self.is_busy = True
        self._later(self._write, step, done)

    def _write(self, step: Step, done: Callable[[Any], None]) -> None:
        if self._life != self._disk.life:
            return
        what = "append" if step.wires else "mark" if step.sent else "settle"
        owner = self._disk.owner
        owner.may_crash(f"before {what}")
        result: Any = None
        if owner.disk_fails(appends=bool(step.wires)):
            result = FAILED
        else:
            self._apply(step)
            result = self._size()
        owner.may_crash(f"after {what}")
        self._later(self._tell, result, done)

    def _size(self) -> Size:
        return Size(len(self.file.rows), self._disk.rows, is_full=self._disk.rows >= self._disk.max_rows)

    def _apply(self, step: Step) -> None:
        rows = self.file.rows
        for place, wire in enumerate(step.wires):
            assert step.first + place not in rows, "a number is used twice"
            rows[step.first + place] = wire, 0
            fields = orjson.loads(wire)
            where = f"{self.file.name}, life {self._life}", fields["sessionId"], step.first + place
            self._disk.appended[fields["parentGuid"]] = where
        for number, sent in step.sent.items():
            if number in rows:
                rows[number] = rows[number][0], sent
        self.file.findable.update(step.deferred)
        for number in step.settled:
            del rows[number]
            self.file.findable.discard(number)
        self.file.tally.update(step.tally)

    def _tell(self, result: Any, done: Callable[[Any], None]) -> None:
        if self._life == self._disk.life:
            self.is_busy = False
            done(result)
            self._disk.owner.may_crash("after telling")

    def load(self, query: Query, done: Callable[[Any], None]) -> None:
        self._later(self._read, query, done)

    def _read(self, query: Query, done: Callable[[Any], None]) -> None:
        if self._life != self._disk.life:
            return
        read_to = query.until if query.session_id is not None else min(query.until, query.after + STRETCH)
        found = [
            StoredEvent(number, wire, sent, 1000, number in self.file.findable)
            for number, (wire, sent) in sorted(self.file.rows.items())
            if query.after < number <= read_to and self._is_asked_for(query, number, wire)
        ][: query.at_most]
        if len(found) == query.at_most:
            read_to = found[-1].number
        self._later(self._answer, found, read_to, done)

    def _is_asked_for(self, query: Query, number: int, wire: bytes) -> bool:
        session_id = orjson.loads(wire)["sessionId"] if number in self.file.findable else None
        if query.session_id is not None:
            return bool(session_id == query.session_id)
        return session_id not in query.without and (session_id is not None or not query.only_deferred)

    def _answer(self, found: list[StoredEvent], read_to: int, done: Callable[[Any], None]) -> None:
        if self._life == self._disk.life:
            self._disk.owner.may_crash("before a page is taken")
            done(Page(found, read_to, len(self.file.rows)))
            self._disk.owner.may_crash("after a page was taken")

    def make_findable(self, sessions: dict[int, str], done: Callable[[Any], None]) -> None:
        self._later(self._make_findable, [*sessions], done)

    def _make_findable(self, numbers: list[int], done: Callable[[Any], None]) -> None:
        if self._life != self._disk.life:
            return
        if self._disk.owner.disk_fails(appends=False):
            done(FAILED)
            return
        self.file.findable.update(numbers)
        done(self._size())

    def condemn(self, number: int, why: str, done: Callable[[Any], None]) -> None:
        raise AssertionError(f"event {number} cannot be read: {why}")


class FakeDepot:
    """The files as one life sees them.

    Args:
        takes_new: True to make a file although others are free.
    """

    directory = "disk"

    def __init__(self, disk: Disk, *, takes_new: bool) -> None:
        self._disk = disk
        self._is_closed = False
        free = [file for file in disk.files if file.owner is None]
        if takes_new or not free or disk.owner.now() < disk.siblings_until:
            free = [File(f"file {len(disk.files)}, life {disk.life}")]
            disk.files += free
        self.own = FakeStore(disk, free[0])
        self.size = self.own._size()

    def adopt(self, done: Callable[[Any], None]) -> None:
        life = self._disk.life

        def look() -> None:
            if life != self._disk.life or self._is_closed:
                return
            is_alone = self._disk.owner.now() >= self._disk.siblings_until
            for file in self._disk.files if is_alone else ():
                if file.owner is None and file.rows:
                    done(FakeStore(self._disk, file))
                    return
            done(None)

        self._disk.owner.later(self._disk.owner.disk_delay(), look)

    def release(self, store: Any, done: Callable[[Any], None]) -> None:
        assert not store.is_busy, "a file is deleted while it is written"
        self._disk.files.remove(store.file)
        self._disk.gone += store.file.tally
        if store.file.rows:
            raise AssertionError(f"a file is deleted with {len(store.file.rows)} events")
        done(None)

    async def aclose(self) -> None:
        """Nothing is open."""
        self._is_closed = True
        for file in self._disk.files:
            if file.owner == self._disk.life:
                file.owner = None


class FakeJournal:
    """What an emitter takes as its journal."""

    def __init__(self, disk: Disk, *, takes_new: bool, on_error: str) -> None:
        self._disk = disk
        self._takes_new = takes_new
        self.on_error = on_error
        self.max_bytes = 10**9
        self.directory = "a simulated disk"

    async def open(self, **_: Any) -> FakeDepot:
        return FakeDepot(self._disk, takes_new=self._takes_new)
