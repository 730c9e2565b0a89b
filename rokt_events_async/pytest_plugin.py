"""Fixtures for the tests of an application. pytest finds them if this package is installed.

`rokt_sandbox` is a `Sandbox` that serves from a thread of its own, so that synchronous tests, such as those
with a `TestClient`, can use it too. While a test uses it, `Emitter()` finds its credentials in the
environment, and `ROKT_ENDPOINT` has its address; `ROKT_QUEUE_URL`, `ROKT_JOURNAL` and `ROKT_DISABLED` are
not set.

`rokt_emitter` is an open `Emitter` that delivers to the sandbox, with short waits. It belongs to the test's
event loop: that of pytest-asyncio, or of anyio if pytest-asyncio is not installed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # Every start of pytest loads this module: what it uses is imported when it is used.
    from rokt_events_async import Emitter
    from rokt_events_async.sandbox import Sandbox

_async_fixture: Callable[..., Any]
try:
    from pytest_asyncio import fixture as _async_fixture
except ImportError:
    _async_fixture = pytest.fixture


@pytest.fixture
def rokt_sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """The Server Events API on loopback: `url`, `credentials`, `events`, `requests`, `fail_next(503)`."""
    from rokt_events_async.sandbox import Sandbox  # noqa: PLC0415

    with Sandbox() as sandbox:
        monkeypatch.setenv("ROKT_PUB_ID", sandbox.credentials.pub_id)
        monkeypatch.setenv("ROKT_SECRET", sandbox.credentials.secret)
        monkeypatch.setenv("ROKT_TAG_ID", sandbox.credentials.tag_id)
        monkeypatch.setenv("ROKT_ENDPOINT", sandbox.url)
        for name in ("ROKT_QUEUE_URL", "ROKT_JOURNAL", "ROKT_DISABLED"):  # What a developer's shell may have.
            monkeypatch.delenv(name, raising=False)
        yield sandbox


@_async_fixture
async def rokt_emitter(rokt_sandbox: Sandbox) -> AsyncIterator[Emitter]:
    """An open emitter that delivers to `rokt_sandbox`."""
    from rokt_events_async import Emitter, RetryPolicy  # noqa: PLC0415

    async with Emitter(
        rokt_sandbox.credentials,
        endpoint=rokt_sandbox.url,
        flush_interval=0,
        retry=RetryPolicy(wait=(0.01, 0.02)),
    ) as emitter:
        yield emitter
