"""`feddkd tokens`: make join tokens for a federation whose clients have no certificates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from feddkd.cli.options import Verbose
from feddkd.cli.output import error_console, note, present, prints_results, say
from feddkd.client_ids import check_client_id
from feddkd.errors import ConfigError

app = typer.Typer(
    help="Make join tokens: secrets that let a client in at its first join.", no_args_is_help=True, rich_markup_mode="markdown"
)

Tokens = Annotated[Path, typer.Option("--file", metavar="JSON", help="The file of tokens: the server's `--join-tokens`.")]
Client = Annotated[str, typer.Argument(metavar="ID", help="The client's `--id`.")]

FILE = Path("join-tokens.json")


@app.command()
@prints_results
def make(client_id: Client, file: Tokens = FILE, _verbose: Verbose = False) -> None:
    """Make a token for a client, in place of the one that it has, and print it.

    The file keeps only a hash: nobody can print the token again. Give it to the site over a safe channel. It is good
    for one client: its first join binds it to that client's state directory.

    ```console
    feddkd tokens make north > north.token
    ```
    """
    check_client_id(client_id)
    from feddkd.transport.join_tokens import JoinTokens

    token = JoinTokens(file).make(client_id)
    say(token)
    note(error_console(), f"the token of {client_id}, in {file} as a hash; the site gives it with --join-token-file")


@app.command()
@prints_results
def show(file: Tokens = FILE, _verbose: Verbose = False) -> None:
    """List the clients that have a token, and which of them have used it.

    ```console
    feddkd tokens show
    ```
    """
    from rich import box
    from rich.table import Table

    from feddkd.transport.join_tokens import JoinTokens

    table = Table(box=box.SIMPLE)
    for title in ("client", "made", "used"):
        table.add_column(title)
    for client_id, token in JoinTokens(file).all().items():
        table.add_row(client_id, token.made, token.used or "not yet")
    present(table)


@app.command()
@prints_results
def remove(client_id: Client, file: Tokens = FILE, _verbose: Verbose = False) -> None:
    """Remove the token of a client: it cannot join any more, and its stream ends.

    ```console
    feddkd tokens remove north
    ```
    """
    from feddkd.transport.join_tokens import JoinTokens

    if not JoinTokens(file).remove(client_id):
        raise ConfigError(f"{file} has no token of {client_id!r}")
    say(f"{client_id} has no token any more")
