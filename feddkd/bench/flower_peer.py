"""The same exchange on Flower's gRPC transport, for a Python that has flwr installed (it needs protobuf < 7).

    python flower_peer.py server --clients 4 --rounds 8 --megabytes 100 --tensors 1

This file imports nothing of feddkd, because it runs in another virtual environment. Flower keeps this
bidirectional stream as a compatibility API; of its transports it is the fastest, because nothing polls.
"""

import argparse
import json
import os
import resource
import subprocess
import sys

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import time

import numpy as np
from flwr.client import NumPyClient, start_client
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerConfig, SimpleClientManager, start_server
from flwr.server.server import Server
from flwr.server.strategy import FedAvg


class TimedServer(Server):
    """Notes how long each fit round takes: serialize, send, wait, aggregate."""

    def __init__(self, clients, strategy):
        super().__init__(client_manager=SimpleClientManager(), strategy=strategy)
        self.clients = clients
        self.seconds = []

    def fit_round(self, server_round, timeout):
        self._client_manager.wait_for(self.clients)  # start-up does not count
        started = time.perf_counter()
        result = super().fit_round(server_round, timeout)
        self.seconds.append(time.perf_counter() - started)
        assert result is not None
        assert len(result[2][0]) == self.clients, result[2][1]
        return result


class Echo(NumPyClient):
    """Returns the model plus a constant of its own."""

    def __init__(self, rank):
        self.constant = np.float32((rank + 1) * 2.0**-10)

    def fit(self, parameters, config):
        return [array + self.constant for array in parameters], 1, {}


def serve(options, address):
    numel = max(1, int(options.megabytes * 2**20 / 4 / options.tensors))
    model = [np.zeros(numel, dtype=np.float32) for _ in range(options.tensors)]
    strategy = FedAvg(
        fraction_fit=1.0,
        fraction_evaluate=0.0,
        min_fit_clients=options.clients,
        min_evaluate_clients=0,
        min_available_clients=options.clients,
        initial_parameters=ndarrays_to_parameters(model),
    )
    server = TimedServer(options.clients, strategy)
    command = [sys.executable, __file__, "client", "--port", str(options.port)]
    clients = [subprocess.Popen([*command, "--rank", str(rank)]) for rank in range(options.clients)]
    start_server(server_address=address, config=ServerConfig(num_rounds=options.rounds), server=server)
    for client in clients:
        client.wait()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": server.seconds, "server_peak_bytes": peak}))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=["server", "client"])
    parser.add_argument("--clients", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--megabytes", type=float)
    parser.add_argument("--tensors", type=int)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    address = f"127.0.0.1:{options.port}"
    if options.role == "server":
        serve(options, address)
    else:
        start_client(server_address=address, client=Echo(options.rank).to_client(), insecure=True)


if __name__ == "__main__":
    main()
