"""Settings: refused at construction, with name, value and what would be right."""

from __future__ import annotations

import copy
import io
import math
import pickle
import pprint
import re
import traceback
from decimal import Decimal
from enum import Enum
from typing import Any

import aiohttp
import pytest
import rich
from rich.console import Console
from rich.pretty import pretty_repr
from rich.traceback import Traceback

from rokt_events_async import (
    DEMO,
    PRODUCTION,
    Credentials,
    Emitter,
    InvalidSettingError,
    RetryPolicy,
    WrongContextError,
)
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


# The endpoint.


def test_the_endpoint_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty counts as unset, and an argument comes first."""
    monkeypatch.setenv("ROKT_ENDPOINT", "https://from.env/v1")
    assert Emitter(CREDENTIALS).endpoint == "https://from.env/v1"
    assert Emitter(CREDENTIALS, endpoint=DEMO).endpoint == DEMO
    monkeypatch.setenv("ROKT_ENDPOINT", "")
    assert Emitter(CREDENTIALS).endpoint == PRODUCTION
    monkeypatch.setenv("ROKT_ENDPOINT", "from.env")
    with pytest.raises(InvalidSettingError, match=r"ROKT_ENDPOINT must be an https URL .*, got 'from.env'"):
        Emitter(CREDENTIALS)


def test_http_beyond_loopback_is_allowed_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    """By an argument or the environment: the secret then travels in clear."""
    url = "http://sandbox:8080/v1"
    with pytest.raises(InvalidSettingError, match="http only to loopback, or with allow_http=True"):
        Emitter(CREDENTIALS, endpoint=url)
    assert Emitter(CREDENTIALS, endpoint=url, allow_http=True).endpoint == url
    monkeypatch.setenv("ROKT_ALLOW_HTTP", "1")
    assert Emitter(CREDENTIALS, endpoint=url).endpoint == url
    with pytest.raises(InvalidSettingError, match=r"fragment .http too., got .ftp"):
        Emitter(CREDENTIALS, endpoint="ftp://sandbox/v1")
    with pytest.raises(InvalidSettingError, match="allow_http must be True or False, got 1"):
        Emitter(CREDENTIALS, allow_http=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "url",
    [
        "https://a..b/v1",
        f"https://{'x' * 64}.com/v1",
        "https://" + ".".join(["x" * 60] * 5),
        "https://./",
        "https://-a.com/",
        "https://1.2.3/",
        "https://999.1.1.1/",
        "https://localhost:0/",
        "https://localhost:99999/",
        "https://%/",
        "https://%00.com/",
        "https://host/%zz",
        "https://a<b>/",
        "https://a|b/",
        "https://{a}/",
        "https://[v1.x]/",
        "https://[fe80::1%25eth0]/",
        "https://xn--zzzzzz--.com",
        "https://xn--a/",
        "https://host/#",
        "https:///v1",
    ],
)
def test_an_endpoint_that_cannot_be_sent_to(url: str) -> None:
    """It is refused where it is written, not at each request."""
    with pytest.raises(InvalidSettingError, match="endpoint must be"):
        Emitter(CREDENTIALS, endpoint=url)


@pytest.mark.parametrize(
    "url",
    ["https://user:TOPS@host/#x", "https://user:TO PS@host", "https://user:TOPS@host:99999", "https://@h/"],
)
def test_credentials_in_an_endpoint_are_not_shown(url: str) -> None:
    """Whatever else is wrong with it."""
    with pytest.raises(InvalidSettingError, match="must not carry credentials") as caught:
        Emitter(CREDENTIALS, endpoint=url)
    assert "PS" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://rokt.com./v1",
        "https://[::1]:8443/v1",
        "https://10.0.0.1/v1",
        "https://xn--bcher-kva.example/v1?a=b",
        "https://a_b.example/%20",
    ],
)
def test_hosts_of_other_forms(url: str) -> None:
    """A name with its final dot, an international one, and addresses."""
    assert Emitter(CREDENTIALS, endpoint=url).endpoint == url


class Texts(str, Enum):  # noqa: UP042 -- what applications have
    URL = "https://rokt.example/v1"
    SECRET = "rsec-of-an-enum"


def test_strings_of_a_subclass_count_by_their_content() -> None:
    """A member of a string enumeration is its value, not its name."""
    credentials = Credentials("rpub-1", Texts.SECRET, "1")
    emitter = Emitter(credentials, endpoint=Texts.URL)

    assert (type(credentials.secret), credentials.secret) == (str, "rsec-of-an-enum")
    assert (type(emitter.endpoint), emitter.endpoint) == (str, "https://rokt.example/v1")


# The secret.

HIDDEN = "rsec-TOPSECRET-123456"


def shown_with_locals(error: BaseException) -> str:
    """All that printers of tracebacks with locals show of an error, in every frame."""
    out = io.StringIO()
    Console(file=out, width=300).print(
        Traceback.from_exception(type(error), error, error.__traceback__, show_locals=True)
    )
    return out.getvalue() + "".join(
        traceback.TracebackException.from_exception(error, capture_locals=True).format()
    )


def test_no_printer_shows_the_secret() -> None:
    """Field by field, by its repr, or by all its attributes."""
    credentials = Credentials(pub_id="rpub-1", secret="".join(["rsec-TOP", "SECRET-123456"]), tag_id="42")
    out = io.StringIO()
    console = Console(file=out, width=200)
    rich.inspect(credentials, console=console, all=True)
    console.print(pretty_repr(credentials), credentials)
    shown = [
        out.getvalue(),
        repr(credentials),
        str(credentials),
        f"{credentials}",
        pprint.pformat(credentials),
        repr(dir(credentials)),
        repr([getattr(credentials, name) for name in dir(credentials)]),
    ]

    assert not [text for text in shown if HIDDEN in text]
    assert credentials.secret == HIDDEN
    with pytest.raises(AttributeError, match="no attribute 'sekret'"):
        credentials.sekret  # noqa: B018


@pytest.mark.parametrize("setting", [{"flush_interval": -1}, {"endpoint": "nowhere"}, {"observers": [7]}])
def test_a_traceback_with_locals_does_not_show_the_secret(setting: dict[str, Any]) -> None:
    """Whatever constructor it goes through, nor does it break at an emitter that is half built."""
    credentials = Credentials(pub_id="rpub-1", secret="".join(["rsec-TOP", "SECRET-123456"]), tag_id="42")
    with pytest.raises(InvalidSettingError) as caught:
        Emitter(credentials, **setting)

    assert HIDDEN not in shown_with_locals(caught.value)


@pytest.mark.parametrize("end", ["\n", " ", "\u00e4"])
def test_a_malformed_secret_is_not_shown_either(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """The classic is a file that ends with a new line."""
    monkeypatch.setenv("ROKT_PUB_ID", "rpub-1")
    monkeypatch.setenv("ROKT_SECRET", "".join(["rsec-TOP", "SECRET-123456", end]))
    monkeypatch.setenv("ROKT_TAG_ID", "42")
    with pytest.raises(
        InvalidSettingError, match=r"secret must be .* got a string of 22 characters"
    ) as caught:
        Emitter()

    # What `pytest.MonkeyPatch` and this test have in their own frames is theirs.
    frames = [
        frame for frame in traceback.extract_tb(caught.value.__traceback__) if "settings.py" in frame[0]
    ]
    assert frames
    tb = caught.value.__traceback__
    while tb is not None:
        if "rokt_events_async" in tb.tb_frame.f_code.co_filename:
            assert HIDDEN not in repr(tb.tb_frame.f_locals)
        tb = tb.tb_next


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("rsec-x", "rpub-x", "42"), "pub_id must not be a secret.*are pub_id and secret swapped"),
        (("rpub-x", "rpub-y", "42"), "secret must not be a public id.*are pub_id and secret swapped"),
        (("rpub-x", "42", "rsec-y"), "tag_id must not be a secret"),
        (("42", "rsec-x", "rpub-x"), "tag_id must not be a public id, got 'rpub-x'"),
        ((" rsec-x", "rpub-x", "42"), "pub_id must not be a secret"),
        (('"rsec-x"', "rpub-x", "42"), "pub_id must not be a secret"),
        (("RSEC-x", "RPUB-x", "42"), "pub_id must not be a secret"),
        ((b"rsec-x", "rpub-x", "42"), "pub_id must not be a secret"),
        (("rpub-x", "rsec-y", "\ufeffrsec-x"), "tag_id must not be a secret"),
    ],
)
def test_swapped_credentials_are_recognised(values: tuple[Any, Any, Any], message: str) -> None:
    """By what Rokt's credentials look like."""
    with pytest.raises(InvalidSettingError, match=message) as caught:
        Credentials(*values)
    assert "rsec-" not in str(caught.value).lower()
    tb = caught.value.__traceback__
    while tb is not None:
        if (
            tb.tb_frame.f_code.co_filename.endswith("settings.py")
            and tb.tb_frame.f_code.co_name == "__init__"
        ):
            assert "rsec-" not in repr(tb.tb_frame.f_locals).lower()
        tb = tb.tb_next


def test_credentials_are_immutable() -> None:
    """They are shared, and looked up by identity."""
    with pytest.raises(AttributeError, match="Credentials are immutable: tag_id cannot be set"):
        CREDENTIALS.tag_id = "7"
    with pytest.raises(AttributeError, match="cannot be deleted"):
        del CREDENTIALS.tag_id
    with pytest.raises(AttributeError, match="immutable"):
        CREDENTIALS.__init__("rpub-2", "rsec-2", "1")
    with pytest.raises(TypeError, match="cannot be subclassed"):
        type("Ours", (Credentials,), {})


# Settings of an emitter.


def test_settings_can_be_read_and_not_changed() -> None:
    """An assignment would do nothing: it says what does."""
    emitter = Emitter(CREDENTIALS, flush_interval=3)
    assert (emitter.flush_interval, emitter.max_batch_size, emitter.credentials) == (3.0, 25, CREDENTIALS)
    with pytest.raises(
        AttributeError, match=r"construct another emitter, with Emitter\(flush_interval=...\)"
    ):
        emitter.flush_interval = 5
    with pytest.raises(AttributeError):
        emitter.credentials = CREDENTIALS  # type: ignore[misc]
    assert isinstance(Emitter.flush_interval, object)


def test_an_emitter_is_no_plain_context_manager() -> None:
    """The error says what is right."""
    emitter = Emitter(CREDENTIALS)
    with pytest.raises(TypeError, match="`async with emitter:`"):
        with emitter:
            pass  # pragma: no cover
    assert repr(Emitter.__new__(Emitter)) == "<Emitter, not constructed>"


class Raises:
    """A value whose own methods raise."""

    def __repr__(self) -> str:
        raise LookupError("no repr")


def test_a_setting_that_cannot_be_shown() -> None:
    """It is named by its type."""
    with pytest.raises(InvalidSettingError, match=r"flush_interval must be .*, got a Raises"):
        Emitter(CREDENTIALS, flush_interval=Raises())  # type: ignore[arg-type]


def test_a_start_without_an_asyncio_loop() -> None:
    """As under trio."""
    starting = Emitter(CREDENTIALS).start()
    with pytest.raises(WrongContextError, match="no asyncio event loop runs here"):
        starting.send(None)
