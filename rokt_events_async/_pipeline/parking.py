"""Parked trips: they wait for their next attempt, or for a slot, without a task. Pure; `now` is passed in.

Two queues hold them by the time of their next attempt: trips of *slow* sessions, whose last request timed
out, and all others. A third queue holds them by the delivery deadline of their oldest event. A trip stays in
that one while it is in flight; entries that no longer hold are skipped when they come up.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from itertools import count

from rokt_events_async._pipeline.trips import Trip

Entry = tuple[float, int, Trip]


class Parking:
    """All parked trips of one emitter."""

    def __init__(self) -> None:
        self._numbers = count()
        self._by_time: dict[bool, list[Entry]] = {False: [], True: []}
        self._by_deadline: list[Entry] = []
        self._parked: dict[Trip, int] = {}

    def __len__(self) -> int:
        return len(self._parked)

    def __bool__(self) -> bool:
        return bool(self._parked)

    def __iter__(self) -> Iterator[Trip]:
        return iter(self._parked)

    def park(self, trip: Trip, *, until: float, deadline: float) -> None:
        """Parks a trip.

        Args:
            until: When its next attempt is due.
            deadline: When its oldest event is given up.
        """
        number = self._parked[trip] = next(self._numbers)
        trip.due_at = until
        heapq.heappush(self._by_time[trip.session.is_slow], (until, number, trip))
        if trip.deadline != deadline:
            trip.deadline = deadline
            heapq.heappush(self._by_deadline, (deadline, number, trip))

    def remove(self, trip: Trip) -> None:
        """Takes a parked trip out."""
        del self._parked[trip]

    def next_due(self, *, is_slow: bool) -> float:
        """Returns when the next trip of that kind is due; infinity if none is parked."""
        heap = self._by_time[is_slow]
        while heap and self._parked.get(heap[0][2]) != heap[0][1]:
            heapq.heappop(heap)
        return heap[0][0] if heap else math.inf

    def peek(self) -> float:
        """Returns when the next trip is due, about: it changes nothing, and is safe from any thread."""
        return min([heap[0][0] for heap in self._by_time.values() if heap], default=math.inf)

    def take(self, *, is_slow: bool) -> Trip:
        """Takes out the trip of that kind that is due first. There must be one, see `next_due`."""
        trip = heapq.heappop(self._by_time[is_slow])[2]
        del self._parked[trip]
        return trip

    def next_deadline(self) -> float:
        """Returns when the oldest event of a parked trip is given up; infinity if none is parked."""
        heap = self._by_deadline
        while heap and (heap[0][2] not in self._parked or heap[0][2].deadline != heap[0][0]):
            deadline, _, trip = heapq.heappop(heap)
            if trip.deadline == deadline:  # In flight: it is filed again when it is parked again.
                trip.deadline = math.inf
        return heap[0][0] if heap else math.inf

    def take_overdue(self, *, now: float) -> Trip | None:
        """Takes out a trip whose oldest event has passed its deadline, if there is one."""
        if self.next_deadline() > now:
            return None
        trip = heapq.heappop(self._by_deadline)[2]
        trip.deadline = math.inf
        del self._parked[trip]
        return trip
