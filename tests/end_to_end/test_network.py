"""Real sockets that misbehave, real TLS, and a thousand emitters that leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import ssl
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from rokt_events_async import (
    DeliveryError,
    DeliveryFailedError,
    DeliveryUnconfirmedError,
    Emitter,
    Receipt,
    RetryPolicy,
)
from rokt_events_async.sandbox import Sandbox
from rokt_events_async.sandbox.audit import disagreements
from rokt_events_async.testing import claim_of
from tests.end_to_end.proxy import FaultyProxy, Temper
from tests.samples import event

pytestmark = pytest.mark.every_loop

RETRY = RetryPolicy(deadline=1.0, wait=(0.01, 0.02))
EVENTS = 60


async def settle(url: str, sandbox: Sandbox, **settings: Any) -> list[Receipt | DeliveryError]:
    """Sends events of six sessions, hears of them all, and holds that against the sandbox's record."""
    options: dict[str, Any] = {"retry": RETRY, "flush_interval": 0.01, "request_timeout": 0.4}
    async with Emitter(sandbox.credentials, endpoint=url, **(options | settings)) as emitter:
        deliveries = [await emitter.track(event(f"session-{number % 6}")) for number in range(EVENTS)]
        outcomes: list[Any] = await asyncio.gather(*deliveries, return_exceptions=True)
    claims = [claim_of(one.event, outcome) for one, outcome in zip(deliveries, outcomes, strict=True)]
    assert disagreements(sandbox.requests, claims) == []
    return outcomes


@pytest.mark.parametrize(
    "temper",
    [Temper(latency=0.02), Temper(latency=0.001, piece=20), Temper(latency=0.01, piece=100)],
    ids=["latency", "small pieces", "little bandwidth"],
)
async def test_a_slow_network_costs_nothing_but_time(sandbox: Sandbox, temper: Temper) -> None:
    """All is delivered."""
    async with FaultyProxy(sandbox.url, temper) as proxy:
        outcomes = await settle(proxy.url, sandbox, request_timeout=30.0, retry=RetryPolicy())

    assert all(isinstance(outcome, Receipt) for outcome in outcomes)


@pytest.mark.parametrize(
    "temper",
    [
        Temper(piece=5, cut_after=5),
        Temper(piece=5, reset_after=5),
        Temper(swallows=True),
        Temper(latency=0.1, piece=1),
    ],
    ids=["cut", "reset", "black hole", "drip"],
)
async def test_answers_that_are_lost_leave_events_unconfirmed(sandbox: Sandbox, temper: Temper) -> None:
    """Never failed, for the server has them; and never later than the deadline allows."""
    async with FaultyProxy(sandbox.url, temper) as proxy:
        outcomes = await settle(proxy.url, sandbox)

    assert {type(outcome) for outcome in outcomes} == {DeliveryUnconfirmedError}
    assert sandbox.events


async def test_a_network_that_recovers_delivers_what_was_lost(sandbox: Sandbox) -> None:
    """Every event that the server has twice is flagged as a possible duplicate."""

    async def recover(proxy: FaultyProxy) -> None:
        while not proxy.resets:  # Not by the time: a busy machine may be late with its first request.
            await asyncio.sleep(0.01)
        proxy.temper = Temper()

    async with FaultyProxy(sandbox.url, Temper(piece=5, reset_after=5)) as proxy:
        recovering = asyncio.create_task(recover(proxy))
        outcomes = await settle(proxy.url, sandbox, retry=RetryPolicy(deadline=30.0, wait=(0.1, 0.2)))
        await recovering

    assert all(isinstance(outcome, Receipt) for outcome in outcomes)
    times = Counter(one["parentGuid"] for one in sandbox.events)
    twice = {guid for guid, count in times.items() if count > 1}
    flagged = {one.event.parent_guid for one in outcomes if isinstance(one, Receipt) and one.maybe_duplicate}
    assert flagged
    assert twice <= flagged


async def test_connections_that_end_between_requests_lose_nothing(sandbox: Sandbox) -> None:
    """Each carries one answer and a little; what follows goes over fresh ones."""
    async with FaultyProxy(sandbox.url, Temper(cut_after=400)) as proxy:
        outcomes = await settle(proxy.url, sandbox, retry=RetryPolicy(deadline=30.0, wait=(0.01, 0.02)))

    assert all(isinstance(outcome, Receipt) for outcome in outcomes)
    assert proxy.connections > 1


# TLS.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def showing(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    return context


async def over_tls(
    sandbox: Sandbox, certificate: trustme.LeafCert, trusting: ssl.SSLContext
) -> list[Receipt | DeliveryError]:
    async with FaultyProxy(sandbox.url, Temper(), showing(certificate)) as proxy:
        connector = aiohttp.TCPConnector(ssl=trusting)
        async with aiohttp.ClientSession(connector=connector) as session:
            return await settle(proxy.url, sandbox, session=session, request_timeout=5.0)


async def test_a_right_certificate_is_taken(
    sandbox: Sandbox, authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    """And all is delivered over it."""
    outcomes = await over_tls(sandbox, authority.issue_cert("127.0.0.1"), trusting)

    assert all(isinstance(outcome, Receipt) for outcome in outcomes)


@pytest.mark.parametrize("fault", ["wrong host", "expired", "unknown authority"])
async def test_a_wrong_certificate_is_refused(
    sandbox: Sandbox, authority: trustme.CA, trusting: ssl.SSLContext, fault: str
) -> None:
    """Nothing goes out, so nothing is unconfirmed, and the error says what was wrong."""
    asyncio.get_running_loop().set_exception_handler(
        lambda _loop, _context: None
    )  # The proxy's own troubles.
    yesterday = datetime.now(UTC) - timedelta(1)
    certificate = {
        "wrong host": lambda: authority.issue_cert("elsewhere.example"),
        "expired": lambda: authority.issue_cert(
            "127.0.0.1", not_before=yesterday - timedelta(1), not_after=yesterday
        ),
        "unknown authority": lambda: trustme.CA().issue_cert("127.0.0.1"),
    }[fault]()
    outcomes = await over_tls(sandbox, certificate, trusting)

    assert {type(outcome) for outcome in outcomes} == {DeliveryFailedError}
    assert "Certificate" in str(outcomes[0])
    assert not sandbox.requests


# Leaks.

EMITTERS = 1000
OURS = (
    "rokt_events_async.emitter",
    "rokt_events_async.outcomes",
    "rokt_events_async._",
    "aiohttp.client",
    "aiohttp.connector",
)
"""Modules of whose objects none may be left; the growth of memory as a whole is for `tests.soak` to see."""


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def objects() -> int:
    return sum(str(type(thing).__module__).startswith(OURS) for thing in gc.get_objects())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are counted in /proc")
async def test_a_thousand_emitters_leave_nothing_behind() -> None:
    """No task, descriptor, thread or memory, whatever went wrong while they lived."""
    faults: dict[Any, float] = {"503": 0.1, "reset-after": 0.1, "reset-before": 0.1, "silence": 0.005}
    retry = RetryPolicy(deadline=0.3, wait=(0.0, 0.01))

    async def one() -> None:
        emitter = Emitter(
            sandbox.credentials, endpoint=sandbox.url, retry=retry, flush_interval=0, request_timeout=0.05
        )
        async with emitter:
            await emitter.track(event())
        assert emitter.stats.accepted == 1
        assert emitter.stats.pending == 0

    async with Sandbox(faults=faults, history=10) as sandbox:
        for _ in range(100):
            await one()
        gc.collect()
        files, threads, made = descriptors(), threading.active_count(), objects()
        for _ in range(EMITTERS):
            await one()
        await asyncio.sleep(0.1)

        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("rokt-events")]
        assert descriptors() <= files + 4
        assert threading.active_count() == threads
    gc.collect()
    assert objects() < made + 20
