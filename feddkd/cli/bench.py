"""`feddkd bench`: speed, as a ratio to a reference measured in the same run."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from feddkd.cli.options import Json, Verbose, check_can_save, save_text
from feddkd.cli.output import present, prints_results, say

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
        list[float] | None, typer.Option(metavar="MIB", help="Size of the model. May be repeated. Default: 0.0001, 10, 100.")
    ] = None,
    clients: Annotated[int, typer.Option(metavar="N", min=1, help="Start so many client processes.")] = 4,
    rounds: Annotated[int, typer.Option(metavar="N", min=2, help="Time so many exchanges in a repetition; the first is warm-up.")] = 8,
    tensors: Annotated[int, typer.Option(metavar="N", min=1, help="Divide the model into so many tensors.")] = 1,
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="Repeat so often, in turn with the peer.")] = 2,
    flower_python: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Measure Flower, too, with this Python that has flwr.", show_default=False)
    ] = None,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the result as JSON to this file.", show_default=False)] = None,
    as_json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Time one exchange: a model down to all clients, back up, and reduced, with nobody computing.

    ```console
    feddkd bench transport --megabytes 100 --flower-python ../flower/bin/python
    ```
    """
    check_can_save(save)
    # These import torch, which takes seconds: --help and a typing error should not.
    from feddkd.bench.environment import environment
    from feddkd.bench.peers import measure_in_turn
    from feddkd.bench.transport import Workload

    results: list[Measurement] = []
    for size in megabytes or (TINY_MEGABYTES, 10.0, 100.0):
        results.extend(measure_in_turn(Workload(clients, rounds, size, tensors), repeats, flower_python))
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
        present(_table(results))


def _table(results: list[Measurement]) -> Table:
    table = Table(title="one exchange: down, up, reduced", title_justify="left")
    for column in ("system", "model", "median", "min", "max", "server peak", "times feddkd"):
        table.add_column(column, justify="left" if column == "system" else "right")
    ours = {measurement.workload: measurement.median_s for measurement in results if measurement.system == "feddkd"}
    for measurement in results:
        table.add_row(
            measurement.system,
            f"{measurement.workload.megabytes:g} MiB",
            *(f"{seconds * 1e3:,.1f} ms" for seconds in (measurement.median_s, min(measurement.seconds), max(measurement.seconds))),
            f"{measurement.server_peak_bytes / 1e6:,.0f} MB",
            f"{measurement.median_s / ours[measurement.workload]:.2f}",
        )
    return table
