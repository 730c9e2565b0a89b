"""Metrics and spans, as the real SDK's in-memory exporters receive them."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Metric
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, Tracer

from rokt_events_async import (
    PRODUCTION,
    DeliveryError,
    Emitter,
    EventRejectedError,
    Health,
    Observer,
    QueueFullError,
    Receipt,
    RetryPolicy,
)
from rokt_events_async.errors import ApiError
from rokt_events_async.integrations.opentelemetry import OpenTelemetryObserver
from rokt_events_async.relay import Publisher, Relay
from rokt_events_async.relay.memory import MemoryQueue
from rokt_events_async.sandbox import Sandbox
from tests.samples import delivery, event, unchecked


class Backend:
    """Where telemetry goes."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self._exporter = InMemorySpanExporter()
        self._meters = MeterProvider([self._reader])
        self._tracers = TracerProvider()
        self._tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.observer = OpenTelemetryObserver(meter_provider=self._meters, tracer_provider=self._tracers)

    def tracer(self) -> Tracer:
        return self._tracers.get_tracer("shop")

    def points(self, name: str) -> list[Any]:
        return [
            point for metric in self.metrics() if metric.name == name for point in metric.data.data_points
        ]

    def values(self, name: str, key: str) -> dict[Any, Any]:
        """The values of a counter, by one of its attributes."""
        return {dict(point.attributes).get(key): point.value for point in self.points(name)}

    def metrics(self) -> Iterator[Metric]:
        data = self._reader.get_metrics_data()
        assert data is not None
        for resource in data.resource_metrics:
            for scope in resource.scope_metrics:
                yield from scope.metrics

    def units(self) -> dict[str, str]:
        return {metric.name: metric.unit or "" for metric in self.metrics()}

    def kinds(self) -> dict[str, str]:
        return {
            metric.name: ("monotonic " if getattr(metric.data, "is_monotonic", False) else "")
            + type(metric.data).__name__
            for metric in self.metrics()
        }

    def spans(self) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == "send server_events"]

    def shutdown(self) -> None:
        self._meters.shutdown()
        self._tracers.shutdown()


@pytest.fixture
def backend() -> Any:
    made = Backend()
    yield made
    made.shutdown()


def emitter_for(sandbox: Sandbox, backend: Backend, **settings: Any) -> Emitter:
    return Emitter(sandbox.credentials, endpoint=sandbox.url, observers=[backend.observer], **settings)


# Metrics.


async def test_what_is_counted(sandbox: Sandbox, backend: Backend) -> None:
    """Events sent, outcomes by kind and code, durations, fill, retries."""
    sandbox.fail_next(503, "reset-after")
    async with emitter_for(sandbox, backend) as emitter:
        with pytest.warns(UserWarning, match="event type"):
            await emitter.track(event(event_type="SignalUnheardOf"))
        for _ in range(9):
            await emitter.track(event())
        await emitter.flush()

    sent = backend.values("messaging.client.sent.messages", "error.type")
    assert sent == {"503": 10, "no_answer": 10, None: 10}
    assert backend.values("rokt.client.retries", "error.type") == {"503": 1, "no_answer": 1}
    assert backend.values("rokt.client.outcomes", "rokt.outcome") == {"delivered": 9, "rejected": 1}
    assert "InvalidEventType" in backend.values("rokt.client.outcomes", "error.type")
    durations = {
        dict(point.attributes).get("error.type"): point
        for point in backend.points("messaging.client.operation.duration")
    }
    assert {key: point.count for key, point in durations.items()} == {"503": 1, "no_answer": 1, None: 1}
    assert durations[None].explicit_bounds[:3] == (0.005, 0.01, 0.025)
    (fill,) = backend.points("rokt.client.batch.size")
    assert (fill.count, fill.sum, fill.max) == (3, 30, 10)
    assert fill.explicit_bounds == (1, 2, 3, 5, 10, 15, 20, 25)
    assert backend.units()["rokt.client.retries"] == "{request}"


async def test_names_units_and_attributes(sandbox: Sandbox, backend: Backend) -> None:
    """The semantic conventions for messaging clients."""
    async with emitter_for(sandbox, backend) as emitter:
        await emitter.deliver(event())

    assert backend.units() == {
        "messaging.client.sent.messages": "{message}",
        "messaging.client.operation.duration": "s",
        "rokt.client.batch.size": "{event}",
        "rokt.client.outcomes": "{event}",
        "rokt.client.pending": "{event}",
        "rokt.client.breaker.open": "{emitter}",
        "rokt.client.credentials_refused": "{emitter}",
        "rokt.client.outage": "{emitter}",
        "rokt.client.journal.backlog": "{event}",
        "rokt.client.journal.deferred.age": "s",
        "rokt.client.journal.failing": "{emitter}",
        "rokt.client.oldest_pending.age": "s",
    }
    assert backend.kinds() == {
        "messaging.client.sent.messages": "monotonic Sum",
        "messaging.client.operation.duration": "Histogram",
        "rokt.client.batch.size": "Histogram",
        "rokt.client.outcomes": "monotonic Sum",
        "rokt.client.pending": "Sum",
        "rokt.client.breaker.open": "Sum",
        "rokt.client.credentials_refused": "Sum",
        "rokt.client.outage": "Sum",
        "rokt.client.journal.backlog": "Sum",
        "rokt.client.journal.deferred.age": "Gauge",
        "rokt.client.journal.failing": "Sum",
        "rokt.client.oldest_pending.age": "Gauge",
    }
    assert backend.observer._server(PRODUCTION)["server.port"] == 443
    (point,) = backend.points("messaging.client.sent.messages")
    assert dict(point.attributes) == {
        "messaging.system": "rokt",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "server_events",
        "server.address": "127.0.0.1",
        "server.port": int(sandbox.url.split(":")[2].split("/")[0]),
    }


async def test_what_is_pending(sandbox: Sandbox, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many events, and for how long the oldest; nothing is kept of those that are settled."""
    now = 100.0
    monkeypatch.setattr("rokt_events_async.integrations._measures.time.monotonic", lambda: now)
    async with emitter_for(sandbox, backend, max_pending=2, when_full="drop") as emitter:
        await emitter.track(event())
        now = 107.0
        for _ in range(5):
            await emitter.track(event())
        now = 110.0
        assert [point.value for point in backend.points("rokt.client.pending")] == [2]
        assert [point.value for point in backend.points("rokt.client.oldest_pending.age")] == [10.0]
        await emitter.flush()

    assert [point.value for point in backend.points("rokt.client.pending")] == [0]
    assert [point.value for point in backend.points("rokt.client.oldest_pending.age")] == [0.0]
    assert backend.observer._pending._events == {}


def test_the_oldest_is_told_while_others_come_and_go(backend: Backend) -> None:
    """The exporter asks from a thread of its own; what changes in that very moment is looked at again."""

    class Changes(dict[Any, Any]):
        moments = 2

        def values(self) -> Any:
            seen = iter(super().values())
            if self.moments:
                self.moments -= 1
                self[self.moments] = None
            return seen

    loop = asyncio.new_event_loop()
    backend.observer.on_accepted(delivery(loop=loop))
    loop.close()
    events = backend.observer._pending._events = Changes(backend.observer._pending._events)

    assert backend.observer._pending.oldest_age() > 0
    assert events.moments == 0


async def test_why_an_event_was_not_delivered(backend: Backend) -> None:
    """The status, that there was no answer, that it was never sent, or that its answer did not tell."""
    async with Sandbox(script=[404, "html"]) as sandbox:
        settings: dict[str, Any] = {"max_pending": 1, "max_wait": 0, "flush_interval": 0}
        async with emitter_for(sandbox, backend, **settings) as emitter:
            for _ in range(2):
                delivery = await emitter.track(event())
                await emitter.track(event())  # One too many.
                with pytest.raises(DeliveryError):
                    await delivery

    assert backend.values("rokt.client.outcomes", "error.type") == {
        "status": 1,
        "unreadable": 1,
        "queue_full": 2,
    }


def test_a_server_cannot_flood_the_backend_with_codes(backend: Backend) -> None:
    """Beyond fifty codes they are all called other."""
    loop = asyncio.new_event_loop()
    for number in (*range(60), 0):
        one = delivery(loop=loop)
        error = EventRejectedError("x", event=one.event, errors=(ApiError(f"Code{number}", ""),))
        backend.observer.on_undelivered(one, error)
    loop.close()

    counts = backend.values("rokt.client.outcomes", "error.type")
    assert len(counts) == 51
    assert (counts["Code0"], counts["Code1"], counts["_OTHER"]) == (2, 1, 10)


# Spans.


async def test_a_request_is_a_span_linked_to_its_calls(sandbox: Sandbox, backend: Backend) -> None:
    """One link for each span in which its events were tracked, none for events outside of any."""
    contexts = []
    emitter = emitter_for(sandbox, backend)
    with backend.tracer().start_as_current_span("the application begins"):
        await emitter.start()
    async with emitter:
        for count in (2, 1):
            with backend.tracer().start_as_current_span("checkout") as checkout:
                contexts.append(checkout.get_span_context())
                for _ in range(count):
                    await emitter.track(event())
        await emitter.track(event())
        with backend.tracer().start_as_current_span("by chance the flush happens here"):
            await emitter.flush()

    (span,) = backend.spans()
    assert [link.context for link in span.links] == contexts
    assert span.parent is None
    assert span.kind is SpanKind.CLIENT
    assert span.status.status_code is StatusCode.UNSET
    assert span.attributes is not None
    attributes = dict(span.attributes)
    assert attributes["messaging.batch.message_count"] == 4
    assert attributes["http.response.status_code"] == 200
    assert attributes["http.request.body.size"] == len(sandbox.requests[0].body)
    assert "http.request.resend_count" not in attributes
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "rokt_events_async"
    assert span.start_time is not None
    assert span.end_time is not None
    assert 0 <= span.end_time - span.start_time < 1e9


async def test_a_span_of_what_went_wrong(backend: Backend) -> None:
    """Status, error type and which try it was; links again."""
    settings: dict[str, Any] = {"request_timeout": 0.2, "retry": RetryPolicy(max_attempts=3)}
    async with (
        Sandbox(script=[503, "silence", 404]) as sandbox,
        emitter_for(sandbox, backend, **settings) as emitter,
    ):
        with backend.tracer().start_as_current_span("checkout"):
            tracked = await emitter.track(event())
        with pytest.raises(DeliveryError):
            await tracked

    shown = [
        (
            (span.attributes or {}).get("error.type"),
            span.status.description,
            (span.attributes or {}).get("http.request.resend_count"),
            len(span.links),
        )
        for span in backend.spans()
    ]
    assert shown == [
        ("503", "HTTP 503", None, 1),
        ("no_answer", "no answer within 0.2 s", 1, 1),
        ("404", "HTTP 404", 2, 1),
    ]
    assert all(span.status.status_code is StatusCode.ERROR for span in backend.spans())


async def test_without_providers_it_does_nothing(sandbox: Sandbox) -> None:
    """The API's own stand-ins: nothing is exported, and nothing goes wrong."""
    settings: dict[str, Any] = {"observers": [OpenTelemetryObserver()]}
    async with Emitter(sandbox.credentials, endpoint=sandbox.url, **settings) as emitter:
        receipt = await emitter.deliver(event())

    assert receipt.attempts == 1


async def test_a_journal_is_told_of(backend: Backend) -> None:
    """What was adopted and has no outcome yet, what was deferred, and failures."""
    recovered, accepted = delivery(), delivery()
    backend.observer.on_recovered(3, datetime.now(UTC))
    backend.observer.on_accepted(accepted)
    backend.observer.on_delivered(recovered, Receipt(recovered.event, 1, maybe_duplicate=False))
    backend.observer.on_deferred(accepted)
    assert [point.value for point in backend.points("rokt.client.journal.backlog")] == [3]
    assert [point.value > 0 for point in backend.points("rokt.client.journal.deferred.age")] == [True]
    backend.observer.on_deferred(recovered)
    backend.observer.on_returned(1, 0, None)
    assert [point.value for point in backend.points("rokt.client.journal.backlog")] == [3]
    assert [point.value for point in backend.points("rokt.client.journal.deferred.age")] == [0.0]
    assert [point.value for point in backend.points("rokt.client.journal.recovered")] == [3]
    assert [point.value for point in backend.points("rokt.client.journal.deferred")] == [2]
    assert [point.value for point in backend.points("rokt.client.pending")] == [0]

    well, failing = Health(state="ok"), Health(state="ok", problems=("journal_failed",))
    backend.observer.on_health(well, failing)
    assert [point.value for point in backend.points("rokt.client.journal.failing")] == [1]
    backend.observer.on_health(failing, well)
    assert [point.value for point in backend.points("rokt.client.journal.failing")] == [0]


def test_without_the_extra() -> None:
    """The error names it."""
    script = (
        "import sys; sys.modules['opentelemetry'] = None\nimport rokt_events_async.integrations.opentelemetry"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert "needs opentelemetry: pip install 'rokt_events_async[otel]'" in done.stderr


async def test_no_payload_and_no_secret(sandbox: Sandbox, backend: Backend) -> None:
    """In no attribute of any metric or span."""
    sandbox.fail_next(401, 422)
    async with emitter_for(sandbox, backend) as emitter:
        outcomes = await asyncio.gather(
            *[await emitter.track(event(f"session-{index}")) for index in range(3)], return_exceptions=True
        )
    assert {type(outcome).__name__ for outcome in outcomes} == {
        "CredentialsRefusedError",
        "EventRejectedError",
        "Receipt",
    }

    shown = "".join(span.to_json() for span in backend.spans())
    for name in backend.units():
        shown += repr([dict(point.attributes) for point in backend.points(name)])
    for word in ("rsec-", "session-", "parent-", "order-1"):
        assert word not in shown


# A fleet.


async def test_a_fleet_is_measured(sandbox: Sandbox) -> None:
    """What is published, how long that takes, what is refused, and what relays do."""
    backend = Backend()
    queue = MemoryQueue(max_entries=2)
    make = functools.partial(Emitter, sandbox.credentials, endpoint=sandbox.url)
    async with Publisher(queue, observers=[backend.observer]) as publisher:
        await publisher.track(event())
        await publisher.track(unchecked(event_type="SignalUnheardOf"))
        with pytest.raises(QueueFullError):
            await publisher.track(event())
        async with Relay(queue, make, observers=[backend.observer], flush_interval=3) as relay:
            await asyncio.sleep(2)
            assert backend.values("rokt.relay.relays", "messaging.system") == {"rokt": 1}
            while relay.stats.delivered + relay.stats.dead_letters < 2:
                await asyncio.sleep(0.1)

    assert backend.values("rokt.publisher.published", "messaging.system") == {"rokt": 2}
    assert backend.values("rokt.publisher.refused", "error.type") == {"QueueFullError": 1}
    assert backend.points("rokt.publisher.duration")[0].count == 2
    assert backend.values("rokt.relay.acknowledged", "messaging.system") == {"rokt": 1}
    assert backend.values("rokt.relay.dead_letters", "rokt.outcome") == {"rejected": 1}
    assert backend.points("rokt.relay.waiting")[0].value >= 0
    assert backend.points("rokt.relay.oldest.age")[0].value >= 0


async def test_a_trace_goes_through_the_queue(sandbox: Sandbox) -> None:
    """The relay's request is linked to the handler's span, in another process."""
    shop, relays = Backend(), Backend()
    queue = MemoryQueue()
    make = functools.partial(Emitter, sandbox.credentials, endpoint=sandbox.url, observers=[relays.observer])
    async with Publisher(queue, observers=[shop.observer]) as publisher:
        with shop.tracer().start_as_current_span("checkout") as span:
            await publisher.track(event())
        await publisher.track(event("other"))
    async with Relay(queue, make, observers=[relays.observer], flush_interval=0) as relay:
        while relay.stats.acknowledged < 2:
            await asyncio.sleep(0.1)

    links = [link.context for one in relays.spans() for link in one.links]
    (linked,) = [one for one in links if one.is_valid]
    assert linked.trace_id == span.get_span_context().trace_id
    assert linked.span_id == span.get_span_context().span_id
    assert linked.is_remote


async def test_an_observer_whose_traces_raise(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged once, and the events go on."""

    class Raising(Observer):
        def trace_parent(self) -> str | None:
            raise ZeroDivisionError

        def in_trace(self, trace_parent: str) -> contextvars.Context | None:
            raise ZeroDivisionError

    class Fixed(Observer):
        def trace_parent(self) -> str | None:
            return "00-1-2-01"

        def in_trace(self, trace_parent: str) -> contextvars.Context | None:
            return None

    queue = MemoryQueue()
    make = functools.partial(Emitter, sandbox.credentials, endpoint=sandbox.url)
    async with Publisher(queue, observers=[Raising(), Fixed()]) as publisher:
        await publisher.track(event())
        await publisher.track(event())
    async with Relay(queue, make, observers=[Raising(), Fixed()], flush_interval=0) as relay:
        while relay.stats.acknowledged < 2:
            await asyncio.sleep(0.1)

    assert caplog.text.count("trace_parent raised") == 1
    assert caplog.text.count("in_trace raised") == 1
    assert Observer().trace_parent() is None
    assert Observer().in_trace("x") is None
