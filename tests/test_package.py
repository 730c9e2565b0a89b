"""The package as it is published."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import rokt_events_async
import rokt_events_async.relay
from rokt_events_async import RoktEventsError
from tests.samples import event, missing

ROOT = Path(__file__).parent.parent


def test_the_top_level_is_the_public_face() -> None:
    """What the design names, each from the module that it is said to come from."""
    brought = [name for names in rokt_events_async._NAMES.values() for name in names]

    assert sorted([*brought, "__version__"]) == sorted(rokt_events_async.__all__)
    assert set(rokt_events_async.__all__) <= set(dir(rokt_events_async))
    for module, names in rokt_events_async._NAMES.items():
        home = importlib.import_module(f"rokt_events_async.{module}")
        assert all(getattr(rokt_events_async, name) is getattr(home, name) for name in names)


def test_a_name_is_imported_when_it_is_asked_for() -> None:
    """A name brings what it needs, a module can be reached by the package, and other names stay unknown."""
    script = """
import sys
import rokt_events_async as package

print(sorted(name for name in sys.modules if name.startswith(("rokt_events_async.", "aiohttp", "attr"))))
print(package.errors.ApiError is package.ApiError, "rokt_events_async.emitter" in sys.modules)
print(package.Emitter.__module__, hasattr(package, "Emiter"))
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert found.stdout.splitlines() == [
        "['rokt_events_async._version']",
        "True False",
        "rokt_events_async.emitter False",
    ]


def test_the_plugin_costs_a_start_of_pytest_nothing() -> None:
    """It brings no module but its own and the fixture's until a test uses it."""
    script = """
import sys
import pytest_asyncio

before = set(sys.modules)
import rokt_events_async.pytest_plugin

print(sorted(set(sys.modules) - before))
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    ours = "['rokt_events_async', 'rokt_events_async._version', 'rokt_events_async.pytest_plugin']"
    assert found.stdout == f"{ours}\n"


def test_every_public_name_is_documented() -> None:
    """With more than nothing."""
    for name in rokt_events_async.__all__:
        value = getattr(rokt_events_async, name)
        if inspect.isclass(value) and value.__module__.startswith("rokt"):
            assert value.__doc__, name


def test_every_public_name_is_in_the_changelog() -> None:
    """A reader of the changelog meets each of them."""
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert [name for name in rokt_events_async.__all__ if name not in changelog] == []


REPLACED = (
    "whoever",
    "somebody",
    "nobody",
    "everybody",
    "anybody",
    "an" + "ew",
    "is to" + " be",
    "are to" + " be",
    "in a" + " hurry",
    "sees" + " to it",
    "as a" + " rule",
    "has it" + " as",
)


def test_the_words_are_plain() -> None:
    """None of the words that the project has replaced comes back, in code, tests, texts and messages."""
    words = re.compile(r"\b(" + "|".join(map(re.escape, REPLACED)) + r")\b", re.IGNORECASE)
    files = [ROOT / "README.md", ROOT / "CHANGELOG.md"]
    for folder in ("rokt_events_async", "tests", "benchmarks"):
        files += [
            path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md", ".js", ".html")
        ]
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in files
        if path != Path(__file__)
        for match in words.finditer(path.read_text())
    ]
    assert found == []


def test_every_exception_is_the_librarys() -> None:
    """One base class for all."""
    errors = [
        value
        for value in (getattr(rokt_events_async, name) for name in rokt_events_async.__all__)
        if isinstance(value, type) and issubclass(value, Exception)
    ]

    assert len(errors) == 20
    assert all(issubclass(error, RoktEventsError) for error in errors)


def test_the_version_stands_in_one_place() -> None:
    """`_version` has it, the build reads it."""
    assert importlib.metadata.version("rokt_events_async") == rokt_events_async.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project


def test_it_is_typed() -> None:
    """The marker is there."""
    assert (ROOT / "rokt_events_async" / "py.typed").exists()


def test_importing_it_brings_neither_sandbox_nor_command_line() -> None:
    """An application in production pays for neither."""
    script = (
        "import sys, rokt_events_async; "
        "print([name for name in ('rokt_events_async.sandbox', 'rich', 'click', 'redis') "
        "if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert found.stdout == "[]\n"


@pytest.mark.parametrize("script", ["import rokt_events_async.cli"])
def test_without_the_extra_the_command_line_says_what_it_needs(script: str) -> None:
    """One line, and exit status 1."""
    hide = "import sys; sys.modules['click'] = None; "
    found = subprocess.run([sys.executable, "-c", hide + script], capture_output=True, text=True, check=False)

    assert found.returncode == 1
    assert found.stderr == "rokt-events: the command line needs click: pip install 'rokt_events_async[cli]'\n"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("from rokt_events_async.relay import RedisQueue", "ModuleNotFoundError: RedisQueue needs redis: "),
        (
            "from rokt_events_async.cli import main; main(['relay', '--queue', 'redis://h'])",
            "rokt-events: RedisQueue needs redis: ",
        ),
    ],
)
def test_without_the_extra_a_queue_says_what_it_needs(script: str, message: str) -> None:
    """One line with the command."""
    hide = "import sys; sys.modules['redis.asyncio'] = sys.modules['redis'] = None; "
    found = subprocess.run([sys.executable, "-c", hide + script], capture_output=True, text=True, check=False)

    assert found.returncode
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith(message)
    assert last.endswith("pip install 'rokt_events_async[redis]'")


def test_the_relay_has_no_other_names() -> None:
    """A wrong one is an AttributeError, as usual."""
    with pytest.raises(AttributeError, match="no attribute 'RediQueue'"):
        getattr(rokt_events_async.relay, "RediQueue")  # noqa: B009 -- a type checker refuses it


def test_nothing_of_this_machine_is_committed() -> None:
    """No lock file."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        missing("not in a git checkout")

    assert "uv.lock" not in tracked.stdout.split()


def test_events_look_like_themselves() -> None:
    """A repr that could be typed in again."""
    assert repr(event()).startswith("PartnerEvent(event_type=<EventType.SIGNAL_VIEWED: 'SignalViewed'>")
