"""The command ``lightning-loggers``: one file per command.

Importing this imports neither torch, lightning nor an SDK, so that a command starts in a moment. An error of ours is
one sentence on standard error and exit code 2, like any wrong usage.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence

import typer

from lightning_loggers.cli import console
from lightning_loggers.cli.doctor import doctor
from lightning_loggers.cli.status import status
from lightning_loggers.cli.sync import sync
from lightning_loggers.errors import LightningLoggersError
from lightning_loggers.version import __version__

_DEMO = "lightning_loggers.cli.demo"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Instead of the process's own, without the program's name.

    Returns:
        The exit code: 0 if all is well, 1 if something is left to do, 2 for wrong usage, 130 after Ctrl+C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    console.take_over_logging()
    try:
        _build(given)(given, prog_name="lightning-loggers")
    except LightningLoggersError as error:
        console.say(f"lightning-loggers: {error}")
        return 2
    except KeyboardInterrupt:
        return 130
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _build(arguments: Sequence[str]) -> typer.Typer:
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        help="Deliver the journals of lightning-loggers, see how they stand, and find out what is wrong.",
    )
    app.callback()(_options)
    app.command()(sync)
    app.command()(status)
    app.command()(doctor)
    # The demo needs heavy libraries: it is loaded for whoever asks for it, or for the list of commands.
    if (not arguments or arguments[0] in {"demo", "--help"}) and importlib.util.find_spec(_DEMO) is not None:
        app.command()(importlib.import_module(_DEMO).demo)
    return app


def _options(
    version: bool = typer.Option(False, "--version", is_eager=True, callback=lambda given: _show_version(given=given)),
) -> None:
    """Options before any command."""


def _show_version(*, given: bool) -> None:
    if given:
        typer.echo(f"lightning-loggers {__version__}")
        raise typer.Exit
