"""The sandbox: an aiohttp.web application that does what `rules`, `echoes` and `faults` say."""

from __future__ import annotations

import asyncio
import concurrent.futures
import ipaddress
import random
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self

import attrs
from aiohttp import web

from rokt_events_async.sandbox import answering, rules
from rokt_events_async.sandbox._live import Entry, Live
from rokt_events_async.sandbox._page import Behaviour, Page, refuse_origin
from rokt_events_async.sandbox.echoes import Answer, Echo, write_refusal, write_verdicts
from rokt_events_async.sandbox.faults import Act, Fault, FaultPlan
from rokt_events_async.sandbox.record import RecordedEvent, RecordedRequest, record_event, record_headers
from rokt_events_async.settings import Credentials

PATH: Final = "/v1/partner/events"

_ITSELF: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 -- listened on, and not connected to


class Sandbox:
    """The Server Events API on loopback.

    Use `async with Sandbox() as sandbox: Emitter(sandbox.credentials, endpoint=sandbox.url)`. Without a
    loop, use `with`: the sandbox then serves from a thread of its own, and can be asked from any thread.

    Args:
        credentials: The only valid credentials; invented if left out.
        host: The loopback address to listen on; any address with `expose`.
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
        page: True serves the live page too, at `page_url`. It keeps the last 10,000 requests of its own.
        expose: True lets it listen beyond loopback, for containers that talk to each other. It accepts
            everything that it is sent, so this is for a network where every machine may. The page then
            needs the token that `page_url` has.

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
        page: bool = False,
        expose: bool = False,
    ) -> None:
        self._made_up_credentials = credentials is None
        self.credentials: Credentials = credentials or Credentials(
            pub_id="rpub-sandbox",
            secret="rsec-sandbox",  # noqa: S106 -- it opens nothing but this
            tag_id="1234567890",
        )
        self._host, self._port = _check_host(host, expose=expose), port
        self._behaviour = Behaviour(
            plan=FaultPlan(
                script=_check_script(script),
                rates=_check_faults(faults) or {},
                latency=latency if isinstance(latency, tuple) else (latency, latency),
                random_=random.Random(seed + 1),  # noqa: S311 -- bad luck, no secret
            ),
            echo=Echo.of(echo) if isinstance(echo, str) else echo,
        )
        self._random = random.Random(seed)  # noqa: S311 -- the same
        self._clock = clock
        self._on_request = on_request
        self._requests: deque[RecordedRequest] = deque(maxlen=history)
        self.count: int = 0
        self._number = 0
        self._accepted = 0
        self._waiting: dict[asyncio.Future[None], int] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._left: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._live: Live | None = Live(secrets.token_hex(4)) if page else None
        self._token = secrets.token_urlsafe(24) if expose else ""
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
        if self._live is not None:
            page = Page(
                live=self._live,
                behaviour=self._behaviour,
                credentials=self.credentials,
                shows_secret=self._made_up_credentials,
                token=self._token,
                clear=self.clear,
                stopping=self._stopping,
            )
            page.add_routes(app, endpoint=PATH)
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
            target=asyncio.run, args=(self._serve_in_thread(serving),), name="rokt-sandbox", daemon=True
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

    async def _serve_in_thread(self, serving: concurrent.futures.Future[None]) -> None:
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
        host = _ITSELF.get(self._host, self._host)
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self._port}{PATH}"

    @property
    def page_url(self) -> str:
        """The address of the live page, with its token if the sandbox is exposed.

        Raises:
            RuntimeError: The sandbox has no page.
        """
        if self._live is None:
            raise RuntimeError("the sandbox has no page: use Sandbox(page=True)")
        return self.url.removesuffix(PATH) + "/" + (f"#token={self._token}" if self._token else "")

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
        self._behaviour.plan.append(faults)

    def clear(self) -> None:
        """Forgets all requests, and counts from 0. What is armed or set stays, and their numbers go on."""
        with self._lock:
            self._requests.clear()
            self.count = self._accepted = 0
        if self._live is not None:
            self._live.clear()

    def __repr__(self) -> str:
        state = "serving" if self._runner else "stopped"
        return f"<Sandbox {state} at {self.url}: {self.count} requests>"

    # One request.

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if self._live is not None and (refused := refuse_origin(request)) is not None:
            return refused
        started = time.perf_counter()
        plan = self._behaviour.plan
        fault = plan.next()
        self.count += 1
        self._number += 1  # It goes on when the record is cleared: a request may be on its way then.
        number, latency = self._number, plan.next_latency()
        if fault.act in (Act.RESET_BEFORE, Act.RESET_DURING):
            if fault.act is Act.RESET_DURING:
                await request.content.readany()
            recorded = RecordedRequest(number, record_headers(request.headers), b"", fault, None, None, ())
            entry = self._remember(recorded)
            response: web.StreamResponse = answering.reset(request)
            answer = Answer(0, b"", "")
        else:
            body = await request.read()
            recorded, answer = self._judge(number, request, body, fault)
            entry = self._remember(recorded)
            await self._pause(latency)
            response = await self._answer(request, fault, answer)
        if self._live is not None and entry is not None:
            exchange = answering.exchange(fault, answer, response)
            is_told = fault.act is not Act.SILENCE and not answering.is_gone(request)
            taken = time.perf_counter() - started if is_told or fault.act in answering.HANGS_UP else None
            self._live.answered(entry, latency=taken, exchange=exchange)
        return response

    def _judge(
        self, number: int, request: web.Request, body: bytes, fault: Fault
    ) -> tuple[RecordedRequest, Answer]:
        """Returns the API's answer and the record of it, with the fault applied."""
        echo = self._behaviour.echo
        if fault.count_offset:
            echo = attrs.evolve(echo, count_offset=echo.count_offset + fault.count_offset)
        verdict = rules.check_headers(request.headers, expected=self._expected()) or rules.judge(
            body, now=self._clock(), lenient_times=echo.lenient_times
        )
        refusal: rules.Refusal | None = None
        events: tuple[RecordedEvent, ...] = ()
        if isinstance(verdict, rules.Refusal):
            refusal, answer = verdict, write_refusal(verdict, echo)
        else:
            answer = write_verdicts(verdict, echo, self._random)
            events = tuple(record_event(judged, fault) for judged in verdict)
        status: int | None = answer.status
        if fault.act is Act.STATUS:
            answer, refusal = Answer(fault.status, fault.body, ""), None
            status = fault.status
        elif fault.act in (Act.SILENCE, Act.RESET_AFTER, Act.GARBAGE):
            status = None
        return RecordedRequest(
            number, record_headers(request.headers), body, fault, status, refusal, events
        ), answer

    def _expected(self) -> dict[str, str]:
        """The only valid headers; with a value that no header has while all credentials are refused."""
        return {
            "rokt-pub-id": self.credentials.pub_id,
            "rokt-secret": self.credentials.secret if self._behaviour.accepts_credentials else "\n",
            "rokt-tag-id": self.credentials.tag_id,
        }

    def _remember(self, recorded: RecordedRequest) -> Entry | None:
        with self._lock:
            self._requests.append(recorded)
            self._accepted += sum(event.is_accepted for event in recorded.events)
            for arrived, count in self._waiting.items():
                if self._accepted >= count:
                    arrived.get_loop().call_soon_threadsafe(_arrive, arrived)
        if self._on_request is not None:
            self._on_request(recorded)
        return self._live.add(recorded, at=time.time()) if self._live is not None else None

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
            return answering.reset(request)
        if fault.act is Act.RESET_AFTER:
            return answering.reset(request)
        if fault.act is Act.DRIP:
            return await self._drip(request, fault, answer)
        await self._pause(fault.delay)
        if fault.act is Act.GARBAGE:
            return answering.garble(request)
        if fault.act is Act.CUT:
            return await answering.cut(request, answer)
        if fault.act is Act.HUGE:
            return await answering.flood(request, answer)
        return answering.respond(fault, answer)

    async def _drip(self, request: web.Request, fault: Fault, answer: Answer) -> web.StreamResponse:
        assert self._stopping is not None
        response = await answering.prepare(request, answer)
        for index in range(len(answer.body)):
            if self._stopping.is_set() or answering.is_gone(request):
                break
            await response.write(answer.body[index : index + 1])
            await self._pause(fault.delay)
        return response


def _arrive(arrived: asyncio.Future[None]) -> None:
    if not arrived.done():
        arrived.set_result(None)


def _check_script(script: Any) -> Iterable[Fault | int | str | None]:
    if isinstance(script, (str, Fault)) or not isinstance(script, Iterable):
        raise TypeError(f"script must be a list of faults, got {script!r}")
    return script


def _check_faults(faults: Any) -> Mapping[Any, float] | None:
    if not isinstance(faults, Mapping | None):
        raise TypeError(f"faults must be a mapping of fault and rate, got {faults!r}")
    return faults


def _check_host(host: str, *, expose: bool) -> str:
    """Checks for loopback: a sandbox accepts everything, so other machines must not reach it unasked."""
    if host == "localhost" or expose:
        return host
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise ValueError(
            f"host must be a loopback address, got {host!r} (--expose, or expose=True, allows others)"
        )
    return host
