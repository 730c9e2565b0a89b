"""Replies as the transport brings them back, and the models of their bodies (specification, "Responses").

Bodies are read leniently: keys in any case, unknown keys ignored. A value without the specified shape
reads as `None`, never as an exception. What tells of single events is read strictly all the same: a key that
stands twice in an object, or in two casings, makes the whole answer contradictory.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, Final

import attrs
import orjson

from rokt_events_async._protocol.texts import MAX_TEXT, clean
from rokt_events_async.errors import ApiError

Clean = Callable[[str], str]
"""Makes a server's text fit for errors: `texts.clean`, or one that knows the secrets."""

_BOM: Final = b"\xef\xbb\xbf"


@attrs.frozen
class Reply:
    """A status line was received. `body` is `None` if it was lost, too large or compressed."""

    status: int
    headers: Mapping[str, str]
    body: bytes | None


@attrs.frozen
class NoReply:
    """No status line was received, for this reason. It does not say whether the request went out.

    Attributes:
        is_unreadable: An answer came, and is no HTTP that can be read.
    """

    reason: str
    is_timeout: bool = False
    is_unreadable: bool = False


@attrs.frozen
class Unprocessed:
    """An event that the server did not accept (specification, "UnprocessedEvent").

    Attributes:
        echo: The event as the server wrote it, keys in lower case; `None` if that is no event.
        calls_type_invalid: True if its type may be among what is wrong; then it identifies no event.
    """

    echo: dict[str, Any] | None
    errors: tuple[ApiError, ...]
    calls_type_invalid: bool = False


@attrs.frozen
class Answer:
    """The body of a 2xx. A body whose count or list lacks the specified shape is no answer at all.

    Attributes:
        is_contradictory: A key stands twice in one object: what is read is one of several readings.
    """

    processed: int
    unprocessed: tuple[Unprocessed, ...]
    is_contradictory: bool = False


_ORDINARY: Final = {"processedEventsCount", "unprocessedEvents", "success"}


_PLAIN: Final = (bool, type(None))


def says_all_processed(body: bytes | None, count: int) -> bool:
    """Returns True if the body of a 2xx is the ordinary one: `count` processed, and nothing else to say."""
    if body is None:
        return False
    # Nearly all answers are equal, byte for byte.
    read = _recent_count if len(body) <= _MAX_RECENT else _count_processed
    return read(body) == count


_MAX_RECENT: Final = 256
"""The most bytes of an answer that is remembered."""


def _count_processed(body: bytes) -> int | None:
    """Returns how many events the ordinary body of a 2xx says were processed; `None` for any other body."""
    try:
        root = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if (
        type(root) is not dict
        or type(processed := root.get("processedEventsCount")) is not int
        or root.get("unprocessedEvents") != []
    ):
        return None
    if (
        root.keys() <= _ORDINARY
        and type(root.get("success")) in _PLAIN
        and len(body) == len(orjson.dumps(root))
    ):
        return processed  # No key stands twice, or what was kept would be shorter.
    is_plain = len(lower_keys(root)) == len(root) and not _has_doubled_keys(body, root)
    return processed if is_plain else None


_recent_count: Final = functools.lru_cache(maxsize=64)(_count_processed)


def read_answer(body: bytes | None, clean: Clean = clean, *, at_most: int = 100) -> Answer | None:
    """Returns the answer in the body of a 2xx, or `None` if it cannot be read.

    Args:
        at_most: How many echoes are read. `unprocessed` has an empty item for each one beyond.
    """
    root = _read_object(body)
    if root is None or body is None:
        return None
    seen = _Keys()
    lowered = seen.lower(root) or {}
    processed = lowered.get("processedeventscount")
    unprocessed = lowered.get("unprocessedevents")
    if unprocessed is None:
        unprocessed = []
    if type(processed) is not int or processed < 0 or not isinstance(unprocessed, list):
        return None
    shared: dict[tuple[ApiError, ...], tuple[ApiError, ...]] = {}
    read = [_read_unprocessed(item, seen, clean, shared) for item in unprocessed[:at_most]]
    read += [_UNREAD] * (len(unprocessed) - len(read))
    is_contradictory = seen.is_doubled or _has_doubled_keys(body, root)
    return Answer(processed, tuple(read), is_contradictory)


_UNREAD: Final = Unprocessed(None, ())


def read_errors(body: bytes | None, clean: Clean = clean) -> tuple[ApiError, ...]:
    """Returns the errors of a refusal, in the specification's shape or as a framework's problem document.

    All of them together have at most `MAX_TEXT` bytes.
    """
    root = _read_object(body)
    if root is None:
        return ()
    root = lower_keys(root)
    return _bounded(_read_errors(root.get("errors"), _Keys().lower, clean)) or _bounded(
        _read_title(root, clean)
    )


def lower_keys(data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the mapping with its keys in lower case: a server may write them in any case."""
    return {key.lower(): value for key, value in data.items()}


_MAX_KEYS: Final = 256
"""The most keys of an object that is read: an event has six."""


class _Keys:
    """Reads keys in any case, and notes whether one stands in an object in two casings."""

    def __init__(self) -> None:
        self.is_doubled = False

    def lower(self, data: Any) -> dict[str, Any] | None:
        """Returns the object with its keys in lower case; `None` if it is none, or has too many keys."""
        if not isinstance(data, dict) or len(data) > _MAX_KEYS:
            return None
        lowered = lower_keys(data)
        self.is_doubled |= len(lowered) != len(data)
        return lowered


_BEFORE_COLON: Final = re.compile(rb'"[ \t\r\n]+:')
_STRING_WITH_COLON: Final = re.compile(rb'[\[{,:][ \t\r\n]*":')
_OPENERS: Final = bytes.maketrans(b"[{,", b":::")
"""What may stand before a string, all written as a colon."""

_BLANKS: Final = b" \t\r\n"


def _has_doubled_keys(body: bytes, root: dict[str, Any]) -> bool:
    """Returns True if a key stands twice in an object of the body, which was read as `root`.

    Reading keeps one of them, so that fewer keys are written again than there were. An answer that cannot
    be written again, because it is nested too deeply, counts as well.
    """
    try:
        before, kept = _count_keys(body), _count_keys(orjson.dumps(root))
        if before is None or kept is None:
            return _finds_doubled_keys(body)
    except (TypeError, ValueError, RecursionError):
        return True
    return before != kept


def _count_keys(text: bytes) -> int | None:
    """Returns how many keys all objects of a JSON text have together; `None` if that is not told quickly.

    Without its escaped characters, a quotation mark before a colon ends a key, unless it begins a string
    that begins with a colon.
    """
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    is_spaced = len(text.translate(None, _BLANKS)) < len(text)
    if is_spaced:
        if _STRING_WITH_COLON.search(text):
            return None
        return text.count(b'":') + len(_BEFORE_COLON.findall(text))
    if b':":' in text.translate(_OPENERS):
        return None
    return text.count(b'":')


def _finds_doubled_keys(body: bytes) -> bool:
    is_doubled = False

    def look(pairs: list[tuple[str, Any]]) -> None:
        nonlocal is_doubled
        is_doubled |= len({name for name, _ in pairs}) < len(pairs)

    json.loads(body.removeprefix(_BOM), object_pairs_hook=look)
    return is_doubled


def _read_object(body: bytes | None) -> dict[str, Any] | None:
    if not body:
        return None
    try:
        root = orjson.loads(body.removeprefix(_BOM))
    except orjson.JSONDecodeError:
        return None
    return root if isinstance(root, dict) else None


def _read_unprocessed(
    data: Any, seen: _Keys, clean: Clean, shared: dict[tuple[ApiError, ...], tuple[ApiError, ...]]
) -> Unprocessed:
    item = seen.lower(data) or {}
    raw = item.get("errors")
    found = list(_read_errors(raw, seen.lower, clean))
    calls_type_invalid = any(error.code == "InvalidEventType" for error in found) or (
        isinstance(raw, (list, dict)) and len(raw) > _MAX_ERRORS
    )
    errors = _bounded(found)
    return Unprocessed(seen.lower(item.get("event")), shared.setdefault(errors, errors), calls_type_invalid)


def _bounded(errors: Iterable[ApiError]) -> tuple[ApiError, ...]:
    """Returns the first errors, as many as have `MAX_TEXT` bytes together, and at least one."""
    kept: list[ApiError] = []
    room = MAX_TEXT
    for error in errors:
        room -= len(error.message.encode()) + len((error.code or "").encode()) + _ERROR
        if room < 0 and kept:
            break
        kept.append(error)
    return tuple(kept)


_ERROR: Final = 64
"""What an error costs beside its text, in bytes, about."""


_MAX_ERRORS: Final = 64
"""How many errors of one event, or of one refusal, are read."""


def _read_errors(
    data: Any, lower: Callable[[Any], dict[str, Any] | None], clean: Clean
) -> Iterable[ApiError]:
    if isinstance(data, dict):  # A problem document: each field with a list of messages.
        for field, messages in islice(data.items(), _MAX_ERRORS):
            for message in messages[:_MAX_ERRORS] if isinstance(messages, list) else [messages]:
                yield ApiError(clean(field), clean(message) if isinstance(message, str) else "")
    elif isinstance(data, list):
        for item in data[:_MAX_ERRORS]:
            if (lowered := lower(item)) is not None:
                yield _read_error(lowered, clean)


def _read_error(item: dict[str, Any], clean: Clean) -> ApiError:
    code, message = item.get("code"), item.get("message")
    return ApiError(
        clean(code) if isinstance(code, str) and code else None,
        clean(message) if isinstance(message, str) else "",
    )


def _read_title(root: dict[str, Any], clean: Clean) -> Iterable[ApiError]:
    title = root.get("title")
    if isinstance(title, str) and title:
        yield ApiError(None, clean(title))
