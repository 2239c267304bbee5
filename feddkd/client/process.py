"""A process that takes part in a federation as one client or as several."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from feddkd.client.agent import Agent, TaskRunner
from feddkd.client.state_dir import StateDir
from feddkd.client.worker import Worker
from feddkd.config import Config
from feddkd.data.datasets import describe, load_train
from feddkd.data.partitions import client_ids, partition
from feddkd.errors import FedDKDError
from feddkd.transport.pb import federation_pb2 as pb

logger = logging.getLogger(__name__)

GIVE_UP_AFTER_S = 20.0
"""Simulated clients outlive their server by no more than this."""


def take_part(
    address: str,
    workers: Mapping[str, TaskRunner],
    *,
    credentials: grpc.ChannelCredentials | None = None,
    retry_for_s: float | None = None,
) -> pb.Farewell:
    """Let workers take part as clients, computing one at a time, until the server says farewell.

    Raises:
        TransportError: the server cannot be reached, or refuses a client.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute") as executor:

        async def all_of_them() -> list[pb.Farewell]:
            async with asyncio.TaskGroup() as group:
                agents = [
                    group.create_task(Agent(address, client_id, worker, executor, credentials=credentials, retry_for_s=retry_for_s).run())
                    for client_id, worker in workers.items()
                ]
            return [agent.result() for agent in agents]

        try:
            return asyncio.run(all_of_them())[0]
        except* FedDKDError as errors:
            first: BaseException = errors
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            problem = first
    raise problem


def simulated_workers(config: Config, state: Path, indices: Sequence[int] | None = None) -> dict[str, Worker]:
    """Workers that each hold a slice of one data set, as `[partition]` deals it; all of them, or those of `indices`.

    Raises:
        ConfigError: data, partition or model are not as the configuration says.
    """
    info = describe(config.data)
    examples = load_train(config.data, config.seed)
    parts = partition(config.partition, examples.labels, info.num_classes, config.seed)
    ids = client_ids(len(parts))
    chosen = range(len(parts)) if indices is None else indices
    return {ids[index]: Worker(config, ids[index], examples.subset(parts[index]), StateDir(state / ids[index]), info) for index in chosen}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the client processes that `feddkd run` starts."""
    parser = argparse.ArgumentParser(prog="python -m feddkd.client.process", description=main.__doc__)
    parser.add_argument("config", type=Path, help="resolved configuration")
    parser.add_argument("--server", required=True, help="HOST:PORT")
    parser.add_argument("--state", type=Path, required=True, help="folder with one state directory for each client")
    parser.add_argument("--clients", type=int, nargs="+", required=True, help="indices of the clients that this process hosts")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which says farewell
    try:
        workers = simulated_workers(Config.load(options.config), options.state, options.clients)
        farewell = take_part(options.server, workers, retry_for_s=GIVE_UP_AFTER_S)
    except FedDKDError as error:
        print(f"client process: {error}", file=sys.stderr)
        return 1
    return 0 if farewell.completed else 1


if __name__ == "__main__":
    sys.exit(main())
