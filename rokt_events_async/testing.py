"""For tests of applications: compares what an emitter said with what a sandbox saw; a queue in memory."""

from __future__ import annotations

from rokt_events_async.events import PartnerEvent
from rokt_events_async.outcomes import DeliveryError, Receipt
from rokt_events_async.relay.memory import MemoryQueue
from rokt_events_async.sandbox.audit import Claim, disagreements

__all__ = ["Claim", "MemoryQueue", "claim_of", "disagreements"]


def claim_of(event: PartnerEvent, outcome: Receipt | DeliveryError) -> Claim:
    """Returns what an outcome says of its event, in the terms of the sandbox's audit."""
    if isinstance(outcome, Receipt):
        return Claim(event=event.to_dict(), outcome="delivered", maybe_duplicate=outcome.maybe_duplicate)
    codes = tuple(error.code for error in getattr(outcome, "errors", ()))
    return Claim(event=event.to_dict(), outcome=outcome.outcome, codes=codes)
