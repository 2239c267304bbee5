"""`feddkd bench`: speed, as a ratio to a reference measured in the same run."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from feddkd.cli.options import Json, Verbose, check_can_save, save_text
from feddkd.cli.output import present, prints_results, say
from feddkd.cli.words import short_size

if TYPE_CHECKING:
    from feddkd.bench.peers import Measurement

app = typer.Typer(help="Measure speed on this machine.", no_args_is_help=True, rich_markup_mode="markdown")

TINY_MEGABYTES = 0.0001


@app.callback()
def _benchmarks() -> None:
    """Measure speed on this machine."""


@app.command()
@prints_results
def transport(
    megabytes: Annotated[
        list[float] | None, typer.Option(metavar="MIB", min=0.000004, help="Size of the model. May be repeated. Default: 0.0001, 10, 100.")
    ] = None,
    clients: Annotated[
        list[int] | None, typer.Option(metavar="N", min=1, help="Start so many client processes. May be repeated; default: 4.")
    ] = None,
    rounds: Annotated[int, typer.Option(metavar="N", min=2, help="Time so many exchanges in a repetition; the first is warm-up.")] = 8,
    tensors: Annotated[int, typer.Option(metavar="N", min=1, help="Divide the model into so many tensors.")] = 1,
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="Repeat so often, in turn with the peer.")] = 2,
    flower_python: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", exists=True, dir_okay=False, help="Measure Flower, too, with this Python that has flwr.", show_default=False
        ),
    ] = None,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the result as JSON to this file.", show_default=False)] = None,
    busy: Annotated[bool, typer.Option("--busy", help="Save a result even if other programs use the machine.")] = False,
    as_json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Time one exchange: a model down to all clients, back up, and reduced, with nobody computing.

    In turn with it the same bytes travel over gRPC streams without any code of feddkd, and over plain TCP
    sockets. A result from a machine that is not idle is not saved.

    ```console
    feddkd bench transport --megabytes 100 --flower-python ../flower/bin/python
    ```
    """
    check_can_save(save)
    # These import torch, which takes seconds: --help and a typing error should not.
    from feddkd.bench.environment import check_idle, environment
    from feddkd.bench.peers import measure_in_turn
    from feddkd.bench.workload import Workload

    if save is not None and not busy:
        check_idle()
    results: list[Measurement] = []
    for size in megabytes or (TINY_MEGABYTES, 10.0, 100.0):
        for number in clients or (4,):
            results.extend(measure_in_turn(Workload(number, rounds, size, tensors), repeats, flower_python))
    document = {
        "command": shlex.join(["feddkd", *sys.argv[1:]]),
        **environment(flower_python),
        "results": [measurement.as_json() for measurement in results],
    }
    if save is not None:
        save_text(json.dumps(document, indent=2) + "\n", save)
    if as_json:
        say(json.dumps(document))
    else:
        for table in _tables(results):
            present(table)


def _tables(results: list[Measurement]) -> Iterator[Table]:
    """Build a table for each workload, within 80 columns."""
    for workload in dict.fromkeys(measurement.workload for measurement in results):
        of_it = [measurement for measurement in results if measurement.workload == workload]
        clients = "1 client" if workload.clients == 1 else f"{workload.clients} clients"
        table = Table(title=f"{short_size(workload.size_bytes)}, {clients}: down, up, reduced", title_justify="left")
        for column in ("system", "median", "min", "max", "CPU", "server peak", "times raw"):
            table.add_column(column, justify="left" if column == "system" else "right")
        reference_s = next(measurement.median_s for measurement in of_it if measurement.system == "raw gRPC")
        for measurement in of_it:
            table.add_row(measurement.system, *_cells(measurement), f"{measurement.median_s / reference_s:.2f}")
        yield table


def _cells(measurement: Measurement) -> list[str]:
    """Write the numbers of one system: times and processor time of an exchange, and the server's memory."""
    times_s = (measurement.median_s, min(measurement.seconds), max(measurement.seconds))
    cpu_s = [part for part in (measurement.server_cpu_s, measurement.client_cpu_s) if part is not None]
    cpu = f"{sum(cpu_s) * 1e3:,.0f} ms" if cpu_s else ""
    return [*(f"{seconds * 1e3:,.1f} ms" for seconds in times_s), cpu, f"{measurement.server_peak_bytes / 1e6:,.0f} MB"]
