"""The mistakes made on this side: nothing was sent because of them.

```
RoktEventsError
├── InvalidSettingError      (ValueError)    an argument of a constructor is out of bounds
├── InvalidEventError        (ValueError)    an event breaks the specification; found before it was sent
├── NotAcceptedError                         the event was valid, and was not accepted
│   ├── QueueFullError                       the queue has no room for the event
│   ├── JournalError                         the journal could not store the event, or cannot be opened
│   ├── QueueUnavailableError                the queue cannot be reached, or does not answer in time
│   ├── PublishUnconfirmedError              the event may or may not be in the queue
│   ├── QueueRefusedError                    the queue refuses: wrong password, evicting policy, other format
│   ├── EmitterNotStartedError (RuntimeError)  used before `start()`
│   └── EmitterClosedError   (RuntimeError)  used after `aclose()`
├── RelayStoppedError                        a relay has stopped by itself
├── WrongContextError        (RuntimeError)  used in another loop, thread or process
├── DeliveryDeferredError                    an accepted event was handed over to the journal; see `outcomes`
└── DeliveryError                            an accepted event was not delivered; see `outcomes`
```

No exception of aiohttp leaves the library, not even in a chain: aiohttp's exceptions carry the request's
headers, and so the secret.
"""

from __future__ import annotations

from typing import Any

import attrs


@attrs.frozen
class ApiError:
    """One thing that is wrong, in the words of the API (specification, "Error").

    `code` is an open set of strings: new codes may appear at any time. It is `None` where the API has
    no code for a problem that was found on this side.
    """

    code: str | None
    message: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" if self.code else self.message


@attrs.frozen
class EventProblem(ApiError):  # noqa: N818 -- a part of an error, never raised itself
    """An `ApiError` found before sending: which field broke which rule, with which value.

    `value` is the offending value as Python would show it, shortened.
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
    """Base class of every exception that the library raises."""

    def __reduce__(self) -> Any:
        return _restore, (type(self), self.args, self.__dict__)


class InvalidSettingError(RoktEventsError, ValueError):
    """A constructor's argument is out of bounds. The message has its name, its value and the bounds."""


class InvalidEventError(RoktEventsError, ValueError):
    """An event breaks the specification. It was not accepted, and nothing was sent.

    Attributes:
        errors: All problems of the event at once. Each has the field, the value, the rule, and the API's
            own code if there is one.
    """

    def __init__(self, errors: tuple[EventProblem, ...]) -> None:
        super().__init__("; ".join(map(str, errors)))
        self.errors = errors


class NotAcceptedError(RoktEventsError):
    """A valid event was not accepted, and nothing of it was sent. One `except` for a handler."""


class QueueFullError(NotAcceptedError):
    """The queue has no room for the event. It was not accepted."""


class JournalError(NotAcceptedError):
    """The journal could not store the event, which was therefore not accepted; or it cannot be opened.

    Attributes:
        path: The file or directory.
        reason: The system's own words.
    """

    def __init__(self, message: str, *, path: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.path = path
        self.reason = reason


class QueueUnavailableError(NotAcceptedError):
    """The queue cannot be reached. The event is not in the queue.

    Attributes:
        was_asked: True if the queue was reached, and did not answer, or not to the end.
    """

    def __init__(self, message: str, *, was_asked: bool = False) -> None:
        super().__init__(message)
        self.was_asked = was_asked


class PublishUnconfirmedError(NotAcceptedError):
    """The queue did not answer in time, after the event was sent to it: the event may be in the queue.

    It is published at most once more if the application publishes it again: Rokt may then count it twice.
    """


class QueueRefusedError(NotAcceptedError):
    """The queue refuses to be used, and will until its settings or ours change.

    A wrong password, a missing permission, a policy that evicts, another number of partitions, another
    format.
    """


class EmitterNotStartedError(NotAcceptedError, RuntimeError):
    """The emitter has not been started: use `async with`, or `await emitter.start()`."""


class EmitterClosedError(NotAcceptedError, RuntimeError):
    """The emitter is closing or closed. The event was not accepted."""


class WrongContextError(RoktEventsError, RuntimeError):
    """The emitter was started in another event loop, thread or process than it is used in."""


class RelayStoppedError(RoktEventsError):
    """The relay has stopped by itself, and says why. What it had read stays in the queue."""
