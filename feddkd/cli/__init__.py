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

from feddkd import __version__
from feddkd.cli.home import expanded
from feddkd.cli.logs import set_up_logging
from feddkd.cli.options import CONTEXT, Verbose
from feddkd.cli.output import check_output, error_console, is_said_in_log, note, prints_results
from feddkd.cli.signals import for_this_process
from feddkd.errors import AddressInUseError, CommandInterruptedError, ConfigError, FedDKDError, StoppedError
from feddkd.log_events import about
from feddkd.memory import end_without_search
from feddkd.standard_error import never_wait_for_standard_error
from feddkd.text import printable

logger = logging.getLogger(__name__)

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again
EXIT_INTERRUPTED = 130

MESSAGE_LETTERS = 4000

EXIT_CODES = """Exit codes: **0** success; **1** the run failed, or a file is damaged; **2** wrong usage or configuration,
nothing was started; **75** stopped by a signal, and the same run can go on; **130** interrupted.
"""

app = typer.Typer(
    name="feddkd",
    help="Train one model across machines that keep their data: federated learning with knowledge distillation, over gRPC.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    context_settings=CONTEXT,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def _options(
    _verbose: Verbose = False,
    _version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    set_up_logging()


def version(_verbose: Verbose = False) -> None:
    """Print the version.

    ```console
    feddkd version
    ```
    """
    typer.echo(f"feddkd {__version__}")


def _register_commands() -> None:
    """Commands live in modules of their own; importing them here keeps `feddkd --help` the only entrance."""
    from feddkd.cli import audit, bench, certs, client, compare, config, data, health, new, replay, report, run, server, status, tokens

    app.command("new")(prints_results(new.new))
    app.command("run")(prints_results(run.run))
    app.command("server")(prints_results(server.server))
    app.command("client")(prints_results(client.client))
    app.command("status")(prints_results(status.status))
    app.command("health")(prints_results(health.health))
    app.command("replay")(prints_results(replay.replay))
    app.command("compare")(prints_results(compare.compare))
    app.command("report")(prints_results(report.report))
    app.add_typer(certs.app, name="certs")
    app.add_typer(tokens.app, name="tokens")
    app.add_typer(audit.app, name="audit")
    app.add_typer(data.app, name="data")
    app.add_typer(config.app, name="config")
    app.add_typer(bench.app, name="bench")
    app.command("version")(version)


_register_commands()


def main() -> None:
    """Run the command line; errors of ours become one line and an exit code."""
    end_without_search()
    never_wait_for_standard_error()
    signal.signal(signal.SIGTERM, for_this_process(_interrupt))
    sys.argv[1:] = expanded(sys.argv[1:])
    try:
        _call_app()
    except (ConfigError, AddressInUseError) as error:
        _fail(error, EXIT_USAGE)
    except StoppedError as error:
        _fail(f"{error}; the record is in {error.record}; to go on:", EXIT_STOPPED, error.go_on)
    except CommandInterruptedError as error:
        _fail(error, EXIT_INTERRUPTED, error.go_on)
    except FedDKDError as error:
        _fail(error, EXIT_FAILED)
    except KeyboardInterrupt:
        _fail("interrupted", EXIT_INTERRUPTED)
    except SystemExit as error:
        if error.code != EXIT_INTERRUPTED:
            raise
        _fail("interrupted", EXIT_INTERRUPTED)  # typer takes the KeyboardInterrupt, and says nothing


def _call_app() -> None:
    try:
        app()
    except OSError:
        check_output()  # what --help, --version or a completion could not write is still to be written
        raise


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """SIGTERM ends a command as Ctrl-C does: the server says farewell, and the record is closed."""
    raise KeyboardInterrupt


def _fail(error: object, code: int, command: str = "") -> None:
    # A message may hold what another machine said, or what a file holds.
    text = printable(f"feddkd: {error}", MESSAGE_LETTERS)
    if is_said_in_log():
        logger.error("%s", text, extra=about("command_failed", exit_code=code, go_on=command or None))
        sys.exit(code)
    note(error_console(), text)
    if command:
        with contextlib.suppress(OSError):
            print(f"  {printable(command, MESSAGE_LETTERS)}", file=sys.stderr)  # in one line, to be copied
    sys.exit(code)
