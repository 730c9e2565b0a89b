"""Programs of their own: for what a test can only see from outside."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable


def run_script(
    script: str, *arguments: str, stop: Callable[[subprocess.Popen[str]], None] | None = None
) -> tuple[int, str, str]:
    """Runs a program with warnings shown. Returns its exit status and what it printed."""
    with subprocess.Popen(
        [sys.executable, "-W", "always", "-c", textwrap.dedent(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            if stop is not None:
                stop(process)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()  # This does nothing to a program that has ended.
    return process.returncode, out, err
