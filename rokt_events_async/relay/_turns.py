"""Which partitions a relay reads next.

Usually all of its share. When more waits than the window holds, the sessions of all partitions together
would not fit into it, and batches would stay small. Then one deep partition has its turn: only it is read,
along with the partitions that are not deep. Turns go round, and end after four windows of entries or a few
seconds.

Pure: `now` is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

_TURN: Final = 5.0
"""The most seconds of a turn."""

_WINDOWS: Final = 4
"""How many windows of entries are read in a turn."""


class Turns:
    """Chooses partitions.

    Args:
        window: How many entries the relay holds at most.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._deep: list[int] = []
        self._turn: int | None = None
        self._ends_at = -math.inf
        self._left = 0

    def note(self, waiting: Mapping[int, int]) -> None:
        """Notes how many entries wait, by partition of the share."""
        is_deep = sum(waiting.values()) > self._window
        most = self._window // max(1, 2 * len(waiting))
        self._deep = sorted(number for number, count in waiting.items() if is_deep and count > most)

    def choose(self, share: Sequence[int], *, now: float) -> tuple[int, ...]:
        """Returns the partitions to read now.

        Args:
            share: The relay's share.
            now: The time, in seconds.
        """
        deep = [number for number in self._deep if number in share]
        if len(deep) < 2:
            self._turn = None
            return tuple(share)
        if self._turn not in deep or now >= self._ends_at or self._left <= 0:
            later = [number for number in deep if self._turn is not None and number > self._turn]
            self._turn = (later or deep)[0]
            self._ends_at = now + _TURN
            self._left = _WINDOWS * self._window
        return tuple([number for number in share if number == self._turn or number not in deep])

    @property
    def is_turn(self) -> bool:
        """True while one deep partition has its turn: then a read must not wait for entries."""
        return self._turn is not None

    def count(self, partition: int, entries: int) -> None:
        """Notes how many entries were read from a partition; none means that it is deep no more."""
        if partition == self._turn:
            self._left -= entries
            if not entries:
                self._left = 0
                self._deep = [number for number in self._deep if number != partition]
