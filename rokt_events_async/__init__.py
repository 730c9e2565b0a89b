"""Delivers events to Rokt's Server Events API from inside an asyncio application."""

from rokt_events_async.emitter import Emitter
from rokt_events_async.errors import (
    ApiError,
    CredentialsRefusedError,
    DeliveryError,
    DeliveryFailedError,
    DeliveryUnconfirmedError,
    EmitterClosedError,
    EmitterNotStartedError,
    EventExpiredError,
    EventProblem,
    EventRejectedError,
    InvalidEventError,
    InvalidSettingError,
    Outcome,
    QueueFullError,
    RoktEventsError,
    WrongContextError,
)
from rokt_events_async.events import EventType, NameValuePair, PartnerEvent
from rokt_events_async.observers import LoggingObserver, Observer, RequestReport, RetryReport
from rokt_events_async.outcomes import Delivery, DrainReport, EmitterStats, Receipt
from rokt_events_async.settings import DEMO, PRODUCTION, Credentials, RetryPolicy

__version__ = "0.1.0"

__all__ = [
    "DEMO",
    "PRODUCTION",
    "ApiError",
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
    "InvalidEventError",
    "InvalidSettingError",
    "LoggingObserver",
    "NameValuePair",
    "Observer",
    "Outcome",
    "PartnerEvent",
    "QueueFullError",
    "Receipt",
    "RequestReport",
    "RetryPolicy",
    "RetryReport",
    "RoktEventsError",
    "WrongContextError",
]
