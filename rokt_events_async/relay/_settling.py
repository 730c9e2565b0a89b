"""Removes entries from the queue once their events have an outcome: acknowledged, or as dead letters."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from rokt_events_async._tracking.hooks import Hooks
from rokt_events_async.outcomes import DeadLetter
from rokt_events_async.relay._link import Counts, Link, Signals
from rokt_events_async.relay._window import Window
from rokt_events_async.relay.entries import Entry, Held
from rokt_events_async.relay.queue import EventQueue

_EVERY: Final = 0.01
"""Seconds in which outcomes gather."""

_PAGE: Final = 1000
_LETTERS: Final = 100
"""The most entries of one exchange with the queue."""


class Settler:
    """Gathers outcomes and tells the queue. What it has not told yet is kept, whatever fails.

    Args:
        queue: Told.
        window: Entries leave it once the queue knows.
    """

    def __init__(
        self, queue: EventQueue, window: Window, *, counts: Counts, link: Link, signals: Signals, hooks: Hooks
    ) -> None:
        self._queue = queue
        self._window = window
        self._counts = counts
        self._link = link
        self._signals = signals
        self._hooks = hooks
        self._acknowledgements: list[tuple[Entry, Held | None]] = []
        self._letters: list[tuple[Entry, Held | None, DeadLetter]] = []
        self._leaving: set[tuple[int, bytes]] = set()  # What is on these lists and not in the window.

    def is_known(self, partition: int, id_: bytes) -> bool:
        """Returns True if an entry is in the window, or is leaving the queue without it."""
        return self._window.holds(partition, id_) or (partition, id_) in self._leaving

    @property
    def leaving(self) -> int:
        """How many entries are leaving the queue that never were in the window."""
        return len(self._leaving)

    def acknowledge(self, entry: Entry, held: Held | None) -> None:
        """Removes an entry from the queue, soon.

        Args:
            entry: The entry.
            held: The same in the window, `None` if it never got there.
        """
        self._note(entry, held)
        self._acknowledgements.append((entry, held))

    def bury(self, entry: Entry, held: Held | None, letter: DeadLetter) -> None:
        """Makes a dead letter of an entry, soon."""
        self._note(entry, held)
        self._letters.append((entry, held, letter))

    def _note(self, entry: Entry, held: Held | None) -> None:
        if held is None:
            self._leaving.add((entry.partition, entry.id))
        self._signals.settled.set()

    def finish(self, done: Iterable[Held]) -> None:
        """Removes entries from the window: the queue has them no more, or another relay has them."""
        now = asyncio.get_running_loop().time()
        for held in done:
            self._window.finish(held, now=now)
        self._signals.room.set()
        if self._window.has_ready():
            self._signals.due.set()

    async def run(self) -> None:
        """Tells the queue every few milliseconds, until it is cancelled."""
        while True:
            await self._signals.settled.wait()
            await asyncio.sleep(_EVERY)
            self._signals.settled.clear()
            await self._link.insist(self.flush)

    async def flush(self) -> None:
        """Tells the queue all that is known. First what frees its memory."""
        while self._acknowledgements:
            page = self._acknowledgements[:_PAGE]
            count = await self._queue.acknowledge([entry for entry, _ in page])
            del self._acknowledgements[: len(page)]
            self._counts.acknowledged += count
            self._leave([(entry, held) for entry, held in page], count)
        while self._letters:
            letters = self._letters[:_LETTERS]
            count = await self._queue.bury([(entry, letter) for entry, _, letter in letters])
            del self._letters[: len(letters)]
            self._counts.dead_letters += count
            self._leave([(entry, held) for entry, held, _ in letters], count)
            for _, _, letter in letters:
                self._hooks.dead_letter(letter)

    def _leave(self, page: list[tuple[Entry, Held | None]], count: int) -> None:
        self._link.note_gone(len(page) - count, now=asyncio.get_running_loop().time())
        self.finish([held for _, held in page if held is not None])
        self._leaving.difference_update([(entry.partition, entry.id) for entry, held in page if held is None])
