"""Observers: they are told what an emitter does. One of them logs.

The emitter calls an observer on its own loop, in the middle of its work: an observer must return quickly.
An exception is logged once, and changes nothing about the events. Observers get the application's own
`Delivery` objects; nothing that they get contains the secret.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextvars import Context
from datetime import UTC, datetime
from typing import Any, Final

import attrs

from rokt_events_async.errors import InvalidSettingError, NotAcceptedError, PublishUnconfirmedError
from rokt_events_async.events import PartnerEvent
from rokt_events_async.outcomes import (
    Cause,
    DeadLetter,
    Delivery,
    DeliveryError,
    DrainReport,
    EventRejectedError,
    Health,
    PublishReceipt,
    Receipt,
    RelayStats,
)
from rokt_events_async.settings import check_count, check_number


@attrs.frozen(eq=False)
class RequestReport:
    """One request and its result.

    Attributes:
        deliveries: The events that it carried, all of one session, in their order.
        endpoint: The URL.
        size: The size of its body, in bytes.
        attempt: The number of this request for these events, from 1. A connection that could not be made
            counts.
        started_at: When it began, in UTC.
        duration: Seconds until it was answered or over, connecting included.
        status: The HTTP status, `None` if no status line came.
        problem: Why no status line came, in words; `None` if one came.
    """

    deliveries: tuple[Delivery, ...]
    endpoint: str
    size: int
    attempt: int
    started_at: datetime
    duration: float
    status: int | None
    problem: str | None


@attrs.frozen(eq=False)
class RetryReport:
    """Events that will be sent again.

    Attributes:
        deliveries: The events.
        attempts: How many requests have carried them so far.
        status: The HTTP status of the last request, `None` if it had no answer.
        reason: Why the last request failed, in words.
        wait: Seconds until the next attempt.
        pending: How many events the emitter has accepted and not settled.
        sessions: How many sessions these are of.
    """

    deliveries: tuple[Delivery, ...]
    attempts: int
    status: int | None
    reason: str
    wait: float
    pending: int = 0
    sessions: int = 0


class Observer:
    """Base class of observers. Its methods do nothing: override those that you need.

    A method that is not overridden costs nothing. All are plain methods, not coroutines.
    """

    def on_accepted(self, delivery: Delivery) -> None:
        """An event was accepted. Called in the context of the `track()` call."""

    def on_request(self, request: RequestReport) -> None:
        """A request was answered, or ended without an answer."""

    def on_retry(self, retry: RetryReport) -> None:
        """Events will be sent again."""

    def on_delivered(self, delivery: Delivery, receipt: Receipt) -> None:
        """An event was delivered."""

    def on_undelivered(self, delivery: Delivery, error: DeliveryError) -> None:
        """An event was not delivered."""

    def on_deferred(self, delivery: Delivery) -> None:
        """An accepted event is in the journal alone: no outcome.

        At a close it stays there for the next process. Before, memory had no room for it, and it comes back.
        """

    def on_returned(self, count: int, left: int, oldest: datetime | None) -> None:
        """Deferred events came back into memory. Their outcomes follow.

        Args:
            count: How many.
            left: How many are deferred yet.
            oldest: When the oldest of these was stored, in UTC; none is older. `None` if there are none.
        """

    def on_recovered(self, count: int, oldest: datetime) -> None:
        """Events of an earlier process were found in a journal file, which this emitter has taken over.

        Args:
            count: How many.
            oldest: When the oldest of them was stored, in UTC.
        """

    def on_health(self, before: Health, after: Health) -> None:
        """The state of the emitter, or its problems, changed."""

    def on_closed(self, report: DrainReport) -> None:
        """The emitter is closed. No other call follows."""

    # A publisher and a relay.

    def on_published(self, receipt: PublishReceipt, duration: float) -> None:
        """A publisher has put an event into the queue, in so many seconds."""

    def on_unpublished(self, event: PartnerEvent, error: NotAcceptedError) -> None:
        """A publisher could not put an event into the queue, or does not know whether it has."""

    def on_relay(self, before: RelayStats, after: RelayStats) -> None:
        """A relay's account has been looked at, about once per second. The differences happened since."""

    def on_dead_letter(self, letter: DeadLetter) -> None:
        """A relay made a dead letter of an entry."""

    def trace_parent(self) -> str | None:
        """Returns the W3C `traceparent` of the span that is current where `track()` of a publisher is called.

        It travels with the event, and comes back to `in_trace` at the relay.
        """
        return None

    def in_trace(self, trace_parent: str) -> Context | None:
        """Returns a context in which the span of that `traceparent` is current, `None` if there is none."""
        return None


@attrs.define
class _Window:
    """How many records of one outcome were logged since `begun`, and how many were suppressed."""

    begun: float
    logged: int = 0
    suppressed: int = 0


@attrs.define
class _Returns:
    """How many deferred events have come back since `begun`."""

    begun: float
    count: int = 0


class LoggingObserver(Observer):
    """Logs undelivered events, one record each and a bounded number of them, and outages.

    A record has the reason, and in `extra` for structured formatters `rokt_outcome`, `rokt_reason`,
    `rokt_event_type`, `rokt_attempts`, `rokt_status` (`None` without an answer), `rokt_error_codes` (the
    API's own) and `rokt_suppressed` (how many records of that outcome were suppressed before it). Records
    of events contain no payload: no ids, no metadata, and no text of Rokt's.

    Refused credentials are logged when that begins, with Rokt's reason, and when it ends; their events have
    no records of their own. A close that leaves events undelivered, or deferred, says so once. Journal files
    of earlier processes are logged when they are adopted, a failing journal when it can be written again.
    When memory has no room and events are deferred, that is logged once, and then, at most once per `per`
    seconds, how many come back per second and how many are left.

    An outage is logged when it begins, then once per `per` seconds (since when, how many events of how many
    sessions wait, the last answer), and when it ends (how long it took, and how many events were given up).
    Outside outages, the third and every later attempt of a batch is logged once per `per` seconds. These
    records have `rokt_reason`, `rokt_attempts`, `rokt_status` and `rokt_pending`.

    Args:
        logger: The logger; `None` takes `rokt_events_async`.
        level: The level of its records.
        max_records: The most records of one outcome per `per` seconds. Further ones are counted, and the
            next record, or the close, says how many there were.
        per: Seconds.

    Raises:
        InvalidSettingError: A number is out of bounds, or the level is none.
    """

    def __init__(
        self,
        logger: logging.Logger | None = None,
        *,
        level: int = logging.WARNING,
        max_records: int = 10,
        per: float = 10.0,
        _clock: Callable[[], float] = lambda: time.monotonic(),  # noqa: PLW0108 -- a test may replace it
    ) -> None:
        self._logger = logger or logging.getLogger("rokt_events_async")
        if isinstance(level, bool) or not isinstance(level, int):
            raise InvalidSettingError(f"level must be a number, as in logging.WARNING, got {level!r}")
        self._level = level
        self._max_records = check_count("max_records", max_records)
        self._per = check_number("per", per, at_least=0, above=True)
        self._clock = _clock
        self._windows: dict[str, _Window] = {}
        self._quiet_until = -math.inf
        self._outage: Health | None = None
        self._returns = _Returns(-math.inf)
        self._deferred = 0
        self._deferred_since = 0.0
        self._is_deferral_told = False
        self._deferral_quiet_until = -math.inf
        self._journal_quiet_until = -math.inf

    def on_recovered(self, count: int, oldest: datetime) -> None:
        age = _age((datetime.now(UTC) - oldest).total_seconds())
        text = "adopted 1 file of the journal, %s, the oldest %s old"
        self._logger.log(self._level, text, _count(count, "event"), age, extra={"rokt_recovered": count})

    def on_health(self, before: Health, after: Health) -> None:
        if "journal_failed" in before.problems and "journal_failed" not in after.problems:
            self._tell_of_recovered_journal()
        if ("deferring" in before.problems) != ("deferring" in after.problems):
            self._tell_of_deferral(after)
        if before.state != after.state and "credentials_refused" in (before.state, after.state):
            self._tell_of_credentials(before, after)
        if before.state != after.state and "outage" in (before.state, after.state):
            self._note_outage(after)

    def _note_outage(self, after: Health) -> None:
        began, self._outage = self._outage, None
        if after.state == "outage":
            self._outage = after
            self._quiet_until = -math.inf  # The next retry tells of it.
        elif began is not None and after.state not in ("closing", "closed"):  # A close ends no outage.
            self._tell_end(began, after)

    def _tell_of_recovered_journal(self) -> None:
        """Logs that the journal can be written, not each time if it goes back and forth."""
        now = self._clock()
        if now >= self._journal_quiet_until:
            self._journal_quiet_until = now + self._per
            self._logger.log(self._level, "the journal can be written again")

    def _tell_of_deferral(self, after: Health) -> None:
        """Logs that events are deferred, and that all are back; not at every burst."""
        now = self._clock()
        if "deferring" not in after.problems:
            if self._is_deferral_told:
                self._tell_of_returns(after.deferred, None, now=now)
            return
        self._returns = _Returns(-math.inf)
        self._is_deferral_told = now >= self._deferral_quiet_until
        if self._is_deferral_told:
            self._deferral_quiet_until = now + self._per
            text = (
                "memory has room for no more events, %s pending: further ones are in the journal until it has"
            )
            self._logger.log(self._level, text, _count(after.pending, "event"))

    def on_deferred(self, delivery: Delivery) -> None:
        if not self._deferred:
            self._deferred_since = self._clock()
        self._deferred += 1

    def on_returned(self, count: int, left: int, oldest: datetime | None) -> None:
        now = self._clock()
        self._deferred = left
        if oldest is not None:
            self._deferred_since = now - (datetime.now(UTC) - oldest).total_seconds()
        if not self._returns.count:
            self._returns = _Returns(now)
        self._returns.count += count
        if now >= self._returns.begun + self._per and oldest is not None:
            self._tell_of_returns(left, oldest, now=now)

    def _tell_of_returns(self, left: int, oldest: datetime | None, *, now: float) -> None:
        """Logs how fast deferred events come back, and how many are left."""
        count, self._returns.count = self._returns.count, 0
        if not count:
            return
        rest = f"{_count(left, 'event')} left" if left else "none is left"
        if oldest is not None:
            rest += f", the oldest {_age((datetime.now(UTC) - oldest).total_seconds())} old"
        seconds = max(now - self._returns.begun, 0.001)
        text = "%s came back from the journal in %.0f s, %.0f per second: %s"
        fields = {"rokt_returned": count, "rokt_deferred": left}
        values = _count(count, "deferred event"), seconds, count / seconds, rest
        self._logger.log(self._level, text, *values, extra=fields)

    def on_retry(self, retry: RetryReport) -> None:
        now = self._clock()
        is_notable = self._outage is not None or retry.attempts >= _ATTEMPTS_OF_AN_OUTAGE
        if not is_notable or now < self._quiet_until:
            return
        self._quiet_until = now + self._per
        fields = {
            "rokt_reason": retry.reason,
            "rokt_attempts": retry.attempts,
            "rokt_status": retry.status,
            "rokt_pending": retry.pending,
        }
        waiting = f"{_count(retry.pending, 'event')} of {_count(retry.sessions, 'session')}"
        if self._outage is not None and self._outage.since is not None:
            text = "outage since %s: %s wait%s; the last attempt ended with: %s"
            more = self._in_the_journal(now=now)
            values: tuple[object, ...] = (_when(self._outage.since), waiting, more, retry.reason)
        else:
            text = "%s not delivered so far: %s (attempts: %d), next attempt in %.1f s; %s pending"
            events = _count(len(retry.deliveries), "event")
            values = events, retry.reason, retry.attempts, retry.wait, waiting
        self._logger.log(self._level, text, *values, extra=fields)

    def _in_the_journal(self, *, now: float) -> str:
        """Returns how many events are deferred, as the rest of a sentence; empty if there are none."""
        if not self._deferred:
            return ""
        age = _age(now - self._deferred_since)
        return f", and {_count(self._deferred, 'event')} in the journal, the oldest {age} old"

    def _tell_of_credentials(self, before: Health, after: Health) -> None:
        if after.state == "credentials_refused":
            reason = after.last_error.text if after.last_error else "Rokt refused the credentials"
            self._logger.error("%s", reason, extra={"rokt_reason": "credentials"})
        elif after.state not in ("closing", "closed"):
            assert before.since is not None, "a state has begun"
            text = "Rokt accepts the credentials again, which it has refused since %s: %s pending"
            values = _when(before.since), _count(after.pending, "event")
            self._logger.log(self._level, text, *values, extra={"rokt_pending": after.pending})

    def _tell_end(self, began: Health, after: Health) -> None:
        """Logs the end of an outage: how long it took, and the outcomes meanwhile."""
        assert began.since is not None, "an outage has begun"
        assert after.since is not None, "a state has begun"
        names = ("delivered", "failed", "unconfirmed", "expired", "rejected")
        counts = [(getattr(after.stats, name) - getattr(began.stats, name), name) for name in names]
        outcomes = ", ".join(f"{count} {name}" for count, name in counts if count) or "none given up"
        text = "the outage since %s ended after %.0f s: %s meanwhile, %s pending"
        seconds = (after.since - began.since).total_seconds()
        values = _when(began.since), seconds, outcomes, _count(after.pending, "event")
        self._logger.log(self._level, text, *values, extra={"rokt_pending": after.pending})

    def on_undelivered(self, delivery: Delivery, error: DeliveryError) -> None:
        if error.cause is Cause.CREDENTIALS:
            return  # `on_health` tells of that, once.
        suppressed = self._admit(error.outcome, now=self._clock())
        if suppressed is not None:
            self._write(delivery, error, suppressed)

    def on_unpublished(self, event: PartnerEvent, error: NotAcceptedError) -> None:
        name = "unconfirmed" if isinstance(error, PublishUnconfirmedError) else "not published"
        suppressed = self._admit(name, now=self._clock())
        if suppressed is not None:
            event_type = _plain(str(event.event_type))
            fields = {"rokt_outcome": name, "rokt_event_type": event_type, "rokt_suppressed": suppressed}
            before = f" ({suppressed} more {name} before it, not logged)" if suppressed else ""
            text = "%s event %s: %s%s"
            self._logger.log(self._level, text, event_type, name, error, before, extra=fields)

    def on_dead_letter(self, letter: DeadLetter) -> None:
        if letter.attempts:
            return  # The emitter has told of its event.
        suppressed = self._admit(f"dead letter {letter.outcome}", now=self._clock())
        if suppressed is not None:
            fields = {"rokt_outcome": letter.outcome, "rokt_suppressed": suppressed}
            before = f" ({suppressed} more before it, not logged)" if suppressed else ""
            text = "an entry became a dead letter, %s: %s%s"
            self._logger.log(
                self._level, text, letter.outcome, _plain_line(letter.reason), before, extra=fields
            )

    def on_closed(self, report: DrainReport) -> None:
        for outcome, window in self._windows.items():
            if window.suppressed:
                fields = {"rokt_outcome": outcome, "rokt_suppressed": window.suppressed}
                events = "event" if window.suppressed == 1 else "events"
                text = "%d more %s %s, not logged one by one"
                self._logger.log(self._level, text, window.suppressed, events, outcome, extra=fields)
        self._windows.clear()
        self._tell_of_close(report)

    def _tell_of_close(self, report: DrainReport) -> None:
        """Logs what was not delivered, and what would have waited for it; and what the next start sends."""
        if report.deferred:
            text = "closed with %s deferred: in the journal in %s, and the next start sends them"
            self._logger.log(self._level, text, _count(report.deferred, "event"), report.journal)
        names = ("rejected", "expired", "failed", "unconfirmed")
        counts = [(getattr(report, name), name) for name in names]
        shown = ", ".join(f"{count} {name}" for count, name in counts if count)
        if not shown:
            return
        hint = ""
        if report.left:
            were = "was" if report.left == 1 else "were"
            hint = (
                f"; {_count(report.left, 'event')} {were} still pending when close_timeout ran out after "
                f"{report.timeout:g} s: `await emitter.flush()` before the close would have waited for them"
            )
        self._logger.log(self._level, "closed with events undelivered: %s%s", shown, hint)

    def _admit(self, outcome: str, *, now: float) -> int | None:
        """Returns how many records were suppressed before this one; `None` suppresses this one too."""
        window = self._windows.get(outcome)
        suppressed = 0
        if window is None or now >= window.begun + self._per:
            suppressed = window.suppressed if window else 0
            window = self._windows[outcome] = _Window(now)
        if window.logged >= self._max_records:
            window.suppressed += 1
            return None
        window.logged += 1
        return suppressed

    def _write(self, delivery: Delivery, error: DeliveryError, suppressed: int) -> None:
        event_type = _plain(str(delivery.event.event_type))
        codes = error_codes(error)
        fields: dict[str, Any] = {
            "rokt_outcome": error.outcome,
            "rokt_reason": error.reason,
            "rokt_event_type": event_type,
            "rokt_attempts": error.attempts,
            "rokt_status": error.status,
            "rokt_error_codes": codes,
            "rokt_suppressed": suppressed,
        }
        reason = f"{error.reason} {', '.join(codes)}" if codes else error.reason
        before = f" ({suppressed} more {error.outcome} before it, not logged)" if suppressed else ""
        text = "%s event %s: %s (attempts: %d)%s"
        self._logger.log(
            self._level, text, event_type, error.outcome, reason, error.attempts, before, extra=fields
        )


_ATTEMPTS_OF_AN_OUTAGE: Final = 3
_MAX_CODES: Final = 5
_MAX_CODE_LENGTH: Final = 64


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _age(seconds: float) -> str:
    """Returns a time span in the largest unit of which it has at least one."""
    for unit, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            return _count(int(seconds // length), unit)
    return _count(max(0, int(seconds)), "second")


def _when(moment: datetime) -> str:
    return f"{moment:%H:%M:%S} UTC"


def error_codes(error: DeliveryError) -> tuple[str, ...]:
    """Returns the API's codes for a rejected event: a few short ones, whatever the server wrote."""
    if not isinstance(error, EventRejectedError):
        return ()
    codes = dict.fromkeys(_plain(problem.code) for problem in error.errors if problem.code)
    return tuple(codes)[:_MAX_CODES]


def _plain_line(text: str) -> str:
    """Returns a reason that may show a value from outside, on one line."""
    return text[:_MAX_REASON].encode("unicode_escape").decode("ascii")


_MAX_REASON: Final = 300


def _plain(text: str) -> str:
    """Returns text from outside, cut and escaped to one line."""
    return text[:_MAX_CODE_LENGTH].encode("unicode_escape").decode("ascii")
