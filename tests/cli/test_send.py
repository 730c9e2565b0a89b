"""`rokt-events send`, as its user meets it."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rokt_events_async import Emitter, InvalidEventError, cli
from rokt_events_async.cli import _progress
from rokt_events_async.cli._progress import ProgressFile, Settled
from rokt_events_async.cli.send import _conclude, _Inputs, _Run, read_event
from rokt_events_async.sandbox import Sandbox
from tests.samples import event


def send(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(["send", *map(str, arguments)])
    return int(caught.value.code or 0)


def line(number: int, session: str = "s", **changes: Any) -> str:
    made = event(session, parent_guid=f"g{number}").stamped(datetime.now(UTC)).to_dict()
    return json.dumps(made | changes)


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{one}\n" for one in lines))
    return path


def guids(sandbox: Sandbox) -> list[str]:
    return [one["parentGuid"] for one in sandbox.events]


# Sending.


def test_all_lines_are_delivered(
    rokt_sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In order, exit status 0, and nothing is left beside the file."""
    file = write(tmp_path / "events.jsonl", *[line(number) for number in range(60)], "")

    assert send(file) == 0
    assert guids(rokt_sandbox) == [f"g{number}" for number in range(60)]
    assert "60 delivered" in capsys.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == ["events.jsonl"]


def test_several_files_and_compressed_ones(
    rokt_sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The standard input too."""
    plain = write(tmp_path / "a.jsonl", line(1))
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(f"{line(2)}\n{line(3)}\n".encode()))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(line(4).encode())))

    assert send(plain, packed, "-") == 0
    assert guids(rokt_sandbox) == ["g1", "g2", "g3", "g4"]
    bad = write(tmp_path / "c.jsonl", "no json", line(5, eventType="SignalUnheardOf"))
    assert send(plain, bad) == 1
    assert send(bad) == 1
    assert len(rokt_sandbox.events) == 5


async def test_a_stop_before_anything_was_read(
    rokt_sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is sent, and all is left."""
    inputs = _Inputs((str(write(tmp_path / "a", line(1), line(2))), str(write(tmp_path / "b", line(3)))))
    async with Emitter() as emitter:
        run = _Run(inputs, emitter, None, None)
        run.stop()
        await run.run()

    assert _conclude(run, inputs, None, is_whole=False) == 130
    assert capsys.readouterr().err.splitlines() == [
        "0 delivered",
        "stopped: 0 under way, 3 not read",
    ]
    assert rokt_sandbox.count == 0


def test_what_is_not_delivered_can_be_sent_again(
    rokt_sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the reasons; lines without an event unchanged; the exit status is 1."""
    old = line(3, eventTime="2020-01-01T00:00:00.000Z")
    lines = [line(1), "no json", line(2, eventType="SignalUnheardOf"), old, '{"a": 1}', "[]"]
    file, out = write(tmp_path / "in.jsonl", *lines), tmp_path / "out.jsonl"

    assert send("--undelivered", out, file) == 1
    printed = capsys.readouterr().err
    assert "1 delivered, 1 not delivered, 4 lines without an event" in printed
    assert "1 rejected: rejected" in printed
    assert f"{file}:2: " in printed
    assert re.search(rf"{file}:4: .*3 days in the past", printed)
    assert f"{file}:6: must be a JSON object" in printed
    written = out.read_text().splitlines()
    assert [one for one in written if one in lines] == ["no json", old, '{"a": 1}', "[]"]
    (rejected,) = [json.loads(one) for one in written if "outcome" in one]
    assert (rejected["outcome"], rejected["cause"]) == ("rejected", "rejected")
    assert rejected["errors"][0]["code"] == "InvalidEventType"
    assert read_event(json.dumps(rejected).encode()).parent_guid == "g2"


def test_many_bad_lines_are_counted(
    rokt_sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first are shown."""
    assert send(write(tmp_path / "in.jsonl", *["x"] * 50)) == 1
    printed = capsys.readouterr().err
    assert printed.count("in.jsonl:") == 20
    assert "further ones are counted" in printed
    assert "50 lines without an event" in printed


def test_a_dry_run(rokt_sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All problems with their lines, and nothing is sent."""
    bad = line(1, sessionId="", parentGuid=7)
    file = write(tmp_path / "in.jsonl", line(1), bad, line(2, eventTime="2020-01-01T00:00:00Z"))

    assert send("--dry-run", file) == 1
    printed = capsys.readouterr()
    assert printed.out == "1 line can be sent, 2 cannot\n"
    assert re.search(rf"{file}:2: .*session_id must be .*; parent_guid must be ", printed.err)
    assert f"{file}:3: event_time must not be over 3 days in the past" in printed.err
    assert rokt_sandbox.count == 0
    assert send("--dry-run", write(tmp_path / "good.jsonl", line(1))) == 0


def test_an_event_that_expires_while_it_waits(
    rokt_sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is reported, and the others are sent."""
    monkeypatch.setattr("rokt_events_async.cli.send.time_problems", lambda *_, **__: ())
    old = line(2, eventTime=(datetime.now(UTC) - timedelta(days=4)).isoformat().replace("+00:00", "Z"))

    assert send(write(tmp_path / "in.jsonl", line(1), old, line(3))) == 1
    assert guids(rokt_sandbox) == ["g1", "g3"]
    assert "2 delivered, 1 line without an event" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        {"eventTime": "2026-05-04T12:00:00"},
        {"metadata": [{"Name": "a", "Value": "b"}]},
        {"eventTime": None},
        {"eventType": "SignalUnheardOf"},
    ],
)
def test_forms_of_lines(changes: dict[str, Any]) -> None:
    """What `from_dict` reads, quietly."""
    assert read_event(line(1, **changes).encode()).parent_guid == "g1"


def test_a_line_with_unknown_names() -> None:
    """It is refused, with all that is wrong."""
    with pytest.raises(InvalidEventError, match="must have no names but"):
        read_event(line(1, colour="red").encode())


# Wrong uses.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jsonl"], "cannot read nowhere.jsonl: No such file or directory"),
        (["--resume", "-"], "--resume needs a single file"),
        ([], "Missing argument 'FILE...'"),
        (["--undelivered", "no/such/folder/out", "{file}"], "no/such/folder/out: No such file or directory"),
        (["--max-concurrency", "0", "{file}"], "max_concurrency must be 1..1024, got 0"),
        (["--resume", "{file}"], "there is nothing to resume"),
    ],
)
def test_wrong_uses(
    rokt_sandbox: Sandbox,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    """One line, and exit status 2."""
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "in.jsonl", line(1))

    assert send(*[one.format(file=file) for one in arguments]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_a_journal_is_not_needed(
    rokt_sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is durable: one that the environment names is left alone."""
    monkeypatch.setenv("ROKT_JOURNAL", str(tmp_path / "journal"))

    assert send(write(tmp_path / "in.jsonl", line(1))) == 0
    assert len(rokt_sandbox.events) == 1
    assert not (tmp_path / "journal").exists()


@pytest.mark.parametrize("text", ["", "no json\n", '{"format": 1, "name": "other"}\n'])
def test_progress_of_something_else(
    rokt_sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    """It is not used."""
    file = write(tmp_path / "in.jsonl", line(1))
    (tmp_path / "in.jsonl.progress").write_text(text)

    assert send("--resume", file) == 2
    assert re.search("is no progress file|is of another input", capsys.readouterr().err)
    assert send(file) == 2
    assert "go on with --resume, or delete it" in capsys.readouterr().err


# Interrupting and going on.


def start(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rokt_events_async", "send", *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_for(condition: Any, within: float = 30.0) -> None:
    until = time.monotonic() + within
    while not condition():
        assert time.monotonic() < until, "it does not come true"
        time.sleep(0.02)


def test_ctrl_c_and_going_on(rokt_sandbox: Sandbox, tmp_path: Path) -> None:
    """It drains and prints the command that goes on, which sends the rest."""
    file, out = write(tmp_path / "in.jsonl", *[line(n, f"s{n}") for n in range(30_000)]), tmp_path / "out"
    process = start("--undelivered", out, file)
    wait_for(lambda: rokt_sandbox.count > 100)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)

    assert process.returncode == 130
    assert re.search(r"stopped: [\d,]+ under way, [\d,]+ not read", told)
    assert f"go on with: rokt-events send --resume --undelivered {out} {file}" in told
    assert "Traceback" not in told
    before = len(rokt_sandbox.events)
    assert send("--resume", "--undelivered", out, file) == 0
    assert 0 < before < 30_000
    assert set(guids(rokt_sandbox)) == {f"g{number}" for number in range(30_000)}
    assert not (tmp_path / "in.jsonl.progress").exists()


def test_ctrl_c_in_an_outage(rokt_sandbox: Sandbox, tmp_path: Path) -> None:
    """A second one ends the drain; without a file to go on with, the rest is written."""
    rokt_sandbox.fail_next(*[503] * 1000)
    out = tmp_path / "out.jsonl"
    lines = "".join(f"{line(number, f's{number}')}\n" for number in range(20))
    process = start("--undelivered", out, "-", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(lines)
    process.stdin.close()
    process.stdin = None
    wait_for(lambda: rokt_sandbox.count > 16)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)

    assert process.returncode == 130
    assert f"go on with: rokt-events send {out}" in told
    assert {read_event(one).parent_guid for one in out.read_bytes().splitlines()} == {
        f"g{number}" for number in range(20)
    }


def test_what_was_under_way_is_sent_by_the_next_run(rokt_sandbox: Sandbox, tmp_path: Path) -> None:
    """It is not written as undelivered: the file has it."""
    rokt_sandbox.fail_next(*[503] * 40)
    file, out = write(tmp_path / "in.jsonl", *[line(n, f"s{n}") for n in range(20)]), tmp_path / "out.jsonl"
    process = start("--undelivered", out, file)
    wait_for(lambda: rokt_sandbox.count > 16)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    _, told = process.communicate(timeout=60)

    assert "stopped: 20 under way, 0 not read" in told
    assert out.read_text() == ""
    assert send("--resume", "--undelivered", out, file) == 0
    assert len(rokt_sandbox.events) == 20


def test_lines_that_were_not_read_are_written(rokt_sandbox: Sandbox, tmp_path: Path) -> None:
    """Of several files, which cannot be resumed."""
    rokt_sandbox.fail_next(*[503] * 1000)
    files = [
        write(tmp_path / f"{n}.jsonl", *[line(n * 15_000 + m, f"s{m}") for m in range(15_000)])
        for n in (0, 1)
    ]
    out = tmp_path / "out.jsonl"
    process = start("--undelivered", out, *files)
    wait_for(lambda: rokt_sandbox.count > 16)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    process.communicate(timeout=60)

    assert process.returncode == 130
    written = Counter(read_event(one).parent_guid for one in out.read_bytes().splitlines())
    assert len(written) == 30_000


def test_killed_again_and_again(rokt_sandbox: Sandbox, tmp_path: Path) -> None:
    """Every line is delivered, or in the file of undelivered ones; what may be there twice was said."""
    luck = random.Random(3)
    count = 20_000
    lines = [
        line(n, f"s{n // 5}", **({"eventType": "SignalBad"} if n % 100 == 7 else {})) for n in range(count)
    ]
    file, out = write(tmp_path / "in.jsonl", *lines), tmp_path / "out.jsonl"
    process = start("--undelivered", out, file)
    for _ in range(6):
        seen = rokt_sandbox.count
        wait_for(lambda seen=seen: rokt_sandbox.count > seen + 20)
        time.sleep(luck.uniform(0, 0.1))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        process = start("--resume", "--undelivered", out, file)
    _, told = process.communicate(timeout=100)

    assert process.returncode == 1, told
    arrived = Counter(guids(rokt_sandbox))
    written = {read_event(one).parent_guid for one in out.read_bytes().splitlines()}
    assert set(arrived) | written == {f"g{number}" for number in range(count)}
    assert written == {f"g{number}" for number in range(7, count, 100)}
    assert max(arrived.values()) <= 7
    assert "possible duplicates" in told


def test_it_shows_how_it_goes(
    rokt_sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bar on a terminal, lines elsewhere."""
    monkeypatch.setattr("rokt_events_async.cli.send._SHOW_EVERY", 0.01)
    file = write(tmp_path / "in.jsonl", *[line(n, f"s{n}") for n in range(3000)])
    assert send(file) == 0
    assert re.search(r"\d+% read, [\d,]+ settled, [\d,]+ per second, 0 retries", capsys.readouterr().err)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert send(file) == 0
    assert "settled" in capsys.readouterr().err


# What is settled.


@given(st.permutations(range(12)))
def test_ranges(order: list[int]) -> None:
    """They are those of a set, whatever the order."""
    settled, model = Settled(), set[int]()
    for number in order:
        settled.add(number, number + 1)
        model.add(number)
        assert len(settled) == len(model)
        assert [n in settled for n in range(-1, 13)] == [n in model for n in range(-1, 13)]
    assert settled.ranges() == [(0, 12)]


def test_a_progress_file_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is rewritten as few ranges; what a kill has cut is not read."""
    monkeypatch.setattr(_progress, "_COMPACT", 200)
    identity = {"name": "x"}
    progress = ProgressFile(tmp_path / "p", identity)
    progress.open()
    for number in range(1000):
        progress.reserve(number)
        progress.settle(number if number % 2 else 999 - number)
        progress.write()
    progress.write()
    progress.close(is_done=False)
    progress.close(is_done=False)
    with (tmp_path / "p").open("a") as file:
        file.write("[5, ")

    again = ProgressFile(tmp_path / "p", identity)
    assert again.load()
    assert again.settled.ranges() == progress.settled.ranges()
    assert again.sent_before == 5000
    assert os.path.getsize(tmp_path / "p") < 20_000  # noqa: PTH202
    assert not ProgressFile(tmp_path / "none", identity).load()
