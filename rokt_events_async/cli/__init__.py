"""The command line, `rokt-events`. It needs the extra `[cli]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rokt_events_async import __version__

try:
    import click

    from rokt_events_async.cli import check, dead_letters, demo, journal, queue, relay, sandbox, send
    from rokt_events_async.cli._help import Group
except ModuleNotFoundError as _error:  # pragma: no cover -- a test runs it in a process without the extra
    raise SystemExit(
        f"rokt-events: the command line needs {_error.name}: pip install 'rokt_events_async[cli]'"
    ) from None


@click.group(
    cls=Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    examples=(
        "rokt-events demo --watch",
        "rokt-events check",
        'eval "$(_ROKT_EVENTS_COMPLETE=bash_source rokt-events)"  # completion',
    ),
)
@click.version_option(__version__, prog_name="rokt-events")
@click.pass_context
def cli(context: click.Context) -> None:
    """Try, test and operate rokt_events_async."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line. A wrong use is one line on stderr, and exit status 2."""
    try:
        status = cli.main(arguments, prog_name="rokt-events", standalone_mode=False)
    except click.ClickException as error:
        print(f"rokt-events: {' '.join(error.format_message().split())}", file=sys.stderr)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        print("rokt-events: interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(status)


cli.add_command(check.check)
cli.add_command(dead_letters.dead_letters)
cli.add_command(demo.demo)
cli.add_command(journal.journal)
cli.add_command(queue.queue)
cli.add_command(relay.relay)
cli.add_command(sandbox.sandbox)
cli.add_command(send.send)
