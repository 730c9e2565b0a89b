"""The API's verdict on a request: a second reading of the specification. Pure; `now` is passed in.

The reader behaves like a typed .NET server: property names may have any case, one value of a wrong type
makes the whole request invalid, and a missing value is its type's default, which a 207 names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final, NoReturn

import attrs

EVENT_TYPES: Final = frozenset({"SignalImpression", "SignalViewed", "SignalResponse"})
EVENTS_PER_REQUEST: Final = 25
LEEWAY: Final = timedelta(minutes=5)
REACH: Final = timedelta(days=3)

DEFAULT_TIME: Final = "0001-01-01T00:00:00+00:00"


@attrs.frozen
class Problem:
    """A code and its message, as an `Error` of the specification."""

    code: str
    message: str


TOO_MANY_EVENTS: Final = Problem("TooManyEvents", "The number of events provided exceeds the limit 25")
NO_EVENTS: Final = Problem("NoEventsProvided", "Events cannot be null or empty")
BAD_PAYLOAD: Final = Problem("InvalidRequestPayload", "Request body format is not valid")
MIXED_SESSIONS: Final = Problem(
    "SandboxMixedSessionIds", "All events of a request must share the same session identifier"
)
UNAUTHORIZED: Final = Problem("SandboxUnauthorized", "Credentials or tag id are missing or do not match")
UNSUPPORTED: Final = Problem("SandboxUnsupportedMediaType", "Content-Type must be application/json")

BAD_TYPE: Final = Problem("InvalidEventType", "Event type is invalid")
NO_SESSION: Final = Problem("SessionIdMissing", "SessionId is missing or invalid")
NO_PARENT: Final = Problem("ParentGuidIsMissing", "ParentGuid is null or empty")
NO_TIME: Final = Problem("EventTimeIsMissing", "EventTime is null or default")
NO_CLIENT_ID: Final = Problem("SandboxClientUniqueIdIsMissing", "ClientUniqueId is null or empty")
BAD_TIME: Final = Problem("SandboxEventTimeOutOfRange", "EventTime is over 5m ahead or 3 days past")
NO_NAME: Final = Problem("SandboxMetadataNameIsMissing", "The name of a metadata pair is null or empty")
NO_VALUE: Final = Problem("SandboxMetadataValueIsMissing", "The value of a metadata pair is null")


@attrs.frozen
class Refusal:
    """The whole request is refused: a 4xx."""

    status: int
    title: str
    problem: Problem


@attrs.frozen
class Moment:
    """An `eventTime` as the server understood it.

    Attributes:
        text: The time as it was sent.
        echo: The time as a DateTimeOffset is written: without trailing zeros of the fraction, with the
            offset as it was sent, `Z` as `+00:00`.
    """

    at: datetime
    text: str
    echo: str


@attrs.frozen
class Event:
    """An event as a typed server holds it. `moment` is `None` for the default time."""

    event_type: str | None
    session_id: str | None
    moment: Moment | None
    parent_guid: str | None
    client_unique_id: str | None
    metadata: tuple[tuple[str | None, str | None], ...] | None


@attrs.frozen
class Judged:
    """An event and what is wrong with it, in the order of the specification's example."""

    event: Event
    problems: tuple[Problem, ...]

    @property
    def is_accepted(self) -> bool:
        return not self.problems


class _BadPayloadError(Exception):
    """A typed reader cannot read the body."""


def check_headers(headers: Mapping[str, str], *, expected: Mapping[str, str]) -> Refusal | None:
    """Returns why the request may not be read: credentials, tag id, content type; `None` if it may.

    Args:
        headers: The request's headers, looked up without regard to case.
        expected: The three `rokt-…` headers and their only valid values.
    """
    if any(headers.get(name) != value for name, value in expected.items()):
        return Refusal(401, "Unauthorized", UNAUTHORIZED)
    media_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        return Refusal(415, "Unsupported Media Type", UNSUPPORTED)
    return None


def judge(body: bytes, *, now: datetime, lenient_times: bool = False) -> Refusal | list[Judged]:
    """Returns the verdict on a body: refused as a whole, or a verdict per event.

    Args:
        lenient_times: True reads a null or empty `eventTime` as the default time; False refuses the request.
    """
    try:
        events = _read_body(body, lenient_times=lenient_times)
    except _BadPayloadError:
        return Refusal(400, "BadRequest", BAD_PAYLOAD)
    if not events:
        return Refusal(422, "Validation failed", NO_EVENTS)
    if len(events) > EVENTS_PER_REQUEST:
        return Refusal(422, "Validation failed", TOO_MANY_EVENTS)
    # A missing id is no second session: the specification's 207 example has one beside valid events.
    if len({event.session_id for event in events if event.session_id}) > 1:
        return Refusal(422, "Validation failed", MIXED_SESSIONS)
    return [Judged(event, tuple(_problems(event, now))) for event in events]


def _problems(event: Event, now: datetime) -> list[Problem]:
    checks = (
        (event.event_type in EVENT_TYPES, BAD_TYPE),
        (event.session_id, NO_SESSION),
        (event.parent_guid, NO_PARENT),
        (event.moment, NO_TIME),
        (event.client_unique_id, NO_CLIENT_ID),
        (event.moment is None or now - REACH <= event.moment.at <= now + LEEWAY, BAD_TIME),
        (all(name for name, _ in event.metadata or ()), NO_NAME),
        (all(value is not None for _, value in event.metadata or ()), NO_VALUE),
    )
    return [problem for is_fine, problem in checks if not is_fine]


# Reading, as a typed server does.


def _read_body(body: bytes, *, lenient_times: bool) -> list[Event]:
    try:
        root = json.loads(body.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _BadPayloadError from error
    events = _properties(root).get("events")
    if events is None:
        return []
    if not isinstance(events, list):
        raise _BadPayloadError
    return [_read_event(_properties(item), lenient_times=lenient_times) for item in events]


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _properties(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _BadPayloadError
    return {name.lower(): item for name, item in value.items()}


def _read_event(properties: dict[str, Any], *, lenient_times: bool) -> Event:
    return Event(
        event_type=_text(properties, "eventtype"),
        session_id=_text(properties, "sessionid"),
        moment=_moment(properties, lenient_times=lenient_times),
        parent_guid=_text(properties, "parentguid"),
        client_unique_id=_text(properties, "clientuniqueid"),
        metadata=_metadata(properties.get("metadata")),
    )


def _text(properties: dict[str, Any], name: str) -> str | None:
    value = properties.get(name)
    if value is not None and not isinstance(value, str):
        raise _BadPayloadError
    return value


def _metadata(value: Any) -> tuple[tuple[str | None, str | None], ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise _BadPayloadError
    pairs = [_properties(item) for item in value]
    return tuple((_text(pair, "name"), _text(pair, "value")) for pair in pairs)


_TIME: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,7})\d*)?(Z|[+-]\d\d:\d\d)?", re.ASCII
)


def _moment(properties: dict[str, Any], *, lenient_times: bool) -> Moment | None:
    if "eventtime" not in properties:
        return None
    text = _text(properties, "eventtime")
    if not text and lenient_times:
        return None
    parts = _TIME.fullmatch(text) if text else None
    if text is None or parts is None:
        raise _BadPayloadError
    fraction, offset = (parts[7] or "").rstrip("0"), parts[8] or "Z"
    try:
        year, month, day, hour, minute, second = (int(parts[index]) for index in range(1, 7))
        at = datetime(year, month, day, hour, minute, second, tzinfo=_zone(offset))
    except ValueError as error:
        raise _BadPayloadError from error
    at += timedelta(microseconds=int(fraction[:6].ljust(6, "0")))
    point = f".{fraction}" if fraction else ""
    echo = f"{text[:19]}{point}{'+00:00' if offset == 'Z' else offset}"
    return None if echo == DEFAULT_TIME else Moment(at, text, echo)


def _zone(offset: str) -> timezone:
    if offset == "Z":
        return UTC
    sign = -1 if offset[0] == "-" else 1
    return timezone(sign * timedelta(hours=int(offset[1:3]), minutes=int(offset[4:6])))
