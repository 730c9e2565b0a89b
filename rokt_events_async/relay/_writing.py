"""A publisher's writer: sends what is in line to the queue, and tells each caller.

```
in line ──batch of up to 256──▶ under way ──the queue has it──▶ receipt
   ▲                                 └──no answer, or it cannot be reached──┐
   └──────────────────────────────────────────────────────── pause ─────────┘  until the event's time is over
```

One batch is under way at a time: what comes meanwhile is the next one. What the queue did not answer for is
sent again with the same publish id.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

import attrs

from rokt_events_async._tracking.hooks import Hooks
from rokt_events_async._tracking.log import log, log_raised
from rokt_events_async.errors import (
    NotAcceptedError,
    PublishUnconfirmedError,
    QueueUnavailableError,
)
from rokt_events_async.events import PartnerEvent
from rokt_events_async.outcomes import LastError, PublisherStats, PublishReceipt
from rokt_events_async.relay.entries import NewEntry
from rokt_events_async.relay.queue import EventQueue, Findings

_BATCH: Final = 256
"""The most events that are sent to the queue at once."""

_WAITS: Final = (0.05, 1.0)
"""The first and the longest wait before the queue is tried again, in seconds."""


@attrs.define(eq=False)
class Publication:
    """An event on its way into the queue.

    Attributes:
        event: The event, stamped.
        entry: What is sent.
        future: Its receipt.
        accepted_at: When it was taken, in the loop's time.
        deadline: When its time is over.
    """

    event: PartnerEvent
    entry: NewEntry
    future: asyncio.Future[PublishReceipt]
    accepted_at: float
    deadline: float


class Nowhere:
    """In place of a queue while the kill switch is on. The queue itself is never opened."""

    def __repr__(self) -> str:
        return "no queue"

    def __init__(self, partitions: int) -> None:
        self.partitions = partitions

    async def open_publisher(self, *, require_durable: bool) -> Findings:
        return Findings()

    async def publish(self, entries: Sequence[NewEntry], *, timeout: float) -> list[str | Exception]:
        return ["dropped"] * len(entries)

    async def aclose(self) -> None:
        """Has nothing to close."""


class Writer:
    """Sends batches, one after the other, and keeps the account.

    Args:
        queue: Where they go.
        timeout: Seconds that an event has.
        require_durable: True to refuse a queue that does not persist to disk.
        hooks: Told of what is published, and what is not.
        clock: Returns the aware now.

    Attributes:
        waiting: Events in line.
        under_way: Events of the batch that is being sent.
        problems: What is doubtful about the queue.
        failing_since: Since when the queue has not taken events, `None` if it does.
    """

    def __init__(
        self,
        queue: EventQueue | Nowhere,
        *,
        timeout: float,
        require_durable: bool,
        hooks: Hooks,
        clock: Callable[[], datetime],
    ) -> None:
        self._queue = queue
        self._timeout = timeout
        self._require_durable = require_durable
        self._hooks = hooks
        self._clock = clock
        self._wake = asyncio.Event()
        self._is_checked = False
        self.waiting: deque[Publication] = deque()
        self.under_way: list[Publication] = []
        self.problems: tuple[str, ...] = ()
        self.failing_since: datetime | None = None
        self.last_error: LastError | None = None
        self.last_published_at: datetime | None = None
        self.pending = self.pending_bytes = 0
        self.accepted = self.refused = self.unconfirmed = self.batches = self.repeats = 0

    def put(self, publication: Publication) -> None:
        """Puts an event in line."""
        self.pending += 1
        self.pending_bytes += len(publication.entry.wire)
        self.waiting.append(publication)
        self._wake.set()

    def refuse_rest(self, error: NotAcceptedError) -> None:
        """Tells the callers of all that is in line or under way that the publisher is closed."""
        self._put_back()
        while self.waiting:
            self.refuse(self.waiting.popleft(), error)

    def _put_back(self) -> None:
        """Puts what is under way at the head of the line again."""
        self.waiting.extendleft(reversed(self.under_way))
        self.under_way = []

    @property
    def failure(self) -> str:
        """Why the queue does not take events at present; empty if it does."""
        return self.last_error.text if self.failing_since and self.last_error else ""

    def stats(self) -> PublisherStats:
        """Returns a snapshot of the account."""
        return PublisherStats(
            accepted=self.accepted,
            refused=self.refused,
            unconfirmed=self.unconfirmed,
            pending=self.pending,
            pending_bytes=self.pending_bytes,
            batches=self.batches,
            repeats=self.repeats,
        )

    async def check_queue(self) -> None:
        """Checks the queue once; it may be unreachable at the start."""
        if self._is_checked:
            return
        findings = await self._queue.open_publisher(require_durable=self._require_durable)
        self._is_checked = True
        self.problems = ("queue_doubtful",) if findings.warnings else ()
        for warning in findings.warnings:
            log(logging.WARNING, "%r: %s", self._queue, warning)

    async def settled(self) -> None:
        """Waits for the events that are on their way now."""
        futures = [one.future for one in (*self.under_way, *self.waiting)]
        if futures:
            await asyncio.wait(futures)

    async def run(self) -> None:
        """Sends what comes, until it is cancelled."""
        wait = _WAITS[0]
        while True:
            await self._wake.wait()
            self.under_way = self._next_batch()
            if not self.under_way:
                self._wake.clear()
                continue
            if await self._send():
                wait = _WAITS[0]
                continue
            self._put_back()
            await self._pause(wait)
            wait = min(2 * wait, _WAITS[1], self._timeout / 4)

    def _next_batch(self) -> list[Publication]:
        """Returns the next events, without those whose callers wait no more."""
        batch: list[Publication] = []
        while self.waiting and len(batch) < _BATCH:
            publication = self.waiting.popleft()
            if publication.future.cancelled():
                self._leave(publication)
                self._count_refusal(publication)
            else:
                batch.append(publication)
        return batch

    async def _pause(self, seconds: float) -> None:
        """Waits before the queue is tried again, and refuses what is overdue meanwhile."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while (left := until - loop.time()) > 0:
            if self.waiting:
                left = min(left, max(0.0, self.waiting[0].deadline - loop.time()))
            await asyncio.sleep(left)
            while self.waiting and self.waiting[0].deadline <= loop.time():
                publication = self.waiting.popleft()
                self.refuse(publication, self._overdue_error(publication))

    async def _send(self) -> bool:
        """Sends what is under way. Returns False if the queue did not take or not answer for some of it."""
        batch = self.under_way
        loop = asyncio.get_running_loop()
        tries = [publication.entry.tries for publication in batch]
        try:
            async with asyncio.timeout_at(batch[0].deadline):
                await self.check_queue()
            left = max(0.001, batch[0].deadline - loop.time())
            try:
                replies = await self._queue.publish([one.entry for one in batch], timeout=left)
            finally:
                sent = [before for before, one in zip(tries, batch, strict=True) if one.entry.tries > before]
                self.batches += bool(sent)
                self.repeats += sum([before > 0 for before in sent])
        except (QueueUnavailableError, TimeoutError) as error:
            self.note_failure(error)
            return False
        except Exception as error:  # noqa: BLE001 -- the queue as a whole refuses, or its client has a fault
            if not isinstance(error, NotAcceptedError):
                log_raised("the queue's client", error)
                error = QueueUnavailableError(f"the queue's client failed: {type(error).__name__}")
            self.note_failure(error)
            for publication in batch:
                self.refuse(publication, error)
            self.under_way = []
            return True
        self.under_way = []
        self._settle(batch, replies)
        return not self.under_way

    def _settle(self, batch: list[Publication], replies: list[str | Exception]) -> None:
        failure: Exception | None = None
        for publication, reply in zip(batch, replies, strict=True):
            if isinstance(reply, str):
                self._receive(publication, reply)
                continue
            failure = reply
            publication.entry.tries -= 1  # The queue has said that it did not take it.
            if isinstance(reply, QueueUnavailableError):
                self.under_way.append(publication)
            else:
                self.refuse(publication, reply)
        if failure is None:
            self._note_success()
        else:
            self.note_failure(failure)

    def _receive(self, publication: Publication, entry_id: str) -> None:
        self._leave(publication)
        self.accepted += 1
        receipt = PublishReceipt(publication.event, entry_id)
        if self._hooks.published:
            self._hooks.published(receipt, asyncio.get_running_loop().time() - publication.accepted_at)
        if not publication.future.done():
            publication.future.set_result(receipt)

    def refuse(self, publication: Publication, error: Exception) -> None:
        """Tells the caller of an error of its own: an exception that is shared would grow its traceback."""
        self._leave(publication)
        told = PublishUnconfirmedError if publication.entry.tries else type(error)
        text = str(error)
        if publication.entry.tries and not isinstance(error, PublishUnconfirmedError):
            text = f"the event may be in the queue: it was sent, and no answer came ({text})"
        own = told(text)
        self._count_refusal(publication)
        if self._hooks.unpublished:
            self._hooks.unpublished(publication.event, own)
        if not publication.future.done():
            publication.future.set_exception(own)
            publication.future.exception()  # A caller that waits no more makes no noise.

    def _count_refusal(self, publication: Publication) -> None:
        if publication.entry.tries:
            self.unconfirmed += 1
        else:
            self.refused += 1

    def _leave(self, publication: Publication) -> None:
        self.pending -= 1
        self.pending_bytes -= len(publication.entry.wire)

    def _overdue_error(self, publication: Publication) -> NotAcceptedError:
        why = self.failure or "the queue was too slow"
        if publication.entry.tries:
            return PublishUnconfirmedError(
                f"no answer of the queue within {self._timeout:g} s: the event may be in it ({why})"
            )
        return QueueUnavailableError(f"the event is not in the queue after {self._timeout:g} s: {why}")

    def note_failure(self, error: Exception) -> None:
        """Notes that the queue does not take events, and logs it once."""
        self.last_error = LastError(str(error) or "the queue did not answer in time", self._clock())
        if self.failing_since is None:
            self.failing_since = self._clock()
            log(logging.ERROR, "events cannot be published: %s", self.last_error.text)

    def _note_success(self) -> None:
        self.last_published_at = self._clock()
        if self.failing_since is not None:
            seconds = (self.last_published_at - self.failing_since).total_seconds()
            self.failing_since = None
            text = (
                "events can be published again, after %.0f s: %d refused and %d unconfirmed since the start"
            )
            log(logging.WARNING, text, seconds, self.refused, self.unconfirmed)

    def oldest_age(self, *, now: float) -> float:
        """Returns for how many seconds the oldest event has been on its way."""
        first = next(iter((*self.under_way[:1], *itertools.islice(self.waiting, 1))), None)
        return 0.0 if first is None else max(0.0, now - first.accepted_at)
