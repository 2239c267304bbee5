"""`feddkd data`: fetch a data set, and look at a partition or a site's examples before training on them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from feddkd.cli.options import ConfigFile, Json, Overrides, Verbose
from feddkd.cli.output import WIDTH, output_width, present, prints_results, say
from feddkd.config import Config, PartitionConfig
from feddkd.errors import ConfigError

if TYPE_CHECKING:
    from feddkd.data.datasets import DataInfo

app = typer.Typer(help="Fetch data sets, and look at them and at partitions.", no_args_is_help=True, rich_markup_mode="markdown")


def _settings_of_site(server: Path, site: Path | None, overrides: Iterable[str]) -> Config:
    """Return what a client works with: the server's configuration with the site's own data, all of them. Raises ConfigError."""
    from feddkd.client.own_site import site_config, site_tables

    found = site_config(Config.load(server), site_tables(site, overrides))
    return found.model_copy(update={"partition": PartitionConfig(name="iid", clients=1)})


def _described(config: Config) -> DataInfo:
    """Raises ConfigError; for a site, which need not say the shape itself, with the way out."""
    from feddkd.data.datasets import describe
    from feddkd.tasks.chosen import task_of

    data = config.data
    try:
        return describe(data, task_of(config))
    except ConfigError as error:
        if data.input_shape is not None and data.num_classes is not None:
            raise
        raise ConfigError(f"{error}; for the file of a site, which has them from the server: --server-config SERVER.toml") from None


@app.command()
@prints_results
def show(
    config: ConfigFile = None,
    override: Overrides = None,
    png: Annotated[Path | None, typer.Option("--png", metavar="FILE", help="Draw a heat map of classes by clients, too.")] = None,
    server_config: Annotated[
        Path | None,
        typer.Option("--server-config", metavar="FILE", help="Show the data of one site: CONFIG is its file, FILE the server's."),
    ] = None,
    as_json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Show how many examples of each class every client gets.

    A site's own file may leave out what the server says: the shape and the number of classes.

    ```console
    feddkd data show -o partition.name=dirichlet -o partition.alpha=0.1
    feddkd data show federation.toml --png partition.png
    feddkd data show site.toml --server-config server.toml
    ```
    """
    settings = _settings_of_site(server_config, config, override or ()) if server_config else Config.load(config, override or ())
    # These import torch, which takes seconds: --help and a typing error should not.
    from feddkd.cli.partition_table import summary_of, table_of, title_of
    from feddkd.data.datasets import load_train
    from feddkd.data.labels import check_partition
    from feddkd.data.partitions import class_counts, partition, unlabelled_counts
    from feddkd.report.heatmap import save_heatmap
    from feddkd.tasks.chosen import task_of

    task, info = task_of(settings), _described(settings)
    check_partition(settings, task, info)
    num_classes = info.num_classes if task.has_one_class(info.target_shape) else 1
    labels = load_train(settings.data, settings.seed, task).labels
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


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A built-in set, for instance mnist or cifar10.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Put its files there; it becomes `data.root`.")],
    _verbose: Verbose = False,
) -> None:
    """Download a built-in data set, from where torchvision finds it.

    ```console
    feddkd data fetch mnist data/mnist
    feddkd run examples/mnist_one_class.toml -o data.root=data/mnist
    ```
    """
    from feddkd.data.torchvision_sets import IMAGE_SETS, download

    if name not in IMAGE_SETS:
        raise ConfigError(f"{name!r} is not a data set that can be fetched; these are: {', '.join(IMAGE_SETS)} (digits needs no files)")
    download(name, folder)
    say(f"{name} is in {folder}: use it with -o data.name={name} -o data.root={folder}")
