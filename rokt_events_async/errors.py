"""Every exception of the library.

```
RoktEventsError
├── InvalidSettingError      (ValueError)    an argument of a constructor
├── InvalidEventError        (ValueError)    an event that breaks the specification; found here, never sent
├── QueueFullError                           no room, and the caller does not want to wait
├── EmitterNotStartedError   (RuntimeError)  used before `start()`
├── EmitterClosedError       (RuntimeError)  used after `aclose()`
├── WrongContextError        (RuntimeError)  used in another loop, thread or process
└── DeliveryError                            what became of an accepted event, other than delivered
    ├── EventRejectedError                   Rokt refused what it says
    ├── EventExpiredError                    older than 3 days before it could be sent
    ├── DeliveryFailedError                  given up without fault of its own, surely not accepted
    │   └── CredentialsRefusedError          Rokt answered 401 or 403
    └── DeliveryUnconfirmedError             it may or may not have been accepted
```

The first branches are mistakes made here, and nothing was sent. `DeliveryError` is a verdict on an
event that was accepted for delivery. No exception of aiohttp ever leaves the library, not even in a
chain: theirs carry the request's headers, and so the secret.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import attrs

if TYPE_CHECKING:
    from rokt_events_async.events import PartnerEvent


Outcome = Literal["delivered", "rejected", "expired", "failed", "unconfirmed"]
"""What becomes of an accepted event: exactly one of these."""


@attrs.frozen
class ApiError:
    """One thing that is wrong, in the words of the API (specification, "Error").

    `code` is an open set of strings: new ones may appear at any time. It is `None` where the API has
    no code for what was found here.
    """

    code: str | None
    message: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" if self.code else self.message


@attrs.frozen
class EventProblem(ApiError):  # noqa: N818 -- a part of an error, not one to raise
    """An `ApiError` found before sending: which field broke which rule, with which value.

    `value` is the offending value as it would be shown in Python, shortened.
    """

    field: str
    value: str
    rule: str

    def __str__(self) -> str:
        return self.message


def _restore(cls: type[RoktEventsError], args: tuple[Any, ...], state: dict[str, Any]) -> Any:
    error = cls.__new__(cls, *args)
    error.__dict__.update(state)
    return error


class RoktEventsError(Exception):
    """Base of everything the library raises."""

    def __reduce__(self) -> Any:
        return _restore, (type(self), self.args, self.__dict__)


class InvalidSettingError(RoktEventsError, ValueError):
    """A constructor's argument is out of bounds; the message has its name, its value and the bounds."""


class InvalidEventError(RoktEventsError, ValueError):
    """An event breaks the specification. It was not accepted, and nothing was sent.

    Attributes:
        errors: All problems of the event at once, each with field, value, rule, and the API's own
            code where it has one.
    """

    def __init__(self, errors: tuple[EventProblem, ...]) -> None:
        super().__init__("; ".join(map(str, errors)))
        self.errors = errors


class QueueFullError(RoktEventsError):
    """The queue has no room for the event. It was not accepted."""


class EmitterNotStartedError(RoktEventsError, RuntimeError):
    """The emitter has not been started: use `async with`, or `await emitter.start()`."""


class EmitterClosedError(RoktEventsError, RuntimeError):
    """The emitter is closing or closed. The event was not accepted."""


class WrongContextError(RoktEventsError, RuntimeError):
    """The emitter is used in another event loop, thread or process than the one it was started in."""


class DeliveryError(RoktEventsError):
    """An accepted event ended other than delivered.

    Attributes:
        event: The event, with its time stamped.
        attempts: How many requests carried it; a connection that could not be made counts.
        status: The HTTP status of the last answer, `None` if there was none.
        reason: Why, in the library's own words: nothing of the event is in it, nor of what Rokt wrote.
        outcome: Which of the outcomes it is, as `EmitterStats` counts them.
    """

    outcome: ClassVar[Outcome] = "failed"

    def __init__(
        self,
        message: str,
        *,
        event: PartnerEvent,
        attempts: int = 0,
        status: int | None = None,
        reason: str = "",
    ) -> None:
        super().__init__(message)
        self.event = event
        self.attempts = attempts
        self.status = status
        self.reason = reason


class EventRejectedError(DeliveryError):
    """Rokt refused the event: named in an answer, or its request refused by 400, 413 or 422.

    Attributes:
        errors: What Rokt said of it; empty when the answer did not say.
    """

    outcome = "rejected"

    def __init__(
        self,
        message: str,
        *,
        event: PartnerEvent,
        errors: tuple[ApiError, ...] = (),
        attempts: int = 0,
        status: int | None = None,
        reason: str = "",
    ) -> None:
        super().__init__(message, event=event, attempts=attempts, status=status, reason=reason)
        self.errors = errors


class EventExpiredError(DeliveryError):
    """The event became older than 3 days before it could be sent. It was provably never accepted."""

    outcome = "expired"


class DeliveryFailedError(DeliveryError):
    """The event was given up without fault of its own. It was provably never accepted."""


class CredentialsRefusedError(DeliveryFailedError):
    """Rokt answered 401 or 403: the credentials are nobody's event's fault."""


class DeliveryUnconfirmedError(DeliveryError):
    """The event may or may not have been accepted: no readable answer told."""

    outcome = "unconfirmed"
