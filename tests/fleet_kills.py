"""`python -m tests.fleet_kills`: relays and the queue's server are killed at random moments, nothing is lost.

This process publishes events and is Rokt. Its children are relays; it kills them with SIGKILL, and starts
others. Now and then it kills the queue's server too, and starts it again with its data. A relay prints the
events that it takes over and that may have been sent before. Held against Rokt's record at the end: every
event whose publication was confirmed is there or is a dead letter, and every event that is there twice was
printed as one that may be, or was published twice.
"""

from __future__ import annotations

import asyncio
import functools
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import click
import orjson

from rokt_events_async import Emitter, NotAcceptedError, PartnerEvent, PublishUnconfirmedError
from rokt_events_async.relay import DeadLetter, Publisher, RedisQueue, Relay
from rokt_events_async.relay.entries import Entry, NewEntry, read_entry
from rokt_events_async.relay.queue import Taken
from tests.kills import Server, say
from tests.samples import CREDENTIALS
from tests.servers import QueueServer, find_binary

HEARTBEAT_TIMEOUT = 1.0
_PUBLISHERS = 4
_HANDLERS = 5


@attrs.define
class Result:
    """What a campaign has seen."""

    relays: int = 0
    servers: int = 0
    accepted: int = 0
    unconfirmed: int = 0
    lost: list[str] = attrs.Factory(list)
    duplicates: int = 0
    predicted: int = 0
    unpredicted: list[str] = attrs.Factory(list)
    dead_letters: int = 0
    requests: int = 0
    left: int = 0

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.unpredicted or self.left)

    def __str__(self) -> str:
        return (
            f"{self.relays} relays and {self.servers} servers killed: {self.accepted} events accepted, "
            f"{self.unconfirmed} unconfirmed, {len(self.lost)} lost, {self.duplicates} duplicates "
            f"({self.predicted} predicted, {len(self.unpredicted)} not), {self.dead_letters} dead letters, "
            f"{self.left} left in the queue"
        )


# A relay, in a process of its own.


class TellingQueue(RedisQueue):
    """Prints the events that it takes over and that may have been sent."""

    async def take(self, *arguments: Any, skip: Callable[[int, bytes], bool], **options: Any) -> Taken:
        taken = await super().take(*arguments, skip=skip, **options)
        for entry in taken.entries:
            if entry.may_have_been_sent:
                say("redelivered", _guid(entry))
        return taken


def _guid(entry: Entry) -> str:
    return read_entry(entry).event.parent_guid


async def relay(queue: str, rokt: str, name: str) -> None:
    """One process: relays until it is killed, or told to stop."""
    make = functools.partial(Emitter, CREDENTIALS, endpoint=rokt)
    one = Relay(
        TellingQueue(queue, timeout=2),
        make,
        relay_id=name,
        flush_interval=0.2,
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        window=5_000,
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, one.stop)
    say("started", name)
    stats = await one.run()
    say("elsewhere", str(stats.acknowledged_elsewhere))


# The campaign.


class Watched(RedisQueue):
    """Remembers the events that were sent to the queue more than once."""

    repeated: set[str]

    async def publish(self, entries: Sequence[NewEntry], *, timeout: float) -> list[str | Exception]:
        self.repeated.update([orjson.loads(one.wire)["parentGuid"] for one in entries if one.tries])
        return await super().publish(entries, timeout=timeout)


class Campaign:
    """Kills relays, several of which live at a time, and the queue's server."""

    def __init__(
        self, *, relays: int, servers: int, alive: int, longest: float, rate: float, seed: int
    ) -> None:
        self._kills = relays
        self._server_kills = servers
        self._alive = alive
        self._longest = longest
        self._rate = rate
        self._luck = random.Random(seed)
        self._rokt = Server(self._luck)
        self._rokt.faults = False
        self._names = 0
        self._accepted: set[str] = set()
        self._unconfirmed: set[str] = set()
        self._predicted: set[str] = set()
        self._repeated: set[str] = set()
        self._is_over = asyncio.Event()
        self._stopping: set[asyncio.subprocess.Process] = set()

    async def run(self, server: QueueServer) -> Result:
        self._server = server
        async with self._rokt.running():
            publishing = [asyncio.create_task(self._publish(number)) for number in range(_PUBLISHERS)]
            slots = [self._kills // self._alive] * self._alive
            slots[0] += self._kills % self._alive
            killing = asyncio.create_task(self._kill_servers())
            await asyncio.gather(*(self._kill_relays(count) for count in slots), killing)
            self._is_over.set()
            await asyncio.gather(*publishing)
            return await self._finish()

    async def _publish(self, number: int) -> None:
        queue = Watched(self._server.url, timeout=2)
        queue.repeated = self._repeated
        async with Publisher(queue, publish_timeout=15) as publisher:
            await asyncio.gather(
                *(self._handle(publisher, f"p{number}.{handler}") for handler in range(_HANDLERS))
            )

    async def _handle(self, publisher: Publisher, name: str) -> None:
        number = 0
        while not self._is_over.is_set():
            number += 1
            guid = f"{name}.{number}"
            event = PartnerEvent.viewed(session_id=f"s{number % 97}", parent_guid=guid, client_unique_id="c")
            try:
                await publisher.track(event)
            except PublishUnconfirmedError:
                self._unconfirmed.add(guid)
            except NotAcceptedError:
                pass
            else:
                self._accepted.add(guid)
            await asyncio.sleep(_PUBLISHERS * _HANDLERS / self._rate)

    async def _kill_relays(self, count: int) -> None:
        for _ in range(count):
            await self._relay(lives=self._luck.uniform(0.1, self._longest))

    async def _relay(self, *, lives: float | None) -> None:
        """Runs a relay and kills it after so many seconds; `None` lets it run until it is told to stop."""
        self._names += 1
        name = f"r{self._names}"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.fleet_kills", "--relay", self._server.url, self._rokt.url, name),
            stdout=asyncio.subprocess.PIPE,
            limit=2**24,
        )
        assert process.stdout is not None
        await process.stdout.readline()  # It has started.
        if lives is None:
            self._stopping.add(process)
        else:
            asyncio.get_running_loop().call_later(lives, process.send_signal, signal.SIGKILL)
        async for line in process.stdout:
            what, who = line.decode().split()
            if what == "redelivered":
                self._predicted.add(who)
        code = await process.wait()
        assert code == (0 if lives is None else -signal.SIGKILL), f"a relay ended with {code}"

    async def _kill_servers(self) -> None:
        for _ in range(self._server_kills):
            await asyncio.sleep(self._luck.uniform(0.5, 2 * self._longest))
            self._server.kill()
            await asyncio.sleep(self._luck.choice([0.0, 0.3, 1.5]))
            await asyncio.to_thread(self._server.start)

    async def _finish(self) -> Result:
        """Lets a last relay deliver what is left, and judges."""
        last = asyncio.create_task(self._relay(lives=None))
        queue = RedisQueue(self._server.url)
        deadline = asyncio.get_running_loop().time() + 60
        while asyncio.get_running_loop().time() < deadline:
            backlog = await queue.backlog()
            if not (sum(backlog.waiting) + backlog.pending):
                break
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.2)
        for process in self._stopping:
            process.send_signal(signal.SIGTERM)
        await last
        letters: list[DeadLetter] = []
        while more := await queue.dead_letters(after=letters[-1].id if letters else "", count=1000):
            letters += more
        backlog = await queue.backlog()
        await queue.aclose()
        return self._judge(letters, left=sum(backlog.waiting) + backlog.pending)

    def _judge(self, letters: Sequence[DeadLetter], *, left: int) -> Result:
        seen = self._rokt.accepted
        buried = {_guid(Entry(one.partition, b"", one.fields)) for one in letters}
        twice = [who for who, count in seen.items() if count > 1]
        return Result(
            relays=self._kills,
            servers=self._server_kills,
            accepted=len(self._accepted),
            unconfirmed=len(self._unconfirmed),
            lost=[one for one in self._accepted if not seen[one] and one not in buried],
            duplicates=sum(seen[one] - 1 for one in twice),
            predicted=len(self._predicted | (self._repeated & set(twice))),
            unpredicted=[one for one in twice if one not in self._predicted | self._repeated],
            dead_letters=len(letters),
            left=left,
        )


def play(engine: str, directory: Path, **settings: Any) -> Result:
    """Plays a campaign against a server of that engine."""
    binary = find_binary(engine)
    assert binary is not None, f"{engine}-server is not installed"
    with QueueServer(binary, directory) as server:
        return asyncio.run(_play(server, settings))


async def _play(server: QueueServer, settings: dict[str, Any]) -> Result:
    return await Campaign(**settings).run(server)


@click.command()
@click.option("--relays", default=60, show_default=True, help="How many relays to kill.")
@click.option("--servers", default=4, show_default=True, help="How often to kill the queue's server.")
@click.option("--alive", default=3, show_default=True, help="How many relays live at a time.")
@click.option("--longest", default=2.5, show_default=True, help="Seconds that a relay lives at most.")
@click.option("--rate", default=1000.0, show_default=True, help="Events published per second.")
@click.option("--engine", type=click.Choice(["valkey", "redis"]), default="valkey", show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(engine: str, **settings: Any) -> None:
    """Kills relays and servers, and says what was lost; exits with 1 if anything was."""
    with tempfile.TemporaryDirectory() as directory:
        result = play(engine, Path(directory), **settings)
    print(f"{engine}: {result}")
    if result.lost or result.unpredicted:
        print(f"lost: {result.lost[:10]}, not predicted: {result.unpredicted[:10]}")
    sys.exit(0 if result.is_good else 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--relay"]:
        asyncio.run(relay(*sys.argv[2:5]))
    else:
        main()
