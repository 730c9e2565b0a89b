"""What a status means for the request it answers. Pure."""

from __future__ import annotations

from enum import Enum
from typing import Final


class Disposition(Enum):
    """What a status means for the request it answers."""

    ANSWERED = "answered"
    """The server took the request, and its body tells of each event."""

    REFUSED = "refused"
    """The server refused the content, the whole of it."""

    RETRY = "retry"
    """Not accepted for now."""

    RETRY_MAYBE_ACCEPTED = "retry, maybe accepted"
    """Perhaps accepted: the server failed on the way, or an intermediary answered in its place."""

    CREDENTIALS_REFUSED = "credentials refused"
    """The server refused the credentials."""

    FAILED = "failed"
    """Never sent again as it is. The server says that it did not take the request."""

    UNCONFIRMED = "unconfirmed"
    """Never sent again as it is. Nothing says whether the server took the request."""


_DISPOSITIONS: Final = {
    **dict.fromkeys((400, 413, 422), Disposition.REFUSED),
    **dict.fromkeys((401, 403), Disposition.CREDENTIALS_REFUSED),
    **dict.fromkeys((301, 302, 307, 308, 404, 405, 407, 410, 415, 501, 505), Disposition.FAILED),
    408: Disposition.RETRY_MAYBE_ACCEPTED,
    429: Disposition.RETRY,
}


def classify(status: int, *, asks_to_wait: bool = False, has_body: bool = False) -> Disposition:
    """Returns what a status means for the request it answers.

    Args:
        asks_to_wait: True if the answer has a `Retry-After`.
        has_body: True if the answer has a body. A 5xx of the API has none; a 503 with one comes from a
            proxy, perhaps after the server took the request.
    """
    if 200 <= status <= 299:
        return Disposition.ANSWERED
    if status == 503 and (asks_to_wait or not has_body):
        return Disposition.RETRY
    if (known := _DISPOSITIONS.get(status)) is not None:
        return known
    return Disposition.RETRY_MAYBE_ACCEPTED if 500 <= status <= 599 else Disposition.UNCONFIRMED
