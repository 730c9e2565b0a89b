"""Parked trips: by the time of their next attempt, and by their deadline."""

from __future__ import annotations

import asyncio
import math

from rokt_events_async._pipeline.batching import Session
from rokt_events_async._pipeline.parking import Parking
from rokt_events_async._pipeline.trips import Trip
from rokt_events_async.outcomes import Delivery
from tests.samples import delivery


def trip(name: str = "s", *, is_slow: bool = False) -> Trip:
    loop = asyncio.new_event_loop()
    session: Session[Delivery] = Session(name)
    session.is_slow = is_slow
    made = Trip(session, [delivery(loop=loop)])
    loop.close()
    return made


def test_the_earliest_is_taken_first() -> None:
    """Of its kind; trips of slow sessions have a queue of their own."""
    parking = Parking()
    late, early, slow = trip(), trip(), trip(is_slow=True)
    parking.park(late, until=5.0, deadline=100.0)
    parking.park(early, until=3.0, deadline=100.0)
    parking.park(slow, until=1.0, deadline=100.0)

    assert (len(parking), parking.peek()) == (3, 1.0)
    assert parking.next_due(is_slow=False) == 3.0
    assert parking.take(is_slow=False) is early
    assert parking.take(is_slow=False) is late
    assert parking.next_due(is_slow=False) == math.inf
    assert parking.take(is_slow=True) is slow
    assert len(parking) == 0


def test_what_was_removed_does_not_come_up() -> None:
    """Nor when it is parked again at another time."""
    parking, moved = Parking(), trip()
    parking.park(moved, until=1.0, deadline=100.0)
    parking.remove(moved)
    assert parking.next_due(is_slow=False) == math.inf
    parking.park(moved, until=9.0, deadline=100.0)

    assert parking.next_due(is_slow=False) == 9.0
    assert list(parking) == [moved]


def test_overdue_trips_are_taken_by_their_deadline() -> None:
    """Whatever the time of their next attempt."""
    parking = Parking()
    young, old = trip(), trip()
    parking.park(young, until=1.0, deadline=30.0)
    parking.park(old, until=50.0, deadline=20.0)

    assert parking.next_deadline() == 20.0
    assert parking.take_overdue(now=19.0) is None
    assert parking.take_overdue(now=20.0) is old
    assert parking.take_overdue(now=20.0) is None
    assert len(parking) == 1


def test_a_deadline_is_filed_again_after_a_flight() -> None:
    """A trip that was in flight when its deadline came up is found when it is parked again."""
    parking, one = Parking(), trip()
    parking.park(one, until=1.0, deadline=20.0)
    assert parking.take(is_slow=False) is one
    assert parking.take_overdue(now=25.0) is None
    parking.park(one, until=26.0, deadline=20.0)

    assert parking.take_overdue(now=25.5) is one


def test_an_old_deadline_does_not_hold() -> None:
    """Its first events have left meanwhile."""
    parking, one = Parking(), trip()
    parking.park(one, until=1.0, deadline=20.0)
    parking.take(is_slow=False)
    parking.park(one, until=2.0, deadline=40.0)

    assert parking.take_overdue(now=30.0) is None
    assert parking.next_deadline() == 40.0
