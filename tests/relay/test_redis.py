"""What only a real server can show: settings, memory, permissions, TLS, crashes, broken connections."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from rokt_events_async import (
    Emitter,
    InvalidSettingError,
    NotAcceptedError,
    PublishUnconfirmedError,
    QueueFullError,
    QueueRefusedError,
    QueueUnavailableError,
)
from rokt_events_async.relay import EventQueue, Publisher, RedisQueue, Relay
from rokt_events_async.relay.entries import read_entry
from rokt_events_async.sandbox import Sandbox
from tests.end_to_end.proxy import FaultyProxy, Temper
from tests.relay.test_queues import buried, new_entry, read
from tests.samples import event
from tests.servers import ENGINES, QueueServer, free_port
from tests.test_readme import block_with

pytestmark = pytest.mark.real_loop

StartServer = Callable[..., QueueServer]


@contextlib.asynccontextmanager
async def queue_to(url: str, **settings: Any) -> Any:
    queue = RedisQueue(url, **settings)
    try:
        yield queue
    finally:
        await queue.aclose()


# URLs.


@pytest.mark.parametrize(
    "url",
    [
        "redis://h:1",
        "rediss://u:hush@h:1/3",
        "valkey://h",
        "valkeys://h:1?ssl_cert_reqs=none",
        "unix:///run/valkey.sock",
        "unix://:hush@/run/valkey.sock?db=2",
        "redis://:hu%2Fsh@[::1]:1",
    ],
)
def test_urls(url: str) -> None:
    """The password is in no representation."""
    queue = RedisQueue(url)
    assert "hush" not in repr(queue) + repr(vars(queue)) + repr(queue._server._pool.connection_kwargs)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://u:hush@h", "must be redis://.* got 'http'"),
        ("hush@h", "got a text without one of these beginnings"),
        ("redis://:hush@", "with a host"),
        ("redis://:hush@h:port", "a port and a database that are numbers"),
        ("redis://:hush@h/x", "a port and a database that are numbers"),
        ("redis://:hush@h?ssl_check_hostname=perhaps&db=x", "that are numbers"),
        ("redis://:hush@h?max_connections=3", "no options but db, namespace, partitions and ssl_"),
        ("redis://:hush@h?partitions=many", "partitions must be 1..1024, got 'many'"),
        ("redis://:hush@h#x", "with a host"),
        (7, "got int"),
    ],
)
def test_urls_that_are_none(url: Any, message: str) -> None:
    """The error does not show them: they may have a password."""
    with pytest.raises(InvalidSettingError, match=message.replace("..", r"\.\.")) as caught:
        RedisQueue(url)
    assert "hush" not in repr(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"namespace": "{a}"}, "namespace must be a non-empty string without braces"),
        ({"namespace": ""}, "namespace must be"),
        ({"partitions": 0}, "partitions must be 1..1024, got 0"),
        ({"timeout": 0}, "timeout must be a finite number > 0"),
    ],
)
def test_settings_out_of_bounds(settings: dict[str, Any], message: str) -> None:
    """One clear error."""
    with pytest.raises(InvalidSettingError, match=message.replace("..", r"\.\.")):
        RedisQueue("redis://h", **settings)


# What a server is asked.


async def test_namespaces_are_apart(server: QueueServer) -> None:
    """Two queues on one server, with as many partitions as they like; the URL can say so."""
    other = f"{server.url}?namespace=other&partitions=3"
    async with queue_to(server.url) as first, queue_to(other) as second:
        await first.open_relay(heartbeat_timeout=1)
        await second.open_relay(heartbeat_timeout=1)
        await first.publish([new_entry()], timeout=5)

        assert sum((await first.backlog()).waiting) == 1
        assert (await second.backlog()).waiting == (0, 0, 0)


async def test_the_number_of_partitions_must_agree(server: QueueServer) -> None:
    """Otherwise events would never be read."""
    async with queue_to(server.url) as first, queue_to(server.url, partitions=4) as second:
        await first.open_publisher(require_durable=True)
        for call in (
            second.open_publisher(require_durable=False),
            second.open_relay(heartbeat_timeout=1),
        ):
            with pytest.raises(
                QueueRefusedError, match="was set up with partitions 16, and this is partitions 4"
            ):
                await call


async def test_a_key_that_is_something_else(server: QueueServer) -> None:
    """The server's words are told: it is no missing permission."""
    server.run("SET", "{rokt}:meta", "x")
    async with queue_to(server.url) as queue:
        with pytest.raises(QueueRefusedError, match="WRONGTYPE"):
            await queue.open_publisher(require_durable=False)
    server.run("FLUSHALL")


async def test_an_evicting_server_is_refused(own_server: StartServer) -> None:
    """It would drop events silently."""
    server = own_server(maxmemory="100mb", maxmemory_policy="allkeys-lru")
    with pytest.raises(QueueRefusedError, match="must be noeviction, got allkeys-lru"):
        await Publisher(RedisQueue(server.url)).start()
    async with Sandbox() as sandbox:
        relay = Relay(
            RedisQueue(server.url), lambda **s: Emitter(sandbox.credentials, endpoint=sandbox.url, **s)
        )
        with pytest.raises(QueueRefusedError, match="noeviction"):
            await relay.run()


async def test_a_server_without_a_file(own_server: StartServer, caplog: pytest.LogCaptureFixture) -> None:
    """A warning, or a refusal if durability is required."""
    server = own_server(appendonly="no")
    async with Publisher(RedisQueue(server.url)) as publisher:
        assert publisher.health.problems == ("queue_doubtful",)
        await publisher.track(event())
    assert "no append-only file" in caplog.text
    with pytest.raises(QueueRefusedError, match="no append-only file"):
        await Publisher(RedisQueue(server.url), require_durable=True).start()


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ("redis_version:6.2.1\r\n", "must be Redis 7.0 or later, or Valkey, got 6.2.1"),
        ("aof_enabled:1\r\n", "INFO does not tell maxmemory_policy"),
    ],
)
async def test_other_servers(
    server: QueueServer, monkeypatch: pytest.MonkeyPatch, info: str, message: str
) -> None:
    """One that is too old, and one that does not tell."""
    async with queue_to(server.url) as queue:
        exchange = queue._server.exchange

        async def told(commands: Any, **options: Any) -> list[Any]:
            return [info.encode()] if commands[0] == ("INFO",) else await exchange(commands, **options)

        monkeypatch.setattr(queue._server, "exchange", told)
        if message.startswith("must"):
            with pytest.raises(QueueRefusedError, match=message):
                await queue.open_publisher(require_durable=False)
        else:
            findings = await queue.open_publisher(require_durable=False)
            assert message in findings.warnings[0]


async def test_a_server_that_serves_later(server: QueueServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """LOADING and the like pass; they are no refusals."""
    async with queue_to(server.url) as queue:
        from redis.exceptions import ResponseError

        async def loading(commands: Any, **_: Any) -> list[Any]:
            return [ResponseError("LOADING the dataset")] * len(commands)

        monkeypatch.setattr(queue._server, "exchange", loading)
        with pytest.raises(QueueUnavailableError, match="does not serve now: LOADING"):
            await queue.open_publisher(require_durable=False)
        with pytest.raises(QueueUnavailableError):
            await queue.backlog()
        with pytest.raises(QueueUnavailableError):
            await queue.read("a", [0], count=1, wait=0)
        with pytest.raises(QueueUnavailableError):
            await queue._make_groups()


async def test_a_server_that_became_a_replica(own_server: StartServer) -> None:
    """It passes: the name will lead to the new primary, which is looked up again."""
    server = own_server()
    async with queue_to(server.url) as queue:
        await queue.open_relay(heartbeat_timeout=1)
        server.run("REPLICAOF", "127.0.0.1", "1")
        (refused,) = await queue.publish([new_entry()], timeout=5)
        assert isinstance(refused, QueueUnavailableError)
        with pytest.raises(QueueUnavailableError, match="read only replica"):
            await queue.beat("a", "n", {}, timeout=5)
        server.run("REPLICAOF", "NO", "ONE")
        assert isinstance((await queue.publish([new_entry()], timeout=5))[0], str)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("the handler is closed", QueueUnavailableError), ("something else", RuntimeError)],
)
async def test_what_uvloop_raises_for_a_broken_connection(
    server: QueueServer, monkeypatch: pytest.MonkeyPatch, text: str, expected: type[Exception]
) -> None:
    """It means what other loops say with an OSError; other faults are faults."""
    async with queue_to(server.url) as queue:

        async def broken() -> Any:
            raise RuntimeError(text)

        monkeypatch.setattr(queue._server._pool, "get_connection", broken)
        with pytest.raises(expected):
            await queue.backlog()


async def test_streams_that_are_flushed_away_between(server: QueueServer) -> None:
    """Also another call makes them again, and can be repeated."""
    async with queue_to(server.url) as queue:
        await queue.open_relay(heartbeat_timeout=1)
        await queue.publish([new_entry()], timeout=5)
        entries = await read(queue)
        server.run("FLUSHALL")
        with pytest.raises(QueueUnavailableError, match="NOGROUP"):
            await queue.mark("a", entries)
        assert await queue.mark("a", entries) == set()


async def test_streams_that_are_flushed_away(server: QueueServer) -> None:
    """A relay makes them again."""
    async with queue_to(server.url) as queue:
        await queue.open_relay(heartbeat_timeout=1)
        server.run("FLUSHALL")
        with pytest.raises(QueueUnavailableError, match=r"NOGROUP|UNBLOCKED"):
            await queue.read("a", [0], count=10, wait=0.01)
        await queue.publish([new_entry()], timeout=5)
        assert len(await read(queue)) == 1


async def test_an_error_within_a_script(server: QueueServer) -> None:
    """It is raised: nothing was acknowledged."""
    async with queue_to(server.url) as queue:
        await queue.open_relay(heartbeat_timeout=1)
        await queue.publish([new_entry()], timeout=5)
        entries = await read(queue)
        server.run("DEL", "{rokt}:events:0")
        server.run("SET", "{rokt}:events:0", "x")
        with pytest.raises(QueueRefusedError, match="WRONGTYPE"):
            await queue.acknowledge(entries)


async def test_a_letter_that_cannot_be_replayed(server: QueueServer) -> None:
    """It says so, and stays."""
    async with queue_to(server.url) as queue:
        await queue.open_relay(heartbeat_timeout=1)
        (letter,) = await buried(queue, 1, fields=())
        with pytest.raises(QueueRefusedError, match="cannot be replayed"):
            await queue.replay([letter])
        assert len(await queue.dead_letters()) == 1


async def test_many_entries_of_one_relay(server: QueueServer) -> None:
    """They are asked for page by page."""
    async with queue_to(server.url) as queue:
        await queue.open_relay(heartbeat_timeout=1)
        for _ in range(3):
            await queue.publish([new_entry() for _ in range(500)], timeout=5)
        entries = await queue.read("a", [0], count=2000, wait=0.5)
        assert await queue.mark("a", entries) == set(entries)
        assert len(entries) == 1500


# Memory.


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_server_whose_memory_is_full(own_server: StartServer, sandbox: Sandbox, engine: str) -> None:
    """Publishers are refused; relays go on, dead letters included, until there is room again."""
    server = own_server(engine, maxmemory="6mb")
    accepted = 0
    refused: Exception | None = None
    bad = event()
    async with Publisher(RedisQueue(server.url), observers=[]) as publisher:
        async with queue_to(server.url) as queue:
            await queue.open_relay(heartbeat_timeout=15)
            poison = new_entry()
            poison.wire = b"rubbish"
            await queue.publish([poison], timeout=5)
            while refused is None:
                outcomes = await asyncio.gather(
                    *(
                        publisher.track(event(f"s{number}", metadata={"a": "x" * 5000}))
                        for number in range(100)
                    ),
                    return_exceptions=True,
                )
                accepted += sum(not isinstance(one, Exception) for one in outcomes)
                refused = next((one for one in outcomes if isinstance(one, Exception)), None)
            assert isinstance(refused, QueueFullError)
            assert "the memory of the queue at" in str(refused)
            assert await queue.trim(at_most=1, oldest=_long_ago()) == 0
        async with Relay(
            RedisQueue(server.url),
            lambda **s: Emitter(sandbox.credentials, endpoint=sandbox.url, **s),
            flush_interval=0.1,
        ) as relay:
            async with asyncio.timeout(30):
                while relay.stats.acknowledged < accepted or not relay.stats.dead_letters:
                    await asyncio.sleep(0.05)
            await publisher.track(bad)
    assert len(sandbox.events) >= accepted


def _long_ago() -> Any:
    from datetime import UTC, datetime

    return datetime(2020, 1, 1, tzinfo=UTC)


async def test_a_server_that_has_lost_its_data_is_set_up_again(
    own_server: StartServer, sandbox: Sandbox
) -> None:
    """With the number of partitions too: a process with another is refused, and nothing waits unread."""
    server = own_server()
    async with Relay(
        RedisQueue(server.url),
        lambda **s: Emitter(sandbox.credentials, endpoint=sandbox.url, **s),
        flush_interval=0,
        heartbeat_timeout=1,
    ) as relay:
        server.run("FLUSHALL")
        async with asyncio.timeout(15):
            while b"partitions" not in server.run("HGETALL", "{rokt}:meta"):
                await asyncio.sleep(0.05)
        with pytest.raises(QueueRefusedError, match="set up with partitions 16, and this is partitions 32"):
            await Publisher(RedisQueue(f"{server.url}?partitions=32")).start()
        async with Publisher(RedisQueue(server.url)) as publisher:
            await publisher.track(event())
        async with asyncio.timeout(15):
            while not relay.stats.delivered:
                await asyncio.sleep(0.05)


async def test_a_relay_that_finds_another_number_of_partitions_stops(
    own_server: StartServer, sandbox: Sandbox
) -> None:
    """If another process was the first to set up a server that had lost its data."""
    server = own_server()
    relay = Relay(RedisQueue(server.url), lambda **s: Emitter(sandbox.credentials, endpoint=sandbox.url, **s))
    running = asyncio.create_task(relay.run())
    async with asyncio.timeout(15):
        while not relay.health.is_ready:
            await asyncio.sleep(0.05)
        server.run("HSET", "{rokt}:meta", "partitions", "32")
        with pytest.raises(QueueRefusedError, match="set up with partitions 32, and this is partitions 16"):
            await running


async def test_a_database_that_is_not_there(own_server: StartServer) -> None:
    """That is a wrong setting, and no outage."""
    with pytest.raises(QueueRefusedError, match="refuses: DB index is out of range"):
        await Publisher(RedisQueue(f"{own_server().url}/99")).start()


async def test_the_recipe(
    own_server: StartServer, rokt_sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    """A web process and a relay; without the queue the checkout goes on."""
    server = own_server()
    recipe: dict[str, Any] = {"__name__": "shop"}
    exec(block_with("async def sell(url: str)"), recipe)
    relaying = asyncio.create_task(recipe["relay"](server.url))
    await recipe["sell"](server.url)
    async with asyncio.timeout(15):
        while not rokt_sandbox.events:
            await asyncio.sleep(0.05)
    relaying.cancel()
    await asyncio.wait([relaying])
    server.kill()
    await recipe["sell"](server.url)
    assert "the checkout goes on without its event: the event is not in the queue" in capsys.readouterr().out


# Permissions and TLS.


def user(server: QueueServer, name: str, *rules: str) -> str:
    """Makes a user, and returns its URL."""
    reply = server.run("ACL", "SETUSER", name, "on", ">hush", *rules)
    assert reply.startswith(b"+OK"), reply
    return server.url.replace("redis://", f"redis://{name}:hush@")


PUBLISHER_RULES = (
    "resetkeys",
    "~{rokt}:events:*",
    "~{rokt}:meta",
    "-@all",
    "+xadd",
    "+info",
    "+hmget",
    "+hsetnx",
    "+select",
)
RELAY_COMMANDS = """
select xadd xreadgroup xclaim xpending xack xdel xlen xrange xtrim xinfo|groups xinfo|stream xgroup|create
xgroup|delconsumer eval info hmget hsetnx hget hincrby smembers sadd srem get set mget del exists
"""
RELAY_RULES = ("resetkeys", "~{rokt}:*", "-@all", *(f"+{one}" for one in RELAY_COMMANDS.split()))


@pytest.mark.parametrize("engine", ENGINES)
async def test_users_with_the_permissions_of_the_readme(
    own_server: StartServer, sandbox: Sandbox, engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A publisher that can only add, and a relay, do their work without a warning, dead letters included."""
    server = own_server(engine)
    publisher_url = user(server, "shop", *PUBLISHER_RULES) + "/1"
    relay_url = user(server, "relay", *RELAY_RULES) + "/1"
    async with Publisher(RedisQueue(publisher_url)) as publisher:
        assert publisher.health.problems == ()
        await publisher.track(event())
        poison = new_entry()
        poison.wire = b"rubbish"
        await publisher._queue.publish([poison], timeout=5)
        async with Relay(
            RedisQueue(relay_url),
            lambda **s: Emitter(sandbox.credentials, endpoint=sandbox.url, **s),
            flush_interval=0,
            heartbeat_timeout=1,
        ) as relay:
            async with asyncio.timeout(15):
                while not (relay.stats.delivered and relay.stats.dead_letters):
                    await asyncio.sleep(0.05)
                await asyncio.sleep(1.2)
            async with queue_to(relay_url) as queue:
                assert len(await queue.relays()) == 1
                assert await queue.replay(await queue.dead_letters()) == 1
        assert relay.health.last_error is None
    assert "backward compatibility" not in caplog.text, "the client warns of a provider of its own making"
    async with queue_to(publisher_url) as queue:
        with pytest.raises(QueueRefusedError, match="does not permit"):
            await queue.dead_letters()


async def test_a_publisher_that_may_only_add(
    own_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    """It warns that it cannot look, and publishes."""
    url = user(own_server(), "shop", "resetkeys", "~{rokt}:events:*", "-@all", "+xadd")
    async with Publisher(RedisQueue(url)) as publisher:
        await publisher.track(event())
    assert "whether it evicts and persists is not known" in caplog.text
    assert "whether all agree on the number of partitions is not known" in caplog.text
    assert "hush" not in caplog.text


async def test_a_user_who_may_not_add(own_server: StartServer) -> None:
    """Each event is refused, with the server's words."""
    url = user(own_server(), "shop", "resetkeys", "~{rokt}:*", "-@all", "+info", "+hmget", "+hsetnx")
    async with Publisher(RedisQueue(url)) as publisher:
        with pytest.raises(QueueRefusedError, match="does not permit it"):
            await publisher.track(event())


async def test_a_database_that_may_not_be_selected(own_server: StartServer) -> None:
    """That is no missing INFO: nothing would work."""
    url = user(own_server(), "shop", "resetkeys", "~{rokt}:*", "-@all", "+xadd", "+info", "+hmget")
    with pytest.raises(QueueRefusedError, match="refuses the connection"):
        await Publisher(RedisQueue(f"{url}/1")).start()


@pytest.mark.parametrize("credentials", ["default:wrong-hush", "guest:wrong-hush"])
async def test_a_wrong_password(
    own_server: StartServer, caplog: pytest.LogCaptureFixture, credentials: str
) -> None:
    """It is said at the start, and shown nowhere."""
    server = own_server(requirepass="hush-hush")
    url = server.url.replace("redis://", f"redis://{credentials}@")
    with pytest.raises(QueueRefusedError, match="refuses the connection") as caught:
        await Publisher(RedisQueue(url)).start()
    assert "hush" not in str(caught.value) + caplog.text
    with pytest.raises(QueueRefusedError):
        await Publisher(RedisQueue(server.url)).start()


async def test_tls(tmp_path: Path, own_server: StartServer) -> None:
    """With a certificate of a private authority; without it the server is refused."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    server = own_server()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    # Not every build of a server speaks TLS itself: a proxy speaks it for the server here.
    async with FaultyProxy(server.url.replace("redis:", "http:"), Temper(), context) as proxy:
        port = proxy.url.split(":")[2].split("/")[0]
        url = f"rediss://127.0.0.1:{port}"
        async with Publisher(RedisQueue(f"{url}?ssl_ca_certs={tmp_path / 'ca.pem'}")) as publisher:
            await publisher.track(event())
        async with Publisher(RedisQueue(url), publish_timeout=1) as publisher:
            with pytest.raises(QueueUnavailableError, match="certificate"):
                await publisher.track(event())


async def test_tls_of_the_server_itself(tmp_path: Path, own_server: StartServer, sandbox: Sandbox) -> None:
    """Redis speaks it: a publisher and a relay work over it, with users and passwords."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    port = free_port()
    server = own_server(
        "redis",
        tls_port=str(port),
        tls_cert_file=str(tmp_path / "cert.pem"),
        tls_key_file=str(tmp_path / "key.pem"),
        tls_ca_cert_file=str(tmp_path / "ca.pem"),
        tls_auth_clients="no",
    )
    user(server, "shop", *PUBLISHER_RULES)
    user(server, "relay", *RELAY_RULES)
    where = f"127.0.0.1:{port}?ssl_ca_certs={tmp_path / 'ca.pem'}"
    async with Publisher(RedisQueue(f"rediss://shop:hush@{where}")) as publisher:
        await publisher.track(event())
    async with Relay(
        RedisQueue(f"rediss://relay:hush@{where}"),
        lambda **s: Emitter(sandbox.credentials, endpoint=sandbox.url, **s),
        flush_interval=0,
    ) as relay:
        async with asyncio.timeout(15):
            while not relay.stats.acknowledged:
                await asyncio.sleep(0.05)
    assert len(sandbox.events) == 1


# Crashes and connections.


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_server_that_is_killed_and_comes_back(
    own_server: StartServer, sandbox: Sandbox, engine: str
) -> None:
    """Nothing is lost, nothing is sent twice, and the publisher's callers hear of it in time."""
    server = own_server(engine)
    accepted: list[str] = []
    is_over = False
    async with (
        Publisher(RedisQueue(server.url, timeout=2), publish_timeout=10) as publisher,
        Relay(
            RedisQueue(server.url, timeout=2),
            lambda **s: Emitter(sandbox.credentials, endpoint=sandbox.url, **s),
            flush_interval=0.1,
            heartbeat_timeout=2,
        ) as relay,
    ):

        async def handle(name: str) -> None:
            number = 0
            while not is_over:
                number += 1
                one = event(f"{name}-{number % 3}")
                with contextlib.suppress(PublishUnconfirmedError):
                    await publisher.track(one)
                    accepted.append(one.parent_guid)
                await asyncio.sleep(0.005)

        handlers = [asyncio.create_task(handle(f"h{number}")) for number in range(10)]
        await asyncio.sleep(0.7)
        server.kill()
        await asyncio.sleep(1)
        await asyncio.to_thread(server.start)
        await asyncio.sleep(1)
        is_over = True
        await asyncio.gather(*handlers)
        async with asyncio.timeout(20):
            while {one["parentGuid"] for one in sandbox.events} < set(accepted):
                await asyncio.sleep(0.05)
    delivered = [one["parentGuid"] for one in sandbox.events]
    twice = len(delivered) - len(set(delivered))
    assert twice <= publisher.stats.repeats - relay.stats.repeats_dropped
    assert relay.stats.taken_over == 0
    assert relay.stats.queue_failures > 0


async def test_a_server_that_hangs(own_server: StartServer) -> None:
    """A publisher raises within its time-out, and goes on when it answers again."""
    server = own_server()
    async with Publisher(RedisQueue(server.url, timeout=1), publish_timeout=0.5) as publisher:
        await publisher.track(event())
        server.freeze()
        try:
            loop = asyncio.get_running_loop()
            began = loop.time()
            with pytest.raises(NotAcceptedError):
                await publisher.track(event())
            assert loop.time() - began < 5
        finally:
            server.thaw()
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(NotAcceptedError):
                    await publisher.track(event())
                    break


@pytest.mark.parametrize(
    "temper", [Temper(piece=5, reset_after=8_000), Temper(piece=5, cut_after=8_000), Temper(piece=700)]
)
async def test_connections_that_break(server: QueueServer, sandbox: Sandbox, temper: Temper) -> None:
    """Between publisher, queue and relay, in the middle of replies: nothing is lost."""
    direct = server.url
    async with FaultyProxy(direct.replace("redis:", "http:"), temper) as proxy:
        url = proxy.url.replace("http:", "redis:")
        accepted = []
        async with Publisher(RedisQueue(url), publish_timeout=20, observers=[]) as publisher:
            for number in range(300):
                one = event(f"s{number % 5}")
                with contextlib.suppress(PublishUnconfirmedError):
                    await publisher.track(one)
                    accepted.append(one.parent_guid)
        assert publisher.stats.accepted == len(accepted)
    rougher = Temper(
        piece=1400, reset_after=temper.reset_after and 100_000, cut_after=temper.cut_after and 100_000
    )
    async with FaultyProxy(direct.replace("redis:", "http:"), rougher) as proxy:
        url = proxy.url.replace("http:", "redis:")
        async with Relay(
            RedisQueue(url),
            lambda **s: Emitter(sandbox.credentials, endpoint=sandbox.url, **s),
            flush_interval=0,
            heartbeat_timeout=2,
        ) as relay:
            async with queue_to(direct) as queue, asyncio.timeout(30):
                while await _left(queue):
                    await asyncio.sleep(0.05)
    delivered = [one["parentGuid"] for one in sandbox.events]
    assert set(delivered) == set(accepted)
    assert len(delivered) - 300 <= publisher.stats.repeats - relay.stats.repeats_dropped


async def _left(queue: EventQueue) -> int:
    backlog = await queue.backlog()
    return sum(backlog.waiting) + backlog.pending


async def test_a_server_that_is_not_there() -> None:
    """The error says where."""
    async with queue_to("redis://127.0.0.1:9") as queue:
        with pytest.raises(QueueUnavailableError, match=r"the queue at 127\.0\.0\.1:9 cannot be reached"):
            await queue.open_publisher(require_durable=False)
    async with queue_to("unix:///nowhere.sock") as queue:
        with pytest.raises(QueueUnavailableError, match=r"the queue at /nowhere\.sock cannot be reached"):
            await queue.backlog()


async def test_what_a_publisher_writes_is_readable_by_others(server: QueueServer) -> None:
    """The fields stand in the stream as the format says."""
    one = event()
    async with Publisher(RedisQueue(server.url)) as publisher:
        await publisher.track(one)
    async with queue_to(server.url) as queue:
        await queue.open_relay(heartbeat_timeout=1)
        (entry,) = await queue.read("a", range(16), count=1, wait=0.5)
    assert entry.fields[::2] == (b"v", b"i", b"e")
    assert read_entry(entry).event.parent_guid == one.parent_guid
