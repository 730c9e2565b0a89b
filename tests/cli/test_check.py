"""`rokt-events check`, against servers that are right, and wrong in every way."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
import trustme
from yarl import URL

from rokt_events_async import cli
from rokt_events_async.cli.check import _clock, _connect, _within, judge
from rokt_events_async.sandbox import Sandbox


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit status, and the steps by name."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["check", "--json", "--timeout", "0.8", *arguments])
    steps = json.loads(capsys.readouterr().out)
    return int(caught.value.code or 0), {step["name"]: step for step in steps}


def test_the_kill_switch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, rokt_sandbox: Sandbox
) -> None:
    """It is what one looks for last, if nothing arrives."""
    assert "kill switch" not in check(capsys)[1]
    for value, found in (("1", "no event is sent"), ("maybe", "must be 1")):
        monkeypatch.setenv("ROKT_DISABLED", value)
        status, steps = check(capsys)
        assert status == 1
        assert found in steps["kill switch"]["found"]


class RawServer:
    """Answers every connection with the same bytes, or never."""

    def __init__(self, answer: bytes | None, context: ssl.SSLContext | None = None) -> None:
        self._answer = answer
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._held: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
                if self._context is not None:
                    connection = self._context.wrap_socket(connection, server_side=True)
            except ssl.SSLError:
                continue
            except OSError:
                return
            self._held.append(connection)
            if self._answer is not None:
                with closing(connection):
                    connection.recv(65536)
                    connection.sendall(self._answer)

    def close(self) -> None:
        self._listener.close()
        for connection in self._held:
            connection.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., RawServer]]:
    running: list[RawServer] = []

    def start(answer: bytes | None, context: ssl.SSLContext | None = None) -> RawServer:
        running.append(RawServer(answer, context))
        return running[-1]

    yield start
    for one in running:
        one.close()


def test_all_is_right(rokt_sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    """Not refused: more cannot be said. Nothing is recorded."""
    status, steps = check(capsys)

    assert status == 0
    assert list(steps) == ["endpoint", "credentials", "resolve", "connect", "answer", "clock"]
    assert "not refused" in steps["answer"]["found"]
    assert rokt_sandbox.events == []


def test_lines_for_people(rokt_sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    """One for each step, and what to look at."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["check"])
    printed = capsys.readouterr().out
    assert not caught.value.code
    assert "ok    connect: 127.0.0.1 port" in printed
    with pytest.raises(SystemExit) as caught:
        cli.main(["check", "--endpoint", "http://127.0.0.1:9/"])
    printed = capsys.readouterr().out
    assert caught.value.code == 1
    assert "WRONG connect: 127.0.0.1 port 9" in printed
    assert "      Nothing listens there" in printed


@pytest.mark.parametrize("name", ["ROKT_SECRET", "ROKT_TAG_ID", "ROKT_PUB_ID"])
def test_wrong_credentials(
    rokt_sandbox: Sandbox, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Refused, with the variables to look at, and the secret nowhere."""
    monkeypatch.setenv(name, "rsec-wrong" if name == "ROKT_SECRET" else "wrong")
    status, steps = check(capsys)

    assert status == 1
    assert steps["answer"]["found"].startswith("HTTP 401")
    assert "ROKT_SECRET" in steps["answer"]["hint"]
    assert "rsec-" not in str(steps)


def test_no_credentials(
    rokt_sandbox: Sandbox, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is looked at all the same."""
    monkeypatch.delenv("ROKT_SECRET")
    status, steps = check(capsys)

    assert status == 1
    assert "set ROKT_SECRET" in steps["credentials"]["found"]
    assert list(steps) == ["endpoint", "credentials", "resolve", "connect"]


@pytest.mark.parametrize(
    ("endpoint", "step", "found"),
    [
        ("ftp://x", "endpoint", "endpoint must be an https URL"),
        ("https://no-such-host.invalid/v1", "resolve", "no-such-host.invalid: "),
        ("http://127.0.0.1:9/v1", "connect", "127.0.0.1 port 9: "),
    ],
)
def test_wrong_endpoints(
    rokt_sandbox: Sandbox, capsys: pytest.CaptureFixture[str], endpoint: str, step: str, found: str
) -> None:
    """The first step that is wrong is the last."""
    status, steps = check(capsys, "--endpoint", endpoint)

    assert status == 1
    assert list(steps)[-1] == step
    assert steps[step]["found"].startswith(found)
    assert steps[step]["hint"]


def test_a_wrong_path(rokt_sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    """404."""
    status, steps = check(capsys, "--endpoint", rokt_sandbox.url.replace("partner", "partners"))

    assert status == 1
    assert "Look at the path" in steps["answer"]["hint"]


def test_a_server_that_hangs(
    rokt_sandbox: Sandbox, capsys: pytest.CaptureFixture[str], serve: Callable[..., RawServer]
) -> None:
    """It does not take longer than it is told to."""
    status, steps = check(capsys, "--endpoint", f"http://127.0.0.1:{serve(None).port}/")

    assert status == 1
    assert steps["answer"]["found"] == "no answer within 0.8 s"


@pytest.mark.parametrize(
    ("answer", "found", "hint"),
    [
        (b"rubbish\r\n\r\n", "the connection broke before an answer came", "proxy"),
        (b"HTTP/1.1 502 Bad\r\nContent-Type: text/html\r\n\r\n<html>", "HTTP 502: <html>", "proxy"),
        (b"HTTP/1.1 407 Auth\r\nContent-Length: 0\r\n\r\n", "HTTP 407", "proxy"),
        (b"HTTP/1.1 200 OK\r\nDate: rubbish\r\nContent-Length: 2\r\n\r\n{}", "the credentials are not", ""),
    ],
)
def test_something_in_between(
    rokt_sandbox: Sandbox,
    capsys: pytest.CaptureFixture[str],
    serve: Callable[..., RawServer],
    answer: bytes,
    found: str,
    hint: str,
) -> None:
    """What a proxy says is not what Rokt says."""
    _, steps = check(capsys, "--endpoint", f"http://127.0.0.1:{serve(answer).port}/")

    assert steps["answer"]["found"].startswith(found)
    assert hint in steps["answer"]["hint"]


def test_certificates(
    rokt_sandbox: Sandbox, capsys: pytest.CaptureFixture[str], serve: Callable[..., RawServer]
) -> None:
    """One that is not trusted, and a server that speaks no TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    status, steps = check(capsys, "--endpoint", f"https://127.0.0.1:{serve(b'', context).port}/")
    assert status == 1
    assert steps["connect"]["found"].startswith("TLS: ")
    assert "certificate" in steps["connect"]["hint"]
    status, steps = check(capsys, "--endpoint", f"https://127.0.0.1:{serve(b'plain').port}/")
    assert status == 1
    assert "speaks no TLS" in steps["connect"]["hint"]


def test_a_certificate_that_fits(monkeypatch: pytest.MonkeyPatch, serve: Callable[..., RawServer]) -> None:
    """The version of TLS is said."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    monkeypatch.setattr(ssl, "create_default_context", lambda: trusting)
    url = URL(f"https://127.0.0.1:{serve(None, context).port}/")

    async def look() -> str:
        found = (await _connect(url, 2)).found
        await asyncio.sleep(0.05)
        return found

    assert "TLSv1" in asyncio.run(look())


def test_a_step_that_takes_too_long(
    rokt_sandbox: Sandbox, capsys: pytest.CaptureFixture[str], serve: Callable[..., RawServer]
) -> None:
    """A connection that is made and a handshake that never ends."""
    status, steps = check(capsys, "--endpoint", f"https://127.0.0.1:{serve(None).port}/")

    assert status == 1
    assert steps["connect"]["found"] == "no TLS handshake within 0.8 s"


def test_a_name_that_is_not_answered() -> None:
    """A step has its time-out."""
    step = asyncio.run(_within(asyncio.sleep(5), "resolve", 0.01))

    assert (step.name, step.is_good, step.found) == ("resolve", False, "no answer within 0.01 s")


@pytest.mark.parametrize(
    ("status", "is_good", "words"),
    [
        (400, False, "something else"),
        (422, False, "something else"),
        (429, False, "trouble"),
        (503, False, "trouble"),
        (301, False, "path"),
        (403, False, "refuses"),
    ],
)
def test_what_answers_say(status: int, is_good: bool, words: str) -> None:
    """Each points somewhere."""
    step = judge(status, "application/json", "")

    assert step.is_good is is_good
    assert words in step.hint


@pytest.mark.parametrize(
    ("seconds", "is_good", "words"),
    [(10, True, "agrees"), (120, True, "120 s behind"), (-4000, False, "4000 s ahead of")],
)
def test_clocks(seconds: int, is_good: bool, words: str) -> None:
    """More than five minutes would have events refused."""
    now = datetime(2026, 5, 4, tzinfo=UTC)
    (step,) = _clock(format_datetime(now + timedelta(seconds=seconds), usegmt=True), now=now)

    assert step.is_good is is_good
    assert words in step.found


def test_a_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["check", "--timeout", "0"])
    assert caught.value.code == 2
    assert "--timeout must be more than 0 seconds, got 0" in capsys.readouterr().err
