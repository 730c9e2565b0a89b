"""`on_undelivered`: every error, once, in order, and never in the way of a close."""

from __future__ import annotations

import asyncio
import contextvars
import gc
from typing import Any

import pytest

from rokt_events_async import (
    Delivery,
    DeliveryError,
    DeliveryFailedError,
    Emitter,
    InvalidSettingError,
    LoggingObserver,
)
from rokt_events_async.sandbox import Sandbox
from tests.samples import CREDENTIALS, OpenEmitter, emitter_for, event


def failed(error: type[DeliveryError] = DeliveryFailedError, **more: Any) -> DeliveryError:
    return error("made up", event=event(), attempts=2, status=503, reason="HTTP 503", **more)


def told(observer: LoggingObserver, error: DeliveryError) -> None:
    made: Any = asyncio.Future.__new__(Delivery)
    made.event = error.event
    observer.on_undelivered(made, error)


async def test_the_handler_gets_every_error_in_order(sandbox: Sandbox) -> None:
    """Of all kinds but delivered, plain function or coroutine."""
    plain: list[DeliveryError] = []
    awaited: list[DeliveryError] = []

    async def handle(error: DeliveryError) -> None:
        await asyncio.sleep(0.01)
        awaited.append(error)

    for handler, handled in ((plain.append, plain), (handle, awaited)):
        sandbox.fail_next(404, None, 422, "html")
        async with emitter_for(sandbox, on_undelivered=handler, flush_interval=0) as emitter:
            deliveries = [await emitter.track(event(f"s{index}")) for index in range(4)]
        outcomes = await asyncio.gather(*deliveries, return_exceptions=True)

        errors = [outcome for outcome in outcomes if isinstance(outcome, DeliveryError)]
        assert sorted(map(id, handled)) == sorted(map(id, errors))
        assert len(errors) == 3


async def test_a_handler_that_raises(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """Logged once; the next error is handed over all the same."""
    handled: list[DeliveryError] = []

    def handle(error: DeliveryError) -> None:
        handled.append(error)
        raise OSError("disk full") if len(handled) == 1 else asyncio.CancelledError

    sandbox.fail_next(*[404] * 3)
    async with emitter_for(sandbox, observers=[], on_undelivered=handle) as emitter:
        for index in range(3):
            await emitter.track(event(f"s{index}"))

    assert len(handled) == 3
    (record,) = [one for one in caplog.records if "on_undelivered raised" in one.getMessage()]
    assert "OSError: disk full" in record.getMessage()


@pytest.mark.parametrize("leaving", [SystemExit, KeyboardInterrupt])
def test_a_handler_that_leaves_the_program(
    leaving: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """It is obeyed, and has each error but once."""
    calls: list[DeliveryError] = []
    kept: list[Emitter] = []

    def handle(error: DeliveryError) -> None:
        calls.append(error)
        if len(calls) == 1:
            raise leaving

    async def live() -> None:
        async with Sandbox(faults={404: 1.0}) as sandbox:
            async with emitter_for(sandbox, observers=[], on_undelivered=handle) as emitter:
                kept.append(emitter)
                for index in range(4):
                    await emitter.track(event(f"s{index}"))
                await asyncio.sleep(20)

    with pytest.raises(leaving):
        asyncio.run(live())
    gc.collect()

    assert len(calls) == len({id(error) for error in calls}) == 4
    assert kept[0].stats.pending == 0
    assert "never retrieved" not in caplog.text


async def test_a_handler_may_use_the_emitter(sandbox: Sandbox) -> None:
    """It runs outside of the emitter's own work: it may wait for it."""
    sandbox.fail_next(404)

    async def handle(error: DeliveryError) -> None:
        await emitter.deliver(error.event)

    async with emitter_for(sandbox, on_undelivered=handle) as emitter:
        await emitter.track(event("again"))
        while not emitter.stats.delivered:
            await asyncio.sleep(0.1)

    assert [one["sessionId"] for one in sandbox.events] == ["again"]


async def test_a_plain_handler_does_not_hold_the_loop(sandbox: Sandbox) -> None:
    """Others have their turn after each error."""
    turns: list[int] = []
    count = 0

    async def tick() -> None:
        nonlocal count
        while True:
            count += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    settings: dict[str, Any] = {"max_pending": 1, "max_wait": 0, "observers": []}
    async with emitter_for(sandbox, on_undelivered=lambda error: turns.append(count), **settings) as emitter:
        for _ in range(50):
            await emitter.track(event())
        while len(turns) < 49:
            await asyncio.sleep(0)
    ticking.cancel()

    assert len(set(turns)) == 49


async def test_a_handler_inherits_no_callers_context(sandbox: Sandbox) -> None:
    """Its context is empty: neither that of whose event was the first to fail, nor the starter's."""
    variable = contextvars.ContextVar("variable", default="none")
    seen: list[str] = []

    async def track() -> None:
        variable.set("a request's")
        await emitter.track(event())
        await emitter.track(event())

    variable.set("the application's")
    settings: dict[str, Any] = {"max_pending": 1, "when_full": "drop", "observers": []}
    async with emitter_for(
        sandbox, on_undelivered=lambda error: seen.append(variable.get()), **settings
    ) as emitter:
        await asyncio.create_task(track())

    assert seen == ["none"]


async def test_the_close_waits_for_the_handler(sandbox: Sandbox) -> None:
    """As long as its deadline lets it."""
    handled: list[DeliveryError] = []

    async def handle(error: DeliveryError) -> None:
        await asyncio.sleep(3.0)
        handled.append(error)

    sandbox.fail_next(404)
    async with emitter_for(sandbox, on_undelivered=handle) as emitter:
        await emitter.track(event())

    assert len(handled) == 1


async def test_a_handler_that_hangs_does_not_hold_the_close(
    open_emitter: OpenEmitter, caplog: pytest.LogCaptureFixture
) -> None:
    """It has a second beyond the deadline; how many were not handled is logged."""
    loop = asyncio.get_running_loop()
    cancelled: list[DeliveryError] = []

    async def handle(error: DeliveryError) -> None:
        try:
            await loop.create_future()
        except asyncio.CancelledError:
            cancelled.append(error)
            raise

    async with Sandbox(faults={503: 1.0}) as sandbox:
        emitter = await open_emitter(sandbox, on_undelivered=handle)
        for _ in range(3):
            await emitter.track(event())
        began = loop.time()
        report = await emitter.aclose(0.5)

    assert 1.5 <= loop.time() - began < 1.7
    assert len(report.undelivered) == 3
    assert len(cancelled) == 1
    assert "closed with 3 undelivered events that on_undelivered has not handled" in caplog.text
    assert [task for task in asyncio.all_tasks() if "rokt" in task.get_name()] == []


async def test_a_close_in_a_hurry_waits_no_longer(open_emitter: OpenEmitter, sandbox: Sandbox) -> None:
    """The last caller is cancelled: the handler has its second, and no more."""
    loop = asyncio.get_running_loop()

    async def handle(error: DeliveryError) -> None:
        await loop.create_future()

    sandbox.fail_next(404)
    emitter = await open_emitter(sandbox, on_undelivered=handle)
    await emitter.track(event())
    await emitter.flush()
    closing = asyncio.create_task(emitter.aclose(60))
    await asyncio.sleep(0.1)
    began = loop.time()
    closing.cancel()
    await asyncio.wait([closing])

    assert closing.cancelled()
    assert loop.time() - began < 1.2


async def test_a_handler_whose_task_was_cancelled(sandbox: Sandbox) -> None:
    """By code that cancels all tasks: the error in hand is handed over again."""
    calls: list[DeliveryError] = []

    async def handle(error: DeliveryError) -> None:
        calls.append(error)
        await asyncio.sleep(0.2)

    sandbox.fail_next(404)
    async with emitter_for(sandbox, on_undelivered=handle) as emitter:
        await emitter.track(event())
        await emitter.flush()
        await asyncio.sleep(0.01)
        (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "rokt-events-undelivered"]
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0.5)  # It goes on by itself, though nothing else happens.

        assert len(calls) == 2
    assert len(calls) == 2
    assert calls[0] is calls[1]


async def test_nothing_of_a_cancelled_handler_is_left_after_a_close(
    open_emitter: OpenEmitter, sandbox: Sandbox
) -> None:
    """Not the timer by which it would go on, though the close has no grace."""
    loop: Any = asyncio.get_running_loop()

    async def handle(error: DeliveryError) -> None:
        await loop.create_future()

    sandbox.fail_next(404)
    emitter = await open_emitter(sandbox, on_undelivered=handle)
    await emitter.track(event())
    await emitter.flush()
    await asyncio.sleep(0.01)
    (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "rokt-events-undelivered"]
    task.cancel()
    await asyncio.wait([task])
    closing = asyncio.create_task(emitter.aclose(0))
    await asyncio.sleep(0.01)
    (drain,) = [task for task in asyncio.all_tasks() if task.get_name() == "rokt-events-drain"]
    drain.cancel()
    await closing

    assert [timer for timer in loop._scheduled if "_start" in repr(timer) and not timer.cancelled()] == []
    await asyncio.sleep(0.5)
    assert [task for task in asyncio.all_tasks() if "rokt" in task.get_name()] == []


async def test_a_handler_that_is_too_slow(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded: beyond that errors are counted, not kept."""
    monkeypatch.setattr("rokt_events_async._pipeline.dead_letters._MAX_BEHIND", 2)
    handled: list[DeliveryError] = []

    async def handle(error: DeliveryError) -> None:
        await asyncio.sleep(0.1)
        handled.append(error)

    async with emitter_for(
        sandbox, on_undelivered=handle, max_pending=1, when_full="drop", observers=[]
    ) as emitter:
        for _ in range(6):
            await emitter.track(event())

    assert len(handled) == 3
    assert caplog.text.count("on_undelivered is too slow: 3 errors wait for it") == 1
    assert "closed with 2 undelivered events that on_undelivered has not handled" in caplog.text


async def test_a_handler_that_was_left_with_its_loop() -> None:
    """Events that end when their loop is gone are told to observers, and start no task."""
    handled: list[DeliveryError] = []
    emitter = Emitter(CREDENTIALS, observers=[], on_undelivered=handled.append)
    assert emitter._dead_letters is not None
    loop = asyncio.new_event_loop()
    loop.close()
    emitter._dead_letters.bind(loop, None)  # type: ignore[arg-type]
    error = failed()
    emitter._hooks.undelivered(None, error)

    assert handled == []
    assert list(emitter._dead_letters._waiting) == [error]


def test_a_handler_that_cannot_be_called() -> None:
    """Refused at construction."""
    with pytest.raises(
        InvalidSettingError, match="on_undelivered must be callable with a DeliveryError, got 5"
    ):
        Emitter(CREDENTIALS, on_undelivered=5)  # type: ignore[arg-type]
