"""What an event is, and when it is valid (specification, "PartnerEvent" to "Event type").

What needs no clock is found when the event is built; `time_problems` takes the clock's `now`. All
problems of an event are reported at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

import attrs

from rokt_events_async.errors import EventProblem, InvalidEventError

MAX_AHEAD: Final = timedelta(minutes=5)
"""How far in the future an event's time may lie (specification, "NameValuePair", note)."""

MAX_AGE: Final = timedelta(days=3)
"""How far in the past an event's time may lie (specification, "NameValuePair", note)."""

DEFAULT_TIME: Final = datetime(1, 1, 1, tzinfo=UTC)
"""What the API takes for no time at all ("EventTime is null or default")."""

_SHOWN: Final = 60
_WARNINGS: Final = 1000


class EventType(StrEnum):
    """The event types of the specification. The API grows: any other non-empty string is let through."""

    SIGNAL_IMPRESSION = "SignalImpression"
    """A placement, slot or creative is rendered and visible to the customer."""

    SIGNAL_VIEWED = "SignalViewed"
    """At least half of a creative has been in view for a second."""

    SIGNAL_RESPONSE = "SignalResponse"
    """A customer chose a response option of a creative."""


_KNOWN_TYPES: Final[dict[Any, EventType]] = {str(member): member for member in EventType}
_warned_types: set[str] = set()


@attrs.frozen(weakref_slot=False)
class NameValuePair:
    """A piece of metadata (specification, "NameValuePair"). The name must not be empty.

    Raises:
        InvalidEventError: A name or value is no string, or cannot be encoded, or the name is empty.
    """

    name: str
    value: str

    def __attrs_post_init__(self) -> None:
        name, value = self.name, self.value
        if type(name) is str and type(value) is str and name and name.isascii() and value.isascii():
            return
        problems = tuple(_pair_problems("metadata", name, value))
        if problems:
            raise InvalidEventError(problems)


Metadata = Mapping[str, str] | Iterable[NameValuePair] | None
"""What `metadata=` takes."""


def _to_event_type(value: EventType | str) -> EventType | str:
    if type(value) is EventType or not isinstance(value, str):
        return value
    return _KNOWN_TYPES.get(value, value)


def _to_utc(value: datetime | None) -> datetime | None:
    if value is None or not isinstance(value, datetime) or value.tzinfo is UTC or value.utcoffset() is None:
        return value
    try:
        return value.astimezone(UTC)
    except OverflowError:
        return value


def _to_pairs(value: Metadata) -> tuple[NameValuePair, ...]:
    """The pairs as a tuple; what is not valid is left for `_problems` to report, all at once."""
    if value is None:
        return ()
    if type(value) is dict or isinstance(value, Mapping):
        return tuple([unchecked_pair(name, text) for name, text in value.items()])
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        return tuple(value)
    return value


def unchecked_pair(name: Any, value: Any) -> NameValuePair:
    """A pair that its event checks, rather than itself: its problems belong to the event's."""
    pair = _new(NameValuePair)
    _set_name(pair, name)
    _set_value(pair, value)
    return pair


# What writes past a frozen class, and faster than `object.__setattr__`: its slots themselves.
_new: Final = object.__new__
_set_name: Final = vars(NameValuePair)["name"].__set__
_set_value: Final = vars(NameValuePair)["value"].__set__


@attrs.frozen(kw_only=True, weakref_slot=False)
class PartnerEvent:
    """One thing that a customer saw or did (specification, "PartnerEvent").

    Immutable, and valid once it is built, its time window aside: that needs a clock, and `track()`
    checks it.

    Args:
        event_type: An `EventType`, or another non-empty string, which is let through with one
            warning a name.
        session_id: The session of the `/offers` response; opaque, not empty.
        parent_guid: The instance guid of the placement, slot, creative or response option; not empty.
        client_unique_id: The partner's transaction id, the same for all events of one transaction;
            not empty.
        metadata: A mapping of strings, or `NameValuePair` objects; names must not be empty.
        event_time: When it happened, as an aware datetime, kept in UTC and sent in whole
            milliseconds, truncated. Left out, `track()` stamps the moment at which it was called.

    Raises:
        InvalidEventError: All that is wrong with it, at once.
    """

    event_type: EventType | str = attrs.field(converter=_to_event_type)
    event_time: datetime | None = attrs.field(default=None, converter=_to_utc)
    session_id: str
    parent_guid: str
    client_unique_id: str
    metadata: tuple[NameValuePair, ...] = attrs.field(default=(), converter=_to_pairs)

    def __attrs_post_init__(self) -> None:
        if _is_plain(self):
            return
        problems = tuple(_problems(self))
        if problems:
            raise InvalidEventError(problems)
        if type(self.event_type) is not EventType:
            _warn_unknown(self.event_type)

    @classmethod
    def impression(
        cls,
        *,
        session_id: str,
        parent_guid: str,
        client_unique_id: str,
        metadata: Metadata = None,
        event_time: datetime | None = None,
    ) -> PartnerEvent:
        """A `SIGNAL_IMPRESSION`: `parent_guid` is a placement's, slot's or creative's guid."""
        return cls(
            event_type=EventType.SIGNAL_IMPRESSION,
            session_id=session_id,
            parent_guid=parent_guid,
            client_unique_id=client_unique_id,
            metadata=metadata,
            event_time=event_time,
        )

    @classmethod
    def viewed(
        cls,
        *,
        session_id: str,
        parent_guid: str,
        client_unique_id: str,
        metadata: Metadata = None,
        event_time: datetime | None = None,
    ) -> PartnerEvent:
        """A `SIGNAL_VIEWED`: `parent_guid` is a creative's guid."""
        return cls(
            event_type=EventType.SIGNAL_VIEWED,
            session_id=session_id,
            parent_guid=parent_guid,
            client_unique_id=client_unique_id,
            metadata=metadata,
            event_time=event_time,
        )

    @classmethod
    def response(
        cls,
        *,
        session_id: str,
        parent_guid: str,
        client_unique_id: str,
        metadata: Metadata = None,
        event_time: datetime | None = None,
    ) -> PartnerEvent:
        """A `SIGNAL_RESPONSE`: `parent_guid` is a response option's guid."""
        return cls(
            event_type=EventType.SIGNAL_RESPONSE,
            session_id=session_id,
            parent_guid=parent_guid,
            client_unique_id=client_unique_id,
            metadata=metadata,
            event_time=event_time,
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PartnerEvent:
        """Reads the wire's names (`eventType`, `sessionId`, …); metadata pairs in either case.

        Raises:
            InvalidEventError: All that is wrong with it, at once, unknown names included.
        """
        from rokt_events_async import _wire  # noqa: PLC0415 -- it imports the models

        return _wire.structure_event(data)

    def to_dict(self) -> dict[str, Any]:
        """The event in the wire's names, as it would be sent; `from_dict` reads it back.

        The time is in whole milliseconds; an event not yet stamped has none.
        """
        from rokt_events_async import _wire  # noqa: PLC0415 -- it imports the models

        return _wire.unstructure_event(self)

    def stamped(self, now: datetime) -> PartnerEvent:
        """The event itself if it has a time, otherwise a copy that happened `now`."""
        if self.event_time is not None:
            return self
        # Everything else has been checked when this one was built.
        copy = _new(PartnerEvent)
        _set_event_type(copy, self.event_type)
        _set_event_time(copy, _to_utc(now))
        _set_session_id(copy, self.session_id)
        _set_parent_guid(copy, self.parent_guid)
        _set_client_unique_id(copy, self.client_unique_id)
        _set_metadata(copy, self.metadata)
        return copy


_set_event_type: Final = vars(PartnerEvent)["event_type"].__set__
_set_event_time: Final = vars(PartnerEvent)["event_time"].__set__
_set_session_id: Final = vars(PartnerEvent)["session_id"].__set__
_set_parent_guid: Final = vars(PartnerEvent)["parent_guid"].__set__
_set_client_unique_id: Final = vars(PartnerEvent)["client_unique_id"].__set__
_set_metadata: Final = vars(PartnerEvent)["metadata"].__set__
_REQUIRED: Final = (
    ("event_type", "InvalidEventType"),
    ("session_id", "SessionIdMissing"),
    ("parent_guid", "ParentGuidIsMissing"),
    ("client_unique_id", None),
)
"""Required strings, with the code the API has for a missing one (specification, 207 example)."""


def _is_plain(event: PartnerEvent) -> bool:
    """Whether it is valid beyond doubt, as nearly all are: a known type, and ASCII throughout."""
    session_id, parent_guid, client_unique_id = event.session_id, event.parent_guid, event.client_unique_id
    if not (
        type(event.event_type) is EventType
        and type(session_id) is type(parent_guid) is type(client_unique_id) is str
        and session_id
        and parent_guid
        and client_unique_id
        and session_id.isascii()
        and parent_guid.isascii()
        and client_unique_id.isascii()
        and type(event.metadata) is tuple
    ):
        return False
    moment = event.event_time
    if moment is not None and not (
        type(moment) is datetime and moment.tzinfo is UTC and moment != DEFAULT_TIME
    ):
        return False
    for pair in event.metadata:
        if type(pair) is not NameValuePair:
            return False
        name, value = pair.name, pair.value
        if not (type(name) is type(value) is str and name and name.isascii() and value.isascii()):
            return False
    return True


def _problems(event: PartnerEvent) -> Iterator[EventProblem]:
    for field, code in _REQUIRED:
        value = getattr(event, field)
        yield from _string_problems(field, value, code, may_be_empty=False)
    if event.metadata:
        yield from _metadata_problems(event.metadata)
    if event.event_time is not None:
        yield from _time_form_problems(event.event_time)


def _metadata_problems(metadata: Any) -> Iterator[EventProblem]:
    if not isinstance(metadata, tuple):
        yield problem("metadata", metadata, "must be a mapping of strings or NameValuePair objects")
        return
    for index, pair in enumerate(metadata):
        if isinstance(pair, NameValuePair):
            yield from _pair_problems(f"metadata[{index}]", pair.name, pair.value)
        else:
            yield problem(
                f"metadata[{index}]", pair, "must be a NameValuePair: a name and a value, nothing else"
            )


def _pair_problems(field: str, name: Any, value: Any) -> Iterator[EventProblem]:
    yield from _string_problems(f"{field}.name", name, None, may_be_empty=False)
    yield from _string_problems(f"{field}.value", value, None, may_be_empty=True)


def _string_problems(
    field: str, value: Any, code: str | None, *, may_be_empty: bool
) -> Iterator[EventProblem]:
    if not isinstance(value, str) or not (value or may_be_empty):
        rule = "must be a string" if may_be_empty else "must be a non-empty string"
        yield problem(field, value, rule, code)
        return
    try:
        value.encode()
    except UnicodeEncodeError as error:
        yield problem(field, value, f"must have no lone surrogate (one is at {error.start})")


def _time_form_problems(value: Any) -> Iterator[EventProblem]:
    if not isinstance(value, datetime):
        yield problem("event_time", value, "must be a datetime")
    elif value.utcoffset() is None:
        yield problem("event_time", value, "must be aware, as in datetime.now(UTC)")
    elif value.tzinfo is not UTC:
        yield problem("event_time", value, "must lie between the years 1 and 9999 in UTC")
    elif value == DEFAULT_TIME:
        yield problem("event_time", value, "must not be the default time", "EventTimeIsMissing")


def time_problems(event_time: datetime, *, now: datetime) -> tuple[EventProblem, ...]:
    """What is wrong with an event's time at the moment `now`: too far ahead, or too old.

    Both bounds are inclusive (specification, "NameValuePair", note).
    """
    if event_time - now > MAX_AHEAD:
        rule = f"must not be over 5 minutes in the future (it is now {now.isoformat()})"
        return (problem("event_time", event_time, rule),)
    if is_expired(event_time, now=now):
        rule = f"must not be over 3 days in the past (it is now {now.isoformat()})"
        return (problem("event_time", event_time, rule),)
    return ()


def is_expired(event_time: datetime, *, now: datetime) -> bool:
    """Whether the API would refuse the event for its age."""
    return now - event_time > MAX_AGE


def problem(field: str, value: Any, rule: str, code: str | None = None) -> EventProblem:
    """A problem with its message; the value is shown as Python would, shortened."""
    shown = value.isoformat() if isinstance(value, datetime) else ascii(_shortened(value))
    if len(shown) > _SHOWN:
        shown = f"{shown[: _SHOWN - 3]}..."
    message = f"{field} {rule}, got {shown}"
    return EventProblem(code=code, message=message, field=field, value=shown, rule=rule)


def _shortened(value: Any) -> Any:
    """A huge string is not to be escaped whole only to be cut."""
    return value[:_SHOWN] if isinstance(value, (str, bytes)) else value


def _warn_unknown(event_type: str) -> None:
    """One warning a name; names are bounded, for they may come from outside."""
    if event_type in _warned_types or len(_warned_types) >= _WARNINGS:
        return
    _warned_types.add(str(event_type))
    known = ", ".join(EventType)
    warnings.warn(
        f"event type {event_type!r} is none of the specification's ({known}); it is sent as it is",
        stacklevel=4,
    )
