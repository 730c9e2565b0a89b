"""The second reading of the specification: its examples, its limits, and what it leaves open."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from rokt_events_async.sandbox.rules import Judged, Refusal, check_headers, judge

NOW = datetime(2022, 6, 28, 7, 15, tzinfo=UTC)

EVENT: dict[str, Any] = {
    "eventType": "SignalImpression",
    "eventTime": "2022-06-28T07:11:01.711Z",
    "parentGuid": "58bcbaa0-e13c-4a3d-84cd-2803ccc35394",
    "sessionId": "aec20024-8d23-46be-95f3-9be5d86292a9",
    "clientUniqueId": "10f7d87b-e879-47b2-9638-a667e63beae2",
    "metadata": [{"name": "AdditionalData", "value": "ImpressionSlot"}],
}


def verdict(*events: Any, **options: Any) -> Refusal | list[Judged]:
    return judge(json.dumps({"events": list(events)}).encode(), now=NOW, **options)


def codes(*events: Any, **options: Any) -> list[list[str]]:
    judged = verdict(*events, **options)
    assert isinstance(judged, list)
    return [[problem.code for problem in item.problems] for item in judged]


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in EVENT.items() if key != name}


def test_the_request_example_is_accepted() -> None:
    """All three of its events, at the time they were made."""
    viewed = EVENT | {"eventType": "SignalViewed", "parentGuid": "b3a1d523-5490-49f0-a379-7a67628a4cdd"}
    response = EVENT | {
        "eventType": "SignalResponse",
        "metadata": [{"name": "experienceId", "value": "RedButton"}],
    }

    assert codes(EVENT, viewed, response) == [[], [], []]


def test_the_event_of_the_207_example() -> None:
    """Its four errors, in its order and words, while those beside it are accepted."""
    bad = {
        "eventType": "Unknown",
        "sessionId": "",
        "eventTime": "0001-01-01T00:00:00+00:00",
        "parentGuid": "",
        "clientUniqueId": "265d3a90-4c84-4c17-99af-e09b862b925c",
    }
    judged = verdict(EVENT, bad)

    assert isinstance(judged, list)
    assert judged[0].is_accepted
    assert [(problem.code, problem.message) for problem in judged[1].problems] == [
        ("InvalidEventType", "Event type is invalid"),
        ("SessionIdMissing", "SessionId is missing or invalid"),
        ("ParentGuidIsMissing", "ParentGuid is null or empty"),
        ("EventTimeIsMissing", "EventTime is null or default"),
    ]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("eventType", "InvalidEventType"),
        ("sessionId", "SessionIdMissing"),
        ("parentGuid", "ParentGuidIsMissing"),
        ("eventTime", "EventTimeIsMissing"),
        ("clientUniqueId", "SandboxClientUniqueIdIsMissing"),
    ],
)
def test_required_fields(name: str, code: str) -> None:
    """A missing one is named in a 207; the codes that had to be invented say so."""
    assert codes(without(name)) == [[code]]
    if name != "eventTime":
        assert codes(EVENT | {name: None}, EVENT | {name: ""}) == [[code], [code]]


def test_null_and_empty_times() -> None:
    """They spoil the request, or are the default time, as the sandbox is told."""
    for value in (None, ""):
        assert isinstance(verdict(EVENT | {"eventTime": value}), Refusal)
        assert codes(EVENT | {"eventTime": value}, lenient_times=True) == [["EventTimeIsMissing"]]


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (None, []),
        ([], []),
        ([{"Name": "a", "Value": "b"}], []),
        ([{"NAME": "a", "vALUE": ""}], []),
        ([{"name": "", "value": "b"}], ["SandboxMetadataNameIsMissing"]),
        ([{"value": None}], ["SandboxMetadataNameIsMissing", "SandboxMetadataValueIsMissing"]),
    ],
)
def test_metadata(metadata: Any, expected: list[str]) -> None:
    """Pairs in any case; names not empty, values there."""
    assert codes(EVENT | {"metadata": metadata}) == [expected]


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        (timedelta(minutes=5), []),
        (timedelta(minutes=5, milliseconds=1), ["SandboxEventTimeOutOfRange"]),
        (timedelta(days=-3), []),
        (timedelta(days=-3, milliseconds=-1), ["SandboxEventTimeOutOfRange"]),
    ],
)
def test_the_time_window(offset: timedelta, expected: list[str]) -> None:
    """Five minutes ahead, three days back."""
    assert codes(EVENT | {"eventTime": (NOW + offset).isoformat()}) == [expected]


@pytest.mark.parametrize(
    ("text", "echo"),
    [
        ("2022-06-28T07:11:01.711Z", "2022-06-28T07:11:01.711+00:00"),
        ("2022-06-28T07:11:01.710Z", "2022-06-28T07:11:01.71+00:00"),
        ("2022-06-28T07:11:01.000Z", "2022-06-28T07:11:01+00:00"),
        ("2022-06-28T07:11:01", "2022-06-28T07:11:01+00:00"),
        ("2022-06-28T09:11:01.1234567+02:00", "2022-06-28T09:11:01.1234567+02:00"),
        ("2022-06-28T05:11:01.12345678-02:00", "2022-06-28T05:11:01.1234567-02:00"),
    ],
)
def test_how_a_time_is_written_again(text: str, echo: str) -> None:
    """As a DateTimeOffset: trailing zeros dropped, the offset kept, `Z` as `+00:00`."""
    judged = verdict(EVENT | {"eventTime": text})

    assert isinstance(judged, list)
    assert judged[0].event.moment is not None
    assert judged[0].event.moment.echo == echo
    assert abs(judged[0].event.moment.at - datetime(2022, 6, 28, 7, 11, 1, tzinfo=UTC)) < timedelta(seconds=1)


@pytest.mark.parametrize(
    "spoilt",
    [
        {"metadata": [{"name": "a", "value": 5}]},
        {"metadata": ["a"]},
        {"metadata": "a"},
        {"eventTime": "yesterday"},
        {"eventTime": "2022-13-28T07:11:01Z"},
        {"eventTime": "2022-06-28T07:11:01+99:00"},
        {"eventTime": 1656400261},
        {"sessionId": 7},
        {"eventType": ["SignalViewed"]},
    ],
)
def test_one_value_of_a_wrong_type_spoils_the_request(spoilt: dict[str, Any]) -> None:
    """A typed reader cannot go on."""
    refusal = verdict(EVENT, EVENT | spoilt)

    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.title) == (400, "BadRequest")
    assert (refusal.problem.code, refusal.problem.message) == (
        "InvalidRequestPayload",
        "Request body format is not valid",
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"not json",
        b'{"events": [{}]}\'',
        b'{"events": [] // a comment\n}',
        b'{"events": NaN}',
        b'{"events": {}}',
        b'{"events": [null]}',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_bodies_that_are_none(body: bytes) -> None:
    """The comments and the stray quote of the specification's example are no JSON either."""
    refusal = judge(body, now=NOW)

    assert isinstance(refusal, Refusal)
    assert refusal.status == 400


@pytest.mark.parametrize("body", [b"{}", b'{"events": null}', b'{"EVENTS": []}'])
def test_no_events(body: bytes) -> None:
    """422, as in the specification."""
    refusal = judge(body, now=NOW)

    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.title) == (422, "Validation failed")
    assert (refusal.problem.code, refusal.problem.message) == (
        "NoEventsProvided",
        "Events cannot be null or empty",
    )


def test_25_are_allowed_and_26_are_not() -> None:
    """The limit itself is fine."""
    assert codes(*[EVENT] * 25) == [[]] * 25
    refusal = verdict(*[EVENT] * 26)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.problem.code) == (422, "TooManyEvents")


def test_two_sessions_are_refused() -> None:
    """All events of a request share one; a missing id is no second."""
    refusal = verdict(EVENT, EVENT | {"sessionId": "other"})

    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.problem.code) == (422, "SandboxMixedSessionIds")
    assert codes(EVENT, EVENT | {"sessionId": ""}) == [[], ["SessionIdMissing"]]


EXPECTED = {"rokt-pub-id": "a", "rokt-secret": "b", "rokt-tag-id": "c"}
FINE = EXPECTED | {"Content-Type": "Application/JSON; charset=utf-8"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (FINE, None),
        (FINE | {"rokt-secret": "wrong"}, 401),
        (FINE | {"rokt-tag-id": ""}, 401),
        ({"Content-Type": "application/json"}, 401),
        (EXPECTED, 415),
        (FINE | {"Content-Type": "text/plain"}, 415),
        (FINE | {"Content-Type": "\u201capplication/json\u201d"}, 415),
    ],
)
def test_headers(headers: dict[str, str], status: int | None) -> None:
    """Credentials first, then the content type, without the specification's curly quotes."""
    refusal = check_headers(headers, expected=EXPECTED)

    assert (refusal and refusal.status) == status
