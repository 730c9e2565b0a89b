"""Days drawn from a seed: traffic, settings, faults, echo forms and what callers do, over real sockets.

After every step the account adds up and stays within its bounds; at the end nothing is left, and it
agrees with the sandbox's record. `DAY=17 pytest tests/end_to_end/test_drawn_days.py` plays one day.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from typing import Any

import pytest

from rokt_events_async import Delivery, Emitter, EmitterClosedError, QueueFullError, RetryPolicy
from rokt_events_async.sandbox import ECHO_FORMS, FAULTS, Echo, Sandbox
from rokt_events_async.sandbox.audit import disagreements
from rokt_events_async.testing import claim_of
from tests.samples import event

DAYS = [int(os.environ["DAY"])] if "DAY" in os.environ else list(range(40))

FAULT_NAMES = [*sorted(set(FAULTS) - {"huge", "compressed"}), "404", "408", "429", "500", "502", "504"]
"""Not those that take long to make, nor a 400 out of the blue, which no server has for a good event."""


class Day:
    """One run of an emitter against a sandbox, everything about it drawn."""

    def __init__(self, seed: int) -> None:
        self.luck = luck = random.Random(seed)
        faults = luck.sample(FAULT_NAMES, luck.randint(0, 8))
        share = luck.choice([0.05, 0.3, 0.8])
        self.sandbox = Sandbox(
            faults={name: share / len(faults) for name in faults},
            latency=(0.0, luck.choice([0.0, 0.1, 3.0])),
            echo=Echo.of(*luck.sample(sorted(ECHO_FORMS), luck.randint(0, 3))),
            seed=seed,
        )
        self.settings: dict[str, Any] = {
            "flush_interval": luck.choice([0, 0.01, 0.25, 2]),
            "max_batch_size": luck.choice([1, 2, 7, 25]),
            "max_concurrency": luck.choice([1, 2, 16]),
            "max_pending": luck.choice([1, 5, 50, 10_000]),
            "max_wait": luck.choice([None, None, 0, 0.25]),
            "when_full": luck.choice(["raise", "drop"]),
            "request_timeout": luck.choice([0.5, 2, 10]),
            "close_timeout": luck.choice([0, 0.5, 5, 300]),
            "retry": RetryPolicy(
                deadline=luck.choice([5, 30, 120]),
                max_attempts=luck.choice([None, None, 1, 3]),
                retry_unconfirmed=luck.random() < 0.7,
            ),
        }
        self.deliveries: list[Delivery] = []

    async def live(self) -> None:
        loop = asyncio.get_running_loop()
        async with self.sandbox as sandbox:
            self.emitter = Emitter(
                sandbox.credentials, endpoint=sandbox.url, _random=self.luck, **self.settings
            )
            await self.emitter.start()
            callers = [asyncio.create_task(self.call()) for _ in range(self.luck.randint(1, 4))]
            await asyncio.wait(callers, timeout=self.luck.choice([0.1, 5, None]))
            if self.luck.random() < 0.1:
                self.cancel_workers()
            began = loop.time()
            closing = asyncio.create_task(self.emitter.aclose())
            if self.luck.random() < 0.2:
                loop.call_later(self.luck.random(), closing.cancel)
            await asyncio.wait([closing])

            assert loop.time() - began <= self.settings["close_timeout"] + 0.5
            assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("rokt-events")]
            await asyncio.gather(*callers)
        self.check()

    async def call(self) -> None:
        """A caller that tracks, is cancelled now and then, and flushes when it feels like it."""
        for number in range(self.luck.randint(1, 60)):
            session = f"session-{self.luck.randrange(self.luck.choice([1, 5, 50]))}"
            kind = self.luck.choice(["SignalViewed"] * 6 + ["SignalRefused"])
            made = event(session, event_type=kind, metadata={"n": str(number)} if number % 2 else None)
            tracking = asyncio.create_task(self.track(made))
            if self.luck.random() < 0.05:
                asyncio.get_running_loop().call_later(self.luck.random() * 2, tracking.cancel)
            await asyncio.wait([tracking])
            self.check()
            if self.luck.random() < 0.3:
                await asyncio.sleep(self.luck.random() * self.luck.choice([0.01, 0.5]))
            if self.luck.random() < 0.02:
                await self.emitter.flush()

    async def track(self, made: Any) -> None:
        with contextlib.suppress(QueueFullError, EmitterClosedError):
            self.deliveries.append(await self.emitter.track(made))

    def cancel_workers(self) -> None:
        for task in asyncio.all_tasks():
            if task.get_name() == "rokt-events-flush":
                task.cancel()

    def check(self) -> None:
        """What holds at every step."""
        stats = self.emitter.stats
        settled = stats.delivered + stats.rejected + stats.expired + stats.failed + stats.unconfirmed
        assert stats.accepted == settled + stats.pending
        assert stats.pending <= self.settings["max_pending"]
        assert stats.in_flight <= self.settings["max_concurrency"]

    def audit(self) -> list[str]:
        """Where the account and the record differ, at the end."""
        stats = self.emitter.stats
        assert (stats.pending, stats.pending_bytes, stats.sessions, stats.in_flight) == (0, 0, 0, 0)
        assert stats.accepted == len(self.deliveries)
        outcomes: list[Any] = [item.exception() or item.result() for item in self.deliveries]
        claims = [
            claim_of(item.event, outcome) for item, outcome in zip(self.deliveries, outcomes, strict=True)
        ]
        return disagreements(self.sandbox.requests, claims)


@pytest.mark.filterwarnings("ignore:event type")
@pytest.mark.parametrize("seed", DAYS)
async def test_a_day_drawn_from_a_seed(seed: int) -> None:
    """Whatever the day brings, every accepted event ends in one outcome, and it is the true one."""
    day = Day(seed)
    await day.live()

    assert day.audit() == []
