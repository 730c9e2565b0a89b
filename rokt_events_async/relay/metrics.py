"""A relay's health as text in Prometheus's exposition format. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, get_args

from rokt_events_async.outcomes import Outcome, RelayHealth

_COUNTERS: Final = {
    "read": "Entries read from the queue, those of other relays included.",
    "delivered": "Events that Rokt has accepted.",
    "dead_letters": "Entries that became dead letters.",
    "redelivered": "Entries taken over that may have been sent before: an upper bound of duplicates.",
    "taken_over": "Entries taken over from relays that had ended.",
    "repeated": "Entries that their publisher had sent twice.",
    "repeats_dropped": "Those of them that were recognised and dropped.",
    "possible_duplicates": "Events sent again after an answer of Rokt was lost.",
    "acknowledged": "Entries removed from the queue.",
    "acknowledged_elsewhere": "Entries that were gone when they were acknowledged.",
    "queue_failures": "Failed exchanges with the queue.",
}
_GAUGES: Final = {
    "held": "Entries in memory.",
    "held_bytes": "The size of their events, in bytes.",
    "passed_over": "Entries that wait because their session holds its share of the window.",
    "relays": "Relays that are alive.",
    "waiting": "Entries in the queue that no relay has read.",
    "pending": "Entries in the queue that relays have read and not acknowledged.",
    "oldest_age": "How long the oldest entry has been in the queue, in seconds.",
}


def as_prometheus(health: RelayHealth) -> str:
    """Returns the metrics of a relay. No label has event data."""
    return "".join(_lines(health))


def _lines(health: RelayHealth) -> Iterator[str]:
    stats = health.stats
    for name, text in _COUNTERS.items():
        yield _metric(f"rokt_relay_{name}_total", "counter", text, getattr(stats, name))
    for name, text in _GAUGES.items():
        suffix = "_seconds" if name == "oldest_age" else ""
        yield _metric(f"rokt_relay_{name}{suffix}", "gauge", text, getattr(stats, name))
    yield _metric("rokt_relay_partitions", "gauge", "Partitions that it reads.", len(stats.partitions))
    yield _metric("rokt_relay_ready", "gauge", "1 if the queue can be reached.", int(health.is_ready))
    emitter = health.emitter
    yield _metric("rokt_client_pending", "gauge", "Events in the emitter's hands.", emitter.pending)
    age = round(emitter.oldest_pending_age, 3)
    yield _metric("rokt_client_oldest_pending_age_seconds", "gauge", "Age of the oldest of them.", age)
    for state, text in _STATES.items():
        yield _metric(f"rokt_client_{state}", "gauge", text, int(emitter.state == state))
    outcomes = [(f'outcome="{name}"', getattr(emitter.stats, name)) for name in get_args(Outcome)]
    yield _metric("rokt_client_outcomes_total", "counter", "Outcomes of events.", *outcomes)


_STATES: Final = {
    "outage": "1 while Rokt cannot be reached.",
    "credentials_refused": "1 while Rokt refuses the credentials.",
}


def _metric(name: str, kind: str, text: str, *values: float | tuple[str, float]) -> str:
    """Returns a metric with its value, or with one for each of its labels."""
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    for value in values:
        labels, number = (f"{{{value[0]}}}", value[1]) if isinstance(value, tuple) else ("", value)
        lines.append(f"{name}{labels} {number}")
    return "\n".join(lines) + "\n"
