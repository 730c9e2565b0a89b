"""Settings: refused at construction, with name, value and what would be right."""

from __future__ import annotations

import copy
import math
import pickle
import re
from decimal import Decimal
from typing import Any

import aiohttp
import pytest

from rokt_events_async import DEMO, PRODUCTION, Credentials, Emitter, InvalidSettingError, RetryPolicy
from tests.samples import CREDENTIALS, SECRET


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("flush_interval", -1, "flush_interval must be a finite number >= 0, got -1"),
        ("flush_interval", math.nan, "got nan"),
        ("flush_interval", math.inf, "got inf"),
        ("flush_interval", "1", "got '1'"),
        ("flush_interval", True, "got True"),
        ("flush_interval", 10**400, "got 1000"),
        (
            "flush_interval",
            120,
            "flush_interval must be shorter than the retry deadline of 120 s, or .*, got 120",
        ),
        ("max_batch_size", 0, "max_batch_size must be 1..25, got 0"),
        ("max_batch_size", 40, "max_batch_size must be 1..25, got 40"),
        ("max_batch_size", 5.0, "max_batch_size must be 1..25, got 5.0"),
        ("max_concurrency", 0, "max_concurrency must be 1..1024, got 0"),
        ("max_concurrency", 1025, "max_concurrency must be 1..1024, got 1025"),
        ("max_pending", 0, "max_pending must be a whole number >= 1, got 0"),
        ("max_pending", "10", "got '10'"),
        ("max_pending_bytes", -5, "max_pending_bytes must be a whole number >= 1, got -5"),
        ("when_full", "explode", "when_full must be one of 'drop', 'raise', got 'explode'"),
        ("when_full", None, "got None"),
        ("retry", 3, "retry must be a RetryPolicy, got int"),
        ("request_timeout", 0, "request_timeout must be a finite number > 0, got 0"),
        ("request_timeout", None, "got None"),
        ("close_timeout", -0.1, "close_timeout must be a finite number >= 0, got -0.1"),
        ("session", "http", "session must be a ClientSession, got str"),
        (
            "credentials",
            ("a", "b", "c"),
            "credentials must be a Credentials object, or a function that returns one, got tuple",
        ),
        ("endpoint", "http://server-api.rokt.com/v1", "endpoint must be an https URL"),
        ("endpoint", "https://", "endpoint must be an https URL"),
        ("endpoint", "ftp://127.0.0.1/x", "endpoint must be an https URL"),
        ("endpoint", "/v1/partner/events", "endpoint must be an https URL"),
        ("endpoint", "https://host/#fragment", "endpoint must be an https URL"),
        ("endpoint", "https://host:99999/", "endpoint must be an https URL"),
        ("endpoint", "https://host/\r\nX: y", "endpoint must be an https URL"),
        ("endpoint", "https://h\u00f6st/", "endpoint must be an https URL"),
        ("endpoint", "https://host/a b", "endpoint must be an https URL"),
        ("endpoint", "http://128.0.0.1/", "endpoint must be an https URL"),
        ("endpoint", 7, "endpoint must be an https URL .*, got 7"),
        ("endpoint", "https://host/" + "x" * 200 + "#", "\\.\\.\\."),
    ],
)
def test_a_setting_out_of_bounds(name: str, value: Any, message: str) -> None:
    """One clear line: the name, what would be right, and the value."""
    settings: dict[str, Any] = {"credentials": CREDENTIALS, name: value}
    if name == "endpoint" and str(value).endswith("#"):
        settings[name] = value + "fragment"
    with pytest.raises(InvalidSettingError, match=message):
        Emitter(**settings)


def test_credentials_in_the_endpoint_are_refused_and_not_repeated() -> None:
    """They belong into `Credentials`, and not into an error message either."""
    with pytest.raises(InvalidSettingError, match="must not carry credentials") as caught:
        Emitter(CREDENTIALS, endpoint="https://user:hunter2@host/")

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "endpoint",
    [
        PRODUCTION,
        DEMO,
        "http://127.0.0.1:1/",
        "http://127.9.9.9/",
        "http://[::1]:80/x",
        "http://localhost/",
        "https://h/p?q=1",
    ],
)
def test_endpoints_that_are_fine(endpoint: str) -> None:
    """https anywhere, http to loopback."""
    assert endpoint in repr(Emitter(CREDENTIALS, endpoint=endpoint))


def test_a_setting_error_is_a_value_error() -> None:
    """So that generic code can catch it."""
    assert issubclass(InvalidSettingError, ValueError)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"deadline": 0}, "deadline must be a finite number > 0, got 0"),
        ({"deadline": math.inf}, "got inf"),
        ({"deadline": 10**400}, "deadline must be a finite number > 0, got 1000"),
        ({"max_attempts": 0}, "max_attempts must be a whole number >= 1, got 0"),
        ({"max_attempts": 1.5}, "got 1.5"),
        ({"wait": 1.0}, r"wait must be a pair \(shortest, longest\) of seconds, got 1.0"),
        ({"wait": (1.0,)}, "must be a pair"),
        ({"wait": (-1, 2)}, r"wait\[0\], the shortest, must be a finite number >= 0, got -1"),
        ({"wait": (2, 1)}, r"wait\[1\], the longest, must be a finite number >= 2, got 1"),
        ({"retry_unconfirmed": 1}, "retry_unconfirmed must be True or False, got 1"),
        ({"deadline": Decimal(1)}, "got Decimal"),
    ],
)
def test_a_retry_policy_out_of_bounds(settings: dict[str, Any], message: str) -> None:
    """Refused when it is made, not when it is needed."""
    with pytest.raises(InvalidSettingError, match=message):
        RetryPolicy(**settings)


@pytest.mark.parametrize("name", ["pub_id", "tag_id"])
def test_the_secret_in_the_wrong_place(name: str) -> None:
    """Refused, and not shown: what is public is named in logs and errors."""
    values = {"pub_id": "rpub", "secret": SECRET, "tag_id": "7"} | {name: SECRET}
    with pytest.raises(InvalidSettingError, match=rf"{name} must not be a secret.*\(not shown\)") as caught:
        Credentials(**values)

    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["pub_id", "secret", "tag_id"])
@pytest.mark.parametrize("value", ["", "abc\r\nX: y", "abc\u00e4", "abc def", "abc\x00", None, 7, b"abc"])
def test_credentials_that_could_not_stand_in_a_header(name: str, value: Any) -> None:
    """Refused with name and value, the secret's aside."""
    values = {"pub_id": "rpub", "secret": SECRET, "tag_id": "7"} | {name: value}
    with pytest.raises(InvalidSettingError, match=f"{name} must be a non-empty string") as caught:
        Credentials(**values)

    if name == "secret":
        assert "abc" not in str(caught.value)
    else:
        assert str(caught.value).endswith(f"got {value!r}")


def test_credentials_hide_their_secret() -> None:
    """In repr, str, and pickle; a copy is the same object."""
    assert SECRET not in repr(CREDENTIALS) + str(CREDENTIALS) + f"{CREDENTIALS}"
    assert "rpub-test" in repr(CREDENTIALS)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(CREDENTIALS)
    assert copy.copy(CREDENTIALS) is CREDENTIALS
    assert copy.deepcopy([CREDENTIALS])[0] is CREDENTIALS


def test_credentials_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """By `from_env`, and by an emitter that is given none."""
    for name, value in {"ROKT_PUB_ID": "rpub-env", "ROKT_SECRET": "rsec-env", "ROKT_TAG_ID": "9"}.items():
        monkeypatch.setenv(name, value)

    assert Credentials.from_env().pub_id == "rpub-env"
    assert Emitter()._keyring.current.tag_id == "9"


def test_missing_variables_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what else would be right."""
    monkeypatch.setenv("ROKT_PUB_ID", "rpub-env")
    monkeypatch.setenv("ROKT_SECRET", "")
    monkeypatch.delenv("ROKT_TAG_ID", raising=False)

    with pytest.raises(InvalidSettingError, match="set ROKT_SECRET, ROKT_TAG_ID in the environment, or pass"):
        Emitter()


async def test_a_session_that_cannot_be_used_is_refused() -> None:
    """A closed one, and one that would hand the secret to a proxy of the environment's."""
    async with aiohttp.ClientSession(trust_env=True) as session:
        with pytest.raises(InvalidSettingError, match="trust_env"):
            Emitter(CREDENTIALS, session=session)
    with pytest.raises(InvalidSettingError, match="session must be open, got a closed one"):
        Emitter(CREDENTIALS, session=session)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_session_share", 1.5, "max_session_share must be a number > 0 and <= 1, got 1.5"),
        ("max_session_share", 0, "max_session_share must be a finite number > 0, got 0"),
        ("max_wait", -1, "max_wait must be a finite number >= 0, got -1"),
        ("when_full", "wait", "one of 'drop', 'raise', got 'wait': max_wait=None waits for room"),
        ("max_wait", "long", "max_wait must be a finite number >= 0, got 'long'"),
    ],
)
def test_waits_and_shares_out_of_bounds(name: str, value: Any, message: str) -> None:
    """Refused with name, value and bounds."""
    with pytest.raises(InvalidSettingError, match=re.escape(message)):
        Emitter(CREDENTIALS, **{name: value})
