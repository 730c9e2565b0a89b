"""Ends the events of a batch: which error an event gets, and what the error says.

Every event has an exception of its own. Tracebacks would pile up on a shared one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final

from rokt_events_async._pipeline.ledger import Ledger
from rokt_events_async._pipeline.log import log
from rokt_events_async._pipeline.trips import Batch
from rokt_events_async._protocol.replies import Reply, read_errors
from rokt_events_async.errors import ApiError
from rokt_events_async.outcomes import (
    CredentialsRefusedError,
    Delivery,
    DeliveryError,
    DeliveryFailedError,
    DeliveryUnconfirmedError,
    EventExpiredError,
    EventRejectedError,
)
from rokt_events_async.settings import Credentials

_LEADS: Final[dict[type[DeliveryError], str]] = {
    EventExpiredError: "expired, never accepted",
    DeliveryFailedError: "not delivered, never accepted",
    CredentialsRefusedError: "not delivered, never accepted",
    DeliveryUnconfirmedError: "unconfirmed, perhaps accepted",
}


class Settlement:
    """Settles events of batches with the ledger.

    Args:
        credentials: The credentials whose secret is kept out of every error.
        now: Returns the loop's time.
    """

    def __init__(self, ledger: Ledger, credentials: Credentials, *, now: Callable[[], float]) -> None:
        self._ledger = ledger
        self._now = now
        self._credentials = credentials
        self._has_warned_of_credentials = False

    def deliver(self, batch: Batch, deliveries: Iterable[Delivery]) -> None:
        """Ends events as delivered."""
        self._ledger.settle_delivered(
            deliveries,
            attempts=batch.attempts,
            maybe_duplicate=batch.maybe_accepted,
            now=self._now(),
        )

    def reject(self, batch: Batch, delivery: Delivery, errors: tuple[ApiError, ...]) -> None:
        """Ends an event as rejected, for these reasons of Rokt's."""
        reason = f"HTTP {batch.status}"
        self._ledger.settle_undelivered(
            delivery,
            EventRejectedError(
                f"rejected by Rokt, {reason}{_in_words(errors)}",
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
        self._end(batch, delivery, error, "it became older than 3 days before it could be sent")

    def leave_open(self, batch: Batch, delivery: Delivery, reason: str) -> None:
        """Ends an event as unconfirmed: its answer does not tell."""
        self._end(batch, delivery, DeliveryUnconfirmedError, reason)

    def give_up(
        self, batch: Batch, deliveries: Iterable[Delivery], reason: str, errors: tuple[ApiError, ...] = ()
    ) -> None:
        """Ends events as failed, or as unconfirmed if Rokt may have accepted them."""
        error = DeliveryUnconfirmedError if batch.maybe_accepted else DeliveryFailedError
        for delivery in deliveries:
            self._end(batch, delivery, error, reason, errors)

    def refuse_credentials(self, batch: Batch, reply: Reply) -> None:
        """Ends a batch whose credentials Rokt refused, and logs that once."""
        credentials = self._credentials
        reason = (
            f"HTTP {reply.status}: Rokt refused the credentials of pub_id {credentials.pub_id!r} "
            f"with tag_id {credentials.tag_id!r}"
        )
        errors = self.read_errors(reply)
        if not self._has_warned_of_credentials:
            self._has_warned_of_credentials = True
            text = "%s%s; no event can be delivered with them"
            log(logging.ERROR, text, reason, _in_words(errors))
        error = DeliveryUnconfirmedError if batch.maybe_accepted else CredentialsRefusedError
        for delivery in batch.deliveries:
            self._end(batch, delivery, error, reason, errors)

    def abandon(self, deliveries: Iterable[Delivery], reason: str) -> None:
        """Fails events that were never sent."""
        for delivery in deliveries:
            error = DeliveryFailedError(f"not sent: {reason}", event=delivery.event, reason=reason)
            self._ledger.settle_undelivered(delivery, error)

    def read_errors(self, reply: Reply) -> tuple[ApiError, ...]:
        """Returns the errors in the body of a refusal, without the secret."""
        return self.without_secret(read_errors(reply.body))

    def without_secret(self, errors: tuple[ApiError, ...]) -> tuple[ApiError, ...]:
        """Hides the secret in a server's text, which may repeat the request's headers."""
        secret = self._credentials.secret
        return tuple(
            ApiError(
                error.code and error.code.replace(secret, "<hidden>"),
                error.message.replace(secret, "<hidden>"),
            )
            for error in errors
        )

    def _end(
        self,
        batch: Batch,
        delivery: Delivery,
        error: type[DeliveryError],
        reason: str,
        errors: tuple[ApiError, ...] = (),
    ) -> None:
        self._ledger.settle_undelivered(
            delivery,
            error(
                f"{_LEADS[error]} ({reason}{_in_words(errors)})",
                event=delivery.event,
                attempts=batch.attempts,
                status=batch.status,
                reason=reason,
            ),
        )


def _in_words(errors: tuple[ApiError, ...]) -> str:
    return ": " + "; ".join(map(str, errors)) if errors else ""
