"""`feddkd client`: one for each site."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from feddkd.cli.interruptions import interruptible
from feddkd.cli.options import ConfigFile, Insecure, Overrides, TlsCA, TlsCert, TlsKey, Verbose, parse_address
from feddkd.cli.output import LINE_LETTERS, announce, error_console, note
from feddkd.errors import ConfigError, RunError
from feddkd.text import printable

if TYPE_CHECKING:
    from feddkd.client.worker import Worker


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
    insecure: Insecure = False,
    _verbose: Verbose = False,
) -> None:
    """Take part in a federation with this site's own data.

    CONFIG says what is the site's own: in `[data]` what differs from the server's, and `[runtime]`. Everything else
    comes from the server.

    ```console
    feddkd client --server 127.0.0.1:50061 --id site-a --state state-a site.toml
    ```
    """
    host, _ = parse_address(server, "--server")
    announce("client", f"{client_id}, server {server}", override or ())
    # These import torch, which takes seconds: --help and a typing error should not.
    from feddkd.cli.site_progress import SiteProgress, in_words
    from feddkd.client.membership import Membership
    from feddkd.client.own_site import fetch_server_config, site_config, site_tables, site_worker
    from feddkd.client.process import take_part
    from feddkd.client.state_dir import StateDir
    from feddkd.client.worker import FINAL_MODEL
    from feddkd.transport.frames import CLIENT_ID
    from feddkd.transport.tls import check_plaintext_allowed, client_tls

    if not CLIENT_ID.fullmatch(client_id):
        raise ConfigError(f"--id {client_id!r} is not 1 to 64 of a-z 0-9 . _ - that begin with a letter or digit")
    tls = client_tls(tls_ca, tls_cert, tls_key)
    if tls is None:
        check_plaintext_allowed(host, insecure)
    own = site_tables(config, override or ())
    state_dir = StateDir(state, client_id)

    def tell(line: str) -> None:
        note(error_console(), printable(f"{client_id}: {line}", LINE_LETTERS))

    kept = f"what it has computed is kept in {state}/; to go on, the same command again:"
    with interruptible(kept, shlex.join(["feddkd", *sys.argv[1:]])):
        described = fetch_server_config(server, tls, retry_for)
        worker = site_worker(site_config(described.config, own), state_dir, partition_index)
        tell(_examples(worker))
        progress = SiteProgress(worker, described.config, tell)
        membership = Membership(state_dir.instance_id, described, state_dir, worker.fingerprint, on_joined=progress.joined)
        farewell = take_part(server, {client_id: progress}, tls=tls, retry_for_s=retry_for, memberships={client_id: membership})
    if not farewell.completed:
        raise RunError(f"the run ended early: {farewell.reason}")
    if not worker.has_final_model(farewell.run_id):
        raise RunError(f"{farewell.reason}, but this client did not get or could not keep the final model")
    tell(f"{farewell.reason}{in_words(progress.final, '; final ')}")
    if progress.model_sha256:
        tell(f"model sha256 {progress.model_sha256}")
    tell(f"the final model is in {state / FINAL_MODEL}.safetensors")


def _examples(worker: Worker) -> str:
    """Say how many examples a site has for what."""
    counts = worker.counts
    without = f", {counts.unlabelled} without a label" if counts.unlabelled else ""
    return f"{counts.labelled} examples to train on{without}, {len(worker.site.held_out)} held out"
