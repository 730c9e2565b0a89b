"""Many seeds, in several processes."""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

from tests.simulation.bugs import BUGS, MAX_SEEDS, first_seed
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


HINTS = Path(__file__).with_name("hints.json")
"""The seed that found each planted bug when all of them were last looked for."""


def first_seeds(jobs: int = 2, *, by_hints: bool = False) -> dict[str, tuple[int, str] | None]:
    """The seed that finds each planted bug, and what it says.

    Args:
        jobs: Processes.
        by_hints: Try the seed that found it before, and the others only if that finds nothing.
    """
    hints = json.loads(HINTS.read_text()) if by_hints else {}
    with processes(jobs) as pool:
        names = [*BUGS, *JOURNAL_BUGS]
        tries = [(name, hints.get(name)) for name in names]
        return dict(zip(names, pool.map(_first_seed, tries), strict=True))


def keep_hints(found_by: dict[str, tuple[int, str] | None]) -> None:
    """Writes down which seed finds which bug."""
    hints = {name: found[0] for name, found in found_by.items() if found is not None}
    HINTS.write_text(json.dumps(hints, indent=1) + "\n")


def _first_seed(tried: tuple[str, int | None]) -> tuple[int, str] | None:
    name, hint = tried
    plant, play_one = (BUGS[name], play) if name in BUGS else (JOURNAL_BUGS[name], play_lives)
    found = None if hint is None or hint >= MAX_SEEDS else first_seed(plant, play_one, [hint])
    return found or first_seed(plant, play_one)
