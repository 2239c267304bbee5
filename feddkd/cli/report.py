"""`feddkd report`: one page with the pictures of one run, or of several side by side."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from feddkd.errors import ConfigError
from feddkd.observability.run_folder import RunFolder

PAGE = "report.html"

Folders = Annotated[list[Path], typer.Argument(metavar="DIR", help="Records of runs: what `--out` named.", show_default=False)]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE_OR_DIR", help="A file ending in .html, or a folder for report.html.", show_default=False),
]


def report(
    folders: Folders,
    out: Out = None,
    title: Annotated[str | None, typer.Option("--title", metavar="T", help="Title of the page.", show_default=False)] = None,
) -> None:
    """Draw what runs left behind: one HTML page that needs no network, and every picture as a PNG beside it.

    For one run the page is DIR/report.html, for several report.html here. Runs that differ in the seed alone
    are drawn as their mean and range. Needs the extra `plot`.

    Examples:
    `feddkd report runs/feddkd-20260101-120000`

    `feddkd report runs/fedavg-* runs/feddkd-* --out comparison.html --title "Digits, one class a client"`
    """
    for module in ("matplotlib", "jinja2"):
        _require(module)
    from feddkd.report.page import write_report

    found = list({folder.resolve(): folder for folder in folders}.values())
    runs = [RunFolder.load(folder) for folder in found]
    page = _page(out, found)
    pictures = write_report(runs, page, title)
    typer.echo(f"report: {page} (pictures in {pictures}/)")


def _page(out: Path | None, folders: list[Path]) -> Path:
    """Where the page goes. Raises ConfigError for an --out that cannot hold it."""
    if out is None:
        return folders[0] / PAGE if len(folders) == 1 else Path(PAGE)
    if out.is_dir():
        return out / PAGE
    if out.suffix.lower() in (".html", ".htm"):
        return out
    if out.exists():
        raise ConfigError(f"--out {out} is neither a folder nor a file ending in .html")
    return out / PAGE


def _require(module: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError:
        raise ConfigError(f"{module} is not installed; get it with: pip install 'feddkd[plot]'") from None
