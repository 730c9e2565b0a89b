"""The Server Events API on loopback, with its quirks and faults.

It is a second reading of the specification: it shares no validation code with the client. `rules` decides
what the specification leaves open. Error codes that are not in the specification begin with `Sandbox`.
"""

from rokt_events_async.sandbox.echoes import ECHO_FORMS, Echo
from rokt_events_async.sandbox.faults import FAULTS, Fault
from rokt_events_async.sandbox.record import RecordedEvent, RecordedRequest
from rokt_events_async.sandbox.rules import Problem
from rokt_events_async.sandbox.server import Sandbox

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
