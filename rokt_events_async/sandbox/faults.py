"""What can go wrong between a client and the API, as data; and which request it happens to.

Faults come from a script first, in order, and are then drawn at their rates from a seed.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Final

import attrs


class Act(Enum):
    """What happens to the request."""

    ANSWER = "answer"
    """The true answer, late perhaps, or with wrong counts."""

    STATUS = "status"
    """Another status, with a body or none."""

    SILENCE = "silence"
    """No answer at all; the connection stays open."""

    RESET_BEFORE = "reset-before"
    """The connection is reset when the head of the request is there."""

    RESET_DURING = "reset-during"
    """It is reset in the middle of the body."""

    RESET_AFTER = "reset-after"
    """It is reset when the whole request is there, and its events are taken."""

    GARBAGE = "garbage"
    """Bytes that are no HTTP, after the events are taken."""

    CUT = "cut"
    """The true answer, which ends in the middle of its body."""

    EMPTY = "empty"
    """The true status with an empty body."""

    HTML = "html"
    """The true status with an HTML page."""

    HUGE = "huge"
    """The true status with a body that does not seem to end (64 MiB)."""

    COMPRESSED = "compressed"
    """The true answer behind 16 MiB of white space, compressed though the client refused that."""

    DRIP = "drip"
    """The true answer, a byte at a time."""

    NONSENSE = "nonsense"
    """The true status with a body that is no JSON, nor UTF-8."""


@attrs.frozen(kw_only=True)
class Fault:
    """What goes wrong with one request.

    Args:
        act: What happens.
        status: For `STATUS`: which.
        headers: For `STATUS`: further headers, `Retry-After` or `Location` say.
        body: For `STATUS`: the body.
        processed: Whether the events are taken though the answer does not say so: for `STATUS` and
            `SILENCE`, where both happen.
        count_offset: For `ANSWER`: added to `processedEventsCount`.
        delay: Seconds to wait before the answer; for `DRIP`, between its bytes.
    """

    act: Act = Act.ANSWER
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    processed: bool = False
    count_offset: int = 0
    delay: float = 0.0

    @classmethod
    def of(cls, what: Fault | int | str | None) -> Fault:
        """A fault itself, one of `FAULTS`, a status, or `None` for a normal answer.

        Raises:
            ValueError: It is nothing of these.
        """
        if what is None:
            return cls()
        if isinstance(what, Fault):
            return what
        if str(what) in FAULTS:
            return FAULTS[str(what)]
        if str(what).isdecimal() and 300 <= int(what) <= 599:
            return cls(act=Act.STATUS, status=int(what))
        raise ValueError(f"a fault must be a status 300..599 or one of {', '.join(FAULTS)}, got {what!r}")

    @classmethod
    def answer(cls, status: int, body: bytes = b"", *, processed: bool = False, **headers: str) -> Fault:
        """Another status; `retry_after="5"` becomes the header `Retry-After: 5`."""
        named = tuple((name.replace("_", "-").title(), value) for name, value in headers.items())
        return cls(act=Act.STATUS, status=status, body=body, processed=processed, headers=named)

    def takes_events(self) -> bool:
        """Whether the events of the request are taken, whatever the client gets to hear."""
        if self.act in (Act.STATUS, Act.SILENCE):
            return self.processed
        return self.act not in (Act.RESET_BEFORE, Act.RESET_DURING)

    def __str__(self) -> str:
        for name, fault in FAULTS.items():
            if fault == self:
                return name
        if self.act is Act.STATUS:
            return str(self.status)
        if self.act is Act.ANSWER:
            return "wrong-count" if self.count_offset else "slow" if self.delay else "none"
        return str(self.act.value)


_PAGE: Final = b"<!DOCTYPE html><html><body><h1>503 Service Unavailable</h1></body></html>"

FAULTS: Final[dict[str, Fault]] = {
    "503-html": Fault.answer(503, _PAGE, content_type="text/html"),
    "503-retry-after": Fault.answer(503, retry_after="2"),
    "429-retry-after": Fault.answer(429, retry_after="2"),
    "504-processed": Fault.answer(504, processed=True),
    "redirect": Fault.answer(307, location="http://127.0.0.1:9/elsewhere"),
    "silence": Fault(act=Act.SILENCE),
    "silence-processed": Fault(act=Act.SILENCE, processed=True),
    "reset-before": Fault(act=Act.RESET_BEFORE),
    "reset-during": Fault(act=Act.RESET_DURING),
    "reset-after": Fault(act=Act.RESET_AFTER),
    "garbage": Fault(act=Act.GARBAGE),
    "cut": Fault(act=Act.CUT),
    "empty": Fault(act=Act.EMPTY),
    "html": Fault(act=Act.HTML),
    "huge": Fault(act=Act.HUGE),
    "compressed": Fault(act=Act.COMPRESSED),
    "drip": Fault(act=Act.DRIP, delay=1.0),
    "nonsense": Fault(act=Act.NONSENSE),
    "count-too-high": Fault(count_offset=1),
    "count-too-low": Fault(count_offset=-1),
    "slow": Fault(delay=1.0),
}
"""Faults by name; any status from 300 to 599 is one too."""


class FaultPlan:
    """Which fault the next request meets.

    Args:
        script: What the first requests meet, in order.
        rates: What those after it meet, and how often, from 0 to 1 each.
        latency: Seconds before every answer, evenly drawn between the two.
    """

    def __init__(
        self,
        *,
        script: Iterable[Fault | int | str | None],
        rates: Mapping[Any, float],
        latency: tuple[float, float],
        random_: random.Random,
    ) -> None:
        self._script = deque(Fault.of(what) for what in script)
        self._rates = [(Fault.of(what), _check_rate(what, rate)) for what, rate in rates.items()]
        if sum(rate for _, rate in self._rates) > 1:
            raise ValueError(f"fault rates must add up to at most 1, got {dict(rates)!r}")
        if not 0 <= latency[0] <= latency[1]:
            raise ValueError(f"latency must be 0 <= shortest <= longest seconds, got {latency!r}")
        self._latency = latency
        self._random = random_

    def append(self, faults: Iterable[Fault | int | str | None]) -> None:
        """Adds to the end of the script."""
        self._script.extend([Fault.of(what) for what in faults])

    def next(self) -> Fault:
        """What the next request meets."""
        if self._script:
            return self._script.popleft()
        drawn = self._random.random()
        for fault, rate in self._rates:
            drawn -= rate
            if drawn < 0:
                return fault
        return Fault()

    def next_latency(self) -> float:
        """How long the next answer takes, a fault's own delay aside."""
        return self._random.uniform(*self._latency)


def _check_rate(what: object, rate: float) -> float:
    if not 0 <= rate <= 1:
        raise ValueError(f"the rate of fault {what} must be 0..1, got {rate!r}")
    return rate
