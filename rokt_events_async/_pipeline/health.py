"""How the emitter is doing: its state, its problems, and since when.

The state is derived, not kept: from the breaker, from what is parked, and from the time of the last failure.
What is kept is the state that observers know, so that they hear of each change once.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

from rokt_events_async._pipeline.backlog import Backlogs
from rokt_events_async._pipeline.batching import Batches
from rokt_events_async._pipeline.breaker import Breaker
from rokt_events_async._pipeline.keyring import Episode
from rokt_events_async._pipeline.ledger import Ledger
from rokt_events_async._pipeline.parking import Parking
from rokt_events_async._pipeline.recorder import Recorder
from rokt_events_async._pipeline.room import Room
from rokt_events_async._tracking.hooks import Hooks
from rokt_events_async.outcomes import Health, HealthState, LastError

CallLater = Callable[[float, Callable[[], None]], asyncio.TimerHandle]

_CALM: Final = 10.0
"""Seconds without a failure after which "retrying" ends."""

_OUTAGE_SESSIONS: Final = 3
"""How many sessions must have failed since the last answer to speak of an outage."""


class HealthMonitor:
    """Derives the health of one emitter. What it reads of the others is safe from any thread.

    Args:
        clock: Returns the aware now.
        now: Returns the loop's time.
        call_later: Calls something after so many seconds, on the loop.
    """

    def __init__(
        self,
        *,
        breaker: Breaker,
        episode: Episode,
        queue: Batches[Any],
        parking: Parking,
        room: Room,
        ledger: Ledger,
        recorder: Recorder | None,
        backlogs: Backlogs | None,
        hooks: Hooks,
        clock: Callable[[], datetime],
        now: Callable[[], float],
        call_later: CallLater,
    ) -> None:
        self._call_later = call_later
        self._calm_timer: asyncio.TimerHandle | None = None
        self._breaker = breaker
        self._episode = episode
        self._ledger = ledger
        self._recorder = recorder
        if recorder is not None:
            recorder.on_changed = self.refresh
        self._backlogs = backlogs
        self._hooks = hooks
        self._clock = clock
        self._now = now
        self._queue = queue
        self._parking = parking
        self._room = room
        self._phase: HealthState | None = None
        self._last_failure = -math.inf
        self._last_error: LastError | None = None
        self._known = Health(state="ok", since=clock())

    @property
    def is_watching(self) -> bool:
        """True if an answer may change the health: it is not good."""
        return self._known.state != "ok" or bool(self._known.problems)

    def on_failure(self, reason: str, *, now: float) -> None:
        """Notes a failed request."""
        self._last_failure = now
        self._last_error = LastError(reason, self._clock())
        self.refresh()
        if self._calm_timer is None and self._phase is None:
            self._calm_timer = self._call_later(_CALM, self._on_calm)

    def _on_calm(self) -> None:
        """Looks whether "retrying" has ended, which no event tells."""
        self._calm_timer = None
        self.refresh()
        left = self._last_failure + _CALM - self._now()
        if left > 0:
            self._calm_timer = self._call_later(left, self._on_calm)

    def enter(self, phase: HealthState) -> None:
        """Notes that the emitter is closing, or closed."""
        self._phase = phase
        if self._calm_timer is not None:
            self._calm_timer.cancel()
            self._calm_timer = None
        self.refresh()

    def refresh(self) -> None:
        """Tells observers if the state or the problems have changed."""
        known = self._known
        if (self._state(), self._problems(), self._is_breaker_open()) != (
            known.state,
            known.problems,
            known.is_breaker_open,
        ):
            self._known = self.snapshot()
            if self._hooks.health:
                self._hooks.health(known, self._known)

    def backlog(self) -> tuple[int, int]:
        """Returns how many events are pending, and of how many sessions."""
        return self._room.events, self._queue.sessions

    def snapshot(self) -> Health:
        """Returns the health at this moment. It changes nothing, and may be called from any thread."""
        now, clock = self._now(), self._clock()
        state, parked = self._state(), len(self._parking)

        def as_utc(at: float) -> datetime:
            return clock + timedelta(seconds=at - now)

        delivered_at = self._ledger.last_delivered_at
        return Health(
            state=state,
            problems=self._problems(),
            since=self._known.since if state == self._known.state else clock,
            last_delivered_at=None if delivered_at is None else as_utc(delivered_at),
            last_error=self._last_error,
            pending=self._room.events,
            oldest_pending_age=self._ledger.oldest_age(now=now),
            deferred=self._ledger.deferred,
            oldest_deferred_age=self._oldest_deferred_age(clock),
            parked=parked,
            next_attempt_at=as_utc(self._parking.peek()) if parked else None,
            is_breaker_open=self._is_breaker_open(),
            stats=self._ledger.stats(sessions=self._queue.sessions),
        )

    def _problems(self) -> tuple[str, ...]:
        if self._recorder is None or self._backlogs is None:
            return self._room.problems
        flags = (
            ("journal_failed", self._recorder.is_failing),
            ("journal_full", self._recorder.is_full),
            ("deferring", not self._backlogs.own.is_empty),
        )
        return (*self._room.problems, *[name for name, is_so in flags if is_so])

    def _oldest_deferred_age(self, clock: datetime) -> float:
        oldest = self._backlogs.oldest if self._backlogs else None
        return 0.0 if oldest is None else max(0.0, (clock - oldest).total_seconds())

    def _is_breaker_open(self) -> bool:
        """Returns True while requests start only at a trickle; a closed emitter starts none."""
        return self._breaker.is_open and self._phase != "closed"

    def _state(self) -> HealthState:
        if self._phase is not None:
            return self._phase
        if self._episode.is_on:
            return "credentials_refused"
        if self._breaker.is_open and self._breaker.failed_sessions >= _OUTAGE_SESSIONS:
            return "outage"
        if self._breaker.is_open or self._parking or self._now() < self._last_failure + _CALM:
            return "retrying"
        return "ok"
