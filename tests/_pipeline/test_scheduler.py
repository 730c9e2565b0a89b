"""The pool: when a batch leaves, how many at a time, and what waits too long in the queue."""

from __future__ import annotations

import asyncio
import math
import sys
from datetime import UTC, datetime
from typing import Any

import pytest

from rokt_events_async import (
    Delivery,
    Receipt,
    RetryPolicy,
)
from rokt_events_async._pipeline.batching import Session
from rokt_events_async._pipeline.trips import Trip
from rokt_events_async._protocol.replies import Reply
from rokt_events_async.sandbox import Sandbox
from tests.samples import Clock, delivery, emitter_for, event


def sizes(sandbox: Sandbox) -> list[int]:
    return [len(request.events) for request in sandbox.requests]


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


async def test_giving_up_a_long_queue_does_not_hold_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Overdue events by the thousand, a slice at a time, and all of them promptly."""
    loop = asyncio.get_running_loop()
    async with Sandbox(faults={"silence": 1.0}) as down:
        policy = RetryPolicy(deadline=5)
        settings: Any = {"flush_interval": 0, "max_concurrency": 1, "request_timeout": 60, "retry": policy}
        async with emitter_for(down, **settings) as emitter:
            assert emitter._engine is not None
            slices: list[int] = []
            give_up = emitter._engine.pool._give_up_overdue

            def count(deliveries: list[Delivery]) -> None:
                slices.append(len(deliveries))
                give_up(deliveries)

            monkeypatch.setattr(emitter._engine.pool, "_give_up_overdue", count)
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


async def test_an_emitter_at_rest_wakes_for_nothing(sandbox: Sandbox) -> None:
    """No task and no timer, though it is open."""
    loop: Any = asyncio.get_running_loop()
    async with emitter_for(sandbox, max_concurrency=1) as emitter:
        await asyncio.gather(*(emitter.deliver(event(f"session-{index}")) for index in range(5)))
        await asyncio.sleep(0.01)

        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("rokt")]
        assert not [
            timer for timer in loop._scheduled if not timer.cancelled() and "rokt" in repr(timer._callback)
        ]


@pytest.mark.every_loop
async def test_two_that_are_due_at_once() -> None:
    """uvloop's handle for what is due within half a millisecond cannot tell when it is due."""
    async with Sandbox() as sandbox, emitter_for(sandbox) as emitter:
        assert emitter._engine is not None
        pool, now = emitter._engine.pool, asyncio.get_running_loop().time()
        pool._wake_at(now)
        pool._wake_at(now)
        pool._wake_at(now - 1)

        assert pool._wake_timer is not None
        await emitter.deliver(event())


if sys.version_info >= (3, 12):  # which brought eager tasks

    async def test_a_task_factory_that_is_eager(sandbox: Sandbox) -> None:
        """A worker never runs inside of `track`."""
        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        try:
            async with emitter_for(sandbox, flush_interval=0, max_batch_size=1) as emitter:
                deliveries = [await emitter.track(event(f"session-{index}")) for index in range(100)]
                assert not any(delivery.done() for delivery in deliveries)
                await asyncio.gather(*deliveries)
        finally:
            loop.set_task_factory(None)


async def test_a_fault_between_batches_does_not_stop_the_work(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that dies outside of any batch is replaced, and it is logged, without the fault's words."""
    async with emitter_for(sandbox, flush_interval=0) as emitter:
        assert emitter._engine is not None
        queue = emitter._engine.pool._queue
        take, faults = queue.take, [ZeroDivisionError("a planted fault")]

        def broken(*, now: float) -> Any:
            if faults:
                raise faults.pop()
            return take(now=now)

        monkeypatch.setattr(queue, "take", broken)

        assert isinstance(await emitter.deliver(event()), Receipt)
    assert "died of a fault, its events have been settled: ZeroDivisionError" in caplog.text
    assert "planted" not in caplog.text


async def test_overdue_events_of_a_session_that_is_released_end_at_once() -> None:
    """They do not wait for another session's request, nor for the next look at the queue."""
    loop = asyncio.get_running_loop()
    ended: list[float] = []
    async with Sandbox(script=[None, "silence"], latency=6.0) as slow:
        policy = RetryPolicy(deadline=5)
        settings: Any = {"flush_interval": 0, "max_concurrency": 1, "request_timeout": 60, "retry": policy}
        async with emitter_for(slow, **settings) as emitter:
            started = loop.time()
            first = await emitter.track(event("one"))
            await asyncio.sleep(0.5)
            await emitter.track(event("two"))
            behind = await emitter.track(event("one"))
            behind.add_done_callback(lambda _: ended.append(loop.time()))
            assert emitter._engine is not None
            emitter._engine.pool._arm_sweep = lambda: None  # type: ignore[method-assign]  # No other look.
            await first
            released = loop.time()
            await asyncio.sleep(0.1)
            await emitter.aclose(timeout=0)

    assert released - started == pytest.approx(6.0, abs=0.5)
    assert ended
    assert ended[0] - released < 0.05


async def test_a_pool_that_stops_schedules_nothing(sandbox: Sandbox) -> None:
    """Whatever happens to its workers then."""
    async with emitter_for(sandbox, flush_interval=60) as emitter:
        await emitter.track(event())
        assert emitter._engine is not None
        pool = emitter._engine.pool
        pool._stop_timers()
        pool._is_stopping = True
        pool._arm()
        assert pool._wake_timer is None
        pool._is_stopping = False


async def test_sessions_that_fail_hold_up_no_other() -> None:
    """Twenty that are always answered 500, and sixteen slots: the others are delivered at once."""
    loop = asyncio.get_running_loop()
    async with Sandbox() as sandbox, emitter_for(sandbox, flush_interval=0) as emitter:
        assert emitter._engine is not None
        post = emitter._engine.transport.post

        async def post_or_fail(request: Any) -> Any:
            if b'"failing' in request.body:
                request.went_out = True
                return Reply(500, {}, b"")
            return await post(request)

        emitter._engine.transport.post = post_or_fail  # type: ignore[method-assign]
        for number in range(20):
            await emitter.track(event(f"failing-{number}"))
        await asyncio.sleep(0.5)
        began = loop.time()
        await asyncio.gather(*(emitter.deliver(event(f"healthy-{number}")) for number in range(100)))
        assert loop.time() - began < 3.0
        assert emitter.health.parked == 20
        await emitter.aclose(timeout=0)


async def test_retries_leave_half_of_the_slots(sandbox: Sandbox) -> None:
    """Those of slow sessions always; the others while fresh batches wait."""
    async with emitter_for(sandbox) as emitter:
        assert emitter._engine is not None
        pool, parked = emitter._engine.pool, []
        for is_slow in (True, False):
            session: Session[Delivery] = Session("s")
            session.is_slow = is_slow
            trip = Trip(session, [delivery()])
            pool._parking.park(trip, until=1.0, deadline=1e9)
            parked.append(trip)

        pool._retries = {True: 8, False: 0}
        assert pool._retry_due(None, 2.0) == 1.0, "the one that is not slow"
        pool._parking.remove(parked[1])
        assert pool._retry_due(None, 2.0) == math.inf
        pool._parking.remove(parked[0])
        assert pool._retry_due(None, 2.0) == math.inf
        pool._parking.park(parked[1], until=1.0, deadline=1e9)
        pool._retries = {True: 0, False: 8}
        assert pool._retry_due(1.5, 2.0) == math.inf, "fresh batches wait"
        assert pool._retry_due(2.5, 2.0) == 1.0
        pool._parking.remove(parked[1])
        pool._retries = {True: 0, False: 0}


async def test_fresh_batches_of_a_slow_session_wait_as_retries_do() -> None:
    """And are sent all the same."""
    async with Sandbox(script=["silence"]) as sandbox:
        settings: Any = {"flush_interval": 0, "max_batch_size": 1, "request_timeout": 1.0}
        async with emitter_for(sandbox, retry=RetryPolicy(max_attempts=1), **settings) as emitter:
            first, second = [await emitter.track(event()) for _ in range(2)]
            assert isinstance(await second, Receipt)
            assert first.exception() is not None


async def test_a_parked_trip_keeps_its_younger_events() -> None:
    """Those whose deadline has passed end, the others stay parked."""
    loop = asyncio.get_running_loop()
    async with Sandbox() as sandbox:
        policy = RetryPolicy(deadline=100)
        async with emitter_for(sandbox, flush_interval=60, retry=policy, close_timeout=0) as emitter:
            old = await emitter.track(event())
            await asyncio.sleep(50)
            young = await emitter.track(event())
            assert emitter._engine is not None
            pool = emitter._engine.pool
            pool._queue.flush()
            taken = pool._queue.take(now=loop.time())
            assert taken is not None
            pool._park(Trip(*taken), loop.time() + 1000)
            await asyncio.sleep(51)
            pool._sweep_parked(loop.time())
            assert (old.done(), young.done(), len(pool._parking)) == (True, False, 1)
            await asyncio.sleep(50)
            pool._sweep_parked(loop.time())
            assert (young.done(), len(pool._parking), emitter.stats.sessions) == (True, 0, 0)


async def test_many_overdue_events_at_a_release_end_in_slices() -> None:
    """At once, and not at the next look of the sweep."""
    loop = asyncio.get_running_loop()
    async with Sandbox(script=["silence"]) as sandbox:
        settings: dict[str, Any] = {"flush_interval": 0, "max_concurrency": 1, "request_timeout": 6.0}
        async with emitter_for(sandbox, retry=RetryPolicy(deadline=5), **settings) as emitter:
            deliveries = [await emitter.track(event()) for _ in range(200)]
            began = loop.time()
            await asyncio.gather(*deliveries, return_exceptions=True)
            assert loop.time() - began < 6.1
            assert emitter.stats.unconfirmed + emitter.stats.failed == 200
