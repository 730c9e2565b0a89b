"""Batches in flight: what halves inherit, and in which order they go."""

from __future__ import annotations

import asyncio

from rokt_events_async._pipeline.batching import Batches
from rokt_events_async._pipeline.transport import Request
from rokt_events_async._pipeline.trips import Batch, Trip
from rokt_events_async.outcomes import Delivery
from tests.samples import delivery


def deliveries(count: int) -> list[Delivery]:
    loop = asyncio.new_event_loop()
    try:
        return [delivery(loop=loop) for _ in range(count)]
    finally:
        loop.close()


def trip_of(count: int) -> Trip:
    queue: Batches[Delivery] = Batches(max_batch_size=count, linger=1.0)
    for one in deliveries(count):
        queue.add("session", one, now=0.0)
    taken = queue.take(now=0.0)
    assert taken is not None
    return Trip(*taken)


def test_halves_inherit_the_whole_history() -> None:
    """Attempts, failures, status, reason, a lost answer, and that its events were sent again."""
    batch = Batch(deliveries(5))
    batch.attempts, batch.failures, batch.status, batch.reason = 4, 3, 422, "HTTP 503"
    batch.maybe_accepted = batch.is_resent = True
    batch.split()

    assert [len(half.deliveries) for half in batch.halves] == [3, 2]
    for half in batch.halves:
        assert (half.attempts, half.failures, half.status, half.reason) == (4, 3, 422, "HTTP 503")
        assert half.maybe_accepted
        assert half.is_resent
        assert half.request is None


def test_halves_take_the_place_of_their_batch_in_order() -> None:
    """A trip is over when each quarter has had its turn."""
    trip = trip_of(4)
    seen = []
    whole = trip.batch
    assert whole is not None
    order = list(whole.deliveries)
    while (batch := trip.batch) is not None:
        if len(batch.deliveries) > 1:
            batch.split()
        else:
            seen += batch.deliveries
        trip.advance()

    assert seen == order


def test_the_rest_of_a_trip_is_in_order() -> None:
    """The next batch first."""
    trip = trip_of(4)
    whole = trip.batch
    assert whole is not None
    order = list(whole.deliveries)
    whole.split()
    trip.advance()

    assert [one for batch in trip.rest() for one in batch.deliveries] == order


def test_an_interrupted_request_that_went_out_may_have_been_accepted() -> None:
    """A request that did not go out changes nothing."""
    batch = Batch(deliveries(1))
    batch.interrupt()
    assert not batch.maybe_accepted
    batch.request = Request(b"{}")
    batch.interrupt()
    assert not batch.maybe_accepted
    batch.request.went_out = True
    batch.interrupt()
    assert batch.maybe_accepted
