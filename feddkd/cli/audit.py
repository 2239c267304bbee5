"""`feddkd audit`: check the audit log of a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from feddkd.cli.options import Verbose
from feddkd.cli.output import prints_results, say

app = typer.Typer(help="Check a server's audit log.", no_args_is_help=True, rich_markup_mode="markdown")


@app.callback()
def _group() -> None:
    """Keep `verify` a command of its own."""


@app.command()
@prints_results
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="`audit.jsonl` in a server's state directory.")], _verbose: Verbose = False
) -> None:
    """Check that no line of an audit log was changed, added or removed.

    Each line holds the hash of the line before it. Whether lines at the end are missing, only the last hash shows:
    keep it where the server's operator cannot change it.

    ```console
    feddkd audit verify server-state/audit.jsonl
    ```
    """
    from feddkd.observability import audit

    found = audit.verify(file)
    torn = f"; cut off by a crash: line {', '.join(map(str, found.torn))}" if found.torn else ""
    say(f"{found.lines} lines, each follows the one before it{torn}")
    say(f"sha256 of the last line: {found.last}")
