"""`feddkd compare`: several configurations with the same seeds and partitions, side by side at equal budgets."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from feddkd.cli.interruptions import interruptible
from feddkd.cli.options import Json, Overrides, Verbose, check_can_save, save_text
from feddkd.cli.output import WIDTH, as_terminal_table, error_console, note, present, say
from feddkd.cli.report import PAGE, report_of
from feddkd.cli.run import EngineChoice
from feddkd.config import Config, MainMetric
from feddkd.errors import ConfigError

DEFAULT_SEEDS = (0, 1, 2)

DEFAULT_TARGET = 0.9
"""Of a metric that is a share of 1."""


def compare(
    configs: Annotated[
        list[Path] | None, typer.Argument(metavar="CONFIG", help="TOML files; without one, the embedded default.", show_default=False)
    ] = None,
    seeds: Annotated[list[int] | None, typer.Option("--seeds", min=0, help="May be repeated; default: 0, 1 and 2.")] = None,
    override: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Records of the runs; default: runs/compare-CONFIG...", show_default=False)
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at once; default: one a core.", show_default=False)] = None,
    target: Annotated[
        float | None,
        typer.Option(
            help="Level of task.metric whose cost is reported; default: 0.9 for a share of 1, such as accuracy.", show_default=False
        ),
    ] = None,
    engine: Annotated[
        EngineChoice, typer.Option(help="How exchanges are carried out; all give the same models.")
    ] = EngineChoice.IN_PROCESS,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the result as JSON, with every curve.", show_default=False)
    ] = None,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write DIR/report.html, where the extra `plot` is installed.")
    ] = True,
    baselines: Annotated[
        bool,
        typer.Option("--baselines/--no-baselines", help="Add FedDKD, FedAvg and the controls."),
    ] = True,
    as_json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Compare configurations at equal rounds, bytes and gradient evaluations.

    FedDKD, FedAvg, the control fedavg_sgd and FedAvg at FedDKD's bytes are added where they are not given. They are
    derived from the first configuration of FedDKD, or else from the first one. `--no-baselines` leaves them out.
    A run whose record in DIR is complete is not run again.

    The tables are also in DIR/report/tables as CSV, Markdown and LaTeX.

    ```console
    feddkd compare
    feddkd compare mine.toml fedprox.toml --seeds 0 --seeds 1 --out runs/mine
    feddkd compare examples/mnist_one_class.toml -o data.root=data/mnist
    ```
    """
    check_can_save(save)
    loaded = _load(configs or [], override or ())
    # This imports torch, which takes seconds: --help and a typing error should not.
    from feddkd.bench.side_by_side import make_rows
    from feddkd.cli.comparison import compared
    from feddkd.report.table_files import TABLES

    rows = make_rows(loaded, baselines=baselines)
    level = _target(target, rows[0].config)
    folder = out or Path("runs") / "-".join(["compare", *(path.stem for path in configs or [])])
    workers = jobs or os.cpu_count() or 1
    each_seed = list(dict.fromkeys(seeds or DEFAULT_SEEDS))
    with interruptible(f"finished runs are kept in {folder}/; the same command goes on"):
        comparison = compared(rows, each_seed, folder, engine.value, workers, level)
    tables = (folder / PAGE).with_suffix("") / TABLES
    comparison.write_tables(tables)
    if save is not None:
        save_text(_as_text(comparison.document), save)
    if as_json:
        say(json.dumps(comparison.document))
    else:
        for table in comparison.terminal_tables():
            present(as_terminal_table(table), Text(), width=WIDTH)
        present(*map(Text, comparison.notes), width=WIDTH)
    lines = [f"tables: {tables}/"]
    if report:
        folders = list(dict.fromkeys(run.path for run in comparison.records))
        page = report_of(folders, folder / PAGE, runs=comparison.records, with_pdf=True)
        lines.append(f"report: {page}")
    for line in lines:
        if as_json:
            note(error_console(), line)
        else:
            say(line)


def _load(paths: Sequence[Path], overrides: Iterable[str]) -> list[tuple[str, Config]]:
    if not paths:
        config = Config.load(None, overrides)
        return [(config.algorithm.name, config)]
    return [(path.stem, Config.load(path, overrides)) for path in paths]


def _target(given: float | None, config: Config) -> float | None:
    """Return the level whose cost is reported; None for none. Raises ConfigError."""
    metric = MainMetric.of(config)
    if given is None:
        return DEFAULT_TARGET if metric.is_share and not metric.minimised else None
    if not math.isfinite(given) or (metric.is_share and not 0 <= given <= 1):
        raise ConfigError(f"--target {given:g}: the {metric.title} of a model {'lies between 0 and 1' if metric.is_share else 'is finite'}")
    return given


def _as_text(document: dict[str, Any]) -> str:
    """JSON that a person can look through: one line a run."""
    runs = ",\n".join(f"  {json.dumps(run)}" for run in document["runs"])
    rest = json.dumps({key: value for key, value in document.items() if key != "runs"}, indent=2)
    return f'{rest.removesuffix("}").rstrip()},\n  "runs": [\n{runs}\n  ]\n}}\n'
