"""`python -m tests.kills`: processes with a journal are killed at random moments, and nothing is lost.

Children track events against a server in this process and print the ids that were accepted, and the outcomes.
This process kills them with SIGKILL and starts others on the same directory. At the end a last child drains
what is left. Held against the server's record: every printed id is there or has an outcome; none was told two
outcomes; what is there twice was flagged, in the printed outcome or in the tally; all files are empty and
sound. With `--outages` the server is away half of the time, memory holds few events, and no event of a
session arrives for the first time after a younger one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import attrs
import click
from aiohttp import web

from rokt_events_async import Emitter, Journal, Observer, PartnerEvent, RetryPolicy
from tests.samples import CREDENTIALS

SHORTEST = 0.05
"""For how many seconds a child lives at least, once it has started."""

_PER_SESSION = {True: 10**9, False: 5}
"""How many events a session has, with outages and without."""


@attrs.define
class Result:
    """What a campaign has seen."""

    kills: int = 0
    accepted: int = 0
    lost: list[str] = attrs.Factory(list)
    told_twice: list[str] = attrs.Factory(list)
    duplicates: int = 0
    unflagged: int = 0
    overtaken: list[str] = attrs.Factory(list)
    left: int = 0
    unsound: list[str] = attrs.Factory(list)

    @property
    def is_good(self) -> bool:
        bad = self.lost, self.told_twice, self.unflagged, self.overtaken, self.left, self.unsound
        return not any(bad)


class Server:
    """Accepts events, keeps its own record, and is not always well."""

    def __init__(self, luck: random.Random) -> None:
        self._luck = luck
        self.is_down = False
        self.faults = True
        self.accepted: Counter[str] = Counter()
        self.url = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_post("/v1/partner/events", self._answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/partner/events"
        try:
            yield
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        events = json.loads(await request.read())["events"]
        draw = self._luck.random() if self.faults else 1.0
        if draw < 0.05 or self.is_down:
            return web.Response(status=503)
        self.accepted.update(event["parentGuid"] for event in events)
        if draw < 0.1:
            return web.Response(status=502, text="bad gateway")
        await asyncio.sleep(self._luck.choice([0.0, 0.002, 0.02]))
        return web.json_response({"processedEventsCount": len(events), "unprocessedEvents": []})


class _Teller(Observer):
    """Prints every outcome. A line is one write: a kill does not cut it."""

    def on_delivered(self, delivery: Any, receipt: Any) -> None:
        say("flagged" if receipt.maybe_duplicate else "delivered", delivery.event.parent_guid)

    def on_undelivered(self, delivery: Any, error: Any) -> None:
        say(error.outcome, delivery.event.parent_guid)


def say(what: str, who: str) -> None:
    os.write(1, f"{what} {who}\n".encode())


async def child(url: str, directory: str, name: str, flags: list[str]) -> None:
    """One process: tracks until it is killed; or drains what others have left."""
    is_small = "--outages" in flags
    emitter = Emitter(
        CREDENTIALS,
        endpoint=url,
        journal=Journal(directory),
        flush_interval=0.01,
        max_wait=None,
        max_pending=200 if is_small else 10_000,
        observers=[_Teller()],
        retry=RetryPolicy(wait=(0.05, 0.1), max_backoff=0.5, retry_unconfirmed="--no-retry" not in flags),
    )
    async with emitter:
        say("started", name)
        if "--drains" in flags:
            await drain(emitter)
        else:
            callers = (track(emitter, f"{name}.{number}", _PER_SESSION[is_small]) for number in range(20))
            await asyncio.gather(*callers)


async def drain(emitter: Emitter) -> None:
    """Waits until the directory holds nothing; others' files are adopted one after the other."""
    while (stats := emitter.stats).journal and (stats.pending or stats.journal.stored):
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.3)
    if emitter.stats.pending:
        await drain(emitter)


async def track(emitter: Emitter, name: str, per_session: int) -> None:
    number = 0
    while True:
        number += 1
        event_id = f"{name}.{number}"
        event = PartnerEvent.viewed(
            session_id=f"{name}.{number // per_session}", parent_guid=event_id, client_unique_id="c"
        )
        await emitter.track(event)
        say("accepted", event_id)


class Campaign:
    """Kills children, several of which live at a time."""

    def __init__(
        self, *, kills: int, workers: int, longest: float, retries: bool, outages: bool, seed: int
    ) -> None:
        self._longest = longest
        self._kills = kills
        self._workers = workers
        self._flags = ([] if retries else ["--no-retry"]) + (["--outages"] if outages else [])
        self._outages = outages
        self._luck = random.Random(seed)
        self._server = Server(self._luck)
        self._names = 0
        self._accepted: set[str] = set()
        self._told: dict[str, list[str]] = {}

    async def run(self, directory: str) -> Result:
        async with self._server.running():
            left = [self._kills // self._workers] * self._workers
            left[0] += self._kills % self._workers
            outages = asyncio.create_task(self._come_and_go())
            await asyncio.gather(*(self._kill(directory, count) for count in left))
            outages.cancel()
            self._server.is_down = False
            await self._spawn(directory, lives=None)
        return self._judge(Path(directory))

    async def _come_and_go(self) -> None:
        while self._outages:
            self._server.is_down = not self._server.is_down
            await asyncio.sleep(self._luck.uniform(0.2, 1.5))

    async def _kill(self, directory: str, count: int) -> None:
        for _ in range(count):
            await self._spawn(directory, lives=self._luck.uniform(SHORTEST, self._longest))

    async def _spawn(self, directory: str, *, lives: float | None) -> None:
        """Starts a child and kills it after so many seconds; `None` lets it drain and end."""
        self._names += 1
        name = f"c{self._names}"
        options = (["--drains"] if lives is None else []) + self._flags
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.kills", "--child", self._server.url, directory, name, *options),
            stdout=asyncio.subprocess.PIPE,
            limit=2**24,
        )
        assert process.stdout is not None
        if lives is not None:
            await process.stdout.readline()  # It has started.
            asyncio.get_running_loop().call_later(lives, process.send_signal, signal.SIGKILL)
        async for line in process.stdout:
            self._note(*line.decode().split())
        code = await process.wait()
        assert code == (0 if lives is None else -signal.SIGKILL), f"a child ended with {code}"

    def _note(self, what: str, who: str) -> None:
        if what == "accepted":
            self._accepted.add(who)
        elif what != "started":
            self._told.setdefault(who, []).append(what)

    def _judge(self, directory: Path) -> Result:
        result = Result(kills=self._kills, accepted=len(self._accepted))
        tally: Counter[str] = Counter()
        for path in directory.glob("*/*.journal"):
            with contextlib.closing(sqlite3.connect(path)) as connection:
                if connection.execute("PRAGMA integrity_check").fetchone()[0] != "ok":
                    result.unsound.append(path.name)
                result.left += connection.execute("SELECT count(*) FROM event").fetchone()[0]
                tally.update(dict(connection.execute("SELECT outcome, count FROM tally").fetchall()))
        told = Counter(outcome for outcomes in self._told.values() for outcome in outcomes)
        untold = tally["unconfirmed"] - told["unconfirmed"]  # Written, and killed before it was told.
        gone = [one for one in self._accepted if one not in self._told and not self._server.accepted[one]]
        result.lost = gone[max(0, untold) :]
        result.told_twice = [who for who, outcomes in self._told.items() if len(outcomes) > 1]
        result.overtaken = _overtaken(self._server.accepted, _PER_SESSION[self._outages])
        twice = [who for who, count in self._server.accepted.items() if count > 1]
        result.duplicates = len(twice)
        unflagged = [who for who in twice if self._told.get(who) == ["delivered"]]
        silent = [who for who in twice if who not in self._told]
        flagged = tally["maybe_duplicate"] - told["flagged"] + max(0, untold)
        result.unflagged = len(unflagged) + max(0, len(silent) - flagged)
        return result


def _overtaken(accepted: Iterable[str], per_session: int) -> list[str]:
    """Returns the events that arrived for the first time after a younger one of their session."""
    last: dict[tuple[str, int], int] = {}
    found = []
    for who in accepted:
        caller, _, digits = who.rpartition(".")
        session = caller, int(digits) // per_session
        if int(digits) < last.get(session, 0):
            found.append(who)
        else:
            last[session] = int(digits)
    return found


def play(directory: str, **settings: Any) -> Result:
    """Plays a campaign in a directory."""
    return asyncio.run(Campaign(**settings).run(directory))


@click.command()
@click.option("--kills", default=30, show_default=True, help="How many processes to kill.")
@click.option("--workers", default=1, show_default=True, help="How many live at a time.")
@click.option("--longest", default=1.2, show_default=True, help="Seconds that a process lives at most.")
@click.option("--outages", is_flag=True, help="The server is away half of the time, and memory small.")
@click.option("--no-retry-unconfirmed", is_flag=True, help="With retry_unconfirmed=False.")
@click.option("--seed", default=0, show_default=True)
def main(
    kills: int,
    workers: int,
    longest: float,
    outages: bool,
    no_retry_unconfirmed: bool,
    seed: int,
) -> None:
    """Kills processes, and says what was lost; exits with 1 if anything was."""
    retries = not no_retry_unconfirmed
    settings = {"kills": kills, "workers": workers, "longest": longest, "outages": outages, "seed": seed}
    with tempfile.TemporaryDirectory() as directory:
        result = play(directory, retries=retries, **settings)
    policy = ("no-" if no_retry_unconfirmed else "") + "retry-unconfirmed" + (", outages" if outages else "")
    print(
        f"{result.kills} kills, {workers} workers, {policy}: {result.accepted} accepted, "
        f"{len(result.lost)} lost, {len(result.told_twice)} told twice, {result.duplicates} duplicates, "
        f"{result.unflagged} of them without a flag, {len(result.overtaken)} overtaken, {result.left} left, "
        f"{len(result.unsound)} files unsound"
    )
    sys.exit(0 if result.is_good else 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        where, folder, who, *flags = sys.argv[2:]
        asyncio.run(child(where, folder, who, flags))
    else:
        main()
