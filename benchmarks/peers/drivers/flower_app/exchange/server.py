"""The server's side of the exchange on Flower's deployment engine."""

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from probe import Probe

app = ServerApp()


class Measured(FedAvg):
    """Measures from the messages of a round to its aggregate."""

    def __init__(self, clients):
        super().__init__(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
        self.clients = clients
        self.probe = Probe()

    def configure_train(self, server_round, arrays, config, grid):
        messages = super().configure_train(server_round, arrays, config, grid)  # waits for the nodes
        self.probe.start()
        return messages

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        assert len(replies) == self.clients
        result = super().aggregate_train(server_round, replies)
        self.probe.stop()
        return result


@app.main()
def main(grid, context):
    settings = context.run_config
    random = np.random.default_rng(0)  # pieces of constants have the same SHA-256, and would be sent once
    model = [random.standard_normal(settings["elements"], dtype=np.float32) for _ in range(settings["tensors"])]
    Measured(settings["clients"]).start(grid=grid, initial_arrays=ArrayRecord(model), num_rounds=settings["rounds"])
