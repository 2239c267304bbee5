"""What the workers of one process share, and what a reply passes before it leaves."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from harness import RUN_ID, small_config
from torch import Tensor, nn

from feddkd import algorithms
from feddkd.client.network import Network
from feddkd.client.simulated import SimulatedMemberships, simulated_workers
from feddkd.client.state_dir import StateDir
from feddkd.client.worker import FINAL_MODEL, ReplyStage, Worker, settings_of_replies
from feddkd.config import Config
from feddkd.data.datasets import DataInfo
from feddkd.data.examples import MemoryExamples
from feddkd.engines.in_process import InProcessEngine
from feddkd.engines.resolve import resolve
from feddkd.engines.simulation import run_federation
from feddkd.errors import ClientError, DataError
from feddkd.exchange import DELIVER, ExchangeId, Reply, Task
from feddkd.models.initial import build_initial
from feddkd.registry import MODELS
from feddkd.scheduler.rounds import Scheduler
from feddkd.tensors import Tensors
from feddkd.torchvision_compat import import_torchvision

INFO = DataInfo((1, 8, 8), 10)


def task_of(config: Config, name: str = "local_train", seed: int = 0) -> Task:
    model = build_initial(config).model
    for tensor in model.values():
        if tensor.dtype.is_floating_point:
            tensor.add_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed)) * 0.01)
    return Task(ExchangeId(RUN_ID, 1, 0, name, 0), model)


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def test_simulated_clients_share_the_network_and_the_data(tmp_path: Path) -> None:
    workers = simulated_workers(small_config(), tmp_path)
    assert len({id(worker.site.module) for worker in workers.values()}) == 1
    parts = [part for worker in workers.values() for part in (worker.site.examples, worker.site.held_out)]
    assert len({storage(part._inputs) for part in parts if isinstance(part, MemoryExamples)}) == 1
    assert len(parts) == 8


@pytest.mark.parametrize("model", ["mlp", "gated:batch_norm_mlp"])
@pytest.mark.parametrize("algorithm", ["feddkd", "scaffold", "moon"])
def test_what_is_shared_does_not_show_in_the_replies(algorithm: str, model: str, tmp_path: Path) -> None:
    config = small_config(f"algorithm.name={algorithm}", f'model.name="{model}"', "partition.clients=3", "partition.labels=4")
    task = task_of(config)
    if algorithm == "scaffold":
        control = Tensors(task.payload.schema.trainable)
        task = dataclasses.replace(task, payload=task.payload.beside(control=control))
    shared = simulated_workers(config, tmp_path / "shared")
    replies = {client: worker.carry_out(task) for client, worker in shared.items()}
    for index, client in enumerate(shared):
        (alone,) = simulated_workers(config, tmp_path / "alone", [index]).values()
        expected, found = alone.carry_out(task), replies[client]
        assert expected.contribution is not None
        assert found.contribution is not None
        assert found.contribution.sha256() == expected.contribution.sha256()
        assert (found.loss, found.metrics) == (expected.loss, expected.metrics)


class Counting(nn.Module):
    """Counts its training batches in a buffer that no state_dict holds."""

    batches: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("batches", torch.zeros(()), persistent=False)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.flatten(1)) * (1 + self.batches)
        if self.training:
            self.batches += 1
        return logits


def counting(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return Counting()


def test_a_network_that_remembers_what_does_not_travel_is_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    config = small_config('model.name="test_worker:counting"')
    assert not Network(config, INFO).can_be_shared
    workers = simulated_workers(config, tmp_path)
    assert len({id(worker.site.module) for worker in workers.values()}) == 4
    assert Network(small_config(), INFO).can_be_shared


class Drifting(nn.Module):
    """Keeps a running mean in a plain attribute, which no state_dict and no list of buffers shows."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(())
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * x.detach().mean() + 0.1
        logits: Tensor = self.linear(x.flatten(1) + self.mean)
        return logits


def drifting(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(Drifting())


def hooked(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Library modules alone, and a hook that counts."""
    model, seen = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), list[int]()

    def scale(module: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        seen.extend([1] * module.training)
        return logits * (1 + 0.01 * len(seen))

    model.register_forward_hook(scale)
    return model


def replaced(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Library modules alone, one of which has a forward of the user's."""
    linear, seen = nn.Linear(64, 10), list[int]()

    def forward(x: Tensor) -> Tensor:
        seen.extend([1] * linear.training)
        return nn.functional.linear(x, linear.weight, linear.bias) * (1 + 0.01 * len(seen))

    vars(linear)["forward"] = forward
    return nn.Sequential(nn.Flatten(), linear)


def trained_in_groups(config: Config, folder: Path, groups: list[list[int]]) -> str:
    """Run all rounds with clients built in groups, as the processes of a simulation do; the model's hash."""
    workers: dict[str, Worker] = {}
    for index, group in enumerate(groups):
        workers |= simulated_workers(config, folder / str(index), group)
    with InProcessEngine(workers, config.transport.chunk_bytes, holdout=config.data.holdout) as engine:
        scheduler = Scheduler(config, algorithms.build(config), engine, run_id=RUN_ID)
        return scheduler.run(build_initial(config).model).model.sha256()


@pytest.mark.parametrize("model", ["drifting", "hooked", "replaced"])
def test_how_clients_are_grouped_does_not_change_the_model(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    config = resolve(small_config("algorithm.name=fedavg", f'model.name="test_worker:{model}"'))
    in_process = run_federation(config, "in-process", tmp_path / "run").model.sha256()
    assert trained_in_groups(config, tmp_path / "one", [[0, 1, 2, 3]]) == in_process
    assert trained_in_groups(config, tmp_path / "two", [[0, 2], [1, 3]]) == in_process
    assert trained_in_groups(config, tmp_path / "four", [[0], [1], [2], [3]]) == in_process


@pytest.mark.parametrize("name", MODELS)
def test_clients_share_every_built_in_network(name: str) -> None:
    if name == "resnet18_gn":
        try:
            import_torchvision()
        except DataError:
            pytest.skip("torchvision is not installed")
    assert Network(small_config(f"model.name={name}"), DataInfo((3, 32, 32), 10)).can_be_shared


def worker_with(folder: Path, *stages: ReplyStage, config: Config | None = None) -> Worker:
    config = config or small_config("algorithm.name=fedavg", "partition.clients=1", "partition.labels=10")
    examples = MemoryExamples(torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 10)
    return Worker(config, "a", examples, StateDir(folder, "a"), INFO, on_reply=stages)


def identity(task: Task, reply: Reply) -> Reply:
    return reply


class Scale:
    """Multiplies the contribution."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, task: Task, reply: Reply) -> Reply:
        assert reply.contribution is not None
        return dataclasses.replace(reply, contribution=reply.contribution.scaled(self.factor), metrics={"scaled": self.factor})


def contribution_of(worker: Worker, task: Task) -> Tensors:
    reply = worker.carry_out(task)
    assert reply.contribution is not None
    return reply.contribution


def test_a_reply_passes_its_stages_in_order_before_it_leaves(tmp_path: Path) -> None:
    plain = worker_with(tmp_path / "plain")
    task = task_of(plain.site.config)
    expected = contribution_of(plain, task)
    assert contribution_of(worker_with(tmp_path / "same", identity), task).sha256() == expected.sha256()
    seen: list[str] = []

    def watch(task: Task, reply: Reply) -> Reply:
        assert reply.contribution is not None
        seen.append(reply.contribution.sha256())
        return reply

    stages = worker_with(tmp_path / "stages", watch, Scale(2.0), watch, Scale(0.25))
    found = stages.carry_out(task)
    assert found.contribution is not None
    assert found.contribution.sha256() == expected.scaled(2.0).scaled(0.25).sha256()
    assert seen == [expected.sha256(), expected.scaled(2.0).sha256()]
    assert found.metrics == {"scaled": 0.25}
    assert found.compute_s > 0


def test_stages_see_no_delivery_and_their_errors_are_the_clients(tmp_path: Path) -> None:
    def fail(task: Task, reply: Reply) -> Reply:
        raise ClientError("no key for this mask")

    worker = worker_with(tmp_path, fail)
    with pytest.raises(ClientError, match="no key for this mask"):
        worker.carry_out(task_of(worker.site.config))
    assert not worker.has_final_model(RUN_ID)
    worker.carry_out(task_of(worker.site.config, DELIVER))
    assert worker.has_final_model(RUN_ID)
    assert not worker.has_final_model("another run")
    assert (tmp_path / f"{FINAL_MODEL}.safetensors").exists()


def test_workers_of_one_network_compute_one_at_a_time(tmp_path: Path) -> None:
    config = small_config("algorithm.name=fedavg", "partition.clients=1", "partition.labels=10")
    network = Network(config, INFO)
    computing: list[bool] = []

    def watch(task: Task, reply: Reply) -> Reply:
        computing.append(network.turn.locked())
        return reply

    examples = MemoryExamples(torch.zeros(20, 1, 8, 8), torch.arange(20) % 10)
    worker = Worker(config, "a", examples, StateDir(tmp_path, "a"), INFO, network=network, on_reply=[watch])
    worker.carry_out(task_of(config))
    assert computing == [True]
    assert not network.turn.locked()


def test_simulated_clients_know_their_run_apart_from_what_the_server_keeps_to_itself(tmp_path: Path) -> None:
    config = Config.load(overrides=["data.name=mnist", "data.root=/here", "runtime.threads=3", "training.lr=0.1"])
    (membership,) = SimulatedMemberships(config, tmp_path, ["client-0"]).values()
    assert membership.config is not None
    assert membership.instance_id == StateDir(tmp_path / "client-0", "client-0").instance_id
    told = Config.load(overrides=["data.name=mnist", "training.lr=0.1"])
    assert membership.config.difference(told.to_toml()) is None
    other = Config.load(overrides=["data.name=mnist", "training.lr=0.2", "data.holdout=0.3"])
    assert membership.config.difference(other.to_toml()) == "differs in data.holdout, training.lr"


def test_a_teacher_that_is_trained_again_is_the_one_that_steps_go_by(tmp_path: Path) -> None:
    """A server that goes back may repeat an attempt with another model than before."""
    config = small_config("dkd.start=average")
    (worker,) = simulated_workers(config, tmp_path / "again", [0]).values()
    (other,) = simulated_workers(config, tmp_path / "once", [0]).values()
    step = task_of(config, "dkd_step")
    for task in (task_of(config), step, task_of(config, seed=1)):
        worker.carry_out(task)
    other.carry_out(task_of(config, seed=1))
    found, expected = worker.carry_out(step).contribution, other.carry_out(step).contribution
    assert found is not None
    assert expected is not None
    assert found.sha256() == expected.sha256()


def test_replies_depend_on_the_number_of_rounds_where_the_learning_rate_does() -> None:
    for schedule, same in (("constant", True), ("exponential", True), ("cosine", False), ("linear", False)):
        told = [Config.load(overrides=[f"training.schedule={schedule}", f"rounds={rounds}"]) for rounds in (3, 4)]
        assert (settings_of_replies(told[0]) == settings_of_replies(told[1])) is same
