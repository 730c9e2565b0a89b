"""The journey of a batch: expiry, retries, splits, and faults in the middle of it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from rokt_events_async import (
    Cause,
    DeliveryFailedError,
    DeliveryUnconfirmedError,
    Emitter,
    EventExpiredError,
    EventRejectedError,
    Receipt,
    RetryPolicy,
)
from rokt_events_async._pipeline.transport import Request
from rokt_events_async._pipeline.trips import Trip
from rokt_events_async._protocol.replies import NoReply, Reply
from rokt_events_async.sandbox import Fault, Sandbox
from tests.samples import CREDENTIALS, Clock, OpenEmitter, emitter_for, event


def sizes(sandbox: Sandbox) -> list[int]:
    return [len(request.events) for request in sandbox.requests]


async def test_a_refused_event_is_rejected_alone(sandbox: Sandbox) -> None:
    """A 207 rejects the event it names, with its codes, and no other event."""
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


async def test_a_split_is_no_retry() -> None:
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
            with pytest.raises(DeliveryFailedError, match="HTTP 503, 3 attempts") as caught:
                await emitter.deliver(event())

    assert (caught.value.attempts, caught.value.status) == (3, 503)
    assert len(down.requests) == 3


async def test_the_deadline_gives_up_before_the_wait() -> None:
    """An event whose deadline falls before the next attempt does not wait for it."""
    loop = asyncio.get_running_loop()
    async with Sandbox(faults={503: 1}) as down:
        async with emitter_for(down, flush_interval=0, retry=RetryPolicy(deadline=10)) as emitter:
            started = loop.time()
            with pytest.raises(DeliveryFailedError, match="deadline falls before the next attempt"):
                await emitter.deliver(event())

            assert 6 <= loop.time() - started < 10  # The longest wait after the fifth failure is 4 s.


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


async def test_a_spoilt_request_costs_only_the_event_that_spoils_it(sandbox: Sandbox) -> None:
    """A refused batch is split until the event is found; order is kept, and no other event pays."""
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
    """After three batches of which every event was refused, one batch per retry wait is split."""
    async with Sandbox(faults={422: 1}) as strict, emitter_for(strict, max_concurrency=1) as emitter:
        calls = [await emitter.track(event(f"session-{index}")) for index in range(20) for _ in range(25)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)

        assert emitter.stats.rejected == 4 * 25, "three, and the first one that the guard lets through"
        assert emitter.stats.failed == 16 * 25
        assert len(strict.requests) == 4 * 49 + 16
        last = outcomes[-1]
        assert isinstance(last, DeliveryFailedError)
        assert (last.cause, last.status) == (Cause.STATUS, 422)
        await asyncio.sleep(2)
        calls = [await emitter.track(event()) for _ in range(2)]
        await asyncio.gather(*calls, return_exceptions=True)
        assert emitter.stats.rejected == 4 * 25 + 2, "split again, one per retry wait"


async def test_one_bad_event_each_costs_no_other() -> None:
    """However many batches are refused for one of their events, at the same time."""

    class Strict:
        async def post(self, request: Request) -> Reply | NoReply:
            await asyncio.sleep(0.001)
            request.went_out = True
            if b'"bad"' in request.body:
                return Reply(400, {}, b"")
            count = request.body.count(b"eventType")
            return Reply(200, {}, b'{"processedEventsCount":%d,"unprocessedEvents":[]}' % count)

        async def aclose(self) -> None:
            """Holds nothing."""

    async with Emitter(CREDENTIALS, max_concurrency=16, _transport=Strict()) as emitter:
        for index in range(40):
            for place in range(25):
                await emitter.track(event(f"s{index}", parent_guid="bad" if place == 7 else f"p{place}"))
        await emitter.flush()

        assert (emitter.stats.delivered, emitter.stats.rejected) == (40 * 24, 40)


async def test_splitting_starts_again_after_a_2xx(sandbox: Sandbox) -> None:
    """One answered request shows that the fault is not systematic."""
    async with emitter_for(sandbox, max_concurrency=1) as emitter:

        async def send() -> set[str]:
            calls = [emitter.deliver(event()) for _ in range(25)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            return {f"{type(outcome).__name__} {getattr(outcome, 'attempts', '')}" for outcome in outcomes}

        for _ in range(3):
            sandbox.fail_next(*[422] * 49)
            await send()
        sandbox.fail_next(422, *[422] * 48)
        await send()  # The one that is split while the guard acts.
        sandbox._behaviour.plan.set_script([])
        sandbox.fail_next(422)
        assert await send() == {"DeliveryFailedError 1"}, "not split any more"
        assert await send() == {"Receipt 1"}
        sandbox.fail_next(422)
        assert await send() == {"Receipt 2"}, "split again"


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


async def test_an_outage_of_the_network_is_no_loss(sandbox: Sandbox) -> None:
    """No server listens at first: surely not sent, so it is sent again, and is no possible duplicate."""
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


def adds_up(emitter: Emitter) -> bool:
    stats = emitter.stats
    settled = stats.delivered + stats.rejected + stats.expired + stats.failed + stats.unconfirmed
    return stats.accepted == settled + stats.pending


async def test_workers_cancelled_from_outside_settle_what_they_carry(sandbox: Sandbox) -> None:
    """And the work goes on afterwards."""
    async with Sandbox(script=["silence", 503], latency=0.0) as down:
        async with emitter_for(down, flush_interval=0, max_concurrency=2) as emitter:
            sent = await emitter.track(event("sent"))
            await asyncio.sleep(0.05)
            refused = await emitter.track(event("refused"))
            await asyncio.sleep(0.05)
            queued = await emitter.track(event("queued"))
            for task in asyncio.all_tasks():
                if task.get_name() == "rokt-events-flush":
                    task.cancel()

            with pytest.raises(DeliveryUnconfirmedError):
                await sent
            assert (await refused).attempts == 2, "parked: no worker carried it"
            assert isinstance(await queued, Receipt)
        assert adds_up(emitter)


async def test_a_fault_in_a_worker_settles_its_batch_and_is_logged(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever dies, its events get their outcome, and the next batch is sent."""

    def broken(body: Any, count: int) -> bool:
        raise ZeroDivisionError("a planted fault")

    async with emitter_for(sandbox) as emitter:
        with monkeypatch.context() as patch:
            patch.setattr("rokt_events_async._pipeline.sender.says_all_processed", broken)
            with pytest.raises(DeliveryUnconfirmedError, match="a fault in the library"):
                await emitter.deliver(event())

        assert isinstance(await emitter.deliver(event()), Receipt)
        assert adds_up(emitter)
    assert "a flush worker died of a fault" in caplog.text


async def test_an_exit_in_a_worker_settles_its_batch(
    open_emitter: OpenEmitter, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ends the program ends it, and the account is honest all the same."""
    emitter = await open_emitter(sandbox, flush_interval=0, retry=RetryPolicy(max_attempts=1))
    delivery = await emitter.track(event())
    assert emitter._engine is not None
    assert emitter._engine is not None
    taken = emitter._engine.pool._queue.take(now=float("inf"))
    assert taken is not None

    async def leave(*_: Any) -> Any:
        raise SystemExit(3)

    monkeypatch.setattr(emitter._engine.sender, "_attempt", leave)
    with pytest.raises(SystemExit):
        await emitter._engine.sender.advance(Trip(*taken))

    assert delivery.done()
    assert adds_up(emitter)
    emitter._engine.pool._queue.release(taken[0], now=0.0)
    await emitter.aclose()


async def test_an_interrupted_trip_ends_in_order(open_emitter: OpenEmitter) -> None:
    """Halves that a close interrupts get their outcomes in the order in which their events were accepted."""
    ended: list[str] = []
    async with Sandbox(script=[400, "silence"]) as sandbox:
        emitter = await open_emitter(
            sandbox,
            max_batch_size=4,
            on_undelivered=lambda error: ended.append(error.event.parent_guid),
        )
        accepted = [(await emitter.track(event())).event.parent_guid for _ in range(4)]
        while sandbox.count < 2:
            await asyncio.sleep(0.01)
        await emitter.aclose(timeout=0)

    assert ended == accepted


async def test_what_may_have_been_accepted_is_not_sent_for_ever() -> None:
    """After `max_unconfirmed_attempts` it ends as unconfirmed."""
    async with Sandbox(faults={504: 1.0}) as down:
        policy = RetryPolicy(max_unconfirmed_attempts=3)
        async with emitter_for(down, flush_interval=0, retry=policy) as emitter:
            with pytest.raises(DeliveryUnconfirmedError, match="4 attempts, and Rokt may have accepted"):
                await emitter.deliver(event())


async def test_a_batch_that_makes_the_server_fail_is_split() -> None:
    """After three failures; the halves are sent again after the wait, in order."""
    async with Sandbox(script=[500, 500, 500]) as sandbox, emitter_for(sandbox) as emitter:
        receipts = await asyncio.gather(*(emitter.deliver(event()) for _ in range(5)))

    assert [len(request.events) for request in sandbox.requests][3:] == [3, 2]
    assert {receipt.attempts for receipt in receipts} == {4}
