"""The command line: `feddkd --help`.

Exit codes: 0 success, 1 a run failed, 2 a usage or configuration error, 75 a run was stopped and can go on, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from types import FrameType
from typing import Annotated

import typer
from rich.logging import RichHandler

from feddkd import __version__
from feddkd.cli.output import error_console
from feddkd.errors import AddressInUseError, ConfigError, FedDKDError, StoppedError
from feddkd.text import PrintableFilter, printable

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again
EXIT_INTERRUPTED = 130

MESSAGE_LETTERS = 4000

app = typer.Typer(
    name="feddkd",
    help="Federated learning with decentralized knowledge distillation over gRPC, measured byte by byte.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"feddkd {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens, not only what goes wrong.")] = False,
    _version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(console=error_console(), show_path=False, show_time=verbose)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(PrintableFilter())
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])


def _register_commands() -> None:
    """Commands live in modules of their own; importing them here keeps `feddkd --help` the only entrance."""
    from feddkd.cli import bench, client, compare, config, data, new, replay, report, run, server, status

    app.command("new")(new.new)
    app.command("run")(run.run)
    app.command("server")(server.server)
    app.command("client")(client.client)
    app.command("status")(status.status)
    app.command("replay")(replay.replay)
    app.command("compare")(compare.compare)
    app.command("report")(report.report)
    app.add_typer(data.app, name="data")
    app.add_typer(config.app, name="config")
    app.add_typer(bench.app, name="bench")


_register_commands()


def main() -> None:
    """Run the command line; errors of ours become one line and an exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except (ConfigError, AddressInUseError) as error:
        _fail(error, EXIT_USAGE)
    except StoppedError as error:
        _fail(error, EXIT_STOPPED)
    except FedDKDError as error:
        _fail(error, EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """SIGTERM ends a command as Ctrl-C does: the server says farewell, and the record is closed."""
    raise KeyboardInterrupt


def _fail(error: object, code: int) -> None:
    # A message may hold what another machine said, or what a file holds.
    with contextlib.suppress(OSError):
        print(f"feddkd: {printable(str(error), MESSAGE_LETTERS)}", file=sys.stderr)
    sys.exit(code)
