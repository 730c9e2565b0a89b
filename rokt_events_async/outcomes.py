"""What a caller gets back: the `Delivery` of an event, its `Receipt`, the reports of an emitter."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

if TYPE_CHECKING:
    from rokt_events_async.errors import DeliveryError, Outcome
    from rokt_events_async.events import PartnerEvent


class _ReceiptDraft:
    """A receipt that is being filled, which its class forbids; see `receipt_for`."""

    __slots__ = ("attempts", "event", "maybe_duplicate")


@attrs.frozen(weakref_slot=False)
class Receipt:
    """Rokt has accepted the event.

    Attributes:
        event: The event, with its time stamped.
        attempts: How many requests carried it.
        maybe_duplicate: Whether an earlier request's answer was lost, so that Rokt may have counted
            the event before (the API has no idempotency key).
        outcome: `"delivered"`, as `EmitterStats` counts it.
    """

    outcome: ClassVar[Outcome] = "delivered"

    event: PartnerEvent
    attempts: int
    maybe_duplicate: bool


def receipt_for(event: PartnerEvent, attempts: int, maybe_duplicate: bool) -> Receipt:  # noqa: FBT001 -- as the class
    """`Receipt(...)`, in a third of the time: it becomes one when it is filled."""
    draft: Any = _ReceiptDraft()
    draft.event = event
    draft.attempts = attempts
    draft.maybe_duplicate = maybe_duplicate
    draft.__class__ = Receipt
    receipt: Receipt = draft
    return receipt


class Delivery(asyncio.Future[Receipt]):
    """The outcome to come of one accepted event. Awaiting it returns a `Receipt` or raises a `DeliveryError`.

    Cancelling it, or a task that awaits it, detaches the caller: the event is still sent and still
    counted. To wait with a time-out and keep it, `asyncio.shield` it. One that nobody awaits makes
    no noise.

    Attributes:
        event: The event, with its time stamped.
    """

    __slots__ = ("accepted_at", "event", "generation", "wire")

    # Set by who makes one: an `__init__` of ours would cost more than the future's own.
    accepted_at: float
    event: PartnerEvent
    generation: Any
    wire: bytes

    def settle(self, outcome: Receipt | DeliveryError) -> None:
        """Tells the caller, unless the caller has detached or its loop is gone."""
        self.wire = b""
        if self.done():
            return
        try:
            if isinstance(outcome, Receipt):
                self.set_result(outcome)
            else:
                self.set_exception(outcome)
                self.exception()  # Marks it as seen: a delivery that nobody awaits makes no noise.
        except RuntimeError:
            if not self.get_loop().is_closed():
                raise


@attrs.frozen
class DrainReport:
    """What became of the events that were pending when the close began.

    Attributes:
        undelivered: The errors of those that ended other than delivered, each with its event.
    """

    delivered: int = 0
    rejected: int = 0
    expired: int = 0
    failed: int = 0
    unconfirmed: int = 0
    undelivered: tuple[DeliveryError, ...] = attrs.field(
        default=(), repr=lambda errors: f"<{len(errors)} errors>"
    )


@attrs.frozen
class EmitterStats:
    """A snapshot of an emitter's account. `accepted` is always the sum of the outcomes and `pending`.

    Attributes:
        accepted: Events that `track()` has accepted.
        delivered: Events that Rokt has accepted.
        rejected: Events that Rokt refused for what they say.
        expired: Events that became older than 3 days before they could be sent.
        failed: Events given up, and provably never accepted by Rokt.
        unconfirmed: Events of which no readable answer told.
        pending: Events accepted and not settled, those in flight included.
        pending_bytes: Their size as encoded, in bytes.
        sessions: Sessions that have events pending.
        in_flight: Requests under way at this moment.
        requests: Requests made so far, those that found no connection included.
        retries: Requests that were made again after one that failed.
        possible_duplicates: Events sent again after a lost answer.
    """

    accepted: int = 0
    delivered: int = 0
    rejected: int = 0
    expired: int = 0
    failed: int = 0
    unconfirmed: int = 0
    pending: int = 0
    pending_bytes: int = 0
    sessions: int = 0
    in_flight: int = 0
    requests: int = 0
    retries: int = 0
    possible_duplicates: int = 0
