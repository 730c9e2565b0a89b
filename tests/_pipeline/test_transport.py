"""One POST: what is brought back, and whether the request had gone out."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any
from unittest import mock

import aiohttp
import pytest
from aiohttp import ClientResponse
from aioresponses import aioresponses

from rokt_events_async import __version__
from rokt_events_async._pipeline import transport as transport_module
from rokt_events_async._pipeline.keyring import Keyring
from rokt_events_async._pipeline.transport import MAX_BODY, HttpTransport, Request, Route
from rokt_events_async._protocol.replies import NoReply, Reply
from rokt_events_async.sandbox import Sandbox
from tests.samples import CREDENTIALS

URL = "http://127.0.0.1:1/v1/partner/events"


class Double(aioresponses):
    """Which notes, as a connection would, that the body was handed over."""

    async def _request_mock(self, orig_self: Any, method: str, url: Any, *args: Any, **kwargs: Any) -> Any:
        response = await super()._request_mock(orig_self, method, url, *args, **kwargs)
        kwargs["data"].went_out = True
        return response


@pytest.fixture
def responses(monkeypatch: pytest.MonkeyPatch) -> Iterator[aioresponses]:
    """aioresponses 0.7.9 does not know that a response of aiohttp 3.14 wants a `stream_writer`."""
    init = ClientResponse.__init__

    def with_writer(self: ClientResponse, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("stream_writer", mock.Mock(output_size=0))
        init(self, *args, **kwargs)

    monkeypatch.setattr(ClientResponse, "__init__", with_writer)
    with Double() as mocked:
        yield mocked


@asynccontextmanager
async def transport_to(
    url: str = URL, *, timeout: float = 10.0, session: Any = None
) -> AsyncIterator[HttpTransport]:
    transport = HttpTransport(
        Keyring(CREDENTIALS, timeout=1), url, session=session, route=Route(), timeout=timeout, connections=4
    )
    try:
        yield transport
    finally:
        await transport.aclose()


# Its own unit tests, against a double.


async def test_it_brings_back_status_headers_and_body(responses: aioresponses) -> None:
    """Judging none of them."""
    responses.post(URL, status=418, body=b"tea", headers={"Retry-After": "5"})
    async with transport_to() as transport:
        reply = await transport.post(Request(b"{}"))

    assert isinstance(reply, Reply)
    assert (reply.status, reply.body, reply.headers["retry-after"]) == (418, b"tea", "5")


async def test_it_sends_what_the_specification_asks_for(responses: aioresponses) -> None:
    """Credentials and media types, and nothing that a session might do by itself."""
    responses.post(URL, status=200)
    async with transport_to() as transport:
        await transport.post(Request(b"{}"))

    ((call,),) = responses.requests.values()
    assert call.kwargs["headers"] == {
        "rokt-pub-id": CREDENTIALS.pub_id,
        "rokt-secret": CREDENTIALS.secret,
        "rokt-tag-id": CREDENTIALS.tag_id,
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "User-Agent": f"rokt_events_async/{__version__}",
    }
    assert call.kwargs["allow_redirects"] is False
    assert call.kwargs["auto_decompress"] is False
    assert call.kwargs["raise_for_status"] is False
    assert call.kwargs["middlewares"] == ()


@pytest.mark.parametrize("encoding", ["gzip", "br", " Deflate "])
async def test_a_compressed_body_is_refused(responses: aioresponses, encoding: str) -> None:
    """It was not asked for, and a megabyte of it can be a gigabyte."""
    responses.post(URL, status=200, body=b"\x1f\x8b", headers={"Content-Encoding": encoding})
    async with transport_to() as transport:
        reply = await transport.post(Request(b"{}"))

    assert isinstance(reply, Reply)
    assert (reply.status, reply.body) == (200, None)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (aiohttp.ClientConnectionError("secret things"), "ClientConnectionError"),
        (aiohttp.ClientPayloadError("secret things"), "ClientPayloadError"),
        (OSError(113, "No route to host"), "OSError: No route to host"),
        (aiohttp.ServerDisconnectedError(), "every connection was found closed"),
        (aiohttp.ClientOSError(104, "Connection reset by peer"), "every connection was found closed"),
    ],
)
async def test_what_went_wrong_is_a_reason_and_no_exception(
    responses: aioresponses, error: Exception, reason: str
) -> None:
    """Theirs carry the request's headers; ours are words."""
    responses.post(URL, exception=error, repeat=True)
    async with transport_to() as transport:
        request = Request(b"{}")
        reply = await transport.post(request)

    assert reply == NoReply(reason)
    assert not request.went_out


async def test_a_fault_is_no_network_error(responses: aioresponses) -> None:
    """What is none of the network's doing is raised."""
    responses.post(URL, exception=RuntimeError("a fault"))
    async with transport_to() as transport:
        with pytest.raises(RuntimeError, match="a fault"):
            await transport.post(Request(b"{}"))


def test_a_request_can_be_shown_as_text() -> None:
    """As aiohttp wants of a payload."""
    request = Request('{"a":"\u00e4"}'.encode())

    assert request.decode() == '{"a":"\u00e4"}'
    assert request.body == '{"a":"\u00e4"}'.encode()


# What only a real connection shows.

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


@asynccontextmanager
async def server(serve: Serve) -> AsyncIterator[str]:
    """A byte-level server on loopback."""
    tasks: set[asyncio.Task[Any]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def run() -> None:
            try:
                await serve(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        tasks.add(asyncio.ensure_future(run()))

    listening = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return await reader.readexactly(length)


async def test_no_server_listens() -> None:
    """Refused: surely not sent, and the system's own words say why."""
    async with transport_to() as transport:
        request = Request(b"{}")
        reply = await transport.post(request)

    assert isinstance(reply, NoReply)
    assert reply.reason.startswith("ClientConnectorError: Connect")
    assert not request.went_out


async def test_a_name_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS failure: surely not sent."""

    async def look_up(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
    async with transport_to("https://nowhere.invalid/") as transport:
        request = Request(b"{}")
        reply = await transport.post(request)

    assert isinstance(reply, NoReply)
    assert reply.reason.startswith("ClientConnectorDNSError")
    assert not request.went_out


async def test_a_server_that_speaks_no_tls() -> None:
    """TLS failure: surely not sent."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async with server(serve) as url, transport_to(url.replace("http:", "https:")) as transport:
        request = Request(b"{}")
        reply = await transport.post(request)

    assert isinstance(reply, NoReply)
    assert not request.went_out


async def test_a_connection_is_used_again() -> None:
    """Whatever the answer was, as long as it was whole."""
    connections = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        for answer in (
            b"200 OK\r\nContent-Length: 2\r\n\r\n{}",
            b"404 Not Found\r\nContent-Length: 0\r\n\r\n",
        ) * 2:
            await read_request(reader)
            writer.write(b"HTTP/1.1 " + answer)

    async with server(serve) as url, transport_to(url) as transport:
        replies = [await transport.post(Request(b"{}")) for _ in range(4)]

    assert [reply.status for reply in replies if isinstance(reply, Reply)] == [200, 404, 200, 404]
    assert len(connections) == 1


async def test_a_kept_connection_that_was_closed_does_not_count() -> None:
    """Found closed before anything was written: a fresh one, at once."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()

    async with server(serve) as url, transport_to(url) as transport:
        for _ in range(5):
            reply = await transport.post(Request(b"{}"))
            await asyncio.sleep(0)
            assert isinstance(reply, Reply)


async def test_found_closed_between_the_pool_and_the_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """The moment in which a connection is taken, and is closed before the write."""
    served = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            served.append(await read_request(reader))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    async with server(serve) as url, transport_to(url) as transport:
        connector: Any = transport._session.connector
        connect, fates = connector.connect, ["close", "keep"]

        async def connect_and_lose(*args: Any, **kwargs: Any) -> Any:
            connection = await connect(*args, **kwargs)
            if fates.pop(0) == "close":
                connection.protocol.transport.abort()
            return connection

        monkeypatch.setattr(connector, "connect", connect_and_lose)
        request = Request(b"{}")
        reply = await transport.post(request)

    assert isinstance(reply, Reply)
    assert served == [b"{}"]
    assert fates == []


@pytest.mark.parametrize("stray", [b"200 OK", b"400 Bad Request", b"408 Request Timeout"])
async def test_a_stray_answer_is_not_taken_for_ours(stray: bytes) -> None:
    """What lies on a kept connection before the request is not its answer: a fresh one, and sent once."""
    served = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            served.append(await read_request(reader))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            await writer.drain()
            await asyncio.sleep(0.1)
            writer.write(b"HTTP/1.1 " + stray + b"\r\nContent-Length: 5\r\n\r\nstray")

    async with server(serve) as url, transport_to(url) as transport:
        for number in range(3):
            request = Request(b"%d" % number)
            reply = await transport.post(request)
            assert isinstance(reply, Reply)
            assert (reply.status, reply.body, request.went_out) == (200, b"{}", True)
            await asyncio.sleep(1)

    assert served == [b"0", b"1", b"2"]


async def test_a_stray_answer_that_comes_with_the_request() -> None:
    """Between the pool and the write, where only the write can see it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            body = await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + body)

    async with server(serve) as url, transport_to(url) as transport:
        await transport.post(Request(b"1"))
        connector: Any = transport._session.connector
        connect, strays = connector.connect, [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nX"]

        async def connect_and_find(*args: Any, **kwargs: Any) -> Any:
            connection = await connect(*args, **kwargs)
            protocol = connection.protocol
            set_params = protocol.set_response_params

            def set_and_feed(**params: Any) -> None:
                set_params(**params)
                if strays:
                    protocol.data_received(strays.pop())

            protocol.set_response_params = set_and_feed
            return connection

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(connector, "connect", connect_and_find)
            reply = await transport.post(Request(b"2"))

    assert strays == []
    assert isinstance(reply, Reply)
    assert reply.body == b"2"


async def test_what_a_peer_does_not_read_is_not_kept() -> None:
    """After a time-out nothing of it is left in any buffer, and no socket is open."""
    loop: Any = asyncio.get_running_loop()
    transports: list[Any] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        transports.append(writer)
        await asyncio.sleep(1000)

    async with server(serve) as url:
        async with transport_to(url, timeout=1.0) as transport:
            request = Request(b"x" * 30_000_000)
            reply = await transport.post(request)
            await asyncio.sleep(0.1)
            assert request._transport is not None
            assert request._transport.get_write_buffer_size() == 0
            assert request._transport.get_extra_info("socket").fileno() == -1

    assert reply == NoReply("no answer within 1 s", is_timeout=True)
    assert request.went_out
    assert loop.time() < 1e6


async def test_handed_over_and_then_reset_is_lost() -> None:
    """The server may or may not have read it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)

    async with server(serve) as url, transport_to(url) as transport:
        request = Request(b"{}")
        reply = await transport.post(request)

    assert reply == NoReply("ServerDisconnectedError")
    assert request.went_out


async def test_a_server_that_never_ends_is_timed_out() -> None:
    """A byte every few seconds: only a bound on the whole exchange stops it."""
    loop = asyncio.get_running_loop()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n":
            writer.write(bytes([byte]))
            await asyncio.sleep(4)

    async with server(serve) as url, transport_to(url, timeout=10.0) as transport:
        started = loop.time()
        request = Request(b"{}")
        reply = await transport.post(request)

        assert loop.time() - started == pytest.approx(10.0, abs=0.1)
    assert reply == NoReply("no answer within 10 s", is_timeout=True)
    assert request.went_out


async def test_a_connection_that_cannot_be_made_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A black hole: timed out, and surely not sent."""

    async def never(*args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(1000)

    async with transport_to(timeout=3.0) as transport:
        monkeypatch.setattr(transport._session.connector, "connect", never)
        request = Request(b"{}")
        reply = await transport.post(request)

    assert reply == NoReply("no answer within 3 s", is_timeout=True)
    assert not request.went_out


@pytest.mark.parametrize(
    "answer",
    [
        b"200 OK\r\nContent-Length: 100\r\n\r\n|{}",
        b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n|5\r\n{}",
        b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n|not a number\r\n",
        b"503 Busy\r\nContent-Length: 10\r\n\r\n|",
        b"200 OK\r\nContent-Length: 300000\r\n\r\n|" + b" " * 300_000,
    ],
)
async def test_a_status_whose_body_is_lost_has_answered(answer: bytes) -> None:
    """What counts as an answer is the status line; a body beyond the bound is lost too."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        head, body = answer.split(b"|")
        writer.write(b"HTTP/1.1 " + head)
        await asyncio.sleep(0.1)
        writer.write(body)
        await writer.drain()

    async with server(serve) as url, transport_to(url) as transport:
        reply = await transport.post(Request(b"{}"))

    assert isinstance(reply, Reply)
    assert (reply.status, reply.body) == (int(answer[:3]), None)


@pytest.mark.parametrize(("size", "is_read"), [(MAX_BODY, True), (MAX_BODY + 1, False)])
async def test_the_body_is_bounded(size: int, is_read: bool) -> None:
    """256 KiB, and no more."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
        await writer.drain()

    async with server(serve) as url, transport_to(url) as transport:
        reply = await transport.post(Request(b"{}"))

    assert isinstance(reply, Reply)
    assert (reply.body is not None) is is_read


@pytest.mark.parametrize(
    "answer",
    [
        b"\x16\x03\x01\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    ],
)
async def test_no_readable_status_line_is_no_answer(answer: bytes) -> None:
    """aiohttp reports it as a 400, which is not the server's."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer)
        await writer.drain()

    async with server(serve) as url, transport_to(url) as transport:
        request = Request(b"{}")
        reply = await transport.post(request)

    assert isinstance(reply, NoReply)
    assert request.went_out


async def test_extra_bytes_after_the_answer_harm_nothing() -> None:
    """The answer counts, and the next request does not take them for its own."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"
            )

    async with server(serve) as url, transport_to(url) as transport:
        for _ in range(3):
            reply = await transport.post(Request(b"{}"))
            await asyncio.sleep(0.1)
            assert isinstance(reply, Reply)
            assert (reply.status, reply.body) == (200, b"{}")


async def test_a_large_body_goes_out_whole() -> None:
    """Larger than any socket buffer, and without a warning."""
    body = b"x" * 3_000_000

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await read_request(reader) == body
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()

    async with server(serve) as url, transport_to(url) as transport:
        reply = await transport.post(Request(body))

    assert isinstance(reply, Reply)


async def test_a_redirect_is_not_followed() -> None:
    """The other host never hears of the secret."""
    visitors = []

    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visitors.append(await reader.read(1))

    async with server(other) as elsewhere:

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(f"HTTP/1.1 307 Go\r\nLocation: {elsewhere}\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()

        async with server(serve) as url, transport_to(url) as transport:
            reply = await transport.post(Request(b"{}"))

    assert isinstance(reply, Reply)
    assert reply.status == 307
    assert visitors == []


async def test_cookies_are_neither_kept_nor_sent() -> None:
    """A session of its own has no jar."""
    heads = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            await reader.readexactly(2)
            writer.write(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 2\r\n\r\n{}")

    async with server(serve) as url, transport_to(url) as transport:
        for _ in range(2):
            await transport.post(Request(b"{}"))

    assert len(heads) == 2
    assert not any(b"cookie:" in head.lower() for head in heads)


async def test_a_session_that_its_owner_closes() -> None:
    """Nothing can be sent any more, and it says so."""
    async with Sandbox() as sandbox, aiohttp.ClientSession() as session:
        async with transport_to(sandbox.url, session=session) as transport:
            await session.close()
            request = Request(b"{}")

            assert await transport.post(request) == NoReply("the session that was passed in is closed")
            assert not request.went_out


async def test_a_cancellation_in_the_turn_of_a_time_out_is_obeyed() -> None:
    """The time-out must not take it for its own."""
    loop = asyncio.get_running_loop()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(1000)

    async with server(serve) as url, transport_to(url, timeout=3.0) as transport:
        posting = asyncio.create_task(transport.post(Request(b"{}")))
        await asyncio.sleep(0)
        (exchange,) = transport._timeouts._running
        loop.call_at(exchange.deadline, posting.cancel)
        await asyncio.wait([posting])

    assert posting.cancelled()


async def test_two_fresh_connections_are_tried() -> None:
    """The third is used after two were found closed; none of that is an attempt."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    async with server(serve) as url, transport_to(url) as transport:
        connector = transport._session.connector
        assert connector is not None
        connect = connector.connect

        async def connect_and_close(*args: Any, **kwargs: Any) -> Any:
            nonlocal connections
            connection = await connect(*args, **kwargs)
            connections += 1
            if connections <= 2:
                assert connection.transport is not None
                connection.transport.close()
            return connection

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(connector, "connect", connect_and_close)
            reply = await transport.post(Request(b"{}"))

    assert isinstance(reply, Reply)
    assert (reply.status, connections) == (200, 3)


async def test_a_connection_is_left_after_a_5xx() -> None:
    """A drained server behind a name that has moved would keep answering on it."""
    connections = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        await read_request(reader)
        writer.write(b"HTTP/1.1 503 Drained\r\nContent-Length: 0\r\n\r\n")

    async with server(serve) as url, transport_to(url) as transport:
        for _ in range(3):
            reply = await transport.post(Request(b"{}"))
            assert isinstance(reply, Reply)
            assert reply.status == 503

    assert len(connections) == 3


async def answer_with(writer: asyncio.StreamWriter, head: bytes, body: bytes = b"{}") -> None:
    writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()


@pytest.mark.parametrize(
    "extra",
    [
        b"Content-Security-Policy: " + b"x" * 60_000 + b"\r\n",
        b"".join(b"x-%d: y\r\n" % n for n in range(900)),
    ],
    ids=["a long line", "many lines"],
)
async def test_a_long_head_is_read(extra: bytes) -> None:
    """A server's front adds more than aiohttp reads by default."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await answer_with(writer, b"HTTP/1.1 200 OK\r\n" + extra)

    async with server(serve) as url, transport_to(url) as transport:
        reply = await transport.post(Request(b"{}"))

    assert isinstance(reply, Reply)
    assert (reply.status, reply.body) == (200, b"{}")


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n", "Got more than 65536 bytes"),
        (b"HTTP/1.1 200 OK\r\nno header\r\n", "Invalid header token"),
        (b"SSH-2.0-rsec-for-nothing\r\n", "an answer that is no HTTP"),
    ],
)
async def test_an_answer_that_is_no_http_says_what_is_wrong(head: bytes, what: str) -> None:
    """In the parser's own words: nothing of the answer is repeated."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await answer_with(writer, head)
        await reader.read()

    async with server(serve) as url, transport_to(url) as transport:
        request = Request(b"{}")
        reply = await transport.post(request)

    assert isinstance(reply, NoReply)
    assert reply.is_unreadable
    assert request.went_out
    assert what in reply.reason
    assert "SSH" not in reply.reason


@pytest.mark.every_loop
async def test_an_answer_that_is_there_beats_the_time_out() -> None:
    """A callback holds the loop beyond the request's time, while the answer lies in the socket."""
    answered = threading.Event()

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            answered.set()
            connection.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        async with transport_to(url, timeout=0.4) as transport:
            request = Request(b"{}")
            posting = asyncio.create_task(transport.post(request))
            while not request.went_out:
                await asyncio.sleep(0)
            await asyncio.sleep(0)  # aiohttp writes in the next turn.
            assert answered.wait(10)
            time.sleep(0.5)  # noqa: ASYNC251 -- a blocking handler of the application
            reply = await posting
        thread.join(10)

    assert isinstance(reply, Reply), reply


async def test_a_name_is_resolved_without_the_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the interpreter's exit there is none any more."""

    async def no_executor(*_: Any, **__: Any) -> Any:
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "getaddrinfo", no_executor)
    found = await transport_module._Resolver().resolve("localhost", 80, socket.AF_INET)

    assert [(one["host"], one["port"], one["hostname"]) for one in found] == [("127.0.0.1", 80, "localhost")]


async def test_a_callers_session_at_the_interpreters_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    """It resolves by the executor: the connection could not be made, and that is no fault."""

    async def no_executor(*_: Any, **__: Any) -> Any:
        raise RuntimeError("cannot schedule new futures after shutdown")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", no_executor)
    async with aiohttp.ClientSession() as session:
        async with transport_to("http://localhost:9/", session=session) as transport:
            request = Request(b"{}")
            reply = await transport.post(request)

    assert reply == NoReply("no connection could be made: the interpreter shuts down")
    assert not request.went_out


async def test_a_proxy_that_wants_a_login_is_named() -> None:
    """Not called an answer of Rokt's, nor one that is no HTTP."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await answer_with(writer, b"HTTP/1.1 407 Proxy Authentication Required\r\n", b"")

    async with server(serve) as proxy, aiohttp.ClientSession(proxy=proxy) as session:
        async with transport_to("https://rokt.invalid/", session=session) as transport:
            request = Request(b"{}")
            reply = await transport.post(request)

    assert reply == NoReply("the proxy answered HTTP 407")
    assert not request.went_out
