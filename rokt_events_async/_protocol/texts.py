"""Text from outside, made fit for errors and logs: one line, bounded, and without a secret.

A server's text is cleaned once, where it enters. Nothing behind that border cuts or escapes it again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

MAX_TEXT: Final = 2048
"""The most bytes of a server's text that an error keeps."""

_CUT: Final = "..."
_HIDDEN: Final = "<hidden>"


def clean(text: str, *, secrets: Iterable[str] = (), at_most: int = MAX_TEXT) -> str:
    """Returns the text on one line, without control characters and secrets, at most so many bytes of it.

    A character that cannot be printed is escaped as Python would escape it.
    """
    secrets = tuple(secrets)
    # Cut first, so that a megabyte is not escaped; but not within a secret.
    text = text[: at_most + 1 + max(map(len, secrets), default=0)]
    for secret in secrets:
        text = text.replace(secret, _HIDDEN)
    if not text.isprintable():
        text = "".join([char if char.isprintable() else _escape(char) for char in text[:at_most]])
    encoded = text.encode()
    if len(encoded) <= at_most:
        return text
    return encoded[: at_most - len(_CUT)].decode(errors="ignore") + _CUT


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
