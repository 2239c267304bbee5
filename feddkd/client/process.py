"""Lets a process take part in a federation, as one client or as several."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from feddkd.client.agent import Agent, Farewell
from feddkd.client.membership import Membership
from feddkd.client.simulated import SimulatedMemberships, Simulation, simulated_clients
from feddkd.client.work import TaskRunner
from feddkd.config import Config
from feddkd.errors import FedDKDError
from feddkd.memory import end_without_search, return_large_blocks
from feddkd.standard_error import never_wait_for_standard_error
from feddkd.transport.closed_poller import ignore_closed_poller
from feddkd.transport.options import allow_connections
from feddkd.transport.tls import ClientTls

logger = logging.getLogger(__name__)

TOLD_BY_STDIN = "--told-by-stdin"

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
    return_large_blocks()
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


def _end_with_stdin() -> None:
    """End this process as a kill would, when nobody can write to its standard input any more.

    A simulation that was killed can go on at once: its clients do not hold their state directories.
    """
    os.read(sys.stdin.fileno(), 1)  # sys.stdin itself would be locked while Python ends
    os._exit(1)


def _told() -> list[str]:
    """Read the arguments from standard input, where a line of JSON follows once they are known; end if none does."""
    line = sys.stdin.buffer.readline()
    if not line:
        sys.exit(0)
    told: list[str] = json.loads(line)
    return told


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the client processes that `feddkd run` starts."""
    end_without_search()
    never_wait_for_standard_error()
    allow_connections()  # the parent's limit is raised after this process started; each client has a connection and a lock
    if arguments is None and sys.argv[1:] == [TOLD_BY_STDIN]:
        sys.argv[1:] = arguments = _told()
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
        simulation = Simulation(config, options.state)
        simulation.try_one(options.clients[0])
        clients = simulated_clients(simulation, options.clients)
        memberships = SimulatedMemberships(config, options.state, list(clients), kept=simulation.most_kept)
        farewell = take_part(options.server, clients, retry_for_s=GIVE_UP_AFTER_S, memberships=memberships)
    except FedDKDError as error:
        print(f"client process: {error}", file=sys.stderr)
        return 1
    return 0 if farewell.completed or farewell.paused else 1


if __name__ == "__main__":
    sys.exit(main())
