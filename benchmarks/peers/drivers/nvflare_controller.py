"""The server's side of the exchange on NVIDIA FLARE: its own FedAvg, with nothing saved to disk."""

import numpy as np
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.workflows.fedavg import FedAvg
from probe import Probe


class MeasuredFedAvg(FedAvg):
    """Measures from the choice of a round's clients to what would save the round's model.

    FedJob makes this object again from attributes with the names of the arguments.
    """

    def __init__(self, num_clients: int, num_rounds: int, elements: int, tensors: int):
        super().__init__(persistor_id="", num_clients=num_clients, num_rounds=num_rounds, task_check_period=0.02)
        self.elements = elements
        self.tensors = tensors

    def load_model(self):
        self.probe = Probe()
        random = np.random.default_rng(0)
        params = {f"tensor{index}": random.standard_normal(self.elements, dtype=np.float32) for index in range(self.tensors)}
        return FLModel(params=params)

    def sample_clients(self, num_clients=None):  # the first call of a round
        clients = super().sample_clients(num_clients)
        self.probe.start()
        return clients

    def save_model(self, model):  # the last call of a round
        self.probe.stop()
