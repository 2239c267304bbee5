"""`feddkd client`: one for each site."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from feddkd.cli.interruptions import interruptible
from feddkd.cli.log_format import LogFormat
from feddkd.cli.logs import LOG, start_log
from feddkd.cli.logs import log_file as logging_to
from feddkd.cli.options import (
    METRICS_HOST,
    CheckOnly,
    ConfigFile,
    Insecure,
    JoinTokenFile,
    LogFile,
    LogFormatOption,
    MetricsHost,
    MetricsPort,
    Overrides,
    TlsCA,
    TlsCert,
    TlsKey,
    Verbose,
    parse_address,
)
from feddkd.cli.output import announce
from feddkd.cli.signals import import_torch
from feddkd.client_ids import check_client_id


def client(
    server: Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="Connect to the server there.")],
    client_id: Annotated[str, typer.Option("--id", metavar="NAME", help="Take part under this name. Keep it across restarts.")],
    state: Annotated[Path, typer.Option("--state", metavar="DIR", help="Keep there what a restart needs, and in the end the final model.")],
    config: ConfigFile = None,
    override: Overrides = None,
    partition_index: Annotated[
        int | None, typer.Option(metavar="N", help="Train on slice N of a shared data set instead of all of it.", show_default=False)
    ] = None,
    retry_for: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Give up on a silent server after this. Default: never.", show_default=False)
    ] = None,
    tls_ca: TlsCA = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    join_token_file: JoinTokenFile = None,
    insecure: Insecure = False,
    stay: Annotated[
        bool, typer.Option("--stay", help="Stay for the next run of the server when one is over, until SIGTERM or Ctrl-C.")
    ] = False,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = METRICS_HOST,
    check: CheckOnly = False,
    log_format: LogFormatOption = LogFormat.TEXT,
    log_file: LogFile = None,
    _verbose: Verbose = False,
) -> None:
    """Take part in a federation with this site's own data.

    CONFIG says what is the site's own: in `[data]` what differs from the server's, and `[runtime]`. Everything else
    comes from the server. What happens is also in `client.log` in the state directory.

    ```console
    feddkd client --server 127.0.0.1:50061 --id site-a --state state-a site.toml
    feddkd client --server 127.0.0.1:50061 --id site-a --state state-a --stay
    ```
    """
    start_log(log_format, log_file)
    host, _ = parse_address(server, "--server")
    announce("client", f"{client_id}, server {server}", override or ())
    import_torch()
    # These need torch, whose import takes seconds: --help and a typing error should not wait for it.
    from feddkd.cli.join_token import read_join_token
    from feddkd.cli.publishing import published_client
    from feddkd.cli.standing import StandingSite
    from feddkd.client.own_site import site_tables
    from feddkd.client.state_dir import StateDir
    from feddkd.transport.tls import check_plaintext_allowed, client_tls

    check_client_id(client_id, "--id")
    tls = client_tls(tls_ca, tls_cert, tls_key)
    join_token = read_join_token(join_token_file)
    if tls is None:
        check_plaintext_allowed(host, insecure)
    own = site_tables(config, override or ())
    if check:
        from feddkd.cli.check import SiteToCheck, check_client

        check_client(SiteToCheck(host, server, client_id, state, own, partition_index, tls, [tls_ca, tls_cert]))
        return
    state_dir = StateDir(state, client_id)
    left = f"what it has computed is kept in {state}/; to go on, the same command again:"
    certificates = {"client": tls_cert, "ca": tls_ca}
    with (
        logging_to(state / LOG, log_format),
        published_client(client_id, metrics_port, metrics_host, certificates) as watch,
        interruptible(left, shlex.join(["feddkd", *sys.argv[1:]])),
    ):
        site = StandingSite(server, state_dir, own, partition_index, tls, retry_for, join_token, watch)
        if stay:
            site.take_part_for_ever()
        else:
            site.take_part()
