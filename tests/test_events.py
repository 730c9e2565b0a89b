"""What an event is, and when it is valid."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from enum import Enum
from typing import Any
from uuid import UUID

import attrs
import pytest

from rokt_events_async import EventType, InvalidEventError, NameValuePair, PartnerEvent, events
from rokt_events_async.events import time_problems
from tests.samples import NOW, event


def make(**changes: Any) -> PartnerEvent:
    values: dict[str, Any] = {
        "event_type": EventType.SIGNAL_VIEWED,
        "session_id": "s",
        "parent_guid": "p",
        "client_unique_id": "c",
    }
    return PartnerEvent(**(values | changes))


def problems(**changes: Any) -> list[tuple[str, str | None]]:
    with pytest.raises(InvalidEventError) as caught:
        make(**changes)
    return [(error.field, error.code) for error in caught.value.errors]


def test_shorthands_name_the_type() -> None:
    """`impression`, `viewed`, `response`."""
    common: dict[str, Any] = {"session_id": "s", "parent_guid": "p", "client_unique_id": "c"}

    assert PartnerEvent.impression(**common).event_type is EventType.SIGNAL_IMPRESSION
    assert PartnerEvent.viewed(**common) == make()
    assert PartnerEvent.response(**common, metadata={"a": "b"}, event_time=NOW) == make(
        event_type="SignalResponse", metadata=[NameValuePair("a", "b")], event_time=NOW
    )


def test_a_known_name_becomes_its_type() -> None:
    """Strings and members are the same."""
    assert make(event_type="SignalViewed").event_type is EventType.SIGNAL_VIEWED


def test_an_unknown_type_is_let_through_with_one_warning() -> None:
    """The API grows; a typing error should be seen all the same."""
    with pytest.warns(UserWarning, match="'SignalOnce' is none of the specification's") as seen:
        made = make(event_type="SignalOnce")
    assert seen[0].filename == __file__
    assert made.event_type == "SignalOnce"

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(event_type="SignalOnce")


def test_the_memory_of_warnings_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names may come from outside, and be many."""
    monkeypatch.setattr("rokt_events_async.events._WARNINGS", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(event_type="SignalTooMany")

    assert "SignalTooMany" not in events._warned_types


@pytest.mark.parametrize(
    ("field", "code"),
    [
        ("event_type", "InvalidEventType"),
        ("session_id", "SessionIdMissing"),
        ("parent_guid", "ParentGuidIsMissing"),
        ("client_unique_id", None),
    ],
)
@pytest.mark.parametrize("value", ["", None, 7, b"bytes"])
def test_required_strings(field: str, code: str | None, value: Any) -> None:
    """Non-empty strings, with the API's own code where it has one."""
    assert problems(**{field: value}) == [(field, code)]


@pytest.mark.parametrize("field", ["event_type", "session_id", "parent_guid", "client_unique_id"])
def test_lone_surrogates_are_refused(field: str) -> None:
    """They cannot be encoded."""
    assert problems(**{field: "ab\ud800"}) == [(field, None)]


@pytest.mark.parametrize("text", ["\x00", 'O\'Brien "quoted"', "\U0001f6d2", " ", "x" * 100_000, "\u00e4"])
def test_strange_strings_that_are_fine(text: str) -> None:
    """NUL, quotes, emoji, white space, huge: the specification forbids none."""
    assert make(session_id=text, metadata={text: text}).session_id == text


def test_subclasses_of_str_are_strings() -> None:
    """As are members of string enumerations."""
    assert make(session_id=EventType.SIGNAL_VIEWED).session_id == "SignalViewed"


@pytest.mark.parametrize(
    ("metadata", "fields"),
    [
        ({"": "x"}, ["metadata[0].name"]),
        ({"a": 1}, ["metadata[0].value"]),
        ({1: "a", "b": None}, ["metadata[0].name", "metadata[1].value"]),
        ({"a": "\udfff"}, ["metadata[0].value"]),
        ([("a", "b")], ["metadata[0]"]),
        ([NameValuePair("a", "b"), "c"], ["metadata[1]"]),
        ("text", ["metadata"]),
        (7, ["metadata"]),
        (b"x", ["metadata"]),
    ],
)
def test_metadata_is_of_strings(metadata: Any, fields: list[str]) -> None:
    """Names not empty, values strings; every problem is told."""
    assert problems(metadata=metadata) == [(field, None) for field in fields]


@pytest.mark.parametrize("metadata", [None, {}, (), [], iter([])])
def test_no_metadata(metadata: Any) -> None:
    """Whatever emptiness is handed over."""
    assert make(metadata=metadata).metadata == ()


def test_metadata_in_any_form() -> None:
    """A mapping, pairs, or whatever yields pairs; an empty value is one."""
    pairs = (NameValuePair("a", "1"), NameValuePair("b", ""))

    assert make(metadata={"a": "1", "b": ""}).metadata == pairs
    assert make(metadata=iter(pairs)).metadata == pairs


@pytest.mark.parametrize(("name", "value"), [("", "x"), (None, "x"), ("a", None), ("\ud800", "x")])
def test_a_pair_by_itself_is_valid_too(name: Any, value: Any) -> None:
    """What is wrong with a pair is found when it is made."""
    with pytest.raises(InvalidEventError, match="metadata"):
        NameValuePair(name, value)


def test_a_pair_may_be_of_any_language() -> None:
    """Not only of ASCII."""
    assert NameValuePair("gr\u00f6\u00dfe", "\u4e2d").name == "gr\u00f6\u00dfe"


class Nowhere(tzinfo):
    """A time zone that does not know its offset, which makes a time naive."""

    def utcoffset(self, dt: datetime | None) -> None:
        return None

    def tzname(self, dt: datetime | None) -> None:
        return None

    def dst(self, dt: datetime | None) -> None:
        return None


@pytest.mark.parametrize(
    ("event_time", "message"),
    [
        (datetime(2026, 5, 4), "must be aware, as in datetime.now(UTC), got 2026-05-04T00:00:00"),  # noqa: DTZ001
        (datetime(2026, 5, 4, tzinfo=Nowhere()), "must be aware"),
        ("2026-05-04T00:00:00Z", "must be a datetime, got '2026-05-04T00:00:00Z'"),
        (1651622400, "must be a datetime, got 1651622400"),
        (
            datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
            "must lie between the years 1 and 9999 in UTC",
        ),
        (
            datetime.max.replace(tzinfo=timezone(timedelta(hours=-12))),
            "must lie between the years 1 and 9999 in UTC",
        ),
        (datetime.min.replace(tzinfo=UTC), "must not be the default time, got 0001-01-01T00:00:00+00:00"),
    ],
)
def test_times_that_are_none(event_time: Any, message: str) -> None:
    """Naive, of another type, or not to be expressed in UTC."""
    with pytest.raises(InvalidEventError) as caught:
        make(event_time=event_time)

    assert message in str(caught.value)


def test_the_default_time_has_the_apis_code() -> None:
    """EventTime is null or default."""
    assert problems(event_time=datetime.min.replace(tzinfo=UTC)) == [("event_time", "EventTimeIsMissing")]


def test_times_are_kept_in_utc() -> None:
    """Whatever zone they were given in."""
    made = make(event_time=datetime(2026, 5, 4, 14, tzinfo=timezone(timedelta(hours=2))))

    assert made.event_time == datetime(2026, 5, 4, 12, tzinfo=UTC)
    assert made.event_time is not None
    assert made.event_time.tzinfo is UTC


@pytest.mark.parametrize(
    ("offset", "fine"),
    [
        (timedelta(minutes=5), True),
        (timedelta(minutes=5, microseconds=1), False),
        (timedelta(days=-3), True),
        (timedelta(days=-3, microseconds=-1), False),
        (timedelta(0), True),
    ],
)
def test_the_time_window(offset: timedelta, fine: bool) -> None:
    """Five minutes ahead, three days back, both inclusive."""
    found = time_problems(NOW + offset, now=NOW)

    assert (found == ()) is fine
    assert all(error.field == "event_time" and NOW.isoformat() in error.message for error in found)


def test_all_problems_at_once() -> None:
    """One error, in the order of the fields, with values shortened."""
    with pytest.raises(InvalidEventError) as caught:
        make(
            event_type="", session_id=None, parent_guid="x" * 500 + "\ud800", metadata={"a": 5}, event_time=3
        )

    error = caught.value
    assert [problem.field for problem in error.errors] == [
        "event_type",
        "session_id",
        "parent_guid",
        "metadata[0].value",
        "event_time",
    ]
    assert str(error).startswith(
        "event_type must be a non-empty string, got ''; session_id must be a non-empty"
    )
    assert all(len(problem.value) <= 60 for problem in error.errors)
    assert str(error.errors[0]) == error.errors[0].message
    assert isinstance(error, ValueError)
    assert pickle.loads(pickle.dumps(error)).errors == error.errors


def test_an_event_is_immutable_and_light() -> None:
    """No attribute can be set, and there is no dictionary to set one in."""
    made = event()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        made.session_id = "other"  # type: ignore[misc]

    assert not hasattr(made, "__dict__")
    assert hash(made) == hash(attrs.evolve(made))


def test_stamping_copies_only_what_has_no_time() -> None:
    """A stamped event is the same but for its time."""
    made = event(metadata={"a": "b"})
    stamped = made.stamped(NOW)

    assert stamped == attrs.evolve(made, event_time=NOW)
    assert stamped.stamped(NOW + timedelta(1)) is stamped


def test_metadata_that_is_equal_is_kept_once() -> None:
    """Much of it is the same again and again; what only equals a valid one is looked at by itself."""

    class Name(str):
        __slots__ = ()

    odd = event(metadata={"page": Name("checkout-7")})
    first, second = event(metadata={"page": "checkout-7"}), event(metadata={"page": "checkout-7"})

    assert first.metadata is second.metadata
    assert odd.metadata == first.metadata


def test_the_warning_names_the_line_that_built_the_event() -> None:
    """Not one of ours."""
    with pytest.warns(UserWarning, match="SignalLine") as caught:
        event_at = event(event_type="SignalLine")

    assert event_at.event_type == "SignalLine"
    assert caught[0].filename.endswith("samples.py"), "which builds it"


# What applications hand over.


class Hover(str, Enum):  # noqa: UP042 -- what applications have
    HOVER = "SignalHover"


class Shop(str, Enum):  # noqa: UP042
    ONE = "shop-1"


class Odd(str):
    """A string that is equal to everything."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return hash("x")

    def __str__(self) -> str:
        return "something else"


@pytest.mark.filterwarnings("ignore:event type")
def test_strings_are_kept_as_plain_strings_of_their_content() -> None:
    """What is kept is what is sent: the value of a member, not its name."""
    made = event(
        event_type=Hover.HOVER,
        session_id=Shop.ONE,
        parent_guid=Odd("p"),
        metadata={Shop.ONE: Odd("v")},
    )
    kept = (made.event_type, made.session_id, made.parent_guid, made.metadata[0].name, made.metadata[0].value)

    assert kept == ("SignalHover", "shop-1", "p", "shop-1", "v")
    assert {type(text) for text in kept} == {str}
    assert made.to_dict()["eventType"] == "SignalHover"
    pair = NameValuePair(Shop.ONE, Odd("v"))
    assert (type(pair.name), pair.name, type(pair.value)) == (str, "shop-1", str)
    assert event(event_type="SignalViewed").event_type is EventType.SIGNAL_VIEWED


def test_metadata_is_not_taken_for_other_metadata() -> None:
    """Not even if a string says that it is equal."""
    event(metadata={"x": "x"})
    assert event(metadata={"x": Odd("y")}).metadata[0].value == "y"


def test_large_metadata_is_not_kept() -> None:
    """Equal small metadata is one object; what is large goes with its event."""
    small, large = {"a": "b"}, {"a": "x" * 1000}
    assert event(metadata=small).metadata is event(metadata=dict(small)).metadata
    assert event(metadata=large).metadata is not event(metadata=dict(large)).metadata
    for number in range(3000):
        event(metadata={"number": str(number)})
    assert len(events._shared_pairs) <= 1024
    assert not any(len(items[0][1]) > 512 for items in events._shared_pairs)


@pytest.mark.parametrize("cls", [PartnerEvent, NameValuePair])
def test_there_are_no_subclasses(cls: Any) -> None:
    """A clear error, where the class is written."""
    with pytest.raises(TypeError, match=f"{cls.__name__} cannot be subclassed"):
        type("Ours", (cls,), {})


class NotATime(datetime):
    """As `pandas.NaT` is: a datetime that has no fields."""

    def utcoffset(self) -> Any:
        return timedelta(0)

    def astimezone(self, tz: Any = None) -> Any:
        return self

    @property
    def year(self) -> Any:
        raise ValueError("not a time")

    def isoformat(self, *_: Any) -> str:
        return "NaT"


class BrokenZone(tzinfo):
    """A time zone whose methods raise."""

    def utcoffset(self, _: Any) -> Any:
        raise LookupError("no such zone")

    dst = tzname = utcoffset


@pytest.mark.parametrize(
    "moment",
    [NotATime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=BrokenZone())],
    ids=["no fields", "a broken zone"],
)
def test_a_time_whose_methods_raise_is_invalid(moment: datetime) -> None:
    """It is reported like any other problem."""
    with pytest.raises(
        InvalidEventError, match=r"event_time must be a real time, whose methods do not raise, got"
    ):
        event(event_time=moment)


def test_a_time_of_a_subclass_is_kept_as_a_plain_one() -> None:
    """As pandas and pendulum have them."""

    class Ours(datetime):
        """A subclass."""

    kept = event(event_time=Ours(2026, 5, 4, 14, tzinfo=timezone(timedelta(hours=2)))).event_time
    assert type(kept) is datetime
    assert kept == datetime(2026, 5, 4, 12, tzinfo=UTC)


def test_a_type_that_is_nearly_one_of_the_specifications() -> None:
    """Its casing, or a typing error."""
    with pytest.warns(UserWarning, match="did you mean SignalViewed?"):
        event(event_type="signalviewed")
    with pytest.warns(UserWarning, match="did you mean SignalImpression?"):
        event(event_type="SignalImpresion")


def test_a_warning_that_is_an_error_is_one_each_time() -> None:
    """Not the first time only."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(UserWarning, match="SignalNeverSeen"):
                event(event_type="SignalNeverSeen")


def test_what_is_kept_of_unknown_types_is_bounded() -> None:
    """They may come from outside, and be huge."""
    with pytest.warns(UserWarning, match="event type 'xxx") as told:
        event(event_type="x" * 100_000)
    assert len(str(told[0].message)) < 300
    assert max(map(len, events._warned_types)) <= 64


class Raises:
    """A value whose own methods raise."""

    def __repr__(self) -> str:
        raise LookupError("no repr")

    def __bool__(self) -> bool:
        raise LookupError("no truth")


class BadMapping(dict[str, str]):
    """A mapping whose items raise."""

    def items(self) -> Any:
        raise LookupError("no items")


def failing() -> Iterator[NameValuePair]:
    yield NameValuePair("a", "b")
    raise LookupError("no more")


def nested(depth: int) -> list[Any]:
    made: list[Any] = []
    for _ in range(depth):
        made = [made]
    return made


@pytest.mark.parametrize(
    "changes",
    [
        {"session_id": 10**5000},
        {"session_id": nested(5000)},
        {"session_id": list(range(100_000))},
        {"session_id": Raises()},
        {"metadata": Raises()},
        {"metadata": BadMapping()},
        {"metadata": failing()},
        {"metadata": {"a": Raises()}},
        {"metadata": ""},
        {"metadata": b""},
        {"metadata": 0},
        {"metadata": False},
        {"metadata": {"a": 10**5000}},
        {"event_time": Raises()},
        {"event_time": datetime(1, 1, 1, 0, 0, 0, 1, tzinfo=UTC)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_whatever_is_handed_over_is_one_clear_error(changes: dict[str, Any]) -> None:
    """Never an exception of the value's own, and never a long one."""
    with pytest.raises(InvalidEventError) as caught:
        event(**changes)
    assert len(str(caught.value)) < 300


def test_problems_are_bounded() -> None:
    """The first ones stand for all."""
    with pytest.raises(InvalidEventError, match="9980 more") as caught:
        event(metadata=["x"] * 10_000)
    assert len(caught.value.errors) == 21


def test_from_dict_keeps_plain_strings_and_no_second_casing() -> None:
    """As the constructor does."""
    data = event().to_dict() | {"metadata": [{"name": Shop.ONE, "Value": Odd("v")}]}
    pair = PartnerEvent.from_dict(data).metadata[0]
    assert (type(pair.name), pair.name, pair.value) == (str, "shop-1", "v")
    with pytest.raises(InvalidEventError, match="must be a NameValuePair"):
        PartnerEvent.from_dict(data | {"metadata": [{"name": "a", "Name": "b", "value": "v"}]})


def test_uuids_as_ids() -> None:
    """Their canonical text, in every constructor."""
    guid = UUID("AEC20024-8D23-46BE-95F3-9BE5D86292A9")
    made = PartnerEvent.viewed(session_id=guid, parent_guid=guid, client_unique_id=guid)
    assert made.session_id == made.parent_guid == made.client_unique_id == str(guid)
    assert type(made.session_id) is str
    assert PartnerEvent.from_dict(made.to_dict()) == made


IDS: dict[str, Any] = {"session_id": "s", "parent_guid": "p", "client_unique_id": "c"}


@pytest.mark.parametrize(
    "moment",
    [
        "2026-01-02T03:04:05Z",
        "2026-01-02T04:04:05+01:00",
        "20260102T030405Z",
        1767323045,
        1767323045.0,
    ],
)
def test_times_as_text_or_number(moment: Any) -> None:
    """In UTC, whatever form they come in."""
    made = PartnerEvent.at(moment, event_type=EventType.SIGNAL_VIEWED, **IDS)
    assert made.event_time == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("moment", "rule"),
    [
        ("yesterday", "must be ISO 8601 text, as in"),
        ("2026-01-02T03:04:05", "with an offset or Z"),
        ("2026-01-02", "with an offset or Z"),
        (1767323045000, "in seconds, not in milliseconds"),
        (float("nan"), "within the years 1 to 9999"),
        (float("-inf"), "within the years 1 to 9999"),
        (-1e11, "within the years 1 to 9999"),
        (True, "must be ISO 8601 text, or UNIX time"),
        (None, "must be ISO 8601 text, or UNIX time"),
        ("0001-01-01T00:00:00Z", "must not be the default time"),
    ],
)
def test_moments_that_are_none(moment: Any, rule: str) -> None:
    """With what would be right, beside the other problems of the event."""
    with pytest.raises(InvalidEventError) as caught:
        PartnerEvent.at(moment, event_type="", **{**IDS, "session_id": ""})
    fields = [problem.field for problem in caught.value.errors]
    assert sorted(fields) == ["event_time", "event_type", "session_id"]
    assert rule in str(caught.value)
    with pytest.raises(InvalidEventError, match="event_time"):
        PartnerEvent.at(moment, event_type=EventType.SIGNAL_VIEWED, **IDS)
