"""What an event is, and when it is valid (specification, "PartnerEvent" to "Event type").

What needs no clock is found when the event is built; `time_problems` takes the clock's `now`. All
problems of an event are reported at once.
"""

from __future__ import annotations

import functools
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


class _PairDraft:
    """A pair that is being filled: the slots of `NameValuePair`, whose class it takes on when it is done.

    That is three times as fast as writing past a frozen class field by field.
    """

    __slots__ = ("name", "value")


def unchecked_pair(name: Any, value: Any) -> NameValuePair:
    """A pair that its event checks, rather than itself: its problems belong to the event's."""
    draft: Any = _PairDraft()
    draft.name = name
    draft.value = value
    draft.__class__ = NameValuePair
    pair: NameValuePair = draft
    return pair


@attrs.frozen(init=False, kw_only=True, weakref_slot=False)
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

    event_type: EventType | str
    event_time: datetime | None = None
    session_id: str
    parent_guid: str
    client_unique_id: str
    metadata: tuple[NameValuePair, ...] = ()

    def __init__(
        self,
        *,
        event_type: EventType | str,
        session_id: str,
        parent_guid: str,
        client_unique_id: str,
        metadata: Metadata = None,
        event_time: datetime | None = None,
    ) -> None:
        if type(event_type) is not EventType:
            event_type = _to_event_type(event_type)
        pairs = _plain_pairs(metadata)
        # Valid beyond doubt, as nearly all are: a known type, ASCII throughout.
        if not (
            pairs is not None
            and type(event_type) is EventType
            and (event_time is None or _is_plain_time(event_time))
            and type(session_id) is type(parent_guid) is type(client_unique_id) is str
            and session_id
            and parent_guid
            and client_unique_id
            and session_id.isascii()
            and parent_guid.isascii()
            and client_unique_id.isascii()
        ):
            event_time, pairs = _to_utc(event_time), _to_pairs(metadata)
            ids = {"session_id": session_id, "parent_guid": parent_guid, "client_unique_id": client_unique_id}
            if problems := tuple(_problems(event_type, ids, pairs, event_time)):
                raise InvalidEventError(problems)
            if type(event_type) is not EventType:
                _warn_unknown(event_type)
        draft: Any = self
        _thaw(draft, "__class__", _EventDraft)
        draft.event_type = event_type
        draft.event_time = event_time
        draft.session_id = session_id
        draft.parent_guid = parent_guid
        draft.client_unique_id = client_unique_id
        draft.metadata = pairs
        draft.__class__ = PartnerEvent

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
        from rokt_events_async._protocol import encoding  # noqa: PLC0415 -- it imports the models

        return encoding.structure_event(data)

    def to_dict(self) -> dict[str, Any]:
        """The event in the wire's names, as it would be sent; `from_dict` reads it back.

        The time is in whole milliseconds; an event not yet stamped has none.
        """
        from rokt_events_async._protocol import encoding  # noqa: PLC0415 -- it imports the models

        return encoding.unstructure_event(self)

    def stamped(self, now: datetime) -> PartnerEvent:
        """The event itself if it has a time, otherwise a copy that happened `now`, which is in UTC."""
        if self.event_time is not None:
            return self
        draft: Any = _EventDraft()  # All that it takes over has been checked already.
        draft.event_type = self.event_type
        draft.event_time = now
        draft.session_id = self.session_id
        draft.parent_guid = self.parent_guid
        draft.client_unique_id = self.client_unique_id
        draft.metadata = self.metadata
        draft.__class__ = PartnerEvent
        event: PartnerEvent = draft
        return event


class _EventDraft:
    """An event that is being filled, as `_PairDraft` is a pair."""

    __slots__ = ("client_unique_id", "event_time", "event_type", "metadata", "parent_guid", "session_id")


_thaw: Final = object.__setattr__
"""Past the class that forbids it: an event becomes a draft for as long as its fields are written."""


def _plain_pairs(metadata: Metadata) -> tuple[NameValuePair, ...] | None:
    """The pairs of metadata that is valid beyond doubt, or `None`."""
    if metadata is None:
        return ()
    if type(metadata) is not dict:
        return None
    try:
        return _pairs_of(tuple(metadata.items()))
    except TypeError:  # Also where something in it cannot be hashed, and so is no string.
        return None


@functools.lru_cache(maxsize=1024)
def _pairs_of(items: tuple[tuple[Any, Any], ...]) -> tuple[NameValuePair, ...]:
    """The same pairs for the same metadata, as most of it is: that saves 100 bytes an event.

    Raises:
        TypeError: It is not valid beyond doubt. (An exception is not kept: what is equal may be.)
    """
    for name, value in items:
        if not (type(name) is type(value) is str and name and name.isascii() and value.isascii()):
            raise TypeError
    return tuple([unchecked_pair(name, value) for name, value in items])


def _is_plain_time(moment: datetime) -> bool:
    return type(moment) is datetime and moment.tzinfo is UTC and moment != DEFAULT_TIME


# The long way, for everything else.


def _to_event_type(value: EventType | str) -> EventType | str:
    return _KNOWN_TYPES.get(value, value) if isinstance(value, str) else value


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
    if isinstance(value, Mapping):
        return tuple([unchecked_pair(name, text) for name, text in value.items()])
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        return tuple(value)
    return value


def _problems(
    event_type: Any, ids: Mapping[str, Any], metadata: Any, event_time: Any
) -> Iterator[EventProblem]:
    yield from _string_problems("event_type", event_type, _MISSING["event_type"], may_be_empty=False)
    for field, value in ids.items():
        yield from _string_problems(field, value, _MISSING.get(field), may_be_empty=False)
    if metadata:
        yield from _metadata_problems(metadata)
    if event_time is not None:
        yield from _time_form_problems(event_time)


_MISSING: Final = {
    "event_type": "InvalidEventType",
    "session_id": "SessionIdMissing",
    "parent_guid": "ParentGuidIsMissing",
}
"""The codes that the API has for a missing one (specification, 207 example)."""


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
        stacklevel=3,
    )
