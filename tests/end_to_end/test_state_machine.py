"""The public API against a model: track, flush, cancel, time, faults and close in any order hypothesis finds.

The emitter and aiohttp are real; the loop, the network and the server are those of `tests.simulation`.
"""

from __future__ import annotations

import asyncio
import random
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rokt_events_async import (
    Delivery,
    Emitter,
    EmitterClosedError,
    PartnerEvent,
    QueueFullError,
    Receipt,
    RetryPolicy,
)
from tests.samples import CREDENTIALS
from tests.simulation.server import REFUSED
from tests.simulation.world import World

MAX_PENDING = 6
DEADLINE = 20.0
PLANS = (
    "refused",
    "reset, accepted",
    "silence, not accepted",
    "final",
    "empty",
    "counts too low",
    "closes when idle",
)


class Day(World):
    """A world in which the machine, rather than a seed, says what happens."""

    def __init__(self) -> None:
        super().__init__(0, calm=True)
        self.latency = 0.01
        self.next_plans: list[str] = []
        self.max_batch_size = 3
        self.loop.after_turn = None

    def draw_plan(self, session: str, *, is_closed: bool) -> str:
        if is_closed:
            return "at a closed connection"
        return self.next_plans.pop(0) if self.next_plans else "well"

    def check_time(self, event_time: datetime) -> None:
        assert self.clock() - event_time < timedelta(days=3)


class Machine(RuleBasedStateMachine):
    """The model: what was accepted, and of which the outcome is known."""

    def __init__(self) -> None:
        super().__init__()
        self.day = Day()
        self.patches = self.day.patched()
        self.patches.__enter__()
        self.emitter = Emitter(
            CREDENTIALS,
            endpoint="http://localhost:8080/v1/partner/events",
            flush_interval=0.25,
            max_batch_size=3,
            max_concurrency=2,
            max_pending=MAX_PENDING,
            max_session_share=1.0,
            max_wait=0,
            when_full="raise",
            request_timeout=2.0,
            close_timeout=5.0,
            retry=RetryPolicy(deadline=DEADLINE),
            _clock=self.day.clock,
            _random=random.Random(0),
        )
        self.run(self.emitter.start())
        self.accepted: list[Delivery] = []
        self.is_closed = False
        self.number = 0

    def run(self, awaitable: Any) -> Any:
        return self.day.loop.run_until_complete(awaitable)

    def pending(self) -> int:
        """By the model: a cancelled delivery's outcome is not to be seen, so those are asked for."""
        return sum(not delivery.done() for delivery in self.accepted)

    # What may happen.

    @rule(session=st.integers(0, 2), is_refused=st.booleans())
    def track(self, session: int, is_refused: bool) -> None:
        self.number += 1
        event = PartnerEvent(
            event_type=REFUSED if is_refused else "SignalViewed",
            session_id=f"s{session}",
            parent_guid=f"e{self.number}",
            client_unique_id="order",
        )
        before = self.emitter.stats
        try:
            delivery = self.run(self.emitter.track(event))
        except EmitterClosedError:
            assert self.is_closed
        except QueueFullError:
            assert before.pending == MAX_PENDING
            assert self.emitter.stats.accepted == before.accepted
        else:
            assert not self.is_closed
            assert before.pending < MAX_PENDING
            assert delivery.event.event_time is not None
            self.accepted.append(delivery)

    @precondition(lambda self: self.accepted)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.accepted)).cancel()

    @rule(seconds=st.sampled_from([0.0, 0.3, 3.0, 30.0]))
    def pass_time(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @rule(plans=st.lists(st.sampled_from(PLANS), min_size=1, max_size=4))
    def something_goes_wrong(self, plans: list[str]) -> None:
        self.day.next_plans += plans

    @rule()
    def flush(self) -> None:
        began = self.day.now()
        self.run(self.emitter.flush())
        assert self.pending() == 0
        assert self.day.now() - began <= DEADLINE + 2.0 + 1.5

    @rule()
    def close(self) -> None:
        began = self.day.now()
        report = self.run(self.emitter.aclose())
        assert self.day.now() - began <= 5.0 + 0.5
        assert (
            len(report.undelivered) == report.rejected + report.expired + report.failed + report.unconfirmed
        )
        self.is_closed = True
        assert self.pending() == 0
        assert not self.day.connections

    # What holds.

    @invariant()
    def adds_up(self) -> None:
        stats = self.emitter.stats
        settled = stats.delivered + stats.rejected + stats.expired + stats.failed + stats.unconfirmed
        assert stats.accepted == len(self.accepted) == settled + stats.pending
        assert self.pending() <= stats.pending <= MAX_PENDING
        assert stats.sessions <= stats.pending

    @invariant()
    def outcomes_are_true(self) -> None:
        accepted = {id_ for exchange in self.day.record for id_ in exchange.accepted}
        named = {id_ for exchange in self.day.record for id_ in exchange.named}
        for delivery in self.accepted:
            if not delivery.done() or delivery.cancelled():
                continue
            outcome: Any = delivery.exception() or delivery.result()
            id_ = delivery.event.parent_guid
            if isinstance(outcome, Receipt):
                assert id_ in accepted
            elif outcome.outcome == "rejected":
                assert id_ in named
            elif outcome.outcome == "failed":
                assert id_ not in accepted

    def teardown(self) -> None:
        self.run(self.emitter.aclose())
        self.run(asyncio.sleep(1.0))
        self.patches.__exit__(None, None, None)
        self.day.loop.close()


Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


TestMachine: Any = pytest.mark.filterwarnings("ignore:event type")(Machine.TestCase)
