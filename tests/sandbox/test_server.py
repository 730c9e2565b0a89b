"""The sandbox as a server: spoken to without the client, by plain aiohttp."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import threading
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest

from rokt_events_async import Credentials, Emitter
from rokt_events_async.sandbox import Echo, Fault, RecordedRequest, Sandbox
from rokt_events_async.sandbox.faults import Act
from tests.samples import event, missing


def headers(sandbox: Sandbox) -> dict[str, str]:
    credentials = sandbox.credentials
    return {
        "rokt-pub-id": credentials.pub_id,
        "rokt-secret": credentials.secret,
        "rokt-tag-id": credentials.tag_id,
        "Content-Type": "application/json",
        "Accept": "application/json",
    }


def body(*changes: dict[str, Any]) -> bytes:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps(
        {"events": [event().to_dict() | {"eventTime": now} | change for change in changes]}
    ).encode()


async def post(sandbox: Sandbox, data: bytes, **changes: str) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session:
        async with session.post(sandbox.url, data=data, headers=headers(sandbox) | changes) as response:
            text = await response.text()
            return response.status, json.loads(text) if text else None


async def test_it_answers_in_the_specifications_shapes(sandbox: Sandbox) -> None:
    """200, 207, 400, 401, 415, 422."""
    assert await post(sandbox, body({}, {})) == (
        200,
        {"processedEventsCount": 2, "unprocessedEvents": [], "success": True},
    )
    status, partial = await post(sandbox, body({}, {"eventType": "SignalNew"}))
    assert (status, partial["processedEventsCount"], partial["success"]) == (207, 1, False)
    assert (await post(sandbox, b""))[0] == 400
    assert (await post(sandbox, body({}), **{"rokt-secret": "wrong"}))[0] == 401
    assert (await post(sandbox, body({}), **{"Content-Type": "text/plain"}))[0] == 415
    status, refused = await post(sandbox, body(*[{}] * 26))
    assert (status, refused["errors"][0]["code"]) == (422, "TooManyEvents")
    assert [request.status for request in sandbox.requests] == [200, 207, 400, 401, 415, 422]
    assert sandbox.count == 6


async def test_only_the_endpoint_is_there(sandbox: Sandbox) -> None:
    """As at Rokt."""
    async with aiohttp.ClientSession() as session:
        async with session.post(sandbox.url + "/more") as response:
            assert response.status == 404
        async with session.get(sandbox.url) as response:
            assert response.status == 405


async def test_its_record_has_every_request_and_every_verdict(sandbox: Sandbox) -> None:
    """With what was accepted, in order, and never the credentials."""
    await post(sandbox, body({"parentGuid": "one"}, {"parentGuid": "two", "eventType": "SignalNew"}))
    await post(sandbox, b"not json")
    first, second = sandbox.requests

    assert [item["parentGuid"] for item in sandbox.events] == ["one"]
    assert [item.is_accepted for item in first.events] == [True, False]
    assert [problem.code for problem in first.events[1].errors] == ["InvalidEventType"]
    assert (second.refusal and second.refusal.status, second.events, second.body) == (400, (), b"not json")
    assert sandbox.credentials.secret not in repr(sandbox.requests)
    assert str(first) == "#1  207  1/2 accepted  InvalidEventType"
    assert str(second) == "#2  400  refused  InvalidRequestPayload"


async def test_what_a_fault_takes_is_on_record(sandbox: Sandbox) -> None:
    """Whatever the client got to hear."""
    sandbox.fail_next(503, "504-processed")
    assert (await post(sandbox, body({})))[0] == 503
    assert (await post(sandbox, body({})))[0] == 504

    assert [len([item for item in request.events if item.is_accepted]) for request in sandbox.requests] == [
        0,
        1,
    ]
    assert str(sandbox.requests[0]) == "#1  503  0/1 accepted  fault: 503"


async def test_a_history_can_be_bounded() -> None:
    """For one that serves for long."""
    async with Sandbox(history=2) as sandbox:
        for _ in range(3):
            await post(sandbox, body({}))

        assert [request.number for request in sandbox.requests] == [2, 3]


async def test_it_can_be_told_everything() -> None:
    """Credentials, clock, echo form, and who is to hear of requests."""
    heard: list[RecordedRequest] = []
    credentials = Credentials(pub_id="rpub-own", secret="rsec-own", tag_id="7")
    async with Sandbox(
        credentials=credentials,
        clock=lambda: datetime(2020, 1, 1, tzinfo=UTC),
        echo=Echo.of("pascal-case"),
        on_request=heard.append,
    ) as sandbox:
        status, answer = await post(sandbox, body({}))

    assert status == 207
    assert answer["UnprocessedEvents"][0]["Errors"][0]["Code"] == "SandboxEventTimeOutOfRange"
    assert heard == sandbox.requests


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.1", "example.com", "", "::"])
def test_only_loopback(host: str) -> None:
    """Other machines must not reach it."""
    with pytest.raises(ValueError, match="host must be a loopback address, got"):
        Sandbox(host=host)


@pytest.mark.parametrize("host", ["localhost", "::1", "127.0.0.2"])
async def test_loopback_in_all_its_names(host: str) -> None:
    """Version 6 too, where the machine has it."""
    try:
        async with Sandbox(host=host) as sandbox:
            assert (await post(sandbox, body({})))[0] == 200
    except OSError as error:
        if host != "::1":
            raise
        missing(f"no IPv6 on this machine: {error}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"echo": "loud"}, "echo must be one of default"),
        ({"script": 503}, "script must be a list of faults, got 503"),
        ({"script": "503"}, "script must be a list of faults, got '503'"),
        ({"faults": [503]}, r"faults must be a mapping of fault and rate, got \[503\]"),
    ],
)
def test_arguments_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    """Said at once, rather than at the first request."""
    with pytest.raises((ValueError, TypeError), match=message):
        Sandbox(**settings)


async def test_a_form_can_be_named(sandbox: Sandbox) -> None:
    """As on the command line; and a sandbox serves once at a time."""
    async with Sandbox(echo="pascal-case") as named:
        _, answer = await post(named, body({}))
        with pytest.raises(RuntimeError, match="serving already, at http://127"):
            await named.start()

    assert list(answer) == ["ProcessedEventsCount", "UnprocessedEvents", "Success"]


async def test_a_port_that_is_taken(sandbox: Sandbox) -> None:
    """An OSError, and nothing is left behind."""
    port = int(sandbox.url.split(":")[2].split("/")[0])
    other = Sandbox(port=port)
    with pytest.raises(OSError, match="address already in use"):
        await other.start()
    await other.aclose()

    assert "stopped" in repr(other)
    assert "serving" in repr(sandbox)


async def test_it_stops_though_answers_are_owed() -> None:
    """Silence, latency and drip do not hold it up."""
    loop = asyncio.get_running_loop()
    sandbox = Sandbox(
        script=["silence", Fault(delay=1000.0), Fault(act=Act.DRIP, delay=1000.0)], latency=0.01
    )
    async with sandbox:
        calls = [asyncio.create_task(post(sandbox, body({}))) for _ in range(3)]
        await asyncio.sleep(1)
        started = loop.time()
    await asyncio.gather(*calls, return_exceptions=True)

    assert loop.time() - started < 5


async def test_a_drip_and_a_flood_have_an_end(sandbox: Sandbox) -> None:
    """For a client that is patient."""
    sandbox.fail_next(Fault(act=Act.DRIP, delay=0.001), "huge")
    status, answer = await post(sandbox, body({}))
    assert (status, answer["processedEventsCount"]) == (200, 1)

    async with aiohttp.ClientSession() as session:
        async with session.post(sandbox.url, data=body({}), headers=headers(sandbox)) as response:
            assert sum([len(chunk) async for chunk in response.content.iter_any()]) == 64 * 1024 * 1024


@pytest.mark.parametrize("act", [Act.GARBAGE, Act.CUT, Act.HUGE, Act.RESET_AFTER, Act.SILENCE])
async def test_a_client_that_leaves_before_the_answer(act: Act) -> None:
    """No client is left that could be harmed."""
    async with Sandbox(script=[Fault(act=act, delay=1.0)], latency=1.0) as sandbox:
        call = asyncio.create_task(post(sandbox, body({})))
        await asyncio.sleep(0.5)
        call.cancel()
        await asyncio.sleep(3)
        status, _ = await post(sandbox, body({}))

    assert status == 200


async def test_a_client_that_leaves_in_the_middle_harms_nothing() -> None:
    """Of a drip, or of an answer without end."""
    async with Sandbox(script=[Fault(act=Act.DRIP, delay=0.1), "huge", None]) as sandbox:
        async with aiohttp.ClientSession() as session:
            for _ in range(2):
                response = await session.post(sandbox.url, data=body({}), headers=headers(sandbox))
                await response.content.readany()
                response.close()
                await asyncio.sleep(1)
        status, _ = await post(sandbox, body({}))

    assert status == 200


# In a thread of its own, and what others wait for.


def test_it_serves_from_a_thread_of_its_own() -> None:
    """For synchronous tests; the client has a loop of its own, and nothing is left of the thread."""

    async def deliver() -> None:
        async with Emitter(sandbox.credentials, endpoint=sandbox.url) as emitter:
            await emitter.deliver(event("s-1"))

    with Sandbox() as sandbox:
        asyncio.run(deliver())
        assert "serving" in repr(sandbox)

    assert [one["sessionId"] for one in sandbox.events] == ["s-1"]
    assert "stopped" in repr(sandbox)
    assert "rokt-sandbox" not in [thread.name for thread in threading.enumerate()]


def test_a_thread_that_cannot_serve() -> None:
    """The error comes to the caller, and the thread has ended."""
    with Sandbox() as sandbox:
        port = int(sandbox.url.split(":")[2].split("/")[0])
        with pytest.raises(OSError, match="in use"), Sandbox(port=port):
            pass
        assert [thread.name for thread in threading.enumerate()].count("rokt-sandbox") == 1


def test_a_thread_that_cannot_even_try() -> None:
    """Whatever is wrong, no caller waits forever."""
    with pytest.raises(OverflowError), Sandbox(port=70_000):
        pass
    assert "rokt-sandbox" not in [thread.name for thread in threading.enumerate()]


def test_a_thread_for_what_serves_already() -> None:
    """Refused, and it serves on; afterwards it may be started again."""
    sandbox = Sandbox()
    for _ in range(2):
        with sandbox:
            with pytest.raises(RuntimeError, match="serving already"), sandbox:
                pass
            assert "serving" in repr(sandbox)
    assert "rokt-sandbox" not in [thread.name for thread in threading.enumerate()]


def test_ctrl_c_while_it_begins_to_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread is not left behind."""

    original, here = concurrent.futures.Future.result, threading.current_thread()

    def result(self: Any, timeout: float | None = None) -> Any:
        if threading.current_thread() is here:
            raise KeyboardInterrupt
        return original(self, timeout)

    monkeypatch.setattr(concurrent.futures.Future, "result", result)
    with pytest.raises(KeyboardInterrupt), Sandbox():
        pass
    assert "rokt-sandbox" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.every_loop
async def test_waiting_for_events() -> None:
    """From the sandbox's own loop, and from another; those that were there before count."""
    with Sandbox() as in_a_thread:
        async with Sandbox() as here:
            for sandbox in (here, in_a_thread):
                async with Emitter(sandbox.credentials, endpoint=sandbox.url, flush_interval=0) as emitter:
                    waiting = [asyncio.create_task(sandbox.wait_for(count)) for count in (1, 3)]
                    await asyncio.sleep(0.01)
                    for index in range(3):
                        await emitter.track(event(f"s-{index}"))
                    first, all_three = await asyncio.gather(*waiting)

                assert len(first) >= 1
                assert {one["sessionId"] for one in all_three} == {"s-0", "s-1", "s-2"}
                assert len(await sandbox.wait_for(0)) == 3


async def test_waiting_in_vain(sandbox: Sandbox) -> None:
    """The error tells what there was; who has gone is not woken."""
    async with Emitter(sandbox.credentials, endpoint=sandbox.url) as emitter:
        gone = asyncio.create_task(sandbox.wait_for(2))
        await asyncio.sleep(0)
        gone.cancel()
        await emitter.deliver(event())
        with pytest.raises(TimeoutError, match=r"1 of 2 events were accepted in 0\.5 s, in 1 requests"):
            await sandbox.wait_for(2, timeout=0.5)
        waiting = asyncio.create_task(sandbox.wait_for(2))
        await emitter.deliver(event())
        assert len(await waiting) == 2
