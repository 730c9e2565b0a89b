"""What it costs to import the package, beyond aiohttp, and the pytest plugin, beyond pytest.

    uv run python -m benchmarks.imports [--against FOLDER]

The modules are compiled before the first time that counts, as those of an installed package are.
`--against` is a checkout of another commit, which is measured in the same run, taking turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CASES = {
    "import rokt_events_async": ("aiohttp", "import rokt_events_async"),
    "… import PartnerEvent": ("aiohttp", "from rokt_events_async import PartnerEvent"),
    "… import Emitter": ("aiohttp", "from rokt_events_async import Emitter"),
    "the pytest plugin": ("pytest, pytest_asyncio", "import rokt_events_async.pytest_plugin"),
}


def measure(folder: Path, before: str, code: str, environment: dict[str, str]) -> float:
    """Returns milliseconds of `code`, in an interpreter of its own after the imports `before` it."""
    script = (
        f"import sys; sys.path.insert(0, {str(folder)!r}); import time, {before}; "
        f"start = time.perf_counter(); {code}; print(time.perf_counter() - start)"
    )
    command = [sys.executable, "-c", script]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(found.stdout) * 1e3


def main() -> None:
    """Measures each case, taking turns, and prints medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", type=Path, help="a checkout of another commit")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    folders = [Path(__file__).parent.parent, *([arguments.against] if arguments.against else [])]
    with tempfile.TemporaryDirectory() as compiled:
        environment = os.environ | {"PYTHONPYCACHEPREFIX": compiled}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for name, (before, code) in CASES.items():
            _, *times = (
                [measure(folder, before, code, environment) for folder in folders]
                for _ in range(arguments.rounds + 1)
            )
            here, *there = (statistics.median(column) for column in zip(*times, strict=True))
            ratio = f", of {there[0]:.1f} ms there: {here / there[0]:.2f}" if there else ""
            print(f"{name:26} {here:6.1f} ms{ratio}")


if __name__ == "__main__":
    main()
