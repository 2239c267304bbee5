"""`feddkd data`: fetch a data set, and look at a partition or a site's examples before training on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from feddkd.cli.options import ConfigFile, Json, Overrides, Verbose
from feddkd.cli.output import WIDTH, output_width, present, say
from feddkd.config import Config
from feddkd.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

app = typer.Typer(help="Fetch data sets, and look at them and at partitions.", no_args_is_help=True, rich_markup_mode="markdown")


@app.command()
def show(
    config: ConfigFile = None,
    override: Overrides = None,
    site: Annotated[bool, typer.Option("--site", help="Show this site's examples alone, without a partition.")] = False,
    png: Annotated[Path | None, typer.Option("--png", metavar="FILE", help="Draw a heat map of classes by clients, too.")] = None,
    as_json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Show how many examples of each class every client gets.

    A site's own file may leave out what the server says: the shape and the number of classes.

    ```console
    feddkd data show -o partition.name=dirichlet -o partition.alpha=0.1
    feddkd data show federation.toml --png partition.png
    feddkd data show site.toml --site
    ```
    """
    settings = Config.load(config, override or ())
    # These import torch, which takes seconds: --help and a typing error should not.
    from feddkd.cli.partition_table import summary_of, table_of, title_of
    from feddkd.data.partitions import class_counts, unlabelled_counts
    from feddkd.report.heatmap import save_heatmap

    settings, labels, parts = _dealt(settings, site=site)
    assert settings.data.num_classes is not None
    counts, unlabelled = class_counts(parts, labels, settings.data.num_classes), unlabelled_counts(parts, labels)
    title = title_of(settings, len(labels))
    if png is not None:
        save_heatmap(counts, png, title)
    if as_json:
        say(json.dumps(summary_of(settings, counts, unlabelled)))
        return
    present(table_of(counts, unlabelled, title, output_width()), width=WIDTH)
    if png is not None:
        say(f"heat map: {png}")


def _dealt(settings: Config, *, site: bool) -> tuple[Config, Tensor, list[Tensor]]:
    """Load the labels and deal them: as `[partition]` says, or all to the one client that a site is."""
    import torch

    from feddkd.data.datasets import describe, guessed, load_train
    from feddkd.data.partitions import partition

    data = guessed(settings.data)
    alone = site or data != settings.data  # what a run needs and the file does not say comes from a server
    changed = {"data": data, "partition": settings.partition.model_copy(update={"name": "iid", "clients": 1})}
    settings = settings.model_copy(update=changed if alone else {"data": data})
    labels, classes = load_train(settings.data, settings.seed).labels, describe(settings.data).num_classes
    parts = [torch.arange(len(labels))] if alone else partition(settings.partition, labels, classes, settings.seed)
    return settings.model_copy(update={"data": data.model_copy(update={"num_classes": classes})}), labels, parts


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
