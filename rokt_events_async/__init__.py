"""An asyncio client for Rokt's Server Events API: batching, retries, a definite outcome for every event.

A name is imported from its module when it is first asked for: a start of pytest loads the plugin, and with it
this package, in every project where it is installed.
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

from rokt_events_async._version import __version__

if TYPE_CHECKING:
    from rokt_events_async.emitter import Emitter
    from rokt_events_async.errors import (
        ApiError,
        EmitterClosedError,
        EmitterNotStartedError,
        EventProblem,
        InvalidEventError,
        InvalidSettingError,
        JournalError,
        NotAcceptedError,
        PublishUnconfirmedError,
        QueueFullError,
        QueueRefusedError,
        QueueUnavailableError,
        RelayStoppedError,
        RoktEventsError,
        WrongContextError,
    )
    from rokt_events_async.events import EventType, NameValuePair, PartnerEvent
    from rokt_events_async.journal import Journal
    from rokt_events_async.observers import LoggingObserver, Observer, RequestReport, RetryReport
    from rokt_events_async.outcomes import (
        Cause,
        CredentialsRefusedError,
        Delivery,
        DeliveryDeferredError,
        DeliveryError,
        DeliveryFailedError,
        DeliveryUnconfirmedError,
        DrainReport,
        EmitterStats,
        EventExpiredError,
        EventRejectedError,
        Health,
        JournalStats,
        LastError,
        Outcome,
        Receipt,
    )
    from rokt_events_async.relay import tracker_from_env
    from rokt_events_async.settings import DEMO, PRODUCTION, Credentials, RetryPolicy
    from rokt_events_async.threaded import ThreadedEmitter
    from rokt_events_async.tracker import Tracker

__all__ = [
    "DEMO",
    "PRODUCTION",
    "ApiError",
    "Cause",
    "Credentials",
    "CredentialsRefusedError",
    "Delivery",
    "DeliveryDeferredError",
    "DeliveryError",
    "DeliveryFailedError",
    "DeliveryUnconfirmedError",
    "DrainReport",
    "Emitter",
    "EmitterClosedError",
    "EmitterNotStartedError",
    "EmitterStats",
    "EventExpiredError",
    "EventProblem",
    "EventRejectedError",
    "EventType",
    "Health",
    "InvalidEventError",
    "InvalidSettingError",
    "Journal",
    "JournalError",
    "JournalStats",
    "LastError",
    "LoggingObserver",
    "NameValuePair",
    "NotAcceptedError",
    "Observer",
    "Outcome",
    "PartnerEvent",
    "PublishUnconfirmedError",
    "QueueFullError",
    "QueueRefusedError",
    "QueueUnavailableError",
    "Receipt",
    "RelayStoppedError",
    "RequestReport",
    "RetryPolicy",
    "RetryReport",
    "RoktEventsError",
    "ThreadedEmitter",
    "Tracker",
    "WrongContextError",
    "__version__",
    "tracker_from_env",
]

_NAMES: Final = {
    "emitter": ("Emitter",),
    "errors": (
        "ApiError",
        "EmitterClosedError",
        "EmitterNotStartedError",
        "EventProblem",
        "InvalidEventError",
        "InvalidSettingError",
        "JournalError",
        "NotAcceptedError",
        "PublishUnconfirmedError",
        "QueueFullError",
        "QueueRefusedError",
        "QueueUnavailableError",
        "RelayStoppedError",
        "RoktEventsError",
        "WrongContextError",
    ),
    "events": (
        "EventType",
        "NameValuePair",
        "PartnerEvent",
    ),
    "journal": ("Journal",),
    "observers": (
        "LoggingObserver",
        "Observer",
        "RequestReport",
        "RetryReport",
    ),
    "outcomes": (
        "Cause",
        "CredentialsRefusedError",
        "Delivery",
        "DeliveryDeferredError",
        "DeliveryError",
        "DeliveryFailedError",
        "DeliveryUnconfirmedError",
        "DrainReport",
        "EmitterStats",
        "EventExpiredError",
        "EventRejectedError",
        "Health",
        "JournalStats",
        "LastError",
        "Outcome",
        "Receipt",
    ),
    "relay": ("tracker_from_env",),
    "settings": (
        "DEMO",
        "PRODUCTION",
        "Credentials",
        "RetryPolicy",
    ),
    "threaded": ("ThreadedEmitter",),
    "tracker": ("Tracker",),
}
"""The modules of this package and the public names that each of them brings."""


if not TYPE_CHECKING:  # A type checker would take any name for one of this package.

    def __getattr__(name: str) -> Any:
        """Returns a public name, or a module that has some, and imports what it needs."""
        for module, names in _NAMES.items():
            if name == module or name in names:
                found = importlib.import_module(f"{__name__}.{module}")
                return found if name == module else getattr(found, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
