r"""How the API writes its answers: envelopes, and the echo of an event in all its known forms.

The default is what a System.Text.Json server writes: the key order of the specification's example,
unknown keys dropped, the fraction of a time trimmed, `+00:00`, absent metadata omitted, `\u0027`-style
escapes. `Echo` switches each of the other forms on.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from typing import Any, Final

import attrs

from rokt_events_async.sandbox.rules import DEFAULT_TIME, EVENT_TYPES, Event, Judged, Problem, Refusal

COMMON_METADATA: Final = (("SandboxReceivedBy", "sandbox"), ("SandboxRegion", "loopback"))
"""The metadata that the server adds in the enriched form."""


@attrs.frozen(kw_only=True)
class Echo:
    """The form of the answers. Every switch is off by default; switches can be combined.

    Args:
        lenient_times: A null or empty `eventTime` is the default time and named in a 207.
        unknown_types: An `eventType` that is not the specification's is written `Unknown`.
        default_times: Every time is written as the default time.
        drop_metadata: Metadata is not written.
        enrich_metadata: The server's own metadata is added.
        lower_guids: `sessionId` and `parentGuid` are written in lower case.
        pascal_case: Keys are written `EventType`, `ProcessedEventsCount`, ….
        shuffle: `unprocessedEvents` come in another order.
        problem_document: A 400 is a framework's problem document.
        empty_401: A 401 has no body.
        only_200: Unprocessed events come with a 200 instead of a 207.
        foreign: An echo matches no event that was sent.
        count_offset: Added to `processedEventsCount`, which is then wrong.
    """

    lenient_times: bool = False
    unknown_types: bool = False
    default_times: bool = False
    drop_metadata: bool = False
    enrich_metadata: bool = False
    lower_guids: bool = False
    pascal_case: bool = False
    shuffle: bool = False
    problem_document: bool = False
    empty_401: bool = False
    only_200: bool = False
    foreign: bool = False
    count_offset: int = 0

    @classmethod
    def of(cls, *names: str) -> Echo:
        """Returns the form with these names of `ECHO_FORMS` switched on.

        Raises:
            ValueError: There is no such form.
        """
        switches: dict[str, Any] = {}
        for name in names:
            if name not in ECHO_FORMS:
                raise ValueError(f"echo must be one of {', '.join(ECHO_FORMS)}, got {name!r}")
            switches |= ECHO_FORMS[name]
        return cls(**switches)

    def names(self) -> list[str]:
        """Returns the names of the forms that are switched on."""
        return [
            name
            for name, switches in ECHO_FORMS.items()
            if switches and all(getattr(self, switch) == on for switch, on in switches.items())
        ]


ECHO_FORMS: Final[dict[str, dict[str, Any]]] = {
    "default": {},
    "lenient-times": {"lenient_times": True},
    "unknown-types": {"unknown_types": True},
    "default-times": {"default_times": True},
    "no-metadata": {"drop_metadata": True},
    "enriched-metadata": {"enrich_metadata": True},
    "lower-guids": {"lower_guids": True},
    "pascal-case": {"pascal_case": True},
    "shuffled": {"shuffle": True},
    "problem-document": {"problem_document": True},
    "empty-401": {"empty_401": True},
    "only-200": {"only_200": True},
    "foreign": {"foreign": True},
    "wrong-count": {"count_offset": 1},
}
"""The forms by name; `default` has every switch off."""

ECHO_NOTES: Final[dict[str, str]] = {
    "lenient-times": "A null or empty eventTime is named in a 207, not refused",
    "unknown-types": "An unknown eventType is written Unknown",
    "default-times": "Every time is written as 0001-01-01",
    "no-metadata": "Metadata is left out",
    "enriched-metadata": "The server's own metadata is added",
    "lower-guids": "sessionId and parentGuid in lower case",
    "pascal-case": "Keys are written EventType, Success, …",
    "shuffled": "unprocessedEvents in another order",
    "problem-document": "A 400 is a framework's problem document",
    "empty-401": "A 401 has no body",
    "only-200": "What would be a 207 is a 200",
    "foreign": "An echo matches nothing that was sent",
    "wrong-count": "processedEventsCount is one too many",
}
"""What each form does, for a person who chooses one."""


@attrs.frozen
class Answer:
    """A status and a body. An empty body has no content type."""

    status: int
    body: bytes
    content_type: str = "application/json; charset=utf-8"


def write_verdicts(judged: Sequence[Judged], echo: Echo, random_: random.Random) -> Answer:
    """Returns the answer to a readable request: 200 if all events were accepted, otherwise 207."""
    unprocessed = [_unprocessed(item, echo) for item in judged if not item.is_accepted]
    if echo.shuffle:
        random_.shuffle(unprocessed)
    body = {
        "processedEventsCount": len(judged) - len(unprocessed) + echo.count_offset,
        "unprocessedEvents": unprocessed,
        "success": not unprocessed,
    }
    status = 207 if unprocessed and not echo.only_200 else 200
    return Answer(status, _dump(body, echo))


def write_refusal(refusal: Refusal, echo: Echo) -> Answer:
    """Returns the answer to a request that is refused as a whole."""
    if refusal.status == 401 and echo.empty_401:
        return Answer(401, b"", "")
    if refusal.status == 400 and echo.problem_document:
        body: dict[str, Any] = {
            "type": "https://tools.ietf.org/html/rfc9110#section-15.5.1",
            "title": "One or more validation errors occurred.",
            "status": 400,
            "errors": {"$.events": [refusal.problem.message]},
            "traceId": "00-00000000000000000000000000000000-0000000000000000-00",
        }
        return Answer(400, _dump(body, Echo()), "application/problem+json; charset=utf-8")
    body = {
        "title": refusal.title,
        "status": refusal.status,
        "success": False,
        "errors": [_error(refusal.problem)],
    }
    return Answer(refusal.status, _dump(body, echo))


def _error(problem: Problem) -> dict[str, str]:
    return {"code": problem.code, "message": problem.message}


def _unprocessed(judged: Judged, echo: Echo) -> dict[str, Any]:
    return {
        "errors": [_error(problem) for problem in judged.problems],
        "event": _write_event(judged.event, echo),
    }


def _write_event(event: Event, echo: Echo) -> dict[str, Any]:
    moment = event.moment if not echo.default_times else None
    client_unique_id = event.client_unique_id
    written: dict[str, Any] = {
        "eventType": _type(event, echo),
        "sessionId": _guid(event.session_id, echo),
        "eventTime": moment.echo if moment else DEFAULT_TIME,
        "parentGuid": _guid(event.parent_guid, echo),
        "clientUniqueId": f"{client_unique_id}-foreign" if echo.foreign else client_unique_id,
    }
    if metadata := _metadata(event, echo):
        written["metadata"] = [{"name": name, "value": value} for name, value in metadata]
    return written


def _type(event: Event, echo: Echo) -> str | None:
    return "Unknown" if echo.unknown_types and event.event_type not in EVENT_TYPES else event.event_type


def _guid(guid: str | None, echo: Echo) -> str | None:
    return guid.lower() if guid and echo.lower_guids else guid


def _metadata(event: Event, echo: Echo) -> tuple[tuple[str | None, str | None], ...]:
    if echo.drop_metadata:
        return ()
    return (event.metadata or ()) + (COMMON_METADATA if echo.enrich_metadata else ())


# Writing, as System.Text.Json does.

_ESCAPED: Final = re.compile(r"\\u[0-9a-f]{4}|['<>&`]")


def _dump(body: dict[str, Any], echo: Echo) -> bytes:
    text = json.dumps(_pascal(body) if echo.pascal_case else body, ensure_ascii=True)
    return _ESCAPED.sub(_escape, text).encode("ascii")


def _escape(match: re.Match[str]) -> str:
    """Escapes as upper-case hexadecimal, and more characters than JSON requires."""
    found = match[0]
    return f"\\u{found[2:].upper()}" if len(found) > 1 else f"\\u{ord(found):04X}"


def _pascal(value: Any) -> Any:
    if isinstance(value, dict):
        return {name[:1].upper() + name[1:]: _pascal(item) for name, item in value.items()}
    return [_pascal(item) for item in value] if isinstance(value, list) else value
