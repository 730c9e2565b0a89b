"""The settings of an emitter: credentials, retry policy, endpoints, limits.

Every value is checked here, once. An error has its name, its value and what would be right.
"""

from __future__ import annotations

import ipaddress
import math
import os
from numbers import Real
from typing import Any, Final, Literal, NoReturn, get_args

import attrs
from yarl import URL

from rokt_events_async.errors import InvalidSettingError

PRODUCTION: Final = "https://server-api.rokt.com/v1/partner/events"
"""The production endpoint (specification, "Endpoints")."""

DEMO: Final = "https://server-api-demo.rokt.com/v1/partner/events"
"""The testing endpoint (specification, "Endpoints"): validates, and counts nothing."""

MAX_BATCH_SIZE: Final = 25
"""The most events that a request may carry (specification, "NameValuePair", note)."""


def check_number(name: str, value: object, *, at_least: float, above: bool = False) -> float:
    """Returns the value as a float.

    Args:
        above: Excludes the lower bound itself.

    Raises:
        InvalidSettingError: It is no finite number within the bounds.
    """
    bounds = f"a finite number {'>' if above else '>='} {at_least:g}"
    if isinstance(value, bool) or not isinstance(value, Real):
        _refuse(name, bounds, value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number < at_least or (above and number == at_least):
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


def check_endpoint(value: object) -> str:
    """Returns the URL.

    Raises:
        InvalidSettingError: It is no https URL (http to loopback), or has credentials or a fragment.
    """
    expected = "an https URL without credentials and fragment (http only to loopback)"
    url = _parse_url(value)
    if url is None or not url.host or url.fragment:
        _refuse("endpoint", expected, value)
    if url.user is not None or url.password is not None:
        raise InvalidSettingError(
            "endpoint must not carry credentials (they are sent as headers, from Credentials), "
            f"got some for host {url.host!r}"
        )
    if url.scheme != "https" and not (url.scheme == "http" and _is_loopback(url.host)):
        _refuse("endpoint", expected, value)
    return str(value)


def check_instance(name: str, value: object, cls: type[Any]) -> Any:
    """Returns the value.

    Raises:
        InvalidSettingError: It is no instance of the class.
    """
    if not isinstance(value, cls):
        raise InvalidSettingError(f"{name} must be a {cls.__name__}, got {type(value).__name__}")
    return value


def _parse_url(value: object) -> URL | None:
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or " " in value:
        return None
    try:
        return URL(value)
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refuse(name: str, expected: str, value: object) -> NoReturn:
    shown = repr(value)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    raise InvalidSettingError(f"{name} must be {expected}, got {shown}")


def _check_header(name: str, value: object, *, is_secret: bool = False) -> None:
    """Checks that a value can stand in a header. A secret is described in the error, never shown."""
    if isinstance(value, str) and value and value.isascii() and value.isprintable() and " " not in value:
        return
    if not is_secret:
        _refuse(name, "a non-empty string of printable ASCII without spaces", value)
    shown = f"a string of {len(value)} characters" if isinstance(value, str) else type(value).__name__
    raise InvalidSettingError(
        f"{name} must be a non-empty string of printable ASCII without spaces, got {shown} (not shown)"
    )


@attrs.frozen(repr=False, eq=False)
class Credentials:
    """The credentials of a partner (specification, "Authorization Headers").

    The secret is in no `repr`, `str`, log, exception or pickle. Pickling raises `TypeError`.

    Args:
        pub_id: The client public id, `rpub-…`.
        secret: The secret that belongs to it, `rsec-…`.
        tag_id: The Rokt tag id, an opaque string.

    Raises:
        InvalidSettingError: A value is empty or cannot stand in a header, or the secret was passed as
            another value.
    """

    pub_id: str
    secret: str
    tag_id: str

    def __attrs_post_init__(self) -> None:
        _check_header("pub_id", self.pub_id)
        _check_header("secret", self.secret, is_secret=True)
        _check_header("tag_id", self.tag_id)
        for name, value in (("pub_id", self.pub_id), ("tag_id", self.tag_id)):
            if value.startswith("rsec-"):
                raise InvalidSettingError(f"{name} must not be a secret, got what looks like one (not shown)")

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
        pub_id, secret, tag_id = (os.environ[name] for name in names)
        return cls(pub_id=pub_id, secret=secret, tag_id=tag_id)

    def __repr__(self) -> str:
        return f"Credentials(pub_id={self.pub_id!r}, secret=<hidden>, tag_id={self.tag_id!r})"

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
        deadline: The delivery deadline of an event, in seconds since its acceptance. `None` means 120.
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

_MAX_CONCURRENCY: Final = 1024


def _number(name: str, *, above: bool = False) -> Any:
    def check(value: object) -> float:
        return check_number(name, value, at_least=0, above=above)

    return attrs.field(converter=check)


def _count(name: str, *, at_most: int | None = None) -> Any:
    def check(value: object) -> int:
        return check_count(name, value, at_most=at_most)

    return attrs.field(converter=check)


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
    """The limits and times of one emitter, checked. `Emitter` documents them, and has the defaults.

    Raises:
        InvalidSettingError: A value is out of bounds.
    """

    endpoint: str = attrs.field(converter=check_endpoint)
    flush_interval: float = _number("flush_interval")
    max_batch_size: int = _count("max_batch_size", at_most=MAX_BATCH_SIZE)
    max_concurrency: int = _count("max_concurrency", at_most=_MAX_CONCURRENCY)
    max_pending: int = _count("max_pending")
    max_pending_bytes: int = _count("max_pending_bytes")
    max_session_share: float = attrs.field(converter=_check_share)
    max_wait: float | None = attrs.field(converter=_check_max_wait)
    when_full: WhenFull = attrs.field(converter=_check_when_full)
    retry: RetryPolicy = attrs.field(converter=_check_retry)
    request_timeout: float = _number("request_timeout", above=True)
    close_timeout: float = _number("close_timeout")

    @property
    def deadline(self) -> float:
        """The delivery deadline in seconds."""
        return _DEADLINE if self.retry.deadline is None else self.retry.deadline

    def __attrs_post_init__(self) -> None:
        if self.flush_interval >= self.deadline:
            raise InvalidSettingError(
                f"flush_interval must be shorter than the retry deadline of {self.deadline:g} s, "
                f"or events are given up before they are sent, got {self.flush_interval!r}"
            )
