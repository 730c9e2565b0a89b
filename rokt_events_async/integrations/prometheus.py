"""Metrics for Prometheus, the same measures as OpenTelemetry's.

`Emitter(observers=[LoggingObserver(), PrometheusObserver()])`; needs the extra `[prometheus]`. The metrics go
to `prometheus_client`'s registry, which the application exposes as it does its own:

| name | kind | what it measures |
|---|---|---|
| `rokt_client_sent_events_total` | counter | events that requests carried, retries included |
| `rokt_client_request_duration_seconds` | histogram | requests, connecting included, by `error_type` |
| `rokt_client_batch_size` | histogram | events per request |
| `rokt_client_retries_total` | counter | requests that are retried, by `error_type` |
| `rokt_client_outcomes_total` | counter | outcomes of events, by `outcome` and `error_type` |
| `rokt_client_pending` | gauge | events accepted and not settled |
| `rokt_client_oldest_pending_age_seconds` | gauge | age of the oldest of them, or of what was recovered |
| `rokt_client_breaker_open` | gauge | emitters whose breaker is open |
| `rokt_client_outage` | gauge | emitters in an outage |
| `rokt_client_credentials_refused` | gauge | emitters whose credentials Rokt refuses |
| `rokt_client_journal_deferred_total` | counter | events on disk alone, until there is room |
| `rokt_client_journal_deferred_age_seconds` | gauge | how long the oldest of them has been stored |
| `rokt_client_journal_recovered_total` | counter | events of earlier processes, found in adopted files |
| `rokt_client_journal_backlog` | gauge | those and the deferred ones, until they end |
| `rokt_client_journal_failing` | gauge | emitters whose journal fails |
| `rokt_publisher_published_total` | counter | events put into the queue |
| `rokt_publisher_duration_seconds` | histogram | from `track()` until the queue has the event |
| `rokt_publisher_refused_total` | counter | events not published, or not surely, by `error_type` |

In `prometheus_client`'s multiprocess mode (`PROMETHEUS_MULTIPROC_DIR`, several gunicorn workers), gauges are
the sum over living workers, as long as gunicorn's `child_exit` calls
`multiprocess.mark_process_dead(worker.pid)`, and the two ages are left out, because that mode can call no
function: alert on `rokt_client_pending`, `rokt_client_journal_backlog` and `rokt_client_outage` instead.

Make the observer once, beside the factory and not in it: an application can start more than once, as in
tests, and a registry takes one observer.

An `error_type` is empty if nothing went wrong, and otherwise as OpenTelemetry's `error.type`. No label
contains event data. A relay exposes its own metrics: `rokt-events relay --metrics-port`.
"""

from __future__ import annotations

import os
from datetime import datetime
from typing import Final

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError(
        f"PrometheusObserver needs {_missing.name}: pip install 'rokt_events_async[prometheus]'",
        name=_missing.name,
    ) from None

from rokt_events_async.errors import NotAcceptedError
from rokt_events_async.events import PartnerEvent
from rokt_events_async.integrations._measures import EVENTS, SECONDS, ErrorTypes, Pending, error_type_of
from rokt_events_async.observers import Observer, RequestReport, RetryReport, error_codes
from rokt_events_async.outcomes import Delivery, DeliveryError, Health, PublishReceipt, Receipt

_MULTIPROCESS: Final = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")
"""Either of these switches the library to its multiprocess mode."""


class PrometheusObserver(Observer):
    """Reports to Prometheus. One observer can serve several emitters and publishers.

    Args:
        registry: Where the metrics are registered; `None` takes `prometheus_client.REGISTRY`. A registry
            takes one observer.

    Raises:
        ValueError: The registry has these metrics already.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        to = REGISTRY if registry is None else registry
        self._sent = Counter("rokt_client_sent_events", "Events that requests carried.", registry=to)
        self._duration = Histogram(
            "rokt_client_request_duration_seconds",
            "Requests, connecting included.",
            ["error_type"],
            buckets=SECONDS,
            registry=to,
        )
        self._batch_size = Histogram(
            "rokt_client_batch_size", "Events per request.", buckets=EVENTS, registry=to
        )
        self._retries = Counter(
            "rokt_client_retries", "Requests that are retried.", ["error_type"], registry=to
        )
        self._outcomes = Counter(
            "rokt_client_outcomes", "Outcomes of events.", ["outcome", "error_type"], registry=to
        )

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, registry=to, multiprocess_mode="livesum")

        self._breaker_open = gauge("rokt_client_breaker_open", "Emitters whose breaker is open.")
        self._outage = gauge("rokt_client_outage", "Emitters in an outage.")
        self._refused_credentials = gauge(
            "rokt_client_credentials_refused", "Emitters whose credentials Rokt refuses."
        )
        self._deferred = Counter("rokt_client_journal_deferred", "Events on disk alone.", registry=to)
        self._recovered = Counter(
            "rokt_client_journal_recovered", "Events of earlier processes in adopted files.", registry=to
        )
        self._failing = gauge("rokt_client_journal_failing", "Emitters whose journal fails.")
        self._published = Counter("rokt_publisher_published", "Events put into the queue.", registry=to)
        self._publishing = Histogram(
            "rokt_publisher_duration_seconds",
            "From the call until the queue has the event.",
            buckets=SECONDS,
            registry=to,
        )
        self._unpublished = Counter(
            "rokt_publisher_refused", "Events not published, or not surely.", ["error_type"], registry=to
        )
        self._pending: Pending[None] = Pending()
        self._error_types = ErrorTypes()
        self._counted = gauge("rokt_client_pending", "Events accepted and not settled.")
        self._backlog = gauge(
            "rokt_client_journal_backlog", "Recovered and deferred events without an outcome."
        )
        self._is_multiprocess = any(name in os.environ for name in _MULTIPROCESS)
        if not self._is_multiprocess:
            self._read_when_asked(to)

    def _read_when_asked(self, to: CollectorRegistry) -> None:
        """Has what changes by itself, or with each event, read when the metrics are asked for."""
        self._counted.set_function(lambda: len(self._pending))
        self._backlog.set_function(lambda: self._pending.backlog)
        age = Gauge("rokt_client_oldest_pending_age_seconds", "Age of the oldest of them.", registry=to)
        age.set_function(self._pending.oldest_age)
        deferred_age = Gauge(
            "rokt_client_journal_deferred_age_seconds", "Age of the oldest deferred event.", registry=to
        )
        deferred_age.set_function(self._pending.deferred_age)

    def _write_counts(self) -> None:
        """Writes what is pending to the file that other processes read."""
        if self._is_multiprocess:
            self._counted.set(len(self._pending))
            self._backlog.set(self._pending.backlog)

    def on_accepted(self, delivery: Delivery) -> None:
        self._pending.accept(delivery, None)
        self._write_counts()

    def on_request(self, request: RequestReport) -> None:
        is_good = request.status is not None and 200 <= request.status <= 299
        count = len(request.deliveries)
        self._sent.inc(count)
        self._duration.labels("" if is_good else error_type_of(request.status)).observe(request.duration)
        self._batch_size.observe(count)

    def on_retry(self, retry: RetryReport) -> None:
        self._retries.labels(error_type_of(retry.status)).inc()

    def on_delivered(self, delivery: Delivery, receipt: Receipt) -> None:
        self._pending.leave(delivery)
        self._write_counts()
        self._outcomes.labels("delivered", "").inc()

    def on_undelivered(self, delivery: Delivery, error: DeliveryError) -> None:
        self._pending.leave(delivery)
        self._write_counts()
        codes = error_codes(error)
        error_type = self._error_types.bounded(codes[0]) if codes else str(error.cause)
        self._outcomes.labels(error.outcome, error_type).inc()

    def on_health(self, before: Health, after: Health) -> None:
        self._breaker_open.inc(after.is_breaker_open - before.is_breaker_open)
        for gauge, state in (
            (self._outage, "outage"),
            (self._refused_credentials, "credentials_refused"),
        ):
            gauge.inc((after.state == state) - (before.state == state))
        failing = ["journal_failed" in health.problems for health in (before, after)]
        self._failing.inc(failing[1] - failing[0])

    def on_deferred(self, delivery: Delivery) -> None:
        self._pending.defer(delivery)
        self._write_counts()
        self._deferred.inc()

    def on_returned(self, count: int, left: int, oldest: datetime | None) -> None:
        self._pending.note_oldest_deferred(oldest)

    def on_recovered(self, count: int, oldest: datetime) -> None:
        self._recovered.inc(count)
        self._pending.recover(count, oldest)
        self._write_counts()

    def on_published(self, receipt: PublishReceipt, duration: float) -> None:
        self._published.inc()
        self._publishing.observe(duration)

    def on_unpublished(self, event: PartnerEvent, error: NotAcceptedError) -> None:
        self._unpublished.labels(type(error).__name__).inc()
