"""One POST: bytes in, `(status, headers, body)` out. It judges nothing.

Everything that a session of the caller's could do behind our back is overridden for each request:
redirects are not followed (they would carry the secret to another host), nothing is decompressed (a
megabyte can become a gigabyte), no status raises, no middleware runs, no time-out but ours applies.

No exception of aiohttp gets out, for theirs carry the request's headers, and so the secret: what went
wrong is a `NoReply`, and whether the request had gone out stands in `Request.went_out`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import weakref
from http.cookies import BaseCookie, SimpleCookie
from typing import Any, Final, Protocol

import aiohttp
from aiohttp import hdrs, payload
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict
from yarl import URL

from rokt_events_async._protocol.verdicts import NoReply, Reply
from rokt_events_async.settings import Credentials

MAX_BODY: Final = 256 * 1024
"""Bytes of an answer that are read; the largest sensible one has 25 echoes."""

_NO_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)
_BODY_HEADERS: Final = CIMultiDict({hdrs.CONTENT_TYPE: "application/json"})
_FRESH_CONNECTIONS: Final = 2
_UNENCODED: Final = ("", "identity")


class Request(payload.Payload):
    """The body of one POST, which notes whether it was handed to a connection.

    From the exception alone that could only be guessed, and after a cancellation not even that.
    """

    _value: bytes
    _autoclose = True

    def __init__(self, body: bytes) -> None:
        # Not by the base's, which would build the headers anew for each.
        self._value = body
        self._size = len(body)
        self.went_out = False
        self._transport: asyncio.Transport | None = None

    @property
    def headers(self) -> CIMultiDict[str]:
        """The same for all."""
        return _BODY_HEADERS

    def hang_up(self) -> None:
        """Drops the connection at once, with what the peer has not read; `close` would wait for that."""
        if self._transport is not None:
            with contextlib.suppress(RuntimeError):  # The loop is closed, and takes nothing any more.
                self._transport.abort()

    @property
    def body(self) -> bytes:
        """The bytes to be sent."""
        return self._value

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self._value.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Hands the body to the connection, and notes it.

        Not to one on which something lies already: an answer that is there before its request is the
        late end of something else, and would be taken for the answer to this.

        Raises:
            aiohttp.ClientConnectionResetError: The connection is not fit for use.
        """
        protocol: Any = writer.protocol  # type: ignore[attr-defined]  # aiohttp's writer has one
        transport: asyncio.Transport | None = protocol.transport
        if transport is None or transport.is_closing() or protocol.should_close:
            raise aiohttp.ClientConnectionResetError("found closed, or with an answer to something else")
        self._transport = transport
        self.went_out = True
        await writer.write(self._value)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        await self.write(writer)


class Transport(Protocol):
    """What posts. A test may hand in its own."""

    async def post(self, request: Request) -> Reply | NoReply:
        """Sends the body, once, and brings back what came of it."""

    async def aclose(self) -> None:
        """Gives back what it holds."""


class HttpTransport:
    """Posts over one aiohttp session, its own or the caller's.

    Must be constructed on the running loop.

    Args:
        session: The caller's session, which is used and never closed; `None` to make one.
        timeout: Seconds for the whole exchange, connecting and reading the answer included.
        connections: How many connections a session of its own keeps at most.
    """

    def __init__(
        self,
        credentials: Credentials,
        endpoint: str,
        *,
        session: aiohttp.ClientSession | None,
        timeout: float,
        connections: int,
    ) -> None:
        self._endpoint = URL(endpoint)
        self._timeouts = _Timeouts(timeout)
        self._timeout = timeout
        self._is_ours = session is None
        headers = CIMultiDict(
            {
                "rokt-pub-id": credentials.pub_id,
                "rokt-secret": credentials.secret,
                "rokt-tag-id": credentials.tag_id,
                hdrs.CONTENT_TYPE: "application/json",
                hdrs.ACCEPT: "application/json",
                hdrs.ACCEPT_ENCODING: "identity",
            }
        )
        # As defaults of a session of our own they need not be merged for each request.
        self._headers = headers if session else None
        self._session = session or _make_session(connections, headers)
        _alive.add(self)

    async def post(self, request: Request) -> Reply | NoReply:
        """Sends the body, once. A connection found closed before anything was written does not count."""
        exchange = self._timeouts.begin()
        try:
            for _ in range(1 + _FRESH_CONNECTIONS):
                reply = await self._try(request, exchange)
                if reply is not None:
                    return reply
        finally:
            self._timeouts.end(exchange)
        return NoReply("every connection was found closed")

    async def _try(self, request: Request, exchange: _Exchange) -> Reply | NoReply | None:
        """One exchange; `None` if the connection was found closed before anything was written."""
        response: aiohttp.ClientResponse | None = None
        body: bytes | None = None
        reason: str | None = None
        try:
            response = await self._session.post(
                self._endpoint,
                data=request,
                headers=self._headers,
                allow_redirects=False,
                raise_for_status=False,
                auto_decompress=False,
                timeout=_NO_TIMEOUT,
                middlewares=(),
            )
            body = await _read(response)
        except asyncio.CancelledError:
            if not exchange.took_its_time():
                raise
            reason = f"no answer within {self._timeout:g} s"
        except (aiohttp.ClientError, OSError) as error:
            reason = None if not request.went_out and _found_closed(error) else _describe(error)
        except RuntimeError:
            if not self._session.closed:
                raise
            reason = "the session that was passed in is closed"
        finally:
            if body is None:  # One that was read to its end has given back its connection itself.
                if response is not None:
                    response.release()
                request.hang_up()
        # Outside of the handlers, or the exception would stay in the context of what is raised later.
        if response is not None and request.went_out:
            return Reply(response.status, response.headers, body)
        return NoReply(reason) if reason else None

    async def aclose(self) -> None:
        """Closes the session, if it is its own."""
        if self._is_ours:
            await self._session.close()

    def abandon(self) -> None:
        """Leaves its own connections to the parent of a fork, and is of no use any more."""
        if self._is_ours and isinstance(self._session.connector, _Connector):
            self._session.connector.is_abandoned = True
            self._session.detach()


_alive: Final[weakref.WeakSet[HttpTransport]] = weakref.WeakSet()


def _after_fork() -> None:
    for transport in _alive:
        transport.abandon()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)


class _Exchange:
    """One exchange under way, and the task that is to be interrupted when its time is up."""

    __slots__ = ("_cancelling", "_task", "_timed_out", "deadline")

    def __init__(self, deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        task = asyncio.current_task(loop)  # Which has to ask nobody which loop is running.
        assert task is not None, "a worker posts"
        self._task = task
        self._cancelling = task.cancelling()
        self._timed_out = False
        self.deadline = deadline

    def time_out(self) -> None:
        self._timed_out = True
        self._task.cancel()

    def took_its_time(self) -> bool:
        """Whether a cancellation was ours, and nobody else's as well; if so, it is taken back."""
        return self._timed_out and self._task.uncancel() <= self._cancelling


class _Timeouts:
    """One timer for all exchanges: all last equally long, so the first to begin is the first to end.

    A timer each would cost 7 µs a request.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._running: dict[_Exchange, None] = {}  # In order of their beginning.
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> _Exchange:
        exchange = _Exchange(self._loop.time() + self._seconds, self._loop)
        self._running[exchange] = None
        if self._timer is None:
            self._timer = self._loop.call_at(exchange.deadline, self._on_time)
        return exchange

    def end(self, exchange: _Exchange) -> None:
        self._running.pop(exchange, None)
        if not self._running and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_time(self) -> None:
        self._timer = None
        while self._running:
            first = next(iter(self._running))
            if first.deadline > self._loop.time():
                self._timer = self._loop.call_at(first.deadline, self._on_time)
                return
            del self._running[first]
            first.time_out()


class _Connector(aiohttp.TCPConnector):
    """Closes nothing in the child of a fork.

    There it would take its connections out of the system's list of what the loop listens to, which a child
    shares with its parent; and the parent would never hear of an answer again.
    """

    is_abandoned = False

    def __del__(self, *modules: Any) -> None:
        if not self.is_abandoned:
            super().__del__(*modules)


class _NoCookies(aiohttp.DummyCookieJar):
    """aiohttp's own jar for none makes a new, empty set of them for each request."""

    _none: Final = SimpleCookie()

    def filter_cookies(self, request_url: URL) -> BaseCookie[str]:
        return self._none


def _make_session(connections: int, headers: CIMultiDict[str]) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        headers=headers,
        connector=_Connector(limit=connections),
        cookie_jar=_NoCookies(),
        timeout=_NO_TIMEOUT,
        trust_env=False,
    )


async def _read(response: aiohttp.ClientResponse) -> bytes | None:
    """The body, or `None` if it is compressed, which we refuse, or too large."""
    encoding = response.headers.get(hdrs.CONTENT_ENCODING)
    if encoding is not None and encoding.strip().lower() not in _UNENCODED:
        return None
    content = response.content
    # Nearly always it is there, together with the headers, and nothing has to be waited for.
    body = content.read_nowait() if content.is_eof() else await content.readany()
    while not content.at_eof() and len(body) <= MAX_BODY:
        body += await content.readany()
    return body if len(body) <= MAX_BODY else None


def _found_closed(error: Exception) -> bool:
    """Whether a connection was there and gone, rather than not to be had at all."""
    return isinstance(
        error, (aiohttp.ServerDisconnectedError, aiohttp.ClientConnectionResetError, aiohttp.ClientOSError)
    ) and not isinstance(error, aiohttp.ClientConnectorError)


def _describe(error: Exception) -> str:
    """What went wrong, without what the exception carries: its type, and the system's own words."""
    if isinstance(error, aiohttp.ClientResponseError):
        return "the answer was no HTTP"
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    words = cause.strerror if isinstance(cause, OSError) else None
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
