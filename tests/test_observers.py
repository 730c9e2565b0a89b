"""Observers: what they are told, that nothing they do reaches the emitter, and the one that logs."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import json
import logging
import pickle
from datetime import UTC, timedelta
from typing import Any

import pytest

from rokt_events_async import (
    Delivery,
    DeliveryError,
    DeliveryFailedError,
    DrainReport,
    Emitter,
    EventRejectedError,
    InvalidSettingError,
    LoggingObserver,
    Observer,
    Receipt,
    RequestReport,
    RetryPolicy,
    RetryReport,
)
from rokt_events_async._pipeline.hooks import Hooks
from rokt_events_async.errors import ApiError
from rokt_events_async.sandbox import Sandbox
from tests.samples import CREDENTIALS, Clock, event


def emitter_for(sandbox: Sandbox, **settings: Any) -> Emitter:
    return Emitter(sandbox.credentials, endpoint=sandbox.url, **settings)


class Diary(Observer):
    """Writes down all it is told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def of(self, what: str) -> list[Any]:
        return [told for name, told in self.told if name == what]

    def on_accepted(self, delivery: Delivery) -> None:
        self.told.append(("accepted", delivery))

    def on_request(self, request: RequestReport) -> None:
        self.told.append(("request", request))

    def on_retry(self, retry: RetryReport) -> None:
        self.told.append(("retry", retry))

    def on_delivered(self, delivery: Delivery, receipt: Receipt) -> None:
        self.told.append(("delivered", (delivery, receipt)))

    def on_undelivered(self, delivery: Delivery, error: DeliveryError) -> None:
        self.told.append(("undelivered", (delivery, error)))

    def on_closed(self, report: DrainReport) -> None:
        self.told.append(("closed", report))


# What they are told.


async def test_the_way_of_an_event(sandbox: Sandbox) -> None:
    """Accepted, asked for in vain, again, delivered, closed; in this order, each with its figures."""
    diary = Diary()
    sandbox.fail_next(503)
    async with emitter_for(sandbox, observers=[diary]) as emitter:
        delivery = await emitter.track(event())
        receipt = await delivery

    assert [name for name, _ in diary.told] == [
        "accepted",
        "request",
        "retry",
        "request",
        "delivered",
        "closed",
    ]
    assert diary.of("accepted") == [delivery]
    assert diary.of("delivered") == [(delivery, receipt)]
    first, second = diary.of("request")
    assert first.deliveries == second.deliveries == (delivery,)
    assert (first.status, first.attempt, first.problem) == (503, 1, None)
    assert (second.status, second.attempt, second.endpoint) == (200, 2, sandbox.url)
    assert first.size == len(sandbox.requests[0].body)
    assert first.started_at.tzinfo is UTC
    (retry,) = diary.of("retry")
    assert (retry.deliveries, retry.attempts, retry.status, retry.reason) == ((delivery,), 1, 503, "HTTP 503")
    assert 1 <= retry.wait <= 2
    assert diary.of("closed") == [DrainReport()]


async def test_a_request_takes_its_time() -> None:
    """From its beginning to its end, in seconds of the loop's clock; the emitter's own clock says when."""
    diary, clock = Diary(), Clock()
    async with Sandbox(latency=0.5, clock=clock) as sandbox:
        async with emitter_for(sandbox, observers=[diary], _clock=clock) as emitter:
            await emitter.deliver(event())

    (request,) = diary.of("request")
    assert 0.5 <= request.duration < 0.6
    assert clock() - request.started_at == timedelta(seconds=request.duration)


async def test_a_request_without_an_answer(sandbox: Sandbox) -> None:
    """Its problem stands where the status would."""
    diary = Diary()
    sandbox.fail_next("reset-after")
    async with emitter_for(sandbox, observers=[diary]) as emitter:
        await emitter.deliver(event())

    lost, good = diary.of("request")
    assert (lost.status, good.status) == (None, 200)
    assert "ServerDisconnectedError" in lost.problem or "reset" in lost.problem
    assert diary.of("retry")[0].reason == lost.problem


async def test_a_request_that_the_close_interrupts() -> None:
    """It is told of, and so is what becomes of its event."""
    diary = Diary()
    async with Sandbox(script=["silence"]) as sandbox:
        async with emitter_for(sandbox, observers=[diary], close_timeout=0.1, flush_interval=0) as emitter:
            delivery = await emitter.track(event())
            await asyncio.sleep(0.05)

    (request,) = diary.of("request")
    assert (request.status, request.problem) == (None, "interrupted")
    ((told, error),) = diary.of("undelivered")
    assert told is delivery
    assert error is delivery.exception()
    assert diary.of("closed")[0].unconfirmed == 1


async def test_a_207_tells_of_each_event(sandbox: Sandbox) -> None:
    """With the very receipts and errors that their callers get; a caller that has gone changes nothing."""
    diary = Diary()
    async with emitter_for(sandbox, observers=[diary]) as emitter:
        # The sandbox refuses a type that it does not know.
        with pytest.warns(UserWarning, match="event type"):
            bad = await emitter.track(event(event_type="SignalRefusedHere"))
        good, gone = await emitter.track(event()), await emitter.track(event())
        gone.cancel()
        await emitter.flush()

    assert [told for told, _ in diary.of("delivered")] == [good, gone]
    assert diary.of("delivered")[0][1] is good.result()
    assert diary.of("delivered")[1][1].outcome == "delivered"
    assert diary.of("undelivered") == [(bad, bad.exception())]


async def test_what_is_dropped_is_told(sandbox: Sandbox) -> None:
    """Accepted, and failed at once."""
    diary = Diary()
    async with emitter_for(sandbox, observers=[diary], max_pending=1, when_full="drop") as emitter:
        await emitter.track(event())
        dropped = await emitter.track(event())

    assert diary.of("accepted")[1] is dropped
    assert diary.of("undelivered") == [(dropped, dropped.exception())]


async def test_the_account_is_up_to_date_when_they_are_told(sandbox: Sandbox) -> None:
    """Whoever looks at `stats` from a hook finds what has happened."""
    seen: list[tuple[int, int]] = []

    class Looks(Observer):
        def on_accepted(self, delivery: Delivery) -> None:
            seen.append((emitter.stats.accepted, emitter.stats.pending))

        def on_delivered(self, delivery: Delivery, receipt: Receipt) -> None:
            seen.append((emitter.stats.delivered, emitter.stats.pending))

    async with emitter_for(sandbox, observers=[Looks()]) as emitter:
        await asyncio.gather(*[await emitter.track(event()) for _ in range(2)])

    assert seen == [(1, 1), (2, 2), (2, 0), (2, 0)]


async def test_so_it_is_with_what_is_dropped(sandbox: Sandbox) -> None:
    """It was never pending."""
    seen: list[tuple[int, int, int]] = []

    class Looks(Observer):
        def on_accepted(self, delivery: Delivery) -> None:
            seen.append((emitter.stats.accepted, emitter.stats.pending, emitter.stats.failed))

    async with emitter_for(sandbox, observers=[Looks()], max_pending=1, when_full="drop") as emitter:
        await emitter.track(event())
        await emitter.track(event())

    assert seen == [(1, 1, 0), (2, 1, 1)]


async def test_a_close_hands_over_all_that_it_ends() -> None:
    """However many events were pending."""
    handled: list[DeliveryError] = []
    async with Sandbox(faults={503: 1.0}) as sandbox:
        emitter = emitter_for(sandbox, max_pending=25_000, observers=[], on_undelivered=handled.append)
        await emitter.start()
        for number in range(25_000):
            emitter.track_nowait(event(f"s{number % 2000}"))
        report = await emitter.aclose(0)

    assert len(handled) == len(report.undelivered) == 25_000


async def test_an_observer_may_track(sandbox: Sandbox) -> None:
    """Say, to send again what failed, once."""

    class Again(Observer):
        def on_undelivered(self, delivery: Delivery, error: DeliveryError) -> None:
            if error.status == 404:
                emitter.track_nowait(delivery.event)

    sandbox.fail_next(404)
    async with emitter_for(sandbox, observers=[Again()]) as emitter:
        await emitter.track(event("again"))
        await emitter.flush()
        await emitter.flush()

        assert (emitter.stats.failed, emitter.stats.delivered) == (1, 1)


# What they do wrong.


class Raises(Observer):
    def on_accepted(self, delivery: Delivery) -> None:
        raise ValueError("an observer's own fault")

    def on_delivered(self, delivery: Delivery, receipt: Receipt) -> None:
        raise asyncio.CancelledError


async def test_what_an_observer_raises_is_logged_once(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """And everybody else is told all the same."""
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
async def test_a_test_that_fails_in_the_middle(handled: bool, caplog: pytest.LogCaptureFixture) -> None:
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
        emitter = emitter_for(sandbox, **settings)
        await emitter.start()
        for index in range(9):
            await emitter.track(event(f"s{index % 2}"))
        report = await emitter.aclose(0.1)

    assert len(report.undelivered) == len(calls) == 9
    assert emitter.stats.pending == 0
    assert caplog.text.count("which is logged once") == 1


@pytest.mark.parametrize("script", [[404], [401], ["reset-after", 422, 503]])
async def test_logging_that_raises(script: list[Any]) -> None:
    """A filter of the application's that is broken: every event has its outcome all the same."""

    class Broken(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise KeyError("redaction")

    logger, broken = logging.getLogger("rokt_events_async"), Broken()
    logger.addFilter(broken)
    try:
        async with Sandbox(script=script, faults={503: 1.0}) as sandbox:
            emitter = emitter_for(sandbox)
            await emitter.start()
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
    """Nobody would await it."""

    class Late(Observer):
        async def on_closed(self, report: DrainReport) -> None: ...  # type: ignore[override]

    with pytest.raises(InvalidSettingError, match=r"Late.on_closed must be a plain method, got a coroutine"):
        Emitter(CREDENTIALS, observers=[Late()])


class Narrow(Observer):
    def on_undelivered(self, error: DeliveryError) -> None: ...  # type: ignore[override]


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


def failed(error: type[DeliveryError] = DeliveryFailedError, **more: Any) -> DeliveryError:
    return error("made up", event=event(), attempts=2, status=503, reason="HTTP 503", **more)


def told(observer: LoggingObserver, error: DeliveryError) -> None:
    made: Any = asyncio.Future.__new__(Delivery)
    made.event = error.event
    observer.on_undelivered(made, error)


def test_a_record_has_the_reason_and_no_payload(caplog: pytest.LogCaptureFixture) -> None:
    """In words, and in fields for structured formatters; they are JSON."""
    error = failed(
        EventRejectedError,
        errors=(
            ApiError("BadGuid", "parent-7 of session is bad"),
            ApiError(None, "x"),
            ApiError("BadGuid", ""),
        ),
    )
    told(LoggingObserver(), error)

    (record,) = caplog.records
    assert (record.name, record.levelno) == ("rokt_events_async", logging.WARNING)
    assert record.getMessage() == "SignalViewed event rejected: HTTP 503 BadGuid (attempts: 2)"
    fields = {name: value for name, value in vars(record).items() if name.startswith("rokt_")}
    assert fields == {
        "rokt_outcome": "rejected",
        "rokt_reason": "HTTP 503",
        "rokt_event_type": "SignalViewed",
        "rokt_attempts": 2,
        "rokt_status": 503,
        "rokt_error_codes": ("BadGuid",),
        "rokt_suppressed": 0,
    }
    assert "parent-" not in json.dumps(fields)


def test_what_others_wrote_is_short_and_on_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """Event types come from the application, codes from the server."""
    codes = [f"Code{number}\nERROR root: forged" + "x" * 100 for number in range(9)]
    with pytest.warns(UserWarning, match="event type"):
        forged = event(event_type="Signal\nERROR root: forged" + "x" * 100)
    error = EventRejectedError(
        "made up", event=forged, errors=tuple(ApiError(code, "") for code in codes), reason="HTTP 207"
    )
    told(LoggingObserver(), error)

    (record,) = caplog.records
    assert "\n" not in record.getMessage()
    assert record.getMessage().startswith("Signal\\nERROR root: forgedxxx")
    assert len(vars(record)["rokt_error_codes"]) == 5
    assert all(len(code) <= 70 for code in vars(record)["rokt_error_codes"])


def test_a_flood_is_held_back(caplog: pytest.LogCaptureFixture) -> None:
    """So many of an outcome in a time; the next record, or the close, tells how many were left out."""
    now = 0.0
    observer = LoggingObserver(max_records=2, per=10.0, _clock=lambda: now)
    for _ in range(5):
        told(observer, failed())
    told(observer, failed(EventRejectedError))
    assert [vars(record)["rokt_suppressed"] for record in caplog.records] == [0, 0, 0]

    now = 10.0
    told(observer, failed())
    assert vars(caplog.records[-1])["rokt_suppressed"] == 3
    assert caplog.records[-1].getMessage().endswith("(attempts: 2) (3 more failed before it, not logged)")

    for _ in range(4):
        told(observer, failed())
    observer.on_closed(DrainReport())
    assert caplog.records[-1].getMessage() == "3 more events failed, not logged one by one"
    observer.on_closed(DrainReport())
    assert len(caplog.records) == 6


def retried(observer: LoggingObserver, attempts: int) -> None:
    made: Any = asyncio.Future.__new__(Delivery)
    observer.on_retry(RetryReport((made, made), attempts, 503, "HTTP 503", 1.5))


def test_an_outage_is_told_while_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    """Not what the first or the second retry mends; and once in so many seconds, however many are retried."""
    now = 0.0
    observer = LoggingObserver(per=10.0, _clock=lambda: now)
    retried(observer, 1)
    retried(observer, 2)
    assert caplog.records == []

    for _ in range(5):
        retried(observer, 3)
    now = 10.0
    retried(observer, 8)
    assert [record.getMessage() for record in caplog.records] == [
        "2 events not delivered so far: HTTP 503 (attempts: 3), and again in 1.5 s",
        "2 events not delivered so far: HTTP 503 (attempts: 8), and again in 1.5 s",
    ]
    fields = {name: value for name, value in vars(caplog.records[0]).items() if name.startswith("rokt_")}
    assert fields == {"rokt_reason": "HTTP 503", "rokt_attempts": 3, "rokt_status": 503}


async def test_an_outage_that_ends(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """A line while it lasts, none for what was delivered in the end."""
    sandbox.fail_next(*[503] * 4)
    async with emitter_for(sandbox) as emitter:
        assert (await emitter.deliver(event())).attempts == 5

    records = [one.getMessage() for one in caplog.records if one.name == "rokt_events_async"]
    assert len(records) == 1
    assert records[0].startswith("1 events not delivered so far: HTTP 503 (attempts: 3), and again in ")


def test_its_own_logger_and_level(caplog: pytest.LogCaptureFixture) -> None:
    """As the application likes it."""
    told(LoggingObserver(logging.getLogger("shop.rokt"), level=logging.ERROR), failed())

    assert [(record.name, record.levelno) for record in caplog.records] == [("shop.rokt", logging.ERROR)]


@pytest.mark.parametrize("settings", [{"max_records": 0}, {"per": 0}, {"per": float("nan")}])
def test_bounds_out_of_bounds(settings: Any) -> None:
    """Refused, with name and value."""
    with pytest.raises(InvalidSettingError, match=next(iter(settings))):
        LoggingObserver(**settings)


async def test_it_is_on_by_default(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """And `observers=[]` is silence."""
    for settings, expected in (({}, 1), ({"observers": []}, 0), ({"observers": None}, 1)):
        caplog.clear()
        sandbox.fail_next(404)
        async with emitter_for(sandbox, **settings) as emitter:
            with pytest.raises(DeliveryFailedError):
                await emitter.deliver(event())
        assert len([one for one in caplog.records if one.name == "rokt_events_async"]) == expected


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ([404], "HTTP 404, is the endpoint right? It is {url}"),
        (["silence"], "no answer within 0.2 s, 1 failed attempt"),
        ([503], "HTTP 503, 1 failed attempt"),
        ([401], "HTTP 401: Rokt refused the credentials of pub_id 'rpub-sandbox' with tag_id '1234567890'"),
    ],
)
async def test_an_error_tells_its_reason(script: list[Any], reason: str) -> None:
    """In the library's own words, which the log repeats."""
    settings: dict[str, Any] = {"request_timeout": 0.2, "retry": RetryPolicy(max_attempts=1)}
    async with Sandbox(script=script) as sandbox, emitter_for(sandbox, **settings) as emitter:
        with pytest.raises(DeliveryError) as caught:
            await emitter.deliver(event())

    reason = reason.replace("{url}", sandbox.url)
    assert caught.value.reason == reason
    assert reason in str(caught.value)


# What becomes of failures.


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
    settings: dict[str, Any] = {"max_pending": 1, "when_full": "drop", "observers": []}
    async with emitter_for(sandbox, on_undelivered=lambda error: turns.append(count), **settings) as emitter:
        for _ in range(50):
            await emitter.track(event())
        while len(turns) < 49:
            await asyncio.sleep(0)
    ticking.cancel()

    assert len(set(turns)) == 49


async def test_a_handler_inherits_no_callers_context(sandbox: Sandbox) -> None:
    """It has that in which the emitter was started, not that of whose event was the first to fail."""
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

    assert seen == ["the application's"]


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


async def test_a_handler_that_hangs_does_not_hold_the_close(caplog: pytest.LogCaptureFixture) -> None:
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
        emitter = emitter_for(sandbox, on_undelivered=handle)
        await emitter.start()
        for _ in range(3):
            await emitter.track(event())
        began = loop.time()
        report = await emitter.aclose(0.5)

    assert 1.5 <= loop.time() - began < 1.7
    assert len(report.undelivered) == 3
    assert len(cancelled) == 1
    assert "closed with 3 undelivered events that on_undelivered has not handled" in caplog.text
    assert [task for task in asyncio.all_tasks() if "rokt" in task.get_name()] == []


async def test_a_close_in_a_hurry_waits_no_longer(sandbox: Sandbox) -> None:
    """The last caller is cancelled: the handler has its second, and no more."""
    loop = asyncio.get_running_loop()

    async def handle(error: DeliveryError) -> None:
        await loop.create_future()

    sandbox.fail_next(404)
    emitter = emitter_for(sandbox, on_undelivered=handle)
    await emitter.start()
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
    """By somebody who cancels all tasks: what it had in hand is handed over again."""
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


async def test_nothing_of_a_cancelled_handler_is_left_after_a_close(sandbox: Sandbox) -> None:
    """Not the timer by which it would go on, though the close is in a hurry."""
    loop: Any = asyncio.get_running_loop()

    async def handle(error: DeliveryError) -> None:
        await loop.create_future()

    sandbox.fail_next(404)
    emitter = emitter_for(sandbox, on_undelivered=handle)
    await emitter.start()
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


def test_errors_are_kept_whole_in_a_pickle() -> None:
    """With their reason."""
    again = pickle.loads(pickle.dumps(failed()))
    assert (again.reason, again.status) == ("HTTP 503", 503)
    assert again.event.session_id == "session"
