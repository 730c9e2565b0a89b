"""An event's fields as others see them: names on the wire, times as text, problems, dictionaries.

It is handed the event's class rather than importing it, so that `events` can build on it.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic, TypeVar

from cattrs.gen import make_dict_unstructure_fn, override
from cattrs.preconf.orjson import make_converter

from rokt_events_async.errors import EventProblem, InvalidEventError

E = TypeVar("E")

NAMES: Final = {
    "event_time": "eventTime",
    "event_type": "eventType",
    "session_id": "sessionId",
    "parent_guid": "parentGuid",
    "client_unique_id": "clientUniqueId",
    "metadata": "metadata",
}
"""A field of the model and its name on the wire. The time comes first: the encoder relies on its place."""

DEFAULT_TIME: Final = datetime(1, 1, 1, tzinfo=UTC)
"""The time that the API treats as missing ("EventTime is null or default")."""

_SHOWN: Final = 60


def format_time(moment: datetime) -> str:
    """Returns a UTC time as the wire has it: exactly three digits, truncated, and `Z`."""
    text = datetime.isoformat(moment, "T", "milliseconds")
    return f"{text[: -len('+00:00')]}Z"


def parse_time(text: str) -> datetime:
    """Returns an ISO 8601 time; one without an offset is taken as UTC.

    Raises:
        ValueError: The text is no ISO 8601 time.
    """
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def read_moment(moment: object) -> datetime:
    """Returns a time that is ISO 8601 text with an offset, or UNIX time in seconds.

    Raises:
        ValueError: It is neither; the text is the rule that it breaks.
    """
    if isinstance(moment, str):
        try:
            found = datetime.fromisoformat(moment)
        except ValueError:
            raise ValueError("must be ISO 8601 text, as in 2026-01-02T03:04:05Z") from None
        if found.tzinfo is None:
            raise ValueError("must be ISO 8601 text with an offset or Z, as in 2026-01-02T03:04:05Z")
        return found
    if isinstance(moment, bool) or not isinstance(moment, int | float):
        raise ValueError("must be ISO 8601 text, or UNIX time in seconds")  # noqa: TRY004 -- one kind of problem
    if moment > _SECONDS_END:
        raise ValueError("must be UNIX time in seconds, not in milliseconds")
    try:
        return datetime.fromtimestamp(moment, UTC)
    except (ValueError, OverflowError, OSError):
        raise ValueError("must be UNIX time in seconds, within the years 1 to 9999") from None


_SECONDS_END: Final = 100_000_000_000
"""A UNIX time beyond this, the year 5138, is one in milliseconds."""


def problem(field: str, value: Any, rule: str, code: str | None = None) -> EventProblem:
    """Returns a problem with its message; the value is shown as Python would show it, shortened."""
    shown = _show(value)
    message = f"{field} {rule}, got {shown}"
    return EventProblem(code=code, message=message, field=field, value=shown, rule=rule)


class _Repr(reprlib.Repr):
    """Shows values within bounds: what is huge or deep is cut before it is shown, not after."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = _SHOWN
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 4
        self.maxlevel = 3


_repr: Final = _Repr()


def _show(value: Any) -> str:
    """Returns a value as Python would show it, shortened; by its type if that raises."""
    try:
        if type(value) is datetime:
            return value.isoformat()
        if isinstance(value, (str, bytes)):
            shown = ascii(value[:_SHOWN])
        elif isinstance(value, (list, tuple, dict, set, frozenset)):
            shown = _repr.repr(value).encode("ascii", "backslashreplace").decode()
        else:
            shown = ascii(value)
    except Exception:  # noqa: BLE001 -- the value is foreign code
        return f"a {type(value).__name__}"
    return shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 3]}..."


def string_problems(
    field: str, value: Any, code: str | None, *, may_be_empty: bool
) -> Iterator[EventProblem]:
    """Yields what is wrong with a value that must be a string."""
    if not isinstance(value, str) or not (value or may_be_empty):
        rule = "must be a string" if may_be_empty else "must be a non-empty string"
        yield problem(field, value, rule, code)
        return
    try:
        value.encode()
    except UnicodeEncodeError as error:
        yield problem(field, value, f"must have no lone surrogate (one is at {error.start})")


def time_form_problems(value: Any) -> Iterator[EventProblem]:
    """Yields what is wrong with an event's time, apart from its window.

    A time that could be converted is a plain one in UTC already.
    """
    if not isinstance(value, datetime):
        yield problem("event_time", value, "must be a datetime")
    elif type(value) is datetime and value.tzinfo is UTC:
        if value - DEFAULT_TIME < _WHOLE:
            yield problem("event_time", value, "must not be the default time", "EventTimeIsMissing")
    elif _is_naive(value):
        yield problem("event_time", value, "must be aware, as in datetime.now(UTC)")
    elif type(value) is datetime and _has_offset(value):
        yield problem("event_time", value, "must lie between the years 1 and 9999 in UTC")
    else:
        yield problem("event_time", value, "must be a real time, whose methods do not raise")


_WHOLE: Final = timedelta(milliseconds=1)
"""The wire's time has whole milliseconds."""


def _is_naive(value: datetime) -> bool:
    try:
        return value.utcoffset() is None
    except Exception:  # noqa: BLE001 -- a foreign time zone or subclass
        return False


def _has_offset(value: datetime) -> bool:
    try:
        return value.utcoffset() is not None
    except Exception:  # noqa: BLE001 -- as above
        return False


class DictView(Generic[E]):
    """An event as a dictionary in the wire's names, and back, by cattrs.

    Args:
        cls: The class of events. Its constructor takes the fields of `NAMES`.
        make_pair: Makes a metadata pair of a name and a value, unchecked.
    """

    def __init__(self, cls: type[E], make_pair: Callable[[Any, Any], Any]) -> None:
        self._cls = cls
        self._make_pair = make_pair
        self._converter = make_converter()
        self._converter.register_unstructure_hook(datetime, format_time)
        fields: Any = {field: override(rename=name) for field, name in NAMES.items()}
        fields["event_type"] = override(rename="eventType", unstruct_hook=str)
        fields["event_time"] = override(rename="eventTime", omit_if_default=True)
        fields["metadata"] = override(rename="metadata", omit_if_default=True)
        self._by_cattrs = make_dict_unstructure_fn(cls, self._converter, **fields)
        self._converter.register_unstructure_hook(cls, self._unstructure)
        self._converter.register_structure_hook(cls, lambda data, _type: self._structure(data))

    def from_dict(self, data: Mapping[str, Any]) -> E:
        """Returns the event that the dictionary describes.

        Raises:
            InvalidEventError: All that is wrong with it.
        """
        return self._converter.structure(data, self._cls)

    def to_dict(self, event: E) -> dict[str, Any]:
        """Returns the event as a dictionary in the wire's names."""
        wire: dict[str, Any] = self._converter.unstructure(event)
        return wire

    def _unstructure(self, event: E) -> dict[str, Any]:
        wire = self._by_cattrs(event)  # cattrs puts what may be left out last.
        return {name: wire[name] for name in NAMES.values() if name in wire}

    def _structure(self, data: Any) -> E:
        """Passes every value on as it is, so that the model reports all problems at once."""
        if not isinstance(data, Mapping):
            raise InvalidEventError((problem("event", data, "must be a mapping of the wire's names"),))
        problems: list[EventProblem] = []
        if unknown := [key for key in data if key not in NAMES.values()]:
            problems.append(problem("event", unknown, f"must have no names but {', '.join(NAMES.values())}"))
        values: dict[str, Any] = {field: data.get(name) for field, name in NAMES.items()}
        values["metadata"] = self._structure_metadata(values["metadata"])
        values["event_time"], found = _structure_time(values["event_time"])
        problems += found
        try:
            event = self._cls(**values)
        except InvalidEventError as error:
            problems += error.errors
        if problems:
            raise InvalidEventError(tuple(problems))
        return event

    def _structure_metadata(self, data: Any) -> Any:
        """Reads pairs in either case: the specification's table says `Name`, its example `name`.

        An item that is no pair keeps its place, so that the model reports it.
        """
        return tuple(map(self._structure_pair, data)) if isinstance(data, (list, tuple)) else data

    def _structure_pair(self, item: Any) -> Any:
        lowered = (
            {str(key).lower(): value for key, value in item.items()} if isinstance(item, Mapping) else {}
        )
        if not lowered or lowered.keys() - {"name", "value"} or len(lowered) < len(item):
            return item
        return self._make_pair(lowered.get("name"), lowered.get("value"))


def _structure_time(data: Any) -> tuple[Any, list[EventProblem]]:
    if not isinstance(data, str):
        return data, []
    try:
        return parse_time(data), []
    except ValueError:
        code = None if data else "EventTimeIsMissing"
        return None, [problem("event_time", data, "must be an ISO 8601 time", code)]
