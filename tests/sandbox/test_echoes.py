"""How the answers are written: the specification's shapes, and the switches."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from typing import Any

import pytest

from rokt_events_async.sandbox import ECHO_FORMS, Echo
from rokt_events_async.sandbox.echoes import Answer, write_refusal, write_verdicts
from rokt_events_async.sandbox.rules import BAD_PAYLOAD, TOO_MANY_EVENTS, UNAUTHORIZED, Refusal, judge

NOW = datetime(2022, 6, 28, 7, 15, tzinfo=UTC)
GUID = "58BCBAA0-e13c-4a3d-84cd-2803ccc35394"
BAD: dict[str, Any] = {
    "eventType": "SignalNew",
    "eventTime": "2022-06-28T07:11:01.710Z",
    "parentGuid": GUID,
    "sessionId": "s",
    "clientUniqueId": "O'Brien <\u00e9>",
    "unknown": "dropped",
    "metadata": [{"Name": "a", "Value": "b"}],
}


def write(echo: Echo, *events: dict[str, Any]) -> Answer:
    judged = judge(json.dumps({"events": events or [BAD]}).encode(), now=NOW)
    assert isinstance(judged, list)
    return write_verdicts(judged, echo, random.Random(3))


def echoed(*names: str) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(write(Echo.of(*names)).body)["unprocessedEvents"][0]["event"]
    return event


def test_the_default_is_a_typed_servers() -> None:
    """Key order of the specification's example, trimmed fraction, unknown keys dropped, escapes."""
    answer = write(Echo())

    assert answer.status == 207
    assert list(echoed()) == [
        "eventType",
        "sessionId",
        "eventTime",
        "parentGuid",
        "clientUniqueId",
        "metadata",
    ]
    assert echoed()["eventTime"] == "2022-06-28T07:11:01.71+00:00"
    assert echoed()["metadata"] == [{"name": "a", "value": "b"}]
    assert rb"O\u0027Brien \u003C\u00E9\u003E" in answer.body
    assert list(json.loads(answer.body)) == ["processedEventsCount", "unprocessedEvents", "success"]


def test_the_200_example() -> None:
    """Five processed, none unprocessed, success."""
    answer = write(Echo(), *[BAD | {"eventType": "SignalViewed"}] * 5)

    assert answer.status == 200
    assert json.loads(answer.body) == {"processedEventsCount": 5, "unprocessedEvents": [], "success": True}


def test_the_unprocessed_part_of_the_207_example() -> None:
    """Exactly as published."""
    bad = {"eventType": "Unknown", "sessionId": "", "parentGuid": "", "clientUniqueId": "265d3a90"}
    body = json.loads(write(Echo(), *[BAD | {"eventType": "SignalViewed"}] * 5, bad).body)

    assert body == {
        "processedEventsCount": 5,
        "unprocessedEvents": [
            {
                "errors": [
                    {"code": "InvalidEventType", "message": "Event type is invalid"},
                    {"code": "SessionIdMissing", "message": "SessionId is missing or invalid"},
                    {"code": "ParentGuidIsMissing", "message": "ParentGuid is null or empty"},
                    {"code": "EventTimeIsMissing", "message": "EventTime is null or default"},
                ],
                "event": {
                    "eventType": "Unknown",
                    "sessionId": "",
                    "eventTime": "0001-01-01T00:00:00+00:00",
                    "parentGuid": "",
                    "clientUniqueId": "265d3a90",
                },
            }
        ],
        "success": False,
    }


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("unknown-types", "eventType", "Unknown"),
        ("default-times", "eventTime", "0001-01-01T00:00:00+00:00"),
        ("no-metadata", "metadata", None),
        ("lower-guids", "parentGuid", GUID.lower()),
        ("foreign", "clientUniqueId", "O'Brien <\u00e9>-foreign"),
    ],
)
def test_switches_of_the_echo(name: str, key: str, value: Any) -> None:
    """Each changes one thing."""
    assert echoed(name).get(key) == value
    assert {k: v for k, v in echoed(name).items() if k != key} == {
        k: v for k, v in echoed().items() if k != key
    }


def test_enriched_metadata_contains_what_was_sent() -> None:
    """The server says that it adds its own."""
    assert echoed("enriched-metadata")["metadata"][0] == {"name": "a", "value": "b"}
    assert len(echoed("enriched-metadata")["metadata"]) == 3


def test_switches_of_the_envelope() -> None:
    """PascalCase, another order, a 200, a count that is wrong."""
    many = [BAD | {"parentGuid": str(number)} for number in range(6)]
    plain, shuffled = (json.loads(write(Echo.of(name), *many).body) for name in ("default", "shuffled"))

    assert plain != shuffled
    assert list(json.loads(write(Echo.of("pascal-case")).body)) == [
        "ProcessedEventsCount",
        "UnprocessedEvents",
        "Success",
    ]
    assert write(Echo.of("only-200")).status == 200
    assert json.loads(write(Echo.of("wrong-count")).body)["processedEventsCount"] == 1


def test_refusals_as_published() -> None:
    """422 and 400, to the letter."""
    assert json.loads(write_refusal(Refusal(422, "Validation failed", TOO_MANY_EVENTS), Echo()).body) == {
        "title": "Validation failed",
        "status": 422,
        "success": False,
        "errors": [
            {"code": "TooManyEvents", "message": "The number of events provided exceeds the limit 25"}
        ],
    }
    assert json.loads(write_refusal(Refusal(400, "BadRequest", BAD_PAYLOAD), Echo()).body) == {
        "title": "BadRequest",
        "status": 400,
        "success": False,
        "errors": [{"code": "InvalidRequestPayload", "message": "Request body format is not valid"}],
    }


def test_refusals_in_other_forms() -> None:
    """A framework's problem document, and an empty 401."""
    document = write_refusal(Refusal(400, "BadRequest", BAD_PAYLOAD), Echo.of("problem-document"))

    assert document.content_type.startswith("application/problem+json")
    assert isinstance(json.loads(document.body)["errors"], dict)
    assert write_refusal(Refusal(401, "Unauthorized", UNAUTHORIZED), Echo.of("empty-401")).body == b""
    assert write_refusal(Refusal(401, "Unauthorized", UNAUTHORIZED), Echo()).body != b""


def test_a_form_that_is_none() -> None:
    """The error lists those that are."""
    with pytest.raises(ValueError, match=r"echo must be one of default, .*, got 'loud'"):
        Echo.of("loud")
    assert Echo.of("default") == Echo()
    assert Echo.of(*ECHO_FORMS).shuffle
