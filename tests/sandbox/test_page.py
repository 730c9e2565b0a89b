"""The live page over HTTP: who may ask, what the controls do, what the stream says."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from rokt_events_async import Credentials, DeliveryError, Emitter, RetryPolicy
from rokt_events_async.sandbox import Echo, Fault, Sandbox
from rokt_events_async.sandbox import _page as page
from tests.samples import emitter_for, event
from tests.sandbox.test_live import recorded, wire

pytestmark = pytest.mark.real_loop


@pytest.fixture
async def served() -> AsyncIterator[Sandbox]:
    async with Sandbox(page=True) as sandbox:
        yield sandbox


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(headers={"Accept-Encoding": "identity"}) as session:
        yield session


async def ask(
    client: aiohttp.ClientSession, sandbox: Sandbox, control: str, asked: Any, **more: Any
) -> tuple[int, Any]:
    """Uses a control."""
    async with client.post(f"{sandbox.page_url}_live/{control}", json=asked, **more) as answer:
        return answer.status, await answer.json()


class Stream:
    """What the stream says, message by message."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.last = ""

    async def next(self, kind: str) -> Any:
        """Returns the next message of this kind, and skips others."""
        async with asyncio.timeout(10):
            while True:
                block = (await self.response.content.readuntil(b"\n\n")).decode()
                if not block:
                    raise EOFError("the stream has ended")
                fields = dict(line.split(": ", 1) for line in block.strip().splitlines())
                self.last = fields.get("id", self.last)
                if fields.get("event") == kind:
                    return json.loads(fields["data"])

    async def rows(self, count: int) -> list[Any]:
        """Returns the next rows."""
        found: list[Any] = []
        while len(found) < count:
            found += (await self.next("requests"))["rows"]
        return found


async def stream(client: aiohttp.ClientSession, sandbox: Sandbox, last: str = "") -> Stream:
    """Opens the stream."""
    url = sandbox.url.removesuffix("/v1/partner/events") + "/_live/events"
    return Stream(await client.get(url, headers={"Last-Event-ID": last} if last else {}))


async def send(sandbox: Sandbox, *parents: str) -> None:
    """Sends events as an application does."""
    async with emitter_for(sandbox) as emitter:
        for parent in parents:
            await emitter.track(event(parent_guid=parent))


async def test_a_sandbox_has_no_page_by_default(sandbox: Sandbox, client: aiohttp.ClientSession) -> None:
    """And says how to have one."""
    with pytest.raises(RuntimeError, match=r"no page: use Sandbox\(page=True\)"):
        _ = sandbox.page_url
    async with client.get(sandbox.url.removesuffix("/v1/partner/events") + "/") as answer:
        assert answer.status == 404


async def test_its_files(served: Sandbox, client: aiohttp.ClientSession) -> None:
    """All of them, under a policy that lets nothing else in; and no other file of the machine."""
    async with client.get(served.page_url) as answer:
        text = await answer.text()
        assert answer.content_type == "text/html"
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "style=" not in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    for file in page._FILES.iterdir():
        async with client.get(f"{served.page_url}_live/page/{file.name}") as answer:
            assert answer.status == 200
            assert await answer.read() == file.read_bytes()
    for name in ("nothing.js", "..%2f_page.py", "%2e%2e%2fserver.py", "..%2f..%2f..%2fREADME.md", "page"):
        async with client.get(f"{served.page_url}_live/page/{name}") as answer:
            assert answer.status == 404


@pytest.mark.parametrize(
    ("headers", "status", "field"),
    [
        ({"Host": "evil.example:8787"}, 403, "host"),
        ({"Host": ""}, 403, "host"),
        ({"Origin": "http://evil.example"}, 403, "origin"),
        ({"Origin": "null"}, 403, "origin"),
        ({"Origin": "http://localhost:1"}, 403, "origin"),
    ],
)
@pytest.mark.parametrize("path", ["", "_live/events", "_live/requests/1", "_live/page/app.js"])
async def test_other_pages_read_nothing(
    served: Sandbox,
    client: aiohttp.ClientSession,
    headers: dict[str, str],
    status: int,
    field: str,
    path: str,
) -> None:
    """Any page can reach loopback, by another name too."""
    async with client.get(served.page_url + path, headers=headers) as answer:
        assert answer.status == status
        assert (await answer.json())["field"] == field


@pytest.mark.parametrize(
    ("more", "status", "field"),
    [
        ({"headers": {"Host": "evil.example"}}, 403, "host"),
        ({"headers": {"Origin": "http://evil.example"}}, 403, "origin"),
        ({"headers": {"Content-Type": "text/plain"}}, 415, "Content-Type"),
    ],
)
async def test_other_pages_change_nothing(
    served: Sandbox, client: aiohttp.ClientSession, more: dict[str, Any], status: int, field: str
) -> None:
    """A form can send text, and no JSON."""
    before = served._behaviour.shown()
    found, said = await ask(client, served, "fail-next", {"fault": "503", "count": 1}, **more)
    assert (found, said["field"]) == (status, field)
    assert served._behaviour.shown() == before


async def test_its_own_page_may(served: Sandbox, client: aiohttp.ClientSession) -> None:
    """Its origin is the sandbox's address."""
    headers = {"Origin": served.page_url.rstrip("/")}
    status, said = await ask(client, served, "fail-next", {"fault": "503", "count": 2}, headers=headers)
    assert (status, said["script"]) == (200, ["503", "503"])


async def test_the_controls(served: Sandbox, client: aiohttp.ClientSession) -> None:
    """Each does what it says, to the next request."""
    await ask(client, served, "fail-next", {"fault": "cut"})
    await ask(client, served, "fail-next", {"fault": "503-html", "count": 2})
    served.fail_next(Fault.answer(503, b"mine"))
    _, said = await ask(client, served, "script", {"script": ["503-html", "503"]})
    assert said["script"] == ["503-html", "503"]
    assert served._behaviour.plan.script[1].body == b"mine", "what was armed keeps its body"
    await ask(client, served, "script", {"script": []})

    _, said = await ask(
        client, served, "settings", {"rates": [{"fault": "503", "rate": 1}], "latency": [1, 2]}
    )
    assert said["rates"] == [{"fault": "503", "rate": 1}]
    assert said["latency"] == [1, 2]
    credentials = {
        "rokt-pub-id": served.credentials.pub_id,
        "rokt-secret": served.credentials.secret,
        "rokt-tag-id": served.credentials.tag_id,
    }

    async def status() -> int:
        async with client.post(served.url, json={"events": []}, headers=credentials) as answer:
            return answer.status

    assert await status() == 503
    await ask(client, served, "settings", {"rates": []})
    assert await status() == 422
    _, said = await ask(client, served, "settings", {"credentials": False, "echo": ["empty-401", "foreign"]})
    assert (said["credentials"], said["echo"]) == (False, ["empty-401", "foreign"])
    assert await status() == 401
    await ask(client, served, "settings", {"credentials": True, "echo": []})
    assert await status() == 422
    assert served.count == 4
    await ask(client, served, "clear", {})
    assert (served.count, served.requests, served.events) == (0, [], [])


@pytest.mark.parametrize(
    ("control", "asked", "field"),
    [
        ("fail-next", {"fault": "explode", "count": 1}, "fault"),
        ("fail-next", {"fault": 503, "count": 1}, "fault"),
        ("fail-next", {"count": 1}, "fault"),
        ("fail-next", {"fault": "503", "count": 0}, "count"),
        ("fail-next", {"fault": "503", "count": True}, "count"),
        ("fail-next", {"fault": "503", "count": 1001}, "count"),
        ("script", {}, "script"),
        ("script", {"script": ["nothing"]}, "script"),
        ("script", {"script": ["503"] * 1001}, "script"),
        ("settings", {"rates": {"503": 0.5}}, "rates"),
        ("settings", {"rates": [{"fault": "503"}]}, "rates"),
        ("settings", {"rates": [{"fault": "503", "rate": True}]}, "rates"),
        ("settings", {"rates": [{"fault": "503", "rate": 2}]}, "rates"),
        ("settings", {"rates": [{"fault": "503", "rate": 0.6}, {"fault": "cut", "rate": 0.6}]}, "rates"),
        ("settings", {"rates": [{"fault": [], "rate": 0.6}]}, "rates"),
        ("settings", {"latency": [2, 1]}, "latency"),
        ("settings", {"latency": [0, 1e9]}, "latency"),
        ("settings", {"latency": ["0", 1]}, "latency"),
        ("settings", {"latency": 5}, "latency"),
        ("settings", {"echo": "foreign"}, "echo"),
        ("settings", {"echo": ["loud"]}, "echo"),
        ("settings", {"credentials": 1, "latency": [1, 1]}, "credentials"),
        ("settings", [], "body"),
    ],
)
async def test_controls_that_are_wrong(
    served: Sandbox, client: aiohttp.ClientSession, control: str, asked: Any, field: str
) -> None:
    """422 with the field and what would be right; and nothing is changed."""
    before = served._behaviour.shown()
    status, said = await ask(client, served, control, asked)
    assert (status, said["field"]) == (422, field)
    assert said["message"]
    assert served._behaviour.shown() == before


async def test_faults_of_the_programs_own(client: aiohttp.ClientSession) -> None:
    """They are shown by a name of their own, and survive what the page does around them."""
    mine, other = Fault.answer(503, b"mine", retry_after="9"), Fault(count_offset=5)
    async with Sandbox(page=True, script=[503, None, mine, other], faults={mine: 0.1, 500: 0.1}) as served:
        _, said = await ask(client, served, "script", {"script": ["none", "503", "wrong-count"]})
        assert said["script"] == ["none", "503", "wrong-count"]
        assert served._behaviour.plan.script[2] == other
        await ask(client, served, "script", {"script": []})
        _, said = await ask(client, served, "script", {"script": ["wrong-count", "none"]})
        assert served._behaviour.plan.script == (other, Fault()), "brought back"
        rates = [{"fault": "503", "rate": 0.2}, {"fault": "500", "rate": 0.004}]
        await ask(client, served, "settings", {"rates": rates})
        assert served._behaviour.plan.rates[0] == (mine, 0.2)
        _, said = await ask(client, served, "settings", {"rates": [{"fault": "cut", "rate": 0.7}, *rates]})
        rates[0]["rate"] = 0.9
        status, said = await ask(
            client, served, "settings", {"rates": [{"fault": "cut", "rate": 0.7}, *rates]}
        )
        assert status == 422
        assert said["message"] == (
            "fault rates must add up to at most 1, got {'cut': 0.7, '503': 0.9, '500': 0.004}"
        )
    async with Sandbox(page=True, echo=Echo(count_offset=3)) as served:
        _, said = await ask(client, served, "fail-next", {"fault": "503"})
        assert (said["echo"], said["isOther"]) == ([], True)


async def test_a_clear_while_requests_are_on_their_way(
    served: Sandbox, client: aiohttp.ClientSession
) -> None:
    """Each is recorded once, under a number of its own."""
    credentials = served.credentials
    body = json.dumps({"events": [wire()]}).encode()
    head = (
        f"POST /v1/partner/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"rokt-pub-id: {credentials.pub_id}\r\nrokt-secret: {credentials.secret}\r\n"
        f"rokt-tag-id: {credentials.tag_id}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", served._port)
    writer.write(head.encode() + body[:10])
    while served.count == 0:
        await asyncio.sleep(0.01)
    await ask(client, served, "clear", {})
    for number in range(3):
        await send(served, str(number))
    writer.write(body[10:])
    await reader.readuntil(b"\r\n\r\n")
    writer.close()
    numbers = [request.number for request in served.requests]
    assert len(set(numbers)) == 4
    assert served._live is not None
    assert len(served._live._by_number) == 4


async def test_a_client_that_hangs_up_is_not_told(served: Sandbox, client: aiohttp.ClientSession) -> None:
    """Its answer has no latency, because the client did not hear it."""
    await ask(client, served, "settings", {"latency": [300, 300]})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.1), client.post(served.url, data=b"{}") as answer:
            await answer.read()
    await asyncio.sleep(0.5)
    reading = await stream(client, served)
    await reading.next("hello")
    assert (await reading.rows(1))[0]["latency"] is None
    reading.response.close()


async def test_another_pages_form_reaches_no_api(served: Sandbox, client: aiohttp.ClientSession) -> None:
    """It uses up no fault, and is not recorded."""
    served.fail_next(503)
    evil = {"Origin": "http://evil.example"}
    async with client.post(served.url, data=b"{}", headers=evil) as answer:
        assert answer.status == 403
    assert (served.count, len(served._behaviour.plan.script)) == (0, 1)


async def test_controls_that_are_no_json_or_none(served: Sandbox, client: aiohttp.ClientSession) -> None:
    """NaN is no number, and a control has a name and a size."""
    json_type = {"Content-Type": "application/json"}
    url = f"{served.page_url}_live/settings"
    for data in (b"{", b"[" * 100_000, b'{"latency": [NaN, NaN]}', b"\xff"):
        async with client.post(url, data=data, headers=json_type) as answer:
            assert answer.status == 422
    async with client.post(url, data=io.BytesIO(b" " * (1024 * 1024 + 1)), headers=json_type) as answer:
        assert answer.status == 413
    status, said = await ask(client, served, "explode", {})
    assert (status, said["field"]) == (404, "control")


async def test_the_stream(served: Sandbox, client: aiohttp.ClientSession) -> None:
    """Hello, what is kept, what is new, changes, a new record."""
    await send(served, "a")
    reading = await stream(client, served)
    hello = await reading.next("hello")
    assert hello["env"]["ROKT_SECRET"] == served.credentials.secret
    assert hello["endpoint"] == served.url
    assert {fault["name"]: fault["takes"] for fault in hello["faults"]}["504-processed"] == "yes"
    assert (await reading.rows(1))[0]["n"] == 1
    await send(served, "b")
    assert (await reading.rows(1))[0]["n"] == 2

    served.fail_next(503)
    assert (await reading.next("settings"))["script"] == ["503"]
    reading.response.close()

    await send(served, "c")
    again = await stream(client, served, reading.last)
    assert (await again.next("hello"))["goesOn"]
    assert [row["n"] for row in await again.rows(2)] == [3, 4], "nothing twice, nothing missed"
    served.clear()
    assert (await again.next("cleared"))["totals"]["requests"] == 0
    await send(served, "d")
    assert (await again.rows(1))[0]["n"] == 5, "numbers go on: an answer may be on its way"
    again.response.close()


async def test_a_change_that_is_undone_at_once(served: Sandbox, client: aiohttp.ClientSession) -> None:
    """The page that made it has it from the answer, and must hear that it holds no more."""
    reading = await stream(client, served)
    await reading.next("hello")
    _, said = await ask(client, served, "fail-next", {"fault": "503"})
    served._behaviour.plan.set_script([])
    told = await reading.next("settings")
    assert told["script"] == []
    assert told["version"] > said["version"]
    reading.response.close()


async def test_a_latency_that_comes_later(served: Sandbox, client: aiohttp.ClientSession) -> None:
    """A request is shown when it is judged, its latency when the answer has left."""
    reading = await stream(client, served)
    await reading.next("hello")
    await ask(client, served, "settings", {"latency": [300, 300]})
    sending = asyncio.create_task(send(served, "a"))
    (row,) = await reading.rows(1)
    assert row["latency"] is None
    await sending
    late: list[Any] = []
    while not late:
        late = (await reading.next("requests"))["late"]
    assert late[0][0] == 1
    assert late[0][1] >= 290
    reading.response.close()


async def test_an_idle_stream_says_that_it_lives(
    served: Sandbox, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is dead is found out."""
    monkeypatch.setattr(page, "_SILENT_TICKS", 2)
    reading = await stream(client, served)
    await reading.next("hello")
    await reading.next("requests")  # the counters
    assert await reading.response.content.readuntil(b"\n\n") == b": still here\n\n"
    reading.response.close()


async def test_a_page_that_is_too_slow_hears_what_it_missed(client: aiohttp.ClientSession) -> None:
    """It never holds the sandbox up."""
    async with Sandbox(page=True) as served:
        assert served._live is not None
        served._live._kept = 5
        await send(served, *map(str, range(100)))
        reading = await stream(client, served)
        await reading.next("hello")
        assert len(await reading.rows(4)) == 4
        last = reading.last
        reading.response.close()
        for number in range(6):
            await send(served, f"more-{number}")
        again = await stream(client, served, last)
        await again.next("hello")
        assert (await again.next("requests"))["missed"] == 1
        again.response.close()


async def test_details_of_every_kind_of_answer(served: Sandbox, client: aiohttp.ClientSession) -> None:
    """The bodies and headers that were sent; no secret; and words for what is too large."""
    faults = [
        "503-html",
        "empty",
        "cut",
        "huge",
        "compressed",
        "count-too-high",
        "reset-after",
        "reset-before",
    ]
    for fault in faults:
        served.fail_next(fault)
        async with emitter_for(
            served, retry=RetryPolicy(wait=(0.01, 0.02), retry_unconfirmed=False)
        ) as emitter:
            with contextlib.suppress(DeliveryError):
                await (await emitter.track(event()))
    details: dict[str, Any] = {}
    for request in served.requests:
        async with client.get(f"{served.page_url}_live/requests/{request.number}") as answer:
            details.setdefault(str(request.fault), await answer.json())
    assert "503 Service Unavailable" in details["503-html"]["answer"]
    assert details["empty"]["answer"] == ""
    assert details["cut"]["answer"].startswith('{"processedEventsCount"')
    assert "}" not in details["cut"]["answer"]
    assert details["huge"]["answer"] is None
    assert details["huge"]["note"] == "64 MiB of white space, in chunks"
    assert "gzipped" in details["compressed"]["note"]
    assert '"processedEventsCount": 2' in details["count-too-high"]["answer"]
    assert (details["reset-after"]["answer"], details["reset-after"]["response"]) == (None, [])
    assert details["reset-before"]["body"] == ""
    everything = json.dumps(details)
    assert served.credentials.secret not in everything
    assert served.credentials.pub_id not in everything
    async with client.get(f"{served.page_url}_live/requests/999") as answer:
        assert answer.status == 404


async def test_credentials_of_ones_own_are_not_shown(client: aiohttp.ClientSession) -> None:
    """Only those that the sandbox made up."""
    mine = Credentials(pub_id="rpub-mine", secret="rsec-mine", tag_id="9")
    async with Sandbox(credentials=mine, page=True) as served:
        reading = await stream(client, served)
        hello = await reading.next("hello")
        assert hello["env"]["ROKT_PUB_ID"] == "rpub-mine"
        assert "rsec-mine" not in json.dumps(hello)
        reading.response.close()


async def test_exposed(client: aiohttp.ClientSession) -> None:
    """Beyond loopback any name will do, but only with the token that is printed."""
    async with Sandbox(host="0.0.0.0", page=True, expose=True) as served:
        address, _, token = served.page_url.partition("#token=")
        assert address.startswith("http://127.0.0.1:")
        assert len(token) >= 32
        named = {"Host": "sandbox:8787"}
        async with client.get(address, headers=named) as answer:
            assert answer.status == 200
        right = {**named, "Authorization": f"Bearer {token}"}
        for path in ("_live/events", "_live/requests/1"):
            for wrong in ({}, {"Authorization": "Bearer "}, {"Authorization": f"Bearer {token}x"}):
                async with client.get(address + path, headers={**named, **wrong}) as answer:
                    assert (answer.status, (await answer.json())["field"]) == (401, "token")
        async with client.get(f"{address}_live/requests/1", headers=right) as answer:
            assert answer.status == 404
        async with client.get(f"{address}_live/events", headers=right) as answer:
            hello = await Stream(answer).next("hello")
            assert hello["env"]["ROKT_ENDPOINT"] == "http://sandbox:8787/v1/partner/events"
            assert hello["env"]["ROKT_ALLOW_HTTP"] == "1"
        url = f"{address}_live/fail-next"
        async with client.post(url, json={"fault": "503"}, headers=named) as answer:
            assert answer.status == 401
        async with client.post(url, json={"fault": "503"}, headers=right) as answer:
            assert answer.status == 200
        async with client.post(
            url, json={"fault": "503"}, headers=right | {"Origin": "http://evil"}
        ) as answer:
            assert answer.status == 403


async def test_a_page_does_not_hold_the_end_up(client: aiohttp.ClientSession) -> None:
    """A sandbox stops although pages are open, and one whose page has gone notices."""
    async with Sandbox(page=True) as served:
        reading = await stream(client, served)
        await reading.next("hello")
        gone = await stream(client, served)
        await gone.next("hello")
        gone.response.close()
        async with asyncio.timeout(5):
            await served.aclose()
        with pytest.raises((EOFError, aiohttp.ClientError)):
            await reading.next("never")


async def test_a_page_that_is_closed_while_it_is_written_to(
    served: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """That is its good right, and no fault of the sandbox."""
    assert served._live is not None
    for number in range(1, 200):
        body = wire(parentGuid=str(number), clientUniqueId="x" * 60_000)
        served._live.add(recorded(number, body), at=1)
    reader, writer = await asyncio.open_connection("127.0.0.1", served._port)
    writer.write(b"GET /_live/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readuntil(b"event: requests")
    await asyncio.sleep(0.1)
    writer.transport.abort()
    await asyncio.sleep(0.1)
    await send(served, "after")
    assert served.count == 1
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_clearing_without_a_page(sandbox: Sandbox) -> None:
    """The record of a sandbox in a test can be cleared too: between a setup and what is tested."""
    await send(sandbox, "a")
    sandbox.clear()
    await send(sandbox, "b")
    assert [event["parentGuid"] for event in sandbox.events] == ["b"]
    assert sandbox.count == 1


async def test_its_record_is_its_own(client: aiohttp.ClientSession) -> None:
    """A sandbox with a page answers and records just as one without."""
    async with Sandbox(page=True, history=2) as served:
        async with Emitter(served.credentials, endpoint=served.url) as emitter:
            for number in range(3):
                await (await emitter.track(event(f"s-{number}")))
        assert len(served.requests) == 2
        reading = await stream(client, served)
        await reading.next("hello")
        assert len(await reading.rows(3)) == 3
        reading.response.close()
