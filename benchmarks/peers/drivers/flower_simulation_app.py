"""Flower's apps for the FedAvg work; a module of its own, because apps of `__main__` travel whole in every message."""

import os
import time

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from simulation_work import Work, save, train

client_app = ClientApp()
server_app = ServerApp()
held = {}  # of an actor's process: the work and one network for all clients that it simulates


def held_work():
    if not held:
        torch.set_num_threads(1)
        work = Work(os.environ["SIMULATION_WORK"])
        held.update(work=work, module=work.model())
    return held["work"], held["module"]


@client_app.train()
def train_client(message, _context):
    work, module = held_work()
    turn = message.content["config"]
    module.load_state_dict(message.content["arrays"].to_torch_state_dict())
    examples, labels = work.data(turn["round"], turn["position"])
    train(module, examples, labels)
    content = {"arrays": ArrayRecord(module.state_dict()), "metrics": MetricRecord({"num-examples": len(labels)})}
    return Message(content=RecordDict(content), reply_to=message)


class Scheduled(FedAvg):
    """FedAvg over the work's own schedule; which client a node simulates travels in the message."""

    def __init__(self, cohort):
        super().__init__(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=cohort, min_available_nodes=cohort)
        self.cohort = cohort
        self.ends_s = []

    def configure_train(self, server_round, arrays, config, grid):
        while len(nodes := sorted(grid.get_node_ids())) < self.cohort:
            time.sleep(0.1)
        return [
            Message(
                content=RecordDict({"arrays": arrays, "config": ConfigRecord({"round": server_round - 1, "position": position})}),
                message_type=MessageType.TRAIN,
                dst_node_id=node,
            )
            for position, node in enumerate(nodes)
        ]

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        assert len(replies) == self.cohort
        result = super().aggregate_train(server_round, replies)
        self.ends_s.append(time.perf_counter())
        return result


@server_app.main()
def main(grid, _context):
    work = Work(os.environ["SIMULATION_WORK"])
    strategy = Scheduled(work.cohort)
    rounds = int(os.environ["SIMULATION_ROUNDS"])
    result = strategy.start(grid=grid, initial_arrays=ArrayRecord(work.model().state_dict()), num_rounds=rounds)
    save(os.environ["SIMULATION_OUT"], strategy.ends_s, result.arrays.to_torch_state_dict())
