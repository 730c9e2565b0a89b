"""The sandbox's record: each request as it was received, and how it was answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from rokt_events_async.sandbox import rules
from rokt_events_async.sandbox.faults import Fault


@attrs.frozen
class RecordedEvent:
    """An event as it was received, and the sandbox's verdict on it.

    Attributes:
        event: The event in the wire's names; absent values are left out.
        is_accepted: True if the sandbox accepted it, whatever the answer said.
        errors: Why it was refused; also empty if the whole request was refused.
        identity: The same for events that are equal in every field: one of them accepted twice is counted
            twice.
    """

    event: Mapping[str, Any]
    is_accepted: bool
    errors: tuple[rules.Problem, ...] = ()
    identity: int = attrs.field(default=0, repr=False, eq=False)


@attrs.frozen
class RecordedRequest:
    """A request as it was received, and how it was answered.

    Attributes:
        number: The order of arrival, from 1.
        headers: The request's headers without the credentials.
        body: The request's body; empty if the connection was reset before it arrived.
        fault: The fault that it met.
        status: The HTTP status of the answer, `None` if there was no status line.
        refusal: Why the whole request was refused.
        events: The request's events; empty if they could not be read.
    """

    number: int
    headers: Mapping[str, str]
    body: bytes
    fault: Fault
    status: int | None
    refusal: rules.Refusal | None
    events: tuple[RecordedEvent, ...]

    def __str__(self) -> str:
        accepted = sum(event.is_accepted for event in self.events)
        codes = sorted({problem.code for event in self.events for problem in event.errors})
        if self.refusal is not None:
            codes = [self.refusal.problem.code]
        verdict = "refused" if self.refusal is not None else f"{accepted}/{len(self.events)} accepted"
        parts = [f"#{self.number}", f"{self.status or 'no answer'}", verdict]
        if self.fault != Fault():
            parts.append(f"fault: {self.fault}")
        return "  ".join(parts + codes)


def record_event(judged: rules.Judged, fault: Fault) -> RecordedEvent:
    """Returns the record of one event; a fault may keep the sandbox from processing it."""
    event = judged.event
    named = {
        "eventType": event.event_type,
        "eventTime": event.moment.text if event.moment else None,
        "parentGuid": event.parent_guid,
        "sessionId": event.session_id,
        "clientUniqueId": event.client_unique_id,
        "metadata": [{"name": name, "value": value} for name, value in event.metadata]
        if event.metadata
        else None,
    }
    shown = {name: value for name, value in named.items() if value is not None}
    text = event.moment.text if event.moment else None
    identity = hash(
        (event.event_type, text, event.parent_guid, event.session_id, event.client_unique_id, event.metadata)
    )
    if not fault.processes_events():
        return RecordedEvent(shown, is_accepted=False, identity=identity)
    return RecordedEvent(shown, judged.is_accepted, judged.problems, identity)


def record_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Returns the headers without the credentials."""
    return {
        name: value for name, value in headers.items() if name.lower() not in ("rokt-secret", "rokt-pub-id")
    }
