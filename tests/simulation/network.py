"""Connections made of memory: bytes arrive later, in order, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tests.simulation.loop import SimulatedLoop


class Connection(asyncio.Transport):
    """The client's end of one, and the wire to the server's.

    Args:
        latency: Seconds that bytes take, one way.
        to_server: Called with what arrives there; `None` is the end.
    """

    def __init__(
        self,
        loop: SimulatedLoop,
        protocol: asyncio.Protocol,
        latency: float,
        on_gone: Callable[[Connection], None],
    ) -> None:
        super().__init__({"peername": ("127.0.0.1", 80), "sockname": ("127.0.0.1", 1), "socket": None})
        self._loop = loop
        self._protocol: asyncio.Protocol = protocol
        self.latency = latency
        self._on_gone = on_gone
        self._is_closing = False
        self._is_gone = False
        self._is_paused = False
        self._waiting: list[tuple[bytes | None, Callable[[], None] | None]] = []
        self.to_server: Callable[[bytes | None], None] = lambda _data: None

    # The client's end.

    def write(self, data: Any) -> None:
        if not self._is_closing:
            self._loop.call_later(self.latency, self.to_server, bytes(data))

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._end(None)

    def abort(self) -> None:
        self._end(None)

    def _end(self, error: Exception | None) -> None:
        if self._is_closing:
            return
        self._is_closing = True
        self._loop.call_later(self.latency, self.to_server, None)
        self._loop.call_soon(self._lose, error)

    def _lose(self, error: Exception | None) -> None:
        if not self._is_gone:
            self._is_gone = True
            self._on_gone(self)
            self._protocol.connection_lost(error)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def is_reading(self) -> bool:
        return not self._is_paused

    def pause_reading(self) -> None:
        self._is_paused = True

    def resume_reading(self) -> None:
        self._is_paused = False
        waiting, self._waiting = self._waiting, []
        for data, on_received in waiting:
            self._loop.call_soon(self._receive, data, on_received)

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """There is no buffer."""

    def can_write_eof(self) -> bool:
        return False

    # The server's end.

    def send(self, data: bytes, on_received: Callable[[], None] | None = None) -> None:
        self._loop.call_later(self.latency, self._arrive, data, on_received)

    def _arrive(self, data: bytes, on_received: Callable[[], None] | None) -> None:
        """Bytes that came while the loop was held are read after the timers that fell due meanwhile."""
        if self._loop.was_held:
            self._loop.call_soon(self._receive, data, on_received)
        else:
            self._receive(data, on_received)

    def finish(self) -> None:
        """The server closes in good order."""
        self._loop.call_later(self.latency, self._receive, None)

    def reset(self) -> None:
        """The server, or something between, resets."""
        self._loop.call_later(self.latency, self._reset)

    def _reset(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._lose(ConnectionResetError(104, "Connection reset by peer"))

    def _receive(self, data: bytes | None, on_received: Callable[[], None] | None = None) -> None:
        if self._is_closing:
            return
        if self._is_paused:
            self._waiting.append((data, on_received))
        elif data is not None:
            if on_received is not None:
                on_received()
            self._protocol.data_received(data)
        elif not self._protocol.eof_received():
            self._end(None)
