"""Lets a process take part in a federation, as one client or as several."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from feddkd.client.agent import Agent, Farewell
from feddkd.client.membership import Membership
from feddkd.client.network import Network
from feddkd.client.server_config import ServerConfig
from feddkd.client.state_dir import StateDir
from feddkd.client.work import TaskRunner
from feddkd.client.worker import Worker, settings_of_replies
from feddkd.config import Config
from feddkd.data.datasets import info_of, load_train
from feddkd.data.partitions import client_ids, partition
from feddkd.errors import FedDKDError
from feddkd.locking import DirectoryLock
from feddkd.tasks.chosen import task_of
from feddkd.transport.closed_poller import ignore_closed_poller
from feddkd.transport.tls import ClientTls

logger = logging.getLogger(__name__)

GIVE_UP_AFTER_S = 20.0
"""Simulated clients outlive their server by no more than this."""


def take_part(
    address: str,
    workers: Mapping[str, TaskRunner],
    *,
    tls: ClientTls | None = None,
    retry_for_s: float | None = None,
    memberships: Mapping[str, Membership] | None = None,
) -> Farewell:
    """Let workers take part as clients, computing one at a time, until the server says farewell.

    Args:
        address: HOST:PORT of the server.
        workers: by client id.
        tls: None for plaintext.
        retry_for_s: seconds to keep trying a server that does not answer; None for ever.
        memberships: by client id; a client without one has no memory of an earlier process.

    Raises:
        TransportError: the server cannot be reached, or refuses a client.
    """
    known = memberships or {}
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute") as executor:

        def agent(client_id: str, worker: TaskRunner) -> Agent:
            membership = known.get(client_id)
            return Agent(address, client_id, worker, executor, tls=tls, retry_for_s=retry_for_s, membership=membership)

        async def all_of_them() -> list[Farewell]:
            ignore_closed_poller(asyncio.get_running_loop())
            async with asyncio.TaskGroup() as group:
                running = [group.create_task(agent(*item).run()) for item in workers.items()]
            return [each.result() for each in running]

        try:
            return asyncio.run(all_of_them())[0]
        except* FedDKDError as errors:
            first: BaseException = errors
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            problem = first
    raise problem


def simulated_workers(config: Config, state: Path, indices: Sequence[int] | None = None) -> dict[str, Worker]:
    """Make workers that each hold a slice of one data set, as `[partition]` deals it.

    They share the data and, where it remembers nothing that does not travel, the network. What they
    save survives the end of their process, but is not written through to the disk: with all clients
    on one machine that would take a quarter of a round on small models.

    Args:
        config: of the run.
        state: the folder with a state directory for each client.
        indices: which clients; None for all.

    Raises:
        ConfigError: data, partition or model are not as the configuration says.
        StateError: a client's state directory below `state` cannot be used.
    """
    task = task_of(config)
    examples = load_train(config.data, config.seed, task)
    info = info_of(config.data, examples, task)
    parts = partition(config.partition, examples.labels, info.num_classes, config.seed)
    ids = client_ids(len(parts))
    network = Network(config, info)
    return {
        ids[index]: Worker(
            config.model_copy(update={"teacher": config.teacher.of_client(index)}),
            ids[index],
            examples.subset(parts[index]),
            StateDir(state / ids[index], ids[index], durable=False),
            info,
            network=network if network.can_be_shared else None,
        )
        for index in (range(len(parts)) if indices is None else indices)
    }


def release_state_dirs(state: Path, clients: Iterable[str]) -> None:
    """Let another process have the state directories of simulated clients, which nothing here uses any more.

    Their locks end with the objects, but the traceback of an error keeps these in a notebook.
    """
    for client in clients:
        DirectoryLock.release_of_this_process(state / client)


def simulated_memberships(config: Config, state: Path, clients: Iterable[str]) -> dict[str, Membership]:
    """Say how simulated clients join: with the secrets of their state directories, into this run only.

    Raises:
        StateError: a state directory cannot be used.
    """
    known = ServerConfig(config.shared_toml())
    computes_with = hashlib.sha256(settings_of_replies(config).encode()).hexdigest()
    states = {client: StateDir(state / client, client, durable=False) for client in clients}
    return {client: Membership(own.instance_id, known, own, computes_with, outlives_pause=False) for client, own in states.items()}


def _end_with_stdin() -> None:
    """End this process as a kill would, when nobody can write to its standard input any more.

    A simulation that was killed can go on at once: its clients do not hold their state directories.
    """
    os.read(sys.stdin.fileno(), 1)  # sys.stdin itself would be locked while Python ends
    os._exit(1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the client processes that `feddkd run` starts."""
    parser = argparse.ArgumentParser(prog="python -m feddkd.client.process", description=main.__doc__)
    parser.add_argument("config", type=Path, help="resolved configuration")
    parser.add_argument("--server", required=True, help="HOST:PORT")
    parser.add_argument("--state", type=Path, required=True, help="folder with one state directory for each client")
    parser.add_argument("--end-with-stdin", action="store_true", help="end at once when standard input does: its writer has died")
    parser.add_argument("--clients", type=int, nargs="+", required=True, help="indices of the clients that this process hosts")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which says farewell
    if options.end_with_stdin:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        config = Config.load(options.config)
        workers = simulated_workers(config, options.state, options.clients)
        memberships = simulated_memberships(config, options.state, workers)
        farewell = take_part(options.server, workers, retry_for_s=GIVE_UP_AFTER_S, memberships=memberships)
    except FedDKDError as error:
        print(f"client process: {error}", file=sys.stderr)
        return 1
    return 0 if farewell.completed or farewell.paused else 1


if __name__ == "__main__":
    sys.exit(main())
