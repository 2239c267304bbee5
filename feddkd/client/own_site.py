"""Sets up a real site: its own data, and all other settings from the server's manifest."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from feddkd import algorithms
from feddkd.client.backoff import Backoff
from feddkd.client.server_config import ServerConfig
from feddkd.client.state_dir import StateDir
from feddkd.client.worker import Worker
from feddkd.config import Config, read_tables
from feddkd.data.datasets import info_of, load_train
from feddkd.data.partitions import partition
from feddkd.errors import ConfigError, RefusedError, UnreachableError
from feddkd.imports import IMPORT_PATH
from feddkd.tasks.chosen import task_of
from feddkd.text import printable
from feddkd.transport.client import ServerConnection
from feddkd.transport.tls import ClientTls

COMMON_DATA_KEYS = ("input_shape", "num_classes", "target_shape", "holdout", "scale", "class_names")
"""Keys of the server's `[data]` that hold for sites with data of their own: what the model takes, whether clients evaluate,
and how the names of the classes are compared."""

SHAPE_KEYS = ("input_shape", "num_classes", "target_shape")
"""Those of them that say what the model takes; a site may repeat them and cannot change them."""

SITE_KEYS = ("root", "workers", "memory_limit_mib")
"""Keys of `[data]` that the server never decides: which folder of a site is read, and what its machine can do."""


SITE_TABLES = ("runtime", "teacher")
"""Tables that the server never decides: how this machine is used, and which network of its own a site trains."""

BENCHMARK_KEYS = ("labelled_share", "labels_per_class", "label_noise", "label_noise_kind")
"""Keys of the server's `[data]` that spoil labels for a benchmark: a site's own labels are not spoilt on the server's word."""


def fetch_server_config(
    address: str, tls: ClientTls | None, retry_for_s: float | None, after_run: str = "", *, client_id: str = ""
) -> ServerConfig:
    """Ask the server what runs there, with patience.

    Args:
        after_run: a run that is over for this site: wait until the server has another one.
        client_id: who asks, for the log.

    Raises:
        ConfigError: a key or a value of its configuration is wrong.
        UnreachableError: it did not answer for `retry_for_s` seconds.
        RefusedError: trying again cannot help.
    """

    async def ask() -> ServerConfig:
        backoff = Backoff(client_id, retry_for_s)
        async with ServerConnection(address, tls) as server:
            while True:
                try:
                    manifest = await server.describe()
                    if after_run and manifest.run_id == after_run:
                        raise UnreachableError(f"server {address}: it has no other run than {printable(after_run)} yet")
                    return ServerConfig(manifest.config_toml, manifest.run_id)
                except UnreachableError as error:
                    await backoff.wait(error)

    return asyncio.run(ask())


def site_tables(file: Path | None, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Read the site's own configuration, checked before the server is asked for anything.

    Args:
        file: the site's configuration; None says nothing.
        overrides: `table.key=value`, on top of it.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or a key or a value is wrong, even one that does not count here.
    """
    own, source = read_tables(file, overrides), str(file) if file else "configuration"
    if isinstance(Config.parse(own, source).teacher.model, tuple):
        raise ConfigError(f"{source}: teacher.model is a list, which is for simulations; a site has one network")
    return own


def site_config(server: Config, own: Mapping[str, Any]) -> Config:
    """Return the server's configuration with the site's own data and hardware.

    Args:
        own: the site's tables, from `site_tables`; its `[runtime]` and `[teacher]` count, and its `[data]`. If that names the data,
            only what belongs to the task rather than to the data (`COMMON_DATA_KEYS`) still comes from the server; else
            what it does not say, but for `SITE_KEYS`.

    Raises:
        ConfigError: together with the server's, the site's configuration is wrong; or the run needs this site's local model, and
            it trains a network of its own.
        RefusedError: the server names code by import path that the site's own configuration does not name:
            a server never decides which code a site runs.
    """
    own_data, data = own.get("data", {}), server.data.model_dump(exclude_none=True)
    never = (*SITE_KEYS, *BENCHMARK_KEYS)
    data = {key: value for key, value in data.items() if key in COMMON_DATA_KEYS or not ("name" in own_data or key in never)}
    _check_same_shapes(data, own_data)
    data |= own_data
    resolved = Config.parse(server.model_dump(exclude_none=True) | {"data": data, **{table: own.get(table, {}) for table in SITE_TABLES}})
    _refuse_foreign_code(resolved, own)
    if resolved.teacher.own:
        algorithms.chosen(resolved)  # says whether the run goes on without this site's local model
    return resolved


def _check_same_shapes(server: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Check that a site takes what the model was built for: many networks accept other shapes without a word. Raises ConfigError."""
    for key in SHAPE_KEYS:
        here, there = own.get(key), server.get(key)
        if here is None or there is None:
            continue
        mine, theirs = (list(value) if isinstance(value, list | tuple) else value for value in (here, there))
        if mine != theirs:
            raise ConfigError(
                f"data.{key} = {mine} at this site, and {theirs} at the server, whose model is the same for all sites: delete the line"
            )


def _refuse_foreign_code(resolved: Config, own: Mapping[str, Any]) -> None:
    """Check every import path of a configuration, whichever key it stands under. Raises RefusedError for one that only the server names."""
    # `local_objective = "a:b"` is short for `local_objective = { name = "a:b" }`.
    named_here = {(key.removesuffix(".name"), path) for key, path in _import_paths(own)}
    for key, path in _import_paths(resolved.model_dump()):
        if (key.removesuffix(".name"), path) not in named_here:
            raise RefusedError(f"the server asks for {key} = {path!r}; to run this code here, name it in the client's configuration")


def _import_paths(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the import paths `package.module:name` of a tree of tables, each with its key, in order."""
    if isinstance(value, str):
        if re.fullmatch(IMPORT_PATH, value):
            yield key, value
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            yield from _import_paths(entry, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _import_paths(entry, key)


def site_worker(config: Config, state: StateDir, partition_index: int | None = None) -> Worker:
    """Build a worker on the site's own data, or on one slice of a shared data set.

    Raises:
        ConfigError: the data, the slice or the model are not as the configuration says.
    """
    data = config.data
    task = task_of(config)
    examples = load_train(data, config.seed, task)
    info = info_of(data, examples, task)
    if partition_index is not None:
        parts = partition(config.partition, examples.labels, info.num_classes, config.seed)
        if not 0 <= partition_index < len(parts):
            raise ConfigError(f"--partition-index {partition_index} is not one of the {len(parts)} slices of partition.clients")
        examples = examples.subset(parts[partition_index]).compact()
    return Worker(config, state.client_id, examples, state, info)
