"""An answer as bytes, with the fault that it meets on the way."""

from __future__ import annotations

import contextlib
import gzip
import socket
import struct
from functools import cache
from typing import Final

from aiohttp import web

from rokt_events_async.sandbox._live import Exchange
from rokt_events_async.sandbox.echoes import Answer
from rokt_events_async.sandbox.faults import Act, Fault

_MIB: Final = 1024 * 1024
_HUGE_MIB: Final = 64
_BLANK_MIB: Final = 16
HANGS_UP: Final = frozenset(
    {Act.RESET_BEFORE, Act.RESET_DURING, Act.RESET_AFTER, Act.GARBAGE, Act.CUT, Act.HUGE, Act.DRIP}
)
"""Acts after which the connection is gone, or may be, by the sandbox's own doing."""

_UNANSWERED: Final = frozenset(
    {Act.SILENCE, Act.RESET_BEFORE, Act.RESET_DURING, Act.RESET_AFTER, Act.GARBAGE}
)
_PAGE: Final = b"<!DOCTYPE html><html><body>Welcome to nginx!</body></html>"
_NONSENSE: Final = b"\xff\xfe{not json"


def respond(fault: Fault, answer: Answer) -> web.Response:
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
    return gzip.compress(b" " * (_BLANK_MIB * _MIB))


async def prepare(request: web.Request, answer: Answer) -> web.StreamResponse:
    """Sends the head of an answer."""
    headers = {"Content-Type": answer.content_type, "Content-Length": str(len(answer.body))}
    response = web.StreamResponse(status=answer.status, headers=headers)
    await response.prepare(request)
    return response


async def cut(request: web.Request, answer: Answer) -> web.StreamResponse:
    """Ends an answer in the middle of its body."""
    response = await prepare(request, answer)
    await response.write(answer.body[: len(answer.body) // 2])
    _hang_up(request)
    return response


async def flood(request: web.Request, answer: Answer) -> web.StreamResponse:
    """Sends a huge body."""
    response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):  # The client has closed the connection, as it should.
        for _ in range(_HUGE_MIB):
            await response.write(b" " * _MIB)
    return response


def garble(request: web.Request) -> web.Response:
    """Sends bytes that are no HTTP, and closes."""
    _hang_up(request, b"\x16\x03\x01 this is no HTTP\r\n\r\n")
    return web.Response()


def _hang_up(request: web.Request, last_words: bytes = b"") -> None:
    if request.transport is not None:
        request.transport.write(last_words)
        request.transport.close()


def exchange(fault: Fault, answer: Answer, response: web.StreamResponse) -> Exchange:
    """Returns what was sent, for the page."""
    if fault.act in _UNANSWERED:
        return Exchange(None, {})
    if fault.act is Act.HUGE:
        return Exchange(None, response.headers, f"{_HUGE_MIB} MiB of white space, in chunks")
    if fault.act is Act.COMPRESSED:
        return Exchange(None, response.headers, f"{_BLANK_MIB} MiB of white space and the answer, gzipped")
    if fault.act is Act.CUT:
        return Exchange(answer.body[: len(answer.body) // 2], response.headers)
    body = response.body if isinstance(response, web.Response) else answer.body
    return Exchange(body if isinstance(body, bytes) else b"", response.headers)


def is_gone(request: web.Request) -> bool:
    """Returns True if the client has closed the connection."""
    return request.transport is None or request.transport.is_closing()


def reset(request: web.Request) -> web.Response:
    """Resets the connection instead of closing it: bytes in flight are lost."""
    transport = request.transport
    if transport is not None:
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return web.Response()
