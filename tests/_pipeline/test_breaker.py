"""The breaker: when a request may start."""

from __future__ import annotations

import pytest

from rokt_events_async._pipeline.breaker import Breaker


def make(max_concurrency: int = 16) -> Breaker:
    return Breaker(max_concurrency=max_concurrency, wait=(1.0, 2.0))


def fail(breaker: Breaker, times: int, *, now: float = 0.0, status: int | None = 503, **more: float) -> None:
    for number in range(times):
        breaker.on_failure(f"s{number}", now=now, status=status, **more)


def test_it_opens_after_as_many_failures_in_a_row_as_the_limit() -> None:
    """Sixteen, or `max_concurrency` if that is more."""
    breaker, wide = make(4), make(64)
    fail(breaker, 15)
    fail(wide, 63)
    assert not breaker.is_open
    assert not wide.is_open
    fail(breaker, 1)
    fail(wide, 1)
    assert breaker.is_open
    assert wide.is_open


def test_an_answer_between_failures_keeps_it_closed() -> None:
    """Failures in a row count, not failures."""
    breaker = make()
    fail(breaker, 15)
    breaker.on_answer()
    fail(breaker, 15)

    assert not breaker.is_open
    assert breaker.may_start(now=0.0)


@pytest.mark.parametrize(("max_concurrency", "interval"), [(4, 0.375), (16, 0.1), (256, 0.1)])
def test_open_it_lets_a_trickle_through(max_concurrency: int, interval: float) -> None:
    """One start per wait and slot, and at most ten per second."""
    breaker = make(max_concurrency)
    fail(breaker, max(16, max_concurrency))
    assert not breaker.may_start(now=interval - 0.001)
    assert breaker.may_start(now=interval)
    breaker.on_start(now=interval)
    assert breaker.starts_at == pytest.approx(2 * interval)


def test_an_answer_closes_it_at_once() -> None:
    """Whatever `Retry-After` was asked for before."""
    breaker = make()
    fail(breaker, 16, retry_after=30.0)
    assert breaker.starts_at == 30.0
    breaker.on_answer()

    assert not breaker.is_open
    assert breaker.may_start(now=0.0)
    assert breaker.failed_sessions == 0


def test_closed_it_ignores_what_single_batches_are_asked() -> None:
    """A 503's `Retry-After` is its own batch's affair."""
    breaker = make()
    fail(breaker, 3, retry_after=30.0)

    assert breaker.may_start(now=0.0)


def test_a_rate_limiter_pauses_all() -> None:
    """A 429 that three sessions got within one wait; two sessions, or three over a longer time, do not."""
    breaker = make()
    breaker.on_failure("a", now=0.0, status=429, retry_after=5.0)
    breaker.on_failure("a", now=0.1, status=429, retry_after=5.0)
    breaker.on_failure("b", now=0.5, status=429, retry_after=5.0)
    breaker.on_failure("c", now=2.6, status=429, retry_after=5.0)
    assert breaker.may_start(now=2.6)
    breaker.on_failure("d", now=2.7, status=429, retry_after=5.0)
    breaker.on_failure("e", now=2.8, status=429, retry_after=5.0)

    assert breaker.starts_at == pytest.approx(7.8)
    assert not breaker.is_open


def test_it_counts_the_sessions_that_failed() -> None:
    """One session alone is no outage."""
    breaker = make()
    for _ in range(16):
        breaker.on_failure("one", now=0.0, status=500)

    assert breaker.is_open
    assert breaker.failed_sessions == 1


def test_the_end_of_a_pause_does_not_close_it() -> None:
    """Refused credentials hold up all starts, beside an outage; each ends by itself."""
    breaker = Breaker(max_concurrency=1, wait=(1.0, 2.0))
    resumed: list[int] = []
    breaker.on_resumed = lambda: resumed.append(1)
    for number in range(16):
        breaker.on_failure(f"s{number}", now=0.0, status=503)
    breaker.pause(until=50.0)
    breaker.resume()
    assert breaker.is_open
    assert not resumed
    assert not breaker.may_start(now=0.0)
    breaker.on_answer()
    assert breaker.may_start(now=0.0)
    assert resumed == [1]
