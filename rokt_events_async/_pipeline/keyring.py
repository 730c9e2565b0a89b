"""The credentials in use, where new ones come from, and what happens while Rokt refuses them.

```
            401, 403
  working ───────────▶ refused: one probe per retry wait, the provider is asked before it
     ▲                    │
     └──────── 2xx ───────┘
```

If the credentials have worked before, an episode of refusals is an outage: events wait, those of all sessions
once two of them were refused. If they have never worked, they are wrong: events fail at once, all but the
probe's without a request of their own.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, Final

from rokt_events_async._protocol.texts import clean
from rokt_events_async._tracking.log import log
from rokt_events_async.errors import InvalidSettingError
from rokt_events_async.settings import Credentials

CredentialsProvider = Callable[[], Credentials | Awaitable[Credentials]]
"""What `credentials=` takes beside `Credentials`: asked at the start, and while Rokt refuses them."""

ASK_AGAIN: Final = 30.0
"""Seconds between two calls of the provider, at least."""


class Episode:
    """A time in which Rokt refuses the credentials. Pure; `now` is passed in.

    Args:
        wait: The retry wait, in seconds.
    """

    def __init__(self, *, wait: float) -> None:
        self._wait = wait
        self._sessions: set[str] = set()
        self._refused_at = -math.inf
        self.is_on = False
        self.has_worked = False
        self.reason = ""
        """Why the last request was refused, in words."""
        self.probe_at = -math.inf
        """When the next request may find out whether it is over."""

    @property
    def holds_all(self) -> bool:
        """True if no session may go on: several were refused. A single one may have itself to blame."""
        return self.is_on and len(self._sessions) >= _MANY

    def on_refused(self, session_id: str, reason: str, *, now: float) -> None:
        """Notes a 401 or 403."""
        self.is_on = True
        self.reason = reason
        self._refused_at = now
        if len(self._sessions) < _MANY:
            self._sessions.add(session_id)
        self.probe_at = now + self._wait

    def on_start(self, *, now: float) -> None:
        """Notes a probe."""
        self.probe_at = now + self._wait

    def on_answer(self, *, began: float) -> None:
        """Notes a 2xx. It ends the episode, unless its request is older than the last refusal."""
        self.has_worked = True
        if self.is_on and began > self._refused_at:
            self.is_on = False
            self._sessions.clear()

    def fails_at_once(self, *, now: float) -> bool:
        """Returns True if events fail without a request: the credentials have never worked."""
        return self.is_on and not self.has_worked and now < self.probe_at


_MANY: Final = 2
"""How many sessions must be refused, with no 2xx between, to hold up all others."""


class Keyring:
    """The credentials in use.

    Args:
        credentials: They, or their provider.
        timeout: Seconds that a call of the provider may take.

    Raises:
        InvalidSettingError: `credentials` is neither.
    """

    def __init__(self, credentials: Credentials | CredentialsProvider, *, timeout: float) -> None:
        self._provider = None if isinstance(credentials, Credentials) else _check_provider(credentials)
        self._current = credentials if isinstance(credentials, Credentials) else None
        self._timeout = timeout
        self._asked_at = -math.inf
        self._asking: asyncio.Future[Credentials] | None = None
        self._waiting = 0
        self._secrets = (self._current.secret,) if self._current else ()

    @property
    def current(self) -> Credentials:
        """The credentials in use."""
        assert self._current is not None, "a provider is asked at the start"
        return self._current

    @property
    def is_open(self) -> bool:
        """True if there are credentials to use."""
        return self._current is not None

    @property
    def can_change(self) -> bool:
        """True if there is a provider."""
        return self._provider is not None

    def clean(self, text: str) -> str:
        """Makes a server's text fit for errors and logs: all secrets ever used are hidden in it."""
        return clean(text, secrets=self._secrets)

    async def open(self, *, now: float) -> None:
        """Asks the provider for the first time.

        Raises:
            InvalidSettingError: It returned no credentials.
            TimeoutError: It took too long.
            Exception: Whatever the provider raises.
        """
        self._asked_at = now
        self._use(await self._ask())

    async def refresh(self, *, now: float) -> None:
        """Asks the provider again, unless it was asked just now. If it fails, the old ones stay."""
        if self._provider is None or now < self._asked_at + ASK_AGAIN:
            return
        self._asked_at = now
        try:
            self._use(await self._ask())
        except Exception as error:  # noqa: BLE001 -- the application's own code; the old credentials stay
            _log_failure(error)

    async def _ask(self) -> Credentials:
        """Calls the provider. A call that takes too long goes on, and its answer is used when it comes."""
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._call())
            self._asking.add_done_callback(self._on_asked)
        asking = self._asking
        self._waiting += 1
        try:
            await asyncio.wait([asking], timeout=self._timeout)  # Not shaken by what the call raises.
        finally:
            self._waiting -= 1
        if not asking.done():
            raise TimeoutError(f"the provider of credentials has not answered within {self._timeout:g} s")
        if asking.cancelled():
            raise InvalidSettingError("the provider of credentials was cancelled")
        return asking.result()

    def _on_asked(self, asking: asyncio.Future[Credentials]) -> None:
        self._asking = None
        if asking.cancelled():
            return
        asking.exception()  # Marks it as retrieved.
        if self._waiting:
            return  # Who waits uses it, or raises.
        try:
            self._use(asking.result())
        except Exception as failure:  # noqa: BLE001 -- as in `refresh`
            _log_failure(failure)

    async def _call(self) -> Credentials:
        assert self._provider is not None, "only a provider is asked"
        if inspect.iscoroutinefunction(_unwrapped(self._provider)):
            answer = self._provider()
        else:
            answer = await asyncio.get_running_loop().run_in_executor(None, _call_plain, self._provider)
        if inspect.isawaitable(answer):
            answer = await answer
        if not isinstance(answer, Credentials):
            what = type(answer).__name__
            del answer  # It may be the secret; a traceback can show the locals of this call.
            raise InvalidSettingError(f"what the provider returns must be a Credentials, got {what}")
        return answer

    def _use(self, credentials: Credentials) -> None:
        if self._current is not None and credentials.tag_id != self._current.tag_id:
            raise InvalidSettingError(
                f"the provider must return credentials of tag_id {self._current.tag_id!r}, "
                f"got tag_id {credentials.tag_id!r}"
            )
        self._current = credentials
        if credentials.secret not in self._secrets:
            self._secrets = (*self._secrets, credentials.secret)

    async def aclose(self) -> None:
        """Leaves a call of the provider that still runs, whatever it does with its cancellation."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking], timeout=_GRACE)


_GRACE: Final = 0.5
"""Seconds that a cancelled provider has at a close."""


def _log_failure(error: Exception) -> None:
    what = str(error) if isinstance(error, (InvalidSettingError, TimeoutError)) else type(error).__name__
    log(logging.ERROR, "the provider of credentials failed, the old ones stay: %s", what)


def _call_plain(provider: Callable[[], Any]) -> Any:
    try:
        return provider()
    except StopIteration:  # No future can carry it.
        raise RuntimeError("the provider raised StopIteration") from None


def _unwrapped(provider: object) -> object:
    while isinstance(provider, functools.partial):
        provider = provider.func
    return provider if inspect.isroutine(provider) else getattr(provider, "__call__", provider)  # noqa: B004


def _check_provider(provider: object) -> CredentialsProvider:
    if isinstance(provider, type):
        raise InvalidSettingError(
            f"credentials must be a Credentials object, or a function that returns one, got the class "
            f"{provider.__name__}"
        )
    if not callable(provider):
        raise InvalidSettingError(
            "credentials must be a Credentials object, or a function that returns one, "
            f"got {type(provider).__name__}"
        )
    return provider
