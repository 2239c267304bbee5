"""`feddkd server`: one for each federation."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from feddkd.cli.endpoints import Endpoints, Port
from feddkd.cli.interruptions import interruptible
from feddkd.cli.log_format import LogFormat
from feddkd.cli.logs import SHOWN_BY_A_SERVER, start_log
from feddkd.cli.options import (
    METRICS_HOST,
    AnyCertificate,
    CheckOnly,
    Insecure,
    JoinTokensFile,
    Json,
    LiveHost,
    LivePort,
    LogFile,
    LogFormatOption,
    MetricsHost,
    MetricsLinger,
    MetricsPort,
    MetricsTextfile,
    Overrides,
    TlsCert,
    TlsClientCA,
    TlsCrl,
    TlsKey,
    Trace,
    Track,
    Verbose,
    WithReport,
    parse_address,
)
from feddkd.cli.output import announce
from feddkd.cli.signals import import_torch
from feddkd.cli.summary import finish_with_summary
from feddkd.config import Config, SchedulerConfig
from feddkd.observability.trackers.tracker import check_trackers

logger = logging.getLogger(__name__)

NOT_STARTED = "nothing was started; the same command starts it"


def server(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML file.")],
    listen: Annotated[str, typer.Option("--listen", metavar="HOST:PORT", help="Wait for clients there; port 0 takes a free one.")],
    state: Annotated[Path, typer.Option("--state", metavar="DIR", help="Keep the runs there; one server at a time.")],
    override: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write the record there. Default: `STATE/RUN`.", show_default=False)
    ] = None,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = METRICS_HOST,
    metrics_linger: MetricsLinger = 0.0,
    metrics_textfile: MetricsTextfile = None,
    live_port: LivePort = None,
    live_host: LiveHost = METRICS_HOST,
    track: Track = None,
    trace: Trace = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_client_ca: TlsClientCA = None,
    tls_crl: TlsCrl = None,
    any_certificate: AnyCertificate = False,
    join_tokens: JoinTokensFile = None,
    insecure: Insecure = False,
    new: Annotated[bool, typer.Option("--new", help="Begin another run, whatever the state directory holds.")] = False,
    linger: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Stay after the last round for clients that were away for the final model.")
    ] = 0.0,
    report: WithReport = True,
    as_json: Json = False,
    check: CheckOnly = False,
    log_format: LogFormatOption = LogFormat.TEXT,
    log_file: LogFile = None,
    _verbose: Verbose = False,
) -> None:
    """Serve one federation.

    Waits for clients, runs all rounds, delivers the final model, and exits. The server needs no data; with
    `data.test_set = true` it evaluates every round on the test split. Started again on the same state directory,
    it goes on with the run there, after a crash from the last exchange that was done. A finished run's model is
    served for `--linger` seconds.

    ```console
    feddkd server server.toml --listen 127.0.0.1:50061 --state state
    feddkd server server.toml --listen 127.0.0.1:50061 --state state --new
    ```
    """
    start_log(log_format, log_file, SHOWN_BY_A_SERVER)
    endpoints = Endpoints(
        metrics=Port(metrics_port, metrics_host),
        live=Port(live_port, live_host),
        linger_s=metrics_linger,
        metrics_textfile=metrics_textfile,
        trackers=tuple(track or ()),
        traces=trace is not None,
    )
    host, port = parse_address(listen, "--listen")
    check_trackers(track or ())
    announce("server", str(config), override or ())
    import_torch()
    loaded = Config.load(config, override or ())
    # These import torch, which takes seconds: --help and a typing error should not.
    with interruptible(NOT_STARTED):
        from feddkd.cli.publishing import Publishing
        from feddkd.cli.serving import Listening, refuse_teachers, serve, with_shapes
        from feddkd.observability.ledger import summarize
        from feddkd.scheduler.server_state import ServerState
        from feddkd.transport.join_tokens import JoinTokens
        from feddkd.transport.server_security import ServerSecurity
        from feddkd.transport.tls import check_plaintext_allowed, server_tls

        refuse_teachers(loaded)
        resolved = with_shapes(loaded)
    tls = server_tls(tls_cert, tls_key, tls_client_ca, crl=tls_crl, any_certificate=any_certificate)
    if tls is None:
        check_plaintext_allowed(host, insecure)
    tokens = JoinTokens(join_tokens) if join_tokens is not None else None
    if tokens is not None:
        tokens.check_file()
    if check:
        from feddkd.cli.check import check_server

        check_server(resolved, host, port, state, [tls_cert, tls_client_ca], endpoints.ports)
        return
    _warn_of_small_rounds(resolved.scheduler)
    with Publishing(endpoints, {"server": tls_cert, "client_ca": tls_client_ca}) as publishing:
        with ServerState(state) as server_state, interruptible(NOT_STARTED):
            listening = Listening(host, port, ServerSecurity(tls, tokens), publishing)
            record, folder = serve(resolved, server_state, listening, new=new, linger_s=linger, out=out)
        finish_with_summary(summarize(record, resolved), folder, report=report, as_json=as_json)


def _warn_of_small_rounds(scheduler: SchedulerConfig) -> None:
    """Say that the run insists on no client, where the configuration neither names clients nor asks for that."""
    if scheduler.num_clients is None and scheduler.min_clients is None:
        logger.warning(
            "round 1 begins with %d client%s, and a round goes on with a single one: "
            "set scheduler.clients (names or a number) to insist on all, or scheduler.min_clients",
            scheduler.starting_clients,
            "s" if scheduler.starting_clients > 1 else "",
        )
