"""One peer, in an environment of its own: sends so many events to a sink, and prints what it cost as JSON.

Run by `benchmarks.peers`; it imports nothing of the project, except where the project is the peer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

BATCH = 25
WARM_UP = 500


def identifiers(number: int) -> tuple[str, str]:
    """A session, with 25 events each, and a guid."""
    return f"aec20024-8d23-46be-95f3-{number // BATCH:012x}", f"58bcbaa0-e13c-4a3d-84cd-{number:012x}"


def properties(number: int) -> dict[str, str]:
    """What an event says, for peers that take a dictionary."""
    session, guid = identifiers(number)
    return {
        "eventType": "SignalImpression",
        "sessionId": session,
        "parentGuid": guid,
        "clientUniqueId": "10f7d87b-e879-47b2-9638-a667e63beae2",
        "AdditionalData": "ImpressionSlot",
    }


class Meter:
    """Times every call, and the whole."""

    def __init__(self, expected: int) -> None:
        self.held: list[float] = []
        self._expected = expected

    def start(self) -> None:
        self.held.clear()
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def report(self) -> dict[str, float]:
        seconds = time.perf_counter() - self._wall
        cpu = time.process_time() - self._cpu
        held = sorted(self.held)
        assert len(held) == self._expected
        return {
            "events": len(held),
            "seconds": seconds,
            "cpu": cpu,
            "held_mean_us": sum(held) / len(held) * 1e6,
            "held_p99_us": held[len(held) * 99 // 100] * 1e6,
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


Peer = tuple[Callable[[int], object], Callable[[], object]]
"""Sends event number so and so; waits until all have arrived."""


def segment(url: str, events: int) -> Peer:
    from segment.analytics.client import Client  # noqa: PLC0415

    client = Client("key", host=url, max_queue_size=events, upload_size=BATCH, gzip=False)
    return (lambda number: client.track("user", "impression", properties(number))), client.flush


def rudderstack(url: str, events: int) -> Peer:
    from rudderstack.analytics.client import Client  # noqa: PLC0415

    client = Client("key", host=url, max_queue_size=events, upload_size=BATCH, gzip=False)
    return (lambda number: client.track("user", "impression", properties(number))), client.flush


def posthog(url: str, events: int) -> Peer:
    from posthog import Posthog  # noqa: PLC0415

    client = Posthog("key", host=url, max_queue_size=events, flush_at=BATCH, flush_interval=0.5)

    def send(number: int) -> object:
        return client.capture("impression", distinct_id="user", properties=properties(number))

    return send, client.flush


def snowplow(url: str, _events: int) -> Peer:
    from snowplow_tracker import AsyncEmitter, StructuredEvent, Tracker  # noqa: PLC0415

    host, port = url.removeprefix("http://").split(":")
    emitter = AsyncEmitter(host, protocol="http", port=int(port), batch_size=BATCH)
    tracker = Tracker("bench", emitter, encode_base64=False)

    def send(number: int) -> object:
        session, guid = identifiers(number)
        return tracker.track(StructuredEvent("eventType", "SignalImpression", session, guid))

    return send, tracker.flush


def amplitude(url: str, _events: int) -> Peer:
    from amplitude import Amplitude, BaseEvent, Config  # noqa: PLC0415

    config = Config(server_url=f"{url}/2/httpapi", flush_queue_size=BATCH, flush_interval_millis=500)
    client = Amplitude("key", config)

    def send(number: int) -> object:
        event = BaseEvent("impression", user_id="a-user", event_properties=properties(number))
        return client.track(event)

    def finish() -> None:
        for flushed in client.flush():
            if flushed is not None:
                flushed.result()

    return send, finish


def mixpanel(url: str, _events: int) -> Peer:
    from mixpanel import BufferedConsumer, Mixpanel  # noqa: PLC0415

    consumer = BufferedConsumer(max_size=BATCH, events_url=f"{url}/track")
    client = Mixpanel("token", consumer=consumer)
    return (lambda number: client.track("user", "impression", properties(number))), consumer.flush


PEERS: dict[str, Callable[[str, int], Peer]] = {
    "segment-analytics-python": segment,
    "rudder-sdk-python": rudderstack,
    "posthog": posthog,
    "snowplow-tracker": snowplow,
    "amplitude-analytics": amplitude,
    "mixpanel": mixpanel,
}


def run_peer(name: str, url: str, events: int, until_arrived: Callable[[int], None]) -> dict[str, float]:
    send, finish = PEERS[name](url, events + WARM_UP)
    for number in range(WARM_UP):
        send(number)
    finish()
    until_arrived(WARM_UP)
    meter = Meter(events)
    meter.start()
    for number in range(events):
        began = time.perf_counter()
        send(number)
        meter.held.append(time.perf_counter() - began)
    finish()
    until_arrived(WARM_UP + events)
    return meter.report()


async def run_ours(url: str, events: int) -> dict[str, float]:
    """The same through this library; an event is built in the call, as the peers' are."""
    from rokt_events_async import Credentials, Emitter, EventType, PartnerEvent  # noqa: PLC0415

    credentials = Credentials(pub_id="rpub-bench", secret="rsec-bench", tag_id="1234567890")
    meter = Meter(events)
    async with Emitter(credentials, endpoint=f"{url}/v1/partner/events", flush_interval=0.01) as emitter:
        deliveries: deque[Any] = deque()

        async def send(number: int) -> None:
            began = time.perf_counter()
            session, guid = identifiers(number)
            event = PartnerEvent(
                event_type=EventType.SIGNAL_IMPRESSION,
                session_id=session,
                parent_guid=guid,
                client_unique_id="10f7d87b-e879-47b2-9638-a667e63beae2",
                metadata={"AdditionalData": "ImpressionSlot"},
            )
            deliveries.append(await emitter.track(event))
            meter.held.append(time.perf_counter() - began)

        for number in range(WARM_UP):
            await send(number)
        await emitter.flush()
        deliveries.clear()
        meter.start()
        for number in range(events):
            await send(number)
            if len(deliveries) >= 4_000:
                for _ in range(BATCH):
                    await deliveries.popleft()
        await emitter.flush()
        report = meter.report()
        assert emitter.stats.delivered == events + WARM_UP
    return report


def arrived(url: str) -> int:
    """How many events the sink has."""
    from urllib.request import urlopen  # noqa: PLC0415

    with urlopen(url, data=b"", timeout=10) as response:
        count: int = json.load(response)["events"]
    return count


def main() -> None:
    name, url, events = sys.argv[1], sys.argv[2], int(sys.argv[3])
    logging.disable(logging.CRITICAL)
    before = arrived(url)

    def until_arrived(count: int) -> None:
        deadline = time.monotonic() + 60
        while (there := arrived(url) - before) < count:
            assert time.monotonic() < deadline, f"{there} of {count} events arrived"
            time.sleep(0.002)

    if name == "rokt_events_async":
        report = asyncio.run(run_ours(url, events))
        until_arrived(events + WARM_UP)
    else:
        report = run_peer(name, url, events, until_arrived)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
