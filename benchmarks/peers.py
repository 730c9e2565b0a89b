"""The same events through well-known event libraries and through this one, 25 a request, to the same sink.

Each runs in a process and an environment of its own. They do not promise the same (most tell nothing of
a single event), so what is compared is what it costs an application to report what happened.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks.measure import MALLOC, Spread, save, show, terminal
from benchmarks.peer import PEERS, WARM_UP
from benchmarks.sink import sink

OURS = "rokt_events_async"
SCRIPT = Path(__file__).with_name("peer.py")


def command(name: str) -> list[str]:
    """How to run a peer: ours in this environment, the others each in one of its own."""
    if name == OURS:
        return [sys.executable, str(SCRIPT)]
    isolated = ["uv", "run", "--quiet", "--isolated", "--no-project", "--python", sys.executable]
    return [*isolated, "--with", name, "python", str(SCRIPT)]


def once(name: str, url: str, events: int) -> dict[str, float]:
    environment = os.environ | MALLOC
    done = subprocess.run(
        [*command(name), name, url, str(events)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=120,
    )
    if done.returncode:
        raise click.ClickException(f"{name} failed:\n{done.stderr}")
    report: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return report


def measure_failing(console: Console, events: int, failing: float) -> None:
    """How much of it arrives, and how fast, where a part of all requests is answered 503."""
    rows: list[list[str]] = []
    data: dict[str, Any] = {}
    for name in (OURS, *PEERS):
        with sink(failing) as to:
            try:
                report = once(name, f"http://127.0.0.1:{to.port}", events)
                rate = events / report["seconds"]
            except (click.ClickException, subprocess.TimeoutExpired) as error:
                # It raises, or waits for what never arrives.
                console.print(f"  {name}: {str(error).strip().splitlines()[-1]}", style="dim")
                rate = 0.0
            arrived = to.counts().events / (events + WARM_UP)
        data[name] = {"events_a_second": rate, "arrived": arrived}
        rows.append([name, f"{rate:,.0f}" if rate else "not all of them", f"{arrived:.1%}"])
    show(console, f"{failing:.0%} of requests answered 503", ["", "events/s", "arrived"], rows)
    save("peers_failing", {"events": events, "failing": failing, "peers": data})


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--events", default=20_000, show_default=True)
@click.option("--quick", is_flag=True, help="One round of 5,000 events.")
@click.option("--failing", default=0.0, show_default=True, help="How many of all requests are answered 503.")
def main(rounds: int, events: int, quick: bool, failing: float) -> None:  # noqa: FBT001 -- by click
    """Measures the peers in turn, round after round."""
    console = terminal()
    if quick:
        rounds, events = 1, 5_000
    reports: dict[str, list[dict[str, float]]] = {name: [] for name in (OURS, *PEERS)}
    if failing:
        measure_failing(console, events, failing)
        return
    with sink() as to:
        url = f"http://127.0.0.1:{to.port}"
        for number in range(rounds + 1):
            for name, taken in reports.items():
                report = once(name, url, events)
                if number:  # The first makes the environments.
                    taken.append(report)
            console.print(f"  round {number} of {rounds}", style="dim")
    ours = reports[OURS]
    rows: list[list[str]] = []
    data: dict[str, Any] = {}
    for name, taken in reports.items():
        figures = {key: Spread.of([one[key] for one in taken]) for key in taken[0]}
        rate = Spread.of([one["events"] / one["seconds"] for one in taken])
        cpu = Spread.of([one["cpu"] / one["events"] * 1e6 for one in taken])
        faster = Spread.of(
            [
                us["events"] / us["seconds"] / (one["events"] / one["seconds"])
                for us, one in zip(ours, taken, strict=True)
            ]
        )
        thriftier = Spread.of([one["cpu"] / us["cpu"] for us, one in zip(ours, taken, strict=True)])
        data[name] = {
            "events_a_second": rate,
            "cpu_us_an_event": cpu,
            "we_are_times_as_fast": faster,
            "it_needs_times_our_cpu": thriftier,
            "held_mean_us": figures["held_mean_us"],
            "held_p99_us": figures["held_p99_us"],
            "peak_memory_mib": figures["peak_memory_mib"],
        }
        rows.append([name, *map(str, data[name].values())])
    columns = [
        "",
        "events/s",
        "CPU µs/event",
        "we: times as fast",
        "it: times our CPU",
        "held µs",
        "p99 µs",
        "peak MiB",
    ]
    show(console, "median (least to most)", columns, rows)
    if not quick:
        save("peers", {"events": events, "rounds": rounds, "peers": data})


if __name__ == "__main__":
    main()
