"""The exchange over Flower's gRPC stream, `start_server` and `start_client`; runs where flwr is installed.

Flower keeps this bidirectional stream as a compatibility API. It is its fastest transport, because nothing polls.
"""

import argparse

import numpy as np
from flwr.client import NumPyClient, start_client
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerConfig, SimpleClientManager, start_server
from flwr.server.server import Server
from flwr.server.strategy import FedAvg
from probe import Probe


class MeasuredServer(Server):
    """Measures each fit round: serialize, send, wait, aggregate."""

    def __init__(self, clients, strategy):
        super().__init__(client_manager=SimpleClientManager(), strategy=strategy)
        self.clients = clients
        self.probe = Probe()

    def fit_round(self, server_round, timeout):
        self._client_manager.wait_for(self.clients)  # start-up does not count
        self.probe.start()
        result = super().fit_round(server_round, timeout)
        self.probe.stop()
        assert result is not None
        assert len(result[2][0]) == self.clients, result[2][1]
        return result


class Echo(NumPyClient):
    """Returns the model plus a constant of its own."""

    def __init__(self, rank):
        self.constant = np.float32((rank + 1) * 2.0**-10)

    def fit(self, parameters, config):
        return [array + self.constant for array in parameters], 1, {}


def serve(options):
    random = np.random.default_rng(0)
    model = [random.standard_normal(options.elements, dtype=np.float32) for _ in range(options.tensors)]
    strategy = FedAvg(
        fraction_fit=1.0,
        fraction_evaluate=0.0,
        min_fit_clients=options.clients,
        min_evaluate_clients=0,
        min_available_clients=options.clients,
        initial_parameters=ndarrays_to_parameters(model),
    )
    server = MeasuredServer(options.clients, strategy)
    start_server(server_address=options.address, config=ServerConfig(num_rounds=options.rounds), server=server)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=["server", "client"])
    parser.add_argument("--address", required=True)
    parser.add_argument("--rank", type=int)
    for name in ("clients", "rounds", "elements", "tensors"):
        parser.add_argument(f"--{name}", type=int)
    options = parser.parse_args()
    if options.role == "server":
        serve(options)
    else:
        start_client(server_address=options.address, client=Echo(options.rank).to_client(), insecure=True)


if __name__ == "__main__":
    main()
