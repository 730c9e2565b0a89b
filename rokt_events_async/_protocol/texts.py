"""Text from outside, made fit for errors and logs: one line, bounded, and without a secret.

A server's text is cleaned once, where it enters. Nothing behind that border cuts or escapes it again.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

MAX_TEXT: Final = 2048
"""The most bytes of a server's text that an error keeps."""

_MAX_RAW: Final = 16 * 1024
"""The most characters of it that are looked at."""

_CUT: Final = "..."
_HIDDEN: Final = "<hidden>"


def clean(text: str, *, secrets: Collection[str] = (), at_most: int = MAX_TEXT) -> str:
    """Returns the text on one line, without control characters and secrets, at most so many bytes of it.

    A character that cannot be printed is escaped as Python would escape it.
    """
    if len(text) > _MAX_RAW:
        # Cut first, so that a megabyte is not escaped; what is left of a secret at the cut goes too.
        text = text[: _MAX_RAW - max(map(len, secrets), default=0)]
        text = text[: _end_without(secrets, text)]
    for secret in sorted(secrets, key=len, reverse=True):  # One may be the beginning of another.
        text = text.replace(secret, _HIDDEN)
    text = text[: at_most + 1]
    if not text.isprintable():
        text = "".join([char if char.isprintable() else _escape(char) for char in text])
    encoded = text.encode()
    if len(encoded) <= at_most:
        return text
    return encoded[: at_most - len(_CUT)].decode(errors="ignore") + _CUT


def _end_without(secrets: Collection[str], text: str) -> int:
    """Returns where the text ends without the beginning of a secret."""
    lengths = [size for secret in secrets for size in range(1, len(secret)) if text.endswith(secret[:size])]
    return len(text) - max(lengths, default=0)


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
