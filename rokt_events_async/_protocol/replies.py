"""Replies as the transport brings them back, and the models of their bodies (specification, "Responses").

Bodies are read leniently: keys in any case, unknown keys ignored. A value without the specified shape
reads as `None`, never as an exception.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import orjson

from rokt_events_async.errors import ApiError


@attrs.frozen
class Reply:
    """A status line was received. `body` is `None` if it was lost, too large or compressed."""

    status: int
    headers: Mapping[str, str]
    body: bytes | None


@attrs.frozen
class NoReply:
    """No status line was received, for this reason. It does not say whether the request went out."""

    reason: str
    is_timeout: bool = False


@attrs.frozen
class Unprocessed:
    """An event that the server did not accept (specification, "UnprocessedEvent").

    Attributes:
        echo: The event as the server wrote it, keys in lower case; `None` if that is no event.
    """

    echo: dict[str, Any] | None
    errors: tuple[ApiError, ...]


@attrs.frozen
class Answer:
    """The body of a 2xx. A body whose count or list lacks the specified shape is no answer at all."""

    processed: int
    unprocessed: tuple[Unprocessed, ...]


def says_all_processed(body: bytes | None, count: int) -> bool:
    """Returns True if the body of a 2xx is the ordinary one: `count` processed, and nothing else to say."""
    try:
        root = orjson.loads(body or b"")
    except orjson.JSONDecodeError:
        return False
    if type(root) is not dict:
        return False
    processed = root.get("processedEventsCount")
    return type(processed) is int and processed == count and root.get("unprocessedEvents") == []


def read_answer(body: bytes | None) -> Answer | None:
    """Returns the answer in the body of a 2xx, or `None` if it cannot be read."""
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
    """Returns the errors of a refusal, in the specification's shape or as a framework's problem document."""
    root = _read_object(body)
    if root is None:
        return ()
    return _read_errors(root.get("errors")) or _read_title(root)


def lower_keys(data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the mapping with its keys in lower case: a server may write them in any case."""
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
    if isinstance(data, dict):  # A problem document: each field with a list of messages.
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
