"""An asyncio client for Rokt's Server Events API: batching, retries, a definite outcome for every event."""

from rokt_events_async._version import __version__
from rokt_events_async.emitter import Emitter
from rokt_events_async.errors import (
    ApiError,
    EmitterClosedError,
    EmitterNotStartedError,
    EventProblem,
    InvalidEventError,
    InvalidSettingError,
    NotAcceptedError,
    QueueFullError,
    RoktEventsError,
    WrongContextError,
)
from rokt_events_async.events import EventType, NameValuePair, PartnerEvent
from rokt_events_async.observers import LoggingObserver, Observer, RequestReport, RetryReport
from rokt_events_async.outcomes import (
    Cause,
    CredentialsRefusedError,
    Delivery,
    DeliveryError,
    DeliveryFailedError,
    DeliveryUnconfirmedError,
    DrainReport,
    EmitterStats,
    EventExpiredError,
    EventRejectedError,
    Health,
    LastError,
    Outcome,
    Receipt,
)
from rokt_events_async.settings import DEMO, PRODUCTION, Credentials, RetryPolicy
from rokt_events_async.tracker import Tracker

__all__ = [
    "DEMO",
    "PRODUCTION",
    "ApiError",
    "Cause",
    "Credentials",
    "CredentialsRefusedError",
    "Delivery",
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
    "LastError",
    "LoggingObserver",
    "NameValuePair",
    "NotAcceptedError",
    "Observer",
    "Outcome",
    "PartnerEvent",
    "QueueFullError",
    "Receipt",
    "RequestReport",
    "RetryPolicy",
    "RetryReport",
    "RoktEventsError",
    "Tracker",
    "WrongContextError",
    "__version__",
]
