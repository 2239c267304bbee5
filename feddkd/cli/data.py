"""`feddkd data`: look at a partition before training on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from torch import Tensor

from feddkd.cli.output import present, say
from feddkd.config import Config
from feddkd.data.datasets import describe, load_train
from feddkd.data.heatmap import save_heatmap
from feddkd.data.partitions import class_counts, client_ids, partition

app = typer.Typer(help="Look at data sets and partitions.", no_args_is_help=True, rich_markup_mode="rich")

MAX_COLUMNS = 20
"""With more classes than this the table lists each client's largest classes instead of one column a class."""

LARGEST = 5


@app.callback()
def _group() -> None:
    # A callback keeps `show` a command of its own while it is the only one.
    pass


@app.command()
def show(
    config: Annotated[Path | None, typer.Argument(help="TOML file; without one the embedded default", metavar="[CONFIG]")] = None,
    override: Annotated[list[str] | None, typer.Option("--override", "-o", metavar="KEY=VALUE", help="set a configuration key")] = None,
    png: Annotated[Path | None, typer.Option("--png", metavar="FILE", help="also draw a heat map of classes by clients")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object instead of a table")] = False,
) -> None:
    """Show how many examples of each class every client gets.

    Example: feddkd data show -o partition.name=dirichlet -o partition.alpha=0.1 --png partition.png
    """
    settings = Config.load(config, override or ())
    num_classes = describe(settings.data).num_classes
    labels = load_train(settings.data, settings.seed).labels
    counts = class_counts(partition(settings.partition, labels, num_classes, settings.seed), labels, num_classes)
    title = _title(settings, len(labels))
    if png is not None:
        save_heatmap(counts, png, title)
    if as_json:
        say(json.dumps(_summary(settings, counts)))
        return
    present(_table(counts, title) if num_classes <= MAX_COLUMNS else _compact_table(counts, title))
    if png is not None:
        say(f"heat map: {png}")


def _title(settings: Config, examples: int) -> str:
    rule = settings.partition
    setting = {
        "labels_per_client": f"labels = {rule.labels}",
        "shards": f"labels = {rule.labels}",
        "dirichlet": f"alpha = {rule.alpha:g}",
        "quantity_dirichlet": f"alpha = {rule.alpha:g}",
    }.get(rule.name)
    parts = (settings.data.name, f"{examples:,} examples", rule.name + (f" ({setting})" if setting else ""), f"seed {settings.seed}")
    return ", ".join(parts)


def _summary(settings: Config, counts: Tensor) -> dict[str, object]:
    rows = counts.tolist()
    return {
        "data": settings.data.name,
        "partition": settings.partition.name,
        "seed": settings.seed,
        "clients": [{"id": name, "examples": sum(row), "classes": row} for name, row in zip(client_ids(len(rows)), rows, strict=True)],
        "total": {"examples": int(counts.sum()), "classes": counts.sum(0).tolist()},
    }


def _table(counts: Tensor, title: str) -> Table:
    """One column for each class; an empty cell is a class that the client lacks."""
    table = _new_table(title, counts)
    for label, total in enumerate(counts.sum(0).tolist()):
        table.add_column(str(label), footer=str(total), justify="right")
    for name, row in zip(client_ids(len(counts)), counts.tolist(), strict=True):
        table.add_row(name, str(sum(row)), *(str(count) if count else "" for count in row))
    return table


def _compact_table(counts: Tensor, title: str) -> Table:
    table = _new_table(title, counts)
    table.add_column("classes", footer=str(int((counts.sum(0) > 0).sum())), justify="right")
    table.add_column("largest (class: examples)", footer=_largest(counts.sum(0)))
    for name, row in zip(client_ids(len(counts)), counts, strict=True):
        table.add_row(name, str(int(row.sum())), str(int((row > 0).sum())), _largest(row))
    return table


def _new_table(title: str, counts: Tensor) -> Table:
    # Narrow: ten classes of MNIST fit into 80 columns.
    table = Table(title=title, title_justify="left", show_footer=True, box=box.SIMPLE, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("client", footer="total", no_wrap=True)
    table.add_column("examples", footer=str(int(counts.sum())), justify="right", no_wrap=True)
    return table


def _largest(row: Tensor) -> str:
    order = row.argsort(descending=True, stable=True)[:LARGEST].tolist()
    return ", ".join(f"{label}: {int(row[label])}" for label in order if row[label] > 0)
