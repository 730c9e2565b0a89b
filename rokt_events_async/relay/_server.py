"""A Valkey or Redis server: its URL, exchanges with it, and what its errors mean.

This module alone knows the client library.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

try:
    import hiredis
    from redis.asyncio import connection as redis_connection
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.credentials import CredentialProvider
except ModuleNotFoundError as _missing:  # pragma: no cover -- a test runs it in a process without the extra
    raise ModuleNotFoundError(
        f"RedisQueue needs {str(_missing.name).partition('.')[0]}: pip install 'rokt_events_async[redis]'",
        name=_missing.name,
    ) from None
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from rokt_events_async.errors import (
    InvalidSettingError,
    QueueFullError,
    QueueRefusedError,
    QueueUnavailableError,
)
from rokt_events_async.relay.entries import NewEntry

_SCHEMES: Final = {
    "redis": "redis",
    "rediss": "rediss",
    "valkey": "redis",
    "valkeys": "rediss",
    "unix": "unix",
}
_OPTIONS: Final = frozenset(
    [
        "db",
        "host",
        "port",
        "path",
        "connection_class",
        "ssl_ca_certs",
        "ssl_ca_path",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_keyfile",
        "ssl_check_hostname",
        "namespace",
        "partitions",
    ]
)
NOT_PERMITTED: Final = "does not permit it"


class _Login(CredentialProvider):
    """The user and password. Kept here, they are in no keyword argument that a printer could find."""

    def __init__(self, username: str | None, password: str) -> None:
        login = (username, password) if username else (password,)
        self._get: Callable[[], Any] = lambda: login

    def get_credentials(self) -> Any:
        return self._get()

    async def get_credentials_async(self) -> Any:
        return self.get_credentials()

    def __repr__(self) -> str:
        return "<hidden>"


class Server:
    """The way to a server.

    Args:
        options: What `parse_url` returned, without what is the queue's own.

    Attributes:
        where: How errors call the server.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.where = _describe(options)
        self._pool = redis_connection.ConnectionPool(
            protocol=2,
            retry=Retry(NoBackoff(), 0),  # The publisher and the relay know better when.
            socket_timeout=None,  # A whole exchange has a time-out.
            health_check_interval=0,
            **options,
        )

    async def exchange(
        self, commands: Sequence[tuple[Any, ...]], *, timeout: float, sent: Iterable[NewEntry] = ()
    ) -> list[Any]:
        """Sends commands at once, and returns the reply of each; an error reply as the exception.

        Args:
            commands: The commands and their arguments.
            timeout: Seconds, connecting included.
            sent: Entries whose `tries` grow once the commands go out.
        """
        was_asked = False
        try:
            async with asyncio.timeout(timeout):
                connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]  # redis-py's decorator
                try:
                    for entry in sent:
                        entry.tries += 1
                    was_asked = True
                    packed = [hiredis.pack_command(command) for command in commands]
                    await connection.send_packed_command(packed, check_health=False)
                    replies = [await _reply(connection) for _ in commands]
                    if any(isinstance(reply, ReadOnlyError) for reply in replies):
                        await connection.disconnect()  # A name that has moved is looked up again.
                    return replies
                finally:
                    await self._pool.release(connection)
        except TimeoutError:
            text = f"{self.where} did not answer within {timeout:.3g} s"
            raise QueueUnavailableError(text, was_asked=was_asked) from None
        except (AuthenticationError, AuthorizationError, NoPermissionError) as error:
            raise QueueRefusedError(f"{self.where} refuses the connection: {text_of(error)}") from None
        except RuntimeError as error:
            if "closed" not in str(error):  # So uvloop says that the connection has broken.
                raise
            text = f"{self.where} cannot be reached: connection closed"
            raise QueueUnavailableError(text, was_asked=was_asked) from None
        except ResponseError as error:  # To what a new connection begins with: a database that is not there.
            raise self.translate(error) from None
        except (RedisError, OSError) as error:
            text = f"{self.where} cannot be reached: {text_of(error)}"
            raise QueueUnavailableError(text, was_asked=was_asked) from None

    def translate(self, error: Exception) -> Exception:
        """Returns what an error reply means."""
        text = text_of(error)
        if isinstance(error, OutOfMemoryError) or text.startswith("OOM"):
            return QueueFullError(f"the queue is full: the memory of {self.where} is used up")
        if isinstance(error, NoPermissionError) or text.startswith("NOPERM"):
            return QueueRefusedError(f"{self.where} {NOT_PERMITTED}: {text}")
        if isinstance(error, _PASSING_ERRORS) or text.split(" ", 1)[0] in _PASSING:
            return QueueUnavailableError(f"{self.where} does not serve now: {text}")
        return QueueRefusedError(f"{self.where} refuses: {text}")

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._pool.aclose()


_PASSING: Final = frozenset(
    [
        "LOADING",
        "NOGROUP",
        "UNBLOCKED",
        "READONLY",
        "MASTERDOWN",
        "MISCONF",
        "NOREPLICAS",
        "BUSY",
        "CLUSTERDOWN",
        "TRYAGAIN",
    ]
)
"""Error codes of a server that may serve again."""

_PASSING_ERRORS: Final = (ClusterDownError, MasterDownError, ReadOnlyError, TryAgainError)
"""The same, where the client has cut the code off."""


async def _reply(connection: redis_connection.AbstractConnection) -> Any:
    try:
        return await connection.read_response(disable_decoding=True)
    except ResponseError as error:
        return error


def text_of(error: BaseException) -> str:
    """Returns the server's or the client's words, on one line and bounded."""
    return " ".join(str(error).split())[:_SHOWN]


_SHOWN: Final = 300


def parse_url(url: object) -> dict[str, Any]:
    """Returns the options of a connection.

    Raises:
        InvalidSettingError: It is no URL of a queue. What is in it is not shown: it may have a password.
    """
    expected = "the queue's URL must be redis://…, rediss://… (TLS) or unix://…"
    if not isinstance(url, str):
        raise InvalidSettingError(f"{expected}, got {type(url).__name__}")
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() not in _SCHEMES:
        shown = repr(scheme) if separator and scheme.isalnum() else "a text without one of these beginnings"
        raise InvalidSettingError(f"{expected}, got {shown}")
    options: dict[str, Any] | None = None
    with contextlib.suppress(ValueError):
        options = dict(redis_connection.parse_url(f"{_SCHEMES[scheme.lower()]}://{rest}"))
    database = rest.partition("?")[0].partition("/")[2] if scheme.lower() != "unix" else ""
    is_wrong = (database and not database.isdecimal()) or "#" in rest or "@" in rest.partition("?")[2]
    if options is None or is_wrong or (not options.get("host") and not options.get("path")):
        raise InvalidSettingError(f"{expected}, with a host, and a port and a database that are numbers")
    username, password = options.pop("username", None), options.pop("password", None)
    if options.keys() - _OPTIONS:
        raise InvalidSettingError(
            "the queue's URL must have no options but db, namespace, partitions and ssl_… (it is not shown)"
        )
    if password is not None:
        options["credential_provider"] = _Login(username, password)
    return options


def _describe(options: Mapping[str, Any]) -> str:
    if "path" in options:
        return f"the queue at {options['path']}"
    return f"the queue at {options['host']}:{options.get('port', 6379)}"
