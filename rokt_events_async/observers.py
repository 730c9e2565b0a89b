"""Eyes on what an emitter does: `Observer`, what it is told, and the one that logs.

An observer is called on the emitter's loop, in the middle of its work: it should be quick, and hand on
what takes longer. What it raises is logged once, and changes nothing about the events. What it is told
of an event is the application's own `Delivery`; the secret is in none of it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import attrs

from rokt_events_async.outcomes import (
    CredentialsRefusedError,
    Delivery,
    DeliveryError,
    DrainReport,
    EventRejectedError,
    Outcome,
    Receipt,
)
from rokt_events_async.settings import check_count, check_number


@attrs.frozen(eq=False)
class RequestReport:
    """One request, and what came of it.

    Attributes:
        deliveries: The events it carried, all of one session, in their order.
        endpoint: Where it went.
        size: Of its body, in bytes.
        attempt: Which request of these events it was, from 1; a connection that could not be made counts.
        started_at: When it began, in UTC.
        duration: Seconds until it was answered or over, connecting included.
        status: What it was answered, `None` if no status line came.
        problem: Why none came, in words; `None` if one did.
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
    """Events that are going to be sent again.

    Attributes:
        deliveries: The events.
        attempts: How many requests have carried them so far.
        status: The last answer's, `None` if the last request had none.
        reason: Why the last request failed, in words.
        wait: Seconds until they are sent again.
    """

    deliveries: tuple[Delivery, ...]
    attempts: int
    status: int | None
    reason: str
    wait: float


class Observer:
    """Is told what an emitter does. All methods do nothing here: override what you want to know.

    One that is not overridden costs nothing. They are plain methods, not coroutines.
    """

    def on_accepted(self, delivery: Delivery) -> None:
        """An event was accepted; called in the context of the `track()` that handed it over."""

    def on_request(self, request: RequestReport) -> None:
        """A request was answered, or came to nothing."""

    def on_retry(self, retry: RetryReport) -> None:
        """Events will be sent again."""

    def on_delivered(self, delivery: Delivery, receipt: Receipt) -> None:
        """An event was delivered."""

    def on_undelivered(self, delivery: Delivery, error: DeliveryError) -> None:
        """An event ended in one of the other outcomes."""

    def on_closed(self, report: DrainReport) -> None:
        """The emitter is closed: this is the last it tells."""


@attrs.define
class _Window:
    """What was logged of one outcome since `begun`, and what was not."""

    begun: float
    logged: int = 0
    suppressed: int = 0


class LoggingObserver(Observer):
    """Logs events that end other than delivered, one record each, a bounded number of them; and an outage.

    A record has the reason, and in `extra` for structured formatters `rokt_outcome`, `rokt_reason`,
    `rokt_event_type`, `rokt_attempts`, `rokt_status` (`None` without an answer), `rokt_error_codes` (the
    API's own) and `rokt_suppressed` (how many of its kind were not logged before it). No payload: neither
    ids nor metadata, nor what Rokt wrote of them. Refused credentials are not among them: the emitter logs
    those itself, once.

    What is sent again for the third time or more is told of once in `per` seconds, with `rokt_reason`,
    `rokt_attempts` and `rokt_status`: otherwise an outage would be silent until deadlines pass.

    Args:
        logger: Where to; `None` takes `rokt_events_async`.
        level: Of its records.
        max_records: Records of one outcome that are written in `per` seconds; the others are counted,
            and their number is told by the next record, or at the close.
        per: Seconds.

    Raises:
        InvalidSettingError: A number is out of bounds.
    """

    def __init__(
        self,
        logger: logging.Logger | None = None,
        *,
        level: int = logging.WARNING,
        max_records: int = 10,
        per: float = 10.0,
        _clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger or logging.getLogger("rokt_events_async")
        self._level = level
        self._max_records = check_count("max_records", max_records)
        self._per = check_number("per", per, at_least=0, above=True)
        self._clock = _clock
        self._windows: dict[Outcome, _Window] = {}
        self._quiet_until = -math.inf

    def on_retry(self, retry: RetryReport) -> None:
        now = self._clock()
        if retry.attempts < _ATTEMPTS_OF_AN_OUTAGE or now < self._quiet_until:
            return
        self._quiet_until = now + self._per
        fields = {
            "rokt_reason": retry.reason,
            "rokt_attempts": retry.attempts,
            "rokt_status": retry.status,
        }
        text = "%d events not delivered so far: %s (attempts: %d), and again in %.1f s"
        values = len(retry.deliveries), retry.reason, retry.attempts, retry.wait
        self._logger.log(self._level, text, *values, extra=fields)

    def on_undelivered(self, delivery: Delivery, error: DeliveryError) -> None:
        if isinstance(error, CredentialsRefusedError):
            return  # The emitter says that itself, and once for all.
        suppressed = self._admit(error.outcome, now=self._clock())
        if suppressed is not None:
            self._write(delivery, error, suppressed)

    def on_closed(self, report: DrainReport) -> None:
        for outcome, window in self._windows.items():
            if window.suppressed:
                fields = {"rokt_outcome": outcome, "rokt_suppressed": window.suppressed}
                text = "%d more events %s, not logged one by one"
                self._logger.log(self._level, text, window.suppressed, outcome, extra=fields)
        self._windows.clear()

    def _admit(self, outcome: Outcome, *, now: float) -> int | None:
        """How many of its kind were passed over before it; `None` if it is to be passed over itself."""
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


def error_codes(error: DeliveryError) -> tuple[str, ...]:
    """The API's codes for what it refused: a few, and short, whatever the server wrote."""
    if not isinstance(error, EventRejectedError):
        return ()
    codes = dict.fromkeys(_plain(problem.code) for problem in error.errors if problem.code)
    return tuple(codes)[:_MAX_CODES]


def _plain(text: str) -> str:
    """What others wrote, short, and on one line whatever is in it."""
    return text[:_MAX_CODE_LENGTH].encode("unicode_escape").decode("ascii")
