"""`rokt-events journal`: what it shows, deletes and sends."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from rokt_events_async import Emitter
from rokt_events_async.cli import main
from rokt_events_async.sandbox import Sandbox
from tests.samples import CREDENTIALS, event


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["journal", *map(str, arguments)])
    return int(ended.value.code or 0)


def leave(
    directory: Path,
    url: str = "http://127.0.0.1:9/",
    credentials: object = CREDENTIALS,
    *,
    max_pending: int = 10,
) -> None:
    """Leaves three events in a journal."""

    async def live() -> None:
        settings = {"close_timeout": 0, "flush_interval": 60, "observers": [], "max_pending": max_pending}
        async with Emitter(credentials, endpoint=url, journal=directory, **settings) as emitter:  # type: ignore[arg-type]
            for session in ("person", "other", "person"):
                await emitter.track(event(session))

    asyncio.run(live())


def test_it_shows_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a table, or as JSON."""
    leave(tmp_path)
    assert run(tmp_path) == 0
    out = capsys.readouterr().out
    assert "ended" in out
    assert f"3 events in 1 file in {tmp_path}" in " ".join(out.split())

    assert run(tmp_path, "--json") == 0
    (file,) = json.loads(capsys.readouterr().out)
    assert (file["owner"], file["stored"], file["sent"], file["bad"]) == ("ended", 3, 0, 0)
    assert file["oldest"] is not None
    assert file["tally"] == {"accepted": 3}


def test_it_tells_what_found_no_room(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And how long ago the oldest was stored."""
    leave(tmp_path, max_pending=1)
    assert run(tmp_path) == 0
    assert "2 of them found no room in memory, the oldest 0 s ago" in capsys.readouterr().out


def test_it_deletes_a_session(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And says which files it could not search."""
    leave(tmp_path)
    assert run(tmp_path, "delete", "--session", "person") == 0
    assert "deleted 2 events" in capsys.readouterr().out
    assert run(tmp_path) == 0
    assert "2 erased" in capsys.readouterr().out

    next(tmp_path.glob("*/*.journal")).write_bytes(b"no database" * 100)
    assert run(tmp_path, "delete", "--session", "person") == 1
    assert "not searched" in capsys.readouterr().err
    assert run(tmp_path, "delete") == 2
    assert "delete needs --session ID" in capsys.readouterr().err


def test_it_sends_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the credentials of the environment; and says what it could not send."""
    for name, value in (("PUB_ID", CREDENTIALS.pub_id), ("SECRET", CREDENTIALS.secret), ("TAG_ID", "42")):
        monkeypatch.setenv(f"ROKT_{name}", value)
    with Sandbox(credentials=CREDENTIALS) as box:
        monkeypatch.setenv("ROKT_ENDPOINT", box.url)
        leave(tmp_path, box.url)
        assert run(tmp_path, "adopt") == 0
        assert capsys.readouterr().out.startswith("3 delivered")
        assert len(box.events) == 3
        leave(tmp_path, box.url)
        assert run(tmp_path, "adopt", "--timeout", "0") == 1
        assert capsys.readouterr().out.endswith("3 left\n")


def test_it_says_what_it_may_not_send(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of owners that are alive, and of other accounts; exit status 1. Nor does it erase from the former."""
    for name, value in (("PUB_ID", CREDENTIALS.pub_id), ("SECRET", CREDENTIALS.secret), ("TAG_ID", "42")):
        monkeypatch.setenv(f"ROKT_{name}", value)
    leave(tmp_path, "http://127.0.0.1:9/other")
    monkeypatch.setenv("ROKT_ENDPOINT", "http://127.0.0.1:9/")

    async def live() -> None:
        async with Emitter(journal=tmp_path, close_timeout=0, flush_interval=60) as emitter:
            await emitter.track(event("person"))
            assert await asyncio.to_thread(run, tmp_path, "adopt", "--timeout", "0.5") == 1
            assert await asyncio.to_thread(run, tmp_path, "delete", "--session", "person") == 1

    asyncio.run(live())
    told = capsys.readouterr().err
    assert "1 event not sent, in use: their owner is alive\n" in told
    assert "3 events not sent, for another account: tag id 42, http://127.0.0.1:9/other\n" in told
    assert "not searched, its owner is alive: stop it first: " in told


def test_it_sends_nothing_with_the_kill_switch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it lose anything."""
    leave(tmp_path)
    monkeypatch.setenv("ROKT_DISABLED", "1")
    assert run(tmp_path, "adopt") == 2
    assert "nothing would be sent" in capsys.readouterr().err
    monkeypatch.setenv("ROKT_DISABLED", "maybe")
    assert run(tmp_path, "adopt") == 2
    assert "ROKT_DISABLED must be 1" in capsys.readouterr().err


def test_wrong_uses_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No directory, no credentials."""
    for action in ("show", "delete", "adopt"):
        assert run(tmp_path / "none", action, "--session", "x") == 2
        assert capsys.readouterr().err.endswith("no such directory\n")
    assert run(tmp_path, "adopt") == 2
    assert "no credentials" in capsys.readouterr().err
