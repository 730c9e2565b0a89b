"""Throughput, peers and scale in their quick forms, one after the other: under a minute."""

from __future__ import annotations

import subprocess
import sys

import click

RUNS = (
    ("throughput", "--quick", "--rounds", "5", "--seconds", "0.4"),
    ("peers", "--quick"),
    ("scale", "--quick", "--rounds", "1"),
)


@click.command()
def main() -> None:
    """Runs the quick forms of throughput, peers and scale, one after the other."""
    for name, *options in RUNS:
        print(f"\n== {name}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], check=True)


if __name__ == "__main__":
    main()
