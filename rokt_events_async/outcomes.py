"""What a caller gets back: the `Delivery` of an event, its `Receipt` or `DeliveryError`, and the reports.

```
RoktEventsError
├── DeliveryDeferredError                    no outcome: the event is in the journal, for the next process
└── DeliveryError                            an accepted event was not delivered
    ├── EventRejectedError                   Rokt refused the event's content
    ├── EventExpiredError                    the event became older than 3 days before it could be sent
    ├── DeliveryFailedError                  gave up for a reason unrelated to the content; never accepted
    │   └── CredentialsRefusedError          Rokt answered 401 or 403
    └── DeliveryUnconfirmedError             Rokt may or may not have accepted the event
```
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, Literal

import attrs

from rokt_events_async.errors import ApiError, RoktEventsError
from rokt_events_async.events import PartnerEvent

Outcome = Literal["delivered", "rejected", "expired", "failed", "unconfirmed"]
"""How an accepted event ends: in exactly one of these."""


class Cause(StrEnum):
    """Why an event was not delivered, for code, which need not read texts. Values may be added."""

    REJECTED = "rejected"
    """Rokt refused the event's content."""

    EXPIRED = "expired"
    """The event became older than 3 days."""

    DEADLINE = "deadline"
    """Its delivery deadline passed."""

    ATTEMPTS = "attempts"
    """As many requests carried it as the policy allows."""

    STATUS = "status"
    """An answer with a status that is not retried; as a last cause, any status but a 2xx."""

    CREDENTIALS = "credentials"
    """Rokt refused the credentials."""

    UNREACHABLE = "unreachable"
    """No connection could be made, or nothing was sent over it."""

    NO_ANSWER = "no_answer"
    """The request went out, and no answer came."""

    UNREADABLE = "unreadable"
    """An answer came that cannot be read."""

    AMBIGUOUS = "ambiguous"
    """The answer can be read in several ways."""

    QUEUE_FULL = "queue_full"
    """The queue had no room for it."""

    CLOSED = "closed"
    """The emitter was closed."""

    DISABLED = "disabled"
    """The environment has `ROKT_DISABLED=1`."""

    INTERNAL_ERROR = "internal_error"
    """A fault in the library; the log tells more."""


class DeliveryError(RoktEventsError):
    """An accepted event was not delivered.

    Attributes:
        event: The event, with its time stamped.
        attempts: How many requests carried the event. A connection that could not be made counts.
        status: The HTTP status of the last answer, `None` if there was none.
        reason: Why, in the library's own words. It contains nothing of the event or of Rokt's text.
        cause: Why, as a value.
        last_cause: What the last request that carried the event died of; `None` if there was none, or if it
            did not fail.
        outcome: The outcome under which `EmitterStats` counts the event.
    """

    outcome: ClassVar[Outcome] = "failed"
    _cause: ClassVar[Cause] = Cause.INTERNAL_ERROR

    def __init__(
        self,
        message: str,
        *,
        event: PartnerEvent,
        attempts: int = 0,
        status: int | None = None,
        reason: str = "",
        cause: Cause | None = None,
        last_cause: Cause | None = None,
    ) -> None:
        super().__init__(message)
        self.event = event
        self.attempts = attempts
        self.status = status
        self.reason = reason
        self.cause: Cause = self._cause if cause is None else cause
        self.last_cause = last_cause

    @property
    def can_send_again(self) -> bool:
        """True if the event can be sent again without counting twice: Rokt has provably not accepted it."""
        return self.outcome == "failed"


class EventRejectedError(DeliveryError):
    """Rokt refused the event: an answer named it, or 400, 413 or 422 refused its request.

    Attributes:
        errors: Rokt's reasons; empty if the answer gave none.
    """

    outcome: ClassVar[Outcome] = "rejected"
    _cause: ClassVar[Cause] = Cause.REJECTED

    def __init__(
        self, message: str, *, event: PartnerEvent, errors: tuple[ApiError, ...] = (), **rest: Any
    ) -> None:
        super().__init__(message, event=event, **rest)
        self.errors = errors


class EventExpiredError(DeliveryError):
    """The event became older than 3 days before it could be sent. It was provably never accepted."""

    outcome: ClassVar[Outcome] = "expired"
    _cause: ClassVar[Cause] = Cause.EXPIRED


class DeliveryFailedError(DeliveryError):
    """Gave up for a reason unrelated to the event's content. The event was provably never accepted."""


class CredentialsRefusedError(DeliveryFailedError):
    """Rokt answered 401 or 403: the credentials are wrong, not the event."""

    _cause: ClassVar[Cause] = Cause.CREDENTIALS


class DeliveryUnconfirmedError(DeliveryError):
    """Rokt may or may not have accepted the event: no readable answer told."""

    outcome: ClassVar[Outcome] = "unconfirmed"
    _cause: ClassVar[Cause] = Cause.NO_ANSWER


class DeliveryDeferredError(RoktEventsError):
    """The event is in the journal and no longer in this process's memory: the next process sends it.

    That is a hand-over, not an outcome, and so no `DeliveryError`.

    Attributes:
        event: The event, with its time stamped.
    """

    def __init__(self, message: str, *, event: PartnerEvent) -> None:
        super().__init__(message)
        self.event = event


class _ReceiptDraft:
    """A receipt that is being filled, which its class forbids; see `receipt_for`."""

    __slots__ = ("attempts", "event", "maybe_duplicate")


@attrs.frozen(weakref_slot=False)
class Receipt:
    """Rokt has accepted the event.

    Attributes:
        event: The event, with its time stamped.
        attempts: How many requests carried the event.
        maybe_duplicate: True if the answer to an earlier request was lost, so that Rokt may have counted
            the event before (the API has no idempotency key).
        outcome: `"delivered"`, as `EmitterStats` counts it.
    """

    outcome: ClassVar[Outcome] = "delivered"

    event: PartnerEvent
    attempts: int
    maybe_duplicate: bool


def receipt_for(event: PartnerEvent, attempts: int, maybe_duplicate: bool) -> Receipt:  # noqa: FBT001 -- as the class
    """Returns `Receipt(...)` in a third of the time: a draft takes on the class once it is filled."""
    draft: Any = _ReceiptDraft()
    draft.event = event
    draft.attempts = attempts
    draft.maybe_duplicate = maybe_duplicate
    draft.__class__ = Receipt
    receipt: Receipt = draft
    return receipt


class Delivery(asyncio.Future[Receipt]):
    """The future outcome of one accepted event. Awaiting it returns a `Receipt` or raises a `DeliveryError`.

    With a journal it raises a `DeliveryDeferredError` if the emitter closes before the outcome is known.

    Cancelling it, or a task that awaits it, detaches the caller: the event is still sent and still
    counted. To wait with a time-out and keep it, use `asyncio.shield`. A delivery that is never awaited
    makes no noise.

    Attributes:
        event: The event, with its time stamped.
    """

    __slots__ = ("accepted_at", "event", "generation", "wire")

    # Set by the code that makes one: an `__init__` here would cost more than the future's own.
    accepted_at: float
    event: PartnerEvent
    generation: Any
    wire: bytes

    def settle(self, outcome: Receipt | DeliveryError | DeliveryDeferredError) -> None:
        """Tells the caller, unless the caller has detached or its loop is closed."""
        self.wire = b""
        if self.done():
            return
        try:
            if isinstance(outcome, Receipt):
                self.set_result(outcome)
            else:
                self.set_exception(outcome)
                self.exception()  # Marks it as retrieved: a delivery that is never awaited makes no noise.
        except RuntimeError:
            if not self.get_loop().is_closed():
                raise


@attrs.frozen
class DrainReport:
    """The outcomes of the events that were pending when the close began.

    Attributes:
        deferred: How many events stay in the journal for the next process: no outcome, a hand-over.
        undelivered: The errors of the events that were not delivered, each with its event.
        left: How many events were pending when the close ran out of time.
        timeout: For how many seconds the close drained at most.
        journal: The journal's directory, `None` without one.
    """

    delivered: int = 0
    rejected: int = 0
    expired: int = 0
    failed: int = 0
    unconfirmed: int = 0
    deferred: int = 0
    undelivered: tuple[DeliveryError, ...] = attrs.field(
        default=(), repr=lambda errors: f"<{len(errors)} errors>"
    )
    left: int = attrs.field(default=0, eq=False)
    timeout: float = attrs.field(default=0.0, eq=False)
    journal: str | None = attrs.field(default=None, eq=False)


@attrs.frozen
class JournalStats:
    """What a journal holds and has done.

    Attributes:
        stored: Events on disk, in the files that this process owns.
        deferred: Events that are on disk alone: until memory has room for them, or until the next process.
        recovered: Events of earlier processes that were brought back into memory.
        file_bytes: The size of the files, in bytes: those of this process as far as they hold events.
        commits: How often something was written to disk.
        failures: How often that failed.
    """

    stored: int = 0
    deferred: int = 0
    recovered: int = 0
    file_bytes: int = 0
    commits: int = 0
    failures: int = 0


@attrs.frozen
class EmitterStats:
    """A snapshot of an emitter's account.

    `accepted` is always the sum of the outcomes and `pending`. With a journal, `accepted` and
    `journal.recovered` together are the sum of the outcomes, `journal.deferred` and `pending`.

    Attributes:
        accepted: Events that `track()` has accepted.
        delivered: Events that Rokt has accepted.
        rejected: Events whose content Rokt refused.
        expired: Events that became older than 3 days before they could be sent.
        failed: Events given up, and provably never accepted by Rokt.
        unconfirmed: Events that Rokt may or may not have accepted.
        pending: Events accepted and not settled, those in flight included.
        pending_bytes: The size of the pending events as encoded, in bytes.
        sessions: Sessions with pending events.
        in_flight: Requests in flight at this moment.
        requests: Requests made so far, those that found no connection included.
        retries: Requests that repeated one that failed.
        possible_duplicates: Events sent again after a lost answer.
        journal: The journal's own numbers; `None` without one.
    """

    accepted: int = 0
    delivered: int = 0
    rejected: int = 0
    expired: int = 0
    failed: int = 0
    unconfirmed: int = 0
    pending: int = 0
    pending_bytes: int = 0
    sessions: int = 0
    in_flight: int = 0
    requests: int = 0
    retries: int = 0
    possible_duplicates: int = 0
    journal: JournalStats | None = None


HealthState = Literal["new", "ok", "retrying", "outage", "credentials_refused", "closing", "closed"]
"""The states of an emitter's health."""


@attrs.frozen
class LastError:
    """Why the last failed request failed.

    Attributes:
        text: The reason, in words.
        at: When it failed, in UTC.
    """

    text: str
    at: datetime


@attrs.frozen(kw_only=True)
class Health:
    """How an emitter is doing.

    Attributes:
        state: `"retrying"` if requests fail and others are answered; `"outage"` if the breaker is open and
            requests of at least three sessions have failed since the last answer.
        problems: What else is wrong: `"queue_full"`, `"session_stalled"` (one session holds its share),
            `"journal_failed"` (the last write to the journal failed), `"journal_full"` (its files have
            reached `max_bytes`: `when_full` applies), `"deferring"` (events are in the journal alone,
            because memory has no room for them).
        since: When this state began, in UTC; `None` before the start.
        last_delivered_at: When an event was last delivered, in UTC.
        last_error: Why the last failed request failed.
        pending: Events accepted and not settled.
        oldest_pending_age: How long the oldest of them has been pending, in seconds, to within a second; an
            event that comes from the journal counts from when it was stored.
        deferred: Events that are in the journal alone, because memory had no room for them.
        oldest_deferred_age: How long the oldest of them has been stored, in seconds; none is older.
        parked: Sessions whose batch waits for its next attempt.
        next_attempt_at: When the next of them is due, in UTC.
        is_breaker_open: True while requests start only at a trickle.
        stats: The account at that moment.
    """

    state: HealthState
    problems: tuple[str, ...] = ()
    since: datetime | None = None
    last_delivered_at: datetime | None = None
    last_error: LastError | None = None
    pending: int = 0
    oldest_pending_age: float = 0.0
    deferred: int = 0
    oldest_deferred_age: float = 0.0
    parked: int = 0
    next_attempt_at: datetime | None = None
    is_breaker_open: bool = False
    stats: EmitterStats = EmitterStats()


@attrs.frozen(weakref_slot=False)
class PublishReceipt:
    """The event is in the queue. What becomes of it, the relay knows.

    Attributes:
        event: The event, with its time stamped.
        entry_id: The id of its entry in the queue.
    """

    event: PartnerEvent
    entry_id: str


@attrs.frozen
class PublisherStats:
    """A snapshot of a publisher's account.

    Every event that was taken is accepted, refused, unconfirmed or pending.

    Attributes:
        accepted: Events that are in the queue.
        refused: Events that are not: `track()` raised, or was cancelled before the event was sent.
        unconfirmed: Events that may be: `track()` raised a `PublishUnconfirmedError`, or was cancelled.
        pending: Events on their way into the queue.
        pending_bytes: Their size as encoded, in bytes.
        batches: How often events were sent to the queue.
        repeats: Events sent again, because the queue had not answered. They may be in it twice; a relay
            usually recognises them by their publish id.
    """

    accepted: int = 0
    refused: int = 0
    unconfirmed: int = 0
    pending: int = 0
    pending_bytes: int = 0
    batches: int = 0
    repeats: int = 0


@attrs.frozen(kw_only=True)
class RelayStats:
    """A snapshot of a relay's account, and of the queue as it last saw it.

    Attributes:
        read: Entries that it has read, those of other relays included.
        delivered: Events that Rokt has accepted.
        dead_letters: Entries that became dead letters.
        redelivered: Entries that it took over and that may have been sent before: an upper bound of
            duplicates.
        taken_over: Entries of relays that had ended, those included.
        repeated: Entries that their publisher had sent twice; the second was dropped if it was recognised.
        repeats_dropped: How many of these were dropped.
        possible_duplicates: Events sent again after Rokt's answer was lost.
        acknowledged: Entries that it has removed from the queue.
        acknowledged_elsewhere: Entries that were gone when it acknowledged them: another relay had them too.
        held: Entries in its memory.
        held_bytes: The size of their events, in bytes.
        passed_over: Entries that wait in the queue because their session holds its share of the window.
        partitions: The partitions that it reads.
        relays: How many relays are alive, this one included.
        waiting: Entries in the queue that no relay has read.
        pending: Entries in the queue that relays have read and not acknowledged.
        oldest_age: How long the oldest of both has been in the queue, in seconds.
        queue_failures: How often the queue could not be reached.
    """

    read: int = 0
    delivered: int = 0
    dead_letters: int = 0
    redelivered: int = 0
    taken_over: int = 0
    repeated: int = 0
    repeats_dropped: int = 0
    possible_duplicates: int = 0
    acknowledged: int = 0
    acknowledged_elsewhere: int = 0
    held: int = 0
    held_bytes: int = 0
    passed_over: int = 0
    partitions: tuple[int, ...] = ()
    relays: int = 0
    waiting: int = 0
    pending: int = 0
    oldest_age: float = 0.0
    queue_failures: int = 0


RelayState = Literal["new", "starting", "ok", "queue_unavailable", "closing", "closed"]
"""The states of a relay's health."""


@attrs.frozen(kw_only=True)
class RelayHealth:
    """How a relay is doing.

    Attributes:
        state: `"starting"` until the queue was reached for the first time; `"queue_unavailable"` while it
            cannot be reached.
        since: When this state began, in UTC; `None` before the start.
        last_error: Why the queue could last not be reached.
        emitter: How its emitter is doing: Rokt's side.
        stats: The account at that moment.
    """

    state: RelayState
    since: datetime | None = None
    last_error: LastError | None = None
    emitter: Health
    stats: RelayStats = RelayStats()

    @property
    def is_ready(self) -> bool:
        """True if the queue can be reached. It says nothing of Rokt: events wait in the queue."""
        return self.state == "ok"


@attrs.frozen(kw_only=True)
class DeadLetter:
    """An entry of a queue that a relay gave up, with the reason.

    Attributes:
        id: Its id among the dead letters; empty until it is one.
        fields: The entry's fields as they were: names and values, alternating.
        partition: The partition it came from.
        outcome: `"rejected"`, `"expired"`, `"failed"`, `"unconfirmed"`, or `"unreadable"`.
        cause: The `Cause`, as text.
        reason: In words.
        status: The HTTP status of the last answer, `None` if there was none.
        errors: Rokt's own reasons.
        attempts: How many requests carried the event.
        relay_id: The relay that gave it up.
        at: When, in UTC.
    """

    id: str = ""
    fields: tuple[bytes, ...]
    partition: int
    outcome: str
    cause: str = ""
    reason: str = ""
    status: int | None = None
    errors: tuple[ApiError, ...] = ()
    attempts: int = 0
    relay_id: str = ""
    at: datetime
