"""Cancellation: while waiting for room, queued, in flight, in back-off, in close. Nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import Any

import pytest

from rokt_events_async import (
    DeliveryFailedError,
    DeliveryUnconfirmedError,
    Emitter,
    Receipt,
    RetryPolicy,
)
from rokt_events_async._pipeline.trips import Trip
from rokt_events_async.sandbox import Fault, Sandbox
from tests.samples import event


def emitter_for(sandbox: Sandbox, **settings: Any) -> Emitter:
    return Emitter(sandbox.credentials, endpoint=sandbox.url, **settings)


def adds_up(emitter: Emitter) -> bool:
    stats = emitter.stats
    settled = stats.delivered + stats.rejected + stats.expired + stats.failed + stats.unconfirmed
    return stats.accepted == settled + stats.pending


async def test_while_waiting_for_room_the_event_is_not_accepted() -> None:
    """Nor sent, and the room goes to the next in line."""
    async with Sandbox(latency=1.0) as slow, emitter_for(slow, max_pending=1, flush_interval=0) as emitter:
        await emitter.track(event())
        waiting = asyncio.create_task(emitter.track(event("cancelled")))
        patient = asyncio.create_task(emitter.track(event("patient")))
        await asyncio.sleep(0.1)
        waiting.cancel()
        await patient

        assert waiting.cancelled()
        assert emitter.stats.accepted == 2
    assert {item["sessionId"] for item in slow.events} == {"session", "patient"}


async def test_a_cancelled_delivery_is_still_sent_and_counted(sandbox: Sandbox) -> None:
    """Cancelling detaches the caller, and nothing else."""
    async with emitter_for(sandbox) as emitter:
        delivery = await emitter.track(event())
        delivery.cancel()
        await emitter.flush()

        assert delivery.cancelled()
        assert emitter.stats.delivered == 1
    assert len(sandbox.events) == 1


@pytest.mark.parametrize("moment", [0.0, 0.5, 1.5, 3.0])
async def test_a_cancelled_task_detaches_whenever_it_happens(moment: float) -> None:
    """Queued, in flight, in back-off, in flight again: a bare `await` cancels the delivery too."""
    async with Sandbox(script=[503, None], latency=1.0) as slow:
        async with emitter_for(slow, flush_interval=0.25) as emitter:
            task = asyncio.create_task(emitter.deliver(event()))
            other = await emitter.track(event())
            await asyncio.sleep(moment)
            task.cancel()
            receipt = await other

            assert task.cancelled()
            assert receipt.attempts == 2
            assert emitter.stats.delivered == 2
    assert len(slow.events) == 2


async def test_waiting_with_a_time_out_and_keeping_the_delivery() -> None:
    """`asyncio.shield` keeps it, as documented."""
    async with Sandbox(latency=5.0) as slow, emitter_for(slow) as emitter:
        delivery = await emitter.track(event())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(delivery), 0.5)

        assert isinstance(await delivery, Receipt)


async def test_a_cancelled_flush_changes_nothing() -> None:
    """The events go on."""
    async with Sandbox(latency=1.0) as slow, emitter_for(slow, flush_interval=100) as emitter:
        delivery = await emitter.track(event())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(emitter.flush(), 0.5)

        assert isinstance(await delivery, Receipt)


async def test_deliveries_dropped_unread_make_no_noise(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody has to await them, whatever became of them."""
    async with Sandbox(faults={404: 1.0}) as down, emitter_for(down) as emitter:
        await emitter.track(event())
        await emitter.flush()
        gc.collect()

        assert emitter.stats.failed == 1
    assert "never retrieved" not in caplog.text


async def test_each_caller_gets_an_exception_of_its_own() -> None:
    """On a shared one, tracebacks would pile up."""
    async with Sandbox(faults={404: 1.0}) as down, emitter_for(down) as emitter:
        deliveries = [await emitter.track(event()) for _ in range(2)]
        one, other = await asyncio.gather(*deliveries, return_exceptions=True)

        assert isinstance(one, DeliveryFailedError)
        assert isinstance(other, DeliveryFailedError)
        assert one is not other
        assert one.event is deliveries[0].event


async def test_callbacks_that_raise_or_reenter_break_nothing(sandbox: Sandbox) -> None:
    """What a callback does is between it and the loop."""
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    tasks: list[asyncio.Task[Any]] = []
    async with emitter_for(sandbox) as emitter:

        def explode(_: Any) -> None:
            raise RuntimeError("from a callback")

        def reenter(_: Any) -> None:
            emitter.track_nowait(event())
            tasks.append(asyncio.create_task(emitter.flush()))
            tasks.append(asyncio.create_task(emitter.aclose()))

        first = await emitter.track(event())
        first.add_done_callback(explode)
        first.add_done_callback(reenter)
        await first
        await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    assert emitter.stats.delivered == 2
    assert emitter.stats.pending == 0


# Close.


async def test_close_interrupts_a_back_off_at_its_deadline() -> None:
    """It does not wait out a back-off; what was clearly refused has failed."""
    loop = asyncio.get_running_loop()
    async with Sandbox(script=[Fault.answer(503, retry_after="60")]) as down:
        emitter = emitter_for(down, flush_interval=0)
        await emitter.start()
        delivery = await emitter.track(event())
        await asyncio.sleep(0.5)
        started = loop.time()
        report = await emitter.aclose(timeout=2.0)

        assert loop.time() - started == pytest.approx(2.0, abs=0.1)
    with pytest.raises(DeliveryFailedError, match="the emitter was closed, after HTTP 503") as caught:
        await delivery
    assert (caught.value.attempts, caught.value.status) == (1, 503)
    assert (report.failed, report.undelivered) == (1, (caught.value,))


async def test_close_interrupts_a_request_at_its_deadline() -> None:
    """What had gone out may have been accepted: unconfirmed."""
    loop = asyncio.get_running_loop()
    async with Sandbox(faults={"silence-processed": 1.0}) as down:
        emitter = emitter_for(down, flush_interval=0)
        await emitter.start()
        delivery = await emitter.track(event())
        await asyncio.sleep(0.1)
        started = loop.time()
        report = await emitter.aclose(timeout=1.0)

        assert loop.time() - started == pytest.approx(1.0, abs=0.1)
    with pytest.raises(DeliveryUnconfirmedError):
        await delivery
    assert report.unconfirmed == 1


async def test_close_gives_what_is_queued_its_outcome() -> None:
    """More than one slice of it, and none of it sent."""
    async with Sandbox(faults={"silence": 1.0}) as down:
        emitter = emitter_for(down, flush_interval=0, max_concurrency=2)
        await emitter.start()
        for index in range(1300):
            await emitter.track(event(f"session-{index}"))
        await asyncio.sleep(0.1)
        report = await emitter.aclose(timeout=0)

        assert len(down.requests) == 2
    assert (report.failed, report.unconfirmed) == (1298, 2)
    assert len(report.undelivered) == 1300
    assert emitter.stats.pending == 0
    assert emitter.stats.sessions == 0
    assert adds_up(emitter)


async def test_close_drains_and_reports(sandbox: Sandbox) -> None:
    """What can be delivered is, without waiting out the interval."""
    loop = asyncio.get_running_loop()
    emitter = emitter_for(sandbox, flush_interval=100.0)
    await emitter.start()
    await emitter.track(event())
    started = loop.time()
    report = await emitter.aclose()

    assert loop.time() - started < 5
    assert (report.delivered, report.undelivered) == (1, ())


async def test_close_gives_a_backlog_of_one_session_its_outcome() -> None:
    """Many batches of the same session, at the deadline."""
    async with Sandbox(faults={"silence": 1.0}) as down:
        emitter = emitter_for(down, flush_interval=0)
        await emitter.start()
        deliveries = [await emitter.track(event("one")) for _ in range(1300)]
        await asyncio.sleep(0.1)
        report = await emitter.aclose(timeout=0.1)

    assert (report.unconfirmed, report.failed) == (25, 1275)
    assert all(delivery.done() for delivery in deliveries)
    assert (emitter.stats.pending, emitter.stats.sessions) == (0, 0)


async def test_a_flush_during_the_close_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the close gives up is not sent behind its back."""
    async with Sandbox(faults={"silence": 1.0}) as down:
        emitter = emitter_for(down, flush_interval=0, max_concurrency=2)
        await emitter.start()
        for index in range(3000):
            await emitter.track(event(f"session-{index}"))
        await asyncio.sleep(0.1)
        assert emitter._pool is not None
        give_up, flushes = emitter._pool._give_up_some, []

        def flush_meanwhile() -> bool:
            flushes.append(asyncio.create_task(emitter.flush()))
            return give_up()

        monkeypatch.setattr(emitter._pool, "_give_up_some", flush_meanwhile)
        report = await emitter.aclose(timeout=0.1)
        assert emitter.stats.pending == 0
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "rokt-events-flush"]
        await asyncio.gather(*flushes)

    assert report.failed + report.unconfirmed == 3000
    assert len(flushes) > 3
    assert len(down.requests) == 2


@pytest.mark.parametrize("times", [1, 2])
async def test_a_drain_cancelled_before_it_ran(times: int) -> None:
    """All tasks are cancelled in the moment in which the close begins: everything is settled all the same."""
    async with Sandbox(faults={503: 1.0}) as down:
        emitter = emitter_for(down, flush_interval=0)
        await emitter.start()
        deliveries = [await emitter.track(event(f"session-{index}")) for index in range(5)]
        await asyncio.sleep(0.1)

        async def cancel_drain() -> None:
            for task in asyncio.all_tasks():
                if task.get_name() == "rokt-events-drain":
                    task.cancel()

        async def close() -> Any:
            canceller = asyncio.create_task(cancel_drain())
            try:
                return await emitter.aclose(timeout=60)
            finally:
                await canceller

        closes = [asyncio.create_task(close()) for _ in range(times)]
        reports = await asyncio.gather(*closes)

    assert all(report.failed == 5 for report in reports)
    assert all(delivery.done() for delivery in deliveries)


async def test_a_close_cancelled_together_with_its_drain() -> None:
    """As a loop's end does it."""
    async with Sandbox(faults={503: 1.0}) as down:
        emitter = emitter_for(down, flush_interval=0)
        await emitter.start()
        await emitter.track(event())
        await asyncio.sleep(0.1)
        close = asyncio.create_task(emitter.aclose(timeout=60))
        await asyncio.sleep(0)
        for task in asyncio.all_tasks():
            if task is close or (task.get_name() or "").startswith("rokt-events"):
                task.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
            close.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await close

    assert close.cancelled()
    assert emitter.stats.pending == 0
    assert "closed" in repr(emitter)


@pytest.mark.parametrize("error", [OSError("a planted fault"), asyncio.CancelledError()])
async def test_connections_that_cannot_be_closed(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """The events are settled; nothing about them depends on it."""

    async def fail() -> None:
        raise error

    async with Sandbox() as sandbox:
        emitter = emitter_for(sandbox)
        await emitter.start()
        assert emitter._transport is not None
        close = emitter._transport.aclose
        emitter._transport.aclose = fail  # type: ignore[method-assign]
        await emitter.track(event())

        assert (await emitter.aclose()).delivered == 1
        assert "closed" in repr(emitter)
        await close()
    assert ("could not be closed: OSError" in caplog.text) is isinstance(error, OSError)


async def test_a_second_close_gets_the_same_report() -> None:
    """During the first one, and after it."""
    async with Sandbox(latency=1.0) as slow:
        emitter = emitter_for(slow)
        await emitter.start()
        await emitter.track(event())
        one, other = await asyncio.gather(emitter.aclose(), emitter.aclose(timeout=0))

        assert one is other
        assert one.delivered == 1
        assert await emitter.aclose() is one


async def test_a_cancelled_close_settles_everything_first() -> None:
    """When the last waiting caller is cancelled, the deadline is now."""
    loop = asyncio.get_running_loop()
    async with Sandbox(faults={503: 1.0}) as down:
        emitter = emitter_for(down, flush_interval=0)
        await emitter.start()
        delivery = await emitter.track(event())
        await asyncio.sleep(0.1)
        one, other = (asyncio.create_task(emitter.aclose(timeout=60)) for _ in range(2))
        await asyncio.sleep(0.1)
        started = loop.time()
        one.cancel()
        await asyncio.sleep(0.5)
        assert one.cancelled()
        assert not delivery.done(), "the other caller still waits"

        other.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await other
        assert loop.time() - started < 1
        assert delivery.done()
        assert emitter.stats.pending == 0
        assert (await emitter.aclose()).failed == 1


async def test_a_drain_cancelled_from_outside_settles_everything() -> None:
    """A test runner that cancels all tasks, or the loop's end."""
    async with Sandbox(faults={503: 1.0}) as down:
        emitter = emitter_for(down, flush_interval=0)
        await emitter.start()
        deliveries = [await emitter.track(event(f"session-{index}")) for index in range(1200)]
        await asyncio.sleep(0.1)
        close = asyncio.create_task(emitter.aclose(timeout=60))
        await asyncio.sleep(0.1)
        ours = [task for task in asyncio.all_tasks() if (task.get_name() or "").startswith("rokt-events")]
        assert len(ours) > 1
        for task in ours:
            task.cancel()
        await asyncio.sleep(0)
        for task in ours:
            task.cancel()
        report = await close

    assert report.failed == 1200
    assert all(delivery.done() for delivery in deliveries)


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
            with pytest.raises(DeliveryFailedError):
                await refused
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


async def test_a_fault_between_batches_does_not_stop_the_work(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that dies outside of any batch is replaced, and it is logged, without the fault's words."""
    async with emitter_for(sandbox, flush_interval=0) as emitter:
        assert emitter._pool is not None
        queue = emitter._pool._queue
        take, faults = queue.take, [ZeroDivisionError("a planted fault")]

        def broken(*, now: float) -> Any:
            if faults:
                raise faults.pop()
            return take(now=now)

        monkeypatch.setattr(queue, "take", broken)

        assert isinstance(await emitter.deliver(event()), Receipt)
    assert "died of a fault, its events have been settled: ZeroDivisionError" in caplog.text
    assert "planted" not in caplog.text


async def test_an_exit_in_a_worker_settles_its_batch(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ends the program ends it, and the account is honest all the same."""
    emitter = emitter_for(sandbox, flush_interval=0, retry=RetryPolicy(max_attempts=1))
    await emitter.start()
    delivery = await emitter.track(event())
    assert emitter._pool is not None
    assert emitter._sender is not None
    taken = emitter._pool._queue.take(now=float("inf"))
    assert taken is not None

    async def leave(_: Any) -> Any:
        raise SystemExit(3)

    monkeypatch.setattr(emitter._sender, "_attempt", leave)
    with pytest.raises(SystemExit):
        await emitter._sender.carry(Trip(*taken))

    assert delivery.done()
    assert adds_up(emitter)
    emitter._pool._queue.release(taken[0], now=0.0)
    await emitter.aclose()
