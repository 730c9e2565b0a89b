"""What a caller gets back."""

from __future__ import annotations

import asyncio
import gc
import pickle
from typing import Any

import pytest

from rokt_events_async import (
    ApiError,
    Cause,
    CredentialsRefusedError,
    Delivery,
    DeliveryError,
    DeliveryFailedError,
    DeliveryUnconfirmedError,
    Emitter,
    EventExpiredError,
    EventRejectedError,
    Receipt,
    RetryPolicy,
)
from rokt_events_async.sandbox import Sandbox
from tests.samples import CREDENTIALS, delivery, emitter_for, event


async def test_a_delivery_tells_once() -> None:
    """A second word is not heard."""
    told = delivery()
    receipt = Receipt(told.event, 1, False)
    told.settle(receipt)
    told.settle(DeliveryFailedError("late", event=told.event))

    assert await told is receipt
    assert receipt.outcome == "delivered"


def test_a_delivery_whose_loop_is_gone_is_told_all_the_same() -> None:
    """No caller can be woken any more, and the account goes on."""
    loop = asyncio.new_event_loop()
    told = delivery(loop=loop)
    told.add_done_callback(lambda _: None)
    loop.close()
    told.settle(Receipt(told.event, 1, False))

    assert told.done()


async def test_a_fault_while_telling_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a loop that is gone excuses one."""

    def fail(self: Delivery, outcome: object) -> None:
        raise RuntimeError("a planted fault")

    monkeypatch.setattr(Delivery, "set_result", fail)
    told = delivery()
    with pytest.raises(RuntimeError, match="a planted fault"):
        told.settle(Receipt(told.event, 1, False))


def test_errors_survive_a_pickle() -> None:
    """With all that they carry."""
    sent = event()
    error = EventRejectedError("no", event=sent, errors=(ApiError("A", "b"),), attempts=3, status=207)
    back = pickle.loads(pickle.dumps(error))

    assert type(back) is EventRejectedError
    assert (str(back), back.event, back.errors, back.attempts, back.status) == (
        "no",
        sent,
        (ApiError("A", "b"),),
        3,
        207,
    )


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
    """They need not be awaited, whatever their outcome."""
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


# Causes.

TWICE = RetryPolicy(max_attempts=2)


@pytest.mark.parametrize(
    ("settings", "faults", "cause", "last_cause", "kind"),
    [
        ({"retry": RetryPolicy(deadline=5)}, [503] * 99, Cause.DEADLINE, Cause.STATUS, DeliveryFailedError),
        (
            {"retry": RetryPolicy(max_attempts=2)},
            [429] * 9,
            Cause.ATTEMPTS,
            Cause.STATUS,
            DeliveryFailedError,
        ),
        ({}, [404], Cause.STATUS, Cause.STATUS, DeliveryFailedError),
        ({}, [409], Cause.STATUS, Cause.STATUS, DeliveryUnconfirmedError),
        ({}, [422], Cause.REJECTED, None, EventRejectedError),
        ({}, ["html"], Cause.UNREADABLE, Cause.UNREADABLE, DeliveryUnconfirmedError),
        ({}, ["count-too-high"], Cause.AMBIGUOUS, Cause.AMBIGUOUS, DeliveryUnconfirmedError),
        (
            {"retry": RetryPolicy(retry_unconfirmed=False)},
            ["reset-after"],
            Cause.NO_ANSWER,
            Cause.NO_ANSWER,
            DeliveryUnconfirmedError,
        ),
        ({}, ["garbage"] * 2, Cause.UNREADABLE, Cause.UNREADABLE, DeliveryUnconfirmedError),
        (
            {"retry": RetryPolicy(max_unconfirmed_attempts=2)},
            [500] * 9,
            Cause.ATTEMPTS,
            Cause.STATUS,
            DeliveryUnconfirmedError,
        ),
    ],
)
async def test_causes(
    sandbox: Sandbox,
    settings: dict[str, Any],
    faults: list[Any],
    cause: Cause,
    last_cause: Cause | None,
    kind: type[DeliveryError],
) -> None:
    """Why, as a value; what the last request died of; whether it may be sent again."""
    sandbox.fail_next(*faults)
    async with emitter_for(sandbox, flush_interval=0, **settings) as emitter:
        with pytest.raises(kind) as caught:
            await emitter.deliver(event())

    assert (caught.value.cause, caught.value.last_cause) == (cause, last_cause)
    assert caught.value.can_send_again is (kind is DeliveryFailedError)
    assert str(cause) == cause.value
    assert pickle.loads(pickle.dumps(caught.value)).cause is cause


async def test_the_cause_of_what_was_never_sent(sandbox: Sandbox) -> None:
    """Dropped, or given up at a close; and of what found no server."""
    async with emitter_for(sandbox, max_pending=1, flush_interval=60, close_timeout=0) as emitter:
        waits = await emitter.track(event())
        dropped = emitter.track_nowait(event()).exception()
    gone = Emitter(
        CREDENTIALS, endpoint="http://127.0.0.1:9/", retry=RetryPolicy(max_attempts=1), observers=[]
    )
    async with gone:
        with pytest.raises(DeliveryFailedError) as caught:
            await gone.deliver(event())

    closed = waits.exception()
    assert isinstance(dropped, DeliveryError)
    assert isinstance(closed, DeliveryError)
    assert [dropped.cause, closed.cause] == [Cause.QUEUE_FULL, Cause.CLOSED]
    assert (caught.value.cause, caught.value.last_cause) == (Cause.ATTEMPTS, Cause.UNREACHABLE)


def test_an_error_of_an_applications_own_test_has_a_cause() -> None:
    """Where none is given."""
    errors = [
        kind("x", event=event())
        for kind in (EventRejectedError, EventExpiredError, CredentialsRefusedError, DeliveryUnconfirmedError)
    ]
    assert [str(error.cause) for error in errors] == ["rejected", "expired", "credentials", "no_answer"]
    assert DeliveryFailedError("x", event=event()).cause is Cause.INTERNAL_ERROR
