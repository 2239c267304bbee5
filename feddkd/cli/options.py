"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from feddkd.cli.log_format import LogFormat
from feddkd.cli.logs import be_verbose
from feddkd.errors import ConfigError

METRICS_HOST = "127.0.0.1"

CONTEXT = {"help_option_names": ["-h", "--help"]}
"""For every group of commands: `-h` shows the help."""

"""What a client's id looks like."""

MOST_PORTS = 65535


def _check_port(port: int | None) -> int | None:
    if port is not None and not 0 <= port <= MOST_PORTS:
        raise typer.BadParameter(f"{port} is not in the range 0 to {MOST_PORTS}")
    return port


def _check_textfile(file: Path | None) -> Path | None:
    if file is not None and file.suffix != ".prom":
        raise typer.BadParameter(f"{file}: node_exporter reads only files whose name ends in .prom")
    if file is not None and not file.parent.is_dir():
        raise typer.BadParameter(f"{file.parent} is not a folder")
    return file


LogFormatOption = Annotated[
    LogFormat,
    typer.Option("--log-format", metavar="FORMAT", help="`text` for people, or `json`: one object a line, on standard error."),
]
LogFile = Annotated[
    Path | None,
    typer.Option("--log-file", metavar="FILE", help="Write the log there, too: what happens, in at most four files.", show_default=False),
]
ConfigFile = Annotated[Path | None, typer.Argument(metavar="CONFIG", help="TOML file. Default: the built-in example.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("-o", "--override", metavar="KEY=VALUE", help="Override a key of the configuration. May be repeated."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")]
CheckOnly = Annotated[
    bool, typer.Option("--check", help="List what the command needs and whether it is there, and exit: nothing is joined or created.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", callback=be_verbose, help="Log what happens, not only what goes wrong.")]
WithReport = Annotated[bool, typer.Option("--report/--no-report", help="Write report.html into the record. Needs the extra `plot`.")]
MetricsPort = Annotated[
    int | None,
    typer.Option(
        "--metrics-port",
        metavar="PORT",
        callback=_check_port,
        help="Serve Prometheus metrics on this port; 0 takes a free one.",
        show_default=False,
    ),
]
MetricsHost = Annotated[
    str,
    typer.Option("--metrics-host", metavar="HOST", help="Serve metrics on this address. They are not encrypted."),
]
MetricsLinger = Annotated[
    float,
    typer.Option(
        "--metrics-linger",
        min=0,
        metavar="SECONDS",
        help="Serve metrics and live page on after a run that was completed or failed, so that its end is seen: four scrape intervals.",
    ),
]
MetricsTextfile = Annotated[
    Path | None,
    typer.Option(
        "--metrics-textfile",
        metavar="FILE",
        callback=_check_textfile,
        help="Keep the metrics in this file, too, for the textfile collector of node_exporter. Its name ends in `.prom`.",
        show_default=False,
    ),
]
LivePort = Annotated[
    int | None,
    typer.Option(
        "--live-port",
        metavar="PORT",
        callback=_check_port,
        help="Serve a page that shows the run as it goes on; 0 takes a free port.",
        show_default=False,
    ),
]
LiveHost = Annotated[
    str,
    typer.Option("--live-host", metavar="HOST", help="Serve the live page on this address. It is not encrypted."),
]
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="NAME",
        help="Send the numbers of each round to a tracker: `tensorboard`, `mlflow`, `wandb`, or `package.module:Class`. May be repeated.",
        show_default=False,
    ),
]


class TraceProtocol(StrEnum):
    """How traces are sent."""

    OTLP = "otlp"


Trace = Annotated[
    TraceProtocol | None,
    typer.Option(
        "--trace",
        metavar="PROTOCOL",
        help="`otlp`: send traces with OpenTelemetry, to $OTEL_EXPORTER_OTLP_ENDPOINT. Needs the extra `otel`.",
        show_default=False,
    ),
]
TlsCert = Annotated[
    Path | None, typer.Option("--tls-cert", metavar="PEM", help="Show this certificate to the other side.", show_default=False)
]
TlsKey = Annotated[Path | None, typer.Option("--tls-key", metavar="PEM", help="Private key of `--tls-cert`.", show_default=False)]
TlsCA = Annotated[
    Path | None, typer.Option("--tls-ca", metavar="PEM", help="Trust a server whose certificate this CA signed.", show_default=False)
]
TlsClientCA = Annotated[
    Path | None,
    typer.Option("--tls-client-ca", metavar="PEM", help="Admit only clients whose certificate this CA signed.", show_default=False),
]
TlsCrl = Annotated[
    Path | None,
    typer.Option("--tls-crl", metavar="PEM", help="Refuse and cut off the certificates in this list of revoked ones.", show_default=False),
]
AnyCertificate = Annotated[bool, typer.Option("--any-certificate", help="Admit any client id with any certificate of `--tls-client-ca`.")]
JoinTokensFile = Annotated[
    Path | None,
    typer.Option("--join-tokens", metavar="JSON", help="Admit only clients with a token of `feddkd tokens`.", show_default=False),
]
JoinTokenFile = Annotated[
    Path | None,
    typer.Option(
        "--join-token-file", metavar="FILE", help="Join with the token in this file, or in FEDDKD_JOIN_TOKEN.", show_default=False
    ),
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Allow plaintext to and from other machines.")]


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
