"""Local SGD on awkward data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import INFO, THREE, Federation, data
from harness import RUN_ID
from torch import nn
from torch.utils.data import Dataset

from feddkd import algorithms
from feddkd.algorithms.local_training import train_locally
from feddkd.algorithms.one_example import can_train_on_one, takes_one_example
from feddkd.algorithms.site import CrossEntropyConfig, LocalObjective, Site
from feddkd.client.state_dir import StateDir
from feddkd.config import Config
from feddkd.data.examples import MemoryExamples, Reading, StreamedExamples
from feddkd.engines.in_process import InProcessEngine
from feddkd.errors import ClientError, ConfigError, DataError
from feddkd.exchange import ExchangeId, Task
from feddkd.models.registry import build_model
from feddkd.scheduler.rounds import Scheduler
from feddkd.tensors import Tensors


def site_with(module: nn.Module, folder: Path, examples: int, batch_size: int = 4, lr: float = 0.05) -> Site:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(examples, 3, generator=generator)
    data = MemoryExamples(inputs, torch.randint(2, (examples,), generator=generator))
    config = Config.parse({"training": {"batch_size": batch_size, "epochs": 2, "lr": lr}})
    state, device = StateDir(folder, "a"), torch.device("cpu")
    return Site("a", config, data, data.subset(torch.arange(0)), module, device, state, plain_objective)


def normalised() -> nn.Sequential:
    """With statistics over the batch alone, which one example does not have."""
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def normalised_over_positions() -> nn.Sequential:
    """With statistics over the batch and three positions, which one example has."""
    return nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 4, 1), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(12, 2))


def normalised_by_group() -> nn.Sequential:
    """One channel a group: a class that is not BatchNorm, and refuses one example all the same."""
    return nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(4, 4), nn.Linear(4, 2))


def plain_objective(site: Site) -> LocalObjective:
    return LocalObjective(site, CrossEntropyConfig())


def task_for(site: Site) -> Task:
    return Task(ExchangeId("run", 1, 0, "local_train", 0), Tensors.of_module(site.module))


def test_a_leftover_of_one_example_does_not_stop_batch_normalisation(tmp_path: Path) -> None:
    site = site_with(normalised(), tmp_path, examples=9)
    before = Tensors.of_module(site.module)
    training = train_locally(site, task_for(site), plain_objective(site))
    assert training.loss > 0
    assert (training.steps, training.gradient_evaluations) == (2 * 2, 2 * 8)
    assert (Tensors.of_module(site.module) - before).norm() > 0
    assert int(site.module[1].num_batches_tracked) == 2 * 2  # type: ignore[index]


@pytest.mark.parametrize("network", [normalised, normalised_by_group])
def test_the_loss_is_that_of_the_examples_trained_on(tmp_path: Path, network: Callable[[], nn.Module]) -> None:
    """A network whose logits are all equal has a loss of log 2 at any example."""
    site = site_with(network(), tmp_path, examples=9, lr=1e-12)
    head = list(site.module.children())[-1]
    assert isinstance(head, nn.Linear)
    nn.init.zeros_(head.weight), nn.init.zeros_(head.bias)
    assert train_locally(site, task_for(site), plain_objective(site)).loss == pytest.approx(math.log(2), rel=1e-6)


def test_batch_normalisation_over_positions_trains_on_one_example(tmp_path: Path) -> None:
    for examples, batch_size, steps in ((9, 4, 2 * 3), (5, 1, 2 * 5), (1, 4, 2 * 1)):
        site = site_with(normalised_over_positions(), tmp_path / str(examples), examples, batch_size)
        build_objective = algorithms.objective_factory(site.config)
        training = train_locally(site, task_for(site), build_objective(site))
        assert (training.steps, training.gradient_evaluations) == (steps, 2 * examples)
        assert int(site.module[2].num_batches_tracked) == steps  # type: ignore[index]


@pytest.mark.parametrize("network", [normalised, normalised_by_group])
def test_a_batch_size_that_the_network_cannot_train_with_is_refused_at_the_start(tmp_path: Path, network: Callable[[], nn.Module]) -> None:
    site = site_with(network(), tmp_path, examples=8, batch_size=1)
    before = Tensors.of_module(site.module).sha256()
    build_objective = algorithms.objective_factory(site.config)
    with pytest.raises(ConfigError, match=r"^training\.batch_size = 1: model 'mlp' .*BatchNorm.* use at least 2$"):
        build_objective(site)
    assert Tensors.of_module(site.module).sha256() == before


@pytest.mark.parametrize(("examples", "batch_size"), [(1, 4), (3, 1)])
def test_a_client_that_takes_no_step_fails_and_says_why(tmp_path: Path, examples: int, batch_size: int) -> None:
    site = site_with(normalised(), tmp_path, examples, batch_size)
    reason = rf"BatchNorm.*examples = {examples}, training\.batch_size = {batch_size}$"
    with pytest.raises(ClientError, match=reason):
        train_locally(site, task_for(site), plain_objective(site))


def batch_norm(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, num_classes))


@pytest.mark.parametrize("name", ["fedavg", "fednova", "feddkd"])
def test_a_client_that_takes_no_step_is_missing_and_does_not_count(tmp_path: Path, name: str) -> None:
    """The round is that of the other two."""
    options: dict[str, Any] = {"model": "test_local_training:batch_norm", "rounds": 1, "dkd": {"steps": 1}}
    two = Federation(tmp_path / "two", {"name": name}, THREE[1:], **options)
    three = Federation(tmp_path / "three", {"name": name}, [*THREE[1:], data(1, 9)], **options)
    engine = InProcessEngine(three.workers, three.config.transport.chunk_bytes)
    scheduler = Scheduler(three.config, three.algorithm, engine, run_id=RUN_ID, observers=[three.follower])
    model = scheduler.run(Tensors.of_module(build_model(three.config.model, INFO, three.config.seed))).model
    assert model.sha256() == two.run().model.sha256()
    found, expected = three.follower.exchanges[0], two.follower.exchanges[0]
    assert list(found.clients_missing) == ["client-2"]
    assert found.clients_missing["client-2"].endswith("cannot train on one example at a time; examples = 1, training.batch_size = 100")
    assert found.loss == expected.loss


def test_a_client_without_examples_fails_and_says_why(tmp_path: Path) -> None:
    site = site_with(nn.Linear(3, 2), tmp_path, examples=0)
    with pytest.raises(ClientError, match="there are no labelled examples"):
        train_locally(site, task_for(site), plain_objective(site))


@pytest.mark.parametrize(("network", "accepted"), [(normalised, False), (normalised_by_group, False), (normalised_over_positions, True)])
def test_finding_out_whether_one_example_is_accepted_changes_nothing(network: Callable[[], nn.Module], accepted: bool) -> None:
    module = nn.Sequential(nn.BatchNorm1d(1), nn.Flatten(), network())
    before, state = Tensors.of_module(module).sha256(), torch.get_rng_state()
    assert takes_one_example(module, torch.randn(1, 1, 3, generator=torch.Generator().manual_seed(0))) is accepted
    assert Tensors.of_module(module).sha256() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_a_leftover_of_one_example_is_trained_on_where_it_can_be(tmp_path: Path) -> None:
    torch.manual_seed(0)
    eight = site_with(nn.Linear(3, 2), tmp_path / "8", examples=8)
    steps = []
    for examples in (8, 9):
        site = site_with(nn.Linear(3, 2), tmp_path / str(examples), examples=examples)
        site.module.load_state_dict(eight.module.state_dict())
        site.module.register_forward_hook(lambda _, inputs, logits: steps.extend([len(inputs[0])] * logits.requires_grad))
        assert train_locally(site, task_for(site), plain_objective(site)).steps == 2 * -(-examples // 4)
    assert steps == [4, 4] * 2 + [4, 4, 1] * 2


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_loss_is_the_mean_over_the_last_epoch(tmp_path: Path, epochs: int) -> None:
    site = site_with(nn.Linear(3, 2), tmp_path, examples=8)
    site.config = Config.parse({"training": {"batch_size": 8, "epochs": epochs, "lr": 1e-9}})
    inputs, labels = site.examples.gather(torch.arange(8))
    expected = nn.functional.cross_entropy(site.module(inputs), labels).item()
    assert train_locally(site, task_for(site), plain_objective(site)).loss == pytest.approx(expected, rel=1e-5)


class Broken(Dataset[tuple[torch.Tensor, int]]):
    """Rows of which some cannot be read, and whose targets are known without reading."""

    def __init__(self, count: int, bad: frozenset[int]) -> None:
        self.targets, self.bad = [position % 2 for position in range(count)], bad
        self.reads: list[int] = []

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        self.reads.append(position)
        if position in self.bad:
            raise OSError("cut off")
        return torch.tensor([float(position), 1.0, 0.0]), self.targets[position]


def damaged_site(folder: Path, bad: frozenset[int], network: nn.Module, *, count: int = 8, client: str = "a", **training: Any) -> Site:
    dataset = Broken(count, bad)
    data = StreamedExamples(dataset, torch.tensor(dataset.targets), Reading("scans", max_bad_share=1.0))
    config = Config.parse({"training": {"epochs": 2, "lr": 0.05, **training}})
    return Site(client, config, data, data.subset(torch.arange(0)), network, torch.device("cpu"), StateDir(folder, client), plain_objective)


@pytest.mark.parametrize("client", ["a", "b", "c", "d", "e", "f"])
@pytest.mark.parametrize(
    ("steps", "batch_size", "bad"), [(1, 1, {0, 2, 4, 5, 6}), (3, 1, {1, 2, 3, 4, 5, 6, 7}), (5, 2, {0, 1, 2, 3, 4, 7})]
)
def test_as_many_steps_are_taken_as_asked_for_whichever_examples_are_bad(
    tmp_path: Path, client: str, steps: int, batch_size: int, bad: set[int]
) -> None:
    """Whichever comes first in the order of a client: a batch that they leave empty is replaced."""
    site = damaged_site(tmp_path, frozenset(bad), nn.Linear(3, 2), client=client, steps=steps, batch_size=batch_size)
    training = train_locally(site, task_for(site), plain_objective(site))
    assert training.steps == steps
    assert math.isfinite(training.loss)


def test_the_loss_is_that_of_the_last_pass_that_read_something(tmp_path: Path) -> None:
    """A run with one good example of three reads nothing in a pass now and then."""
    for client in "abcdefgh":
        site = damaged_site(tmp_path / client, frozenset({0, 2}), nn.Linear(3, 2), count=3, client=client, batch_size=1, lr=1e-12, steps=4)
        inputs, labels = site.examples.gather(torch.tensor([1]))
        expected = nn.functional.cross_entropy(site.module(inputs), labels).item()
        assert train_locally(site, task_for(site), plain_objective(site)).loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_client_whose_examples_are_all_bad_says_so(tmp_path: Path, batch_size: int) -> None:
    site = damaged_site(tmp_path, frozenset(range(8)), normalised(), batch_size=batch_size)
    with pytest.raises(ClientError, match=r"none of the 8 labelled examples can be used$"):
        train_locally(site, task_for(site), plain_objective(site))


def test_a_client_whose_bad_examples_leave_one_in_a_batch_says_so(tmp_path: Path) -> None:
    site = damaged_site(tmp_path, frozenset(range(7)), normalised(), batch_size=4)
    with pytest.raises(ClientError, match=r"BatchNorm.* one example at a time, and bad examples leave no more in a batch; examples = 8"):
        train_locally(site, task_for(site), plain_objective(site))


@pytest.mark.parametrize("network", [nn.Linear(3, 2), normalised()])
def test_whether_batches_of_one_are_accepted_is_found_with_a_good_example(tmp_path: Path, network: nn.Module) -> None:
    site = damaged_site(tmp_path, frozenset({0, 1}), network, batch_size=1)
    assert can_train_on_one(site) is isinstance(network, nn.Linear)


def test_an_example_that_is_known_to_be_bad_is_not_read_again(tmp_path: Path) -> None:
    site = damaged_site(tmp_path, frozenset({0, 3}), nn.Linear(3, 2), batch_size=2, epochs=5)
    train_locally(site, task_for(site), plain_objective(site))
    assert isinstance(site.examples, StreamedExamples)
    assert isinstance(site.examples.dataset, Broken)
    reads = Counter(site.examples.dataset.reads)
    assert (reads[0], reads[3]) == (1, 1)
    with pytest.raises(DataError, match=r"example 3 .*cut off"):
        site.examples.gather(torch.tensor([1, 3]))
    assert site.examples.dataset.reads.count(3) == 1
