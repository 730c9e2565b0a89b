"""Bytes and models, both ways (specification, "Root/Body" to "Error").

An event is encoded once, by hand for speed; `CONVERTER` is cattrs's view of the same models, speaks
the wire's names for `to_dict` and `from_dict`, and a test holds the two together byte for byte.
Answers are read leniently: keys in any case, unknown ones ignored, and what is not of the shape the
specification gives is `None`, never an exception.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import attrs
import orjson
from cattrs.gen import make_dict_unstructure_fn, override
from cattrs.preconf.orjson import make_converter

from rokt_events_async.errors import ApiError, EventProblem, InvalidEventError
from rokt_events_async.events import NameValuePair, PartnerEvent, problem, unchecked_pair

ENVELOPE: Final = (b'{"events":[', b"]}")

NAMES: Final = {
    "event_time": "eventTime",
    "event_type": "eventType",
    "session_id": "sessionId",
    "parent_guid": "parentGuid",
    "client_unique_id": "clientUniqueId",
    "metadata": "metadata",
}
"""A model's field and its name on the wire. The time comes first, so that `encode` knows where it stands."""


def format_time(moment: datetime) -> str:
    """A UTC time as the wire has it: exactly three digits, truncated, and `Z`."""
    text = datetime.isoformat(moment, "T", "milliseconds")
    return f"{text[: -len('+00:00')]}Z"


def parse_time(text: str) -> datetime:
    """An ISO 8601 time, taken as UTC where it names no offset.

    Raises:
        ValueError: It is none.
    """
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


@attrs.define
class Stamp:
    """How the wire has the time of all events of one millisecond, written once.

    Attributes:
        since: A moment of that millisecond, in UTC.
        until: When the next one begins.
    """

    since: datetime
    until: datetime
    text: str

    @classmethod
    def at(cls, now: datetime) -> Stamp:
        """Good from `now`, in UTC, to the end of its millisecond."""
        until = now + timedelta(microseconds=1000 - now.microsecond % 1000)
        return cls(now, until, format_time(now))


Pairs = tuple[NameValuePair, ...]

_written: Final[dict[int, tuple[Pairs, orjson.Fragment]]] = {}
"""Metadata, and how the wire has it. By identity: to hash its pairs would cost more than to write them."""

_MAX_WRITTEN: Final = 1024


def _write_pairs(metadata: Pairs) -> tuple[Pairs, orjson.Fragment]:
    """Writes metadata once for all events that share it, as those with the same metadata do."""
    if len(_written) >= _MAX_WRITTEN:
        _written.clear()
    pairs = [{"name": pair.name, "value": pair.value} for pair in metadata]
    known = _written[id(metadata)] = metadata, orjson.Fragment(orjson.dumps(pairs))
    return known


def encode(event: PartnerEvent, time: str | None = None) -> bytes:
    """The bytes of one stamped event: what will be sent, whatever becomes of the object.

    Args:
        time: Its time as the wire has it, if that is known.
    """
    moment = event.event_time
    assert moment is not None, "an event is stamped when it is accepted"
    is_cut = time is None and type(moment) is datetime and moment.microsecond > 0
    wire: dict[str, Any]
    if metadata := event.metadata:
        known = _written.get(id(metadata))
        if known is None or known[0] is not metadata:
            known = _write_pairs(metadata)
        wire = {  # In one go: to add a sixth to five would make the dictionary grow.
            "eventTime": moment if is_cut else time or format_time(moment),
            "eventType": event.event_type,
            "sessionId": event.session_id,
            "parentGuid": event.parent_guid,
            "clientUniqueId": event.client_unique_id,
            "metadata": known[1],
        }
    else:
        wire = {
            "eventTime": moment if is_cut else time or format_time(moment),
            "eventType": event.event_type,
            "sessionId": event.session_id,
            "parentGuid": event.parent_guid,
            "clientUniqueId": event.client_unique_id,
        }
    if is_cut:
        # orjson writes a time four times faster than `isoformat`, in microseconds.
        encoded = orjson.dumps(wire, option=orjson.OPT_UTC_Z)
        return encoded[:_MILLISECONDS_END] + encoded[_MICROSECONDS_END:]
    # What orjson returns has been cut down from a kilobyte, and is dear to keep: a copy is not.
    return b"%b" % orjson.dumps(wire)


_MILLISECONDS_END: Final = len('{"eventTime":"2022-06-28T07:11:01.711')
_MICROSECONDS_END: Final = _MILLISECONDS_END + 3


def join(events: Iterable[bytes]) -> bytes:
    """The body of a request that carries these encoded events."""
    opening, closing = ENVELOPE
    return b"".join((opening, b",".join(events), closing))


# Models and dictionaries, through cattrs.


def _structure_event(data: Any, _type: type[PartnerEvent]) -> PartnerEvent:
    """Hands every value on as it is, so that the model reports all problems at once."""
    if not isinstance(data, Mapping):
        raise InvalidEventError((problem("event", data, "must be a mapping of the wire's names"),))
    problems: list[EventProblem] = []
    if unknown := [key for key in data if key not in NAMES.values()]:
        problems.append(problem("event", unknown, f"must have no names but {', '.join(NAMES.values())}"))
    values: dict[str, Any] = {field: data.get(name) for field, name in NAMES.items()}
    values["metadata"] = _structure_metadata(values["metadata"])
    values["event_time"], found = _structure_time(values["event_time"])
    problems += found
    try:
        event = PartnerEvent(**values)
    except InvalidEventError as error:
        problems += error.errors
    if problems:
        raise InvalidEventError(tuple(problems))
    return event


def _structure_metadata(data: Any) -> Any:
    """Pairs in either case: the specification's table says `Name`, its example `name`.

    What is no pair stays as it is, in its place, for the model to report.
    """
    return tuple(map(_structure_pair, data)) if isinstance(data, (list, tuple)) else data


def _structure_pair(item: Any) -> Any:
    lowered = {str(key).lower(): value for key, value in item.items()} if isinstance(item, Mapping) else {}
    if not lowered or lowered.keys() - {"name", "value"}:
        return item
    return unchecked_pair(lowered.get("name"), lowered.get("value"))


def _structure_time(data: Any) -> tuple[Any, list[EventProblem]]:
    if not isinstance(data, str):
        return data, []
    try:
        return parse_time(data), []
    except ValueError:
        code = None if data else "EventTimeIsMissing"
        return None, [problem("event_time", data, "must be an ISO 8601 time", code)]


def _make_converter() -> Any:
    converter = make_converter()
    converter.register_unstructure_hook(datetime, format_time)
    fields: Any = {field: override(rename=name) for field, name in NAMES.items()}
    fields["event_type"] = override(rename="eventType", unstruct_hook=str)
    fields["event_time"] = override(rename="eventTime", omit_if_default=True)
    fields["metadata"] = override(rename="metadata", omit_if_default=True)
    by_cattrs = make_dict_unstructure_fn(PartnerEvent, converter, **fields)

    def unstructure(event: PartnerEvent) -> dict[str, Any]:
        wire = by_cattrs(event)  # It puts what may be left out last.
        return {name: wire[name] for name in NAMES.values() if name in wire}

    converter.register_unstructure_hook(PartnerEvent, unstructure)
    converter.register_structure_hook(PartnerEvent, _structure_event)
    return converter


CONVERTER: Final = _make_converter()


def structure_event(data: Mapping[str, Any]) -> PartnerEvent:
    """The event that a dictionary in the wire's names describes.

    Raises:
        InvalidEventError: All that is wrong with it.
    """
    event: PartnerEvent = CONVERTER.structure(data, PartnerEvent)
    return event


def unstructure_event(event: PartnerEvent) -> dict[str, Any]:
    """The event as a dictionary in the wire's names."""
    wire: dict[str, Any] = CONVERTER.unstructure(event)
    return wire


# Answers.


@attrs.frozen
class Unprocessed:
    """An event that the server did not accept (specification, "UnprocessedEvent").

    Attributes:
        echo: The event as the server wrote it again, keys in lower case; `None` if it is none.
    """

    echo: dict[str, Any] | None
    errors: tuple[ApiError, ...]


@attrs.frozen
class Answer:
    """The body of a 2xx. A count or a list that is not of its shape makes it no answer at all."""

    processed: int
    unprocessed: tuple[Unprocessed, ...]


def says_all_processed(body: bytes | None, count: int) -> bool:
    """Whether the body of a 2xx is the ordinary one: so many processed, and nothing else to be said."""
    try:
        root = orjson.loads(body or b"")
    except orjson.JSONDecodeError:
        return False
    if type(root) is not dict:
        return False
    processed = root.get("processedEventsCount")
    return type(processed) is int and processed == count and root.get("unprocessedEvents") == []


def read_answer(body: bytes | None) -> Answer | None:
    """The body of a 2xx, or `None` if it cannot be read."""
    root = _read_object(body)
    if root is None:
        return None
    processed = root.get("processedeventscount")
    unprocessed = root.get("unprocessedevents")
    if unprocessed is None:
        unprocessed = []
    if type(processed) is not int or processed < 0 or not isinstance(unprocessed, list):
        return None
    return Answer(processed, tuple(map(_read_unprocessed, unprocessed)))


def read_errors(body: bytes | None) -> tuple[ApiError, ...]:
    """The errors of a refusal, in the specification's shape or a framework's problem document."""
    root = _read_object(body)
    if root is None:
        return ()
    return _read_errors(root.get("errors")) or _read_title(root)


def lower_keys(data: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping with its keys in lower case: a server may write them in any."""
    return {key.lower(): value for key, value in data.items()}


def _read_object(body: bytes | None) -> dict[str, Any] | None:
    if not body:
        return None
    try:
        root = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return lower_keys(root) if isinstance(root, dict) else None


def _read_unprocessed(data: Any) -> Unprocessed:
    item = lower_keys(data) if isinstance(data, dict) else {}
    echo = item.get("event")
    return Unprocessed(lower_keys(echo) if isinstance(echo, dict) else None, _read_errors(item.get("errors")))


def _read_errors(data: Any) -> tuple[ApiError, ...]:
    if isinstance(data, dict):  # A problem document: field and list of messages.
        return tuple(
            ApiError(field, message if isinstance(message, str) else "")
            for field, messages in data.items()
            for message in (messages if isinstance(messages, list) else [messages])
        )
    if not isinstance(data, list):
        return ()
    return tuple(_read_error(lower_keys(item)) for item in data if isinstance(item, dict))


def _read_error(item: dict[str, Any]) -> ApiError:
    code, message = item.get("code"), item.get("message")
    return ApiError(
        code if isinstance(code, str) and code else None, message if isinstance(message, str) else ""
    )


def _read_title(root: dict[str, Any]) -> tuple[ApiError, ...]:
    title = root.get("title")
    return (ApiError(None, title),) if isinstance(title, str) and title else ()
