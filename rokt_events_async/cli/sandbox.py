"""`rokt-events sandbox`: the Server Events API on loopback, for an application to talk to."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import click
from rich.console import Console

from rokt_events_async.cli._help import Command
from rokt_events_async.sandbox import ECHO_FORMS, FAULTS, Echo, RecordedRequest, Sandbox

_EXPOSED: Final = (
    "Every machine that reaches this address can send it events: use it in a network of your own only. "
    "The page needs the token in its address. An application in another container sets "
    "ROKT_ENDPOINT to this container's name, and ROKT_ALLOW_HTTP=1."
)


class _Rates(click.ParamType[Any]):
    """`503=0.05`: a fault and its rate."""

    name = "FAULT=RATE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        name, _, rate = str(value).partition("=")
        try:
            return name, float(rate)
        except ValueError:
            self.fail(f"must be FAULT=RATE, as in 503=0.05, got {value!r}", param, ctx)


class _Latency(click.ParamType[Any]):
    """`0.1`, or `0.01-0.2` for a random latency between the two."""

    name = "SECONDS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, float]:
        shortest, _, longest = str(value).partition("-")
        try:
            return float(shortest), float(longest or shortest)
        except ValueError:
            self.fail(f"must be SECONDS or SHORTEST-LONGEST, as in 0.01-0.2, got {value!r}", param, ctx)


@click.command(
    cls=Command,
    examples=(
        "rokt-events sandbox --fault 503=0.05 --latency 0.01-0.2",
        "rokt-events sandbox --host 0.0.0.0 --expose",
    ),
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--expose", is_flag=True, help="Let --host be other than loopback, for containers.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8787, show_default=True, help="0 takes a free one."
)
@click.option(
    "--echo",
    "echoes",
    multiple=True,
    type=click.Choice(list(ECHO_FORMS)),
    metavar="FORM",
    help="Form of the answers; can be repeated. One of: " + ", ".join(ECHO_FORMS) + ".",
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    type=_Rates(),
    help="A fault and its rate; can be repeated. A status, or one of: " + ", ".join(FAULTS) + ".",
)
@click.option(
    "--latency", type=_Latency(), default="0", help="Before every answer; 0.01-0.2 is random between the two."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the faults and the latency.")
def sandbox(
    host: str,
    expose: bool,  # noqa: FBT001 -- by click
    port: int,
    echoes: tuple[str, ...],
    faults: tuple[tuple[str, float], ...],
    latency: tuple[float, float],
    seed: int,
) -> int:
    """Serves the Server Events API on loopback until Ctrl-C.

    It prints the address of a live page to watch it, and logs a line for each request. With --host 0.0.0.0
    --expose other containers reach it.
    """
    console = Console(highlight=False, soft_wrap=True)

    def log(request: RecordedRequest) -> None:
        console.print(f"{time.strftime('%H:%M:%S')}  {request}")

    try:
        served = Sandbox(
            host=host,
            port=port,
            echo=Echo.of(*echoes),
            faults=dict(faults),
            latency=latency,
            seed=seed,
            on_request=log,
            history=1,  # The page has its own, which is bounded.
            page=True,
            expose=expose,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        asyncio.run(_serve(served, console, exposed=expose))
    except OSError as error:
        raise click.UsageError(f"cannot listen on {host} port {port}: {error.strerror}") from None
    except KeyboardInterrupt:
        console.print(f"stopped after {served.count} requests")
    return 0


async def _serve(served: Sandbox, console: Console, *, exposed: bool) -> None:
    async with served:
        credentials = served.credentials
        console.print("Serving the Server Events API. An application that talks to it needs")
        console.print(f"  export ROKT_PUB_ID={credentials.pub_id}")
        console.print(f"  export ROKT_SECRET={credentials.secret}")
        console.print(f"  export ROKT_TAG_ID={credentials.tag_id}")
        console.print(f"  export ROKT_ENDPOINT={served.url}")
        console.print(f'  Emitter(endpoint="{served.url}")')
        console.print(f"Watch it, and make it misbehave, at {served.page_url}")
        if exposed:
            console.print(_EXPOSED, style="bold yellow")
        console.print("Ctrl-C stops it.")
        await asyncio.Event().wait()
