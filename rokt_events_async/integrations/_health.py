"""Shared by the integrations of web frameworks: what a health endpoint answers. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from rokt_events_async.outcomes import Health

_ENDED: Final = ("new", "closed")
_BAD_STATES: Final = ("outage", "credentials_refused")
_BAD_PROBLEMS: Final = ("queue_full", "journal_failed", "journal_full")


def describe_health(health: Health) -> dict[str, Any]:
    """Returns a tracker's health as JSON's types. It contains nothing of an event."""
    error = health.last_error
    return {
        "state": health.state,
        "problems": list(health.problems),
        "since": _time(health.since),
        "last_delivered_at": _time(health.last_delivered_at),
        "last_error": None if error is None else {"text": error.text, "at": _time(error.at)},
        "pending": health.pending,
        "oldest_pending_age": round(health.oldest_pending_age, 3),
        "deferred": health.deferred,
        "oldest_deferred_age": round(health.oldest_deferred_age, 3),
        "has_journal": health.stats.journal is not None,
        "parked": health.parked,
        "next_attempt_at": _time(health.next_attempt_at),
    }


def health_status(health: Health, *, strict: bool) -> int:
    """Returns the status to answer with.

    Args:
        health: The health.
        strict: True to answer 503 for what a person must look at.
    """
    if health.state in _ENDED:
        return 503
    is_bad = health.state in _BAD_STATES or any(name in _BAD_PROBLEMS for name in health.problems)
    return 503 if strict and is_bad else 200


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
