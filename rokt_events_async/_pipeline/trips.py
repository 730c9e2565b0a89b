"""Batches in flight, their shared history, and trips: a session with what is left of its batch after splits.

A trip starts with one batch. A refused batch can be split; its halves inherit the history and take its
place, the first half first, so that order within the session is kept. A trip ends when no batch is left.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

from rokt_events_async._pipeline.batching import Session
from rokt_events_async._pipeline.commits import StoredDelivery
from rokt_events_async._pipeline.transport import Request
from rokt_events_async.outcomes import Cause, Delivery
from rokt_events_async.settings import Credentials


class Batch:
    """Events that travel together, and the history that they share."""

    __slots__ = (
        "attempts",
        "began",
        "credentials",
        "deliveries",
        "failures",
        "halves",
        "has_lost",
        "is_marked",
        "is_resent",
        "is_retry",
        "last_cause",
        "maybe_accepted",
        "reason",
        "request",
        "resends",
        "server_errors",
        "status",
        "unreadable",
        "was_maybe_accepted",
    )

    def __init__(self, deliveries: list[Delivery]) -> None:
        self.deliveries = deliveries
        self.attempts = 0
        self.failures = 0
        """How many attempts in a row have failed."""
        self.server_errors = 0
        """How many of these were a 5xx other than 503."""
        self.resends = 0
        """How often the events were sent again although Rokt may have accepted them."""
        self.status: int | None = None
        self.reason = ""
        """Why the last attempt failed, in words."""
        self.last_cause: Cause | None = None
        """Why the last attempt failed, as a value."""
        self.began = -math.inf
        """When its last request began."""
        self.credentials: Credentials | None = None
        """The credentials of its last request."""
        self.unreadable = 0
        """How many answers could not be read as HTTP."""
        self.is_retry = False
        """True if its next request repeats one that failed."""
        self.was_maybe_accepted = False
        """True if its last request sent again what Rokt may have accepted."""
        self.maybe_accepted = False
        """True if an answer was lost, so that Rokt may have accepted the events."""
        self.has_lost = False
        """True if an answer was lost in this process."""
        self.is_marked = False
        """True if the journal says that it was sent."""
        self.is_resent = False
        """True if the events were sent again after that."""
        self.request: Request | None = None
        """The request whose reply has not been judged yet."""
        self.halves: tuple[Batch, ...] = ()
        """The batches that take its place, if it was split."""

    def with_last_reason(self, reason: str) -> str:
        """Returns a reason to give up, with the reason why the last attempt failed, if one did."""
        return f"{reason}, after {self.reason}" if self.reason else reason

    def interrupt(self) -> None:
        """Draws the consequence of a request without a reply: if it went out, Rokt may have accepted it."""
        if self.request is not None and self.request.went_out:
            self.lose()
            self.last_cause = Cause.NO_ANSWER

    def lose(self) -> None:
        """Notes that an answer leaves it open whether Rokt has accepted the events."""
        self.maybe_accepted = self.has_lost = True

    def take_front(self, is_overdue: Callable[[Delivery], bool]) -> list[Delivery]:
        """Takes overdue events out, from the front."""
        overdue = list(itertools.takewhile(is_overdue, self.deliveries))
        del self.deliveries[: len(overdue)]
        return overdue

    def split(self) -> None:
        """Splits the batch into two halves, the first at most one event larger."""
        middle = (len(self.deliveries) + 1) // 2
        self.halves = (self._inherit(self.deliveries[:middle]), self._inherit(self.deliveries[middle:]))

    def _inherit(self, deliveries: list[Delivery]) -> Batch:
        batch = Batch(deliveries)
        batch.attempts, batch.failures, batch.status = self.attempts, self.failures, self.status
        batch.maybe_accepted, batch.is_resent = self.maybe_accepted, self.is_resent
        batch.is_marked, batch.has_lost = self.is_marked, self.has_lost
        batch.reason, batch.is_retry = self.reason, self.is_retry
        batch.resends, batch.server_errors = self.resends, self.server_errors
        batch.last_cause, batch.unreadable = self.last_cause, self.unreadable
        return batch


class Trip:
    """A session, and the stack of batches that are left of what it took."""

    __slots__ = (
        "_stack",
        "count",
        "deadline",
        "due_at",
        "held",
        "is_splitting",
        "not_before",
        "refused",
        "session",
    )

    def __init__(self, session: Session[Delivery], deliveries: list[Delivery]) -> None:
        self.session = session
        self._stack = [Batch(deliveries)]
        if isinstance(deliveries[0], StoredDelivery):
            self._stack = _runs(deliveries)
        self.count = len(deliveries)
        """How many events it began with."""
        if session.items == self.count:  # It took all that its session had.
            self.held = session.items, session.bytes
        else:
            self.held = self.count, sum([len(delivery.wire) for delivery in deliveries])
        """Events and bytes that it holds of its session's share."""
        self.due_at = -math.inf
        """When its next attempt is due, while it is parked."""
        self.not_before = -math.inf
        """The earliest time of its next attempt: what a `Retry-After` asked for."""
        self.is_splitting = False
        """True if a refused batch of it was split; then its halves are split too."""
        self.refused = 0
        """How many of its events ended because their request was refused as a whole."""
        self.deadline = math.inf
        """Under which deadline it is filed while it is parked."""

    @property
    def is_spoilt(self) -> bool:
        """True if it had several events, and each of them was refused with its request."""
        return self.count > 1 and self.refused == self.count

    @property
    def is_retry(self) -> bool:
        """True if its next request repeats one that failed."""
        batch = self.batch
        return batch is not None and batch.is_retry

    @property
    def batch(self) -> Batch | None:
        """The batch whose turn it is; `None` if the trip is over."""
        return self._stack[-1] if self._stack else None

    def advance(self) -> None:
        """Leaves the batch whose turn it was: its halves follow, if it was split."""
        self._stack.extend(reversed(self._stack.pop().halves))

    def clear(self) -> None:
        """Ends the trip, once all that was left of it is settled."""
        self._stack.clear()

    def let_go(self) -> tuple[int, int]:
        """Returns how many events and bytes it has settled since the last call; it holds them no longer."""
        events, held = self.held
        left = [delivery for batch in self._stack for delivery in batch.deliveries]
        self.held = len(left), sum([len(delivery.wire) for delivery in left])
        return events - self.held[0], held - self.held[1]

    def prune(self) -> None:
        """Drops the batches that are empty."""
        self._stack = [batch for batch in self._stack if batch.deliveries]

    def rest(self) -> list[Batch]:
        """Returns all batches that are left, the next one first."""
        return self._stack[::-1]


def _was_sent(delivery: Delivery) -> bool:
    return isinstance(delivery, StoredDelivery) and delivery.sent_before > 0


def _runs(deliveries: list[Delivery]) -> list[Batch]:
    """Returns batches, the last one first, so that what an earlier process sent is in batches of its own."""
    batches: list[Batch] = []
    for was_sent, run in itertools.groupby(deliveries, key=_was_sent):
        batches.insert(0, Batch(list(run)))
        batches[0].maybe_accepted = was_sent
    return batches
