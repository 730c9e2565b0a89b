"""`rokt-events relay`: delivers the events of a queue to Rokt, until it is told to stop."""

from __future__ import annotations

import asyncio
import functools
import logging
import signal
import sys
from typing import Any

import click
from aiohttp import web

from rokt_events_async import Emitter, InvalidSettingError, RoktEventsError
from rokt_events_async.cli._help import Command, counted
from rokt_events_async.cli._queues import queue_option, to_queue
from rokt_events_async.relay import Relay, RelayStats
from rokt_events_async.relay.metrics import as_prometheus


@click.command(
    cls=Command, examples=("ROKT_QUEUE_URL=redis://localhost rokt-events relay --metrics-port 9102",)
)
@queue_option
@click.option(
    "--flush-interval", type=float, default=2.0, show_default=True, help="Seconds that a batch waits to fill."
)
@click.option(
    "--heartbeat-timeout",
    type=float,
    default=15.0,
    show_default=True,
    help="Seconds without a heartbeat after which other relays take over.",
)
@click.option("--window", type=int, default=20_000, show_default=True, help="The most events in memory.")
@click.option(
    "--max-concurrency", type=int, default=16, show_default=True, help="The most requests in flight."
)
@click.option(
    "--close-timeout", type=float, default=20.0, show_default=True, help="Seconds that a stop drains."
)
@click.option("--relay-id", help="The id among all relays; by default one is made up.")
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    help="Serves /metrics, /healthz and /readyz; 0 takes a free port.",
)
@click.option("--metrics-host", default="127.0.0.1", show_default=True, help="Address that they listen on.")
def relay(queue: str | None, metrics_port: int | None, metrics_host: str, **settings: Any) -> int:
    """Delivers the events of a queue to Rokt.

    Credentials and endpoint come from ROKT_PUB_ID, ROKT_SECRET, ROKT_TAG_ID and ROKT_ENDPOINT. SIGTERM and
    Ctrl-C drain, and leave the rest in the queue; a second one ends that at once, and another relay sends
    again what is in flight then. The exit status is 1 if the relay had to stop, 2 for a wrong use.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    for noisy in ("aiohttp.access", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    concurrency = settings.pop("max_concurrency")
    try:
        make_emitter = functools.partial(Emitter, max_concurrency=concurrency, journal=False)
        made = Relay(to_queue(queue), make_emitter, **settings)
        stats = asyncio.run(_run(made, metrics_host, metrics_port))
    except InvalidSettingError as error:
        raise click.UsageError(str(error)) from None
    except RoktEventsError as error:
        print(f"rokt-events: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        raise click.Abort from None
    except OSError as error:
        raise click.UsageError(
            f"cannot listen on {metrics_host} port {metrics_port}: {error.strerror}"
        ) from None
    print(_farewell(stats), file=sys.stderr)
    return 0


def _farewell(stats: RelayStats) -> str:
    delivered, dead = counted(stats.delivered, "event"), counted(stats.dead_letters, "dead letter")
    return f"stopped: {delivered} delivered, {dead}, {stats.held:,} of those in memory left in the queue"


async def _run(made: Relay, host: str, port: int | None) -> RelayStats:
    loop = asyncio.get_running_loop()
    current = asyncio.current_task()
    assert current is not None, "a coroutine runs in a task"
    interrupts = 0

    def interrupt() -> None:
        nonlocal interrupts
        interrupts += 1
        made.stop()
        if interrupts == 1:
            print("stopping; a second signal ends it at once", file=sys.stderr)
        if interrupts == 2:  # The grace period ends.
            current.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, interrupt)
    runner = None
    if port is not None:
        runner = await _serve(made, host, port)
    try:
        return await made.run()
    except asyncio.CancelledError:
        return made.stats
    finally:
        interrupts = 2  # Nothing is left to interrupt.
        if runner is not None:
            await runner.cleanup()


async def _serve(made: Relay, host: str, port: int) -> web.AppRunner:
    """Serves metrics and health. Ready means that the queue can be reached, never that Rokt can."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text=as_prometheus(made.health), content_type="text/plain", charset="utf-8")

    async def alive(_: web.Request) -> web.Response:
        return web.json_response({"state": made.health.state})

    async def ready(_: web.Request) -> web.Response:
        health = made.health
        error = health.last_error.text if health.last_error and not health.is_ready else None
        body = {"state": health.state, "error": error, "rokt": health.emitter.state}
        return web.json_response(body, status=200 if health.is_ready else 503)

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/healthz", alive)
    app.router.add_get("/readyz", ready)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError:
        await runner.cleanup()
        raise
    served = runner.addresses[0]
    logging.getLogger("rokt_events_async").info("metrics on http://%s:%d/metrics", served[0], served[1])
    return runner
