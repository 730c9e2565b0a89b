"""Networks as people have them: a proxy with a password, an own authority, a client certificate."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from types import TracebackType
from typing import Any, Self

import aiohttp
import pytest
import trustme

from rokt_events_async import DeliveryError, DeliveryFailedError, Emitter, InvalidSettingError, RetryPolicy
from rokt_events_async.sandbox import Sandbox
from tests.end_to_end.proxy import FaultyProxy, Temper
from tests.samples import event

pytestmark = pytest.mark.every_loop

PASSWORD = "pw-of-the-proxy"
USER = f"shop:{PASSWORD}"
ONCE = RetryPolicy(deadline=0.5, wait=(0.01, 0.02))


class ForwardProxy:
    """Connects its clients to where they want, if they know the password."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.seen = b""

    async def __aenter__(self) -> Self:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.asked.append(head.splitlines()[0])
            self.seen += head.encode()
            wanted = "Basic " + base64.b64encode(USER.encode()).decode()
            if wanted not in head:
                writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return
            host, port = head.split()[1].split(":")
            there, out = await asyncio.open_connection(host, int(port))
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            try:
                await asyncio.gather(self._carry(reader, out), self._carry(there, writer))
            finally:
                out.close()
        finally:
            writer.close()

    async def _carry(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await source.read(65_536):
                self.seen += piece
                to.write(piece)
                await to.drain()
            to.close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def showing(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


async def test_through_a_proxy(sandbox: Sandbox, trusting: ssl.SSLContext, showing: ssl.SSLContext) -> None:
    """With a password; it hears where to, and reads nothing."""
    async with FaultyProxy(sandbox.url, Temper(), showing) as front, ForwardProxy() as proxy:
        way = {"proxy": f"http://{USER}@{proxy.address}", "ssl": trusting}
        async with Emitter(sandbox.credentials, endpoint=front.url, **way) as emitter:  # type: ignore[arg-type]
            for _ in range(3):
                await emitter.deliver(event())
            assert PASSWORD not in repr(emitter) + repr(emitter._route)
    assert len(sandbox.events) == 3
    assert {asked.split()[0] for asked in proxy.asked} == {"CONNECT"}
    assert sandbox.credentials.secret.encode() not in proxy.seen
    assert b"rokt-" not in proxy.seen


@pytest.mark.parametrize(
    ("user", "words"), [("shop:wrong@", "the proxy answered HTTP 407"), ("", "the proxy answered HTTP 407")]
)
async def test_a_proxy_that_refuses(
    user: str, words: str, sandbox: Sandbox, trusting: ssl.SSLContext, showing: ssl.SSLContext
) -> None:
    """The events fail: nothing has gone out. The reason says who refused, and shows no password."""
    async with FaultyProxy(sandbox.url, Temper(), showing) as front, ForwardProxy() as proxy:
        emitter = Emitter(
            sandbox.credentials,
            endpoint=front.url,
            proxy=f"http://{user}{proxy.address}",
            ssl=trusting,
            retry=ONCE,
        )
        async with emitter:
            with pytest.raises(DeliveryFailedError) as caught:
                await emitter.deliver(event())
    assert words in str(caught.value)
    assert "wrong" not in str(caught.value)
    assert sandbox.count == 0


async def test_a_proxy_that_is_not_there(sandbox: Sandbox) -> None:
    """As an endpoint that is not there."""
    way: Any = {"proxy": "http://shop:wrong@127.0.0.1:9", "allow_http": True, "retry": ONCE}
    async with Emitter(sandbox.credentials, endpoint=sandbox.url, **way) as emitter:
        with pytest.raises(DeliveryFailedError) as caught:
            await emitter.deliver(event())
    assert "127.0.0.1:9" in str(caught.value)
    assert "wrong" not in str(caught.value)


async def test_a_client_certificate(
    sandbox: Sandbox, authority: trustme.CA, trusting: ssl.SSLContext, showing: ssl.SSLContext
) -> None:
    """With it all is delivered; without it the server hangs up, and nothing is."""
    showing.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(showing)
    async with FaultyProxy(sandbox.url, Temper(), showing) as front:
        unknown = Emitter(sandbox.credentials, endpoint=front.url, ssl=trusting, retry=ONCE)
        async with unknown:
            with pytest.raises(DeliveryError):  # Over TLS 1.3 the request may have gone out by then.
                await unknown.deliver(event())
        assert sandbox.count == 0
        authority.issue_cert("shop.example").configure_cert(trusting)
        async with Emitter(sandbox.credentials, endpoint=front.url, ssl=trusting) as emitter:
            await emitter.deliver(event())
    assert len(sandbox.events) == 1


@pytest.mark.parametrize(
    "proxy",
    [
        5,
        "",
        "proxy.example:3128",
        "socks5://shop:pw-of-the-proxy@proxy.example",
        "http://",
        "http://shop:pw-of-the-proxy@proxy.example:0",
        "http://shop:pw-of-the-proxy@proxy.example:99999",
        "http://shop:pw-of-the-proxy@proxy.example/path",
        "http://shop:pw-of-the-proxy@proxy.example?q",
        "http://shop:pw-of-the-proxy@proxy.example#f",
        "http://proxy.example\r\nx",
    ],
)
def test_proxies_that_are_none(proxy: Any) -> None:
    """The message says what would be right, and shows no password."""
    with pytest.raises(InvalidSettingError, match="proxy must be an http or https URL of a host") as caught:
        Emitter(Sandbox().credentials, proxy=proxy)
    assert PASSWORD not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_other_ways_that_are_none(sandbox: Sandbox) -> None:
    """A session has its own, http would show the secret, and a context is a context."""
    async with aiohttp.ClientSession() as session:
        for name, value in {"proxy": "http://proxy.example", "ssl": ssl.create_default_context()}.items():
            way: Any = {name: value}
            with pytest.raises(InvalidSettingError, match=f"{name} must be left out with a session"):
                Emitter(sandbox.credentials, session=session, **way)
    with pytest.raises(InvalidSettingError, match="proxy must not carry an http endpoint"):
        Emitter(sandbox.credentials, endpoint=sandbox.url, proxy="http://proxy.example")
    with pytest.raises(InvalidSettingError, match="ssl must be a SSLContext, got bool"):
        Emitter(sandbox.credentials, ssl=False)  # type: ignore[arg-type]
