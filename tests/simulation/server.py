"""A byte-level server: reads requests, does to them what the world has drawn, and keeps its own record.

It shares nothing with the client but the bytes. What is accepted, named, answered and lost is written
down here, and the invariants are held against that.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Protocol

import attrs

from tests.samples import CREDENTIALS
from tests.simulation.network import Connection

REFUSED = "SignalRefused"
"""An event type that the server names in a 207."""

SPOILT = "SignalSpoilt"
"""An event type for which the server refuses the whole request."""

MAYBE = {408, 500, 502, 504, 520, 598, 599}
"""The server may have taken the events all the same; so may a 503 with a body and without `Retry-After`."""

AGAIN = {429, 503} | MAYBE
WHOLE = {400, 413, 422}
UNTOLD = {300, 303, 409, 418}
"""Final, and they say nothing of the events."""

CREDENTIALS_REFUSED = {401, 403}


@attrs.define
class Exchange:
    """One request that arrived.

    Attributes:
        plan: What was done to it.
        status: The status that the client has received; `None` if none reached it.
        told_at: When it did.
        is_odd: Whether its 2xx leaves in the dark what became of whom.
        retry_after: Seconds that it asked for, as the client must read them.
        is_clear: Whether its status says that nothing was accepted.
        arrives_at: When the whole answer is at the client's socket; `None` if that never is.
    """

    at: float
    ids: tuple[str, ...]
    plan: str
    status: int | None = None
    told_at: float | None = None
    is_odd: bool = False
    retry_after: float = 0.0
    is_clear: bool = False
    arrives_at: float | None = None
    accepted: frozenset[str] = frozenset()
    named: frozenset[str] = frozenset()

    @property
    def may_have_accepted(self) -> bool:
        """As far as a client can know."""
        if self.status is None or (self.status in MAYBE | UNTOLD | {503} and not self.is_clear):
            return True
        return 200 <= self.status <= 299 and self.is_odd

    @property
    def may_be_sent_again(self) -> bool:
        if self.status is None or self.status in AGAIN | CREDENTIALS_REFUSED:
            return True
        return self.status in WHOLE and len(self.ids) > 1


class Host(Protocol):
    """What the server asks of its world."""

    max_batch_size: int

    def draw_plan(self, session: str, *, is_closed: bool) -> str: ...

    def draw(self, name: str, choices: list[Any]) -> Any: ...

    def now(self) -> float: ...

    def later(self, wait: float, call: Callable[..., Any], *args: Any) -> None: ...

    def check_time(self, event_time: datetime) -> None: ...

    def violated(self, what: str) -> None: ...

    def note(self, what: str) -> None: ...


RETRY_AFTER: dict[str, float] = {
    "2": 2.0,
    "7": 7.0,
    "0": 0.0,
    "-1": 0.0,
    "soon": 0.0,
    "31536000": 60.0,
    "Wed, 21 Oct 2015 07:28:00 GMT": 0.0,
}

STATUS_PLANS = {
    "refused": [503, 429],
    "asked to wait": [503, 429],
    "between, accepted": [408, 500, 502, 503, 504, 520, 598, 599],
    "between, not accepted": [408, 500, 502, 503, 504, 520, 598, 599],
    "final": [301, 302, 307, 404, 405, 407, 410, 415, 501, 505],
    "final, untold, accepted": sorted(UNTOLD),
    "final, untold, not accepted": sorted(UNTOLD),
    "credentials": [401, 403],
    "other success": [201, 202, 206],
}
"""Plans that answer with a status out of these."""

CUT_PLANS = (
    "reset, accepted",
    "reset, not accepted",
    "end, accepted",
    "silence, accepted",
    "silence, not accepted",
    "drip",
    "head, then silence",
    "head, then reset",
    "bad head, then reset",
    "no HTTP, accepted",
)
"""Plans in which something does not arrive."""

BODY_PLANS = (
    "no content",
    "empty",
    "cut",
    "html",
    "wrong types",
    "not utf-8",
    "deep",
    "huge",
    "compressed",
    "counts too low",
    "counts too high",
    "names a stranger",
    "names one twice",
    "names in the dark",
    "names without end",
    "NaN",
    "duplicate keys",
    "keys in two casings",
    "echoes a millisecond off",
    "echoes with more metadata",
    "echoes with other metadata",
)
"""Plans that answer 2xx with something else than the specification's body."""

KEPT_PLANS = ("extra bytes", "connection: close", "closes when idle")
"""Plans that answer well, and do something to the connection."""

PLANS = (*STATUS_PLANS, *CUT_PLANS, *BODY_PLANS, *KEPT_PLANS)


class Peer:
    """The server's end of one connection."""

    def __init__(self, host: Host, connection: Connection, record: list[Exchange]) -> None:
        self._host = host
        self._connection = connection
        self._record = record
        self._buffer = b""
        self._is_closed = False

    def receive(self, data: bytes | None) -> None:
        if data is None:
            self._is_closed = True
            return
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            lines = self._buffer[:end].decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
            total = end + 4 + int(headers["content-length"])
            if len(self._buffer) < total:
                return
            body, self._buffer = self._buffer[end + 4 : total], self._buffer[total:]
            self._take(lines[0], headers, body)

    def _take(self, line: str, headers: dict[str, str], body: bytes) -> None:
        if line != "POST /v1/partner/events HTTP/1.1":
            self._host.violated(f"a request for {line}")
        if (
            headers.get("rokt-secret") != CREDENTIALS.secret
            or headers.get("content-type") != "application/json"
        ):
            self._host.violated("a request without its headers")
        if CREDENTIALS.secret.encode() in body:
            self._host.violated("the secret is in a body")
        events: list[dict[str, Any]] = json.loads(body)["events"]
        if not 1 <= len(events) <= self._host.max_batch_size:
            self._host.violated(f"a request of {len(events)} events")
        if len({event["sessionId"] for event in events}) != 1:
            self._host.violated("a request of several sessions")
        for event in events:
            self._host.check_time(datetime.fromisoformat(event["eventTime"]))
        plan = self._host.draw_plan(events[0]["sessionId"], is_closed=self._is_closed)
        exchange = Exchange(self._host.now(), tuple(event["parentGuid"] for event in events), plan)
        self._record.append(exchange)
        self._host.note(f"{plan}: {' '.join(exchange.ids)}")
        if not self._is_closed:
            self._follow(plan, exchange, events)

    # The plans.

    def _follow(self, plan: str, exchange: Exchange, events: list[dict[str, Any]]) -> None:
        if plan in STATUS_PLANS:
            self._answer_status(plan, exchange, events)
        elif plan in CUT_PLANS:
            self._cut(plan, exchange, events)
        elif any(event["eventType"] == SPOILT for event in events):
            exchange.named = frozenset(exchange.ids) if len(events) == 1 else frozenset()
            self._send(
                exchange, self._host.draw("whole", sorted(WHOLE)), {"errors": [{"code": "X", "message": "x"}]}
            )
        elif plan in BODY_PLANS:
            self._answer_oddly(plan, exchange, events)
        else:
            self._answer_well(exchange, events, extra=b"HTTP/1.1 200 OK\r\n" * (plan == "extra bytes"))
            if plan == "connection: close":
                self._close()
            elif plan == "closes when idle":
                self._host.later(self._host.draw("idle", [0.0, 0.01, 0.5]), self._close)

    def _process(self, exchange: Exchange, events: list[dict[str, Any]]) -> dict[str, Any]:
        refused = [event for event in events if event["eventType"] == REFUSED]
        exchange.named = frozenset(event["parentGuid"] for event in refused)
        if any(event["eventType"] == SPOILT for event in events):
            return {}
        exchange.accepted = frozenset(exchange.ids) - exchange.named
        errors = [{"code": "InvalidEventType", "message": "refused"}]
        return {
            "processedEventsCount": len(events) - len(refused),
            "unprocessedEvents": [{"event": event, "errors": errors} for event in refused],
            "success": not refused,
        }

    def _answer_well(self, exchange: Exchange, events: list[dict[str, Any]], *, extra: bytes = b"") -> None:
        answer = self._process(exchange, events)
        headers = {"Connection": "close"} if exchange.plan == "connection: close" else {}
        self._send(exchange, 207 if exchange.named else 200, answer, headers, extra=extra)

    def _answer_status(self, plan: str, exchange: Exchange, events: list[dict[str, Any]]) -> None:
        status = self._host.draw(plan, STATUS_PLANS[plan])
        headers = {}
        body: Any = {"errors": [{"code": "Trouble", "message": "trouble"}]}
        if plan == "asked to wait":
            headers["Retry-After"] = value = self._host.draw("retry-after", sorted(RETRY_AFTER))
            exchange.retry_after = RETRY_AFTER[value]
        elif plan.endswith(", accepted"):
            self._process(exchange, events)
        if plan == "refused":
            body = b""
        exchange.is_clear = plan in ("refused", "asked to wait") or status in (429, 501, 505)
        if plan == "other success":
            body = self._process(exchange, events)
            exchange.is_odd = not body
        if 300 <= status <= 399:
            headers["Location"] = "http://127.0.0.1:9999/v1/partner/events"
        self._send(exchange, status, body, headers)

    def _cut(self, plan: str, exchange: Exchange, events: list[dict[str, Any]]) -> None:
        exchange.is_odd = True
        if "not accepted" not in plan and plan != "bad head, then reset":
            self._process(exchange, events)
        if plan.startswith("reset"):
            self._reset()
        elif plan == "end, accepted":
            self._close()
        elif plan == "drip":
            for number, byte in enumerate(b"HTTP/1.1 200 OK\r\n"):
                self._host.later(4.0 * (number + 1), self._connection.send, bytes([byte]))
        elif plan == "no HTTP, accepted":
            self._connection.send(b"HTTP/1.1 200 OK\r\nno header at all\r\n\r\n")
        elif "head" in plan:
            status = 503 if plan == "bad head, then reset" else 200
            head = (
                b"HTTP/1.1 %d Some\r\nContent-Type: application/json\r\nContent-Length: 80\r\n\r\n" % status
            )
            self._connection.send(head, self._told(exchange, status))
            if plan != "head, then silence":
                self._host.later(0.05, self._reset)

    def _answer_oddly(self, plan: str, exchange: Exchange, events: list[dict[str, Any]]) -> None:
        answer = self._process(exchange, events)
        exchange.is_odd = "echoes" not in plan or plan == "echoes with other metadata"
        status = 204 if plan == "no content" else 207 if exchange.named else 200
        headers = {"Content-Encoding": "gzip"} if plan == "compressed" else {}
        self._send(exchange, status, _odd_body(plan, answer, events), headers)

    # The wire.

    def _send(
        self,
        exchange: Exchange,
        status: int,
        body: Any,
        headers: dict[str, str] | None = None,
        *,
        extra: bytes = b"",
    ) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        fields = {"Content-Type": "application/json; charset=utf-8"} | (headers or {})
        if status != 204:
            fields["Content-Length"] = str(len(content))
        lines = [f"HTTP/1.1 {status} Some", *(f"{name}: {value}" for name, value in fields.items())]
        head = "\r\n".join(lines).encode() + b"\r\n\r\n"
        exchange.arrives_at = self._host.now() + self._connection.latency
        self._connection.send(head + content + extra, self._told(exchange, status))

    def _told(self, exchange: Exchange, status: int) -> Callable[[], None]:
        def told() -> None:
            exchange.status, exchange.told_at = status, self._host.now()
            self._host.note(f"told {status}: {exchange.ids[0]}")

        return told

    def _close(self) -> None:
        self._is_closed = True
        self._connection.finish()

    def _reset(self) -> None:
        self._is_closed = True
        self._connection.reset()


def _odd_body(plan: str, answer: dict[str, Any], events: list[dict[str, Any]]) -> Any:
    """What a plan of `BODY_PLANS` answers with."""
    whole = json.dumps(answer).encode()
    named, count = answer["unprocessedEvents"], answer["processedEventsCount"]
    stranger = {"event": events[0] | {"parentGuid": "stranger"}, "errors": []}
    in_the_dark = [{"event": {"sessionId": item["event"]["sessionId"]}, "errors": []} for item in named]
    bodies: dict[str, Any] = {
        "no content": b"",
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "html": b"<html>ok</html>",
        "wrong types": answer | {"processedEventsCount": str(len(events))},
        "not utf-8": b'{"processedEventsCount":1,"x":"\xff\xfe"}',
        "deep": b"[" * 5000 + b"]" * 5000,
        "huge": whole + b" " * 300_000,
        "compressed": answer,
        "counts too low": answer | {"processedEventsCount": max(0, count - 1)},
        "counts too high": answer | {"processedEventsCount": len(events) + 1},
        "names a stranger": answer | {"unprocessedEvents": [*named, stranger]},
        "names one twice": answer | {"unprocessedEvents": named * 2},
        "names without end": answer | {"unprocessedEvents": [stranger] * (4 * len(events)) + named},
        "names in the dark": answer | {"unprocessedEvents": in_the_dark},
        "NaN": json.dumps(answer | {"processedEventsCount": float("nan")}).encode(),
        "duplicate keys": b'{"processedEventsCount":0,' + whole[1:],
        "keys in two casings": answer | {"ProcessedEventsCount": len(events)},
        "echoes a millisecond off": answer | {"unprocessedEvents": [_late(item) for item in named]},
        "echoes with more metadata": answer | {"unprocessedEvents": [_enriched(item) for item in named]},
        "echoes with other metadata": answer
        | {"unprocessedEvents": [_enriched(item, kept=0) for item in named]},
    }
    return bodies[plan]


def _late(item: dict[str, Any]) -> dict[str, Any]:
    moment = datetime.fromisoformat(item["event"]["eventTime"]) + timedelta(milliseconds=1)
    return item | {"event": item["event"] | {"eventTime": moment.isoformat()}}


def _enriched(item: dict[str, Any], kept: int | None = None) -> dict[str, Any]:
    metadata = item["event"].get("metadata", [])[:kept]
    return item | {"event": item["event"] | {"metadata": [*metadata, {"name": "server", "value": "x"}]}}
