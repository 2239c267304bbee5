"""`feddkd server`: one for each federation."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from feddkd import algorithms
from feddkd.cli.options import Insecure, Json, MetricsHost, MetricsPort, Overrides, TlsCert, TlsClientCA, TlsKey, WithReport, parse_address
from feddkd.cli.output import error_console, note
from feddkd.cli.run import observe, say_summary
from feddkd.config import Config
from feddkd.data.datasets import describe
from feddkd.engines.grpc import GrpcEngine
from feddkd.engines.simulation import LOOPBACK, initial_model, make_evaluator, new_run_id
from feddkd.observability.ledger import summarize
from feddkd.scheduler.rounds import Scheduler
from feddkd.scheduler.server_state import ServerState
from feddkd.transport.tls import check_plaintext_allowed, server_credentials

logger = logging.getLogger(__name__)

SECOND_CHANCE_S = 1.0
"""Seconds after SIGTERM until the run is ended in another way, should the first not have worked."""


def server(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML file.")],
    listen: Annotated[str, typer.Option("--listen", metavar="HOST:PORT", help="Where clients connect; port 0 takes a free one.")],
    state: Annotated[Path, typer.Option("--state", metavar="DIR", help="State directory; one server at a time.")],
    override: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Record of the run; default: STATE/RUN.", show_default=False)
    ] = None,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = LOOPBACK,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_client_ca: TlsClientCA = None,
    insecure: Insecure = False,
    report: WithReport = True,
    as_json: Json = False,
) -> None:
    """Serve one federation: wait for clients, run all rounds, deliver the final model, exit.

    The server needs no data; with `data.test_set = true` it evaluates every round on the test split.

    Examples:
    `feddkd server federation.toml --listen 127.0.0.1:50061 --state server-state`

    `feddkd server federation.toml --listen 0.0.0.0:50061 --state server-state --tls-cert cert.pem --tls-key key.pem --metrics-port 9464`
    """
    resolved = _with_shapes(Config.load(config, override or ()))
    host, port = parse_address(listen, "--listen")
    credentials = server_credentials(tls_cert, tls_key, tls_client_ca)
    if credentials is None:
        check_plaintext_allowed(host, insecure)
    run_id = new_run_id()
    algorithm = algorithms.build(resolved)
    resolved.aggregation.check_exchanges(algorithm.exchanges)
    model, evaluator = initial_model(resolved), make_evaluator(resolved)
    folder = out or state / run_id
    with ServerState(state) as server_state:
        if server_state.unfinished_run is not None:
            logger.warning("run %s did not finish; this version cannot resume it, so a new one begins", server_state.unfinished_run)
        engine = GrpcEngine(resolved, run_id, model.schema, state)
        bound = engine.start(host, port, credentials)
        completed = False
        try:
            server_state.mark(run_id, "running")
            note(error_console(), f"listening on {host}:{bound}, waiting for {resolved.scheduler.starting_clients} clients")
            with ended_by_sigterm(engine), observe(resolved, folder, metrics_port, metrics_host) as observers:
                record = Scheduler(resolved, algorithm, engine, run_id=run_id, observers=observers, evaluator=evaluator).run(model)
            completed = True
        finally:
            # The farewell first: clients must not wait for a server whose disk is full.
            engine.finish(completed=False, reason="the server stopped")
            server_state.mark(run_id, "completed" if completed else "failed")
    say_summary(summarize(record, resolved), folder, report=report, as_json=as_json)


@contextlib.contextmanager
def ended_by_sigterm(engine: GrpcEngine) -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, and a little later makes the engine fail.

    An exception that arrives in a callback of an extension may be swallowed there (pydantic and Cython do it), and a server
    that was told to stop would wait for clients for ever. Where it did arrive, the engine has finished by then.
    """

    def end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        second_chance = threading.Timer(SECOND_CHANCE_S, engine.abort, ["the server was stopped"])
        second_chance.daemon = True
        second_chance.start()
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _with_shapes(config: Config) -> Config:
    """Write the data's shape into the configuration, so that clients need not read the server's data to learn it."""
    info = describe(config.data)
    shapes = {"input_shape": info.input_shape, "num_classes": info.num_classes}
    return config.model_copy(update={"data": config.data.model_copy(update=shapes)})
