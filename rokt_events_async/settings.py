"""The settings of an emitter: credentials, retry policy, endpoints, limits.

Every value is checked here, once. An error has its name, its value and what would be right.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
import weakref
from collections.abc import Callable
from numbers import Real
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, final, get_args

import attrs
from yarl import URL

from rokt_events_async.errors import InvalidSettingError

PRODUCTION: Final = "https://server-api.rokt.com/v1/partner/events"
"""The production endpoint (specification, "Endpoints")."""

DEMO: Final = "https://server-api-demo.rokt.com/v1/partner/events"
"""The testing endpoint (specification, "Endpoints"): validates, and counts nothing."""

MAX_BATCH_SIZE: Final = 25
"""The most events that a request may carry (specification, "NameValuePair", note)."""


def check_number(
    name: str, value: object, *, at_least: float, above: bool = False, at_most: float = math.inf
) -> float:
    """Returns the value as a float.

    Args:
        above: Excludes the lower bound itself.

    Raises:
        InvalidSettingError: It is no finite number within the bounds.
    """
    bounds = f"a finite number {'>' if above else '>='} {at_least:g}"
    if at_most < math.inf:
        bounds += f" and <= {at_most:g}"
    if isinstance(value, bool) or not isinstance(value, Real):
        _refuse(name, bounds, value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    is_low = number < at_least or (above and number == at_least)
    if not math.isfinite(number) or is_low or number > at_most:
        _refuse(name, bounds, value)
    return number


def check_count(name: str, value: object, *, at_least: int = 1, at_most: int | None = None) -> int:
    """Returns the value.

    Raises:
        InvalidSettingError: It is no whole number within the bounds.
    """
    bounds = f"a whole number >= {at_least}" if at_most is None else f"{at_least}..{at_most}"
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        _refuse(name, bounds, value)
    if at_most is not None and value > at_most:
        _refuse(name, bounds, value)
    return value


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> Any:
    """Returns the value.

    Raises:
        InvalidSettingError: It is none of the choices.
    """
    if not isinstance(value, str) or value not in choices:
        _refuse(name, "one of " + ", ".join(map(repr, choices)), value)
    return value


def check_endpoint(value: object, *, name: str = "endpoint", allow_http: bool = False) -> str:
    """Returns the URL.

    Args:
        name: Where the value comes from, for the error.
        allow_http: Lets an http URL be other than loopback.

    Raises:
        InvalidSettingError: It is no https URL (http to loopback), its host cannot be one, or it has
            credentials or a fragment.
    """
    http = "http too" if allow_http else "http only to loopback, or with allow_http=True or ROKT_ALLOW_HTTP=1"
    expected = f"an https URL without credentials and fragment ({http})"
    text = _plain(value)
    if isinstance(text, str) and "@" in text:
        raise InvalidSettingError(
            f"{name} must not carry credentials (they are sent as headers, from Credentials), got a URL with "
            "an @ in it (not shown)"
        )
    url = _parse_url(text)
    if url is None or "#" in str(text) or url.scheme not in ("http", "https"):
        _refuse(name, expected, text)
    if not _can_be_host(url.host or "") or url.port == 0:
        _refuse(name, "a URL whose host and port can be reached", text)
    if url.scheme == "http" and not (allow_http or _is_loopback(url.host or "")):
        _refuse(name, expected, text)
    return str(text)


def choose_endpoint(endpoint: str | None, *, allow_http: bool) -> str:
    """Returns the endpoint: the argument, or `ROKT_ENDPOINT`, or production.

    Raises:
        InvalidSettingError: As `check_endpoint`; it names the variable if the value came from there.
    """
    if not isinstance(allow_http, bool):
        _refuse("allow_http", "True or False", allow_http)
    allow_http = allows_http(allow_http=allow_http)
    if endpoint is not None:
        return check_endpoint(endpoint, allow_http=allow_http)
    from_env = os.environ.get("ROKT_ENDPOINT")
    return check_endpoint(from_env, name="ROKT_ENDPOINT", allow_http=allow_http) if from_env else PRODUCTION


def allows_http(*, allow_http: bool) -> bool:
    """Returns True if an http endpoint may be other than loopback: by the argument, or by the environment."""
    return allow_http or _switch("ROKT_ALLOW_HTTP")


def is_disabled() -> bool:
    """Returns True with `ROKT_DISABLED=1`, the kill switch: events are accepted, counted and dropped."""
    return _switch("ROKT_DISABLED")


def _switch(name: str) -> bool:
    """Returns True if the environment switches something on. Without the variable it is off."""
    value = os.environ.get(name, "")
    if value.strip().lower() not in _SWITCHES:
        _refuse(name, "1 (or true, yes, on), or 0 (or false, no, off, or empty)", value)
    return _SWITCHES[value.strip().lower()]


_SWITCHES: Final = dict.fromkeys(("1", "true", "yes", "on"), True) | dict.fromkeys(
    ("", "0", "false", "no", "off"), False
)


def check_instance(name: str, value: object, cls: type[Any]) -> Any:
    """Returns the value.

    Raises:
        InvalidSettingError: It is no instance of the class.
    """
    if not isinstance(value, cls):
        raise InvalidSettingError(f"{name} must be a {cls.__name__}, got {type(value).__name__}")
    return value


def _parse_url(value: object) -> URL | None:
    """Returns the URL, or `None` if it is none, or none that would be sent to as it stands."""
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or _ODD.search(value):
        return None
    try:
        url = URL(value)
        host = url.host  # Only now is it decoded.
    except ValueError:  # Also a host that is no internationalised name.
        return None
    is_bracketed_name = "[" in value and ":" not in (host or "")
    return url if host and not is_bracketed_name else None


_ODD: Final = re.compile(r"[ \"<>\\^`{|}]|%(?![0-9A-Fa-f]{2})")
"""What no URL contains."""

_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII | re.IGNORECASE)
_MAX_HOST: Final = 253


def _can_be_host(host: str) -> bool:
    """Returns True if a host is an address, or a name that can be resolved at all."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return "%" not in host
    try:
        labels = host.encode("idna").decode().removesuffix(".").split(".")
    except UnicodeError:
        return False
    is_address = labels[-1].isdigit()  # No name ends so: it is an address that is none.
    return len(host) <= _MAX_HOST and not is_address and all(map(_LABEL.fullmatch, labels))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refuse(name: str, expected: str, value: object) -> NoReturn:
    raise InvalidSettingError(f"{name} must be {expected}, got {_show(value)}")


def _show(value: object) -> str:
    """Returns a value as Python would show it, shortened; by its type if that raises."""
    try:
        shown = repr(value)
    except Exception:  # noqa: BLE001 -- the value is foreign code
        return f"a {type(value).__name__}"
    return shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 3]}..."


_SHOWN: Final = 80


def _plain(value: object) -> object:
    """Returns a string of a subclass, such as a member of a string enumeration, by its content."""
    return str.__str__(value) if isinstance(value, str) else value


_EXPECTED_IN_HEADER: Final = "a non-empty string of printable ASCII without spaces"


def _is_header(value: object) -> bool:
    """Returns True if a value can stand in a header."""
    return (
        isinstance(value, str)
        and bool(value)
        and value.isascii()
        and value.isprintable()
        and " " not in value
    )


def _secret_problem(secret: object) -> str | None:
    """Returns what is wrong with a secret, without showing it."""
    if _looks_like(secret, "rpub-"):
        return "secret must not be a public id, got what looks like one: are pub_id and secret swapped?"
    if _is_header(secret):
        return None
    shown = f"a string of {len(secret)} characters" if isinstance(secret, str) else type(secret).__name__
    hint = ""
    if isinstance(secret, str) and secret != secret.strip():
        hint = "; it begins or ends with white space, as in a file that ends with a new line"
    return f"secret must be {_EXPECTED_IN_HEADER}, got {shown} (not shown){hint}"


def _id_problem(name: str, value: object) -> str | None:
    """Returns what is wrong with an id. It may be the secret: then it is not shown."""
    if _looks_like(value, "rsec-"):
        hint = ": are pub_id and secret swapped?" if name == "pub_id" else ""
        return f"{name} must not be a secret, got what looks like one (not shown){hint}"
    if name == "tag_id" and _looks_like(value, "rpub-"):
        return f"tag_id must not be a public id, got {_show(value)}"
    return None if _is_header(value) else f"{name} must be {_EXPECTED_IN_HEADER}, got {_show(value)}"


def _looks_like(value: object, beginning: str) -> bool:
    """Returns True if a text has such a beginning, perhaps behind quotation marks or white space."""
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    return isinstance(text, str) and beginning in text.lower()[: len(beginning) + 8]


_secrets: Final[weakref.WeakKeyDictionary[Credentials, str]] = weakref.WeakKeyDictionary()
"""The secret of each credentials. Kept here, it is in no attribute that a printer could find."""


@final
class Credentials:
    """The credentials of a partner (specification, "Authorization Headers").

    The secret is in no `repr`, `str`, log, exception, traceback or pickle, and in no attribute that a printer
    lists. `credentials.secret` returns it. Pickling raises `TypeError`.

    Args:
        pub_id: The client public id, `rpub-…`.
        secret: The secret that belongs to it, `rsec-…`.
        tag_id: The Rokt tag id, an opaque string.

    Raises:
        InvalidSettingError: A value is empty or cannot stand in a header, or two of them are swapped.
    """

    __slots__ = ("__weakref__", "pub_id", "tag_id")

    pub_id: str
    tag_id: str

    if TYPE_CHECKING:
        secret: str

    def __init__(self, pub_id: str, secret: str, tag_id: str) -> None:
        if self in _secrets:
            raise AttributeError("Credentials are immutable: construct others")
        values: Any = [_plain(value) for value in (pub_id, secret, tag_id)]
        problem = (
            _id_problem("pub_id", values[0]) or _secret_problem(values[1]) or _id_problem("tag_id", values[2])
        )
        if problem is None:
            object.__setattr__(self, "pub_id", values[0])
            object.__setattr__(self, "tag_id", values[2])
            _secrets[self] = values[1]
        del pub_id, secret, tag_id, values  # A traceback can show the locals of this call.
        if problem is not None:
            raise InvalidSettingError(problem)

    def __init_subclass__(cls) -> NoReturn:
        raise TypeError("Credentials cannot be subclassed: a subclass could show the secret")

    def __getattr__(self, name: str) -> str:
        # Not a property: it would be listed, and a printer would read it.
        if name == "secret" and self in _secrets:
            return _secrets[self]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"Credentials are immutable: {name} cannot be set, construct others")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"Credentials are immutable: {name} cannot be deleted")

    @classmethod
    def from_env(cls) -> Credentials:
        """Reads `ROKT_PUB_ID`, `ROKT_SECRET` and `ROKT_TAG_ID`.

        Raises:
            InvalidSettingError: Names every variable that is missing or empty.
        """
        names = ("ROKT_PUB_ID", "ROKT_SECRET", "ROKT_TAG_ID")
        missing = [name for name in names if not os.environ.get(name)]
        if missing:
            raise InvalidSettingError(
                f"no credentials: set {', '.join(missing)} in the environment, "
                "or pass Credentials(pub_id=..., secret=..., tag_id=...)"
            )
        return cls(
            pub_id=os.environ["ROKT_PUB_ID"],
            secret=os.environ["ROKT_SECRET"],
            tag_id=os.environ["ROKT_TAG_ID"],
        )

    def __repr__(self) -> str:
        pub_id, tag_id = getattr(self, "pub_id", "?"), getattr(self, "tag_id", "?")  # It may be half built.
        return f"Credentials(pub_id={pub_id!r}, secret=<hidden>, tag_id={tag_id!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("Credentials cannot be pickled: the secret would be in the pickle")

    def __copy__(self) -> Credentials:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Credentials:
        return self


def _check_wait(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, tuple) or len(value) != 2:
        _refuse("wait", "a pair (shortest, longest) of seconds", value)
    shortest = check_number("wait[0], the shortest,", value[0], at_least=0)
    check_number("wait[1], the longest,", value[1], at_least=shortest)


@attrs.frozen
class RetryPolicy:
    """When a request is retried, and when its events are given up.

    Args:
        deadline: The delivery deadline of an event, in seconds since its acceptance. `None` means 120;
            with a journal three days, as old as an event may be (specification).
        max_attempts: How many requests may carry an event before it is given up; splits count too. `None`
            leaves that to the deadline.
        wait: The shortest and the longest wait before a retry, in seconds. The wait is drawn evenly between
            them (specification, "Internal Server Errors": 1 to 2 s). A `Retry-After` is a minimum.
        max_backoff: The longest wait in seconds. From the fifth failure in a row of a batch on, its wait
            doubles up to that.
        retry_unconfirmed: True to retry after a lost answer, though Rokt may have accepted the events. The
            API has no idempotency key, so they may then count twice; the receipt says so. A 502, 504 or
            408 is an answer, and is retried either way.
        max_unconfirmed_attempts: How often events that Rokt may have accepted are sent again before they
            end as unconfirmed. Attempts that fail in an outage do not count.

    Raises:
        InvalidSettingError: A value is out of bounds.
    """

    deadline: float | None = attrs.field(
        default=None,
        validator=lambda _i, a, v: None if v is None else check_number(a.name, v, at_least=0, above=True),
    )
    max_attempts: int | None = attrs.field(
        default=None, validator=lambda _i, a, v: None if v is None else check_count(a.name, v)
    )
    wait: tuple[float, float] = attrs.field(default=(1.0, 2.0), validator=_check_wait)
    retry_unconfirmed: bool = True
    max_backoff: float = attrs.field(
        default=60.0, validator=lambda _i, a, v: check_number(a.name, v, at_least=0, above=True)
    )
    max_unconfirmed_attempts: int = attrs.field(
        default=100, validator=lambda _i, a, v: check_count(a.name, v)
    )

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.retry_unconfirmed, bool):
            _refuse("retry_unconfirmed", "True or False", self.retry_unconfirmed)


WhenFull = Literal["drop", "raise"]
"""The overflow policies."""

_DEADLINE: Final = 120.0
"""The delivery deadline in seconds, where the policy leaves it open."""

_DURABLE_DEADLINE: Final = 3 * 24 * 3600.0
"""The same with a journal: as old as an event may be (specification, "PartnerEvent", eventTime)."""

_MAX_CONCURRENCY: Final = 1024


def _check_max_wait(value: object) -> float | None:
    return None if value is None else check_number("max_wait", value, at_least=0)


def _check_share(value: object) -> float:
    share = check_number("max_session_share", value, at_least=0, above=True)
    if share > 1:
        _refuse("max_session_share", "a number > 0 and <= 1", value)
    return share


def _check_when_full(value: object) -> WhenFull:
    if value == "wait":
        raise InvalidSettingError(
            "when_full must be one of 'drop', 'raise', got 'wait': max_wait=None waits for room without bound"
        )
    choice: WhenFull = check_choice("when_full", value, get_args(WhenFull))
    return choice


def _check_retry(value: object) -> RetryPolicy:
    policy: RetryPolicy = check_instance("retry", value, RetryPolicy)
    return policy


@attrs.frozen(kw_only=True)
class EmitterSettings:
    """The limits and times of one emitter. `Emitter` documents them, and has the defaults."""

    endpoint: str
    flush_interval: float
    max_batch_size: int
    max_concurrency: int
    max_pending: int
    max_pending_bytes: int
    max_session_share: float
    max_wait: float | None
    when_full: WhenFull
    retry: RetryPolicy
    request_timeout: float
    close_timeout: float
    is_durable: bool = False
    """True with a journal."""

    @property
    def deadline(self) -> float:
        """The delivery deadline in seconds."""
        if self.retry.deadline is not None:
            return self.retry.deadline
        return _DURABLE_DEADLINE if self.is_durable else _DEADLINE


_CHECKS: Final[dict[str, Callable[[Any], Any]]] = {
    "endpoint": str,
    "flush_interval": lambda value: check_number("flush_interval", value, at_least=0),
    "max_batch_size": lambda value: check_count("max_batch_size", value, at_most=MAX_BATCH_SIZE),
    "max_concurrency": lambda value: check_count("max_concurrency", value, at_most=_MAX_CONCURRENCY),
    "max_pending": lambda value: check_count("max_pending", value),
    "max_pending_bytes": lambda value: check_count("max_pending_bytes", value),
    "max_session_share": _check_share,
    "max_wait": _check_max_wait,
    "when_full": _check_when_full,
    "retry": _check_retry,
    "request_timeout": lambda value: check_number("request_timeout", value, at_least=0, above=True),
    "close_timeout": lambda value: check_number("close_timeout", value, at_least=0),
}


def check_settings(*, is_durable: bool = False, **values: Any) -> EmitterSettings:
    """Returns the settings.

    They are checked before there is an object: one that is half built could not be shown in a traceback.

    Args:
        is_durable: True with a journal.
        values: All other fields of `EmitterSettings`; the endpoint as `choose_endpoint` returns it.

    Raises:
        InvalidSettingError: A value is out of bounds.
    """
    checked = {name: check(values[name]) for name, check in _CHECKS.items()}
    settings = EmitterSettings(is_durable=is_durable, **checked)
    if settings.flush_interval >= settings.deadline:
        raise InvalidSettingError(
            f"flush_interval must be shorter than the retry deadline of {settings.deadline:g} s, "
            f"or events are given up before they are sent, got {settings.flush_interval!r}"
        )
    return settings
