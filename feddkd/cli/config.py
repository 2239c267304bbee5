"""`feddkd config`: check a configuration, show it resolved, or print its schema."""

from __future__ import annotations

import json

import typer
from rich.syntax import Syntax

from feddkd.cli.options import ConfigFile, Json, Overrides, Verbose
from feddkd.cli.output import output_is_terminal, present, prints_results, say
from feddkd.config import Config

app = typer.Typer(help="Check, show and describe configurations.", no_args_is_help=True, rich_markup_mode="markdown")


@app.command()
@prints_results
def check(config: ConfigFile = None, override: Overrides = None, _verbose: Verbose = False) -> None:
    """Check a configuration.

    Names the wrong key, with exit code 2, if it is not valid.

    ```console
    feddkd config check examples/mnist_one_class.toml
    ```
    """
    loaded = Config.load(config, override or ())
    from feddkd import algorithms  # imports torch, which takes seconds
    from feddkd.scheduler.rule_book import check_rules

    algorithm = algorithms.build(loaded)
    loaded.check_exchanges(algorithm.exchanges(loaded))
    check_rules(loaded, algorithm)
    say(f"{config or 'the built-in example'}{' with these overrides' if override else ''} is valid")


@app.command()
@prints_results
def show(config: ConfigFile = None, override: Overrides = None, as_json: Json = False, _verbose: Verbose = False) -> None:
    """Print the resolved configuration, every default included.

    ```console
    feddkd config show -o algorithm.name=fedavg > my.toml
    ```
    """
    resolved = Config.load(config, override or ())
    if as_json:
        say(json.dumps(resolved.model_dump(mode="json"), indent=2))
    elif output_is_terminal():
        present(Syntax(resolved.to_toml(), "toml", theme="ansi_dark", background_color="default"))
    else:
        say(resolved.to_toml(), newline=False)


@app.command()
@prints_results
def schema(_verbose: Verbose = False) -> None:
    """Print the JSON schema of the configuration, for editors.

    ```console
    feddkd config schema > feddkd.schema.json
    ```
    """
    say(json.dumps(Config.model_json_schema(), indent=2))
