"""Credentials: episodes in which they are refused, and providers of others."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest

from rokt_events_async import (
    Cause,
    Credentials,
    CredentialsRefusedError,
    DeliveryFailedError,
    Emitter,
    EmitterClosedError,
    InvalidSettingError,
    RetryPolicy,
)
from rokt_events_async._pipeline.keyring import ASK_AGAIN, Episode, Keyring
from rokt_events_async._pipeline.transport import Request
from rokt_events_async._protocol.replies import Reply
from rokt_events_async.sandbox import Sandbox
from tests.samples import CREDENTIALS, emitter_for, event

LOGGER = "rokt_events_async"


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOGGER]


# Episodes.


def test_credentials_that_never_worked_fail_at_once() -> None:
    """But for one probe per wait."""
    episode = Episode(wait=1.5)
    assert not episode.fails_at_once(now=0.0)
    episode.on_refused("s", "HTTP 401", now=10.0)
    assert [episode.fails_at_once(now=now) for now in (10.0, 11.4, 11.5)] == [True, True, False]
    episode.on_start(now=11.5)
    assert episode.fails_at_once(now=11.6)
    episode.on_answer(began=11.5)
    assert not episode.fails_at_once(now=11.6)


def test_credentials_that_have_worked_let_events_wait() -> None:
    """It is an outage then."""
    episode = Episode(wait=1.5)
    episode.on_answer(began=1.0)
    episode.on_refused("s", "HTTP 401", now=10.0)

    assert episode.is_on
    assert not episode.fails_at_once(now=10.0)
    assert episode.probe_at == 11.5


async def test_wrong_from_the_start_costs_one_request_per_wait(caplog: pytest.LogCaptureFixture) -> None:
    """And one line in the log."""
    wrong = Credentials(pub_id="rpub-wrong", secret="rsec-wrong", tag_id="7")
    loop = asyncio.get_running_loop()
    async with Sandbox() as sandbox, Emitter(wrong, endpoint=sandbox.url, flush_interval=0) as emitter:
        with pytest.raises(CredentialsRefusedError):
            await emitter.deliver(event())
        began, before = loop.time(), len(sandbox.requests)
        for number in range(2000):
            delivery = await emitter.track(event(f"s{number}"))
            await asyncio.sleep(0.01)
        await emitter.flush()
        waits = (loop.time() - began) / 1.5
        assert len(sandbox.requests) - before <= waits + 1
        assert emitter.stats.failed == 2001
        assert emitter.health.state == "credentials_refused"
        error = delivery.exception()
        assert isinstance(error, CredentialsRefusedError)
        assert (error.cause, error.can_send_again) == (Cause.CREDENTIALS, True)

    (told,) = [text for text in messages(caplog) if "no event can be delivered" in text]
    assert told.startswith("HTTP 401: Rokt refused the credentials of pub_id 'rpub-wrong' with tag_id '7'")
    assert "SandboxUnauthorized: Credentials or tag id are missing" in told


async def test_a_spell_of_refusals_loses_nothing(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """If they have worked before: events wait, one request per wait asks, and each spell is logged."""
    async with emitter_for(sandbox, flush_interval=0) as emitter:
        await emitter.deliver(event())
        for _ in range(2):
            before = len(sandbox.requests)
            sandbox.fail_next(*[401] * 4)
            deliveries = [await emitter.track(event(f"s{number}")) for number in range(10)]
            await asyncio.gather(*deliveries)
            assert len(sandbox.requests) - before <= 4 + 10
        assert emitter.stats.delivered == 21
        assert emitter.health.state != "credentials_refused"

    told = messages(caplog)
    assert sum("events wait until" in text for text in told) == 2
    assert sum("Rokt accepts the credentials again" in text for text in told) == 2


async def test_events_that_wait_for_credentials_keep_their_deadline(sandbox: Sandbox) -> None:
    """And say what the last request died of."""
    async with emitter_for(sandbox, flush_interval=0, retry=RetryPolicy(deadline=5)) as emitter:
        await emitter.deliver(event())
        sandbox.fail_next(*[403] * 50)
        with pytest.raises(DeliveryFailedError) as caught:
            await emitter.deliver(event())

    assert (caught.value.cause, caught.value.last_cause) == (Cause.DEADLINE, Cause.CREDENTIALS)
    assert caught.value.status == 403


async def test_halves_of_a_probe_are_probes_of_their_own(sandbox: Sandbox) -> None:
    """A refused batch is split, and its halves wait for their turn."""
    loop = asyncio.get_running_loop()
    async with emitter_for(sandbox, flush_interval=0.01) as emitter:
        await emitter.deliver(event())
        sandbox.fail_next(401, 422, 422, 401, 401)
        began = loop.time()
        await asyncio.gather(*[await emitter.track(event()) for _ in range(4)], return_exceptions=True)

        assert loop.time() - began > 4 * 1.0


def test_an_answer_older_than_the_refusal_ends_nothing() -> None:
    """Its request began before: the credentials worked then."""
    episode = Episode(wait=1.5)
    episode.on_refused("s", "HTTP 401", now=10.0)
    episode.on_answer(began=9.0)
    assert (episode.is_on, episode.has_worked) == (True, True)
    episode.on_answer(began=10.5)
    assert not episode.is_on


def test_one_session_alone_holds_up_no_other() -> None:
    """It may be that session's own trouble; two are the credentials'."""
    episode = Episode(wait=1.5)
    episode.on_answer(began=1.0)
    episode.on_refused("s1", "HTTP 403", now=10.0)
    episode.on_refused("s1", "HTTP 403", now=12.0)
    assert not episode.holds_all
    episode.on_refused("s2", "HTTP 403", now=12.0)
    assert episode.holds_all


async def test_a_session_that_a_front_refuses_holds_up_no_other(sandbox: Sandbox) -> None:
    """One payload is always answered 403; the others go on."""

    class Front:
        async def post(self, request: Request) -> Reply:
            await asyncio.sleep(0.01)
            request.went_out = True
            if b"poison" in request.body:
                return Reply(403, {}, b"")
            count = request.body.count(b"eventType")
            return Reply(200, {}, b'{"processedEventsCount":%d,"unprocessedEvents":[]}' % count)

        async def aclose(self) -> None:
            """Holds nothing."""

    loop = asyncio.get_running_loop()
    async with Emitter(CREDENTIALS, flush_interval=0, close_timeout=0, _transport=Front()) as emitter:
        await emitter.deliver(event("first"))
        await emitter.track(event("poison"))
        for number in range(100):
            began = loop.time()
            await emitter.deliver(event(f"s{number}"))
            assert loop.time() - began < 0.1
            await asyncio.sleep(0.1)


async def test_a_late_refusal_of_old_credentials_says_nothing() -> None:
    """They were replaced while the request was under way: the batch is sent again, and no episode begins."""
    others = Credentials("rpub-test", "rsec-rotated", CREDENTIALS.tag_id)

    class Slow:
        def __init__(self) -> None:
            self.answers = [Reply(200, {}, GOOD), Reply(401, {}, b""), Reply(200, {}, GOOD)]

        async def post(self, request: Request) -> Reply:
            request.went_out = True
            await asyncio.sleep(1.0)
            return self.answers.pop(0)

        async def aclose(self) -> None:
            """Holds nothing."""

    async with Emitter(CREDENTIALS, flush_interval=0, _transport=Slow()) as emitter:
        await emitter.deliver(event())
        delivery = await emitter.track(event())
        await asyncio.sleep(0.5)
        emitter._keyring._use(others)
        await asyncio.sleep(1.0)
        assert emitter.health.state != "credentials_refused"
        assert (await delivery).attempts == 2


async def test_the_deadline_is_looked_at_after_the_provider() -> None:
    """It may take its time, and an event whose deadline has passed meanwhile is not sent."""
    answers = [CREDENTIALS]

    async def provide() -> Credentials:
        if not answers:
            await asyncio.sleep(3.0)
            return CREDENTIALS
        return answers.pop()

    class Refusing:
        requests = 0

        async def post(self, request: Request) -> Reply:
            request.went_out = True
            self.requests += 1
            return Reply(200, {}, GOOD) if self.requests == 1 else Reply(401, {}, b"")

        async def aclose(self) -> None:
            """Holds nothing."""

    transport = Refusing()
    policy = RetryPolicy(deadline=4.0)
    async with Emitter(provide, flush_interval=0, retry=policy, _transport=transport) as emitter:
        await emitter.deliver(event())
        await asyncio.sleep(ASK_AGAIN)
        with pytest.raises(DeliveryFailedError, match="deadline of 4 s has passed"):
            await emitter.deliver(event())
    assert transport.requests == 2


GOOD = b'{"processedEventsCount":1,"unprocessedEvents":[],"success":true}'


# Providers.


def asked(*answers: Any) -> tuple[Callable[[], Any], list[int]]:
    """A provider that gives these answers, the last one forever, and how often it was asked."""
    calls: list[int] = []

    def provide() -> Any:
        calls.append(threading.get_ident())
        answer = answers[min(len(calls), len(answers)) - 1]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    return provide, calls


async def test_a_provider_is_asked_at_the_start(sandbox: Sandbox) -> None:
    """Plain, a coroutine function, a partial of one, or an object that can be called."""

    async def provide() -> Credentials:
        return sandbox.credentials

    class Vault:
        async def __call__(self) -> Credentials:
            return sandbox.credentials

    async def provide_for(_shop: str) -> Credentials:
        return sandbox.credentials

    providers: list[Callable[[], Any]] = [
        provide,
        lambda: sandbox.credentials,
        Vault(),
        functools.partial(provide_for, "shop"),
    ]
    for provider in providers:
        emitter = Emitter(provider, endpoint=sandbox.url)
        assert emitter.credentials is None
        async with emitter:
            assert emitter.credentials is sandbox.credentials
            await emitter.deliver(event())


async def test_rotated_credentials_are_taken_up(sandbox: Sandbox) -> None:
    """During an episode, before a probe; the events that waited are delivered with them."""
    others = Credentials("rpub-test", "rsec-rotated", sandbox.credentials.tag_id)
    provide, calls = asked(sandbox.credentials, others)
    async with Emitter(provide, endpoint=sandbox.url, flush_interval=0) as emitter:
        await emitter.deliver(event())
        await asyncio.sleep(ASK_AGAIN)
        sandbox.credentials = others
        receipt = await emitter.deliver(event())

        assert receipt.attempts == 2
        assert emitter.credentials is others
        assert len(calls) == 2
        assert emitter._keyring.clean("rsec-rotated, rsec-sandbox") == "<hidden>, <hidden>"


async def test_a_provider_is_asked_seldom(sandbox: Sandbox) -> None:
    """At most every 30 s, however long the refusals last."""
    provide, calls = asked(sandbox.credentials)
    loop = asyncio.get_running_loop()
    async with Emitter(provide, endpoint=sandbox.url, flush_interval=0) as emitter:
        await emitter.deliver(event())
        sandbox.fail_next(*[401] * 6)
        began = loop.time()
        await emitter.deliver(event())

        assert len(calls) <= 2 + (loop.time() - began) / ASK_AGAIN


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (ValueError("the vault is sealed: rsec-x"), "ValueError"),
        ("rsec-x", "must be a Credentials, got str"),
        (
            Credentials("rpub-x", "rsec-x", "another"),
            "must return credentials of tag_id '42', got tag_id 'another'",
        ),
    ],
)
async def test_a_provider_that_fails_later_is_logged(
    caplog: pytest.LogCaptureFixture, answer: Any, what: str
) -> None:
    """The old credentials stay, and no secret is in the line."""
    provide, _ = asked(CREDENTIALS, answer)
    keyring = Keyring(provide, timeout=1)
    await keyring.open(now=0.0)
    await keyring.refresh(now=ASK_AGAIN)

    assert keyring.current is CREDENTIALS
    assert what in messages(caplog)[0]
    assert "rsec-x" not in caplog.text


@pytest.mark.parametrize("error", [ValueError("sealed"), TimeoutError(), InvalidSettingError("no")])
async def test_a_provider_that_fails_at_the_start_raises(error: Exception) -> None:
    """From `start()`; the emitter is still new, and can be started later."""
    provide, _ = asked(error, CREDENTIALS)
    emitter = Emitter(provide, observers=[])
    with pytest.raises(type(error)):
        await emitter.start()
    await emitter.start()
    await emitter.aclose()


async def test_a_provider_that_hangs_is_bounded() -> None:
    """By `request_timeout`; and it is not called a second time meanwhile."""
    calls = 0
    release = asyncio.Event()

    async def provide() -> Credentials:
        nonlocal calls
        calls += 1
        await release.wait()
        return CREDENTIALS

    emitter = Emitter(provide, request_timeout=2.0, observers=[])
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await emitter.start()
    assert calls == 1
    release.set()
    await asyncio.gather(emitter.start(), emitter.start())
    assert calls == 1
    await emitter.aclose()


async def test_a_call_that_still_runs_is_left_at_the_close(sandbox: Sandbox) -> None:
    """Nothing of it stays behind."""
    answers = [sandbox.credentials]

    async def provide() -> Credentials:
        if not answers:
            await asyncio.Event().wait()
        return answers.pop()

    async with Emitter(
        provide, endpoint=sandbox.url, flush_interval=0, close_timeout=1.0, observers=[]
    ) as emitter:
        await emitter.deliver(event())
        await asyncio.sleep(ASK_AGAIN)
        sandbox.fail_next(*[401] * 50)
        await emitter.track(event())
        await asyncio.sleep(2.0)

    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


@pytest.mark.parametrize("error", [asyncio.CancelledError(), LookupError("sealed")])
async def test_a_provider_that_is_cancelled_inside_ends_no_event(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    """It has failed, and the emitter's own work was not cancelled."""
    answers: list[Any] = [sandbox.credentials]

    async def provide() -> Credentials:
        if not answers:
            raise error
        made: Credentials = answers.pop()
        return made

    async with Emitter(provide, endpoint=sandbox.url, flush_interval=0) as emitter:
        await emitter.deliver(event())
        await asyncio.sleep(ASK_AGAIN)
        sandbox.fail_next(401)
        await emitter.deliver(event())

    assert sum("the provider of credentials failed" in text for text in messages(caplog)) == 1


async def test_a_provider_that_swallows_its_cancellation(sandbox: Sandbox) -> None:
    """The close keeps its deadline."""
    answers = [sandbox.credentials]
    stop = asyncio.Event()

    async def provide() -> Credentials:
        while not answers:
            try:
                await stop.wait()
                break
            except asyncio.CancelledError:
                continue
        return answers.pop() if answers else CREDENTIALS

    loop = asyncio.get_running_loop()
    emitter = Emitter(provide, endpoint=sandbox.url, flush_interval=0, observers=[])
    async with emitter:
        await emitter.deliver(event())
        await asyncio.sleep(ASK_AGAIN)
        sandbox.fail_next(*[401] * 50)
        await emitter.track(event())
        await asyncio.sleep(2.0)
        began = loop.time()
        await emitter.aclose(0.2)
        assert loop.time() - began < 2.5
    stop.set()
    await asyncio.sleep(0)


async def test_an_answer_that_comes_late_is_used() -> None:
    """A provider slower than `request_timeout` takes effect all the same."""
    release = asyncio.Event()
    others = Credentials("rpub-test", "rsec-rotated", CREDENTIALS.tag_id)
    answers = [CREDENTIALS, others]

    async def provide() -> Credentials:
        if len(answers) == 1:
            await release.wait()
        return answers.pop(0)

    keyring = Keyring(provide, timeout=1)
    await keyring.open(now=0.0)
    await keyring.refresh(now=ASK_AGAIN)
    assert keyring.current is CREDENTIALS
    release.set()
    await asyncio.sleep(0.01)
    assert keyring.current is others


async def test_a_late_failure_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Also if no caller waits for it any more."""
    release = asyncio.Event()
    answers = [CREDENTIALS]

    async def provide() -> Credentials:
        if answers:
            return answers.pop()
        await release.wait()
        raise LookupError("sealed")

    keyring = Keyring(provide, timeout=1)
    await keyring.open(now=0.0)
    await keyring.refresh(now=ASK_AGAIN)
    release.set()
    await asyncio.sleep(0.01)
    assert [text.rpartition(": ")[2] for text in messages(caplog)] == [
        "the provider of credentials has not answered within 1 s",
        "LookupError",
    ]


async def test_a_plain_provider_that_raises_stop_iteration() -> None:
    """No future can carry that."""
    keyring = Keyring(lambda: next(iter(())), timeout=1)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await keyring.open(now=0.0)


async def test_a_start_that_is_cancelled_leaves_nothing() -> None:
    """Once the emitter is closed."""

    async def provide() -> Credentials:
        await asyncio.Event().wait()
        return CREDENTIALS

    emitter = Emitter(provide)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await emitter.start()
    await emitter.aclose()
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def test_closed_while_the_provider_is_asked() -> None:
    """The start says so."""
    emitter: Emitter

    async def provide() -> Credentials:
        await emitter.aclose()
        return CREDENTIALS

    emitter = Emitter(provide)
    with pytest.raises(EmitterClosedError):
        await emitter.start()


@pytest.mark.parametrize(
    ("credentials", "message"),
    [
        (Credentials, "got the class Credentials"),
        ("rsec-text", "got str"),
        (7, "must be a Credentials object, or a function that returns one, got int"),
    ],
)
def test_what_is_no_provider(credentials: Any, message: str) -> None:
    """Named by its type: its value may be a secret."""
    with pytest.raises(InvalidSettingError, match=message) as caught:
        Emitter(credentials)
    assert "rsec-text" not in str(caught.value)
