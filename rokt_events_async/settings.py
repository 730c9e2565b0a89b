"""What an emitter is told at construction: credentials, retry policy, endpoints, limits.

Every value is checked here, once, and refused with its name, its value and what would be right.
"""

from __future__ import annotations

import ipaddress
import math
import os
from numbers import Real
from typing import Any, Final, NoReturn

import attrs
from yarl import URL

from rokt_events_async.errors import InvalidSettingError

PRODUCTION: Final = "https://server-api.rokt.com/v1/partner/events"
"""The production endpoint (specification, "Endpoints")."""

DEMO: Final = "https://server-api-demo.rokt.com/v1/partner/events"
"""The testing endpoint (specification, "Endpoints"): validates, and counts nothing."""

MAX_BATCH_SIZE: Final = 25
"""Events a request may carry (specification, "NameValuePair", note)."""


def check_number(name: str, value: object, *, at_least: float, above: bool = False) -> float:
    """The value as a float, or an error that says what would be right.

    Args:
        above: Whether the lower bound itself is excluded.
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
    """The value, or an error that says what would be right."""
    bounds = f"a whole number >= {at_least}" if at_most is None else f"{at_least}..{at_most}"
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        _refuse(name, bounds, value)
    if at_most is not None and value > at_most:
        _refuse(name, bounds, value)
    return value


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """The value, or an error that lists the choices."""
    if not isinstance(value, str) or value not in choices:
        _refuse(name, "one of " + ", ".join(map(repr, choices)), value)
    return value


def check_endpoint(value: object) -> str:
    """The URL, or an error: https only (loopback aside), no credentials, no fragment."""
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
    """What goes into a header must be printable ASCII; a secret is described, never shown."""
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
    """What Rokt hands out to a partner (specification, "Authorization Headers").

    The secret is in no `repr`, `str`, log, exception or pickle: pickling raises `TypeError`.

    Args:
        pub_id: The client public id, `rpub-…`.
        secret: The secret that belongs to it, `rsec-…`.
        tag_id: The Rokt tag id, an opaque string.

    Raises:
        InvalidSettingError: A value is empty or could not stand in a header, or the secret was given as
            another.
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
    """When a request is sent again, and when its events are given up.

    Args:
        deadline: Seconds an event is tried for, counted from its acceptance.
        max_attempts: How many times an event's requests may fail before it is given up; `None` leaves
            it to the deadline.
        wait: Shortest and longest wait before sending again, in seconds; drawn evenly between them
            (specification, "Internal Server Errors": 1 to 2 s). A `Retry-After` is a minimum.
        retry_unconfirmed: Whether to send again what may have been accepted already, its answer being
            lost. The API has no idempotency key, so it may then count twice; the receipt says so.
            A 502, 504 or 408 is an answer, and is sent again either way.

    Raises:
        InvalidSettingError: A value is out of bounds.
    """

    deadline: float = attrs.field(
        default=120.0, validator=lambda _i, a, v: check_number(a.name, v, at_least=0, above=True)
    )
    max_attempts: int | None = attrs.field(
        default=None, validator=lambda _i, a, v: None if v is None else check_count(a.name, v)
    )
    wait: tuple[float, float] = attrs.field(default=(1.0, 2.0), validator=_check_wait)
    retry_unconfirmed: bool = True

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.retry_unconfirmed, bool):
            _refuse("retry_unconfirmed", "True or False", self.retry_unconfirmed)
