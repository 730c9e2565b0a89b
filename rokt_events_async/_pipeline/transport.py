"""One POST: bytes in, status, headers and body out. It judges nothing.

Each request overrides everything that a caller's session could do on its own: redirects are not followed
(they would carry the secret to another host), nothing is decompressed (a megabyte can become a gigabyte),
no status raises, no middleware runs, no time-out but the library's applies.

No exception of aiohttp leaves this module, because aiohttp's exceptions carry the request's headers, and so
the secret. A failure is a `NoReply`, and `Request.went_out` says whether the request had gone out.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import ssl
import sys
import weakref
from http.cookies import BaseCookie, SimpleCookie
from typing import Any, Final, Protocol

import aiohttp
import attrs
from aiohttp import hdrs, payload
from aiohttp.abc import AbstractStreamWriter, ResolveResult
from multidict import CIMultiDict
from yarl import URL

from rokt_events_async._pipeline.keyring import Keyring
from rokt_events_async._pipeline.timeouts import Exchange, Timeouts
from rokt_events_async._protocol.replies import NoReply, Reply
from rokt_events_async._protocol.texts import clean
from rokt_events_async._version import __version__
from rokt_events_async.errors import InvalidSettingError
from rokt_events_async.settings import Credentials, check_instance

MAX_BODY: Final = 256 * 1024
"""The most bytes of an answer that are read. The largest sensible answer has 25 echoes."""

_NO_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)
_BODY_HEADERS: Final = CIMultiDict({hdrs.CONTENT_TYPE: "application/json"})
_FRESH_CONNECTIONS: Final = 2
_SERVER_ERRORS: Final = 500
_UNENCODED: Final = ("", "identity")


class Request(payload.Payload):
    """The body of one POST. It notes whether it was handed to a connection.

    An exception alone lets one only guess that, and a cancellation not even that.
    """

    _value: bytes
    _autoclose = True

    def __init__(self, body: bytes) -> None:
        # The base class would build the headers again for each request.
        self._value = body
        self._size = len(body)
        self.went_out: bool = False
        self._transport: asyncio.Transport | None = None

    @property
    def headers(self) -> CIMultiDict[str]:
        """The same headers for all requests."""
        return _BODY_HEADERS

    def hang_up(self) -> None:
        """Drops the connection at once, unread bytes included; `close` would wait for those."""
        if self._transport is not None:
            with contextlib.suppress(RuntimeError):  # The loop is closed.
                self._transport.abort()

    @property
    def body(self) -> bytes:
        """The bytes to be sent."""
        return self._value

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self._value.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Hands the body to the connection, and notes that.

        A connection with unread bytes is refused: an answer that comes before its request is the late end
        of another exchange, and would be read as the answer to this request.

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
    """Posts requests. A test can hand in its own."""

    async def post(self, request: Request) -> Reply | NoReply:
        """Sends the body once and returns the reply, or why there is none."""

    async def aclose(self) -> None:
        """Closes what it opened."""


@attrs.frozen
class Route:
    """How the emitter's own session reaches the endpoint.

    Attributes:
        proxy: The proxy's URL without its credentials; `None` goes straight.
        proxy_headers: The proxy's own headers, with its credentials.
        ssl: Whom to trust, and who to be; `None` for the system's authorities.
    """

    proxy: str | None = None
    proxy_headers: CIMultiDict[str] | None = attrs.field(default=None, repr=False)
    ssl: ssl.SSLContext | None = None


def check_route(
    proxy: object, context: object, *, session: aiohttp.ClientSession | None, endpoint: str, allow_http: bool
) -> Route:
    """Returns the route.

    Raises:
        InvalidSettingError: The proxy is no http or https URL, the context no `ssl.SSLContext`; there is a
            session, which has its own; or the secret would be shown to the proxy.
    """
    if session is not None and (proxy is not None or context is not None):
        what = "proxy" if proxy is not None else "ssl"
        raise InvalidSettingError(
            f"{what} must be left out with a session, which has its own: ClientSession(proxy=...), or "
            "TCPConnector(ssl=...)"
        )
    if context is not None:
        check_instance("ssl", context, ssl.SSLContext)
    if proxy is None:
        return Route(ssl=context)  # type: ignore[arg-type]  # checked above
    if endpoint.startswith("http:") and not allow_http:
        raise InvalidSettingError(
            "proxy must not carry an http endpoint, whose requests show the secret to it (https passes "
            "through unread); allow_http=True or ROKT_ALLOW_HTTP=1 allows it"
        )
    url = _proxy_url(proxy)
    headers: CIMultiDict[str] = CIMultiDict()
    if url.user is not None:
        headers[hdrs.PROXY_AUTHORIZATION] = aiohttp.encode_basic_auth(url.user, url.password or "")
    return Route(str(url.with_user(None)), headers, context)  # type: ignore[arg-type]  # as above


def _proxy_url(proxy: object) -> URL:
    """Returns the proxy's URL. Its text may have a password, and is shown by no error."""
    expected = "proxy must be an http or https URL of a host, as in http://user:password@proxy.example:3128"
    if not isinstance(proxy, str):
        raise InvalidSettingError(f"{expected}, got {type(proxy).__name__}")
    try:
        url = URL(proxy)
        is_good = url.scheme in ("http", "https") and bool(url.host) and url.port != 0
    except ValueError:
        is_good = False
    if (
        not is_good
        or not proxy.isprintable()
        or url.path not in ("", "/")
        or url.query_string
        or url.fragment
    ):
        raise InvalidSettingError(f"{expected}, got another text (not shown: it may have a password)")
    return url


class HttpTransport:
    """Posts over one aiohttp session, its own or the caller's.

    Must be constructed on the running loop.

    Args:
        keyring: The credentials in use.
        session: The caller's session, which is used and never closed; `None` makes one.
        route: How its own session reaches the endpoint.
        timeout: Seconds for the whole exchange, connecting and reading the answer included.
        connections: The most connections that its own session keeps.
    """

    def __init__(
        self,
        keyring: Keyring,
        endpoint: str,
        *,
        session: aiohttp.ClientSession | None,
        route: Route,
        timeout: float,
        connections: int,
    ) -> None:
        self._endpoint = URL(endpoint)
        self._timeouts = Timeouts(timeout)
        self._timeout = timeout
        self._is_ours = session is None
        self._keyring = keyring
        # As defaults of its own session the headers are not merged for each request. With a proxy aiohttp
        # would show them, and so the secret, to the proxy.
        self._are_defaults = session is None and not keyring.can_change and route.proxy is None
        self._way: dict[str, Any] = _LIMITS
        if route.proxy is not None:
            self._way = {**_LIMITS, "proxy": route.proxy, "proxy_headers": route.proxy_headers}
        self._session = session or _make_session(
            connections, route, _headers_for(keyring.current) if self._are_defaults else None
        )
        self._headers: tuple[Credentials, CIMultiDict[str]] | None = None
        _alive.add(self)

    def _headers_now(self) -> CIMultiDict[str] | None:
        """Returns the headers of the next request, made once for each credentials."""
        if self._are_defaults:
            return None
        current = self._keyring.current
        if self._headers is None or self._headers[0] is not current:
            self._headers = current, _headers_for(current)
        return self._headers[1]

    async def post(self, request: Request) -> Reply | NoReply:
        """Sends the body once. A connection found closed before anything was written does not count."""
        exchange = self._timeouts.begin()
        try:
            for _ in range(1 + _FRESH_CONNECTIONS):
                reply = await self._try(request, exchange)
                if reply is not None:
                    return reply
        finally:
            self._timeouts.end(exchange)
        return NoReply("every connection was found closed")

    async def _try(self, request: Request, exchange: Exchange) -> Reply | NoReply | None:
        """Makes one exchange; returns `None` if the connection was found closed before it was used."""
        response: aiohttp.ClientResponse | None = None
        body: bytes | None = None
        reason: str | None = None
        has_timed_out = is_unreadable = False
        try:
            response = await self._session.post(
                self._endpoint,
                data=request,
                headers=self._headers_now(),
                allow_redirects=False,
                raise_for_status=False,
                auto_decompress=False,
                timeout=_NO_TIMEOUT,
                middlewares=(),
                **self._way,
            )
            body = await _read(response)
        except asyncio.CancelledError:
            has_timed_out = exchange.has_timed_out()
            if not has_timed_out:
                raise
            reason = f"no answer within {self._timeout:g} s"
        except (aiohttp.ClientError, OSError) as error:
            is_unreadable = isinstance(error, aiohttp.ClientResponseError) and request.went_out
            reason = None if not request.went_out and _found_closed(error) else _describe(error)
        except RuntimeError as error:
            reason = self._describe_runtime_error(error, request)
            if reason is None:
                raise
        finally:
            _let_go(request, response, is_read=body is not None)
        # Outside the handlers, or the exception would stay in the context of later exceptions.
        if response is not None and request.went_out:
            return Reply(response.status, response.headers, body)
        if reason is None:
            return None
        return NoReply(reason, is_timeout=has_timed_out, is_unreadable=is_unreadable)

    def _describe_runtime_error(self, error: RuntimeError, request: Request) -> str | None:
        """Returns why there was no connection; `None` if the error is a fault."""
        if self._session.closed:
            return "the session that was passed in is closed"
        # By the executor that resolves names, once the interpreter or its loop shuts down.
        if not request.went_out and "shutdown" in str(error):
            return "no connection could be made: the interpreter shuts down"
        return None

    async def aclose(self) -> None:
        """Closes its own session; a caller's session stays open."""
        if self._is_ours:
            await self._session.close()

    def abandon(self) -> None:
        """Leaves its own connections to the parent of a fork; the transport cannot be used afterwards."""
        if self._is_ours and isinstance(self._session.connector, _Connector):
            self._session.connector.is_abandoned = True
            self._session.detach()


_alive: Final[weakref.WeakSet[HttpTransport]] = weakref.WeakSet()


def _after_fork() -> None:
    for transport in _alive:
        transport.abandon()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)


class _Connector(aiohttp.TCPConnector):
    """Closes nothing in the child of a fork.

    A close in the child would remove the connections from the epoll set that it shares with the parent, and
    the parent would never hear of an answer again.
    """

    is_abandoned = False

    def __del__(self, *modules: Any) -> None:
        if not self.is_abandoned:
            super().__del__(*modules)


class _NoCookies(aiohttp.DummyCookieJar):
    """aiohttp's own jar without cookies makes a new, empty set of them for each request."""

    _none: Final = SimpleCookie()

    def filter_cookies(self, request_url: URL) -> BaseCookie[str]:
        return self._none


def check_session(session: aiohttp.ClientSession | None) -> aiohttp.ClientSession | None:
    """Returns the caller's session.

    Raises:
        InvalidSettingError: It is none, it is closed, or it has `trust_env`.
    """
    if session is None:
        return None
    check_instance("session", session, aiohttp.ClientSession)
    if session.closed:
        raise InvalidSettingError("session must be open, got a closed one")
    if session.trust_env:
        raise InvalidSettingError(
            "session must not have trust_env=True (it could send the secret to a proxy), got one that has"
        )
    return session


_DefaultResolver: Final[Any] = aiohttp.DefaultResolver


class _Resolver(_DefaultResolver):  # type: ignore[misc]  # aiohttp chooses it when it is imported
    """Resolves without the loop's executor if that is gone: at the interpreter's exit."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        try:
            found: list[ResolveResult] = await super().resolve(host, port, family)
        except RuntimeError:
            found = [
                ResolveResult(
                    hostname=host,
                    host=str(address[0]),
                    port=int(address[1]),
                    family=kind,
                    proto=proto,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
                for kind, _, proto, _, address in socket.getaddrinfo(
                    host, port, type=socket.SOCK_STREAM, family=family
                )
            ]
        return found


_LIMITS: Final[Any] = {"max_line_size": 65_536, "max_field_size": 65_536, "max_headers": 1024}
"""How much of an answer's head is read. A server's front may add more than aiohttp's 8 KiB a line."""


def _headers_for(credentials: Credentials) -> CIMultiDict[str]:
    return CIMultiDict(
        {
            "rokt-pub-id": credentials.pub_id,
            "rokt-secret": credentials.secret,
            "rokt-tag-id": credentials.tag_id,
            hdrs.CONTENT_TYPE: "application/json",
            hdrs.ACCEPT: "application/json",
            hdrs.ACCEPT_ENCODING: "identity",
            hdrs.USER_AGENT: f"rokt_events_async/{__version__}",
        }
    )


def _make_session(connections: int, route: Route, headers: CIMultiDict[str] | None) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        headers=headers,
        connector=_Connector(limit=connections, resolver=_Resolver(), ssl=route.ssl or True),
        cookie_jar=_NoCookies(),
        timeout=_NO_TIMEOUT,
        trust_env=False,
    )


def _let_go(request: Request, response: aiohttp.ClientResponse | None, *, is_read: bool) -> None:
    """Gives the connection back, or drops it.

    A response that was read to its end has given it back itself. After a 5xx it is dropped all the same:
    a drained server behind a name that has moved would keep answering on a kept connection.
    """
    if response is not None and not is_read:
        response.release()
    if not is_read or (response is not None and response.status >= _SERVER_ERRORS):
        request.hang_up()


async def _read(response: aiohttp.ClientResponse) -> bytes | None:
    """Returns the body, or `None` if it is compressed or too large."""
    encoding = response.headers.get(hdrs.CONTENT_ENCODING)
    if encoding is not None and encoding.strip().lower() not in _UNENCODED:
        return None
    content = response.content
    # Nearly always the body has arrived together with the headers.
    body = content.read_nowait() if content.is_eof() else await content.readany()
    while not content.at_eof() and len(body) <= MAX_BODY:
        body += await content.readany()
    return body if len(body) <= MAX_BODY else None


def _found_closed(error: Exception) -> bool:
    """Returns True if a connection existed and was closed, False if none could be made."""
    return isinstance(
        error, (aiohttp.ServerDisconnectedError, aiohttp.ClientConnectionResetError, aiohttp.ClientOSError)
    ) and not isinstance(error, aiohttp.ClientConnectorError)


def _describe(error: Exception) -> str:
    """Returns what went wrong as the exception's type and the system's own words, without its other data."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the proxy answered HTTP {error.status}"
    if isinstance(error, aiohttp.ClientResponseError):
        return f"an answer that is no HTTP: {_what_is_wrong(error)}"
    where = ""
    cause: BaseException = error
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        where = f" ({error.host}:{error.port})"
    words = cause.strerror if isinstance(cause, OSError) else None
    return f"{type(error).__name__}: {words}{where}" if words else f"{type(error).__name__}{where}"


def _what_is_wrong(error: aiohttp.ClientResponseError) -> str:
    """Returns the parser's own words, without what it quotes of the answer."""
    words = re.split(r"[:'\"(\n]|b'", error.message or "", maxsplit=1)[0]
    return clean(words, at_most=_MAX_WORDS).strip() or type(error.__cause__).__name__


_MAX_WORDS: Final = 80
