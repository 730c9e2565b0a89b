"""The secret is nowhere but in the headers of a request. `conftest` searches every test for it as well."""

from __future__ import annotations

import asyncio
import copy
import io
import json
import logging
import pickle
import traceback
from typing import Any

import pytest

from rokt_events_async import Credentials, CredentialsRefusedError, DeliveryError, Emitter, RoktEventsError
from rokt_events_async.sandbox import FAULTS, Fault, Sandbox
from tests.conftest import chain
from tests.samples import event

SECRET = "rsec-hidden-everywhere"
CREDENTIALS = Credentials(pub_id="rpub-shown", secret=SECRET, tag_id="7")


@pytest.fixture
def log() -> Any:
    """All that is logged, by any logger, at any level, as a handler would write it."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s %(args)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    level = root.level
    root.setLevel(logging.DEBUG)
    yield written
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.mark.filterwarnings("ignore:event type")
@pytest.mark.parametrize("fault", [*sorted(FAULTS), "400", "401", "403", "404", "413", "500", "501"])
async def test_in_nothing_that_a_fault_produces(fault: str, log: io.StringIO) -> None:
    """Log, repr, exception with its chain and its printed traceback, pickle."""
    async with Sandbox(credentials=CREDENTIALS, faults={fault: 1.0}) as sandbox:
        emitter = Emitter(CREDENTIALS, endpoint=sandbox.url, flush_interval=0, close_timeout=3.0)
        async with emitter:
            deliveries = [await emitter.track(event()) for _ in range(2)]
            shown = repr(emitter)
        outcomes = await asyncio.gather(*deliveries, return_exceptions=True)
        shown += repr(emitter) + repr(sandbox) + repr(sandbox.requests)
    for outcome in outcomes:
        shown += repr(outcome) + str(outcome)
        if isinstance(outcome, DeliveryError):
            shown += "".join(traceback.format_exception(outcome))
            shown += "".join(repr(each) + repr(each.args) + repr(vars(each)) for each in chain(outcome))
            assert SECRET.encode() not in pickle.dumps(outcome)

    assert SECRET not in shown
    assert SECRET not in log.getvalue()


async def test_though_the_server_repeats_it(log: io.StringIO) -> None:
    """A message that quotes the headers goes no further with it."""
    errors = [{"code": f"Bad{SECRET}", "message": f"secret {SECRET} is unknown"}, {"message": "x"}]
    body = json.dumps({"errors": errors}).encode()
    refused = [Fault.answer(status, body) for status in (422, 404, 401)]
    faults = [None, *refused, None, Fault.answer(401, body)]
    async with Sandbox(credentials=CREDENTIALS, script=faults) as sandbox:
        async with Emitter(CREDENTIALS, endpoint=sandbox.url) as emitter:
            await emitter.deliver(event())
            for _ in range(2):
                with pytest.raises(DeliveryError, match="secret <hidden> is unknown") as caught:
                    await emitter.deliver(event())
                assert SECRET not in repr(caught.value) + repr(vars(caught.value))
            await emitter.deliver(event())
        async with Emitter(CREDENTIALS, endpoint=sandbox.url) as emitter:
            with pytest.raises(CredentialsRefusedError, match="secret <hidden> is unknown"):
                await emitter.deliver(event())
    assert "secret <hidden> is unknown" in log.getvalue()

    assert SECRET not in log.getvalue()


async def test_in_no_fault_of_the_library(log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is raised by something else, headers and all, is logged without its words."""
    async with (
        Sandbox(credentials=CREDENTIALS) as sandbox,
        Emitter(CREDENTIALS, endpoint=sandbox.url) as emitter,
    ):

        async def fail(request: Any) -> Any:
            raise ValueError(f"rokt-secret: {SECRET}")

        assert emitter._engine is not None
        monkeypatch.setattr(emitter._engine.transport, "post", fail)
        with pytest.raises(RoktEventsError, match="a fault in the library"):
            await emitter.deliver(event())

    assert "died of a fault" in log.getvalue()
    assert "ValueError" in log.getvalue()
    assert SECRET not in log.getvalue()


def test_in_no_form_of_the_credentials_or_the_emitter() -> None:
    """Whatever Python would show of them."""
    emitter = Emitter(CREDENTIALS)
    shown = (
        repr(CREDENTIALS)
        + f"{CREDENTIALS} {CREDENTIALS!s}"
        + repr([CREDENTIALS])
        + repr(emitter)
        + str(emitter)
    )

    assert SECRET not in shown
    assert SECRET not in repr(copy.copy(CREDENTIALS))
    with pytest.raises(TypeError):
        pickle.dumps(CREDENTIALS)
    with pytest.raises(TypeError):
        pickle.dumps(emitter)
