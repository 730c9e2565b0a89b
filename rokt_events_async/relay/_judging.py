"""What a relay does with an entry, from the outcome of its event. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, Literal

from rokt_events_async.errors import InvalidEventError
from rokt_events_async.events import is_expired
from rokt_events_async.outcomes import (
    Cause,
    DeadLetter,
    DeliveryError,
    EventRejectedError,
    Receipt,
)
from rokt_events_async.relay.entries import Entry, Held

Verdict = Literal["acknowledge", "again", "leave", "stop"] | DeadLetter
"""What to do: remove the entry, offer its event again, leave it pending for another relay, leave it and stop
the relay, or make a dead letter of it."""

_SKEW: Final = timedelta(hours=1)

_AGAIN: Final = frozenset({Cause.DEADLINE, Cause.QUEUE_FULL})
"""Causes of the emitter's own bounds. The event was not accepted, and the queue keeps it."""


def judge(held: Held, outcome: Receipt | BaseException, *, relay_id: str, now: datetime) -> Verdict:
    """Returns what to do with an entry.

    Args:
        held: The entry.
        outcome: The receipt, or the exception that the event's delivery raised.
        relay_id: The relay, for the dead letter.
        now: The aware now.
    """
    if isinstance(outcome, Receipt):
        return "acknowledge"
    if not isinstance(outcome, DeliveryError):
        reason = f"{type(outcome).__name__}: its delivery was cancelled, or handed over elsewhere"
        return _letter(held, "unconfirmed", "unknown", reason, relay_id=relay_id, now=now)
    if outcome.cause is Cause.CLOSED:
        return "leave"
    if outcome.outcome == "failed":
        if outcome.cause is Cause.CREDENTIALS:
            return "stop"
        time = held.event.event_time
        if outcome.cause in _AGAIN and time is not None and not is_expired(time, now=now):
            return "again"
    return DeadLetter(
        fields=held.entry.fields,
        partition=held.entry.partition,
        outcome=outcome.outcome,
        cause=str(outcome.cause),
        reason=outcome.reason or str(outcome),
        status=outcome.status,
        errors=outcome.errors if isinstance(outcome, EventRejectedError) else (),
        attempts=outcome.attempts,
        relay_id=relay_id,
        at=now,
    )


def judge_invalid(
    held: Held, error: InvalidEventError, *, relay_id: str, now: datetime
) -> DeadLetter | Literal["again"]:
    """Returns what to do with an event that the emitter did not accept for its time.

    Too old, it is a dead letter. Ahead of this clock by less than an hour, it is offered again: the clocks of
    its publisher and of this relay differ.
    """
    time = held.event.event_time
    if time is not None and timedelta(0) < time - now < _SKEW:
        return "again"
    if time is not None and is_expired(time, now=now):
        reason = "the event became older than 3 days while it was in the queue"
        return _letter(held, "expired", "expired", reason, relay_id=relay_id, now=now)
    return _letter(held, "rejected", "invalid", str(error), relay_id=relay_id, now=now)


def judge_unreadable(entry: Entry, reason: str, *, relay_id: str, now: datetime) -> DeadLetter:
    """Returns the dead letter of an entry that cannot be read."""
    return DeadLetter(
        fields=entry.fields,
        partition=entry.partition,
        outcome="unreadable",
        cause="unreadable",
        reason=reason,
        relay_id=relay_id,
        at=now,
    )


def judge_redelivered(held: Held, *, relay_id: str, now: datetime) -> DeadLetter:
    """Returns the dead letter of an entry that may have been sent, where that must not be sent again."""
    reason = "a relay ended after it may have sent the event, and retry_unconfirmed is False"
    return _letter(held, "unconfirmed", "redelivered", reason, relay_id=relay_id, now=now)


def _letter(held: Held, outcome: str, cause: str, reason: str, *, relay_id: str, now: datetime) -> DeadLetter:
    return DeadLetter(
        fields=held.entry.fields,
        partition=held.entry.partition,
        outcome=outcome,
        cause=cause,
        reason=reason,
        relay_id=relay_id,
        at=now,
    )
