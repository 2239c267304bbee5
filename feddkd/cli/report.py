"""`feddkd report`: one page with the pictures of one run, or of several side by side."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from feddkd.cli.options import Verbose
from feddkd.cli.output import WIDTH, as_terminal_table, error_console, note, present, say
from feddkd.cli.run_place import record_of
from feddkd.errors import CommandInterruptedError, ConfigError, FedDKDError, StateError
from feddkd.extras import install_command
from feddkd.imports import one_line
from feddkd.observability.run_folder import RunFolder

PAGE = "report.html"

Folders = Annotated[
    list[Path], typer.Argument(metavar="DIR", help="Records of runs (what `--out` named), or a server's `--state`.", show_default=False)
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE_OR_DIR", help="A file ending in .html, or a folder for report.html.", show_default=False),
]


def report(
    folders: Folders,
    out: Out = None,
    title: Annotated[str | None, typer.Option("--title", metavar="T", help="Title of the page.", show_default=False)] = None,
    uplink: Annotated[
        str | None, typer.Option("--uplink", metavar="RATE", help="From a client, e.g. `10Mbit`.", show_default=False)
    ] = None,
    downlink: Annotated[
        str | None, typer.Option("--downlink", metavar="RATE", help="To a client, e.g. `50Mbit`.", show_default=False)
    ] = None,
    rtt: Annotated[str | None, typer.Option("--rtt", metavar="TIME", help="Round-trip time, e.g. `40ms`.", show_default=False)] = None,
    _verbose: Verbose = False,
) -> None:
    """Draw what runs left behind: one HTML page that needs no network, and its pictures and tables as files beside it.

    For one run the page is DIR/report.html, for several report.html here. Runs that differ in the seed alone
    are drawn as their mean and range. Pictures are written as PNG, SVG and PDF, tables as CSV, Markdown and LaTeX.
    A folder without a readable record, or without a finished round, is left out, and named;
    of a run and its copies one is counted. Needs the extra `plot`.

    With `--uplink`, `--downlink` and `--rtt` it also estimates how long the runs would take over such a network.

    ```console
    feddkd report runs/feddkd-20260101-120000
    feddkd report runs/fedavg-* runs/feddkd-* --out comparison.html
    feddkd report runs/* --uplink 10Mbit --downlink 50Mbit --rtt 40ms
    ```
    """
    missing = missing_module()
    if missing is not None:
        raise ConfigError(f"{missing} is not installed; get it with: {install_command('plot')}")
    if len([given for given in (uplink, downlink, rtt) if given is not None]) in (1, 2):
        raise ConfigError("--uplink, --downlink and --rtt go together")
    found = list({folder.resolve(): folder for folder in folders}.values())
    runs, left_out = _load(found)
    # These import torch and matplotlib, which takes seconds.
    from feddkd.observability.wall_time import Link
    from feddkd.report.groups import group_runs
    from feddkd.report.page import write_report
    from feddkd.report.repeats import contradictions, without_copies
    from feddkd.report.time_table import time_table

    runs, copies = without_copies(runs)
    for reason in (*left_out, *copies):
        note(error_console(), f"feddkd: left out: {reason}")
    for reason in contradictions(runs):
        note(error_console(), f"feddkd: {reason}")
    link = None
    if uplink is not None and downlink is not None and rtt is not None:
        link = Link.parse(uplink, downlink, rtt)
    page = _page(out, [runs[0].path] if len(found) == 1 else found)
    pictures = write_report(runs, page, title, link, [*left_out, *copies])
    if link is not None:
        present(as_terminal_table(time_table(group_runs(runs), link)), width=WIDTH)
    say(f"report: {page} (pictures and tables in {pictures}/)")


def _load(folders: Sequence[Path]) -> tuple[list[RunFolder], list[str]]:
    """Read the records that can be read, and say of each other folder what is wrong with it.

    Raises:
        StateError: none can be read.
    """
    runs, left_out = [], []
    for folder in folders:
        try:
            run = RunFolder.load(record_of(folder))
            if not run.rounds:
                raise StateError(f"{folder} has no round yet (0 of {run.config.rounds})")
            runs.append(run)
        except FedDKDError as error:
            left_out.append(str(error))
        except OSError as error:
            left_out.append(f"{folder} cannot be read: {error.strerror}")
    if not runs:
        raise StateError("; ".join(left_out))
    return runs, left_out


def _page(out: Path | None, folders: list[Path]) -> Path:
    """Where the page goes. Raises ConfigError for an --out that cannot hold it."""
    if out is None:
        return folders[0] / PAGE if len(folders) == 1 else Path(PAGE)
    if out.is_dir():
        return out / PAGE
    if out.suffix.lower() in (".html", ".htm"):
        return out
    if out.exists():
        raise ConfigError(f"--out {out} is neither a folder nor a file ending in .html")
    return out / PAGE


def report_of(folders: Sequence[Path], page: Path, *, runs: Sequence[RunFolder] | None = None, with_pdf: bool = False) -> str:
    """Write the page of runs that have just ended, and say where it is or why there is none.

    Args:
        runs: the records, where they are read already; folders may have more rounds.
        with_pdf: whether there are PDFs too, which double the time that it takes.

    Raises:
        CommandInterruptedError: a signal came before it was written.
    """
    again = report_command(folders, page)
    if missing_module() is not None:
        return f"none; for one, {install_command('plot')}, then {again}"
    try:
        from feddkd.report.page import FORMATS, write_report

        formats = [kind for kind in FORMATS if with_pdf or kind != "pdf"]
        found = [RunFolder.load(folder) for folder in folders] if runs is None else runs
        write_report(found, page, formats=formats)
    except KeyboardInterrupt:
        ended = "the run is complete" if len(folders) == 1 else "all runs are complete"
        raise CommandInterruptedError(f"{ended}; to draw the report:", again) from None
    except Exception as error:  # noqa: BLE001  # whatever it is, the runs have not failed for it
        return f"none: {one_line(error)}; try again with {again}"
    return str(page)


def report_command(folders: Sequence[Path], page: Path) -> str:
    """Return the command that writes the page of these runs."""
    return shlex.join(["feddkd", "report", *map(str, folders), *(["--out", str(page)] if len(folders) > 1 else [])])


def missing_module() -> str | None:
    """The first module of the extra `plot` that is not installed."""
    return next((module for module in ("matplotlib", "jinja2") if importlib.util.find_spec(module) is None), None)
