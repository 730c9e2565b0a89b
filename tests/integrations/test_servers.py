"""The README's applications under the real servers: load, then SIGTERM, and nothing is missing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import attrs
import pytest

from rokt_events_async.sandbox import Sandbox
from tests.samples import missing
from tests.servers import QueueServer
from tests.test_readme import block_with

FASTAPI = block_with("from fastapi import FastAPI")
AIOHTTP = block_with("from aiohttp import web")
PRELOADED = """
import contextlib, os
from fastapi import FastAPI
from rokt_events_async import Emitter, PartnerEvent

emitter = Emitter(endpoint=os.environ["ROKT_ENDPOINT"])  # In gunicorn's own process, before it forks.

@contextlib.asynccontextmanager
async def lifespan(app):
    async with emitter:
        yield

app = FastAPI(lifespan=lifespan)

@app.post("/checkout/{session_id}/viewed/{guid}")
async def viewed(session_id: str, guid: str):
    await emitter.track(PartnerEvent.viewed(session_id=session_id, parent_guid=guid, client_unique_id="c"))
    return {"tracked": guid}
"""
UVICORN = ["-m", "uvicorn", "shop:app", "--port", "{port}", "--log-level", "warning"]
GUNICORN = ["-m", "gunicorn", "--bind", "127.0.0.1:{port}", "--log-level", "warning", "--no-control-socket"]
UVICORN_WORKER = [*GUNICORN, "shop:app", "--worker-class", "uvicorn_worker.UvicornWorker"]
AIOHTTP_WORKER = [*GUNICORN, "shop:make_app", "--worker-class"]

SERVERS: dict[str, tuple[str, list[str]]] = {
    "uvicorn": (FASTAPI, [*UVICORN, "--loop", "asyncio"]),
    "uvicorn, uvloop": (FASTAPI, [*UVICORN, "--loop", "uvloop"]),
    "uvicorn, 2 workers": (FASTAPI, [*UVICORN, "--workers", "2"]),
    "gunicorn, uvicorn's worker": (FASTAPI, [*UVICORN_WORKER, "--workers", "2"]),
    "gunicorn, preload": (PRELOADED, [*UVICORN_WORKER, "--workers", "2", "--preload"]),
    "aiohttp.web": (
        AIOHTTP,
        ["-m", "aiohttp.web", "--hostname", "127.0.0.1", "--port", "{port}", "shop:make_app"],
    ),
    "gunicorn, aiohttp's worker": (AIOHTTP, [*AIOHTTP_WORKER, "aiohttp.GunicornWebWorker", "--workers", "2"]),
    "gunicorn, aiohttp's worker, uvloop": (AIOHTTP, [*AIOHTTP_WORKER, "aiohttp.GunicornUVLoopWebWorker"]),
}

BEFORE = 300
"""Answers after which the server is told to stop."""

TIMEOUT = 30.0


@attrs.frozen
class Server:
    process: subprocess.Popen[str]
    url: str


@pytest.fixture
def serve(tmp_path: Path, rokt_sandbox: Sandbox) -> Iterator[Callable[[str, list[str]], Server]]:
    """Starts a server of an application, and ends it."""
    started: list[subprocess.Popen[str]] = []

    def start(source: str, command: list[str]) -> Server:
        (tmp_path / "shop.py").write_text(source)
        port = free_port()
        started.append(
            subprocess.Popen(
                [sys.executable, *(part.format(port=port) for part in command)],
                cwd=tmp_path,
                env=os.environ | {"ROKT_ENDPOINT": rokt_sandbox.url, "PYTHONPATH": str(tmp_path)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
        wait_until_it_listens(started[0], port)
        return Server(started[0], f"http://127.0.0.1:{port}")

    yield start

    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_it_listens(process: subprocess.Popen[str], port: int) -> None:
    until = time.monotonic() + TIMEOUT
    while time.monotonic() < until:
        if process.poll() is not None:
            pytest.fail(f"the server has ended: {process.communicate()[0]}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.05)
    pytest.fail("the server does not listen")


async def load(server: Server, *, paths: list[str]) -> set[str]:
    """Many customers at once, until the server has gone. Returns what handlers said they have tracked.

    In the middle of it the server is told to stop.
    """
    tracked: set[str] = set()
    is_told = False

    async def customer(number: int, session: aiohttp.ClientSession) -> None:
        nonlocal is_told
        for count in range(10_000):
            guid = f"guid-{number}-{count}"
            path = paths[count % len(paths)]
            try:
                async with session.post(f"{server.url}/checkout/session-{number}/{path}/{guid}") as answer:
                    if answer.status != 200:
                        return
                    tracked.add((await answer.json())["tracked"])
            except aiohttp.ClientError:
                return
            if len(tracked) >= BEFORE and not is_told:
                is_told = True
                server.process.send_signal(signal.SIGTERM)

    timeout = aiohttp.ClientTimeout(total=TIMEOUT)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        await asyncio.gather(*(customer(number, session) for number in range(16)))
    return tracked


@pytest.mark.parametrize("name", SERVERS)
def test_nothing_that_a_handler_accepted_is_missing(
    name: str, serve: Callable[[str, list[str]], Server], rokt_sandbox: Sandbox
) -> None:
    """Through SIGTERM under load: the server drains, and the sandbox has every event, once."""
    if sys.platform == "win32":
        missing("SIGTERM and gunicorn are not of this platform")
    source, command = SERVERS[name]
    server = serve(source, command)

    paths = ["viewed", "chosen"] if source is FASTAPI else ["viewed"]
    tracked = asyncio.run(load(server, paths=paths))
    output, _ = server.process.communicate(timeout=TIMEOUT)

    received = Counter(event["parentGuid"] for event in rokt_sandbox.events)
    assert len(tracked) >= BEFORE
    assert tracked - received.keys() == set()
    assert [guid for guid, count in received.items() if count > 1] == []
    assert server.process.returncode in (0, -signal.SIGTERM), output
    assert "Error" not in output


def test_sigterm_while_rokt_is_down(serve: Callable[[str, list[str]], Server], rokt_sandbox: Sandbox) -> None:
    """The retries go on through the shutdown, as long as the close may take."""
    server = serve(FASTAPI, SERVERS["uvicorn"][1])
    rokt_sandbox.fail_next(*[503] * 16)

    tracked = asyncio.run(load(server, paths=["viewed"]))
    server.process.communicate(timeout=TIMEOUT)

    received = Counter(event["parentGuid"] for event in rokt_sandbox.events)
    assert tracked - received.keys() == set()
    assert set(received.values()) == {1}


FULL = """
import json
from fastapi import FastAPI
from rokt_events_async import Emitter, PartnerEvent
from rokt_events_async.integrations.fastapi import RoktEmitter, emitter_lifespan

def keep(error):
    with open("kept.jsonl", "a") as file:
        print(json.dumps(error.event.to_dict()), file=file)

def make_emitter():
    return Emitter(max_pending=100, close_timeout=2, on_undelivered=keep)

app = FastAPI(lifespan=emitter_lifespan(make_emitter))

@app.post("/checkout/{session_id}/viewed/{guid}")
async def viewed(session_id: str, guid: str, emitter: RoktEmitter):
    await emitter.track(PartnerEvent.viewed(session_id=session_id, parent_guid=guid, client_unique_id="c"))
    return {"tracked": guid}
"""


def test_sigterm_in_an_outage_with_a_full_queue(
    serve: Callable[[str, list[str]], Server], rokt_sandbox: Sandbox, tmp_path: Path
) -> None:
    """No handler hangs, the server goes, and every event was delivered or handed to `on_undelivered`."""
    rokt_sandbox.fail_next(*[503] * 10_000)
    server = serve(FULL, SERVERS["uvicorn"][1])

    tracked = asyncio.run(load(server, paths=["viewed"]))
    began = time.monotonic()
    server.process.communicate(timeout=TIMEOUT)

    kept = [json.loads(line)["parentGuid"] for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    delivered = {event["parentGuid"] for event in rokt_sandbox.events}
    assert len(tracked) >= BEFORE
    assert tracked - delivered - set(kept) == set()
    assert len(kept) == len(set(kept))
    # It waits for its clients, for the close, and for a last second of `on_undelivered`.
    assert time.monotonic() - began < TIMEOUT


async def load_through(server: Server, *, kill: Callable[[], None]) -> set[str]:
    """Many customers at once, who go on although a worker is killed in the middle."""
    tracked: set[str] = set()
    is_killed = False

    async def customer(number: int, session: aiohttp.ClientSession) -> None:
        nonlocal is_killed
        for count in range(10_000):
            if len(tracked) >= 3 * BEFORE:
                return
            guid = f"guid-{number}-{count}"
            with contextlib.suppress(aiohttp.ClientError):
                async with session.post(f"{server.url}/checkout/session-{number}/viewed/{guid}") as answer:
                    tracked.add((await answer.json())["tracked"])
            if len(tracked) >= BEFORE and not is_killed:
                is_killed = True
                kill()

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT)) as session:
        await asyncio.gather(*(customer(number, session) for number in range(16)))
    return tracked


@pytest.mark.parametrize("source", [FASTAPI, AIOHTTP], ids=["fastapi", "aiohttp"])
def test_a_killed_worker_loses_nothing_with_a_journal(
    source: str,
    serve: Callable[[str, list[str]], Server],
    rokt_sandbox: Sandbox,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The workers share a directory, and the successor of a worker delivers what that has left."""
    monkeypatch.setenv("ROKT_JOURNAL", str(tmp_path / "journal"))
    command = SERVERS["gunicorn, uvicorn's worker" if source is FASTAPI else "gunicorn, aiohttp's worker"][1]
    server = serve(source, command)

    def kill() -> None:
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)

    tracked = asyncio.run(load_through(server, kill=kill))
    until = time.monotonic() + TIMEOUT
    while time.monotonic() < until and tracked - {event["parentGuid"] for event in rokt_sandbox.events}:
        time.sleep(0.05)
    server.process.send_signal(signal.SIGTERM)
    output, _ = server.process.communicate(timeout=TIMEOUT)

    assert len(tracked) >= 3 * BEFORE, output
    assert tracked - {event["parentGuid"] for event in rokt_sandbox.events} == set()


RELAY = ["-m", "rokt_events_async.cli", "relay", "--heartbeat-timeout", "2", "--flush-interval", "0.2"]


def test_gunicorn_with_a_queue(
    own_server: Callable[..., QueueServer],
    serve: Callable[[str, list[str]], Server],
    rokt_sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four workers, one is killed, then SIGTERM under load: every event that a handler accepted arrives."""
    monkeypatch.setenv("ROKT_QUEUE_URL", own_server().url)
    command = [*GUNICORN, "shop:app", "--worker-class", "uvicorn_worker.UvicornWorker", "--workers", "4"]
    server = serve(FASTAPI, command)

    def kill() -> None:
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)

    tracked = asyncio.run(load_through(server, kill=kill))
    more = asyncio.run(load(server, paths=["viewed"]))
    server.process.communicate(timeout=TIMEOUT)
    assert not rokt_sandbox.events

    relay = subprocess.Popen([sys.executable, *RELAY], stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + TIMEOUT
        expected = {f"{guid}" for guid in (*tracked, *more)}
        while time.monotonic() < until and expected - {one["parentGuid"] for one in rokt_sandbox.events}:
            time.sleep(0.05)
    finally:
        relay.send_signal(signal.SIGTERM)
        _, told = relay.communicate(timeout=TIMEOUT)

    assert len(tracked) >= 3 * BEFORE
    assert expected - {one["parentGuid"] for one in rokt_sandbox.events} == set()
    assert relay.returncode == 0, told
    assert "events delivered" in told
