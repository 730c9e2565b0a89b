"""The audit finds every kind of disagreement, and none where there is none."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from rokt_events_async.sandbox import Fault, RecordedEvent, RecordedRequest
from rokt_events_async.sandbox.audit import Claim, disagreements
from rokt_events_async.sandbox.rules import BAD_PAYLOAD, NO_PARENT, Refusal

EVENT = {"sessionId": "s", "parentGuid": "p"}
ACCEPTED = RecordedEvent(EVENT, is_accepted=True)
REFUSED = RecordedEvent(EVENT, is_accepted=False, errors=(NO_PARENT,))


def request(*events: RecordedEvent, refusal: Refusal | None = None, body: bytes = b"") -> RecordedRequest:
    return RecordedRequest(1, {}, body, Fault(), 200, refusal, events)


def claim(outcome: Any, **rest: Any) -> Claim:
    return Claim(event=EVENT, outcome=outcome, **rest)


@pytest.mark.parametrize(
    ("events", "claims"),
    [
        ([], []),
        ([ACCEPTED], [claim("delivered")]),
        ([REFUSED], [claim("rejected", codes=("ParentGuidIsMissing",))]),
        ([], [claim("failed")]),
        ([], [claim("expired")]),
        ([], [claim("unconfirmed")]),
        ([ACCEPTED], [claim("unconfirmed")]),
        ([ACCEPTED, ACCEPTED], [claim("delivered", maybe_duplicate=True)]),
        ([ACCEPTED, ACCEPTED], [claim("delivered"), claim("delivered")]),
    ],
)
def test_agreement(events: list[RecordedEvent], claims: list[Claim]) -> None:
    """Equal events are interchangeable, and a doubt that was owned up to is no disagreement."""
    assert disagreements([request(*events)], claims) == []


@pytest.mark.parametrize(
    ("events", "claims", "message"),
    [
        ([], [claim("delivered")], "1 called delivered, 0 accepted"),
        ([ACCEPTED], [], "1 accepted, only 0 called delivered"),
        ([ACCEPTED], [claim("failed")], "1 accepted, only 0 called delivered"),
        ([ACCEPTED], [claim("expired")], "1 accepted, only 0 called delivered"),
        ([ACCEPTED, ACCEPTED], [claim("delivered")], "2 accepted, only 1 called delivered"),
        ([ACCEPTED], [claim("rejected")], "called rejected with"),
        ([REFUSED], [claim("delivered")], "1 called delivered, 0 accepted"),
        (
            [REFUSED],
            [claim("rejected", codes=("Other",))],
            "called rejected with \\('Other',\\), refused with",
        ),
    ],
)
def test_disagreement(events: list[RecordedEvent], claims: list[Claim], message: str) -> None:
    """Each is told, with its event."""
    found = disagreements([request(*events)], claims)

    assert any(re.search(message, line) for line in found)
    assert all('"sessionId": "s"' in line for line in found)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"events": 5}', b"{}"])
def test_requests_refused_as_a_whole(body: bytes) -> None:
    """Their events are refused with the request's code, if they can be read."""
    refusal = Refusal(400, "BadRequest", BAD_PAYLOAD)
    rejected = claim("rejected", codes=("InvalidRequestPayload",))
    whole = json.dumps({"events": [EVENT]}).encode()

    assert disagreements([request(refusal=refusal, body=whole)], [rejected]) == []
    assert disagreements([request(refusal=refusal, body=body)], [rejected]) != []
