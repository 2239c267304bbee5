"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from feddkd.errors import ConfigError

METRICS_HOST = "127.0.0.1"

ConfigFile = Annotated[
    Path | None, typer.Argument(metavar="[CONFIG]", help="TOML file; without it, the embedded default.", show_default=False)
]
Overrides = Annotated[
    list[str] | None, typer.Option("-o", "--override", metavar="KEY=VALUE", help="Override a key, e.g. `-o training.epochs=2`.")
]
Json = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON on standard output.")]
WithReport = Annotated[
    bool, typer.Option("--report/--no-report", help="Write report.html into the record, where the extra `plot` is installed.")
]
MetricsPort = Annotated[
    int | None,
    typer.Option("--metrics-port", min=0, max=65535, help="Serve Prometheus metrics on this port (0: any free one).", show_default=False),
]
MetricsHost = Annotated[
    str,
    typer.Option("--metrics-host", metavar="ADDRESS", help="Address of this machine that metrics are served on; they are not encrypted."),
]
TlsCert = Annotated[
    Path | None, typer.Option("--tls-cert", metavar="PEM", help="Certificate to show to the other side.", show_default=False)
]
TlsKey = Annotated[Path | None, typer.Option("--tls-key", metavar="PEM", help="Private key of --tls-cert.", show_default=False)]
TlsCA = Annotated[
    Path | None, typer.Option("--tls-ca", metavar="PEM", help="Trust a server whose certificate this CA signed.", show_default=False)
]
TlsClientCA = Annotated[
    Path | None,
    typer.Option("--tls-client-ca", metavar="PEM", help="Admit only clients whose certificate this CA signed.", show_default=False),
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Allow plaintext to or from other machines.")]


def parse_address(text: str, option: str) -> tuple[str, int]:
    """HOST:PORT, with an IPv6 host in brackets. Raises ConfigError naming the option."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{option} {text!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def check_can_save(path: Path | None) -> None:
    """Better said now than when everything has run. Raises ConfigError."""
    if path is not None and not path.parent.is_dir():
        raise ConfigError(f"cannot write --save {path}: {path.parent} is not a folder")
    if path is not None and path.is_dir():
        raise ConfigError(f"cannot write --save {path}: it is a folder")


def save_text(text: str, path: Path) -> None:
    """Write what `--save` asks for. Raises ConfigError."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write --save {path}: {error.strerror}") from error
