"""Help that fits 80 columns, with an example for each command."""

from __future__ import annotations

from typing import Any

import click


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
