"""Bodies of answers: errors in every shape."""

from __future__ import annotations

import json

import pytest

from rokt_events_async import ApiError
from rokt_events_async._protocol.replies import read_errors

TOO_MANY = {"code": "TooManyEvents", "message": "The number of events provided exceeds the limit 25"}


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
