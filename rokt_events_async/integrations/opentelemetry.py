"""Metrics and spans, by the semantic conventions for messaging clients as far as they fit.

`Emitter(observers=[LoggingObserver(), OpenTelemetryObserver()])`; needs the extra `[otel]`. Metrics:

| name | kind, unit | what it measures |
|---|---|---|
| `messaging.client.sent.messages` | counter, `{message}` | events that requests carried, retries included |
| `messaging.client.operation.duration` | histogram, `s` | requests, connecting included |
| `rokt.client.batch.size` | histogram, `{event}` | events per request |
| `rokt.client.retries` | counter, `{request}` | requests that are retried |
| `rokt.client.outcomes` | counter, `{event}` | outcomes of events, by `rokt.outcome` |
| `rokt.client.pending` | up-down counter, `{event}` | events accepted and not settled |
| `rokt.client.breaker.open` | up-down counter, `{emitter}` | emitters whose breaker is open |
| `rokt.client.outage` | up-down counter, `{emitter}` | emitters in an outage |
| `rokt.client.credentials_refused` | up-down counter, `{emitter}` | emitters whose credentials Rokt refuses |
| `rokt.client.oldest_pending.age` | gauge, `s` | age of the oldest of them, or of what was recovered |
| `rokt.client.journal.deferred` | counter, `{event}` | events on disk alone, until there is room |
| `rokt.client.journal.deferred.age` | gauge, `s` | how long the oldest of them has been stored |
| `rokt.client.journal.recovered` | counter, `{event}` | events of earlier processes, found in adopted files |
| `rokt.client.journal.backlog` | up-down counter, `{event}` | those and the deferred ones, until they end |
| `rokt.client.journal.failing` | up-down counter, `{emitter}` | emitters whose journal fails |

Of a publisher and a relay, which take the same observer:

| name | kind, unit | what it measures |
|---|---|---|
| `rokt.publisher.published` | counter, `{event}` | events put into the queue |
| `rokt.publisher.duration` | histogram, `s` | from `track()` until the queue has the event |
| `rokt.publisher.refused` | counter, `{event}` | events not published, or not surely, by `error.type` |
| `rokt.relay.redelivered` | counter, `{event}` | entries taken over that may have been sent before |
| `rokt.relay.taken_over` | counter, `{event}` | entries taken over from relays that had ended |
| `rokt.relay.acknowledged` | counter, `{event}` | entries removed from the queue |
| `rokt.relay.acknowledged_elsewhere` | counter, `{event}` | entries that another relay had removed |
| `rokt.relay.dead_letters` | counter, `{event}` | dead letters, by `rokt.outcome` |
| `rokt.relay.waiting` | gauge, `{event}` | entries in the queue that no relay has read |
| `rokt.relay.oldest.age` | gauge, `s` | how long the oldest entry has been in the queue |
| `rokt.relay.relays` | gauge, `{relay}` | relays that are alive |

All have the attributes `messaging.*`; the first two also `server.address` and `server.port`. `error.type`
is absent if nothing went wrong. For a request it is the HTTP status or `no_answer`; for an event it is the
API's own code if it gave one, and otherwise the event's `Cause`.

A request is a span of kind client, `send server_events`, linked to the spans in which its events were
tracked, also through a queue: the trace context travels in the entry. It is a root span, because it carries
events of many traces. No attribute contains event data.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Final

try:
    from opentelemetry import metrics, trace
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError(
        f"OpenTelemetryObserver needs {_missing.name}: pip install 'rokt_events_async[otel]'",
        name=_missing.name,
    ) from None
from opentelemetry.context import Context, attach
from opentelemetry.metrics import CallbackOptions, Counter, Meter, MeterProvider, Observation
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from yarl import URL

from rokt_events_async._version import __version__
from rokt_events_async.errors import NotAcceptedError
from rokt_events_async.events import PartnerEvent
from rokt_events_async.integrations._measures import EVENTS, SECONDS, ErrorTypes, Pending, error_type_of
from rokt_events_async.observers import Observer, RequestReport, RetryReport, error_codes
from rokt_events_async.outcomes import (
    DeadLetter,
    Delivery,
    DeliveryError,
    Health,
    PublishReceipt,
    Receipt,
    RelayStats,
)

_SCOPE: Final = "rokt_events_async"
_DESTINATION: Final = "server_events"
_OPERATION: Final = {
    "messaging.system": "rokt",
    "messaging.operation.name": "send",
    "messaging.operation.type": "send",
    "messaging.destination.name": _DESTINATION,
}
_SECONDS: Final = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]
_EVENTS: Final = [1, 2, 3, 5, 10, 15, 20, 25]
_PROPAGATOR: Final = TraceContextTextMapPropagator()
_NO_ANSWER: Final = "no_answer"
_OTHER: Final = "_OTHER"
_MAX_ERROR_TYPES: Final = 50
"""The most error codes that are told apart: a server can send any number, a backend cannot keep them."""

Attributes = dict[str, str | int]


class OpenTelemetryObserver(Observer):
    """Reports to OpenTelemetry. One observer can serve several emitters.

    Args:
        meter_provider: Receives the metrics; `None` takes the global provider.
        tracer_provider: Receives the spans; `None` takes the global provider.
    """

    def __init__(
        self, *, meter_provider: MeterProvider | None = None, tracer_provider: TracerProvider | None = None
    ) -> None:
        self._tracer = trace.get_tracer(_SCOPE, __version__, tracer_provider)
        meter = metrics.get_meter(_SCOPE, __version__, meter_provider)
        self._sent = meter.create_counter(
            "messaging.client.sent.messages",
            unit="{message}",
            description="Number of messages producer attempted to send to the broker.",
        )
        self._duration = meter.create_histogram(
            "messaging.client.operation.duration",
            unit="s",
            description="Duration of messaging operation initiated by a producer or consumer client.",
            explicit_bucket_boundaries_advisory=list(SECONDS),
        )
        self._batch_size = meter.create_histogram(
            "rokt.client.batch.size",
            unit="{event}",
            description="Events per request.",
            explicit_bucket_boundaries_advisory=list(EVENTS),
        )
        self._retries = meter.create_counter(
            "rokt.client.retries", unit="{request}", description="Requests that are retried."
        )
        self._outcomes = meter.create_counter(
            "rokt.client.outcomes", unit="{event}", description="Outcomes of accepted events."
        )
        meter.create_observable_up_down_counter(
            "rokt.client.pending",
            [self._observe_pending],
            unit="{event}",
            description="Events accepted and not settled.",
        )
        meter.create_observable_gauge(
            "rokt.client.oldest_pending.age",
            [self._observe_oldest],
            unit="s",
            description="For how long the oldest pending event has been pending.",
        )
        self._breaker_open = meter.create_up_down_counter(
            "rokt.client.breaker.open", unit="{emitter}", description="Emitters whose breaker is open."
        )
        self._outage = meter.create_up_down_counter(
            "rokt.client.outage", unit="{emitter}", description="Emitters in an outage."
        )
        self._refused_credentials = meter.create_up_down_counter(
            "rokt.client.credentials_refused",
            unit="{emitter}",
            description="Emitters whose credentials Rokt refuses.",
        )
        self._deferred = meter.create_counter(
            "rokt.client.journal.deferred",
            unit="{event}",
            description="Events that are in the journal alone, until there is room or a next process.",
        )
        self._recovered = meter.create_counter(
            "rokt.client.journal.recovered",
            unit="{event}",
            description="Events of earlier processes, found in journal files that were adopted.",
        )
        self._failing = meter.create_up_down_counter(
            "rokt.client.journal.failing", unit="{emitter}", description="Emitters whose journal fails."
        )
        meter.create_observable_up_down_counter(
            "rokt.client.journal.backlog",
            [self._observe_backlog],
            unit="{event}",
            description="Events of earlier processes, and deferred ones, that have no outcome yet.",
        )
        meter.create_observable_gauge(
            "rokt.client.journal.deferred.age",
            [self._observe_deferred],
            unit="s",
            description="For how long the oldest event has been stored that waits for room in memory.",
        )
        self._add_fleet(meter)
        self._relay = RelayStats()
        self._pending: Pending[SpanContext] = Pending()
        self._error_types = ErrorTypes()
        self._servers: dict[str, Attributes] = {}

    def _add_fleet(self, meter: Meter) -> None:
        """Adds the metrics of publishers and relays."""

        def count(name: str, description: str) -> Counter:
            return meter.create_counter(f"rokt.{name}", unit="{event}", description=description)

        def show(name: str, unit: str, description: str, read: Callable[[RelayStats], float]) -> None:
            def observe(_options: CallbackOptions) -> Iterable[Observation]:
                if self._relay.relays:
                    yield Observation(read(self._relay), _OPERATION)

            meter.create_observable_gauge(f"rokt.{name}", [observe], unit=unit, description=description)

        self._published = count("publisher.published", "Events put into the queue.")
        self._refused = count("publisher.refused", "Events not published, or not surely.")
        self._publishing = meter.create_histogram(
            "rokt.publisher.duration",
            unit="s",
            description="From the call until the queue has the event.",
            explicit_bucket_boundaries_advisory=list(SECONDS),
        )
        self._relayed = {
            "redelivered": count("relay.redelivered", "Entries taken over that may have been sent before."),
            "taken_over": count("relay.taken_over", "Entries taken over from relays that had ended."),
            "acknowledged": count("relay.acknowledged", "Entries removed from the queue."),
            "acknowledged_elsewhere": count(
                "relay.acknowledged_elsewhere", "Entries that another relay had removed."
            ),
        }
        self._dead = count("relay.dead_letters", "Entries given up.")
        show("relay.waiting", "{event}", "Entries that no relay has read.", lambda stats: stats.waiting)
        show("relay.oldest.age", "s", "How long the oldest has been there.", lambda stats: stats.oldest_age)
        show("relay.relays", "{relay}", "Relays that are alive.", lambda stats: stats.relays)

    def on_published(self, receipt: PublishReceipt, duration: float) -> None:
        self._published.add(1, _OPERATION)
        self._publishing.record(duration, _OPERATION)

    def on_unpublished(self, event: PartnerEvent, error: NotAcceptedError) -> None:
        self._refused.add(1, _OPERATION | {"error.type": type(error).__name__})

    def on_relay(self, before: RelayStats, after: RelayStats) -> None:
        self._relay = after
        for name, counter in self._relayed.items():
            if more := getattr(after, name) - getattr(before, name):
                counter.add(more, _OPERATION)

    def on_dead_letter(self, letter: DeadLetter) -> None:
        error_type = letter.cause or letter.outcome
        self._dead.add(1, _OPERATION | {"rokt.outcome": letter.outcome, "error.type": error_type})

    def trace_parent(self) -> str | None:
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier)
        return carrier.get("traceparent")

    def in_trace(self, trace_parent: str) -> contextvars.Context | None:
        found = _PROPAGATOR.extract({"traceparent": trace_parent}, Context())
        context = contextvars.Context()
        context.run(attach, found)
        return context

    def on_accepted(self, delivery: Delivery) -> None:
        self._pending.accept(delivery, trace.get_current_span().get_span_context())

    def on_request(self, request: RequestReport) -> None:
        attributes = _OPERATION | self._server(request.endpoint)
        if request.status is None or not 200 <= request.status <= 299:
            attributes["error.type"] = error_type_of(request.status)
        count = len(request.deliveries)
        self._sent.add(count, attributes)
        self._duration.record(request.duration, attributes)
        self._batch_size.record(count, _OPERATION)
        self._write_span(request, attributes)

    def on_retry(self, retry: RetryReport) -> None:
        self._retries.add(1, _OPERATION | {"error.type": error_type_of(retry.status)})

    def on_health(self, before: Health, after: Health) -> None:
        self._breaker_open.add(after.is_breaker_open - before.is_breaker_open, _OPERATION)
        for counter, state in ((self._outage, "outage"), (self._refused_credentials, "credentials_refused")):
            counter.add((after.state == state) - (before.state == state), _OPERATION)
        failing = [_JOURNAL_FAILED in health.problems for health in (before, after)]
        self._failing.add(failing[1] - failing[0], _OPERATION)

    def on_recovered(self, count: int, oldest: datetime) -> None:
        self._recovered.add(count, _OPERATION)
        self._pending.recover(count, oldest)

    def on_deferred(self, delivery: Delivery) -> None:
        self._pending.defer(delivery)
        self._deferred.add(1, _OPERATION)

    def on_returned(self, count: int, left: int, oldest: datetime | None) -> None:
        self._pending.note_oldest_deferred(oldest)

    def on_delivered(self, delivery: Delivery, receipt: Receipt) -> None:
        self._pending.leave(delivery)
        self._outcomes.add(1, _DELIVERED)

    def on_undelivered(self, delivery: Delivery, error: DeliveryError) -> None:
        self._pending.leave(delivery)
        codes = error_codes(error)
        error_type = self._error_types.bounded(codes[0]) if codes else str(error.cause)
        self._outcomes.add(1, _OPERATION | {"rokt.outcome": error.outcome, "error.type": error_type})

    def _write_span(self, request: RequestReport, attributes: Attributes) -> None:
        details: Attributes = {
            "messaging.batch.message_count": len(request.deliveries),
            "http.request.method": "POST",
            "http.request.body.size": request.size,
        }
        if request.status is not None:
            details["http.response.status_code"] = request.status
        if request.attempt > 1:
            details["http.request.resend_count"] = request.attempt - 1
        began = _nanoseconds(request.started_at)
        span = self._tracer.start_span(
            f"send {_DESTINATION}",
            context=Context(),
            kind=SpanKind.CLIENT,
            attributes=attributes | details,
            links=list(self._links(request.deliveries)),
            start_time=began,
        )
        if "error.type" in attributes:
            span.set_status(Status(StatusCode.ERROR, request.problem or f"HTTP {request.status}"))
        span.end(began + int(request.duration * 1e9))

    def _links(self, deliveries: Iterable[Delivery]) -> Iterable[Link]:
        """Yields links to the spans of the `track()` calls, one link per span."""
        seen = set()
        for delivery in deliveries:
            span = self._pending.kept(delivery)
            if span is None or not span.is_valid:
                continue
            key = (span.trace_id, span.span_id)
            if key not in seen:
                seen.add(key)
                yield Link(span)

    def _server(self, endpoint: str) -> Attributes:
        """Returns the attributes of the endpoint; parsed once."""
        server = self._servers.get(endpoint)
        if server is None:
            url = URL(endpoint)
            server = self._servers[endpoint] = {
                "server.address": url.host or "",
                "server.port": url.port or 443,
            }
        return server

    # Called by the exporter, in a thread of its own.

    def _observe_pending(self, _options: CallbackOptions) -> Iterable[Observation]:
        yield Observation(len(self._pending), _OPERATION)

    def _observe_backlog(self, _options: CallbackOptions) -> Iterable[Observation]:
        yield Observation(self._pending.backlog, _OPERATION)

    def _observe_deferred(self, _options: CallbackOptions) -> Iterable[Observation]:
        yield Observation(self._pending.deferred_age(), _OPERATION)

    def _observe_oldest(self, _options: CallbackOptions) -> Iterable[Observation]:
        yield Observation(self._pending.oldest_age(), _OPERATION)


_JOURNAL_FAILED: Final = "journal_failed"

_DELIVERED: Final = _OPERATION | {"rokt.outcome": "delivered"}


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1e9)
