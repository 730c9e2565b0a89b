"""Bytes and models, both ways."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rokt_events_async import ApiError, EventType, InvalidEventError, NameValuePair, PartnerEvent
from rokt_events_async._fields import format_time
from rokt_events_async._protocol import encoding
from rokt_events_async._protocol.replies import read_errors
from rokt_events_async.sandbox import rules
from tests.samples import NOW, event

EXAMPLE: dict[str, Any] = {
    "eventType": "SignalImpression",
    "eventTime": "2022-06-28T07:11:01.711Z",
    "parentGuid": "58bcbaa0-e13c-4a3d-84cd-2803ccc35394",
    "sessionId": "aec20024-8d23-46be-95f3-9be5d86292a9",
    "clientUniqueId": "10f7d87b-e879-47b2-9638-a667e63beae2",
    "metadata": [{"name": "AdditionalData", "value": "ImpressionSlot"}],
}
"""The first event of the specification's request example."""

TOO_MANY = {"code": "TooManyEvents", "message": "The number of events provided exceeds the limit 25"}
"""The error of the specification's 422 example."""

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@st.composite
def events(draw: st.DrawFn) -> PartnerEvent:
    """Any valid event."""
    times = st.datetimes(min_value=datetime(1, 1, 2), timezones=st.just(UTC))  # noqa: DTZ001 -- hypothesis adds it
    return PartnerEvent(
        event_type=draw(st.sampled_from(EventType)),
        session_id=draw(texts),
        parent_guid=draw(texts),
        client_unique_id=draw(texts),
        metadata=[
            NameValuePair(*pair) for pair in draw(st.lists(st.tuples(texts, texts | st.just("")), max_size=3))
        ],
        event_time=draw(times),
    )


@given(events())
def test_encoding_by_hand_is_what_cattrs_says(made: PartnerEvent) -> None:
    """Byte for byte."""
    assert encoding.encode(made) == orjson.dumps(made.to_dict())
    assert list(orjson.loads(encoding.encode(made))) == list(made.to_dict())


def test_metadata_is_written_once_and_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each event carries its own, however many others there were; memory is bounded."""
    monkeypatch.setattr(encoding, "_MAX_WRITTEN", 3)
    monkeypatch.setattr(encoding, "_written", {})
    made = [event(metadata={"number": str(number)}).stamped(NOW) for number in range(10)]
    for _ in range(2):
        for one in made:
            wire = json.loads(encoding.encode(one))
            assert wire["metadata"] == [{"name": "number", "value": one.metadata[0].value}]
            assert len(encoding._written) <= 3


@given(events(), st.integers(-1500, 1500))
def test_a_stamp_is_good_to_the_end_of_its_millisecond(made: PartnerEvent, microseconds: int) -> None:
    """There, the text that it has is what the wire has."""
    time = made.event_time
    assert time is not None
    assume(datetime(1, 1, 3, tzinfo=UTC) < time < datetime(9999, 12, 30, tzinfo=UTC))
    stamp = encoding.Stamp.at(time + timedelta(microseconds=microseconds))

    if stamp.since <= time < stamp.until:
        assert encoding.encode(made, stamp.text) == encoding.encode(made)
    else:
        assert time < stamp.since or encoding.encode(made, stamp.text) != encoding.encode(made)


@given(events())
def test_dictionaries_go_both_ways(made: PartnerEvent) -> None:
    """`from_dict(to_dict())` is the event, its time truncated to milliseconds."""
    back = PartnerEvent.from_dict(json.loads(json.dumps(made.to_dict())))

    assert back.to_dict() == made.to_dict()
    assert made.event_time is not None
    assert back.event_time == made.event_time.replace(microsecond=made.event_time.microsecond // 1000 * 1000)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", made.to_dict()["eventTime"], re.ASCII)


@given(st.lists(events(), min_size=1, max_size=5))
def test_a_body_is_what_the_second_reading_reads(batch: list[PartnerEvent]) -> None:
    """The sandbox's rules, which share no code with this, find the same values."""
    one_session = [PartnerEvent.from_dict(made.to_dict() | {"sessionId": "s"}) for made in batch]
    judged = rules.judge(encoding.join(map(encoding.encode, one_session)), now=NOW)

    assert isinstance(judged, list)
    for item, made in zip(judged, one_session, strict=True):
        assert (item.event.event_type, item.event.parent_guid) == (made.event_type, made.parent_guid)
        assert item.event.client_unique_id == made.client_unique_id
        assert item.event.metadata == (tuple((pair.name, pair.value) for pair in made.metadata) or None)
        assert item.event.moment is not None
        assert made.event_time is not None
        assert timedelta(0) <= made.event_time - item.event.moment.at < timedelta(milliseconds=1)


def test_the_example_of_the_specification() -> None:
    """Read, and written again."""
    made = PartnerEvent.from_dict(EXAMPLE)

    assert made.event_type is EventType.SIGNAL_IMPRESSION
    assert made.metadata == (NameValuePair("AdditionalData", "ImpressionSlot"),)
    assert made.to_dict() == EXAMPLE


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (datetime(2022, 6, 28, 7, 11, 1, 711999, tzinfo=UTC), "2022-06-28T07:11:01.711Z"),
        (datetime(2022, 6, 28, 7, 11, 1, tzinfo=UTC), "2022-06-28T07:11:01.000Z"),
        (datetime(987, 6, 28, tzinfo=UTC), "0987-06-28T00:00:00.000Z"),
    ],
)
def test_times_have_exactly_three_digits_truncated(moment: datetime, text: str) -> None:
    """`…T07:11:01.711Z`, never rounded into the future."""
    assert format_time(moment) == text


def test_pairs_are_read_in_either_case() -> None:
    """The table says `Name`, the example `name`."""
    made = PartnerEvent.from_dict(
        EXAMPLE | {"metadata": [{"Name": "a", "Value": "b"}, {"name": "c", "value": "d"}]}
    )

    assert made.metadata == (NameValuePair("a", "b"), NameValuePair("c", "d"))


def test_an_event_without_time_has_none_in_its_dictionary() -> None:
    """Nor does one without metadata have any."""
    assert set(event().to_dict()) == {"eventType", "sessionId", "parentGuid", "clientUniqueId"}
    assert PartnerEvent.from_dict(event().to_dict()).event_time is None


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, ["event_type", "session_id", "parent_guid", "client_unique_id"]),
        ([], ["event"]),
        (EXAMPLE | {"sesionId": "typo"}, ["event"]),
        (EXAMPLE | {"eventTime": "yesterday"}, ["event_time"]),
        (EXAMPLE | {"eventTime": "2022-06-28T07:11:01.711", "sessionId": 5}, ["session_id"]),
        (
            EXAMPLE | {"metadata": [1, {"name": "a"}, {"nmae": "a", "value": "b"}]},
            ["metadata[0]", "metadata[1].value", "metadata[2]"],
        ),
        (EXAMPLE | {"metadata": "x"}, ["metadata"]),
        (EXAMPLE | {"eventTime": ""}, ["event_time"]),
    ],
)
def test_dictionaries_that_are_no_event(data: Any, expected: list[str]) -> None:
    """All that is wrong at once, and nothing is silently dropped."""
    with pytest.raises(InvalidEventError) as caught:
        PartnerEvent.from_dict(data)

    assert [problem.field for problem in caught.value.errors] == expected


@pytest.mark.parametrize(
    ("body", "errors"),
    [
        (
            json.dumps({"title": "Validation failed", "status": 422, "errors": [TOO_MANY]}).encode(),
            (ApiError("TooManyEvents", "The number of events provided exceeds the limit 25"),),
        ),
        (b'{"ERRORS":[{"Code":"A","Message":"b"},{"code":5},7]}', (ApiError("A", "b"), ApiError(None, ""))),
        (
            b'{"title":"One or more","errors":{"$.events":["cannot be read","twice"],"x":"y"}}',
            (ApiError("$.events", "cannot be read"), ApiError("$.events", "twice"), ApiError("x", "y")),
        ),
        (b'{"errors":{"x":[[[]],{"y":1}]}}', (ApiError("x", ""), ApiError("x", ""))),
        (b'{"errors":{"x":' + b"[" * 1015 + b"]" * 1015 + b"}}", (ApiError("x", ""),)),
        (b'{"title":"Bad Request"}', (ApiError(None, "Bad Request"),)),
        (b'{"title":5,"errors":7}', ()),
        (b"<html>", ()),
        (b"[]", ()),
        (b"", ()),
        (None, ()),
    ],
)
def test_the_errors_of_a_refusal(body: bytes | None, errors: tuple[ApiError, ...]) -> None:
    """The specification's shape, a framework's problem document, or nothing readable."""
    assert read_errors(body) == errors


def test_an_api_error_reads_well() -> None:
    """With its code if it has one."""
    assert str(ApiError("TooManyEvents", "too many")) == "TooManyEvents: too many"
    assert str(ApiError(None, "Bad Request")) == "Bad Request"
