"""The guard of splitting: three spoilt batches in a row, then one per retry wait."""

from __future__ import annotations

from rokt_events_async._pipeline.splitting import MAX_SPOILT, SplitGuard


def spoilt(guard: SplitGuard, times: int = MAX_SPOILT) -> None:
    for _ in range(times):
        guard.on_spoilt()


def test_it_acts_after_three_spoilt_batches_in_a_row() -> None:
    """Not earlier, and a 2xx starts the count again."""
    guard = SplitGuard(wait=1.5)
    spoilt(guard, 2)
    assert all(guard.may_split(now=0.0) for _ in range(5))
    guard.on_answer()
    spoilt(guard, 2)
    assert guard.may_split(now=0.0)


def test_one_batch_per_wait_is_split_while_it_acts() -> None:
    """So that it hears of the end of a systematic fault, which a 2xx is."""
    guard = SplitGuard(wait=1.5)
    spoilt(guard)
    assert [guard.may_split(now=now) for now in (0.0, 0.0, 1.4, 1.5, 1.6, 3.0)] == [
        True,
        False,
        False,
        True,
        False,
        True,
    ]
    guard.on_answer()
    assert [guard.may_split(now=3.0), guard.may_split(now=3.0)] == [True, True]
