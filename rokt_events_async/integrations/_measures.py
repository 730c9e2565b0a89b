"""Shared by the observers that measure: what is pending, since when, and what waits in a journal."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Final, Generic, TypeVar

import attrs

from rokt_events_async.outcomes import Delivery

T = TypeVar("T")

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""The bounds of histograms of durations."""

EVENTS: Final = (1, 2, 3, 5, 10, 15, 20, 25)
"""The bounds of histograms of events per request."""

_MAX_ERROR_TYPES: Final = 50
"""The most error codes that are told apart: a server can send any number, a backend cannot keep them."""

_OTHER: Final = "_OTHER"
_NO_ANSWER: Final = "no_answer"


@attrs.frozen
class _Tracked(Generic[T]):
    """Since when an event is pending, and what the observer keeps with it."""

    since: float
    kept: T


class Pending(Generic[T]):
    """The pending events of all emitters of an observer, in the order of acceptance."""

    def __init__(self) -> None:
        self._events: dict[Delivery, _Tracked[T]] = {}
        self._oldest_deferred: datetime | None = None
        self._oldest_recovered: datetime | None = None
        self.backlog = 0
        """Events of earlier processes, and deferred ones, that have no outcome yet."""

    def __len__(self) -> int:
        return len(self._events)

    def accept(self, delivery: Delivery, kept: T) -> None:
        """Notes an accepted event, and keeps something with it."""
        self._events[delivery] = _Tracked(time.monotonic(), kept)

    def kept(self, delivery: Delivery) -> T | None:
        """Returns what is kept with an event, `None` if it is not pending."""
        tracked = self._events.get(delivery)
        return None if tracked is None else tracked.kept

    def recover(self, count: int, oldest: datetime) -> None:
        """Notes events of an earlier process, the oldest of which was stored then."""
        self.backlog += count
        if self._oldest_recovered is None or oldest < self._oldest_recovered:
            self._oldest_recovered = oldest

    def defer(self, delivery: Delivery) -> None:
        """Notes an event that is in the journal alone."""
        if self._events.pop(delivery, None) is not None:
            self.backlog += 1
        if self._oldest_deferred is None:
            self._oldest_deferred = datetime.now(UTC)

    def note_oldest_deferred(self, oldest: datetime | None) -> None:
        """Notes since when the oldest deferred event has been stored."""
        self._oldest_deferred = oldest

    def leave(self, delivery: Delivery) -> None:
        """Forgets an event that has an outcome, of this process or of an earlier one."""
        if self._events.pop(delivery, None) is None and self.backlog:
            self.backlog -= 1
            if not self.backlog:
                self._oldest_recovered = None

    def oldest_age(self) -> float:
        """Returns for how many seconds the oldest event has been pending.

        As long as there is a backlog, the oldest event that was recovered counts, from when it was stored.
        """
        now = time.monotonic()
        while True:
            try:
                oldest = next(iter(self._events.values()), None)
            except RuntimeError:  # The loop's thread has changed it meanwhile.
                continue
            return max(now - oldest.since if oldest else 0.0, _age(self._oldest_recovered))

    def deferred_age(self) -> float:
        """Returns for how many seconds the oldest deferred event has been stored."""
        return _age(self._oldest_deferred)


def _age(moment: datetime | None) -> float:
    return 0.0 if moment is None else max(0.0, (datetime.now(UTC) - moment).total_seconds())


class ErrorTypes:
    """Tells a bounded number of error codes apart."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def bounded(self, code: str) -> str:
        """Returns the code, or `_OTHER` if there are too many."""
        if code not in self._known:
            if len(self._known) >= _MAX_ERROR_TYPES:
                return _OTHER
            self._known.add(code)
        return code


def error_type_of(status: int | None) -> str:
    """Returns the error type of a request."""
    return _NO_ANSWER if status is None else str(status)
