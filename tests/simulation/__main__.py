"""`python -m tests.simulation`: a campaign of seeds, or one of them with its trace."""

from __future__ import annotations

import sys
import time

import click

from tests.simulation.bugs import MAX_SEEDS
from tests.simulation.campaign import campaign, first_seeds, keep_hints
from tests.simulation.lives import Lives
from tests.simulation.world import Violation, World


def print_bugs(jobs: int) -> int:
    """A table of bug against the seeds it took; 1 if one was not found."""
    found_by = first_seeds(jobs)
    keep_hints(found_by)
    for name, found in found_by.items():
        took, what = ("none", "") if found is None else (str(found[0] + 1), found[1].splitlines()[0][:90])
        print(f"{took:>5} seeds  {name}\n             {what}")
    missed = list(found_by.values()).count(None)
    print(f"{len(found_by)} bugs, {missed} not found in {MAX_SEEDS} seeds")
    return 1 if missed else 0


@click.command()
@click.option("--seeds", default=2000, show_default=True, help="How many seeds to play.")
@click.option("--start", default=0, show_default=True, help="The first of them.")
@click.option("--seed", default=None, type=int, help="Play this one alone, and print its trace.")
@click.option("--calm", is_flag=True, help="Nothing goes wrong.")
@click.option(
    "--bugs", is_flag=True, help="Plant the known bugs, one at a time, and tell which seed finds each."
)
@click.option("--journal", is_flag=True, help="Lives with a journal, most of which end in a crash.")
@click.option("--jobs", default=2, show_default=True, help="Processes.")
def main(seeds: int, start: int, seed: int | None, calm: bool, bugs: bool, journal: bool, jobs: int) -> None:
    """Plays seeds; exits with 1 if an invariant does not hold."""
    if seed is not None:
        world = Lives(seed) if journal else World(seed, calm=calm)
        try:
            world.run()
        except Violation as violation:
            print(*world.trace, f"VIOLATION {violation}", sep="\n")
            sys.exit(1)
        print(*world.trace, sep="\n")
        return
    if bugs:
        sys.exit(print_bugs(jobs))
    began = time.monotonic()
    reached, failed = campaign(
        range(start, start + seeds), jobs=jobs, calm=calm, with_journal=journal, progress=True
    )
    for name, count in sorted(reached.items()):
        print(f"{count:>12,}  {name}")
    for number, what in failed[:20]:
        print(f"failed: seed {number}, {what}")
    print(f"{seeds:,} seeds in {time.monotonic() - began:.0f} s, {len(failed)} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
