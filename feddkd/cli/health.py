"""`feddkd health`: whether clients can join a server, for Docker's HEALTHCHECK and the like."""

from __future__ import annotations

from typing import Annotated

import typer

from feddkd.cli.options import TlsCA, TlsCert, TlsKey, Verbose, parse_address
from feddkd.cli.output import say

TIMEOUT_S = 5.0


def health(
    server: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the server listens.")],
    timeout: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Wait for the answer for so long.")] = TIMEOUT_S,
    tls_ca: TlsCA = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_name: Annotated[
        str,
        typer.Option("--tls-name", metavar="NAME", help="Name in the server's certificate, where that is not HOST.", show_default=False),
    ] = "",
    _verbose: Verbose = False,
) -> None:
    """Ask a server whether clients can join it: exit code 0 if they can, 1 if not.

    It asks through `grpc.health.v1`, as `grpc_health_probe` and Kubernetes do. It joins nothing.

    ```console
    feddkd health 127.0.0.1:50061
    feddkd health server.example:50061 --tls-ca ca.pem
    ```
    """
    host, port = parse_address(server, "HOST:PORT")
    # gRPC takes a while to import: --help and a typing error should not wait for it.
    from feddkd.transport.health import Probe
    from feddkd.transport.tls import client_tls

    Probe(timeout_s=timeout, tls=client_tls(tls_ca, tls_cert, tls_key), name=tls_name).check(host, port)
    say(f"server {server}: clients can join")
