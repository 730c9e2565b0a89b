"""Hooks: which observers are accepted, and nothing that they raise reaches the emitter."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from rokt_events_async import (
    Delivery,
    DeliveryError,
    DeliveryFailedError,
    DrainReport,
    Emitter,
    InvalidSettingError,
    LoggingObserver,
    Observer,
    Receipt,
)
from rokt_events_async._tracking.hooks import Hooks
from rokt_events_async.sandbox import Sandbox
from tests.diary import Diary
from tests.samples import CREDENTIALS, OpenEmitter, emitter_for, event


class Raises(Observer):
    def on_accepted(self, delivery: Delivery) -> None:
        raise ValueError("an observer's own fault")

    def on_delivered(self, delivery: Delivery, receipt: Receipt) -> None:
        raise asyncio.CancelledError


class Narrow(Observer):
    def on_undelivered(self, error: DeliveryError) -> None: ...  # type: ignore[override]


def failed(error: type[DeliveryError] = DeliveryFailedError, **more: Any) -> DeliveryError:
    return error("made up", event=event(), attempts=2, status=503, reason="HTTP 503", **more)


def told(observer: LoggingObserver, error: DeliveryError) -> None:
    made: Any = asyncio.Future.__new__(Delivery)
    made.event = error.event
    observer.on_undelivered(made, error)


async def test_what_an_observer_raises_is_logged_once(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """All other observers are told all the same."""
    diary = Diary()
    async with emitter_for(sandbox, observers=[Raises(), diary, Raises()]) as emitter:
        receipts = await asyncio.gather(*[await emitter.track(event()) for _ in range(3)])

    assert len(receipts) == len(diary.of("delivered")) == 3
    records = [record for record in caplog.records if record.name == "rokt_events_async"]
    assert len(records) == 2  # One for each of them.
    assert records[0].levelno == logging.ERROR
    assert "Raises.on_accepted raised, which is logged once" in records[0].getMessage()
    assert "ValueError: an observer's own fault" in records[0].getMessage()


@pytest.mark.parametrize("leaving", [SystemExit, KeyboardInterrupt])
def test_what_leaves_the_program_leaves_it(leaving: type[BaseException]) -> None:
    """An observer that exits is obeyed, when the account is in order: everything accepted has its outcome."""
    kept: list[Emitter] = []

    class Exits(Observer):
        def on_undelivered(self, delivery: Delivery, error: DeliveryError) -> None:
            raise leaving

    async def live() -> None:
        async with (
            Sandbox(faults={404: 1.0}) as sandbox,
            emitter_for(sandbox, observers=[Exits()]) as emitter,
        ):
            kept.append(emitter)
            for index in range(10):
                await emitter.track(event(f"s{index % 3}"))
            await asyncio.sleep(20)

    with pytest.raises(leaving):
        asyncio.run(live())
    assert (kept[0].stats.accepted, kept[0].stats.pending) == (10, 0)
    assert "closed" in repr(kept[0])


@pytest.mark.parametrize("handled", [False, True])
async def test_a_test_that_fails_in_the_middle(
    open_emitter: OpenEmitter, handled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """`pytest.fail`, or whatever is no `Exception`: logged once, everything settled, and closed in time."""

    def fail(error: DeliveryError) -> None:
        calls.append(error)
        pytest.fail("planned")

    class Fails(Observer):
        def on_undelivered(self, delivery: Delivery, error: DeliveryError) -> None:
            fail(error)

    calls: list[DeliveryError] = []
    async with Sandbox(faults={503: 1.0}) as sandbox:
        settings: dict[str, Any] = (
            {"observers": [], "on_undelivered": fail} if handled else {"observers": [Fails()]}
        )
        emitter = await open_emitter(sandbox, **settings)
        for index in range(9):
            await emitter.track(event(f"s{index % 2}"))
        report = await emitter.aclose(0.1)

    assert len(report.undelivered) == len(calls) == 9
    assert emitter.stats.pending == 0
    assert caplog.text.count("which is logged once") == 1


@pytest.mark.parametrize("script", [[404], [401], ["reset-after", 422, 503]])
async def test_logging_that_raises(open_emitter: OpenEmitter, script: list[Any]) -> None:
    """A filter of the application's that is broken: every event has its outcome all the same."""

    class Broken(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise KeyError("redaction")

    logger, broken = logging.getLogger("rokt_events_async"), Broken()
    logger.addFilter(broken)
    try:
        async with Sandbox(script=script, faults={503: 1.0}) as sandbox:
            emitter = await open_emitter(sandbox)
            for index in range(6):
                await emitter.track(event(f"s{index % 2}"))
            await emitter.aclose(0.5)
    finally:
        logger.removeFilter(broken)

    assert (emitter.stats.accepted, emitter.stats.pending) == (6, 0)
    assert emitter.stats.unconfirmed + emitter.stats.failed + emitter.stats.rejected == 6


@pytest.mark.parametrize(
    ("observers", "message"),
    [
        ("logging", "must be a list of Observer objects, got 'logging'"),
        (5, "must be a list of Observer objects, got 5"),
        ([print], "got a builtin_function_or_method in it"),
        ([Diary], r"got <class '.*Diary'> in it"),
    ],
)
def test_what_is_no_observer(observers: Any, message: str) -> None:
    """Refused at construction."""
    with pytest.raises(InvalidSettingError, match=message):
        Emitter(CREDENTIALS, observers=observers)


def test_a_coroutine_is_no_hook() -> None:
    """No code would await it."""

    class Late(Observer):
        async def on_closed(self, report: DrainReport) -> None: ...  # type: ignore[override]

    with pytest.raises(InvalidSettingError, match=r"Late.on_closed must be a plain method, got a coroutine"):
        Emitter(CREDENTIALS, observers=[Late()])


def test_hooks_that_take_something_else() -> None:
    """Found at construction, not with the first failure in production."""
    with pytest.raises(
        InvalidSettingError,
        match=r"Narrow\.on_undelivered must take \(delivery, error\), got one that takes \(error\)",
    ):
        Emitter(CREDENTIALS, observers=[Narrow()])
    with pytest.raises(
        InvalidSettingError, match=r"on_undelivered must take \(error\), got one that takes \(\)"
    ):
        Emitter(CREDENTIALS, on_undelivered=lambda: None)  # type: ignore[arg-type, misc]
    Emitter(CREDENTIALS, on_undelivered=type)  # type: ignore[arg-type]  # Of which nothing can be told.


def test_only_who_overrides_is_asked() -> None:
    """So that the default costs an event that is delivered nothing."""
    observers = Hooks([LoggingObserver()])

    assert (observers.accepted, observers.request, observers.delivered) == ((), (), ())
    assert len(observers.retry) == len(observers.undelivered) == len(observers.closed) == 1


# Logging.
