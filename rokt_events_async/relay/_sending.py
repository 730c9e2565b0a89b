"""A relay's sender: marks entries that are due, gives their events to the emitter, judges the outcomes."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
from collections.abc import Callable
from datetime import datetime
from typing import Final

from rokt_events_async._tracking.hooks import Hooks
from rokt_events_async.emitter import Emitter
from rokt_events_async.errors import EmitterClosedError, InvalidEventError, QueueFullError, RelayStoppedError
from rokt_events_async.outcomes import DeadLetter, Receipt
from rokt_events_async.relay._heart import Heart
from rokt_events_async.relay._judging import judge, judge_invalid
from rokt_events_async.relay._link import Counts, Link, Signals
from rokt_events_async.relay._publications import Publications
from rokt_events_async.relay._settling import Settler
from rokt_events_async.relay._window import Window
from rokt_events_async.relay.entries import Entry, Held
from rokt_events_async.relay.queue import EventQueue

_PAGE: Final = 1000
"""The most entries that are marked at once."""

_AGAIN_AFTER: Final = 1.0
"""Seconds until an event that the emitter had no room for is offered again."""

_LATER: Final = 30.0
"""Seconds until an event whose time lies too far ahead is offered again."""


class Sender:
    """Sends what is due.

    Args:
        fail: Stops the relay with an error.

    Attributes:
        released: Entries whose events were provably not accepted, and which stay in the queue.
        is_busy: True while batches are on their way to the emitter.
    """

    def __init__(
        self,
        queue: EventQueue,
        relay_id: str,
        window: Window,
        emitter: Emitter,
        *,
        heart: Heart,
        settler: Settler,
        counts: Counts,
        link: Link,
        signals: Signals,
        hooks: Hooks,
        clock: Callable[[], datetime],
        publications: Publications,
        fail: Callable[[BaseException], None],
    ) -> None:
        self._queue = queue
        self._relay_id = relay_id
        self._window = window
        self._emitter = emitter
        self._heart = heart
        self._settler = settler
        self._counts = counts
        self._link = link
        self._signals = signals
        self._hooks = hooks
        self._clock = clock
        self._publications = publications
        self._fail = fail
        self.released: list[Entry] = []
        self.is_busy = False

    async def run(self) -> None:
        """Sends what falls due, until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due_at = self._window.next_due()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due_at):
                    await self._signals.due.wait()
            self._signals.due.clear()
            batches = self._window.take_due(now=loop.time())
            self.is_busy = True
            while batches:
                page: list[list[Held]] = []
                while batches and sum(map(len, page)) < _PAGE:
                    page.append(batches.pop(0))
                await self._hand_over(page)
            self.is_busy = False

    async def _hand_over(self, batches: list[list[Held]]) -> None:
        """Marks the entries of batches, and gives their events to the emitter."""
        await self._heart.wait_until_known()
        entries = [held.entry for batch in batches for held in batch]
        pending = await self._link.insist(functools.partial(self._queue.mark, self._relay_id, entries))
        self._link.note_gone(len(entries) - len(pending), now=asyncio.get_running_loop().time())
        for batch in batches:
            for held in batch:
                if held.entry in pending:
                    self._track(held)
                else:  # Another relay has it, or has had it.
                    self._publications.forget(held.publish_id)
                    self._settler.finish([held])

    def _track(self, held: Held) -> None:
        context = None
        if held.trace_parent is not None and self._hooks.has_traces:
            context = self._hooks.in_trace(held.trace_parent)
        try:
            if context is None:
                delivery = self._emitter.track_nowait(held.event)
            else:
                delivery = context.run(self._emitter.track_nowait, held.event)
        except InvalidEventError as error:
            verdict = judge_invalid(held, error, relay_id=self._relay_id, now=self._clock())
            if isinstance(verdict, DeadLetter):
                self._settler.bury(held.entry, held, verdict)
            else:
                self._put_back(held, _LATER)
        except QueueFullError:
            self._put_back(held, _AGAIN_AFTER)
        except EmitterClosedError:
            self.released.append(held.entry)
            if not self._signals.stopping.is_set():
                self._fail(RelayStoppedError("the relay's emitter was closed by something else"))
        else:
            callback = functools.partial(self._on_outcome, held)
            delivery.add_done_callback(callback, context=contextvars.Context())

    def _on_outcome(self, held: Held, delivery: asyncio.Future[Receipt]) -> None:
        outcome: Receipt | BaseException
        if delivery.cancelled():
            outcome = asyncio.CancelledError()
        else:
            outcome = delivery.exception() or delivery.result()
        if isinstance(outcome, Receipt):
            self._counts.delivered += 1
            self._counts.possible_duplicates += outcome.maybe_duplicate
            self._settler.acknowledge(held.entry, held)
            return
        verdict = judge(held, outcome, relay_id=self._relay_id, now=self._clock())
        if isinstance(verdict, DeadLetter):
            self._settler.bury(held.entry, held, verdict)
        elif verdict == "again":
            self._put_back(held, _AGAIN_AFTER)
            self._signals.due.set()
        else:
            if getattr(outcome, "outcome", None) == "failed":  # Provably not accepted.
                self.released.append(held.entry)
            if verdict == "stop":
                self._fail(RelayStoppedError(f"{outcome}; the events stay in the queue"))

    def _put_back(self, held: Held, wait: float) -> None:
        self._window.put_back(held, now=asyncio.get_running_loop().time(), wait=wait)
