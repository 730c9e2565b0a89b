"""The fixtures that come with the package, in the test runs of another project."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.usefixtures("_settled_ini")


@pytest.fixture
def _settled_ini(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")


SYNC = """
import os
from rokt_events_async import Credentials

def test_the_sandbox(rokt_sandbox):
    assert rokt_sandbox.url.startswith("http://127.0.0.1:")
    assert Credentials.from_env().pub_id == rokt_sandbox.credentials.pub_id
    assert not {"ROKT_QUEUE_URL", "ROKT_JOURNAL", "ROKT_DISABLED"} & set(os.environ)

def test_the_environment_is_as_before():
    assert "ROKT_PUB_ID" not in os.environ
"""

ASYNC = """
import pytest
from rokt_events_async import PartnerEvent

{mark}
async def test_the_emitter(rokt_emitter, rokt_sandbox):
    rokt_sandbox.fail_next(503)
    event = PartnerEvent.viewed(session_id="s", parent_guid="p", client_unique_id="c")
    receipt = await rokt_emitter.deliver(event)
    assert receipt.attempts == 2
    events = await rokt_sandbox.wait_for(1)
    assert [event["parentGuid"] for event in events] == ["p"]
"""


def test_in_a_synchronous_test(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sandbox serves from a thread of its own, and nothing of it is left, nor of the shell's settings."""
    for name in ("ROKT_QUEUE_URL", "ROKT_JOURNAL", "ROKT_DISABLED"):
        monkeypatch.setenv(name, "1")
    pytester.makepyfile(SYNC)
    pytester.runpytest_subprocess("-W", "error").assert_outcomes(passed=2)


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_under_pytest_asyncio(pytester: pytest.Pytester, mode: str) -> None:
    """In both of its modes."""
    pytester.makepyfile(ASYNC.format(mark="@pytest.mark.asyncio"))
    result = pytester.runpytest_subprocess("-W", "error", "-p", "no:anyio", f"--asyncio-mode={mode}")
    result.assert_outcomes(passed=1)


def test_under_anyio_alone(pytester: pytest.Pytester) -> None:
    """As the tests of many FastAPI applications run, where pytest-asyncio is not installed."""
    pytester.makeini("")
    pytester.makeconftest("""
        import pytest

        @pytest.fixture
        def anyio_backend():
            return "asyncio"
        """)
    pytester.mkpydir("pytest_asyncio").joinpath("__init__.py").write_text("raise ImportError")
    pytester.makepyfile(ASYNC.format(mark="@pytest.mark.anyio"))
    pytester.syspathinsert()
    result = pytester.run(
        sys.executable,
        "-c",
        "import sys, pytest; sys.path.insert(0, '.'); sys.exit(pytest.main(sys.argv[1:]))",
        "-W",
        "error",
        "-p",
        "no:asyncio",
        "-p",
        "no:cacheprovider",
    )
    result.assert_outcomes(passed=1)


def test_they_are_listed(pytester: pytest.Pytester) -> None:
    """`pytest --fixtures` says what they are."""
    result = pytester.runpytest_subprocess("--fixtures")
    result.stdout.fnmatch_lines(
        ["*rokt_sandbox*", "*The Server Events API on loopback*", "*rokt_emitter*", "*An open emitter*"]
    )


def test_the_package_imports_no_pytest() -> None:
    """Nor any of the frameworks: only who asks for them has them."""
    script = (
        "import sys, rokt_events_async, rokt_events_async.sandbox; "
        "print([name for name in ('pytest', 'fastapi', 'starlette', 'opentelemetry', 'click', 'rich') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
