"""A relay's reader: the only one to add entries to the window."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Final

from rokt_events_async._tracking.log import log
from rokt_events_async.errors import QueueUnavailableError
from rokt_events_async.relay._heart import Heart
from rokt_events_async.relay._judging import judge_redelivered, judge_unreadable
from rokt_events_async.relay._link import RETRY_AFTER, Counts, Link, Signals
from rokt_events_async.relay._publications import Publications
from rokt_events_async.relay._settling import Settler
from rokt_events_async.relay._turns import Turns
from rokt_events_async.relay._window import Window
from rokt_events_async.relay.entries import Entry, Held, UnreadableEntryError, read_entry
from rokt_events_async.relay.queue import EventQueue

PAGE: Final = 1000
"""The most entries that are read at once."""

BLOCK: Final = 0.5
"""Seconds that a read waits for entries."""

_PAGE_BYTES: Final = 4 * 1024 * 1024
"""About the most bytes of such an exchange."""

_LOOK_AGAIN: Final = 5.0
"""Seconds between two looks for entries that are pending and not known."""

_FIRST_PAGE: Final = 125
"""The first page: how large the events are is not known yet."""


class Reader:
    """Reads the queue into the window.

    Args:
        resends: True if an event that may have been sent may be sent again.
    """

    def __init__(
        self,
        queue: EventQueue,
        relay_id: str,
        window: Window,
        *,
        heart: Heart,
        settler: Settler,
        counts: Counts,
        link: Link,
        signals: Signals,
        clock: Callable[[], datetime],
        publications: Publications,
        resends: bool,
    ) -> None:
        self._queue = queue
        self._relay_id = relay_id
        self._window = window
        self._heart = heart
        self._settler = settler
        self._counts = counts
        self._link = link
        self._signals = signals
        self._clock = clock
        self._resends = resends
        self._turns = Turns(window.size)
        self._page = _FIRST_PAGE
        self._publications = publications
        self._look_again_at = 0.0
        self._known_before = 0
        self._was_missing = False

    def note_backlog(self, pending: int) -> None:
        """Notes what waits in the queue.

        Args:
            pending: How many entries are pending for this relay. If that is more than it knows of, some got
                lost on their way: to a connection that the server took for alive, for example.
        """
        waiting = self._heart.backlog.waiting
        self._turns.note({number: waiting[number] for number in self._heart.share})
        is_missing = pending > max(self._known_before, self._count_known())
        now = asyncio.get_running_loop().time()
        if is_missing and self._was_missing and now >= self._look_again_at:
            self._link.has_lost_entries = True
            self._look_again_at = now + _LOOK_AGAIN
        self._was_missing = is_missing

    def note_known(self) -> None:
        """Notes how many entries are known, before the queue is asked how many are pending."""
        self._known_before = self._count_known()

    def _count_known(self) -> int:
        return len(self._window) + self._settler.leaving + self._window.passed_over

    async def run(self) -> None:
        """Reads until the relay stops."""
        wait = RETRY_AFTER[0]
        while not self._signals.stopping.is_set():
            try:
                await self._read_once()
                wait = RETRY_AFTER[0]
            except QueueUnavailableError as error:
                self._link.note_failure(error, now=asyncio.get_running_loop().time())
                if error.was_asked:  # The page may have been too large to come in time.
                    self._page = max(1, self._page // 2)
                await asyncio.sleep(wait)
                wait = min(2 * wait, RETRY_AFTER[1])

    async def _read_once(self) -> None:
        loop = asyncio.get_running_loop()
        if not await self._wait_for_room():
            return
        if self._link.has_lost_entries:
            self._link.has_lost_entries = False
            for number in range(self._queue.partitions):
                await self._fetch_own(number)
        for number in self._window.hungry():
            await self._fetch_own(number)
        if self._heart.gone and loop.time() >= self._link.no_taking_until:
            await self._take_over()
        partitions = self._turns.choose(self._heart.share, now=loop.time())
        if not partitions or not self._window.free:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BLOCK):
                    await self._signals.stopping.wait()
            return
        count = self._page_for(len(partitions))
        entries = await self._queue.read(
            self._relay_id, partitions, count=count, wait=0 if self._turns.is_turn else BLOCK
        )
        self._link.note_success()
        self._note_page(len(entries))
        read = dict.fromkeys(partitions, 0)
        now = loop.time()
        for entry in entries:
            read[entry.partition] += 1
            self._admit(entry, now=now)
        for number, found in read.items():
            self._turns.count(number, found)
        self._signals.due.set()

    def _page_for(self, partitions: int) -> int:
        """Returns how many entries to ask for of each of so many partitions: what fits, and comes in time."""
        fitting = min(self._page, self._window.free)
        if size := self._window.mean_size:
            fitting = min(fitting, self._window.free_bytes // size, _PAGE_BYTES // size)
        return max(1, fitting // partitions)

    def _note_page(self, entries: int) -> None:
        """Notes that a page came in time: the next may be larger."""
        if entries:
            self._page = min(PAGE, 2 * self._page)

    async def _wait_for_room(self) -> bool:
        """Returns True if there is room for a page, or for anything at all after a short while."""
        if self._window.free >= min(PAGE, self._window.size // 10):
            return True
        self._signals.room.clear()
        self._window.flush_if_full(now=asyncio.get_running_loop().time())
        self._signals.due.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BLOCK / 5):
                await self._signals.room.wait()
                return False
        return self._window.free > 0

    async def _fetch_own(self, partition: int) -> None:
        """Fetches entries that are pending for this relay and not in its window.

        Passed over, or on their way when a connection was lost, or of a predecessor with the same id.
        """
        loop = asyncio.get_running_loop()
        left: set[str] = set()
        after = b""
        while True:
            if not self._window.free:
                self._link.has_lost_entries = True
                return
            taken = await self._queue.take(
                self._relay_id,
                self._relay_id,
                partition,
                after=after,
                count=self._page_for(1),
                skip=self._settler.is_known,
            )
            self._note_page(len(taken.entries))
            for entry in taken.entries:
                held = self._open(entry)
                if held is None or held.event.session_id in left:
                    continue
                if self._window.take_back(held, now=loop.time()):
                    self._count(held)
                else:
                    left.add(held.event.session_id)
            self._signals.due.set()
            if not taken.last:
                self._window.caught_up(partition, left)
                return
            after = taken.last
            if left and partition not in self._window.hungry():
                return  # What is left waits until its session has room.

    def _count(self, held: Held) -> None:
        """Counts an entry that is in the window now."""
        counts = self._counts
        counts.read += 1
        if held.entry.may_have_been_sent:
            counts.redelivered += 1
        if held.is_repeated:
            counts.repeated += 1

    async def _take_over(self) -> None:
        """Takes the entries of relays that have ended, in the partitions of this relay's share."""
        gone, self._heart.gone = self._heart.gone, ()
        for owner in gone:
            taken = sum([await self._take_from(owner, number) for number in self._heart.share])
            if taken:
                text = "the relay %s has taken over %d entries of %s, which has ended"
                log(logging.WARNING, text, self._relay_id, taken, owner)
            if self._window.free:
                await self._queue.forget(owner)
        self._signals.due.set()

    async def _take_from(self, owner: str, partition: int) -> int:
        """Takes the entries of an ended relay in one partition. Returns how many."""
        after, count = b"", 0
        while self._window.free:
            taken = await self._queue.take(
                self._relay_id,
                owner,
                partition,
                after=after,
                count=self._page_for(1),
                skip=self._settler.is_known,
            )
            self._note_page(len(taken.entries))
            now = asyncio.get_running_loop().time()
            for entry in taken.entries:
                self._admit(entry, now=now, is_late=True)
            count += len(taken.entries)
            self._counts.taken_over += len(taken.entries)
            if not taken.last:
                break
            after = taken.last
        return count

    def _admit(self, entry: Entry, *, now: float, is_late: bool = False) -> None:
        if self._settler.is_known(entry.partition, entry.id):
            return  # The server has come back as it was a moment before.
        held = self._open(entry)
        if held is not None and self._window.add(held, now=now, is_late=is_late):
            self._count(held)

    def _open(self, entry: Entry) -> Held | None:
        """Reads an entry. What must not be sent does not get into the window."""
        try:
            held = read_entry(entry)
        except UnreadableEntryError as error:
            letter = judge_unreadable(entry, str(error), relay_id=self._relay_id, now=self._clock())
            self._settler.bury(entry, None, letter)
            return None
        place = entry.partition, entry.id
        first = self._publications.first_place(held.publish_id, place)
        if held.is_repeated and first != place:
            if self._settler.is_known(*first):
                return None  # The server may have lost the first: it stays pending, and is fetched later.
            self._count(held)
            self._counts.repeats_dropped += 1
            self._settler.acknowledge(entry, None)
            return None
        if entry.may_have_been_sent and not self._resends:
            self._count(held)
            self._settler.bury(
                entry, None, judge_redelivered(held, relay_id=self._relay_id, now=self._clock())
            )
            return None
        return held
