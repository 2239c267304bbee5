"""Simulates a federation on Ray: actors compute for its clients, on this machine or on a cluster.

Payloads and data sets cross Ray's object store, once to each node. What clients keep is in their state directories,
so that another actor can go on where one ended.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from feddkd.client.simulated import Simulation, most_in_a_round
from feddkd.config import Config
from feddkd.engines.hosted import HostedEngine
from feddkd.engines.hosts import HostLostError
from feddkd.engines.ray_host import Frames, Packed, RayHost
from feddkd.errors import ConfigError, FedDKDError, RunError
from feddkd.exchange import ExampleCounts, ExchangeId
from feddkd.extras import install_command
from feddkd.imports import one_line
from feddkd.transport.payload import Payload

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 120.0
"""Seconds for an actor to find its place on the cluster and to prepare."""


CONNECT_TIMEOUT_S = 10.0


def require() -> Any:
    """Import Ray. Raises ConfigError if it is not installed."""
    try:
        import ray
    except ImportError:
        raise ConfigError(f"--engine ray needs the package ray: {install_command('ray')}") from None
    return ray


def check(config: Config) -> None:
    """Check that Ray is installed, and that clients get the device that they compute on. Raises ConfigError."""
    require()
    runtime = config.runtime
    if runtime.device.startswith("cuda") != (runtime.ray_gpus > 0):
        raise ConfigError(
            f"runtime.device = {runtime.device!r} and runtime.ray_gpus = {runtime.ray_gpus:g}: with --engine ray, an actor sees a GPU "
            'only with ray_gpus > 0, and uses it only with device = "cuda"'
        )


@contextmanager
def ray_engine(config: Config, state: Path, spool_folder: Path) -> Iterator[HostedEngine]:
    """Start actors for the clients of a simulation, and end them.

    Args:
        config: of the run; it is in the file `CONFIG` in `state`.
        state: the folder with a state directory for each client.
        spool_folder: for contributions that do not fit into memory.

    Raises:
        ConfigError: data, partition or model are not as the configuration says.
        RunError: the cluster cannot be reached, or has no room for an actor.
    """
    transport = config.transport
    with _cluster(config) as ray:
        hosts = RayHosts(ray, config, state)
        engine = HostedEngine(hosts, transport.chunk_bytes, transport.staging_bytes, spool_folder, holdout=config.data.holdout)
        with engine:
            yield engine


@contextmanager
def _cluster(config: Config) -> Iterator[Any]:
    """Connect to the configured cluster, or start Ray on this machine; an existing connection of this process is used."""
    ray = require()
    if ray.is_initialized():
        yield ray
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray would print what actors say on standard output, which is for the summary; it keeps it in its own log files.
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    own = {"address": "local", "include_dashboard": False}
    if config.runtime.ray_address:
        _check_reachable(config.runtime.ray_address)
    try:
        ray.init(**quiet, **({"address": config.runtime.ray_address} if config.runtime.ray_address else own))
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = config.runtime.ray_address or "this machine"
        raise RunError(f"runtime.ray_address: cannot use Ray on {where}: {one_line(error)}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Connect to a cluster's port: Ray itself gives up after minutes. Raises RunError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return  # "auto": Ray knows at once
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise RunError(f"runtime.ray_address = {address!r}: no Ray cluster can be reached there: {error}") from None


class RayHosts:
    """Starts actors. Implements `Hosts`."""

    def __init__(self, ray: Any, config: Config, state: Path) -> None:
        """Load the data, count what each client computes on, and put the data into the object store.

        Raises:
            ConfigError: data, partition or model are not as the configuration says.
        """
        self._ray = ray
        self._config = config
        self._state = state.resolve()
        simulation = Simulation(config, self._state)
        self.counts: Mapping[str, ExampleCounts] = {client: simulation.counts(index) for index, client in enumerate(simulation.ids)}
        self.class_names: Sequence[str] = simulation.class_names
        self.movable = simulation.can_let_go
        self.num_hosts = _num_hosts(ray, config)
        self._examples = _shared(ray, simulation)

    def start(self, counted: Mapping[str, ExchangeId]) -> RayActor:
        runtime = self._config.runtime
        environment = {"OMP_NUM_THREADS": str(runtime.threads), "PYTHONPATH": _python_path()}
        options = {
            "num_cpus": runtime.threads,
            "num_gpus": runtime.ray_gpus,
            "max_concurrency": 2,
            "scheduling_strategy": "SPREAD",
            "runtime_env": {"env_vars": environment},
        }
        started = RayActor(self._ray, self._ray.remote(RayHost).options(**options).remote())
        try:
            started.call("prepare", str(self._state), self._examples, dict(counted), timeout_s=START_TIMEOUT_S)
        except BaseException:
            started.end()
            raise
        return started

    def share(self, payload: Payload) -> Any:
        return self._ray.put(Frames.of(payload.frames()))

    def close(self) -> None:
        """Let go of the data in the object store."""
        self._examples = None


class RayActor:
    """An actor as a host."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self.actor = actor
        self._ray = ray

    def has_constants(self, client: str, version: bytes) -> bool:
        return bool(self.call("has_constants", client, version))

    def reply_of(self, client: str, message: bytes, payload: Any) -> Sequence[bytes | memoryview] | None:
        reply = self.call("reply_of", client, message, payload)
        return None if reply is None else reply.messages()

    def settle(self, exchange: ExchangeId, counted: Mapping[str, bool]) -> None:
        self.call("settle", exchange, dict(counted))

    def let_go(self, clients: Sequence[str]) -> None:
        self.call("let_go", list(clients))

    def abort(self, reason: str) -> None:
        self.actor.abort.remote(reason)

    def end(self) -> None:
        self._ray.kill(self.actor, no_restart=True)

    def call(self, method: str, *arguments: Any, timeout_s: float | None = None) -> Any:
        """Wait for what a method of the actor returns.

        Raises:
            FedDKDError: the method raised it; RunError for anything else that it raised.
            HostLostError: the actor or its node is gone, or has not replied within `timeout_s` seconds.
        """
        errors = self._ray.exceptions
        try:
            return self._ray.get(getattr(self.actor, method).remote(*arguments), timeout=timeout_s)
        except errors.RayTaskError as error:
            if isinstance(error.cause, FedDKDError):
                raise error.cause from None
            raise RunError(f"a process that computes for the clients failed: {one_line(error.cause)}") from error
        except errors.GetTimeoutError:
            raise HostLostError(f"no answer within {timeout_s:g} s; the cluster may have no room for it") from None
        except errors.RayError as error:
            raise HostLostError(one_line(error)) from None


def _num_hosts(ray: Any, config: Config) -> int:
    """Return how many actors are wanted and the cluster has room for, at most as many as clients take part in a round."""
    runtime, resources = config.runtime, ray.cluster_resources()
    room = int(resources.get("CPU", 1) // runtime.threads)
    if runtime.ray_gpus > 0:
        room = min(room, int(resources.get("GPU", 0) / runtime.ray_gpus))
    room = max(1, room)
    wanted = min(runtime.client_processes or room, most_in_a_round(config))
    if wanted > room:
        logger.warning("runtime.client_processes = %d: the cluster has room for %d of them", runtime.client_processes, room)
    return min(wanted, room)


def _shared(ray: Any, simulation: Simulation) -> Any:
    """Put the training examples into the object store; None where only files can be read, which each node does itself."""
    try:
        return ray.put(Packed.of(simulation.examples))
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        logger.info("each host loads the data itself: %s", error)
        return None


def _python_path() -> str:
    """What this process can import: a script's folder is on its path, and not on that of an actor."""
    return os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
