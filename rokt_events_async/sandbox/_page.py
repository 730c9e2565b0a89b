"""The live page's side of the server: its files, its stream of server-sent events, and its controls.

Any web page can reach loopback, by DNS rebinding too. So every answer is given only to a page that this
sandbox has served: `Host` must be a loopback name (or the sandbox is exposed, and the token is asked for),
`Origin` must be the page's own, and a control must be JSON, which no form can send.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
from aiohttp import web

from rokt_events_async._version import __version__
from rokt_events_async.sandbox._live import KEPT, Cursor, Live
from rokt_events_async.sandbox.answering import is_gone
from rokt_events_async.sandbox.echoes import ECHO_NOTES, Echo
from rokt_events_async.sandbox.faults import FAULT_NOTES, Fault, FaultPlan
from rokt_events_async.settings import Credentials

TICK: Final = 0.05
"""Seconds between two messages to a page."""

ROWS_PER_TICK: Final = 15
"""Requests per message once a page is up to date: 300 per second. More of them come later, or are missed."""

_ROWS_PER_SLICE: Final = 100
_SILENT_TICKS: Final = 300
"""After so many ticks without news a comment is sent, which finds a connection that is dead."""

MOST_BEHIND: Final = 1500
"""Requests by which a page may be behind those that come: 5 seconds. Beyond it, it misses the older ones."""

MOST_ARMED: Final = 1000
"""Faults that can be armed at a time."""

LONGEST_LATENCY: Final = 600_000
"""Milliseconds."""

_MOST_CONTROL: Final = 1024 * 1024
_FILES: Final = Path(__file__).parent / "page"
_TYPES: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@attrs.define(eq=False)
class Behaviour:
    """What of a sandbox can be changed while it serves.

    Attributes:
        plan: The faults and the latency.
        echo: The form of the answers.
        accepts_credentials: False answers 401 to everything.
        changes: How often a page has changed it. What a page changed and another undid at once looks the same
            as before, and must be told all the same.
    """

    plan: FaultPlan
    echo: Echo
    accepts_credentials: bool = True
    _known: dict[str, Fault] = attrs.field(factory=dict, init=False)
    _versions: Iterator[int] = attrs.field(factory=itertools.count, init=False)
    changes: int = attrs.field(default=0, init=False)

    def shown(self) -> dict[str, Any]:
        """Returns it in the page's names."""
        return {
            "script": [str(fault) for fault in self.plan.script],
            "rates": [{"fault": str(fault), "rate": rate} for fault, rate in self.plan.rates],
            "latency": [round(bound * 1000) for bound in self.plan.latency],
            "echo": self.echo.names(),
            "isOther": Echo.of(*self.echo.names()) != self.echo,
            "credentials": self.accepts_credentials,
        }

    def snapshot(self) -> dict[str, Any]:
        """Returns it with a version, by which a page knows the later of two."""
        return {**self.shown(), "version": next(self._versions)}

    def fail_next(self, asked: Mapping[str, Any]) -> None:
        """Arms a fault for the next `count` requests."""
        count = asked.get("count", 1)
        room = MOST_ARMED - len(self.plan.script)
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= room:
            raise _WrongError("count", f"count must be 1..{room}, got {count!r}")
        self.plan.append([_fault(asked.get("fault"))] * count)

    def set_script(self, asked: Mapping[str, Any]) -> None:
        """Replaces what is armed. A fault that is armed already keeps its headers and its body."""
        names = asked.get("script")
        if not isinstance(names, list) or len(names) > MOST_ARMED:
            raise _WrongError("script", f"script must be a list of at most {MOST_ARMED} faults")
        armed: defaultdict[str, list[Fault]] = defaultdict(list)
        for fault in reversed(self.plan.script):
            armed[str(fault)].append(fault)
        self._remember(self.plan.script)
        faults = [
            armed[name].pop() if armed.get(str(name)) else self._fault(name, "script") for name in names
        ]
        self.plan.set_script(faults)

    def set_some(self, asked: Mapping[str, Any]) -> None:
        """Changes what is named: all of it, or nothing if any of it is wrong."""
        rates = self._rates(asked["rates"]) if "rates" in asked else None
        latency = _latency(asked["latency"]) if "latency" in asked else None
        echo = _echo(asked["echo"]) if "echo" in asked else None
        accepts = asked.get("credentials")
        if not isinstance(accepts, bool | None):
            raise _WrongError("credentials", f"credentials must be true or false, got {accepts!r}")
        if rates is not None:
            try:
                self.plan.set_rates(rates)
            except ValueError as error:
                raise _WrongError("rates", str(error)) from None
        if latency is not None:
            self.plan.set_latency(latency)
        if echo is not None:
            self.echo = echo
        if accepts is not None:
            self.accepts_credentials = accepts

    def _remember(self, faults: Iterable[Fault]) -> None:
        """Remembers faults of the program's own: a page knows their names, and may bring them back."""
        self._known.update({str(fault): fault for fault in faults if fault not in _LISTED})

    def _fault(self, name: object, field: str) -> Fault:
        if isinstance(name, str) and name in self._known:
            return self._known[name]
        return Fault() if name == str(Fault()) else _fault(name, field)

    def _rates(self, rates: object) -> dict[Fault, float]:
        if not isinstance(rates, list) or not all(isinstance(item, dict) for item in rates):
            raise _WrongError("rates", 'rates must be a list of {"fault": …, "rate": …}')
        now = {str(fault): fault for fault, _ in self.plan.rates}
        self._remember(now.values())
        found: dict[Fault, float] = {}
        for item in rates:
            rate, name = item.get("rate"), item.get("fault")
            if not isinstance(rate, int | float) or isinstance(rate, bool):
                raise _WrongError("rates", f"a rate must be a number 0..1, got {rate!r}")
            is_there = isinstance(name, str) and name in now
            found[now[name] if is_there else self._fault(name, "rates")] = rate
        return found


class _WrongError(Exception):
    """A control was asked for something that is not there."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class Page:
    """Serves the page, and what it asks for.

    Args:
        live: What it shows.
        behaviour: What its controls change.
        credentials: Shown to a page that has no requests yet.
        shows_secret: True if the sandbox has made the credentials up itself.
        token: What a page has to know; empty on loopback.
        clear: Resets the record.
        stopping: Set when the sandbox stops.
    """

    def __init__(
        self,
        *,
        live: Live,
        behaviour: Behaviour,
        credentials: Credentials,
        shows_secret: bool,
        token: str,
        clear: Callable[[], None],
        stopping: asyncio.Event,
    ) -> None:
        self._live, self._behaviour = live, behaviour
        self._env = {"ROKT_PUB_ID": credentials.pub_id, "ROKT_TAG_ID": credentials.tag_id}
        if shows_secret:
            self._env["ROKT_SECRET"] = credentials.secret
        self._token, self._clear, self._stopping = token, clear, stopping
        self._endpoint = ""
        self._controls: dict[str, Callable[[Mapping[str, Any]], None]] = {
            "fail-next": behaviour.fail_next,
            "script": behaviour.set_script,
            "settings": behaviour.set_some,
            "clear": lambda _: clear(),
        }

    def add_routes(self, app: web.Application, *, endpoint: str) -> None:
        """Adds the page to a sandbox whose API is at the path `endpoint`."""
        self._endpoint = endpoint
        app.router.add_get("/", self._guarded(self._file, needs_token=False))
        app.router.add_get("/_live/events", self._guarded(self._events))
        app.router.add_get(r"/_live/requests/{number:\d{1,15}}", self._guarded(self._detail))
        app.router.add_post("/_live/{control}", self._guarded(self._control))
        app.router.add_get("/_live/page/{name}", self._guarded(self._file, needs_token=False))

    def _guarded(self, handler: Handler, *, needs_token: bool = True) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            refused = self._refusal(request, needs_token=needs_token)
            return await handler(request) if refused is None else refused

        return guarded

    def _refusal(self, request: web.Request, *, needs_token: bool) -> web.Response | None:
        if not self._token and not is_loopback(request.host):
            return _problem(403, "host", f"the Host header must name loopback, got {request.host!r}")
        if (refused := refuse_origin(request)) is not None:
            return refused
        if needs_token and self._token:
            given = request.headers.get("Authorization", "").encode(errors="replace")
            if not hmac.compare_digest(given, f"Bearer {self._token}".encode()):
                return _problem(401, "token", "the page needs the token that the sandbox has printed")
        return None

    # Its files.

    async def _file(self, request: web.Request) -> web.StreamResponse:
        path = _FILES / request.match_info.get("name", "index.html")
        kind = _TYPES.get(path.suffix)
        if kind is None or path.parent != _FILES or not path.is_file():
            return _problem(404, "name", "the page has no such file")
        return web.Response(body=path.read_bytes(), content_type=kind, charset="utf-8", headers=HEADERS)

    # What is new.

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream"})
        await response.prepare(request)
        cursor, goes_on = self._live.begin(request.headers.get("Last-Event-ID"))
        settings = self._behaviour.shown()
        hello = self._hello(request, goes_on=goes_on)
        try:
            await response.write(_message("hello", json.dumps(hello).encode(), cursor))
            await self._follow(request, response, cursor, settings)
        except ConnectionError:  # The page was closed.
            pass
        return response

    async def _follow(
        self,
        request: web.Request,
        response: web.StreamResponse,
        cursor: Cursor,
        settings: dict[str, Any],
    ) -> None:
        history, silent, changes = self._live.end(), 0, self._behaviour.changes
        totals: dict[str, int] = {}
        recent: list[list[int]] = []
        while not self._stopping.is_set() and not is_gone(request):
            if cursor.epoch != self._live.epoch:
                cursor, history = self._live.begin()[0], 0
                cleared = json.dumps({"totals": self._live.totals}).encode()
                await response.write(_message("cleared", cleared, cursor))
            is_new = cursor.row >= history
            news = (
                self._live.read(cursor, ROWS_PER_TICK, behind=MOST_BEHIND)
                if is_new
                else self._live.read(cursor, _ROWS_PER_SLICE)
            )
            if recent != (now := self._live.recent(time.time())):
                recent, silent = now, 0
                await response.write(_message("recent", json.dumps({"seconds": recent}).encode()))
            if changes != self._behaviour.changes or settings != self._behaviour.shown():
                changes, settings = self._behaviour.changes, self._behaviour.shown()
                changed = json.dumps(self._behaviour.snapshot()).encode()
                await response.write(_message("settings", changed))
            if news.missed or news.rows or news.late or totals != self._live.totals:
                totals, silent = dict(self._live.totals), 0
                rest = {"late": news.late, "missed": news.missed, "totals": totals}
                data = b'{"rows":[%b],%b' % (b",".join(news.rows), json.dumps(rest)[1:].encode())
                await response.write(_message("requests", data, cursor))
            elif (silent := silent + 1) % _SILENT_TICKS == 0:
                await response.write(b": still here\n\n")
            await self._pause(TICK if is_new or not news.has_more else 0)

    async def _pause(self, seconds: float) -> None:
        if not seconds:
            await asyncio.sleep(0)
            return
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return

    def _hello(self, request: web.Request, *, goes_on: bool) -> dict[str, Any]:
        endpoint = f"{request.scheme}://{request.host}{self._endpoint}"
        env = {**self._env, "ROKT_ENDPOINT": endpoint}
        if not is_loopback(request.host):
            env["ROKT_ALLOW_HTTP"] = "1"
        return {
            "version": __version__,
            "goesOn": goes_on,
            "kept": KEPT,
            "endpoint": endpoint,
            "env": env,
            "isTrimmed": self._live.is_trimmed,
            "faults": [
                {"name": name, "group": group, "says": says, "takes": _takes(Fault.of(name))}
                for name, (group, says) in FAULT_NOTES.items()
            ],
            "echoes": [{"name": name, "says": says} for name, says in ECHO_NOTES.items()],
            "settings": self._behaviour.snapshot(),
            "totals": self._live.totals,
        }

    async def _detail(self, request: web.Request) -> web.StreamResponse:
        found = self._live.detail(int(request.match_info["number"]))
        if found is None:
            return _problem(404, "number", "the sandbox no longer has this request")
        return _json(200, found)

    # Its controls.

    async def _control(self, request: web.Request) -> web.StreamResponse:
        act = self._controls.get(request.match_info["control"])
        if act is None:
            return _problem(404, "control", f"a control must be one of {', '.join(self._controls)}")
        if request.content_type != "application/json":
            return _problem(415, "Content-Type", "a control must be application/json")
        if request.content_length is None or request.content_length > _MOST_CONTROL:
            return _problem(413, "Content-Length", f"a control must be at most {_MOST_CONTROL} bytes")
        try:
            asked = json.loads(await request.read())
        except (ValueError, RecursionError):
            asked = None
        if not isinstance(asked, dict):
            return _problem(422, "body", "a control must be a JSON object")
        try:
            act(asked)
        except _WrongError as error:
            return _problem(422, error.field, str(error))
        self._behaviour.changes += 1
        return _json(200, self._behaviour.snapshot())


def refuse_origin(request: web.Request) -> web.Response | None:
    """Returns what another page is told that asks; `None` for this sandbox's own, and for no page."""
    origin = request.headers.get("Origin")
    if origin is None or origin == f"{request.scheme}://{request.host}":
        return None
    return _problem(403, "origin", f"the page must be the sandbox's own, got the origin {origin!r}")


def is_loopback(host: str) -> bool:
    """Returns True if a `Host` header names loopback, with any port."""
    name, _, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    if not port.isdecimal():
        name = host
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


_LISTED: Final = frozenset(map(Fault.of, FAULT_NOTES))


def _takes(fault: Fault) -> str:
    """Says if a fault's events are taken: `no`, `yes` (and the client is not told), or `told`."""
    if not fault.processes_events():
        return "no"
    return "told" if fault.tells() else "yes"


def _fault(name: object, field: str = "fault") -> Fault:
    if not isinstance(name, str):
        raise _WrongError(field, f"a fault must be a name or a status as text, got {name!r}")
    try:
        return Fault.of(name)
    except ValueError as error:
        raise _WrongError(field, str(error)) from None


def _latency(bounds: object) -> tuple[float, float]:
    if (
        not isinstance(bounds, list)
        or len(bounds) != 2
        or not all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in bounds)
        or not 0 <= bounds[0] <= bounds[1] <= LONGEST_LATENCY
    ):
        raise _WrongError(
            "latency", f"latency must be [shortest, longest] in 0..{LONGEST_LATENCY} ms, got {bounds!r}"
        )
    return bounds[0] / 1000, bounds[1] / 1000


def _echo(names: object) -> Echo:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _WrongError("echo", "echo must be a list of names")
    try:
        return Echo.of(*names)
    except ValueError as error:
        raise _WrongError("echo", str(error)) from None


def _message(kind: str, data: bytes, cursor: Cursor | None = None) -> bytes:
    """Returns a server-sent event. JSON has no raw line breaks, so it is one line of data."""
    place = f"id: {cursor}\n" if cursor is not None else ""
    return f"event: {kind}\n{place}data: ".encode() + data + b"\n\n"


def _json(status: int, content: Any) -> web.Response:
    return web.Response(
        status=status, text=json.dumps(content), content_type="application/json", headers=HEADERS
    )


def _problem(status: int, field: str, message: str) -> web.Response:
    return _json(status, {"field": field, "message": message})
