"""The emitter over a real socket: what is sent, when, and what a caller gets to hear."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest

from rokt_events_async import (
    Delivery,
    DeliveryFailedError,
    DeliveryUnconfirmedError,
    Emitter,
    EventExpiredError,
    EventRejectedError,
    InvalidEventError,
    PartnerEvent,
    QueueFullError,
    Receipt,
    RetryPolicy,
)
from rokt_events_async._pipeline.transport import Request
from rokt_events_async._protocol.replies import Reply
from rokt_events_async.sandbox import Fault, Sandbox
from tests.samples import CREDENTIALS, Clock, event


def emitter_for(sandbox: Sandbox, **settings: Any) -> Emitter:
    return Emitter(sandbox.credentials, endpoint=sandbox.url, **settings)


def sizes(sandbox: Sandbox) -> list[int]:
    return [len(request.events) for request in sandbox.requests]


async def test_an_event_is_delivered(sandbox: Sandbox) -> None:
    """`track` returns at once, and the delivery brings the receipt."""
    async with emitter_for(sandbox) as emitter:
        sent = event()
        delivery = await emitter.track(sent)
        receipt = await delivery

    assert isinstance(delivery, Delivery)
    assert receipt == Receipt(event=delivery.event, attempts=1, maybe_duplicate=False)
    assert sandbox.events == [delivery.event.to_dict()]


async def test_a_missing_time_is_the_moment_of_the_call(sandbox: Sandbox) -> None:
    """An event without a time happened when `track` was called; the caller's object is untouched."""
    clock = Clock(datetime.now(UTC))
    async with emitter_for(sandbox, _clock=clock) as emitter:
        untimed = event()
        receipt = await emitter.deliver(untimed)

    assert untimed.event_time is None
    assert receipt.event.event_time == clock.now


async def test_headers_are_the_specifications(sandbox: Sandbox) -> None:
    """Credentials, tag id, content type and accept go along, and no cookie."""
    async with emitter_for(sandbox) as emitter:
        await emitter.deliver(event())

    headers = {name.lower(): value for name, value in sandbox.requests[0].headers.items()}
    assert headers["content-type"] == "application/json"
    assert headers["accept"] == "application/json"
    assert headers["rokt-tag-id"] == sandbox.credentials.tag_id
    assert "cookie" not in headers


async def test_26_events_of_a_session_are_25_and_1(sandbox: Sandbox) -> None:
    """The specification's limit is where a session is split, in order."""
    async with emitter_for(sandbox) as emitter:
        deliveries = [await emitter.track(event()) for _ in range(26)]
        await asyncio.gather(*deliveries)

    assert sizes(sandbox) == [25, 1]
    assert sandbox.events == [delivery.event.to_dict() for delivery in deliveries]


async def test_requests_carry_one_session_each(sandbox: Sandbox) -> None:
    """Interleaved sessions are sorted out."""
    async with emitter_for(sandbox) as emitter:
        for index in range(30):
            await emitter.track(event(f"session-{index % 3}"))

    assert sizes(sandbox) == [10, 10, 10]


async def test_a_batch_leaves_an_interval_after_its_first_event(sandbox: Sandbox) -> None:
    """Later events do not push it back."""
    loop = asyncio.get_running_loop()
    async with emitter_for(sandbox, flush_interval=1.0) as emitter:
        started = loop.time()
        first = await emitter.track(event())
        await asyncio.sleep(0.9)
        await emitter.track(event())
        await first

        assert loop.time() - started == pytest.approx(1.0, abs=0.05)
    assert sizes(sandbox) == [2]


async def test_a_full_batch_does_not_wait(sandbox: Sandbox) -> None:
    """A full batch leaves without waiting for its interval."""
    loop = asyncio.get_running_loop()
    async with emitter_for(sandbox, flush_interval=100.0, max_batch_size=3) as emitter:
        started = loop.time()
        deliveries = [await emitter.track(event()) for _ in range(3)]
        await asyncio.gather(*deliveries)

        assert loop.time() - started < 1


async def test_an_interval_of_zero_still_batches_a_turn_of_the_loop(sandbox: Sandbox) -> None:
    """`flush_interval=0` sends as soon as the loop turns."""
    async with emitter_for(sandbox, flush_interval=0) as emitter:
        deliveries = [await emitter.track(event()) for _ in range(3)]
        await asyncio.gather(*deliveries)

    assert sizes(sandbox) == [3]


async def test_flush_sends_now_and_waits_for_what_was_accepted(sandbox: Sandbox) -> None:
    """It does not wait out the interval, nor for what came after it."""
    async with emitter_for(sandbox, flush_interval=100.0) as emitter:
        deliveries = [await emitter.track(event(f"session-{index}")) for index in range(5)]
        await emitter.flush()

        assert all(delivery.done() for delivery in deliveries)
        assert emitter.stats.pending == 0

        late = await emitter.track(event())
        await emitter.flush()
        assert late.done()
    assert sizes(sandbox) == [1] * 6


async def test_flush_of_nothing_returns(sandbox: Sandbox) -> None:
    """There may be nothing to wait for."""
    async with emitter_for(sandbox) as emitter:
        await emitter.flush()

    assert sandbox.requests == []


async def test_a_second_flush_waits_for_the_same_events(sandbox: Sandbox) -> None:
    """Both return when the events are settled, and cancelling one leaves the other alone."""
    async with Sandbox(latency=5.0) as slow, emitter_for(slow, flush_interval=100.0) as emitter:
        delivery = await emitter.track(event())
        first, second, third = (asyncio.create_task(emitter.flush()) for _ in range(3))
        await asyncio.sleep(0.1)
        third.cancel()
        await asyncio.gather(first, second)

        assert delivery.done()


async def test_one_request_in_flight_a_session(sandbox: Sandbox) -> None:
    """What arrives while a session is in flight fills its next batch; other sessions go on."""
    async with Sandbox(latency=1.0) as slow, emitter_for(slow, flush_interval=0) as emitter:
        await emitter.track(event("busy"))
        await asyncio.sleep(0.1)
        for _ in range(4):
            await emitter.track(event("busy"))
        await emitter.track(event("other"))
        await asyncio.sleep(0.1)

        assert emitter.stats.in_flight == 2
        assert emitter.stats.sessions == 2
    assert sizes(slow) == [1, 1, 4]


async def test_max_concurrency_bounds_the_requests_in_flight() -> None:
    """Sessions beyond it wait for a worker."""
    async with Sandbox(latency=1.0) as slow:
        async with emitter_for(slow, flush_interval=0, max_concurrency=3) as emitter:
            for index in range(10):
                await emitter.track(event(f"session-{index}"))
            await asyncio.sleep(0.5)

            assert emitter.stats.in_flight == 3
    assert len(slow.events) == 10


async def test_a_busy_session_does_not_starve_others() -> None:
    """With one worker only, another session's event does not wait behind a backlog."""
    async with Sandbox(latency=0.1) as slow:
        async with emitter_for(slow, flush_interval=0, max_concurrency=1) as emitter:
            backlog = [await emitter.track(event("busy")) for _ in range(250)]
            await asyncio.sleep(0)
            other = await emitter.track(event("other"))
            await other

            assert sum(delivery.done() for delivery in backlog) <= 75


async def test_a_refused_event_is_rejected_alone(sandbox: Sandbox) -> None:
    """A 207 rejects the event it names, with its codes, and nobody else."""
    async with emitter_for(sandbox) as emitter:
        with pytest.warns(UserWarning, match="SignalRejectedAlone"):
            bad = await emitter.track(event(event_type="SignalRejectedAlone"))
        good = await emitter.track(event())

        assert (await good).attempts == 1
        with pytest.raises(EventRejectedError) as caught:
            await bad

    assert [error.code for error in caught.value.errors] == ["InvalidEventType"]
    assert caught.value.event is bad.event
    assert caught.value.status == 207
    assert emitter.stats.delivered == emitter.stats.rejected == 1


@pytest.mark.parametrize("ahead", [timedelta(minutes=5, seconds=1), timedelta(days=-3, seconds=-1)])
async def test_an_event_out_of_its_window_is_not_accepted(sandbox: Sandbox, ahead: timedelta) -> None:
    """The time window is checked when the event is tracked."""
    async with emitter_for(sandbox) as emitter:
        with pytest.raises(InvalidEventError, match="event_time must not be over"):
            await emitter.track(event(event_time=datetime.now(UTC) + ahead))

    assert emitter.stats.accepted == 0


async def test_what_is_no_event_is_not_accepted(sandbox: Sandbox) -> None:
    """A dictionary is no event, though it may look like one."""
    async with emitter_for(sandbox) as emitter:
        with pytest.raises(InvalidEventError, match="event must be a PartnerEvent, got "):
            await emitter.track({"eventType": "SignalViewed"})  # type: ignore[arg-type]


async def test_an_event_that_expires_while_it_waits_is_never_sent(sandbox: Sandbox) -> None:
    """Older than three days at the moment of sending: expired, and provably never accepted."""
    clock = Clock(datetime.now(UTC))
    async with emitter_for(sandbox, _clock=clock, flush_interval=1.0) as emitter:
        old = await emitter.track(event(event_time=clock.now - timedelta(days=2, hours=23)))
        young = await emitter.track(event(event_time=clock.now))
        clock.advance(hours=2)
        await young

        with pytest.raises(EventExpiredError) as caught:
            await old

    assert caught.value.attempts == 0
    assert sizes(sandbox) == [1]
    assert emitter.stats.expired == 1


async def test_a_batch_that_expires_whole_makes_no_request(sandbox: Sandbox) -> None:
    """Nothing is sent when nothing is left."""
    clock = Clock(datetime.now(UTC))
    async with emitter_for(sandbox, _clock=clock) as emitter:
        old = await emitter.track(event(event_time=clock.now))
        clock.advance(days=4)
        with pytest.raises(EventExpiredError):
            await old

    assert sandbox.requests == []


async def test_a_clock_that_jumps_back_kills_no_event(sandbox: Sandbox) -> None:
    """An event was within the window when it was accepted; that is enough."""
    clock = Clock(datetime.now(UTC))
    async with emitter_for(sandbox, _clock=clock) as emitter:
        delivery = await emitter.track(event(event_time=clock.now))
        clock.advance(days=-10)

        assert (await delivery).attempts == 1


# Back-pressure.


async def test_a_full_queue_makes_track_wait() -> None:
    """`when_full="wait"`: the caller waits for room, and goes on when there is."""
    async with Sandbox(latency=1.0) as slow, emitter_for(slow, max_pending=2, flush_interval=0) as emitter:
        await emitter.track(event("a"))
        await emitter.track(event("b"))
        waiting = asyncio.create_task(emitter.track(event("c")))
        await asyncio.sleep(0.5)

        assert not waiting.done()
        assert emitter.stats.accepted == emitter.stats.pending == 2

        delivery = await waiting
        assert (await delivery).attempts == 1


async def test_waiting_callers_are_served_in_order() -> None:
    """First come, first served, a thousand of them, by one that comes later too."""
    served: list[int] = []
    async with Sandbox(latency=0.01) as slow, emitter_for(slow, max_pending=1, flush_interval=0) as emitter:

        async def call(number: int) -> None:
            delivery = await emitter.track(event(f"session-{number}"))
            served.append(number)
            await delivery

        await asyncio.gather(*(call(number) for number in range(1000)))

    assert served == list(range(1000))


async def test_a_full_queue_raises_when_told_to(sandbox: Sandbox) -> None:
    """`when_full="raise"`: the event is not accepted, and the error says what is full."""
    async with emitter_for(sandbox, max_pending=1, when_full="raise") as emitter:
        await emitter.track(event())
        with pytest.raises(QueueFullError, match="1 of 1 events"):
            await emitter.track(event())

        assert emitter.stats.accepted == 1


async def test_a_full_queue_drops_when_told_to(sandbox: Sandbox) -> None:
    """`when_full="drop"`: the event is accepted, failed and counted, and nobody is troubled."""
    async with emitter_for(sandbox, max_pending=1, when_full="drop") as emitter:
        await emitter.track(event())
        for dropped in (await emitter.track(event()), emitter.track_nowait(event())):
            with pytest.raises(DeliveryFailedError, match="the queue was full"):
                await dropped

        assert (emitter.stats.accepted, emitter.stats.failed, emitter.stats.pending) == (3, 2, 1)


async def test_bytes_are_bounded_too(sandbox: Sandbox) -> None:
    """A few large events fill the queue as many small ones do."""
    large = event(metadata={"note": "x" * 600})
    async with emitter_for(sandbox, max_pending_bytes=1000, when_full="raise") as emitter:
        await emitter.track(large)
        with pytest.raises(QueueFullError, match="bytes pending"):
            await emitter.track(large)
        await emitter.track(event())


@pytest.mark.parametrize("when_full", ["wait", "raise", "drop"])
async def test_an_event_that_can_never_fit_is_refused_at_once(sandbox: Sandbox, when_full: Any) -> None:
    """Larger than the bound itself: an error in every mode, rather than an endless wait."""
    async with emitter_for(sandbox, max_pending_bytes=200, when_full=when_full) as emitter:
        with pytest.raises(QueueFullError, match="can never fit: max_pending_bytes is 200"):
            await emitter.track(event(metadata={"note": "x" * 600}))

    assert emitter.stats.accepted == 0


async def test_track_nowait_accepts_and_raises_when_full(sandbox: Sandbox) -> None:
    """For synchronous code: a full queue, or one with others waiting, is an error."""
    async with emitter_for(sandbox, max_pending=2, flush_interval=0, max_batch_size=1) as emitter:
        delivery = emitter.track_nowait(event())
        emitter.track_nowait(event("other"))
        with pytest.raises(QueueFullError):
            emitter.track_nowait(event())

        assert (await delivery).attempts == 1


# Retries.


async def test_a_503_is_sent_again_after_one_to_two_seconds(sandbox: Sandbox) -> None:
    """The specification's own advice; the answer was clear, so it is no possible duplicate."""
    loop = asyncio.get_running_loop()
    sandbox.fail_next(503, 503)
    async with emitter_for(sandbox, flush_interval=0) as emitter:
        started = loop.time()
        receipt = await emitter.deliver(event())
        waited = loop.time() - started

    assert (receipt.attempts, receipt.maybe_duplicate) == (3, False)
    assert 2 <= waited <= 4.1
    assert (emitter.stats.requests, emitter.stats.retries) == (3, 2)


async def test_halving_is_no_retry() -> None:
    """Not even that of events which were sent again before."""
    async with (
        Sandbox(script=[503, 400]) as sandbox,
        Emitter(sandbox.credentials, endpoint=sandbox.url) as emitter,
    ):
        await asyncio.gather(*[await emitter.track(event()) for _ in range(2)])

    assert (emitter.stats.requests, emitter.stats.retries) == (4, 1)


async def test_retry_after_is_a_minimum(sandbox: Sandbox) -> None:
    """The server asked for a longer rest than the policy's."""
    loop = asyncio.get_running_loop()
    sandbox.fail_next(Fault.answer(429, retry_after="17"))
    async with emitter_for(sandbox, flush_interval=0) as emitter:
        started = loop.time()
        await emitter.deliver(event())

        assert 17 <= loop.time() - started < 18


async def test_order_is_kept_over_a_retry(sandbox: Sandbox) -> None:
    """What was tracked later never overtakes what is being sent again."""
    sandbox.fail_next(503)
    async with emitter_for(sandbox, flush_interval=0) as emitter:
        first = await emitter.track(event())
        await asyncio.sleep(0.5)
        second = await emitter.track(event())

    assert sandbox.events == [first.event.to_dict(), second.event.to_dict()]


async def test_max_attempts_gives_up() -> None:
    """After that many failures the event has failed, with the last status."""
    async with Sandbox(faults={503: 1}) as down:
        async with emitter_for(down, retry=RetryPolicy(max_attempts=3)) as emitter:
            with pytest.raises(DeliveryFailedError, match="HTTP 503, 3 failed attempts") as caught:
                await emitter.deliver(event())

    assert (caught.value.attempts, caught.value.status) == (3, 503)
    assert len(down.requests) == 3


async def test_the_deadline_gives_up_before_the_wait() -> None:
    """Whoever's deadline falls before the next attempt does not wait for it."""
    loop = asyncio.get_running_loop()
    async with Sandbox(faults={503: 1}) as down:
        async with emitter_for(down, flush_interval=0, retry=RetryPolicy(deadline=10)) as emitter:
            started = loop.time()
            with pytest.raises(DeliveryFailedError, match="deadline falls before the next attempt"):
                await emitter.deliver(event())

            assert 8 <= loop.time() - started < 10


async def test_events_behind_an_outage_keep_their_deadline() -> None:
    """With every worker held up, what waits in the queue is given up at its deadline too."""
    loop = asyncio.get_running_loop()
    policy = RetryPolicy(deadline=20)
    async with Sandbox(faults={"silence": 1}) as down:
        async with emitter_for(down, flush_interval=0, max_concurrency=2, retry=policy) as emitter:
            started = loop.time()
            deliveries = [await emitter.track(event(f"session-{index}")) for index in range(2000)]
            deliveries += [await emitter.track(event("session-0")) for _ in range(60)]
            await asyncio.wait(deliveries)

            assert loop.time() - started < 20 + 10
            assert emitter.stats.failed + emitter.stats.unconfirmed == len(deliveries)


async def test_an_outage_of_a_minute_costs_nothing() -> None:
    """With the default policy everything is delivered once it is over, and without a herd."""
    loop = asyncio.get_running_loop()
    async with Sandbox(script=[503] * 16 * 30) as down, emitter_for(down, flush_interval=0) as emitter:
        started = loop.time()
        for index in range(100):
            await emitter.track(event(f"session-{index}"))
        await emitter.flush()

        assert 30 < loop.time() - started < 90
        assert emitter.stats.delivered == 100


async def test_each_batch_leaves_at_its_own_moment(sandbox: Sandbox) -> None:
    """A worker that is busy, in a request or a back-off, does not hold up the next batch."""
    loop = asyncio.get_running_loop()
    async with Sandbox(latency=9.0) as slow, emitter_for(slow, flush_interval=0.25) as emitter:
        started = loop.time()
        await emitter.track(event("first"))
        await asyncio.sleep(0.1)
        await emitter.track(event("second"))
        while len(slow.requests) < 2:
            await asyncio.sleep(0.01)

        assert loop.time() - started < 0.5


async def test_a_far_off_interval_hides_nothing_that_is_due(sandbox: Sandbox) -> None:
    """A flush or a full batch right after a delivery, while another session waits for its interval."""
    loop = asyncio.get_running_loop()
    async with emitter_for(sandbox, flush_interval=60, max_concurrency=1, max_batch_size=2) as emitter:
        started = loop.time()
        deliveries = [await emitter.track(event("one")) for _ in range(2)]
        await emitter.track(event("waits"))
        await deliveries[0]
        full = [await emitter.track(event("two")) for _ in range(2)]
        await full[0]
        await emitter.flush()

        assert loop.time() - started < 1


async def test_giving_up_a_long_queue_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Overdue events by the thousand, a slice at a time, and all of them promptly."""
    loop = asyncio.get_running_loop()
    async with Sandbox(faults={"silence": 1.0}) as down:
        policy = RetryPolicy(deadline=5)
        settings: Any = {"flush_interval": 0, "max_concurrency": 1, "request_timeout": 60, "retry": policy}
        async with emitter_for(down, **settings) as emitter:
            assert emitter._pool is not None
            slices: list[int] = []
            give_up = emitter._pool._give_up_overdue

            def count(deliveries: list[Delivery]) -> None:
                slices.append(len(deliveries))
                give_up(deliveries)

            monkeypatch.setattr(emitter._pool, "_give_up_overdue", count)
            started = loop.time()
            for index in range(4000):
                await emitter.track(event(f"session-{index}"))
            while emitter.stats.failed < 3999:
                await asyncio.sleep(0.01)

            assert loop.time() - started < 5 + 2
            assert max(slices) <= 1000
            assert sum(slices) == 3999


async def test_giving_up_a_queue_without_requests_lets_the_loop_turn(sandbox: Sandbox) -> None:
    """A worker that finds nothing but expired events is no endless one."""
    clock = Clock(datetime.now(UTC))
    async with emitter_for(sandbox, _clock=clock, flush_interval=0, max_concurrency=1) as emitter:
        deliveries = [await emitter.track(event(f"session-{index}")) for index in range(2000)]
        clock.advance(days=4)
        await deliveries[0] if deliveries[0].done() else await asyncio.wait([deliveries[0]])

        assert not deliveries[-1].done()
        await asyncio.wait(deliveries)
        assert emitter.stats.expired == 2000


# Refused requests.


async def test_a_spoilt_request_costs_only_the_event_that_spoils_it(sandbox: Sandbox) -> None:
    """Refused whole, it is halved until the event is found; order is kept, and nobody else pays."""
    async with emitter_for(sandbox) as emitter:
        deliveries = [await emitter.track(event()) for _ in range(12)]
        spoilt = deliveries[7]
        # Past the checks: the second reading takes a number for metadata as unreadable.
        spoilt.wire = spoilt.wire.replace(b'"order-1"', b"4711     ")
        outcomes = await asyncio.gather(*deliveries, return_exceptions=True)

    error = outcomes.pop(7)
    assert isinstance(error, EventRejectedError)
    assert [problem.code for problem in error.errors] == ["InvalidRequestPayload"]
    assert error.status == 400
    assert all(isinstance(outcome, Receipt) for outcome in outcomes)
    del deliveries[7]
    assert sandbox.events == [delivery.event.to_dict() for delivery in deliveries]
    assert emitter.stats.retries == 0


async def test_the_second_half_keeps_its_deadline_too() -> None:
    """It waits for the first one, for the order; when its time has passed meanwhile, it is not sent."""
    async with Sandbox(script=[422, "silence"]) as down:
        async with emitter_for(down, retry=RetryPolicy(deadline=5)) as emitter:
            deliveries = [await emitter.track(event()) for _ in range(2)]
            first, second = await asyncio.gather(*deliveries, return_exceptions=True)

    assert isinstance(first, DeliveryUnconfirmedError)
    assert isinstance(second, DeliveryFailedError)
    assert (second.attempts, second.status) == (1, 422)
    assert "its deadline of 5 s has passed" in str(second)
    assert len(down.requests) == 2


async def test_a_systematic_refusal_is_not_multiplied() -> None:
    """After 16 refusals in a row requests are no longer halved, until one is answered 2xx."""
    async with Sandbox(faults={422: 1}) as strict, emitter_for(strict, max_concurrency=1) as emitter:
        for index in range(20):
            for _ in range(25):
                await emitter.track(event(f"session-{index}"))
        await emitter.flush()

        assert emitter.stats.rejected == 500
        assert emitter.stats.requests < 60


async def test_halving_starts_again_after_a_2xx(sandbox: Sandbox) -> None:
    """One answered request shows that the fault is not systematic."""
    async with emitter_for(sandbox, max_concurrency=1) as emitter:

        async def send() -> set[str]:
            calls = [emitter.deliver(event()) for _ in range(25)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            return {f"{type(outcome).__name__} {getattr(outcome, 'attempts', '')}" for outcome in outcomes}

        sandbox.fail_next(*[422] * 100)
        await send()
        sandbox._plan._script.clear()
        sandbox.fail_next(422)
        assert await send() == {"EventRejectedError 1"}, "not halved any more"
        assert await send() == {"Receipt 1"}
        sandbox.fail_next(422)
        assert await send() == {"Receipt 2"}, "halved again"


async def test_single_refusals_do_not_count_as_systematic(sandbox: Sandbox) -> None:
    """However many lone events were bad, one bad event costs no other."""
    async with emitter_for(sandbox, max_concurrency=1) as emitter:
        for _ in range(20):
            sandbox.fail_next(422)
            with pytest.raises(EventRejectedError):
                await emitter.deliver(event())
        sandbox.fail_next(400)
        receipts = await asyncio.gather(emitter.deliver(event()), emitter.deliver(event()))

    assert [receipt.attempts for receipt in receipts] == [2, 2]


# Views.


async def test_stats_add_up(sandbox: Sandbox) -> None:
    """Accepted is the sum of the outcomes and pending, and bytes are those on the wire."""
    async with emitter_for(sandbox) as emitter:
        delivery = await emitter.track(event())
        stats = emitter.stats

        assert (stats.accepted, stats.pending, stats.sessions) == (1, 1, 1)
        assert stats.pending_bytes == len(json.dumps(delivery.event.to_dict(), separators=(",", ":")))
        await delivery
        assert emitter.stats.pending_bytes == 0
        assert emitter.stats.sessions == 0


async def test_the_repr_tells_the_state_at_a_glance(sandbox: Sandbox) -> None:
    """State, endpoint, what is pending, and what became of the rest."""
    emitter = emitter_for(sandbox)
    assert repr(emitter).startswith("<Emitter new, http://127.0.0.1:")

    async with emitter:
        await emitter.deliver(event())
        await emitter.track(event())
        assert "open" in repr(emitter)
        assert "2 accepted, 1 pending" in repr(emitter)
        assert "1 delivered" in repr(emitter)
    assert "<Emitter closed" in repr(emitter)


async def test_a_session_passed_in_is_used_and_left_open(sandbox: Sandbox) -> None:
    """Whatever the session would do by itself is overridden."""

    async def meddle(request: Any, handler: Any) -> Any:
        raise AssertionError("a middleware of the caller's saw the request")

    sandbox.fail_next("redirect", 503, "compressed")
    timeout = aiohttp.ClientTimeout(total=0.001)
    async with aiohttp.ClientSession(raise_for_status=True, middlewares=[meddle], timeout=timeout) as session:
        async with emitter_for(sandbox, session=session) as emitter:
            with pytest.raises(DeliveryFailedError, match="HTTP 307"):
                await emitter.deliver(event())
            with pytest.raises(Exception, match="its answer cannot be read"):
                await emitter.deliver(event())
        assert not session.closed


async def test_an_outage_of_the_network_is_no_loss(sandbox: Sandbox) -> None:
    """Nobody listens at first: surely not sent, so sent again, and no possible duplicate."""
    port = int(sandbox.url.split(":")[2].split("/")[0])
    await sandbox.aclose()
    async with emitter_for(sandbox, flush_interval=0) as emitter:
        delivery = await emitter.track(event())
        await asyncio.sleep(5)
        assert emitter.stats.retries >= 2

        async with Sandbox(port=port) as back:
            receipt = await delivery
            assert len(back.events) == 1
    assert not receipt.maybe_duplicate
    assert emitter.stats.possible_duplicates == 0


async def test_a_transport_can_be_handed_in() -> None:
    """As a deterministic world does; nothing else is opened."""

    bodies: list[bytes] = []

    class Recorder:
        async def post(self, request: Request) -> Reply:
            request.went_out = True
            bodies.append(request.body)
            return Reply(200, {}, b'{"processedEventsCount": 1}')

        async def aclose(self) -> None:
            pass

    async with Emitter(CREDENTIALS, _transport=Recorder()) as emitter:
        await emitter.deliver(event())

    assert len(bodies) == 1


async def test_two_emitters_do_not_know_of_each_other(sandbox: Sandbox) -> None:
    """Each has its own account."""
    async with emitter_for(sandbox) as one, emitter_for(sandbox) as other:
        await asyncio.gather(one.deliver(event()), other.deliver(event()), other.deliver(event()))

        assert (one.stats.delivered, other.stats.delivered) == (1, 2)


@pytest.mark.every_loop
async def test_it_runs_on_real_loops(sandbox: Sandbox) -> None:
    """On asyncio's own loop and on uvloop."""
    async with emitter_for(sandbox, flush_interval=0.01) as emitter:
        deliveries = [await emitter.track(event(f"session-{index % 7}")) for index in range(200)]
        receipts = await asyncio.gather(*deliveries)

    assert len(receipts) == len(sandbox.events) == 200


async def test_mutating_what_was_handed_over_changes_nothing(sandbox: Sandbox) -> None:
    """What was accepted is encoded: later changes do not reach it."""
    metadata = {"AdditionalData": "before"}
    made = PartnerEvent.response(session_id="s", parent_guid="p", client_unique_id="c", metadata=metadata)
    async with emitter_for(sandbox) as emitter:
        delivery = await emitter.track(made)
        metadata["AdditionalData"] = "after"
        await delivery

    assert sandbox.events[0]["metadata"] == [{"name": "AdditionalData", "value": "before"}]
