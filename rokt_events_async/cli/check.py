"""`rokt-events check`: are the endpoint, the network, TLS and the credentials right?"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import aiohttp
import attrs
import click
from rich.console import Console
from yarl import URL

from rokt_events_async import Credentials, InvalidSettingError, __version__
from rokt_events_async.cli._help import Command
from rokt_events_async.settings import choose_endpoint, is_disabled

_SKEW: Final = 60.0
"""Seconds by which a clock may differ before that is said."""

_SHOWN: Final = 200

_CLOSING: Final = 0.01
"""Seconds in which connections that were aborted are closed: asyncio does it at later turns."""


@attrs.frozen
class Step:
    """One thing that was looked at.

    Attributes:
        name: What.
        is_good: True if it is right, or not refused.
        found: What was found.
        hint: What to look at; empty if it is right.
    """

    name: str
    is_good: bool
    found: str
    hint: str = ""


@click.command(
    cls=Command,
    examples=(
        "rokt-events check",
        "rokt-events check --json --timeout 3",
    ),
)
@click.option("--endpoint", metavar="URL", help="By default ROKT_ENDPOINT, or production.")
@click.option("--timeout", type=float, default=10.0, show_default=True, help="Seconds for each step.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(endpoint: str | None, timeout: float, as_json: bool) -> int:  # noqa: FBT001 -- by click
    """Looks whether network, TLS and credentials are right.

    It posts an empty list of events, which records nothing. The specification answers that with 422
    NoEventsProvided; whether Rokt looks at the credentials first it does not say. So the answer can only be
    "not refused". The exit status is 1 if something is wrong.
    """
    if not timeout > 0:
        raise click.UsageError(f"--timeout must be more than 0 seconds, got {timeout:g}")
    steps = asyncio.run(_collect(endpoint, timeout, quiet=as_json))
    if as_json:
        print(json.dumps([attrs.asdict(step) for step in steps], indent=2))
    return int(not all(step.is_good for step in steps))


async def _collect(endpoint: str | None, timeout: float, *, quiet: bool) -> list[Step]:
    console = Console(highlight=False, soft_wrap=True)
    steps = []
    async for step in _steps(endpoint, timeout):
        steps.append(step)
        if not quiet:
            mark, style = ("ok", "green") if step.is_good else ("WRONG", "bold red")
            console.print(f"[{style}]{mark:5}[/] {step.name}: ", end="")
            console.print(f"{step.found}\n      {step.hint}".rstrip(), markup=False)
    await asyncio.sleep(_CLOSING)
    return steps


async def _steps(endpoint: str | None, timeout: float) -> AsyncIterator[Step]:
    """Yields one step after the other; the first that is wrong is the last, but for the credentials."""
    try:
        url = URL(choose_endpoint(endpoint, allow_http=False))
    except InvalidSettingError as error:
        yield Step("endpoint", is_good=False, found=str(error), hint="Look at ROKT_ENDPOINT, or --endpoint.")
        return
    yield Step("endpoint", is_good=True, found=str(url))
    if problem := _look_at_kill_switch():
        yield Step("kill switch", is_good=False, found=problem)
    credentials = None
    try:
        credentials = Credentials.from_env()
    except InvalidSettingError as error:
        yield Step("credentials", is_good=False, found=str(error))
    else:
        yield Step(
            "credentials", is_good=True, found=f"pub_id {credentials.pub_id}, tag_id {credentials.tag_id}"
        )
    for look in (_resolve, _connect):
        step = await _within(look(url, timeout), look.__name__.strip("_"), timeout)
        yield step
        if not step.is_good:
            return
    if credentials is not None:
        for step in await _post(url, credentials, timeout):
            yield step


def _look_at_kill_switch() -> str:
    try:
        return "ROKT_DISABLED=1 is set: no event is sent" if is_disabled() else ""
    except InvalidSettingError as error:
        return str(error)


async def _within(look: Any, name: str, timeout: float) -> Step:
    try:
        async with asyncio.timeout(timeout):
            step: Step = await look
            return step
    except TimeoutError:
        hint = "A firewall may drop the packets, or a proxy may be needed."
        return Step(name, is_good=False, found=f"no answer within {timeout:g} s", hint=hint)


async def _resolve(url: URL, _timeout: float) -> Step:
    host, port = _address(url)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        hint = "Look at the spelling of the host, and at the machine's DNS."
        return Step("resolve", is_good=False, found=f"{host}: {error.strerror or error}", hint=hint)
    addresses = dict.fromkeys(str(one[4][0]) for one in found)
    return Step("resolve", is_good=True, found=f"{host} is {', '.join(addresses)}")


async def _connect(url: URL, timeout: float) -> Step:
    host, port = _address(url)
    context = ssl.create_default_context() if url.scheme == "https" else None
    try:
        limit = None if context is None else 0.9 * timeout
        _, writer = await asyncio.open_connection(host, port, ssl=context, ssl_handshake_timeout=limit)
    except ConnectionAbortedError:
        hint = "Something is there that speaks no TLS, or a proxy that hangs."
        return Step("connect", is_good=False, found=f"no TLS handshake within {timeout:g} s", hint=hint)
    except ssl.SSLCertVerificationError as error:
        hint = "The certificate is of another host, has expired, or its authority is not known here."
        return Step("connect", is_good=False, found=f"TLS: {error.verify_message}", hint=hint)
    except ssl.SSLError as error:
        hint = "Something that speaks no TLS answers there; is it a proxy, or an http endpoint?"
        return Step("connect", is_good=False, found=f"TLS: {error.reason or error}", hint=hint)
    except OSError as error:
        hint = "Nothing listens there, or a firewall is in between."
        return Step(
            "connect", is_good=False, found=f"{host} port {port}: {error.strerror or error}", hint=hint
        )
    connection: Any = writer.get_extra_info("ssl_object")
    writer.transport.abort()
    with_tls = f", {connection.version()}" if connection else ", without TLS"
    return Step("connect", is_good=True, found=f"{host} port {port}{with_tls}")


def _address(url: URL) -> tuple[str, int]:
    assert url.host is not None, "an endpoint has a host"
    assert url.port is not None, "http and https have ports"
    return url.host, url.port


async def _post(url: URL, credentials: Credentials, timeout: float) -> list[Step]:
    headers = {
        "rokt-pub-id": credentials.pub_id,
        "rokt-secret": credentials.secret,
        "rokt-tag-id": credentials.tag_id,
        "Content-Type": "application/json",
        "Accept": "application/json",
        "User-Agent": f"rokt_events_async/{__version__}",
    }
    limit = aiohttp.ClientTimeout(total=timeout)
    try:
        async with (
            aiohttp.ClientSession(timeout=limit, cookie_jar=aiohttp.DummyCookieJar()) as session,
            session.post(url, data=b'{"events":[]}', headers=headers, allow_redirects=False) as answer,
        ):
            text = (await answer.content.read(64 * 1024)).decode("utf-8", "replace")
            step = judge(answer.status, answer.content_type, text)
            date = answer.headers.get("Date", "")
    except TimeoutError:
        found = f"no answer within {timeout:g} s"
        return [Step("answer", is_good=False, found=found, hint="The server, or a proxy before it, hangs.")]
    except aiohttp.ClientError as error:
        # Not the error's own text: it may show the request's headers.
        found = f"the connection broke before an answer came ({type(error).__name__})"
        hint = "Is it an HTTP server, or a proxy in between?"
        return [Step("answer", is_good=False, found=found, hint=hint)]
    return [step, *_clock(date, now=datetime.now(UTC))]


def judge(status: int, content_type: str, text: str) -> Step:
    """Returns what an answer to an empty list of events says. Pure."""
    shown = " ".join(text.encode("unicode_escape").decode("ascii").split())[:_SHOWN]
    found = f"HTTP {status}: {shown}" if shown else f"HTTP {status}"
    if status == 422 and "NoEventsProvided" in text:
        return Step("answer", is_good=True, found="the credentials are not refused (422 NoEventsProvided)")
    if status in (401, 403):
        hint = "Rokt refuses the credentials: look at ROKT_PUB_ID, ROKT_SECRET and ROKT_TAG_ID."
        return Step("answer", is_good=False, found=found, hint=hint)
    if status == 407 or (status >= 400 and content_type == "text/html"):
        hint = "That is no answer of Rokt's: a proxy or a load balancer in between wrote it."
        return Step("answer", is_good=False, found=found, hint=hint)
    if status in (404, 405, 410) or 300 <= status <= 399:
        return Step("answer", is_good=False, found=found, hint="Look at the path of the endpoint.")
    if status == 429 or status >= 500:
        hint = "The server has trouble at the moment; events would be sent again."
        return Step("answer", is_good=False, found=found, hint=hint)
    if 200 <= status <= 299:
        return Step("answer", is_good=True, found=f"the credentials are not refused ({found})")
    hint = "Rokt answers an empty list with 422 NoEventsProvided; this is something else."
    return Step("answer", is_good=False, found=found, hint=hint)


def _clock(date: str, *, now: datetime) -> list[Step]:
    """Compares the server's clock: an event whose time is off is refused."""
    try:
        skew = (now - parsedate_to_datetime(date)).total_seconds()
    except (TypeError, ValueError):
        return []
    if abs(skew) <= _SKEW:
        return [Step("clock", is_good=True, found="agrees with the server's to within a minute")]
    direction = "ahead of" if skew > 0 else "behind"
    found = f"this machine's clock is {abs(skew):.0f} s {direction} the server's"
    hint = "Events more than 5 minutes ahead are refused: look at the machine's time service."
    return [Step("clock", is_good=abs(skew) <= 300, found=found, hint=hint)]
