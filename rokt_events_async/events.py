"""What an event is, and when it is valid (specification, "PartnerEvent" to "Event type").

Constructing an event checks all that needs no clock; `time_problems` takes the clock's `now`. All
problems of an event are reported at once.
"""

from __future__ import annotations

import difflib
import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, NoReturn, final
from uuid import UUID

import attrs

from rokt_events_async._fields import (
    DictView,
    problem,
    read_moment,
    string_problems,
    time_form_problems,
)
from rokt_events_async.errors import EventProblem, InvalidEventError

MAX_AHEAD: Final = timedelta(minutes=5)
"""How far in the future an event's time may lie (specification, "NameValuePair", note)."""

MAX_AGE: Final = timedelta(days=3)
"""How far in the past an event's time may lie (specification, "NameValuePair", note)."""

_WARNINGS: Final = 1000


class EventType(StrEnum):
    """The event types of the specification. The API grows: any other non-empty string is accepted too."""

    SIGNAL_IMPRESSION = "SignalImpression"
    """A placement, slot or creative is rendered and visible to the customer."""

    SIGNAL_VIEWED = "SignalViewed"
    """At least half of a creative has been in view for a second."""

    SIGNAL_RESPONSE = "SignalResponse"
    """A customer chose a response option of a creative."""


_KNOWN_TYPES: Final[dict[Any, EventType]] = {str(member): member for member in EventType}
_warned_types: set[str] = set()


@final
@attrs.frozen(weakref_slot=False)
class NameValuePair:
    """One name and value of an event's metadata (specification, "NameValuePair").

    A string of a subclass is kept as a plain string of its content.

    Raises:
        InvalidEventError: The name or the value is no string or cannot be encoded, or the name is empty.
    """

    name: str
    value: str

    def __attrs_post_init__(self) -> None:
        name, value = self.name, self.value
        if type(name) is str and type(value) is str and name and name.isascii() and value.isascii():
            return
        _thaw(self, "name", name := _to_plain(name))
        _thaw(self, "value", value := _to_plain(value))
        problems = tuple(_pair_problems("metadata", name, value))
        if problems:
            raise InvalidEventError(problems)

    def __init_subclass__(cls) -> NoReturn:
        raise TypeError(
            "NameValuePair cannot be subclassed: its instances are shared, and made in other ways"
        )


Metadata = Mapping[str, str] | Iterable[NameValuePair] | None
"""What `metadata=` takes."""


class _PairDraft:
    """A pair that is being filled: it has the slots of `NameValuePair`, and takes on that class when filled.

    That is three times as fast as writing the fields of a frozen instance one by one.
    """

    __slots__ = ("name", "value")


def unchecked_pair(name: Any, value: Any) -> NameValuePair:
    """Returns a pair that the event checks, so that its problems are reported with the event's."""
    draft: Any = _PairDraft()
    draft.name = name
    draft.value = value
    draft.__class__ = NameValuePair
    pair: NameValuePair = draft
    return pair


def _plain_pair(name: Any, value: Any) -> NameValuePair:
    return unchecked_pair(_to_plain(name), _to_plain(value))


@final
@attrs.frozen(init=False, kw_only=True, weakref_slot=False)
class PartnerEvent:
    """One thing that a customer saw or did (specification, "PartnerEvent").

    Immutable, and valid once it is constructed. Only its time window needs a clock: `track()` checks that.
    It cannot be subclassed: write a function that makes events. A string of a subclass is kept as a plain
    string of its content, and a time of a subclass as a plain `datetime`.

    Args:
        event_type: An `EventType`, or another non-empty string, which is accepted with one warning per
            name.
        session_id: The session of the `/offers` response; opaque, not empty. All three ids take a `UUID`
            too, and keep its canonical text.
        parent_guid: The instance guid of the placement, slot, creative or response option; not empty.
        client_unique_id: The partner's transaction id, the same for all events of one transaction;
            not empty.
        metadata: A mapping of strings, or `NameValuePair` objects; names must not be empty.
        event_time: When it happened, as an aware datetime. It is kept in UTC and sent in whole
            milliseconds, truncated. Without it, `track()` stamps the time of the call. `PartnerEvent.at`
            takes ISO 8601 text and UNIX time.

    Raises:
        InvalidEventError: All problems of the event, at once.
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
        session_id: str | UUID,
        parent_guid: str | UUID,
        client_unique_id: str | UUID,
        metadata: Metadata = None,
        event_time: datetime | None = None,
    ) -> None:
        if type(event_type) is not EventType:
            event_type = _to_event_type(event_type)
        pairs = _plain_pairs(metadata)
        # Nearly all events are plainly valid: a known type, ASCII throughout.
        if not (
            pairs is not None
            and type(event_type) is EventType
            and (event_time is None or _is_plain_time(event_time))
            and type(session_id) is str
            and type(parent_guid) is str
            and type(client_unique_id) is str
            and session_id
            and parent_guid
            and client_unique_id
            and session_id.isascii()
            and parent_guid.isascii()
            and client_unique_id.isascii()
        ):
            event_time, pairs = _to_utc(event_time), _to_pairs(metadata)
            session_id, parent_guid = _to_id(session_id), _to_id(parent_guid)
            client_unique_id = _to_id(client_unique_id)
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

    def __init_subclass__(cls) -> NoReturn:
        raise TypeError("PartnerEvent cannot be subclassed: write a function that makes events instead")

    @classmethod
    def impression(
        cls,
        *,
        session_id: str | UUID,
        parent_guid: str | UUID,
        client_unique_id: str | UUID,
        metadata: Metadata = None,
        event_time: datetime | None = None,
    ) -> PartnerEvent:
        """Returns a `SIGNAL_IMPRESSION`; `parent_guid` is the guid of a placement, slot or creative."""
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
        session_id: str | UUID,
        parent_guid: str | UUID,
        client_unique_id: str | UUID,
        metadata: Metadata = None,
        event_time: datetime | None = None,
    ) -> PartnerEvent:
        """Returns a `SIGNAL_VIEWED`; `parent_guid` is the guid of a creative."""
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
        session_id: str | UUID,
        parent_guid: str | UUID,
        client_unique_id: str | UUID,
        metadata: Metadata = None,
        event_time: datetime | None = None,
    ) -> PartnerEvent:
        """Returns a `SIGNAL_RESPONSE`; `parent_guid` is the guid of a response option."""
        return cls(
            event_type=EventType.SIGNAL_RESPONSE,
            session_id=session_id,
            parent_guid=parent_guid,
            client_unique_id=client_unique_id,
            metadata=metadata,
            event_time=event_time,
        )

    @classmethod
    def at(cls, moment: str | float, **fields: Any) -> PartnerEvent:
        """Returns an event whose time is text or a number: `PartnerEvent.at("2026-01-02T03:04:05Z", ...)`.

        Args:
            moment: ISO 8601 text with an offset or `Z`, or UNIX time in seconds.
            fields: The other arguments of `PartnerEvent`.

        Raises:
            InvalidEventError: All problems of the event at once, those of the time included.
        """
        problems: tuple[EventProblem, ...] = ()
        event_time = None
        try:
            event_time = read_moment(moment)
        except ValueError as error:
            problems = (problem("event_time", moment, str(error)),)
        try:
            event = cls(event_time=event_time, **fields)
        except InvalidEventError as error:
            problems = (*error.errors, *problems)
        if problems:
            raise InvalidEventError(problems)
        return event

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PartnerEvent:
        """Returns the event that a dictionary in the wire's names describes (`eventType`, `sessionId`, …).

        The names of metadata pairs are read in either case.

        Raises:
            InvalidEventError: All problems at once, unknown names included.
        """
        return _dict_view.from_dict(data)

    def to_dict(self) -> dict[str, Any]:
        """Returns the event in the wire's names, as it would be sent; `from_dict` reads it back.

        The time is in whole milliseconds; an event not yet stamped has none.
        """
        return _dict_view.to_dict(self)

    def stamped(self, now: datetime) -> PartnerEvent:
        """Returns the event itself if it has a time, otherwise a copy with the time `now`, in UTC."""
        if self.event_time is not None:
            return self
        draft: Any = _EventDraft()  # The fields have been checked already.
        draft.event_type = self.event_type
        draft.event_time = now
        draft.session_id = self.session_id
        draft.parent_guid = self.parent_guid
        draft.client_unique_id = self.client_unique_id
        draft.metadata = self.metadata
        draft.__class__ = PartnerEvent
        event: PartnerEvent = draft
        return event


def restore(data: Mapping[str, Any]) -> PartnerEvent:
    """Returns the event of a dictionary in the wire's names that was valid when it was written.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: It was not.
    """
    name = str.__str__(data["eventType"])
    draft: Any = _EventDraft()
    draft.event_type = _known_types.get(name, name)
    moment = datetime.fromisoformat(data["eventTime"])
    draft.event_time = moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    draft.session_id = str.__str__(data["sessionId"])
    draft.parent_guid = str.__str__(data["parentGuid"])
    draft.client_unique_id = str.__str__(data["clientUniqueId"])
    if not (name and draft.session_id and draft.parent_guid and draft.client_unique_id):
        raise ValueError("a required field is empty")
    draft.metadata = _shared(tuple([(one["name"], one["value"]) for one in data.get("metadata", ())]))
    draft.__class__ = PartnerEvent
    event: PartnerEvent = draft
    return event


class _EventDraft:
    """An event that is being filled, as `_PairDraft` is a pair."""

    __slots__ = ("client_unique_id", "event_time", "event_type", "metadata", "parent_guid", "session_id")


_known_types: Final[dict[str, EventType]] = {str(known): known for known in EventType}

_thaw: Final = object.__setattr__
"""Writes to a frozen instance: an event becomes a draft while its fields are written."""

_dict_view: Final = DictView(PartnerEvent, _plain_pair)


def _plain_pairs(metadata: Metadata) -> tuple[NameValuePair, ...] | None:
    """Returns the pairs of plainly valid metadata, or `None`."""
    if metadata is None:
        return ()
    if type(metadata) is not dict:
        return None
    for name, value in metadata.items():
        # Before the look-up, which would take any string that is equal to a plain one.
        if not (type(name) is type(value) is str and name and name.isascii() and value.isascii()):
            return None
    return _shared(tuple(metadata.items()))


def _shared(items: tuple[tuple[str, str], ...]) -> tuple[NameValuePair, ...]:
    """Returns the pairs of plain strings, the same tuple for equal ones. No name may be empty."""
    shared = _shared_pairs.get(items)
    if shared is None:
        if not all(name for name, _ in items):
            raise ValueError("a name is empty")
        shared = tuple([_plain_pair(str.__str__(name), str.__str__(value)) for name, value in items])
        if sum([len(name) + len(value) for name, value in items]) <= MAX_SHARED:
            if len(_shared_pairs) >= _MAX_SHARED_COUNT:
                _shared_pairs.clear()
            _shared_pairs[items] = shared
    return shared


MAX_SHARED: Final = 512
"""The most characters of metadata that equal events share. Larger metadata is seldom equal, and not kept."""

_MAX_SHARED_COUNT: Final = 1024

_shared_pairs: Final[dict[tuple[tuple[str, str], ...], tuple[NameValuePair, ...]]] = {}
"""One tuple for equal metadata, which saves 100 bytes per event."""


def _is_plain_time(moment: datetime) -> bool:
    return type(moment) is datetime and moment.tzinfo is UTC and moment.year > 1


# The slow path, for everything else.


def _to_plain(value: Any) -> Any:
    """Returns a string of a subclass, such as a member of a string enumeration, by its content."""
    return str.__str__(value) if isinstance(value, str) and type(value) is not str else value


def _to_id(value: Any) -> Any:
    """Returns an id as text; of a UUID the canonical one."""
    return str(value) if isinstance(value, UUID) else _to_plain(value)


def _to_event_type(value: EventType | str) -> EventType | str:
    plain = _to_plain(value)
    return _KNOWN_TYPES.get(plain, plain) if isinstance(plain, str) else plain


def _to_utc(value: Any) -> Any:
    """Returns an aware time as a plain one in UTC. Anything else stays, so that `_problems` reports it."""
    if not isinstance(value, datetime):
        return value
    try:
        if value.utcoffset() is None:
            return value
        moment = value.astimezone(UTC)
        return datetime(
            moment.year,
            moment.month,
            moment.day,
            moment.hour,
            moment.minute,
            moment.second,
            moment.microsecond,
            UTC,
        )
    except Exception:  # noqa: BLE001 -- a foreign time zone or subclass; it is reported
        return value


def _to_pairs(value: Metadata) -> tuple[NameValuePair, ...]:
    """Returns the pairs as a tuple. Invalid items stay, so that `_problems` reports them all at once."""
    if value is None:
        return ()
    try:
        if isinstance(value, Mapping):
            return tuple([_plain_pair(name, text) for name, text in value.items()])
        if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
            return tuple(value)
    except Exception:  # noqa: BLE001 -- a foreign mapping or iterable; it is reported
        return _Unreadable(value)  # type: ignore[return-value]  # so that `_problems` reports it
    return value


class _Unreadable:
    """Metadata that raises while it is read."""

    def __init__(self, value: object) -> None:
        self._name = type(value).__name__

    def __repr__(self) -> str:
        return f"a {self._name} that raises"


def _problems(
    event_type: Any, ids: Mapping[str, Any], metadata: Any, event_time: Any
) -> Iterator[EventProblem]:
    yield from string_problems("event_type", event_type, _MISSING["event_type"], may_be_empty=False)
    for field, value in ids.items():
        yield from string_problems(field, value, _MISSING.get(field), may_be_empty=False)
    if not isinstance(metadata, tuple) or metadata:
        yield from _metadata_problems(metadata)
    if event_time is not None:
        yield from time_form_problems(event_time)


_MISSING: Final = {
    "event_type": "InvalidEventType",
    "session_id": "SessionIdMissing",
    "parent_guid": "ParentGuidIsMissing",
}
"""The API's code for a missing value, by field (specification, 207 example)."""


def _metadata_problems(metadata: Any) -> Iterator[EventProblem]:
    if not isinstance(metadata, tuple):
        yield problem("metadata", metadata, "must be a mapping of strings or NameValuePair objects")
        return
    found = itertools.chain.from_iterable(map(_item_problems, itertools.count(), metadata))
    yield from itertools.islice(found, _MAX_METADATA_PROBLEMS)
    if more := sum(1 for _ in found):
        yield problem("metadata", f"{more} more", "must have no such items")


_MAX_METADATA_PROBLEMS: Final = 20


def _item_problems(index: int, pair: Any) -> Iterator[EventProblem]:
    if isinstance(pair, NameValuePair):
        yield from _pair_problems(f"metadata[{index}]", pair.name, pair.value)
    else:
        yield problem(f"metadata[{index}]", pair, "must be a NameValuePair: a name and a value, nothing else")


def _pair_problems(field: str, name: Any, value: Any) -> Iterator[EventProblem]:
    yield from string_problems(f"{field}.name", name, None, may_be_empty=False)
    yield from string_problems(f"{field}.value", value, None, may_be_empty=True)


def time_problems(event_time: datetime, *, now: datetime) -> tuple[EventProblem, ...]:
    """Returns what is wrong with an event's time at the moment `now`: too far ahead, or too old.

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
    """Returns True if the API would refuse the event for its age."""
    return now - event_time > MAX_AGE


def _warn_unknown(event_type: str) -> None:
    """Warns once per name. Their number and size are bounded, because they may come from outside."""
    name = event_type[:_MAX_SHOWN_TYPE]
    if name in _warned_types or len(_warned_types) >= _WARNINGS:
        return
    close = {one.casefold(): one for one in EventType}.get(name.casefold()) or next(
        iter(difflib.get_close_matches(name, list(EventType), 1)), None
    )
    hint = f"; did you mean {close}?" if close else f" ({', '.join(EventType)})"
    warnings.warn(
        f"event type {name!r} is none of the specification's{hint}; it is sent as it is", stacklevel=3
    )
    _warned_types.add(name)  # After the warning: where it is an error, each such event raises it.


_MAX_SHOWN_TYPE: Final = 64
