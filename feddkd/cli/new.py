"""`feddkd new`: a working project of one's own."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from feddkd.cli.options import Verbose
from feddkd.cli.output import say
from feddkd.cli.project_files import check_name, check_sites, render_project, write_project

Name = Annotated[
    Path,
    typer.Argument(metavar="NAME", help="Folder to make; its Python package has the same name."),
]
Sites = Annotated[
    str | None,
    typer.Option(
        "--sites",
        metavar="NAME,NAME,...",
        help="Also write what a server and these sites need.",
        show_default=False,
    ),
]


def new(name: Name, sites: Sites = None, _verbose: Verbose = False) -> None:
    """Make a project of your own: data, network, algorithm, configuration, test and README.

    It runs at once, on made-up images; its README.md says how to put in your own parts. With `--sites`,
    it also holds configurations for a server and for each site, scripts that make TLS certificates and
    data to try them with, and a compose file.

    ```console
    feddkd new my_project
    feddkd new my_project --sites north,south,east
    ```
    """
    folder = name.resolve() if name.name in ("", "..") else name
    names = [site.strip() for site in sites.split(",")] if sites is not None else []
    check_name(folder.name)
    check_sites(names)
    files = render_project(folder.name, names)
    write_project(folder, files)
    say("\n  ".join([f"wrote {folder}/", *map(str, files)]))
    page, command = ("SITES.md", "python make_site_data.py") if names else ("README.md", "feddkd run federation.toml")
    say(f"next, and {page} says more:\n  cd {shlex.quote(str(folder))}\n  {command}")
