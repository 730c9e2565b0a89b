"""The Server Events API on loopback, with its quirks and its bad days.

A second reading of the specification: it shares no validation code with the client, and speaks only
what is on the wire. What the specification leaves open is decided in `rules`, and codes it had to
invent begin with `Sandbox`, so that nobody takes them for Rokt's.
"""

from rokt_events_async.sandbox.echoes import ECHO_FORMS, Echo
from rokt_events_async.sandbox.faults import FAULTS, Fault
from rokt_events_async.sandbox.rules import Problem
from rokt_events_async.sandbox.server import RecordedEvent, RecordedRequest, Sandbox

__all__ = [
    "ECHO_FORMS",
    "FAULTS",
    "Echo",
    "Fault",
    "Problem",
    "RecordedEvent",
    "RecordedRequest",
    "Sandbox",
]
