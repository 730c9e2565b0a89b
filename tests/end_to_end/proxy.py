"""A small TCP proxy with a bad temper, on loopback: latency, cuts, resets, drips, black holes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from types import TracebackType
from typing import Any, Self

import attrs
from yarl import URL


@attrs.define
class Temper:
    """What it does to what it carries.

    Args:
        latency: Seconds before each piece goes on.
        piece: Bytes that go on at a time.
        cut_after: Bytes of a connection's answers after which it is closed in good order.
        reset_after: The same, and it is reset.
        swallows: Whether nothing of an answer ever arrives.
    """

    latency: float = 0.0
    piece: int = 65_536
    cut_after: int | None = None
    reset_after: int | None = None
    swallows: bool = False


class FaultyProxy:
    """Stands before a sandbox.

    Args:
        target: The sandbox's url.
        server_ssl: What it shows to its clients, if it is to speak TLS with them.
    """

    def __init__(self, target: str, temper: Temper, server_ssl: ssl.SSLContext | None = None) -> None:
        self._target = URL(target)
        self._server_ssl = server_ssl
        self.temper = temper
        self.connections = 0
        self.resets = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._server_ssl)
        port = self._server.sockets[0].getsockname()[1]
        scheme = "https" if self._server_ssl else "http"
        self.url = f"{scheme}://127.0.0.1:{port}{self._target.path}"
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        await asyncio.sleep(0.01)  # The last connections are closed at a turn of the loop.

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        there = await asyncio.open_connection(self._target.host, self._target.port)
        pipes = [
            asyncio.create_task(self._pipe(reader, there[1], None)),
            asyncio.create_task(self._pipe(there[0], writer, self.temper)),
        ]
        try:
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pipe in pipes:
                pipe.cancel()
            for end in (writer, there[1]):
                end.transport.abort()
            await asyncio.gather(*pipes, return_exceptions=True)

    async def _pipe(
        self, source: asyncio.StreamReader, to: asyncio.StreamWriter, temper: Temper | None
    ) -> None:
        carried = 0
        with contextlib.suppress(OSError):
            while data := await source.read(65_536):
                if temper is None:
                    to.write(data)
                    continue
                if temper.swallows:
                    continue
                for start in range(0, len(data), temper.piece):
                    await asyncio.sleep(temper.latency)
                    piece = data[start : start + temper.piece]
                    to.write(piece)
                    await to.drain()
                    carried += len(piece)
                    if temper.cut_after is not None and carried >= temper.cut_after:
                        to.close()
                        await to.wait_closed()
                        return
                    if temper.reset_after is not None and carried >= temper.reset_after:
                        reset(to)
                        self.resets += 1
                        return


def reset(writer: asyncio.StreamWriter) -> None:
    """Closes with an RST instead of a FIN."""
    sock: Any = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
