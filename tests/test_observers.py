"""Observers: what they are told, that nothing they do reaches the emitter, and the one that logs."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import pickle
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest

from rokt_events_async import (
    Delivery,
    DeliveryError,
    DeliveryFailedError,
    DrainReport,
    Emitter,
    EmitterStats,
    EventRejectedError,
    Health,
    InvalidSettingError,
    LoggingObserver,
    Observer,
    Receipt,
    RetryPolicy,
    RetryReport,
)
from rokt_events_async.errors import ApiError
from rokt_events_async.outcomes import DeadLetter, HealthState
from rokt_events_async.sandbox import Sandbox
from tests.diary import Diary
from tests.samples import CREDENTIALS, NOW, Clock, OpenEmitter, emitter_for, event


def failed(error: type[DeliveryError] = DeliveryFailedError, **more: Any) -> DeliveryError:
    return error("made up", event=event(), attempts=2, status=503, reason="HTTP 503", **more)


def told(observer: LoggingObserver, error: DeliveryError) -> None:
    made: Any = asyncio.Future.__new__(Delivery)
    made.event = error.event
    observer.on_undelivered(made, error)


def retried(observer: LoggingObserver, attempts: int) -> None:
    made: Any = asyncio.Future.__new__(Delivery)
    observer.on_retry(RetryReport((made, made), attempts, 503, "HTTP 503", 1.5, pending=7, sessions=2))


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
    """A hook that reads `stats` finds what has happened."""
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


async def test_a_close_hands_over_all_that_it_ends(open_emitter: OpenEmitter) -> None:
    """However many events were pending."""
    handled: list[DeliveryError] = []
    async with Sandbox(faults={503: 1.0}) as sandbox:
        emitter = await open_emitter(sandbox, max_pending=25_000, observers=[], on_undelivered=handled.append)
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
        f"2 events not delivered so far: HTTP 503 (attempts: {attempts}), next attempt in 1.5 s; "
        "7 events of 2 sessions pending"
        for attempts in (3, 8)
    ]
    fields = {name: value for name, value in vars(caplog.records[0]).items() if name.startswith("rokt_")}
    assert fields == {"rokt_reason": "HTTP 503", "rokt_attempts": 3, "rokt_status": 503, "rokt_pending": 7}


async def test_an_outage_that_ends(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """A line while it lasts, none for what was delivered in the end."""
    sandbox.fail_next(*[503] * 4)
    async with emitter_for(sandbox) as emitter:
        assert (await emitter.deliver(event())).attempts == 5

    records = [one.getMessage() for one in caplog.records if one.name == "rokt_events_async"]
    assert len(records) == 1
    assert records[0].startswith("1 event not delivered so far: HTTP 503 (attempts: 3), next attempt in ")


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
        (["silence"], "no answer within 0.2 s, 1 attempt"),
        ([503], "HTTP 503, 1 attempt"),
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


def test_errors_are_kept_whole_in_a_pickle() -> None:
    """With their reason."""
    again = pickle.loads(pickle.dumps(failed()))
    assert (again.reason, again.status) == ("HTTP 503", 503)
    assert again.event.session_id == "session"


def health(state: HealthState, at: datetime, **counts: Any) -> Health:
    pending = counts.pop("pending", 0)
    return Health(state=state, since=at, pending=pending, stats=EmitterStats(**counts))


def test_an_outage_is_told_as_what_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """Since when, how many events of how many sessions wait, what the server says; and its end."""
    now = 0.0
    observer = LoggingObserver(per=10.0, _clock=lambda: now)
    at = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
    outage = health("outage", at, delivered=5, failed=1)
    observer.on_health(health("retrying", at), outage)
    retried(observer, 1)
    now = 9.0
    retried(observer, 2)
    now = 11.0
    retried(observer, 3)
    ended = health("retrying", at + timedelta(seconds=42), delivered=5, failed=4, unconfirmed=2, pending=9)
    observer.on_health(outage, ended)

    line = "outage since 12:00:00 UTC: 7 events of 2 sessions wait; the last attempt ended with: HTTP 503"
    end = "the outage since 12:00:00 UTC ended after 42 s: 3 failed, 2 unconfirmed meanwhile, 9 events "
    assert [record.getMessage() for record in caplog.records] == [
        line,
        line,
        f"{end}pending",
    ]


def test_a_close_ends_no_outage(caplog: pytest.LogCaptureFixture) -> None:
    """Rokt is as absent as before; and a problem that comes and goes meanwhile repeats nothing."""
    observer = LoggingObserver(per=10.0, _clock=lambda: 0.0)
    at = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
    outage = health("outage", at)
    full = attrs.evolve(outage, problems=("journal_failed",))
    observer.on_health(health("retrying", at), outage)
    retried(observer, 1)
    for _ in range(3):
        observer.on_health(outage, full)
        observer.on_health(full, outage)
        retried(observer, 1)
    observer.on_health(outage, health("closing", at))
    observer.on_health(health("closing", at), health("closed", at))

    told = [record.getMessage() for record in caplog.records]
    assert [line.split(":")[0] for line in told] == ["outage since 12", "the journal can be written again"]


def test_an_observer_of_two_emitters(caplog: pytest.LogCaptureFixture) -> None:
    """The outage of one does not end with what happens to the other, nor goes on after its close."""
    observer = LoggingObserver(per=10.0, _clock=lambda: 0.0)
    at = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
    observer.on_health(health("ok", at), health("outage", at))
    observer.on_health(health("ok", at), health("retrying", at))
    observer.on_health(health("retrying", at), health("ok", at))
    assert caplog.records == []
    observer.on_health(health("outage", at), health("closing", at))
    observer.on_health(health("ok", at), health("retrying", at))
    assert caplog.records == []


@pytest.mark.parametrize("level", ["loud", "WARNING", None, True])
def test_a_level_is_a_number(level: Any) -> None:
    """It is refused where it is written, not at the first record."""
    with pytest.raises(InvalidSettingError, match=r"level must be a number, as in logging\.WARNING, got"):
        LoggingObserver(level=level)


def test_an_outage_without_losses_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing was given up."""
    observer = LoggingObserver()
    at = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
    outage = health("outage", at)
    observer.on_health(health("retrying", at), outage)
    observer.on_health(outage, health("ok", at, pending=1))

    assert (
        caplog.records[-1].getMessage().endswith("ended after 0 s: none given up meanwhile, 1 event pending")
    )


@pytest.mark.parametrize(
    ("age", "shown"),
    [
        (timedelta(seconds=-5), "0 seconds"),
        (timedelta(seconds=1.5), "1 second"),
        (timedelta(minutes=4, seconds=30), "4 minutes"),
        (timedelta(hours=5), "5 hours"),
        (timedelta(days=1, hours=9), "1 day"),
    ],
)
def test_files_that_were_adopted_are_told_of(
    age: timedelta, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With how many events they hold, and how old the oldest is."""
    LoggingObserver().on_recovered(312, datetime.now(UTC) - age)
    assert caplog.messages == [f"adopted 1 file of the journal, 312 events, the oldest {shown} old"]


async def test_an_outage_tells_what_is_in_the_journal(caplog: pytest.LogCaptureFixture) -> None:
    """How many events, and how old the oldest is."""
    clock = [1000.0]
    observer = LoggingObserver(_clock=lambda: clock[0])
    observer.on_health(health("ok", NOW), health("outage", NOW))
    one = Delivery()
    for _ in range(1200):
        observer.on_deferred(one)
    clock[0] += 300
    observer.on_retry(RetryReport((one,), 3, 503, "HTTP 503", 1.0, pending=10, sessions=2))
    assert caplog.messages[-1].startswith(
        "outage since 12:00:00 UTC: 10 events of 2 sessions wait, "
        "and 1,200 events in the journal, the oldest 5 minutes old; the last attempt"
    )
    observer.on_returned(1000, 200, datetime.now(UTC) - timedelta(hours=1))
    clock[0] += 10
    observer.on_retry(RetryReport((one,), 3, 503, "HTTP 503", 1.0, pending=10, sessions=2))
    assert "and 200 events in the journal, the oldest 1 hour old" in caplog.messages[-1]


def test_a_deferral_without_returns_ends_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    """What is left stays for the next process, and the close tells of it."""
    before, after = Health(state="closing", problems=("deferring",)), Health(state="closed")
    observer = LoggingObserver()
    observer.on_health(before, after)
    assert caplog.messages == []
    observer.on_health(Health(state="ok"), before)
    observer.on_health(before, after)
    (message,) = caplog.messages
    assert message.startswith("memory has room for no more events")


def test_a_misspelt_method_is_refused() -> None:
    """Nothing would ever call it."""

    class Misspelt(Observer):
        def on_delivery(self, delivery: Delivery, receipt: Receipt) -> None:
            """Never called."""

    class Strange(Observer):
        def on_the_moon(self) -> None:
            """Never called."""

    with pytest.raises(
        InvalidSettingError, match=r"Misspelt.on_delivery is no method .*did you mean on_delivered"
    ):
        Emitter(CREDENTIALS, observers=[Misspelt()])
    with pytest.raises(
        InvalidSettingError, match=r"Strange.on_the_moon is no method of an Observer; there are"
    ):
        Emitter(CREDENTIALS, observers=[Strange()])


async def test_no_observers_no_log(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """`observers=[]` is silent, at the close too."""
    sandbox.fail_next(404)
    async with emitter_for(sandbox, observers=[], close_timeout=0) as emitter:
        await emitter.track(event())

    assert emitter.stats.failed == 1
    assert [record for record in caplog.records if record.name == "rokt_events_async"] == []


async def test_a_close_from_on_closed(sandbox: Sandbox) -> None:
    """It has the report already, also where tasks are eager."""
    reports: list[DrainReport] = []

    class Closes(Observer):
        def on_closed(self, report: DrainReport) -> None:
            closing = emitter.aclose()
            try:
                closing.send(None)
            except StopIteration as done:
                reports.append(done.value)

    async with emitter_for(sandbox, observers=[Closes()]) as emitter:
        await emitter.track(event())

    assert reports == [DrainReport(delivered=1)]


async def test_only_on_accepted_sees_the_callers_context(sandbox: Sandbox) -> None:
    """Everything else belongs to no request, whatever started the emitter, or overflowed its queue."""
    variable = contextvars.ContextVar("variable", default="none")
    seen: list[tuple[str, str]] = []

    class Looks(Observer):
        def on_accepted(self, delivery: Delivery) -> None:
            seen.append(("accepted", variable.get()))

        def on_undelivered(self, delivery: Delivery, error: DeliveryError) -> None:
            seen.append(("undelivered", variable.get()))

        def on_delivered(self, delivery: Delivery, receipt: Receipt) -> None:
            seen.append(("delivered", variable.get()))

        def on_closed(self, report: DrainReport) -> None:
            seen.append(("closed", variable.get()))

    variable.set("a request's")
    async with emitter_for(sandbox, observers=[Looks()], max_pending=1) as emitter:
        await emitter.track(event())
        emitter.track_nowait(event())

    assert seen == [
        ("accepted", "a request's"),
        ("accepted", "a request's"),
        ("undelivered", "none"),
        ("delivered", "none"),
        ("closed", "none"),
    ]


def test_dead_letters_are_logged_within_bounds(caplog: pytest.LogCaptureFixture) -> None:
    """Those of which the emitter has not told; the reason on one line."""
    observer = LoggingObserver(max_records=2)
    for attempts in (0, 0, 0, 3):
        observer.on_dead_letter(
            DeadLetter(
                fields=(),
                partition=0,
                outcome="unreadable",
                reason="line\nbreak",
                attempts=attempts,
                at=datetime.now(UTC),
            )
        )

    assert caplog.text.count("an entry became a dead letter, unreadable: line\\nbreak") == 2
