"""What `run`, `server` and `client` check with `--check`: all that they need, before anything is joined or created."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from feddkd import algorithms
from feddkd.algorithms.own_teacher import build_teacher
from feddkd.cli.checklist import Checklist, free_address, way_to
from feddkd.cli.endpoints import Port
from feddkd.cli.machine import PROCESS_BYTES, ROUND_MODELS, SERVER_MODELS, SITE_MODELS, check_disk, check_memory
from feddkd.cli.words import counted_examples, short_size
from feddkd.client.own_site import fetch_server_config, site_config, site_worker
from feddkd.client.preflight import check_schema, check_simulation, check_site
from feddkd.client.simulated import most_in_a_round
from feddkd.client.state_dir import CLIENT, StateDir
from feddkd.client.worker import Worker
from feddkd.config import Config
from feddkd.data.datasets import describe, info_of, load_test, load_train
from feddkd.data.labels import check_partition
from feddkd.data.partitions import partition
from feddkd.engines import ray
from feddkd.engines.resolve import resolve
from feddkd.engines.simulation import EngineName
from feddkd.errors import ConfigError, StateError
from feddkd.imports import named
from feddkd.models.initial import build_initial
from feddkd.scheduler.downlink import check_codecs
from feddkd.scheduler.rule_book import check_rules
from feddkd.tasks.chosen import task_of
from feddkd.tensors import Schema
from feddkd.transport.options import check_connections
from feddkd.transport.tls import ClientTls

NO_PORTS: Mapping[str, Port] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class SiteToCheck:
    """What `feddkd client` was called with.

    Attributes:
        own: the site's own tables.
        certificates: files that TLS reads.
    """

    host: str
    address: str
    client_id: str
    state: Path
    own: dict[str, object]
    partition_index: int | None
    tls: ClientTls | None
    certificates: Sequence[Path | None]


def check_run(loaded: Config, folder: Path, engine: EngineName = "grpc", ports: Mapping[str, Port] = NO_PORTS) -> None:
    """Check what a simulation needs, and the ports that it shows things at. Raises ConfigError."""
    checks = Checklist()
    config = resolve(loaded)
    checks.check("configuration", lambda: _algorithm(config))
    checks.check("engine", lambda: _engine(engine, config))
    checks.check("proxy", lambda: way_to("127.0.0.1"))
    _ports(checks, ports)
    checks.check("data", lambda: f"{_training_data(config)}; {_test_data(config)}")
    schema = _check_model(checks, config)
    checks.check("step", lambda: _step(config))
    if config.teacher.own:
        checks.check("teachers", lambda: _teachers(config))
    processes = config.runtime.client_processes or 1
    needed = (processes + 1) * PROCESS_BYTES + (SERVER_MODELS + SITE_MODELS * most_in_a_round(config)) * schema.size_bytes
    checks.check("memory", lambda: check_memory(needed))
    checks.check("disk", lambda: check_disk(folder, (ROUND_MODELS + 2 * config.partition.clients) * schema.size_bytes))


def _ports(checks: Checklist, ports: Mapping[str, Port]) -> None:
    """Check that the port of each name is free. Raises ConfigError."""
    for name, port in ports.items():
        checks.check(name, functools.partial(free_address, port.host, port.number or 0))


def _engine(engine: EngineName, config: Config) -> str:
    """Check that the engine is installed, and can hold so many clients."""
    match engine:
        case "grpc":
            return f"gRPC on this machine, at most {check_connections(config.partition.clients, 'partition.clients')}"
        case "ray":
            ray.check(config)
            return f"Ray on {config.runtime.ray_address or 'this machine'}"
        case "in-process":
            return "in this process"


def check_server(
    config: Config, host: str, port: int, state: Path, certificates: Sequence[Path | None], ports: Mapping[str, Port] = NO_PORTS
) -> None:
    """Check what a server needs, and the ports that it shows things at. Raises ConfigError."""
    checks = Checklist()
    checks.check("configuration", lambda: _algorithm(config))
    checks.check("address", lambda: free_address(host, port))
    _ports(checks, ports)
    scheduler = config.scheduler
    key = f"scheduler.{scheduler.key_of_starting_clients}"
    checks.check("connections", lambda: check_connections(scheduler.starting_clients, key))
    checks.certificates(certificates)
    checks.check("data", lambda: _test_data(config))
    schema = _check_model(checks, config)
    checks.check("memory", lambda: check_memory(PROCESS_BYTES + SERVER_MODELS * schema.size_bytes))
    checks.check("disk", lambda: check_disk(state, ROUND_MODELS * schema.size_bytes))


def check_client(site: SiteToCheck) -> None:
    """Check what a site needs, with the configuration of a server that is running. Raises ConfigError."""
    checks = Checklist()
    checks.check("proxy", lambda: way_to(site.host))
    checks.certificates(site.certificates)
    found: list[Config] = []

    def ask() -> str:
        found.append(fetch_server_config(site.address, site.tls, 0.0).config)
        return f"{site.address} serves a run of {found[0].rounds} rounds of {found[0].algorithm.name}"

    checks.check("address", ask)
    config = site_config(found[0], site.own)
    with tempfile.TemporaryDirectory() as folder:  # a worker keeps things somewhere
        workers: list[Worker] = []

        def read() -> str:
            workers.append(site_worker(config, StateDir(Path(folder), site.client_id, durable=False), site.partition_index))
            counts, held_out = workers[0].counts, len(workers[0].site.held_out)
            return f"{counted_examples(counts.labelled, counts.unlabelled)}, {held_out} held out"

        checks.check("data", read)
        schema = workers[0].model_schema

        own = workers[0].site.own_teacher

        def try_step() -> str:
            check_site(workers[0].site)
            return _tried(schema) if own is None else f"{_tried(schema)}; the teacher {own.name} too"

        checks.check("model", try_step)
    networks_bytes = SITE_MODELS * (schema.size_bytes + (own.site.model_schema.size_bytes if own is not None else 0))
    checks.check("memory", lambda: check_memory(PROCESS_BYTES + networks_bytes))
    checks.check("disk", lambda: _state_of(site.client_id, site.state, networks_bytes))


def _algorithm(config: Config) -> str:
    algorithm = algorithms.build(config)
    config.check_exchanges(algorithm.exchanges(config))
    check_codecs(config)
    check_rules(config, algorithm)
    return f"{config.rounds} rounds of {config.algorithm.name}"


def _training_data(config: Config) -> str:
    task = task_of(config)
    info = describe(config.data, task)
    labels = load_train(config.data, config.seed, task).labels
    check_partition(config, task, info)
    parts = partition(config.partition, labels, info.num_classes, config.seed)
    return f"{len(labels):,} examples for {len(parts)} clients"


def _step(config: Config) -> str:
    """Try a training step and the metrics on some of the examples. Raises ConfigError."""
    initial = build_initial(config)
    task = initial.metrics.task
    examples = load_train(config.data, config.seed, task)
    check_simulation(config, initial.module, examples, info_of(config.data, examples, task), initial.metrics)
    measured = ", ".join(["loss", *initial.metrics.names])
    return f"a training step on some of the examples works, and {measured} can be measured"


def _teachers(config: Config) -> str:
    """Build every network that is some client's own. Raises ConfigError."""
    info = describe(config.data, task_of(config))
    built = [build_teacher(config, name, "", info) for name in config.teacher.own]
    sizes = ", ".join(
        f"{name} ({short_size(each.parts.travelling.size_bytes)})" for name, each in zip(config.teacher.own, built, strict=True)
    )
    return f"a training step works with {sizes}"


def _test_data(config: Config) -> str:
    return f"{len(load_test(config.data, config.seed, task_of(config))):,} test examples" if config.data.test_set else "no test set"


def _check_model(checks: Checklist, config: Config) -> Schema:
    """Build the model and try a step on random inputs. Raises ConfigError."""
    found: list[Schema] = []

    def build() -> str:
        schema = build_initial(config).model.schema
        check_schema(schema, named("model.name", config.model.name))
        algorithms.check_fits(algorithms.build(config), schema)
        found.append(schema)
        return _tried(schema)

    checks.check("model", build)
    return found[0]


def _tried(schema: Schema) -> str:
    return f"{short_size(schema.size_bytes)} in {len(schema.specs)} tensors; a training step works"


def _state_of(client_id: str, state: Path, needed_bytes: int) -> str:
    """Look at a state directory that may not be there. Raises ConfigError or StateError."""
    try:
        owner = (state / CLIENT).read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        owner = client_id
    except OSError as error:
        raise StateError(f"cannot read {state / CLIENT}: {error.strerror}") from error
    if owner != client_id:
        raise ConfigError(f"state directory {state} belongs to client {owner!r}, not to {client_id!r}")
    return check_disk(state, needed_bytes)
