"""A queue on Valkey (7.2 or later) or Redis (7.0 or later): streams, with one consumer group.

Keys, all in one hash slot:

| key | what it holds |
|---|---|
| `{rokt}:events:0` to `…:15` | the partitions, streams with the group `relays` |
| `{rokt}:dead` | the dead letters, a stream |
| `{rokt}:relay:<relay_id>` | a heartbeat, which expires |
| `{rokt}:relays` | the ids of all relays, a set |
| `{rokt}:meta` | the format, the number of partitions, dead letters dropped; a hash |

A mark is the delivery counter of a pending entry: 1 after the read, 2 once its event may be sent.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from rokt_events_async.errors import (
    ApiError,
    InvalidSettingError,
    QueueFullError,
    QueueRefusedError,
)
from rokt_events_async.outcomes import DeadLetter
from rokt_events_async.relay._scripts import (
    ACKNOWLEDGE,
    BEAT,
    BURY,
    CREATE,
    FORGET,
    LEAVE,
    MARK,
    REPLAY,
    TAKE,
)
from rokt_events_async.relay._server import NOT_PERMITTED, Server, parse_url, text_of
from rokt_events_async.relay.entries import FORMAT, Entry, NewEntry
from rokt_events_async.relay.letters import fields_to_replay
from rokt_events_async.relay.queue import Backlog, Findings, RelayPresence, Roster, Taken
from rokt_events_async.settings import check_count, check_number

_GROUP: Final = "relays"
_READ, _MARKED = 1, 2
"""The delivery counters of a pending entry: only read, and marked."""

_PAGE: Final = 1000
"""How many pending entries are listed at once."""

_MIN_IDLE: Final = 1000
"""Milliseconds that an entry must have been idle to be taken: of two relays that take it, one gets it."""

_FLOOR: Final = (7, 0)
_MAX_REPLAYED_FIELDS: Final = 1000


class RedisQueue:
    """A queue on a Valkey or Redis server, for a `Publisher` or a `Relay`; one object for each.

    Constructing it does no I/O. The password is in no `repr`, log or error.

    Args:
        url: `redis://`, `rediss://` (TLS) or `unix://`; `valkey://` and `valkeys://` mean the same. User,
            password and database are in it; `?ssl_ca_certs=…` and the other `ssl_…` options too, and
            `?namespace=…&partitions=…`, which then count.
        namespace: The beginning of all keys, in braces.
        partitions: How many streams the events are spread over by their session. It must be the same for
            all publishers and relays of a queue.
        timeout: Seconds for one exchange with the server.

    Raises:
        InvalidSettingError: A value is out of bounds.
    """

    def __init__(
        self, url: str, *, namespace: str = "rokt", partitions: int = 16, timeout: float = 5.0
    ) -> None:
        options = parse_url(url)
        namespace = options.pop("namespace", namespace)
        if (in_url := options.pop("partitions", None)) is not None:
            partitions = int(in_url) if in_url.isdecimal() else in_url
        if not isinstance(namespace, str) or not namespace or set(namespace) & set("{} \r\n"):
            raise InvalidSettingError(
                f"namespace must be a non-empty string without braces and spaces, got {namespace!r}"
            )
        self.partitions: int = check_count("partitions", partitions, at_most=1024)
        self._timeout = check_number("timeout", timeout, at_least=0, above=True)
        self._server = Server(options)
        root = f"{{{namespace}}}"
        self._root = root
        self._streams = [f"{root}:events:{number}" for number in range(self.partitions)]
        self._numbers = {name.encode(): number for number, name in enumerate(self._streams)}
        self._dead, self._relays, self._meta = f"{root}:dead", f"{root}:relays", f"{root}:meta"
        self._heartbeat = f"{root}:relay:"

    def __repr__(self) -> str:
        return f"<RedisQueue {self._server.where}, {self._root}, {self.partitions} partitions>"

    # Exchanges.

    async def _run(self, *commands: tuple[Any, ...], timeout: float | None = None) -> list[Any]:
        """Sends commands, and returns the reply of each; raises the first error reply.

        Raises:
            QueueFullError: The server's memory is full.
            QueueRefusedError: A command is not permitted, or wrong.
        """
        replies = await self._server.exchange(commands, timeout=timeout or self._timeout)
        for reply in replies:
            if isinstance(reply, Exception):
                if text_of(reply).startswith("NOGROUP"):
                    await self._make_groups()
                raise self._server.translate(reply) from None
        return replies

    async def aclose(self) -> None:
        await self._server.aclose()

    # Opening.

    async def open_publisher(self, *, require_durable: bool) -> Findings:
        warnings, _ = await self._look_at_server(require_durable=require_durable)
        warnings += await self._agree()
        return Findings(warnings=tuple(warnings))

    async def open_relay(self, *, heartbeat_timeout: float) -> Findings:
        warnings, uptime = await self._look_at_server(require_durable=False)
        warnings += await self._agree()
        await self._make_groups()
        return Findings(warnings=tuple(warnings), is_server_old=uptime > heartbeat_timeout + 1)

    async def _look_at_server(self, *, require_durable: bool) -> tuple[list[str], float]:
        """Returns what is doubtful, and for how many seconds the server has been running.

        INFO tells. Managed services block CONFIG.
        """
        try:
            (text,) = await self._run(("INFO",))
        except QueueRefusedError as error:
            if NOT_PERMITTED not in str(error):
                raise
            return [
                f"whether it evicts and persists is not known, because INFO is not permitted: {error}"
            ], 0.0
        info = dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)
        warnings = []
        version = info.get("redis_version", "")
        if version and tuple(map(int, version.split(".")[:2])) < _FLOOR:
            raise QueueRefusedError(
                f"{self._server.where} must be Redis 7.0 or later, or Valkey, got {version}"
            )
        policy = info.get("maxmemory_policy")
        if policy is None:
            warnings.append("whether it evicts is not known: INFO does not tell maxmemory_policy")
        elif policy != "noeviction":
            raise QueueRefusedError(
                f"{self._server.where} may drop events silently: its maxmemory-policy must be noeviction, "
                f"got {policy}"
            )
        if info.get("aof_enabled") != "1":
            problem = "events may be lost when the server ends: it has no append-only file (appendonly yes)"
            if require_durable:
                raise QueueRefusedError(f"{self._server.where}: {problem}")
            warnings.append(problem)
        return warnings, float(info.get("uptime_in_seconds", 0))

    async def _agree(self) -> list[str]:
        """Compares the format and the number of partitions with what the queue was made with."""
        ours = {"format": FORMAT.decode(), "partitions": str(self.partitions)}
        try:
            (found,) = await self._run(("HMGET", self._meta, *ours))
            if None in found:
                await self._run(*[("HSETNX", self._meta, name, value) for name, value in ours.items()])
                (found,) = await self._run(("HMGET", self._meta, *ours))
        except (QueueRefusedError, QueueFullError) as error:
            if isinstance(error, QueueRefusedError) and NOT_PERMITTED not in str(error):
                raise
            return [f"whether all agree on the number of partitions is not known: {error}"]
        for (name, value), theirs in zip(ours.items(), found, strict=True):
            self._compare(name, theirs, value)
        return []

    def _compare(self, name: str, theirs: bytes | None, ours: str) -> None:
        if theirs is not None and theirs.decode() != ours:
            raise QueueRefusedError(
                f"{self._server.where} was set up with {name} {theirs.decode()}, and this is {name} {ours}: "
                "events would wait where no relay reads. All publishers and relays need the same"
            )

    async def _make_groups(self) -> None:
        """Makes the groups that are missing; making one that is there fails while memory is full.

        A group that is missing may mean that the server has lost its data, and with it what all agreed on.

        Raises:
            QueueRefusedError: Others have set the queue up otherwise meanwhile.
        """
        replies = await self._server.exchange(
            [("XINFO", "GROUPS", name) for name in self._streams], timeout=self._timeout
        )
        missing = [
            name
            for name, groups in zip(self._streams, replies, strict=True)
            if isinstance(groups, Exception) or not any(_GROUP.encode() in group for group in groups)
        ]
        commands = [("EVAL", CREATE, 1, name, _GROUP) for name in missing]
        for reply in await self._server.exchange(commands, timeout=self._timeout) if commands else ():
            if isinstance(reply, Exception) and not text_of(reply).startswith("BUSYGROUP"):
                raise self._server.translate(reply) from None
        if missing:
            await self._agree()

    # Publishing.

    async def publish(self, entries: Sequence[NewEntry], *, timeout: float) -> list[str | Exception]:
        commands = [("XADD", self._streams[entry.partition], "*", *entry.fields()) for entry in entries]
        replies = await self._server.exchange(commands, timeout=timeout, sent=entries)
        return [
            self._server.translate(reply) if isinstance(reply, Exception) else reply.decode()
            for reply in replies
        ]

    # Reading.

    async def read(self, relay_id: str, partitions: Sequence[int], *, count: int, wait: float) -> list[Entry]:
        names = [self._streams[number] for number in partitions]
        block = ("BLOCK", max(1, int(wait * 1000))) if wait else ()
        command = ("XREADGROUP", "GROUP", _GROUP, relay_id, "COUNT", count, *block, "STREAMS", *names)
        (reply,) = await self._server.exchange(
            [(*command, *[">"] * len(names))], timeout=self._timeout + wait
        )
        if isinstance(reply, Exception):
            if text_of(reply).startswith("NOGROUP"):
                await self._make_groups()  # The streams are gone, with all that was in them.
            raise self._server.translate(reply) from None
        return [
            Entry(self._numbers[name], id_, tuple(fields))
            for name, found in reply or ()
            for id_, fields in found
        ]

    async def take(
        self,
        relay_id: str,
        owner: str,
        partition: int,
        *,
        after: bytes,
        count: int,
        skip: Callable[[int, bytes], bool],
    ) -> Taken:
        name = self._streams[partition]
        start = b"(%b" % after if after else b"-"
        (listed,) = await self._run(("XPENDING", name, _GROUP, start, "+", _PAGE, owner))
        min_idle = 0 if owner == relay_id else _MIN_IDLE
        wanted = [item[0] for item in listed if item[2] >= min_idle and not skip(partition, item[0])]
        last = listed[-1][0] if len(listed) == _PAGE else b""
        if len(wanted) > count:
            del wanted[count:]
            last = wanted[-1]
        if not wanted:
            return Taken([], last)
        heartbeat = f"{self._heartbeat}{owner}"
        (taken,) = await self._run(
            ("EVAL", TAKE, 2, name, heartbeat, _GROUP, relay_id, owner, min_idle, *wanted)
        )
        return Taken(
            [Entry(partition, id_, tuple(fields), state == _MARKED) for state, id_, fields in taken], last
        )

    async def mark(self, relay_id: str, entries: Sequence[Entry]) -> set[Entry]:
        return await self._count(relay_id, entries, _MARKED)

    async def unmark(self, relay_id: str, entries: Sequence[Entry]) -> None:
        await self._count(relay_id, entries, _READ)

    async def _count(self, relay_id: str, entries: Sequence[Entry], counter: int) -> set[Entry]:
        """Sets the delivery counter of the entries that are pending for this relay, and returns these."""
        groups = _by_partition(entries)
        commands = [
            (
                *("EVAL", MARK, 1, self._streams[number], _GROUP, relay_id, counter),
                *[entry.id for entry in group],
            )
            for number, group in groups.items()
        ]
        replies = await self._run(*commands)
        pending: set[Entry] = set()
        for group, reply in zip(groups.values(), replies, strict=True):
            if len(reply) == len(group):
                pending.update(group)
            else:
                left = set(reply)
                pending.update([entry for entry in group if entry.id in left])
        return pending

    async def acknowledge(self, entries: Sequence[Entry]) -> int:
        # Not in a MULTI: Redis 7.0 refuses it while memory is full, and this is what frees it.
        commands = [
            ("EVAL", ACKNOWLEDGE, 1, self._streams[number], _GROUP, *[entry.id for entry in group])
            for number, group in _by_partition(entries).items()
        ]
        return sum(await self._run(*commands))

    async def bury(self, letters: Sequence[tuple[Entry, DeadLetter]]) -> int:
        commands = [
            (
                *("EVAL", BURY, 2, self._streams[entry.partition], self._dead, _GROUP, entry.id),
                *_write_letter(letter),
            )
            for entry, letter in letters
        ]
        return sum(await self._run(*commands))

    # Relays.

    async def beat(
        self, relay_id: str, nonce: str, status: Mapping[str, Any], *, timeout: float
    ) -> Roster | None:
        told = json.dumps(status)
        milliseconds = max(1, int(timeout * 1000))
        arguments = (self._heartbeat, relay_id, f"{nonce} ", told, milliseconds)
        (reply,) = await self._run(("EVAL", BEAT, 1, self._relays, *arguments))
        if reply is None:
            return None
        alive, gone = [tuple(sorted(one.decode() for one in ids)) for ids in reply]
        return Roster(alive, gone)

    async def leave(self, relay_id: str, nonce: str) -> None:
        await self._run(("EVAL", LEAVE, 1, f"{self._heartbeat}{relay_id}", f"{nonce} "))

    async def forget(self, relay_id: str) -> bool:
        keys = (self._relays, *self._streams)
        (reply,) = await self._run(("EVAL", FORGET, len(keys), *keys, self._heartbeat, relay_id, _GROUP))
        return bool(reply)

    async def relays(self) -> list[RelayPresence]:
        (members,) = await self._run(("SMEMBERS", self._relays))
        if not members:
            return []
        ids = sorted(one.decode() for one in members)
        found = await self._run(("MGET", *[f"{self._heartbeat}{one}" for one in ids]))
        summaries = await self._server.exchange(self._pending_commands(), timeout=self._timeout)
        pending = _pending_of(summaries)
        return [
            RelayPresence(
                relay_id=one,
                is_alive=value is not None,
                status={} if value is None else json.loads(value.split(b" ", 1)[1]),
                pending=pending.get(one, 0),
            )
            for one, value in zip(ids, found[0], strict=True)
        ]

    # Looking.

    def _pending_commands(self) -> list[tuple[Any, ...]]:
        return [("XPENDING", name, _GROUP) for name in self._streams]

    async def backlog(self) -> Backlog:
        commands: list[tuple[Any, ...]] = [("XLEN", name) for name in self._streams]
        commands += self._pending_commands()
        commands += [("XRANGE", name, "-", "+", "COUNT", 1) for name in self._streams]
        commands += [("XINFO", "STREAM", name) for name in self._streams]
        commands += [("XLEN", self._dead), ("HMGET", self._meta, "dead_dropped", "partitions")]
        commands += [("INFO", "memory")]
        *replies, memory = await self._server.exchange(commands, timeout=self._timeout)
        used, limit = _read_memory(memory)
        for reply in replies:
            # A stream that no relay has set up yet is missing, or has no group.
            if isinstance(reply, Exception) and not text_of(reply).startswith(("NOGROUP", "no such key")):
                raise self._server.translate(reply) from None
        dropped, partitions = replies[-1]
        self._compare("partitions", partitions, str(self.partitions))
        size = self.partitions
        lengths, summaries, firsts, infos = [replies[at * size : (at + 1) * size] for at in range(4)]
        pending = [0 if isinstance(summary, Exception) else summary[0] for summary in summaries]
        oldest = [
            int(first[0][0].partition(b"-")[0]) for first in firsts if first
        ]  # An id begins with its time.
        return Backlog(
            waiting=tuple(max(0, length - held) for length, held in zip(lengths, pending, strict=True)),
            pending=sum(pending),
            pending_of=_pending_of(summaries),
            oldest=datetime.fromtimestamp(min(oldest) / 1000, UTC) if oldest else None,
            published=sum(_entries_added(info) for info in infos if not isinstance(info, Exception)),
            dead_letters=replies[-2],
            dead_letters_dropped=int(dropped or 0),
            used_bytes=used,
            max_bytes=limit,
        )

    # Dead letters.

    async def dead_letters(self, *, after: str = "", count: int = 100) -> list[DeadLetter]:
        start = f"({after}" if after else "-"
        (found,) = await self._run(("XRANGE", self._dead, start, "+", "COUNT", count))
        return [_read_letter(id_.decode(), fields) for id_, fields in found]

    async def replay(self, letters: Sequence[DeadLetter]) -> int:
        for letter in letters:
            if not 0 < len(letter.fields) <= _MAX_REPLAYED_FIELDS or letter.partition >= self.partitions:
                raise QueueRefusedError(
                    f"the dead letter {letter.id} cannot be replayed: it is no event's entry"
                )
        commands = [
            (
                *("EVAL", REPLAY, 2, self._dead, self._streams[letter.partition], letter.id),
                *fields_to_replay(letter),
            )
            for letter in letters
        ]
        return sum(await self._run(*commands))

    async def delete(self, letters: Sequence[DeadLetter]) -> int:
        (count,) = await self._run(("XDEL", self._dead, *[letter.id for letter in letters]))
        deleted: int = count
        return deleted

    async def trim(self, *, at_most: int, oldest: datetime) -> int:
        replies = await self._run(
            ("XTRIM", self._dead, "MINID", f"{max(0, int(oldest.timestamp() * 1000))}-0"),
            ("XTRIM", self._dead, "MAXLEN", at_most),
        )
        dropped: int = sum(replies)
        if dropped:
            # While memory is full it is not counted.
            await self._server.exchange(
                [("HINCRBY", self._meta, "dead_dropped", dropped)], timeout=self._timeout
            )
        return dropped


def _by_partition(entries: Sequence[Entry]) -> dict[int, list[Entry]]:
    groups: dict[int, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry.partition].append(entry)
    return groups


def _pending_of(summaries: Iterable[Any]) -> dict[str, int]:
    """Returns how many entries each relay holds, from the replies of XPENDING."""
    found: dict[str, int] = defaultdict(int)
    for summary in summaries:
        for name, count in [] if isinstance(summary, Exception) else summary[3] or ():
            found[name.decode()] += int(count)
    return found


def _entries_added(info: Sequence[Any]) -> int:
    return int(dict(zip(info[::2], info[1::2], strict=True)).get(b"entries-added", 0))


def _write_letter(letter: DeadLetter) -> tuple[str, str]:
    """Returns a dead letter's details and the entry's fields, each as JSON; bytes as Latin-1."""
    details = {
        "partition": letter.partition,
        "outcome": letter.outcome,
        "cause": letter.cause,
        "reason": letter.reason,
        "status": letter.status,
        "errors": [(error.code, error.message) for error in letter.errors],
        "attempts": letter.attempts,
        "relay_id": letter.relay_id,
        "at": letter.at.isoformat(),
    }
    return json.dumps(details), json.dumps([field.decode("latin-1") for field in letter.fields])


def _read_letter(id_: str, flat: Sequence[bytes]) -> DeadLetter:
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    details = json.loads(fields[b"d"])
    return DeadLetter(
        id=id_,
        fields=tuple([field.encode("latin-1") for field in json.loads(fields[b"f"])]),
        partition=details["partition"],
        outcome=details["outcome"],
        cause=details["cause"],
        reason=details["reason"],
        status=details["status"],
        errors=tuple([ApiError(code, message) for code, message in details["errors"]]),
        attempts=details["attempts"],
        relay_id=details["relay_id"],
        at=datetime.fromisoformat(details["at"]),
    )


def _read_memory(reply: Any) -> tuple[int | None, int | None]:
    """Returns the bytes in use and the bound on them; `None` where the server does not tell, or has none."""
    if isinstance(reply, Exception):  # Managed services may not permit it.
        return None, None
    info = dict(line.split(":", 1) for line in reply.decode().splitlines() if ":" in line)
    used, limit = (int(info.get(name, 0)) for name in ("used_memory", "maxmemory"))
    return used or None, limit or None
