"""`feddkd data`: look at a partition before training on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from feddkd.cli.options import ConfigFile, Json, Overrides, Verbose
from feddkd.cli.output import WIDTH, output_width, present, prints_results, say
from feddkd.config import Config

app = typer.Typer(help="Look at data sets and partitions.", no_args_is_help=True, rich_markup_mode="markdown")


@app.callback()
def _group() -> None:
    # A callback keeps `show` a command of its own while it is the only one.
    pass


@app.command()
@prints_results
def show(
    config: ConfigFile = None,
    override: Overrides = None,
    png: Annotated[Path | None, typer.Option("--png", metavar="FILE", help="Draw a heat map of classes by clients, too.")] = None,
    as_json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Show how many examples of each class every client gets.

    ```console
    feddkd data show -o partition.name=dirichlet -o partition.alpha=0.1
    feddkd data show federation.toml --png partition.png
    ```
    """
    settings = Config.load(config, override or ())
    # These import torch, which takes seconds: --help and a typing error should not.
    from feddkd.cli.partition_table import summary_of, table_of, title_of
    from feddkd.data.datasets import describe, load_train
    from feddkd.data.partitions import class_counts, partition, unlabelled_counts
    from feddkd.report.heatmap import save_heatmap

    num_classes = describe(settings.data).num_classes
    labels = load_train(settings.data, settings.seed).labels
    parts = partition(settings.partition, labels, num_classes, settings.seed)
    counts, unlabelled = class_counts(parts, labels, num_classes), unlabelled_counts(parts, labels)
    title = title_of(settings, len(labels))
    if png is not None:
        save_heatmap(counts, png, title)
    if as_json:
        say(json.dumps(summary_of(settings, counts, unlabelled)))
        return
    present(table_of(counts, unlabelled, title, output_width()), width=WIDTH)
    if png is not None:
        say(f"heat map: {png}")
