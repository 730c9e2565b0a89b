"""How far a `send` has come: which lines of its input are settled, in memory and in a file beside it."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from pathlib import Path
from typing import Any, Final

_COMPACT: Final = 256 * 1024
"""Bytes of the file beyond which it is rewritten, as few ranges."""

_AHEAD: Final = 5000
"""How many lines are noted at once as lines that may be sent."""


class Settled:
    """A set of line numbers, kept as ranges: it grows with the gaps, not with the lines."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []  # Exclusive.

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._starts, number) - 1
        return at >= 0 and number < self._ends[at]

    def add(self, start: int, end: int) -> None:
        """Adds the numbers from `start` to before `end`, none of which is in the set."""
        at = bisect_right(self._starts, start)
        joins_before = at > 0 and self._ends[at - 1] == start
        joins_after = at < len(self._starts) and self._starts[at] == end
        if joins_before and joins_after:
            self._ends[at - 1] = self._ends.pop(at)
            del self._starts[at]
        elif joins_before:
            self._ends[at - 1] = end
        elif joins_after:
            self._starts[at] = start
        else:
            self._starts.insert(at, start)
            self._ends.insert(at, end)

    def ranges(self) -> list[tuple[int, int]]:
        """Returns the ranges, in order; the end of each is exclusive."""
        return list(zip(self._starts, self._ends, strict=True))

    def __len__(self) -> int:
        return sum([end - start for start, end in self.ranges()])


class ProgressFile:
    """The file beside an input. What is written to it survives a kill.

    Its lines are JSON: a head that identifies the input, then `[first, end, reserved]`: lines that are
    settled, and the line before which others may have been sent.

    Args:
        path: The file.
        identity: Tells the input from others.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self._identity = identity
        self._file: int | None = None
        self._new: list[int] = []
        self._compact_at = _COMPACT
        self._reserved = 0
        self.settled = Settled()
        self.sent_before = 0
        """Lines before this one may have been sent by an earlier run."""

    def load(self) -> bool:
        """Reads what an earlier run has written. Returns False if there is no file.

        Raises:
            ValueError: It is of another input, or no such file.
        """
        try:
            lines = self.path.read_text().splitlines()
        except FileNotFoundError:
            return False
        try:
            head = json.loads(lines[0])
        except (IndexError, ValueError):
            raise ValueError(f"{self.path} is no progress file") from None
        if head != self._identity:
            raise ValueError(f"{self.path} is of another input, or the input has changed")
        for line in lines[1:]:
            try:
                first, end, reserved = json.loads(line)
            except ValueError:  # The last line, which a kill has cut.
                break
            if first < end:
                self.settled.add(first, end)
            self.sent_before = max(self.sent_before, reserved)
        self._reserved = self.sent_before
        return True

    def open(self) -> None:
        """Begins to write, from what is known.

        Raises:
            OSError: It cannot be written.
        """
        self._compact()

    def _compact(self) -> None:
        beside = self.path.with_name(f"{self.path.name}.new")
        lines = [json.dumps(self._identity)]
        lines += [json.dumps([*one, self._reserved]) for one in ((0, 0), *self.settled.ranges())]
        beside.write_text("\n".join(lines) + "\n")
        beside.replace(self.path)
        if self._file is not None:
            os.close(self._file)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        self._compact_at = 2 * os.fstat(self._file).st_size + _COMPACT

    def reserve(self, number: int) -> None:
        """Notes that a line may be sent from now on; written at once, for many lines ahead."""
        if number >= self._reserved:
            self._reserved = number + _AHEAD
            self._append([[0, 0, self._reserved]])

    def settle(self, number: int) -> None:
        """Notes a line that is settled. `write` makes it last."""
        self.settled.add(number, number + 1)
        self._new.append(number)

    def write(self) -> None:
        """Writes what was noted since the last time.

        Raises:
            OSError: It cannot be written.
        """
        if not self._new:
            return
        self._new.sort()
        ranges: list[list[int]] = []
        for number in self._new:
            if ranges and ranges[-1][1] == number:
                ranges[-1][1] += 1
            else:
                ranges.append([number, number + 1, 0])
        self._new.clear()
        assert self._file is not None, "it is open"
        self._append(ranges)
        if os.fstat(self._file).st_size > self._compact_at:
            self._compact()

    def _append(self, records: list[list[int]]) -> None:
        assert self._file is not None, "it is open"
        os.write(self._file, "".join(f"{json.dumps(one)}\n" for one in records).encode())

    def close(self, *, is_done: bool) -> None:
        """Ends the writing; removes the file if nothing is left to go on with."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if is_done:
            self.path.unlink(missing_ok=True)
