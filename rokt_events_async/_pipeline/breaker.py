"""Protects a server that does not answer: when may a request start? Pure; `now` is passed in.

```
            as many failures in a row as the limit
  closed ───────────────────────────────────────────▶ open: a trickle
    ▲                                                   │
    └──────────────── any answer, at once ──────────────┘
```

An answer is any reply that does not ask to be retried: a server that refuses is up. While the breaker is
open, one request starts per `interval`, and none before a `Retry-After` has passed. There is no probing
state, so an interrupted probe cannot wedge it.

A closed breaker ignores the `Retry-After` of single batches, but pauses all starts when three sessions got a
429 within one retry wait: that is a rate limiter, not a session's own trouble.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

MIN_FAILURES: Final = 16
"""The breaker opens after this many failures in a row, or `max_concurrency` if that is more."""

_MIN_INTERVAL: Final = 0.1
"""Seconds between two starts while the breaker is open, at least: ten requests per second."""

_TOO_MANY_REQUESTS: Final = 429
_LIMITED_SESSIONS: Final = 3
"""How many sessions must get a 429 within one retry wait to pause all starts."""


class Breaker:
    """Decides when a request may start.

    Args:
        max_concurrency: The most requests in flight.
        wait: The shortest and the longest retry wait, in seconds.
    """

    def __init__(self, *, max_concurrency: int, wait: tuple[float, float]) -> None:
        self._limit = max(MIN_FAILURES, max_concurrency)
        self._interval = max(_MIN_INTERVAL, sum(wait) / 2 / max_concurrency)
        self._longest = wait[1]
        self._failures = 0
        self._failed_sessions: set[str] = set()
        self._limited: dict[str, float] = {}
        self.is_open = False
        self._paused_until = -math.inf
        self.starts_at = -math.inf
        """When the next request may start; the past if it may start now."""
        self.on_resumed: Callable[[], None] = lambda: None
        """Called when starts are held up no more."""

    @property
    def failed_sessions(self) -> int:
        """How many sessions have failed since the last answer, counted up to the limit."""
        return len(self._failed_sessions)

    def may_start(self, *, now: float) -> bool:
        """Returns True if a request may start now."""
        return now >= self.starts_at

    def on_start(self, *, now: float) -> None:
        """Notes that a request starts."""
        if self.is_open:
            self._wait_until(now + self._interval)

    def on_answer(self) -> None:
        """Notes an answer: the server is up."""
        if self._failures:
            self._failures = 0
            self._failed_sessions.clear()
        if self.is_open:
            self.is_open = False
            self.starts_at = self._paused_until
            self.on_resumed()

    def on_failure(
        self, session_id: str, *, now: float, status: int | None, retry_after: float = 0.0
    ) -> None:
        """Notes a failed request: no answer, or one that asks to be retried after so many seconds."""
        self._failures += 1
        if len(self._failed_sessions) < self._limit:
            self._failed_sessions.add(session_id)
        if self._failures >= self._limit and not self.is_open:
            self.is_open = True
            self._wait_until(now + self._interval)
        if self.is_open or (status == _TOO_MANY_REQUESTS and self._is_limiter(session_id, now)):
            self._wait_until(now + retry_after)

    def pause(self, *, until: float) -> None:
        """Lets no request start before that moment, open or not, while the credentials are refused."""
        self._paused_until = until
        self._wait_until(until)

    def resume(self) -> None:
        """Ends such a pause."""
        self._paused_until = -math.inf
        if not self.is_open:
            self.starts_at = -math.inf
            self.on_resumed()

    def _wait_until(self, moment: float) -> None:
        self.starts_at = max(self.starts_at, moment)

    def _is_limiter(self, session_id: str, now: float) -> bool:
        self._limited = {one: at for one, at in self._limited.items() if at > now - self._longest}
        if len(self._limited) < _LIMITED_SESSIONS:
            self._limited[session_id] = now
        return len(self._limited) >= _LIMITED_SESSIONS
