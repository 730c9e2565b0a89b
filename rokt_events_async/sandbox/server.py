"""The sandbox: an aiohttp.web application that does what `rules`, `echoes` and `faults` say."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gzip
import ipaddress
import random
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from types import TracebackType
from typing import Any, Final, Self

import attrs
from aiohttp import web

from rokt_events_async.sandbox import rules
from rokt_events_async.sandbox.echoes import Answer, Echo, write_refusal, write_verdicts
from rokt_events_async.sandbox.faults import Act, Fault, FaultPlan
from rokt_events_async.settings import Credentials

PATH: Final = "/v1/partner/events"

_MIB: Final = 1024 * 1024
_HUGE_MIB: Final = 64
_PAGE: Final = b"<!DOCTYPE html><html><body>Welcome to nginx!</body></html>"
_NONSENSE: Final = b"\xff\xfe{not json"


@attrs.frozen
class RecordedEvent:
    """An event as it was received, and the sandbox's verdict on it.

    Attributes:
        event: The event in the wire's names; absent values are left out.
        is_accepted: True if the sandbox accepted it, whatever the answer said.
        errors: Why it was refused; also empty if the whole request was refused.
    """

    event: Mapping[str, Any]
    is_accepted: bool
    errors: tuple[rules.Problem, ...] = ()


@attrs.frozen
class RecordedRequest:
    """A request as it was received, and how it was answered.

    Attributes:
        number: The order of arrival, from 1.
        headers: The request's headers without the credentials.
        body: The request's body; empty if the connection was reset before it arrived.
        fault: The fault that it met.
        status: The HTTP status of the answer, `None` if there was no status line.
        refusal: Why the whole request was refused.
        events: The request's events; empty if they could not be read.
    """

    number: int
    headers: Mapping[str, str]
    body: bytes
    fault: Fault
    status: int | None
    refusal: rules.Refusal | None
    events: tuple[RecordedEvent, ...]

    def __str__(self) -> str:
        accepted = sum(event.is_accepted for event in self.events)
        codes = sorted({problem.code for event in self.events for problem in event.errors})
        if self.refusal is not None:
            codes = [self.refusal.problem.code]
        verdict = "refused" if self.refusal is not None else f"{accepted}/{len(self.events)} accepted"
        parts = [f"#{self.number}", f"{self.status or 'no answer'}", verdict]
        if self.fault != Fault():
            parts.append(f"fault: {self.fault}")
        return "  ".join(parts + codes)


class Sandbox:
    """The Server Events API on loopback.

    Use `async with Sandbox() as sandbox: Emitter(sandbox.credentials, endpoint=sandbox.url)`. Without a
    loop, use `with`: the sandbox then serves from a thread of its own, and can be asked from any thread.

    Args:
        credentials: The only valid credentials; invented if left out.
        host: The loopback address to listen on.
        port: The port; 0 takes a free one.
        echo: The form of its answers: a name of `ECHO_FORMS`, or `Echo.of(…)` for several.
        script: The faults of the first requests, in order: names of `FAULTS`, statuses, `Fault` objects,
            `None` for a normal answer.
        faults: The faults of later requests, each with its rate from 0 to 1.
        latency: Seconds before every answer, or a pair of bounds.
        seed: The seed of all random choices.
        clock: Returns the aware now, for the time window.
        on_request: Called with each request after it was answered.
        history: How many requests are kept; `None` keeps all.

    Raises:
        ValueError: An argument is out of bounds.
        TypeError: An argument has the wrong type.
    """

    def __init__(
        self,
        *,
        credentials: Credentials | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        echo: Echo | str = Echo(),  # noqa: B008 -- frozen
        script: Iterable[Fault | int | str | None] = (),
        faults: Mapping[Any, float] | None = None,
        latency: float | tuple[float, float] = 0.0,
        seed: int = 0,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        on_request: Callable[[RecordedRequest], None] | None = None,
        history: int | None = None,
    ) -> None:
        self.credentials: Credentials = credentials or Credentials(
            pub_id="rpub-sandbox",
            secret="rsec-sandbox",  # noqa: S106 -- it opens nothing but this
            tag_id="1234567890",
        )
        self._host, self._port = _check_host(host), port
        self._echo = Echo.of(echo) if isinstance(echo, str) else echo
        if isinstance(script, (str, Fault)) or not isinstance(script, Iterable):
            raise TypeError(f"script must be a list of faults, got {script!r}")
        if not isinstance(faults, Mapping | None):
            raise TypeError(f"faults must be a mapping of fault and rate, got {faults!r}")
        self._random = random.Random(seed)  # noqa: S311 -- bad luck, no secret
        self._plan = FaultPlan(
            script=script,
            rates=faults or {},
            latency=latency if isinstance(latency, tuple) else (latency, latency),
            random_=random.Random(seed + 1),  # noqa: S311 -- the same
        )
        self._clock = clock
        self._on_request = on_request
        self._requests: deque[RecordedRequest] = deque(maxlen=history)
        self.count: int = 0
        self._accepted = 0
        self._waiting: dict[asyncio.Future[None], int] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._left: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._runner: web.AppRunner | None = None
        self._stopping: asyncio.Event | None = None

    # Lifecycle.

    async def start(self) -> None:
        """Starts listening.

        Raises:
            OSError: The port is taken.
            RuntimeError: It is serving already.
        """
        if self._runner is not None:
            raise RuntimeError(f"the sandbox is serving already, at {self.url}")
        app = web.Application(client_max_size=0)
        app.router.add_post(PATH, self._handle)
        self._stopping = asyncio.Event()
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except OSError:
            await runner.cleanup()
            raise
        self._runner = runner
        self._port = runner.addresses[0][1]

    async def aclose(self) -> None:
        """Stops listening, and drops requests that wait for an answer."""
        if self._runner is None or self._stopping is None:
            return
        self._stopping.set()
        await self._runner.cleanup()
        self._runner = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __enter__(self) -> Self:
        if self._thread is not None:
            raise RuntimeError(f"the sandbox is serving already, at {self.url}")
        serving: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._left = concurrent.futures.Future()
        self._thread = threading.Thread(
            target=asyncio.run, args=(self._live(serving),), name="rokt-sandbox", daemon=True
        )
        self._thread.start()
        try:
            serving.result()
        except BaseException:  # Ctrl-C too
            self._leave_thread()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave_thread()

    def _leave_thread(self) -> None:
        """Ends the thread, however far `__enter__` came."""
        assert self._thread is not None
        self._left.set_result(None)
        self._thread.join()
        self._thread = None

    async def _live(self, serving: concurrent.futures.Future[None]) -> None:
        """Serves in a thread of its own, from `__enter__` to `__exit__`."""
        try:
            await self.start()
        except Exception as error:  # noqa: BLE001 -- raised again in the thread that waits
            serving.set_exception(error)
            return
        serving.set_result(None)
        await asyncio.wrap_future(self._left)
        await self.aclose()

    @property
    def url(self) -> str:
        """The endpoint for an `Emitter`."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}{PATH}"

    # The record.

    @property
    def requests(self) -> list[RecordedRequest]:
        """All requests, in the order of arrival."""
        with self._lock:
            return list(self._requests)

    @property
    def events(self) -> list[Mapping[str, Any]]:
        """All accepted events, in order, in the wire's names; twice if they were accepted twice."""
        return [item.event for request in self.requests for item in request.events if item.is_accepted]

    async def wait_for(self, count: int, *, timeout: float = 5.0) -> list[Mapping[str, Any]]:
        """Waits until the sandbox has accepted `count` events in all, and returns them.

        Raises:
            TimeoutError: Fewer events were accepted in `timeout` seconds; the message says how many.
        """
        loop = asyncio.get_running_loop()
        arrived = loop.create_future()
        with self._lock:
            self._waiting[arrived] = count
            if self._accepted >= count:
                arrived.set_result(None)
        try:
            await asyncio.wait_for(arrived, timeout)
        except TimeoutError:
            raise TimeoutError(
                f"{self._accepted} of {count} events were accepted in {timeout:g} s, in {self.count} requests"
            ) from None
        finally:
            with self._lock:
                self._waiting.pop(arrived, None)
        return self.events

    def fail_next(self, *faults: Fault | int | str | None) -> None:
        """Appends to the script: `fail_next(503, 503)` fails the next two requests."""
        self._plan.append(faults)

    def __repr__(self) -> str:
        state = "serving" if self._runner else "stopped"
        return f"<Sandbox {state} at {self.url}: {self.count} requests>"

    # One request.

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        fault = self._plan.next()
        self.count += 1
        number, latency = self.count, self._plan.next_latency()
        if fault.act in (Act.RESET_BEFORE, Act.RESET_DURING):
            if fault.act is Act.RESET_DURING:
                await request.content.readany()
            self._remember(RecordedRequest(number, _plain(request), b"", fault, None, None, ()))
            return _reset(request)
        body = await request.read()
        recorded, answer = self._judge(number, request, body, fault)
        self._remember(recorded)
        await self._pause(latency)
        return await self._answer(request, fault, answer)

    def _judge(
        self, number: int, request: web.Request, body: bytes, fault: Fault
    ) -> tuple[RecordedRequest, Answer]:
        """Returns the API's answer and the record of it, with the fault applied."""
        echo = attrs.evolve(self._echo, count_offset=self._echo.count_offset + fault.count_offset)
        verdict = rules.check_headers(request.headers, expected=self._expected()) or rules.judge(
            body, now=self._clock(), lenient_times=echo.lenient_times
        )
        refusal: rules.Refusal | None = None
        events: tuple[RecordedEvent, ...] = ()
        if isinstance(verdict, rules.Refusal):
            refusal, answer = verdict, write_refusal(verdict, echo)
        else:
            answer = write_verdicts(verdict, echo, self._random)
            events = tuple(_record(judged, fault) for judged in verdict)
        status: int | None = answer.status
        if fault.act is Act.STATUS:
            answer, refusal = Answer(fault.status, fault.body, ""), None
            status = fault.status
        elif fault.act in (Act.SILENCE, Act.RESET_AFTER, Act.GARBAGE):
            status = None
        return RecordedRequest(number, _plain(request), body, fault, status, refusal, events), answer

    def _expected(self) -> dict[str, str]:
        return {
            "rokt-pub-id": self.credentials.pub_id,
            "rokt-secret": self.credentials.secret,
            "rokt-tag-id": self.credentials.tag_id,
        }

    def _remember(self, recorded: RecordedRequest) -> None:
        with self._lock:
            self._requests.append(recorded)
            self._accepted += sum(event.is_accepted for event in recorded.events)
            for arrived, count in self._waiting.items():
                if self._accepted >= count:
                    arrived.get_loop().call_soon_threadsafe(_arrive, arrived)
        if self._on_request is not None:
            self._on_request(recorded)

    async def _pause(self, seconds: float | None) -> None:
        """Waits, without bound if `None`, but not beyond the end of the sandbox."""
        assert self._stopping is not None
        if seconds == 0:
            return
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return

    async def _answer(self, request: web.Request, fault: Fault, answer: Answer) -> web.StreamResponse:
        if fault.act is Act.SILENCE:
            await self._pause(None)
            return _reset(request)
        if fault.act is Act.RESET_AFTER:
            return _reset(request)
        if fault.act is Act.DRIP:
            return await self._drip(request, fault, answer)
        await self._pause(fault.delay)
        if fault.act is Act.GARBAGE:
            return _garble(request)
        if fault.act is Act.CUT:
            return await _cut(request, answer)
        if fault.act is Act.HUGE:
            return await _flood(request, answer)
        return _respond(fault, answer)

    async def _drip(self, request: web.Request, fault: Fault, answer: Answer) -> web.StreamResponse:
        assert self._stopping is not None
        response = await _prepare(request, answer)
        for index in range(len(answer.body)):
            if self._stopping.is_set() or _is_gone(request):
                break
            await response.write(answer.body[index : index + 1])
            await self._pause(fault.delay)
        return response


def _arrive(arrived: asyncio.Future[None]) -> None:
    if not arrived.done():
        arrived.set_result(None)


def _check_host(host: str) -> str:
    """Checks for loopback: a sandbox accepts everything, so other machines must not reach it."""
    if host == "localhost":
        return host
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise ValueError(f"host must be a loopback address, got {host!r}")
    return host


def _record(judged: rules.Judged, fault: Fault) -> RecordedEvent:
    event = judged.event
    named = {
        "eventType": event.event_type,
        "eventTime": event.moment.text if event.moment else None,
        "parentGuid": event.parent_guid,
        "sessionId": event.session_id,
        "clientUniqueId": event.client_unique_id,
        "metadata": [{"name": name, "value": value} for name, value in event.metadata]
        if event.metadata
        else None,
    }
    shown = {name: value for name, value in named.items() if value is not None}
    if not fault.takes_events():
        return RecordedEvent(shown, is_accepted=False)
    return RecordedEvent(shown, is_accepted=judged.is_accepted, errors=judged.problems)


def _plain(request: web.Request) -> Mapping[str, str]:
    return {
        name: value
        for name, value in request.headers.items()
        if name.lower() not in ("rokt-secret", "rokt-pub-id")
    }


def _respond(fault: Fault, answer: Answer) -> web.Response:
    """Returns an answer in one piece, its body changed by the fault."""
    headers = {"Content-Type": answer.content_type} if answer.content_type else {}
    body = answer.body
    if fault.act is Act.STATUS:
        headers |= dict(fault.headers)
    elif fault.act is Act.EMPTY:
        body = b""
    elif fault.act is Act.HTML:
        body, headers = _PAGE, {"Content-Type": "text/html"}
    elif fault.act is Act.NONSENSE:
        body = _NONSENSE
    elif fault.act is Act.COMPRESSED:
        body = _blank() + gzip.compress(answer.body)
        headers["Content-Encoding"] = "gzip"
    return web.Response(status=answer.status, body=body, headers=headers)


@cache
def _blank() -> bytes:
    return gzip.compress(b" " * (16 * _MIB))


async def _prepare(request: web.Request, answer: Answer) -> web.StreamResponse:
    headers = {"Content-Type": answer.content_type, "Content-Length": str(len(answer.body))}
    response = web.StreamResponse(status=answer.status, headers=headers)
    await response.prepare(request)
    return response


async def _cut(request: web.Request, answer: Answer) -> web.StreamResponse:
    response = await _prepare(request, answer)
    await response.write(answer.body[: len(answer.body) // 2])
    _hang_up(request)
    return response


async def _flood(request: web.Request, answer: Answer) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):  # The client has closed the connection, as it should.
        for _ in range(_HUGE_MIB):
            await response.write(b" " * _MIB)
    return response


def _garble(request: web.Request) -> web.Response:
    _hang_up(request, b"\x16\x03\x01 this is no HTTP\r\n\r\n")
    return web.Response()


def _hang_up(request: web.Request, last_words: bytes = b"") -> None:
    if request.transport is not None:
        request.transport.write(last_words)
        request.transport.close()


def _is_gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _reset(request: web.Request) -> web.Response:
    """Resets the connection instead of closing it: bytes in flight are lost."""
    transport = request.transport
    if transport is not None:
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return web.Response()
