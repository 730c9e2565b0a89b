"""The kill switch: `ROKT_DISABLED=1` accepts, counts and drops, and says so once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from rokt_events_async import (
    Cause,
    DeliveryFailedError,
    Emitter,
    InvalidSettingError,
    tracker_from_env,
)
from rokt_events_async.cli import main
from rokt_events_async.relay import Publisher, Relay
from rokt_events_async.sandbox import Sandbox
from rokt_events_async.testing import MemoryQueue
from tests.samples import event


@pytest.fixture(autouse=True)
def _off(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ROKT_PUB_ID", "ROKT_SECRET", "ROKT_TAG_ID", "ROKT_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ROKT_DISABLED", "1")


async def test_an_emitter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without credentials, without a journal, whatever it was made with."""
    handed: list[Any] = []
    journal = tmp_path / "journal"
    async with Emitter(journal=journal, on_undelivered=handed.append, max_pending=1) as emitter:
        assert emitter.is_disabled
        deliveries = [await emitter.track(event()) for _ in range(5)]
        deliveries.append(emitter.track_nowait(event()))
        deliveries += [one async for one in emitter.track_many([event()])]
        for delivery in deliveries:
            with pytest.raises(DeliveryFailedError, match="ROKT_DISABLED=1 is set") as caught:
                await delivery
            assert caught.value.cause is Cause.DISABLED
        assert await emitter.flush(1)
        assert (emitter.stats.accepted, emitter.stats.failed, emitter.stats.requests) == (7, 7, 0)
    assert handed == []
    assert not journal.exists()
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage().split(": ")[-1] for record in said] == [
        "ROKT_DISABLED=1, so events are accepted, counted and dropped"
    ]


async def test_a_publisher(caplog: pytest.LogCaptureFixture) -> None:
    """Its queue is not even opened."""
    queue = MemoryQueue()
    async with Publisher(queue) as publisher:
        receipt = await publisher.track(event())
        assert receipt.entry_id == "dropped"
        assert publisher.stats.accepted == 1
    assert queue._published == 0
    assert "accepted, counted and dropped" in caplog.text


async def test_what_must_not_drop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A relay would drop what others have published, and `send` what is in its file."""
    with pytest.raises(InvalidSettingError, match="a relay must not run with ROKT_DISABLED=1"):
        await Relay(MemoryQueue(), Emitter).start()
    file = tmp_path / "events.jsonl"
    file.write_text("")
    with pytest.raises(SystemExit):
        main(["send", str(file)])
    assert "ROKT_DISABLED=1 is set: nothing would be sent" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["", "0", "False", "no", "off"])
async def test_what_leaves_it_off(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As without the variable."""
    monkeypatch.setenv("ROKT_DISABLED", value)
    assert not Emitter(Sandbox().credentials).is_disabled
    with pytest.raises(InvalidSettingError, match="pub_id"):
        tracker_from_env()


@pytest.mark.parametrize("value", ["true", "YES", " on "])
async def test_what_else_switches_it_on(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an outage there is no time to look up which word it was."""
    monkeypatch.setenv("ROKT_DISABLED", value)
    assert Emitter().is_disabled


@pytest.mark.parametrize("name", ["ROKT_DISABLED", "ROKT_ALLOW_HTTP"])
async def test_a_switch_has_two_positions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is neither is refused, and not taken for one of them."""
    monkeypatch.delenv("ROKT_DISABLED")
    monkeypatch.setenv(name, "ture")
    with pytest.raises(InvalidSettingError, match=f"{name} must be 1 .*, got 'ture'"):
        Emitter(Sandbox().credentials)
