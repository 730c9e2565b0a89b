"""Throughput, peers and scale in their quick forms, one after the other: under a minute."""

from __future__ import annotations

import subprocess
import sys

RUNS = (
    ("throughput", "--quick", "--rounds", "5", "--seconds", "0.4"),
    ("peers", "--quick"),
    ("scale", "--quick", "--rounds", "1"),
)


def main() -> None:
    for name, *options in RUNS:
        print(f"\n== {name}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], check=True)


if __name__ == "__main__":
    main()
