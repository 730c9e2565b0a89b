"""Rounds, ratios, tables, charts: what all benchmarks share.

Everything is compared within one run: the contestants take turns, round after round, and what is
reported is the median and the spread, as a ratio to one of them wherever possible. The machine is
shared and noisy; absolute figures mean little.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import attrs
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"

MALLOC = {
    "MALLOC_TOP_PAD_": str(64 * 1024 * 1024),
    "MALLOC_TRIM_THRESHOLD_": str(256 * 1024 * 1024),
    "MALLOC_MMAP_THRESHOLD_": str(256 * 1024 * 1024),
}
"""glibc serves the 256 KiB of a `recv()` from mmap or not by accident of the heap; this ends the accident."""


def steady_heap() -> None:
    """Starts the program again with the heap's settings, which glibc reads only at the start."""
    if not all(os.environ.get(name) == value for name, value in MALLOC.items()):
        module = sys.modules["__main__"].__spec__
        assert module is not None, "run it as a module: python -m benchmarks.throughput"
        os.execve(sys.executable, [sys.executable, "-m", module.name, *sys.argv[1:]], os.environ | MALLOC)


@attrs.frozen
class Sample:
    """One contestant in one round."""

    events: int
    seconds: float
    cpu: float

    @property
    def rate(self) -> float:
        """Events a second."""
        return self.events / self.seconds

    @property
    def cpu_us(self) -> float:
        """Processor time of the client, in microseconds an event."""
        return self.cpu / self.events * 1e6


@attrs.frozen
class Spread:
    """Median, least and most of several rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{_digits(self.median)}  ({_digits(self.least)} to {_digits(self.most)})"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


class Stopwatch:
    """Wall time and processor time of this process, with a clean heap to begin with."""

    def __enter__(self) -> Self:
        gc.collect()
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._wall
        self.cpu = time.process_time() - self._cpu

    def sample(self, events: int) -> Sample:
        return Sample(events, self.seconds, self.cpu)


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def percentile(ordered: Sequence[float], per_thousand: int) -> float:
    """Of values in ascending order: 500 is the median, 990 what 99 of 100 do not exceed."""
    return ordered[min(len(ordered) - 1, len(ordered) * per_thousand // 1000)]


def alternate(
    contestants: Mapping[str, Callable[[], Sample]], *, rounds: int, console: Console
) -> dict[str, list[Sample]]:
    """All of them in turn, `rounds` times, after one round that does not count."""
    samples: dict[str, list[Sample]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            sample = run()
            if number:
                samples[name].append(sample)
        console.print(f"  round {number} of {rounds}", style="dim")
    return samples


def ratios(of: Sequence[Sample], to: Sequence[Sample]) -> Spread:
    """How many times as many events a second, round by round."""
    return Spread.of([one.rate / other.rate for one, other in zip(of, to, strict=True)])


def terminal() -> Console:
    """Wide enough for a table, also where the output is no terminal."""
    return Console(soft_wrap=True, width=None if sys.stdout.isatty() else 160)


def show(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on the terminal."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def save(name: str, data: Mapping[str, Any]) -> None:
    """As JSON in `benchmarks/results`, with the machine it was measured on."""
    RESULTS.mkdir(exist_ok=True)
    machine = {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "processors": os.cpu_count(),
        "system": platform.system(),
        "measured": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["python -m", sys.modules["__main__"].__spec__.name, *sys.argv[1:]]),  # type: ignore[union-attr]
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine, **data}, indent=1, default=attrs.asdict) + "\n")
