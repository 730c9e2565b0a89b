"""What a caller gets back."""

from __future__ import annotations

import asyncio
import pickle

import pytest

from rokt_events_async import ApiError, Delivery, DeliveryFailedError, EventRejectedError, Receipt
from tests.samples import delivery, event


async def test_a_delivery_tells_once() -> None:
    """A second word is not heard."""
    told = delivery()
    receipt = Receipt(told.event, 1, False)
    told.settle(receipt)
    told.settle(DeliveryFailedError("late", event=told.event))

    assert await told is receipt
    assert receipt.outcome == "delivered"


def test_a_delivery_whose_loop_is_gone_is_told_all_the_same() -> None:
    """Nobody can be woken any more, and the account goes on."""
    loop = asyncio.new_event_loop()
    told = delivery(loop=loop)
    told.add_done_callback(lambda _: None)
    loop.close()
    told.settle(Receipt(told.event, 1, False))

    assert told.done()


async def test_a_fault_while_telling_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a loop that is gone excuses one."""

    def fail(self: Delivery, outcome: object) -> None:
        raise RuntimeError("a planted fault")

    monkeypatch.setattr(Delivery, "set_result", fail)
    told = delivery()
    with pytest.raises(RuntimeError, match="a planted fault"):
        told.settle(Receipt(told.event, 1, False))


def test_errors_survive_a_pickle() -> None:
    """With all that they carry."""
    sent = event()
    error = EventRejectedError("no", event=sent, errors=(ApiError("A", "b"),), attempts=3, status=207)
    back = pickle.loads(pickle.dumps(error))

    assert type(back) is EventRejectedError
    assert (str(back), back.event, back.errors, back.attempts, back.status) == (
        "no",
        sent,
        (ApiError("A", "b"),),
        3,
        207,
    )
