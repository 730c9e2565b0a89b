"""Text from outside: on one line, bounded in bytes, and without a secret."""

from __future__ import annotations

import pytest

from rokt_events_async._protocol.texts import MAX_TEXT, clean

SECRET = "rsec-of-a-shop"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("plain", "plain"),
        ("O'Brien, Zürich", "O'Brien, Zürich"),
        ("two\nlines\r\n", "two\\nlines\\r\\n"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("half \ud800", "half \\ud800"),
        ("", ""),
    ],
)
def test_it_is_printable(text: str, cleaned: str) -> None:
    """Nothing of it starts a line, colours a terminal, or turns a text around."""
    assert clean(text) == cleaned


@pytest.mark.parametrize("char", ["a", "ü", "中", "\n", "\ud800", "😀"])
def test_it_is_bounded_in_bytes(char: str) -> None:
    """However many characters those are."""
    cleaned = clean(char * 250_000)

    assert MAX_TEXT - 20 <= len(cleaned.encode()) <= MAX_TEXT
    assert cleaned.endswith("...")


@pytest.mark.parametrize("before", [0, 1, MAX_TEXT - 20, MAX_TEXT - 5, MAX_TEXT - 1, MAX_TEXT])
def test_a_secret_is_hidden_also_where_the_text_is_cut(before: int) -> None:
    """No part of it is left at the end."""
    cleaned = clean("x" * before + SECRET + "x" * 5000, secrets=(SECRET,))

    assert "rsec" not in cleaned
    assert len(cleaned.encode()) <= MAX_TEXT


def test_secrets_that_stand_there_often() -> None:
    """What is replaced makes room for what comes after it; no part of a secret is shown all the same."""
    secret = "rsec-" + "abcdefghijklmnopqrstuvwxyz0123456789" * 2
    for count in (30, 60, 500, 5000):
        cleaned = clean(secret * count, secrets=(secret,))
        assert set(cleaned.replace("<hidden>", "").replace("...", "")) <= set("<hidden>.")
        assert "rsec" not in cleaned


def test_a_secret_that_begins_as_another() -> None:
    """As a provider's may."""
    assert clean("got rsec-abcdef", secrets=("rsec-abc", "rsec-abcdef")) == "got <hidden>"
