"""Ends the events of a batch: which error an event gets, and what the error says.

Every event has an exception of its own. Tracebacks would pile up on a shared one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from rokt_events_async._pipeline.commits import StoredDelivery
from rokt_events_async._pipeline.ledger import Ledger
from rokt_events_async._pipeline.recorder import Recorder
from rokt_events_async._pipeline.trips import Batch
from rokt_events_async._protocol.replies import Clean, Reply, read_errors
from rokt_events_async.errors import ApiError
from rokt_events_async.outcomes import (
    Cause,
    CredentialsRefusedError,
    Delivery,
    DeliveryDeferredError,
    DeliveryError,
    DeliveryFailedError,
    DeliveryUnconfirmedError,
    EventExpiredError,
    EventRejectedError,
)

_LEADS: Final[dict[type[DeliveryError], str]] = {
    EventExpiredError: "expired, never accepted",
    DeliveryFailedError: "not delivered, never accepted",
    CredentialsRefusedError: "not delivered, never accepted",
    DeliveryUnconfirmedError: "unconfirmed, perhaps accepted",
}


class Settlement:
    """Settles events of batches with the ledger; with a journal, once it has written the outcome.

    Args:
        clean: Makes a server's text fit for errors.
        now: Returns the loop's time.
    """

    def __init__(
        self, ledger: Ledger, *, recorder: Recorder | None, clean: Clean, now: Callable[[], float]
    ) -> None:
        self._ledger = ledger
        self._recorder = recorder
        self._clean = clean
        self._now = now

    def deliver(self, batch: Batch, deliveries: Iterable[Delivery]) -> None:
        """Ends events as delivered."""
        attempts, maybe_duplicate = batch.attempts, batch.maybe_accepted
        if self._recorder is None:
            self._ledger.settle_delivered(
                deliveries, attempts=attempts, maybe_duplicate=maybe_duplicate, now=self._now()
            )
            return

        def tell(written: Iterable[Delivery]) -> None:
            self._ledger.settle_delivered(
                written, attempts=attempts, maybe_duplicate=maybe_duplicate, now=self._now()
            )

        self._recorder.settle(deliveries, "delivered", maybe_duplicate=maybe_duplicate, tell=tell)

    def _settle(self, delivery: Delivery, error: DeliveryError) -> None:
        if self._recorder is None:
            self._ledger.settle_undelivered(delivery, error)
            return

        def tell(_: Iterable[Delivery]) -> None:
            self._ledger.settle_undelivered(delivery, error)

        self._recorder.settle((delivery,), error.outcome, maybe_duplicate=False, tell=tell)

    def defer(self, deliveries: Iterable[Delivery]) -> list[Delivery]:
        """Hands events over to the next process. Returns those that are not in the journal."""
        left: list[Delivery] = []
        for delivery in deliveries:
            if not isinstance(delivery, StoredDelivery) or delivery.is_stored is False:
                left.append(delivery)
            elif delivery.is_stored is None:
                reason = "the emitter was closed before it was known whether the journal has it"
                self._end_alone(delivery, DeliveryUnconfirmedError, Cause.CLOSED, reason)
            else:
                text = "deferred: the event is in the journal, and the next process sends it"
                self._ledger.defer(delivery, DeliveryDeferredError(text, event=delivery.event))
        return left

    def leave_sent(self, delivery: Delivery) -> None:
        """Ends an event as unconfirmed that an earlier process has sent."""
        reason = "an earlier process has sent it and did not learn what became of it"
        self._end_alone(delivery, DeliveryUnconfirmedError, Cause.NO_ANSWER, reason)

    def _end_alone(self, delivery: Delivery, error: type[DeliveryError], cause: Cause, reason: str) -> None:
        text = f"{_LEADS[error]} ({reason})"
        self._settle(delivery, error(text, event=delivery.event, cause=cause, reason=reason))

    def reject(self, batch: Batch, delivery: Delivery, errors: tuple[ApiError, ...]) -> None:
        """Ends an event as rejected, for these reasons of Rokt's."""
        reason = f"HTTP {batch.status}"
        self._settle(
            delivery,
            EventRejectedError(
                f"rejected by Rokt, {reason}{in_words(errors)}",
                event=delivery.event,
                errors=errors,
                attempts=batch.attempts,
                status=batch.status,
                reason=reason,
            ),
        )

    def expire(self, batch: Batch, delivery: Delivery) -> None:
        """Ends an event that became too old: as unconfirmed if an answer was lost."""
        error = DeliveryUnconfirmedError if batch.maybe_accepted else EventExpiredError
        self._end(
            batch, delivery, error, Cause.EXPIRED, "it became older than 3 days before it could be sent"
        )

    def leave_open(self, batch: Batch, deliveries: Iterable[Delivery], cause: Cause, reason: str) -> None:
        """Ends events as unconfirmed: no answer tells of them."""
        for delivery in deliveries:
            self._end(batch, delivery, DeliveryUnconfirmedError, cause, reason)

    def give_up(
        self,
        batch: Batch,
        deliveries: Iterable[Delivery],
        cause: Cause,
        reason: str,
        errors: tuple[ApiError, ...] = (),
    ) -> None:
        """Ends events as failed, or as unconfirmed if Rokt may have accepted them."""
        error = DeliveryUnconfirmedError if batch.maybe_accepted else DeliveryFailedError
        for delivery in deliveries:
            self._end(batch, delivery, error, cause, reason, errors)

    def refuse_credentials(self, batch: Batch, reason: str, errors: tuple[ApiError, ...] = ()) -> None:
        """Ends a batch because Rokt refuses the credentials."""
        error = DeliveryUnconfirmedError if batch.maybe_accepted else CredentialsRefusedError
        for delivery in batch.deliveries:
            self._end(batch, delivery, error, Cause.CREDENTIALS, reason, errors)

    def abandon(self, deliveries: Iterable[Delivery], cause: Cause, reason: str) -> None:
        """Fails events that were never sent."""
        for delivery in deliveries:
            error = DeliveryFailedError(
                f"not sent: {reason}", event=delivery.event, cause=cause, reason=reason
            )
            self._settle(delivery, error)

    def read_errors(self, reply: Reply) -> tuple[ApiError, ...]:
        """Returns the errors in the body of a refusal, fit to be shown."""
        return read_errors(reply.body, self._clean)

    def _end(
        self,
        batch: Batch,
        delivery: Delivery,
        error: type[DeliveryError],
        cause: Cause,
        reason: str,
        errors: tuple[ApiError, ...] = (),
    ) -> None:
        self._settle(
            delivery,
            error(
                f"{_LEADS[error]} ({reason}{in_words(errors)})",
                event=delivery.event,
                attempts=batch.attempts,
                status=batch.status,
                reason=reason,
                cause=cause,
                last_cause=batch.last_cause,
            ),
        )


_MAX_WORDS: Final = 300
"""How much of Rokt's text a message repeats, in characters."""


def in_words(errors: tuple[ApiError, ...]) -> str:
    """Returns Rokt's reasons as the end of a sentence, shortened; empty if there are none."""
    if not errors:
        return ""
    words = "; ".join(map(str, errors[:_MAX_WORDS]))
    return f": {words if len(words) <= _MAX_WORDS else words[: _MAX_WORDS - 3] + '...'}"
