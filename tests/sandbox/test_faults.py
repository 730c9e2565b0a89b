"""Which fault the next request meets."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from rokt_events_async.sandbox import FAULTS, Fault
from rokt_events_async.sandbox.faults import Act, FaultPlan


def plan(
    script: Any = (), rates: Any = None, latency: tuple[float, float] = (0, 0), seed: int = 1
) -> FaultPlan:
    return FaultPlan(script=script, rates=rates or {}, latency=latency, random_=random.Random(seed))


def test_a_script_is_followed_in_order_and_then_all_is_normal() -> None:
    """`503, 503, then normal`."""
    followed = plan([503, "503", None, "cut", Fault(delay=1.0)])
    followed.append([429])

    assert [str(followed.next()) for _ in range(8)] == [
        "503",
        "503",
        "none",
        "cut",
        "slow",
        "429",
        "none",
        "none",
    ]


def test_rates_are_drawn_from_the_seed() -> None:
    """The same seed, the same bad luck; about as often as was asked for."""
    draws = [
        [str(one.next()) for _ in range(2000)]
        for one in (plan(rates={503: 0.1, "cut": 0.2}) for _ in range(2))
    ]
    counts = Counter(draws[0])

    assert draws[0] == draws[1]
    assert 150 < counts["503"] < 250
    assert 330 < counts["cut"] < 470


def test_latency_is_drawn_too() -> None:
    """Between the two."""
    drawn = plan(latency=(0.1, 0.2))

    assert all(0.1 <= drawn.next_latency() <= 0.2 for _ in range(50))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"script": ["explode"]}, "a fault must be a status 300..599 or one of .*, got 'explode'"),
        ({"script": [200]}, "got 200"),
        ({"rates": {503: 1.5}}, "the rate of fault 503 must be 0..1, got 1.5"),
        ({"rates": {503: 0.6, 500: 0.6}}, "fault rates must add up to at most 1"),
        ({"latency": (2, 1)}, "latency must be 0 <= shortest <= longest seconds"),
        ({"latency": (-1, 1)}, "latency must be"),
    ],
)
def test_plans_that_are_none(settings: dict[str, Any], message: str) -> None:
    """Refused when they are made."""
    with pytest.raises(ValueError, match=message):
        plan(**settings)


def test_which_faults_take_the_events() -> None:
    """The record depends on it."""
    takes = {name for name, fault in FAULTS.items() if fault.processes_events()}

    assert set(FAULTS) - takes == {
        "503-html",
        "503-retry-after",
        "429-retry-after",
        "redirect",
        "silence",
        "reset-before",
        "reset-during",
    }


def test_names_of_faults() -> None:
    """As a log shows them."""
    assert str(Fault.answer(503, retry_after="2")) == "503-retry-after"
    assert str(Fault.answer(503, retry_after="3")) == "503"
    assert str(Fault.of("504-processed")) == "504-processed"
    assert Fault.answer(503, retry_after="2").headers == (("Retry-After", "2"),)
    assert str(Fault(count_offset=1)) == "count-too-high"
    assert str(Fault(count_offset=7)) == "wrong-count"
    assert str(Fault(act=Act.RESET_AFTER)) == "reset-after"
    assert str(Fault(act=Act.DRIP, delay=7.0)) == "drip"
