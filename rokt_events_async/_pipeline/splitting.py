"""When a refused batch is split: one event may have made the server refuse it. Pure; `now` is passed in."""

from __future__ import annotations

import math
from typing import Final

MAX_SPOILT: Final = 3
"""After this many batches in a row of which every event was refused, the fault is a systematic one."""


class SplitGuard:
    """Guards the server against splits that find nothing.

    Splitting a batch of 25 events to its end takes 49 requests. If the server refuses whole batches one
    after the other, splitting finds no culprit. From then on one batch per retry wait is split, until a 2xx.

    Args:
        wait: The retry wait, in seconds.
    """

    def __init__(self, *, wait: float) -> None:
        self._wait = wait
        self._spoilt = 0
        self._next_at = -math.inf

    def may_split(self, *, now: float) -> bool:
        """Returns True if a refused batch may be split, and counts it."""
        if self._spoilt < MAX_SPOILT:
            return True
        if now < self._next_at:
            return False
        self._next_at = now + self._wait
        return True

    def on_spoilt(self) -> None:
        """Notes a batch of two or more events, each of which was refused."""
        self._spoilt += 1

    def on_answer(self) -> None:
        """Notes a 2xx."""
        self._spoilt = 0
