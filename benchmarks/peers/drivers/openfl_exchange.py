"""The exchange over OpenFL's gRPC transport; runs where openfl is installed.

Its aggregator and its collaborators are built as its own `fx` commands build them, without TLS, without a checkpoint
database, and with the model of each round written to /dev/null. A collaborator with nothing to do sleeps ten seconds,
which no setting changes; `--poll-s` replaces that sleep.
"""

import argparse
import os
import time

import numpy as np
from openfl.callbacks import LambdaCallback
from openfl.component import Aggregator, Collaborator
from openfl.component.assigner.static_grouped_assigner import StaticGroupedAssigner
from openfl.component.collaborator import collaborator as collaborator_module
from openfl.federated.task import TaskRunner
from openfl.interface.aggregation_functions import WeightedAverage
from openfl.transport.grpc.aggregator_client import AggregatorGRPCClient
from openfl.transport.grpc.aggregator_server import AggregatorGRPCServer
from openfl.utilities import TensorKey
from probe import Probe

TASK = "train"
TASKS = {TASK: {"function": "echo", "kwargs": {}, "aggregation_type": WeightedAverage()}}
IDS = {"aggregator_uuid": "aggregator", "federation_uuid": "exchange"}


class Echo(TaskRunner):
    """Returns the model plus a constant of its own."""

    def __init__(self, rank, tensors):
        super().__init__(data_loader=None)
        self.constant = np.float32((rank + 1) * 2.0**-10)
        self.names = [f"tensor{index}" for index in range(tensors)]

    def get_train_data_size(self):
        return 1

    def get_required_tensorkeys_for_function(self, function, **options):
        return [TensorKey(name, "GLOBAL", 0, False, ("model",)) for name in self.names]

    def echo(self, col_name, round_num, input_tensor_dict):
        trained = {name: input_tensor_dict[name] + self.constant for name in self.names}
        return {TensorKey(name, col_name, round_num, False, ("trained",)): array for name, array in trained.items()}, {}


def serve(options):
    names = [f"collaborator-{rank}" for rank in range(options.clients)]
    groups = [{"name": "all", "tasks": [TASK], "collaborators": names}]
    probe = Probe()
    random = np.random.default_rng(0)
    model = {f"tensor{index}": random.standard_normal(options.elements, dtype=np.float32) for index in range(options.tensors)}
    aggregator = Aggregator(
        **IDS,
        authorized_cols=names,
        init_state_path=None,
        best_state_path=os.devnull,
        last_state_path=os.devnull,
        assigner=StaticGroupedAssigner(task_groups=groups, tasks=TASKS, authorized_cols=names, rounds_to_train=options.rounds),
        use_delta_updates=False,
        rounds_to_train=options.rounds,
        db_store_rounds=2,
        initial_tensor_dict=model,
        persist_checkpoint=False,
        callbacks=[LambdaCallback(on_round_begin=lambda *_: probe.start(), on_round_end=lambda *_, **__: probe.stop())],
    )
    AggregatorGRPCServer(aggregator, options.port, use_tls=False).serve()


def take_part(options):
    if options.poll_s is not None:
        collaborator_module.sleep = lambda _: time.sleep(options.poll_s)
    name = f"collaborator-{options.rank}"
    client = AggregatorGRPCClient("127.0.0.1", options.port, collaborator_name=name, use_tls=False, **IDS)
    Collaborator(name, client=client, task_runner=Echo(options.rank, options.tensors), task_config=TASKS, **IDS).run()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=["server", "client"])
    parser.add_argument("--rank", type=int)
    parser.add_argument("--poll-s", type=float)
    for name in ("port", "clients", "rounds", "elements", "tensors"):
        parser.add_argument(f"--{name}", type=int)
    options = parser.parse_args()
    (serve if options.role == "server" else take_part)(options)


if __name__ == "__main__":
    main()
