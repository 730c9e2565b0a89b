"""Metrics, as prometheus_client exposes them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from rokt_events_async import (
    DeliveryError,
    DeliveryFailedError,
    Emitter,
    EventRejectedError,
    Health,
    QueueFullError,
    RetryPolicy,
)
from rokt_events_async.errors import ApiError
from rokt_events_async.integrations import prometheus
from rokt_events_async.integrations.prometheus import PrometheusObserver
from rokt_events_async.relay import Publisher
from rokt_events_async.relay.memory import MemoryQueue
from rokt_events_async.sandbox import Sandbox
from tests.samples import delivery, event, unchecked


class Backend:
    """A registry of its own, and what is in it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.observer = PrometheusObserver(self.registry)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@pytest.fixture
def backend() -> Backend:
    return Backend()


async def test_outcomes_and_requests(backend: Backend) -> None:
    """Delivered, rejected by the API's own code, failed by its cause; attempts and retries by status."""
    async with Sandbox(script=[503, None, None, 404]) as sandbox:
        settings: dict[str, Any] = {"flush_interval": 0, "retry": RetryPolicy(wait=(0.01, 0.01))}
        async with Emitter(
            sandbox.credentials, endpoint=sandbox.url, observers=[backend.observer], **settings
        ) as emitter:
            for one in (event(), unchecked(event_type="SignalUnheardOf"), event()):
                with contextlib.suppress(DeliveryError):
                    await emitter.deliver(one)

    assert backend.value("rokt_client_outcomes_total", outcome="delivered", error_type="") == 1
    assert backend.value("rokt_client_outcomes_total", outcome="rejected", error_type="InvalidEventType") == 1
    assert backend.value("rokt_client_outcomes_total", outcome="failed", error_type="status") == 1
    assert backend.value("rokt_client_retries_total", error_type="503") == 1
    assert backend.value("rokt_client_sent_events_total") == 4
    assert backend.value("rokt_client_request_duration_seconds_count", error_type="503") == 1
    assert backend.value("rokt_client_request_duration_seconds_count", error_type="") == 2
    assert backend.value("rokt_client_batch_size_sum") == 4
    assert backend.value("rokt_client_pending") == 0
    assert backend.value("rokt_client_oldest_pending_age_seconds") == 0


def test_health(backend: Backend) -> None:
    """Emitters in an outage, with refused credentials, with a journal that fails."""
    observer = backend.observer
    bad = Health(state="outage", problems=("journal_failed",), is_breaker_open=True)
    observer.on_health(Health(state="ok"), bad)
    names = ("rokt_client_outage", "rokt_client_breaker_open", "rokt_client_journal_failing")
    assert [backend.value(name) for name in names] == [1, 1, 1]
    observer.on_health(bad, Health(state="credentials_refused"))
    assert [backend.value(name) for name in names] == [0, 0, 0]
    assert backend.value("rokt_client_credentials_refused") == 1


async def test_a_journals_events(backend: Backend) -> None:
    """Deferred, recovered, and what of both has no outcome."""
    observer = backend.observer
    one = delivery()
    observer.on_accepted(one)
    assert backend.value("rokt_client_pending") == 1
    observer.on_deferred(one)
    observer.on_recovered(3, datetime.now(UTC))
    assert backend.value("rokt_client_pending") == 0
    assert backend.value("rokt_client_journal_backlog") == 4
    assert backend.value("rokt_client_journal_deferred_total") == 1
    assert backend.value("rokt_client_journal_recovered_total") == 3
    await asyncio.sleep(0)
    assert (backend.value("rokt_client_journal_deferred_age_seconds") or 0) >= 0
    observer.on_returned(1, 0, None)
    assert backend.value("rokt_client_journal_deferred_age_seconds") == 0


async def test_what_was_recovered_has_an_age_until_it_has_ended(backend: Backend) -> None:
    """The alert on old events sees what an earlier process has left."""
    observer = backend.observer
    hour = timedelta(hours=1)
    observer.on_recovered(1, datetime.now(UTC) - hour)
    observer.on_recovered(1, datetime.now(UTC))
    assert 3600 <= (backend.value("rokt_client_oldest_pending_age_seconds") or 0) < 3700
    error = DeliveryFailedError("x", event=event())
    for _ in range(2):
        observer.on_undelivered(delivery(), error)
    assert backend.value("rokt_client_oldest_pending_age_seconds") == 0


SEVERAL_WORKERS = """
import os, sys
from datetime import UTC, datetime
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from rokt_events_async import DeliveryFailedError
from rokt_events_async.integrations.prometheus import PrometheusObserver
from rokt_events_async.outcomes import Health
from tests.samples import delivery, event

observer = PrometheusObserver()
if not os.fork():
    first, second = delivery(), delivery()
    for each in (first, second, delivery(), delivery()):
        observer.on_accepted(each)
    observer.on_undelivered(first, DeliveryFailedError("x", event=first.event))
    observer.on_deferred(second)
    observer.on_recovered(5, datetime.now(UTC))
    observer.on_health(Health(state="ok"), Health(state="outage"))
    os._exit(0)
os.wait()
observer.on_accepted(delivery())
registry = CollectorRegistry()
MultiProcessCollector(registry)
shown = ("rokt_client_pending ", "rokt_client_outage ", "rokt_client_journal_backlog ")
for line in generate_latest(registry).decode().splitlines():
    if line.startswith(shown) or "_age_" in line and line[0] != "#":
        print(line)
"""


def test_several_workers(tmp_path: Path) -> None:
    """In the multiprocess mode gauges are sums, and what cannot be told is left out, not told as 0."""
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    command = [sys.executable, "-c", SEVERAL_WORKERS]
    root = Path(__file__).parent.parent.parent
    found = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True)

    assert sorted(found.stdout.splitlines()) == [
        "rokt_client_journal_backlog 6.0",
        "rokt_client_outage 1.0",
        "rokt_client_pending 3.0",
    ]


async def test_a_publisher(backend: Backend) -> None:
    """What is published, and what is not."""
    async with Publisher(MemoryQueue(max_entries=1), observers=[backend.observer]) as publisher:
        await publisher.track(event())
        with pytest.raises(QueueFullError):
            await publisher.track(event())

    assert backend.value("rokt_publisher_published_total") == 1
    assert backend.value("rokt_publisher_duration_seconds_count") == 1
    assert backend.value("rokt_publisher_refused_total", error_type="QueueFullError") == 1


def test_error_codes_are_bounded(backend: Backend) -> None:
    """A server can send any number of codes."""
    loop = asyncio.new_event_loop()
    for number in range(60):
        one = delivery(loop=loop)
        error = EventRejectedError("x", event=event(), errors=(ApiError(f"Code{number}", "x"),))
        backend.observer.on_undelivered(one, error)
    loop.close()

    assert backend.value("rokt_client_outcomes_total", outcome="rejected", error_type="_OTHER") == 10


def test_the_table_names_what_is_exposed(backend: Backend) -> None:
    """All of it, and nothing else."""
    text = generate_latest(backend.registry).decode()
    exposed = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    source = Path(prometheus.__file__).read_text()
    told = {line.split("`")[1] for line in source.splitlines() if line.startswith("| `")}

    assert {name for name in exposed if not name.endswith("_created")} == told


def test_a_second_observer_for_one_registry(backend: Backend) -> None:
    """The registry refuses it."""
    with pytest.raises(ValueError, match="Duplicated"):
        PrometheusObserver(backend.registry)


def test_without_the_extra() -> None:
    """It says what to install."""
    script = (
        "import sys; sys.modules['prometheus_client'] = None; "
        "import rokt_events_async.integrations.prometheus"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert "pip install 'rokt_events_async[prometheus]'" in found.stderr
