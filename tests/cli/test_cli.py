"""The command line, as its user meets it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import aiohttp
import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from rokt_events_async import DeliveryUnconfirmedError, Emitter, Receipt, cli
from rokt_events_async.cli import demo
from rokt_events_async.sandbox import Sandbox
from rokt_events_async.testing import claim_of, disagreements
from tests.samples import event


def run(*arguments: str) -> tuple[int, str]:
    """Exit status and standard error of a call that ends by itself."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    return int(caught.value.code or 0), ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--sessions", "0"], "Invalid value for '--sessions': 0 is not in the range 1<=x<=100000."),
        (["demo", "--sessions", "many"], "'many' is not a valid integer range."),
        (["sandbox", "--port", "70000"], "70000 is not in the range 0<=x<=65535."),
        (["sandbox", "--echo", "loud"], "'loud' is not one of 'default', 'lenient-times'"),
        (["sandbox", "--fault", "503"], "must be FAULT=RATE, as in 503=0.05, got '503'"),
        (["sandbox", "--fault", "503=often"], "got '503=often'"),
        (["sandbox", "--fault", "explode=0.1"], "a fault must be a status 300..599 or one of 503-html"),
        (["sandbox", "--fault", "503=2"], "the rate of fault 503 must be 0..1, got 2.0"),
        (["sandbox", "--latency", "slow"], "must be SECONDS or SHORTEST-LONGEST, as in 0.01-0.2, got 'slow'"),
        (["sandbox", "--latency", "2-1"], "latency must be 0 <= shortest <= longest seconds"),
        (["sandbox", "--host", "0.0.0.0"], "host must be a loopback address, got '0.0.0.0'"),
        (["sandbox", "--hots", "x"], "No such option"),
        (["demo", "--fleet", "--watch"], "--fleet and --watch cannot be used together: a fleet has no page"),
        (["dance"], "No such command 'dance'."),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One clear line, and exit status 2."""
    status, _ = run(*arguments)
    printed = capsys.readouterr().err

    assert status == 2
    assert message in printed
    assert printed.startswith("rokt-events: ")
    assert printed.count("\n") == 1


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    """It says which, and what the system says."""

    async def try_it() -> None:
        async with Sandbox() as taken:
            port = taken.url.split(":")[2].split("/")[0]
            status, _ = await asyncio.to_thread(run, "sandbox", "--port", port)
            assert status == 2
            assert f"cannot listen on 127.0.0.1 port {port}" in capsys.readouterr().err

    asyncio.run(try_it())


@pytest.mark.parametrize("arguments", [[], ["--help"], ["demo", "-h"], ["sandbox", "--help"], ["--version"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 0, and what one wanted to know."""
    status, _ = run(*arguments)

    assert status == 0
    assert re.search("Usage: rokt-events|rokt-events, version", capsys.readouterr().out)


def commands(command: click.Command, *names: str) -> Iterator[tuple[str, ...]]:
    """All commands, down to the last."""
    yield names
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from commands(below, *names, name)


@pytest.mark.parametrize("names", list(commands(cli.cli)), ids=" ".join)
def test_every_help_fits_and_has_an_example(
    names: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """80 columns, whatever the terminal; the example begins as it is typed, and names options that exist."""
    monkeypatch.setenv("COLUMNS", "200")
    run(*names, "--help")
    printed = capsys.readouterr().out

    assert max(map(len, printed.splitlines())) <= 80
    assert "\\b" not in printed
    shown = re.split(r"\nExamples?:\n", printed)[1]
    assert all(re.match(r"  (ROKT_\w+=\S+ |eval \S+)?.*rokt-events ?", line) for line in shown.splitlines())
    for option in re.findall(r" (--[a-z-]+)", shown) if names else ():
        assert option in printed.split("Options:")[1]
    _, _, summaries = printed.split("Example")[0].partition("Commands:")
    assert "..." not in summaries, "none is cut"


def test_the_shell_completes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands that begin so."""
    for name, value in {"COMP_WORDS": "rokt-events se", "COMP_CWORD": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("_ROKT_EVENTS_COMPLETE", "bash_complete")
    assert run() == (0, "")
    assert capsys.readouterr().out.split() == ["plain,send"]


def test_the_demo_agrees(capsys: pytest.CaptureFixture[str]) -> None:
    """A small one: what was accepted and what became of it, some rejections, and both accounts."""
    status, _ = run("demo", "--sessions", "12", "--seed", "5")
    printed = capsys.readouterr().out

    assert status == 0
    assert re.search(r"accepted +│ +\d+", printed)
    assert re.search(r"rejected +│ +5 ", printed)
    assert "events per request" in printed
    assert "InvalidEventType: Event type is invalid" in printed
    assert "Both accounts agree" in printed
    assert re.search(r"\d+ of \d+ events settled", printed)


def test_the_demo_is_not_run_with_the_kill_switch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would drop what it is there to show."""
    monkeypatch.setenv("ROKT_DISABLED", "1")
    assert run("demo") == (2, "")
    assert "ROKT_DISABLED=1 is set: nothing would be sent" in capsys.readouterr().err


def test_the_demo_can_be_watched() -> None:
    """It says where, plays, and its page stays until Ctrl-C; the exit status is that of the accounts."""
    options = ["--watch", "--sessions", "1", "--seed", "39"]
    command = [sys.executable, "-m", "rokt_events_async.cli", "demo", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if "The page stays" in line:
                break
        address = re.search(r"http://127.0.0.1:\d+/", line)
        assert address is not None, "".join(seen)
        with urllib.request.urlopen(address[0], timeout=5) as page:
            assert b"Server Events" in page.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0, process.stderr.read()
    printed = "".join(seen)
    assert f"Watch it at {address[0]}" in printed
    assert "Both accounts agree" in printed


def test_the_demo_shows_a_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And lines elsewhere."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")

    assert run("demo", "--sessions", "2") == (0, "")
    assert "pending" in capsys.readouterr().out


def test_the_demo_tells_when_the_accounts_differ(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 1, and where."""
    monkeypatch.setattr(demo, "disagreements", lambda seen, claims: disagreements([], claims))

    assert run("demo", "--sessions", "2") == (1, "")
    printed = capsys.readouterr().out
    assert re.search(r"The accounts differ in \d+ places", printed)
    assert "1 called delivered, 0 accepted" in printed


async def test_claims_of_all_kinds(sandbox: Sandbox) -> None:
    """What an outcome says, in the terms of the audit."""
    sent = event()
    error = DeliveryUnconfirmedError("lost", event=sent)

    assert claim_of(sent, Receipt(sent, 2, True)).maybe_duplicate
    assert claim_of(sent, error).outcome == "unconfirmed"


async def test_a_demo_hears_of_every_end(capsys: pytest.CaptureFixture[str]) -> None:
    """Events that are not delivered are tallied too, and no rejections are shown where there are none."""
    tally = demo._Tally()
    async with Sandbox(faults={404: 1.0}) as down:
        async with Emitter(down.credentials, endpoint=down.url) as emitter:
            await demo._play(emitter, [event()], [0], tally)

    assert [claim.outcome for claim in tally.claims] == ["failed"]
    demo._print_rejections(Console(), tally)
    assert capsys.readouterr().out == ""


def start(*arguments: str) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", "from rokt_events_async.cli import main; main()", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def read_until(process: subprocess.Popen[str], text: str) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if text in line:
            return lines
    raise AssertionError(f"never printed {text!r}: {lines}")


def test_the_sandbox_serves_until_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it prints makes an application talk to it; it logs a line a request."""
    with start(
        "sandbox", "--port", "0", "--echo", "shuffled", "--latency", "0.001-0.002", "--fault", "503=0"
    ) as process:
        lines = read_until(process, "Ctrl-C stops it.")
        exported = dict(line.split("export ")[1].split("=") for line in lines if "export" in line)
        url = next(re.search('endpoint="(.*)"', line) for line in lines if "endpoint" in line)
        assert url is not None
        for name, value in exported.items():
            monkeypatch.setenv(name, value)

        async def talk() -> Receipt:
            async with Emitter(endpoint=url[1]) as emitter:
                return await emitter.deliver(event())

        assert asyncio.run(talk()).attempts == 1
        assert "#1  200  1/1 accepted" in read_until(process, "#1")[-1]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)

    assert (process.returncode, err) == (0, "")
    assert "stopped after 1 requests" in out


def test_ctrl_c_in_the_demo() -> None:
    """One line, and no traceback."""
    with start("demo", "--sessions", "2000") as process:
        read_until(process, "checkout sessions")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)

    assert process.returncode == 130
    assert err == "rokt-events: interrupted\n"


@pytest.mark.parametrize("exposed", [(), ("--host", "0.0.0.0", "--expose")], ids=["loopback", "exposed"])
def test_the_sandbox_command_in_this_process(
    exposed: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same, where its lines can be followed; exposed, it warns, and its page has a token."""

    async def serve_and_stop(self: asyncio.Event) -> Any:
        raise KeyboardInterrupt

    posted: list[int] = []
    start_it = Sandbox.start

    async def start_and_post(self: Sandbox) -> None:
        await start_it(self)
        async with aiohttp.ClientSession() as session:
            async with session.post(self.url, data=b"") as response:
                posted.append(response.status)

    monkeypatch.setattr(Sandbox, "start", start_and_post)
    monkeypatch.setattr(asyncio.Event, "wait", serve_and_stop)
    with contextlib.suppress(KeyboardInterrupt):
        assert run("sandbox", "--port", "0", *exposed) == (0, "")
    printed = capsys.readouterr().out

    assert ("Every machine that reaches this address can send it events" in printed) is bool(exposed)
    assert bool(re.search(r"at http://127.0.0.1:\d+/#token=\S{32}", printed)) is bool(exposed)

    assert posted == [401]
    assert "#1  401  refused  SandboxUnauthorized" in printed
    assert "stopped after 1 requests" in printed


def test_click_runs_it_too() -> None:
    """As a group of commands."""
    assert CliRunner().invoke(cli.cli, ["--version"]).exit_code == 0
