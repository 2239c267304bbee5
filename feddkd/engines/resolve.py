"""Decides the configuration that a simulation runs with, before anything of the run exists."""

from __future__ import annotations

from feddkd.config import Config
from feddkd.data.partitions import client_ids
from feddkd.errors import ConfigError


def resolve(config: Config) -> Config:
    """Write the clients of a simulation into its configuration.

    All of `partition.clients` make up the federation, so round 1 waits for all of them and, unless
    `scheduler.min_clients` says otherwise, every round needs all that it asks: a run that lost a
    client could not be reproduced. The record, the scheduler, the engine and the clients get the
    returned configuration. To resolve it again changes nothing.

    Raises:
        ConfigError: `scheduler.clients` are others, or a number of clients cannot be reached.
    """
    number, given = config.partition.clients, config.scheduler.clients
    if isinstance(given, list) and sorted(given) != client_ids(number):
        names = client_ids(number)
        raise ConfigError(f"scheduler.clients: the clients of a simulation are named {names[0]} to {names[-1]}")
    if isinstance(given, int) and given != number:
        raise ConfigError(f"scheduler.clients = {given}: partition.clients is {number}")
    if given is not None:
        return config
    tree = config.model_dump(exclude_none=True)
    tree["scheduler"]["clients"] = number
    return Config.parse(tree)
