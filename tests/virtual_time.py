"""An event loop over real sockets whose clock jumps: nothing sleeps.

All that a test talks to is on this machine. When no socket has anything to say and the next timer is
some time away, the clock moves there at once.
"""

from __future__ import annotations

import asyncio
import selectors

GRACE = 0.003
"""Real seconds in which a socket may still come up with something before the clock jumps."""

PATIENCE = 10.0
"""Real seconds after which a loop that waits forever, with no timer at all, is called stuck."""


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            events = super().select(PATIENCE)
            if not events:
                raise RuntimeError("deadlock: nothing is due, and no socket has anything to say")
            return events
        events = super().select(0)
        if events or timeout <= 0:
            return events
        events = super().select(min(GRACE, timeout))
        if not events:
            self.now += timeout
        return events


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop on virtual time: `time()` starts at 1000 and moves only by jumps."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now
