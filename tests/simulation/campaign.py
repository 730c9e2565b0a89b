"""Many seeds, in several processes."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from unittest import mock

from tests.simulation.bugs import BUGS, first_seed
from tests.simulation.journal_bugs import JOURNAL_BUGS
from tests.simulation.lives import play_lives
from tests.simulation.world import play, sweep

CHUNK = 100


def play_all(
    seeds: range, *, calm: bool = False, with_journal: bool = False
) -> tuple[Counter[str], list[tuple[int, str]]]:
    """What was reached, and the seeds that failed."""
    reached: Counter[str] = Counter()
    failed = []
    for seed in seeds:
        counts, violation = play_lives(seed) if with_journal else play(seed, calm=calm)
        reached.update(counts)
        if violation is not None:
            failed.append((seed, violation))
            sweep()
    return reached, failed


@contextlib.contextmanager
def processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that a coverage run does not measure: they reach no new line and would take twice as long."""
    names = ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")
    with mock.patch.dict(os.environ):
        for name in names:
            os.environ.pop(name, None)
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            yield pool


def campaign(
    seeds: range,
    *,
    jobs: int = 2,
    calm: bool = False,
    with_journal: bool = False,
    progress: bool = False,
) -> tuple[Counter[str], list[tuple[int, str]]]:
    """Plays many seeds in several processes."""
    reached: Counter[str] = Counter()
    failed: list[tuple[int, str]] = []
    chunks = [seeds[first : first + CHUNK] for first in range(0, len(seeds), CHUNK)]
    with processes(jobs) as pool:
        play_chunk = functools.partial(play_all, calm=calm, with_journal=with_journal)
        for number, (counts, failures) in enumerate(pool.map(play_chunk, chunks), 1):
            reached.update(counts)
            failed += failures
            for seed, what in failures if progress else ():
                which = " --journal" * with_journal
                print(
                    f"seed {seed}: {what}\n  python -m tests.simulation{which} --seed {seed}", file=sys.stderr
                )
            if progress and (sys.stderr.isatty() or number % 20 == 0):
                print(f"{number * CHUNK:,} of {len(seeds):,} seeds, {len(failed)} failed", file=sys.stderr)
    return reached, failed


def first_seeds(jobs: int = 2) -> dict[str, tuple[int, str] | None]:
    """The seed that finds each planted bug, and what it says."""
    with processes(jobs) as pool:
        names = [*BUGS, *JOURNAL_BUGS]
        return dict(zip(names, pool.map(_first_seed, names), strict=True))


def _first_seed(name: str) -> tuple[int, str] | None:
    return first_seed(BUGS[name], play) if name in BUGS else first_seed(JOURNAL_BUGS[name], play_lives)
