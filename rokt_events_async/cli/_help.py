"""What commands share: help that fits 80 columns, with an example for each, and how they print."""

from __future__ import annotations

import sys
from typing import Any, Final

import click
from rich.console import Console

from rokt_events_async import InvalidSettingError
from rokt_events_async.settings import is_disabled


def counted(count: int, noun: str) -> str:
    """Returns a number with its noun, as in `1 event` or `1,234 events`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def plain_console() -> Console:
    """Returns a console that prints values as they are, and cuts no column where there is no terminal."""
    width = None if sys.stdout.isatty() else _WIDTH
    return Console(highlight=False, markup=False, soft_wrap=True, width=width)


_WIDTH: Final = 200


def refuse_disabled() -> None:
    """Ends a command that is there to send.

    Raises:
        click.UsageError: `ROKT_DISABLED=1` is set.
    """
    try:
        if is_disabled():
            raise click.UsageError("ROKT_DISABLED=1 is set: nothing would be sent")
    except InvalidSettingError as error:
        raise click.UsageError(str(error)) from None


class Command(click.Command):
    """A command with examples.

    Args:
        examples: Lines as they are typed, shown at the end of the help.
    """

    def __init__(self, *args: Any, examples: tuple[str, ...], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the examples, which are not wrapped: they are there to be copied."""
        super().format_epilog(ctx, formatter)
        _write(formatter, self.examples)


class Group(click.Group):
    """A group of commands with examples.

    Args:
        examples: Lines as they are typed, shown at the end of the help.
    """

    command_class: type[click.Command] | None = Command

    def __init__(self, *args: Any, examples: tuple[str, ...], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the examples."""
        super().format_epilog(ctx, formatter)
        _write(formatter, self.examples)


Group.group_class = Group


def _write(formatter: click.HelpFormatter, examples: tuple[str, ...]) -> None:
    with formatter.section("Example" if len(examples) == 1 else "Examples"):
        for line in examples:
            formatter.write(f"{'':{formatter.current_indent}}{line}\n")
