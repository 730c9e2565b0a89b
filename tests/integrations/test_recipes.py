"""The recipes of the docstrings under the real servers: load, then SIGTERM, and nothing is missing."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from rokt_events_async.sandbox import Sandbox
from tests.integrations.test_servers import BEFORE, GUNICORN, TIMEOUT, UVICORN, Server, load, serve
from tests.programs import run_script
from tests.test_readme import block_with

__all__ = ["serve"]


DJANGO_SETTINGS = """
import django
from django.conf import settings
settings.configure(ROOT_URLCONF="shop", SECRET_KEY="of a test", ALLOWED_HOSTS=["*"], MIDDLEWARE=[])
"""
DJANGO_URLS = """
from django.urls import path
urlpatterns = [path("checkout/<session_id>/viewed/<guid>", viewed)]
"""
DJANGO_WSGI = """
from django.core.wsgi import get_wsgi_application
from django.http import JsonResponse
from rokt_events_async import PartnerEvent, ThreadedEmitter, tracker_from_env

application = get_wsgi_application()
rokt = ThreadedEmitter(tracker_from_env)

def viewed(request, session_id, guid):
    rokt.track(PartnerEvent.viewed(session_id=session_id, parent_guid=guid, client_unique_id="order-4711"))
    return JsonResponse({"tracked": guid})
"""
FLASK = block_with("from flask import Flask")
UNDER_WSGI = [*GUNICORN, "--workers", "2"]
HYPERCORN = ["-m", "hypercorn", "shop:app", "--bind", "127.0.0.1:{port}", "--graceful-timeout", "20"]

SERVERS: dict[str, tuple[str, list[str]]] = {
    "Flask, gunicorn": (FLASK, [*UNDER_WSGI, "shop:app"]),
    "Flask, gunicorn's threads, preload": (
        FLASK,
        [*UNDER_WSGI, "shop:app", "--worker-class", "gthread", "--threads", "8", "--preload"],
    ),
    "Django, WSGI": (
        DJANGO_SETTINGS + DJANGO_WSGI + DJANGO_URLS,
        [*UNDER_WSGI, "shop:application", "--worker-class", "gthread", "--threads", "4"],
    ),
    "Django, ASGI, uvicorn": (
        DJANGO_SETTINGS + block_with("from django.core.asgi import") + DJANGO_URLS,
        [part.replace("shop:app", "shop:application") for part in UVICORN],
    ),
    "Litestar, uvicorn": (block_with("from litestar import Litestar"), UVICORN),
    "Quart, hypercorn": (block_with("from quart import Quart"), HYPERCORN),
}


def test_a_test_of_a_flask_application(pytester: pytest.Pytester) -> None:
    """It needs no sandbox, no credentials and no socket."""
    pytester.makepyfile(shop=FLASK, test_shop=block_with("def test_a_view_is_reported(monkeypatch)"))
    pytester.runpytest_subprocess("-W", "error", "-p", "no:asyncio").assert_outcomes(passed=1)


@pytest.mark.parametrize("name", SERVERS)
def test_nothing_that_a_handler_accepted_is_missing(
    name: str, serve: Callable[[str, list[str]], Server], rokt_sandbox: Sandbox
) -> None:
    """Through SIGTERM under load."""
    source, command = SERVERS[name]
    server = serve(source, command)

    tracked = asyncio.run(load(server, paths=["viewed"]))
    output, _ = server.process.communicate(timeout=TIMEOUT)

    received = Counter(event["parentGuid"] for event in rokt_sandbox.events)
    assert len(tracked) >= BEFORE, output
    assert tracked - received.keys() == set()
    assert [guid for guid, count in received.items() if count > 1] == []
    assert server.process.returncode in (0, -signal.SIGTERM), output
    assert "Error" not in output


def test_celery(rokt_sandbox: Sandbox, tmp_path: Path) -> None:
    """Two worker processes, told to stop in the middle: what tasks have tracked arrives."""
    transport = {"data_folder_in": "queue", "data_folder_out": "queue", "processed_folder": "done"}
    source = block_with("from celery import Celery") + (
        'app.conf.update(broker_url="filesystem://", worker_hijack_root_logger=False,\n'
        f"    broker_transport_options={transport!r}, broker_connection_retry_on_startup=True)\n"
    )
    (tmp_path / "shop.py").write_text(source)
    for folder in ("queue", "done"):
        (tmp_path / folder).mkdir()
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    order = "from shop import viewed\nfor n in range(200): viewed.delay(f's-{n % 9}', f'g-{n}')"
    subprocess.run([sys.executable, "-c", order], check=True, cwd=tmp_path, env=environment)
    worker = ["-m", "celery", "-A", "shop", "worker", "--pool", "prefork", "--concurrency", "2", "-l", "INFO"]
    with subprocess.Popen(
        [sys.executable, *worker, "--without-gossip", "--without-mingle", "--without-heartbeat"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        lines = []
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if sum("succeeded" in one for one in lines) == 100:
                process.send_signal(signal.SIGTERM)
        process.wait(TIMEOUT)
    output = "".join(lines)
    succeeded = output.count("succeeded")
    received = {event["parentGuid"] for event in rokt_sandbox.events}
    assert succeeded >= 100, output
    assert len(received) == len(rokt_sandbox.events) == succeeded, output
    assert "Traceback" not in output


def test_a_script(rokt_sandbox: Sandbox) -> None:
    """As it stands."""
    status, _, err = run_script(block_with("with ThreadedEmitter"))
    assert (status, err) == (0, "")
    assert len(rokt_sandbox.events) == 100


def test_a_serverless_function(rokt_sandbox: Sandbox) -> None:
    """`flush(timeout)` before it returns: the process may be frozen then, and is not ended."""
    script = """
import os, time
from rokt_events_async import Emitter, PartnerEvent, ThreadedEmitter
rokt = ThreadedEmitter(lambda: Emitter(flush_interval=60))
def handler(event, context):
    rokt.track(PartnerEvent.viewed(session_id="s", parent_guid=event, client_unique_id="c"))
    return rokt.flush(timeout=5)
assert handler("a", None)
assert handler("b", None)
os._exit(0)
"""
    before = time.monotonic()
    assert run_script(script)[0] == 0
    assert [event["parentGuid"] for event in rokt_sandbox.events] == ["a", "b"]
    assert time.monotonic() - before < TIMEOUT
