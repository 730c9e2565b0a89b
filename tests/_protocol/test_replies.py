"""Bodies of answers: errors in every shape."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import strategies as st

from rokt_events_async import ApiError, EventType, NameValuePair, PartnerEvent
from rokt_events_async._protocol.replies import read_errors

TOO_MANY = {"code": "TooManyEvents", "message": "The number of events provided exceeds the limit 25"}


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
